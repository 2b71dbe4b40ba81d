//! A restore into a folder under way.

use crate::collection::Collection;
use crate::files::blocking;
use crate::layout::Layout;
use crate::leftovers::{self, REPLACED, RUN};
use crate::marker::{Marker, Written};
use crate::names::MARKER;
use crate::sink::{Prepared, marker_of};
use crate::target::{self, Found, Placement};
use crate::writer::{self, Temporary, create, write_error};
use async_trait::async_trait;
use model::{
    AttachmentStore, Batch, CollectionId, CollectionInfo, Encoding, Error, IfExists, Kind, Leftovers,
    PlannedCollection, RestorePlan, RestoreReport, Result, SinkSession,
};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

/// What all parts of a restore share.
pub(crate) struct Session {
    shared: Arc<Shared>,
    attachments: Arc<dyn AttachmentStore>,
    plan: HashMap<CollectionId, PlannedCollection>,
}

struct Shared {
    /// The folder that is restored into.
    target: PathBuf,
    /// Where files are written: the target, or a hidden folder in it until they replace others.
    root: PathBuf,
    /// The first folder that was made for the target.
    made: Option<PathBuf>,
    found: Found,
    prepared: Prepared,
    temporary: Arc<Temporary>,
    ignores_case: bool,
    started: SystemTime,
    /// The other collections whose places are those of folders beside these collections' files.
    beside_of: HashMap<CollectionId, String>,
    /// What the target said of itself before.
    before: Option<Marker>,
    collections: Mutex<HashMap<CollectionId, Arc<Collection>>>,
}

impl Session {
    /// Makes the target ready. Blocks.
    pub fn begin(
        target: PathBuf,
        plan: RestorePlan,
        prepared: Prepared,
        ignores_case: Option<bool>,
        attachments: Arc<dyn AttachmentStore>,
    ) -> Result<Session> {
        // Time has passed since the plan: what it found may no longer be so.
        let found = target::look(&target, prepared.if_exists)?;
        let before = if found == Found::Full { marker_of(&target)? } else { None };
        let made = match &found {
            Found::Absent(first) => Some(first.clone()),
            _ => None,
        };
        fs::create_dir_all(&target).map_err(|e| write_error(&target, e))?;
        let temporary = Arc::new(Temporary::new());
        let mut shared = Shared {
            root: target.clone(),
            target,
            made,
            found,
            prepared,
            temporary,
            ignores_case: false,
            started: SystemTime::now(),
            beside_of: HashMap::new(),
            before,
            collections: Mutex::default(),
        };
        if let Err(e) = shared.make_ready(&plan, ignores_case) {
            shared.take_back();
            return Err(e);
        }
        let plan = plan.collections.into_iter().map(|planned| (planned.info.id.clone(), planned)).collect();
        Ok(Session { shared: Arc::new(shared), attachments, plan })
    }

    /// The writer of a collection; made now if its information did not come before.
    async fn collection(&self, id: &CollectionId) -> Result<Arc<Collection>> {
        if let Some(known) = self.shared.known(id) {
            return Ok(known);
        }
        match self.plan.get(id) {
            Some(planned) => self.open(planned.clone()).await,
            None => Err(Error::bug(format!("documents came for the collection {id}, which is not part of the plan"))),
        }
    }

    async fn open(&self, planned: PlannedCollection) -> Result<Arc<Collection>> {
        let shared = self.shared.clone();
        blocking(move || shared.open(planned)).await
    }
}

impl Shared {
    fn make_ready(&mut self, plan: &RestorePlan, ignores_case: Option<bool>) -> Result<()> {
        if self.found == Found::Full && self.prepared.if_exists == IfExists::Replace {
            self.root = self.target.join(format!("{RUN}{}", self.temporary.run()));
            fs::create_dir(&self.root).map_err(|e| write_error(&self.root, e))?;
        }
        self.ignores_case = match ignores_case {
            Some(yes) => yes,
            None => ignores_case_here(&self.root, &self.temporary)?,
        };
        let mut places = Vec::new();
        for planned in &plan.collections {
            let place = Placement::of(&self.prepared.engine, &planned.info, &planned.target)?;
            places.push((place, &planned.info));
        }
        let entries = places.iter().map(|(place, info)| (place.entry.as_str(), info.name.as_str()));
        let mut taken = target::refuse_collisions(entries, self.ignores_case)?;
        // That is no harm as long as no attachments come.
        for (place, info) in &places {
            let Some(beside) = place.beside() else { continue };
            let beside = if self.ignores_case { beside.to_lowercase() } else { beside };
            if let Some(other) = taken.insert(beside, info.name.as_str()) {
                self.beside_of.insert(info.id.clone(), other.to_owned());
            }
        }
        Ok(())
    }

    fn merging(&self) -> bool {
        self.found == Found::Full && self.prepared.if_exists == IfExists::Merge
    }

    fn known(&self, id: &CollectionId) -> Option<Arc<Collection>> {
        self.collections.lock().unwrap_or_else(|e| e.into_inner()).get(id).cloned()
    }

    fn open(&self, planned: PlannedCollection) -> Result<Arc<Collection>> {
        let mut all = self.collections.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(known) = all.get(&planned.info.id) {
            return Ok(known.clone());
        }
        let mut place = Placement::of(&self.prepared.engine, &planned.info, &planned.target)?;
        if self.merging() {
            place.merge(&self.target, &planned.target, self.before.as_ref())?;
        }
        let id = planned.info.id.clone();
        let temporary = self.temporary.clone();
        let beside_of = self.beside_of.get(&id).cloned();
        let (merging, ignores_case) = (self.merging(), self.ignores_case);
        let collection = Collection::start(&self.root, planned, place, temporary, merging, ignores_case, beside_of)?;
        let collection = Arc::new(collection);
        all.insert(id, collection.clone());
        Ok(collection)
    }

    /// Refuses to put a folder of attachments in the place of a file, which is something else.
    fn check_beside(&self, collections: &[Arc<Collection>]) -> Result<()> {
        for beside in collections.iter().filter_map(|collection| collection.place().beside()) {
            let there = self.target.join(&beside);
            let is_there = fs::symlink_metadata(&there).is_ok_and(|found| !found.is_dir());
            if is_there && self.root != self.target && self.root.join(&beside).is_dir() {
                return Err(Error::input(format!("{} is in the way: it is not a folder", there.display()))
                    .hint("move it away, or choose another target"));
            }
        }
        Ok(())
    }

    /// Puts every collection in the place of the one of the same name.
    fn replace(&self, collections: &[Arc<Collection>]) -> Result<()> {
        let old = self.root.join(REPLACED);
        fs::create_dir(&old).map_err(|e| write_error(&old, e))?;
        for collection in collections {
            let place = collection.place();
            let (from, to) = (self.root.join(&place.entry), self.target.join(&place.entry));
            let away = old.join(&place.entry);
            swap(&from, &to, &away).map_err(|e| write_error(&to, e))?;
            for other in place.others_in(&self.target, collection.target()) {
                let path = self.target.join(&other);
                fs::rename(&path, old.join(&other)).map_err(|e| write_error(&path, e))?;
            }
            // The old folder beside a file is one of those that were just moved away.
            if let Some(beside) = place.beside() {
                let (from, to) = (self.root.join(&beside), self.target.join(&beside));
                match fs::rename(&from, &to) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(write_error(&to, e)),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn all(&self) -> Vec<Arc<Collection>> {
        let mut all: Vec<_> = self.collections.lock().unwrap_or_else(|e| e.into_inner()).values().cloned().collect();
        all.sort_by(|a, b| a.place().entry.cmp(&b.place().entry));
        all
    }

    /// Completes all files and makes them durable, where they are.
    fn complete(&self, collections: &[Arc<Collection>]) -> Result<(RestoreReport, Marker)> {
        let mut report = RestoreReport::default();
        let mut marker = Marker::new(self.prepared.engine.clone());
        if let Some(before) = &self.before {
            marker.written = before.written.clone();
        }
        self.check_beside(collections)?;
        for collection in collections {
            let (target, written) = (collection.target(), collection.finish()?);
            report.documents += written.documents;
            report.attachments += written.attachments;
            report.bytes += collection.bytes();
            for other in collection.place().others(target) {
                // What only has the name of this collection's folder, or of its file, is another one.
                let is_folder = |written: &Written| written.layout == Layout::Files.word();
                if marker.written.get(&other).map(is_folder) == Some(other == target) {
                    marker.written.remove(&other);
                }
            }
            marker.written.insert(collection.place().entry.clone(), written);
        }
        writer::sync_all(&self.root)?;
        Ok((report, marker))
    }

    fn finish(&self) -> Result<RestoreReport> {
        let collections = self.all();
        let (report, marker) = self.complete(&collections).inspect_err(|_| drop(self.take_back()))?;
        // From here on nothing is taken back: what is moved away would go with it.
        if self.root != self.target {
            self.replace(&collections).map_err(|e| {
                let root = self.root.display();
                e.hint(format!("what is not in its place is in {root}: new collections, and old ones in replaced"))
            })?;
        }
        if self.found == Found::Full {
            let entries = collections.iter().map(|c| self.target.join(&c.place().entry));
            let besides = collections.iter().filter_map(|c| c.place().beside()).map(|beside| self.target.join(beside));
            for folder in [self.target.clone()].into_iter().chain(entries).chain(besides) {
                leftovers::remove_temporary(&folder, self.started);
            }
        }
        self.write_marker(&marker)?;
        if self.root != self.target {
            fs::remove_dir_all(&self.root).map_err(|e| write_error(&self.root, e))?;
        }
        Ok(report)
    }

    /// Writes the marker, durable when this returns: that it is there says that all the rest is.
    fn write_marker(&self, marker: &Marker) -> Result<()> {
        let path = self.target.join(MARKER);
        let temporary = self.temporary.path(&self.target);
        let text = marker.to_text()?;
        let write = || {
            writer::sync_folder(&self.target)?;
            let mut file = create(&temporary)?;
            std::io::Write::write_all(&mut file, &text)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            writer::sync_folder(&self.target)?;
            match self.made.as_ref().and_then(|made| made.parent()) {
                Some(parent) if !parent.as_os_str().is_empty() => writer::sync_folder(parent),
                _ => Ok(()),
            }
        };
        write().map_err(|e| {
            let _ = fs::remove_file(&temporary);
            write_error(&path, e)
        })
    }

    /// Removes what was written, as far as nothing else was there before.
    fn take_back(&self) -> Vec<String> {
        let collections = self.all();
        let mut left = Vec::new();
        for collection in &collections {
            collection.give_up();
        }
        if self.root != self.target {
            if fs::remove_dir_all(&self.root).is_err() {
                left.push(format!("{}: what was written beside the collections", self.root.display()));
            }
            return left;
        }
        for collection in &collections {
            let path = self.root.join(&collection.place().entry);
            let gone = |removed: std::io::Result<()>| match removed {
                Err(e) => e.kind() == std::io::ErrorKind::NotFound,
                Ok(()) => true,
            };
            let beside_gone = gone(collection.remove_beside());
            if self.merging() {
                left.extend(collection.documents_left().map(|count| format!("{}: {count}", path.display())));
            } else {
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                if !gone(removed) {
                    left.push(format!("{}: what was written before", path.display()));
                }
            }
            if !beside_gone {
                left.push(format!("{}: attachments written beside it", path.display()));
            }
        }
        // From the target up to the first folder that was made; never one with something in it.
        let mut folder = Some(self.target.as_path());
        while let (Some(made), Some(path)) = (&self.made, folder) {
            if fs::remove_dir(path).is_err() || path == made {
                break;
            }
            folder = path.parent();
        }
        left
    }
}

/// Whether names that differ in case only are the same name here.
fn ignores_case_here(folder: &Path, temporary: &Temporary) -> Result<bool> {
    let path = temporary.path(folder);
    let mut upper = path.clone();
    upper.set_file_name(path.file_name().unwrap_or_default().to_string_lossy().to_uppercase());
    create(&path).map_err(|e| write_error(&path, e))?;
    let found = fs::symlink_metadata(&upper).is_ok();
    fs::remove_file(&path).map_err(|e| write_error(&path, e))?;
    Ok(found)
}

/// Puts `from` at `to`; what was there goes to `away`. Where the system can, in one step.
fn swap(from: &Path, to: &Path, away: &Path) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        if renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE).is_ok() {
            return fs::rename(from, away);
        }
    }
    match fs::rename(to, away) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    fs::rename(from, to)
}

#[async_trait]
impl SinkSession for Session {
    async fn catalog(&self, collection: &CollectionInfo) -> Result<()> {
        let target = self.plan.get(&collection.id).map_or(&collection.name, |planned| &planned.target).clone();
        self.open(PlannedCollection { info: collection.clone(), target }).await.map(drop)
    }

    async fn write(&self, batch: Batch) -> Result<()> {
        batch.check()?;
        let collection = self.collection(&batch.collection).await?;
        if batch.encoding != Encoding::Json {
            return Err(Error::unsupported(format!(
                "the documents of {} are not JSON, and a folder holds nothing else",
                collection.target()
            ))
            .hint("restore into the engine that they came from"));
        }
        match batch.kind {
            Kind::Document => blocking(move || collection.write_documents(&batch)).await,
            Kind::Tombstone => blocking(move || collection.delete(&batch)).await,
            Kind::Attachment => collection.write_attachments(&batch, &*self.attachments).await,
            ref other => Err(Error::unsupported(format!(
                "{} has {} entries, and a folder has no place for them",
                collection.target(),
                other.space()
            ))
            .hint("restore into the engine that they came from")),
        }
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

/// What is known of a collection when it is complete.
pub(crate) fn written(planned: &PlannedCollection, place: &Placement, documents: u64, attachments: u64) -> Written {
    Written {
        collection: planned.target.clone(),
        id: planned.info.id.as_str().to_owned(),
        documents,
        attachments,
        layout: place.layout.word().to_owned(),
        names: place.naming,
        options: match place.naming {
            crate::marker::Naming::Encoded => planned.info.options.clone(),
            crate::marker::Naming::Verbatim => serde_json::Value::Null,
        },
    }
}
