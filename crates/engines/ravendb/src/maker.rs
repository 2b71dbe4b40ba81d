//! A dump made on the fly out of batches, in an order that the server's import can take: the content
//! of attachments before the documents that name it, counters and time series after their documents,
//! settings last. What comes too early waits in encrypted temporary files without a name.

use crate::catalog::{RANGES, is_known};
use crate::choice::Choice;
use crate::dump::{Compressor, Writer, attachment_head, parse};
use crate::gather::{Entry, hash_bytes};
use crate::keys::{self, joined, lower};
use crate::members::{of, with, without, without_surrogates};
use crate::temporary::{Again, Temporary};
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt;
use model::{AttachmentRef, AttachmentStore, Batch, Encoding, Error, Kind, RestoreReport, Result};
use std::collections::{BTreeMap, HashSet};
use std::io::{Read, Write};
use std::sync::Arc;

/// Bytes of attachments after which a document must follow: the server takes both in one transaction.
const CARRIED_MAX: u64 = 64 << 20;
/// The same in attachments.
const CARRIED_COUNT: u64 = 256;
/// The settings, which are not an element of a section.
const RECORD: &str = "DatabaseRecord";
/// What must be a member of the body, and becomes raw bytes.
const BLOB: &[u8] = b",\"@raven-blob\":\"";

/// Takes the bytes of a dump.
#[async_trait]
pub(crate) trait Output: Send {
    async fn send(&mut self, bytes: Bytes) -> Result<()>;
}

/// Makes a dump.
pub(crate) struct Maker<O> {
    writer: Writer,
    pub out: O,
    store: Arc<dyn AttachmentStore>,
    /// Hashes of the contents that were sent.
    sent: HashSet<[u8; 32]>,
    later: BTreeMap<(u8, String), Temporary>,
    /// Contents that came while there was no document that could follow them.
    contents: Option<Temporary>,
    has_documents: bool,
    /// A document that was sent already, and may be sent again after attachments; or one that waits for
    /// them, where none may come twice.
    carrier: Option<Bytes>,
    /// Whether no document comes twice: whoever reads a file would count it twice.
    pub once: bool,
    /// Attachments and bytes that no document has followed yet.
    waiting: (u64, u64),
    record: Option<Vec<u8>>,
    /// Whether the server takes revisions only once its settings allow them: before 5.0.
    pub settings_first: bool,
    /// Keys of subscriptions that are left as they are.
    pub kept: HashSet<Vec<u8>>,
    /// Whether sections that nobody knows are refused: a server would pass them by without a word.
    pub refuses_unknown: bool,
    /// Which kinds of things come.
    pub choice: Choice,
    pub report: RestoreReport,
}

impl<O: Output> Maker<O> {
    pub fn new(out: O, compressor: Compressor, build: u64, store: Arc<dyn AttachmentStore>) -> Result<Self> {
        Ok(Maker {
            writer: Writer::new(compressor, build)?,
            out,
            store,
            sent: HashSet::new(),
            later: BTreeMap::new(),
            contents: None,
            has_documents: false,
            carrier: None,
            once: false,
            waiting: (0, 0),
            record: None,
            settings_first: false,
            kept: HashSet::new(),
            refuses_unknown: false,
            choice: Choice::default(),
            report: RestoreReport::default(),
        })
    }

    /// Takes a batch.
    pub async fn write(&mut self, batch: &Batch) -> Result<()> {
        if batch.encoding != Encoding::Json {
            return Err(Error::unsupported("RavenDB takes JSON documents only"));
        }
        let section = match &batch.kind {
            Kind::Attachment => return self.attachments(batch).await,
            // A dump without them says the same.
            kind if kind.is_tombstone() => return Ok(()),
            kind => keys::section_of(kind)
                .ok_or_else(|| Error::unsupported(format!("RavenDB has nothing of the kind {kind:?}")))?
                .to_owned(),
        };
        // Deletions, as tombstones are.
        if section == RANGES {
            return Ok(());
        }
        if self.refuses_unknown && !is_known(&section) {
            return Err(Error::unsupported(format!(
                "the backup holds {section}, which this version of Rewound does not know, and cannot restore"
            ))
            .hint("a newer version may; all else is restored with --without-kinds unknown, and a dump made by `rewound copy` holds it as it came"));
        }
        for i in 0..batch.len() {
            if section == "Subscriptions" && self.kept.contains(batch.key_of(i)) {
                continue;
            }
            let body = batch.body_of(i);
            let stripped = if batch.kind == Kind::Document { self.choice.stripped(body) } else { None };
            let body = stripped.as_deref().unwrap_or(body);
            let made = without_surrogates(body);
            let body = made.as_deref().unwrap_or(body);
            self.report.documents += 1;
            self.report.bytes += body.len() as u64;
            let waits = self.once && batch.kind == Kind::Document && i + 1 == batch.len() && !names_attachments(body);
            if !waits {
                self.one(&batch.kind, &section, body).await?;
            } else if let Some(before) = self.carrier.replace(Bytes::copy_from_slice(body)) {
                self.one(&batch.kind, &section, &before).await?;
            }
            self.has_documents |= waits;
        }
        if batch.kind == Kind::Document
            && !self.once
            && let Some(doc) =
                batch.docs.last().filter(|d| !names_attachments(&batch.body[d.start as usize..d.end as usize]))
        {
            self.carrier = Some(batch.body.slice(doc.start as usize..doc.end as usize));
        }
        Ok(())
    }

    async fn one(&mut self, kind: &Kind, section: &str, body: &[u8]) -> Result<()> {
        if matches!(kind, Kind::Document | Kind::Revision) {
            if memchr::memmem::find(body, b"\"@metadata\"").is_none() {
                return Err(Error::unsupported("a document without @metadata does not say its id and collection")
                    .hint("only what came out of RavenDB can be restored into it, so far"));
            }
            self.has_documents |= *kind == Kind::Document;
            // The document that attachments wait for must come before the section ends.
            let ends_section = *kind == Kind::Revision && self.waiting.0 > 0;
            let is_early = *kind == Kind::Revision && self.settings_first;
            let cannot_carry = self.once || self.carrier.is_none();
            if names_attachments(body) || is_early || (ends_section && cannot_carry) {
                return self.keep(section, body);
            }
            if ends_section {
                self.carry().await?;
            }
            self.writer.item(section, body)?;
            if *kind == Kind::Document {
                self.waiting = (0, 0);
            }
            return self.hand_on().await;
        }
        match section {
            RECORD => {
                self.record = Some(body.to_vec());
                Ok(())
            }
            _ => self.keep(section, body),
        }
    }

    /// Keeps an item for the end.
    fn keep(&mut self, section: &str, body: &[u8]) -> Result<()> {
        let rank = match section {
            "Docs" => 0,
            "RevisionDocuments" => 1,
            "CounterGroups" | "Counters" => 2,
            "TimeSeries" => 3,
            "Indexes" => 9,
            _ => 5,
        };
        let place = (rank, section.to_owned());
        if !self.later.contains_key(&place) {
            self.later.insert(place.clone(), temporary()?);
        }
        let file = self.later.get_mut(&place).ok_or_else(|| Error::bug("a temporary file is gone"))?;
        write_framed(file, body)
    }

    async fn attachments(&mut self, batch: &Batch) -> Result<()> {
        for (i, content) in batch.attachments.iter().enumerate() {
            if self.choice.leaves_out_attachment(batch.key_of(i)) {
                continue;
            }
            let entry: Entry = parse(batch.body_of(i), "the entry of an attachment")
                .map_err(|_| Error::unsupported("these are not attachments of RavenDB"))?;
            self.report.attachments += 1;
            self.report.bytes += content.length;
            if self.sent.insert(hash_bytes(&entry.hash)) {
                self.content(&entry, content).await?;
            }
        }
        Ok(())
    }

    async fn content(&mut self, entry: &Entry, content: &AttachmentRef) -> Result<()> {
        if !self.once && (self.waiting.0 >= CARRIED_COUNT || self.waiting.1 >= CARRIED_MAX) {
            self.carry().await?;
        }
        let name = lower(&entry.name);
        let tag = joined(&[&entry.document, "d", &name, &entry.hash, &lower(&entry.content_type)]);
        let head = attachment_head(&entry.hash, content.length, &tag)?;
        let mut pieces = self.store.open(content).await?;
        let mut waits = match self.has_documents {
            true => {
                self.writer.item("Docs", head.as_bytes())?;
                None
            }
            false => {
                let mut file = self.contents.take().map_or_else(temporary, Ok)?;
                write_framed(&mut file, head.as_bytes())?;
                file.write_all(&content.length.to_le_bytes()).map_err(spilling)?;
                Some(file)
            }
        };
        let mut length = 0;
        while let Some(piece) = pieces.next().await.transpose()? {
            length += piece.len() as u64;
            // What follows would be taken for content otherwise.
            if length > content.length {
                break;
            }
            match &mut waits {
                Some(file) => file.write_all(&piece).map_err(spilling)?,
                None => {
                    self.writer.blob(&piece)?;
                    self.hand_on().await?;
                }
            }
        }
        if length != content.length {
            return Err(Error::corrupt(format!(
                "the content of the attachment {} has {length} bytes, not {}",
                entry.name, content.length
            )));
        }
        match waits {
            Some(file) => self.contents = Some(file),
            None => self.waiting = (self.waiting.0 + 1, self.waiting.1 + length),
        }
        Ok(())
    }

    /// Writes the contents that waited, before what follows them.
    async fn waiting_contents(&mut self) -> Result<()> {
        let Some(file) = self.contents.take() else { return Ok(()) };
        let section = if self.has_documents { "Docs" } else { "RevisionDocuments" };
        let mut file = file.again().map_err(spilling)?;
        let (mut head, mut length, mut piece) = (Vec::new(), [0; 8], vec![0; 128 << 10]);
        while read_framed(&mut file, &mut head)? {
            self.writer.item(section, &head)?;
            file.read_exact(&mut length).map_err(spilling)?;
            let mut left = u64::from_le_bytes(length);
            self.waiting = (self.waiting.0 + 1, self.waiting.1 + left);
            while left > 0 {
                let n = left.min(piece.len() as u64) as usize;
                file.read_exact(&mut piece[..n]).map_err(spilling)?;
                self.writer.blob(&piece[..n])?;
                self.hand_on().await?;
                left -= n as u64;
            }
        }
        Ok(())
    }

    /// Attachments count only if a document follows them.
    async fn carry(&mut self) -> Result<()> {
        if let Some(carrier) = self.carrier.clone() {
            let made = without_surrogates(&carrier);
            // In a file it waited; a server has it, and nothing changes.
            self.writer.item("Docs", made.as_deref().unwrap_or(&carrier))?;
            self.waiting = (0, 0);
            self.hand_on().await?;
        }
        Ok(())
    }

    /// The settings, if they came: they are not part of the dump yet.
    pub fn record(&self) -> Option<Vec<u8>> {
        self.record.clone()
    }

    /// Writes what waited, and ends the dump. The settings are part of it only if that is wanted.
    pub async fn finish(mut self, with_record: bool) -> Result<(O, RestoreReport)> {
        self.waiting_contents().await?;
        if self.once || self.waiting.0 > 0 && !self.later.contains_key(&(0, "Docs".to_owned())) {
            self.carry().await?;
        }
        for ((_, section), file) in std::mem::take(&mut self.later) {
            if let Some(record) = self.record.as_ref().filter(|_| self.settings_first && section == "RevisionDocuments")
            {
                self.writer.value(RECORD, record)?;
            }
            let (mut file, mut body) = (file.again().map_err(spilling)?, Vec::new());
            while read_framed(&mut file, &mut body)? {
                match section.as_str() {
                    "TimeSeries" => self.segment(&body)?,
                    "Docs" | "RevisionDocuments" => {
                        let made = without_missing(&body, &self.sent);
                        self.writer.item(&section, made.as_deref().unwrap_or(&body))?;
                    }
                    _ => self.writer.item(&section, &body)?,
                }
                self.hand_on().await?;
            }
        }
        if let Some(record) = self.record.take().filter(|_| with_record) {
            self.writer.value(RECORD, &record)?;
        }
        let last = self.writer.finish()?;
        self.out.send(last).await?;
        Ok((self.out, self.report))
    }

    /// A segment of a time series: what is base64 in the vault becomes raw bytes again.
    fn segment(&mut self, body: &[u8]) -> Result<()> {
        let split = memchr::memmem::rfind(body, BLOB).and_then(|at| {
            let text = body[at + BLOB.len()..].strip_suffix(b"\"}")?;
            Some((&body[..at], STANDARD.decode(text).ok()?))
        });
        let (head, blob) = split.ok_or_else(|| Error::corrupt("a segment of a time series has no content"))?;
        self.writer.item("TimeSeries", &[head, b"}"].concat())?;
        self.writer.blob(&blob)
    }

    async fn hand_on(&mut self) -> Result<()> {
        match self.writer.take() {
            Some(bytes) => self.out.send(bytes).await,
            None => Ok(()),
        }
    }
}

/// A document without the attachments whose content did not come: the server would take a revision
/// that names them, and could not export it any more. None if there are none.
fn without_missing(body: &[u8], sent: &HashSet<[u8; 32]>) -> Option<Vec<u8>> {
    let all: Vec<serde_json::Value> =
        serde_json::from_str(of(of(body, "@metadata")?.as_bytes(), "@attachments")?).ok()?;
    let is_there = |a: &serde_json::Value| a["Hash"].as_str().is_some_and(|h| sent.contains(&hash_bytes(h)));
    let there: Vec<_> = all.iter().filter(|a| is_there(a)).collect();
    if there.len() == all.len() {
        return None;
    }
    with(body, "@metadata", |metadata| match there.is_empty() {
        false => with(metadata, "@attachments", |_| serde_json::to_vec(&there).ok()),
        true => with(&without(metadata, &["@attachments"])?, "@flags", |flags| {
            let flags: String = serde_json::from_slice(flags).ok()?;
            let left: Vec<&str> = flags.split(", ").filter(|f| *f != "HasAttachments").collect();
            serde_json::to_vec(&left.join(", ")).ok()
        }),
    })
}

fn temporary() -> Result<Temporary> {
    Temporary::new().map_err(spilling)
}

fn write_framed(file: &mut Temporary, body: &[u8]) -> Result<()> {
    file.write_all(&(body.len() as u32).to_le_bytes()).and_then(|()| file.write_all(body)).map_err(spilling)
}

/// Reads what [`write_framed`] wrote; false at the end.
fn read_framed(file: &mut Again, body: &mut Vec<u8>) -> Result<bool> {
    let mut length = [0; 4];
    if file.read(&mut length[..1]).map_err(spilling)? == 0 {
        return Ok(false);
    }
    file.read_exact(&mut length[1..]).map_err(spilling)?;
    body.resize(u32::from_le_bytes(length) as usize, 0);
    file.read_exact(body).map_err(spilling)?;
    Ok(true)
}

/// Whether a document may name attachments; one that only looks so is well where those are.
fn names_attachments(body: &[u8]) -> bool {
    memchr::memmem::find(body, b"\"@attachments\"").is_some()
}

fn spilling(e: std::io::Error) -> Error {
    Error::io("keeping what must be restored last in a temporary file", e)
        .hint("make room where temporary files go, or set TMPDIR to a place that has some")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::dump::parser::{Event, Parser};
    use model::{BatchBuilder, CollectionId};
    use testkit::source::MemoryAttachments;

    struct Memory(Vec<u8>);

    #[async_trait]
    impl Output for Memory {
        async fn send(&mut self, bytes: Bytes) -> Result<()> {
            self.0.extend_from_slice(&bytes);
            Ok(())
        }
    }

    fn batch(kind: Kind, bodies: &[&str]) -> Batch {
        let mut batch = BatchBuilder::new(CollectionId::new("c"), kind, Encoding::Json);
        bodies.iter().for_each(|body| batch.push(b"k", body.as_bytes()));
        batch.take()
    }

    const HASH: &str = "Mk3PAn3UowqTLEQfNlol6GsXPe+kuOWJSCU0cbgbcs8=";

    async fn attachment(store: &MemoryAttachments) -> Batch {
        let mut batch = BatchBuilder::new(CollectionId::new("c"), Kind::Attachment, Encoding::Json);
        let entry = format!(r#"{{"document":"a","name":"A","hash":"{HASH}","contentType":"","size":5}}"#);
        batch.push_attachment(b"k", entry.as_bytes(), store.put_bytes(b"hello").await);
        batch.take()
    }

    fn named(flags: &str) -> String {
        format!(r#"{{"@metadata":{{"@id":"a","@flags":"{flags}","@attachments":[{{"Name":"A","Hash":"{HASH}"}}]}}}}"#)
    }

    /// What a dump holds: for each item its section, and whether it is an attachment.
    fn items(dump: &[u8]) -> Vec<(String, bool)> {
        let mut parser = Parser::default();
        parser.push(dump);
        let mut all = Vec::new();
        while let Some(event) = parser.event().unwrap() {
            if let Event::Item(item) = event {
                all.push((item.section.to_string(), item.blob.is_some()));
            }
        }
        parser.finish().unwrap();
        all
    }

    #[tokio::test]
    async fn a_document_follows_attachments_in_their_section_whatever_comes_when() {
        let store = Arc::new(MemoryAttachments::default());
        let plain = r#"{"@metadata":{"@id":"p"}}"#;
        let (docs, named) = (batch(Kind::Document, &[plain]), batch(Kind::Document, &[&named("HasAttachments")]));
        let (revision, attached) = (batch(Kind::Revision, &[plain]), attachment(&store).await);
        let orders: [&[&Batch]; 5] = [
            &[&docs, &named, &revision, &attached],
            &[&attached, &revision, &docs, &named],
            &[&named, &attached, &revision, &docs],
            &[&docs, &attached, &revision],
            &[&named, &attached, &revision],
        ];
        for (n, order) in orders.iter().enumerate() {
            let once = Maker::new(Memory(Vec::new()), Compressor::none(), 1, store.clone()).unwrap();
            let mut once = Maker { once: true, ..once };
            for batch in *order {
                once.write(batch).await.unwrap();
            }
            let items_once = items(&once.finish(false).await.unwrap().0.0);
            let documents = items_once.iter().filter(|(section, is)| section == "Docs" && !is).count();
            let batches = order.iter().filter(|batch| batch.kind == Kind::Document).count();
            assert_eq!(documents, batches, "{n}: each comes once, {items_once:?}");
            let at = items_once.iter().position(|(_, is_attachment)| *is_attachment).unwrap();
            assert_eq!(items_once.get(at + 1), Some(&("Docs".to_owned(), false)), "{n}: {items_once:?}");
            let mut maker = Maker::new(Memory(Vec::new()), Compressor::none(), 1, store.clone()).unwrap();
            for batch in *order {
                maker.write(batch).await.unwrap();
            }
            let items = items(&maker.finish(false).await.unwrap().0.0);
            let at = items.iter().position(|(_, is_attachment)| *is_attachment).unwrap();
            assert_eq!(
                (&items[at].0, items.get(at + 1)),
                (&"Docs".to_owned(), Some(&("Docs".to_owned(), false))),
                "{n}"
            );
        }
        // Without any document a revision must do.
        let only = batch(Kind::Revision, &[&self::named("Revision, HasAttachments")]);
        let mut maker = Maker::new(Memory(Vec::new()), Compressor::none(), 1, store.clone()).unwrap();
        maker.write(&only).await.unwrap();
        maker.write(&attached).await.unwrap();
        let items = items(&maker.finish(false).await.unwrap().0.0);
        let of = |is| ("RevisionDocuments".to_owned(), is);
        assert_eq!(items, [of(true), of(false)]);
    }

    #[tokio::test]
    async fn attachments_that_did_not_come_are_not_named() {
        let store = Arc::new(MemoryAttachments::default());
        let mut maker = Maker::new(Memory(Vec::new()), Compressor::none(), 1, store).unwrap();
        maker.write(&batch(Kind::Revision, &[&named("Revision, HasAttachments")])).await.unwrap();
        let dump = String::from_utf8(maker.finish(false).await.unwrap().0.0).unwrap();
        assert!(dump.contains(r#"{"@metadata":{"@id":"a","@flags":"Revision"}}"#), "{dump}");
    }
}
