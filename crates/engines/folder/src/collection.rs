//! Writing one collection.

use crate::check::{attachments_path, document_path, inside};
use crate::files::blocking;
use crate::layout::Layout;
use crate::marker::{self, Naming, Written, long_name_line};
use crate::names::{self, ATTACHMENTS, NAMES_FILE, show};
use crate::session::written;
use crate::target::Placement;
use crate::walk::describe_attachment;
use crate::writer::{self, OneFile, Temporary, write_error};
use bytes::Bytes;
use futures::StreamExt;
use model::{AttachmentRef, AttachmentStore, Batch, Error, PlannedCollection, Result};
use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fs::{self, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::io::AsyncWriteExt;

/// Attachments up to this size are gathered and written in one go.
const GATHERED: usize = 1 << 20;

/// A collection that is being written.
pub(crate) struct Collection {
    planned: PlannedCollection,
    place: Placement,
    folder: PathBuf,
    /// Where its attachments are: in its folder, or in one beside its file.
    attached: PathBuf,
    /// Whether the folder beside its file was made by this restore.
    made_beside: AtomicBool,
    /// The other collection that has the place of the folder beside its file.
    beside_of: Option<String>,
    /// Names of documents with attachments beside its file that are not keys as they are.
    encoded: Mutex<HashSet<String>>,
    temporary: Arc<Temporary>,
    merging: bool,
    file: Mutex<Option<OneFile>>,
    /// Where case is ignored: hash of the folded name to hash of the name as it is.
    folded: Option<Mutex<HashMap<u64, u64>>>,
    /// The lines of the files of long names that were written to.
    long: Mutex<HashMap<PathBuf, HashSet<Vec<u8>>>>,
    documents: AtomicU64,
    attachments: AtomicU64,
    bytes: AtomicU64,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Collection {
    /// Makes the collection's folder, or starts its file.
    pub fn start(
        root: &Path,
        planned: PlannedCollection,
        place: Placement,
        temporary: Arc<Temporary>,
        merging: bool,
        ignores_case: bool,
        beside_of: Option<String>,
    ) -> Result<Collection> {
        let folder = root.join(&place.entry);
        let attached = place.beside().map_or_else(|| folder.clone(), |beside| root.join(beside));
        let file = OneFile::start(&temporary, root, &folder, &place.layout)?;
        if place.layout == Layout::Files {
            writer::make_folder(&folder)?;
        }
        let folded = (ignores_case && place.naming == Naming::Verbatim).then(Mutex::default);
        Ok(Collection {
            planned,
            place,
            folder,
            attached,
            made_beside: AtomicBool::new(false),
            beside_of,
            encoded: Mutex::default(),
            temporary,
            merging,
            file: Mutex::new(file),
            folded,
            long: Mutex::default(),
            documents: AtomicU64::new(0),
            attachments: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        })
    }

    /// Where it lies.
    pub fn place(&self) -> &Placement {
        &self.place
    }

    /// Its name in the target.
    pub fn target(&self) -> &str {
        &self.planned.target
    }

    /// Bytes of documents and attachments written.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Completes it.
    pub fn finish(&self) -> Result<Written> {
        if let Some(file) = locked(&self.file).take() {
            file.finish()?;
        }
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Ok(written(&self.planned, &self.place, count(&self.documents), count(&self.attachments)))
    }

    /// Removes what is not in its place yet.
    pub fn give_up(&self) {
        if let Some(file) = locked(&self.file).take() {
            file.give_up();
        }
    }

    /// Removes the folder of attachments beside its file, if this restore made it.
    pub fn remove_beside(&self) -> std::io::Result<()> {
        if self.made_beside.load(Ordering::Relaxed) { fs::remove_dir_all(&self.attached) } else { Ok(()) }
    }

    /// What is left of it in a folder that was there before, for people.
    pub fn documents_left(&self) -> Option<String> {
        let (documents, attachments) = (&self.documents, &self.attachments);
        match (
            self.place.layout == Layout::Files,
            documents.load(Ordering::Relaxed),
            attachments.load(Ordering::Relaxed),
        ) {
            (false, ..) | (_, 0, 0) => None,
            (_, documents, attachments) => Some(format!("{documents} documents and {attachments} attachments written")),
        }
    }

    /// Writes documents. Blocks.
    pub fn write_documents(&self, batch: &Batch) -> Result<()> {
        if self.place.layout != Layout::Files {
            let mut file = locked(&self.file);
            let file = file.as_mut().ok_or_else(|| Error::bug("documents came after the end of a restore"))?;
            if file.write(batch)? {
                self.documents.fetch_add(batch.len() as u64, Ordering::Relaxed);
                self.bytes.fetch_add(batch.raw_bytes(), Ordering::Relaxed);
            }
            return Ok(());
        }
        for i in 0..batch.len() {
            let (stem, body) = (self.stem(batch.key_of(i), ".json".len())?, batch.body_of(i));
            let path = document_path(&self.folder, &stem)?;
            let new = self.is_new(&path, &[&stem, b".json"])?;
            writer::write_file(&self.temporary.path(&self.folder), &path, &[body])?;
            if new {
                self.documents.fetch_add(1, Ordering::Relaxed);
                self.bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Deletes documents that were there before. Blocks.
    pub fn delete(&self, batch: &Batch) -> Result<()> {
        if !self.merging || self.place.layout != Layout::Files {
            return Ok(());
        }
        for i in 0..batch.len() {
            let path = document_path(&self.folder, &self.stem(batch.key_of(i), ".json".len())?)?;
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io(format!("deleting {}", path.display()), e)),
            }
        }
        Ok(())
    }

    /// Whether a file counts as written by this restore: it does not if a batch comes again.
    fn is_new(&self, path: &Path, name: &[&[u8]]) -> Result<bool> {
        if let Some(folded) = &self.folded {
            refuse_same_folded(&mut locked(folded), path, &name.concat())?;
        }
        Ok(self.merging || fs::symlink_metadata(path).is_err())
    }

    /// The name of a key's files without ending; `ending` is the longest ending it will get.
    pub(crate) fn stem<'a>(&self, key: &'a [u8], ending: usize) -> Result<Cow<'a, [u8]>> {
        match self.place.naming {
            Naming::Verbatim => match names::check_verbatim(key, ending) {
                Ok(()) if std::str::from_utf8(key).is_ok_and(|key| locked(&self.encoded).contains(key)) => {
                    Err(self.same_name(key))
                }
                Ok(()) => Ok(Cow::Borrowed(key)),
                // In one file a key can be anything; only its attachments need a name.
                Err(_) if self.is_beside() => Ok(Cow::Owned(self.encoded_beside(key)?.into_bytes())),
                Err(why) => Err(self.unsafe_name("document", key, why)),
            },
            Naming::Encoded => {
                let stem = names::encode(key);
                if names::is_shortened(&stem) {
                    self.keep_long_name(&self.folder, &stem, key, None)?;
                }
                Ok(Cow::Owned(stem.into_bytes()))
            }
        }
    }

    fn is_beside(&self) -> bool {
        self.attached != self.folder
    }

    /// The name for the attachments of a key that is no name itself; the key is kept beside it.
    fn encoded_beside(&self, key: &[u8]) -> Result<String> {
        let stem = names::encode(key);
        let path = attachments_path(&self.attached, stem.as_bytes())?;
        if locked(&self.encoded).insert(stem.clone()) && fs::symlink_metadata(path).is_ok() {
            return Err(self.same_name(stem.as_bytes()));
        }
        self.make_beside()?;
        self.keep_long_name(&self.attached, &stem, key, None)?;
        Ok(stem)
    }

    /// Makes the folder beside its file.
    fn make_beside(&self) -> Result<()> {
        if let Some(other) = &self.beside_of {
            let (name, place) = (self.target(), self.attached.display());
            let text = format!("{place} is the place of {other}, and of the attachments of {name}");
            return Err(Error::input(text).hint("give one of them another name with --rename OLD=NEW"));
        }
        if writer::make_folder(&self.attached)? {
            self.made_beside.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn same_name(&self, stem: &[u8]) -> Error {
        let stem = show(stem);
        Error::unsupported(format!(
            "attachments of two documents of {} would both be called {stem}{ATTACHMENTS}",
            self.target()
        ))
        .hint("leave attachments out with --no-attachments, or restore into another engine")
    }

    fn unsafe_name(&self, what: &str, key: &[u8], why: &str) -> Error {
        Error::input(format!("the {what} {} of {} cannot be a file: {why}", show(key), self.target()))
            .hint("this backup of a folder was not made by Rewound, or it was changed; nothing left the target folder")
    }

    /// Keeps a key, and what an engine says of it, beside its file.
    fn keep_long_name(&self, folder: &Path, name: &str, key: &[u8], body: Option<&[u8]>) -> Result<()> {
        let path = folder.join(NAMES_FILE);
        let line = long_name_line(name, key, body)?;
        let mut long = locked(&self.long);
        let lines = match long.entry(path.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            // What an earlier process has written need not be written again.
            Entry::Vacant(new) => new.insert(marker::long_name_lines(&path)?),
        };
        if lines.contains(&line) {
            return Ok(());
        }
        let append = || OpenOptions::new().create(true).append(true).open(&path)?.write_all(&line);
        append().map_err(|e| write_error(&path, e))?;
        lines.insert(line);
        Ok(())
    }

    /// Writes attachments.
    pub async fn write_attachments(self: &Arc<Self>, batch: &Batch, store: &dyn AttachmentStore) -> Result<()> {
        for (i, content) in batch.attachments.iter().enumerate() {
            let (this, key, body) = (self.clone(), batch.key_of(i).to_vec(), batch.body_of(i).to_vec());
            let length = content.length;
            let (path, new) = blocking(move || this.attachment_place(&key, &body, length)).await?;
            self.write_attachment(path, content, store).await?;
            if new {
                self.attachments.fetch_add(1, Ordering::Relaxed);
                self.bytes.fetch_add(length, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// The path of an attachment, its folder made, and whether it is new.
    pub(crate) fn attachment_place(&self, key: &[u8], body: &[u8], length: u64) -> Result<(PathBuf, bool)> {
        let slash = slash_of(key, body);
        let (document, name) = slash.map_or((key, &b""[..]), |at| (&key[..at], &key[at + 1..]));
        let stem = self.stem(document, ATTACHMENTS.len())?;
        if self.is_beside() {
            self.make_beside()?;
        }
        let mut folder = attachments_path(&self.attached, &stem)?;
        writer::make_folder(&folder)?;
        if self.place.naming == Naming::Encoded {
            let file = names::encode(name);
            let plain = slash.is_some() && describe_attachment(document, name, length) == body;
            if !plain || names::is_shortened(&file) {
                self.keep_long_name(&folder, &file, key, (!plain).then_some(body))?;
            }
            let path = folder.join(file);
            let new = self.is_new(&path, &[])?;
            return Ok((path, new));
        }
        let mut parts = name.split(|b| *b == b'/').peekable();
        while let Some(part) = parts.next() {
            names::check_verbatim(part, 0).map_err(|why| self.unsafe_name("attachment", key, why))?;
            folder = inside(&folder, part)?;
            if parts.peek().is_some() {
                writer::make_folder(&folder)?;
            }
        }
        let new = self.is_new(&folder, &[&stem, ATTACHMENTS.as_bytes(), b"/", name])?;
        Ok((folder, new))
    }

    /// Where the attachment of an encoded document lies; none where a name can have no place.
    pub(crate) fn attachment_path(&self, document: &[u8], name: &[u8]) -> Result<Option<PathBuf>> {
        let stem = names::encode(document);
        let folder = attachments_path(&self.attached, stem.as_bytes())?;
        Ok((self.place.naming == Naming::Encoded).then(|| folder.join(names::encode(name))))
    }

    pub(crate) async fn write_attachment(
        &self,
        path: PathBuf,
        content: &AttachmentRef,
        store: &dyn AttachmentStore,
    ) -> Result<()> {
        // Not beside the attachment: what a killed restore leaves is looked for here.
        let temporary = self.temporary.path(&self.attached);
        let mut stream = store.open(content).await?;
        let mut gathered: Vec<Bytes> = Vec::new();
        let mut length = 0;
        while length <= GATHERED
            && let Some(piece) = stream.next().await
        {
            let piece = piece?;
            length += piece.len();
            gathered.push(piece);
        }
        let check = |length: u64, path: &Path| match length == content.length {
            true => Ok(()),
            false => Err(Error::corrupt(format!(
                "{} should have {} bytes, but its content has {length}",
                path.display(),
                content.length
            ))),
        };
        if length <= GATHERED {
            check(length as u64, &path)?;
            return blocking(move || {
                let pieces: Vec<&[u8]> = gathered.iter().map(|piece| &piece[..]).collect();
                writer::write_file(&temporary, &path, &pieces)
            })
            .await;
        }
        let fail = |e| write_error(&path, e);
        let write = async {
            let mut file =
                tokio::fs::OpenOptions::new().write(true).create_new(true).open(&temporary).await.map_err(fail)?;
            let mut total = 0;
            let mut all = futures::stream::iter(gathered.into_iter().map(Ok)).chain(stream);
            while let Some(piece) = all.next().await {
                let piece = piece?;
                total += piece.len() as u64;
                file.write_all(&piece).await.map_err(fail)?;
            }
            file.flush().await.map_err(fail)?;
            check(total, &path)?;
            let (file, from, to) = (file.into_std().await, temporary.clone(), path.clone());
            blocking(move || {
                writer::settle(&file).and_then(|()| fs::rename(&from, &to)).map_err(|e| write_error(&to, e))
            })
            .await
        };
        let done = write.await;
        if done.is_err() {
            let _ = tokio::fs::remove_file(&temporary).await;
        }
        done
    }
}

/// Where the key of an attachment parts into document and name: where its description says so,
/// else at the first slash.
fn slash_of(key: &[u8], body: &[u8]) -> Option<usize> {
    #[derive(serde::Deserialize)]
    struct Said {
        document: String,
    }
    if let Ok(said) = serde_json::from_slice::<Said>(body)
        && key.starts_with(said.document.as_bytes())
        && key.get(said.document.len()) == Some(&b'/')
    {
        return Some(said.document.len());
    }
    key.iter().position(|b| *b == b'/')
}

/// Refuses a name that differs from an earlier one only in case.
fn refuse_same_folded(seen: &mut HashMap<u64, u64>, path: &Path, name: &[u8]) -> Result<()> {
    let hash = |bytes: &[u8]| {
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        hasher.finish()
    };
    let folded = String::from_utf8_lossy(name).to_lowercase();
    let exact = hash(name);
    if *seen.entry(hash(folded.as_bytes())).or_insert(exact) == exact {
        return Ok(());
    }
    let same = |other: &str| other.to_lowercase() == folded.rsplit('/').next().unwrap_or_default();
    let other = path.parent().and_then(|folder| fs::read_dir(folder).ok()).and_then(|entries| {
        let mut names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.find(|other| same(other))
    });
    let other = other.unwrap_or_else(|| "another file".into());
    Err(Error::input(format!("{} and {other} are one file here: the file system ignores case", path.display()))
        .hint("restore into a folder whose file system tells upper and lower case apart"))
}
