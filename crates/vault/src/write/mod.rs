//! Writing a point: from batches to objects.

mod alive;
mod contents;
mod filters;
mod known;
mod packer;
mod run;

pub(crate) use alive::ACTIVE;
pub(crate) use contents::Place;
pub use run::{BackupOptions, PointDetails, Run, WriteOutcome};
