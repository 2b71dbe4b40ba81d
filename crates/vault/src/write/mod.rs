//! Writing a point: from batches to objects.

mod alive;
mod chain;
mod changed;
mod contents;
mod filters;
mod known;
mod packer;
mod pieces;
mod run;

pub(crate) use alive::ACTIVE;
pub(crate) use contents::Place;
pub(crate) use filters::FilterBuilder;
pub use run::{BackupOptions, PointDetails, Run, WriteOutcome};
