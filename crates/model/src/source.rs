//! Where documents come from.

use crate::{
    AttachmentStore, Batch, CollectionId, CollectionInfo, Description, Engine, EngineTime, Error, Position, Result,
    Selection, Skipped,
};
use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What a scan gives.
pub type ScanStream = BoxStream<'static, Result<ScanItem>>;
/// What following changes gives.
pub type ChangeStream = BoxStream<'static, Result<ChangeItem>>;

/// What is known of a source from its last point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceState {
    /// Identity of the source at that point.
    pub identity: String,
    /// Where to go on, if the engine has resume points.
    pub position: Option<Position>,
    /// The engine time of that point.
    pub time: EngineTime,
}

/// How a source is going to be read.
#[derive(Debug, Clone, PartialEq)]
pub enum Plan {
    /// Everything is read, part by part; what has not changed is found out by comparing.
    Scan {
        /// The resume point taken before the scan, from which changes would go on.
        start: Option<Position>,
        /// What is read, largest first where that is known.
        parts: Vec<Part>,
        /// The engine time that everything is read at; none if each part says so itself, or nothing
        /// does.
        at: Option<EngineTime>,
        /// What can be said of the state that the scan sees.
        consistency: Consistency,
        /// Bad input that is left out, on the user's request.
        skipped: Vec<Skipped>,
    },
    /// Only changes since a position are read.
    Changes {
        /// Where they start.
        from: Position,
    },
    /// History was lost; after recording the gap, everything is read again.
    Gap {
        /// What was lost.
        gap: Gap,
        /// The new scan.
        then: Box<Plan>,
    },
}

/// What can be said of the state that a scan sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// All documents as they were at one time.
    OneTime,
    /// Each document as it was when it was read.
    PerDocument,
}

/// A piece of a scan that can be read on its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// The collection it belongs to.
    pub collection: CollectionInfo,
    /// What the engine needs to find it; opaque to others.
    pub token: String,
    /// Documents expected, where known.
    pub documents: Option<u64>,
    /// Bytes expected, attachments included, where known.
    pub bytes: Option<u64>,
}

/// An interval in which history was lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The last time that is known.
    pub from: EngineTime,
    /// The first time that is known again; none while it is still open.
    pub to: Option<EngineTime>,
    /// Why.
    pub why: String,
}

impl Gap {
    /// Whether nothing is lost: only a scan shows what has changed, but of the times since the last that
    /// is known none could have been restored anyway, as the feed tells states only.
    pub fn is_empty(&self) -> bool {
        self.to.is_some_and(|to| to.order <= self.from.order)
    }
}

/// One item of a scan.
#[derive(Debug, Clone)]
pub enum ScanItem {
    /// Documents.
    Batch(Batch),
    /// What a collection is now; comes before its first batch if it differs from the plan's.
    Catalog(CollectionInfo),
    /// Something bad was left out, on the user's request.
    Skipped(Skipped),
    /// The part's collection no longer exists: nothing that was given of it counts.
    Gone,
    /// Nothing that was given of the part's collection counts, from any of its parts: it is to be
    /// read again by these ones.
    Again(Vec<Part>),
    /// What follows is as it was at `true_at`, or newer where the engine cannot read at a time.
    Progress {
        /// The engine time that the documents from here on are true at.
        true_at: EngineTime,
    },
}

/// Until when to follow changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Until there is nothing more right now.
    Now,
    /// For ever.
    Stopped,
}

/// Where to go on following a source, and what was known there.
#[derive(Debug, Clone, PartialEq)]
pub struct Following {
    /// The changes after this position.
    pub position: Position,
    /// The engine time of that position.
    pub time: EngineTime,
    /// The collections as they were at that position, or as a scan that began there found them.
    pub collections: Vec<CollectionInfo>,
    /// What of the source is wanted.
    pub selection: Selection,
}

/// One item of a feed of changes.
#[derive(Debug, Clone)]
pub enum ChangeItem {
    /// Changes.
    Batch(ChangeBatch),
    /// A collection was made or is another from now on.
    Catalog {
        /// What it is from now on; none: it was dropped, with everything in it.
        info: Option<CollectionInfo>,
        /// Which one.
        collection: CollectionId,
        /// When.
        time: EngineTime,
    },
    /// All changes so far are complete up to this position: a restore may stop here.
    Commit {
        /// Where to go on.
        position: Position,
        /// The engine time up to which all changes have been given.
        time: EngineTime,
    },
    /// History was lost, or, if it is empty, cannot be told by changes.
    Gap(Gap),
}

/// Changes of one collection and one kind.
#[derive(Debug, Clone)]
pub struct ChangeBatch {
    /// Keys, and bodies of documents, patches or nothing.
    pub batch: Batch,
    /// The engine time of each change, in the order of the documents of the batch.
    pub times: Vec<EngineTime>,
}

/// A database, a dump, a folder or a vault that documents can be read from.
#[async_trait]
pub trait Source: Send + Sync {
    /// What it is: identity, version, collections, feed, and what a backup of it cannot contain.
    async fn describe(&self) -> Result<Description>;

    /// The engine whose documents it holds in another form, all of them, where it is only the form
    /// that is its own: a folder that a database was copied to.
    async fn origin(&self) -> Result<Option<Engine>> {
        Ok(None)
    }

    /// How it will be read, with everything checked that can be checked beforehand: bad input is
    /// refused here, before anything is written anywhere.
    async fn plan(&self, selection: &Selection, last: Option<&SourceState>) -> Result<Plan>;

    /// How many parts are best read side by side. With more than one, reading may begin before what
    /// was read before is stored.
    fn side_by_side(&self) -> usize {
        1
    }

    /// Reads all parts of a plan at once, where that gives one state, and reading them one after the other
    /// would not. Batches come in any order of collections, none of which is ordered; one that is in
    /// none of the parts is announced first. None: the parts are read one by one.
    async fn read_together(&self, parts: &[Part], attachments: Arc<dyn AttachmentStore>) -> Result<Option<ScanStream>> {
        let _ = (parts, attachments);
        Ok(None)
    }

    /// Reads one part of a plan to its end. Content of attachments goes to `attachments` before
    /// the batch that refers to it comes out. Documents of an ordered collection come in order.
    async fn read(&self, part: &Part, attachments: Arc<dyn AttachmentStore>) -> Result<ScanStream>;

    /// Follows changes from a position. Sources without a feed say that they have none.
    ///
    /// Changes may be grouped by collection and kind between two commits: their times tell the order,
    /// and where those are equal the order in which they are given. Everything that the engine did at one time, a transaction for one, lies between two
    /// commits. A commit comes at least every second while the feed is followed for ever, also if
    /// nothing has changed. A position that the engine no longer reaches gives a gap as the first
    /// item, and nothing after it.
    async fn changes(
        &self,
        from: &Following,
        until: Until,
        attachments: Arc<dyn AttachmentStore>,
    ) -> Result<ChangeStream> {
        let _ = (from, until, attachments);
        Err(Error::unsupported("this source has no feed of changes"))
    }

    /// All up to this position is stored: the engine may forget its part of the history.
    async fn durable(&self, upto: &Position) -> Result<()> {
        let _ = upto;
        Ok(())
    }
}

/// Applies an engine's patches ([`Kind::Patch`](crate::Kind::Patch)) to documents, byte for byte as
/// the engine itself does.
pub trait Patcher: Send + Sync {
    /// Appends the document that `body` becomes. After an error any part of it may be there.
    fn apply(&self, body: &[u8], patch: &[u8], into: &mut Vec<u8>) -> Result<()>;

    /// The document that `body` becomes.
    fn applied(&self, body: &[u8], patch: &[u8]) -> Result<Vec<u8>> {
        let mut made = Vec::with_capacity(body.len() + patch.len());
        self.apply(body, patch, &mut made)?;
        Ok(made)
    }
}
