//! Making one log object: its frames compressed, its header signed and put before them.

use super::header::{CONTEXT, FrameInfo, LogHeader};
use super::keys;
use crate::compress::Compressor;
use crate::crypto::{Audience, Cipher};
use crate::frame::{self, ClosedFrame, OpenFrame};
use crate::hash::hex;
use crate::segment::{FrameEntry, table_size, write_seek_table};
use crate::signed;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::SigningKey;
use model::{BatchBuilder, CollectionId, Encoding, Kind, Result};

/// Raw bytes from which an object has key filters: smaller ones are read whole.
const FILTERED: usize = 64 << 10;

/// Compresses, signs and encrypts an object. The header's table of frames is filled in here.
pub(super) fn seal(
    mut header: LogHeader,
    encoding: Encoding,
    frames: Vec<ClosedFrame>,
    level: i32,
    signing: &SigningKey,
    cipher: &Cipher,
) -> Result<Vec<u8>> {
    let mut compressor = Compressor::new(level)?;
    let filtered = frames.iter().map(ClosedFrame::raw).sum::<usize>() >= FILTERED;
    let mut content = Vec::new();
    let mut table = Vec::with_capacity(frames.len() + 1);
    let (mut plain, mut compressed) = (Vec::new(), Vec::new());
    for frame in frames {
        plain.clear();
        plain.extend_from_slice(&frame.header);
        plain.extend_from_slice(&frame.body);
        compressor.frame(&plain, &mut compressed)?;
        let (stored, raw) = (compressed.len() as u32, plain.len() as u32);
        header.frames.push(FrameInfo {
            collection: frame.collection,
            kind: frame.kind,
            stored,
            raw,
            count: frame.count,
            blake3: hex(blake3::hash(&compressed).as_bytes()),
            keys: if filtered { BASE64.encode(keys::filter_of(&frame.key_hashes)) } else { String::new() },
        });
        table.push(FrameEntry { stored, raw, count: frame.count, check: 0 });
        content.extend_from_slice(&compressed);
    }
    let head = head_frame(&header, encoding, signing)?;
    plain.clear();
    plain.extend_from_slice(&head.header);
    plain.extend_from_slice(&head.body);
    compressor.frame(&plain, &mut compressed)?;
    table.insert(0, FrameEntry { stored: compressed.len() as u32, raw: plain.len() as u32, count: 1, check: 0 });
    let size = compressed.len() + content.len() + table_size(table.len());
    let mut sealing = cipher.sealing(Audience::Readers, Vec::with_capacity(size + size / 1024 + 1024))?;
    sealing.write(&compressed)?;
    sealing.write(&content)?;
    let mut seek_table = Vec::new();
    write_seek_table(&mut seek_table, &table);
    sealing.write(&seek_table)?;
    sealing.finish().map(|(stored, _)| stored)
}

fn head_frame(header: &LogHeader, encoding: Encoding, signing: &SigningKey) -> Result<ClosedFrame> {
    let signed = signed::write(signing, CONTEXT, header)?;
    let body = match encoding {
        Encoding::Bson => frame::bson_header(&signed),
        Encoding::Json | Encoding::Bin => signed,
    };
    let mut builder = BatchBuilder::new(CollectionId::new(""), Kind::Meta("log".into()), encoding);
    builder.push(b"", &body);
    let batch = builder.take();
    let mut open = OpenFrame::like(&batch);
    open.push(&batch, 0, 0, None);
    open.close()
}
