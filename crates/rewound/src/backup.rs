//! Source → vaults.

use crate::ahead::Ahead;
use crate::lanes::{Lane, Lanes};
use crate::parts::{Scan, by_collection};
use crate::points::PointView;
use crate::progress::{Doing, Job};
use crate::space::{self, Room, bytes};
use crate::stop::interrupted;
use futures::StreamExt;
use model::{
    CollectionId, CollectionInfo, Consistency, Description, EngineTime, Error, ErrorKind, Gap, Loss, Part, Result,
    ScanItem, ScanStream, Selection, Skipped, Source,
};
use serde::Serialize;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};
use vault::{Access, BackupOptions, PointDetails, Vault, WriteOutcome};

/// How often the reading of one collection may begin anew.
const TRIES_MAX: u32 = 10;

/// A vault that a backup is to go to, opened or not.
#[derive(Debug)]
pub struct Destination {
    /// Where it is, for people.
    pub url: String,
    /// The vault, or why it could not be opened.
    pub vault: Result<Vault>,
}

impl Destination {
    /// Opens the vault at a path or URL; that it cannot be opened is part of the result.
    pub async fn open(url: &str, access: Access) -> Destination {
        let vault = crate::registry::open_vault(url, access).await;
        Destination { url: crate::registry::without_secret(url), vault }
    }
}

/// What a backup did.
#[derive(Debug)]
pub struct BackupReport {
    /// The source's name.
    pub source: String,
    /// What the backup cannot contain.
    pub losses: Vec<Loss>,
    /// What was left out on request.
    pub skipped: Vec<Skipped>,
    /// History that was lost since the last point.
    pub gap: Option<Gap>,
    /// What was read of each collection, in the order of reading.
    pub collections: Vec<ReadCollection>,
    /// Documents read.
    pub documents: u64,
    /// Bytes read, attachments included.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
    /// What became of each vault, in the order in which they were given; at least one is well.
    pub vaults: Vec<VaultOutcome>,
}

/// What was read of one collection.
#[derive(Debug, Clone, Serialize)]
pub struct ReadCollection {
    /// Its name.
    pub name: String,
    /// Documents and attachments.
    pub documents: u64,
    /// Bytes, attachments included.
    pub bytes: u64,
}

/// What became of one vault of a backup.
#[derive(Debug)]
pub struct VaultOutcome {
    /// Where it is.
    pub url: String,
    /// The new point, or why there is none.
    pub point: Result<PointView>,
}

/// Backs a source up into one or more vaults: one read, fanned out. A vault that fails does not
/// fail the others; an error comes only if no vault has the new point.
///
/// A part that is read again because the order of its documents changed is read again only for the
/// vaults that asked for it. When `job` is stopped, the error says what was kept.
pub async fn backup(
    job: &Job,
    source: &dyn Source,
    destinations: Vec<Destination>,
    selection: &Selection,
    options: &BackupOptions,
) -> Result<BackupReport> {
    let began = Instant::now();
    job.phase(Doing::Checking, None, None);
    let mut description = job.stop.or(source.describe()).await?;
    if let Some(name) = &options.name {
        description.name.clone_from(name);
    }
    let mut lanes = Vec::new();
    for Destination { url, vault } in destinations {
        let (vault, error) = match vault {
            Ok(vault) => (Some(vault), None),
            Err(error) => (None, Some(error)),
        };
        lanes.push(Lane { url, vault, run: None, error });
    }
    for lane in &mut lanes {
        if let Some(vault) = &lane.vault {
            match vault.start_run(&description, options.clone()).await {
                Ok(run) => lane.run = Some(run),
                Err(error) => lane.error = Some(error),
            }
        }
    }
    let mut backup = Backup {
        job,
        source,
        description,
        lanes: Lanes::new(lanes),
        skipped: Vec::new(),
        times: None,
        uneven: false,
        read: Vec::new(),
        names: HashMap::new(),
    };
    match backup.run(selection).await {
        Ok((details, points)) => Ok(backup.report(details, points, began)),
        Err(error) => {
            let stored = backup.lanes.stored();
            backup.lanes.abandon().await;
            Err(match error.kind() {
                ErrorKind::Interrupted => Error::new(
                    ErrorKind::Interrupted,
                    format!("interrupted before the point was complete; {} are stored in the vault", bytes(stored)),
                )
                .hint("run the same command again: it uses what is stored; `rewound prune` removes it instead"),
                _ => error,
            })
        }
    }
}

struct Backup<'a> {
    job: &'a Job,
    source: &'a dyn Source,
    description: Description,
    lanes: Lanes,
    skipped: Vec<Skipped>,
    /// The first and the last engine time that something was read at, where the source tells.
    times: Option<(EngineTime, EngineTime)>,
    /// Whether collections came and went while they were read.
    uneven: bool,
    read: Vec<ReadCollection>,
    /// Which collection has a name.
    names: HashMap<String, CollectionId>,
}

type Committed = Vec<(usize, (vault::PointName, vault::Manifest))>;

impl Backup<'_> {
    async fn run(&mut self, selection: &Selection) -> Result<(PointDetails, Committed)> {
        if self.lanes.alive().is_empty() {
            return Err(self.lanes.first_error());
        }
        let scan = self.plan(selection).await?;
        self.check_room(&scan.parts).await?;
        let sum = |of: fn(&Part) -> Option<u64>| scan.parts.iter().map(of).sum::<Option<u64>>();
        self.job.phase(Doing::Reading, sum(|p| p.documents), sum(|p| p.bytes));
        let groups = by_collection(scan.parts);
        let parts = groups.iter().flat_map(|(_, parts)| parts).cloned();
        let mut ahead = Ahead::new(parts, self.source.side_by_side());
        for (_, parts) in &groups {
            self.read_collection(parts, &mut ahead).await?;
        }
        let read = self.job.progress();
        self.job.phase(Doing::Committing, None, None);
        self.job.rewind(read);
        // What was read is true at the latest moment at which something was read.
        let (earliest, latest) = match (self.times, scan.at) {
            (Some((from, to)), Some(at)) => (Some(from.min(at)), Some(to.max(at))),
            (Some((from, to)), None) => (Some(from), Some(to)),
            (None, at) => (at, at),
        };
        let time = latest.unwrap_or_else(|| EngineTime::wall(self.job.seams.clock.now_millis()));
        let details = PointDetails {
            time,
            consistency: match self.uneven || earliest != latest {
                true => Consistency::PerDocument,
                false => scan.consistency,
            },
            position: scan.start,
            gap: scan.gap,
            skipped: std::mem::take(&mut self.skipped),
        };
        let points = self.lanes.commit(&details).await;
        if points.is_empty() {
            return Err(self.lanes.first_error());
        }
        Ok((details, points))
    }

    /// Plans from the oldest of the vaults' last points, so that the read serves them all.
    async fn plan(&mut self, selection: &Selection) -> Result<Scan> {
        let last = self.lanes.lanes.iter().filter_map(|l| l.run.as_ref()).map(|r| r.last());
        let last = last.reduce(|a, b| match (a, b) {
            (Some(a), Some(b)) => Some(if a.time <= b.time { a } else { b }),
            _ => None,
        });
        let plan = self.job.stop.or(self.source.plan(selection, last.flatten().as_ref())).await?;
        let mut scan = Scan::of(plan)?;
        self.skipped.append(&mut scan.skipped);
        Ok(scan)
    }

    /// Compares what is going to be read with the room in local vaults.
    async fn check_room(&mut self, parts: &[Part]) -> Result<()> {
        let Some(to_read) = parts.iter().map(|p| p.bytes).sum::<Option<u64>>() else { return Ok(()) };
        for i in self.lanes.alive() {
            let lane = &self.lanes.lanes[i];
            let (Some(vault), Some(run)) = (&lane.vault, &lane.run) else { continue };
            let free = match vault.storage().is_local() {
                true => vault.storage().free_space().await.ok().flatten(),
                false => None,
            };
            let Some(free) = free else { continue };
            match space::room_for_backup(&lane.url, free, to_read, run.last().is_none()) {
                Ok(Room::Enough) => {}
                Ok(Room::Doubtful(note)) => self.job.note(note),
                Err(error) => self.lanes.fail(i, error).await,
            }
        }
        match self.lanes.alive().is_empty() {
            true => Err(self.lanes.first_error()),
            false => Ok(()),
        }
    }

    /// Reads all parts of one collection, again for the vaults that ask for it.
    async fn read_collection(&mut self, parts: &[Part], ahead: &mut Ahead) -> Result<()> {
        let Some(first) = parts.first() else { return Ok(()) };
        let name = &first.collection.name;
        let before = self.job.progress();
        let mut skipped = Vec::new();
        let mut again =
            self.read_whole(parts, self.lanes.alive(), &mut skipped, ahead).await.map_err(|e| reading(name, e))?;
        self.skipped.append(&mut skipped);
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
        if self.names.get(name) == Some(&first.collection.id) {
            let (documents, bytes) = (now.documents - before.documents, now.bytes - before.bytes);
            self.read.push(ReadCollection { name: name.clone(), documents, bytes });
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
                    self.times = Some(self.times.map_or((true_at, true_at), |(a, b)| (a.min(true_at), b.max(true_at))));
                }
                ScanItem::Gone => {
                    self.names.retain(|_, known| *known != id);
                    ahead.skip(waiting);
                    self.lanes.discard(lanes, &id).await;
                    self.job.rewind(before);
                    self.uneven = true;
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
        self.names.retain(|_, id| *id != info.id);
        if let Some(old) = self.names.insert(info.name.clone(), info.id.clone()) {
            self.lanes.discard(&lanes, &old).await;
            self.uneven = true;
            self.job.note(format!("{} was replaced while it was read: the point has the new one", info.name));
        }
        self.lanes.begin(&lanes, info).await
    }

    fn report(mut self, details: PointDetails, points: Committed, began: Instant) -> BackupReport {
        let read = self.job.progress();
        let mut points: Vec<Option<PointView>> = {
            let mut all: Vec<Option<PointView>> = self.lanes.lanes.iter().map(|_| None).collect();
            points.into_iter().for_each(|(i, (name, manifest))| all[i] = Some(PointView::of(&name, &manifest)));
            all
        };
        let vaults = self.lanes.lanes.drain(..).zip(points.drain(..)).map(|(lane, point)| VaultOutcome {
            url: lane.url,
            point: point.ok_or_else(|| lane.error.unwrap_or_else(|| Error::bug("a vault has no point and no error"))),
        });
        BackupReport {
            vaults: vaults.collect(),
            source: self.description.name,
            losses: self.description.losses,
            skipped: details.skipped,
            gap: details.gap,
            collections: self.read,
            documents: read.documents,
            bytes: read.bytes,
            took: began.elapsed(),
        }
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
