//! MongoDB as a source and as a sink, and the formats of mongodump.

mod catalog;
mod command;
mod connect;
pub mod dump;
mod error;
mod expiry;
mod indexes;
mod insert;
pub mod jobflow;
mod json;
pub mod keys;
mod names;
mod place;
pub mod raw;
mod reply;
mod retry;
mod scan;
mod session;
mod sink;
mod source;
mod target;
mod views;

pub use catalog::{CollectionKind, Options};
pub use connect::{Server, ServerInfo};
pub use dump::{DumpSink, DumpSource};
pub use sink::MongoSink;
pub use source::MongoSource;
