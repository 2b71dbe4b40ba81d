//! Changes that were read and are not yet given to a vault.

use crate::tee::Tee;
use model::{ChangeBatch, CollectionId, CollectionInfo, EngineTime, Position, Result};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use vault::Flush;

/// A place in the history of a source, and the collections that there were.
#[derive(Debug, Clone)]
pub(crate) struct Mark {
    pub position: Position,
    pub time: EngineTime,
    pub collections: Arc<Vec<CollectionInfo>>,
}

/// A change of a collection itself.
pub(crate) type CatalogChange = (CollectionId, Option<CollectionInfo>, EngineTime);

impl Mark {
    /// Applies a change of a collection.
    fn apply(&mut self, change: &CatalogChange) {
        let (id, info, _) = change;
        let all = Arc::make_mut(&mut self.collections);
        let at = all.iter().position(|c| c.id == *id);
        match (at, info) {
            (Some(at), Some(info)) => all[at] = info.clone(),
            (None, Some(info)) => all.push(info.clone()),
            (Some(at), None) => drop(all.remove(at)),
            (None, None) => {}
        }
    }
}

/// What a feed gave since its last commit.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pending {
    pub changes: Vec<ChangeBatch>,
    pub catalog: Vec<CatalogChange>,
    pub bytes: usize,
}

impl Pending {
    pub fn push(&mut self, change: ChangeBatch) {
        self.bytes += weight(&change);
        self.changes.push(change);
    }

    /// The same with the references to attachments that one of several stores made.
    pub fn of_store(&self, store: usize) -> Result<Cow<'_, Pending>> {
        if self.changes.iter().all(|change| change.batch.attachments.is_empty()) {
            return Ok(Cow::Borrowed(self));
        }
        let mut own = self.clone();
        for reference in own.changes.iter_mut().flat_map(|change| &mut change.batch.attachments) {
            *reference = Tee::of_store(reference, store)?;
        }
        Ok(Cow::Owned(own))
    }
}

/// Bytes that changes take in memory.
fn weight(change: &ChangeBatch) -> usize {
    let contents = change.batch.attachments.iter().map(|a| a.place.len()).sum::<usize>();
    contents + change.batch.body.len() + change.batch.keys.as_ref().map_or(0, |k| k.len()) + change.batch.len() * 32
}

/// What is going to be the next flush of a vault.
#[derive(Debug)]
pub(crate) struct Gathering {
    /// Where it goes to, if it goes anywhere.
    pub mark: Option<Mark>,
    pub changes: Vec<ChangeBatch>,
    pub catalog: Vec<CatalogChange>,
    pub bytes: usize,
    /// When the first change came.
    pub since: Option<Instant>,
    /// When the last commit came.
    pub seen: Instant,
    /// How old the changes of the last commit were when they came.
    pub old: Duration,
}

impl Default for Gathering {
    fn default() -> Self {
        Gathering {
            mark: None,
            changes: Vec::new(),
            catalog: Vec::new(),
            bytes: 0,
            since: None,
            seen: Instant::now(),
            old: Duration::ZERO,
        }
    }
}

impl Gathering {
    /// Adds what a commit completes; `from` is where this vault stands without it. What lies before
    /// that is left out: it has been given already.
    pub fn add(&mut self, from: &Mark, pending: &Pending, position: &Position, time: EngineTime, old: Duration) {
        let mark = self.mark.take().unwrap_or_else(|| from.clone());
        if time.order < mark.time.order {
            self.mark = Some(mark);
            return;
        }
        let after = mark.time;
        let before = (self.changes.len(), self.catalog.len());
        for change in &pending.changes {
            self.changes.extend(since(change, after));
        }
        self.catalog.extend(pending.catalog.iter().filter(|(.., t)| t.order > after.order).cloned());
        self.bytes += self.changes[before.0..].iter().map(weight).sum::<usize>();
        let mut mark = mark;
        self.catalog[before.1..].iter().for_each(|change| mark.apply(change));
        (mark.position, mark.time) = (position.clone(), time);
        self.mark = Some(mark);
        self.seen = Instant::now();
        if (self.changes.len(), self.catalog.len()) != before {
            self.since.get_or_insert(self.seen);
            self.old = old;
        }
    }

    pub fn has_changes(&self) -> bool {
        !self.changes.is_empty() || !self.catalog.is_empty()
    }

    /// Makes a flush of it.
    pub fn take(&mut self) -> Option<(Mark, Flush)> {
        let mark = self.mark.take()?;
        let flush = Flush {
            to: mark.position.clone(),
            time: mark.time,
            changes: std::mem::take(&mut self.changes),
            catalog: std::mem::take(&mut self.catalog),
        };
        (self.bytes, self.since) = (0, None);
        Some((mark, flush))
    }
}

/// The changes after a time.
fn since(change: &ChangeBatch, after: EngineTime) -> Option<ChangeBatch> {
    let is_later = |time: &EngineTime| time.order > after.order;
    if change.times.iter().all(is_later) {
        return Some(change.clone());
    }
    let keep: Vec<usize> = (0..change.times.len()).filter(|i| is_later(&change.times[*i])).collect();
    if keep.is_empty() {
        return None;
    }
    let mut part = change.clone();
    part.times = keep.iter().map(|i| change.times[*i]).collect();
    part.batch.docs = keep.iter().filter_map(|i| change.batch.docs.get(*i).copied()).collect();
    part.batch.attachments = keep.iter().filter_map(|i| change.batch.attachments.get(*i).cloned()).collect();
    Some(part)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use model::{BatchBuilder, Encoding, Kind};

    fn time(order: u64) -> EngineTime {
        EngineTime { order, millis: order as i64 }
    }

    fn change(times: &[u64]) -> ChangeBatch {
        let mut batch = BatchBuilder::new(CollectionId::new("c"), Kind::Document, Encoding::Bin);
        times.iter().for_each(|t| batch.push(&t.to_le_bytes(), b"body"));
        ChangeBatch { batch: batch.take(), times: times.iter().map(|t| time(*t)).collect() }
    }

    #[test]
    fn what_was_given_already_is_left_out() {
        let from = Mark { position: Position("5".into()), time: time(5), collections: Arc::default() };
        let info = |name: &str| CollectionInfo {
            id: CollectionId::new("c"),
            name: name.into(),
            options: serde_json::Value::Null,
            ordered: false,
        };
        let mut gathering = Gathering::default();
        let mut pending = Pending::default();
        pending.push(change(&[3, 5]));
        pending.catalog.push((CollectionId::new("c"), Some(info("old")), time(4)));
        gathering.add(&from, &pending, &Position("5".into()), time(5), Duration::ZERO);
        assert!(!gathering.has_changes() && gathering.since.is_none());
        // A commit from before it moves nothing.
        gathering.add(&from, &pending, &Position("4".into()), time(4), Duration::ZERO);
        pending.push(change(&[5, 6, 9]));
        pending.catalog.push((CollectionId::new("c"), Some(info("new")), time(7)));
        gathering.add(&from, &pending, &Position("9".into()), time(9), Duration::ZERO);
        let (mark, flush) = gathering.take().unwrap();
        assert_eq!((mark.position.0.as_str(), mark.time), ("9", time(9)));
        assert_eq!(mark.collections[0].name, "new");
        assert_eq!(flush.catalog.len(), 1);
        let times: Vec<u64> = flush.changes.iter().flat_map(|c| &c.times).map(|t| t.order).collect();
        assert_eq!(times, [6, 9]);
        assert_eq!(flush.changes[0].batch.key_of(1), 9_u64.to_le_bytes());
        assert!(gathering.take().is_none());
    }
}
