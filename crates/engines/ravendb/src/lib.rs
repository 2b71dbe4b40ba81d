//! RavenDB as a source and as a sink, and its dump format.

mod catalog;
mod certificate;
mod changes;
mod choice;
mod contents;
pub mod dump;
mod gather;
mod hold;
mod increment;
mod intake;
pub mod keys;
mod maker;
mod marks;
mod members;
mod metadata;
mod native;
mod proof;
mod ranges;
mod refusal;
mod replace;
mod server;
mod sink;
mod source;
mod temporary;
mod told;
mod upload;
mod wake;

pub use dump::{DumpSink, DumpSource};
pub use marks::{is_deletion, space_of_deletion};
pub use native::{Native, NativeKind, NativeSink, NativeSource, is_native, is_on_native};
pub use server::{Server, Tombstones};
pub use sink::RavenSink;
pub use source::RavenSource;
