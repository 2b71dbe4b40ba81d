//! Following databases on a real server.
#![allow(clippy::unwrap_used)]

mod common;

use common::{leaf, source};
use futures::StreamExt;
use model::{
    AttachmentRef, AttachmentStore, AttachmentStream, ChangeItem, CollectionId, CollectionInfo, EngineTime, Following,
    HashingStore, Kind, Plan, Position, Selection, Source, SourceState, Until,
};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use testkit::pouchdb::CouchServer;
use testkit::source::MemoryAttachments;

/// What changes come to: kind, key, body.
type Seen = Vec<(Kind, String, String)>;

struct Follow {
    source: couch::CouchSource,
    position: Position,
    time: EngineTime,
    collections: Vec<CollectionInfo>,
}

impl Follow {
    /// Begins where a scan would.
    async fn new(couch: &CouchServer, database: &str) -> Follow {
        let source = source(couch, database);
        let Plan::Scan { start: Some(position), parts, .. } = source.plan(&Selection::default(), None).await.unwrap()
        else {
            panic!("no scan")
        };
        let collections = parts.into_iter().map(|p| p.collection).collect();
        Follow { source, position, time: EngineTime::wall(1_000), collections }
    }

    fn last(&self) -> SourceState {
        SourceState { identity: String::new(), position: Some(self.position.clone()), time: self.time }
    }

    fn from(&self) -> Following {
        Following {
            position: self.position.clone(),
            time: self.time,
            collections: self.collections.clone(),
            selection: Selection::default(),
        }
    }

    /// All changes up to now; the gap if there is one; drops and makings.
    async fn next(&mut self) -> (Seen, Option<String>, Vec<bool>) {
        let mut stream = self.source.changes(&self.from(), Until::Now, Arc::new(HashingStore)).await.unwrap();
        let (mut seen, mut gap, mut catalog) = (Vec::new(), None, Vec::new());
        while let Some(item) = stream.next().await {
            match item.unwrap() {
                ChangeItem::Batch(change) => {
                    change.batch.check().unwrap();
                    for i in 0..change.batch.len() {
                        assert!(change.times[i] > self.time, "later than what is known");
                        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                        seen.push((
                            change.batch.kind.clone(),
                            text(change.batch.key_of(i)),
                            text(change.batch.body_of(i)),
                        ));
                    }
                }
                ChangeItem::Catalog { info, .. } => catalog.push(info.is_some()),
                ChangeItem::Commit { position, time } => {
                    assert!(time > self.time);
                    (self.position, self.time) = (position, time);
                }
                ChangeItem::Gap(lost) => gap = Some(lost.why),
            }
        }
        (seen, gap, catalog)
    }
}

fn documents(seen: &Seen) -> Vec<(&str, &str)> {
    let documents = seen.iter().filter(|(kind, ..)| *kind == Kind::Document);
    let mut all: Vec<_> = documents.map(|(_, key, body)| (&**key, &**body)).collect();
    // CouchDB's shards answer in any order.
    all.sort();
    all
}

#[tokio::test]
async fn what_has_changed_is_told_as_it_is_now() {
    let couch = CouchServer::shared();
    let db = couch.database();
    couch.put_all(&db, &[leaf("a", &["1"], r#""v":1"#), leaf("b", &["1"], r#""v":1"#)]);
    let mut follow = Follow::new(&couch, &db).await;
    follow.next().await;
    assert_eq!(follow.next().await, (vec![], None, vec![]), "nothing has changed");
    assert!(matches!(
        follow.source.plan(&Selection::default(), Some(&follow.last())).await.unwrap(),
        Plan::Changes { .. }
    ));

    couch.put_all(
        &db,
        &[
            leaf("a", &["2", "1"], r#""v":2"#),
            leaf("a", &["3", "1"], r#""v":3"#),
            leaf("b", &["2", "1"], r#""_deleted":true"#),
            leaf("c", &["1"], r#""_attachments":{"x":{"content_type":"t/t","data":"aGVsbG8="}}"#),
        ],
    );
    couch.done("PUT", &format!("/{db}/_security"), r#"{"x":true}"#);
    let (seen, gap, _) = follow.next().await;
    assert_eq!(gap, None);
    let both = format!("[{},{}]", leaf("a", &["3", "1"], r#""v":3"#), leaf("a", &["2", "1"], r#""v":2"#));
    let all = documents(&seen);
    assert_eq!(all[0], ("a", &*both));
    assert_eq!(all[1], ("b", &*leaf("b", &["2", "1"], r#""_deleted":true"#)));
    assert_eq!((all[2].0, all.len()), ("c", 3));
    let inline = seen.iter().find(|(kind, key, _)| *kind == Kind::Meta("attached".into()) && key == "c").unwrap();
    assert!(inline.2.ends_with(r#""data":"aGVsbG8="}"#), "{}", inline.2);
    assert!(seen.iter().any(|(_, key, body)| key == "_security" && body == r#"{"x":true}"#));
    assert_eq!(follow.next().await.0, vec![]);
}

#[tokio::test]
async fn a_database_made_anew_is_a_gap() {
    let couch = CouchServer::shared();
    let db = couch.database();
    let fill = |from: usize, to: usize| {
        let all: Vec<_> = (from..to).map(|i| leaf(&format!("d{i}"), &["1"], r#""v":1"#)).collect();
        couch.put_all(&db, &all);
    };
    fill(0, 20);
    let mut follow = Follow::new(&couch, &db).await;
    for more in [5, 50] {
        follow.next().await;
        couch.done("DELETE", &format!("/{db}"), "");
        couch.done("PUT", &format!("/{db}"), "");
        fill(1000 * more, 1000 * more + more);
        let plan = follow.source.plan(&Selection::default(), Some(&follow.last())).await.unwrap();
        let Plan::Gap { gap, then } = plan else { panic!("{more}: {plan:?}") };
        assert!(gap.why.contains(&db) && gap.from == follow.time && matches!(*then, Plan::Scan { .. }), "{gap:?}");
        let (seen, gap, _) = follow.next().await;
        assert!(gap.is_some() && seen.is_empty());
        follow = Follow::new(&couch, &db).await;
    }
}

#[tokio::test]
async fn databases_come_and_go() {
    let couch = CouchServer::start();
    couch.done("PUT", "/one", "");
    couch.done("PUT", "/two", "");
    let mut follow = Follow::new(&couch, "").await;
    follow.next().await;
    couch.done("DELETE", "/one", "");
    couch.done("PUT", "/three", "");
    couch.put_all("three", &[leaf("a", &["1"], "")]);
    let (seen, gap, catalog) = follow.next().await;
    assert_eq!((gap, catalog), (None, vec![false, true]));
    assert_eq!(documents(&seen), [("a", &*leaf("a", &["1"], ""))]);
    assert_eq!(follow.next().await, (vec![], None, vec![]));
}

#[tokio::test]
async fn attachments_are_in_one_place() {
    let couch = CouchServer::shared();
    let db = couch.database();
    let mut follow = Follow::new(&couch, &db).await;
    let put = |revisions: &[&str], bytes: usize| {
        let data = "QUFB".repeat(bytes / 3 + 10);
        let attached = format!(r#""_attachments":{{"x":{{"content_type":"t/t","data":"{data}"}}}}"#);
        couch.put_all(&db, &[leaf("big", revisions, &attached)]);
    };
    let (inline, stored) = (Kind::Meta("attached".into()), Kind::Attachment);
    let place = |mut seen: Seen| -> Vec<Kind> {
        seen.retain(|(_, key, _)| key == "big");
        seen.into_iter().map(|(kind, ..)| kind).collect()
    };
    put(&["1"], 3);
    let (seen, gap, _) = follow.next().await;
    assert_eq!((place(seen), gap), (vec![Kind::Document, inline.clone(), Kind::tombstone_of(stored.space())], None));
    for (revisions, bytes) in [(&["2", "1"][..], 128 << 10), (&["3", "2", "1"], 9 << 20)] {
        put(revisions, bytes);
        let (seen, gap, _) = follow.next().await;
        let expected = vec![Kind::Document, Kind::tombstone_of(inline.space()), stored.clone()];
        assert_eq!((place(seen), gap), (expected, None));
    }
}

/// Knows what it was told before, and counts what it is given.
#[derive(Default)]
struct Remembering {
    kept: MemoryAttachments,
    names: Mutex<HashMap<(Vec<u8>, String), AttachmentRef>>,
    fetched: AtomicUsize,
}

#[async_trait::async_trait]
impl AttachmentStore for Remembering {
    async fn put(&self, content: AttachmentStream) -> model::Result<AttachmentRef> {
        self.fetched.fetch_add(1, Ordering::SeqCst);
        self.kept.put(content).await
    }

    async fn known(&self, _: &CollectionId, key: &[u8], name: &str) -> model::Result<Option<AttachmentRef>> {
        Ok(self.names.lock().unwrap().get(&(key.to_vec(), name.to_owned())).cloned())
    }

    async fn open(&self, reference: &AttachmentRef) -> model::Result<AttachmentStream> {
        self.kept.open(reference).await
    }
}

#[tokio::test]
async fn attachments_that_are_as_they_were_are_not_fetched_again() {
    let couch = CouchServer::shared();
    let db = couch.database();
    let mut follow = Follow::new(&couch, &db).await;
    let store = Arc::new(Remembering::default());
    let (large, other, small) = ("QUFB".repeat(300_000), "QUJD".repeat(60_000), "QUFB");
    let data = |data: &str| format!(r#"{{"content_type":"t/t","data":"{data}"}}"#);
    // What is put, which stubs stay, and how many contents are new to whoever reads.
    let steps = [
        (format!(r#"{{"l":{},"s":{}}}"#, data(&large), data(small)), vec![], 2),
        ("{}".to_owned(), vec!["l", "s"], 0),
        (format!(r#"{{"o":{}}}"#, data(&other)), vec!["l"], 1),
        (format!(r#"{{"l":{}}}"#, data(&other)), vec!["o"], 0),
        (format!(r#"{{"o":{}}}"#, data(&other)), vec![], 1),
    ];
    let mut contents = Vec::new();
    let mut document = serde_json::json!({});
    for (i, (attached, stubs, new)) in steps.into_iter().enumerate() {
        let mut attached: serde_json::Value = serde_json::from_str(&attached).unwrap();
        stubs.iter().for_each(|stub| attached[*stub] = document["_attachments"][*stub].clone());
        document["_attachments"] = attached;
        document["v"] = i.into();
        couch.done("PUT", &format!("/{db}/d"), &document.to_string());
        document = couch.done("GET", &format!("/{db}/d"), "");
        let before = store.fetched.load(Ordering::SeqCst);
        let mut stream = follow.source.changes(&follow.from(), Until::Now, store.clone()).await.unwrap();
        while let Some(item) = stream.next().await {
            match item.unwrap() {
                ChangeItem::Batch(change) => {
                    for (n, reference) in change.batch.attachments.iter().enumerate() {
                        contents.push(store.kept.content(reference).len());
                        for piece in reference.pieces().unwrap().unwrap() {
                            let key = (change.batch.key_of(n).to_vec(), piece.name);
                            store.names.lock().unwrap().insert(key, piece.content);
                        }
                    }
                }
                ChangeItem::Commit { position, time } => (follow.position, follow.time) = (position, time),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(store.fetched.load(Ordering::SeqCst) - before, new, "{i}");
    }
    // At last, what it had comes once more, with a new revision.
    assert_eq!(contents, [900_003, 900_003, 900_000 + 180_000, 180_000, 180_000]);
}

#[tokio::test]
async fn whoever_reads_holds_little_between_two_commits() {
    let couch = CouchServer::shared();
    let db = couch.database();
    let follow = Follow::new(&couch, &db).await;
    let text = format!(r#""text":"{}""#, "abcd".repeat(40 << 10));
    let ids: Vec<String> = (0..96).map(|i| format!("d{i:02}")).collect();
    couch.put_all(&db, &ids.iter().map(|id| leaf(id, &["1"], &text)).collect::<Vec<_>>());
    let mut stream = follow.source.changes(&follow.from(), Until::Now, Arc::new(HashingStore)).await.unwrap();
    let (mut told, mut held) = (Vec::new(), vec![0]);
    while let Some(item) = stream.next().await {
        match item.unwrap() {
            ChangeItem::Batch(change) => {
                *held.last_mut().unwrap() += change.batch.body.len();
                if change.batch.kind != Kind::Document {
                    continue;
                }
                let keys = (0..change.batch.len()).map(|i| change.batch.key_of(i).to_vec());
                told.extend(keys.map(|key| String::from_utf8(key).unwrap()));
            }
            ChangeItem::Commit { .. } => held.push(0),
            other => panic!("{other:?}"),
        }
    }
    told.sort();
    assert_eq!(told, ids);
    assert!(held.iter().all(|bytes| *bytes < 7 << 20) && held.len() > 3, "{held:?}");
}

#[tokio::test]
async fn it_is_followed_for_ever() {
    let couch = CouchServer::shared();
    let db = couch.database();
    let follow = Follow::new(&couch, &db).await;
    let mut stream = follow.source.changes(&follow.from(), Until::Stopped, Arc::new(HashingStore)).await.unwrap();
    let mut seen = Vec::new();
    let mut commits = 0;
    let watching = async {
        while let Some(item) = stream.next().await {
            match item.unwrap() {
                ChangeItem::Batch(change) if change.batch.kind == Kind::Document => {
                    seen.extend((0..change.batch.len()).map(|i| change.batch.key_of(i).to_vec()));
                }
                ChangeItem::Commit { .. } => {
                    commits += 1;
                    couch.put_all(&db, &[leaf(&format!("d{commits}"), &["1"], "")]);
                }
                _ => {}
            }
            if seen.len() == 3 {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), watching).await.unwrap();
    assert_eq!(seen, [b"d1", b"d2", b"d3"]);
}
