//! What a vault knows of a file that RavenDB made.

use crate::server::{Build, Stats};
use model::{Error, Result};
use serde::{Deserialize, Serialize};

/// What is said of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    /// The type of the backup, as the server calls it.
    #[serde(rename = "type")]
    pub kind: String,
    pub size: u64,
    /// The server's version.
    pub server: String,
    pub database: String,
    /// What the database held when the backup began.
    pub held: Counts,
    /// Whether nothing was written to it meanwhile, so that the backup holds just that.
    pub steady: bool,
}

/// What the change log says of the database as a whole, at its last change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Standing {
    /// What it held.
    pub held: Counts,
    /// Whether nothing was written to it since the changes were read, so that they lead to just that.
    pub steady: bool,
}

/// Numbers of a database.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Counts {
    documents: u64,
    counters: u64,
    time_series: u64,
    indexes: u64,
    revisions: u64,
    attachments: u64,
}

impl Counts {
    pub fn of(stats: &Stats) -> Counts {
        Counts {
            documents: stats.count_of_documents,
            counters: stats.count_of_counter_entries,
            time_series: stats.count_of_time_series_segments,
            indexes: stats.count_of_indexes,
            revisions: stats.count_of_revision_documents,
            attachments: stats.count_of_attachments,
        }
    }

    /// What is not as it was in a database that RavenDB restored, for people. Restoring a backup of the type
    /// Backup makes revisions, where the database makes any: there may be more, with their attachments.
    ///
    /// What changes say of time series may come in other segments than it was in; indexes are compared
    /// themselves then, as the numbers may have been taken when there was one more or less.
    pub fn missing_in(&self, now: &Counts, has_changes: bool) -> Vec<String> {
        let or_then = |now: u64, then: u64| if has_changes { then } else { now };
        let all = [
            (self.documents, now.documents, true, "documents"),
            (self.counters, now.counters, true, "documents with counters"),
            (self.time_series, or_then(now.time_series, self.time_series), true, "segments of time series"),
            (self.indexes, or_then(now.indexes, self.indexes), true, "indexes"),
            (self.revisions, now.revisions, false, "revisions"),
            (self.attachments, now.attachments, false, "attachments"),
        ];
        let wrong = all.into_iter().filter(|(then, now, exact, _)| now < then || (*exact && now != then));
        wrong.map(|(then, now, _, what)| format!("{now} {what} instead of {then}")).collect()
    }

    /// For people.
    pub fn text(&self) -> String {
        format!(
            "{} documents, {} revisions, {} attachments, {} indexes",
            self.documents, self.revisions, self.attachments, self.indexes
        )
    }
}

impl Entry {
    pub fn new(kind: &str, build: &Build, database: String, held: Counts, steady: bool) -> Entry {
        Entry { kind: kind.to_owned(), size: 0, server: build.version(), database, held, steady }
    }

    pub fn of(body: &[u8]) -> Result<Entry> {
        serde_json::from_slice(body)
            .map_err(|e| Error::corrupt(format!("what the vault says of a file of RavenDB cannot be read: {e}")))
    }

    pub fn body(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|e| Error::bug("what is said of a file").caused_by(e))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn numbers_that_differ_are_named() {
        let then = Counts { documents: 5, revisions: 3, indexes: 1, ..Counts::default() };
        assert!(then.missing_in(&then, false).is_empty());
        let more = Counts { revisions: 4, attachments: 1, ..then.clone() };
        assert!(then.missing_in(&more, false).is_empty(), "RavenDB makes revisions");
        let other = Counts { documents: 6, revisions: 2, ..then.clone() };
        assert_eq!(then.missing_in(&other, false), ["6 documents instead of 5", "2 revisions instead of 3"]);
    }

    #[test]
    fn what_is_said_of_a_file_is_read_back() {
        let build = Build { build: 54106, full: "5.4.115".into() };
        let entry = Entry::new("Backup", &build, "d".into(), Counts { documents: 2, ..Counts::default() }, true);
        assert_eq!(Entry::of(&entry.body().unwrap()).unwrap(), entry);
        assert!(Entry::of(b"{}").is_err());
    }
}
