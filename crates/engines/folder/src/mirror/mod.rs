//! A folder that is kept in step with a source while that changes: one file a document, each there
//! whole or not at all.
//!
//! The mirror knows which files it wrote (`.rewound-mirror/files-N`), and neither overwrites nor
//! deletes any other. What it must know to go on after its end, however that came, is in
//! `.rewound-mirror/state.json`.

mod attach;
mod collections;
mod ledger;
mod state;

use crate::check::document_path;
use crate::collection::Collection;
use crate::files;
use crate::leftovers;
use crate::marker::{Marker, Naming, Written};
use crate::names::{ATTACHMENTS, MARKER, NAMES_FILE, bytes_of, show};
use crate::writer::{self, Temporary, write_error};
use bytes::BytesMut;
use ledger::{Entry, Ledger, hash};
use model::{CollectionId, CollectionInfo, Engine, Error, ErrorKind, Result, limits};
use serde_json::Value;
use state::State;
use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

/// Where the mirror keeps what it knows.
const HOME: &str = ".rewound-mirror";
/// Files up to which each is made durable by itself; for more, all of the file system is.
const ONE_BY_ONE: usize = 64;

/// A folder that is kept in step with a source. All but attachments is written without waiting for
/// anything: call it where that may block.
pub struct Mirror {
    root: PathBuf,
    home: PathBuf,
    temporary: Arc<Temporary>,
    /// Held as long as the mirror is there.
    _lock: File,
    inner: Mutex<Inner>,
}

struct Inner {
    state: State,
    open: HashMap<CollectionId, Open>,
    /// Files written since the mirror was last made durable.
    unsettled: Vec<PathBuf>,
    /// The collections of which the marker tells.
    marked: Option<Vec<(String, CollectionInfo)>>,
}

/// A collection with what the mirror knows of its files.
struct Open {
    collection: Arc<Collection>,
    folder: PathBuf,
    ledger: Ledger,
    scan: u32,
}

/// What is to become of a document.
#[derive(Debug, Clone)]
pub struct Change {
    /// Its key.
    pub key: Vec<u8>,
    /// What it is from now on, as JSON; none: it is deleted.
    pub body: Option<Vec<u8>>,
    /// The order of the engine time that this is true at; 0 if that is not known.
    pub time: u64,
}

/// A file that was written or deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Touched {
    /// The key of its document.
    pub key: Vec<u8>,
    /// Its path in the folder, with slashes.
    pub file: String,
    /// Whether it was deleted.
    pub deleted: bool,
}

/// What a mirror has of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// No file.
    Missing,
    /// A file that is not what the mirror wrote.
    Changed,
    /// What the mirror wrote, and the order of the engine time that it is true at; 0 if that is not
    /// known.
    Same(Vec<u8>, u64),
}

impl std::fmt::Debug for Mirror {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mirror").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Mirror {
    /// The mirror in this folder, or a new one if the folder is empty or not there.
    pub fn open(path: &Path) -> Result<Mirror> {
        fs::create_dir_all(path).map_err(|e| write_error(path, e))?;
        let home = path.join(HOME);
        let state = State::read(&home.join("state.json"))?;
        if state.is_none() {
            refuse_full(path)?;
        }
        writer::make_folder(&home)?;
        let lock = lock(&home.join("lock"), path)?;
        // Another one may have begun in the meantime.
        let state = State::read(&home.join("state.json"))?.unwrap_or_else(State::new);
        let mirror = Mirror {
            root: path.to_owned(),
            home,
            temporary: Arc::new(Temporary::new()),
            _lock: lock,
            inner: Mutex::new(Inner { state, open: HashMap::new(), unsettled: Vec::new(), marked: None }),
        };
        mirror.resume()?;
        Ok(mirror)
    }

    /// Goes on where an earlier one ended.
    fn resume(&self) -> Result<()> {
        let mut inner = self.locked();
        let moving = inner.state.moving.take();
        if let Some(moving) = moving
            && let Some(kept) = inner.state.collections.iter_mut().find(|k| k.number == moving.number)
        {
            let (from, to) = (self.root.join(&kept.entry), self.root.join(&moving.to));
            if from.exists() && !to.exists() {
                fs::rename(&from, &to).map_err(|e| write_error(&to, e))?;
            }
            kept.entry = moving.to;
        }
        self.write_state(&inner)?;
        let all: Vec<CollectionId> = inner.state.collections.iter().map(|k| k.info.id.clone()).collect();
        for id in all {
            self.opened(&mut inner, &id)?;
        }
        leftovers::remove_temporary(&self.root, SystemTime::now());
        Ok(())
    }

    fn locked(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn write_state(&self, inner: &Inner) -> Result<()> {
        inner.state.write(&self.home.join("state.json"))
    }

    /// What its user keeps; null in a new mirror.
    pub fn memory(&self) -> Value {
        self.locked().state.memory.clone()
    }

    /// The collections that it has.
    pub fn collections(&self) -> Vec<CollectionInfo> {
        self.locked().state.collections.iter().map(|k| k.info.clone()).collect()
    }

    /// What it has of a document.
    pub fn read(&self, id: &CollectionId, key: &[u8]) -> Result<Found> {
        let mut inner = self.locked();
        let open = self.opened(&mut inner, id)?;
        let stem = open.collection.stem(key, ".json".len())?.into_owned();
        let name = [&stem[..], b".json"].concat();
        Ok(match (existing(&document_path(&open.folder, &stem)?)?, open.ledger.get(&name)) {
            (Existing::Missing, _) => Found::Missing,
            (Existing::File(bytes), Some(entry)) if hash(&bytes) == entry.hash => Found::Same(bytes, entry.time),
            _ => Found::Changed,
        })
    }

    /// Makes documents what they are to be; tells what it touched. Files that are right stay as they
    /// are.
    pub fn write(&self, id: &CollectionId, changes: &[Change]) -> Result<Vec<Touched>> {
        let mut inner = self.locked();
        let inner = &mut *inner;
        self.opened(inner, id)?;
        let Some(open) = inner.open.get_mut(id) else { return Err(unknown(id)) };
        let mut todo = Vec::new();
        for change in changes {
            let stem = open.collection.stem(&change.key, ".json".len())?.into_owned();
            let path = document_path(&open.folder, &stem)?;
            let name = [&stem[..], b".json"].concat();
            let known = open.ledger.get(&name).copied();
            let there = existing(&path)?;
            let Some(body) = &change.body else {
                if known.is_some() {
                    todo.push((change, name, path, matches!(there, Existing::Missing)));
                }
                continue;
            };
            let entry = Entry { hash: hash(body), time: change.time, scan: open.scan };
            let is_same = matches!(&there, Existing::File(bytes) if bytes == body);
            if known.is_none() && !is_same && !matches!(there, Existing::Missing) {
                return Err(in_the_way(&path));
            }
            if !is_same || known.is_none_or(|k| (k.hash, k.time) != (entry.hash, entry.time)) {
                open.ledger.intend(&name, entry);
            }
            open.ledger.met(&name, open.scan);
            if !is_same {
                todo.push((change, name, path, false));
            }
        }
        open.ledger.settle()?;
        let mut touched = Vec::with_capacity(todo.len());
        for (change, name, path, is_gone) in todo {
            match &change.body {
                Some(body) => writer::write_file(&self.temporary.path(&open.folder), &path, &[body])?,
                None => {
                    remove(&path)?;
                    open.ledger.forget(&name);
                }
            }
            inner.unsettled.push(path);
            let file = format!("{}/{}", shown(&open.folder), show(&name));
            if !is_gone {
                touched.push(Touched { key: change.key.clone(), file, deleted: change.body.is_none() });
            }
        }
        Ok(touched)
    }

    /// Makes everything durable, and then remembers this. With an engine, the folder is complete:
    /// it says so to whoever reads it, and with `counted` how much there is.
    pub fn save(&self, memory: Value, complete: Option<&Engine>, counted: bool) -> Result<()> {
        let mut inner = self.locked();
        for open in inner.open.values_mut() {
            open.ledger.settle()?;
        }
        self.settle(&mut inner)?;
        inner.state.memory = memory;
        if let Some(engine) = complete {
            let now: Vec<_> = inner.state.collections.iter().map(|k| (k.entry.clone(), k.info.clone())).collect();
            if counted || inner.marked.as_ref() != Some(&now) {
                self.write_marker(&inner, engine)?;
                inner.marked = Some(now);
            }
        }
        self.write_state(&inner)
    }

    fn settle(&self, inner: &mut Inner) -> Result<()> {
        let files = std::mem::take(&mut inner.unsettled);
        if files.len() > ONE_BY_ONE {
            return writer::sync_all(&self.root);
        }
        let mut folders: Vec<&Path> = files.iter().filter_map(|f| f.parent()).collect();
        folders.sort();
        folders.dedup();
        for file in &files {
            match File::open(file) {
                Ok(opened) => opened.sync_all().map_err(|e| write_error(file, e))?,
                // It was deleted since.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(write_error(file, e)),
            }
        }
        for folder in folders.into_iter().filter(|f| f.exists()) {
            writer::sync_folder(folder).map_err(|e| write_error(folder, e))?;
        }
        Ok(())
    }

    /// Says which collections lie here, if that is not what is said already.
    fn write_marker(&self, inner: &Inner, engine: &Engine) -> Result<()> {
        let mut marker = Marker::new(engine.clone());
        for kept in &inner.state.collections {
            let written = Written {
                collection: kept.info.name.clone(),
                id: kept.info.id.as_str().to_owned(),
                documents: inner.open.get(&kept.info.id).map_or(0, |open| open.ledger.len() as u64),
                attachments: 0,
                layout: "files".into(),
                names: Naming::Encoded,
                // A folder's options say how documents lie in files, which is what changes here.
                options: if engine.0 == "folder" { Value::Null } else { kept.info.options.clone() },
            };
            marker.written.insert(kept.entry.clone(), written);
        }
        let path = self.root.join(MARKER);
        let text = marker.to_text()?;
        if fs::read(&path).is_ok_and(|there| there == text) {
            return Ok(());
        }
        let write = || {
            let temporary = self.temporary.path(&self.root);
            let file = writer::create(&temporary)?;
            std::io::Write::write_all(&mut &file, &text)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            writer::sync_folder(&self.root)
        };
        write().map_err(|e| write_error(&path, e))
    }
}

/// What is at the place of a file.
enum Existing {
    Missing,
    File(Vec<u8>),
    /// Something else, or what is larger than any document.
    Other,
}

fn existing(path: &Path) -> Result<Existing> {
    let fail = |e| Error::io(format!("reading {}", path.display()), e);
    let mut file = match files::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Existing::Missing),
        Err(_) if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) => return Ok(Existing::Other),
        Err(e) => return Err(fail(e)),
    };
    let found = file.metadata().map_err(fail)?;
    if !found.is_file() || found.len() > limits::DOCUMENT_MAX as u64 {
        return Ok(Existing::Other);
    }
    let mut bytes = BytesMut::new();
    Ok(match files::append(&mut file, found.len() as usize, &mut bytes).map_err(fail)? {
        true => Existing::File(bytes.into()),
        false => Existing::Other,
    })
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(format!("deleting {}", path.display()), e)),
        _ => Ok(()),
    }
}

fn shown(folder: &Path) -> String {
    folder.file_name().map(|name| show(bytes_of(name))).unwrap_or_default()
}

fn unknown(id: &CollectionId) -> Error {
    Error::bug(format!("changes came for the collection {id}, which the mirror does not have"))
}

fn in_the_way(path: &Path) -> Error {
    Error::input(format!("{} is in the way: this mirror did not write it", path.display()))
        .hint("move it out of the folder, then run the command again; it goes on where it was")
}

/// Makes sure that no other process keeps this folder in step.
fn lock(path: &Path, folder: &Path) -> Result<File> {
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).open(path).map_err(|e| write_error(path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            Err(Error::input(format!("another process keeps {} in step", folder.display()))
                .hint("stop it first, or choose another folder"))
        }
        Err(fs::TryLockError::Error(e)) => Err(write_error(path, e)),
    }
}

/// Refuses a folder that holds anything which no mirror wrote.
fn refuse_full(path: &Path) -> Result<()> {
    let fail = |e| Error::io(format!("listing {}", path.display()), e);
    for entry in fs::read_dir(path).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        if name != HOME {
            let text = format!("{} holds {}, and is no mirror yet", path.display(), show(bytes_of(&name)));
            return Err(Error::new(ErrorKind::Input, text).hint("choose an empty or a new folder"));
        }
    }
    Ok(())
}

/// Removes what only serves to tell the names of other files, and the folder, if nothing is left.
fn remove_empty(folder: &Path) -> Result<bool> {
    let listed = fs::read_dir(folder);
    let only_names = listed.is_ok_and(|entries| {
        entries.flatten().all(|entry| entry.file_name() == NAMES_FILE || bytes_of(&entry.file_name()).is_empty())
    });
    if !only_names {
        return Ok(!folder.exists());
    }
    remove(&folder.join(NAMES_FILE))?;
    match fs::remove_dir(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format!("deleting {}", folder.display()), e))
        }
        _ => Ok(true),
    }
}

/// The folder of attachments that a name lies in, if it does.
fn attachments_of(folder: &Path, path: &Path) -> Option<PathBuf> {
    let parent = path.parent().filter(|parent| *parent != folder)?;
    let name = parent.file_name().map(bytes_of)?;
    name.ends_with(ATTACHMENTS.as_bytes()).then(|| parent.to_owned())
}

#[cfg(test)]
mod tests;
