//! Removing what no point needs, beside running backups, without locks.
//!
//! 1. A prune writes `prune/<id>` with the names of what it means to remove, then looks which runs
//!    are active and names them too.
//! 2. It waits until each of those runs has ended or given no sign of life for a day.
//! 3. It reads all points again, removes what is still not needed, then marks itself as done; the
//!    mark stays for another day, for runs that come back from the dead.
//!
//! A run does the opposite: first its sign of life, then a look at `prune/`. So for each pair of a
//! prune and a run, either the prune waits for the run, or the run treats what the prune names as
//! absent.

use crate::manifest::Manifest;
use crate::name::{ObjectKind, ObjectName, PointName};
use crate::points;
use crate::storage::Storage;
use crate::vault::{Inner, Vault};
use crate::write::ACTIVE;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use model::limits::GRACE;
use model::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

const PRUNE: &str = "prune/";

/// What a prune means to remove: the content of `prune/<id>`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Mark {
    /// What is to be removed.
    objects: BTreeSet<String>,
    /// Runs that were active when the mark was made; none while they have not been looked up.
    #[serde(default)]
    waits_for: Option<Vec<String>>,
    /// Whether everything has been removed.
    #[serde(default)]
    done: bool,
}

/// What a prune did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PruneReport {
    /// Objects removed.
    pub removed: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects that will be removed by a later prune, once the runs in `waits_for` have ended.
    pub pending: u64,
    /// Runs that must end, or be silent for a day, before anything more is removed.
    pub waits_for: Vec<String>,
}

/// All objects that a prune, running or just done, means to remove.
pub(crate) async fn doomed(storage: &Arc<dyn Storage>) -> Result<HashSet<String>> {
    let mut all = HashSet::new();
    for (_, mark) in marks(storage).await? {
        all.extend(mark.objects);
    }
    Ok(all)
}

async fn marks(storage: &Arc<dyn Storage>) -> Result<Vec<(crate::storage::Entry, Mark)>> {
    let mut entries: Vec<_> = storage.list(PRUNE).await?.try_collect().await?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let mut marks = Vec::new();
    for entry in entries {
        match storage.read(&entry.name).await {
            Ok(bytes) => {
                let mark = serde_json::from_slice(&bytes).map_err(|e| {
                    Error::corrupt(format!("{} cannot be read: {e}", entry.name))
                        .hint("if no prune is running, remove this one object and prune again")
                })?;
                marks.push((entry, mark));
            }
            // Another prune has just cleared it away.
            Err(e) if e.kind() == model::ErrorKind::Missing => {}
            Err(e) => return Err(e),
        }
    }
    Ok(marks)
}

/// Before a commit: fails if a prune means to remove, or has removed, what the point needs.
pub(crate) async fn check_before_commit(vault: &Arc<Inner>, manifest: &Manifest) -> Result<()> {
    if lost_to_prune(vault, manifest).await? == 0 {
        return Ok(());
    }
    Err(taken_by_prune())
}

/// After a commit: the same look again, for a run that was suspended for a day between the look
/// before and the commit.
pub(crate) async fn check_after_commit(vault: &Arc<Inner>, name: &PointName, manifest: &Manifest) -> Result<()> {
    if lost_to_prune(vault, manifest).await? == 0 {
        return Ok(());
    }
    // The point was never announced: taking it back loses nothing.
    vault.storage.delete(&name.to_string()).await?;
    Err(taken_by_prune())
}

fn taken_by_prune() -> Error {
    Error::new(model::ErrorKind::Retry, "a prune took this run for dead and removed what it had counted on")
        .hint("run the backup again: what is still there is not sent again")
}

/// How many of the objects that a point needs a prune has removed.
async fn lost_to_prune(vault: &Arc<Inner>, manifest: &Manifest) -> Result<usize> {
    let doomed = doomed(&vault.storage).await?;
    let mut lost = 0;
    if !doomed.is_empty() {
        for path in needed_by(vault, manifest, &mut HashMap::new()).await? {
            if doomed.contains(&path) && vault.storage.stat(&path).await?.is_none() {
                lost += 1;
            }
        }
    }
    Ok(lost)
}

/// Paths of all objects that a point needs. Layers that were read are kept in `seen`.
pub(crate) async fn needed_by(
    vault: &Arc<Inner>,
    manifest: &Manifest,
    seen: &mut HashMap<String, Arc<Vec<String>>>,
) -> Result<Vec<String>> {
    let objects = vault.objects()?;
    let mut needed: Vec<String> = manifest.catalog_object.iter().cloned().collect();
    for layer in &manifest.layers {
        let list = match seen.get(&layer.object) {
            Some(list) => list.clone(),
            None => {
                let list = match objects.layer(&layer.object).await {
                    Ok(read) => Arc::new(read.objects().map(str::to_owned).collect::<Vec<_>>()),
                    // Without its layer a point cannot be restored: it needs nothing else any more.
                    Err(e) if e.kind() == model::ErrorKind::Missing => Arc::default(),
                    Err(e) => return Err(e),
                };
                seen.insert(layer.object.clone(), list.clone());
                list
            }
        };
        needed.push(layer.object.clone());
        needed.extend(list.iter().cloned());
    }
    Ok(needed)
}

/// Everything that points need. Fails if a point cannot be read: then nothing may be removed.
async fn needed(vault: &Arc<Inner>) -> Result<HashSet<String>> {
    let points = points::read_all(vault).await?;
    if let Some(broken) = points.broken.into_iter().find(|b| b.error.kind() != model::ErrorKind::Missing) {
        return Err(Error::corrupt(format!("nothing was removed, as a point cannot be read: {}", broken.error))
            .hint("run `rewound verify`; what a damaged point needs cannot be known"));
    }
    let mut all = HashSet::new();
    let mut seen = HashMap::new();
    for point in &points.points {
        all.extend(needed_by(vault, &point.manifest, &mut seen).await?);
    }
    Ok(all)
}

impl Vault {
    /// Removes what no point needs: leftovers of runs that did not commit. Removes no point. Does
    /// not wait: what active runs may still need is left for a later call, and said in the report.
    pub async fn prune(&self) -> Result<PruneReport> {
        let vault = &self.inner;
        vault.objects()?;
        let mut report = PruneReport::default();
        self.finish_marks(&mut report).await?;
        let needed = needed(vault).await?;
        let doomed = doomed(&vault.storage).await?;
        let mut mark = Mark::default();
        for kind in ObjectKind::ALL {
            let mut entries = vault.storage.list(&format!("{}/", kind.folder())).await?;
            while let Some(entry) = entries.next().await {
                let name = entry?.name;
                let ours = ObjectName::parse(&name).is_ok();
                if ours && !needed.contains(&name) && !doomed.contains(&name) {
                    mark.objects.insert(name);
                }
            }
        }
        if !mark.objects.is_empty() {
            let path = format!("{PRUNE}{}", crate::hash::hex(&vault.seams.bytes::<8>()));
            write_mark(&vault.storage, &path, &mark).await?;
            mark.waits_for = Some(self.active_runs().await?);
            write_mark(&vault.storage, &path, &mark).await?;
            self.finish_marks(&mut report).await?;
        }
        self.clear_old_signs().await?;
        Ok(report)
    }

    /// Removes what earlier marks name, where nobody can need it any more.
    async fn finish_marks(&self, report: &mut PruneReport) -> Result<()> {
        let storage = &self.inner.storage;
        let now = self.storage_now().await?;
        report.waits_for.clear();
        report.pending = 0;
        for (entry, mut mark) in marks(storage).await? {
            if mark.done {
                if now - entry.modified > GRACE.as_millis() as i64 {
                    storage.delete(&entry.name).await?;
                }
                continue;
            }
            let active = self.active_runs().await?;
            let waits: Vec<String> = match &mark.waits_for {
                Some(runs) => runs.iter().filter(|r| active.contains(r)).cloned().collect(),
                // The prune died before it looked: whoever is active now may have been then.
                None => {
                    mark.waits_for = Some(active.clone());
                    write_mark(storage, &entry.name, &mark).await?;
                    active
                }
            };
            if !waits.is_empty() {
                report.pending += mark.objects.len() as u64;
                report.waits_for.extend(waits);
                continue;
            }
            // Points that were committed since the mark was made count.
            let needed = needed(&self.inner).await?;
            mark.objects.retain(|path| ObjectName::parse(path).is_ok() && !needed.contains(path));
            for path in &mark.objects {
                if let Some(found) = storage.stat(path).await? {
                    storage.delete(path).await?;
                    report.removed += 1;
                    report.bytes += found.size;
                }
            }
            mark.done = true;
            write_mark(storage, &entry.name, &mark).await?;
        }
        Ok(())
    }

    /// Runs that gave a sign of life within the last day, by the storage's clock.
    async fn active_runs(&self) -> Result<Vec<String>> {
        let now = self.storage_now().await?;
        let entries: Vec<_> = self.inner.storage.list(ACTIVE).await?.try_collect().await?;
        Ok(entries
            .into_iter()
            .filter(|e| now - e.modified <= GRACE.as_millis() as i64)
            .filter_map(|e| e.name.strip_prefix(ACTIVE).map(str::to_owned))
            .filter(|run| !run.starts_with("clock-"))
            .collect())
    }

    /// Takes away signs of life that expired long ago.
    async fn clear_old_signs(&self) -> Result<()> {
        let now = self.storage_now().await?;
        let entries: Vec<_> = self.inner.storage.list(ACTIVE).await?.try_collect().await?;
        for entry in entries {
            if now - entry.modified > 2 * GRACE.as_millis() as i64 {
                self.inner.storage.delete(&entry.name).await?;
            }
        }
        Ok(())
    }

    /// The storage's own clock: what it says of an object that was written just now.
    async fn storage_now(&self) -> Result<i64> {
        let storage = &self.inner.storage;
        let path = format!("{ACTIVE}clock-{}", crate::hash::hex(&self.inner.seams.bytes::<8>()));
        storage.replace(&path, Bytes::from_static(b"now")).await?;
        let now = storage.stat(&path).await?.map(|e| e.modified);
        storage.delete(&path).await?;
        now.ok_or_else(|| Error::new(model::ErrorKind::Retry, "an object that was just written is not there"))
    }
}

async fn write_mark(storage: &Arc<dyn Storage>, path: &str, mark: &Mark) -> Result<()> {
    let json = serde_json::to_vec(mark).map_err(|e| Error::bug(format!("writing JSON failed: {e}")))?;
    storage.replace(path, json.into()).await?;
    storage.sync().await
}
