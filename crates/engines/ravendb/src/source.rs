//! A RavenDB database as a source: its export, collection by collection.

use crate::catalog;
use crate::changes::{self, Place};
use crate::dump::Reader;
use crate::gather::{DATABASE, Gather, Route};
use crate::hold;
use crate::server::{Build, Server, Stats};
use async_trait::async_trait;
use futures::StreamExt;
use model::{
    AttachmentStore, ChangeStream, CollectionInfo, Consistency, Description, Engine, Error, ErrorKind, FeedKind,
    Following, Gap, Part, Plan, Result, ScanItem, ScanStream, Selection, Source, SourceState, Until,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A RavenDB database.
#[derive(Debug)]
pub struct RavenSource {
    server: Arc<Server>,
}

/// What reading a part needs to know.
#[derive(Debug, Serialize, Deserialize)]
struct Token {
    collection: String,
    selection: Selection,
}

impl RavenSource {
    /// The database that the server stands for; nothing is opened yet.
    pub fn new(server: Arc<Server>) -> RavenSource {
        RavenSource { server }
    }

    async fn look(&self) -> Result<(Build, Stats)> {
        let build = self.server.build().await?;
        Ok((build, self.server.must_stats().await?))
    }

    /// The collections with their numbers of documents, and the one of the database itself.
    async fn list(&self) -> Result<Vec<(CollectionInfo, Option<u64>)>> {
        let all = self.server.collections().await?;
        let mut listed: Vec<_> = all.into_iter().map(|(name, n)| (catalog::info(&name), Some(n))).collect();
        listed.push((catalog::info(DATABASE), None));
        Ok(listed)
    }

    async fn scan(&self, selection: &Selection, stats: &Stats, hold: Option<u64>) -> Result<Plan> {
        let whole = |info: &CollectionInfo| selection.takes_all_of(&info.name);
        let mut parts = Vec::new();
        for (info, documents) in self.list().await? {
            if !selection.takes(&info.name) {
                continue;
            }
            let token = Token { collection: info.name.clone(), selection: selection.clone() };
            parts.push(Part {
                token: serde_json::to_string(&token).map_err(|e| Error::bug("a part's token").caused_by(e))?,
                documents: documents.filter(|_| whole(&info)),
                bytes: None,
                collection: info,
            });
        }
        let place = hold.filter(|_| changes::obstacle(stats).is_none() && parts.iter().all(|p| whole(&p.collection)));
        let start = place.map(|hold| Place::at(stats, hold).position()).transpose()?;
        // Each collection is read in a transaction of its own; the changes since make one state of them.
        let one = parts.len() == 1;
        let consistency = if one { Consistency::OneTime } else { Consistency::PerDocument };
        Ok(Plan::Scan { start, parts, at: None, consistency, skipped: Vec::new() })
    }
}

#[async_trait]
impl Source for RavenSource {
    async fn describe(&self) -> Result<Description> {
        let (build, stats) = self.look().await?;
        Ok(Description {
            engine: Engine::new("ravendb"),
            identity: format!("ravendb:{}", stats.database_id),
            name: self.server.database()?,
            version: build.version(),
            feed: FeedKind::LatestState,
            collections: self.list().await?.into_iter().map(|(info, _)| info).collect(),
            losses: Vec::new(),
        })
    }

    async fn plan(&self, selection: &Selection, last: Option<&SourceState>) -> Result<Plan> {
        let (_, stats) = self.look().await?;
        let hold = match self.server.wants_hold()? {
            true => Some(hold::begin(&self.server).await?),
            false => hold::task(&self.server).await?,
        };
        // Numbers from before the hold would promise tombstones that may be gone.
        let stats = if hold.is_some() { self.server.must_stats().await? } else { stats };
        let last = last.and_then(|last| Some((last, last.position.clone()?)));
        let Some((last, from)) = last else { return self.scan(selection, &stats, hold).await };
        let place = Place::of(&from)?;
        match place.judge(&stats, hold) {
            changes::Verdict::GoesOn => match place.untold(&self.server, &stats, selection).await? {
                None => Ok(Plan::Changes { from }),
                Some(why) => {
                    tracing::info!("everything is read and compared: {why}");
                    self.scan(selection, &stats, hold).await
                }
            },
            changes::Verdict::Compare(why) => {
                tracing::info!("everything is read and compared: {why}");
                self.scan(selection, &stats, hold).await
            }
            changes::Verdict::Lost(why) => {
                let then = self.scan(selection, &stats, hold).await?;
                Ok(Plan::Gap { gap: Gap { from: last.time, to: None, why }, then: Box::new(then) })
            }
        }
    }

    async fn read(&self, part: &Part, attachments: Arc<dyn AttachmentStore>) -> Result<ScanStream> {
        let token: Token = serde_json::from_str(&part.token)
            .map_err(|e| Error::bug("a part of another source was read from RavenDB").caused_by(e))?;
        let build = self.server.build().await?;
        let input = match token.collection.as_str() {
            DATABASE => self.server.export(&build, catalog::of_database(&build), None, None).await?,
            name => self.server.export(&build, catalog::of_collection(&build), Some(name), None).await?,
        };
        let gather = Gather::new(Route::All(token.collection), token.selection, attachments);
        Ok(scan(Reader::new(input), gather))
    }

    async fn changes(
        &self,
        from: &Following,
        until: Until,
        attachments: Arc<dyn AttachmentStore>,
    ) -> Result<ChangeStream> {
        changes::follow(self.server.clone(), from, until, attachments).await
    }
}

/// All batches of a dump.
pub(crate) fn scan(reader: Reader, gather: Gather) -> ScanStream {
    let (out, items) = tokio::sync::mpsc::channel(2);
    tokio::spawn(async move {
        if let Err(error) = pump(reader, gather, &out).await {
            let _ = out.send(Err(error)).await;
        }
    });
    futures::stream::unfold(items, |mut items| async { items.recv().await.map(|item| (item, items)) }).boxed()
}

type Out = tokio::sync::mpsc::Sender<Result<ScanItem>>;

async fn pump(mut reader: Reader, mut gather: Gather, out: &Out) -> Result<()> {
    let gone = |_| Error::new(ErrorKind::Interrupted, "nobody reads on");
    while let Some(event) = reader.next().await? {
        gather.take(&mut reader, event).await?;
        for batch in gather.take_ready() {
            out.send(Ok(ScanItem::Batch(batch))).await.map_err(gone)?;
        }
    }
    for batch in gather.finish() {
        out.send(Ok(ScanItem::Batch(batch))).await.map_err(gone)?;
    }
    Ok(())
}
