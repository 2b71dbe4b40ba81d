//! Storage in a folder and in memory.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use bytes::Bytes;
use futures::TryStreamExt;
use model::{ErrorKind, FixedClock};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};
use testkit::storage::{conformance, list};
use vault::storage::{Created, LocalStorage, MemoryStorage, Storage};

/// A path that the process which is to be killed writes to.
const WRITE_TO: &str = "REWOUND_TEST_WRITE_TO";

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_conforms() {
    let folder = tempfile::tempdir().unwrap();
    conformance(Arc::new(LocalStorage::open(folder.path().join("not/there/yet")).unwrap())).await;
}

#[tokio::test]
async fn memory_conforms() {
    conformance(Arc::new(MemoryStorage::new(Arc::new(FixedClock::at(1_760_000_000_000))))).await;
}

#[tokio::test]
async fn opening_and_reading_make_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("vault");
    let storage = LocalStorage::open(&root).unwrap();
    assert_eq!(list(&storage, "").await, []);
    assert_eq!(storage.stat("vault.json").await.unwrap(), None);
    assert!(storage.free_space().await.unwrap().unwrap() > 0);
    storage.sync().await.unwrap();
    assert!(!root.exists());
    assert_eq!(storage.location(), root.display().to_string());
}

#[tokio::test]
async fn a_file_is_no_vault() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = LocalStorage::open(file.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Input);
    assert!(error.hint_text().is_some());
    // A file in the place of a folder is found when it matters.
    let below = LocalStorage::open(file.path().join("vault")).unwrap();
    assert!(below.create("a", Bytes::new()).await.is_err());
}

#[tokio::test]
async fn only_the_owner_may_read() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("vault");
    let storage = LocalStorage::open(&root).unwrap();
    storage.create("a/b", Bytes::new()).await.unwrap();
    storage.replace("a/c", Bytes::new()).await.unwrap();
    let mode = |path: &str| fs::metadata(root.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!([mode(""), mode("a"), mode("tmp")], [0o700; 3]);
    assert_eq!([mode("a/b"), mode("a/c")], [0o600; 2]);
}

#[tokio::test]
async fn what_is_no_object_is_not_listed() {
    let folder = tempfile::tempdir().unwrap();
    let storage = LocalStorage::open(folder.path()).unwrap();
    storage.create("a/b", Bytes::new()).await.unwrap();
    fs::create_dir(folder.path().join("lost+found")).unwrap();
    fs::create_dir(folder.path().join("empty")).unwrap();
    fs::write(folder.path().join("lost+found/x"), "").unwrap();
    fs::write(folder.path().join("a/with space"), "").unwrap();
    fs::write(folder.path().join("tmp/123.new"), "").unwrap();
    std::os::unix::fs::symlink(folder.path(), folder.path().join("loop")).unwrap();
    let names: Vec<_> = list(&storage, "").await.into_iter().map(|e| e.name).collect();
    assert_eq!(names, ["a/b"]);
    for prefix in ["tmp", "tmp/", "tmp/1"] {
        assert_eq!(list(&storage, prefix).await, []);
    }
    assert_eq!(storage.stat("empty").await.unwrap(), None);
}

#[tokio::test]
async fn leftovers_are_removed_after_a_day() {
    let folder = tempfile::tempdir().unwrap();
    let tmp = folder.path().join("tmp");
    fs::create_dir(&tmp).unwrap();
    let make = |name: &str, hours: u64| {
        let file = fs::File::create(tmp.join(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(hours * 3600)).unwrap();
    };
    make("young.new", 23);
    make("old.new", 25);
    make("foreign", 25);
    LocalStorage::open(folder.path()).unwrap();
    let left: Vec<_> = fs::read_dir(&tmp).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert!(!tmp.join("old.new").exists());
    assert_eq!(left.len(), 2, "{left:?}");
}

#[tokio::test]
async fn objects_of_another_handle_are_seen_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (LocalStorage::open(folder.path()).unwrap(), LocalStorage::open(folder.path()).unwrap());
    assert_eq!(one.create("x/a", Bytes::from_static(b"one")).await.unwrap(), Created::New);
    assert_eq!(two.create("x/a", Bytes::from_static(b"two")).await.unwrap(), Created::Existed);
    assert_eq!(two.read("x/a").await.unwrap(), "one");
    assert_eq!(fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0, "nothing is left over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_listing_shows_no_temporary_file() {
    let folder = tempfile::tempdir().unwrap();
    let storage = Arc::new(LocalStorage::open(folder.path()).unwrap());
    let done = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let storage = storage.clone();
            tokio::spawn(async move {
                for n in 0..50 {
                    storage.create(&format!("o/{writer}-{n}"), Bytes::from(vec![7; 50_000])).await.unwrap();
                }
            })
        })
        .collect();
    let lister = tokio::spawn({
        let (storage, done) = (storage.clone(), done.clone());
        async move {
            let mut seen = 0;
            while !done.load(Ordering::Relaxed) {
                for entry in list(&*storage, "").await {
                    assert!(entry.name.starts_with("o/"), "{entry:?}");
                    assert_eq!(entry.size, 50_000, "{entry:?}");
                    seen += 1;
                }
            }
            seen
        }
    });
    for writer in writers {
        writer.await.unwrap();
    }
    done.store(true, Ordering::Relaxed);
    assert!(lister.await.unwrap() > 0);
    assert_eq!(list(&*storage, "o/").await.len(), 200);
}

/// The test runs itself as a child that writes until it is killed.
#[test]
fn a_killed_writer_leaves_whole_objects_only() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    if let Some(path) = std::env::var_os(WRITE_TO) {
        runtime.block_on(write_for_ever(Path::new(&path)));
    }
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("vault");
    let mut interrupted = 0;
    for round in 0..8u64 {
        let before = leftovers(&root);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["a_killed_writer_leaves_whole_objects_only", "--exact", "--nocapture"])
            .env(WRITE_TO, &root)
            .spawn()
            .unwrap();
        let started = Instant::now();
        let objects = || fs::read_dir(root.join("o")).map_or(0, Iterator::count);
        let wanted = objects() + 5;
        while objects() < wanted && started.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(7 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        interrupted += usize::from(leftovers(&root) > before);
        runtime.block_on(check_all(&root, wanted));
    }
    assert!(interrupted > 0, "no kill came in the middle of a write: the test proves nothing");
}

fn leftovers(root: &Path) -> usize {
    fs::read_dir(root.join("tmp")).map_or(0, Iterator::count)
}

async fn write_for_ever(root: &Path) {
    let storage = LocalStorage::open(root).unwrap();
    let writers = (0..4u32).map(|writer| {
        let storage = storage.clone();
        async move {
            for n in 0u32.. {
                let seed = [std::process::id(), writer, n].map(u32::to_le_bytes).concat();
                let mut bytes = vec![0; 200_000 + (n as usize * 77_777) % 2_000_000];
                blake3::Hasher::new().update(&seed).finalize_xof().fill(&mut bytes);
                let name = format!("o/{}", blake3::hash(&bytes).to_hex());
                storage.create(&name, bytes.into()).await.unwrap();
            }
        }
    });
    futures::future::join_all(writers).await;
}

async fn check_all(root: &Path, at_least: usize) {
    let storage = LocalStorage::open(root).unwrap();
    let entries = list(&storage, "").await;
    assert!(entries.len() >= at_least, "{} objects", entries.len());
    for entry in entries {
        let bytes = storage.read(&entry.name).await.unwrap();
        assert_eq!(entry.name, format!("o/{}", blake3::hash(&bytes).to_hex()), "{} bytes", bytes.len());
    }
}

#[tokio::test]
#[ignore = "slow: makes 100,000 files"]
async fn listing_100_000_objects_is_fast() {
    let folder = tempfile::tempdir().unwrap();
    for two in 0..256 {
        let segments = folder.path().join(format!("segments/{two:02x}"));
        fs::create_dir_all(&segments).unwrap();
        for n in 0..391 {
            fs::write(segments.join(format!("{two:02x}{n:062x}-{n:064x}.bson.zst.age")), "x").unwrap();
        }
    }
    let storage = LocalStorage::open(folder.path()).unwrap();
    let one_content = format!("segments/7f/7f{:062x}-", 5);
    let time = |prefix: &str| {
        let (storage, prefix) = (storage.clone(), prefix.to_owned());
        async move {
            let start = Instant::now();
            let entries: Vec<_> = storage.list(&prefix).await.unwrap().try_collect().await.unwrap();
            (entries.len(), start.elapsed())
        }
    };
    let (count, all) = time("segments/").await;
    assert_eq!(count, 256 * 391);
    let (count, one) = time(&one_content).await;
    assert_eq!(count, 1);
    println!("all {all:?}, one content {one:?}");
    assert!(all < Duration::from_secs(2), "{all:?}");
    assert!(one < Duration::from_millis(100), "{one:?}");
}

#[tokio::test]
async fn a_disk_that_is_away_is_not_an_empty_vault() {
    let folder = tempfile::tempdir().unwrap();
    let (root, away) = (folder.path().join("vault"), folder.path().join("away"));
    let storage = LocalStorage::open(&root).unwrap();
    storage.create("vault.json", Bytes::from_static(b"{}")).await.unwrap();
    storage.create("a/b", Bytes::from_static(b"1")).await.unwrap();
    fs::rename(&root, &away).unwrap();
    // What is left of a disk that was unmounted is an empty folder.
    for is_left in [false, true] {
        if is_left {
            fs::create_dir(&root).unwrap();
        }
        let kinds = [
            storage.create("a/c", Bytes::new()).await.unwrap_err().kind(),
            storage.replace("active/run", Bytes::new()).await.unwrap_err().kind(),
            storage.read("a/b").await.unwrap_err().kind(),
            storage.stat("a/b").await.unwrap_err().kind(),
            storage.list("").await.unwrap().try_collect::<Vec<_>>().await.unwrap_err().kind(),
        ];
        assert_eq!(kinds, [ErrorKind::Retry; 5], "{is_left}");
    }
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0, "nothing is written under the mount point");
    fs::remove_dir(&root).unwrap();
    fs::rename(&away, &root).unwrap();
    storage.create("a/c", Bytes::new()).await.unwrap();
    assert_eq!(list(&storage, "").await.len(), 3);
}
