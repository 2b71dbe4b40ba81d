//! A database in memory that does what a test asks for, and vaults in memory.
#![allow(dead_code, clippy::unwrap_used)]

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use model::*;
use rewound::registry::Target;
use rewound::{Event, Job, Observer, Stop};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use vault::storage::{Created, Entry, MemoryStorage, Storage};
use vault::{Access, Protection, Vault};

/// Documents of a collection, in order: key and body.
pub type Documents = Vec<(String, String)>;

/// Attachments: collection, key, content.
pub type Attachments = Vec<(String, String, Vec<u8>)>;

/// A database in memory.
#[derive(Default)]
pub struct Memory {
    pub collections: Mutex<BTreeMap<String, Documents>>,
    /// Attachments of all collections.
    pub attachments: Mutex<Attachments>,
    /// Collections in which the order of documents counts.
    pub ordered: Vec<String>,
    /// Documents in one part of the plan.
    pub part: usize,
    /// A hole in the history that the plan tells of.
    pub gap: Option<Gap>,
    /// What the target cannot hold.
    pub losses: Vec<Loss>,
    /// Spoils a document of this collection when it is written.
    pub spoil: Option<String>,
    /// Fails when this many batches have been written.
    pub fail_after: Option<usize>,
    /// Asks to stop when this many items have been read.
    pub stop_after: Option<(usize, Stop)>,
    pub reads: AtomicUsize,
    pub aborted: AtomicUsize,
    pub begun: AtomicUsize,
}

impl Memory {
    pub fn with(collections: &[(&str, usize)]) -> Memory {
        let memory = Memory { part: 1000, ..Memory::default() };
        for (name, count) in collections {
            let documents = (0..*count).map(|i| (format!("k{i}"), format!("{{\"i\":{i}}}"))).collect();
            memory.collections.lock().unwrap().insert((*name).to_owned(), documents);
        }
        memory
    }

    fn info(&self, name: &str) -> CollectionInfo {
        CollectionInfo {
            id: CollectionId::new(name),
            name: name.to_owned(),
            options: serde_json::Value::Null,
            ordered: self.ordered.iter().any(|o| o == name),
        }
    }

    pub fn of(&self, name: &str) -> Documents {
        self.collections.lock().unwrap().get(name).cloned().unwrap_or_default()
    }

    pub fn all(&self) -> (BTreeMap<String, Documents>, Attachments) {
        let mut all = self.collections.lock().unwrap().clone();
        for (name, documents) in &mut all {
            if !self.ordered.contains(name) {
                documents.sort();
            }
        }
        let mut attachments = self.attachments.lock().unwrap().clone();
        attachments.sort();
        (all, attachments)
    }
}

/// A shared [`Memory`] as source and sink.
#[derive(Clone)]
pub struct Shared(pub Arc<Memory>);

pub fn target(memory: &Arc<Memory>) -> Target {
    Target { sink: Arc::new(Shared(memory.clone())), source: Arc::new(Shared(memory.clone())), folder: None }
}

#[async_trait]
impl Source for Shared {
    async fn describe(&self) -> Result<Description> {
        let collections = self.0.collections.lock().unwrap().keys().map(|n| self.0.info(n)).collect();
        Ok(Description {
            engine: Engine::new("memory"),
            identity: "memory".into(),
            name: "memory".into(),
            version: "1".into(),
            feed: FeedKind::LatestState,
            collections,
            losses: Vec::new(),
        })
    }

    async fn plan(&self, selection: &Selection, _: Option<&SourceState>) -> Result<Plan> {
        let all = self.0.collections.lock().unwrap();
        let mut parts = Vec::new();
        // Part by part, collections interleaved: nobody may count on their being side by side.
        let most = all.values().map(|d| d.len() / self.0.part + 1).max().unwrap_or(0);
        for number in 0..most {
            for (name, documents) in all.iter().filter(|(name, _)| selection.takes(name)) {
                if number <= documents.len() / self.0.part {
                    let collection = self.0.info(name);
                    parts.push(Part { collection, token: number.to_string(), documents: None, bytes: None });
                }
            }
        }
        let scan = Plan::Scan { start: None, parts, at: None, consistency: Consistency::OneTime, skipped: Vec::new() };
        Ok(match &self.0.gap {
            Some(gap) => Plan::Gap { gap: gap.clone(), then: Box::new(scan) },
            None => scan,
        })
    }

    async fn read(&self, part: &Part, store: Arc<dyn AttachmentStore>) -> Result<ScanStream> {
        let number: usize = part.token.parse().unwrap();
        let name = &part.collection.name;
        let mut items = Vec::new();
        for (key, body) in self.0.of(name).iter().skip(number * self.0.part).take(self.0.part) {
            let mut batch = BatchBuilder::new(part.collection.id.clone(), Kind::Document, Encoding::Json);
            batch.push(key.as_bytes(), body.as_bytes());
            items.push(Ok(ScanItem::Batch(batch.take())));
        }
        let attachments = self.0.attachments.lock().unwrap().clone();
        for (_, key, content) in attachments.into_iter().filter(|(of, ..)| of == name && number == 0) {
            let pieces: Vec<_> = content.chunks(1000).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
            let reference = store.put(futures::stream::iter(pieces).boxed()).await?;
            let mut batch = BatchBuilder::new(part.collection.id.clone(), Kind::Attachment, Encoding::Json);
            batch.push_attachment(key.as_bytes(), b"{}", reference);
            items.push(Ok(ScanItem::Batch(batch.take())));
        }
        let memory = self.0.clone();
        Ok(futures::stream::iter(items)
            .inspect(move |_| {
                let reads = memory.reads.fetch_add(1, Ordering::SeqCst) + 1;
                if let Some((after, stop)) = &memory.stop_after
                    && reads == *after
                {
                    stop.ask();
                }
            })
            .boxed())
    }
}

#[async_trait]
impl Sink for Shared {
    async fn prepare(&self, what: &Description, options: &RestoreOptions) -> Result<RestorePlan> {
        let collections = what
            .collections
            .iter()
            .map(|info| PlannedCollection { info: info.clone(), target: options.target_name(&info.name).to_owned() });
        Ok(RestorePlan {
            phases: vec!["write".into()],
            collections: collections.collect(),
            losses: self.0.losses.clone(),
        })
    }

    async fn begin(&self, plan: RestorePlan, attachments: Arc<dyn AttachmentStore>) -> Result<Box<dyn SinkSession>> {
        self.0.begun.fetch_add(1, Ordering::SeqCst);
        let names = plan.collections.into_iter().map(|p| (p.info.id, p.target)).collect();
        Ok(Box::new(Session { memory: self.0.clone(), names, attachments, written: AtomicUsize::new(0) }))
    }
}

struct Session {
    memory: Arc<Memory>,
    names: Vec<(CollectionId, String)>,
    attachments: Arc<dyn AttachmentStore>,
    written: AtomicUsize,
}

#[async_trait]
impl SinkSession for Session {
    async fn catalog(&self, info: &CollectionInfo) -> Result<()> {
        let name = self.names.iter().find(|(id, _)| *id == info.id).unwrap().1.clone();
        self.memory.collections.lock().unwrap().entry(name).or_default();
        Ok(())
    }

    async fn write(&self, batch: Batch) -> Result<()> {
        if self.memory.fail_after.is_some_and(|n| self.written.fetch_add(1, Ordering::SeqCst) >= n) {
            return Err(Error::new(ErrorKind::Full, "the target is full").hint("make room"));
        }
        let name = self.names.iter().find(|(id, _)| *id == batch.collection).unwrap().1.clone();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        for i in 0..batch.len() {
            let key = text(batch.key_of(i));
            if let Some(reference) = batch.attachments.get(i) {
                let content = collect_attachment(self.attachments.open(reference).await?, 1 << 30).await?;
                self.memory.attachments.lock().unwrap().push((name.clone(), key, content.to_vec()));
                continue;
            }
            let mut body = text(batch.body_of(i));
            if self.memory.spoil.as_ref() == Some(&name) && key == "k1" {
                body = "{\"i\": 1}".into();
            }
            let mut all = self.memory.collections.lock().unwrap();
            let documents = all.get_mut(&name).unwrap();
            documents.retain(|(k, _)| *k != key);
            documents.push((key, body));
        }
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<RestoreReport> {
        Ok(RestoreReport::default())
    }

    async fn abort(self: Box<Self>) -> Leftovers {
        self.memory.aborted.fetch_add(1, Ordering::SeqCst);
        Leftovers { what: vec!["a few documents".into()] }
    }
}

/// Remembers notes.
#[derive(Default)]
pub struct Notes(pub Mutex<Vec<String>>);

impl Observer for Notes {
    fn on(&self, event: Event) {
        if let Event::Note(text) = event {
            self.0.lock().unwrap().push(text);
        }
    }
}

pub fn job(notes: &Arc<Notes>) -> Job {
    Job::new(notes.clone(), Stop::new())
}

/// Storage in memory that fails to create objects once it has created so many.
#[derive(Debug)]
pub struct Failing {
    inner: MemoryStorage,
    left: AtomicI64,
}

#[async_trait]
impl Storage for Failing {
    fn location(&self) -> String {
        "memory".into()
    }
    fn is_local(&self) -> bool {
        false
    }
    async fn create(&self, name: &str, bytes: Bytes) -> Result<Created> {
        if self.left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            return Err(Error::new(ErrorKind::Full, "no room for objects").hint("make room"));
        }
        self.inner.create(name, bytes).await
    }
    async fn replace(&self, name: &str, bytes: Bytes) -> Result<()> {
        self.inner.replace(name, bytes).await
    }
    async fn sync(&self) -> Result<()> {
        self.inner.sync().await
    }
    async fn read(&self, name: &str) -> Result<Bytes> {
        self.inner.read(name).await
    }
    async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Bytes> {
        self.inner.read_range(name, range).await
    }
    async fn stat(&self, name: &str) -> Result<Option<Entry>> {
        self.inner.stat(name).await
    }
    async fn list(&self, prefix: &str) -> Result<BoxStream<'static, Result<Entry>>> {
        self.inner.list(prefix).await
    }
    async fn delete(&self, name: &str) -> Result<()> {
        self.inner.delete(name).await
    }
    async fn free_space(&self) -> Result<Option<u64>> {
        self.inner.free_space().await
    }
}

/// A plain vault in memory that can create this many objects.
pub async fn vault_of(objects: i64) -> Vault {
    let seams = Seams::system();
    let inner = MemoryStorage::new(seams.clock.clone());
    let storage = Arc::new(Failing { inner, left: AtomicI64::new(objects) });
    Vault::init(storage, Protection::Plain, Access { identities: Vec::new(), config: None, seams }).await.unwrap()
}

/// A plain vault in memory.
pub async fn vault() -> Vault {
    vault_of(i64::MAX).await
}

/// Storage that can be away.
#[derive(Debug)]
pub struct Away {
    inner: Arc<dyn Storage>,
    away: std::sync::atomic::AtomicBool,
}

impl Away {
    pub fn new(inner: Arc<dyn Storage>) -> Away {
        Away { inner, away: false.into() }
    }

    pub fn set(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    fn check(&self) -> Result<()> {
        match self.away.load(Ordering::SeqCst) {
            true => Err(Error::new(ErrorKind::Retry, "the storage is away")),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl Storage for Away {
    fn location(&self) -> String {
        "away".into()
    }
    fn is_local(&self) -> bool {
        self.inner.is_local()
    }
    async fn create(&self, name: &str, bytes: Bytes) -> Result<Created> {
        self.check()?;
        self.inner.create(name, bytes).await
    }
    async fn replace(&self, name: &str, bytes: Bytes) -> Result<()> {
        self.check()?;
        self.inner.replace(name, bytes).await
    }
    async fn sync(&self) -> Result<()> {
        self.check()?;
        self.inner.sync().await
    }
    async fn read(&self, name: &str) -> Result<Bytes> {
        self.check()?;
        self.inner.read(name).await
    }
    async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Bytes> {
        self.check()?;
        self.inner.read_range(name, range).await
    }
    async fn stat(&self, name: &str) -> Result<Option<Entry>> {
        self.check()?;
        self.inner.stat(name).await
    }
    async fn list(&self, prefix: &str) -> Result<BoxStream<'static, Result<Entry>>> {
        self.check()?;
        self.inner.list(prefix).await
    }
    async fn delete(&self, name: &str) -> Result<()> {
        self.check()?;
        self.inner.delete(name).await
    }
    async fn free_space(&self) -> Result<Option<u64>> {
        self.inner.free_space().await
    }
}
