//! MongoDB as a source and as a sink, and the formats of mongodump.

mod catalog;
mod changes;
mod command;
mod connect;
pub mod dump;
mod error;
mod expiry;
pub mod extjson;
mod indexes;
mod insert;
pub mod jobflow;
mod json;
pub mod keys;
mod names;
mod patch;
mod place;
pub mod raw;
mod reply;
mod retry;
mod scan;
pub mod scratch;
mod session;
mod sink;
mod source;
mod target;
mod views;

pub use catalog::{CollectionKind, Options};
pub use connect::{Server, ServerInfo};
pub use dump::{DumpSink, DumpSource};
pub use patch::Patches;
pub use sink::MongoSink;
pub use source::MongoSource;
