#![allow(clippy::unwrap_used, missing_docs)]
mod common;
use bson::{RawDocumentBuf, doc};
use common::Place;
use model::*;
use mongo::MongoSink;
use std::sync::Arc;
use std::time::Instant;
use testkit::source::MemoryAttachments;

fn cpu() -> f64 {
    let s = std::fs::read_to_string("/proc/self/stat").unwrap();
    let f: Vec<&str> = s.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (f[11].parse::<f64>().unwrap() + f[12].parse::<f64>().unwrap()) / 100.0
}

#[tokio::test(flavor = "multi_thread")]
async fn speed() {
    let to = Place::new().await;
    let docs: Vec<Vec<u8>> = (0..200_000).map(|i| doc! { "_id": bson::oid::ObjectId::new(), "i": i, "z": 0.0, "name": format!("n{i}"), "s": "x".repeat(300 + i as usize % 1000), "tags": ["a", "b"], "sub": {"a": 1, "b": "x"} }.to_vec().unwrap()).collect();
    let id = CollectionId::new("x");
    let batches: Vec<Batch> = docs.chunks(400).map(|c| { let mut b = BatchBuilder::new(id.clone(), Kind::Document, Encoding::Bson); c.iter().for_each(|d| b.push(b"", d)); b.take() }).collect();
    let bytes: u64 = batches.iter().map(|b| b.raw_bytes()).sum();
    for round in 0..2 {
        for c in [1usize, 2, 4, 8] {
            let what = Description { engine: Engine::new("mongodb"), identity: "x".into(), name: "x".into(), version: "1".into(), feed: FeedKind::LatestState, losses: vec![],
                collections: vec![CollectionInfo { id: id.clone(), name: "x.c".into(), options: serde_json::json!({"type":"collection","options":{},"indexes":[]}), ordered: false }] };
            let sink = MongoSink::new(to.server()).concurrency(c);
            let options = RestoreOptions { if_exists: IfExists::Replace, ..Default::default() };
            let (t, u) = (Instant::now(), cpu());
            let plan = sink.prepare(&what, &options).await.unwrap();
            let s = sink.begin(plan, Arc::new(MemoryAttachments::default())).await.unwrap();
            for b in &batches { s.write(b.clone()).await.unwrap(); }
            s.finish().await.unwrap();
            println!("{round} sink c={c} {:.0} MB {:.2} s, {:.2} cpu", bytes as f64 / 1e6, t.elapsed().as_secs_f64(), cpu() - u);
        }
        let (t, u) = (Instant::now(), cpu());
        to.database.collection::<RawDocumentBuf>("bare").drop().await.unwrap();
        let mut tasks = vec![];
        let all: Arc<Vec<Vec<u8>>> = Arc::new(docs.clone());
        let n = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        for _ in 0..4 {
            let (all, n, c) = (all.clone(), n.clone(), to.database.collection::<RawDocumentBuf>("bare"));
            tasks.push(tokio::spawn(async move {
                loop {
                    let k = n.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(chunk) = all.chunks(400).nth(k) else { break };
                    let d: Vec<_> = chunk.iter().map(|d| RawDocumentBuf::from_bytes(d.clone()).unwrap()).collect();
                    c.insert_many(d).ordered(false).await.unwrap();
                }
            }));
        }
        for t in tasks { t.await.unwrap(); }
        println!("{round} bare {:.2} s, {:.2} cpu", t.elapsed().as_secs_f64(), cpu() - u);
    }
    // many collections
    let collections: Vec<_> = (0..2000).map(|i| CollectionInfo { id: CollectionId::new(format!("{i}")), name: format!("x.c{i}"), options: serde_json::json!({"type":"collection","options":{},"indexes":[{"v":2,"key":{"a":1},"name":"a"}]}), ordered: false }).collect();
    let what = Description { engine: Engine::new("mongodb"), identity: "x".into(), name: "x".into(), version: "1".into(), feed: FeedKind::LatestState, losses: vec![], collections };
    let to = Place::new().await;
    for if_exists in [IfExists::Fail, IfExists::Replace] {
        let sink = MongoSink::new(to.server());
        let t = Instant::now();
        let plan = sink.prepare(&what, &RestoreOptions { if_exists, ..Default::default() }).await.unwrap();
        let s = sink.begin(plan, Arc::new(MemoryAttachments::default())).await.unwrap();
        println!("2000 collections begun {:.2} s", t.elapsed().as_secs_f64());
        s.finish().await.unwrap();
        println!("2000 collections {:.2} s", t.elapsed().as_secs_f64());
    }
}
