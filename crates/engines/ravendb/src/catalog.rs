//! The collections of a database, and what is exported of them.

use crate::gather::collection_id;
use crate::server::Build;
use model::CollectionInfo;

/// A collection by the name that the server gives it.
pub(crate) fn info(name: &str) -> CollectionInfo {
    CollectionInfo { id: collection_id(name), name: name.to_owned(), options: serde_json::Value::Null, ordered: false }
}

/// What is exported of a collection. Servers refuse types that they do not know.
pub(crate) fn of_collection(build: &Build) -> &'static [&'static str] {
    match build.build {
        ..42_000 => &["Documents", "RevisionDocuments", "Conflicts", "Counters"],
        42_000..50_000 => &["Documents", "RevisionDocuments", "Attachments", "Conflicts", "CounterGroups"],
        _ => &["Documents", "RevisionDocuments", "Attachments", "Conflicts", "CounterGroups", "TimeSeries"],
    }
}

/// What is exported of the database itself.
pub(crate) fn of_database(build: &Build) -> &'static [&'static str] {
    match build.build {
        ..50_000 => &["DatabaseRecord", "Indexes", "Identities", "CompareExchange"],
        _ => &[
            "DatabaseRecord",
            "Indexes",
            "Identities",
            "CompareExchange",
            "Subscriptions",
            "ReplicationHubCertificates",
        ],
    }
}

/// Deletions in time series, which servers tell from some 5.4 or 6.0 on; older ones keep what they have
/// deleted as empty segments.
pub(crate) const RANGES: &str = "TimeSeriesDeletedRanges";

/// The sections of dumps that are known. What newer servers add is kept as it came, and named.
const SECTIONS: &[&str] = &[
    "BuildVersion",
    "DatabaseRecord",
    "Docs",
    "RevisionDocuments",
    "Tombstones",
    "Conflicts",
    "Indexes",
    "Identities",
    "CompareExchange",
    "CompareExchangeTombstones",
    "Counters",
    "CounterGroups",
    "Subscriptions",
    "TimeSeries",
    RANGES,
    "ReplicationHubCertificates",
];

/// Whether it is known what a section of a dump holds.
pub(crate) fn is_known(section: &str) -> bool {
    SECTIONS.contains(&section)
}

/// What is exported of changes.
pub(crate) fn of_changes(build: &Build) -> &'static [&'static str] {
    match build.build {
        ..42_000 => &["Documents", "RevisionDocuments", "Tombstones"],
        42_000..50_000 => &["Documents", "RevisionDocuments", "Attachments", "Tombstones", "CounterGroups"],
        _ => &["Documents", "RevisionDocuments", "Attachments", "Tombstones", "CounterGroups", "TimeSeries"],
    }
}
