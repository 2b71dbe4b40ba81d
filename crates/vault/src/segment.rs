//! Segments: frames compressed with zstd, one after the other, in the zstd seekable format.

use crate::buffers::Buffers;
use crate::compress::Compressor;
use crate::crypto::{Audience, Cipher};
use crate::frame::{self, ClosedFrame, Frame};
use crate::hash::HashKeys;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use model::{Encoding, Error, Result};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::io::Read;
use zstd::bulk::Decompressor;

/// Magic number of a skippable frame that holds a seek table (zstd seekable format 0.1.0).
const SKIPPABLE: u32 = 0x184D_2A5E;
const SEEKABLE: u32 = 0x8F92_EAB1;
/// A skippable frame whose content means nothing: makes the same content another object.
const SALT: u32 = 0x184D_2A50;

/// So much of a frame is decompressed at first to read its header.
const HEADER: usize = 32 << 10;

/// Frames on their way into one segment.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    pub encoding: Encoding,
    pub frames: Vec<ClosedFrame>,
    pub raw: usize,
}

impl Draft {
    pub fn new(encoding: Encoding) -> Self {
        Draft { encoding, frames: Vec::new(), raw: 0 }
    }

    pub fn push(&mut self, frame: ClosedFrame) {
        self.raw += frame.raw();
        self.frames.push(frame);
    }

    /// The id of its content.
    pub fn content_id(&self, keys: &HashKeys) -> [u8; 32] {
        let mut hasher = keys.content();
        for frame in &self.frames {
            hasher.update(&frame.header).update(&frame.body);
        }
        *hasher.finalize().as_bytes()
    }

    /// Its ending before encryption.
    pub fn ending(&self) -> &'static str {
        ending(self.encoding)
    }
}

pub(crate) fn ending(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::Json => "json",
        Encoding::Bson => "bson",
        Encoding::Bin => "bin",
    }
}

/// Where a frame is in its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u32, u32, String)", into = "(u32, u32, u32, String)")]
pub(crate) struct FrameEntry {
    /// Compressed bytes.
    pub stored: u32,
    /// Decompressed bytes, header included.
    pub raw: u32,
    /// Documents.
    pub count: u32,
    /// Keyed hash of the compressed bytes.
    pub check: u64,
}

impl From<(u32, u32, u32, String)> for FrameEntry {
    fn from((stored, raw, count, check): (u32, u32, u32, String)) -> Self {
        FrameEntry { stored, raw, count, check: u64::from_str_radix(&check, 16).unwrap_or_default() }
    }
}

impl From<FrameEntry> for (u32, u32, u32, String) {
    fn from(f: FrameEntry) -> Self {
        (f.stored, f.raw, f.count, format!("{:016x}", f.check))
    }
}

/// A segment as a layer names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SegmentEntry {
    /// Path of the object.
    pub object: String,
    /// Stored bytes.
    pub size: u64,
    /// The object's first bytes that are needed to decrypt from its middle, in base64.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub head: String,
    /// Where its frames are; empty if whoever wrote this entry could not know (the object was
    /// there already and only its readers can look inside): then its own seek table tells.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub frames: Vec<FrameEntry>,
    /// Decompressed bytes.
    pub raw: u64,
    /// Documents of each frame, where `frames` is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub counts: Vec<u32>,
}

impl SegmentEntry {
    pub fn head_bytes(&self) -> Result<Vec<u8>> {
        BASE64.decode(&self.head).map_err(|_| Error::corrupt("a segment's head is not base64"))
    }

    /// How many documents a frame holds.
    pub fn documents_in(&self, frame: usize) -> u32 {
        self.frames.get(frame).map(|f| f.count).or_else(|| self.counts.get(frame).copied()).unwrap_or_default()
    }
}

/// A compressed, encrypted segment.
#[derive(Debug)]
pub(crate) struct Sealed {
    pub stored: Vec<u8>,
    pub head: usize,
    pub frames: Vec<FrameEntry>,
}

impl Sealed {
    /// Makes a plain segment another object with the same content.
    pub fn add_salt(&mut self, salt: [u8; 16]) {
        self.stored.truncate(self.stored.len() - table_size(self.frames.len()));
        append_salt(&mut self.stored, salt);
        write_seek_table(&mut self.stored, &self.frames);
    }
}

/// Compresses and encrypts one segment after the other, in the same memory.
pub(crate) struct Press {
    compressor: Compressor,
    plain: Vec<u8>,
    compressed: Vec<u8>,
    stored: Vec<u8>,
    buffers: Buffers,
}

impl std::fmt::Debug for Press {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Press").finish_non_exhaustive()
    }
}

impl Press {
    /// A press that gives the bodies of frames back to these buffers.
    pub fn new(level: i32, buffers: Buffers) -> Result<Self> {
        let compressor = Compressor::new(level)?;
        Ok(Press { compressor, plain: Vec::new(), compressed: Vec::new(), stored: Vec::new(), buffers })
    }

    /// Compresses and encrypts a draft.
    pub fn seal(&mut self, draft: Draft, keys: &HashKeys, cipher: &Cipher, audience: Audience) -> Result<Sealed> {
        let mut stored = std::mem::take(&mut self.stored);
        stored.reserve_exact(draft.raw / 2 + 1024);
        let mut sealing = cipher.sealing(audience, stored)?;
        let mut frames = Vec::with_capacity(draft.frames.len());
        for frame in draft.frames {
            self.plain.clear();
            self.plain.extend_from_slice(&frame.header);
            self.plain.extend_from_slice(&frame.body);
            self.buffers.give(frame.body);
            let Press { compressor, plain, compressed, .. } = self;
            compressor.frame(plain, compressed)?;
            frames.push(FrameEntry {
                stored: compressed.len() as u32,
                raw: plain.len() as u32,
                count: frame.count,
                check: keys.frame(compressed),
            });
            sealing.write(compressed)?;
        }
        let mut table = Vec::with_capacity(table_size(frames.len()));
        write_seek_table(&mut table, &frames);
        sealing.write(&table)?;
        let (stored, head) = sealing.finish()?;
        Ok(Sealed { stored, head, frames })
    }

    /// Encrypts what is not to be compressed; see [`Cipher::seal`].
    pub fn seal_bytes(&mut self, plain: &[u8], cipher: &Cipher, audience: Audience) -> Result<(Vec<u8>, usize)> {
        let mut sealing = cipher.sealing(audience, std::mem::take(&mut self.stored))?;
        sealing.write(plain)?;
        sealing.finish()
    }

    /// Takes the memory of an object back that has been stored.
    pub fn take_back(&mut self, mut stored: Bytes) {
        if stored.is_unique() {
            stored.clear();
            self.stored = stored.into();
        }
    }
}

/// Appends a skippable frame with random bytes: the same content, another object.
pub(crate) fn append_salt(out: &mut Vec<u8>, salt: [u8; 16]) {
    out.extend_from_slice(&SALT.to_le_bytes());
    out.extend_from_slice(&(salt.len() as u32).to_le_bytes());
    out.extend_from_slice(&salt);
}

/// Bytes of a seek table with the header of its skippable frame.
pub(crate) fn table_size(frames: usize) -> usize {
    frames * 8 + 17
}

pub(crate) fn write_seek_table(out: &mut Vec<u8>, frames: &[FrameEntry]) {
    let size = table_size(frames.len()) as u32 - 8;
    out.extend_from_slice(&SKIPPABLE.to_le_bytes());
    out.extend_from_slice(&size.to_le_bytes());
    for frame in frames {
        out.extend_from_slice(&frame.stored.to_le_bytes());
        out.extend_from_slice(&frame.raw.to_le_bytes());
    }
    out.extend_from_slice(&(frames.len() as u32).to_le_bytes());
    out.push(0); // no checksums in the table: frames carry their own
    out.extend_from_slice(&SEEKABLE.to_le_bytes());
}

/// Reads the seek table at the end of a decrypted segment: (stored, raw) of each frame.
fn read_seek_table(plain: &[u8]) -> Option<Vec<(u32, u32)>> {
    let word = |at: usize| plain.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let end = plain.len();
    let count = word(end.checked_sub(9)?)? as usize;
    let size = count.checked_mul(8)?.checked_add(9)?;
    let start = end.checked_sub(size)?;
    let magic = start.checked_sub(8)?;
    if word(end - 4)? != SEEKABLE || word(magic)? != SKIPPABLE || word(magic + 4)? as usize != size {
        return None;
    }
    (0..count).map(|i| Some((word(start + i * 8)?, word(start + i * 8 + 4)?))).collect()
}

/// Splits a decrypted segment into the compressed bytes of its frames with their raw sizes.
pub(crate) fn split(plain: &Bytes) -> Result<Vec<(Bytes, u32)>> {
    let broken = || Error::corrupt("a segment's seek table does not fit its content");
    let table = read_seek_table(plain).ok_or_else(broken)?;
    let data = plain.len() - table_size(table.len());
    let mut at = 0usize;
    let mut frames = Vec::with_capacity(table.len());
    for (stored, raw) in table {
        let end = at.checked_add(stored as usize).filter(|e| *e <= data).ok_or_else(broken)?;
        frames.push((plain.slice(at..end), raw));
        at = end;
    }
    Ok(frames)
}

/// Decompresses one frame, never into more than the limit.
pub(crate) fn decompress(stored: &[u8], raw: u32) -> Result<Bytes> {
    decompress_into(stored, raw, Vec::new()).map(Bytes::from)
}

fn decompress_into(stored: &[u8], raw: u32, mut plain: Vec<u8>) -> Result<Vec<u8>> {
    if raw as usize > model::limits::FRAME_MAX {
        return Err(Error::corrupt(format!("a frame claims {raw} bytes, more than any frame has")));
    }
    plain.clear();
    plain.reserve_exact(raw as usize);
    // A decompressor takes longer to make than to fill a small frame.
    thread_local!(static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) });
    let decompressed = DECOMPRESSOR.with_borrow_mut(|kept| {
        let decompressor = match kept {
            Some(kept) => kept,
            none => none.insert(Decompressor::new()?),
        };
        decompressor.decompress_to_buffer(stored, &mut plain)
    });
    decompressed.map_err(|e| Error::corrupt(format!("a frame cannot be decompressed: {e}")))?;
    if plain.len() != raw as usize {
        return Err(Error::corrupt("a frame has another size than its table says"));
    }
    Ok(plain)
}

/// Decompresses and reads one frame.
pub(crate) fn read_frame(encoding: Encoding, stored: &[u8], raw: u32) -> Result<Frame> {
    frame::parse(encoding, decompress(stored, raw)?)
}

/// The same, into a buffer of these.
pub(crate) fn read_frame_into(encoding: Encoding, stored: &[u8], raw: u32, buffers: &Buffers) -> Result<Frame> {
    let plain = decompress_into(stored, raw, buffers.take(raw as usize))?;
    frame::parse(encoding, buffers.lend(plain))
}

/// Decompresses as much of a frame as its header takes: documents without their bodies. None if their
/// keys are parts of these.
pub(crate) fn read_header(encoding: Encoding, stored: &[u8], raw: u32) -> Result<Option<Frame>> {
    let broken = |e| Error::corrupt(format!("a frame cannot be decompressed: {e}"));
    let cut = || Error::corrupt("a frame ends within its header");
    let decoder = zstd::stream::read::Decoder::with_buffer(stored).map_err(broken)?;
    let mut decoder = decoder.take(u64::from(raw));
    let mut begun = Vec::with_capacity(HEADER);
    loop {
        // Twice as much each time: what is there is looked through again.
        let wanted = frame::header_end(encoding, &begun).unwrap_or((2 * begun.len()).max(HEADER));
        if wanted <= begun.len() {
            let (json, _) = frame::split_header(encoding, &begun).ok_or_else(cut)?;
            return frame::parse_header(encoding, json, raw as usize);
        }
        let more = (wanted - begun.len()) as u64;
        if decoder.by_ref().take(more).read_to_end(&mut begun).map_err(broken)? == 0 {
            return Err(cut());
        }
    }
}

/// Reads all frames of a decrypted segment: for tools and tests that have nothing but the bytes.
/// Never panics, whatever the bytes.
pub fn read_all(encoding: Encoding, plain: Bytes) -> Result<Vec<model::Batch>> {
    split(&plain)?.into_iter().map(|(stored, raw)| Ok(read_frame(encoding, &stored, raw)?.batch)).collect()
}

/// The encoding that an object's endings name.
pub(crate) fn encoding_of(endings: &str) -> Result<Encoding> {
    match endings.split('.').next() {
        Some("json") => Ok(Encoding::Json),
        Some("bson") => Ok(Encoding::Bson),
        Some("bin") => Ok(Encoding::Bin),
        _ => Err(Error::corrupt(format!("an object with unknown endings {endings}"))),
    }
}
