//! A source of CouchDB's documents as people and other programs take them: what wins, and attachments
//! one by one.

use crate::spool::Spool;
use async_trait::async_trait;
use futures::stream::{self, StreamExt, TryStreamExt};
use model::{
    AttachmentStore, ChangeBatch, ChangeItem, ChangeStream, Description, Following, Part, Plan, Position, Result,
    ScanItem, ScanStream, Selection, Source, SourceState, Until,
};
use std::sync::Arc;

/// Changes what another source gives on its way.
pub(crate) struct PlainSource {
    source: Arc<dyn Source>,
    /// Attachments as the other source gives them.
    spool: Arc<Spool>,
}

impl PlainSource {
    /// In front of a source of CouchDB's documents.
    pub fn new(source: Arc<dyn Source>) -> PlainSource {
        PlainSource { source, spool: Arc::default() }
    }
}

#[async_trait]
impl Source for PlainSource {
    async fn describe(&self) -> Result<Description> {
        self.source.describe().await
    }

    async fn plan(&self, selection: &Selection, last: Option<&SourceState>) -> Result<Plan> {
        self.source.plan(selection, last).await
    }

    fn side_by_side(&self) -> usize {
        self.source.side_by_side()
    }

    async fn read(&self, part: &Part, attachments: Arc<dyn AttachmentStore>) -> Result<ScanStream> {
        let items = self.source.read(part, self.spool.clone()).await?;
        let spool = self.spool.clone();
        let translated = items.and_then(move |item| {
            let (spool, to) = (spool.clone(), attachments.clone());
            async move {
                let ScanItem::Batch(batch) = item else { return Ok(vec![item]) };
                let from: Arc<dyn AttachmentStore> = spool.clone();
                let made = couch::plain::entries(&batch, &from, &*to, false).await?;
                spool.release(&batch.attachments);
                Ok(made.into_iter().map(|made| ScanItem::Batch(made.batch)).collect())
            }
        });
        Ok(translated.map_ok(|items| stream::iter(items.into_iter().map(Ok))).try_flatten().boxed())
    }

    async fn changes(
        &self,
        from: &Following,
        until: Until,
        attachments: Arc<dyn AttachmentStore>,
    ) -> Result<ChangeStream> {
        let items = self.source.changes(from, until, self.spool.clone()).await?;
        let spool = self.spool.clone();
        let translated = items.and_then(move |item| {
            let (spool, to) = (spool.clone(), attachments.clone());
            async move {
                let ChangeItem::Batch(ChangeBatch { batch, times }) = item else { return Ok(vec![item]) };
                let from: Arc<dyn AttachmentStore> = spool.clone();
                let made = couch::plain::entries(&batch, &from, &*to, true).await?;
                spool.release(&batch.attachments);
                let change = |made: couch::plain::Made| {
                    let times = made.of.iter().map(|i| times[*i]).collect();
                    ChangeItem::Batch(ChangeBatch { batch: made.batch, times })
                };
                Ok(made.into_iter().map(change).collect())
            }
        });
        Ok(translated.map_ok(|items| stream::iter(items.into_iter().map(Ok))).try_flatten().boxed())
    }

    async fn durable(&self, upto: &Position) -> Result<()> {
        self.source.durable(upto).await
    }
}
