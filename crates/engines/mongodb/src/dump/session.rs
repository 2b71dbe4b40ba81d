//! A dump that is being written.

use super::files::blocking;
use super::folder_sink::Prepared;
use super::folder_source::{PRELUDE, RUN};
use super::metadata::{self, Metadata};
use super::target::{self, Files, Found, Old};
use crate::catalog::{CollectionKind, Options};
use crate::raw;
use async_trait::async_trait;
use flate2::Compression;
use flate2::write::GzEncoder;
use model::{
    Batch, CollectionId, CollectionInfo, Encoding, Error, Kind, Leftovers, OsRandom, PlannedCollection, Random,
    RestorePlan, RestoreReport, Result, SinkSession,
};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// Where old files wait until all new ones are in their places.
const REPLACED: &str = "replaced";

/// What all parts of a restore share.
pub(crate) struct Session {
    shared: Arc<Shared>,
    plan: HashMap<CollectionId, PlannedCollection>,
}

struct Shared {
    /// The folder that is to become the dump.
    target: PathBuf,
    /// The hidden folder that everything is written to.
    root: PathBuf,
    /// Folders above the target that were made, the outermost first.
    made: Vec<PathBuf>,
    found: Found,
    gzip: bool,
    prepared: Prepared,
    collections: Mutex<HashMap<CollectionId, Arc<Collection>>>,
}

struct Collection {
    files: Files,
    folder: PathBuf,
    state: Mutex<State>,
}

struct State {
    info: CollectionInfo,
    /// Bytes of its file; whatever comes behind them is of a write that failed.
    length: u64,
    documents: u64,
    bytes: u64,
    /// The batches that are written: one that comes again counts once.
    seen: HashSet<[u8; 16]>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

fn write_error(path: &Path, e: io::Error) -> Error {
    Error::io(format!("writing {}", path.display()), e)
}

impl Session {
    /// Makes the hidden folder. Blocks.
    pub fn begin(target: PathBuf, gzip: bool, plan: RestorePlan, prepared: Prepared) -> Result<Session> {
        // Time has passed since the plan: what it found may no longer be so.
        let found = target::look(&target, prepared.if_exists)?;
        let mut run = [0; 6];
        OsRandom.fill(&mut run);
        let run: String = run.iter().map(|b| format!("{b:02x}")).collect();
        let target = std::path::absolute(&target).map_err(|e| write_error(&target, e))?;
        let mut made = Vec::new();
        let root = match (&found, target.parent(), target.file_name()) {
            (Found::Absent, Some(parent), Some(name)) => {
                made = missing(parent);
                fs::create_dir_all(parent).map_err(|e| write_error(parent, e))?;
                parent.join(format!("{RUN}{run}-{}", name.to_string_lossy()))
            }
            _ => target.join(format!("{RUN}{run}")),
        };
        fs::create_dir(&root).map_err(|e| write_error(&root, e))?;
        let shared = Shared { target, root, made, found, gzip, prepared, collections: Mutex::default() };
        let plan = plan.collections.into_iter().map(|planned| (planned.info.id.clone(), planned)).collect();
        Ok(Session { shared: Arc::new(shared), plan })
    }

    /// The collection; made now if its information did not come before.
    fn collection(&self, id: &CollectionId) -> Result<Arc<Collection>> {
        if let Some(known) = locked(&self.shared.collections).get(id) {
            return Ok(known.clone());
        }
        match self.plan.get(id) {
            Some(planned) => self.shared.open(&planned.info, &planned.target),
            None => Err(Error::bug(format!("documents came for the collection {id}, which is not part of the plan"))),
        }
    }
}

/// The folders that are missing at this path, the outermost first.
fn missing(path: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> =
        path.ancestors().take_while(|p| fs::symlink_metadata(p).is_err()).map(Path::to_owned).collect();
    all.reverse();
    all
}

impl Shared {
    fn open(&self, info: &CollectionInfo, target: &str) -> Result<Arc<Collection>> {
        let files = Files::of(info, target, self.gzip)?;
        let mut all = locked(&self.collections);
        if let Some(known) = all.get(&info.id) {
            if known.files != files {
                let text = format!("{} became another kind of collection while it was written", info.name);
                return Err(Error::unsupported(text).hint("run it again"));
            }
            locked(&known.state).info = info.clone();
            return Ok(known.clone());
        }
        let folder = self.root.join(&files.database);
        fs::create_dir_all(&folder).map_err(|e| write_error(&folder, e))?;
        let state = State { info: info.clone(), length: 0, documents: 0, bytes: 0, seen: HashSet::new() };
        let collection = Arc::new(Collection { files, folder, state: Mutex::new(state) });
        all.insert(info.id.clone(), collection.clone());
        Ok(collection)
    }

    /// The bytes of a file that holds this and nothing else.
    fn packed(&self, content: &[u8]) -> io::Result<Vec<u8>> {
        if !self.gzip {
            return Ok(content.to_vec());
        }
        let mut packed = GzEncoder::new(Vec::new(), Compression::default());
        packed.write_all(content)?;
        packed.finish()
    }

    fn write(&self, collection: &Collection, batch: &Batch) -> Result<()> {
        let Some(file) = &collection.files.documents else {
            let text = format!("documents came for {}, which is a view", collection.files.namespace());
            return Err(Error::corrupt(text));
        };
        let is_bson = |i| {
            let body = batch.body_of(i);
            raw::document_len(body) == Some(body.len())
        };
        if let Some(i) = (0..batch.len()).find(|i| !is_bson(*i)) {
            let text = format!("document {i} of a batch of {} is no BSON", collection.files.namespace());
            return Err(Error::corrupt(text));
        }
        // Documents lie one behind the other, as a rule: then this is one piece.
        let pieces = runs(batch);
        let mut digest = blake3::Hasher::new();
        pieces.iter().for_each(|piece| _ = digest.update(piece));
        let mut id = [0; 16];
        id.copy_from_slice(&digest.finalize().as_bytes()[..16]);
        if locked(&collection.state).seen.contains(&id) {
            return Ok(());
        }
        let path = collection.folder.join(file);
        // A compressed file is a row of members, each of which can be compressed on its own.
        let packed = match self.gzip {
            true => Some(self.packed(&pieces.concat()).map_err(|e| write_error(&path, e))?),
            false => None,
        };
        let mut state = locked(&collection.state);
        if !state.seen.insert(id) {
            return Ok(());
        }
        let packed: Vec<&[u8]> = packed.as_ref().map_or(pieces, |packed| vec![packed]);
        // Opened each time: there may be more collections than files can be open.
        if let Err(e) = append(&path, state.length, &packed) {
            state.seen.remove(&id);
            return Err(write_error(&path, e));
        }
        state.length += packed.iter().map(|piece| piece.len() as u64).sum::<u64>();
        state.documents += batch.len() as u64;
        state.bytes += batch.raw_bytes();
        Ok(())
    }

    fn finish(&self) -> Result<RestoreReport> {
        let all: Vec<Arc<Collection>> = locked(&self.collections).values().cloned().collect();
        let (report, old) = self.complete(&all).inspect_err(|_| _ = self.take_back())?;
        // From here on nothing is taken back: what is moved away would go with it.
        if self.found == Found::Absent {
            fs::rename(&self.root, &self.target).map_err(|e| {
                write_error(&self.target, e).hint(format!("the whole dump is in {}", self.root.display()))
            })?;
        } else {
            self.publish(&all, &old).map_err(|e| {
                let root = self.root.display();
                write_error(&self.target, e)
                    .hint(format!("what is not in its place is in {root}: new files, and old ones in {REPLACED}"))
            })?;
        }
        for folder in self.made.iter().chain([&self.target]).filter_map(|folder| folder.parent()) {
            sync_folder(folder).map_err(|e| write_error(folder, e))?;
        }
        Ok(report)
    }

    /// Completes all files and makes them durable, where they are.
    fn complete(&self, all: &[Arc<Collection>]) -> Result<(RestoreReport, Old)> {
        let mut report = RestoreReport::default();
        let gz = if self.gzip { ".gz" } else { "" };
        let put = |path: PathBuf, content: &[u8]| {
            let write = || append(&path, 0, &[&self.packed(content)?]);
            write().map_err(|e| write_error(&path, e))
        };
        for collection in all {
            let state = locked(&collection.state);
            if let Some(file) = collection.files.documents.as_ref().filter(|_| state.length == 0) {
                put(collection.folder.join(file), b"")?;
            }
            let options = Options::from_json(&state.info.options)?;
            // That of a time series is its buckets', which mongodump does not tell either.
            let has_uuid = options.kind == CollectionKind::Collection;
            let metadata = Metadata {
                uuid: bson::Uuid::parse_str(state.info.id.as_str()).ok().filter(|_| has_uuid),
                name: Some(collection.files.name.clone()),
                options,
            };
            put(collection.folder.join(&collection.files.metadata), metadata.to_text().as_bytes())?;
            report.documents += state.documents;
            report.bytes += state.bytes;
        }
        put(self.root.join(format!("{PRELUDE}{gz}")), metadata::prelude(&self.prepared.server_version).as_bytes())?;
        let files: Vec<Files> = all.iter().map(|collection| collection.files.clone()).collect();
        let old = match self.found {
            Found::Full => target::replaced(&self.target, &files, self.gzip, Some(&self.root))?,
            _ => Old::new(),
        };
        sync_all(&self.root)?;
        Ok((report, old))
    }

    /// Puts every file in its place; what was there waits in the hidden folder to be removed.
    fn publish(&self, all: &[Arc<Collection>], old: &Old) -> io::Result<()> {
        let away = self.root.join(REPLACED);
        for path in old {
            let to = away.join(path);
            fs::create_dir_all(to.parent().unwrap_or(&away))?;
            fs::rename(self.target.join(path), to)?;
        }
        let folders: BTreeSet<&str> = all.iter().map(|collection| &collection.files.database[..]).collect();
        for folder in &folders {
            fs::create_dir_all(self.target.join(folder))?;
        }
        for collection in all {
            let to = self.target.join(&collection.files.database);
            for file in collection.files.documents.iter().chain([&collection.files.metadata]) {
                fs::rename(collection.folder.join(file), to.join(file))?;
            }
        }
        let prelude = format!("{PRELUDE}{}", if self.gzip { ".gz" } else { "" });
        fs::rename(self.root.join(&prelude), self.target.join(&prelude))?;
        for folder in &folders {
            sync_folder(&self.target.join(folder))?;
        }
        sync_folder(&self.target)?;
        fs::remove_dir_all(&self.root)?;
        sync_folder(&self.target)
    }

    /// Removes what was written.
    fn take_back(&self) -> Vec<String> {
        if fs::remove_dir_all(&self.root).is_err() && self.root.exists() {
            return vec![format!("{}: what was written", self.root.display())];
        }
        // Never one with something in it.
        for folder in self.made.iter().rev() {
            let _ = fs::remove_dir(folder);
        }
        Vec::new()
    }
}

/// The bodies of a batch, with those that lie side by side as one piece.
fn runs(batch: &Batch) -> Vec<&[u8]> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for doc in &batch.docs {
        match runs.last_mut().filter(|(_, end)| *end == doc.start as usize) {
            Some((_, end)) => *end = doc.end as usize,
            None => runs.push((doc.start as usize, doc.end as usize)),
        }
    }
    runs.into_iter().map(|(start, end)| &batch.body[start..end]).collect()
}

/// Writes at the end of what is sound in a file.
fn append(path: &Path, length: u64, pieces: &[&[u8]]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(length == 0).truncate(length == 0).open(path)?;
    file.set_len(length)?;
    file.seek(SeekFrom::Start(length))?;
    pieces.iter().try_for_each(|piece| file.write_all(piece))?;
    settle(&file)
}

/// Where everything is made durable at once at the end, nothing is to be done for each file.
#[cfg(target_os = "linux")]
fn settle(_: &File) -> io::Result<()> {
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn settle(file: &File) -> io::Result<()> {
    file.sync_all()
}

/// Makes everything durable that was written to this folder.
fn sync_all(folder: &Path) -> Result<()> {
    let sync = || {
        #[cfg(target_os = "linux")]
        rustix::fs::syncfs(File::open(folder)?)?;
        sync_folder(folder)
    };
    sync().map_err(|e| write_error(folder, e))
}

/// Makes the names in a folder durable.
#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(not(unix))]
fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

#[async_trait]
impl SinkSession for Session {
    async fn catalog(&self, collection: &CollectionInfo) -> Result<()> {
        let target = self.plan.get(&collection.id).map_or(&collection.name, |planned| &planned.target).clone();
        let (shared, info) = (self.shared.clone(), collection.clone());
        blocking(move || shared.open(&info, &target).map(drop)).await
    }

    async fn write(&self, batch: Batch) -> Result<()> {
        batch.check()?;
        let collection = self.collection(&batch.collection)?;
        if (&batch.kind, batch.encoding) != (&Kind::Document, Encoding::Bson) {
            return Err(Error::unsupported(format!(
                "{} has {} entries in {:?}, and a dump of mongodump holds BSON documents only",
                collection.files.namespace(),
                batch.kind.space(),
                batch.encoding
            ))
            .hint("restore into the engine that they came from"));
        }
        let shared = self.shared.clone();
        blocking(move || shared.write(&collection, &batch)).await
    }

    async fn finish(self: Box<Self>) -> Result<RestoreReport> {
        let shared = self.shared.clone();
        blocking(move || shared.finish()).await
    }

    async fn abort(self: Box<Self>) -> Leftovers {
        let shared = self.shared.clone();
        let what = blocking(move || Ok(shared.take_back())).await;
        Leftovers { what: what.unwrap_or_else(|e| vec![e.to_string()]) }
    }
}
