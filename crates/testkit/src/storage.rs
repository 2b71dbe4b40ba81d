//! The conformance suite for storage: what every implementation must do alike.

use bytes::Bytes;
use futures::TryStreamExt;
use futures::future::join_all;
use model::ErrorKind;
use std::sync::Arc;
use vault::storage::{Created, Entry, Storage};

/// Puts an empty storage through everything a vault asks of it; panics where it fails.
pub async fn conformance(storage: Arc<dyn Storage>) {
    let storage = &*storage;
    assert_eq!(list(storage, "").await, [], "the suite needs an empty storage");
    assert!(!storage.location().is_empty());
    create_and_read(storage).await;
    ranges(storage).await;
    replace(storage).await;
    missing(storage).await;
    delete(storage).await;
    names(storage).await;
    listing(storage).await;
    bad_names(storage).await;
    times(storage).await;
    large(storage).await;
    one_name_many_writers(storage).await;
    readers_see_whole_objects(storage).await;
    if let Some(free) = storage.free_space().await.unwrap() {
        assert!(free > 0);
    }
    for entry in list(storage, "").await {
        storage.delete(&entry.name).await.unwrap();
    }
    storage.sync().await.unwrap();
    assert_eq!(list(storage, "").await, []);
}

/// All objects whose names begin so, by name.
pub async fn list(storage: &dyn Storage, prefix: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = storage.list(prefix).await.unwrap().try_collect().await.unwrap();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    entries
}

async fn names_of(storage: &dyn Storage, prefix: &str) -> Vec<String> {
    list(storage, prefix).await.into_iter().map(|e| e.name).collect()
}

async fn put(storage: &dyn Storage, name: &str, bytes: &[u8]) {
    let created = storage.create(name, Bytes::copy_from_slice(bytes)).await.unwrap();
    assert_eq!(created, Created::New, "{name}");
}

async fn create_and_read(storage: &dyn Storage) {
    put(storage, "first", b"one").await;
    let again = storage.create("first", Bytes::from_static(b"other")).await.unwrap();
    if again == Created::Existed {
        assert_eq!(storage.read("first").await.unwrap(), "one", "what existed is left as it is");
    }
    put(storage, "deep/er/still", b"two").await;
    assert_eq!(storage.read("deep/er/still").await.unwrap(), "two");
    storage.sync().await.unwrap();
    storage.sync().await.unwrap();
    put(storage, "empty", b"").await;
    assert_eq!(storage.read("empty").await.unwrap(), "");
    assert_eq!(storage.stat("empty").await.unwrap().unwrap().size, 0);
    let found = storage.stat("deep/er/still").await.unwrap().unwrap();
    assert_eq!((found.name.as_str(), found.size), ("deep/er/still", 3));
}

async fn ranges(storage: &dyn Storage) {
    put(storage, "range", b"0123456789").await;
    let cases: [(std::ops::Range<u64>, &str); 8] = [
        (0..10, "0123456789"),
        (0..1, "0"),
        (3..7, "3456"),
        (9..10, "9"),
        (5..5, ""),
        (8..100, "89"),
        (10..20, ""),
        (1 << 40..1 << 41, ""),
    ];
    for (range, expected) in cases {
        let read = storage.read_range("range", range.clone()).await;
        assert_eq!(read.unwrap(), expected, "{range:?}");
    }
    assert_eq!(storage.read_range("range", 2..u64::MAX).await.unwrap(), "23456789");
    assert_eq!(storage.read_range("empty", 0..10).await.unwrap(), "");
}

async fn replace(storage: &dyn Storage) {
    storage.replace("replaced/now", Bytes::from_static(b"1")).await.unwrap();
    storage.replace("replaced/now", Bytes::from_static(b"22")).await.unwrap();
    assert_eq!(storage.read("replaced/now").await.unwrap(), "22");
    assert_eq!(names_of(storage, "replaced").await, ["replaced/now"]);
}

async fn missing(storage: &dyn Storage) {
    for name in ["absent", "absent/deep", "deep", "deep/er", "first/below-a-file"] {
        assert_eq!(storage.stat(name).await.unwrap(), None, "{name}");
    }
    for name in ["absent", "absent/deep"] {
        assert_eq!(storage.read(name).await.unwrap_err().kind(), ErrorKind::Missing, "{name}");
        assert_eq!(storage.read_range(name, 0..1).await.unwrap_err().kind(), ErrorKind::Missing, "{name}");
    }
    let error = storage.read("absent").await.unwrap_err().to_string();
    assert!(error.contains("absent"), "an error says which object: {error}");
}

async fn delete(storage: &dyn Storage) {
    put(storage, "doomed/a", b"a").await;
    put(storage, "doomed/b", b"b").await;
    storage.delete("doomed/a").await.unwrap();
    storage.delete("doomed/a").await.unwrap();
    storage.delete("never/there").await.unwrap();
    assert_eq!(storage.stat("doomed/a").await.unwrap(), None);
    assert_eq!(names_of(storage, "doomed").await, ["doomed/b"]);
    put(storage, "doomed/a", b"again").await;
    assert_eq!(storage.read("doomed/a").await.unwrap(), "again");
    storage.sync().await.unwrap();
}

async fn names(storage: &dyn Storage) {
    let all: String = ('a'..='z').chain('A'..='Z').chain('0'..='9').chain("._-".chars()).collect();
    let long = format!("{}.json.zst.age", "0123456789abcdef".repeat(8) + "-" + &"f".repeat(64));
    for name in [all.as_str(), ".hidden", "..two", "-", "_", "a..", long.as_str()] {
        let name = format!("names/{name}");
        put(storage, &name, name.as_bytes()).await;
        assert_eq!(storage.read(&name).await.unwrap(), name);
        assert_eq!(names_of(storage, &name).await, [name.as_str()]);
    }
}

async fn listing(storage: &dyn Storage) {
    let all = ["l/aa/1-x", "l/aa/1-y", "l/aa/2", "l/aab/1", "l/b", "l/b-c/d/e/f"];
    for name in all {
        put(storage, name, name.as_bytes()).await;
    }
    let cases: [(&str, &[&str]); 11] = [
        ("l/", &all),
        ("l", &all),
        ("l/aa", &all[..4]),
        ("l/aa/", &all[..3]),
        ("l/aa/1-", &all[..2]),
        ("l/aa/1-x", &all[..1]),
        ("l/b", &all[4..]),
        ("l/b-c/d/", &all[5..]),
        ("l/aa/3", &[]),
        ("l/zz/", &[]),
        ("nothing/at/all", &[]),
    ];
    for (prefix, expected) in cases {
        assert_eq!(names_of(storage, prefix).await, expected, "{prefix}");
    }
    for entry in list(storage, "l/").await {
        assert_eq!(entry.size, entry.name.len() as u64);
        let found = storage.stat(&entry.name).await.unwrap().unwrap();
        assert_eq!(found.size, entry.size);
        assert!(found.modified.abs_diff(entry.modified) < 1000, "listing and stat agree: {found:?} {entry:?}");
    }
    // More than any server tells in one answer.
    let many = 1100;
    let put_one = |n: u32| async move { put(storage, &format!("many/{n:04}"), b"").await };
    for start in (0..many).step_by(50) {
        join_all((start..start + 50).map(put_one)).await;
    }
    let expected: Vec<_> = (0..many).map(|n| format!("many/{n:04}")).collect();
    assert_eq!(names_of(storage, "many/").await, expected);
    assert_eq!(names_of(storage, "many/00").await, expected[..100]);
    drop(storage.list("many/").await.unwrap());
}

async fn bad_names(storage: &dyn Storage) {
    for name in ["", "/", "../out", "a/../b", "/absolute", "a//b", "sp ace", "folder/", "nul\0"] {
        let refused = storage.create(name, Bytes::new()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Bug, "{name:?}");
        assert!(storage.replace(name, Bytes::new()).await.is_err(), "{name:?}");
        assert!(storage.read(name).await.is_err(), "{name:?}");
        assert!(storage.delete(name).await.is_err(), "{name:?}");
    }
    assert!(storage.list("../").await.is_err());
}

async fn times(storage: &dyn Storage) {
    put(storage, "times/1", b"").await;
    let first = storage.stat("times/1").await.unwrap().unwrap().modified;
    put(storage, "times/2", b"").await;
    let second = storage.stat("times/2").await.unwrap().unwrap().modified;
    storage.replace("times/1", Bytes::new()).await.unwrap();
    let replaced = storage.stat("times/1").await.unwrap().unwrap().modified;
    assert!(first <= second && second <= replaced, "{first} {second} {replaced}");
    let year_2020 = 1_577_836_800_000;
    assert!(first > year_2020 && replaced < year_2020 * 2, "milliseconds since 1970: {first}");
}

async fn large(storage: &dyn Storage) {
    let bytes: Bytes = (0..20u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    storage.create("large", bytes.clone()).await.unwrap();
    storage.sync().await.unwrap();
    assert!(storage.read("large").await.unwrap() == bytes);
    let (from, to) = (7_654_321, 7_754_321);
    assert!(storage.read_range("large", from..to).await.unwrap() == bytes.slice(from as usize..to as usize));
    storage.delete("large").await.unwrap();
}

/// Many create one object at once: one of them does, and nothing is mixed.
async fn one_name_many_writers(storage: &dyn Storage) {
    let content = |writer: u8| Bytes::from(vec![writer; 300_000]);
    let results = join_all((0..16).map(|writer| storage.create("race/one", content(writer)))).await;
    let new = results.into_iter().filter(|r| *r.as_ref().unwrap() == Created::New).count();
    assert!(new >= 1, "somebody wrote it");
    let bytes = storage.read("race/one").await.unwrap();
    assert_eq!(bytes.len(), 300_000);
    assert!(bytes.iter().all(|b| *b == bytes[0]), "the content is one writer's");
    assert_eq!(names_of(storage, "race").await, ["race/one"]);
}

/// Whoever reads while an object is replaced gets one content or the other.
async fn readers_see_whole_objects(storage: &dyn Storage) {
    storage.replace("swap", Bytes::from(vec![0; 100_000])).await.unwrap();
    let writer = async {
        for round in 1..20u8 {
            storage.replace("swap", Bytes::from(vec![round; 100_000 + usize::from(round)])).await.unwrap();
        }
    };
    let reader = async {
        for _ in 0..20 {
            let bytes = storage.read("swap").await.unwrap();
            assert_eq!(bytes.len(), 100_000 + usize::from(bytes[0]));
            assert!(bytes.iter().all(|b| *b == bytes[0]));
        }
    };
    futures::join!(writer, reader);
}
