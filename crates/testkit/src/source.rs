//! The conformance suite for sources.

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use model::{
    AttachmentRef, AttachmentStore, AttachmentStream, Batch, CollectionId, CollectionInfo, ContentDigest, Error,
    HashingStore, Kind, Part, Plan, Result, ScanItem, Selection, Skipped, Source,
};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

/// A store that keeps attachments in memory.
#[derive(Debug, Default)]
pub struct MemoryAttachments {
    content: Mutex<HashMap<ContentDigest, Vec<Bytes>>>,
}

impl MemoryAttachments {
    /// Whether the content of a reference was put.
    pub fn has(&self, reference: &AttachmentRef) -> bool {
        let content = self.content.lock().unwrap();
        match reference.pieces() {
            Some(pieces) => pieces.unwrap().iter().all(|p| content.contains_key(&p.content.digest)),
            None => content.contains_key(&reference.digest),
        }
    }

    /// The content of a reference.
    pub fn content(&self, reference: &AttachmentRef) -> Vec<u8> {
        let content = self.content.lock().unwrap();
        match reference.pieces() {
            Some(pieces) => pieces.unwrap().iter().flat_map(|p| content[&p.content.digest].concat()).collect(),
            None => content[&reference.digest].concat(),
        }
    }

    /// Puts content that is at hand.
    pub async fn put_bytes(&self, content: &[u8]) -> AttachmentRef {
        let pieces: Vec<_> = content.chunks(100_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        self.put(futures::stream::iter(pieces).boxed()).await.unwrap()
    }
}

#[async_trait]
impl AttachmentStore for MemoryAttachments {
    async fn put(&self, mut content: AttachmentStream) -> Result<AttachmentRef> {
        let mut pieces = Vec::new();
        while let Some(piece) = content.next().await {
            pieces.push(piece?);
        }
        let again: Vec<_> = pieces.iter().cloned().map(Ok).collect();
        let mut reference = HashingStore.put(futures::stream::iter(again).boxed()).await?;
        reference.place = Arc::from("memory");
        self.content.lock().unwrap().insert(reference.digest, pieces);
        Ok(reference)
    }

    async fn open(&self, reference: &AttachmentRef) -> Result<AttachmentStream> {
        let digests = match reference.pieces() {
            Some(pieces) => pieces?.iter().map(|piece| piece.content.digest).collect(),
            None => vec![reference.digest],
        };
        let content = self.content.lock().unwrap();
        let mut all = Vec::new();
        for digest in digests {
            let pieces = content.get(&digest).cloned();
            all.extend(pieces.ok_or_else(|| Error::missing("no such attachment in memory"))?.into_iter().map(Ok));
        }
        Ok(futures::stream::iter(all).boxed())
    }
}

/// One document or attachment, out of its batch.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Its key.
    pub key: Vec<u8>,
    /// Its body.
    pub body: Vec<u8>,
    /// The digest of its content, if it is an attachment.
    pub content: Option<ContentDigest>,
}

/// The entries of a batch, in order.
pub fn entries_of(batch: &Batch) -> Vec<Entry> {
    batch.check().unwrap();
    (0..batch.len())
        .map(|i| Entry {
            kind: batch.kind.clone(),
            key: batch.key_of(i).to_vec(),
            body: batch.body_of(i).to_vec(),
            content: batch.attachments.get(i).map(|content| content.digest),
        })
        .collect()
}

/// Everything that a source gives.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Everything {
    /// The collections by name, with their entries in the order in which they came.
    pub collections: BTreeMap<String, (CollectionInfo, Vec<Entry>)>,
    /// What was left out.
    pub skipped: Vec<Skipped>,
}

impl Everything {
    /// The same with the entries of collections without an order sorted, for comparing.
    pub fn sorted(mut self) -> Self {
        for (info, entries) in self.collections.values_mut() {
            if !info.ordered {
                entries.sort();
            }
        }
        self
    }

    /// The entries of a collection.
    pub fn of(&self, collection: &str) -> &[Entry] {
        self.collections.get(collection).map_or(&[], |(_, entries)| entries)
    }
}

/// The parts of a plan, and what it leaves out.
pub async fn parts_of(source: &dyn Source, selection: &Selection) -> Result<(Vec<Part>, Vec<Skipped>)> {
    match source.plan(selection, None).await? {
        Plan::Scan { parts, skipped, .. } => Ok((parts, skipped)),
        other => panic!("the plan of a first reading is a scan, not {other:?}"),
    }
}

/// Reads everything that is selected. Checks each batch on the way, and that attachments were put
/// before their batch came out.
pub async fn read_everything(
    source: &dyn Source,
    selection: &Selection,
    store: Arc<MemoryAttachments>,
) -> Result<Everything> {
    let (parts, skipped) = parts_of(source, selection).await?;
    let mut all = Everything { skipped, ..Everything::default() };
    let mut names: HashMap<CollectionId, String> = HashMap::new();
    for part in &parts {
        let mut info = part.collection.clone();
        let (mut entries, mut bytes) = (Vec::new(), 0);
        let mut stream = source.read(part, store.clone()).await?;
        while let Some(item) = stream.next().await {
            match item? {
                ScanItem::Batch(batch) => {
                    assert_eq!(batch.collection, info.id, "a part gives its own collection only");
                    assert!(!batch.is_empty(), "no empty batches");
                    for content in &batch.attachments {
                        assert!(store.has(content), "attachments come before their batch");
                        bytes += content.length;
                    }
                    bytes += if batch.kind == Kind::Attachment { 0 } else { batch.raw_bytes() };
                    entries.extend(entries_of(&batch));
                }
                ScanItem::Catalog(changed) => info = changed,
                ScanItem::Skipped(skipped) => all.skipped.push(skipped),
                ScanItem::Progress { .. } => {}
                ScanItem::Gone | ScanItem::Again(_) => panic!("nothing changes while this is read"),
            }
        }
        let documents = entries.iter().filter(|e| e.kind == Kind::Document).count() as u64;
        if let Some(expected) = part.documents {
            assert_eq!(documents, expected, "{} has as many documents as planned", info.name);
        }
        if let Some(expected) = part.bytes {
            assert!(bytes <= expected, "{} has {bytes} bytes, and {expected} were planned", info.name);
        }
        names.insert(info.id.clone(), info.name.clone());
        let known = all.collections.entry(info.name.clone()).or_insert_with(|| (info, Vec::new()));
        known.1.extend(entries);
    }
    assert_eq!(names.len(), all.collections.len(), "identities and names of collections match one to one");
    Ok(all)
}

async fn read_new(source: &dyn Source, selection: &Selection) -> Everything {
    read_everything(source, selection, Arc::default()).await.unwrap()
}

/// Checks what every source promises. `make` opens the same source each time; it should have
/// several collections, some attachments, and nothing that is bad.
pub async fn conformance(make: impl Fn() -> Arc<dyn Source>) {
    conformance_of_keys(make, |key| std::str::from_utf8(key).ok().map(str::to_owned)).await;
}

/// As [`conformance`], for a source whose keys are no text: `text_of` gives what people write for
/// one.
pub async fn conformance_of_keys(make: impl Fn() -> Arc<dyn Source>, text_of: impl Fn(&[u8]) -> Option<String>) {
    let source = make();
    let description = source.describe().await.unwrap();
    assert_eq!(description, source.describe().await.unwrap(), "a description is stable");
    assert_eq!(description.identity, make().describe().await.unwrap().identity, "an identity lasts");
    assert!(!description.identity.is_empty() && !description.name.is_empty() && !description.version.is_empty());

    let all = read_new(&*source, &Selection::default()).await;
    let described: Vec<_> = description.collections.iter().map(|c| (&c.id, &c.name, c.ordered)).collect();
    for (info, entries) in all.collections.values() {
        assert!(described.contains(&(&info.id, &info.name, info.ordered)), "{} is described", info.name);
        let mut keys: Vec<_> = entries.iter().map(|e| (e.kind.space(), &e.key)).collect();
        keys.sort();
        assert!(keys.windows(2).all(|pair| pair[0] != pair[1]), "keys of {} are unique", info.name);
        for entry in entries {
            assert_eq!(entry.kind == Kind::Attachment, entry.content.is_some());
        }
    }
    assert_eq!(all.collections.len(), described.len(), "each described collection is read");
    assert_eq!(all.clone().sorted(), read_new(&*make(), &Selection::default()).await.sorted(), "two readings agree");

    for name in all.collections.keys() {
        // Names that look like patterns cannot be selected alone.
        if name.contains(['*', '?', '/']) {
            continue;
        }
        let only = read_new(&*source, &Selection { only: vec![name.clone()], ..Selection::default() }).await;
        assert_eq!(only.collections.keys().collect::<Vec<_>>(), [name], "only {name}");
        assert_eq!(only.clone().sorted().of(name), all.clone().sorted().of(name));
        let others = read_new(&*source, &Selection { exclude: vec![name.clone()], ..Selection::default() }).await;
        assert!(!others.collections.contains_key(name) && others.collections.len() == all.collections.len() - 1);
        let document = all.of(name).iter().find(|e| e.kind == Kind::Document);
        if let Some((document, key)) = document.and_then(|d| Some((d, text_of(&d.key)?))) {
            let one = Selection { only: vec![format!("{name}/{key}")], no_attachments: true, ..Selection::default() };
            assert_eq!(read_new(&*source, &one).await.of(name), std::slice::from_ref(document), "one document");
        }
    }
    let without = read_new(&*source, &Selection { no_attachments: true, ..Selection::default() }).await.sorted();
    for (name, (_, entries)) in &all.clone().sorted().collections {
        let documents: Vec<_> = entries.iter().filter(|e| e.kind != Kind::Attachment).cloned().collect();
        assert_eq!(without.of(name), documents, "no attachments");
    }
    given_up(&*source).await;
}

/// A reader that stops early must not leave the source stuck.
async fn given_up(source: &dyn Source) {
    let (parts, _) = parts_of(source, &Selection::default()).await.unwrap();
    for part in &parts {
        let mut stream = source.read(part, Arc::new(MemoryAttachments::default())).await.unwrap();
        drop(stream.next().await);
        drop(stream);
    }
    read_new(source, &Selection::default()).await;
}
