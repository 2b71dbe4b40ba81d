//! The collections of a mirror: made, renamed, emptied, dropped, compared with a scan.

use super::ledger::{self, Ledger};
use super::state::{Kept, Moving};
use super::{Inner, Mirror, Open, Touched, attachments_of, in_the_way, remove, remove_empty, unknown};
use crate::collection::Collection;
use crate::layout::Layout;
use crate::leftovers;
use crate::marker::{self, Naming};
use crate::names::{self, NAMES_FILE, show};
use crate::target::Placement;
use crate::writer::write_error;
use model::{CollectionId, CollectionInfo, PlannedCollection, Result};
use std::fs;
use std::time::SystemTime;

impl Mirror {
    /// Has a collection under this name and with these options from now on.
    pub fn keep(&self, info: &CollectionInfo) -> Result<()> {
        let mut inner = self.locked();
        let entry = names::encode(info.name.as_bytes());
        let known = inner.state.collections.iter().position(|k| k.info.id == info.id);
        if let Some(at) = known {
            let kept = &inner.state.collections[at];
            if kept.entry == entry && kept.info == *info {
                return self.opened(&mut inner, &info.id).map(drop);
            }
        }
        self.make_way(&mut inner, &entry, &info.id)?;
        match known {
            Some(at) => {
                self.rename(&mut inner, at, entry)?;
                inner.state.collections[at].info = info.clone();
            }
            None => {
                if fs::symlink_metadata(self.root.join(&entry)).is_ok() {
                    return Err(in_the_way(&self.root.join(&entry)));
                }
                let number = inner.state.next;
                inner.state.next += 1;
                inner.state.collections.push(Kept { number, entry, info: info.clone() });
            }
        }
        self.write_state(&inner)?;
        self.opened(&mut inner, &info.id).map(drop)
    }

    /// Moves another collection away that has this folder: it is renamed or gone by now, which will
    /// be told in its turn.
    fn make_way(&self, inner: &mut Inner, entry: &str, id: &CollectionId) -> Result<()> {
        let other = inner.state.collections.iter().position(|k| k.entry == entry && k.info.id != *id);
        match other {
            Some(at) => {
                let aside = format!(".rewound-moved-{}", inner.state.collections[at].number);
                self.rename(inner, at, aside)
            }
            None => Ok(()),
        }
    }

    fn rename(&self, inner: &mut Inner, at: usize, to: String) -> Result<()> {
        let kept = &inner.state.collections[at];
        if kept.entry == to {
            return Ok(());
        }
        let (from, path) = (self.root.join(&kept.entry), self.root.join(&to));
        if fs::symlink_metadata(&path).is_ok() {
            return Err(in_the_way(&path));
        }
        let (number, id) = (kept.number, kept.info.id.clone());
        self.settle(inner)?;
        if let Some(open) = inner.open.get_mut(&id) {
            open.ledger.settle()?;
        }
        inner.state.moving = Some(Moving { number, to: to.clone() });
        self.write_state(inner)?;
        match fs::rename(&from, &path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(write_error(&path, e)),
            _ => {}
        }
        inner.state.collections[at].entry = to;
        inner.state.moving = None;
        inner.open.remove(&id);
        self.write_state(inner)
    }

    /// The collection with its ledger.
    pub(super) fn opened<'a>(&self, inner: &'a mut Inner, id: &CollectionId) -> Result<&'a mut Open> {
        if !inner.open.contains_key(id) {
            let kept = inner.state.collections.iter().find(|k| k.info.id == *id).ok_or_else(|| unknown(id))?;
            let folder = self.root.join(&kept.entry);
            let place = Placement { entry: kept.entry.clone(), layout: Layout::Files, naming: Naming::Encoded };
            let planned = PlannedCollection { info: kept.info.clone(), target: kept.info.name.clone() };
            let collection = Collection::start(&self.root, planned, place, self.temporary.clone(), true, false, None)?;
            marker::mend_long_names(&folder.join(NAMES_FILE))?;
            leftovers::remove_temporary(&folder, SystemTime::now());
            let ledger = Ledger::open(self.home.join(format!("files-{}", kept.number)))?;
            inner.open.insert(id.clone(), Open { collection: collection.into(), folder, ledger, scan: 0 });
        }
        inner.open.get_mut(id).ok_or_else(|| unknown(id))
    }

    /// A scan of this collection begins: what it does not meet is gone.
    pub fn begin_scan(&self, id: &CollectionId) -> Result<()> {
        let mut inner = self.locked();
        self.opened(&mut inner, id)?.scan += 1;
        Ok(())
    }

    /// Deletes the files that the scan did not meet; tells which.
    pub fn end_scan(&self, id: &CollectionId) -> Result<Vec<Touched>> {
        let mut inner = self.locked();
        let open = self.opened(&mut inner, id)?;
        let scan = open.scan;
        self.delete(open, |entry| entry.scan != scan)
    }

    /// Deletes the files of a collection that hold what was true at or before a time (all, without a
    /// time), and the collection itself if nothing of the mirror's is left in it. Tells which, and
    /// whether files of others are left there.
    pub fn drop_collection(&self, id: &CollectionId, until: Option<u64>) -> Result<(Vec<Touched>, bool)> {
        let mut inner = self.locked();
        let Some(at) = inner.state.collections.iter().position(|k| k.info.id == *id) else {
            return Ok((Vec::new(), false));
        };
        let open = self.opened(&mut inner, id)?;
        let touched = self.delete(open, |entry| until.is_none_or(|until| entry.time <= until))?;
        let (left, folder) = (open.ledger.len(), open.folder.clone());
        if left > 0 {
            return Ok((touched, false));
        }
        let is_gone = remove_empty(&folder)?;
        let ledger = inner.open.remove(id).map(|open| open.ledger);
        inner.state.collections.remove(at);
        // First forgotten, then removed: a ledger that nobody knows does no harm.
        self.write_state(&inner)?;
        ledger.map_or(Ok(()), Ledger::remove)?;
        Ok((touched, !is_gone))
    }

    fn delete(&self, open: &mut Open, which: impl Fn(&ledger::Entry) -> bool) -> Result<Vec<Touched>> {
        let mut touched = Vec::new();
        let folder = open.folder.clone();
        let mut found = Vec::new();
        ledger::each_file(&folder, |name, path| {
            if open.ledger.get(name).is_some_and(&which) {
                found.push((name.to_vec(), path.to_owned()));
            }
            Ok(())
        })?;
        let keys = crate::walk::Keys::of(&folder, true)?;
        for (name, path) in found {
            remove(&path)?;
            open.ledger.forget(&name);
            if let Some(attachments) = attachments_of(&folder, &path) {
                remove_empty(&attachments)?;
            }
            let stem = name.strip_suffix(b".json").unwrap_or(&name);
            let file = format!("{}/{}", super::shown(&folder), show(&name));
            touched.push(Touched { key: keys.key(stem).into_owned(), file, deleted: true });
        }
        // Of what somebody else has deleted, too.
        open.ledger.retain(|entry| !which(entry));
        open.ledger.settle()?;
        Ok(touched)
    }
}
