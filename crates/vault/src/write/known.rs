//! What is known of a collection from older points: finds out which documents are new, changed,
//! unchanged or gone.

use crate::hash::HashKeys;
use crate::manifest::{Layer, LayerRef};
use crate::read::Segments;
use crate::write::contents::KnownContents;
use model::{Batch, BatchBuilder, CollectionId, Encoding, Kind, Result};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

/// Documents of one collection that can be compared; above, everything is stored anew and only
/// equal segments are found. 4 million take about 200 MiB while that collection is read.
pub(crate) const KNOWN_MAX: usize = 4 << 20;

/// Keys of these tables are hashes already.
#[derive(Debug, Default)]
pub(crate) struct NoHash(u64);

impl Hasher for NoHash {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {}
    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    hash: u64,
    order: u32,
    seen: bool,
    /// Two keys have this hash: their documents are always stored, and none is taken for gone.
    ambiguous: bool,
}

/// How a document compares with what is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compared {
    /// As it was.
    Same,
    /// Another body.
    Changed,
    /// Not there before.
    New,
}

/// The known documents of one collection and kind space.
#[derive(Debug, Default)]
pub(crate) struct KnownSpace {
    entries: HashMap<u64, Entry, BuildHasherDefault<NoHash>>,
    next_order: u32,
    last_order: Option<u32>,
    seen_new: bool,
    out_of_order: bool,
}

impl KnownSpace {
    fn learn(&mut self, key: u64, hash: Option<u64>) {
        match hash {
            Some(hash) => {
                let order = self.next_order;
                let entry =
                    self.entries.entry(key).or_insert_with(|| Entry { hash, order, seen: false, ambiguous: false });
                if entry.order == order {
                    self.next_order += 1;
                } else if entry.seen {
                    entry.ambiguous = true;
                }
                entry.hash = hash;
                // While learning, `seen` marks keys of the layer that is being learnt.
                entry.seen = true;
            }
            None => {
                self.entries.remove(&key);
            }
        }
    }

    /// Brings what is known of some keys near to the processor, all at once, as it would otherwise wait
    /// for each of them.
    pub fn near(&self, keys: &[u64]) {
        let order = |key: &u64| self.entries.get(key).map_or(0, |entry| entry.order);
        std::hint::black_box(keys.iter().map(order).fold(0, |all, order| all ^ order));
    }

    fn end_of_layer(&mut self) {
        self.entries.values_mut().for_each(|e| e.seen = false);
    }

    /// Compares a document, and remembers that it is still there.
    pub fn compare(&mut self, key: u64, hash: u64) -> Compared {
        let Some(entry) = self.entries.get_mut(&key) else {
            self.seen_new = true;
            return Compared::New;
        };
        if entry.seen {
            entry.ambiguous = true;
        }
        entry.seen = true;
        self.out_of_order |= self.seen_new || self.last_order.is_some_and(|last| entry.order <= last);
        self.last_order = Some(entry.order);
        if entry.hash == hash && !entry.ambiguous { Compared::Same } else { Compared::Changed }
    }

    /// Whether the documents did not come in the order that a restore of old and new layers gives:
    /// those known before in their old order, then the new ones.
    pub fn is_out_of_order(&self) -> bool {
        self.out_of_order
    }

    fn is_gone(&self, key: u64) -> bool {
        self.entries.get(&key).is_some_and(|e| !e.seen && !e.ambiguous)
    }
}

/// An older layer, as far as comparing needs it.
#[derive(Debug, Clone)]
pub(crate) struct OldLayer {
    pub reference: Arc<LayerRef>,
    pub layer: Arc<Layer>,
}

/// The older layers that count for a collection: from the last one that holds it whole.
fn that_count<'a>(layers: &'a [OldLayer], collection: &CollectionId) -> &'a [OldLayer] {
    let from = layers.iter().rposition(|l| l.reference.whole.contains(collection)).unwrap_or(0);
    &layers[from..]
}

/// How many hashes are known of a collection, deletions included.
pub(crate) fn known_hashes(layers: &[OldLayer], collection: &CollectionId) -> usize {
    let mut count = 0;
    for old in that_count(layers, collection) {
        for (segment, frame) in Layer::of(&old.layer.hash_collections, collection).iter().flat_map(|c| c.places()) {
            let entry = old.layer.hashes.get(segment as usize);
            count += entry.map_or(0, |e| e.documents_in(frame as usize)) as usize;
        }
    }
    count
}

/// Calls `each` with every hash list frame of a collection, oldest layer first; the number is that
/// of the layer.
async fn for_each_frame(
    segments: &Segments,
    layers: &[OldLayer],
    collection: &CollectionId,
    mut each: impl FnMut(usize, &Batch) -> Result<()>,
) -> Result<()> {
    for (number, old) in that_count(layers, collection).iter().enumerate() {
        for (segment, frame) in Layer::of(&old.layer.hash_collections, collection).iter().flat_map(|c| c.places()) {
            let entry = old.layer.hashes.get(segment as usize).ok_or_else(broken)?;
            for frame in segments.read(entry, vec![frame]).await? {
                each(number, &frame.batch)?;
            }
        }
    }
    Ok(())
}

fn broken() -> model::Error {
    model::Error::corrupt("a layer's hash lists do not fit its table").hint("run `rewound backup --full`")
}

/// Reads what is known of a collection. Contents of attachments go to `contents`.
pub(crate) async fn load(
    keys: &HashKeys,
    segments: &Segments,
    layers: &[OldLayer],
    collection: &CollectionId,
    contents: &mut KnownContents,
) -> Result<HashMap<String, KnownSpace>> {
    let mut spaces: HashMap<String, KnownSpace> = HashMap::new();
    let counted = that_count(layers, collection);
    let (mut current, mut hashes) = (0, Vec::new());
    for_each_frame(segments, layers, collection, |number, batch| {
        if number != current {
            spaces.values_mut().for_each(KnownSpace::end_of_layer);
            current = number;
        }
        let known = spaces.entry(batch.kind.space().to_owned()).or_default();
        keys.keys_of(batch, &mut hashes);
        known.near(&hashes);
        for (i, key) in hashes.iter().enumerate() {
            // A deletion has no hash.
            known.learn(*key, <[u8; 8]>::try_from(batch.body_of(i)).ok().map(u64::from_le_bytes));
            if let Some(content) = batch.attachments.get(i) {
                contents.learn(&counted[number].layer.contents, content)?;
            }
        }
        Ok(())
    })
    .await?;
    spaces.values_mut().for_each(KnownSpace::end_of_layer);
    Ok(spaces)
}

/// Tombstones for the documents that are gone.
pub(crate) async fn gone(
    keys: &HashKeys,
    segments: &Segments,
    layers: &[OldLayer],
    collection: &CollectionId,
    spaces: &mut HashMap<String, KnownSpace>,
) -> Result<Vec<Batch>> {
    let mut batches = Vec::new();
    let mut builders: HashMap<String, BatchBuilder> = HashMap::new();
    let mut hashes = Vec::new();
    for_each_frame(segments, layers, collection, |_, batch| {
        let space = batch.kind.space();
        let Some(known) = spaces.get_mut(space) else { return Ok(()) };
        keys.keys_of(batch, &mut hashes);
        known.near(&hashes);
        for (i, key) in hashes.iter().enumerate() {
            if known.is_gone(*key) {
                // Once only, though the key may stand in several layers.
                known.entries.remove(key);
                let builder = builders.entry(space.to_owned()).or_insert_with(|| {
                    BatchBuilder::new(collection.clone(), Kind::tombstone_of(space), Encoding::Json)
                });
                builder.push(batch.key_of(i), b"");
                if builder.len() >= model::limits::BATCH_DOCUMENTS {
                    batches.push(builder.take());
                }
            }
        }
        Ok(())
    })
    .await?;
    batches.extend(builders.values_mut().filter(|b| !b.is_empty()).map(BatchBuilder::take));
    Ok(batches)
}
