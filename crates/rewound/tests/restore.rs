//! Restores and copies that go wrong, and the proof that notices.
#![allow(clippy::unwrap_used)]

mod support;

use model::{ErrorKind, IfExists, Loss, RestoreOptions, Selection};
use rewound::backup::{Destination, backup};
use rewound::choose::PointChoice;
use rewound::copy::{Copy, CopyReport};
use rewound::restore::{Consent, Restore, RestoreReport};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use support::{Memory, Notes, Shared, job, target, vault};
use vault::{BackupOptions, Vault};

const PROVE: Consent = Consent { allow_loss: false, verify: true };

fn sample() -> Arc<Memory> {
    let memory = Memory::with(&[("a", 50), ("b", 5), ("c", 0)]);
    memory.attachments.lock().unwrap().push(("b".into(), "k1/small".into(), vec![1; 5000]));
    memory.attachments.lock().unwrap().push(("b".into(), "k2/large".into(), vec![2; 700_000]));
    Arc::new(memory)
}

async fn stored(memory: &Arc<Memory>) -> Vault {
    let vault = vault().await;
    let destinations = vec![Destination { url: "v".into(), vault: Ok(vault.clone()) }];
    let (source, all, options) = (Shared(memory.clone()), Selection::default(), BackupOptions::default());
    backup(&job(&Arc::default()), &source, destinations, &all, &options).await.unwrap();
    vault
}

async fn restore(
    vault: &Vault,
    to: &Arc<Memory>,
    options: RestoreOptions,
    consent: Consent,
    notes: &Arc<Notes>,
) -> model::Result<RestoreReport> {
    let job = job(notes);
    Restore::prepare(&job, vault, target(to), &PointChoice::default(), options, None).await?.run(&job, consent).await
}

async fn copy(from: &Arc<Memory>, to: &Arc<Memory>) -> model::Result<CopyReport> {
    let job = job(&Arc::default());
    let source = Arc::new(Shared(from.clone()));
    Copy::prepare(&job, source, target(to), RestoreOptions::default()).await?.run(&job, PROVE).await
}

fn spoiling() -> Arc<Memory> {
    Arc::new(Memory { part: 1000, spoil: Some("a".into()), ..Memory::default() })
}

#[tokio::test]
async fn the_proof_notices_one_changed_byte() {
    let memory = sample();
    let vault = stored(&memory).await;
    for merge in [IfExists::Fail, IfExists::Merge] {
        let options = RestoreOptions { if_exists: merge, ..RestoreOptions::default() };
        let report = restore(&vault, &spoiling(), options, PROVE, &Arc::default()).await.unwrap();
        let proof = report.written.proof.unwrap();
        assert!(!proof.holds());
        assert_eq!(proof.mismatches.len(), 1);
        assert_eq!(proof.mismatches[0].collection, "a");
    }
    let proof = copy(&memory, &spoiling()).await.unwrap().written.proof.unwrap();
    assert!(!proof.holds());
    let no_proof = Consent { verify: false, ..PROVE };
    let report = restore(&vault, &spoiling(), RestoreOptions::default(), no_proof, &Arc::default()).await.unwrap();
    assert!(report.written.proof.is_none());
}

#[tokio::test]
async fn a_merge_is_proven_beside_what_was_there() {
    let memory = sample();
    let vault = stored(&memory).await;
    let options = RestoreOptions { if_exists: IfExists::Merge, ..RestoreOptions::default() };
    let to = Arc::new(Memory::with(&[("a", 3)]));
    to.collections.lock().unwrap().get_mut("a").unwrap().push(("own".into(), "{}".into()));
    let report = restore(&vault, &to, options.clone(), PROVE, &Arc::default()).await.unwrap();
    assert!(report.written.proof.unwrap().holds());
    assert_eq!(to.of("a").len(), 51);
    let spoiling = Memory { spoil: Some("a".into()), ..Memory::with(&[("a", 60)]) };
    let report = restore(&vault, &Arc::new(spoiling), options, PROVE, &Arc::default()).await.unwrap();
    let proof = report.written.proof.unwrap();
    assert_eq!(proof.mismatches[0].problem, "1 of 50 documents are not what was written");
}

#[tokio::test]
async fn copies_are_exact_with_their_attachments() {
    let memory = sample();
    let to = Arc::new(Memory { part: 7, ..Memory::default() });
    let report = copy(&memory, &to).await.unwrap();
    assert!(report.written.proof.unwrap().holds());
    assert_eq!(to.all(), memory.all());
}

#[tokio::test]
async fn what_a_target_loses_must_be_allowed_before_it_is_touched() {
    let vault = stored(&sample()).await;
    let losses = vec![Loss { what: "dates".into(), why: "no such type".into() }];
    let to = Arc::new(Memory { part: 1000, losses, ..Memory::default() });
    let refused = restore(&vault, &to, RestoreOptions::default(), PROVE, &Arc::default()).await.unwrap_err();
    assert!(
        refused.to_string().contains("dates: no such type") && refused.hint_text().unwrap().contains("--allow-loss")
    );
    assert_eq!(to.begun.load(Ordering::SeqCst), 0);
    let consent = Consent { allow_loss: true, ..PROVE };
    restore(&vault, &to, RestoreOptions::default(), consent, &Arc::default()).await.unwrap();
}

#[tokio::test]
async fn a_target_that_fails_is_given_up_and_what_is_left_is_told() {
    let memory = sample();
    let vault = stored(&memory).await;
    let to = Arc::new(Memory { part: 1000, fail_after: Some(1), ..Memory::default() });
    let notes = Arc::new(Notes::default());
    let error = restore(&vault, &to, RestoreOptions::default(), PROVE, &notes).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full, "the first error is told, not its consequences: {error}");
    assert!(error.to_string().starts_with("writing collection "), "{error}");
    assert_eq!(to.aborted.load(Ordering::SeqCst), 1);
    assert!(notes.0.lock().unwrap().iter().any(|n| n.contains("a few documents")));
    let to = Arc::new(Memory { part: 1000, fail_after: Some(3), ..Memory::default() });
    assert_eq!(copy(&memory, &to).await.unwrap_err().kind(), ErrorKind::Full);
    assert_eq!(to.aborted.load(Ordering::SeqCst), 1);
}
