//! A dump made on the fly out of batches, in an order that the server's import can take: the content
//! of attachments before the documents that name it, counters and time series after their documents,
//! settings last. What comes too early waits in temporary files without a name.

use crate::dump::{Compressor, Writer, attachment_head, parse};
use crate::gather::{Entry, hash_bytes};
use crate::keys::{self, joined, lower};
use crate::members::without_surrogates;
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt;
use model::{AttachmentRef, AttachmentStore, Batch, Encoding, Error, Kind, RestoreReport, Result};
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
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
    later: BTreeMap<(u8, String), BufWriter<File>>,
    has_documents: bool,
    /// A document that was sent already, and may be sent again after attachments.
    carrier: Option<Bytes>,
    /// Attachments and bytes that no document has followed yet.
    waiting: (u64, u64),
    record: Option<Vec<u8>>,
    /// Keys of subscriptions that are left as they are.
    pub kept: HashSet<Vec<u8>>,
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
            has_documents: false,
            carrier: None,
            waiting: (0, 0),
            record: None,
            kept: HashSet::new(),
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
        for i in 0..batch.len() {
            if section == "Subscriptions" && self.kept.contains(batch.key_of(i)) {
                continue;
            }
            let made = without_surrogates(batch.body_of(i));
            let body = made.as_deref().unwrap_or(batch.body_of(i));
            self.report.documents += 1;
            self.report.bytes += body.len() as u64;
            self.one(&batch.kind, &section, body).await?;
        }
        if batch.kind == Kind::Document
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
            if names_attachments(body) {
                return self.keep(section, body);
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
            let file = tempfile::tempfile().map_err(spilling)?;
            self.later.insert(place.clone(), BufWriter::new(file));
        }
        let file = self.later.get_mut(&place).ok_or_else(|| Error::bug("a temporary file is gone"))?;
        let length = (body.len() as u32).to_le_bytes();
        file.write_all(&length).and_then(|()| file.write_all(body)).map_err(spilling)
    }

    async fn attachments(&mut self, batch: &Batch) -> Result<()> {
        for (i, content) in batch.attachments.iter().enumerate() {
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
        if self.waiting.0 >= CARRIED_COUNT || self.waiting.1 >= CARRIED_MAX {
            self.carry().await?;
        }
        let section = if self.has_documents { "Docs" } else { "RevisionDocuments" };
        let name = lower(&entry.name);
        let tag = joined(&[&entry.document, "d", &name, &entry.hash, &lower(&entry.content_type)]);
        self.writer.item(section, attachment_head(&entry.hash, content.length, &tag)?.as_bytes())?;
        let mut pieces = self.store.open(content).await?;
        let mut length = 0;
        while let Some(piece) = pieces.next().await.transpose()? {
            length += piece.len() as u64;
            // What follows would be taken for content otherwise.
            if length > content.length {
                break;
            }
            self.writer.blob(&piece)?;
            self.hand_on().await?;
        }
        if length != content.length {
            return Err(Error::corrupt(format!(
                "the content of the attachment {} has {length} bytes, not {}",
                entry.name, content.length
            )));
        }
        self.waiting = (self.waiting.0 + 1, self.waiting.1 + length);
        Ok(())
    }

    /// Attachments count only if a document follows them: one is sent again, which changes nothing.
    async fn carry(&mut self) -> Result<()> {
        if let Some(carrier) = self.carrier.clone() {
            let made = without_surrogates(&carrier);
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
        if self.waiting.0 > 0 && !self.later.contains_key(&(0, "Docs".to_owned())) {
            self.carry().await?;
        }
        for ((_, section), file) in std::mem::take(&mut self.later) {
            let mut file = file.into_inner().map_err(|e| spilling(e.into_error()))?;
            file.seek(SeekFrom::Start(0)).map_err(spilling)?;
            let mut file = BufReader::with_capacity(256 << 10, file);
            let (mut length, mut body) = ([0; 4], Vec::new());
            while file.read(&mut length[..1]).map_err(spilling)? == 1 {
                file.read_exact(&mut length[1..]).map_err(spilling)?;
                body.resize(u32::from_le_bytes(length) as usize, 0);
                file.read_exact(&mut body).map_err(spilling)?;
                match section.as_str() {
                    "TimeSeries" => self.segment(&body)?,
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

/// Whether a document may name attachments; one that only looks so is well where those are.
fn names_attachments(body: &[u8]) -> bool {
    memchr::memmem::find(body, b"\"@attachments\"").is_some()
}

fn spilling(e: std::io::Error) -> Error {
    Error::io("keeping what must be restored last in a temporary file", e)
        .hint("make room where temporary files go, or set TMPDIR to a place that has some")
}
