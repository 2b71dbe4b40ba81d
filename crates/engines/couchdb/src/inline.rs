//! Attachments that are part of an entry: those that are small together.

use crate::document::Content;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use model::{AttachmentStream, Error, Kind, Result, limits};

/// The kind of such entries.
pub(crate) fn kind() -> Kind {
    Kind::Meta("attached".into())
}

/// Whether contents are part of an entry.
pub(crate) fn fits(contents: &[Content]) -> bool {
    contents.iter().map(|c| c.bytes).sum::<u64>() <= limits::ATTACHMENT_INLINE as u64
}

/// Adds the content to what an entry says.
pub(crate) async fn add(about: Vec<u8>, bytes: u64, mut content: AttachmentStream) -> Result<Vec<u8>> {
    let mut all = Vec::with_capacity(bytes as usize);
    while let Some(piece) = content.next().await {
        all.extend_from_slice(&piece?);
    }
    let mut entry = about;
    entry.pop();
    entry.reserve(all.len().div_ceil(3) * 4 + 16);
    entry.extend_from_slice(b",\"data\":\"");
    let start = entry.len();
    entry.resize(start + all.len().div_ceil(3) * 4, 0);
    let written = STANDARD.encode_slice(&all, &mut entry[start..]);
    entry.truncate(start + written.map_err(|e| Error::bug("there is no room for base64").caused_by(e))?);
    entry.extend_from_slice(b"\"}");
    Ok(entry)
}

/// The content of an entry.
pub(crate) fn content(data: &str) -> Result<Vec<u8>> {
    STANDARD.decode(data).map_err(|e| Error::corrupt("the content of an attachment is no base64").caused_by(e))
}
