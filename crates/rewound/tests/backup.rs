//! Backups with all that a folder does not show: gaps, several parts, orders that change, vaults
//! that fail in the middle.
#![allow(clippy::unwrap_used)]

mod support;

use model::{EngineTime, ErrorKind, Gap, RestoreOptions, Selection};
use rewound::Stop;
use rewound::backup::{BackupReport, Destination, backup};
use rewound::choose::PointChoice;
use rewound::restore::{Consent, Restore};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use support::{Memory, Notes, Shared, job, target, vault, vault_of};
use vault::{BackupOptions, Vault};

async fn back_up(memory: &Arc<Memory>, vaults: &[&Vault]) -> model::Result<BackupReport> {
    let job = match &memory.stop_after {
        Some((_, stop)) => rewound::Job::new(Arc::new(Notes::default()), stop.clone()),
        None => job(&Arc::default()),
    };
    let destinations =
        vaults.iter().enumerate().map(|(i, v)| Destination { url: format!("v{i}"), vault: Ok((*v).clone()) });
    let source = Shared(memory.clone());
    backup(&job, &source, destinations.collect(), &Selection::default(), &BackupOptions::default()).await
}

async fn restored(vault: &Vault, ordered: &[String]) -> Arc<Memory> {
    let memory = Arc::new(Memory { part: 1000, ordered: ordered.to_vec(), ..Memory::default() });
    let job = job(&Arc::default());
    let restore =
        Restore::prepare(&job, vault, target(&memory), &PointChoice::default(), RestoreOptions::default(), None)
            .await
            .unwrap();
    let report = restore.run(&job, Consent { allow_loss: false, verify: true }).await.unwrap();
    assert!(report.written.proof.unwrap().holds());
    memory
}

#[tokio::test]
async fn collections_of_several_parts_are_whole() {
    let memory = Arc::new(Memory { part: 3, ..Memory::with(&[("a", 10), ("b", 4), ("empty", 0)]) });
    let vault = vault().await;
    let report = back_up(&memory, &[&vault]).await.unwrap();
    assert_eq!(report.documents, 14);
    assert_eq!(restored(&vault, &[]).await.all(), memory.all());
    // What is gone is seen as gone, though no part alone could tell.
    memory.collections.lock().unwrap().get_mut("a").unwrap().retain(|(k, _)| k != "k8" && k != "k0");
    let report = back_up(&memory, &[&vault]).await.unwrap();
    let point = report.vaults[0].point.as_ref().unwrap();
    assert_eq!((point.changed, point.deleted), (0, 2));
    assert_eq!(restored(&vault, &[]).await.all(), memory.all());
}

#[tokio::test]
async fn a_gap_is_recorded_and_reported() {
    let gap = Gap { from: EngineTime::wall(5), to: None, why: "the log was too short".into() };
    let memory = Arc::new(Memory { gap: Some(gap.clone()), ..Memory::with(&[("a", 1)]) });
    let vault = vault().await;
    let report = back_up(&memory, &[&vault]).await.unwrap();
    assert_eq!(report.gap.as_ref(), Some(&gap));
    assert_eq!(vault.points().await.unwrap().points[0].manifest.gap, Some(gap));
}

#[tokio::test]
async fn an_order_that_changes_is_read_again_only_where_it_was_known() {
    let ordered = vec!["a".to_owned()];
    let mut memory = Memory { ordered: ordered.clone(), part: 4, ..Memory::with(&[("a", 10), ("b", 5)]) };
    memory.attachments.lock().unwrap().push(("a".into(), "k1/x".into(), vec![5; 2500]));
    let (old, new) = (vault().await, vault().await);
    let memory_then = Arc::new(std::mem::take(&mut memory));
    back_up(&memory_then, &[&old]).await.unwrap();
    memory_then.collections.lock().unwrap().get_mut("a").unwrap().swap(2, 7);
    // The first vault asks to read again; the second one has nothing to compare with.
    let report = back_up(&memory_then, &[&old, &new]).await.unwrap();
    assert!(memory_then.reads.load(Ordering::SeqCst) > 2 * 16, "something was read again");
    assert_eq!(report.documents, 15, "what was read twice is counted once");
    for (i, vault) in [&old, &new].into_iter().enumerate() {
        assert_eq!(report.vaults[i].point.as_ref().unwrap().documents, 15);
        let back = restored(vault, &ordered).await;
        assert_eq!(back.all(), memory_then.all(), "vault {i}");
        assert_eq!(back.of("a"), memory_then.of("a"), "the order is kept in vault {i}");
    }
}

#[tokio::test]
async fn a_vault_that_fails_in_the_middle_harms_no_other() {
    let memory = Arc::new(Memory::with(&[("a", 2000), ("b", 20)]));
    for i in 0..40 {
        let content = vec![i as u8; 100_000];
        memory.attachments.lock().unwrap().push(("b".into(), format!("k{i}/x"), content));
    }
    // Where the storage gives up: at the very start, at attachments, at the point.
    for objects in 1..8 {
        let (good, bad) = (vault().await, vault_of(objects).await);
        let report = back_up(&memory, &[&bad, &good]).await.unwrap();
        assert!(report.vaults[1].point.is_ok(), "{objects}");
        if let Err(error) = &report.vaults[0].point {
            assert_eq!(error.kind(), ErrorKind::Full, "{objects}: {error}");
            assert!(bad.points().await.unwrap().points.is_empty());
        }
        assert_eq!(restored(&good, &[]).await.all(), memory.all());
    }
    // One that fails alone is the error of the whole.
    let error = back_up(&memory, &[&vault_of(1).await]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full);
    assert_eq!(error.hint_text(), Some("make room"));
}

#[tokio::test]
async fn a_stopped_backup_makes_no_point_and_leaves_no_sign_of_life() {
    let stop = Stop::new();
    let memory = Arc::new(Memory { stop_after: Some((5, stop)), ..Memory::with(&[("a", 100)]) });
    let vault = vault().await;
    let error = back_up(&memory, &[&vault]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    assert!(error.to_string().contains("stored in the vault") && error.hint_text().is_some(), "{error}");
    assert!(memory.reads.load(Ordering::SeqCst) < 10, "it stops at once");
    assert!(vault.points().await.unwrap().points.is_empty());
    assert!(futures::StreamExt::next(&mut vault.storage().list("active/").await.unwrap()).await.is_none());
}
