//! Reading back: the state of a point, one document, the content of attachments.

mod apply;
mod at;
mod base;
mod blocks;
mod bloom;
mod bodies;
mod change;
mod contents;
mod diff;
mod find;
mod gather;
mod hashes;
mod lookup;
mod merge;
mod out;
mod overlay;
mod partitions;
mod parts;
mod pass;
mod record;
mod segments;
mod spill;
mod state;
mod table;
mod there;
mod winners;

pub use diff::{Change, CollectionChange, Difference};
pub use find::{Version, Wanted};
pub(crate) use segments::Segments;
pub use state::State;

use std::sync::LazyLock;

/// Groups of frames that are decoded side by side: work for all processors, and some for those that are done
/// before what is wanted next; with four frames in a group that bounds what is decoded.
pub(crate) fn ahead() -> usize {
    // To ask reads files, and there may be very many small collections.
    static AHEAD: LazyLock<usize> =
        LazyLock::new(|| (std::thread::available_parallelism().map_or(2, usize::from) + 3).clamp(5, 12));
    *AHEAD
}
