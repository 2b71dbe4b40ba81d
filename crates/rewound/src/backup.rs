//! Source → vaults.

use crate::lanes::{Lane, Lanes};
use crate::parts::{Scan, by_collection};
use crate::points::PointView;
use crate::progress::{Doing, Job};
use crate::space::{self, Room, bytes};
use crate::stop::interrupted;
use futures::StreamExt;
use model::{Description, EngineTime, Error, ErrorKind, Gap, Loss, Part, Result, ScanItem, Selection, Skipped, Source};
use std::time::{Duration, Instant};
use vault::{Access, BackupOptions, PointDetails, Vault, WriteOutcome};

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
    /// Documents read.
    pub documents: u64,
    /// Bytes read, attachments included.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
    /// What became of each vault, in the order in which they were given; at least one is well.
    pub vaults: Vec<VaultOutcome>,
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
    let mut backup = Backup { job, source, description, lanes: Lanes::new(lanes), skipped: Vec::new() };
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
        for (_, parts) in by_collection(scan.parts) {
            self.read_collection(&parts).await?;
        }
        let read = self.job.progress();
        self.job.phase(Doing::Committing, None, None);
        self.job.rewind(read);
        // What was read is true at the latest moment at which something was read.
        let time = EngineTime::wall(self.job.seams.clock.now_millis());
        let details = PointDetails {
            time,
            consistency: scan.consistency,
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
    async fn read_collection(&mut self, parts: &[Part]) -> Result<()> {
        let Some(first) = parts.first() else { return Ok(()) };
        let name = &first.collection.name;
        let before = self.job.progress();
        let mut reading = self.lanes.alive();
        let mut times = 0;
        while !reading.is_empty() {
            if times == 2 {
                return Err(Error::bug(format!("the collection {name} was to be read a third time")));
            }
            times += 1;
            self.job.rewind(before);
            let mut skipped = Vec::new();
            reading = self.read_once(parts, reading, &mut skipped).await.map_err(|e| {
                if e.kind() == ErrorKind::Interrupted { e } else { e.context(format!("reading collection {name}")) }
            })?;
            if times == 1 {
                self.skipped.append(&mut skipped);
            }
        }
        match self.lanes.alive().is_empty() {
            true => Err(self.lanes.first_error()),
            false => Ok(()),
        }
    }

    /// Reads all parts of one collection for some lanes; gives those that need to read it again.
    async fn read_once(
        &mut self,
        parts: &[Part],
        mut lanes: Vec<usize>,
        skipped: &mut Vec<Skipped>,
    ) -> Result<Vec<usize>> {
        let mut again = Vec::new();
        let collection = &parts[0].collection;
        lanes = self.lanes.begin(&lanes, collection).await;
        for part in parts {
            if lanes.is_empty() {
                return Ok(again);
            }
            let attachments = self.lanes.attachments(self.job)?;
            let mut items = self.job.stop.or(self.source.read(part, attachments)).await?;
            while let Some(item) = next(self.job, &mut items).await? {
                lanes = self.lanes.drop_failed(lanes).await;
                match item {
                    ScanItem::Batch(batch) => {
                        self.job.count(&batch);
                        let outcomes = self.lanes.write(&lanes, batch).await;
                        again.extend(outcomes.iter().filter(|(_, o)| *o == WriteOutcome::ReadAgain).map(|(i, _)| *i));
                        lanes =
                            outcomes.into_iter().filter(|(_, o)| *o == WriteOutcome::Written).map(|(i, _)| i).collect();
                    }
                    ScanItem::Catalog(info) => lanes = self.lanes.begin(&lanes, &info).await,
                    ScanItem::Skipped(bad) => skipped.push(bad),
                    ScanItem::Progress { .. } => {}
                }
                if lanes.is_empty() {
                    return Ok(again);
                }
            }
        }
        self.lanes.end(&lanes, &collection.id).await;
        Ok(again)
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
            documents: read.documents,
            bytes: read.bytes,
            took: began.elapsed(),
        }
    }
}

/// The next item, unless the job is stopped.
async fn next(job: &Job, items: &mut model::ScanStream) -> Result<Option<ScanItem>> {
    if job.stop.is_asked() {
        return Err(interrupted());
    }
    job.stop.or(async { items.next().await.transpose() }).await
}
