//! What a real CouchDB 3.5 was seen to answer, and trouble on the way.
#![allow(clippy::unwrap_used)]

mod common;

use common::{everything, server};
use couch::{CouchSink, CouchSource};
use model::{ErrorKind, Kind, Plan, Position, RestoreOptions, ScanItem, Selection, Sink, Source, SourceState};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use testkit::captured::Captured;
use testkit::source::MemoryAttachments;
use testkit::web::{Answer, Asked, Web};

fn unpack(bytes: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    flate2::read::GzDecoder::new(bytes).read_to_end(&mut all).unwrap();
    all
}

fn captured() -> Captured {
    let mut captured = Captured {
        changes: include_bytes!("captures/changes_all_docs.json").to_vec(),
        local: include_bytes!("captures/local_docs.json").to_vec(),
        security: include_bytes!("captures/security.json").to_vec(),
        info: include_bytes!("captures/db_info.json").to_vec(),
        ..Captured::default()
    };
    captured.learn(&unpack(include_bytes!("captures/bulk_get_multipart.bin.gz")));
    captured
}

fn source(web: &Web) -> CouchSource {
    CouchSource::new(server(&format!("couchdb+http://{}/edge", web.host)))
}

#[tokio::test]
async fn all_that_couchdb_gives_is_read_verbatim() {
    let captured = captured();
    // All leaves of all documents, as the JSON answer has them.
    #[derive(serde::Deserialize)]
    struct All<'a> {
        #[serde(borrow)]
        results: Vec<One<'a>>,
    }
    #[derive(serde::Deserialize)]
    struct One<'a> {
        id: String,
        #[serde(borrow)]
        docs: Vec<BTreeMap<String, &'a serde_json::value::RawValue>>,
    }
    let answer = unpack(include_bytes!("captures/bulk_get.json.gz"));
    let all: All<'_> = serde_json::from_slice(&answer).unwrap();
    let web = Web::start(move |asked| captured.answer(asked));
    let read = everything(&source(&web)).await;
    let entries: HashMap<_, _> = read.of("edge").iter().map(|e| ((e.kind.clone(), e.key.clone()), e)).collect();
    let (mut leaves, mut with_attachments) = (0, 0);
    for one in &all.results {
        let body = &entries[&(Kind::Document, one.id.clone().into_bytes())].body;
        let body = std::str::from_utf8(body).unwrap();
        for leaf in one.docs.iter().map(|d| d["ok"].get()) {
            leaves += 1;
            let before = leaf.split("\"_attachments\"").next().unwrap();
            assert!(body.contains(before), "{}", &before[..before.len().min(300)]);
            with_attachments += usize::from(before.len() < leaf.len());
        }
    }
    assert_eq!((all.results.len(), leaves, with_attachments), (158, 292, 6));
    let documents = read.of("edge").iter().filter(|e| e.kind == Kind::Document).count();
    assert_eq!(documents, 158);
    // The one with several leaves lists them, the winner first.
    assert_eq!(
        entries[&(Kind::Meta("settings".into()), b"_security".to_vec())].body,
        include_bytes!("captures/security.json").trim_ascii()
    );
    let local: Vec<Value> = serde_json::from_slice(&entries[&(Kind::Local, b"_local".to_vec())].body).unwrap();
    assert_eq!((local.len(), &local[0]["s"]), (5, &"é".into()));

    // Attachments as they are stored.
    let about: Value =
        serde_json::from_slice(&entries[&(Kind::Meta("attached".into()), b"att/slash+id".to_vec())].body).unwrap();
    assert_eq!(
        about["contents"][0],
        serde_json::json!({"digest": "md5-MyWy3nseSuM/cBHOQ46DVQ==", "bytes": 23, "encoding": "gzip"})
    );
    use base64::Engine;
    let data = base64::engine::general_purpose::STANDARD.decode(about["data"].as_str().unwrap()).unwrap();
    assert_eq!(unpack(&data).len(), 3);
}

#[tokio::test]
async fn busy_servers_are_waited_for_and_broken_answers_asked_for_again() {
    let captured = captured();
    let plain = {
        let captured = self::captured();
        let web = Web::start(move |asked| captured.answer(asked));
        everything(&source(&web)).await
    };
    let count = AtomicUsize::new(0);
    let web = Web::start(move |asked| {
        let answer = captured.answer(asked);
        let number = count.fetch_add(1, Ordering::Relaxed);
        match number / 3 % 4 {
            _ if number % 3 != 1 => answer,
            0 => Answer::status(429, "too_many_requests").header("Retry-After", "0"),
            1 => Answer::status(503, "busy"),
            2 => Answer { cut: Some(answer.body.len() / 2), ..answer },
            // Cut off with a length that fits: only the JSON tells.
            3 if answer.headers.iter().any(|(_, v)| v == "application/json") => {
                let half = answer.body.len() / 2;
                Answer { body: answer.body[..half].to_vec(), ..answer }
            }
            _ => answer,
        }
    });
    assert_eq!(everything(&source(&web)).await, plain);
}

#[tokio::test]
async fn a_document_by_itself_that_is_cut_off_is_asked_for_again() {
    let plain = {
        let captured = captured();
        let web = Web::start(move |asked| captured.answer(asked));
        everything(&source(&web)).await
    };
    let (captured, cut) = (captured(), Arc::new(Mutex::new(HashSet::new())));
    let seen = cut.clone();
    let web = Web::start(move |asked| {
        let answer = captured.answer(asked);
        match asked.query.contains("open_revs=all") && seen.lock().unwrap().insert(asked.path.clone()) {
            true => Answer { body: answer.body[..answer.body.len() / 2].to_vec(), ..answer },
            false => answer,
        }
    });
    assert_eq!(everything(&source(&web)).await, plain);
    assert!(!cut.lock().unwrap().is_empty());
}

/// What says that something is missing may be cut off, too.
#[tokio::test]
async fn refusals_that_are_cut_off_are_asked_for_again() {
    let (captured, count) = (captured(), AtomicUsize::new(0));
    let web = Web::start(move |asked| match &*asked.path {
        "/none" if count.fetch_add(1, Ordering::Relaxed) == 0 => {
            Answer { cut: Some(3), ..Answer::status(404, "not_found") }
        }
        "/none" => Answer::status(404, "not_found"),
        _ => captured.answer(asked),
    });
    let sink = CouchSink::new(server(&format!("couchdb+http://{}/none", web.host)));
    let what = source(&web).describe().await.unwrap();
    let plan = sink.prepare(&what, &RestoreOptions::default()).await.unwrap();
    assert_eq!(plan.collections[0].target, "none", "it is not there, and may be made");
}

#[tokio::test]
async fn attachments_are_asked_for_where_many_answers_do_not_tell() {
    let (captured, plain) = (captured(), captured());
    let web = Web::start(move |asked| plain.answer(asked));
    let plain = everything(&source(&web)).await;
    let web = Web::start(move |asked| {
        let mut answer = captured.answer(asked);
        if asked.path.ends_with("/_bulk_get") {
            let text = String::from_utf8(answer.body).unwrap();
            let without: Vec<_> = text.split(",\"encoding\":\"gzip\"").collect();
            answer.body = without.concat().into_bytes();
        }
        answer
    });
    assert_eq!(everything(&source(&web)).await, plain);
}

#[tokio::test]
async fn a_wrong_byte_in_an_attachment_is_noticed() {
    let mut captured = captured();
    let (bytes, _) = captured.contents.values_mut().find(|(bytes, _)| bytes.len() == 300_000).unwrap();
    bytes[1234] ^= 1;
    let web = Web::start(move |asked| captured.answer(asked));
    let source = source(&web);
    let Plan::Scan { parts, .. } = source.plan(&Selection::default(), None).await.unwrap() else { panic!() };
    let mut items = source.read(&parts[0], Arc::new(MemoryAttachments::default())).await.unwrap();
    let mut failed = None;
    while let Some(item) = futures::StreamExt::next(&mut items).await {
        failed = item.err().or(failed);
    }
    let failed = failed.unwrap();
    assert_eq!(failed.kind(), ErrorKind::Corrupt);
    assert!(failed.to_string().contains("raw.bin") && failed.to_string().contains("att-put"), "{failed}");
}

#[tokio::test]
async fn another_document_than_that_asked_for_is_noticed() {
    let mut captured = captured();
    let key = captured.revisions.keys().find(|(id, _)| id == "a+b").unwrap().clone();
    let text = captured.revisions[&key].replace(r#""_id":"a+b""#, r#""_id":"a+c""#);
    captured.revisions.insert(key, text);
    let web = Web::start(move |asked| captured.answer(asked));
    let store = Arc::new(MemoryAttachments::default());
    let failed = testkit::source::read_everything(&source(&web), &Selection::default(), store).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Corrupt);
    assert!(failed.to_string().contains("asked for document a+b, and gave one that says it is a+c"), "{failed}");
}

/// Documents of the database with what replications left in it.
fn with_checkpoints() -> Captured {
    let mut captured = captured();
    let checkpoint = r#"{"id":"_local/cp","doc":{"_id":"_local/cp","_rev":"0-3","session_id":"s","source_last_seq":7,"history":[]}}"#;
    let local = String::from_utf8(captured.local).unwrap();
    captured.local = local.replacen("\"rows\":[", &format!("\"rows\":[{checkpoint},"), 1).into_bytes();
    captured
}

#[tokio::test]
async fn checkpoints_are_named_and_left_out_unless_they_are_wanted() {
    let captured = with_checkpoints();
    let from = Web::start(move |asked| captured.answer(asked));
    for wanted in [false, true] {
        let taker = Arc::new(Taker::default());
        let answering = taker.clone();
        let into = Web::start(move |asked| answering.answer(asked));
        let sink = CouchSink::new(server(&format!("couchdb+http://{}/back", into.host))).with_checkpoints(wanted);
        let here = source(&from);
        let plan = sink.prepare(&here.describe().await.unwrap(), &RestoreOptions::default()).await.unwrap();
        assert_eq!(plan.phases.iter().any(|p| p.contains("leave out checkpoints")), !wanted);
        let rehearsal = sink.rehearse(&plan).await.unwrap();
        assert_eq!(rehearsal.is_some(), !wanted);
        if let Some(rehearsal) = rehearsal {
            for part in testkit::source::parts_of(&here, &Selection::default()).await.unwrap().0 {
                let mut items = here.read(&part, Arc::new(MemoryAttachments::default())).await.unwrap();
                while let Some(item) = futures::StreamExt::next(&mut items).await {
                    match item.unwrap() {
                        ScanItem::Batch(batch) if rehearsal.looks_at(batch.kind.space()) => {
                            rehearsal.see(&batch).await.unwrap()
                        }
                        _ => {}
                    }
                }
            }
            assert_eq!(
                rehearsal.lines().await.unwrap(),
                ["left out: the checkpoint _local/cp (see --with-checkpoints)"]
            );
        }
        common::restore(&here, &sink, &RestoreOptions::default()).await.unwrap();
        let written = taker.local.lock().unwrap().iter().filter(|id| *id == "_local/cp").count();
        assert_eq!((written, taker.local.lock().unwrap().len()), (usize::from(wanted), 5 + usize::from(wanted)));
    }
}

#[tokio::test]
async fn packed_attachments_are_unpacked_for_people() {
    let captured = captured();
    let web = Web::start(move |asked| captured.answer(asked));
    let here = source(&web);
    let (from, to) = (Arc::new(MemoryAttachments::default()), MemoryAttachments::default());
    let part = testkit::source::parts_of(&here, &Selection::default()).await.unwrap().0.remove(0);
    let mut items = here.read(&part, from.clone()).await.unwrap();
    let store: Arc<dyn model::AttachmentStore> = from;
    let mut found = BTreeMap::new();
    while let Some(item) = futures::StreamExt::next(&mut items).await {
        let ScanItem::Batch(batch) = item.unwrap() else { continue };
        for made in couch::plain::entries(&batch, &store, &to, false).await.unwrap() {
            for (i, content) in made.batch.attachments.iter().enumerate() {
                let key = String::from_utf8(made.batch.key_of(i).to_vec()).unwrap();
                found.insert(key, (String::from_utf8(made.batch.body_of(i).to_vec()).unwrap(), to.content(content)));
            }
        }
    }
    let (said, content) = found.iter().find(|(key, _)| key.starts_with("att/slash+id/")).unwrap().1;
    assert!(said.contains(r#""document":"att/slash+id""#) && said.contains(r#""length":3"#), "{said}");
    assert_eq!(content.len(), 3);
    assert!(found.values().any(|(_, content)| content.len() == 300_000), "{:?}", found.keys());
}

#[tokio::test]
async fn another_database_of_the_same_name_and_purges_are_noticed() {
    let captured = Arc::new(Mutex::new(captured()));
    let answering = captured.clone();
    let web = Web::start(move |asked| answering.lock().unwrap().answer(asked));
    let source = source(&web);
    let Plan::Scan { start: Some(position), .. } = source.plan(&Selection::default(), None).await.unwrap() else {
        panic!()
    };
    let last = |position: &Position| SourceState {
        identity: String::new(),
        position: Some(position.clone()),
        time: model::EngineTime::wall(1),
    };
    assert!(matches!(source.plan(&Selection::default(), Some(&last(&position))).await.unwrap(), Plan::Changes { .. }));
    let info = String::from_utf8(captured.lock().unwrap().info.clone()).unwrap();
    captured.lock().unwrap().info = info.replace("\"1795230343\"", "\"1795230999\"").into_bytes();
    let Plan::Gap { gap, .. } = source.plan(&Selection::default(), Some(&last(&position))).await.unwrap() else {
        panic!()
    };
    assert!(gap.why.contains("edge was deleted and made anew"), "{}", gap.why);
}

#[tokio::test]
async fn what_was_purged_is_gone() {
    let captured = captured();
    let purged = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let now = purged.clone();
    let web = Web::start(move |asked| {
        let count = now.load(Ordering::Relaxed);
        let answer = captured.answer(asked);
        match &*asked.path {
            "/edge" => {
                let info = String::from_utf8(answer.body.clone()).unwrap();
                Answer::json(info.replace("\"purge_seq\":\"0-", &format!("\"purge_seq\":\"{count}-")))
            }
            "/edge/_purged_infos" => {
                Answer::json(r#"{"purged_infos":[{"id":"a+b","revs":["1-d7545a007d11efb94718a90f8302381e"]}]}"#)
            }
            "/edge/a%2Bb" => Answer::status(404, "not_found"),
            _ => answer,
        }
    });
    let source = source(&web);
    let Plan::Scan { start: Some(position), parts, .. } = source.plan(&Selection::default(), None).await.unwrap()
    else {
        panic!()
    };
    let from = model::Following {
        position,
        time: model::EngineTime::wall(1),
        collections: vec![parts[0].collection.clone()],
        selection: Selection::default(),
    };
    let changes = async || {
        let store = Arc::new(model::HashingStore);
        let items = source.changes(&from, model::Until::Now, store).await.unwrap();
        futures::StreamExt::collect::<Vec<_>>(items).await.into_iter().map(Result::unwrap).collect::<Vec<_>>()
    };
    purged.store(1, Ordering::Relaxed);
    let all = changes().await;
    let gone = all.iter().find_map(|item| match item {
        model::ChangeItem::Batch(change) if change.batch.kind == Kind::Tombstone => {
            Some(change.batch.key_of(0).to_vec())
        }
        _ => None,
    });
    assert_eq!(gone.unwrap(), b"a+b");
    // More were purged than the server remembers.
    purged.store(2, Ordering::Relaxed);
    let all = changes().await;
    assert!(
        matches!(&all[..], [model::ChangeItem::Gap(gap)] if gap.why.contains("2 documents of edge were purged")),
        "{all:?}"
    );
}

/// A server that takes what is written, checking each multipart body as CouchDB does: pieces in the
/// order of the list, lengths and digests as said.
#[derive(Default)]
struct Taker {
    made: Mutex<Vec<String>>,
    attached: Mutex<BTreeMap<String, usize>>,
    documents: AtomicUsize,
    order: Mutex<Vec<String>>,
    /// Ids of `_local` documents.
    local: Mutex<Vec<String>>,
    /// How many copies a cluster keeps of what is written.
    copies: u64,
}

impl Taker {
    fn answer(&self, asked: &Asked) -> Answer {
        let step = asked.path.trim_start_matches('/').to_owned();
        self.order.lock().unwrap().push(format!("{} {step}", asked.method));
        match (&*asked.method, step.split('/').nth(1)) {
            ("GET", None) if step.is_empty() => Answer::json(r#"{"couchdb":"Welcome","version":"3.5.0","uuid":"2"}"#),
            ("PUT", None) => {
                self.made.lock().unwrap().push(format!("{step}?{}", asked.query));
                Answer { status: 201, ..Answer::json("{\"ok\":true}\n") }
            }
            ("GET", None) if self.made.lock().unwrap().is_empty() => Answer::status(404, "not_found"),
            ("GET", None) => {
                let info = include_str!("captures/db_info.json").replace("\"edge\"", &format!("\"{step}\""));
                Answer::json(info.replace("\"n\":1", &format!("\"n\":{}", self.copies.max(1))))
            }
            ("GET", Some("_revs_limit")) => Answer::json("1000\n"),
            ("PUT", Some("_revs_limit" | "_security")) => Answer::json("{\"ok\":true}\n"),
            ("POST", Some("_bulk_docs")) => {
                #[derive(serde::Deserialize)]
                struct Bulk {
                    docs: Vec<One>,
                }
                #[derive(serde::Deserialize)]
                struct One {
                    _id: String,
                }
                assert_eq!(asked.query, if self.copies > 1 { format!("w={}", self.copies) } else { String::new() });
                let body: Bulk = serde_json::from_slice(&asked.body).unwrap();
                let local = body.docs.iter().map(|one| one._id.clone()).filter(|id| id.starts_with("_local/"));
                self.local.lock().unwrap().extend(local);
                self.documents.fetch_add(body.docs.len(), Ordering::Relaxed);
                Answer { status: 201, ..Answer::json("[]\n") }
            }
            ("PUT", Some(_)) => self.multipart(asked),
            _ => Answer::status(404, "not_found"),
        }
    }

    fn multipart(&self, asked: &Asked) -> Answer {
        let copies = if self.copies > 1 { format!("&w={}", self.copies) } else { String::new() };
        assert_eq!(asked.query, format!("new_edits=false{copies}"));
        let kind = asked.header("content-type").unwrap();
        let mut captured = Captured::default();
        let outer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: multipart/mixed; boundary=\"outer\"\r\n\r\n--outer\r\nContent-Type: {kind}\r\n\r\n"
        );
        captured.learn(&[outer.as_bytes(), &asked.body, b"\r\n--outer--"].concat());
        let ((id, rev), text) = captured.revisions.into_iter().next().unwrap();
        let document: Value = serde_json::from_str(&text).unwrap();
        for (name, about) in document["_attachments"].as_object().unwrap() {
            let (bytes, encoding) = &captured.contents[&(id.clone(), rev.clone(), name.clone())];
            let length = about.get("encoded_length").unwrap_or(&about["length"]);
            assert_eq!(
                (bytes.len() as u64, encoding.as_deref()),
                (length.as_u64().unwrap(), about["encoding"].as_str())
            );
            use base64::Engine;
            use md5::Digest;
            let digest = base64::engine::general_purpose::STANDARD.encode(md5::Md5::digest(bytes));
            assert_eq!(about["digest"], format!("md5-{digest}"), "{id} {name}");
            *self.attached.lock().unwrap().entry(id.clone()).or_default() += 1;
        }
        Answer { status: 201, ..Answer::json("{\"ok\":true}\n") }
    }
}

/// In a cluster, all copies that are up are waited for: what is read back may be any of them.
#[tokio::test]
async fn attachments_are_written_as_they_were_stored() {
    for copies in [1, 3] {
        written_as_stored(copies).await;
    }
}

async fn written_as_stored(copies: u64) {
    let captured = captured();
    let from = Web::start(move |asked| captured.answer(asked));
    let taker = Arc::new(Taker { copies, ..Taker::default() });
    let answering = taker.clone();
    let into = Web::start(move |asked| answering.answer(asked));
    let sink = CouchSink::new(server(&format!("couchdb+http://{}/back", into.host)));
    let report = common::restore(&source(&from), &sink, &RestoreOptions::default()).await.unwrap();
    assert_eq!((report.documents, report.attachments), (158, 5));
    assert_eq!(*taker.made.lock().unwrap(), ["back?q=2"]);
    let attached = taker.attached.lock().unwrap().clone();
    let expected = [("_design/att", 1), ("att-conf", 2), ("att-multi", 5), ("att-put", 2), ("att/slash+id", 1)];
    assert_eq!(attached, expected.map(|(id, n)| (id.to_owned(), n)).into());
    // 292 leaves without the 6 with attachments, and 5 _local documents.
    assert_eq!(taker.documents.load(Ordering::Relaxed), 292 - 6 + 5);
    let order = taker.order.lock().unwrap();
    assert_eq!(order.last().unwrap(), "PUT back/_security");
    assert!(order[order.len() - 8..].iter().any(|o| o.starts_with("PUT back/_design/att")), "{order:?}");
}
