//! What a run asks before and after its commit: whether a prune has removed what its point needs.

use super::marks;
use crate::history::{self, Facts};
use crate::log::contents;
use crate::manifest::Manifest;
use crate::name::{HISTORY, PointName};
use crate::objects::Objects;
use crate::vault::Inner;
use futures::StreamExt;
use model::{Error, ErrorKind, Result};
use std::collections::HashSet;
use std::sync::Arc;

/// Before a commit: fails if a prune means to remove, or has removed, what the point needs.
pub(crate) async fn check_before_commit(vault: &Arc<Inner>, tag: &str, manifest: &Manifest) -> Result<()> {
    match is_lost(vault, tag, manifest).await? {
        true => Err(taken_by_prune()),
        false => Ok(()),
    }
}

/// After a commit: the same look again, for a run that was suspended for a day between the look
/// before and the commit.
pub(crate) async fn check_after_commit(vault: &Arc<Inner>, name: &PointName, manifest: &Manifest) -> Result<()> {
    if !is_lost(vault, &name.source, manifest).await? {
        return Ok(());
    }
    // The point was never announced: taking it back loses nothing.
    vault.storage.delete(&name.to_string()).await?;
    Err(taken_by_prune())
}

fn taken_by_prune() -> Error {
    Error::new(ErrorKind::Retry, "a prune took this run for dead and removed what it had counted on")
        .hint("run the backup again: what is still there is not sent again")
}

/// Whether a prune has removed something that a point needs.
async fn is_lost(vault: &Arc<Inner>, tag: &str, manifest: &Manifest) -> Result<bool> {
    let doomed = marks::doomed(&vault.storage).await?;
    if !doomed.objects.is_empty() {
        let mut needed = needed_by(&vault.objects()?, manifest).await?;
        needed.extend(listed_by(vault, tag, manifest).await?);
        for path in needed {
            if doomed.objects.contains(&path) && vault.storage.stat(&path).await?.is_none() {
                return Ok(true);
            }
        }
    }
    if manifest.log.is_some() && doomed.logs.contains(tag) {
        let log = history::log_table(vault, &format!("{HISTORY}{tag}/log/")).await?;
        let committed = manifest.committed.max(0) as u64;
        let run = manifest.run.clone();
        let name = PointName { source: tag.to_owned(), committed, run, stored: [0; 32], encrypted: false };
        return Ok(!history::is_whole(&log, &Facts::of(name, manifest)));
    }
    Ok(false)
}

/// Paths of the objects that the run's own chain refers to.
async fn listed_by(vault: &Inner, tag: &str, manifest: &Manifest) -> Result<HashSet<String>> {
    let mut objects = HashSet::new();
    if manifest.log.is_some() {
        let mut names = contents::names(vault, tag).await?;
        names.retain(|name| name.run == manifest.run);
        let mut reading = std::pin::pin!(contents::read_all(vault, names));
        while let Some((_, list)) = reading.next().await {
            objects.extend(list?.objects().map(str::to_owned));
        }
    }
    Ok(objects)
}

/// Paths of all objects that a point needs, the log aside.
async fn needed_by(objects: &Objects, manifest: &Manifest) -> Result<HashSet<String>> {
    let mut needed: HashSet<String> = manifest.catalog_objects().cloned().collect();
    for layer in &manifest.layers {
        match objects.layer(&layer.object).await {
            Ok(read) => needed.extend(read.objects().map(str::to_owned)),
            // The layer itself is what is lost.
            Err(e) if e.kind() == ErrorKind::Missing => {}
            Err(e) => return Err(e),
        }
        needed.insert(layer.object.clone());
    }
    Ok(needed)
}
