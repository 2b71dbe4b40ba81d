//! What the change log says, compared with a new scan: the two must be the same.

use crate::opaque;
use crate::progress::{Doing, Job};
use futures::StreamExt;
use model::{CollectionId, Description, EngineTime, Error, Gap, Result, Selection};
use std::collections::BTreeMap;
use vault::{BackupOptions, Digest, Flush, Manifest, Point, PointDetails, PointName, ScanSpan, State, Vault};

/// What the comparison showed.
#[derive(Debug)]
pub(crate) struct Found {
    /// One line for each collection that differs.
    pub problems: Vec<String>,
    /// The history that is not to be trusted, if there are any.
    pub gap: Gap,
}

/// Compares the state that the point before this one and the change log make with what this point's
/// run scanned. None where that is not possible: the vault cannot be read here, there was no point
/// before, or its changes were not followed.
pub(crate) async fn log_with_scan(
    job: &Job,
    vault: &Vault,
    name: &PointName,
    manifest: &Manifest,
) -> Result<Option<Found>> {
    let (Some(log), Some(previous)) = (&manifest.log, &manifest.previous) else { return Ok(None) };
    if !vault.can_read() || manifest.gap.is_some() {
        return Ok(None);
    }
    let points = job.stop.or(vault.points()).await?;
    let Some(old) = points.points.iter().find(|p| p.name.to_string() == *previous) else { return Ok(None) };
    let was_followed = log.from.order <= old.manifest.time.order && old.manifest.position.is_some();
    if !was_followed
        || opaque::is_opaque(vault, old).await?
        || old.manifest.layers.iter().any(|l| l.run == manifest.run)
    {
        return Ok(None);
    }
    job.phase(Doing::Proving, None, None);
    let (first, last) = manifest.scanned();
    // What was read at one time has its digests; else both are read at a time after that.
    let at_one_time = first == last;
    let at = if at_one_time { first } else { manifest.time };
    let new = match at_one_time {
        true => {
            let scanned = manifest.scan.as_ref().filter(|s| s.catalog.is_some() || s.catalog_object.is_some());
            let (catalog, catalog_object) = match scanned {
                Some(scan) => (scan.catalog.clone(), scan.catalog_object.clone()),
                None => (manifest.catalog.clone(), manifest.catalog_object.clone()),
            };
            let catalog = vault.catalog(&Manifest { catalog, catalog_object, ..manifest.clone() }).await?;
            catalog.collections.into_iter().map(|c| (c.info.id, (c.info.name, c.digest))).collect()
        }
        false => digests(job, vault, &Point { name: name.clone(), manifest: manifest.clone() }).await?,
    };
    let (from, to) = old.manifest.scanned();
    let scan = old.manifest.scan.clone().unwrap_or(ScanSpan { from, to, catalog: None, catalog_object: None });
    let mut log = log.clone();
    log.to = at;
    let then = Manifest { time: at, scan: Some(scan), log: Some(log), ..old.manifest.clone() };
    let old = digests(job, vault, &Point { name: old.name.clone(), manifest: then }).await?;
    Ok(Some(Found {
        problems: differences(&old, &new),
        gap: Gap {
            from: to,
            // What the new scan needs of the log itself begins there.
            to: Some(first),
            why: "a new scan shows something else than the changes that were read since the last one".into(),
        },
    }))
}

type Digests = BTreeMap<CollectionId, (String, Digest)>;

async fn digests(job: &Job, vault: &Vault, point: &Point) -> Result<Digests> {
    let patcher = crate::registry::patcher(&point.manifest.source.engine);
    let state: State = job.stop.or(vault.resolve(point, &Selection::default(), patcher)).await?;
    let keys = vault.hash_keys()?;
    let mut all = Digests::new();
    for entry in state.collections() {
        let mut digest = Digest::default();
        let mut batches = state.read(entry);
        while let Some(batch) = job.stop.or(async { batches.next().await.transpose() }).await? {
            job.count(&batch);
            (0..batch.len()).for_each(|i| digest.add(keys.document(&batch, i)));
        }
        all.insert(entry.info.id.clone(), (entry.info.name.clone(), digest));
    }
    Ok(all)
}

fn differences(log: &Digests, scan: &Digests) -> Vec<String> {
    let mut problems = Vec::new();
    for (id, (name, digest)) in log {
        match scan.get(id) {
            None => problems.push(format!("{name}: the log says that it is there, but it is not")),
            Some((other, _)) if other != name => {
                problems.push(format!("{other}: the log says that it is called {name}"))
            }
            Some((_, there)) if there.count != digest.count => {
                problems.push(format!("{name}: {} documents by the log, {} are there", digest.count, there.count));
            }
            Some((_, there)) if there != digest => {
                problems.push(format!("{name}: its {} documents are others than the log says", there.count));
            }
            Some(_) => {}
        }
    }
    let unknown = scan.iter().filter(|(id, _)| !log.contains_key(id));
    problems.extend(unknown.map(|(_, (name, _))| format!("{name}: the log does not know of it")));
    problems
}

/// Records what was found as a gap, with a point of the same state: its own point was made before
/// anything could be compared with it.
pub(crate) async fn record(
    vault: &Vault,
    description: &Option<Description>,
    options: &BackupOptions,
    name: &PointName,
    manifest: &Manifest,
    found: &Found,
) -> Result<(PointName, Manifest)> {
    let description = description.as_ref().ok_or_else(|| Error::bug("a point of a source that was not described"))?;
    let run = vault.start_run(description, BackupOptions { full: false, ..options.clone() }).await?;
    let position = manifest.position.clone().filter(|_| run.has_base());
    let (Some(position), Some(last)) = (position, run.last()) else {
        run.abandon().await?;
        return Err(Error::bug(format!("the point {} cannot be built on", name.id())));
    };
    let time: EngineTime = last.time;
    run.follow_from(&position, time).await?;
    run.append(Flush { to: position.clone(), time, changes: Vec::new(), catalog: Vec::new() }).await?;
    let details = PointDetails {
        time,
        consistency: manifest.consistency,
        position: Some(position),
        gap: Some(found.gap.clone()),
        skipped: manifest.skipped.clone(),
    };
    run.commit(details).await
}
