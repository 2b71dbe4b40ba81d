//! Folders of JSON documents, as a source and as a sink.

mod check;
mod collection;
mod files;
pub mod json;
mod keys;
mod layout;
mod leftovers;
mod marker;
pub mod mirror;
mod names;
mod read;
mod session;
mod sink;
mod source;
pub mod split;
mod target;
mod walk;
mod writer;

pub use sink::FolderSink;
pub use source::FolderSource;
