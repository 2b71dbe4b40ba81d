//! The library behind the program: what an application uses to back up, restore, copy, find and
//! verify.
//!
//! Nothing here prints. What goes on is told to an [`Observer`], what comes out is returned, and a
//! [`Stop`] ends work cleanly. Where to look:
//!
//! | module | subject |
//! |---|---|
//! | [`registry`] | what a URL means: sources, targets, vaults |
//! | [`backup`] | source → vaults |
//! | [`restore`] | vault → target, with proof |
//! | [`copy`] | source → target, with proof |
//! | [`transfer`], [`proof`] | what was written, and whether it is exact |
//! | [`points`], [`choose`] | what can be restored, and which of it is meant |
//! | [`find`], [`verify`] | one document through time; the whole vault, checked |
//! | [`time`] | what `--at` means |
//! | [`identity`], [`exit`] | keys; exit codes |

mod ahead;
pub mod backup;
pub mod choose;
pub mod copy;
pub mod exit;
pub mod find;
pub mod identity;
mod lanes;
mod metered;
pub mod paced;
mod parts;
pub mod points;
pub mod progress;
pub mod proof;
pub mod registry;
pub mod restore;
mod space;
mod spool;
mod stop;
mod tee;
pub mod time;
pub mod transfer;
pub mod verify;

pub use progress::{Doing, Event, Job, NoObserver, Observer, Progress};
pub use space::bytes as human_bytes;
pub use stop::Stop;
