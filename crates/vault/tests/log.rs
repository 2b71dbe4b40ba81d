//! Generated histories, written by several runs, some of which die: what points and the change log
//! resolve to at any time equals a simple model, and what is not known is refused.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::feed::*;
use common::*;
use model::{BatchBuilder, ChangeBatch, Encoding, ErrorKind, FeedKind, Gap, Kind, Selection};
use proptest::prelude::*;
use std::sync::Arc;
use vault::storage::{MemoryStorage, Storage};
use vault::{BackupOptions, Flush, LogName, PointName, Vault};

/// What one run of a generated script does.
#[derive(Debug, Clone)]
struct Doing {
    /// Scans in pieces, at these times after the last.
    scan: Option<Vec<u64>>,
    compare: bool,
    /// How many times each flush takes in; 0: a heartbeat.
    flushes: Vec<u64>,
    /// After which of them the flushes so far are rolled up.
    rolls: u8,
    grouped: bool,
    /// It dies before its point.
    dies: bool,
    /// It starts and follows from where the last run but one did.
    late: bool,
}

fn doing() -> impl Strategy<Value = Doing> {
    let scan = prop_oneof![3 => Just(None), 2 => proptest::collection::vec(0..6u64, 1..4).prop_map(Some)];
    let flushes = proptest::collection::vec(0..8u64, 1..8);
    (scan, any::<bool>(), flushes, any::<u8>(), any::<bool>(), 0..4u8, 0..3u8).prop_map(
        |(scan, compare, flushes, rolls, grouped, dies, late)| Doing {
            scan,
            compare,
            flushes,
            rolls,
            grouped,
            dies: dies == 0,
            late: late == 0,
        },
    )
}

fn op() -> impl Strategy<Value = (bool, u8, Op)> {
    let key = 0..KEYS;
    let what = prop_oneof![
        60 => (key.clone(), any::<u8>()).prop_map(|(k, v)| Op::Put(k, v)),
        30 => (key.clone(), any::<u8>()).prop_map(|(k, v)| Op::Patch(k, v)),
        40 => key.clone().prop_map(Op::Flip),
        15 => key.prop_map(Op::Delete),
        3 => Just(Op::Create),
        1 => Just(Op::Drop),
        1 => Just(Op::Empty),
        2 => any::<u8>().prop_map(Op::Rename),
    ];
    (proptest::bool::weighted(0.3), 0..COLLECTIONS, what)
}

/// What the script has made known: of scans the least and the greatest time, and covered intervals.
#[derive(Debug, Default)]
struct Known {
    scans: Vec<(u64, u64)>,
    covered: Vec<(u64, u64)>,
    points: Vec<(PointName, u64)>,
}

impl Known {
    fn is_covered(&self, after: u64, until: u64) -> bool {
        (after + 1..=until).all(|t| self.covered.iter().any(|(from, to)| *from < t && t <= *to))
    }

    /// Whether a time can be restored; none where two scans with the same greatest time disagree.
    fn restorable(&self, time: u64) -> Option<bool> {
        let Some(greatest) = self.scans.iter().map(|(_, to)| *to).filter(|to| *to <= time).max() else {
            return Some(false);
        };
        let mut of = self.scans.iter().filter(|(_, to)| *to == greatest).map(|(from, _)| self.is_covered(*from, time));
        let first = of.next()?;
        of.all(|other| other == first).then_some(first)
    }
}

async fn act(vault: &Vault, history: &History, first: u64, doings: &[Doing]) -> Known {
    let mut known = Known::default();
    let mut from = first;
    for (number, doing) in doings.iter().enumerate() {
        let options = BackupOptions { compare: doing.compare, workers: 1, ..BackupOptions::default() };
        let run = start(vault, options).await;
        let last: u64 = run.last().map_or(from, |last| last.position.unwrap().0.parse().unwrap());
        // A second writer follows from further back.
        let mut time = if doing.late { last.saturating_sub(4).max(5) } else { last };
        let mut scanned = None;
        if doing.scan.is_some() || !run.has_base() {
            let mut times: Vec<u64> = doing.scan.clone().unwrap_or(vec![0]);
            times.sort_unstable();
            times.iter_mut().for_each(|t| *t += last);
            time = time.min(times[0]);
            scanned = Some((times[0], scan(&run, history, &times).await));
        } else {
            assert_eq!(run.last_catalog().unwrap().len(), history.at(last).len(), "{number}");
        }
        run.follow_from(&position(time), at(time)).await.unwrap();
        let begin = time;
        let mut flushes = doing.flushes.clone();
        let least = scanned.map_or(last, |(_, to)| to);
        flushes.push(least.saturating_sub(time + flushes.iter().sum::<u64>()));
        for (i, length) in flushes.into_iter().enumerate() {
            run.append(flush(history, time, time + length, doing.grouped)).await.unwrap();
            time += length;
            if doing.rolls >> (i % 8) & 1 == 1 {
                run.roll_up().await;
            }
        }
        known.covered.push((begin, time));
        if doing.dies {
            drop(run);
        } else {
            let (name, manifest) = run.commit(details(time, None)).await.unwrap();
            let names: Vec<String> =
                vault.catalog(&manifest).await.unwrap().collections.iter().map(|c| c.info.name.clone()).collect();
            let mut expected: Vec<String> = history.at(time).into_values().map(|(name, _)| name).collect();
            let mut sorted = names;
            sorted.sort();
            expected.sort();
            assert_eq!(sorted, expected, "the catalog of point {number}");
            known.points.push((name, time));
            known.scans.extend(scanned);
            from = time;
        }
    }
    known
}

async fn check(vault: &Vault, history: &History, known: &Known) {
    let Some((first, _)) = known.points.first() else { return };
    let source = first.source.clone();
    let points = vault.points().await.unwrap();
    assert_eq!((points.points.len(), points.broken.len()), (known.points.len(), 0));
    for (name, time) in &known.points {
        let point = points.points.iter().find(|p| p.name == *name).unwrap();
        assert_eq!(resolved_point(vault, point).await.unwrap(), history.at(*time), "the point at {time}");
    }
    let end = known.covered.iter().map(|(_, to)| *to).max().unwrap();
    for time in 7..end + 3 {
        match (resolved(vault, &source, time).await, known.restorable(time)) {
            (Ok(db), Some(true) | None) => assert_eq!(db, history.at(time), "at {time}, {known:?}"),
            (Err(e), Some(false) | None) => {
                assert!(matches!(e.kind(), ErrorKind::HistoryLost | ErrorKind::Missing | ErrorKind::Input), "{e:?}");
                assert!(e.hint_text().is_some());
            }
            (Ok(_), Some(false)) => panic!("{time} is not known, but was resolved: {known:?}"),
            (Err(e), Some(true)) => panic!("at {time}: {e:?}, {known:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn any_time_resolves_to_what_was_there(
        history in proptest::collection::vec(op(), 1..200).prop_map(History::possible),
        first in 8..50u64,
        doings in proptest::collection::vec(doing(), 1..6),
        plain: bool,
    ) {
        block(async {
            let keys = Keys::new(1);
            let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(keys.seams.clock.clone()));
            let vault = init(storage.clone(), &keys, plain).await.unwrap();
            let known = act(&vault, &history, first, &doings).await;
            check(&vault, &history, &known).await;
            remove_superseded(&storage).await;
            check(&vault, &history, &known).await;
        });
    }
}

/// A vault with one scan at time 20 of a history, and how to open it again.
async fn scanned(keys: &Keys, history: &History, plain: bool) -> (Arc<dyn Storage>, Vault, String) {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(keys.seams.clock.clone()));
    let vault = init(storage.clone(), keys, plain).await.unwrap();
    let run = start(&vault, BackupOptions::default()).await;
    scan(&run, history, &[20]).await;
    let (name, _) = run.commit(details(20, None)).await.unwrap();
    (storage, vault, name.source)
}

/// Puts of one key after the other, one at each time.
fn puts(until: u64) -> History {
    let wishes = (0..until).map(|i| (false, 0, Op::Put((i % 8) as u8, i as u8))).collect();
    History::possible(wishes)
}

/// A run that follows from one time to another, with a flush for each.
async fn follow(vault: &Vault, history: &History, from: u64, until: u64) -> vault::Run {
    let run = start(vault, BackupOptions::default()).await;
    run.follow_from(&position(from), at(from)).await.unwrap();
    for time in from..until {
        run.append(flush(history, time, time + 1, false)).await.unwrap();
    }
    run
}

#[test]
fn a_hole_in_the_log_is_found_and_the_nearest_times_are_named() {
    block(async {
        let keys = Keys::new(3);
        let history = puts(40);
        for lost in 0..5 {
            let (storage, vault, source) = scanned(&keys, &history, lost % 2 == 0).await;
            let run = follow(&vault, &history, 20, 25).await;
            drop(run);
            for time in 20..26 {
                assert_eq!(resolved(&vault, &source, time).await.unwrap(), history.at(time));
            }
            let run = start(&vault, BackupOptions::default()).await;
            scan(&run, &history, &[30]).await;
            run.commit(details(30, None)).await.unwrap();
            let names = log_names(&storage).await;
            storage.delete(&names[lost].to_string()).await.unwrap();
            let last = 20 + lost as u64;
            for time in 20..=last {
                assert_eq!(resolved(&vault, &source, time).await.unwrap(), history.at(time), "{time} without {lost}");
            }
            let error = resolved(&vault, &source, last + 1).await.unwrap_err();
            // That the last one is missing nothing can tell.
            let kind = if lost == 4 { ErrorKind::HistoryLost } else { ErrorKind::Missing };
            assert_eq!(error.kind(), kind, "{error:?}");
            let hint = error.hint_text().unwrap();
            assert!(hint.contains(&at(last).to_string()) && hint.contains(&at(30).to_string()), "{hint}");
            assert_eq!(resolved(&vault, &source, 30).await.unwrap(), history.at(30));
        }
    });
}

#[test]
fn a_point_whose_chain_has_lost_its_end_is_refused() {
    block(async {
        let keys = Keys::new(3);
        let history = puts(40);
        let (storage, vault, source) = scanned(&keys, &history, true).await;
        let run = follow(&vault, &history, 20, 25).await;
        let (name, manifest) = run.commit(details(25, None)).await.unwrap();
        let log = manifest.log.unwrap();
        assert_eq!((log.from, log.to, log.objects), (at(20), at(25), 5));
        let names = log_names(&storage).await;
        for name in names.iter().filter(|n| n.last == 4) {
            storage.delete(&name.to_string()).await.unwrap();
        }
        let point = point(&vault, &name).await;
        assert_eq!(resolved_point(&vault, &point).await.unwrap_err().kind(), ErrorKind::Missing);
        assert_eq!(resolved(&vault, &source, 25).await.unwrap_err().kind(), ErrorKind::Missing);
        assert_eq!(resolved(&vault, &source, 24).await.unwrap(), history.at(24));
    });
}

#[test]
fn a_damaged_rolled_object_harms_nothing_while_its_flushes_are_there() {
    block(async {
        let keys = Keys::new(4);
        let history = puts(40);
        for plain in [true, false] {
            let (storage, vault, source) = scanned(&keys, &history, plain).await;
            let run = follow(&vault, &history, 20, 30).await;
            run.roll_up().await;
            run.commit(details(30, None)).await.unwrap();
            let names = log_names(&storage).await;
            assert_eq!(names.iter().filter(|n| n.is_rolled()).count(), 1);
            let rolled = names.iter().find(|n| n.is_rolled()).unwrap().to_string();
            let mut bytes = storage.read(&rolled).await.unwrap().to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            storage.replace(&rolled, bytes.into()).await.unwrap();
            for time in 20..31 {
                assert_eq!(resolved(&vault, &source, time).await.unwrap(), history.at(time));
            }
            remove_superseded(&storage).await;
            let error = resolved(&vault, &source, 25).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
            assert_eq!(resolved(&vault, &source, 20).await.unwrap(), history.at(20));
        }
    });
}

#[test]
fn objects_of_another_time_do_not_pass_for_a_chain() {
    block(async {
        let keys = Keys::new(5);
        let history = puts(40);
        let (storage, vault, source) = scanned(&keys, &history, true).await;
        drop(follow(&vault, &history, 20, 24).await);
        let names = log_names(&storage).await;
        // Another object's bytes under a name that fits them.
        let bytes = storage.read(&names[1].to_string()).await.unwrap();
        let forged = LogName { first: 2, last: 2, stored: *blake3::hash(&bytes).as_bytes(), ..names[2].clone() };
        storage.delete(&names[2].to_string()).await.unwrap();
        storage.create(&forged.to_string(), bytes).await.unwrap();
        let error = resolved(&vault, &source, 23).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
        assert_eq!(resolved(&vault, &source, 22).await.unwrap(), history.at(22));
    });
}

#[test]
fn nothing_is_bridged_across_a_gap() {
    block(async {
        let keys = Keys::new(6);
        let history = puts(60);
        let (_, vault, source) = scanned(&keys, &history, true).await;
        drop(follow(&vault, &history, 20, 40).await);
        let run = start(&vault, BackupOptions::default()).await;
        scan(&run, &history, &[35]).await;
        let gap = Gap { from: at(26), to: Some(at(35)), why: "the log was rolled over".into() };
        run.commit(details(35, Some(gap))).await.unwrap();
        for time in (20..27).chain(35..41) {
            assert_eq!(resolved(&vault, &source, time).await.unwrap(), history.at(time), "{time}");
        }
        for time in 27..35 {
            let error = resolved(&vault, &source, time).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::HistoryLost);
            assert!(error.to_string().contains("rolled over"), "{error}");
            let hint = error.hint_text().unwrap();
            assert!(hint.contains(&at(26).to_string()) && hint.contains(&at(35).to_string()), "{hint}");
        }
    });
}

#[test]
fn thousands_of_flushes_become_few_objects() {
    block(async {
        let keys = Keys::new(7);
        let history = puts(2600);
        let (storage, vault, source) = scanned(&keys, &history, true).await;
        let run = follow(&vault, &history, 20, 2520).await;
        let rolled: Vec<_> = log_names(&storage).await.into_iter().filter(LogName::is_rolled).collect();
        assert_eq!(rolled.iter().map(|n| (n.first, n.last)).collect::<Vec<_>>(), [(0, 999), (1000, 1999)]);
        // An hour later the rest is rolled up too, with a heartbeat.
        keys.clock.advance(3_600_000);
        let beat = run.append(flush(&history, 2520, 2520, false)).await.unwrap();
        assert!(beat.bytes < 2000 && LogName::parse(&beat.object).is_some());
        assert_eq!(run.log_since_base(), 0);
        let (name, manifest) = run.commit(details(2520, None)).await.unwrap();
        assert_eq!(manifest.totals.changed, 2500);
        assert!(!manifest.totals.counted && !vault.catalog(&manifest).await.unwrap().collections[0].counted);
        remove_superseded(&storage).await;
        assert_eq!(log_names(&storage).await.len(), 3);
        assert_eq!(resolved_point(&vault, &point(&vault, &name).await).await.unwrap(), history.at(2520));
        for time in [20, 21, 1019, 1020, 1021, 1500, 2519] {
            assert_eq!(resolved(&vault, &source, time).await.unwrap(), history.at(time), "{time}");
        }
        let stored: u64 = storage_bytes(&storage, "history/").await;
        let run = start(&vault, BackupOptions::default()).await;
        assert!(run.has_base() && run.log_since_base() > 0 && run.log_since_base() < stored);
    });
}

async fn storage_bytes(storage: &Arc<dyn Storage>, prefix: &str) -> u64 {
    use futures::TryStreamExt;
    let entries: Vec<_> = storage.list(prefix).await.unwrap().try_collect().await.unwrap();
    entries.iter().map(|e| e.size).sum()
}

/// Bodies that hardly compress, so that objects are large.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut out = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

#[test]
fn large_flushes_and_headers_are_read_in_parts() {
    block(async {
        for plain in [true, false] {
            let keys = Keys::new(8);
            let (storage, vault, source) = scanned(&keys, &puts(5), plain).await;
            let run = start(&vault, BackupOptions::default()).await;
            run.follow_from(&position(20), at(20)).await.unwrap();
            let mut model = puts(5).at(20);
            // Small ones, one of 5 MiB, which stands alone, and many small documents in many frames.
            for (number, (count, length)) in [(3, 10), (5, 1 << 20), (40_000, 60), (2, 10)].into_iter().enumerate() {
                let time = 21 + number as u64;
                let mut builder = BatchBuilder::new(id_of(0), Kind::Document, Encoding::Bin);
                for i in 0..count {
                    let (key, body) = (format!("{number} {i}").into_bytes(), noise(time << 32 | i, length));
                    builder.push(&key, &body);
                    model.get_mut(&0).unwrap().1.insert(key, body);
                }
                let change = ChangeBatch { times: vec![at(time); count as usize], batch: builder.take() };
                let flush = Flush { to: position(time), time: at(time), changes: vec![change], catalog: vec![] };
                run.append(flush).await.unwrap();
            }
            let (name, _) = run.commit(details(24, None)).await.unwrap();
            remove_superseded(&storage).await;
            let names = log_names(&storage).await;
            assert_eq!(names.iter().map(|n| (n.first, n.last)).collect::<Vec<_>>(), [(0, 0), (1, 1), (2, 3)]);
            assert_eq!(resolved_point(&vault, &point(&vault, &name).await).await.unwrap(), model);
            assert_eq!(resolved(&vault, &source, 24).await.unwrap(), model);
            // Damage in the middle of a large object is found when its frames are read.
            let rolled = names[2].to_string();
            let mut bytes = storage.read(&rolled).await.unwrap().to_vec();
            let at_byte = bytes.len() * 3 / 4;
            bytes[at_byte] ^= 1;
            storage.replace(&rolled, bytes.into()).await.unwrap();
            assert_eq!(resolved(&vault, &source, 24).await.unwrap_err().kind(), ErrorKind::Corrupt);
            assert!(resolved(&vault, &source, 22).await.is_ok());
        }
    });
}

#[test]
fn what_is_told_at_one_time_keeps_its_order() {
    block(async {
        let keys = Keys::new(9);
        let history = puts(5);
        let (_, vault, source) = scanned(&keys, &history, true).await;
        let run = start(&vault, BackupOptions::default()).await;
        run.follow_from(&position(20), at(20)).await.unwrap();
        let mut expected = Vec::new();
        let change = |kind: Kind, body: &[u8], time: u64| {
            let mut builder = BatchBuilder::new(id_of(0), kind, Encoding::Bin);
            builder.push(b"k", body);
            ChangeBatch { batch: builder.take(), times: vec![at(time)] }
        };
        for time in 21..30 {
            // Put, patch, delete, put, patch at one time, in several orders.
            let mut changes = Vec::new();
            expected = vec![b'a', time as u8, b'+'];
            if time % 2 == 0 {
                changes.push(change(Kind::Patch, b"-", time));
                changes.push(change(Kind::Tombstone, b"", time));
            }
            changes.push(change(Kind::Document, &expected[..2], time));
            changes.push(change(Kind::Patch, b"+", time));
            if time % 3 == 0 {
                changes.push(change(Kind::Document, b"b", time));
                changes.push(change(Kind::Patch, b"*", time));
                expected = b"b*".to_vec();
            }
            run.append(Flush { to: position(time), time: at(time), changes, catalog: vec![] }).await.unwrap();
        }
        let (name, _) = run.commit(details(29, None)).await.unwrap();
        let restored = resolved_point(&vault, &point(&vault, &name).await).await.unwrap();
        assert_eq!(restored[&0].1[&b"k"[..]], expected);
        let restored = resolved(&vault, &source, 27).await.unwrap();
        assert_eq!(restored[&0].1[&b"k"[..]], b"b*");
    });
}

#[test]
fn mistakes_of_callers_are_refused() {
    block(async {
        let keys = Keys::new(10);
        let history = puts(60);
        let (_, vault, _) = scanned(&keys, &history, true).await;
        let run = start(&vault, BackupOptions::default()).await;
        assert_eq!(run.append(flush(&history, 20, 21, false)).await.unwrap_err().kind(), ErrorKind::Bug);
        run.follow_from(&position(20), at(20)).await.unwrap();
        let late = Flush { time: at(20), ..flush(&history, 20, 22, false) };
        assert_eq!(run.append(late).await.unwrap_err().kind(), ErrorKind::Bug);
        run.append(flush(&history, 20, 22, false)).await.unwrap();
        // Changes from before the last flush would not be read.
        assert_eq!(run.append(flush(&history, 21, 23, false)).await.unwrap_err().kind(), ErrorKind::Bug);
        assert_eq!(run.commit(details(23, None)).await.unwrap_err().kind(), ErrorKind::Bug);
        // A chain that does not begin where the last point ends, and one without a flush.
        let run = follow(&vault, &history, 21, 25).await;
        assert_eq!(run.commit(details(25, None)).await.unwrap_err().kind(), ErrorKind::Bug);
        let run = follow(&vault, &history, 20, 20).await;
        assert_eq!(run.commit(details(20, None)).await.unwrap_err().kind(), ErrorKind::Bug);
        // A scan whose changes are known too late.
        let run = start(&vault, BackupOptions::default()).await;
        scan(&run, &history, &[30]).await;
        run.follow_from(&position(31), at(31)).await.unwrap();
        run.append(flush(&history, 31, 40, false)).await.unwrap();
        assert_eq!(run.commit(details(40, None)).await.unwrap_err().kind(), ErrorKind::Bug);
    });
}

#[test]
fn sources_that_tell_only_states_give_the_last_one_before() {
    block(async {
        let keys = Keys::new(11);
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(keys.seams.clock.clone()));
        let vault = init(storage, &keys, true).await.unwrap();
        let mut source = String::new();
        let history = puts(30);
        for time in [20, 25] {
            let described = description("s", &World::new());
            assert_eq!(described.feed, FeedKind::LatestState);
            let run = vault.start_run(&described, BackupOptions::default()).await.unwrap();
            for (collection, (name, docs)) in history.at(time) {
                run.begin(&info_of(collection, &name)).await.unwrap();
                let mut builder = BatchBuilder::new(id_of(collection), Kind::Document, Encoding::Bin);
                docs.iter().for_each(|(k, b)| builder.push(k, b));
                run.write(builder.take()).await.unwrap();
                run.end(&id_of(collection)).await.unwrap();
            }
            source = run.commit(details(time, None)).await.unwrap().0.source;
            keys.clock.advance(1000);
        }
        for (asked, given) in [(20, 20), (24, 20), (25, 25), (1000, 25)] {
            let state = vault.resolve_at(&source, at(asked), &Selection::default(), None).await.unwrap();
            assert_eq!(state.time(), at(given));
            assert_eq!(read(&state).await.unwrap(), history.at(given));
        }
        assert_eq!(resolved(&vault, &source, 19).await.unwrap_err().kind(), ErrorKind::Input);
    });
}

/// A history of one collection, of what happens to key 4 at some times.
fn of_key_4(events: &[(u64, Op)]) -> History {
    let mut all = vec![Event { time: 11, collection: 0, op: Op::Create }];
    all.push(Event { time: 12, collection: 0, op: Op::Put(4, 7) });
    all.extend(events.iter().map(|(time, op)| Event { time: *time, collection: 0, op: op.clone() }));
    History(all)
}

/// Two scans that compare, the second one in pieces at these times, with the changes since.
async fn scanned_again(history: &History, times: &[u64]) -> (Vault, String) {
    let keys = Keys::new(12);
    let (_, vault, source) = scanned(&keys, history, true).await;
    let run = start(&vault, BackupOptions::default()).await;
    assert!(!run.is_full());
    scan(&run, history, times).await;
    run.follow_from(&position(times[0]), at(times[0])).await.unwrap();
    run.append(flush(history, times[0], 40, false)).await.unwrap();
    run.commit(details(40, None)).await.unwrap();
    (vault, source)
}

#[test]
fn what_came_back_while_a_scan_went_on_is_not_changed_again() {
    block(async {
        // Unchanged when it was read at 24, but not at 22, since when changes count.
        let history = of_key_4(&[(21, Op::Flip(4)), (23, Op::Flip(4))]);
        let (vault, source) = scanned_again(&history, &[22, 24]).await;
        for time in [24, 25, 40] {
            assert_eq!(resolved(&vault, &source, time).await.unwrap(), history.at(time));
        }
    });
}

#[test]
fn what_was_gone_for_a_while_during_a_scan_is_there() {
    block(async {
        let history = of_key_4(&[(21, Op::Flip(4)), (23, Op::Delete(4)), (25, Op::Put(4, 9)), (26, Op::Flip(4))]);
        for times in [[22, 24, 25], [22, 24, 26], [22, 24, 30]] {
            let (vault, source) = scanned_again(&history, &times).await;
            for time in [times[2], 31, 40] {
                assert_eq!(resolved(&vault, &source, time).await.unwrap(), history.at(time), "{times:?}");
            }
        }
    });
}
