//! What was planned, lost, skipped, written.

use serde::{Deserialize, Serialize};

/// Something that cannot come back, named before the work starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// What it concerns: a collection, a document, a file.
    pub what: String,
    /// What is lost, and why.
    pub why: String,
}

/// Something that was left out because it is bad, on the user's request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// What was left out: a file with its line, a document.
    pub what: String,
    /// Why.
    pub why: String,
}

/// What a sink is going to do, found out without side effects.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RestorePlan {
    /// The steps, in order, for people.
    pub phases: Vec<String>,
    /// Collections with their names in the target.
    pub collections: Vec<PlannedCollection>,
    /// What will not be the same in the target. Not empty means that the caller must ask.
    pub losses: Vec<Loss>,
}

/// One collection of a [`RestorePlan`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlannedCollection {
    /// The collection as the source has it.
    pub info: crate::CollectionInfo,
    /// Its name in the target.
    pub target: String,
}

/// What a sink wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreReport {
    /// Documents written (without attachments).
    pub documents: u64,
    /// Attachments written.
    pub attachments: u64,
    /// Bytes of documents and attachments.
    pub bytes: u64,
    /// What else was done, for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What an abandoned restore left behind in the target.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leftovers {
    /// One line for each thing that is still there, for people.
    pub what: Vec<String>,
}
