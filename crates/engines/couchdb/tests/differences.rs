//! In what servers of the protocol differ: what the engine counts on, asked of the server itself. Runs
//! against pouchdb-server, and against the CouchDB that `REWOUND_TEST_COUCHDB` names.
#![allow(clippy::unwrap_used)]

mod common;

use common::leaf;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use testkit::pouchdb::CouchServer;

/// A server with one of its databases.
struct Asked {
    couch: std::sync::Arc<CouchServer>,
    db: String,
    is_couchdb: bool,
}

impl Asked {
    fn new() -> Asked {
        let couch = CouchServer::shared();
        let db = couch.database();
        let is_couchdb = couch.done("GET", "/", "").get("couchdb").is_some();
        Asked { couch, db, is_couchdb }
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let (status, answer) = self.couch.ask(method, &format!("/{}{path}", self.db), body);
        (status, serde_json::from_str(&answer).unwrap_or(Value::Null))
    }

    /// What is so at CouchDB, and what elsewhere.
    #[track_caller]
    fn is<T: PartialEq + std::fmt::Debug>(&self, found: T, couchdb: T, pouchdb: T) {
        assert_eq!(found, if self.is_couchdb { couchdb } else { pouchdb });
    }
}

#[test]
fn what_bulk_get_gives_without_a_revision() {
    let asked = Asked::new();
    let all = [
        leaf("c", &["a2", "a1"], r#""v":"a""#),
        leaf("c", &["b2", "b1"], r#""v":"b""#),
        leaf("gone", &["c1"], r#""_deleted":true"#),
    ];
    asked.couch.put_all(&asked.db, &all);
    let question = json!({ "docs": [{ "id": "c" }, { "id": "gone" }] }).to_string();
    let (_, answer) = asked.ask("POST", "/_bulk_get?revs=true", &question);
    let count =
        |i: usize| answer["results"][i]["docs"].as_array().unwrap().iter().filter(|d| d.get("ok").is_some()).count();
    asked.is((count(0), count(1)), (2, 1), (1, 0));
    // With revisions, and by open_revs, everybody gives all.
    let question = json!({ "docs": [{ "id": "c", "rev": "2-a2" }, { "id": "c", "rev": "2-b2" }] }).to_string();
    let (_, answer) = asked.ask("POST", "/_bulk_get?revs=true", &question);
    let given = answer["results"].as_array().unwrap().iter().flat_map(|r| r["docs"].as_array().unwrap());
    assert_eq!(given.filter(|d| d.get("ok").is_some()).count(), 2);
    let (_, answer) = asked.ask("GET", "/c?open_revs=all&revs=true", "");
    assert_eq!(answer.as_array().unwrap().len(), 2);
    // All leaves are in the feed, deleted ones, too; and winners are told, deleted ones, too.
    let (_, feed) = asked.ask("GET", "/_changes?style=all_docs", "");
    let of = |id: &str| feed["results"].as_array().unwrap().iter().find(|r| r["id"] == id).unwrap().clone();
    assert_eq!((of("c")["changes"].as_array().unwrap().len(), &of("gone")["deleted"]), (2, &json!(true)));
    let (_, heads) = asked.ask("POST", "/_all_docs", r#"{"keys":["c","gone","never"]}"#);
    assert_eq!(heads["rows"][0]["value"]["rev"], "2-b2");
    assert_eq!(heads["rows"][1]["value"], json!({ "rev": "1-c1", "deleted": true }));
    assert_eq!(heads["rows"][2].get("value"), None);
    asked.is(feed["last_seq"].is_string(), true, false);
}

#[test]
fn what_there_is_to_ask() {
    let asked = Asked::new();
    let status = |method: &str, path: &str, body: &str| asked.ask(method, path, body).0;
    for path in ["/_local_docs", "/_purged_infos", "/_revs_limit", "/_design_docs"] {
        asked.is(status("GET", path, ""), 200, 404);
    }
    asked.is(asked.couch.ask("GET", "/_up", "").0, 200, 404);
    let question = json!({ "keys": [asked.db] }).to_string();
    asked.is(asked.couch.ask("POST", "/_dbs_info", &question).0, 200, 404);
    asked.is(status("POST", "/_missing_revs", r#"{"a":["1-x"]}"#), 200, 400);
    assert_eq!(status("POST", "/_revs_diff", r#"{"a":["1-x"]}"#), 200);
    assert_eq!(status("GET", "/_security", ""), 200);
    assert_eq!(status("PUT", "/_local/x", r#"{"a":1}"#), 201);
    assert_eq!(status("GET", "/_local/x", ""), 200);
}

#[test]
fn what_numbers_become() {
    let asked = Asked::new();
    asked.couch.put_all(&asked.db, &[leaf("n", &["a"], r#""n":12345678901234567890,"f":1.0"#)]);
    let text = asked.couch.ask("GET", &format!("/{}/n", asked.db), "").1;
    asked.is(text.contains("12345678901234567890"), true, false);
    asked.is(text.contains("\"f\":1.0"), true, false);
}

#[test]
fn options_that_are_taken_or_ignored() {
    let asked = Asked::new();
    let name = asked.couch.database_name();
    asked.couch.done("PUT", &format!("/{name}?q=3&partitioned=true"), "");
    let info = asked.couch.done("GET", &format!("/{name}"), "");
    asked.is((info["cluster"]["q"].as_u64(), info["props"]["partitioned"] == true), (Some(3), true), (None, false));
}

/// The head and the body of an answer.
fn raw(asked: &Asked, path: &str, header: &str) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(&asked.couch.host).unwrap();
    let url = asked.couch.url("");
    let login = url.trim_start_matches("couchdb+http://").rsplit_once('@').map(|(user, _)| {
        use base64::Engine;
        format!("Authorization: Basic {}\r\n", base64::engine::general_purpose::STANDARD.encode(user))
    });
    let login = login.unwrap_or_default();
    write!(stream, "GET /{}{path} HTTP/1.0\r\nHost: x\r\n{login}{header}\r\n\r\n", asked.db).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let at = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    (String::from_utf8_lossy(&answer[..at]).to_lowercase(), answer[at + 4..].to_vec())
}

#[test]
fn how_attachments_are_given() {
    let asked = Asked::new();
    let data = "aGVsbG8g".repeat(100);
    let text = format!(r#""_attachments":{{"x":{{"content_type":"text/plain","data":"{data}"}}}}"#);
    asked.couch.put_all(&asked.db, &[leaf("a", &["1"], &text)]);
    let (head, packed) = raw(&asked, "/a/x", "Accept-Encoding: gzip");
    asked.is(
        (head.contains("content-encoding: gzip"), packed.starts_with(&[0x1f, 0x8b])),
        (true, true),
        (false, false),
    );
    let (head, _) = raw(&asked, "/a?attachments=true", "Accept: multipart/related");
    asked.is(head.contains("multipart/related"), true, false);
    let (_, about) = asked.ask("GET", "/a?att_encoding_info=true", "");
    asked.is(about["_attachments"]["x"]["encoding"].as_str(), Some("gzip"), None);
    assert_eq!(about["_attachments"]["x"]["length"], 600);
}
