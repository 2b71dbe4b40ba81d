//! Frames: documents of one collection, with a header that says where each stands.
//!
//! The plain content of a frame is its header (one line of JSON, or one BSON document) followed by
//! the documents: JSON texts each followed by a newline, BSON documents one after the other. So
//! `zstd -d` of a segment gives a stream that `jq` or `bsondump` reads.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use model::{AttachmentRef, Batch, CollectionId, Doc, Encoding, EngineTime, Error, Kind, Result};
use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use std::fmt;
use std::io::Write;
use std::sync::Arc;

/// Documents on their way into a frame.
#[derive(Debug)]
pub(crate) struct OpenFrame {
    pub collection: CollectionId,
    pub kind: Kind,
    pub encoding: Encoding,
    pub body: Vec<u8>,
    lengths: Vec<u32>,
    keys: OpenKeys,
    attachments: Vec<AttachmentRef>,
    places: usize,
    times: Vec<EngineTime>,
    pub key_hashes: Vec<u64>,
    /// The engine time the documents were read at, where it is not the whole layer's.
    pub read: Option<EngineTime>,
}

#[derive(Debug)]
enum OpenKeys {
    /// Parts of the bodies: (start from the document's start, length).
    Spans(Vec<(u32, u32)>),
    /// Bytes of their own, and where each ends.
    Apart(Vec<u8>, Vec<u32>),
}

/// A finished frame: header and documents.
#[derive(Debug, Clone)]
pub(crate) struct ClosedFrame {
    pub collection: CollectionId,
    pub kind: Kind,
    pub header: Vec<u8>,
    pub body: Vec<u8>,
    pub count: u32,
    pub key_hashes: Vec<u64>,
    pub read: Option<EngineTime>,
}

impl ClosedFrame {
    pub fn raw(&self) -> usize {
        self.header.len() + self.body.len()
    }
}

impl OpenFrame {
    /// An empty frame for documents like those of a batch.
    pub fn like(batch: &Batch) -> Self {
        let body = Vec::with_capacity(batch.body.len().min(model::limits::FRAME) + 1024);
        OpenFrame::in_buffer(batch, body)
    }

    /// The same, with an empty buffer for the documents.
    pub fn in_buffer(batch: &Batch, body: Vec<u8>) -> Self {
        OpenFrame {
            collection: batch.collection.clone(),
            kind: batch.kind.clone(),
            encoding: batch.encoding,
            body,
            lengths: Vec::new(),
            keys: match batch.keys {
                Some(_) => OpenKeys::Apart(Vec::new(), Vec::new()),
                None => OpenKeys::Spans(Vec::new()),
            },
            attachments: Vec::new(),
            places: 0,
            times: Vec::new(),
            key_hashes: Vec::new(),
            read: None,
        }
    }

    /// The same frame for documents that were read at a time of their own.
    pub fn at(self, read: Option<EngineTime>) -> Self {
        OpenFrame { read, ..self }
    }

    /// Whether documents of this batch can go into this frame.
    pub fn fits(&self, batch: &Batch) -> bool {
        self.collection == batch.collection
            && self.kind == batch.kind
            && self.encoding == batch.encoding
            && matches!(self.keys, OpenKeys::Apart(..)) == batch.keys.is_some()
    }

    /// Adds document `i` of a batch. This is the one copy on the way of a document.
    pub fn push(&mut self, batch: &Batch, i: usize, key_hash: u64, time: Option<EngineTime>) {
        let body = batch.body_of(i);
        self.body.extend_from_slice(body);
        if self.encoding == Encoding::Json {
            self.body.push(b'\n');
        }
        self.lengths.push(body.len() as u32);
        match &mut self.keys {
            OpenKeys::Spans(spans) => {
                let doc = batch.docs[i];
                spans.push((doc.key_start - doc.start, doc.key_len));
            }
            OpenKeys::Apart(bytes, ends) => {
                bytes.extend_from_slice(batch.key_of(i));
                ends.push(bytes.len() as u32);
            }
        }
        if let Some(attachment) = batch.attachments.get(i) {
            self.places += attachment.place.len();
            self.attachments.push(attachment.clone());
        }
        self.times.extend(time);
        self.key_hashes.push(key_hash);
    }

    /// Bytes of documents, of keys that stand apart, and of contents that stand beside them.
    pub fn raw(&self) -> usize {
        self.body.len()
            + self.places
            + match &self.keys {
                OpenKeys::Spans(_) => 0,
                OpenKeys::Apart(bytes, _) => bytes.len(),
            }
    }

    /// Finishes the frame.
    pub fn close(self) -> Result<ClosedFrame> {
        let count = self.lengths.len() as u32;
        let json = self.header_json().map_err(|e| Error::bug(format!("writing a frame's header failed: {e}")))?;
        let header = match self.encoding {
            Encoding::Bson => bson_header(&json),
            Encoding::Json | Encoding::Bin => {
                let mut line = json;
                line.push(b'\n');
                line
            }
        };
        let mut body = self.body;
        // Frames of tiny collections wait by the thousands for a segment to fill.
        if body.len() < body.capacity() / 2 {
            body.shrink_to_fit();
        }
        Ok(ClosedFrame {
            collection: self.collection,
            kind: self.kind,
            header,
            body,
            count,
            key_hashes: self.key_hashes,
            read: self.read,
        })
    }

    fn header_json(&self) -> std::io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(64 + self.lengths.len() * 16);
        out.extend_from_slice(b"{\"rewound\":{\"collection\":");
        serde_json::to_writer(&mut out, &self.collection)?;
        out.extend_from_slice(b",\"kind\":");
        serde_json::to_writer(&mut out, &self.kind)?;
        out.extend_from_slice(b",\"lengths\":");
        match self.lengths.first() {
            Some(first) if self.lengths.len() > 1 && self.lengths.iter().all(|l| l == first) => {
                write!(out, "{{\"each\":{first},\"count\":{}}}", self.lengths.len())?;
            }
            _ => serde_json::to_writer(&mut out, &self.lengths)?,
        }
        match &self.keys {
            OpenKeys::Spans(spans) => match spans.first() {
                Some((s, l)) if spans.iter().all(|x| x == &(*s, *l)) => {
                    write!(out, ",\"key_span\":[{s},{l}]")?;
                }
                _ => {
                    out.extend_from_slice(b",\"key_spans\":");
                    serde_json::to_writer(&mut out, spans)?;
                }
            },
            OpenKeys::Apart(bytes, ends) => write_keys(&mut out, bytes, ends)?,
        }
        if !self.attachments.is_empty() {
            let list: Vec<_> =
                self.attachments.iter().map(|a| (crate::hash::hex(&a.digest), a.length, &*a.place)).collect();
            out.extend_from_slice(b",\"attachments\":");
            serde_json::to_writer(&mut out, &list)?;
        }
        if !self.times.is_empty() {
            write_times(&mut out, &self.times)?;
        }
        out.extend_from_slice(b"}}");
        Ok(out)
    }
}

fn write_keys(out: &mut Vec<u8>, bytes: &[u8], ends: &[u32]) -> std::io::Result<()> {
    let starts = std::iter::once(0).chain(ends.iter().map(|e| *e as usize));
    let keys = starts.zip(ends).map(|(start, end)| &bytes[start..*end as usize]);
    // Ends at character boundaries are not enough: each key must be UTF-8 by itself.
    let text = keys.clone().all(|k| std::str::from_utf8(k).is_ok());
    out.extend_from_slice(if text { b",\"keys\":[" } else { b",\"keys_base64\":[" });
    for (i, key) in keys.enumerate() {
        if i > 0 {
            out.push(b',');
        }
        match std::str::from_utf8(key) {
            Ok(key) if text => serde_json::to_writer(&mut *out, key)?,
            _ => serde_json::to_writer(&mut *out, &BASE64.encode(key))?,
        }
    }
    out.push(b']');
    Ok(())
}

/// Times that are alike stand there once, with their number: of most engines those of a whole flush are.
fn write_times(out: &mut Vec<u8>, times: &[EngineTime]) -> std::io::Result<()> {
    out.extend_from_slice(b",\"times\":[");
    for (i, alike) in times.chunk_by(|one, next| one == next).enumerate() {
        let (comma, EngineTime { order, millis }) = (if i > 0 { "," } else { "" }, alike[0]);
        match alike.len() {
            1 => write!(out, "{comma}[{order},{millis}]")?,
            count => write!(out, "{comma}[{order},{millis},{count}]")?,
        }
    }
    out.push(b']');
    Ok(())
}

/// A BSON document `{"rewound": "<json>"}` (BSON specification 1.1).
pub(crate) fn bson_header(json: &[u8]) -> Vec<u8> {
    [&bson_before(json), json, &BSON_AFTER].concat()
}

/// Bytes of such a document before the JSON: its length, the type of a string, a name, the string's length.
const BSON_BEFORE: usize = 4 + 1 + 8 + 4;
/// What ends the string, and the document.
const BSON_AFTER: [u8; 2] = [0, 0];

fn bson_before(json: &[u8]) -> [u8; BSON_BEFORE] {
    let mut before = *b"....\x02rewound\0....";
    before[..4].copy_from_slice(&((BSON_BEFORE + json.len() + BSON_AFTER.len()) as u32).to_le_bytes());
    before[BSON_BEFORE - 4..].copy_from_slice(&(json.len() as u32 + 1).to_le_bytes());
    before
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    rewound: Header,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    collection: CollectionId,
    kind: Kind,
    lengths: Lengths,
    #[serde(default)]
    keys: Option<KeyList<false>>,
    #[serde(default)]
    keys_base64: Option<KeyList<true>>,
    #[serde(default)]
    key_span: Option<(u32, u32)>,
    #[serde(default)]
    key_spans: Option<Vec<(u32, u32)>>,
    #[serde(default)]
    attachments: Vec<(String, u64, String)>,
    #[serde(default)]
    times: Vec<Alike>,
}

/// A time, and how many changes after each other have it: `[order, millis, count]`, without the count if it is one.
struct Alike(EngineTime, u32);

impl<'de> Deserialize<'de> for Alike {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Numbers;

        impl<'de> Visitor<'de> for Numbers {
            type Value = Alike;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time and a number")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Alike, A::Error> {
                let short = || serde::de::Error::invalid_length(1, &"two numbers");
                let order = seq.next_element()?.ok_or_else(short)?;
                let millis = seq.next_element()?.ok_or_else(short)?;
                Ok(Alike(EngineTime { order, millis }, seq.next_element()?.unwrap_or(1)))
            }
        }
        deserializer.deserialize_seq(Numbers)
    }
}

enum Lengths {
    Uniform { each: u32, count: u32 },
    List(Vec<u32>),
}

/// By hand: what serde derives for either form puts each number down twice.
impl<'de> Deserialize<'de> for Lengths {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Uniform {
            each: u32,
            count: u32,
        }
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Lengths;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("lengths")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> std::result::Result<Lengths, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(Lengths::List)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<Lengths, A::Error> {
                let Uniform { each, count } = Uniform::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Lengths::Uniform { each, count })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// Keys read into one buffer, without a string for each.
struct KeyList<const BASE: bool> {
    bytes: BytesMut,
    ends: Vec<u32>,
}

impl<'de, const BASE: bool> Deserialize<'de> for KeyList<BASE> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Keys<const BASE: bool>;
        struct One<'a, const BASE: bool>(&'a mut BytesMut);

        impl<'de, const BASE: bool> Visitor<'de> for Keys<BASE> {
            type Value = KeyList<BASE>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of keys")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Self::Value, A::Error> {
                let mut list = KeyList { bytes: BytesMut::new(), ends: Vec::new() };
                while seq.next_element_seed(One::<BASE>(&mut list.bytes))?.is_some() {
                    list.ends.push(list.bytes.len() as u32);
                }
                Ok(list)
            }
        }
        impl<'de, const BASE: bool> serde::de::DeserializeSeed<'de> for One<'_, BASE> {
            type Value = ();
            fn deserialize<D: serde::Deserializer<'de>>(self, d: D) -> std::result::Result<(), D::Error> {
                d.deserialize_str(self)
            }
        }
        impl<const BASE: bool> Visitor<'_> for One<'_, BASE> {
            type Value = ();
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> std::result::Result<(), E> {
                if BASE {
                    self.0.extend_from_slice(&BASE64.decode(text).map_err(|_| E::custom("not base64"))?);
                } else {
                    self.0.extend_from_slice(text.as_bytes());
                }
                Ok(())
            }
        }
        deserializer.deserialize_seq(Keys::<BASE>)
    }
}

/// A frame read back.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub batch: Batch,
    /// The engine time of each change; empty outside the change log.
    pub times: Vec<EngineTime>,
}

/// Reads the plain content of a frame. Never panics, whatever the bytes.
pub(crate) fn parse(encoding: Encoding, plain: Bytes) -> Result<Frame> {
    read(encoding, plain).ok_or_else(|| Error::corrupt("a frame's header does not fit its content"))
}

fn read(encoding: Encoding, plain: Bytes) -> Option<Frame> {
    let (json, body_at) = split_header(encoding, &plain)?;
    let line: Line = serde_json::from_slice(json).ok()?;
    assemble(encoding, line.rewound, Some(plain.slice(body_at..)), plain.len())
}

/// Reads what stands before the bodies of a frame with `raw` plain bytes: documents without their
/// bodies. None if their keys are parts of these.
pub(crate) fn parse_header(encoding: Encoding, json: &[u8], raw: usize) -> Result<Option<Frame>> {
    let header = serde_json::from_slice::<Line>(json).ok().map(|line| line.rewound);
    if header.as_ref().is_some_and(|h| h.keys.is_none() && h.keys_base64.is_none()) {
        return Ok(None);
    }
    let read = header.and_then(|header| assemble(encoding, header, None, raw));
    read.map(Some).ok_or_else(|| Error::corrupt("a frame's header contradicts itself"))
}

/// The frame that a header tells of, with its bodies or without.
fn assemble(encoding: Encoding, header: Header, body: Option<Bytes>, raw: usize) -> Option<Frame> {
    let separator = usize::from(encoding == Encoding::Json);
    let lengths = match header.lengths {
        Lengths::List(list) => list,
        // Each document takes at least its separator, so the count is bounded by the body; empty
        // ones without a separator are bounded by the header's own keys below.
        Lengths::Uniform { each, count } => {
            let size = (each as usize + separator).max(1);
            if count as usize > (raw / size).max(raw) {
                return None;
            }
            vec![each; count as usize]
        }
    };
    let mut docs = Vec::with_capacity(lengths.len());
    match &body {
        None => docs.resize(lengths.len(), Doc { start: 0, end: 0, key_start: 0, key_len: 0 }),
        Some(body) => {
            let mut at = 0usize;
            for length in &lengths {
                let end = at.checked_add(*length as usize)?;
                if end + separator > body.len() {
                    return None;
                }
                docs.push(Doc { start: at as u32, end: end as u32, key_start: 0, key_len: 0 });
                at = end + separator;
            }
            if at != body.len() {
                return None;
            }
        }
    }
    let body = body.unwrap_or_default();
    let apart = match (header.keys, header.keys_base64) {
        (Some(k), None) => Some((k.bytes, k.ends)),
        (None, Some(k)) => Some((k.bytes, k.ends)),
        (None, None) => None,
        _ => return None,
    };
    let keys = match (apart, header.key_span, header.key_spans) {
        (Some((bytes, ends)), None, None) => {
            if ends.len() != docs.len() {
                return None;
            }
            let mut start = 0;
            for (doc, end) in docs.iter_mut().zip(ends) {
                (doc.key_start, doc.key_len) = (start, end - start);
                start = end;
            }
            Some(bytes.freeze())
        }
        (None, Some(span), None) => {
            place_spans(&mut docs, std::iter::repeat(span))?;
            None
        }
        (None, None, Some(spans)) => {
            if spans.len() != docs.len() {
                return None;
            }
            place_spans(&mut docs, spans.into_iter())?;
            None
        }
        _ => return None,
    };
    let attachments = header
        .attachments
        .into_iter()
        .map(|(digest, length, place)| {
            Some(AttachmentRef { digest: crate::hash::unhex32(&digest)?, length, place: Arc::from(place) })
        })
        .collect::<Option<Vec<_>>>()?;
    // Counted before they are written out: a count may be any number.
    let count = header.times.iter().map(|Alike(_, count)| u64::from(*count)).sum::<u64>();
    if !header.times.is_empty() && count != docs.len() as u64 {
        return None;
    }
    let mut times = Vec::with_capacity(count as usize);
    header.times.into_iter().for_each(|Alike(time, count)| times.resize(times.len() + count as usize, time));
    let batch = Batch { collection: header.collection, kind: header.kind, encoding, body, keys, docs, attachments };
    batch.check().ok()?;
    Some(Frame { batch, times })
}

/// Sets keys that are parts of bodies; none if one lies outside its document.
fn place_spans(docs: &mut [Doc], spans: impl Iterator<Item = (u32, u32)>) -> Option<()> {
    for (doc, (start, length)) in docs.iter_mut().zip(spans) {
        if u64::from(start) + u64::from(length) > u64::from(doc.end - doc.start) {
            return None;
        }
        (doc.key_start, doc.key_len) = (doc.start + start, length);
    }
    Some(())
}

/// The header's JSON and where the documents begin.
pub(crate) fn split_header(encoding: Encoding, plain: &[u8]) -> Option<(&[u8], usize)> {
    let end = header_end(encoding, plain)?;
    let header = plain.get(..end)?;
    match encoding {
        Encoding::Json | Encoding::Bin => Some((header.split_last()?.1, end)),
        Encoding::Bson => {
            let json = header.get(BSON_BEFORE..end.checked_sub(BSON_AFTER.len())?)?;
            (header.starts_with(&bson_before(json)) && header.ends_with(&BSON_AFTER)).then_some((json, end))
        }
    }
}

/// Where the header ends; none if these bytes are too few to tell.
pub(crate) fn header_end(encoding: Encoding, begun: &[u8]) -> Option<usize> {
    match encoding {
        Encoding::Json | Encoding::Bin => begun.iter().position(|b| *b == b'\n').map(|end| end + 1),
        Encoding::Bson => begun.first_chunk().map(|total| u32::from_le_bytes(*total) as usize),
    }
}

#[cfg(test)]
mod tests;
