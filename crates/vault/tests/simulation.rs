//! Two backups and two prunes interleaved, with crashes and lost time, over many seeds: nothing
//! that a committed point needs is ever lost. `REWOUND_SEED=n` replays one seed, `REWOUND_SEEDS=n`
//! runs that many.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

#[path = "common/seeds.rs"]
mod seeds;

use common::*;
use seeds::dice;
use std::sync::Mutex;
use testkit::faulty::{Faults, SimDisk};
use vault::{BackupOptions, PointName, Vault, VerifyOptions};

const HOUR: i64 = 3_600_000;

fn options(seed: u64) -> BackupOptions {
    BackupOptions { level: 1, workers: 1, full: seed % 3 == 0, ..BackupOptions::default() }
}

/// Worlds overlap, so that runs find each other's objects.
fn world(seed: u64) -> World {
    let documents = |n: u64| {
        (0..n)
            .map(|i| (vec![b'k', i as u8], format!("{{\"i\":{},\"s\":{}}}", i, (seed + i) % 3).into_bytes()))
            .collect()
    };
    let mut a = Model { documents: documents(4 + seed % 3), ..Model::default() };
    if seed % 4 > 0 {
        a.attachments.insert("x".into(), vec![(seed % 2) as u8; 200]);
    }
    if seed % 5 == 0 {
        a.attachments.insert("large".into(), vec![(seed % 2) as u8; 1_100_000]);
    }
    World::from([("a".into(), a)])
}

/// Gives the number of points that were never announced and cannot be restored.
async fn run(seed: u64) -> usize {
    let keys = Keys::new(seed);
    let plain = dice(seed, 0, 2) == 0;
    let disk = SimDisk::new(keys.clock.clone());
    let vault = init(disk.storage(), &keys, plain).await.unwrap();
    // Something to begin with, and leftovers for the prunes.
    let known: Mutex<Vec<(PointName, World)>> = Mutex::default();
    let remember = |name: PointName, world: World| known.lock().unwrap().push((name, world));
    for i in 0..2 {
        let (name, _) = backup(&vault, "a", &world(i), i, options(i)).await.unwrap();
        remember(name, world(i));
        keys.clock.advance(1000);
    }
    let dying = disk.faulty(Faults { seed, stop_at: Some(12 + dice(seed, 1, 14)), ..Faults::default() });
    if let Ok(vault) = Vault::open(dying, keys.reader()).await
        && let Ok((name, _)) = backup(&vault, "a", &world(2 + dice(seed, 2, 6)), 3, options(seed)).await
    {
        remember(name, world(2 + dice(seed, 2, 6)));
    }
    if dice(seed, 3, 2) == 0 {
        keys.clock.advance(25 * HOUR);
    }
    let pending: Mutex<Vec<World>> = Mutex::new(vec![world(2 + dice(seed, 2, 6))]);
    let writer = |number: u64, source: &'static str| {
        let (disk, keys, remember, pending) = (&disk, &keys, &remember, &pending);
        async move {
            for round in 0..2u64 {
                let id = number * 10 + round;
                let dies = dice(seed, 20 + id, 3) == 0;
                let stop_at = dies.then(|| dice(seed, 40 + id, 45));
                let storage = disk.faulty(Faults { seed: seed ^ (id << 8), stop_at, ..Faults::default() });
                let Ok(vault) = Vault::open(storage, keys.reader()).await else { continue };
                let next = world(dice(seed, 60 + id, 8));
                pending.lock().unwrap().push(next.clone());
                match backup(&vault, source, &next, 100 + id, options(dice(seed, 80 + id, 9))).await {
                    Ok((name, _)) => remember(name, next),
                    Err(e) => assert!(dies || e.kind() == model::ErrorKind::Retry, "seed {seed}: {e:?}"),
                }
                keys.clock.advance(1 + dice(seed, 100 + id, 4) as i64 * 8 * HOUR);
            }
        }
    };
    let pruner = |number: u64| {
        let (disk, keys) = (&disk, &keys);
        async move {
            for round in 0..4u64 {
                let id = number * 10 + round;
                let dies = dice(seed, 120 + id, 3) == 0;
                let stop_at = dies.then(|| dice(seed, 140 + id, 60));
                let storage = disk.faulty(Faults { seed: seed ^ (id << 16), stop_at, ..Faults::default() });
                let Ok(vault) = Vault::open(storage, keys.reader()).await else { continue };
                match vault.prune().await {
                    Ok(_) => {}
                    // A point that another run takes back while it is being read.
                    Err(e) => assert!(dies || e.kind() == model::ErrorKind::Missing, "seed {seed}: {e:?}"),
                }
                keys.clock.advance(1 + dice(seed, 160 + id, 3) as i64 * 13 * HOUR);
            }
        }
    };
    tokio::join!(writer(1, "a"), writer(2, "b"), pruner(1), pruner(2));

    let vault = Vault::open(disk.storage(), keys.reader()).await.unwrap();
    let known = known.into_inner().unwrap();
    let pending = pending.into_inner().unwrap();
    let points = vault.points().await.unwrap();
    assert!(points.broken.is_empty(), "seed {seed}: {:?}", points.broken);
    for (name, _) in &known {
        assert!(points.points.iter().any(|p| p.name == *name), "seed {seed}: a committed point is gone");
    }
    let mut unannounced = Vec::new();
    for point in &points.points {
        let announced = known.iter().any(|(name, _)| *name == point.name);
        let restored = match restore(&vault, point).await {
            Ok(restored) => restored,
            // The one hole that no protocol without locks can close: a run that is suspended for a
            // day between its last look and its commit, and then dies before it looks again. It
            // never told anybody that it had succeeded, and nothing builds on its point.
            Err(e) if !announced && e.kind() == model::ErrorKind::Missing => {
                unannounced.push(point.name.id());
                continue;
            }
            Err(e) => panic!("seed {seed}: {} {e:?}", point.name.id()),
        };
        match known.iter().find(|(name, _)| *name == point.name) {
            Some((_, world)) => assert!(same(&restored, world), "seed {seed}: something else was restored"),
            None => assert!(pending.iter().any(|w| same(&restored, w)), "seed {seed}: nobody made this"),
        }
    }
    let report = vault.verify(&VerifyOptions { quick: true, ..VerifyOptions::default() }, &|_| {}).await.unwrap();
    let others = |d: &vault::Damage| d.hits.iter().any(|h| h.points.iter().any(|p| !unannounced.contains(p)));
    assert!(!report.damages.iter().any(others), "seed {seed}: {:?}", report.damages);
    assert_eq!(report.damages.is_empty(), unannounced.is_empty(), "seed {seed}");
    // When everybody is gone, two prunes leave no leftovers.
    keys.clock.advance(50 * HOUR);
    vault.prune().await.unwrap();
    vault.prune().await.unwrap();
    let report = vault.verify(&VerifyOptions { quick: true, ..VerifyOptions::default() }, &|_| {}).await.unwrap();
    assert!(report.leftovers == 0 || !unannounced.is_empty(), "seed {seed}");
    unannounced.len()
}

#[test]
fn nothing_reachable_is_lost() {
    let (unannounced, seeds) = seeds::for_all("simulation", 1500, run);
    // Were it common, it would not be the hole it is taken for.
    assert!(unannounced <= 1 + seeds / 500, "{unannounced} unannounced points are broken");
}
