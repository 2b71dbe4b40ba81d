//! Damage of every kind is detected and its hits are named, and nothing wrong is ever restored.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::*;
use testkit::faulty::SimDisk;
use vault::{BackupOptions, Config, Damage, Point, Vault, VerifyOptions};

fn options() -> BackupOptions {
    BackupOptions { level: 1, workers: 1, ..BackupOptions::default() }
}

fn world(version: u8) -> World {
    let documents = |n: u8| {
        (0..n)
            .map(|i| (format!("doc{i}").into_bytes(), format!("{{\"i\":{},\"v\":{i}}}", i % version).into_bytes()))
            .collect()
    };
    let mut a = Model { documents: documents(5), ..Model::default() };
    a.attachments.insert("doc1/x".into(), vec![version; 100]);
    World::from([("a".into(), a), ("b".into(), Model { ordered: true, documents: documents(3), ..Model::default() })])
}

struct Small {
    keys: Keys,
    disk: SimDisk,
    points: Vec<(Point, World)>,
}

async fn small(plain: bool) -> Small {
    let keys = Keys::new(11);
    let disk = SimDisk::new(keys.clock.clone());
    let vault = init(disk.storage(), &keys, plain).await.unwrap();
    let mut points = Vec::new();
    for version in 1..=2 {
        let (name, _) = backup(&vault, "s", &world(version), u64::from(version), options()).await.unwrap();
        keys.clock.advance(1000);
        points.push((point(&vault, &name).await, world(version)));
    }
    Small { keys, disk, points }
}

impl Small {
    /// What verify finds; an error of opening counts as found.
    async fn damages(&self, quick: bool) -> Vec<Damage> {
        let vault = match Vault::open(self.disk.storage(), self.keys.reader()).await {
            Ok(vault) => vault,
            Err(e) => {
                let (object, problem) = ("vault.json".into(), e.to_string());
                return vec![Damage { object, problem, hits: vec![], advice: None }];
            }
        };
        vault.verify(&VerifyOptions { quick, ..VerifyOptions::default() }, &|_| {}).await.unwrap().damages
    }

    /// Every point restores exactly or not at all; says how many did. Points are read through the
    /// damaged vault, never through what this test remembers.
    async fn restored(&self) -> usize {
        let Ok(vault) = Vault::open(self.disk.storage(), self.keys.reader()).await else { return 0 };
        let Ok(points) = vault.points().await else { return 0 };
        let mut good = 0;
        for point in points.points {
            let Some((_, expected)) = self.points.iter().find(|(p, _)| p.name == point.name) else {
                panic!("a point that nobody made: {}", point.name)
            };
            if let Ok(world) = restore(&vault, &point).await {
                assert!(same(&world, expected), "something wrong was restored");
                good += 1;
            }
        }
        // What is found of one document is a version that there was.
        if let Ok(found) = vault.find("a", b"doc2", None).await {
            for version in found.iter().filter(|v| !v.deleted) {
                assert!([&b"{\"i\":0,\"v\":2}"[..]].contains(&&version.body[..]), "{:?}", version.body);
            }
        }
        good
    }
}

async fn every_byte(plain: bool) {
    let small = small(plain).await;
    assert_eq!(small.restored().await, 2);
    assert!(small.damages(false).await.is_empty());
    let mut flips = 0u64;
    for name in small.disk.names("") {
        let length = small.disk.get(&name).unwrap().len() as u64;
        for byte in 0..length {
            let bit = byte * 8 + (byte * 5 + flips) % 8;
            small.disk.flip(&name, bit);
            let damages = small.damages(true).await;
            assert!(!damages.is_empty(), "bit {bit} of {name} was not noticed");
            assert!(damages.iter().any(|d| d.object == name), "bit {bit} of {name}: {damages:?}");
            // Reading is dearer than checking: every 11th flip is tried, which hits every field.
            if flips % 11 == 0 {
                small.restored().await;
            }
            small.disk.flip(&name, bit);
            flips += 1;
        }
    }
    assert!(flips > 5000, "{flips}");
    assert!(small.damages(true).await.is_empty());
}

#[tokio::test]
async fn every_flipped_byte_of_an_encrypted_vault_is_found() {
    every_byte(false).await;
}

#[tokio::test]
async fn every_flipped_byte_of_a_plain_vault_is_found() {
    every_byte(true).await;
}

#[tokio::test]
async fn truncated_and_removed_objects_are_found_and_their_hits_named() {
    for plain in [false, true] {
        let small = small(plain).await;
        for name in small.disk.names("") {
            let bytes = small.disk.get(&name).unwrap();
            for length in [0, 1, bytes.len() / 2, bytes.len() - 1] {
                small.disk.truncate(&name, length);
                assert!(small.damages(true).await.iter().any(|d| d.object == name), "{name} cut to {length}");
                small.restored().await;
                small.disk.put(&name, bytes.clone());
            }
            small.disk.remove(&name);
            let damages = small.damages(true).await;
            let newest = name == small.points[1].0.name.to_string();
            assert_eq!(damages.is_empty(), newest, "{name} removed: {damages:?}");
            if name.starts_with("segments/") {
                let hit = &damages.iter().find(|d| d.object == name).unwrap().hits;
                assert!(hit.iter().any(|h| h.collection.is_some() && !h.points.is_empty()), "{hit:?}");
            }
            small.restored().await;
            small.disk.put(&name, bytes);
        }
    }
}

#[tokio::test]
async fn documents_that_are_hit_are_named() {
    let small = small(false).await;
    let segments = small.disk.names("segments/");
    let mut named = Vec::new();
    for name in segments {
        let length = small.disk.get(&name).unwrap().len() as u64;
        small.disk.flip(&name, length * 4);
        let damages = small.damages(false).await;
        let damage = damages.iter().find(|d| d.object == name).unwrap();
        for hit in &damage.hits {
            assert_eq!(hit.source, "s");
            named.push((hit.collection.clone().unwrap(), hit.documents.clone(), hit.points.len()));
        }
        small.disk.flip(&name, length * 4);
    }
    let all: Vec<String> = (0..5).map(|i| format!("doc{i}")).collect();
    // The first layer holds everything and belongs to both points.
    assert!(named.contains(&("a".into(), all.clone(), 2)), "{named:?}");
    assert!(named.contains(&("b".into(), all[..3].to_vec(), 2)), "{named:?}");
    // The second holds what has changed, and belongs to the second point only.
    assert!(named.iter().any(|(c, d, points)| c == "a" && d.contains(&"doc1".to_owned()) && *points == 1), "{named:?}");
}

#[tokio::test]
async fn swapped_objects_are_found() {
    let small = small(true).await;
    let names = small.disk.names("");
    for a in &names {
        for b in names.iter().filter(|b| *b > a) {
            if small.disk.get(a) == small.disk.get(b) {
                continue;
            }
            small.disk.swap(a, b);
            let damages = small.damages(true).await;
            assert!(damages.iter().any(|d| d.object == *a || d.object == *b), "{a} and {b}");
            small.restored().await;
            small.disk.swap(a, b);
        }
    }
}

#[tokio::test]
async fn what_others_write_is_found() {
    let small = small(false).await;
    // Another vault for the same recipient, with a point of the same source, by another writer.
    let other = SimDisk::new(small.keys.clock.clone());
    let vault = init(other.storage(), &small.keys, false).await.unwrap();
    backup(&vault, "s", &world(2), 9, options()).await.unwrap();
    let tag = &small.points[0].0.name.source;
    for name in other.names("").into_iter().filter(|n| n != "vault.json") {
        let own = name.split('/').nth(1).unwrap().to_owned();
        let forged = if name.starts_with("history/") { name.replace(&own, tag) } else { name.clone() };
        small.disk.put(&forged, other.get(&name).unwrap());
    }
    let damages = small.damages(true).await;
    assert!(damages.iter().any(|d| d.problem.contains("not signed by the vault's writer")), "{damages:?}");
    assert_eq!(small.restored().await, 2);
    // A true point under a later time is not a new point.
    let twin = &small.points[0].0.name;
    let name = vault::PointName { committed: twin.committed + 1_000_000, ..twin.clone() };
    small.disk.put(&name.to_string(), small.disk.get(&twin.to_string()).unwrap());
    let damages = small.damages(true).await;
    assert!(damages.iter().any(|d| d.object == name.to_string()), "{damages:?}");
    small.disk.put("notes.txt", "what is this");
    assert!(small.damages(true).await.iter().any(|d| d.object == "notes.txt"));
}

#[tokio::test]
async fn another_vault_in_the_place_of_a_known_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut small = small(false).await;
    small.keys.config = Some(Config::at(folder.path()));
    Vault::open(small.disk.storage(), small.keys.reader()).await.unwrap();
    // The same id with another writer: somebody has forged the vault.
    let text = String::from_utf8(small.disk.get("vault.json").unwrap().to_vec()).unwrap();
    let other = SimDisk::default();
    init(other.storage(), &Keys::new(99), false).await.unwrap();
    let theirs = String::from_utf8(other.get("vault.json").unwrap().to_vec()).unwrap();
    let id = |t: &str| t.split("\"id\":\"").nth(1).unwrap()[..32].to_owned();
    small.disk.put("vault.json", theirs.replace(&id(&theirs), &id(&text)));
    assert!(Vault::open(small.disk.storage(), small.keys.reader()).await.is_err());
}

#[tokio::test]
async fn the_host_that_wrote_the_newest_point_notices_its_loss() {
    let folder = tempfile::tempdir().unwrap();
    let mut keys = Keys::new(12);
    keys.config = Some(Config::at(folder.path()));
    let disk = SimDisk::new(keys.clock.clone());
    let vault = init(disk.storage(), &keys, false).await.unwrap();
    backup(&vault, "s", &world(1), 1, options()).await.unwrap();
    keys.clock.advance(5);
    let (name, _) = backup(&vault, "s", &world(2), 2, options()).await.unwrap();
    disk.remove(&name.to_string());
    let report = vault.verify(&VerifyOptions { quick: true, ..VerifyOptions::default() }, &|_| {}).await.unwrap();
    assert!(report.damages.iter().any(|d| d.object == name.to_string()), "{report:?}");
}

#[tokio::test]
async fn a_newer_vault_is_refused_in_plain_words() {
    let small = small(false).await;
    for (old, new, says) in [
        ("\"format\":1", "\"format\":2", "format 2"),
        ("\"features\":[]", "\"features\":[\"time-travel\"]", "time-travel"),
    ] {
        let text = String::from_utf8(small.disk.get("vault.json").unwrap().to_vec()).unwrap();
        small.disk.put("vault.json", text.replace(old, new));
        let error = Vault::open(small.disk.storage(), small.keys.reader()).await.unwrap_err();
        assert_eq!(error.kind(), model::ErrorKind::Unsupported);
        assert!(error.to_string().contains(says) && error.hint_text().unwrap().contains("newer"), "{error:?}");
        small.disk.put("vault.json", text);
    }
}
