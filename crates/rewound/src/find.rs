//! One document through time, and back into a database.

use crate::choose;
use crate::opaque;
use crate::parts::Scan;
use crate::progress::{Doing, Job};
use crate::proof::{Mismatch, Proof};
use crate::registry::{self, Target};
use crate::transfer::{Load, Piece, Way, Written, while_doing};
use crate::translate::Plain;
use futures::{StreamExt, TryStreamExt, stream};
use model::{
    AttachmentStore, Batch, BatchBuilder, Description, Engine, Error, ErrorKind, HashingStore, IfExists, Kind,
    RestoreOptions, Result, ScanItem, Selection,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;
use vault::{Vault, Version, Wanted};

/// Every version of one document, newest first; of one source if its name or tag is given.
pub async fn find(vault: &Vault, collection: &str, key: &str, source: Option<&str>) -> Result<Vec<Version>> {
    let tag = match source {
        Some(_) => Some(choose::source(&vault.points().await?, source)?),
        None => None,
    };
    let wanted = Wanted {
        collection,
        keys: &|engine: &Engine| registry::keys_of(engine, key),
        patcher: &registry::patcher,
        source: tag.as_deref(),
    };
    let found = vault.find_any(&wanted).await;
    let sources: Option<BTreeSet<&str>> = match &found {
        Ok(versions) if !versions.is_empty() => {
            let of_servers = versions.iter().filter(|v| registry::has_opaque(&v.engine));
            Some(of_servers.map(|v| &*v.tag).collect())
        }
        Err(e) if e.kind() != ErrorKind::Input => Some(BTreeSet::new()),
        _ => None,
    };
    let mut versions = match sources {
        Some(sources) if sources.is_empty() => found?,
        sources => {
            let points = vault.points().await?;
            let is_asked = |of: &str| match &sources {
                Some(sources) => sources.contains(of),
                None => tag.as_deref().is_none_or(|tag| tag == of),
            };
            let closed = opaque::among(vault, &points, is_asked).await?;
            let so_many = points_of(closed.len());
            if sources.is_none() && !closed.is_empty() {
                return Err(opaque::error(format!(
                    "no point that can be looked into has a document {key} in a collection {collection}; {so_many} \
                     only the server opens, so whether it was there is not known",
                )));
            }
            if !closed.is_empty() {
                tracing::warn!("{so_many} cannot be looked into: what was in them is not told here");
            }
            opaque::unseen(found?, &points, &closed)
        }
    };
    for version in &mut versions {
        version.deleted |= registry::is_deletion(&version.engine, &version.body);
    }
    // A deletion that the log told, and that a scan saw again, is one: the older.
    let told_again = |i: usize, all: &[Version]| {
        let of = |v: &Version| (v.tag.clone(), v.key.clone());
        let before = all[i + 1..].iter().find(|v| of(v) == of(&all[i]));
        registry::has_opaque(&all[i].engine) && all[i].deleted && before.is_some_and(|v| v.deleted)
    };
    let again: Vec<bool> = (0..versions.len()).map(|i| told_again(i, &versions)).collect();
    let mut again = again.into_iter();
    versions.retain(|_| !again.next().unwrap_or(false));
    if versions.is_empty() {
        return Err(Error::missing(format!("no point has a document {key} in a collection {collection}"))
            .hint("check the names of collection and key: for a folder, the name of the file without .json; for MongoDB, DATABASE.COLLECTION and the _id, as Extended JSON if it is no plain text"));
    }
    Ok(versions)
}

/// So many points that nobody can look into.
fn points_of(count: usize) -> String {
    format!("{count} {} that the database's server made itself", if count == 1 { "point" } else { "points" })
}

/// The version that was there at a time: the newest one not after it, of versions newest first.
pub fn version_at<'a>(versions: &'a [Version], at: &crate::time::At) -> Result<&'a Version> {
    for version in versions {
        if at.covers(version.time, version.feed)? {
            return Ok(version);
        }
    }
    Err(Error::missing(format!("the document was not there at {}", at.in_full()))
        .hint("`rewound find` without --at lists all versions with their times"))
}

/// What a document is in a target, attachments by key with their digests.
#[derive(Debug, Default, PartialEq, Eq)]
struct There {
    body: Option<(model::Encoding, Vec<u8>)>,
    attachments: BTreeMap<Vec<u8>, [u8; 32]>,
}

/// Brings one version of a document back, with its attachments, into a target that has the
/// collection; nothing else there is touched. Another document under the key is only overwritten if
/// `if_exists` says so. `key` is the text that it was found by.
pub async fn bring_back(
    job: &Job,
    vault: &Vault,
    target: Target,
    version: &Version,
    key: &str,
    if_exists: IfExists,
) -> Result<Written> {
    job.phase(Doing::Checking, None, None);
    if version.deleted && registry::has_opaque(&version.engine) {
        return Err(is_deletion(key));
    }
    let info = (*version.collection).clone();
    // Where an old revision would lose against what came after it, what it says becomes a new one.
    let anew = target.sink.writes_new_revisions();
    let mut options =
        RestoreOptions { if_exists: IfExists::Merge, as_new_revisions: anew, ..RestoreOptions::default() };
    options.selection = one(&info.name, key, version);
    let description = Description {
        engine: version.engine.clone(),
        identity: String::new(),
        name: version.source.clone(),
        version: String::new(),
        feed: version.feed,
        collections: vec![info.clone()],
        losses: Vec::new(),
    };
    let plan = job.stop.or(target.sink.prepare(&description, &options)).await?;
    let name = plan.collections.first().map_or_else(|| info.name.clone(), |c| c.target.clone());
    let Some(now) = read(job, &target, &name, key, version).await? else {
        return Err(Error::missing(format!("the target has no collection {name}"))
            .hint(format!("make it first, or bring all of it back: `rewound restore --only {}`", info.name)));
    };
    let (contents, attachments) = match anew {
        true => belongings(job, vault, version, key).await?,
        false => attachments(job, vault, version, key).await?,
    };
    let mut builder = BatchBuilder::new(info.id.clone(), version.kind.clone(), version.encoding);
    builder.push(&version.key, &version.body);
    let document = builder.take();
    let mut wanted = There::default();
    for batch in std::iter::once(&document).chain(&attachments) {
        see(&mut wanted, &target, batch, version);
    }
    if wanted.body.is_none() {
        return Err(is_deletion(key));
    }
    let differs = now.body.is_some() && now != wanted;
    if differs && if_exists == IfExists::Fail {
        return Err(Error::input(format!("the target has another version of document {key} in {name}"))
            .hint("--if-exists merge puts the old version in its place; `rewound find --show` shows it"));
    }
    let pieces = std::iter::once(document).chain(attachments);
    let load = Load {
        info,
        documents: Some(1),
        bytes: None,
        expected: None,
        by_key: true,
        pieces: stream::iter(pieces.map(|batch| Ok(Piece::Batch(batch))).collect::<Vec<_>>()).boxed(),
    };
    let keys = vault.hash_keys()?;
    let plain = Plain::of_engine(&version.engine, &*target.sink, contents.clone());
    let contents = plain.as_ref().map_or(contents, |p| p.to.clone());
    let way = Way { job, target: &target, keys, merge: true, verify: false, release: &|_| {}, plain };
    let mut written = way.write(plan, vec![load], contents).await?;
    let began = Instant::now();
    job.phase(Doing::Proving, Some(1), None);
    let back = while_doing(read(job, &target, &name, key, version).await, "reading the document back")?;
    let mut proof = prove(&wanted, &back.unwrap_or_default(), &name, key);
    proof.took = began.elapsed();
    written.proof = Some(proof);
    Ok(written)
}

fn is_deletion(key: &str) -> Error {
    Error::missing(format!("this version of document {key} is a deletion"))
        .hint("choose an older one; `rewound find` without --restore lists all versions")
}

/// Selects one document of a collection.
fn one(collection: &str, key: &str, version: &Version) -> Selection {
    let mut selection = Selection { only: vec![format!("{collection}/{key}")], ..Selection::default() };
    // Of what the text may mean, the one that was found.
    selection.understand_keys(|_| vec![version.key.to_vec()]);
    selection
}

/// What the document is in the target now; none if there is no such collection.
async fn read(job: &Job, target: &Target, name: &str, key: &str, version: &Version) -> Result<Option<There>> {
    let planned = match job.stop.or(target.source.plan(&one(name, key, version), None)).await {
        Err(e) if e.kind() == ErrorKind::Missing => return Ok(None),
        other => other?,
    };
    let parts = Scan::of(planned)?.parts.into_iter().filter(|p| p.collection.name == name).collect::<Vec<_>>();
    if parts.is_empty() {
        return Ok(None);
    }
    let mut there = There::default();
    for part in parts {
        let mut items = job.stop.or(target.source.read(&part, Arc::new(HashingStore))).await?;
        while let Some(item) = job.stop.or(items.try_next()).await? {
            let ScanItem::Batch(batch) = item else { continue };
            see(&mut there, target, &batch, version);
        }
    }
    Ok(Some(there))
}

/// Notes what a batch tells of the document. What a target makes anew of it, such as revisions, is no
/// part of what it is.
fn see(there: &mut There, target: &Target, batch: &Batch, version: &Version) {
    let Some(batch) = target.sink.provable(batch).filter(|batch| !batch.kind.is_tombstone()) else { return };
    for i in 0..batch.len() {
        if let Some(content) = batch.attachments.get(i) {
            there.attachments.insert(batch.key_of(i).to_vec(), content.digest);
        } else if batch.key_of(i) == version.key {
            there.body = Some((batch.encoding, batch.body_of(i).to_vec()));
        }
    }
}

/// Everything that stands under the document's key beside itself, at the time of a version.
async fn belongings(
    job: &Job,
    vault: &Vault,
    version: &Version,
    key: &str,
) -> Result<(Arc<dyn AttachmentStore>, Vec<Batch>)> {
    let points = job.stop.or(vault.points()).await?;
    let point = version.point.as_ref().and_then(|id| points.of(&version.tag).find(|p| p.name.run == *id));
    let (selection, patcher) = (one(&version.collection.name, key, version), registry::patcher(&version.engine));
    let state = match point {
        Some(point) => job.stop.or(vault.resolve(point, &selection, patcher)).await?,
        None => job.stop.or(vault.resolve_at(&version.tag, version.time, &selection, patcher)).await?,
    };
    let mut batches = Vec::new();
    for collection in state.collections().iter().filter(|c| c.info.id == version.collection.id) {
        let mut reading = state.read_spaces(collection, |space| space != Kind::Document.space());
        while let Some(batch) = job.stop.or(reading.try_next()).await? {
            batches.push(batch);
        }
    }
    Ok((state.attachments(), batches))
}

/// The attachments that the document had, and what gives their content.
async fn attachments(
    job: &Job,
    vault: &Vault,
    version: &Version,
    key: &str,
) -> Result<(Arc<dyn AttachmentStore>, Vec<Batch>)> {
    let none: (Arc<dyn AttachmentStore>, Vec<Batch>) = (Arc::new(HashingStore), Vec::new());
    // The change log holds what changed of the attachments alone: all of them are in points.
    let Some(id) = &version.point else { return Ok(none) };
    let points = job.stop.or(vault.points()).await?;
    let Some(point) = points.of(&version.tag).find(|p| p.name.run == *id) else { return Ok(none) };
    let selection = one(&version.collection.name, key, version);
    let state = job.stop.or(vault.resolve(point, &selection, registry::patcher(&version.engine))).await?;
    let mut batches = Vec::new();
    for collection in state.collections().iter().filter(|c| c.info.id == version.collection.id) {
        let mut reading = state.read(collection);
        while let Some(batch) = job.stop.or(reading.try_next()).await? {
            if batch.kind == Kind::Attachment {
                batches.push(batch);
            }
        }
    }
    Ok((state.attachments(), batches))
}

fn prove(wanted: &There, back: &There, name: &str, key: &str) -> Proof {
    let mut proof = Proof { documents: 1 + wanted.attachments.len() as u64, ..Proof::default() };
    let is_converted = |(a, _): &(model::Encoding, Vec<u8>), (b, _): &(model::Encoding, Vec<u8>)| a != b;
    let wrong = match (&wanted.body, &back.body) {
        (Some(a), Some(b)) if is_converted(a, b) => {
            proof.documents -= 1;
            proof.unproven.push(format!("{name}: document {key} was converted for the target: it was not compared"));
            false
        }
        (a, b) => a != b,
    };
    // The target may have attachments that the document did not have then.
    let lost = wanted.attachments.iter().filter(|(k, digest)| back.attachments.get(*k) != Some(digest)).count();
    let mut mismatch = |problem: String| proof.mismatches.push(Mismatch { collection: name.to_owned(), problem });
    if wrong {
        mismatch(format!("document {key} is not what was written"));
    }
    if lost > 0 {
        mismatch(format!("{lost} attachments of document {key} are not what was written"));
    }
    proof
}
