//! What the tests against real servers share.
#![allow(dead_code, clippy::unwrap_used)]

use couch::{CouchSink, CouchSource, Place, Server};
use futures::StreamExt;
use model::{
    AttachmentRef, AttachmentStore, AttachmentStream, ContentDigest, Description, Kind, Plan, RestoreOptions,
    RestoreReport, Result, ScanItem, Selection, Sink, SinkSession, Source,
};
use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use testkit::pouchdb::CouchServer;
use testkit::source::{Entry, Everything, MemoryAttachments, read_everything};

pub fn server(url: &str) -> Arc<Server> {
    Arc::new(Server::new(Place::parse(url, None).unwrap()).unwrap())
}

pub fn source(couch: &CouchServer, database: &str) -> CouchSource {
    CouchSource::new(server(&couch.url(database)))
}

pub fn sink(couch: &CouchServer, database: &str) -> CouchSink {
    CouchSink::new(server(&couch.url(database)))
}

/// A leaf revision with a history of its own.
pub fn leaf(id: &str, history: &[&str], members: &str) -> String {
    let (id, ids) = (serde_json::to_string(id).unwrap(), serde_json::to_string(history).unwrap());
    let (start, first) = (history.len(), history[0]);
    let comma = if members.is_empty() { "" } else { "," };
    format!(r#"{{"_id":{id},"_rev":"{start}-{first}"{comma}{members},"_revisions":{{"start":{start},"ids":{ids}}}}}"#)
}

/// A database with an example of most things.
pub fn fill(couch: &CouchServer, database: &str) {
    let mut all = vec![
        leaf("plain", &["a1"], r#""v":1,"text":"é \" \\ \u2028","deep":[[[{"":null}]]]"#),
        leaf("conflict", &["a2", "a1"], r#""v":"a""#),
        leaf("conflict", &["b2", "b1"], r#""v":"b""#),
        leaf("conflict", &["d3", "d2", "d1"], r#""_deleted":true,"why":"no""#),
        leaf("gone", &["c2", "c1"], r#""_deleted":true,"why":"kept""#),
        leaf(
            "_design/refuses",
            &["e1"],
            r#""validate_doc_update":"function(){throw({forbidden:'no'})}","language":"javascript""#,
        ),
        leaf("_design/odd name+ü", &["f1"], r#""views":{"a":{"map":"function(doc){emit(1)}"}}"#),
        leaf(
            "files",
            &["g3", "g2", "g1"],
            r#""n":1,"_attachments":{"b.txt":{"content_type":"text/plain","data":"aGVsbG8gaGVsbG8="},"a/ü +.bin":{"content_type":"x/y","data":"AAEC/w=="}}"#,
        ),
    ];
    let ids = [
        " lead",
        "%25",
        "+",
        "a+b",
        "/",
        "//",
        "a/b/c",
        "a:b",
        "-",
        "emoji😀",
        "null",
        "quote\"x",
        "nl\nid",
        "back\\slash",
        ".",
        "..",
    ];
    for id in ids {
        all.push(leaf(id, &["o1"], r#""odd":true"#));
    }
    for i in 0..300 {
        all.push(leaf(&format!("doc{i:04}"), &["x1"], &format!(r#""i":{i},"fill":"{}""#, "y".repeat(i % 50))));
    }
    let history: Vec<String> = (0..1000).map(|i| format!("h{i}")).collect();
    all.push(leaf("old", &history.iter().map(|h| &**h).collect::<Vec<_>>(), r#""old":true"#));
    // The one that refuses others comes last.
    let refuses = all.remove(5);
    couch.put_all(database, &all);
    couch.put_all(database, &[refuses]);
    couch.done(
        "PUT",
        &format!("/{database}/_security"),
        r#"{"admins":{"names":["bob"],"roles":["ops"]},"members":{"names":[],"roles":[]},"extra":{"keep":true}}"#,
    );
    couch.done("PUT", &format!("/{database}/_local/mine"), r#"{"cp":1,"s":"é"}"#);
    couch.done(
        "PUT",
        &format!("/{database}/_local/checkpoint"),
        r#"{"session_id":"x","history":[],"source_last_seq":7}"#,
    );
}

pub async fn everything(source: &CouchSource) -> Everything {
    read_everything(source, &Selection::default(), Arc::default()).await.unwrap().sorted()
}

/// The entries of a database that a restore brings back.
pub async fn entries(source: &CouchSource, database: &str) -> Vec<Entry> {
    let all = everything(source).await;
    all.of(database).iter().filter(|e| e.kind != Kind::Meta("checkpoints".into())).cloned().collect()
}

/// Restores all that a source has into a sink, as the library does.
pub async fn restore(from: &CouchSource, into: &dyn Sink, options: &RestoreOptions) -> Result<RestoreReport> {
    restore_from(from, into, options).await
}

/// The same from any source.
pub async fn restore_from(from: &dyn Source, into: &dyn Sink, options: &RestoreOptions) -> Result<RestoreReport> {
    let description: Description = from.describe().await?;
    let Plan::Scan { parts, .. } = from.plan(&options.selection, None).await? else { panic!("no scan") };
    let store = Arc::new(Forgetful::default());
    let description = Description { collections: parts.iter().map(|p| p.collection.clone()).collect(), ..description };
    let plan = into.prepare(&description, options).await?;
    let session = into.begin(plan, store.clone()).await?;
    match send(from, into, &*session, &parts, store).await {
        Ok(()) => session.finish().await,
        Err(e) => {
            assert_eq!(session.abort().await.what, Vec::<String>::new());
            Err(e)
        }
    }
}

/// Content until it is no longer needed, as a copy without a vault has it.
#[derive(Default)]
struct Forgetful {
    kept: MemoryAttachments,
    forgotten: Mutex<HashSet<ContentDigest>>,
}

#[async_trait::async_trait]
impl AttachmentStore for Forgetful {
    async fn put(&self, content: AttachmentStream) -> Result<AttachmentRef> {
        self.kept.put(content).await
    }

    async fn open(&self, reference: &AttachmentRef) -> Result<AttachmentStream> {
        assert!(!self.forgotten.lock().unwrap().contains(&reference.digest), "asked for after its time");
        self.kept.open(reference).await
    }
}

async fn send(
    from: &dyn Source,
    into: &dyn Sink,
    session: &dyn SinkSession,
    parts: &[model::Part],
    store: Arc<Forgetful>,
) -> Result<()> {
    for part in parts {
        session.catalog(&part.collection).await?;
        let mut items = from.read(part, store.clone()).await?;
        while let Some(item) = items.next().await {
            match item? {
                ScanItem::Batch(batch) if !into.leaves_out(&batch) => {
                    let done = !into.asks_again(&batch);
                    let content = batch.attachments.clone();
                    session.write(batch).await?;
                    if done {
                        store.forgotten.lock().unwrap().extend(content.iter().map(|c| c.digest));
                    }
                }
                _ => {}
            }
        }
    }
    Ok(())
}
