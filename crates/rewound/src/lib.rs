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
//! | [`live`], [`events`] | source → vaults, for ever; what happens meanwhile |
//! | [`restore`] | vault → target, with proof |
//! | [`copy`] | source → target, with proof |
//! | [`mirror`] | source → folder, kept in step for ever |
//! | [`transfer`], [`proof`] | what was written, and whether it is exact |
//! | [`points`], [`choose`] | what can be restored, and which of it is meant |
//! | [`find`], [`diff`] | one document through time, and back; what changed between two times |
//! | [`verify`] | the whole vault, checked |
//! | [`drill`], [`status`] | restoring only to prove that it works; how well everything is backed up |
//! | [`time`] | what `--at` means |
//! | [`identity`], [`exit`] | keys; exit codes |

mod ahead;
pub mod backup;
mod checks;
pub mod choose;
mod compare;
pub mod copy;
pub mod diff;
pub mod drill;
pub mod events;
pub mod exit;
mod expiring;
pub mod find;
mod follow;
pub mod identity;
mod lanes;
pub mod live;
mod metered;
pub mod mirror;
mod opaque;
pub mod paced;
mod parts;
mod pending;
mod plain;
pub mod points;
pub mod progress;
pub mod proof;
pub mod registry;
pub mod restore;
mod round;
mod scan;
mod space;
mod spool;
pub mod status;
mod stop;
mod tee;
pub mod time;
pub mod transfer;
mod translate;
pub mod verify;

pub use progress::{Doing, Event, Job, NoObserver, Observer, Progress};
pub use space::bytes as human_bytes;
pub use stop::Stop;
