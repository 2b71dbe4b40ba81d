//! A database of a real CouchDB, answered from what was captured of it: the texts of revisions and the
//! bytes of attachments are the server's own, cut out of its multipart answer.

use crate::web::{Answer, Asked};
use percent_encoding::percent_decode_str;
use serde_json::Value;
use std::collections::HashMap;

/// Stored bytes of an attachment, and their encoding.
pub type Stored = (Vec<u8>, Option<String>);

/// What was captured.
#[derive(Debug, Default)]
pub struct Captured {
    /// `_changes`, `_local_docs`, `_security`, the database's description.
    pub changes: Vec<u8>,
    /// `_local_docs`.
    pub local: Vec<u8>,
    /// `_security`.
    pub security: Vec<u8>,
    /// The database.
    pub info: Vec<u8>,
    /// Texts by id and revision, attachments as stubs.
    pub revisions: HashMap<(String, String), String>,
    /// Stored bytes of attachments by id, revision and name, with their encoding.
    pub contents: HashMap<(String, String, String), Stored>,
}

impl Captured {
    /// Takes the multipart answer to `_bulk_get` apart.
    pub fn learn(&mut self, answer: &[u8]) {
        let (head, body) = split(answer, b"\r\n\r\n").unwrap();
        for part in parts(&boundary(head), body) {
            let (head, body) = split(&part, b"\r\n\r\n").unwrap();
            if contains(head, b"error=\"true\"") {
                continue;
            }
            let mut inner = match contains(head, b"multipart/related") {
                true => parts(&boundary(head), body)
                    .into_iter()
                    .map(|p| split(&p, b"\r\n\r\n").unwrap().1.to_vec())
                    .collect(),
                false => vec![body.to_vec()],
            }
            .into_iter();
            let text = String::from_utf8(inner.next().unwrap()).unwrap();
            // Some are nested too deeply to be understood whole.
            let Document { _id: id, _rev: rev, _attachments: attachments } = serde_json::from_str(&text).unwrap();
            for (name, about) in &attachments {
                let encoding = about["encoding"].as_str().map(str::to_owned);
                self.contents.insert((id.clone(), rev.clone(), name.clone()), (inner.next().unwrap(), encoding));
            }
            self.revisions.insert((id, rev), text.trim().replace("\"follows\":true", "\"stub\":true"));
        }
    }

    /// Answers a question as the server did, with the name of the database as the first step of the path.
    pub fn answer(&self, asked: &Asked) -> Answer {
        let steps: Vec<String> = asked
            .path
            .trim_start_matches('/')
            .split('/')
            .map(|s| percent_decode_str(s).decode_utf8().unwrap().into_owned())
            .collect();
        let words: Vec<&str> = steps.iter().map(|s| &**s).collect();
        match (&*asked.method, &words[..]) {
            ("GET", [""]) => Answer::json(
                r#"{"couchdb":"Welcome","version":"3.5.0-dirty","git_sha":"11f0d36","uuid":"11111111111111111111111111111111","vendor":{"name":"The Apache Software Foundation"}}"#,
            ),
            ("GET", [_]) => Answer::json(self.info.clone()),
            // The only page: after its end there is nothing.
            ("GET", [_, "_changes"]) if asked.query.contains("since=0") => Answer::json(self.changes.clone()),
            ("GET", [_, "_changes"]) => {
                let last = asked.query.split('&').find_map(|p| p.strip_prefix("since=")).unwrap();
                let last = percent_decode_str(last).decode_utf8().unwrap();
                Answer::json(format!("{{\"results\":[\n\n],\n\"last_seq\":\"{last}\",\"pending\":0}}\n\n"))
            }
            ("GET", [_, "_local_docs"]) => Answer::json(self.local.clone()),
            ("GET", [_, "_security"]) => Answer::json(self.security.clone()),
            ("GET", [_, "_revs_limit"]) => Answer::json("1000\n"),
            ("POST", [_, "_bulk_get"]) => self.bulk_get(&asked.body),
            ("GET", [_, "_design", id, name]) => self.attachment(asked, &format!("_design/{id}"), name),
            ("GET", [_, "_design", id]) => self.open_revs(&format!("_design/{id}")),
            ("GET", [_, id, name]) => self.attachment(asked, id, name),
            ("GET", [_, id]) if !id.starts_with('_') => self.open_revs(id),
            _ => Answer::status(404, "not_found"),
        }
    }

    fn open_revs(&self, id: &str) -> Answer {
        let of_id = self.revisions.iter().filter(|((of, _), _)| of == id);
        let all: Vec<_> = of_id.map(|(_, text)| format!("{{\"ok\":{text}}}")).collect();
        if all.is_empty() { Answer::status(404, "not_found") } else { Answer::json(format!("[{}]", all.join(","))) }
    }

    fn bulk_get(&self, question: &[u8]) -> Answer {
        let question: Value = serde_json::from_slice(question).unwrap();
        let one = |asked: &Value| {
            let of = |name: &str| asked[name].as_str().unwrap().to_owned();
            let (id, rev) = (of("id"), of("rev"));
            let quoted = serde_json::to_string(&id).unwrap();
            match self.revisions.get(&(id, rev.clone())) {
                Some(text) => format!("{{\"id\":{quoted},\"docs\":[{{\"ok\":{text}}}]}}"),
                None => format!(
                    "{{\"id\":{quoted},\"docs\":[{{\"error\":{{\"id\":{quoted},\"rev\":\"{rev}\",\"error\":\"not_found\",\"reason\":\"missing\"}}}}]}}"
                ),
            }
        };
        let all: Vec<_> = question["docs"].as_array().unwrap().iter().map(one).collect();
        Answer::json(format!("{{\"results\":[{}]}}", all.join(",")))
    }

    fn attachment(&self, asked: &Asked, id: &str, name: &str) -> Answer {
        let rev = asked.query.strip_prefix("rev=").unwrap().to_owned();
        let Some((bytes, encoding)) = self.contents.get(&(id.into(), rev, name.into())) else {
            return Answer::status(404, "not_found");
        };
        let mut answer = Answer { headers: Vec::new(), ..Answer::json(bytes.clone()) };
        if let Some(encoding) = encoding {
            assert_eq!(asked.header("accept-encoding"), Some("gzip"), "else the server unpacks it");
            answer = answer.header("Content-Encoding", encoding);
        }
        answer
    }
}

#[derive(serde::Deserialize)]
struct Document {
    _id: String,
    _rev: String,
    #[serde(default)]
    _attachments: serde_json::Map<String, Value>,
}

/// The boundary that a head names.
fn boundary(head: &[u8]) -> String {
    let head = String::from_utf8_lossy(head);
    let (_, rest) = head.split_once("boundary=").unwrap();
    rest.lines().next().unwrap().trim().trim_matches('"').to_owned()
}

/// The parts of a multipart body.
fn parts(boundary: &str, body: &[u8]) -> Vec<Vec<u8>> {
    let mark = format!("--{boundary}");
    let mut all = Vec::new();
    let (_, mut rest) = split(body, mark.as_bytes()).unwrap();
    while !rest.starts_with(b"--") {
        let end = format!("\r\n{mark}");
        let (part, after) = split(rest, end.as_bytes()).unwrap();
        all.push(part.strip_prefix(b"\r\n").unwrap().to_vec());
        rest = after;
    }
    all
}

fn contains(all: &[u8], piece: &[u8]) -> bool {
    split(all, piece).is_some()
}

fn split<'a>(all: &'a [u8], at: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let start = all.windows(at.len()).position(|w| w == at)?;
    Some((&all[..start], &all[start + at.len()..]))
}
