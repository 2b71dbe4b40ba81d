//! Marks: what prunes mean to remove, for writers to see, and whom they wait for.

use super::census::{Key, log_key};
use crate::name::LogName;
use crate::reading::{READER, READER_GRACE};
use crate::storage::{Entry, Storage};
use crate::vault::Inner;
use crate::write::ACTIVE;
use bytes::Bytes;
use futures::TryStreamExt;
use model::limits::GRACE;
use model::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

const PRUNE: &str = "prune/";
/// How the objects begin that are written to learn the storage's time.
const CLOCK: &str = "clock-";
/// Objects of one mark: about 7 MB of names.
pub(super) const MARKED: usize = 50_000;

/// What a prune means to remove: the content of `prune/<id>`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Mark {
    /// What is to be removed; when that is done, what was removed that a run could have meant to use
    /// again.
    pub objects: Vec<String>,
    /// Sources of whose log something is or was to be removed.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub logs: BTreeSet<String>,
    /// Runs and readers that were active when the mark was made; none while they have not been
    /// looked up.
    #[serde(default)]
    pub waits_for: Option<Vec<String>>,
    /// Whether everything has been removed.
    #[serde(default)]
    pub done: bool,
}

/// The marks there are, oldest name first.
pub(super) async fn list(storage: &Arc<dyn Storage>) -> Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = storage.list(PRUNE).await?.try_collect().await?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// Reads a mark; none if another prune has just cleared it away.
pub(super) async fn read(storage: &Arc<dyn Storage>, path: &str) -> Result<Option<Mark>> {
    match storage.read(path).await {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| {
            Error::corrupt(format!("{path} cannot be read: {e}"))
                .hint("if no prune is running, remove this one object and prune again")
        }),
        Err(e) if e.kind() == ErrorKind::Missing => Ok(None),
        Err(e) => Err(e),
    }
}

pub(super) async fn write(storage: &Arc<dyn Storage>, path: &str, mark: &Mark) -> Result<()> {
    let json = serde_json::to_vec(mark).map_err(|e| Error::bug(format!("writing JSON failed: {e}")))?;
    storage.replace(path, json.into()).await?;
    storage.sync().await
}

/// A new mark: first what is to be removed, then the look at who is active.
pub(super) async fn make(vault: &Inner, objects: Vec<String>) -> Result<()> {
    let path = format!("{PRUNE}{}", crate::hash::hex(&vault.seams.bytes::<8>()));
    let logs = objects.iter().filter_map(|o| LogName::parse(o));
    let mut mark = Mark { logs: logs.map(|name| name.source).collect(), objects, ..Mark::default() };
    write(&vault.storage, &path, &mark).await?;
    mark.waits_for = Some(Signs::read(vault).await?.active());
    write(&vault.storage, &path, &mark).await
}

/// What all marks name.
#[derive(Debug, Default)]
pub(super) struct Doomed {
    pub objects: HashSet<String>,
    /// Objects of the log that are still to be removed.
    pub changes: HashSet<Key>,
    /// Sources of whose log something is or was to be removed.
    pub logs: BTreeSet<String>,
}

/// Reads all marks.
pub(super) async fn doomed(storage: &Arc<dyn Storage>) -> Result<Doomed> {
    let mut all = Doomed::default();
    for entry in list(storage).await? {
        let Some(mark) = read(storage, &entry.name).await? else { continue };
        all.logs.extend(mark.logs);
        for path in mark.objects {
            match LogName::parse(&path) {
                Some(name) => drop(all.changes.insert(log_key(&name.stored))),
                None => drop(all.objects.insert(path)),
            }
        }
    }
    Ok(all)
}

/// Runs that have not ended, whether they are alive or not.
pub(super) async fn runs(vault: &Inner) -> Result<HashSet<String>> {
    let names: Vec<String> = vault.storage.list(ACTIVE).await?.map_ok(|e| e.name).try_collect().await?;
    Ok(names.iter().filter_map(|name| name.strip_prefix(ACTIVE)).map(str::to_owned).collect())
}

/// Signs of life, and the storage's own time.
#[derive(Debug)]
pub(super) struct Signs {
    pub now: i64,
    signs: Vec<(String, i64)>,
}

impl Signs {
    pub async fn read(vault: &Inner) -> Result<Self> {
        let now = storage_now(vault).await?;
        let entries: Vec<Entry> = vault.storage.list(ACTIVE).await?.try_collect().await?;
        let signs = entries.into_iter().filter_map(|e| Some((e.name.strip_prefix(ACTIVE)?.to_owned(), e.modified)));
        Ok(Signs { now, signs: signs.filter(|(name, _)| !name.starts_with(CLOCK)).collect() })
    }

    /// Runs that gave a sign of life within the last day, and readers that did within the last hour.
    pub fn active(&self) -> Vec<String> {
        let alive = |(name, modified): &&(String, i64)| self.now - modified <= grace(name);
        self.signs.iter().filter(alive).map(|(name, _)| name.clone()).collect()
    }
}

/// A run that comes back must find nothing changed; a reader that comes back loses nothing but its
/// work.
fn grace(name: &str) -> i64 {
    let grace = if name.starts_with(READER) { READER_GRACE } else { GRACE };
    grace.as_millis() as i64
}

/// Takes away signs of life that expired long ago.
pub(super) async fn clear_old_signs(vault: &Inner) -> Result<()> {
    let now = storage_now(vault).await?;
    let entries: Vec<Entry> = vault.storage.list(ACTIVE).await?.try_collect().await?;
    for entry in entries {
        let name = entry.name.strip_prefix(ACTIVE).unwrap_or_default();
        if now - entry.modified > 2 * grace(name) {
            vault.storage.delete(&entry.name).await?;
        }
    }
    Ok(())
}

/// The storage's own clock: what it says of an object that was written just now.
async fn storage_now(vault: &Inner) -> Result<i64> {
    let storage = &vault.storage;
    let path = format!("{ACTIVE}{CLOCK}{}", crate::hash::hex(&vault.seams.bytes::<8>()));
    storage.replace(&path, Bytes::from_static(b"now")).await?;
    let now = storage.stat(&path).await?.map(|e| e.modified);
    storage.delete(&path).await?;
    now.ok_or_else(|| Error::new(ErrorKind::Retry, "an object that was just written is not there"))
}
