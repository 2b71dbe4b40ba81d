//! A dump as a sink: files that the tools' own restore takes.

use crate::document::{self, About};
use crate::dump::convert::{self, Contents};
use crate::dump::parse::{BACKUP_NAME, DUMP_BEGIN, DUMP_END, Form};
use crate::dump::source::name;
use crate::extras;
use crate::inline;
use crate::leaf::Leaf;
use crate::revise;
use crate::session::fingerprint;
use async_trait::async_trait;
use flate2::Compression;
use flate2::write::GzEncoder;
use model::{
    AttachmentStore, Batch, CollectionInfo, Description, Encoding, Error, IfExists, Kind, Leftovers, Loss,
    PlannedCollection, RestoreOptions, RestorePlan, RestoreReport, Result, Sink, SinkSession, collect_attachment,
};
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::Mutex;

/// Bytes of one document's attachments: they are in memory while it is written.
const ATTACHED_MAX: usize = 128 << 20;
/// Bytes and documents of one line of couchbackup.
const LINE: usize = 1 << 20;

/// A file that a database is written to, compressed if its name ends with `.gz`.
#[derive(Debug)]
pub struct DumpSink {
    path: PathBuf,
    form: Form,
    shallow: bool,
}

impl DumpSink {
    /// The file at this path; it must not exist.
    pub fn new(path: impl Into<PathBuf>, form: Form) -> DumpSink {
        DumpSink { path: path.into(), form, shallow: false }
    }

    /// Whether only what wins is written, without histories and deletions: the mode `shallow` of
    /// couchbackup.
    pub fn shallow(mut self, yes: bool) -> DumpSink {
        self.shallow = yes;
        self
    }
}

#[async_trait]
impl Sink for DumpSink {
    async fn prepare(&self, what: &Description, options: &RestoreOptions) -> Result<RestorePlan> {
        if what.engine.0 != "couchdb" {
            return Err(Error::unsupported(format!(
                "documents of {} have no revisions, which a dump of CouchDB has",
                what.engine
            ))
            .hint("write them to a folder instead"));
        }
        let meant: Vec<_> = what.collections.iter().filter(|c| options.selection.takes(&c.name)).collect();
        let [info] = meant[..] else {
            return Err(Error::input(format!("a dump holds one database, and {} are meant", meant.len()))
                .hint("choose one with --only"));
        };
        if self.path.exists() && options.if_exists != IfExists::Replace {
            return Err(Error::input(format!("{} exists already", self.path.display()))
                .hint("choose another name, or pass --if-exists replace"));
        }
        if options.selection.no_attachments {
            return Err(Error::unsupported("a dump without attachments could not be restored where there are some")
                .hint("leave out --no-attachments"));
        }
        let mut losses = vec![Loss {
            what: "_security, settings and _local documents".into(),
            why: "dumps have no place for them".into(),
        }];
        let collections = vec![PlannedCollection { info: info.clone(), target: name(&self.path) }];
        let path = self.path.display();
        let phases = match self.shallow {
            true => vec![format!("write what wins of each document of {} to {path}", info.name)],
            false => vec![format!("write all leaf revisions of {} with their histories to {path}", info.name)],
        };
        if self.shallow {
            losses.push(Loss {
                what: "conflicts, deletions and histories".into(),
                why: "a shallow backup has only what wins".into(),
            });
        }
        Ok(RestorePlan { phases, collections, losses })
    }

    fn takes(&self, encoding: Encoding) -> bool {
        encoding == Encoding::Json
    }

    fn leaves_out(&self, batch: &Batch) -> bool {
        batch.kind == Kind::Local || batch.kind == extras::settings() || batch.kind == extras::checkpoints()
    }

    fn provable<'a>(&self, batch: &'a Batch) -> Option<Cow<'a, Batch>> {
        match self.shallow {
            true => revise::provable(batch).map(Cow::Owned),
            false => Some(Cow::Borrowed(batch)),
        }
    }

    async fn begin(&self, plan: RestorePlan, store: Arc<dyn AttachmentStore>) -> Result<Box<dyn SinkSession>> {
        let mut partial = self.path.clone().into_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let fail = |e| Error::io(format!("writing {}", partial.display()), e);
        let file = BufWriter::with_capacity(256 << 10, File::create(&partial).map_err(fail)?);
        let packed = self.path.extension().is_some_and(|e| e == "gz");
        let out =
            if packed { Out::Packed(Box::new(GzEncoder::new(file, Compression::default()))) } else { Out::Plain(file) };
        let mut writing = Writing {
            out,
            path: partial.clone(),
            form: self.form,
            shallow: self.shallow,
            any: false,
            line: Vec::new(),
            report: RestoreReport::default(),
            seen: HashSet::new(),
        };
        writing.begin()?;
        drop(plan);
        Ok(Box::new(DumpSession { path: self.path.clone(), partial, writing: Mutex::new(writing), store }))
    }
}

enum Out {
    Plain(BufWriter<File>),
    Packed(Box<GzEncoder<BufWriter<File>>>),
}

struct Writing {
    out: Out,
    path: PathBuf,
    form: Form,
    shallow: bool,
    any: bool,
    /// Documents of the line that is being made.
    line: Vec<u8>,
    report: RestoreReport,
    /// Batches that have come: one may come twice.
    seen: HashSet<u128>,
}

impl Writing {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let written = match &mut self.out {
            Out::Plain(file) => file.write_all(bytes),
            Out::Packed(file) => file.write_all(bytes),
        };
        written.map_err(|e| Error::io(format!("writing {}", self.path.display()), e))
    }

    fn begin(&mut self) -> Result<()> {
        match self.form {
            Form::CouchdbDump => self.put(format!("{DUMP_BEGIN}\n").as_bytes()),
            Form::Couchbackup => {
                let mode = if self.shallow { "shallow" } else { "full" };
                let head = format!(
                    "{{\"name\":\"{BACKUP_NAME}\",\"version\":\"2.11.12\",\"mode\":\"{mode}\",\"attachments\":true}}\n"
                );
                self.put(head.as_bytes())
            }
        }
    }

    /// Writes the leaves of one document: they stand together.
    fn document(&mut self, leaves: &[Leaf<'_>], contents: &Contents) -> Result<()> {
        let meant = |leaf: &&Leaf<'_>| !self.shallow || (leaf.rev == leaves[0].rev && !leaf.deleted);
        let meant: Vec<&Leaf<'_>> = leaves.iter().filter(meant).collect();
        for leaf in meant {
            let mut text = convert::to_dump(leaf, contents)?;
            if self.shallow {
                text = revise::without_history(&text)?;
            }
            if self.form == Form::CouchdbDump {
                let between: &[u8] = if self.any { b",\n" } else { b"" };
                self.put(between)?;
                self.put(text.as_bytes())?;
            } else {
                self.line.push(if self.line.is_empty() { b'[' } else { b',' });
                self.line.extend_from_slice(text.as_bytes());
            }
            self.any = true;
        }
        if self.line.len() >= LINE { self.end_line() } else { Ok(()) }
    }

    fn end_line(&mut self) -> Result<()> {
        if self.line.is_empty() {
            return Ok(());
        }
        let mut line = std::mem::take(&mut self.line);
        line.extend_from_slice(b"]\n");
        self.put(&line)
    }

    fn end(mut self) -> Result<RestoreReport> {
        self.end_line()?;
        if self.form == Form::CouchdbDump {
            let newline: &[u8] = if self.any { b"\n" } else { b"" };
            self.put(newline)?;
            self.put(format!("{DUMP_END}\n").as_bytes())?;
        }
        let fail = |e: std::io::Error| Error::io(format!("writing {}", self.path.display()), e);
        let file = match self.out {
            Out::Plain(file) => file,
            Out::Packed(file) => file.finish().map_err(fail)?,
        };
        file.into_inner().map_err(|e| fail(e.into_error()))?.sync_all().map_err(fail)?;
        Ok(self.report)
    }
}

struct DumpSession {
    path: PathBuf,
    partial: PathBuf,
    writing: Mutex<Writing>,
    store: Arc<dyn AttachmentStore>,
}

#[async_trait]
impl SinkSession for DumpSession {
    async fn catalog(&self, _: &CollectionInfo) -> Result<()> {
        Ok(())
    }

    async fn write(&self, batch: Batch) -> Result<()> {
        batch.check()?;
        let mut writing = self.writing.lock().await;
        if !writing.seen.insert(fingerprint(&batch)) {
            return Ok(());
        }
        let bad = |e| Error::corrupt("the entry of a document's attachments is no JSON").caused_by(e);
        for i in 0..batch.len() {
            writing.report.bytes += batch.body_of(i).len() as u64;
            if batch.kind == Kind::Document {
                writing.report.documents += 1;
                let leaves = document::leaves(batch.body_of(i))?;
                // With attachments all its leaves come with these.
                if leaves.iter().all(|leaf| leaf.attachments.is_empty()) {
                    writing.document(&leaves, &Contents::new())?;
                }
                continue;
            }
            let entry: About = serde_json::from_slice(batch.body_of(i)).map_err(bad)?;
            let bytes = match &batch.kind {
                Kind::Attachment => {
                    collect_attachment(self.store.open(&batch.attachments[i]).await?, ATTACHED_MAX).await?.to_vec()
                }
                kind if *kind == inline::kind() => {
                    #[derive(Deserialize)]
                    struct Data {
                        data: String,
                    }
                    let data: Data = serde_json::from_slice(batch.body_of(i)).map_err(bad)?;
                    inline::content(&data.data)?
                }
                other => return Err(Error::unsupported(format!("a dump has no place for {} entries", other.space()))),
            };
            writing.report.attachments += 1;
            let (mut contents, mut from) = (Contents::new(), 0);
            for content in entry.contents {
                let to = from + content.bytes as usize;
                let piece = bytes
                    .get(from..to)
                    .ok_or_else(|| Error::corrupt(format!("the content of document {} is cut off", entry.document)))?;
                contents.insert(content, piece.to_vec());
                from = to;
            }
            writing.document(&document::leaves(entry.body.get().as_bytes())?, &contents)?;
        }
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<RestoreReport> {
        let report = self.writing.into_inner().end()?;
        let fail = |e| Error::io(format!("naming {}", self.path.display()), e);
        std::fs::rename(&self.partial, &self.path).map_err(fail)?;
        let folder = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|f| f.sync_all()).map_err(fail)?;
        Ok(report)
    }

    async fn abort(self: Box<Self>) -> Leftovers {
        let what = match std::fs::remove_file(&self.partial) {
            Ok(()) => Vec::new(),
            Err(e) => vec![format!("{} ({e})", self.partial.display())],
        };
        Leftovers { what }
    }
}
