//! Reading a database and writing it back, on a real server.
#![allow(clippy::unwrap_used)]

mod common;

use common::{entries, fill, leaf, restore, sink, source};
use model::{ErrorKind, IfExists, Kind, RestoreOptions, Selection, Source};
use testkit::pouchdb::CouchServer;

#[tokio::test]
async fn everything_is_read_and_comes_back() {
    let couch = CouchServer::shared();
    let (from, to) = (couch.database(), couch.database_name());
    fill(&couch, &from);
    let here = source(&couch, &from);
    let read = entries(&here, &from).await;
    let body = |key: &str| {
        let found = read.iter().find(|e| e.key == key.as_bytes() && e.kind == Kind::Document);
        String::from_utf8(found.unwrap_or_else(|| panic!("no {key:?}")).body.clone()).unwrap()
    };
    assert_eq!(
        body("plain"),
        leaf("plain", &["a1"], r#""v":1,"text":"é \" \\ \u2028","deep":[[[{"":null}]]]"#)
            .replace("\\u2028", "\u{2028}")
    );
    let conflict = [
        leaf("conflict", &["b2", "b1"], r#""v":"b""#),
        leaf("conflict", &["a2", "a1"], r#""v":"a""#),
        leaf("conflict", &["d3", "d2", "d1"], r#""why":"no","_deleted":true"#),
    ];
    assert_eq!(body("conflict"), format!("[{}]", conflict.join(",")));
    assert_eq!(body("gone"), leaf("gone", &["c2", "c1"], r#""why":"kept","_deleted":true"#));
    assert!(body("old").contains("\"h999\""), "the whole history");
    for odd in ["+", "a+b", "//", "nl\nid", "..", "emoji😀", "_design/odd name+ü"] {
        body(odd);
    }
    let files = read.iter().find(|e| e.key == b"files" && e.kind != Kind::Document).unwrap();
    let files: serde_json::Value = serde_json::from_slice(&files.body).unwrap();
    assert_eq!((&files["document"], files["contents"].as_array().unwrap().len()), (&"files".into(), 2), "{files}");
    assert!(read.iter().any(|e| e.key == b"_security" && e.body.ends_with(br#""extra":{"keep":true}}"#)));

    let there = sink(&couch, &to);
    let report = restore(&here, &there, &RestoreOptions::default()).await.unwrap();
    assert_eq!(
        (report.documents, report.attachments),
        (read.iter().filter(|e| e.kind == Kind::Document).count() as u64, 1)
    );
    let back = entries(&source(&couch, &to), &to).await;
    for (a, b) in read.iter().zip(&back) {
        assert_eq!((&a.key, String::from_utf8_lossy(&a.body)), (&b.key, String::from_utf8_lossy(&b.body)));
    }
    assert_eq!(read, back);
    let (status, content) = couch.ask("GET", &format!("/{to}/files/b.txt"), "");
    assert_eq!((status, &*content), (200, "hello hello"));

    // What is there is refused, and not touched.
    let error = restore(&here, &there, &RestoreOptions::default()).await.unwrap_err();
    assert_eq!((error.kind(), error.hint_text().is_some()), (ErrorKind::Input, true));
    assert_eq!(entries(&source(&couch, &to), &to).await, back);
}

#[tokio::test]
async fn a_database_is_replaced_or_merged_into() {
    let couch = CouchServer::shared();
    let (from, to) = (couch.database(), couch.database());
    fill(&couch, &from);
    couch.put_all(&to, &[leaf("mine", &["m1"], r#""mine":true"#), leaf("plain", &["z2", "z1"], r#""v":2"#)]);
    let (here, there) = (source(&couch, &from), sink(&couch, &to));
    let with = |if_exists| RestoreOptions { if_exists, ..RestoreOptions::default() };
    restore(&here, &there, &with(IfExists::Replace)).await.unwrap();
    let read = entries(&here, &from).await;
    assert_eq!(read, entries(&source(&couch, &to), &to).await);
    let names = couch.done("GET", "/_all_dbs", "");
    assert!(!names.to_string().contains(&format!("{to}-rewound")), "no scratch is left: {names}");

    let merged = couch.database();
    couch.put_all(&merged, &[leaf("mine", &["m1"], r#""mine":true"#)]);
    restore(&here, &sink(&couch, &merged), &with(IfExists::Merge)).await.unwrap();
    let all = entries(&source(&couch, &merged), &merged).await;
    assert_eq!(all.len(), read.len() + 1);
    assert!(read.iter().all(|e| all.contains(e)));
}

#[tokio::test]
async fn a_refused_document_is_an_error_and_leaves_nothing() {
    let couch = CouchServer::shared();
    let (from, to) = (couch.database(), couch.database());
    fill(&couch, &from);
    couch.put_all(
        &to,
        &[leaf("_design/no", &["e1"], r#""validate_doc_update":"function(){throw({forbidden:'never'})}""#)],
    );
    let merge = RestoreOptions { if_exists: IfExists::Merge, ..RestoreOptions::default() };
    let error = restore(&source(&couch, &from), &sink(&couch, &to), &merge).await.unwrap_err();
    assert!(
        error.to_string().contains("never") && error.hint_text().unwrap().contains("validate_doc_update"),
        "{error:?}"
    );
}

#[tokio::test]
async fn it_conforms() {
    let couch = CouchServer::start();
    for name in ["books", "films"] {
        couch.done("PUT", &format!("/{name}"), "");
        let all: Vec<_> = (0..50).map(|i| leaf(&format!("k{i}"), &["a"], &format!(r#""i":{i}"#))).collect();
        couch.put_all(name, &all);
    }
    testkit::source::conformance(|| std::sync::Arc::new(source(&couch, ""))).await;
}

#[tokio::test]
async fn what_is_not_there_is_said() {
    let couch = CouchServer::shared();
    let error = source(&couch, "nowhere").describe().await.unwrap_err();
    assert_eq!((error.kind(), error.hint_text().is_some()), (ErrorKind::Missing, true));
    let nobody = couch::CouchSource::new(common::server("couchdb+http://127.0.0.1:1/x"));
    assert_eq!(nobody.plan(&Selection::default(), None).await.unwrap_err().kind(), ErrorKind::Retry);
}

#[tokio::test]
async fn nothing_is_deleted_before_its_place_is_proven() {
    let couch = CouchServer::shared();
    let (from, to) = (couch.database(), couch.database());
    couch.put_all(&from, &[leaf("a", &["1"], r#""v":1"#)]);
    couch.put_all(&to, &[leaf("mine", &["1"], r#""v":2"#)]);
    // On the way back from the scratch database, a byte is wrong.
    let behind = couch.clone();
    let web = testkit::web::Web::start(move |asked| {
        let path = format!("{}?{}", asked.path, asked.query);
        let (status, body) = behind.ask(&asked.method, &path, std::str::from_utf8(&asked.body).unwrap());
        let body = if path.contains("-rewound-") { body.replace("\"v\":1", "\"v\":7") } else { body };
        testkit::web::Answer { status, ..testkit::web::Answer::json(body) }
    });
    let into = couch::CouchSink::new(common::server(&format!("couchdb+http://{}/{to}", web.host)));
    let replace = RestoreOptions { if_exists: IfExists::Replace, ..RestoreOptions::default() };
    let error = restore(&source(&couch, &from), &into, &replace).await.unwrap_err();
    let hint = error.hint_text().unwrap();
    assert!(hint.contains(&format!("{to}-rewound-")) && hint.contains("was not touched"), "{error:?}");
    let there = entries(&source(&couch, &to), &to).await;
    assert!(there.iter().any(|e| e.key == b"mine"), "the old database is there");
    let scratch = couch.done("GET", "/_all_dbs", "");
    let scratch = scratch
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|n| n.as_str())
        .find(|n| n.starts_with(&format!("{to}-rewound-")));
    assert!(entries(&source(&couch, scratch.unwrap()), scratch.unwrap()).await.iter().any(|e| e.key == b"a"));
    couch.done("DELETE", &format!("/{}", scratch.unwrap()), "");
}

#[tokio::test]
async fn three_hundred_databases() {
    let couch = CouchServer::start();
    for i in 0..300 {
        couch.done("PUT", &format!("/many{i}"), "");
    }
    couch.put_all("many7", &[leaf("a", &["1"], "")]);
    let source = source(&couch, "many*");
    assert_eq!(source.describe().await.unwrap().collections.len(), 300);
    let model::Plan::Scan { start: Some(position), parts, .. } =
        source.plan(&Selection::default(), None).await.unwrap()
    else {
        panic!("no scan")
    };
    assert_eq!(parts.len(), 300);
    let last =
        model::SourceState { identity: String::new(), position: Some(position), time: model::EngineTime::wall(1) };
    let plan = source.plan(&Selection::default(), Some(&last)).await.unwrap();
    assert!(matches!(plan, model::Plan::Changes { .. }));
}

#[tokio::test]
async fn large_attachments_are_written_while_their_content_is_there() {
    let couch = CouchServer::shared();
    let (from, to) = (couch.database(), couch.database_name());
    let large = |id: &str, text: &str| {
        let data = text.repeat((4 << 20) / 3 + 10);
        leaf(id, &["1"], &format!(r#""_attachments":{{"x":{{"content_type":"x/y","data":"{data}"}}}}"#))
    };
    couch.put_all(&from, &[large("a", "QUFB"), large("b", "QUJB"), large("_design/d", "QUNB")]);
    let (here, there) = (source(&couch, &from), sink(&couch, &to));
    for if_exists in [IfExists::Fail, IfExists::Replace] {
        restore(&here, &there, &RestoreOptions { if_exists, ..RestoreOptions::default() }).await.unwrap();
        assert_eq!(entries(&here, &from).await, entries(&source(&couch, &to), &to).await);
    }
}
