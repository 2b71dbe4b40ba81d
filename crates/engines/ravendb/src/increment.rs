//! All changes of one transaction, and whether they are all that there were.
//!
//! The server tells neither that the counters of a document are gone, nor its time series: they go with
//! the document, which may be back already. But it counts them. What is there now is what was there, and
//! what is new, without what is gone; so that nothing is gone if all that may be new makes up the
//! difference.

use crate::catalog;
use crate::contents::etag_in;
use crate::dump::{Event, Input, Item, Reader, parse};
use crate::server::{Build, Server, Stats};
use crate::told::{Seen, Since, Told};
use async_trait::async_trait;
use model::{AttachmentStore, Batch, Error, ErrorKind, Result, Selection};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Bytes of changes that are read as one (256 MiB): whoever stores them holds them until they are
/// complete. What is more is a new scan.
const MOST: u64 = 256 << 20;
/// The first build that may know of deletions in time series. 5.4.115 does not, 6.2.4 does.
const WITH_RANGES: u64 = 54_107;

/// How many groups of counters and segments of time series a database holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Owned {
    counters: u64,
    series: u64,
}

impl Owned {
    pub fn of(stats: &Stats) -> Owned {
        Owned { counters: stats.count_of_counter_entries, series: stats.count_of_time_series_segments }
    }
}

/// Changes that are to be read.
pub(crate) struct Increment {
    pub server: Arc<Server>,
    pub since: Since,
    /// What there was then; none if nobody looked.
    pub owned: Option<Owned>,
    pub selection: Selection,
    pub store: Arc<dyn AttachmentStore>,
    /// The names of the collections that are known.
    pub known: Vec<String>,
    /// Whether deletions are told as entries of their own, for what only the server can look into.
    pub marks: bool,
}

/// Where an increment ends.
#[derive(Debug)]
pub(crate) struct End {
    /// The last etag that was seen.
    pub etag: u64,
    pub owned: Option<Owned>,
}

/// Takes batches of changes.
#[async_trait]
pub(crate) trait Taker: Send {
    /// The transaction is open: what it shows is the state of now.
    fn begins(&mut self);
    async fn take(&mut self, batch: Batch) -> Result<()>;
}

/// Takes nothing, as it is only to be found out whether everything can be told.
pub(crate) struct Nothing;

#[async_trait]
impl Taker for Nothing {
    fn begins(&mut self) {}

    async fn take(&mut self, _: Batch) -> Result<()> {
        Ok(())
    }
}

impl Increment {
    /// Reads everything; an error of the kind `HistoryLost` says why that is not possible.
    pub async fn read(self, taker: &mut dyn Taker, dry: bool) -> Result<End> {
        let build = self.server.build().await?;
        let before = self.server.must_stats().await?.etag();
        let input = self.export(&build).await?;
        taker.begins();
        let mut reader = Reader::new(input);
        let (server, since) = (self.server.clone(), self.since.clone());
        let mut told = Told::new(server, since, self.selection, self.store, self.known, dry);
        if self.marks {
            told.mark_deletions();
        }
        let (mut last, mut bytes) = (before, 0);
        while let Some(event) = reader.next().await? {
            if let Event::Item(item) = &event {
                last = last.max(etag_of(item, &self.since.database));
                bytes += item.body.len() as u64;
            }
            for batch in told.take(&mut reader, event).await? {
                // A place may hold the content itself; what else there is of it is where it stays already.
                bytes += batch.attachments.iter().map(|a| a.place.len() as u64).sum::<u64>();
                taker.take(batch).await?;
            }
            if bytes > MOST {
                return Err(lost(format!("more than {} MiB have changed", MOST >> 20)));
            }
        }
        for batch in told.finish().await? {
            taker.take(batch).await?;
        }
        let after = self.server.must_stats().await?;
        if after.conflicts() > 0 {
            return Err(lost("the database holds conflicts".into()));
        }
        let owned = (after.etag() == last).then(|| Owned::of(&after));
        match may_be_gone(self.owned, owned, &told.seen) {
            None => Ok(End { etag: last, owned }),
            Some(_) if told.seen.documents == 0 => Err(lost("values of a time series were deleted".into())),
            Some(what) => Err(lost(format!(
                "documents have changed, and whether any was deleted with its {what} the server does not tell"
            ))),
        }
    }

    /// Everything since, with the deletions in time series where the server knows of such.
    async fn export(&self, build: &Build) -> Result<Input> {
        let (types, from) = (catalog::of_changes(build), Some(self.since.etag + 1));
        if build.build >= WITH_RANGES {
            let all = [types, &[catalog::RANGES]].concat();
            match self.server.export(build, &all, None, from).await {
                // It was not told by its build whether it knows.
                Err(e) if e.message().contains("DatabaseItemType") => {}
                other => return other,
            }
        }
        self.server.export(build, types, None, from).await
    }
}

fn lost(why: String) -> Error {
    Error::new(ErrorKind::HistoryLost, why)
}

/// What may be gone with documents that were deleted; none if nothing can be.
fn may_be_gone(then: Option<Owned>, now: Option<Owned>, seen: &Seen) -> Option<&'static str> {
    if seen.documents == 0 && seen.ranges == 0 {
        return None;
    }
    let one = |then: Option<u64>, now: Option<u64>, new: u64| match (then, now) {
        (Some(0), _) => false,
        (Some(then), Some(now)) => now != then + new,
        _ => true,
    };
    if seen.documents > 0 && one(then.map(|t| t.counters), now.map(|n| n.counters), seen.counters) {
        return Some("counters");
    }
    one(then.map(|t| t.series), now.map(|n| n.series), seen.series).then_some("time series")
}

/// The etag that an item has in a database: a part of its change vector, or its own.
fn etag_of(item: &Item, database: &str) -> u64 {
    #[derive(Deserialize)]
    struct Head<'a> {
        #[serde(rename = "Etag")]
        etag: Option<u64>,
        #[serde(borrow, rename = "ChangeVector")]
        vector: Option<std::borrow::Cow<'a, str>>,
        #[serde(borrow, rename = "@metadata")]
        metadata: Option<Inner<'a>>,
        #[serde(borrow, rename = "@raven-data")]
        data: Option<Series<'a>>,
    }
    #[derive(Deserialize)]
    struct Inner<'a> {
        #[serde(borrow, rename = "@change-vector")]
        vector: Option<std::borrow::Cow<'a, str>>,
    }
    #[derive(Deserialize)]
    struct Series<'a> {
        #[serde(borrow, rename = "ChangeVector")]
        vector: Option<std::borrow::Cow<'a, str>>,
    }
    let Ok(head) = parse::<Head<'_>>(&item.body, "an item") else { return 0 };
    let vectors = [head.vector, head.metadata.and_then(|m| m.vector), head.data.and_then(|d| d.vector)];
    let of_vector = vectors.into_iter().flatten().filter_map(|vector| etag_in(&vector, database)).max();
    head.etag.into_iter().chain(of_vector).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etags_are_the_databases_own() {
        let item = |body: &'static str| Item { section: "Docs".into(), body: body.into(), metadata: None, blob: None };
        let vector = r#"{"@metadata":{"@change-vector":"A:31-me, B:99-other"}}"#;
        assert_eq!(etag_of(&item(vector), "me"), 31);
        assert_eq!(etag_of(&item(r#"{"Etag":12,"ChangeVector":"A:3-me"}"#), "me"), 12);
        assert_eq!(etag_of(&item(r#"{"DocId":"a","ChangeVector":"A:83-me"}"#), "me"), 83);
        assert_eq!(etag_of(&item(r#"{"@raven-data":{"ChangeVector":"A:84-me"}}"#), "me"), 84);
        assert_eq!(etag_of(&item("{}"), "me"), 0);
    }

    #[test]
    fn nothing_is_gone_if_what_may_be_new_makes_up_the_difference() {
        let owned = |counters, series| Some(Owned { counters, series });
        let seen = |documents, counters, series| Seen { documents, counters, series, ranges: 0 };
        // Values of a time series are gone, and perhaps whole segments.
        let ranges = Seen { ranges: 1, series: 1, ..Seen::default() };
        assert_eq!(may_be_gone(owned(5, 5), owned(9, 5), &ranges), Some("time series"));
        assert_eq!(may_be_gone(owned(5, 5), owned(9, 6), &ranges), None);
        for (then, now, told, gone) in [
            (owned(5, 5), owned(5, 5), seen(3, 0, 0), None),
            (owned(5, 5), owned(6, 7), seen(3, 1, 2), None),
            (owned(0, 0), owned(1, 2), seen(3, 9, 9), None),
            (owned(5, 5), None, seen(0, 4, 4), None),
            (owned(5, 5), owned(4, 5), seen(3, 0, 0), Some("counters")),
            (owned(5, 5), owned(5, 5), seen(3, 1, 0), Some("counters")),
            (owned(5, 5), owned(5, 5), seen(3, 0, 1), Some("time series")),
            (owned(5, 5), None, seen(3, 0, 0), Some("counters")),
            (None, owned(5, 5), seen(3, 0, 0), Some("counters")),
            (None, owned(0, 0), seen(3, 0, 0), Some("counters")),
        ] {
            assert_eq!(may_be_gone(then, now, &told), gone, "{then:?} {now:?} {told:?}");
        }
    }
}
