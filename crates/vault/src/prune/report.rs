//! What a prune did, or would do.

use super::policy::Reason;
use crate::history::History;
use model::EngineTime;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What a prune did; in a dry run, what it would do.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct PruneReport {
    /// Whether nothing was touched.
    pub dry_run: bool,
    /// Objects removed, points not counted.
    pub removed: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The same by folder.
    pub by_folder: BTreeMap<String, Amount>,
    /// Objects that will be removed by a later prune, once the runs in `waits_for` have ended.
    pub pending: u64,
    /// Runs and readers that must end, or be silent, before anything more is removed.
    pub waits_for: Vec<String>,
    /// With rules: each point of the sources that they are about, oldest first.
    pub points: Vec<PointFate>,
    /// What can be restored afterwards, by source; with rules or in a dry run.
    pub remaining: Vec<History>,
}

/// So many objects of so many bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// How many.
    pub objects: u64,
    /// Stored bytes.
    pub bytes: u64,
}

/// What becomes of a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PointFate {
    /// The point's id.
    pub id: String,
    /// The source's tag.
    pub tag: String,
    /// What people call the source.
    pub source: String,
    /// The time that it restores.
    pub time: EngineTime,
    /// Why it is kept; nothing: it is removed.
    pub kept: BTreeSet<Reason>,
}

impl PruneReport {
    pub(super) fn count(&mut self, path: &str, bytes: u64) {
        let folder = match path.split_once('/') {
            Some(("history", _)) => "log",
            Some((folder, _)) => folder,
            None => path,
        };
        self.removed += 1;
        self.bytes += bytes;
        let amount = self.by_folder.entry(folder.to_owned()).or_default();
        amount.objects += 1;
        amount.bytes += bytes;
    }

    /// Points that are removed.
    pub fn removed_points(&self) -> impl Iterator<Item = &PointFate> {
        self.points.iter().filter(|p| p.kept.is_empty())
    }
}
