//! One run of a backup into each of its vaults, from the look at what they have to their points.
//!
//! A vault whose last point can be gone on from is given the changes since. One that has none, or
//! whose history was lost, gets a scan, and the changes that happen meanwhile; both make one state.

use crate::events::{Listener, Teller};
use crate::follow::{Ended, Follower, Goal, Pace, Stored};
use crate::lanes::{Lane, Lanes};
use crate::parts::Scan;
use crate::pending::Mark;
use crate::progress::{Doing, Job, Progress};
use crate::registry;
use crate::scan::{Scanned, Scanner};
use crate::space::{self, Room};
use crate::stop::Stop;
use model::limits::{LOG_MIN, LOG_SHARE};
use model::{
    CollectionInfo, Consistency, Description, EngineTime, Error, FeedKind, Gap, Part, Plan, Position, Result,
    Selection, Skipped, Source, SourceState,
};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use tokio::time::Instant;
use vault::{BackupOptions, Manifest, PointDetails, PointName, Vault};

/// What is done with one vault.
#[derive(Debug, Clone, Default)]
struct Way {
    /// Where its changes go on, if they can.
    follow: Option<Mark>,
    /// Whether everything is read for it.
    scan: bool,
    /// The history that it lost.
    gap: Option<Gap>,
    /// Whether no point is made in this round.
    skip: bool,
}

/// How a round is done.
#[derive(Clone)]
pub(crate) struct Manner {
    pub options: BackupOptions,
    pub pace: Pace,
    pub listener: Option<Listener>,
    /// Vaults that must be scanned, as they lost history.
    pub lost: HashMap<usize, Gap>,
    /// Whether no changes are followed: what is scanned is all.
    pub scan_only: bool,
    /// Until when a live backup follows; none: only until there is nothing more.
    pub until: Option<Instant>,
}

/// A vault of a backup, or why it could not be opened; none if this round is not for it.
pub(crate) type Target = (String, Option<Result<Vault>>);

/// How a round ended.
#[derive(Debug)]
pub(crate) struct Done {
    /// The points, by the numbers of the vaults.
    pub points: HashMap<usize, (PointName, Manifest)>,
    /// Why vaults have none.
    pub errors: HashMap<usize, Error>,
    /// Vaults that lost history in the middle: they need another round, with a scan.
    pub lost: HashMap<usize, Gap>,
    /// History that was lost before, by vault: its point says so.
    pub gaps: BTreeMap<usize, Gap>,
    /// What a scan found; none if there was no scan.
    pub scanned: Option<Scanned>,
    pub read: Progress,
    /// What was followed; none if the source has no feed of changes.
    pub stored: Option<Stored>,
    pub skipped: Vec<Skipped>,
    /// Up to where the vaults have everything durably.
    pub time: Option<EngineTime>,
}

/// A backup's round.
pub(crate) struct Round<'a> {
    job: &'a Job,
    source: &'a dyn Source,
    selection: &'a Selection,
    manner: &'a Manner,
    pub description: Description,
    pub lanes: Lanes,
    ways: Vec<Way>,
    plan: Option<Scan>,
}

impl<'a> Round<'a> {
    /// Looks at the source and begins a run in each vault.
    pub async fn start(
        job: &'a Job,
        source: &'a dyn Source,
        targets: Vec<Target>,
        selection: &'a Selection,
        manner: &'a Manner,
    ) -> Result<Round<'a>> {
        job.phase(Doing::Checking, None, None);
        let mut description = job.stop.or(source.describe()).await?;
        if let Some(name) = &manner.options.name {
            description.name.clone_from(name);
        }
        let mut lanes = Vec::new();
        for (url, vault) in targets {
            let (vault, error) = match vault {
                Some(Ok(vault)) => (Some(vault), None),
                Some(Err(error)) => (None, Some(error)),
                None => (None, None),
            };
            lanes.push(Lane { url, vault, run: None, error });
        }
        for lane in &mut lanes {
            if let Some(vault) = &lane.vault {
                match vault.start_run(&description, manner.options.clone()).await {
                    Ok(run) => lane.run = Some(Arc::new(run)),
                    Err(error) => lane.error = Some(error),
                }
            }
        }
        let ways = vec![Way::default(); lanes.len()];
        Ok(Round { job, source, selection, manner, description, lanes: Lanes::new(lanes), ways, plan: None })
    }

    /// Does it all. An error concerns all vaults; then no run has been ended yet.
    pub async fn run(&mut self) -> Result<Done> {
        if self.lanes.alive().is_empty() {
            return Err(self.lanes.first_error());
        }
        self.survey().await?;
        let teller = Teller::new(self.manner.listener.clone(), self.description.engine.clone());
        let mut follower = Follower::new(self.job, self.source, self.selection, self.manner.pace, teller);
        for i in self.lanes.alive() {
            if let Some(mark) = self.ways[i].follow.clone() {
                follower.add(&mut self.lanes, i, mark).await;
            }
        }
        if !follower.is_idle() {
            self.job.phase(Doing::Following, None, None);
            if let Ended::Gap(gap) = follower.run(Goal::Now(None)).await? {
                return self.broken_off(follower, gap).await;
            }
            for (i, error) in follower.take_failed() {
                self.lanes.fail(i, error).await;
            }
            self.look_for_strangers(&follower);
        }
        let mut scanning: Vec<usize> = self.lanes.alive().into_iter().filter(|i| self.ways[*i].scan).collect();
        if self.job.stop.is_asked() {
            // A live backup that ends: what was followed is kept.
            scanning.clear();
        }
        let mut done = Done::new(self);
        let mut scan = None;
        if !scanning.is_empty() {
            let plan = self.scan_plan().await?;
            for i in &scanning {
                let way = &mut self.ways[*i];
                if way.follow.is_none() && way.gap.is_none() {
                    way.gap.clone_from(&plan.gap);
                }
            }
            match Box::pin(self.scan(&mut follower, &scanning, plan)).await? {
                Ok(found) => scan = Some(found),
                Err(gap) => {
                    // What was scanned without the changes meanwhile is no state.
                    done.lost = scanning.iter().map(|i| (*i, gap.clone())).collect();
                    for i in scanning {
                        self.ways[i].skip = true;
                    }
                }
            }
            done.read = self.job.progress();
        } else if let Some(deadline) = self.manner.until {
            match follower.run(Goal::Asked(&self.job.stop, Some(deadline))).await? {
                Ended::Gap(gap) => return self.broken_off(follower, gap).await,
                Ended::Reached | Ended::Renew => {}
            }
        }
        if scan.is_none() {
            done.read = self.job.progress();
        }
        Box::pin(self.commit(follower, scan, done)).await
    }

    /// Finds out how each vault is served.
    async fn survey(&mut self) -> Result<()> {
        let mut asked: HashMap<Position, Result<(), Option<Gap>>> = HashMap::new();
        for i in self.lanes.alive() {
            let Some(run) = self.lanes.lanes[i].run.clone() else { continue };
            let url = self.lanes.lanes[i].url.clone();
            let mut way = Way { scan: true, ..Way::default() };
            if let Some(gap) = self.manner.lost.get(&i) {
                way.gap = Some(gap.clone());
                self.ways[i] = way;
                continue;
            }
            let known = run.last().zip(run.last_catalog());
            let place = known.and_then(|(last, all)| Some((last.position.clone()?, last, all)));
            let Some((position, last, collections)) = place.filter(|_| !self.manner.scan_only) else {
                self.ways[i] = way;
                continue;
            };
            if !self.is_followed(&collections) {
                self.job.note(format!(
                    "{url}: other collections or documents are meant than before: everything is scanned"
                ));
                self.ways[i] = way;
                continue;
            }
            if !asked.contains_key(&position) {
                let answer = self.ask(&last).await?;
                asked.insert(position.clone(), answer);
            }
            match asked.get(&position) {
                Some(Ok(())) => {
                    let full = self.manner.options.full;
                    let base: u64 = run.base_bytes();
                    let grown = run.log_since_base() > LOG_MIN.max(base / LOG_SHARE);
                    if grown && !full {
                        let log = space::bytes(run.log_since_base());
                        self.job.note(format!(
                            "{url}: {log} of changes are stored since the last scan: it is time for a new one"
                        ));
                    }
                    way.scan = full || grown;
                    // What is told on top of a backup that the server made itself is of no use on a scan.
                    if !way.scan || !self.is_on_opaque(&collections) {
                        way.follow = Some(Mark { position, time: last.time, collections: Arc::new(collections) });
                    }
                }
                Some(Err(gap)) => way.gap.clone_from(gap),
                None => {}
            }
            self.ways[i] = way;
        }
        self.part_ways();
        Ok(())
    }

    /// All vaults are given the same feed, from where the last of them stands; on top of a backup that the server
    /// made itself it tells of deletions in another way. So such a vault goes on only with those that stand at the
    /// same place.
    fn part_ways(&mut self) {
        let positions: HashSet<_> = self.ways.iter().filter_map(|w| w.follow.as_ref()).map(|m| &m.position.0).collect();
        if positions.len() < 2 {
            return;
        }
        for i in 0..self.ways.len() {
            let is_on_opaque = self.ways[i].follow.as_ref().is_some_and(|m| self.is_on_opaque(&m.collections));
            if is_on_opaque {
                self.job.note(format!(
                    "{}: its last point is on top of a backup that the database's server made itself, and the other \
                     vaults stand elsewhere: everything is scanned; back it up by itself to have only the changes read",
                    self.lanes.lanes[i].url
                ));
                (self.ways[i].follow, self.ways[i].scan) = (None, true);
            }
        }
    }

    /// Whether changes of exactly these collections go on to be told.
    fn is_followed(&self, collections: &[CollectionInfo]) -> bool {
        collections.iter().all(|c| self.selection.takes(&c.name) && self.selection.takes_all_of(&c.name))
    }

    fn is_on_opaque(&self, collections: &[CollectionInfo]) -> bool {
        collections.iter().any(|c| registry::is_opaque(&self.description.engine, c))
    }

    /// Asks the source whether changes can be read from a place; if not, what was lost.
    async fn ask(&mut self, last: &SourceState) -> Result<Result<(), Option<Gap>>> {
        let plan = self.job.stop.or(self.source.plan(self.selection, Some(last))).await?;
        if let Plan::Changes { .. } = plan {
            return Ok(Ok(()));
        }
        let mut scan = Scan::of(plan)?;
        let gap = scan.gap.take();
        self.plan.get_or_insert(scan);
        Ok(Err(gap))
    }

    /// How everything is going to be read.
    async fn scan_plan(&mut self) -> Result<Scan> {
        if let Some(plan) = self.plan.take() {
            return Ok(plan);
        }
        // Without a position: the source is not asked for changes, but may know its state again.
        let last = self.lanes.lanes.iter().filter_map(|l| l.run.as_ref()).map(|r| r.last());
        let last = last.reduce(|a, b| match (a, b) {
            (Some(a), Some(b)) => Some(if a.time <= b.time { a } else { b }),
            _ => None,
        });
        let last = last.flatten().map(|last| SourceState { position: None, ..last });
        Scan::of(self.job.stop.or(self.source.plan(self.selection, last.as_ref())).await?)
    }

    /// Collections that are there, meant and unknown although all changes were read: an earlier backup
    /// left them out, or the feed does not tell of them. Only a scan gives them.
    fn look_for_strangers(&mut self, follower: &Follower<'_>) {
        for (i, mark) in follower.marks() {
            // What is in a backup that the server made itself need not be told of before it changes.
            if self.is_on_opaque(&mark.collections) {
                continue;
            }
            let known: HashSet<_> = mark.collections.iter().map(|c| &c.id).collect();
            let mut there = self.description.collections.iter().filter(|c| self.selection.takes(&c.name));
            if let Some(stranger) = there.find(|c| !known.contains(&c.id) && !follower.has_seen(&c.id)) {
                let url = &self.lanes.lanes[i].url;
                self.job
                    .note(format!("{url}: {} was not part of the last point: everything is scanned", stranger.name));
                self.ways[i].scan = true;
            }
        }
    }

    /// Compares what is going to be read with the room in local vaults.
    async fn check_room(&mut self, scanning: &[usize], parts: &[Part]) -> Result<()> {
        let Some(to_read) = parts.iter().map(|p| p.bytes).sum::<Option<u64>>() else { return Ok(()) };
        for i in scanning.iter().copied() {
            let lane = &self.lanes.lanes[i];
            let (Some(vault), Some(run)) = (&lane.vault, &lane.run) else { continue };
            let free = match vault.storage().is_local() {
                true => vault.storage().free_space().await.ok().flatten(),
                false => None,
            };
            let Some(free) = free else { continue };
            let is_first = run.last().is_none();
            match space::room_for_backup(&lane.url, free, to_read, is_first) {
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

    /// Scans for some vaults, while changes are followed for all that can. The inner error is history
    /// that was lost meanwhile.
    async fn scan(
        &mut self,
        follower: &mut Follower<'a>,
        scanning: &[usize],
        plan: Scan,
    ) -> Result<Result<ScanDone, Gap>> {
        let Scan { parts, start, at, consistency, skipped, gap: _ } = plan;
        self.check_room(scanning, &parts).await?;
        // An engine without a clock of its own is read at the time of ours.
        let wall = || EngineTime::wall(self.job.seams.clock.now_millis());
        let at = at.or((start.is_some() && self.description.feed == FeedKind::LatestState).then(wall));
        let start = start.filter(|_| !self.manner.scan_only);
        let mark = start.zip(at).map(|(position, time)| {
            let mut seen = HashSet::new();
            let all = parts.iter().filter(|p| seen.insert(p.collection.id.clone()));
            Mark { position, time, collections: Arc::new(all.map(|p| p.collection.clone()).collect()) }
        });
        let marks = follower.marks();
        for i in scanning.iter().copied() {
            let Some(run) = self.lanes.lanes[i].run.clone() else { continue };
            // What is read later than a place in the log is right with all the changes since.
            let followed = marks.get(&i).map(|m| m.time);
            if let Some(time) = at.filter(|_| mark.is_some() || followed.is_some()).or(followed) {
                run.scanned_at(time).await;
            }
            drop(run);
            if let (None, Some(mark)) = (followed, &mark) {
                follower.add(&mut self.lanes, i, mark.clone()).await;
            }
        }
        let sum = |of: fn(&Part) -> Option<u64>| parts.iter().map(of).sum::<Option<u64>>();
        self.job.phase(Doing::Reading, sum(|p| p.documents), sum(|p| p.bytes));
        let only = scanning.to_vec();
        let scanner =
            Scanner { job: self.job, source: self.source, lanes: &mut self.lanes, only, found: Scanned::default() };
        let mut found = match follower.is_idle() {
            true => scanner.run(parts).await?,
            false => {
                follower.counts = false;
                let over = Stop::new();
                let mut scan = std::pin::pin!(scanner.run(parts));
                let mut follow = std::pin::pin!(follower.run(Goal::Asked(&over, None)));
                let (found, ended) = tokio::select! {
                    found = &mut scan => {
                        over.ask();
                        (found?, follow.as_mut().await?)
                    }
                    ended = &mut follow => match ended? {
                        Ended::Reached | Ended::Renew => (scan.as_mut().await?, Ended::Reached),
                        Ended::Gap(gap) => return Ok(Err(gap)),
                    }
                };
                if let Ended::Gap(gap) = ended {
                    return Ok(Err(gap));
                }
                found
            }
        };
        found.skipped.splice(0..0, skipped);
        let (from, to) = match (found.times, at) {
            (Some((from, to)), Some(at)) => (Some(from.min(at)), Some(to.max(at))),
            (Some((from, to)), None) => (Some(from), Some(to)),
            (None, at) => (at, at),
        };
        if !follower.is_idle()
            && let Ended::Gap(gap) = follower.run(Goal::Now(to)).await?
        {
            return Ok(Err(gap));
        }
        let is_even = !found.uneven && from == to && from.is_some() && consistency == Consistency::OneTime;
        Ok(Ok(ScanDone { lanes: scanning.to_vec(), found, from, time: to, is_even, consistency }))
    }

    /// Ends a round in which history was lost for all: what came before that is kept as a point.
    async fn broken_off(&mut self, follower: Follower<'a>, gap: Gap) -> Result<Done> {
        let mut done = Done::new(self);
        for (i, mark) in follower.marks() {
            let begin = self.ways[i].follow.as_ref().map_or(EngineTime::MAX, |m| m.time);
            self.ways[i].skip = mark.time.order <= begin.order;
            done.lost.insert(i, Gap { from: mark.time, ..gap.clone() });
        }
        self.commit(follower, None, done).await
    }

    /// Completes the points.
    async fn commit(&mut self, follower: Follower<'a>, scan: Option<ScanDone>, mut done: Done) -> Result<Done> {
        let read = done.read;
        self.job.phase(Doing::Committing, None, None);
        self.job.rewind(read);
        let marks = follower.marks();
        done.stored = (!follower.is_idle()).then(|| follower.stored());
        let lost = follower.lost();
        for (i, error) in follower.leave() {
            self.lanes.fail(i, error).await;
        }
        for (i, gap) in lost {
            self.ways[i].skip = true;
            done.lost.insert(i, gap);
        }
        let wall = EngineTime::wall(self.job.seams.clock.now_millis());
        let mut all: HashMap<usize, PointDetails> = HashMap::new();
        for i in self.lanes.alive().into_iter().filter(|i| !self.ways[*i].skip) {
            let scan = scan.as_ref().filter(|s| s.lanes.contains(&i));
            // A source that was replaced may have a clock that is behind: its gap is one all the same.
            let nothing_lost = |gap: &Gap| gap.is_empty() && self.description.feed == FeedKind::LatestState;
            let gap = self.ways[i].gap.clone().filter(|gap| !nothing_lost(gap));
            let gap = gap.zip(scan).map(|(gap, scan)| Gap { to: gap.to.or(scan.from), ..gap });
            let skipped = scan.map(|s| s.found.skipped.clone()).unwrap_or_default();
            let details = match (marks.get(&i), scan) {
                (Some(mark), scan) => {
                    // What was not read at one time is one state only once all changes have come.
                    if let (Some(run), Some(false)) = (&self.lanes.lanes[i].run, scan.map(|s| s.is_even)) {
                        run.scanned_at(mark.time).await;
                    }
                    let position = Some(mark.position.clone());
                    // A feed of latest states tells of each document by itself.
                    let consistency = match self.description.feed {
                        FeedKind::EveryChange => Consistency::OneTime,
                        FeedKind::LatestState => Consistency::PerDocument,
                    };
                    PointDetails { time: mark.time, consistency, position, gap, skipped }
                }
                (None, Some(scan)) => {
                    let uneven = scan.found.uneven || scan.from != scan.time;
                    let consistency = if uneven { Consistency::PerDocument } else { scan.consistency };
                    let time = scan.time.unwrap_or(wall);
                    PointDetails { time, consistency, position: None, gap, skipped }
                }
                // It lost its changes on the way.
                (None, None) => continue,
            };
            done.gaps.extend(details.gap.clone().map(|gap| (i, gap)));
            all.insert(i, details);
        }
        done.points = self.lanes.commit(|i| all.get(&i).cloned()).await.into_iter().collect();
        self.lanes.abandon().await;
        for (i, lane) in self.lanes.lanes.iter_mut().enumerate() {
            done.errors.extend(lane.error.take().map(|error| (i, error)));
        }
        let times = done.points.values().filter_map(|(_, m)| Some((m.time, m.position.clone()?)));
        if let Some((time, position)) = times.min_by_key(|(time, _)| time.order) {
            done.time = Some(time);
            if let Err(e) = self.source.durable(&position).await {
                self.job.note(format!("the source could not be told what is stored: {e}"));
            }
        }
        if let Some(scan) = scan {
            done.skipped.clone_from(&scan.found.skipped);
            done.scanned = Some(scan.found);
        }
        Ok(done)
    }
}

/// A scan that is complete.
struct ScanDone {
    /// The vaults that have it.
    lanes: Vec<usize>,
    found: Scanned,
    /// The first time at which something was read, where the source tells.
    from: Option<EngineTime>,
    /// The last time at which something was read, where the source tells.
    time: Option<EngineTime>,
    /// Whether everything was read at one time.
    is_even: bool,
    consistency: Consistency,
}

impl Done {
    fn new(round: &Round<'_>) -> Done {
        Done {
            points: HashMap::new(),
            errors: HashMap::new(),
            lost: HashMap::new(),
            gaps: BTreeMap::new(),
            scanned: None,
            read: round.job.progress(),
            stored: None,
            skipped: Vec::new(),
            time: None,
        }
    }
}
