//! What differs between two states.
//!
//! Where both build on the same oldest layer, only keys that younger layers or the change log speak
//! of can differ: those are looked at, and of the oldest layer only the frames that may hold them.
//! Else every document is, as a hash. What is looked at is sorted into groups by key, in little
//! memory, and each key's two bodies are made from what the two states know of it.

mod record;
mod sides;
mod work;

use self::sides::Side;
use self::work::Work;
use crate::manifest::{CatalogEntry, Layer};
use crate::read::partitions::Partitions;
use crate::read::state::State;
use crate::vault::Vault;
use futures::channel::mpsc;
use futures::stream::{self, BoxStream};
use futures::{SinkExt, StreamExt};
use model::{CollectionId, CollectionInfo, Error, ErrorKind, Result, ResultExt};
use std::collections::{BTreeSet, HashMap, HashSet};

/// One difference.
#[derive(Debug, Clone, PartialEq)]
pub enum Difference {
    /// A collection is another.
    Collection {
        /// Its name: the newer one.
        name: String,
        /// What has become of it.
        change: CollectionChange,
    },
    /// A document, or what belongs to one, is another.
    Document {
        /// The name of its collection: the newer one.
        collection: String,
        /// What it is ([`Kind::space`]): `document`, `attachment`, …
        space: String,
        /// Its key.
        key: Vec<u8>,
        /// What has become of it.
        change: Change,
    },
}

/// What has become of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// It was not there before.
    Added,
    /// It has another body, or another content.
    Changed,
    /// It is not there any more.
    Deleted,
}

/// What has become of a collection.
#[derive(Debug, Clone, PartialEq)]
pub enum CollectionChange {
    /// It was not there before.
    Created,
    /// It is not there any more.
    Dropped,
    /// It was dropped, and another one made under its name.
    Recreated,
    /// It had another name before: this one.
    Renamed(String),
    /// Its options or indexes are others.
    Options,
}

impl Vault {
    /// What differs between two states of a source, from the older to the newer one: collection by
    /// collection, first what has become of it, then its documents. Holds about `memory` bytes of
    /// what it compares; the rest goes to an encrypted temporary file.
    pub fn diff(&self, older: &State, newer: &State, memory: usize) -> BoxStream<'static, Result<Difference>> {
        let (sender, receiver) = mpsc::channel(64);
        let diff = Diff { states: [older.clone(), newer.clone()], memory, vault: self.clone(), out: sender };
        let work = async move {
            let mut out = diff.out.clone();
            if let Err(e) = diff.run().await {
                // A reader that is gone needs no error.
                let _ = out.send(Err(e)).await;
            }
        };
        // Driven by whoever reads: nothing goes on when the stream is dropped.
        stream::select(receiver, stream::once(work).filter_map(|()| std::future::ready(None))).boxed()
    }
}

struct Diff {
    /// The older one, then the newer one.
    states: [State; 2],
    memory: usize,
    vault: Vault,
    out: mpsc::Sender<Result<Difference>>,
}

/// The same collection in both states, as far as it is there.
type Pair<'a> = [Option<&'a CatalogEntry>; 2];

impl Diff {
    async fn run(mut self) -> Result<()> {
        let states = self.states.clone();
        for pair in pairs(states[0].collections(), states[1].collections()) {
            let Some(info) = pair[1].or(pair[0]).map(|c| &c.info) else { continue };
            for change in collection_changes(pair) {
                tell(&mut self.out, Difference::Collection { name: info.name.clone(), change }).await?;
            }
            let mut spaces: BTreeSet<(bool, String)> = BTreeSet::new();
            for (state, entry) in states.iter().zip(pair) {
                if let Some(entry) = entry {
                    spaces.extend(spaces_of(state, &entry.info.id).map(|s| (s == "attachment", s.to_owned())));
                }
            }
            for (_, space) in spaces {
                self.space(pair, info, &space).await.context(|| format!("comparing collection {}", info.name))?;
            }
        }
        Ok(())
    }

    /// Compares one kind space of a collection.
    async fn space(&mut self, pair: Pair<'_>, info: &CollectionInfo, space: &str) -> Result<()> {
        let sides = [0, 1].map(|s| Side::of(&self.states[s], pair[s], space));
        let mut work = Work::new(self.vault.inner.need_reader()?, info, &self.states[1].selection, sides);
        if !work.choose().await? {
            return Ok(());
        }
        let mut partitions = Partitions::new(self.memory, tempfile::tempfile);
        work.collect(&mut partitions).await?;
        let mut groups = partitions.groups();
        while let Some(group) = groups.next()? {
            for (key, change) in work.compare(&group)? {
                let (collection, space) = (info.name.clone(), space.to_owned());
                tell(&mut self.out, Difference::Document { collection, space, key, change }).await?;
            }
        }
        Ok(())
    }
}

async fn tell(out: &mut mpsc::Sender<Result<Difference>>, difference: Difference) -> Result<()> {
    let gone = |_| Error::new(ErrorKind::Interrupted, "the reader of the differences has gone");
    out.send(Ok(difference)).await.map_err(gone)
}

/// The kind spaces that a state has of a collection.
fn spaces_of<'a>(state: &'a State, id: &'a CollectionId) -> impl Iterator<Item = &'a str> {
    let layers = state.layers.iter().flat_map(|l| Layer::of(&l.layer.collections, id)).map(|c| c.space.as_str());
    let log = state.changes.iter().flat_map(|c| &c.index.frames).filter(move |f| f.collection == *id);
    layers.chain(log.map(|f| f.space.as_str()))
}

/// Collections that belong together: of one identity, or else of one name.
fn pairs<'a>(older: &'a [CatalogEntry], newer: &'a [CatalogEntry]) -> Vec<Pair<'a>> {
    let by_id: HashMap<&CollectionId, &CatalogEntry> = older.iter().map(|c| (&c.info.id, c)).collect();
    let ids: HashSet<&CollectionId> = newer.iter().map(|c| &c.info.id).collect();
    let left: HashMap<&str, &CatalogEntry> =
        older.iter().filter(|c| !ids.contains(&c.info.id)).map(|c| (c.info.name.as_str(), c)).collect();
    let mut pairs: Vec<Pair<'a>> = Vec::new();
    let mut taken: HashSet<&CollectionId> = HashSet::new();
    for entry in newer {
        let before = by_id.get(&entry.info.id).or_else(|| left.get(entry.info.name.as_str())).copied();
        taken.extend(before.map(|b| &b.info.id));
        pairs.push([before, Some(entry)]);
    }
    pairs.extend(older.iter().filter(|c| !taken.contains(&c.info.id)).map(|c| [Some(c), None]));
    pairs
}

fn collection_changes(pair: Pair<'_>) -> Vec<CollectionChange> {
    let (before, now) = match pair {
        [Some(before), Some(now)] => (&before.info, &now.info),
        [None, _] => return vec![CollectionChange::Created],
        [Some(_), None] => return vec![CollectionChange::Dropped],
    };
    let mut changes = Vec::new();
    if before.id != now.id {
        changes.push(CollectionChange::Recreated);
    }
    if before.name != now.name {
        changes.push(CollectionChange::Renamed(before.name.clone()));
    }
    if before.options != now.options || before.ordered != now.ordered {
        changes.push(CollectionChange::Options);
    }
    changes
}
