//! Source → vaults, for ever: a backup that follows its source.
//!
//! A live backup is a loop of runs. Each begins where the last one ended, follows the changes for an
//! hour, and ends with a point; one that must scan (the first one, one after a gap, one whose log has
//! grown long) ends with the scan. A source without a feed of changes is compared anew every minute.
//! What a vault no longer needs, above all flushes that were rolled up, is removed beside all this.

use crate::backup::{Destination, VaultOutcome, given_up};
use crate::events::{Listener, LiveEvent};
use crate::follow::Pace;
use crate::points::PointView;
use crate::progress::Job;
use crate::registry;
use crate::round::{Done, Manner, Round};
use crate::stop::interrupted;
use model::limits::{LIVE_COMPARE, LIVE_POINT};
use model::{Error, ErrorKind, Gap, Loss, Result, Selection, Source};
use std::collections::HashMap;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use vault::{Access, BackupOptions, PruneReport, Vault};

/// Pauses after something that may pass.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// After this long a vault that failed is tried again, if others go on.
const AGAIN: Duration = Duration::from_secs(300);

/// How a live backup goes on.
#[derive(Clone)]
pub struct LiveOptions {
    /// The longest that changes wait until they are stored; none: a second on local storage, ten on
    /// remote storage.
    pub flush: Option<Duration>,
    /// How often a source that tells no changes is compared anew.
    pub every: Duration,
    /// How often a point is made.
    pub point: Duration,
    /// Who listens to events.
    pub listener: Option<Listener>,
    /// To open vaults again that could not be opened at first.
    pub access: Option<Access>,
}

impl Default for LiveOptions {
    fn default() -> Self {
        LiveOptions { flush: None, every: LIVE_COMPARE, point: LIVE_POINT, listener: None, access: None }
    }
}

impl std::fmt::Debug for LiveOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveOptions").field("flush", &self.flush).field("every", &self.every).finish_non_exhaustive()
    }
}

/// What a live backup did until it was stopped.
#[derive(Debug)]
pub struct LiveReport {
    /// The source's name.
    pub source: String,
    /// What the backup cannot contain.
    pub losses: Vec<Loss>,
    /// History that was lost meanwhile; healed by new scans.
    pub gaps: Vec<Gap>,
    /// Changes that were stored; none if the source tells of no changes.
    pub changes: Option<u64>,
    /// Points that were made in each vault, together.
    pub points: u64,
    /// Bad input that was left out, on request.
    pub skipped: u64,
    /// How long it went on.
    pub took: Duration,
    /// The last point of each vault, or why it has none.
    pub vaults: Vec<VaultOutcome>,
}

/// A vault of a live backup.
struct Place {
    url: String,
    vault: Option<Vault>,
    point: Option<PointView>,
    /// Why it failed last.
    error: Option<Error>,
    /// Whether trying again is of no use.
    is_out: bool,
    tidying: Tidying,
}

/// The removal of what a vault no longer needs, again and again, so that days of flushes do not pile
/// up. It removes no point. What the run needs that goes on beside it stays until the next time.
#[derive(Default)]
struct Tidying {
    last: Option<Instant>,
    task: Option<JoinHandle<Result<PruneReport>>>,
    /// Whether it was told that it does not work.
    told: bool,
}

impl Tidying {
    /// Begins, if it is time and the last one is over; gives why that one failed, once.
    async fn begin(&mut self, vault: &Vault, every: Duration) -> Option<Error> {
        if self.task.as_ref().is_some_and(|t| !t.is_finished()) || self.last.is_some_and(|at| at.elapsed() < every) {
            return None;
        }
        let failed = match self.task.take() {
            Some(task) => task.await.ok().and_then(Result::err),
            None => None,
        };
        self.last = Some(Instant::now());
        let vault = vault.clone();
        self.task = Some(tokio::spawn(async move { vault.prune().await }));
        failed.filter(|_| !std::mem::replace(&mut self.told, true))
    }
}

impl Drop for Tidying {
    fn drop(&mut self) {
        // It may be stopped anywhere.
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Follows a source until the job is stopped, or nothing can be done any more. What a source that ever
/// answered, or a vault, may get over is waited out, for ever; a vault that fails does not stop the others. Being
/// stopped is no error once there is a point.
pub async fn live(
    job: &Job,
    source: &dyn Source,
    destinations: Vec<Destination>,
    selection: &Selection,
    options: &BackupOptions,
    how: &LiveOptions,
) -> Result<LiveReport> {
    let began = Instant::now();
    let places = destinations.into_iter().map(|Destination { url, vault }| {
        let (vault, error) = match vault {
            Ok(vault) => (Some(vault), None),
            Err(error) => (None, Some(error)),
        };
        let is_out = error.as_ref().is_some_and(|e| !may_pass(e));
        Place { url, vault, point: None, error, is_out, tidying: Tidying::default() }
    });
    let mut live = Live {
        job,
        how,
        places: places.collect(),
        report: LiveReport {
            source: String::new(),
            losses: Vec::new(),
            gaps: Vec::new(),
            changes: None,
            points: 0,
            skipped: 0,
            took: Duration::ZERO,
            vaults: Vec::new(),
        },
        in_a_row: 0,
        compares: false,
        manner: Manner {
            options: options.clone(),
            pace: Pace { flush: how.flush, live: true },
            listener: how.listener.clone(),
            lost: HashMap::new(),
            scan_only: false,
            until: None,
        },
    };
    let mut pause = PAUSE_MIN;
    loop {
        match live.round(source, selection).await {
            Ok(went_well) => pause = if went_well { PAUSE_MIN } else { live.pause(pause).await },
            Err(e) if e.kind() == ErrorKind::Interrupted && live.report.points > 0 => break,
            Err(e) if may_pass(&e) && live.was_reached() && !job.stop.is_asked() => {
                job.note(format!("{e}; trying again"));
                pause = live.pause(pause).await;
                if job.stop.is_asked() && live.report.points == 0 {
                    return Err(interrupted());
                }
            }
            Err(e) => return Err(e),
        }
        if job.stop.is_asked() {
            break;
        }
    }
    live.finish(began)
}

struct Live<'a> {
    job: &'a Job,
    how: &'a LiveOptions,
    places: Vec<Place>,
    report: LiveReport,
    manner: Manner,
    /// Rounds in a row that lost history.
    in_a_row: u32,
    /// Whether the source is compared again and again, as it tells no changes.
    compares: bool,
}

impl Live<'_> {
    /// Whether the source ever answered: one that never did is rather a mistake in its URL.
    fn was_reached(&self) -> bool {
        !self.report.source.is_empty()
    }

    /// One run into each vault; says whether all went well.
    async fn round(&mut self, source: &dyn Source, selection: &Selection) -> Result<bool> {
        self.open_again().await;
        self.tidy().await;
        if self.places.iter().all(|p| p.is_out) {
            let error = self.places.iter_mut().find_map(|p| p.error.take());
            return Err(error.unwrap_or_else(|| Error::bug("no vault is left, and none failed")));
        }
        let trouble = self.places.iter().any(|p| p.error.is_some() && !p.is_out);
        let wait = if trouble { self.how.point.min(AGAIN) } else { self.how.point };
        self.manner.until = Some(Instant::now() + wait);
        let targets = self.places.iter().map(|p| (p.url.clone(), p.vault.clone().filter(|_| !p.is_out).map(Ok)));
        // These futures are large, and no part of those of callers.
        let mut round = Box::pin(Round::start(self.job, source, targets.collect(), selection, &self.manner)).await?;
        self.report.source.clone_from(&round.description.name);
        self.report.losses.clone_from(&round.description.losses);
        let done = match Box::pin(round.run()).await {
            Ok(done) => done,
            Err(error) => {
                let stored = round.lanes.stored();
                round.lanes.abandon().await;
                return Err(given_up(error, stored));
            }
        };
        drop(round);
        if self.job.stop.is_asked() && done.points.is_empty() && done.errors.is_empty() && self.report.points == 0 {
            return Err(interrupted());
        }
        let (has_feed, lost) = (done.stored.is_some(), !done.lost.is_empty());
        self.in_a_row = if lost { self.in_a_row + 1 } else { 0 };
        // Once a scan was overtaken by the history's end, what is scanned must be enough.
        self.manner.scan_only = self.in_a_row >= 2;
        // What is asked for once is done once.
        self.manner.options.full = false;
        let went_well = self.take(done) && self.in_a_row < 2;
        if went_well && !has_feed {
            if !std::mem::replace(&mut self.compares, true) {
                let every = self.how.every.as_secs_f64();
                self.job.note(format!(
                    "this source does not tell its changes: it is read and compared every {every} s, and only these moments can be restored"
                ));
            }
            self.wait(self.how.every).await;
        }
        Ok(went_well)
    }

    /// Takes note of a round; says whether some vault has a point, or loses nothing by having none.
    fn take(&mut self, done: Done) -> bool {
        let tell = |event: LiveEvent| {
            if let Some(listener) = &self.how.listener {
                listener(event);
            }
        };
        let went_well = !done.points.is_empty() || !done.lost.is_empty();
        for place in &mut self.places {
            // What failed before either failed again now, or is well.
            if !place.is_out && place.vault.is_some() {
                place.error = None;
            }
        }
        for (i, (name, manifest)) in done.points {
            let view = PointView::of(&name, &manifest);
            let (vault, point, time) = (self.places[i].url.clone(), view.id.clone(), view.time.clone());
            tell(LiveEvent::Point { vault, point, time });
            self.places[i].point = Some(view);
            self.report.points += 1;
        }
        for (i, error) in done.errors {
            let place = &mut self.places[i];
            place.is_out = !may_pass(&error);
            let then = if place.is_out { "it is left out from now on" } else { "it is tried again" };
            self.job.note(format!("{}: {error}; {then}", place.url));
            place.error = Some(error);
        }
        for gap in done.lost.values() {
            if gap.is_empty() {
                self.job.note(format!("{}: everything is read", gap.why));
                continue;
            }
            self.job.note(format!("history since {} is lost: {}; everything is scanned", gap.from, gap.why));
            tell(LiveEvent::Gap { gap: gap.clone() });
        }
        self.report.gaps.extend(done.gaps.into_values());
        self.report.skipped += done.skipped.len() as u64;
        if let Some(stored) = done.stored {
            *self.report.changes.get_or_insert(0) += stored.changes;
        }
        self.manner.lost = done.lost;
        went_well
    }

    /// Begins to remove what is no longer needed, in vaults that have a point of this backup.
    async fn tidy(&mut self) {
        for place in self.places.iter_mut().filter(|p| p.point.is_some() && !p.is_out && p.error.is_none()) {
            let Some(vault) = &place.vault else { continue };
            if let Some(error) = place.tidying.begin(vault, self.how.point).await {
                let url = &place.url;
                self.job.note(format!("{url}: what is no longer needed could not be removed: {error}; `rewound prune` does it from a host that may"));
            }
        }
    }

    /// Opens vaults that could not be opened so far.
    async fn open_again(&mut self) {
        let Some(access) = &self.how.access else { return };
        for place in self.places.iter_mut().filter(|p| p.vault.is_none() && !p.is_out) {
            match registry::open_vault(&place.url, access.clone()).await {
                Ok(vault) => (place.vault, place.error) = (Some(vault), None),
                Err(error) => {
                    place.is_out = !may_pass(&error);
                    place.error = Some(error);
                }
            }
        }
    }

    /// Waits, and gives the next time to wait.
    async fn pause(&self, pause: Duration) -> Duration {
        self.wait(pause).await;
        (pause * 2).min(PAUSE_MAX)
    }

    async fn wait(&self, time: Duration) {
        tokio::select! {
            () = self.job.stop.asked() => {}
            () = tokio::time::sleep(time) => {}
        }
    }

    fn finish(self, began: Instant) -> Result<LiveReport> {
        let vaults = self.places.into_iter().map(|place| {
            let none = || Error::new(ErrorKind::Interrupted, "stopped before there was a point");
            let point = match (place.error, place.point) {
                (None, Some(point)) => Ok(point),
                (error, _) => Err(error.unwrap_or_else(none)),
            };
            VaultOutcome { url: place.url, point, compared: None }
        });
        Ok(LiveReport { vaults: vaults.collect(), took: began.elapsed(), ..self.report })
    }
}

/// Whether trying again may help.
fn may_pass(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Retry | ErrorKind::Full | ErrorKind::HistoryLost)
}
