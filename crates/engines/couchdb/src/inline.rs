//! Attachments that are part of an entry: those that are small together.

use crate::document::Content;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use model::{AttachmentStream, Error, Kind, Result};
use std::io::Write;

/// Bytes of all attachments of one document up to which they are part of an entry (4 MiB): the change
/// log has no other place for them, and memory holds a few of these.
pub(crate) const INLINE_MAX: u64 = 4 << 20;

/// The kind of such entries.
pub(crate) fn kind() -> Kind {
    Kind::Meta("attached".into())
}

/// Whether contents are part of an entry.
pub(crate) fn fits(contents: &[Content]) -> bool {
    contents.iter().map(|c| c.bytes).sum::<u64>() <= INLINE_MAX
}

/// Adds the content to what an entry says.
pub(crate) async fn add(about: Vec<u8>, mut content: AttachmentStream) -> Result<Vec<u8>> {
    let mut entry = about;
    entry.pop();
    entry.extend_from_slice(b",\"data\":\"");
    let mut encoder = base64::write::EncoderWriter::new(&mut entry, &STANDARD);
    let failed = |e: std::io::Error| Error::bug("a content was not encoded").caused_by(e);
    while let Some(piece) = content.next().await {
        encoder.write_all(&piece?).map_err(failed)?;
    }
    encoder.finish().map_err(failed)?;
    drop(encoder);
    entry.extend_from_slice(b"\"}");
    Ok(entry)
}

/// The content of an entry.
pub(crate) fn content(data: &str) -> Result<Vec<u8>> {
    STANDARD.decode(data).map_err(|e| Error::corrupt("the content of an attachment is no base64").caused_by(e))
}
