//! Attachments in a mirror.

use super::ledger::Entry;
use super::{Mirror, Touched, attachments_of, in_the_way, remove, remove_empty, unknown};
use crate::files::{self, blocking};
use crate::names::{bytes_of, show};
use model::{AttachmentRef, AttachmentStore, CollectionId, ContentDigest, Error, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

impl Mirror {
    /// Writes an attachment, unless it is there as it is to be.
    pub async fn attach(
        self: &Arc<Self>,
        id: &CollectionId,
        (key, said): (&[u8], &[u8]),
        content: &AttachmentRef,
        store: &dyn AttachmentStore,
        time: u64,
    ) -> Result<Option<Touched>> {
        let (this, of, body, document) = (self.clone(), id.clone(), said.to_vec(), key.to_vec());
        let wanted = content.clone();
        let found = blocking(move || this.attachment(&of, &document, &body, &wanted, time)).await?;
        let Some((collection, path, file)) = found else { return Ok(None) };
        collection.write_attachment(path.clone(), content, store).await?;
        self.locked().unsettled.push(path);
        Ok(Some(Touched { key: key.to_vec(), file, deleted: false }))
    }

    /// Where an attachment goes, with the intention told; none if it is there.
    fn attachment(
        &self,
        id: &CollectionId,
        key: &[u8],
        said: &[u8],
        content: &AttachmentRef,
        time: u64,
    ) -> Result<Option<(Arc<crate::collection::Collection>, PathBuf, String)>> {
        let mut inner = self.locked();
        let open = self.opened(&mut inner, id)?;
        let (path, _) = open.collection.attachment_place(key, said, content.length)?;
        let name = name_in(&open.folder, &path);
        let known = open.ledger.get(&name).copied();
        let is_there = fs::symlink_metadata(&path).is_ok();
        let is_same = is_there && digest(&path, content.length)? == Some(content.digest);
        if is_there && !is_same && known.is_none() {
            return Err(in_the_way(&path));
        }
        let mut first = [0; 8];
        first.copy_from_slice(&content.digest[..8]);
        let entry = Entry { hash: u64::from_le_bytes(first), time, scan: open.scan };
        if !is_same || known.is_none_or(|k| (k.hash, k.time) != (entry.hash, entry.time)) {
            open.ledger.intend(&name, entry);
        }
        open.ledger.met(&name, open.scan);
        open.ledger.settle()?;
        let file = format!("{}/{}", super::shown(&open.folder), show(&name));
        Ok((!is_same).then(|| (open.collection.clone(), path, file)))
    }

    /// Deletes an attachment.
    pub fn detach(&self, id: &CollectionId, key: &[u8]) -> Result<Option<Touched>> {
        let mut inner = self.locked();
        let inner = &mut *inner;
        self.opened(inner, id)?;
        let Some(open) = inner.open.get_mut(id) else { return Err(unknown(id)) };
        // A key does not tell which of its slashes parts document and name; what was written does.
        for (at, _) in key.iter().enumerate().filter(|(_, b)| **b == b'/') {
            let Some(path) = open.collection.attachment_path(&key[..at], &key[at + 1..])? else { continue };
            let name = name_in(&open.folder, &path);
            if open.ledger.get(&name).is_some() {
                remove(&path)?;
                open.ledger.forget(&name);
                if let Some(attachments) = attachments_of(&open.folder, &path) {
                    remove_empty(&attachments)?;
                }
                let file = format!("{}/{}", super::shown(&open.folder), show(&name));
                inner.unsettled.push(path);
                return Ok(Some(Touched { key: key.to_vec(), file, deleted: true }));
            }
        }
        Ok(None)
    }

    /// Deletes all attachments of a document but those of these names.
    pub fn detach_others(&self, id: &CollectionId, document: &[u8], keep: &[String]) -> Result<Vec<Touched>> {
        let mut inner = self.locked();
        let inner = &mut *inner;
        self.opened(inner, id)?;
        let Some(open) = inner.open.get_mut(id) else { return Err(unknown(id)) };
        let Some(some) = open.collection.attachment_path(document, b"x")? else { return Ok(Vec::new()) };
        let Some(folder) = some.parent() else { return Ok(Vec::new()) };
        let mut kept = Vec::with_capacity(keep.len());
        for name in keep {
            kept.extend(open.collection.attachment_path(document, name.as_bytes())?);
        }
        let Ok(found) = fs::read_dir(folder) else { return Ok(Vec::new()) };
        let mut touched = Vec::new();
        for path in found.flatten().map(|entry| entry.path()).filter(|path| !kept.contains(path)) {
            let name = name_in(&open.folder, &path);
            // What others put there stays.
            if open.ledger.get(&name).is_none() {
                continue;
            }
            remove(&path)?;
            open.ledger.forget(&name);
            let file = format!("{}/{}", super::shown(&open.folder), show(&name));
            touched.push(Touched { key: document.to_vec(), file, deleted: true });
            inner.unsettled.push(path);
        }
        if !touched.is_empty() {
            remove_empty(folder)?;
        }
        Ok(touched)
    }
}

/// The name that the ledger has for a file in a collection's folder.
fn name_in(folder: &Path, path: &Path) -> Vec<u8> {
    path.strip_prefix(folder).map(|inside| bytes_of(inside.as_os_str()).to_vec()).unwrap_or_default()
}

/// The digest of a file of this length; none if it has another, or is no file.
fn digest(path: &Path, length: u64) -> Result<Option<ContentDigest>> {
    let Ok(file) = files::open(path) else { return Ok(None) };
    let fail = |e| Error::io(format!("reading {}", path.display()), e);
    let found = file.metadata().map_err(fail)?;
    if !found.is_file() || found.len() != length {
        return Ok(None);
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file).map_err(fail)?;
    Ok(Some(*hasher.finalize().as_bytes()))
}
