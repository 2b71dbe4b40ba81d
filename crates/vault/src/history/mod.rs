//! Which times of a source can be restored: intervals, points and gaps, told from one listing and
//! the points alone.

mod cover;
mod facts;
mod logs;

pub(crate) use cover::{history as history_of, is_whole};
pub(crate) use facts::Facts;
pub(crate) use logs::{LogEntry, LogTable};

use crate::name::{HISTORY, LogName};
use crate::points::Points;
use crate::vault::{Inner, Vault};
use futures::TryStreamExt;
use model::{EngineTime, Error, Gap, Result};
use serde::Serialize;
use std::collections::BTreeSet;

/// What can be restored of one source.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct History {
    /// The source's tag.
    pub source: String,
    /// What people call it; none if it has no point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Any time within them can be restored; oldest first, apart from each other.
    pub intervals: Vec<Interval>,
    /// The points, by the times that they restore.
    pub points: Vec<Moment>,
    /// Where history was lost.
    pub gaps: Vec<Gap>,
}

/// Times without a hole between them, in milliseconds since 1970 UTC; both can be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Interval {
    /// The first of them.
    pub from: i64,
    /// The last of them.
    pub to: i64,
}

/// A point, as a moment that can be restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Moment {
    /// The point's id.
    pub point: String,
    /// The time that it restores.
    pub time: EngineTime,
    /// When it was committed.
    #[serde(skip)]
    pub(crate) committed: i64,
}

impl History {
    /// Whether exactly this time can be restored.
    pub fn is_restorable(&self, millis: i64) -> bool {
        self.intervals.iter().any(|i| i.from <= millis && millis <= i.to)
            || self.points.iter().any(|p| p.time.millis == millis)
    }

    /// The nearest times that can be restored: the last at or before a time, the first after it.
    pub fn nearest(&self, millis: i64) -> (Option<i64>, Option<i64>) {
        let points = self.points.iter().map(|p| Interval { from: p.time.millis, to: p.time.millis });
        let all: Vec<Interval> = self.intervals.iter().copied().chain(points).collect();
        let before = all.iter().filter(|i| i.from <= millis).map(|i| i.to.min(millis)).max();
        let after = all.iter().filter(|i| i.to > millis).map(|i| i.from.max(millis + 1)).min();
        (before, after)
    }

    /// The gap that a time lies in.
    pub fn gap_at(&self, millis: i64) -> Option<&Gap> {
        self.gaps.iter().find(|g| g.from.millis < millis && g.to.is_none_or(|to| millis < to.millis))
    }

    /// For an error about a time that cannot be restored: which ones near it can.
    pub fn hint(&self, millis: i64) -> String {
        let text = |millis: i64| EngineTime { order: 0, millis }.to_string();
        match self.nearest(millis) {
            (Some(before), Some(after)) => {
                format!("the nearest times that can be restored are {} and {}", text(before), text(after))
            }
            (Some(before), None) => format!("the last time that can be restored is {}", text(before)),
            (None, Some(after)) => format!("the first time that can be restored is {}", text(after)),
            (None, None) => "nothing of this source can be restored yet".to_owned(),
        }
    }
}

impl Vault {
    /// What can be restored of one source, by its tag.
    pub async fn history(&self, source: &str) -> Result<History> {
        let points = self.points().await?;
        let histories = self.histories(&points).await?;
        let found = histories.into_iter().find(|h| h.source == source);
        found.ok_or_else(|| Error::missing(format!("the vault holds no source {source}")))
    }

    /// What can be restored of each source; `points` are those of the vault.
    pub async fn histories(&self, points: &Points) -> Result<Vec<History>> {
        let log = log_table(&self.inner, HISTORY).await?;
        let removed = crate::prune::removed(&self.inner).await?;
        let facts: Vec<Facts> = points.points.iter().map(|p| Facts::of(p.name.clone(), &p.manifest)).collect();
        let tags: BTreeSet<&str> = facts.iter().map(|f| f.name.source.as_str()).chain(log.sources()).collect();
        let of = |tag: &&str| {
            let facts: Vec<&Facts> = facts.iter().filter(|f| f.name.source == **tag).collect();
            history_of(&log, tag, &facts, removed.gaps_of(tag), |_| true)
        };
        Ok(tags.iter().map(of).collect())
    }
}

/// All objects of the log whose names begin so.
pub(crate) async fn log_table(vault: &Inner, prefix: &str) -> Result<LogTable> {
    let mut log = LogTable::default();
    let mut entries = vault.storage.list(prefix).await?;
    while let Some(entry) = entries.try_next().await? {
        if let Some(name) = LogName::parse(&entry.name) {
            log.push(&name, entry.size);
        }
    }
    Ok(log.finish())
}

#[cfg(test)]
mod tests;
