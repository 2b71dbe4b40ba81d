//! CouchDB, PouchDB servers, Cloudant and FullSync as sources and sinks, with the dumps of their tools.

mod answer;
mod attach;
mod changes;
mod client;
mod content;
mod copies;
mod document;
pub mod dump;
mod error;
mod extras;
mod fetch;
mod inline;
mod leaf;
mod members;
mod past;
mod place;
pub mod plain;
mod position;
mod quick;
mod read;
mod replace;
mod revise;
mod rewind;
mod rows;
mod server;
mod session;
mod sink;
mod source;
mod wake;
mod writer;

pub use answer::{LeafSpot, leaves_in_answer};
pub use document::is_deletion;
pub use place::Place;
pub use server::{Server, SharedServer};
pub use sink::CouchSink;
pub use source::CouchSource;
