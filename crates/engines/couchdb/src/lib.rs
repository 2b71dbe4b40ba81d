//! CouchDB, PouchDB servers, Cloudant and FullSync as sources and sinks, with the dumps of their tools.

mod changes;
mod client;
mod content;
mod document;
mod error;
mod extras;
mod fetch;
mod inline;
mod leaf;
mod members;
mod place;
mod position;
mod read;
mod rows;
mod server;
mod source;

pub use place::Place;
pub use server::{Server, SharedServer};
pub use source::CouchSource;
