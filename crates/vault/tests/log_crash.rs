//! A run that appends to the change log, stopped at every storage operation, with and without power
//! loss: what was written and said to be written can be read, and the next run goes on.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::feed::*;
use common::*;
use testkit::faulty::{Faults, SimDisk, Unsynced};
use vault::{BackupOptions, PointName, Vault};

/// Changes of every kind, some at the same time, and what becomes of collections.
fn history() -> History {
    let mut wishes = vec![(false, 0, Op::Create), (false, 1, Op::Create)];
    for i in 0..40u8 {
        wishes.push((i % 3 == 0, i % 2, Op::Put(i % 8, i)));
        wishes.push((i % 4 == 0, i % 2, Op::Patch(i % 8, i)));
        if i % 5 == 0 {
            wishes.push((true, i % 2, Op::Delete(i % 8)));
        }
        match i {
            11 => wishes.push((false, 1, Op::Rename(i))),
            16 => wishes.push((false, 0, Op::Empty)),
            21 => wishes.push((false, 1, Op::Drop)),
            _ => {}
        }
    }
    History::possible(wishes)
}

/// What one run does: scan beside its chain or only follow, from time 20 on. Gives the time of the last
/// flush that was answered, and the point.
async fn run(vault: &Vault, history: &History, scans: bool, acknowledged: &mut u64) -> model::Result<PointName> {
    let options = BackupOptions { workers: 1, ..BackupOptions::default() };
    let description = model::Description { feed: model::FeedKind::EveryChange, ..description("s", &World::new()) };
    let run = vault.start_run(&description, options).await?;
    assert!(run.has_base());
    run.follow_from(&position(20), at(20)).await?;
    if scans {
        try_scan(&run, history, &[22, 24]).await?;
    }
    for (i, time) in (20..32u64).step_by(2).enumerate() {
        run.append(flush(history, time, time + 2, i % 2 == 0)).await?;
        *acknowledged = time + 2;
        if i == 3 {
            run.roll_up().await;
        }
    }
    Ok(run.commit(details(32, None)).await?.0)
}

/// Every time resolves to what was there as far as it was told, and never to something else.
async fn check(vault: &Vault, source: &str, history: &History, told: u64, until: u64) {
    for time in 20..=until {
        match resolved(vault, source, time).await {
            Ok(db) => assert_eq!(db, history.at(time), "at {time}"),
            Err(e) => assert!(time > told, "at {time} of {told}: {e:?}"),
        }
    }
    let points = vault.points().await.unwrap();
    assert!(points.broken.is_empty());
    for point in &points.points {
        let time = point.manifest.time.order;
        assert_eq!(resolved_point(vault, point).await.unwrap(), history.at(time), "the point at {time}");
    }
}

async fn stopped_everywhere(plain: bool, scans: bool, power_loss: Option<Unsynced>) {
    let history = history();
    let keys = Keys::new(7);
    let disk = SimDisk::new(keys.clock.clone()).with_unsynced(power_loss.unwrap_or_default());
    let vault = init(disk.storage(), &keys, plain).await.unwrap();
    let first = start(&vault, BackupOptions::default()).await;
    scan(&first, &history, &[20]).await;
    let (name, _) = first.commit(details(20, None)).await.unwrap();
    let whole = disk.fork().faulty(Faults::default());
    let vault = Vault::open(whole.clone(), keys.reader()).await.unwrap();
    run(&vault, &history, scans, &mut 0).await.unwrap();
    let operations = whole.operation_count();
    assert!(operations > 30, "{operations}");
    for stop in 0..operations {
        let disk = disk.fork();
        let dying = disk.faulty(Faults { seed: stop, stop_at: Some(stop), ..Faults::default() });
        let mut told = 20;
        let died = match Vault::open(dying, keys.reader()).await {
            Ok(vault) => run(&vault, &history, scans, &mut told).await,
            Err(e) => Err(e),
        };
        match power_loss {
            Some(_) => drop(disk.crash(stop)),
            None => disk.kill_all(),
        }
        keys.clock.advance(10);
        let vault = Vault::open(disk.storage(), keys.reader()).await.unwrap();
        check(&vault, &name.source, &history, told, 34).await;
        if let Ok(name) = died {
            let points = vault.points().await.unwrap();
            assert!(points.points.iter().any(|p| p.name == name), "a committed point is gone");
        }
        // The next run goes on from the newest point, and reads again what the dead one read.
        let next = start(&vault, BackupOptions::default()).await;
        let last = next.last().unwrap().time.order;
        assert!(next.has_base() && last <= told.max(32));
        next.follow_from(&position(last), at(last)).await.unwrap();
        for time in last..40 {
            next.append(flush(&history, time, time + 1, true)).await.unwrap();
        }
        next.commit(details(40, None)).await.unwrap();
        check(&vault, &name.source, &history, 40, 41).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_chain_in_an_encrypted_vault() {
    stopped_everywhere(false, false, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_scan_with_a_chain() {
    stopped_everywhere(true, true, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_and_power_loss() {
    stopped_everywhere(true, false, Some(Unsynced::Garbage)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_with_a_chain_and_power_loss() {
    stopped_everywhere(true, true, Some(Unsynced::Truncated)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_that_failed_can_be_given_again() {
    let history = history();
    for seed in 0..40u64 {
        let keys = Keys::new(seed);
        let disk = SimDisk::new(keys.clock.clone());
        let vault = init(disk.storage(), &keys, seed % 2 == 0).await.unwrap();
        let first = start(&vault, BackupOptions::default()).await;
        scan(&first, &history, &[20]).await;
        let (name, _) = first.commit(details(20, None)).await.unwrap();
        let faults = match seed % 4 {
            0 => Faults { error_rate: 0.1, ..Faults::default() },
            _ => Faults { timeouts_after_effect: 0.2, ..Faults::default() },
        };
        let storage = disk.faulty(Faults { seed, ..faults });
        let Ok(vault) = Vault::open(storage, keys.reader()).await else { continue };
        let described = model::Description { feed: model::FeedKind::EveryChange, ..description("s", &World::new()) };
        let Ok(run) = vault.start_run(&described, BackupOptions::default()).await else { continue };
        run.follow_from(&position(20), at(20)).await.unwrap();
        let (mut told, mut until) = (20, 21);
        while told < 40 {
            // Again, or with what came since.
            match run.append(flush(&history, told, until, seed % 3 == 0)).await {
                Ok(_) => {
                    told = until;
                    until += 1;
                }
                Err(_) => until = (until + seed % 2).min(40),
            }
            until = until.min(40).max(told);
            if seed % 5 == 0 && told % 7 == 0 {
                run.roll_up().await;
            }
        }
        let committed = run.commit(details(40, None)).await.is_ok();
        disk.kill_all();
        let vault = Vault::open(disk.storage(), keys.reader()).await.unwrap();
        check(&vault, &name.source, &history, 40, 41).await;
        let points = vault.points().await.unwrap().points.len();
        assert!(points == 2 || !committed);
    }
}
