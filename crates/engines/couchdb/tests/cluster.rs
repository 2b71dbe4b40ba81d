//! Several copies of a database on the nodes of a cluster, which lag behind one another.
#![allow(clippy::unwrap_used)]

mod common;

use common::{leaf, server};
use couch::CouchSource;
use futures::StreamExt;
use model::{
    ChangeItem, EngineTime, Error, ErrorKind, Following, HashingStore, Kind, Plan, Position, Result, Selection, Source,
    SourceState, Until,
};
use percent_encoding::percent_decode_str;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use testkit::source::MemoryAttachments;
use testkit::web::{Answer, Asked, Web};

/// A cluster with one database, `d`, in two copies: what one of its nodes answers.
#[derive(Debug, Default)]
struct Cluster {
    /// By copy: documents in the order of their sequences.
    copies: BTreeMap<&'static str, Vec<(&'static str, &'static str)>>,
    /// Which copy is asked for what it is now, and which one where nothing says which it is to be.
    informs: &'static str,
    reads: &'static str,
    /// Texts of documents that most copies have, and those that are found when all are asked.
    most: BTreeMap<&'static str, Vec<String>>,
    all: BTreeMap<&'static str, Vec<String>>,
    /// How often all were asked, and after how many times it helps.
    asked_all: usize,
    late: usize,
    purge: String,
    purged: Vec<&'static str>,
    /// When it was made; long ago if not said.
    made: u64,
    /// How often the newest revision is said to be unknown.
    unknown: usize,
    asked: Vec<String>,
}

impl Cluster {
    fn answer(&mut self, asked: &Asked) -> Answer {
        self.asked.push(format!("{} {}?{}", asked.method, asked.path, asked.query));
        let word = |name: &str| {
            let found = asked.query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            found.map(|text| percent_decode_str(text).decode_utf8().unwrap().into_owned())
        };
        let path = asked.path.trim_start_matches('/');
        match (&*asked.method, path) {
            ("GET", "") => Answer::json(r#"{"couchdb":"Welcome","version":"3.5.0","uuid":"u"}"#),
            ("GET", "d") => Answer::json(format!(
                r#"{{"instance_start_time":"{}","db_name":"d","purge_seq":"{}","update_seq":"{}-{}",
                    "doc_count":{},"doc_del_count":0,"cluster":{{"q":1,"n":3,"w":2,"r":2}}}}"#,
                self.made.max(1_600_000_000),
                self.purge,
                self.copies[self.informs].len(),
                self.informs,
                self.copies[self.informs].len(),
            )),
            ("GET" | "POST", "d/_changes") => {
                let since = word("since").unwrap_or_else(|| "0".into());
                // A sequence says which copy it is of.
                let (number, copy) = since.split_once('-').unwrap_or((&since, self.reads));
                let (copy, rows) = self.copies.get_key_value(copy).unwrap();
                let from: usize = number.parse().unwrap();
                let none = word("limit").as_deref() == Some("0");
                let is_empty = none || word("filter").is_some();
                assert_eq!(word("filter").is_some(), asked.method == "POST");
                let found: Vec<String> = rows[from..]
                    .iter()
                    .filter(|_| !is_empty)
                    .map(|(id, rev)| format!(r#"{{"seq":null,"id":"{id}","changes":[{{"rev":"{rev}"}}]}}"#))
                    .collect();
                let last = if none { from } else { rows.len() };
                let pending = rows.len() - last;
                Answer::json(format!(
                    r#"{{"results":[{}],"last_seq":"{last}-{copy}","pending":{pending}}}"#,
                    found.join(",")
                ))
            }
            ("POST", "d/_bulk_get") => {
                let question: serde_json::Value = serde_json::from_slice(&asked.body).unwrap();
                let one = |one: &serde_json::Value| {
                    let (id, rev) = (one["id"].as_str().unwrap(), one["rev"].as_str().unwrap());
                    let has_rev = |text: &&String| text.contains(&format!(r#""_rev":"{rev}""#));
                    match self.most.get(id).and_then(|texts| texts.iter().find(has_rev)) {
                        Some(text) => format!(r#"{{"id":"{id}","docs":[{{"ok":{text}}}]}}"#),
                        None => format!(r#"{{"id":"{id}","docs":[{{"error":{{"id":"{id}","rev":"{rev}"}}}}]}}"#),
                    }
                };
                let all: Vec<String> = question["docs"].as_array().unwrap().iter().map(one).collect();
                Answer::json(format!(r#"{{"results":[{}]}}"#, all.join(",")))
            }
            ("POST", "d/_revs_diff") if self.unknown > 0 => {
                self.unknown -= 1;
                Answer::json(r#"{"x":{"missing":["2-b"]}}"#)
            }
            ("POST", "d/_revs_diff") => Answer::json("{}"),
            ("GET", "d/_purged_infos") => {
                let all: Vec<_> = self.purged.iter().map(|id| format!(r#"{{"id":"{id}","revs":["1-a"]}}"#)).collect();
                Answer::json(format!(r#"{{"purged_infos":[{}]}}"#, all.join(",")))
            }
            ("GET", "d/_revs_limit") => Answer::json("1000"),
            ("GET", "d/_security") => Answer::json("{}"),
            ("GET", "d/_local_docs") => Answer::json(r#"{"rows":[]}"#),
            ("GET", _) => {
                let id = path.strip_prefix("d/").unwrap();
                let texts = match word("r").as_deref() {
                    Some("3") => {
                        self.asked_all += 1;
                        if self.asked_all > self.late { self.all.get(id) } else { self.most.get(id) }
                    }
                    _ => self.most.get(id),
                };
                let Some(texts) = texts.filter(|texts| !texts.is_empty()) else {
                    return Answer::status(404, "not_found");
                };
                let all: Vec<String> = texts.iter().map(|text| format!(r#"{{"ok":{text}}}"#)).collect();
                Answer::json(format!("[{}]", all.join(",")))
            }
            other => panic!("{other:?}"),
        }
    }
}

/// The cluster, and a source that reads it.
fn start(cluster: Cluster) -> (Arc<Mutex<Cluster>>, Web, CouchSource) {
    let cluster = Arc::new(Mutex::new(cluster));
    let answering = cluster.clone();
    let web = Web::start(move |asked| answering.lock().unwrap().answer(asked));
    let source = CouchSource::new(server(&format!("couchdb+http://{}/d", web.host)));
    (cluster, web, source)
}

fn at(position: &Position) -> Following {
    Following {
        position: position.clone(),
        time: EngineTime::wall(1),
        collections: Vec::new(),
        selection: Selection::default(),
    }
}

/// The documents that a full backup reads, and where changes go on.
async fn scan(source: &CouchSource) -> (BTreeMap<String, String>, Position) {
    let Plan::Scan { start: Some(position), parts, .. } = source.plan(&Selection::default(), None).await.unwrap()
    else {
        panic!("no scan")
    };
    let mut items = source.read(&parts[0], Arc::new(MemoryAttachments::default())).await.unwrap();
    let mut found = BTreeMap::new();
    while let Some(item) = items.next().await {
        if let model::ScanItem::Batch(batch) = item.unwrap() {
            take(&batch, &mut found);
        }
    }
    (found, position)
}

fn take(batch: &model::Batch, found: &mut BTreeMap<String, String>) {
    for i in (0..batch.len()).filter(|_| matches!(batch.kind, Kind::Document | Kind::Tombstone)) {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        found.insert(text(batch.key_of(i)), text(batch.body_of(i)));
    }
}

/// The documents that have changed since, and where to go on.
async fn changes(source: &CouchSource, from: &Position) -> Result<(BTreeMap<String, String>, Position)> {
    let last = SourceState { identity: String::new(), position: Some(from.clone()), time: EngineTime::wall(1) };
    assert!(matches!(source.plan(&Selection::default(), Some(&last)).await?, Plan::Changes { .. }), "no gap");
    let mut items = source.changes(&at(from), Until::Now, Arc::new(HashingStore)).await?;
    let (mut found, mut position) = (BTreeMap::new(), from.clone());
    while let Some(item) = items.next().await {
        match item? {
            ChangeItem::Batch(change) => take(&change.batch, &mut found),
            ChangeItem::Commit { position: now, .. } => position = now,
            ChangeItem::Gap(gap) => return Err(Error::bug(gap.why)),
            ChangeItem::Catalog { .. } => {}
        }
    }
    Ok((found, position))
}

fn keys(found: &BTreeMap<String, String>) -> Vec<&str> {
    found.keys().map(|key| &**key).collect()
}

/// The copy that is read has not yet what another one has: it comes later, and is not skipped.
#[tokio::test]
async fn what_one_copy_gets_later_is_not_lost() {
    let text = |id: &'static str| (id, vec![leaf(id, &["a"], "")]);
    let (cluster, _web, source) = start(Cluster {
        copies: BTreeMap::from([("fast", vec![("x", "1-a"), ("late", "1-a")]), ("slow", vec![("x", "1-a")])]),
        informs: "fast",
        reads: "slow",
        most: BTreeMap::from([text("x"), text("late"), text("new")]),
        purge: "0-p".into(),
        ..Cluster::default()
    });
    let began = Instant::now();
    let (found, position) = scan(&source).await;
    assert_eq!(keys(&found), ["x"]);
    assert!(began.elapsed() >= Duration::from_secs(1), "a better one was looked for");
    cluster.lock().unwrap().copies.get_mut("slow").unwrap().push(("late", "1-a"));
    let (found, position) = changes(&source, &position).await.unwrap();
    assert_eq!(keys(&found), ["late"]);
    // The other way round: the one that informs is behind, and so are its numbers.
    cluster.lock().unwrap().copies.get_mut("slow").unwrap().push(("new", "1-a"));
    cluster.lock().unwrap().copies.get_mut("fast").unwrap().truncate(1);
    let (found, position) = changes(&source, &position).await.unwrap();
    assert_eq!(keys(&found), ["new"]);
    let (found, _) = changes(&source, &position).await.unwrap();
    assert_eq!(keys(&found), [""; 0]);
}

/// What was written just before is there if any copy has it.
#[tokio::test]
async fn a_copy_that_lags_is_not_read_if_another_one_does_not() {
    let text = |id: &'static str| (id, vec![leaf(id, &["a"], "")]);
    let (cluster, web, source) = start(Cluster {
        copies: BTreeMap::from([("fast", vec![("x", "1-a"), ("y", "1-a")]), ("slow", vec![])]),
        informs: "fast",
        reads: "slow",
        most: BTreeMap::from([text("x"), text("y")]),
        purge: "0-p".into(),
        ..Cluster::default()
    });
    let (found, _) = tokio::join!(scan(&source), async {
        while !cluster.lock().unwrap().asked.iter().any(|asked| asked.contains("limit=0")) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        cluster.lock().unwrap().reads = "fast";
    });
    assert_eq!(keys(&found.0), ["x", "y"]);
    drop(web);
}

/// A young database is known by its newest revision, which not all copies have at once.
#[tokio::test]
async fn a_revision_that_comes_late_to_a_copy_is_no_gap() {
    let made = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let cluster = Cluster { made, unknown: usize::MAX, ..newest_on_one() };
    let (cluster, _web, source) = start(Cluster { most: cluster.all.clone(), ..cluster });
    let (_, position) = scan(&source).await;
    for (unknown, is_gap) in [(0, false), (3, false), (usize::MAX, true)] {
        cluster.lock().unwrap().unknown = unknown;
        // It has moved: else nothing need be known.
        cluster.lock().unwrap().copies.get_mut("one").unwrap().push(("x", "2-b"));
        let last = SourceState { identity: String::new(), position: Some(position.clone()), time: EngineTime::wall(1) };
        let plan = source.plan(&Selection::default(), Some(&last)).await.unwrap();
        assert_eq!(matches!(plan, Plan::Gap { .. }), is_gap, "{unknown}");
    }
}

/// A database with one document whose newest revision only one copy has.
fn newest_on_one() -> Cluster {
    let (old, new) = (leaf("x", &["a"], ""), leaf("x", &["b", "a"], r#""v":2"#));
    Cluster {
        copies: BTreeMap::from([("one", vec![("x", "2-b")])]),
        informs: "one",
        reads: "one",
        most: BTreeMap::from([("x", vec![old])]),
        all: BTreeMap::from([("x", vec![new])]),
        purge: "0-p".into(),
        ..Cluster::default()
    }
}

#[tokio::test]
async fn a_revision_that_only_one_copy_has_is_looked_for_in_all() {
    let (cluster, _web, source) = start(Cluster { late: 1, ..newest_on_one() });
    let (found, _) = scan(&source).await;
    assert_eq!(found["x"], leaf("x", &["b", "a"], r#""v":2"#));
    assert_eq!(cluster.lock().unwrap().asked_all, 2);
}

#[tokio::test]
async fn a_revision_that_no_copy_gives_is_not_passed_by() {
    let (cluster, _web, source) =
        start(Cluster { late: usize::MAX, copies: BTreeMap::from([("one", vec![])]), ..newest_on_one() });
    let (_, position) = scan(&source).await;
    cluster.lock().unwrap().copies.get_mut("one").unwrap().push(("x", "2-b"));
    let error = changes(&source, &position).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Retry, "{error}");
    assert!(error.to_string().contains("revision 2-b of document x in d"), "{error}");
    // But one that was purged meanwhile is.
    cluster.lock().unwrap().purged.push("x");
    let (found, _) = changes(&source, &position).await.unwrap();
    assert_eq!(found["x"], leaf("x", &["a"], ""));
}

/// Each copy counts purges for itself.
#[tokio::test]
async fn purges_that_a_copy_does_not_know_yet_are_no_gap() {
    let (cluster, _web, source) = start(Cluster {
        copies: BTreeMap::from([("one", vec![("x", "1-a"), ("gone", "1-a")])]),
        informs: "one",
        reads: "one",
        most: BTreeMap::from([("x", vec![leaf("x", &["a"], "")]), ("gone", vec![leaf("gone", &["a"], "")])]),
        purge: "3-p".into(),
        purged: vec!["p1", "p2", "p3"],
        ..Cluster::default()
    });
    let (_, position) = scan(&source).await;
    for purge in ["2-q", "3-q"] {
        cluster.lock().unwrap().purge = purge.into();
        let (found, _) = changes(&source, &position).await.unwrap();
        assert_eq!(keys(&found), [""; 0], "{purge}");
    }
    {
        let mut cluster = cluster.lock().unwrap();
        cluster.purge = "4-q".into();
        cluster.purged.push("gone");
        cluster.most.remove("gone");
    }
    let (found, _) = changes(&source, &position).await.unwrap();
    assert_eq!(found["gone"], "");
}
