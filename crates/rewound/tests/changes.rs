//! Backups by changes and live backups of a database that is written to all the while: every state
//! that a vault says it can restore is exactly what the database was.
//!
//! `REWOUND_SEED=n` replays one seed, `REWOUND_SEEDS=n` says how many there are.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::await_holding_lock)]

#[path = "support/scripted.rs"]
mod scripted;
mod support;

use futures::{StreamExt, TryStreamExt};
use model::{Clock, Consistency, ErrorKind, Seams, SeededRandom, Selection, Source};
use rewound::backup::{BackupReport, Destination, backup};
use rewound::events::LiveEvent;
use rewound::live::{LiveOptions, LiveReport, live};
use rewound::{Job, Stop};
use scripted::{Db, Dice, Scripted, State, Trouble, patcher, time};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{Notes, job};
use testkit::faulty::{Faults, SimDisk};
use vault::storage::Storage;
use vault::{Access, BackupOptions, Protection, Vault};

/// The runtime's clock, which stands still while something is done and jumps while all wait.
#[derive(Debug)]
struct Watch(tokio::time::Instant);

impl Clock for Watch {
    fn now_millis(&self) -> i64 {
        scripted::BEGIN + self.0.elapsed().as_millis() as i64
    }
}

struct Bench {
    disk: SimDisk,
    seams: Seams,
    vault: Vault,
}

impl Bench {
    async fn new(seed: u64) -> Bench {
        let clock = Arc::new(Watch(tokio::time::Instant::now()));
        let seams = Seams { clock: clock.clone(), random: Arc::new(SeededRandom::new(seed)) };
        let disk = SimDisk::new(clock);
        let access = Access { identities: Vec::new(), config: None, seams: seams.clone() };
        let vault = Vault::init(disk.storage(), Protection::Plain, access).await.unwrap();
        Bench { disk, seams, vault }
    }

    /// The vault, through storage that fails now and then.
    async fn faulty(&self, seed: u64, rate: f64) -> Vault {
        let access = Access { identities: Vec::new(), config: None, seams: self.seams.clone() };
        let mut tries = 0;
        loop {
            let faults =
                Faults { seed: seed + tries, error_rate: rate, timeouts_after_effect: rate, ..Faults::default() };
            let storage: Arc<dyn Storage> = self.disk.faulty(faults);
            match Vault::open(storage, access.clone()).await {
                Ok(vault) => return vault,
                Err(e) => assert!(tries < 100, "{e}"),
            }
            tries += 1;
        }
    }

    async fn tag(&self) -> String {
        self.vault.points().await.unwrap().points[0].name.source.clone()
    }

    /// What the vault says the database was at a time; none if it says that it does not know.
    async fn at(&self, order: u64) -> Option<State> {
        let tag = self.tag().await;
        let all = Selection::default();
        match Box::pin(self.vault.resolve_at(&tag, time(order), &all, patcher())).await {
            Ok(state) => Some(read(&state).await),
            Err(e) => {
                let known = matches!(e.kind(), ErrorKind::HistoryLost | ErrorKind::Input);
                assert!(known && e.hint_text().is_some(), "{e:?}");
                None
            }
        }
    }

    /// Compares all times from one on, and says how many of them are known.
    async fn check(&self, db: &Db, from: u64) -> usize {
        self.check_each(db, from, 1).await
    }

    /// Compares each of so many times.
    async fn check_each(&self, db: &Db, from: u64, step: usize) -> usize {
        let mut known = 0;
        for order in (from..=db.now()).step_by(step) {
            if let Some(state) = self.at(order).await {
                assert_eq!(state, db.at(order), "at {order}");
                known += 1;
            }
        }
        let points = self.vault.points().await.unwrap();
        assert!(points.broken.is_empty(), "{:?}", points.broken);
        // What was overtaken even while it was scanned is no state of one time, and says so.
        for point in points.points.iter().filter(|p| p.manifest.consistency == Consistency::OneTime) {
            let state = self.vault.resolve(point, &Selection::default(), patcher()).await.unwrap();
            assert_eq!(read(&state).await, db.at(point.manifest.time.order), "point of {}", point.manifest.time.order);
        }
        known
    }
}

async fn read(state: &vault::State) -> State {
    let mut all = State::new();
    for entry in state.collections() {
        let mut documents = BTreeMap::new();
        let mut batches = state.read(entry);
        while let Some(batch) = batches.try_next().await.unwrap() {
            for i in 0..batch.len() {
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                let before = documents.insert(text(batch.key_of(i)), text(batch.body_of(i)));
                assert!(before.is_none(), "a document came twice");
            }
        }
        let collection = entry.info.id.as_str()[1..].parse().unwrap();
        all.insert(collection, (entry.info.name.clone(), documents));
    }
    all
}

async fn back_up(source: &dyn Source, vaults: &[&Vault], full: bool) -> model::Result<BackupReport> {
    let to = vaults.iter().enumerate().map(|(i, v)| Destination { url: format!("v{i}"), vault: Ok((*v).clone()) });
    let options = BackupOptions { full, ..BackupOptions::default() };
    let notes = Arc::new(Notes::default());
    Box::pin(backup(&job(&notes), source, to.collect(), &Selection::default(), &options)).await
}

fn live_job() -> (Job, Arc<Notes>, Stop) {
    let (notes, stop) = (Arc::new(Notes::default()), Stop::new());
    let mut job = Job::new(notes.clone(), stop.clone());
    job.seams.clock = Arc::new(Watch(tokio::time::Instant::now()));
    (job, notes, stop)
}

async fn go_live(job: &Job, source: &dyn Source, vaults: &[&Vault], how: &LiveOptions) -> model::Result<LiveReport> {
    let to = vaults.iter().enumerate().map(|(i, v)| Destination { url: format!("v{i}"), vault: Ok((*v).clone()) });
    live(job, source, to.collect(), &Selection::default(), &BackupOptions::default(), how).await
}

/// Writes until the work is done.
async fn while_writing<T>(db: &Arc<Db>, work: impl Future<Output = T>) -> T {
    let writing = async {
        loop {
            db.write();
            tokio::time::sleep(Duration::from_millis(20 + Dice::new(db.now()).below(60))).await;
        }
    };
    tokio::select! {
        biased;
        result = work => result,
        () = writing => unreachable!(),
    }
}

fn seeds(default: u64) -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse().unwrap());
    match number("REWOUND_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("REWOUND_SEEDS").unwrap_or(default)).collect(),
    }
}

#[tokio::test(start_paused = true)]
async fn each_backup_after_the_first_reads_changes_only() {
    for seed in seeds(8) {
        println!("REWOUND_SEED={seed}");
        let bench = Bench::new(seed).await;
        let db = Db::new(seed);
        let source = Scripted(db.clone());
        let first = while_writing(&db, back_up(&source, &[&bench.vault], false)).await.unwrap();
        assert!(first.scanned && first.gap.is_none());
        let begin = bench.vault.points().await.unwrap().points[0].manifest.scanned().1.order;
        for _ in 0..4 {
            (0..15).for_each(|_| db.write());
            let more = while_writing(&db, back_up(&source, &[&bench.vault], false)).await.unwrap();
            assert!(!more.scanned && more.changes.unwrap() >= 1, "{more:?}");
            assert!(more.gap.is_none());
        }
        assert_eq!(db.scans(), 1);
        let last = bench.vault.points().await.unwrap().points.last().unwrap().manifest.time.order;
        let known = bench.check(&db, 100).await;
        assert_eq!(known as u64, last - begin + 1, "every time from {begin} to {last} is known");
        drop(back_up(&source, &[&bench.vault], false).await.unwrap());
        // Nothing has changed: a point all the same, and hardly any bytes.
        let idle = back_up(&source, &[&bench.vault], false).await.unwrap();
        assert_eq!((idle.changes, idle.scanned), (Some(0), false));
        assert!(idle.vaults[0].point.as_ref().unwrap().stored < 3000, "{idle:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_backup_agrees_with_the_log_and_notices_when_not() {
    // Read at one time, and not.
    for seed in [2, 3] {
        println!("REWOUND_SEED={seed}");
        let bench = Bench::new(seed).await;
        let db = Db::with(seed, false);
        let source = Scripted(db.clone());
        back_up(&source, &[&bench.vault], true).await.unwrap();
        for _ in 0..3 {
            (0..30).for_each(|_| db.write());
            while_writing(&db, back_up(&source, &[&bench.vault], false)).await.unwrap();
            (0..30).for_each(|_| db.write());
            let full = while_writing(&db, back_up(&source, &[&bench.vault], true)).await.unwrap();
            assert!(full.scanned && full.gap.is_none());
            assert_eq!(full.vaults[0].compared.as_deref(), Some(&[][..]), "compared, and the same");
        }
        bench.check_each(&db, 100, 5).await;
        // A feed that leaves something out is found out, and what it told is not trusted.
        let before = bench.vault.points().await.unwrap().points.last().unwrap().manifest.scanned().1.order;
        *db.trouble.lock().unwrap() = Trouble { lies: 500, ..Trouble::default() };
        (0..30).for_each(|_| db.write());
        back_up(&source, &[&bench.vault], false).await.unwrap();
        *db.trouble.lock().unwrap() = Trouble::default();
        let found = while_writing(&db, back_up(&source, &[&bench.vault], true)).await.unwrap();
        let gap = found.gap.unwrap();
        assert_eq!(gap.from.order, before);
        assert!(!found.vaults[0].compared.as_ref().unwrap().is_empty());
        assert!(bench.at(before + 1).await.is_none() && bench.at(before).await.is_some());
        let scanned = bench.vault.points().await.unwrap().points.last().unwrap().manifest.scanned().1.order;
        assert_eq!(bench.at(scanned).await.unwrap(), db.at(scanned));
        // From the new scan on all is well again.
        (0..10).for_each(|_| db.write());
        let next = back_up(&source, &[&bench.vault], false).await.unwrap();
        assert!(!next.scanned && next.gap.is_none());
        let now = db.now();
        assert_eq!(bench.at(now).await.unwrap(), db.at(now));
    }
}

#[tokio::test(start_paused = true)]
async fn lost_history_is_a_gap_and_healed_in_the_same_run() {
    for seed in seeds(5) {
        println!("REWOUND_SEED={seed}");
        let bench = Bench::new(seed).await;
        let db = Db::new(seed);
        let source = Scripted(db.clone());
        back_up(&source, &[&bench.vault], false).await.unwrap();
        let before = db.now();
        (0..20).for_each(|_| db.write());
        db.forget();
        (0..3).for_each(|_| db.write());
        let healed = while_writing(&db, back_up(&source, &[&bench.vault], false)).await.unwrap();
        assert!(healed.scanned);
        let gap = healed.gap.unwrap();
        assert_eq!((gap.from.order, gap.why.as_str()), (before, "forgotten"));
        let points = bench.vault.points().await.unwrap();
        let scanned = points.points.last().unwrap().manifest.scanned().1.order;
        for order in before + 1..scanned {
            assert!(bench.at(order).await.is_none(), "{order} is in the gap from {before} to {scanned}");
        }
        assert!(bench.at(scanned).await.is_some());
        bench.check(&db, before).await;
        // And from there on by changes again.
        (0..10).for_each(|_| db.write());
        let next = back_up(&source, &[&bench.vault], false).await.unwrap();
        assert!(!next.scanned && next.gap.is_none());
        bench.check(&db, before).await;
    }
}

#[tokio::test(start_paused = true)]
async fn vaults_that_stand_elsewhere_get_what_they_need_from_one_read() {
    for seed in seeds(5) {
        println!("REWOUND_SEED={seed}");
        let (a, b, c) = (Bench::new(seed).await, Bench::new(seed + 1).await, Bench::new(seed + 2).await);
        let db = Db::new(seed);
        let source = Scripted(db.clone());
        back_up(&source, &[&a.vault], false).await.unwrap();
        (0..20).for_each(|_| db.write());
        back_up(&source, &[&a.vault, &b.vault], false).await.unwrap();
        (0..20).for_each(|_| db.write());
        back_up(&source, &[&b.vault], false).await.unwrap();
        (0..20).for_each(|_| db.write());
        let scans = db.scans();
        let all = while_writing(&db, back_up(&source, &[&a.vault, &b.vault, &c.vault], false)).await.unwrap();
        assert!(all.vaults.iter().all(|v| v.point.is_ok()), "{all:?}");
        assert_eq!(db.scans(), scans + 1, "one scan, for the new vault");
        for bench in [&a, &b, &c] {
            let points = bench.vault.points().await.unwrap();
            let from = points.points[0].manifest.scanned().1.order;
            let to = points.points.last().unwrap().manifest.time.order;
            assert_eq!(bench.check(&db, 100).await as u64, to - from + 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_live_backup_that_is_killed_again_and_again_loses_nothing() {
    for seed in seeds(8) {
        println!("REWOUND_SEED={seed}");
        let dice = Dice::new(seed ^ 0xdead);
        let bench = Bench::new(seed).await;
        let db = Db::new(seed);
        *db.trouble.lock().unwrap() = Trouble { errors: dice.below(60), ends: dice.below(60), forgets: 0, lies: 0 };
        let how = LiveOptions { point: Duration::from_secs(2 + dice.below(10)), ..LiveOptions::default() };
        let mut begin = None;
        for life in 0..8 {
            let source = Scripted(db.clone());
            let vault = bench.faulty(seed * 100 + life, dice.below(10) as f64 / 200.0).await;
            let (job, _, _) = live_job();
            let until = Duration::from_millis(200 + dice.below(15_000));
            let ended = while_writing(&db, tokio::time::timeout(until, go_live(&job, &source, &[&vault], &how))).await;
            if let Ok(Err(e)) = ended {
                // Only the start gives up over what may pass.
                assert_eq!(e.kind(), ErrorKind::Retry, "{e}");
            }
            if dice.below(3) == 0 {
                bench.disk.crash(seed + life);
            }
            let points = bench.vault_again().await.points().await.unwrap();
            begin = begin.or(points.points.first().map(|p| p.manifest.scanned().1.order));
        }
        let bench = Bench { vault: bench.vault_again().await, ..bench };
        *db.trouble.lock().unwrap() = Trouble::default();
        let last = back_up(&Scripted(db.clone()), &[&bench.vault], false).await.unwrap();
        assert!(last.gap.is_none());
        let begin = begin.unwrap_or_else(|| db.now());
        let known = bench.check_each(&db, begin, 3).await as u64;
        assert_eq!(known, (db.now() - begin) / 3 + 1, "from {begin} to {}", db.now());
    }
}

impl Bench {
    /// The vault, opened anew.
    async fn vault_again(&self) -> Vault {
        let access = Access { identities: Vec::new(), config: None, seams: self.seams.clone() };
        Vault::open(self.disk.storage(), access).await.unwrap()
    }
}

/// A source that answers, but not how it can be read.
struct Unready(Scripted, AtomicU32);

#[async_trait::async_trait]
impl Source for Unready {
    async fn describe(&self) -> model::Result<model::Description> {
        self.0.describe().await
    }

    async fn plan(&self, _: &Selection, _: Option<&model::SourceState>) -> model::Result<model::Plan> {
        self.1.fetch_add(1, Ordering::SeqCst);
        Err(model::Error::new(ErrorKind::Retry, "the server is starting"))
    }

    async fn read(
        &self,
        part: &model::Part,
        store: Arc<dyn model::AttachmentStore>,
    ) -> model::Result<model::ScanStream> {
        self.0.read(part, store).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_live_backup_waits_for_a_source_that_answers_and_can_be_stopped_then() {
    let bench = Bench::new(1).await;
    let (job, _, stop) = live_job();
    let source = Unready(Scripted(Db::new(1)), AtomicU32::new(0));
    let how = LiveOptions::default();
    let vaults = [&bench.vault];
    let (report, ()) = tokio::join!(go_live(&job, &source, &vaults, &how), async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        stop.ask();
    });
    assert_eq!(report.unwrap_err().kind(), ErrorKind::Interrupted);
    assert!(source.1.load(Ordering::SeqCst) > 3);
}

#[tokio::test(start_paused = true)]
async fn gaps_in_the_middle_of_a_live_backup_are_healed_by_scans() {
    for seed in seeds(5) {
        println!("REWOUND_SEED={seed}");
        let bench = Bench::new(seed).await;
        let db = Db::new(seed);
        *db.trouble.lock().unwrap() = Trouble { errors: 10, ends: 20, forgets: 8, lies: 0 };
        let (job, _, stop) = live_job();
        let source = Scripted(db.clone());
        let how = LiveOptions { point: Duration::from_secs(10), ..LiveOptions::default() };
        let vaults = [&bench.vault];
        let working = async {
            tokio::join!(go_live(&job, &source, &vaults, &how), async {
                tokio::time::sleep(Duration::from_secs(60)).await;
                stop.ask();
            })
            .0
        };
        let report = while_writing(&db, working).await.unwrap();
        assert!(!report.gaps.is_empty() && report.points > 3, "{report:?}");
        assert!(bench.check_each(&db, 100, 7).await > 20);
        let history = bench.vault.history(&bench.tag().await).await.unwrap();
        assert_eq!(history.gaps, report.gaps, "{history:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_vault_that_is_away_for_ten_minutes_catches_up_and_holds_up_no_other() {
    let (good, bad) = (Bench::new(1).await, Bench::new(2).await);
    let away = Arc::new(support::Away::new(bad.disk.storage()));
    let access = Access { identities: Vec::new(), config: None, seams: bad.seams.clone() };
    let vault = Vault::open(away.clone(), access).await.unwrap();
    let db = Db::new(2);
    let (job, notes, stop) = live_job();
    let source = Scripted(db.clone());
    let events = Arc::new(Mutex::new(Vec::new()));
    let to = events.clone();
    let how = LiveOptions { listener: Some(Arc::new(move |e| to.lock().unwrap().push(e))), ..LiveOptions::default() };
    let switch = async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        away.set(true);
        tokio::time::sleep(Duration::from_secs(600)).await;
        let there = good.vault.history(&good.tag().await).await.unwrap();
        assert!(there.intervals[0].to > (db.now() as i64 - 100) * 10 + scripted::BEGIN, "the other vault goes on");
        away.set(false);
        tokio::time::sleep(Duration::from_secs(90)).await;
        stop.ask();
    };
    let vaults = [&good.vault, &vault];
    let working = async { tokio::join!(go_live(&job, &source, &vaults, &how), switch).0 };
    let report = while_writing(&db, working).await.unwrap();
    assert!(report.vaults.iter().all(|v| v.point.is_ok()), "{report:?} {:?}", notes.0.lock().unwrap());
    assert!(report.gaps.is_empty() && db.scans() == 1);
    let events = events.lock().unwrap();
    assert!(events.iter().any(|e| matches!(e, LiveEvent::Away { vault, .. } if vault == "v1")));
    assert!(events.iter().any(|e| matches!(e, LiveEvent::Back { vault } if vault == "v1")));
    let written = |vault: &str| {
        let writes = events.iter().filter_map(|e| match e {
            LiveEvent::Write(w) if w.vault == vault => Some(w.ids.len()),
            _ => None,
        });
        writes.sum::<usize>()
    };
    assert_eq!(written("v0"), written("v1"), "the same changes, none of them twice");
    // Times at random: there are many.
    let dice = Dice::new(3);
    for bench in [&good, &bad] {
        let begin = bench.vault.points().await.unwrap().points[0].manifest.scanned().1.order;
        for _ in 0..40 {
            let order = begin + dice.below(db.now() - 50 - begin);
            assert_eq!(bench.at(order).await.unwrap(), db.at(order), "at {order}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn days_of_flushes_do_not_pile_up() {
    let bench = Bench::new(1).await;
    let db = Db::new(1);
    let (job, notes, stop) = live_job();
    let source = Scripted(db.clone());
    let how = LiveOptions { point: Duration::from_secs(60), ..LiveOptions::default() };
    let most = async {
        let mut most = 0;
        for _ in 0..24 {
            tokio::time::sleep(Duration::from_secs(30)).await;
            most = most.max(bench.disk.names("history/").len());
        }
        stop.ask();
        most
    };
    let vaults = [&bench.vault];
    let working = async { tokio::join!(go_live(&job, &source, &vaults, &how), most) };
    let (report, most) = while_writing(&db, working).await;
    let report = report.unwrap();
    assert!(report.points >= 12, "{report:?} {:?}", notes.0.lock().unwrap());
    // A flush a second for twelve minutes; at any time those of a few points are there, and what they became.
    assert!((60..300).contains(&most), "{most} objects at once");
    assert!(bench.check_each(&db, 150, 500).await > 20);
}

#[tokio::test(start_paused = true)]
async fn an_idle_source_costs_a_heartbeat_a_minute() {
    let bench = Bench::new(1).await;
    let db = Db::new(1);
    let (job, _, stop) = live_job();
    let (listener, events) = rewound::events::stream();
    let how = LiveOptions { listener: Some(listener), ..LiveOptions::default() };
    let source = Scripted(db.clone());
    let vaults = [&bench.vault];
    let (report, ()) = tokio::join!(go_live(&job, &source, &vaults, &how), async {
        tokio::time::sleep(Duration::from_secs(600)).await;
        stop.ask();
    });
    let report = report.unwrap();
    drop(how);
    assert_eq!((report.changes, report.points), (Some(0), 2));
    let events: Vec<LiveEvent> = events.collect().await;
    let beats = events.iter().filter(|e| matches!(e, LiveEvent::Heartbeat { .. })).count();
    assert!((10..=14).contains(&beats), "{beats} heartbeats in ten minutes");
    let lags: Vec<f64> =
        events.iter().filter_map(|e| if let LiveEvent::Lag(l) = e { Some(l.seconds) } else { None }).collect();
    assert!(lags.len() > 300 && lags.iter().all(|l| *l < 2.0), "{lags:?}");
}
