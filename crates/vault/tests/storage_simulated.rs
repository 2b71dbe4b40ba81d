//! The simulated disk that crash tests stand on: what it keeps, loses and counts.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use model::{Clock, ErrorKind, FixedClock};
use std::sync::Arc;
use testkit::faulty::{CountingStorage, Faults, SimDisk, Unsynced};
use testkit::storage::{conformance, list};
use vault::storage::{Created, Storage};

const CONTENT: &[u8] = &[7; 10_000];

#[tokio::test]
async fn it_conforms() {
    conformance(SimDisk::default().storage()).await;
    conformance(CountingStorage::new(SimDisk::default().storage())).await;
}

async fn write(storage: &dyn Storage, names: impl IntoIterator<Item = String>) {
    for name in names {
        storage.create(&name, Bytes::from_static(CONTENT)).await.unwrap();
    }
}

fn named(kind: &str) -> impl Iterator<Item = String> + '_ {
    (0..50).map(move |n| format!("{kind}/{n}"))
}

#[tokio::test]
async fn a_crash_keeps_what_was_synced_and_no_more() {
    for (unsynced, tears) in [(Unsynced::WholeOrGone, false), (Unsynced::Truncated, true), (Unsynced::Garbage, true)] {
        let disk = SimDisk::default().with_unsynced(unsynced);
        let (one, two) = (disk.storage(), disk.storage());
        write(&*one, named("synced")).await;
        one.replace("state", Bytes::from_static(b"old")).await.unwrap();
        one.sync().await.unwrap();
        write(&*one, named("late")).await;
        write(&*two, named("other")).await;
        one.replace("state", Bytes::from_static(b"new")).await.unwrap();
        one.delete("synced/0").await.unwrap();

        let (fork, again) = (disk.fork(), disk.fork());
        let crashed = disk.crash(1);
        assert_eq!(crashed.kept + crashed.lost + crashed.torn, 102, "{crashed:?}");
        assert!(crashed.kept > 5 && crashed.lost > 5 && (crashed.torn > 5) == tears, "{crashed:?}");
        for name in named("synced").skip(1) {
            assert_eq!(disk.get(&name).unwrap(), CONTENT);
        }
        let state = disk.get("state").unwrap();
        assert!(state == "old" || state == "new");
        let torn = disk.names("").iter().filter(|n| *n != "state" && disk.get(n).unwrap() != CONTENT).count();
        assert_eq!(torn as u64, crashed.torn);
        let kept_length = disk.names("late").iter().filter(|n| disk.get(n).unwrap().len() == CONTENT.len()).count();
        assert!(kept_length > 0);

        assert_eq!(again.crash(1), crashed, "a seed repeats");
        assert_eq!(again.names(""), disk.names(""));
        fork.crash(2);
        assert_ne!(fork.names(""), disk.names(""), "another seed does something else");

        let error = one.read("synced/1").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Interrupted, "handles from before are dead");
        let names = disk.names("");
        assert_eq!(list(&*disk.storage(), "").await.len(), names.len());
        disk.crash(3);
        assert_eq!(disk.names(""), names, "what a crash left is durable");
    }
}

#[tokio::test]
async fn a_sync_counts_what_was_found() {
    let disk = SimDisk::default();
    write(&*disk.storage(), ["a".to_owned()]).await;
    disk.kill_all();
    let next = disk.storage();
    assert_eq!(next.create("a", Bytes::from_static(CONTENT)).await.unwrap(), Created::Existed);
    next.sync().await.unwrap();
    for seed in 0..20 {
        let fork = disk.fork();
        fork.crash(seed);
        assert_eq!(fork.get("a").unwrap(), CONTENT);
    }
}

#[tokio::test]
async fn a_process_dies_once_and_for_all() {
    let mut applied = 0;
    for seed in 0..20 {
        let disk = SimDisk::default();
        let storage = disk.faulty(Faults { seed, stop_at: Some(2), ..Faults::default() });
        write(&*storage, ["a".to_owned(), "b".to_owned()]).await;
        for name in ["c", "d"] {
            let error = storage.create(name, Bytes::new()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Interrupted);
        }
        assert!(storage.sync().await.is_err());
        assert!(storage.read("a").await.is_err());
        applied += disk.names("c").len();
        assert_eq!(disk.names("d").len(), 0);
        assert_eq!(disk.storage().read("a").await.unwrap(), CONTENT, "others go on");
    }
    assert!((1..20).contains(&applied), "the last write takes place sometimes: {applied}");
}

#[tokio::test]
async fn faults_come_as_planned() {
    let disk = SimDisk::default();
    let storage = disk.faulty(Faults { seed: 1, error_rate: 0.3, ..Faults::default() });
    let mut failed = 0;
    for n in 0..100 {
        failed += u64::from(storage.create(&format!("e/{n}"), Bytes::new()).await.is_err());
    }
    assert!((10..50).contains(&failed), "{failed}");
    assert_eq!(disk.names("e").len() as u64, 100 - failed, "a failed write has no effect");

    let storage = disk.faulty(Faults { timeouts_after_effect: 1.0, ..Faults::default() });
    assert_eq!(storage.create("late", Bytes::new()).await.unwrap_err().kind(), ErrorKind::Retry);
    assert!(disk.get("late").is_some());

    let storage = disk.faulty(Faults { full_after_bytes: Some(15_000), ..Faults::default() });
    write(&*storage, ["full/1".to_owned()]).await;
    assert_eq!(storage.free_space().await.unwrap(), Some(5_000));
    let error = storage.create("full/2", Bytes::from_static(CONTENT)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full);
    assert!(disk.get("full/2").is_none());

    let storage = disk.faulty(Faults { short_reads: 1.0, ..Faults::default() });
    assert!(storage.read("full/1").await.unwrap().len() < CONTENT.len());
    assert!(storage.read_range("full/1", 0..100).await.unwrap().len() < 100);

    let storage = disk.faulty(Faults { expired_credentials_at: Some(1), ..Faults::default() });
    storage.read("full/1").await.unwrap();
    assert_eq!(storage.read("full/1").await.unwrap_err().kind(), ErrorKind::Credentials);
}

#[tokio::test]
async fn operations_are_counted() {
    let disk = SimDisk::default();
    let faulty = disk.faulty(Faults::default());
    let counting = CountingStorage::new(faulty.clone());
    write(&*counting, ["a".to_owned(), "a".to_owned()]).await;
    counting.replace("b", Bytes::from_static(b"12")).await.unwrap();
    counting.read("a").await.unwrap();
    counting.read_range("b", 1..9).await.unwrap();
    counting.stat("c").await.unwrap();
    list(&*counting, "").await;
    counting.delete("c").await.unwrap();
    counting.sync().await.unwrap();
    let counts = counting.operations();
    assert_eq!(counts, faulty.operations());
    assert_eq!((counts.creates, counts.replaces, counts.bytes_written), (2, 1, 20_002));
    assert_eq!((counts.reads, counts.bytes_read), (2, 10_001));
    assert_eq!((counts.stats, counts.lists, counts.deletes, counts.syncs), (1, 1, 1, 1));
    assert_eq!((counts.requests(), faulty.operation_count()), (8, 9));
    counting.reset();
    assert_eq!(counting.operations().requests(), 0);
}

#[tokio::test]
async fn damage_can_be_done() {
    let clock = Arc::new(FixedClock::at(5_000));
    let disk = SimDisk::new(clock.clone());
    disk.put("a", &b"abc"[..]);
    clock.advance(10);
    disk.put("b", &b"xyz"[..]);
    disk.flip("a", 9);
    assert_eq!(disk.get("a").unwrap(), "a`c");
    disk.swap("a", "b");
    assert_eq!(disk.get("b").unwrap(), "a`c");
    disk.truncate("b", 1);
    assert_eq!((disk.get("b").unwrap(), disk.size()), (Bytes::from_static(b"a"), 4));
    assert_eq!(disk.storage().stat("a").await.unwrap().unwrap().modified, clock.now_millis());
    assert_eq!(disk.remove("a").unwrap(), "xyz");
    disk.crash(0);
    assert_eq!(disk.names(""), ["b"]);
}
