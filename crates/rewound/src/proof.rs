//! Reading a target back and comparing it with what was sent.

use crate::metered::Metered;
use crate::parts::Scan;
use crate::progress::{Doing, Job};
use crate::registry::Target;
use crate::transfer::{Sent, while_doing};
use crate::translate;
use futures::StreamExt;
use futures::stream;
use model::{Batch, Encoding, HashingStore, Result, ScanItem, Selection};
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vault::{Digest, HashKeys};

/// Collections that are read back side by side.
const SIDE_BY_SIDE: usize = 2;
/// Documents of one collection up to which a merge is proven one by one: about 140 MB.
const SEEN_MAX: usize = 4 << 20;

/// What reading back showed.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Proof {
    /// Documents and attachments that were read back and compared.
    pub documents: u64,
    /// Collections that are not what was sent.
    pub mismatches: Vec<Mismatch>,
    /// What could not be proven, and why.
    pub unproven: Vec<String>,
    /// How long it took.
    #[serde(skip)]
    pub took: Duration,
}

impl Proof {
    /// Whether everything is what was sent.
    pub fn holds(&self) -> bool {
        self.mismatches.is_empty()
    }
}

/// A collection that is not what was sent.
#[derive(Debug, Clone, Serialize)]
pub struct Mismatch {
    /// Its name in the target.
    pub collection: String,
    /// What differs.
    pub problem: String,
}

/// Which documents were sent into a collection that may hold others.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    documents: HashSet<u128>,
    too_many: bool,
}

impl Seen {
    /// Remembers the documents of a batch.
    pub fn add(&mut self, batch: &Batch) {
        for i in 0..batch.len() {
            if self.documents.len() >= SEEN_MAX {
                self.too_many = true;
                self.documents = HashSet::new();
            }
            if self.too_many {
                return;
            }
            self.documents.insert(fingerprint(batch, i));
        }
    }
}

/// 128 bits that stand for kind, key, body and content of a document.
fn fingerprint(batch: &Batch, i: usize) -> u128 {
    let mut hasher = blake3::Hasher::new();
    for part in [batch.kind.space().as_bytes(), batch.key_of(i), batch.body_of(i)] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    if let Some(content) = batch.attachments.get(i) {
        hasher.update(&content.digest);
    }
    let mut half = [0; 16];
    half.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    u128::from_le_bytes(half)
}

/// What was read back of one collection.
struct Found {
    digest: Digest,
    /// Of the documents that were sent, those that were not found.
    missing: Option<usize>,
    /// How its documents are encoded.
    encoding: Option<Encoding>,
}

/// Reads back what was sent and compares it.
pub(crate) async fn prove(job: &Job, target: &Target, sent: &[Sent], keys: &HashKeys) -> Result<Proof> {
    let began = Instant::now();
    let documents = sent.iter().map(|s| s.report.documents).sum();
    let bytes = sent.iter().map(|s| s.report.bytes).sum();
    job.phase(Doing::Proving, Some(documents), Some(bytes));
    let selection = Selection { only: sent.iter().map(|s| s.report.target.clone()).collect(), ..Selection::default() };
    let mut proof = Proof::default();
    if sent.is_empty() {
        return Ok(proof);
    }
    let planned = match job.stop.or(target.source.plan(&selection, None)).await {
        Err(e) if e.kind() == model::ErrorKind::Input => {
            // What was written cannot even be read: that is a finding, not a failure to look.
            proof.mismatches.push(Mismatch { collection: "*".into(), problem: e.to_string() });
            proof.took = began.elapsed();
            return Ok(proof);
        }
        other => other,
    };
    let parts = Scan::of(while_doing(planned, "reading the target back")?)?.parts;
    let mut by_name: HashMap<String, Vec<model::Part>> = HashMap::new();
    for part in parts {
        by_name.entry(part.collection.name.clone()).or_default().push(part);
    }
    let reading = sent.iter().map(|one| {
        let parts = by_name.remove(&one.report.target).unwrap_or_default();
        async move { (one, read_back(job, target, parts, one, keys).await) }
    });
    let mut results = stream::iter(reading.collect::<Vec<_>>()).buffer_unordered(SIDE_BY_SIDE);
    while let Some((one, found)) = results.next().await {
        compare(one, &while_doing(found, "reading the target back")?, &mut proof);
    }
    drop(results);
    if proof.documents == 0 && proof.holds() && proof.unproven.is_empty() && sent.iter().any(|s| s.digest.count > 0) {
        let names: Vec<&str> = sent.iter().map(|s| s.report.target.as_str()).collect();
        proof.unproven.push(format!("{}: nothing of it can be read back and compared", names.join(", ")));
    }
    proof.mismatches.sort_by(|a, b| a.collection.cmp(&b.collection));
    proof.took = began.elapsed();
    Ok(proof)
}

fn compare(sent: &Sent, found: &Found, proof: &mut Proof) {
    let collection = sent.report.target.clone();
    proof.documents += sent.provable.count;
    if sent.provable == found.digest || found.missing == Some(0) {
        return;
    }
    let is_converted = sent.encoding.is_some() && found.encoding.is_some() && sent.encoding != found.encoding;
    if is_converted && (sent.seen.is_some() || sent.provable.count == found.digest.count) {
        proof.documents -= sent.provable.count;
        proof.unproven.push(format!(
            "{collection}: its documents were converted for the target: only their number was compared, {}",
            if sent.seen.is_some() { "and not even that, as it holds others" } else { "and is right" }
        ));
        return;
    }
    let problem = match (&sent.seen, found.missing) {
        (Some(_), None) => {
            proof.documents -= sent.provable.count;
            proof.unproven.push(format!(
                "{collection}: it holds other documents too, and more than {SEEN_MAX} were written: they were not compared"
            ));
            return;
        }
        (_, Some(missing)) => format!("{missing} of {} documents are not what was written", sent.provable.count),
        _ if sent.provable.count != found.digest.count => {
            format!("{} documents were written, {} are there", sent.provable.count, found.digest.count)
        }
        _ => format!("the digest of its {} documents is not that of those that were written", sent.provable.count),
    };
    proof.mismatches.push(Mismatch { collection, problem });
}

async fn read_back(job: &Job, target: &Target, parts: Vec<model::Part>, sent: &Sent, keys: &HashKeys) -> Result<Found> {
    let mut digest = Digest::default();
    let mut encoding = None;
    let is_translated = sent.encoding.is_some_and(|e| translate::is_needed(&*target.sink, e));
    let mut missing = sent.seen.as_ref().filter(|s| !s.too_many).map(|s| s.documents.clone());
    for part in parts {
        let store = Metered::in_front_of(Arc::new(HashingStore), job);
        let mut items = job.stop.or(target.source.read(&part, store)).await?;
        while let Some(item) = job.stop.or(async { items.next().await.transpose() }).await? {
            let ScanItem::Batch(mut batch) = item else { continue };
            if batch.kind.is_tombstone() || target.sink.leaves_out(&batch) {
                continue;
            }
            job.count(&batch);
            if is_translated && batch.encoding == Encoding::Json {
                // What cannot be translated back is not what was written: the digest will tell.
                batch = translate::to_bson(&batch).unwrap_or(Batch { encoding: Encoding::Bson, ..batch });
            }
            encoding = Some(batch.encoding);
            let Some(batch) = target.sink.provable(&batch) else { continue };
            for i in 0..batch.len() {
                digest.add(keys.document(&batch, i));
                if let Some(missing) = &mut missing {
                    missing.remove(&fingerprint(&batch, i));
                }
            }
        }
    }
    Ok(Found { digest, missing: missing.map(|m| m.len()), encoding })
}
