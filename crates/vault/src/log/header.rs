//! The header of a log object, and the checks of an object that has all its bytes here.

use crate::buffers::Buffers;
use crate::frame::{self, Frame};
use crate::hash::{hex, unhex32};
use crate::name::LogName;
use crate::segment;
use crate::signed;
use bytes::Bytes;
use ed25519_dalek::VerifyingKey;
use model::{ChangeBatch, CollectionId, Encoding, EngineTime, Error, Kind, Position, Result};
use serde::{Deserialize, Serialize};

/// What the signature of a header is bound to.
pub(super) const CONTEXT: &str = "rewound format 1 log object";

/// The header of a log object: what it holds, signed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogHeader {
    /// Always `log`.
    pub rewound: String,
    /// Version of the format.
    pub format: u32,
    /// Tag of the source.
    pub source: String,
    /// The run whose chain it belongs to.
    pub run: String,
    /// Number of the first flush that it holds.
    pub first: u32,
    /// Number of the last.
    pub last: u32,
    /// blake3 of the stored bytes of the flush before the first, in hex; none at the beginning of a
    /// chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
    /// For flushes rolled up: blake3 of the stored bytes of the last of them, in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends: Option<String>,
    /// The changes after this position …
    pub from: Position,
    /// … up to and including this one.
    pub to: Position,
    /// The engine time of `from`.
    pub from_time: EngineTime,
    /// All changes up to this engine time are in it.
    pub to_time: EngineTime,
    /// For flushes rolled up: the engine times up to which each but the last was complete. Of a source
    /// that tells only states, these are the times that can be restored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commits: Vec<EngineTime>,
    /// When it was written, milliseconds since 1970 UTC, by the writer's clock.
    pub written: i64,
    /// The frames after the header's.
    pub(crate) frames: Vec<FrameInfo>,
}

/// A frame of a log object, as its header knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FrameInfo {
    /// The collection.
    pub collection: CollectionId,
    /// What its documents are.
    pub kind: Kind,
    /// Compressed bytes.
    pub stored: u32,
    /// Decompressed bytes.
    pub raw: u32,
    /// Documents.
    pub count: u32,
    /// blake3 of the compressed bytes, in hex.
    pub blake3: String,
    /// Which keys it may hold (see [`super::keys`]), in base64; empty in small objects, which are
    /// read whole.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub keys: String,
}

impl FrameInfo {
    /// Whether these are the bytes of the frame.
    pub fn check(&self, stored: &[u8]) -> Result<()> {
        let fits = stored.len() == self.stored as usize && hex(blake3::hash(stored).as_bytes()) == self.blake3;
        if fits { Ok(()) } else { Err(Error::corrupt("a frame is not the one that its header signs")) }
    }

    /// Decompresses and reads the frame from its bytes.
    pub fn open(&self, encoding: Encoding, stored: &[u8]) -> Result<Frame> {
        self.check(stored)?;
        self.is_told(segment::read_frame(encoding, stored, self.raw)?)
    }

    /// The same, into a buffer of these.
    pub fn open_into(&self, encoding: Encoding, stored: &[u8], buffers: &Buffers) -> Result<Frame> {
        self.check(stored)?;
        self.is_told(segment::read_frame_into(encoding, stored, self.raw, buffers)?)
    }

    /// The same without the bodies of its documents, if these are not needed to read their keys.
    pub fn open_keys(&self, encoding: Encoding, stored: &[u8]) -> Result<Frame> {
        self.check(stored)?;
        match segment::read_header(encoding, stored, self.raw)? {
            Some(frame) => self.is_told(frame),
            None => self.is_told(segment::read_frame(encoding, stored, self.raw)?),
        }
    }

    fn is_told(&self, frame: Frame) -> Result<Frame> {
        let batch = &frame.batch;
        let told = (&batch.collection, &batch.kind, batch.len()) == (&self.collection, &self.kind, self.count as usize);
        if !told || frame.times.len() != batch.len() {
            return Err(Error::corrupt("a frame is another than its header says, or has no times"));
        }
        Ok(frame)
    }
}

impl LogHeader {
    /// The hash of its last flush, where the object itself has this one.
    pub(crate) fn ends(&self, stored: &[u8; 32]) -> String {
        self.ends.clone().unwrap_or_else(|| hex(stored))
    }

    /// The last time up to `at` at which a flush of it ended, if that is after `after`.
    pub(crate) fn last_commit(&self, after: EngineTime, at: EngineTime) -> Option<EngineTime> {
        let commits = self.commits.iter().chain(std::iter::once(&self.to_time));
        commits.filter(|c| after.order < c.order && c.order <= at.order).max().copied()
    }

    /// Fails if the header is not that of the object with this name.
    pub(crate) fn check_name(&self, name: &LogName) -> Result<()> {
        let millis = |time: EngineTime| time.millis.max(0) as u64;
        let says = (&self.source, &self.run, self.first, self.last, millis(self.from_time), millis(self.to_time));
        if says != (&name.source, &name.run, name.first, name.last, name.from, name.to) {
            return Err(Error::corrupt("it is another object's content under this name"));
        }
        Ok(())
    }

    /// Reads the header from the plain content of an object's first frame.
    pub(super) fn read(encoding: Encoding, plain: Bytes, key: &VerifyingKey) -> Result<LogHeader> {
        let head = frame::parse(encoding, plain)?;
        if head.batch.is_empty() {
            return Err(no_header());
        }
        let header: LogHeader = signed::read(key, CONTEXT, super::unwrapped(&head.batch, 0))?;
        if header.format > crate::vault_file::FORMAT {
            let problem = format!("the object has format {}", header.format);
            return Err(Error::unsupported(problem).hint("install a newer rewound"));
        }
        let hashes = header.previous.iter().chain(&header.ends).chain(header.frames.iter().map(|f| &f.blake3));
        let rolled = header.first < header.last;
        if header.first > header.last
            || header.from_time > header.to_time
            || rolled != header.ends.is_some()
            || (header.last - header.first) as usize != header.commits.len()
            || hashes.into_iter().any(|h| unhex32(h).is_none())
        {
            return Err(Error::corrupt("its header contradicts itself"));
        }
        Ok(header)
    }
}

fn no_header() -> Error {
    Error::corrupt("it has no header")
}

/// Reads the decrypted bytes of a log object: for tools and tests that have nothing but the bytes
/// and the writer's key, as `vault.json` shows it. Never panics, whatever the bytes.
pub fn parse(encoding: Encoding, plain: &Bytes, writer: &str) -> Result<(LogHeader, Vec<ChangeBatch>)> {
    let (header, stored) = split(encoding, plain, &crate::vault_file::verifying_key(writer)?)?;
    let frames = header
        .frames
        .iter()
        .zip(stored)
        .map(|(info, stored)| info.open(encoding, &stored).map(|f| ChangeBatch { batch: f.batch, times: f.times }));
    let frames = frames.collect::<Result<Vec<_>>>()?;
    Ok((header, frames))
}

/// The header of an object and the compressed bytes of its other frames, as many as the header says.
pub(super) fn split(encoding: Encoding, plain: &Bytes, key: &VerifyingKey) -> Result<(LogHeader, Vec<Bytes>)> {
    let mut frames = segment::split(plain)?.into_iter();
    let (stored, raw) = frames.next().ok_or_else(no_header)?;
    let header = LogHeader::read(encoding, segment::decompress(&stored, raw)?, key)?;
    let frames: Vec<(Bytes, u32)> = frames.collect();
    let sizes = frames.iter().map(|(stored, raw)| (stored.len(), *raw));
    if !sizes.eq(header.frames.iter().map(|f| (f.stored as usize, f.raw))) {
        return Err(Error::corrupt("its frames are not those that its header signs"));
    }
    Ok((header, frames.into_iter().map(|(stored, _)| stored).collect()))
}
