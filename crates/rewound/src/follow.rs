//! Following a source: one feed of changes, written to each vault flush by flush.
//!
//! A vault that is slow holds the feed up; one that does not answer is left behind, so that the
//! others go on, and is given what it missed once it answers: the feed is then read again from where
//! that vault stands. What a vault has been given already is left out, so nothing comes twice.

use crate::events::{Lag, LiveEvent, Teller};
use crate::lanes::Lanes;
use crate::pending::{Gathering, Mark, Pending};
use crate::progress::Job;
use crate::stop::{Stop, interrupted};
use crate::tee::Tee;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{FutureExt, StreamExt, TryStreamExt};
use model::limits::{FLUSH_BYTES, FLUSH_LOCAL, FLUSH_REMOTE, HEARTBEAT};
use model::{
    AttachmentStore, ChangeItem, CollectionId, EngineTime, Error, ErrorKind, Following, Gap, Position, Result,
    Selection, Source, Until,
};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use vault::{Appended, Flush, Run};

/// Bytes that wait for a vault at most, beside what is being written.
const WAITING: usize = 4 * FLUSH_BYTES;
/// A write that takes longer than this holds the other vaults up no more.
const STUCK: Duration = Duration::from_secs(5);
/// Pauses between tries of what may pass.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long a vault that does not answer is waited for at the end.
const LEAVING: Duration = Duration::from_secs(10);
/// After this long a vault that does not answer is given up until the next point.
const GIVEN_UP: Duration = Duration::from_secs(3600);
/// How often the lag is told.
const TELL: Duration = Duration::from_secs(1);
/// How long changes up to the time of a scan are waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Until when changes are followed.
pub(crate) enum Goal<'a> {
    /// Until there is nothing more, and at least up to a time.
    Now(Option<EngineTime>),
    /// Until somebody asks to stop, or some time has passed.
    Asked(&'a Stop, Option<Instant>),
}

/// Why following has ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The goal is reached.
    Reached,
    /// History was lost, for all vaults.
    Gap(Gap),
    /// Some vault cannot go on as it is: its run must begin anew.
    Renew,
}

/// How changes are followed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pace {
    /// The longest that changes wait; none: as the storage likes it.
    pub flush: Option<Duration>,
    /// Whether passing trouble is waited out, however long it takes.
    pub live: bool,
}

/// What was stored so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Stored {
    pub changes: u64,
    pub bytes: u64,
}

/// A vault that is given changes.
struct Taker {
    /// Its number in [`Lanes`].
    lane: usize,
    url: String,
    run: Arc<Run>,
    /// The longest that changes wait; none: until there are enough of them.
    interval: Option<Duration>,
    /// Where it stands with what was handed to it.
    sent: Mark,
    /// Where it stands durably.
    durable: Mark,
    gathering: Gathering,
    names: HashMap<CollectionId, String>,
    /// Since when something is being written.
    writing: Option<Instant>,
    /// Since when it does not answer.
    away: Option<Instant>,
    /// Whether it missed changes.
    behind: bool,
    /// When something was last written.
    flushed: Option<Instant>,
    /// As of when all changes are durable.
    fresh: Instant,
    failed: Option<Error>,
    lost: Option<Gap>,
}

impl Taker {
    /// Where it stands with what it was given.
    fn taken(&self) -> &Mark {
        self.gathering.mark.as_ref().unwrap_or(&self.sent)
    }

    fn is_active(&self) -> bool {
        self.failed.is_none() && self.lost.is_none() && !self.behind
    }

    fn goes_on(&self) -> bool {
        self.failed.is_none() && self.lost.is_none()
    }

    fn is_stuck(&self) -> bool {
        self.away.is_some() || self.writing.is_some_and(|since| since.elapsed() > STUCK)
    }

    /// When the next flush is due, if nothing is being written; not before now.
    fn due(&self, now: Instant) -> Instant {
        if self.gathering.bytes >= FLUSH_BYTES {
            return now;
        }
        let Some(interval) = self.interval else { return now + HEARTBEAT };
        match (self.flushed, self.gathering.since, &self.gathering.mark) {
            // The first one as soon as there is something to say: from then on the log goes on.
            (None, _, Some(_)) => now,
            (None, _, None) => now + HEARTBEAT,
            (Some(at), Some(since), _) => (at + HEARTBEAT).min(since + interval),
            (Some(at), None, _) => at + HEARTBEAT,
        }
    }
}

/// A flush that was tried.
struct Tried {
    taker: usize,
    flush: Flush,
    mark: Mark,
    seen: Instant,
    result: Result<Appended>,
}

/// Follows one source into several vaults.
pub(crate) struct Follower<'a> {
    job: &'a Job,
    source: &'a dyn Source,
    selection: &'a Selection,
    pace: Pace,
    teller: Teller,
    takers: Vec<Taker>,
    tries: FuturesUnordered<BoxFuture<'static, Tried>>,
    stored: Stored,
    /// Collections that the feed has told of.
    seen: HashSet<CollectionId>,
    told: Option<Instant>,
    /// Where the contents of attachments go, if to several vaults; they have the numbers of the takers.
    tee: Option<Arc<Tee>>,
    /// Whether the job counts changes: not while it counts what a scan reads.
    pub counts: bool,
}

impl<'a> Follower<'a> {
    pub fn new(job: &'a Job, source: &'a dyn Source, selection: &'a Selection, pace: Pace, teller: Teller) -> Self {
        Follower {
            job,
            source,
            selection,
            pace,
            teller,
            takers: Vec::new(),
            tries: FuturesUnordered::new(),
            stored: Stored::default(),
            seen: HashSet::new(),
            told: None,
            tee: None,
            counts: true,
        }
    }

    /// Adds a vault; its chain begins at `from`.
    pub async fn add(&mut self, lanes: &mut Lanes, lane: usize, from: Mark) {
        let Some(run) = lanes.lanes[lane].run.clone() else { return };
        if let Err(error) = run.follow_from(&from.position, from.time).await {
            drop(run);
            return lanes.fail(lane, error).await;
        }
        let local = lanes.lanes[lane].vault.as_ref().is_none_or(|v| v.storage().is_local());
        self.takers.push(Taker {
            lane,
            url: lanes.lanes[lane].url.clone(),
            run,
            interval: self.pace.live.then(|| self.pace.flush.unwrap_or(if local { FLUSH_LOCAL } else { FLUSH_REMOTE })),
            names: from.collections.iter().map(|c| (c.id.clone(), c.name.clone())).collect(),
            sent: from.clone(),
            durable: from,
            gathering: Gathering::default(),
            writing: None,
            away: None,
            behind: false,
            flushed: None,
            fresh: Instant::now(),
            failed: None,
            lost: None,
        });
    }

    /// Whether there is a vault to be given changes.
    pub fn is_idle(&self) -> bool {
        self.takers.is_empty()
    }

    /// What was stored since the start.
    pub fn stored(&self) -> Stored {
        self.stored
    }

    /// Up to where a vault has everything durably, by its number.
    pub fn marks(&self) -> HashMap<usize, Mark> {
        self.takers.iter().filter(|t| t.goes_on()).map(|t| (t.lane, t.durable.clone())).collect()
    }

    /// Whether the feed has told of this collection.
    pub fn has_seen(&self, id: &CollectionId) -> bool {
        self.seen.contains(id)
    }

    /// Takes out the vaults that failed; gives why. Not while something is being written.
    pub fn take_failed(&mut self) -> Vec<(usize, Error)> {
        let failed = self.takers.iter_mut().filter_map(|t| Some((t.lane, t.failed.take()?))).collect::<Vec<_>>();
        self.takers.retain(|t| failed.iter().all(|(lane, _)| *lane != t.lane));
        failed
    }

    /// The vaults that lost history which others have.
    pub fn lost(&self) -> HashMap<usize, Gap> {
        self.takers.iter().filter_map(|t| Some((t.lane, t.lost.clone()?))).collect()
    }

    /// Lets go of all runs; gives the vaults that failed, and why.
    pub fn leave(self) -> Vec<(usize, Error)> {
        self.takers.into_iter().filter_map(|t| Some((t.lane, t.failed?))).collect()
    }

    /// Follows until the goal is reached. An error is one of the source.
    pub async fn run(&mut self, goal: Goal<'_>) -> Result<Ended> {
        let began = Instant::now();
        let until = if matches!(goal, Goal::Now(_)) { Until::Now } else { Until::Stopped };
        let mut feed: Option<BoxStream<'a, Result<ChangeItem>>> = None;
        let mut pending = Pending::default();
        let mut closing: Option<Instant> = None;
        let (mut reopen, mut pause) = (Instant::now(), PAUSE_MIN);
        let mut ended = Ended::Reached;
        loop {
            self.write_what_is_due(closing.is_some());
            self.tell_lag();
            if let Some(since) = closing {
                if self.tries.is_empty() || self.is_left(since) {
                    return Ok(ended);
                }
            } else if let Goal::Asked(stop, deadline) = &goal
                && (stop.is_asked() || deadline.is_some_and(|at| at <= Instant::now()))
            {
                (closing, feed) = (Some(Instant::now()), None);
                continue;
            } else if !self.takers.iter().any(Taker::goes_on) {
                ended = Ended::Renew;
                (closing, feed) = (Some(Instant::now()), None);
                continue;
            } else if self.pace.live && self.takers.iter().any(|t| t.lost.is_some()) {
                // The others lose nothing by it.
                ended = Ended::Renew;
                (closing, feed) = (Some(Instant::now()), None);
                continue;
            }
            self.leave_behind();
            if !self.takers.iter().any(Taker::is_active) {
                // Nobody takes anything: what the feed gives would only pile up.
                feed = None;
            }
            let has_room = self.takers.iter().filter(|t| t.is_active()).all(|t| t.gathering.bytes < WAITING);
            let reads = closing.is_none() && has_room && self.takers.iter().any(Taker::is_active);
            if reads && feed.is_none() && reopen <= Instant::now() {
                feed = self.open(until);
                pending = Pending::default();
            }
            let wake = self.wake(reopen, closing, &goal);
            let stop = match &goal {
                Goal::Asked(stop, _) if closing.is_none() => Some(*stop),
                _ => None,
            };
            tokio::select! {
                biased;
                () = asked(stop) => {}
                () = self.job.stop.asked(), if matches!(goal, Goal::Now(_)) && closing.is_none() => {
                    if !self.pace.live {
                        return Err(interrupted());
                    }
                    (closing, feed) = (Some(Instant::now()), None);
                }
                Some(tried) = self.tries.next(), if !self.tries.is_empty() => {
                    if self.tried(tried) {
                        // Somebody missed something: the feed begins where that vault stands.
                        feed = None;
                        reopen = Instant::now();
                    }
                }
                item = next(&mut feed), if reads && feed.is_some() => match item {
                    Some(Ok(ChangeItem::Batch(change))) => {
                        if self.counts {
                            self.job.advance(change.batch.len() as u64, change.batch.raw_bytes());
                        }
                        pending.push(change);
                    }
                    Some(Ok(ChangeItem::Catalog { info, collection, time })) => {
                        pending.catalog.push((collection, info, time));
                    }
                    Some(Ok(ChangeItem::Commit { position, time })) => {
                        pause = PAUSE_MIN;
                        self.commit(&std::mem::take(&mut pending), &position, time);
                    }
                    Some(Ok(ChangeItem::Gap(gap))) => {
                        feed = None;
                        if self.is_lost_for_all(&gap) {
                            ended = Ended::Gap(gap);
                            closing = Some(Instant::now());
                        }
                    }
                    Some(Err(e)) if e.kind() == ErrorKind::HistoryLost => {
                        feed = None;
                        let from = self.oldest().map_or(EngineTime::ZERO, |m| m.time);
                        let gap = Gap { from, to: None, why: e.to_string() };
                        if self.is_lost_for_all(&gap) {
                            ended = Ended::Gap(gap);
                            closing = Some(Instant::now());
                        }
                    }
                    // The vault may be full, where the content of attachments goes.
                    Some(Err(e)) if self.pace.live && matches!(e.kind(), ErrorKind::Retry | ErrorKind::Full) => {
                        self.job.note(format!("{e}; trying again"));
                        (feed, reopen) = (None, Instant::now() + pause);
                        pause = (pause * 2).min(PAUSE_MAX);
                    }
                    Some(Err(e)) => return Err(e.context("reading changes")),
                    None => match &goal {
                        Goal::Now(least) if self.has_reached(*least) => {
                            (closing, feed) = (Some(Instant::now()), None);
                        }
                        Goal::Now(_) if began.elapsed() > PATIENCE => {
                            return Err(Error::new(ErrorKind::Retry, "the source does not tell what changed during the scan")
                                .hint("run the backup again"));
                        }
                        _ => (feed, reopen) = (None, Instant::now() + PAUSE_MIN / 5),
                    },
                },
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// The feed from where the vault that is farthest behind stands.
    fn open(&mut self, until: Until) -> Option<BoxStream<'a, Result<ChangeItem>>> {
        let store = self.store();
        let from = self.oldest()?;
        let following = Following {
            position: from.position.clone(),
            time: from.time,
            collections: from.collections.to_vec(),
            selection: self.selection.clone(),
        };
        let source = self.source;
        let open = async move { source.changes(&following, until, store).await };
        Some(futures::stream::once(open).try_flatten().boxed())
    }

    /// Where the feed puts the content of attachments: to all vaults that are given changes.
    fn store(&mut self) -> Arc<dyn AttachmentStore> {
        let stores: Vec<_> = self.takers.iter().map(|t| t.run.changed_attachments()).collect();
        if let [only] = &stores[..] {
            self.tee = None;
            return only.clone();
        }
        let tee = Arc::new(Tee::new(stores));
        let left_out = self.takers.iter().enumerate().filter(|(_, taker)| !taker.is_active());
        left_out.for_each(|(i, _)| tee.leave_out(i));
        self.tee = Some(tee.clone());
        tee
    }

    fn oldest(&self) -> Option<&Mark> {
        self.takers.iter().filter(|t| t.is_active()).map(Taker::taken).min_by_key(|m| m.time.order)
    }

    fn has_reached(&self, least: Option<EngineTime>) -> bool {
        let reached = self.oldest().map_or(EngineTime::MAX, |m| m.time);
        least.is_none_or(|least| reached.order >= least.order)
    }

    /// Whether a gap concerns everybody; else those who need what was lost are marked, and the others
    /// go on.
    fn is_lost_for_all(&mut self, gap: &Gap) -> bool {
        let oldest = self.oldest().map_or(0, |m| m.time.order);
        let newest = self.takers.iter().filter(|t| t.is_active()).map(|t| t.taken().time.order).max().unwrap_or(0);
        if oldest == newest {
            return true;
        }
        for taker in self.takers.iter_mut().filter(|t| t.is_active() && t.taken().time.order == oldest) {
            taker.lost = Some(Gap { from: taker.taken().time, ..gap.clone() });
        }
        false
    }

    /// Gives what a commit completes to all vaults that take something.
    fn commit(&mut self, pending: &Pending, position: &Position, time: EngineTime) {
        self.seen.extend(pending.catalog.iter().map(|(id, ..)| id.clone()));
        let newest = pending.changes.iter().flat_map(|c| &c.times).map(|t| t.millis).max();
        let now = self.job.seams.clock.now_millis();
        let old = newest.map_or(0, |t| now.saturating_sub(t).max(0));
        for (i, taker) in self.takers.iter_mut().enumerate().filter(|(_, t)| t.is_active()) {
            let from = taker.sent.clone();
            let own = match &self.tee {
                Some(tee) => tee.take_failure(i).map_or_else(|| pending.of_store(i), Err),
                None => Ok(Cow::Borrowed(pending)),
            };
            let own = match own {
                Ok(own) => own,
                Err(error) => {
                    taker.failed = Some(error.context("storing the content of an attachment"));
                    continue;
                }
            };
            taker.gathering.add(&from, &own, position, time, Duration::from_millis(old as u64));
            if !taker.gathering.has_changes() && taker.writing.is_none() {
                taker.fresh = taker.gathering.seen;
            }
            for (id, info, _) in &pending.catalog {
                if let Some(info) = info {
                    taker.names.insert(id.clone(), info.name.clone());
                }
            }
        }
    }

    /// Leaves vaults behind that do not answer and have no more room.
    fn leave_behind(&mut self) {
        for taker in self.takers.iter_mut().filter(|t| t.is_active()) {
            if taker.is_stuck() && taker.gathering.bytes >= WAITING {
                taker.behind = true;
                taker.gathering = Gathering::default();
            }
            if taker.away.is_some_and(|since| since.elapsed() > GIVEN_UP) {
                let error = Error::new(ErrorKind::Retry, "the vault has not answered for an hour");
                taker.failed = Some(error.hint("it is tried again with the next point"));
            }
        }
    }

    /// Whether a vault that does not answer is waited for no more.
    fn is_left(&mut self, since: Instant) -> bool {
        if since.elapsed() < LEAVING || self.takers.iter().any(|t| t.writing.is_some() && t.away.is_none()) {
            return false;
        }
        for taker in self.takers.iter_mut().filter(|t| t.away.is_some() && t.failed.is_none()) {
            let error = Error::new(ErrorKind::Retry, "the vault does not answer");
            taker.failed = Some(error.hint("the next backup reads what is missing from the source"));
        }
        self.tries.clear();
        true
    }

    /// Begins the writes that are due; at the end all of them.
    fn write_what_is_due(&mut self, closing: bool) {
        let now = Instant::now();
        for (i, taker) in self.takers.iter_mut().enumerate() {
            if taker.writing.is_some() || !taker.goes_on() || taker.behind {
                continue;
            }
            // A chain needs one flush, also if nothing has changed.
            let has_moved = |m: &Mark| m.position != taker.sent.position || m.time != taker.sent.time;
            let unsaid = taker.flushed.is_none()
                || taker.gathering.has_changes()
                || taker.gathering.mark.as_ref().is_some_and(has_moved);
            if !(closing && unsaid) && taker.due(now) > now {
                continue;
            }
            let seen = taker.gathering.seen;
            let (mark, flush) = taker.gathering.take().unwrap_or_else(|| {
                let to = taker.sent.clone();
                (to.clone(), Flush { to: to.position, time: to.time, changes: Vec::new(), catalog: Vec::new() })
            });
            taker.sent = mark.clone();
            taker.writing = Some(now);
            self.tries.push(attempt(taker.run.clone(), i, flush, mark, seen, Duration::ZERO));
        }
    }

    /// Takes note of a write; says whether the feed must begin anew for this vault.
    fn tried(&mut self, tried: Tried) -> bool {
        let Tried { taker: number, flush, mark, seen, result } = tried;
        let taker = &mut self.takers[number];
        match result {
            Ok(stored) => {
                let changes: usize = flush.changes.iter().map(|c| c.batch.len()).sum();
                self.stored.changes += changes as u64;
                self.stored.bytes += flush.changes.iter().map(|c| c.batch.raw_bytes()).sum::<u64>();
                if flush.changes.is_empty() && flush.catalog.is_empty() {
                    let (vault, object, time) = (taker.url.clone(), stored.object, mark.time.to_string());
                    self.teller.tell(|| LiveEvent::Heartbeat { vault, object, time });
                } else {
                    self.teller.wrote(&taker.url, &stored.object, &flush.changes, &taker.names);
                }
                taker.durable = mark;
                (taker.writing, taker.flushed) = (None, Some(Instant::now()));
                taker.fresh = taker.fresh.max(seen);
                if taker.away.take().is_some() {
                    self.teller.tell(|| LiveEvent::Back { vault: taker.url.clone() });
                    self.job.note(format!("{} takes changes again", taker.url));
                }
                std::mem::take(&mut taker.behind)
            }
            Err(e) if self.pace.live && matches!(e.kind(), ErrorKind::Retry | ErrorKind::Full) => {
                let since = match taker.away {
                    Some(since) => since,
                    None => {
                        self.job.note(format!("{}: {e}; it is tried again", taker.url));
                        self.teller.tell(|| LiveEvent::Away { vault: taker.url.clone(), why: e.to_string() });
                        Instant::now()
                    }
                };
                taker.away = Some(since);
                let pause = since.elapsed().clamp(PAUSE_MIN, PAUSE_MAX);
                self.tries.push(attempt(taker.run.clone(), number, flush, mark, seen, pause));
                false
            }
            Err(e) => {
                taker.writing = None;
                taker.failed = Some(e);
                false
            }
        }
    }

    /// When something may have to be done, whatever comes.
    fn wake(&self, reopen: Instant, closing: Option<Instant>, goal: &Goal<'_>) -> Instant {
        let now = Instant::now();
        let due = self.takers.iter().filter(|t| t.goes_on() && t.writing.is_none() && !t.behind).map(|t| t.due(now));
        let wake = due.chain(closing.map(|at| at + LEAVING)).min().unwrap_or(now + TELL);
        let wake = if reopen > now { wake.min(reopen) } else { wake };
        let deadline = match goal {
            Goal::Asked(_, Some(deadline)) => *deadline,
            _ => wake,
        };
        // Not later than a second, for what only time tells; not at once, or nothing else would get on.
        wake.min(deadline).min(now + TELL).max(now + Duration::from_millis(5))
    }

    fn tell_lag(&mut self) {
        if !self.pace.live || self.told.is_some_and(|at| at.elapsed() < TELL) {
            return;
        }
        self.told = Some(Instant::now());
        let lag = self.lag();
        self.teller.tell(|| LiveEvent::Lag(lag));
    }

    /// How far the vaults are behind.
    fn lag(&self) -> Lag {
        let lags = self.takers.iter().filter(|t| t.goes_on()).map(|t| {
            let old = if t.gathering.has_changes() { t.gathering.old } else { Duration::ZERO };
            t.fresh.elapsed().max(old)
        });
        let seconds = lags.max().unwrap_or_default().as_secs_f64();
        Lag { seconds: (seconds * 1000.0).round() / 1000.0, changes: self.stored.changes, bytes: self.stored.bytes }
    }
}

/// One try to write a flush, after a pause.
fn attempt(
    run: Arc<Run>,
    taker: usize,
    flush: Flush,
    mark: Mark,
    seen: Instant,
    pause: Duration,
) -> BoxFuture<'static, Tried> {
    async move {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let result = run.append(flush.clone()).await;
        Tried { taker, flush, mark, seen, result }
    }
    .boxed()
}

async fn asked(stop: Option<&Stop>) {
    match stop {
        Some(stop) => stop.asked().await,
        None => std::future::pending().await,
    }
}

async fn next<'a>(feed: &mut Option<BoxStream<'a, Result<ChangeItem>>>) -> Option<Result<ChangeItem>> {
    match feed {
        Some(feed) => feed.next().await,
        None => std::future::pending().await,
    }
}
