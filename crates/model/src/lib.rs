//! The words that every part of Rewound speaks: documents in batches, collections, positions and
//! times, sources and sinks, errors, and the seams for clock and randomness.
//!
//! This crate imports nothing of Rewound. An engine crate imports only this one.

mod attachment;
mod batch;
mod catalog;
mod error;
pub mod limits;
mod pieces;
mod report;
mod seams;
mod selection;
mod sink;
mod source;
mod time;

pub use attachment::{
    AttachmentRef, AttachmentStore, AttachmentStream, ContentDigest, HashingStore, collect_attachment, is_inline,
};
pub use batch::{Batch, BatchBuilder, CollectionId, Doc, Encoding, Kind};
pub use catalog::{CollectionInfo, Description, Engine, FeedKind};
pub use error::{Error, ErrorKind, Result, ResultExt};
pub use pieces::{Piece, in_turn};
pub use report::{Leftovers, Loss, PlannedCollection, RestorePlan, RestoreReport, Skipped};
pub use seams::{Clock, FixedClock, OsRandom, Random, Seams, SeededRandom, SystemClock};
pub use selection::{IfExists, Indexes, RestoreOptions, Selection, glob_matches};
pub use sink::{Expired, Rehearsal, Sink, SinkSession};
pub use source::{
    ChangeBatch, ChangeItem, ChangeStream, Consistency, Following, Gap, Part, Patcher, Plan, ScanItem, ScanStream,
    Source, SourceState, Until,
};
pub use time::{EngineTime, Position};
