//! What a source is and which collections it has.

use crate::{CollectionId, Loss};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A kind of database.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Engine(pub String);

impl Engine {
    /// The engine with this name: `folder`, `mongodb`, …
    pub fn new(name: &str) -> Self {
        Engine(name.to_owned())
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which changes an engine tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FeedKind {
    /// Every change, in order: any time can be restored.
    EveryChange,
    /// Only what a document is now: the moments at which we read can be restored.
    LatestState,
}

/// A source or an open target, described.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// The kind of database.
    pub engine: Engine,
    /// The engine's own identity of this source: the same database always has the same.
    pub identity: String,
    /// A short name for people, for example the database's.
    pub name: String,
    /// Version of the server or format.
    pub version: String,
    /// Which changes it tells.
    pub feed: FeedKind,
    /// The collections, in the order in which they are restored.
    pub collections: Vec<CollectionInfo>,
    /// What a backup of this source cannot contain.
    pub losses: Vec<Loss>,
}

/// One collection as the engine has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CollectionInfo {
    /// Its lasting identity.
    pub id: CollectionId,
    /// Its name now.
    pub name: String,
    /// Its options, indexes and whatever else the engine needs to make it again.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub options: serde_json::Value,
    /// Whether the order of documents (not of attachments) is part of the data (a file of lines, a
    /// capped collection).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ordered: bool,
}
