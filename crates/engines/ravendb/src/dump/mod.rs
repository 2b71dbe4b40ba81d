//! RavenDB's dump format (`.ravendbdump`): what its export gives, its import takes, and its native
//! backups are made of.

pub mod decode;
pub(crate) mod files;
pub mod parser;
mod reader;
mod sink;
mod source;
mod walk;
mod write;

pub use sink::DumpSink;
pub use source::DumpSource;

pub(crate) use parser::{Event, Item, parse};
pub(crate) use reader::{Input, Reader};
pub(crate) use sink::Target;
pub(crate) use write::{Compressor, Writer, attachment_head};
