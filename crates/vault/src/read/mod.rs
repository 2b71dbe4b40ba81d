//! Reading back: the state of a point, one document, the content of attachments.

mod at;
mod blocks;
mod bloom;
mod change;
mod contents;
mod diff;
mod find;
mod lookup;
mod merge;
mod overlay;
mod partitions;
mod segments;
mod spill;
mod state;
mod table;
mod there;

pub use diff::{Change, CollectionChange, Difference};
pub use find::{Version, Wanted};
pub(crate) use segments::Segments;
pub use state::State;
