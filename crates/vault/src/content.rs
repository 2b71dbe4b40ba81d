//! Whether the content of an object has the id in its name: what nobody can forge who lacks the
//! vault's naming secret.

use crate::frame;
use crate::name::{ObjectKind, ObjectName};
use crate::objects::Objects;
use crate::segment;
use bytes::Bytes;
use model::{Error, Result};

/// Compares the decrypted bytes of an object with the id in its name. Frames must also be readable.
pub(crate) fn check(objects: &Objects, name: &ObjectName, plain: &Bytes) -> Result<()> {
    let forged = || Error::corrupt("its content does not have the id in its name");
    match name.kind {
        ObjectKind::Segment | ObjectKind::Hashes => {
            let encoding = segment::encoding_of(&name.endings)?;
            let mut hasher = objects.keys.content();
            for (stored, raw) in segment::split(plain)? {
                let frame = segment::decompress(&stored, raw)?;
                hasher.update(&frame);
                frame::parse(encoding, frame)?;
            }
            if *hasher.finalize().as_bytes() != name.content {
                return Err(forged());
            }
        }
        ObjectKind::Part => {
            let length = zstd::zstd_safe::find_frame_compressed_size(plain).map_err(|_| forged())?;
            let size = zstd::zstd_safe::get_frame_content_size(plain).ok().flatten().ok_or_else(forged)?;
            let size = u32::try_from(size).map_err(|_| forged())?;
            let raw = segment::decompress(plain.get(..length).ok_or_else(forged)?, size)?;
            if objects.keys.content_id(&raw) != name.content {
                return Err(forged());
            }
        }
        ObjectKind::Layer | ObjectKind::Catalog => {
            let length = zstd::zstd_safe::find_frame_compressed_size(plain).map_err(|_| forged())?;
            if plain.get(..length).is_none_or(|frame| objects.keys.content_id(frame) != name.content) {
                return Err(forged());
            }
        }
        ObjectKind::Filter => {
            // A salt of 16 bytes may follow; then the id is that of what comes before it.
            let salted = plain.len().checked_sub(16).map(|end| objects.keys.content_id(&plain[..end]));
            if objects.keys.content_id(plain) != name.content && salted != Some(name.content) {
                return Err(forged());
            }
        }
    }
    Ok(())
}
