//! Reading all of a source, and making the folder the same.

use super::{MirrorEvent, Worker};
use crate::metered::Metered;
use crate::parts::{Scan, by_collection};
use crate::progress::Doing;
use crate::translate;
use folder::FolderSink;
use folder::mirror::{Change, Touched};
use futures::StreamExt;
use model::{Batch, CollectionId, CollectionInfo, EngineTime, Error, Kind, Part, Result, ScanItem, Sink};
use std::collections::{HashSet, VecDeque};

/// The bodies of a batch as the folder takes them.
pub(super) fn as_json(batch: &Batch) -> Result<Batch> {
    let sink = FolderSink::new("");
    match batch.encoding {
        encoding if sink.takes(encoding) => Ok(batch.clone()),
        encoding if translate::is_needed(&sink, encoding) => Ok(translate::to_json(batch)),
        _ => Err(Error::unsupported("the documents are not JSON, and a folder holds nothing else")),
    }
}

impl Worker<'_> {
    /// Scans everything; afterwards the folder has it, and nothing else of the mirror's.
    pub(super) async fn scan(&mut self) -> Result<()> {
        self.job.phase(Doing::Checking, None, None);
        let selection = &self.options.selection;
        let Scan { parts, start, at, skipped, .. } =
            Scan::of(self.job.stop.or(self.source.plan(selection, None)).await?)?;
        skipped.iter().for_each(|s| self.job.note(format!("left out: {}: {}", s.what, s.why)));
        let sum = |of: fn(&Part) -> Option<u64>| parts.iter().map(of).sum::<Option<u64>>();
        self.job.phase(Doing::Reading, sum(|p| p.documents), sum(|p| p.bytes));
        self.memory.position = None;
        let before = (self.report.written, self.report.deleted);
        self.has_feed &= start.is_some();
        let follows = self.has_feed;
        // Without a feed nothing is compared with these times.
        let at = at.filter(|_| follows);
        let (mut met, mut dropped) = (Vec::new(), Vec::new());
        let mut documents = 0;
        for (info, parts) in by_collection(parts) {
            match self.scan_collection(info.clone(), parts, at, follows, &mut documents).await? {
                Some(info) => met.push(info),
                None => dropped.push(info),
            }
        }
        let there: HashSet<&CollectionId> = met.iter().map(|info| &info.id).collect();
        let gone: Vec<CollectionInfo> =
            self.mirror.collections().into_iter().filter(|c| !there.contains(&c.id)).collect();
        for info in gone {
            self.drop_collection(&info, None).await?;
        }
        // What was dropped meanwhile was there when the scan began: the changes tell of it.
        met.extend(dropped);
        self.memory.collections = met;
        self.memory.position = start.filter(|_| follows);
        self.memory.time = at;
        self.memory.whole = true;
        self.report.scans += 1;
        self.save(self.report.scans == 1).await?;
        let (written, deleted) = (self.report.written - before.0, self.report.deleted - before.1);
        self.tell(MirrorEvent::InStep { documents, written, deleted, follows });
        Ok(())
    }

    /// Scans one collection; none if it is gone by now.
    async fn scan_collection(
        &mut self,
        mut info: CollectionInfo,
        parts: Vec<Part>,
        at: Option<EngineTime>,
        follows: bool,
        documents: &mut u64,
    ) -> Result<Option<CollectionInfo>> {
        let id = info.id.clone();
        self.keep(&info).await?;
        let of = id.clone();
        self.on_disk(move |mirror| mirror.begin_scan(&of)).await?;
        let mut parts = VecDeque::from(parts);
        'parts: while let Some(part) = parts.pop_front() {
            let mut time = at;
            let store = Metered::in_front_of(self.spool.clone(), self.job);
            let mut items = self.job.stop.or(self.source.read(&part, store)).await?;
            while let Some(item) = self.job.stop.or(async { items.next().await.transpose() }).await? {
                match item {
                    ScanItem::Progress { true_at } => time = Some(true_at).filter(|_| follows),
                    ScanItem::Batch(batch) => {
                        self.job.count(&batch);
                        *documents += batch.len() as u64;
                        let touched = self.store(&info, batch, time.map_or(0, |t| t.order)).await?;
                        self.touched(&info.name, touched);
                    }
                    ScanItem::Catalog(now) => {
                        info = now;
                        self.keep(&info).await?;
                    }
                    ScanItem::Skipped(bad) => self.job.note(format!("left out: {}: {}", bad.what, bad.why)),
                    ScanItem::Gone => {
                        self.drop_collection(&info, None).await?;
                        return Ok(None);
                    }
                    ScanItem::Again(anew) => {
                        let of = id.clone();
                        self.on_disk(move |mirror| mirror.begin_scan(&of)).await?;
                        parts = anew.into();
                        continue 'parts;
                    }
                }
            }
        }
        let touched = self.on_disk(move |mirror| mirror.end_scan(&id)).await?;
        self.touched(&info.name, touched);
        Ok(Some(info))
    }

    /// Has a collection under its name from now on.
    pub(super) async fn keep(&self, info: &CollectionInfo) -> Result<()> {
        let info = info.clone();
        self.on_disk(move |mirror| mirror.keep(&info)).await
    }

    /// Deletes what the mirror has of a collection, up to a time.
    pub(super) async fn drop_collection(&mut self, info: &CollectionInfo, until: Option<u64>) -> Result<()> {
        let id = info.id.clone();
        let (touched, is_left) = self.on_disk(move |mirror| mirror.drop_collection(&id, until)).await?;
        self.touched(&info.name, touched);
        if is_left {
            self.job.note(format!("{} is gone; what others put into its folder stays there", info.name));
        }
        Ok(())
    }

    /// Writes a batch as it was read.
    async fn store(&self, info: &CollectionInfo, batch: Batch, time: u64) -> Result<Vec<Touched>> {
        match batch.kind {
            Kind::Document => {
                let id = info.id.clone();
                let write = move |mirror: &folder::mirror::Mirror| {
                    let json = as_json(&batch)?;
                    let change =
                        |i| Change { key: json.key_of(i).to_vec(), body: Some(json.body_of(i).to_vec()), time };
                    mirror.write(&id, &(0..json.len()).map(change).collect::<Vec<_>>())
                };
                self.on_disk(write).await
            }
            Kind::Attachment => {
                let mut touched = Vec::new();
                for (i, content) in batch.attachments.iter().enumerate() {
                    let what = (batch.key_of(i), batch.body_of(i));
                    touched.extend(self.mirror.attach(&info.id, what, content, &*self.spool, time).await?);
                }
                self.spool.release(&batch.attachments);
                Ok(touched)
            }
            ref other => Err(Error::unsupported(format!(
                "{} has {} entries, and a folder has no place for them",
                info.name,
                other.space()
            ))
            .hint("leave the collection out with --exclude")),
        }
    }
}
