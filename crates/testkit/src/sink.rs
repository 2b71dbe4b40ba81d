//! The conformance suite for sinks.

use crate::documents::{generate, hard_documents, hard_keys};
use crate::source::{Entry, MemoryAttachments, entries_of, read_everything};
use model::{
    Batch, BatchBuilder, CollectionId, CollectionInfo, Description, Encoding, Engine, FeedKind, IfExists, Kind,
    RestoreOptions, RestoreReport, Result, Selection, Sink, Source,
};
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A new, empty place to write to, and the source that reads what was written there.
pub struct Target {
    /// Writes to the place.
    pub sink: Arc<dyn Sink>,
    /// Reads from it.
    pub source: Arc<dyn Source>,
    /// Whatever must live as long as the place.
    pub keep: Box<dyn Any + Send>,
}

/// A made-up database: collections with their batches.
pub struct Sample {
    /// What it is.
    pub description: Description,
    /// Batches of its collections, in order.
    pub batches: Vec<Batch>,
    /// Where the content of its attachments is.
    pub attachments: Arc<MemoryAttachments>,
}

impl Sample {
    /// A database of an engine that does not exist, with hard names, keys and documents.
    pub async fn hard() -> Sample {
        let attachments = Arc::new(MemoryAttachments::default());
        let mut collections = Vec::new();
        let mut batches = Vec::new();
        let names =
            ["books", "Books", "empty", "a/b", "../up", "con", "ünïcode", "x.attachments", "rewound.json", "long"];
        for (i, name) in names.iter().enumerate() {
            let id = CollectionId::new(format!("id-{i}"));
            let name = if *name == "long" { "l".repeat(300) } else { name.to_string() };
            let options = serde_json::json!({"number": i, "indexes": [{"key": {"a": 1}}]});
            collections.push(CollectionInfo { id: id.clone(), name: name.clone(), options, ordered: false });
            let mut batch = BatchBuilder::new(id.clone(), Kind::Document, Encoding::Json);
            match i {
                0 => generate(1, 500).iter().for_each(|(key, text)| batch.push(key, text)),
                1 => {
                    let documents = hard_documents();
                    hard_keys().iter().zip(documents.iter().cycle()).for_each(|(key, text)| batch.push(key, text));
                }
                2 => continue,
                _ => batch.push(b"one", br#"{"one":1}"#),
            }
            batches.push(batch.take());
            if i > 1 {
                continue;
            }
            let mut batch = BatchBuilder::new(id, Kind::Attachment, Encoding::Json);
            for (n, key) in hard_keys().into_iter().enumerate() {
                let content = attachments.put_bytes(&vec![n as u8; n * n * 700]).await;
                let body = format!(r#"{{"type":"image/png","revpos":{n}, "big":12345678901234567890}}"#);
                batch.push_attachment(&[&key[..], b"/a.png"].concat(), body.as_bytes(), content);
            }
            let big = attachments.put_bytes(&vec![7; 3 << 20]).await;
            batch.push_attachment(b"no slash", b"{}", big);
            batches.push(batch.take());
        }
        let description = Description {
            engine: Engine::new("imaginary"),
            identity: "imaginary:1".into(),
            name: "sample".into(),
            version: "1".into(),
            feed: FeedKind::LatestState,
            collections,
            losses: Vec::new(),
        };
        Sample { description, batches, attachments }
    }

    /// The entries of each collection, by name, sorted.
    pub fn entries(&self) -> BTreeMap<String, Vec<Entry>> {
        let mut all = BTreeMap::new();
        for info in &self.description.collections {
            let mine = self.batches.iter().filter(|batch| batch.collection == info.id);
            let mut entries: Vec<_> = mine.flat_map(entries_of).collect();
            entries.sort();
            all.insert(info.name.clone(), entries);
        }
        all
    }
}

/// Writes a sample from the first batch to the last.
pub async fn restore(sink: &dyn Sink, sample: &Sample, options: &RestoreOptions) -> Result<RestoreReport> {
    let plan = sink.prepare(&sample.description, options).await?;
    assert!(!plan.phases.is_empty(), "a plan tells its phases");
    let collections: Vec<_> = plan.collections.iter().map(|planned| planned.info.clone()).collect();
    let session = sink.begin(plan, sample.attachments.clone()).await?;
    for info in &collections {
        session.catalog(info).await?;
    }
    for batch in sample.batches.iter().filter(|batch| collections.iter().any(|info| info.id == batch.collection)) {
        session.write(batch.clone()).await?;
    }
    let last_step = session.last_step();
    let report = session.finish().await?;
    if let Some(step) = last_step {
        step.await?;
    }
    Ok(report)
}

async fn read_back(source: &dyn Source) -> BTreeMap<String, Vec<Entry>> {
    let all = read_everything(source, &Selection::default(), Arc::default()).await.unwrap();
    let sorted = |mut entries: Vec<Entry>| {
        entries.sort();
        entries
    };
    all.collections.into_iter().map(|(name, (_, entries))| (name, sorted(entries))).collect()
}

fn assert_same(found: &BTreeMap<String, Vec<Entry>>, expected: &BTreeMap<String, Vec<Entry>>) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, entries) in expected {
        let show = |e: &Entry| format!("{:?} {}", e.kind, String::from_utf8_lossy(&e.key));
        for (a, b) in found[name].iter().zip(entries) {
            assert_eq!(a, b, "{name}: {} and {}", show(a), show(b));
        }
        assert_eq!(found[name].len(), entries.len(), "{name}");
    }
}

/// Checks what every sink for JSON documents promises. `fresh` makes a new, empty target.
pub async fn conformance(fresh: impl Fn() -> Target) {
    let sample = Sample::hard().await;
    let all = sample.entries();
    let options = RestoreOptions::default();
    let with = |if_exists| RestoreOptions { if_exists, ..RestoreOptions::default() };

    // Everything comes back, and is counted.
    let target = fresh();
    let report = restore(&*target.sink, &sample, &options).await.unwrap();
    assert_same(&read_back(&*target.source).await, &all);
    let count = |kind: Kind| sample.batches.iter().filter(|b| b.kind == kind).map(Batch::len).sum::<usize>() as u64;
    assert_eq!((report.documents, report.attachments), (count(Kind::Document), count(Kind::Attachment)));

    // A target with data is refused, unless told otherwise.
    let error = target.sink.prepare(&sample.description, &options).await.unwrap_err();
    assert!(error.hint_text().is_some(), "{error}");
    assert_same(&read_back(&*target.source).await, &all);
    for if_exists in [IfExists::Merge, IfExists::Replace] {
        restore(&*target.sink, &sample, &with(if_exists)).await.unwrap();
        assert_same(&read_back(&*target.source).await, &all);
    }
    one_collection(&sample, &target).await;

    // Batches may come twice, and side by side.
    let target = fresh();
    let plan = target.sink.prepare(&sample.description, &options).await.unwrap();
    let session = target.sink.begin(plan, sample.attachments.clone()).await.unwrap();
    for info in &sample.description.collections {
        session.catalog(info).await.unwrap();
    }
    for _ in 0..2 {
        let writes = sample.batches.iter().map(|batch| session.write(batch.clone()));
        for done in futures::future::join_all(writes).await {
            done.unwrap();
        }
    }
    let again = session.finish().await.unwrap();
    assert_eq!(again, report, "what comes twice counts once");
    assert_same(&read_back(&*target.source).await, &all);

    // Giving up leaves nothing, so that the target is as good as new.
    let target = fresh();
    let plan = target.sink.prepare(&sample.description, &options).await.unwrap();
    let session = target.sink.begin(plan, sample.attachments.clone()).await.unwrap();
    session.catalog(&sample.description.collections[0]).await.unwrap();
    session.write(sample.batches[0].clone()).await.unwrap();
    assert_eq!(session.abort().await.what, Vec::<String>::new());
    restore(&*target.sink, &sample, &options).await.unwrap();
    assert_same(&read_back(&*target.source).await, &all);

    kinds_that_may_be_refused(&sample, &fresh()).await;
}

/// Selection, renaming, and replacing one collection while the others stay.
async fn one_collection(sample: &Sample, target: &Target) {
    let before = read_back(&*target.source).await;
    let mut options = RestoreOptions { if_exists: IfExists::Replace, ..RestoreOptions::default() };
    options.selection.only = vec!["books".into()];
    options.add_rename("books=empty").unwrap();
    restore(&*target.sink, sample, &options).await.unwrap();
    let mut expected = before.clone();
    expected.insert("empty".into(), before["books"].clone());
    assert_same(&read_back(&*target.source).await, &expected);
}

/// A sink takes BSON and unknown kinds, or says that it does not; it never takes and loses them.
async fn kinds_that_may_be_refused(sample: &Sample, target: &Target) {
    let plan = target.sink.prepare(&sample.description, &RestoreOptions::default()).await.unwrap();
    let session = target.sink.begin(plan, sample.attachments.clone()).await.unwrap();
    let info = &sample.description.collections[0];
    session.catalog(info).await.unwrap();
    for (kind, encoding) in
        [(Kind::Document, Encoding::Bson), (Kind::Meta("odd".into()), Encoding::Json), (Kind::Counter, Encoding::Json)]
    {
        let mut batch = BatchBuilder::new(info.id.clone(), kind, encoding);
        batch.push(b"k", b"\x05\0\0\0\0");
        if let Err(e) = session.write(batch.take()).await {
            assert_eq!(e.kind(), model::ErrorKind::Unsupported, "{e}");
        }
    }
    session.abort().await;
}
