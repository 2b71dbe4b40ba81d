//! The change log: one self-describing object for each flush of changes.
//!
//! A log object is a segment whose first frame holds a signed header; the others hold puts,
//! deletions and patches with their engine times, or what collections have become.

use crate::buffers::Buffers;
use crate::crypto::Audience;
use crate::frame::{self, Frame, OpenFrame};
use crate::hash::hex;
use crate::name::{HISTORY, LogName};
use crate::objects::{Objects, blocking};
use crate::segment::{self, Draft, Press, SegmentEntry};
use crate::signed;
use crate::vault::{Inner, Vault};
use bytes::Bytes;
use ed25519_dalek::VerifyingKey;
use futures::TryStreamExt;
use model::{
    Batch, BatchBuilder, ChangeBatch, CollectionId, CollectionInfo, Encoding, EngineTime, Error, Kind, Position,
    Result, ResultExt,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

const CONTEXT: &str = "rewound format 1 log object";
/// Kind space of changes to collections themselves.
pub(crate) const CATALOG_SPACE: &str = "catalog";

/// The header of a log object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogHeader {
    /// Always `log`.
    pub rewound: String,
    /// Version of the format.
    pub format: u32,
    /// Tag of the source.
    pub source: String,
    /// Which unbroken sequence of objects this one belongs to.
    pub epoch: u32,
    /// Its number in the sequence, from 0.
    pub sequence: u64,
    /// blake3 of the stored bytes of the object before it, in hex; none for the first.
    pub previous: Option<String>,
    /// The changes after this position …
    pub from: Position,
    /// … up to and including this one.
    pub to: Position,
    /// All changes up to this time are in the log.
    pub time: EngineTime,
    /// When it was written, milliseconds since 1970 UTC, by the writer's clock.
    pub written: i64,
    /// blake3 of the other frames' plain content, in hex.
    pub content: String,
}

/// What one flush writes.
#[derive(Debug, Clone)]
pub struct Flush {
    /// Position before the changes.
    pub from: Position,
    /// Position after them.
    pub to: Position,
    /// All changes up to this time are written.
    pub time: EngineTime,
    /// Documents, in order.
    pub changes: Vec<ChangeBatch>,
    /// Collections made or changed (`Some`) or dropped (`None`), with their times.
    pub catalog: Vec<(CollectionId, Option<CollectionInfo>, EngineTime)>,
}

/// Appends to one epoch of a source's change log.
#[derive(Debug)]
pub struct LogWriter {
    vault: Arc<Inner>,
    source: String,
    encoding: Encoding,
    epoch: u32,
    sequence: u64,
    previous: Option<String>,
}

impl Vault {
    /// Starts a new epoch of the change log of a source. Bodies have the given encoding.
    pub async fn start_log(&self, source: &str, encoding: Encoding) -> Result<LogWriter> {
        self.inner.signing()?;
        let last = list(&self.inner, source).await?.into_iter().map(|n| n.epoch).max();
        let epoch = last.map_or(0, |e| e + 1);
        let vault = self.inner.clone();
        Ok(LogWriter { vault, source: source.to_owned(), encoding, epoch, sequence: 0, previous: None })
    }
}

impl LogWriter {
    /// Writes one object, durably.
    pub async fn append(&mut self, flush: Flush) -> Result<LogName> {
        let objects = self.vault.objects()?;
        let mut draft = Draft::new(self.encoding);
        let mut content = blake3::Hasher::new();
        for frame in frames_of(&objects, self.encoding, &flush)? {
            content.update(&frame.header).update(&frame.body);
            draft.push(frame);
        }
        let header = LogHeader {
            rewound: "log".into(),
            format: crate::vault_file::FORMAT,
            source: self.source.clone(),
            epoch: self.epoch,
            sequence: self.sequence,
            previous: self.previous.clone(),
            from: flush.from,
            to: flush.to,
            time: flush.time,
            written: self.vault.seams.clock.now_millis(),
            content: hex(content.finalize().as_bytes()),
        };
        let signed = signed::write(self.vault.signing()?, CONTEXT, &header)?;
        let body = match self.encoding {
            Encoding::Bson => frame::bson_header(&signed),
            Encoding::Json | Encoding::Bin => signed,
        };
        let mut builder = BatchBuilder::new(CollectionId::new(""), Kind::Meta("log".into()), self.encoding);
        builder.push(b"", &body);
        let batch = builder.take();
        let mut open = OpenFrame::like(&batch);
        open.push(&batch, 0, 0, None);
        draft.frames.insert(0, open.close()?);
        let cipher = objects.cipher.clone();
        let keys = objects.keys.clone();
        let sealed = blocking(move || {
            let mut press = Press::new(3, Buffers::default())?;
            press.seal(draft, &keys, &cipher, Audience::Readers)
        })
        .await?;
        let stored = blake3::hash(&sealed.stored);
        let age = if objects.cipher.is_plain() { "" } else { ".age" };
        let name = LogName {
            source: self.source.clone(),
            epoch: self.epoch,
            sequence: self.sequence,
            stored: *stored.as_bytes(),
            endings: format!("{}.zst{age}", segment::ending(self.encoding)),
        };
        self.vault.storage.create(&name.to_string(), sealed.stored.into()).await?;
        self.vault.storage.sync().await?;
        self.previous = Some(hex(stored.as_bytes()));
        self.sequence += 1;
        Ok(name)
    }
}

fn frames_of(objects: &Objects, encoding: Encoding, flush: &Flush) -> Result<Vec<frame::ClosedFrame>> {
    let mut frames = Vec::new();
    for ChangeBatch { batch, times } in &flush.changes {
        batch.check()?;
        if batch.encoding != encoding || times.len() != batch.len() {
            return Err(Error::bug("changes in another encoding, or without times"));
        }
        let mut open = OpenFrame::like(batch);
        for (i, time) in times.iter().enumerate() {
            open.push(batch, i, objects.keys.key(&batch.collection, &batch.kind, batch.key_of(i)), Some(*time));
        }
        if !open.is_empty() {
            frames.push(open.close()?);
        }
    }
    for (id, info, time) in &flush.catalog {
        let (kind, json) = match info {
            Some(info) => (Kind::Meta(CATALOG_SPACE.into()), serde_json::to_vec(info).unwrap_or_default()),
            None => (Kind::tombstone_of(CATALOG_SPACE), Vec::new()),
        };
        let body = match encoding {
            Encoding::Bson if info.is_some() => frame::bson_header(&json),
            _ => json,
        };
        let mut builder = BatchBuilder::new(id.clone(), kind, encoding);
        builder.push(id.as_str().as_bytes(), &body);
        let batch = builder.take();
        let mut open = OpenFrame::like(&batch);
        open.push(&batch, 0, 0, Some(*time));
        frames.push(open.close()?);
    }
    Ok(frames)
}

/// All log objects of a source, in order.
pub(crate) async fn list(vault: &Inner, source: &str) -> Result<Vec<LogName>> {
    let entries: Vec<_> = vault.storage.list(&format!("{HISTORY}{source}/log/")).await?.try_collect().await?;
    let mut names: Vec<LogName> = entries.iter().filter_map(|e| LogName::parse(&e.name)).collect();
    names.sort_by_key(|n| (n.epoch, n.sequence));
    Ok(names)
}

/// A frame of the log: where it is and what it is about.
#[derive(Debug, Clone)]
pub(crate) struct LogFrame {
    pub entry: Arc<SegmentEntry>,
    pub number: u32,
    pub collection: CollectionId,
    pub space: String,
}

/// What the log says between two times.
#[derive(Debug, Default)]
pub(crate) struct LogIndex {
    pub frames: Vec<LogFrame>,
    /// Changes of collections, in order.
    pub catalog: Vec<(CollectionId, Option<CollectionInfo>, EngineTime)>,
    /// All changes up to this time are there.
    pub complete: Option<EngineTime>,
}

/// Reads the log of a source: objects that reach beyond `after`, up to the first that reaches
/// `until`. Fails if one is missing in between.
pub(crate) async fn index(vault: &Inner, source: &str, after: EngineTime, until: EngineTime) -> Result<LogIndex> {
    let mut index = LogIndex::default();
    let mut last: Option<(LogName, LogHeader)> = None;
    for name in list(vault, source).await? {
        let (header, frames) = read(vault, &name).await.context(|| format!("reading the change log {name}"))?;
        if let Some((before, _)) = &last
            && before.epoch == name.epoch
            && header.previous != Some(hex(&before.stored))
        {
            return Err(Error::missing(format!("the change log has a hole before {name}"))
                .hint("times after it cannot be restored exactly; run `rewound verify`"));
        }
        let starts_late = last.as_ref().is_none_or(|(b, _)| b.epoch != name.epoch) && name.sequence != 0;
        if starts_late {
            return Err(Error::missing(format!("the change log has a hole: epoch {} begins at {name}", name.epoch)));
        }
        let reached = last.as_ref().is_some_and(|(b, h)| b.epoch == name.epoch && h.time >= until);
        if header.time > after && !reached {
            let entry = Arc::new(SegmentEntry {
                object: name.to_string(),
                size: 0,
                head: String::new(),
                frames: Vec::new(),
                raw: 0,
                counts: Vec::new(),
            });
            for (number, frame) in frames.iter().enumerate() {
                let collection = frame.batch.collection.clone();
                let space = frame.batch.kind.space().to_owned();
                if space == CATALOG_SPACE {
                    index.catalog.extend(catalog_changes(frame, until)?);
                    continue;
                }
                // Frame 0 of the object is its header.
                index.frames.push(LogFrame { entry: entry.clone(), number: number as u32 + 1, collection, space });
            }
            index.complete = Some(header.time);
        }
        last = Some((name, header));
    }
    Ok(index)
}

fn catalog_changes(
    frame: &Frame,
    until: EngineTime,
) -> Result<Vec<(CollectionId, Option<CollectionInfo>, EngineTime)>> {
    let mut changes = Vec::new();
    for i in 0..frame.batch.len() {
        let time = frame.times.get(i).copied().ok_or_else(|| Error::corrupt("a change of a collection has no time"))?;
        if time > until {
            continue;
        }
        let info = match frame.batch.kind.is_tombstone() {
            true => None,
            false => Some(
                serde_json::from_slice(unwrapped(&frame.batch, i))
                    .map_err(|e| Error::corrupt(format!("a change of a collection cannot be read: {e}")))?,
            ),
        };
        changes.push((frame.batch.collection.clone(), info, time));
    }
    Ok(changes)
}

/// The JSON in a body that is JSON, or JSON in BSON.
fn unwrapped(batch: &Batch, i: usize) -> &[u8] {
    let body = batch.body_of(i);
    match batch.encoding {
        Encoding::Bson => frame::split_header(Encoding::Bson, body).map_or(body, |(json, _)| json),
        Encoding::Json | Encoding::Bin => body,
    }
}

/// Reads a log object and checks its hash, its signature and that it is what its name says.
pub(crate) async fn read(vault: &Inner, name: &LogName) -> Result<(LogHeader, Vec<Frame>)> {
    let plain = vault.need_reader()?.read(&name.to_string()).await?;
    let encoding = segment::encoding_of(&name.endings)?;
    let key = vault.file.writer_key()?;
    let name = name.clone();
    blocking(move || {
        let (header, frames) = checked(encoding, &plain, &key)?;
        if (header.epoch, header.sequence, &header.source) != (name.epoch, name.sequence, &name.source) {
            return Err(Error::corrupt("it is another object's content under this name"));
        }
        Ok((header, frames))
    })
    .await
}

/// Reads the decrypted bytes of a log object: for tools and tests that have nothing but the bytes
/// and the writer's key, as `vault.json` shows it. Never panics, whatever the bytes.
pub fn parse(encoding: Encoding, plain: &Bytes, writer: &str) -> Result<(LogHeader, Vec<ChangeBatch>)> {
    let (header, frames) = checked(encoding, plain, &crate::vault_file::verifying_key(writer)?)?;
    Ok((header, frames.into_iter().map(|f| ChangeBatch { batch: f.batch, times: f.times }).collect()))
}

fn checked(encoding: Encoding, plain: &Bytes, key: &VerifyingKey) -> Result<(LogHeader, Vec<Frame>)> {
    let frames = segment::split(plain)?;
    let mut plain = frames.iter().map(|(stored, raw)| segment::decompress(stored, *raw));
    let no_header = || Error::corrupt("it has no header");
    let head = frame::parse(encoding, plain.next().ok_or_else(no_header)??)?;
    if head.batch.is_empty() {
        return Err(no_header());
    }
    let header: LogHeader = signed::read(key, CONTEXT, unwrapped(&head.batch, 0))?;
    let mut content = blake3::Hasher::new();
    let mut rest = Vec::new();
    for bytes in plain {
        let bytes = bytes?;
        content.update(&bytes);
        rest.push(frame::parse(encoding, bytes)?);
    }
    if header.content != hex(content.finalize().as_bytes()) {
        return Err(Error::corrupt("its content is not what its header signs"));
    }
    Ok((header, rest))
}
