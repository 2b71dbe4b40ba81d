//! Contents that older points and the change log have, by whose they are: what need not be fetched again.
//!
//! Nothing is read before somebody asks; then the hash lists of the attachments of that collection, and the
//! lists of the contents that the log refers to.

use crate::direct::Direct;
use crate::log::contents::{self, ListedContent};
use crate::log::{Listed, current};
use crate::manifest::Layer;
use crate::name::ContentsName;
use crate::objects::{ObjectWriter, is_damage};
use crate::read::Segments;
use crate::vault::Inner;
use crate::write::contents::{KnownPlace, ObjectNames, Place};
use crate::write::known::OldLayer;
use futures::StreamExt;
use model::{CollectionId, ContentDigest, Error, Kind, Result, ResultExt};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tokio::sync::Mutex;

/// Pieces of layers that are remembered (917,504: what a table has room for before it doubles), and as many of the
/// log: about 100 MiB each. Others are fetched again.
const REMEMBERED: usize = 7 << 17;
/// Of these, places that only pieces of more than [`LARGE`] get: however many small ones there are, what is dear to
/// fetch is remembered.
const FOR_LARGE: usize = REMEMBERED / 8;
/// Bytes (128 KiB) from which on a piece is dear.
const LARGE: u64 = 128 << 10;

/// What tells a piece of an attachment from all others.
type Id = [u8; 16];

fn id(collection: &CollectionId, key: &[u8], name: &str) -> Id {
    let mut hasher = blake3::Hasher::new();
    for part in [collection.as_str().as_bytes(), key, name.as_bytes()] {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    let mut id = [0; 16];
    hasher.finalize_xof().fill(&mut id);
    id
}

/// A content that the vault has.
#[derive(Debug, Clone)]
pub(crate) struct KnownPiece {
    pub digest: ContentDigest,
    pub length: u64,
    pub place: KnownPlace,
}

/// A content, and where it is, in little memory.
#[derive(Debug, Clone)]
struct Remembered<P> {
    digest: ContentDigest,
    length: u64,
    place: P,
}

type Table<P> = HashMap<Id, Remembered<P>>;

/// The pieces that one run can refer to.
#[derive(Debug)]
pub(crate) struct KnownPieces {
    vault: Arc<Inner>,
    writer: Arc<ObjectWriter>,
    lists: Segments,
    layers: Vec<OldLayer>,
    /// Lists of the log since the oldest of the layers.
    log: Vec<ContentsName>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// In the tables of layers, by their numbers.
    of_layers: Table<(u16, Place)>,
    /// In objects that the log refers to: newer than any layer.
    of_log: Table<Direct>,
    /// Names of objects that the log refers to.
    objects: ObjectNames,
    /// Collections whose attachments were looked up.
    looked: HashSet<CollectionId>,
    /// Whether the log's lists were read.
    read: bool,
    /// Objects of the log that are there.
    there: HashSet<String>,
}

/// The lists of a source that say something of the log after `after` (milliseconds since 1970 UTC), in the
/// order in which they were written.
pub(crate) async fn lists_after(vault: &Inner, source: &str, log: &[Listed], after: u64) -> Result<Vec<ContentsName>> {
    let mut names = if log.is_empty() { Vec::new() } else { contents::names(vault, source).await? };
    if names.is_empty() {
        return Ok(names);
    }
    let current = current(log.to_vec());
    let mut ends: HashMap<&str, (u32, u64)> = HashMap::new();
    for Listed { name, .. } in current.iter().filter(|l| l.name.to > after) {
        let end = ends.entry(&name.run).or_default();
        *end = (end.0.max(name.last), end.1.max(name.to));
    }
    names.retain(|name| ends.get(&*name.run).is_some_and(|(last, _)| *last >= name.first));
    names.sort_by_key(|name| (ends.get(&*name.run).map_or(0, |(_, to)| *to), name.run.clone(), name.first));
    Ok(names)
}

impl KnownPieces {
    /// What these layers have, and these lists of the log.
    pub fn new(vault: Arc<Inner>, writer: Arc<ObjectWriter>, layers: Vec<OldLayer>, log: Vec<ContentsName>) -> Self {
        let lists = Segments::new(writer.objects.clone());
        KnownPieces { vault, writer, lists, layers, log, state: Mutex::default() }
    }

    /// A piece of an attachment, if the vault has it for sure.
    pub async fn find(&self, collection: &CollectionId, key: &[u8], name: &str) -> Result<Option<KnownPiece>> {
        let mut state = self.state.lock().await;
        self.look(&mut state, collection).await.context(|| "finding out which attachments the vault has".to_owned())?;
        let id = id(collection, key, name);
        if let Some(Remembered { digest, length, place }) = state.of_log.get(&id).cloned() {
            for path in place.objects() {
                // A run looks for what its layers need when it starts; for this nobody has looked.
                if !self.writer.may_reuse(path) || !self.is_there(&mut state, path).await? {
                    return Ok(None);
                }
            }
            return Ok(Some(KnownPiece { digest, length, place: KnownPlace::of_direct(place) }));
        }
        let Some(Remembered { digest, length, place: (layer, place) }) = state.of_layers.get(&id).cloned() else {
            return Ok(None);
        };
        let contents = self.layers.get(usize::from(layer)).map(|old| &old.layer.contents);
        let place = contents.and_then(|contents| KnownPlace::at(contents, place));
        let place = place.filter(|place| place.objects().all(|path| self.writer.may_reuse(path)));
        Ok(place.map(|place| KnownPiece { digest, length, place }))
    }

    /// Remembers what a flush has listed.
    pub async fn learn(&self, listed: &[ListedContent]) -> Result<()> {
        let mut state = self.state.lock().await;
        let State { of_log, objects, .. } = &mut *state;
        listed.iter().try_for_each(|content| remember(of_log, objects, content))
    }

    async fn is_there(&self, state: &mut State, path: &str) -> Result<bool> {
        if state.there.contains(path) {
            return Ok(true);
        }
        let there = self.writer.objects.storage.stat(path).await?.is_some();
        if there {
            state.there.insert(path.to_owned());
        }
        Ok(there)
    }

    /// Reads what is known of a collection, the oldest first, so that the newest counts.
    async fn look(&self, state: &mut State, collection: &CollectionId) -> Result<()> {
        let again = |e: Error| match is_damage(&e) {
            true => {
                tracing::warn!("some attachments are fetched again: {e}");
                Ok(())
            }
            false => Err(e),
        };
        if !state.looked.contains(collection) {
            for (number, old) in self.layers.iter().enumerate() {
                self.look_into(state, number as u16, &old.layer, collection).await.or_else(again)?;
            }
            state.looked.insert(collection.clone());
        }
        if !state.read {
            let mut of_log = Table::new();
            let mut reading = std::pin::pin!(contents::read_all(&self.vault, self.log.clone()));
            while let Some((_, list)) = reading.next().await {
                let objects = &mut state.objects;
                let mut learn = |content: &ListedContent| remember(&mut of_log, objects, content);
                let learning = list.and_then(|list| list.contents.iter().try_for_each(&mut learn));
                learning.or_else(again)?;
            }
            // What flushes of this run have listed is newer.
            of_log.extend(std::mem::take(&mut state.of_log));
            (state.of_log, state.read) = (of_log, true);
        }
        Ok(())
    }

    async fn look_into(&self, state: &mut State, number: u16, layer: &Layer, collection: &CollectionId) -> Result<()> {
        let of_attachments = Layer::of(&layer.hash_collections, collection);
        let of_attachments = of_attachments.iter().filter(|c| c.space == Kind::Attachment.space());
        for (segment, frame) in of_attachments.flat_map(|c| c.places()) {
            let Some(entry) = layer.hashes.get(segment as usize) else { continue };
            for frame in self.lists.read(entry, vec![frame]).await? {
                let batch = &frame.batch;
                for (i, content) in batch.attachments.iter().enumerate() {
                    let Some(pieces) = content.pieces() else { continue };
                    for piece in pieces? {
                        let Some(place) = Place::parse(&piece.content.place) else { continue };
                        let (digest, length) = (piece.content.digest, piece.content.length);
                        let id = id(collection, batch.key_of(i), &piece.name);
                        insert(&mut state.of_layers, id, Remembered { digest, length, place: (number, place) });
                    }
                }
            }
        }
        Ok(())
    }
}

fn remember(table: &mut Table<Direct>, objects: &mut ObjectNames, content: &ListedContent) -> Result<()> {
    if !content.name.is_empty() {
        let id = id(&content.collection, &content.key()?, &content.name);
        let (digest, length, mut place) = (content.digest()?, content.length, content.place.clone());
        if let Direct::Packed(at) = &mut place {
            at.object = objects.once(at.object.clone());
        }
        insert(table, id, Remembered { digest, length, place });
    }
    Ok(())
}

fn insert<P>(table: &mut Table<P>, id: Id, piece: Remembered<P>) {
    let most = if piece.length > LARGE { REMEMBERED } else { REMEMBERED - FOR_LARGE };
    if table.len() < most || table.contains_key(&id) {
        table.insert(id, piece);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn however_many_are_small_the_large_ones_are_remembered() {
        let mut table = Table::new();
        let mut put = |number: usize, length: u64| {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&number.to_le_bytes());
            insert(&mut table, id, Remembered { digest: [0; 32], length, place: () });
            table.get(&id).is_some_and(|found| found.length == length)
        };
        let small = REMEMBERED - FOR_LARGE;
        assert!((0..small).all(|i| put(i, 5000)));
        assert!(!put(small, LARGE) && put(0, 5001), "no more small ones, but newer ones in the place of these");
        assert!((small..REMEMBERED).all(|i| put(i, LARGE + 1)));
        assert!(!put(REMEMBERED, LARGE + 1));
        assert_eq!(table.capacity(), REMEMBERED, "it has not doubled for the last ones");
    }
}
