//! A backup stopped at every storage operation, with and without power loss: committed points
//! stay whole, the vault verifies, and the next run goes on.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::*;
use testkit::faulty::{Faults, SimDisk, Unsynced};
use vault::{BackupOptions, PointName, Vault, VerifyOptions};

fn options() -> BackupOptions {
    BackupOptions { level: 1, workers: 1, ..BackupOptions::default() }
}

fn world(version: u8) -> World {
    let documents = (0..40u8).map(|i| {
        let body = if i % 5 == 0 { format!("{{\"v\":{version},\"i\":{i}}}") } else { format!("{{\"i\":{i}}}") };
        (vec![b'k', i], body.into_bytes())
    });
    let list = Model { ordered: true, documents: documents.clone().collect(), ..Model::default() };
    let mut files = Model { documents: documents.collect(), ..Model::default() };
    files.documents.truncate(usize::from(40 - version));
    files.attachments.insert("small".into(), vec![version; 3000]);
    files.attachments.insert("large".into(), vec![version; 1_300_000]);
    World::from([("list".into(), list), ("files".into(), files)])
}

/// All points restore what was backed up under their names; nothing is damaged.
async fn check(vault: &Vault, known: &[(PointName, World)], pending: &World) {
    let report = vault.verify(&VerifyOptions::default(), &|_| {}).await.unwrap();
    assert!(report.damages.is_empty(), "{:?}", report.damages);
    let points = vault.points().await.unwrap();
    assert!(points.broken.is_empty());
    for (name, _) in known {
        assert!(points.points.iter().any(|p| p.name == *name), "a committed point is gone");
    }
    for point in &points.points {
        let restored = restore(vault, point).await.unwrap();
        let expected = known.iter().find(|(name, _)| *name == point.name).map_or(pending, |(_, world)| world);
        assert!(same(&restored, expected), "a point restores something else");
    }
}

async fn stopped_everywhere(plain: bool, power_loss: Option<Unsynced>) {
    let keys = Keys::new(7);
    let disk = SimDisk::new(keys.clock.clone()).with_unsynced(power_loss.unwrap_or_default());
    let vault = init(disk.storage(), &keys, plain).await.unwrap();
    let (first, _) = backup(&vault, "s", &world(1), 1, options()).await.unwrap();
    let known = vec![(first, world(1))];
    let whole = disk.fork().faulty(Faults::default());
    let vault = Vault::open(whole.clone(), keys.reader()).await.unwrap();
    let (_, manifest) = backup(&vault, "s", &world(2), 2, options()).await.unwrap();
    let operations = whole.operation_count();
    assert!(operations > 20, "{operations}");
    for stop in 0..operations {
        let disk = disk.fork();
        let dying = disk.faulty(Faults { seed: stop, stop_at: Some(stop), ..Faults::default() });
        let died = match Vault::open(dying, keys.reader()).await {
            Ok(vault) => backup(&vault, "s", &world(2), 2, options()).await.map(|(name, _)| name),
            Err(e) => Err(e),
        };
        match power_loss {
            Some(_) => drop(disk.crash(stop)),
            None => disk.kill_all(),
        }
        keys.clock.advance(10);
        let mut known = known.clone();
        if let Ok(name) = died {
            known.push((name, world(2)));
        }
        let vault = Vault::open(disk.storage(), keys.reader()).await.unwrap();
        check(&vault, &known, &world(2)).await;
        let (name, again) = backup(&vault, "s", &world(2), 3, options()).await.unwrap();
        // What a killed process had stored is not sent again: late in the run that is most of it.
        if power_loss.is_none() && stop + 4 > operations {
            let (again, first) = (again.totals.stored, manifest.totals.stored);
            assert!(again < first / 2, "{again} of {first} at {stop} of {operations}");
        }
        known.push((name, world(2)));
        check(&vault, &known, &world(2)).await;
        // What the dead run left goes, once it counts as dead; nothing else does.
        keys.clock.advance(25 * 3600 * 1000);
        vault.prune().await.unwrap();
        vault.prune().await.unwrap();
        check(&vault, &known, &world(2)).await;
        let report = vault.verify(&VerifyOptions { quick: true, ..VerifyOptions::default() }, &|_| {}).await.unwrap();
        assert_eq!(report.leftovers, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_backup_of_an_encrypted_vault() {
    stopped_everywhere(false, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_backup_of_a_plain_vault() {
    stopped_everywhere(true, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn power_loss_in_an_encrypted_vault() {
    stopped_everywhere(false, Some(Unsynced::Garbage)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn power_loss_in_a_plain_vault() {
    stopped_everywhere(true, Some(Unsynced::Garbage)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_are_errors_and_never_wrong_points() {
    for seed in 0..60u64 {
        let keys = Keys::new(seed);
        let disk = SimDisk::new(keys.clock.clone());
        let vault = init(disk.storage(), &keys, seed % 2 == 0).await.unwrap();
        let (first, _) = backup(&vault, "s", &world(1), 1, options()).await.unwrap();
        let faults = match seed % 5 {
            0 => Faults { error_rate: 0.03, ..Faults::default() },
            1 => Faults { timeouts_after_effect: 0.1, ..Faults::default() },
            2 => Faults { short_reads: 0.05, ..Faults::default() },
            3 => Faults { full_after_bytes: Some(seed * 100), ..Faults::default() },
            _ => Faults { expired_credentials_at: Some(seed), ..Faults::default() },
        };
        let storage = disk.faulty(Faults { seed, ..faults });
        keys.clock.advance(1);
        let result = match Vault::open(storage, keys.reader()).await {
            Ok(vault) => backup(&vault, "s", &world(2), 2, options()).await,
            Err(e) => Err(e),
        };
        let mut known = vec![(first, world(1))];
        match result {
            Ok((name, _)) => known.push((name, world(2))),
            Err(e) => assert!(e.kind() != model::ErrorKind::Bug, "{e:?}"),
        }
        let vault = Vault::open(disk.storage(), keys.reader()).await.unwrap();
        check(&vault, &known, &world(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_stopped_at_every_operation_gives_nothing_wrong() {
    for plain in [false, true] {
        let keys = Keys::new(8);
        let disk = SimDisk::new(keys.clock.clone());
        let vault = init(disk.storage(), &keys, plain).await.unwrap();
        backup(&vault, "s", &world(1), 1, options()).await.unwrap();
        keys.clock.advance(1);
        let (name, _) = backup(&vault, "s", &world(2), 2, options()).await.unwrap();
        let before: Vec<_> = disk.names("").into_iter().map(|n| (disk.get(&n), n)).collect();
        for stop in 0.. {
            let dying = disk.faulty(Faults { seed: stop, stop_at: Some(stop), ..Faults::default() });
            let restored = async {
                let vault = Vault::open(dying.clone(), keys.reader()).await?;
                let points = vault.points().await?;
                let point = points.points.into_iter().find(|p| p.name == name);
                restore(&vault, &point.ok_or_else(|| model::Error::missing("no point"))?).await
            };
            match restored.await {
                Ok(restored) => assert!(same(&restored, &world(2)), "something wrong came out, stopped at {stop}"),
                Err(e) => assert!(e.kind() != model::ErrorKind::Bug, "{e:?}"),
            }
            if dying.operation_count() <= stop {
                assert!(stop > 8, "{stop}");
                break;
            }
        }
        // Reading changes nothing.
        let after: Vec<_> = disk.names("").into_iter().map(|n| (disk.get(&n), n)).collect();
        assert!(before == after);
    }
}
