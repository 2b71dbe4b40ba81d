//! Reading back: the state of a point, one document, the content of attachments.

mod contents;
mod find;
mod overlay;
mod segments;
mod state;

pub use find::Version;
pub(crate) use segments::Segments;
pub use state::State;
