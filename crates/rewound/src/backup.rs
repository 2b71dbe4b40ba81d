//! Source → vaults.

use crate::compare;
use crate::follow::Pace;
use crate::points::PointView;
use crate::progress::Job;
use crate::round::{Done, Manner, Round};
use crate::space::bytes;
use model::{Description, Error, ErrorKind, Gap, Loss, Result, Selection, Skipped, Source};
use serde::Serialize;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use vault::{Access, BackupOptions, Vault};

/// How often a backup begins anew where history is lost under its hands.
const ROUNDS: usize = 3;

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
    /// History that was lost since the last point, of the first vault that lost some.
    pub gap: Option<Gap>,
    /// Changes that were read and stored; none if the source tells of no changes.
    pub changes: Option<u64>,
    /// Whether everything was read, for some vault at least.
    pub scanned: bool,
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
    /// What a full backup found where the change log says something else than the new scan; none if
    /// the two were not compared.
    pub compared: Option<Vec<String>>,
}

/// Backs a source up into one or more vaults: one read, fanned out. A vault that fails does not
/// fail the others; an error comes only if no vault has the new point.
///
/// Of a source that tells its changes only those since the last point are read, for each vault from
/// where it stands. Where that is not possible everything is read, together with the changes that
/// happen meanwhile. When `job` is stopped, the error says what was kept.
pub async fn backup(
    job: &Job,
    source: &dyn Source,
    destinations: Vec<Destination>,
    selection: &Selection,
    options: &BackupOptions,
) -> Result<BackupReport> {
    let began = Instant::now();
    let mut manner = Manner {
        options: options.clone(),
        pace: Pace::default(),
        listener: None,
        lost: HashMap::new(),
        scan_only: false,
        until: None,
    };
    let mut report = Report::default();
    let mut vaults = Vec::new();
    let mut targets = Vec::new();
    for Destination { url, vault } in destinations {
        vaults.push((url.clone(), vault.as_ref().ok().cloned()));
        targets.push((url, Some(vault)));
    }
    for number in 1..=ROUNDS {
        // These futures are large, and no part of those of callers.
        let mut round = Box::pin(Round::start(job, source, targets, selection, &manner)).await?;
        let done = match Box::pin(round.run()).await {
            Ok(done) => done,
            Err(error) => {
                let stored = round.lanes.stored();
                round.lanes.abandon().await;
                return Err(given_up(error, stored));
            }
        };
        report.description = Some(round.description);
        let lost = report.add(done);
        if lost.is_empty() {
            break;
        }
        // A vault without history waited while that of another was found lost.
        let waiting = report.unserved(vaults.len());
        if number == ROUNDS {
            let waiting = waiting.into_iter().filter_map(|i| Some((i, lost.values().next()?)));
            report
                .errors
                .extend(waiting.chain(lost.iter().map(|(i, gap)| (*i, gap))).map(|(i, gap)| (i, overtaken(gap))));
            break;
        }
        job.note(match lost.values().find(|gap| gap.is_empty()) {
            Some(Gap { why, .. }) => format!("{why}: everything is read"),
            None => "history was lost while it was read: everything is scanned".to_owned(),
        });
        let is_next = |i: usize| lost.contains_key(&i) || waiting.contains(&i);
        targets = vaults
            .iter()
            .enumerate()
            .map(|(i, (url, v))| (url.clone(), v.clone().filter(|_| is_next(i)).map(Ok)))
            .collect();
        // The log is shorter than what a scan takes: what is scanned must be enough.
        manner.scan_only = number + 1 == ROUNDS;
        manner.lost = lost;
    }
    if options.full {
        for (i, (url, vault)) in vaults.iter().enumerate() {
            let (Some(vault), Some((name, manifest))) = (vault, report.points.get(&i)) else { continue };
            match compare::log_with_scan(job, vault, name, manifest).await {
                Ok(Some(found)) => {
                    if !found.problems.is_empty() {
                        let recorded =
                            compare::record(vault, &report.description, options, name, manifest, &found).await;
                        match recorded {
                            Ok(point) => drop(report.points.insert(i, point)),
                            Err(e) => job.note(format!("{url}: the gap could not be recorded: {e}")),
                        }
                        report.gap.get_or_insert(found.gap);
                    }
                    report.compared.insert(i, found.problems);
                }
                Ok(None) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => return Err(e),
                Err(e) => job.note(format!("{url}: the log could not be compared with the scan: {e}")),
            }
        }
    }
    report.finish(vaults, began)
}

/// What the rounds of a backup came to.
#[derive(Default)]
struct Report {
    description: Option<Description>,
    points: HashMap<usize, (vault::PointName, vault::Manifest)>,
    errors: HashMap<usize, Error>,
    compared: HashMap<usize, Vec<String>>,
    gap: Option<Gap>,
    changes: Option<u64>,
    scanned: bool,
    skipped: Vec<Skipped>,
    collections: Vec<ReadCollection>,
    documents: u64,
    bytes: u64,
}

impl Report {
    /// Adds a round; gives the vaults that need another one.
    fn add(&mut self, done: Done) -> HashMap<usize, Gap> {
        let Done { points, errors, lost, gaps, scanned, read, stored, skipped, time: _ } = done;
        self.points.extend(points);
        self.errors.extend(errors);
        self.gap = self.gap.take().or_else(|| gaps.into_values().next());
        self.skipped.extend(skipped);
        if let Some(stored) = stored {
            *self.changes.get_or_insert(0) += stored.changes;
        }
        match scanned {
            Some(found) => {
                self.scanned = true;
                (self.documents, self.bytes) = (read.documents, read.bytes);
                self.collections = found.read;
            }
            None => {
                self.documents += read.documents;
                self.bytes += read.bytes;
            }
        }
        lost
    }

    /// The vaults that have neither a point nor an error.
    fn unserved(&self, vaults: usize) -> Vec<usize> {
        (0..vaults).filter(|i| !self.points.contains_key(i) && !self.errors.contains_key(i)).collect()
    }

    fn finish(mut self, vaults: Vec<(String, Option<Vault>)>, began: Instant) -> Result<BackupReport> {
        let mut outcomes = Vec::new();
        for (i, (url, _)) in vaults.into_iter().enumerate() {
            let point = match (self.errors.remove(&i), self.points.remove(&i)) {
                (Some(error), _) => Err(error),
                (None, Some((name, manifest))) => Ok(PointView::of(&name, &manifest)),
                (None, None) => Err(Error::bug("a vault has no point and no error")),
            };
            outcomes.push(VaultOutcome { url, point, compared: self.compared.remove(&i) });
        }
        if outcomes.iter().all(|o| o.point.is_err()) {
            let first = outcomes.into_iter().find_map(|o| o.point.err());
            return Err(first.unwrap_or_else(|| Error::bug("no vault was written to, and none failed")));
        }
        let (source, losses) = self.description.map(|d| (d.name, d.losses)).unwrap_or_default();
        Ok(BackupReport {
            source,
            losses,
            skipped: self.skipped,
            gap: self.gap,
            changes: self.changes,
            scanned: self.scanned,
            collections: self.collections,
            documents: self.documents,
            bytes: self.bytes,
            took: began.elapsed(),
            vaults: outcomes,
        })
    }
}

/// The error of a backup that was given up.
pub(crate) fn given_up(error: Error, stored: u64) -> Error {
    match error.kind() {
        ErrorKind::Interrupted => Error::new(
            ErrorKind::Interrupted,
            format!("interrupted before the point was complete; {} are stored in the vault", bytes(stored)),
        )
        .hint("run the same command again: it uses what is stored; `rewound prune` removes it instead"),
        _ => error,
    }
}

fn overtaken(gap: &Gap) -> Error {
    Error::new(ErrorKind::HistoryLost, format!("history was lost again and again: {}", gap.why))
        .hint("make the source keep its history for longer than a backup takes, then run the backup again")
}
