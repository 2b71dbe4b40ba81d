//! Reading log objects: small ones whole, of others the header and the frames that are wanted.

use super::Listed;
use super::header::{self, FrameInfo, LogHeader};
use crate::buffers::Buffers;
use crate::crypto::{CHUNK, STORED_CHUNK, head_length};
use crate::frame::Frame;
use crate::name::LogName;
use crate::objects::{Objects, blocking};
use crate::segment::{self, FrameEntry, SegmentEntry};
use crate::vault::Inner;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use ed25519_dalek::VerifyingKey;
use model::{Encoding, Error, Result, ResultExt};
use std::ops::Range;
use std::sync::Arc;

/// Objects of at most so many stored bytes are read whole and kept.
const SMALL: u64 = 64 << 10;
/// What is read first of larger ones: the header of most.
const FIRST: u64 = 256 << 10;

/// A log object whose header was read.
#[derive(Debug)]
pub(crate) struct LogObject {
    pub name: LogName,
    pub header: LogHeader,
    /// The object as layers name segments; frame 0 is the header.
    pub entry: Arc<SegmentEntry>,
    encoding: Encoding,
    /// The frames after the header, compressed, if the object is small.
    kept: Option<Vec<Bytes>>,
}

impl LogObject {
    /// Bytes in memory that reading it again would spare.
    pub fn kept_bytes(&self) -> usize {
        self.kept.iter().flatten().map(Bytes::len).sum()
    }

    /// Keeps none.
    pub fn forget(&mut self) {
        self.kept = None;
    }

    /// Reads frame `number` of the header's table, counted from 0.
    pub async fn frame(&self, objects: &Objects, number: usize) -> Result<Frame> {
        let buffers = Buffers::of_frames();
        let one = self.frames(objects, &buffers, number, vec![true], |frames| frames.next().transpose()).await?;
        one.ok_or_else(not_there)
    }

    /// What is made of some frames of the header's table, from the one with number `first` on, off the
    /// asynchronous threads: each is decoded when it is asked for, in memory of these buffers; the bodies of its
    /// documents only if they are wanted.
    pub async fn frames<T: Send + 'static>(
        &self,
        objects: &Objects,
        buffers: &Buffers,
        first: usize,
        bodies: Vec<bool>,
        work: impl FnOnce(&mut dyn Iterator<Item = Result<Frame>>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (path, encoding) = (&self.entry.object, self.encoding);
        let infos = self.header.frames.get(first..first + bodies.len()).ok_or_else(not_there)?.to_vec();
        let (stored, buffers) = (self.stored(objects, first, &infos).await?, buffers.clone());
        let decode = move || {
            let mut frames = infos.iter().zip(stored).zip(bodies).map(|((info, stored), bodies)| match bodies {
                true => info.open_into(encoding, &stored, &buffers),
                false => info.open_keys(encoding, &stored),
            });
            work(&mut frames)
        };
        blocking(decode).await.context(|| format!("reading {path}"))
    }

    /// The bytes of frames that stand one after the other, still compressed.
    async fn stored(&self, objects: &Objects, first: usize, infos: &[FrameInfo]) -> Result<Vec<Bytes>> {
        let path = &self.entry.object;
        if let Some(kept) = &self.kept {
            return kept.get(first..first + infos.len()).map(<[Bytes]>::to_vec).ok_or_else(not_there);
        }
        if self.entry.size <= SMALL {
            let frames = segment::split(&objects.read_exactly(path).await?).context(|| format!("reading {path}"))?;
            return Ok(frames.into_iter().skip(first + 1).map(|(stored, _)| stored).collect());
        }
        let head = self.entry.head_bytes()?;
        let start = self.entry.frames.iter().take(first + 1).map(|f| u64::from(f.stored)).sum::<u64>();
        let length = infos.iter().map(|info| info.stored as usize).sum::<usize>();
        let mut all = objects.read_range(path, self.entry.size, &head, start..start + length as u64).await?;
        let cut =
            infos.iter().map(|info| (info.stored as usize <= all.len()).then(|| all.split_to(info.stored as usize)));
        cut.collect::<Option<Vec<_>>>().ok_or_else(not_there)
    }
}

fn not_there() -> Error {
    Error::bug("a frame that the log does not have")
}

/// Reads an object's header and checks its signature and that it is what its name says; a small
/// object is read whole, and its bytes are checked too.
pub(crate) async fn open(vault: &Inner, listed: &Listed) -> Result<LogObject> {
    let path = listed.name.to_string();
    let objects = vault.need_reader()?;
    let key = vault.file.writer_key()?;
    let encoding = segment::encoding_of(&listed.name.endings)?;
    if listed.size <= SMALL {
        let plain = objects.read_exactly(&path).await?;
        let (header, frames) = header::split(encoding, &plain, &key).context(|| format!("reading {path}"))?;
        return object(listed, encoding, header, String::new(), 0, Some(frames));
    }
    let mut length = FIRST;
    loop {
        let fetched = objects.storage.read_range(&path, 0..length.min(listed.size)).await?;
        let (whole, objects, key) = (length >= listed.size, objects.clone(), key);
        let size = listed.size;
        let found = blocking(move || first_frame(&objects, size, encoding, &fetched, whole, &key))
            .await
            .context(|| format!("reading {path}"))?;
        match found {
            Some((header, head, stored)) => return object(listed, encoding, header, BASE64.encode(head), stored, None),
            None => length *= 4,
        }
    }
}

fn object(
    listed: &Listed,
    encoding: Encoding,
    header: LogHeader,
    head: String,
    first: u32,
    kept: Option<Vec<Bytes>>,
) -> Result<LogObject> {
    let path = listed.name.to_string();
    header.check_name(&listed.name).context(|| format!("reading {path}"))?;
    let frames = std::iter::once(FrameEntry { stored: first, raw: 0, count: 1, check: 0 })
        .chain(header.frames.iter().map(|f| FrameEntry { stored: f.stored, raw: f.raw, count: f.count, check: 0 }));
    let entry = SegmentEntry {
        object: path,
        size: listed.size,
        head,
        raw: header.frames.iter().map(|f| u64::from(f.raw)).sum(),
        frames: frames.collect(),
        counts: Vec::new(),
    };
    Ok(LogObject { name: listed.name.clone(), header, entry: Arc::new(entry), encoding, kept })
}

/// The header, the head of the encryption and the size of the first frame, from an object's first
/// bytes; none if these are too few.
fn first_frame(
    objects: &Objects,
    size: u64,
    encoding: Encoding,
    fetched: &[u8],
    whole: bool,
    key: &VerifyingKey,
) -> Result<Option<(LogHeader, Vec<u8>, u32)>> {
    let ended = || Error::corrupt("an object ends too early");
    let head = match objects.cipher.is_plain() {
        true => &[][..],
        false => &fetched[..head_length(fetched).ok_or_else(ended)?],
    };
    let readable = readable(objects, head.len() as u64, size, fetched.len() as u64);
    // Most headers need not all to be decrypted that was fetched.
    for range in [0..readable.end.min(CHUNK), readable] {
        let at = objects.cipher.stored_range(head.len() as u64, size, range.clone());
        let part = fetched.get(at.start as usize..at.end as usize).ok_or_else(ended)?;
        let plain = objects.cipher.open_range(head, part, range)?;
        if let Ok(stored) = zstd::zstd_safe::find_frame_compressed_size(&plain) {
            let frame = plain.get(..stored).ok_or_else(ended)?;
            let raw = zstd::zstd_safe::get_frame_content_size(frame).ok().flatten().unwrap_or(u64::MAX);
            let raw = u32::try_from(raw).map_err(|_| Error::corrupt("its header does not say how long it is"))?;
            let header = LogHeader::read(encoding, segment::decompress(frame, raw)?, key)?;
            return Ok(Some((header, head.to_vec(), stored as u32)));
        }
    }
    if whole { Err(Error::corrupt("it has no header")) } else { Ok(None) }
}

/// How many plain bytes can surely be read from the first `fetched` stored bytes.
fn readable(objects: &Objects, head: u64, size: u64, fetched: u64) -> Range<u64> {
    if objects.cipher.is_plain() {
        return 0..fetched;
    }
    let body = fetched.saturating_sub(head);
    let (chunks, rest) = (body / STORED_CHUNK, body % STORED_CHUNK);
    // A chunk that was cut is of no use; the last one of the object is shorter.
    let tail = if fetched == size { rest.saturating_sub(STORED_CHUNK - CHUNK) } else { 0 };
    0..chunks * CHUNK + tail
}

/// Checks everything about an object that its decrypted bytes tell.
pub(crate) fn check(name: &LogName, plain: &Bytes, key: &VerifyingKey) -> Result<()> {
    let encoding = segment::encoding_of(&name.endings)?;
    let (header, frames) = header::split(encoding, plain, key)?;
    header.check_name(name)?;
    for (info, stored) in header.frames.iter().zip(frames) {
        info.open(encoding, &stored)?;
    }
    Ok(())
}
