//! Reading everything of a source into vaults, part by part.

use crate::ahead::Ahead;
use crate::backup::ReadCollection;
use crate::lanes::Lanes;
use crate::parts::by_collection;
use crate::progress::Job;
use crate::stop::interrupted;
use futures::StreamExt;
use model::{
    CollectionId, CollectionInfo, EngineTime, Error, ErrorKind, Kind, Part, Result, ScanItem, ScanStream, Skipped,
    Source,
};
use std::collections::{HashMap, VecDeque};
use vault::WriteOutcome;

/// How often the reading of one collection may begin anew.
const TRIES_MAX: u32 = 10;

/// What a scan found.
#[derive(Debug, Default)]
pub(crate) struct Scanned {
    pub skipped: Vec<Skipped>,
    /// The first and the last engine time that something was read at, where the source tells.
    pub times: Option<(EngineTime, EngineTime)>,
    /// Whether collections came and went while they were read.
    pub uneven: bool,
    pub read: Vec<ReadCollection>,
    /// Which collection has a name.
    names: HashMap<String, CollectionId>,
}

/// Reads parts into some of the lanes.
pub(crate) struct Scanner<'a> {
    pub job: &'a Job,
    pub source: &'a dyn Source,
    pub lanes: &'a mut Lanes,
    /// The lanes that everything is read for.
    pub only: Vec<usize>,
    pub found: Scanned,
}

impl Scanner<'_> {
    /// Reads all parts. An error comes from the source, or if no lane is left.
    pub async fn run(mut self, parts: Vec<Part>) -> Result<Scanned> {
        let store = self.lanes.attachments(self.job)?;
        if let Some(items) = self.job.stop.or(self.source.read_together(&parts, store)).await? {
            return self.read_together(parts, items).await;
        }
        let groups = by_collection(parts);
        let parts = groups.iter().flat_map(|(_, parts)| parts).cloned();
        let mut ahead = Ahead::new(parts, self.source.side_by_side());
        for (_, parts) in &groups {
            self.read_collection(parts, &mut ahead).await?;
            if self.alive().is_empty() {
                break;
            }
        }
        Ok(self.found)
    }

    /// Reads all collections at once.
    async fn read_together(mut self, parts: Vec<Part>, mut items: ScanStream) -> Result<Scanned> {
        let mut lanes = self.alive();
        let mut all: Vec<(CollectionInfo, u64, u64)> = Vec::new();
        for (info, _) in by_collection(parts) {
            lanes = self.begin(lanes, &info).await;
            all.push((info, 0, 0));
        }
        while let Some(item) = next(self.job, &mut items).await? {
            lanes = self.lanes.drop_failed(lanes).await;
            match item {
                ScanItem::Batch(batch) => {
                    self.job.count(&batch);
                    if let Some((_, documents, bytes)) = all.iter_mut().find(|(info, ..)| info.id == batch.collection) {
                        *documents += if batch.kind == Kind::Attachment { 0 } else { batch.len() as u64 };
                        *bytes += match batch.kind {
                            Kind::Attachment => batch.attachments.iter().map(|a| a.length).sum(),
                            _ => batch.raw_bytes(),
                        };
                    }
                    let outcomes = self.lanes.write(&lanes, batch).await;
                    if outcomes.iter().any(|(_, outcome)| *outcome == WriteOutcome::ReadAgain) {
                        return Err(Error::bug("an ordered collection was read together with others"));
                    }
                    lanes = outcomes.into_iter().map(|(i, _)| i).collect();
                }
                ScanItem::Catalog(info) => {
                    lanes = self.begin(lanes, &info).await;
                    all.push((info, 0, 0));
                }
                ScanItem::Skipped(bad) => self.found.skipped.push(bad),
                ScanItem::Progress { .. } | ScanItem::Gone | ScanItem::Again(_) => {
                    return Err(Error::bug("collections that are read together cannot be read again one by one"));
                }
            }
            if lanes.is_empty() {
                return Err(self.lanes.first_error());
            }
        }
        for (info, documents, bytes) in all {
            self.lanes.end(&lanes, &info.id).await;
            self.found.read.push(ReadCollection { name: info.name, documents, bytes });
        }
        Ok(self.found)
    }

    /// The lanes that still go well.
    fn alive(&self) -> Vec<usize> {
        self.only.iter().copied().filter(|i| self.lanes.lanes[*i].run.is_some()).collect()
    }

    /// Reads all parts of one collection, again for the vaults that ask for it.
    async fn read_collection(&mut self, parts: &[Part], ahead: &mut Ahead) -> Result<()> {
        let Some(first) = parts.first() else { return Ok(()) };
        let name = &first.collection.name;
        let before = self.job.progress();
        let mut skipped = Vec::new();
        let mut again =
            self.read_whole(parts, self.alive(), &mut skipped, ahead).await.map_err(|e| reading(name, e))?;
        self.found.skipped.append(&mut skipped);
        if !again.is_empty() {
            self.job.rewind(before);
            let mut anew = Ahead::new(parts.iter().cloned(), ahead.width());
            again = self.read_whole(parts, again, &mut skipped, &mut anew).await.map_err(|e| reading(name, e))?;
        }
        if !again.is_empty() {
            return Err(Error::bug(format!("the collection {name} was to be read a third time")));
        }
        let now = self.job.progress();
        // A collection that is gone, or whose name is another's by now, is not in the point.
        if self.found.names.get(name) == Some(&first.collection.id) {
            let (documents, bytes) = (now.documents - before.documents, now.bytes - before.bytes);
            self.found.read.push(ReadCollection { name: name.clone(), documents, bytes });
        }
        match self.lanes.alive().is_empty() {
            true => Err(self.lanes.first_error()),
            false => Ok(()),
        }
    }

    /// Reads one collection for some lanes, by other parts if the source cannot go on with these;
    /// gives the lanes that need to read it again.
    async fn read_whole(
        &mut self,
        parts: &[Part],
        mut lanes: Vec<usize>,
        skipped: &mut Vec<Skipped>,
        ahead: &mut Ahead,
    ) -> Result<Vec<usize>> {
        let (mut again, mut anew) = self.read_once(parts, &mut lanes, skipped, ahead).await?;
        let mut tries = 0;
        while let Some(parts) = anew.take() {
            tries += 1;
            if tries > TRIES_MAX {
                return Err(Error::new(ErrorKind::Retry, format!("its reading had to begin anew {TRIES_MAX} times"))
                    .hint("run the command again when the server is up for longer, or changes less"));
            }
            self.job.note(format!("{} is read again from its start", parts[0].collection.name));
            let mut ahead = Ahead::new(parts.iter().cloned(), ahead.width());
            let more;
            (more, anew) = self.read_once(&parts, &mut lanes, skipped, &mut ahead).await?;
            again.extend(more);
        }
        Ok(again)
    }

    /// Reads all parts of one collection for some lanes, several of them in turns if the source
    /// likes that; gives the lanes that need to read it again, and the parts by which all do.
    async fn read_once(
        &mut self,
        parts: &[Part],
        lanes: &mut Vec<usize>,
        skipped: &mut Vec<Skipped>,
        ahead: &mut Ahead,
    ) -> Result<(Vec<usize>, Option<Vec<Part>>)> {
        let mut again = Vec::new();
        let before = self.job.progress();
        let mut collection = parts[0].collection.clone();
        let id = collection.id.clone();
        *lanes = self.begin(std::mem::take(lanes), &collection).await;
        let mut waiting = parts.len();
        // What is open, and the time that its documents are of.
        let mut open: VecDeque<(ScanStream, Option<EngineTime>)> = VecDeque::new();
        // The time that the vaults know.
        let mut told = None;
        while waiting > 0 || !open.is_empty() {
            if lanes.is_empty() {
                ahead.skip(waiting);
                return Ok((again, None));
            }
            while open.len() < ahead.width() && waiting > 0 {
                let opening = ahead.next(self.source, || self.lanes.attachments(self.job));
                waiting -= 1;
                open.extend(self.job.stop.or(opening).await?.map(|items| (items, None)));
            }
            let Some((mut items, mut time)) = open.pop_front() else { break };
            let Some(item) = next(self.job, &mut items).await? else { continue };
            *lanes = self.lanes.drop_failed(std::mem::take(lanes)).await;
            match item {
                ScanItem::Batch(batch) => {
                    if let Some(time) = time.filter(|t| told != Some(*t)) {
                        self.lanes.read_at(lanes, &id, time).await;
                        told = Some(time);
                    }
                    self.job.count(&batch);
                    let outcomes = self.lanes.write(lanes, batch).await;
                    again.extend(outcomes.iter().filter(|(_, o)| *o == WriteOutcome::ReadAgain).map(|(i, _)| *i));
                    *lanes =
                        outcomes.into_iter().filter(|(_, o)| *o == WriteOutcome::Written).map(|(i, _)| i).collect();
                }
                ScanItem::Catalog(info) => {
                    collection = info;
                    *lanes = self.begin(std::mem::take(lanes), &collection).await;
                }
                ScanItem::Skipped(bad) => skipped.push(bad),
                ScanItem::Progress { true_at } => {
                    time = Some(true_at);
                    self.found.times =
                        Some(self.found.times.map_or((true_at, true_at), |(a, b)| (a.min(true_at), b.max(true_at))));
                }
                ScanItem::Gone => {
                    self.found.names.retain(|_, known| *known != id);
                    ahead.skip(waiting);
                    self.lanes.discard(lanes, &id).await;
                    self.job.rewind(before);
                    self.found.uneven = true;
                    self.job.note(format!("{} was dropped while it was read: it is not in the point", collection.name));
                    return Ok((again, None));
                }
                ScanItem::Again(parts) => {
                    ahead.skip(waiting);
                    self.lanes.discard(lanes, &id).await;
                    self.job.rewind(before);
                    return Ok((again, Some(parts)));
                }
            }
            open.push_back((items, time));
        }
        self.lanes.end(lanes, &id).await;
        Ok((again, None))
    }

    /// A collection begins, or has another name from now on. One that had this name before is gone.
    async fn begin(&mut self, lanes: Vec<usize>, info: &CollectionInfo) -> Vec<usize> {
        self.found.names.retain(|_, id| *id != info.id);
        if let Some(old) = self.found.names.insert(info.name.clone(), info.id.clone()) {
            self.lanes.discard(&lanes, &old).await;
            self.found.uneven = true;
            self.job.note(format!("{} was replaced while it was read: the point has the new one", info.name));
        }
        self.lanes.begin(&lanes, info).await
    }
}

/// Says which collection was being read, except of interruptions.
fn reading(name: &str, e: Error) -> Error {
    if e.kind() == ErrorKind::Interrupted { e } else { e.context(format!("reading collection {name}")) }
}

/// The next item, unless the job is stopped.
async fn next(job: &Job, items: &mut ScanStream) -> Result<Option<ScanItem>> {
    if job.stop.is_asked() {
        return Err(interrupted());
    }
    job.stop.or(async { items.next().await.transpose() }).await
}
