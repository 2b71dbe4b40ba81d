//! Networks that cut, hold up and garble, between here and a real server.
#![allow(clippy::unwrap_used)]

mod common;

use common::{leaf, server};
use couch::{CouchSink, CouchSource};
use model::{RestoreOptions, Selection};
use std::sync::Arc;
use std::time::Duration;
use testkit::pouchdb::CouchServer;
use testkit::proxy::Proxy;
use testkit::source::{Everything, MemoryAttachments, read_everything};

/// Documents in plain ASCII, attachments of any bytes.
fn fill(couch: &CouchServer) -> String {
    let db = couch.database();
    let mut all: Vec<_> =
        (0..40).map(|i| leaf(&format!("d{i}"), &["b", "a"], &format!(r#""i":{i},"t":"some text""#))).collect();
    for i in 0..4 {
        let data = "Zm9vYmFy".repeat(40 + i);
        all.push(leaf(
            &format!("file{i}"),
            &["a"],
            &format!(r#""_attachments":{{"x":{{"content_type":"a/b","data":"{data}"}}}}"#),
        ));
    }
    couch.put_all(&db, &all);
    db
}

/// The database behind the proxy.
fn url(couch: &CouchServer, proxy: &Proxy, db: &str) -> String {
    couch.url(db).replace(&couch.host, &proxy.host())
}

async fn read(url: &str) -> model::Result<Everything> {
    let source = CouchSource::new(server(url)).concurrency(1);
    let all = Selection::default();
    let reading = read_everything(&source, &all, Arc::new(MemoryAttachments::default()));
    // A length that is garbled is noticed when the server says nothing more for too long.
    let read = tokio::time::timeout(Duration::from_secs(200), reading).await.expect("it ends");
    read.map(Everything::sorted)
}

#[tokio::test]
async fn a_garbled_byte_is_noticed_wherever_it_is() {
    let couch = CouchServer::shared();
    let db = fill(&couch);
    let proxy = Proxy::start(&couch.host);
    let url = url(&couch, &proxy, &db);
    let before = proxy.answered();
    let plain = read(&url).await.unwrap();
    let all = proxy.answered() - before;
    let (mut passed, mut refused) = (0, 0);
    for step in 0..60 {
        proxy.garble_after(1 + all * step / 60);
        match read(&url).await {
            // Asked for again, or in a header that nobody needs.
            Ok(found) => {
                assert!(found == plain, "byte {} of {all}", all * step / 60);
                passed += 1;
            }
            Err(_) => refused += 1,
        }
        proxy.garble_after(u64::MAX);
    }
    // Which bytes are hit differs from run to run: most stand in bodies that are asked for again.
    assert!(passed > 10 && refused > 0, "{passed} passed, {refused} refused");
}

#[tokio::test]
async fn connections_that_are_cut_are_made_anew() {
    let couch = CouchServer::shared();
    let db = fill(&couch);
    let proxy = Proxy::start(&couch.host);
    let url = url(&couch, &proxy, &db);
    let before = proxy.answered();
    let plain = read(&url).await.unwrap();
    let all = proxy.answered() - before;
    for step in 0..12 {
        proxy.cut_after(1 + all * step / 12);
        assert!(read(&url).await.unwrap() == plain, "cut after {} of {all}", all * step / 12);
    }
}

#[tokio::test]
async fn what_is_held_up_goes_on() {
    let couch = CouchServer::shared();
    let db = fill(&couch);
    let proxy = Arc::new(Proxy::start(&couch.host));
    let url = url(&couch, &proxy, &db);
    let plain = read(&url).await.unwrap();
    let holding = proxy.clone();
    let held = std::thread::spawn(move || {
        for _ in 0..5 {
            holding.hold(true);
            std::thread::sleep(Duration::from_millis(150));
            holding.hold(false);
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    for _ in 0..3 {
        assert!(read(&url).await.unwrap() == plain);
    }
    held.join().unwrap();
}

#[tokio::test]
async fn writing_goes_on_after_cuts() {
    let couch = CouchServer::shared();
    let db = fill(&couch);
    let proxy = Proxy::start(&couch.host);
    let here = CouchSource::new(server(&couch.url(&db)));
    let plain = read(&couch.url(&db)).await.unwrap();
    for step in 0..10 {
        let to = couch.database_name();
        proxy.cut_after(200 + 300 * step);
        let sink = CouchSink::new(server(&url(&couch, &proxy, &to)));
        common::restore(&here, &sink, &RestoreOptions::default()).await.unwrap();
        assert_eq!(read(&couch.url(&to)).await.unwrap().of(&to), plain.of(&db), "step {step}");
    }
}
