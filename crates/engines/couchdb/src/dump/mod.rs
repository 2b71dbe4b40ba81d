//! The dumps that people have: those of couchdb-dump (and of Convertigo FullSync, which wraps it), and
//! those of couchbackup.

mod convert;
pub mod parse;
mod sink;
mod source;

pub use parse::{Flaw, Form, Found};
pub use sink::DumpSink;
pub use source::DumpSource;
