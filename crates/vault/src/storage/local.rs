//! A vault in a folder.
//!
//! An object's bytes are flushed to the disk before it gets its name, so a file under its final
//! name is whole, after a power loss too; only the name itself can be lost until
//! [`Storage::sync`] has flushed the folder. `docs/decisions/0001-storage.md` says why.

use super::names::{TEMPORARY, check_name, check_prefix, is_component, split_prefix};
use super::past_cache;
use super::{Created, Entry, Storage};
use crate::buffers::Buffers;
use crate::vault_file::VAULT_FILE;
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use model::{Error, Result};
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, Metadata};
use std::io::{self, ErrorKind as Io, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};
use tempfile::NamedTempFile;
use tokio::sync::mpsc;

/// Files that a killed process left are removed after this time.
const LEFTOVER: Duration = Duration::from_secs(24 * 60 * 60);

/// How many entries of a listing are handed over at once.
const BATCH: usize = 512;

/// A folder as storage. Files are for their owner only, and so are folders it makes.
#[derive(Debug, Clone)]
pub struct LocalStorage {
    folder: Arc<Folder>,
}

#[derive(Debug)]
struct Folder {
    root: PathBuf,
    /// Whether a vault was seen here. From then on its absence means that the disk is away: what is
    /// under the path then is not the vault, and neither empty nor to be written to.
    has_vault: AtomicBool,
    /// Folders in which names are that the next sync has to make durable: those of objects that
    /// were written or found, as what a killed run left may be found and counted on.
    unsynced: Mutex<BTreeSet<PathBuf>>,
    /// Where the memory of what is read goes around.
    buffers: Buffers,
}

impl LocalStorage {
    /// The storage in this folder. It need not exist: the first object makes it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let root =
            std::path::absolute(path).map_err(|e| Error::io(format!("finding the folder {}", path.display()), e))?;
        if fs::metadata(&root).is_ok_and(|m| !m.is_dir()) {
            return Err(Error::input(format!("{} is a file, not a folder", root.display()))
                .hint("a vault is a folder: choose another path"));
        }
        let folder = Folder {
            root,
            has_vault: AtomicBool::new(false),
            unsynced: Mutex::new(BTreeSet::new()),
            buffers: Buffers::of_segments(),
        };
        folder.remove_leftovers();
        Ok(LocalStorage { folder: Arc::new(folder) })
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce(&Folder) -> Result<T> + Send + 'static) -> Result<T> {
        let folder = self.folder.clone();
        match tokio::task::spawn_blocking(move || work(&folder)).await {
            Ok(result) => result,
            Err(e) => Err(Error::bug(format!("a worker stopped: {e}"))),
        }
    }
}

#[async_trait]
impl Storage for LocalStorage {
    fn location(&self) -> String {
        self.folder.root.display().to_string()
    }

    fn is_local(&self) -> bool {
        true
    }

    async fn create(&self, name: &str, bytes: Bytes) -> Result<Created> {
        check_name(name)?;
        let name = name.to_owned();
        self.run(move |folder| folder.create(&name, &bytes).map_err(|e| folder.error("writing", &name, e))).await
    }

    async fn replace(&self, name: &str, bytes: Bytes) -> Result<()> {
        check_name(name)?;
        let name = name.to_owned();
        self.run(move |folder| folder.replace(&name, &bytes).map_err(|e| folder.error("writing", &name, e))).await
    }

    async fn sync(&self) -> Result<()> {
        self.run(Folder::sync).await
    }

    async fn read(&self, name: &str) -> Result<Bytes> {
        check_name(name)?;
        let name = name.to_owned();
        self.run(move |folder| {
            let bytes = folder.read(&name).map_err(|e| folder.error("reading", &name, e))?;
            folder.note_vault(&name);
            Ok(bytes)
        })
        .await
    }

    async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Bytes> {
        check_name(name)?;
        let name = name.to_owned();
        self.run(move |folder| folder.read_range(&name, range).map_err(|e| folder.error("reading", &name, e))).await
    }

    async fn stat(&self, name: &str) -> Result<Option<Entry>> {
        check_name(name)?;
        let name = name.to_owned();
        self.run(move |folder| match fs::symlink_metadata(folder.path(&name)) {
            Ok(found) if found.is_file() => Ok(Some(entry(name, &found))),
            Ok(_) => Ok(None),
            Err(e) if is_missing(&e) && folder.check_there().is_ok() => Ok(None),
            Err(e) => Err(folder.error("looking at", &name, e)),
        })
        .await
    }

    async fn list(&self, prefix: &str) -> Result<BoxStream<'static, Result<Entry>>> {
        check_prefix(prefix)?;
        let (folder, prefix) = (self.folder.clone(), prefix.to_owned());
        let (send, receive) = mpsc::channel(4);
        tokio::task::spawn_blocking(move || {
            if let Err(e) = folder.list(&prefix, |batch| send.blocking_send(Ok(batch)).is_ok()) {
                // Nobody listens any more: nobody is to be told.
                let _ = send.blocking_send(Err(e));
            }
        });
        let batches = stream::unfold(receive, |mut receive| async move { Some((receive.recv().await?, receive)) });
        Ok(batches
            .flat_map(|batch| {
                let (entries, error) = match batch {
                    Ok(entries) => (entries, None),
                    Err(e) => (Vec::new(), Some(e)),
                };
                stream::iter(entries.into_iter().map(Ok).chain(error.map(Err)))
            })
            .boxed())
    }

    async fn delete(&self, name: &str) -> Result<()> {
        check_name(name)?;
        let name = name.to_owned();
        self.run(move |folder| {
            let path = folder.path(&name);
            match fs::remove_file(&path) {
                Ok(()) => folder.touch_parent(&path),
                Err(e) if is_missing(&e) => {}
                Err(e) => return Err(folder.error("deleting", &name, e)),
            }
            Ok(())
        })
        .await
    }

    async fn free_space(&self) -> Result<Option<u64>> {
        self.run(|folder| {
            // The folder itself may not be there yet.
            let there = folder.root.ancestors().find(|p| p.exists()).unwrap_or(&folder.root);
            let found = rustix::fs::statvfs(there)
                .map_err(|e| Error::io(format!("asking for the free space of {}", there.display()), e.into()))?;
            Ok(Some(found.f_bavail.saturating_mul(found.f_frsize)))
        })
        .await
    }
}

impl Folder {
    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn error(&self, doing: &str, name: &str, cause: io::Error) -> Error {
        if is_missing(&cause)
            && let Err(away) = self.check_there()
        {
            return Error::io(format!("{doing} {name} in {}", self.root.display()), away);
        }
        match is_missing(&cause) {
            true => Error::missing(format!("there is no {name} in {}", self.root.display())),
            false => Error::io(format!("{doing} {name} in {}", self.root.display()), cause),
        }
    }

    fn note_vault(&self, name: &str) {
        if name == VAULT_FILE {
            self.has_vault.store(true, Ordering::Relaxed);
        }
    }

    /// Fails if there was a vault and is none any more.
    fn check_there(&self) -> io::Result<()> {
        if self.has_vault.load(Ordering::Relaxed) && fs::symlink_metadata(self.path(VAULT_FILE)).is_err() {
            return Err(io::Error::other("the vault is no longer there; is its disk mounted?"));
        }
        Ok(())
    }

    fn create(&self, name: &str, bytes: &[u8]) -> io::Result<Created> {
        let target = self.path(name);
        if fs::symlink_metadata(&target).is_ok() {
            self.touch_parent(&target);
            return Ok(Created::Existed);
        }
        let file = self.write_temporary(bytes)?;
        self.make_parent(&target)?;
        let created = match file.persist_noclobber(&target) {
            Ok(_) => Created::New,
            Err(e) if e.error.kind() == Io::AlreadyExists => Created::Existed,
            // A file system that knows neither a rename that spares what is there nor hard links
            // (FAT through FUSE): two writers of one name are then not told apart.
            Err(e) if matches!(e.error.kind(), Io::PermissionDenied | Io::Unsupported) => {
                if fs::symlink_metadata(&target).is_ok() {
                    Created::Existed
                } else {
                    e.file.persist(&target).map_err(|e| e.error)?;
                    Created::New
                }
            }
            Err(e) => return Err(e.error),
        };
        self.touch_parent(&target);
        self.note_vault(name);
        Ok(created)
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let target = self.path(name);
        let file = self.write_temporary(bytes)?;
        self.make_parent(&target)?;
        file.persist(&target).map_err(|e| e.error)?;
        target.parent().map_or(Ok(()), flush_folder)
    }

    /// Writes and flushes a file that has no name yet that anybody looks at. It is removed when
    /// it is dropped.
    fn write_temporary(&self, bytes: &[u8]) -> io::Result<NamedTempFile> {
        let folder = self.path(TEMPORARY);
        let make = || tempfile::Builder::new().prefix("").suffix(".new").tempfile_in(&folder);
        let mut file = match make() {
            Err(e) if e.kind() == Io::NotFound => {
                self.make_folder(&folder)?;
                make()?
            }
            made => made?,
        };
        past_cache::write(file.as_file_mut(), bytes)?;
        file.as_file().sync_all()?;
        Ok(file)
    }

    fn make_parent(&self, target: &Path) -> io::Result<()> {
        match target.parent() {
            Some(parent) if !parent.is_dir() => self.make_folder(parent),
            _ => Ok(()),
        }
    }

    fn make_folder(&self, path: &Path) -> io::Result<()> {
        self.check_there()?;
        let make = || DirBuilder::new().mode(0o700).create(path);
        let made = match (make(), path.parent()) {
            (Err(e), Some(parent)) if e.kind() == Io::NotFound => {
                self.make_folder(parent)?;
                make()
            }
            (made, _) => made,
        };
        match made {
            Err(e) if e.kind() == Io::AlreadyExists && path.is_dir() => {}
            made => made?,
        }
        if let Some(parent) = path.parent() {
            self.unsynced().insert(parent.to_owned());
        }
        Ok(())
    }

    fn read(&self, name: &str) -> io::Result<Bytes> {
        let mut file = File::open(self.path(name))?;
        let size = file.metadata()?.len() as usize;
        let mut bytes = self.buffers.take(size);
        bytes.reserve_exact(size);
        file.read_to_end(&mut bytes)?;
        Ok(self.buffers.lend(bytes))
    }

    fn read_range(&self, name: &str, range: Range<u64>) -> io::Result<Bytes> {
        let mut file = File::open(self.path(name))?;
        let end = range.end.min(file.metadata()?.len());
        let length = end.saturating_sub(range.start);
        let mut bytes = self.buffers.take(length as usize);
        bytes.reserve_exact(length as usize);
        file.seek(SeekFrom::Start(range.start))?;
        match file.take(length).read_to_end(&mut bytes)? as u64 {
            read if read == length => Ok(self.buffers.lend(bytes)),
            _ => Err(Io::UnexpectedEof.into()),
        }
    }

    /// Hands over what the folder holds, in batches, until `take` wants no more. Only regular
    /// files with names that objects may have are objects.
    fn list(&self, prefix: &str, mut take: impl FnMut(Vec<Entry>) -> bool) -> Result<()> {
        let mut waiting = vec![split_prefix(prefix).0.to_owned()];
        let mut batch = Vec::new();
        while let Some(folder) = waiting.pop() {
            if folder.split('/').next() == Some(TEMPORARY) {
                continue;
            }
            let path = self.path(&folder);
            let listing = |e| Error::io(format!("listing {}", path.display()), e);
            let children = match fs::read_dir(&path) {
                Ok(children) => children,
                Err(e) if is_missing(&e) => continue,
                Err(e) => return Err(listing(e)),
            };
            let mut found_any = false;
            for child in children {
                let child = child.map_err(listing)?;
                let last = child.file_name();
                let Some(last) = last.to_str().filter(|n| is_component(n)) else { continue };
                let name = if folder.is_empty() { last.to_owned() } else { format!("{folder}/{last}") };
                if !name.starts_with(prefix) {
                    continue;
                }
                let kind = child.file_type().map_err(listing)?;
                if kind.is_dir() {
                    waiting.push(name);
                } else if kind.is_file() {
                    match child.metadata() {
                        Ok(found) => batch.push(entry(name, &found)),
                        Err(e) if is_missing(&e) => continue,
                        Err(e) => return Err(listing(e)),
                    }
                    found_any = true;
                    if batch.len() == BATCH && !take(std::mem::take(&mut batch)) {
                        return Ok(());
                    }
                }
            }
            if found_any {
                self.touch(&path);
            }
        }
        // Of a disk that is away, everything would seem to be gone.
        self.check_there().map_err(|e| Error::io(format!("listing {}", self.root.display()), e))?;
        take(batch);
        Ok(())
    }

    /// Remembers that names in the folder of this file count.
    fn touch_parent(&self, target: &Path) {
        if let Some(parent) = target.parent() {
            self.touch(parent);
        }
    }

    /// Remembers a folder and those above it, up to the root.
    fn touch(&self, folder: &Path) {
        let mut unsynced = self.unsynced();
        for folder in folder.ancestors().take_while(|f| f.starts_with(&self.root)) {
            if !unsynced.insert(folder.to_owned()) {
                break;
            }
        }
    }

    fn sync(&self) -> Result<()> {
        let folders = std::mem::take(&mut *self.unsynced());
        for folder in &folders {
            if let Err(e) = flush_folder(folder) {
                let error = Error::io(format!("flushing {}", folder.display()), e);
                self.unsynced().extend(folders);
                return Err(error);
            }
        }
        Ok(())
    }

    fn unsynced(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.unsynced.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Removes what killed processes left. Whatever goes wrong here is no reason to stop: the
    /// folder may be read-only, and somebody else may be at it too.
    fn remove_leftovers(&self) {
        let Ok(children) = fs::read_dir(self.path(TEMPORARY)) else { return };
        for child in children.flatten() {
            let written = child.metadata().and_then(|m| m.modified());
            let age = written.ok().and_then(|t| SystemTime::now().duration_since(t).ok());
            if age.is_some_and(|age| age > LEFTOVER) && child.path().extension().is_some_and(|e| e == "new") {
                let _ = fs::remove_file(child.path());
            }
        }
    }
}

/// Makes the names in a folder durable. Some file systems cannot (FUSE, SMB) and say so with
/// these errors; there is nothing more that could be done.
fn flush_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder).and_then(|f| f.sync_all()) {
        Err(e) if matches!(e.kind(), Io::InvalidInput | Io::Unsupported) => Ok(()),
        // A folder that was deleted meanwhile has no names to keep.
        Err(e) if e.kind() == Io::NotFound => Ok(()),
        done => done,
    }
}

/// Folders are no objects either.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), Io::NotFound | Io::NotADirectory | Io::IsADirectory)
}

fn entry(name: String, found: &Metadata) -> Entry {
    let modified = found.mtime().saturating_mul(1000).saturating_add(found.mtime_nsec() / 1_000_000);
    Entry { name, size: found.len(), modified }
}
