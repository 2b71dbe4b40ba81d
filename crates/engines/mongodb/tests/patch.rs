//! Patches give the bytes that real servers have, update after update.
//!
//! `REWOUND_LONG=1` makes it 100,000 updates. A failure names its seed: `REWOUND_SEED=…` repeats it.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod common;
mod updates;

use bson::{Bson, Document, RawDocumentBuf, Timestamp, doc};
use common::{Place, hard_documents};
use futures::TryStreamExt;
use model::{ErrorKind, Patcher};
use mongo::{Patches, raw};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use testkit::mongod::{Mongod, Options};
use updates::Rng;

fn seed() -> u64 {
    let given = std::env::var("REWOUND_SEED").ok().map(|seed| seed.parse().unwrap());
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as u64;
    given.unwrap_or_else(now)
}

fn many(normal: usize) -> usize {
    if std::env::var_os("REWOUND_LONG").is_some() { normal * 20 } else { normal }
}

/// A document, and the patches that made it what it is since it was last compared.
struct Replayed {
    body: Vec<u8>,
    patches: Vec<Vec<u8>>,
}

/// What the oplog makes of the documents of a collection, by key.
#[derive(Default)]
struct Replay {
    documents: BTreeMap<Vec<u8>, Replayed>,
    last: Option<Timestamp>,
    updates: usize,
    seed: u64,
}

impl Replay {
    /// Applies what the oplog has since the last time.
    async fn go_on(&mut self, place: &Place, namespace: &str) {
        let oplog = place.database.client().database("local").collection::<RawDocumentBuf>("oplog.rs");
        let mut filter = doc! { "ns": namespace };
        if let Some(last) = self.last {
            filter.insert("ts", doc! { "$gt": last });
        }
        let entries: Vec<RawDocumentBuf> = oplog.find(filter).await.unwrap().try_collect().await.unwrap();
        for entry in entries {
            self.last = Some(entry.get_timestamp("ts").unwrap());
            let o = entry.get_document("o").unwrap().as_bytes();
            match entry.get_str("op").unwrap() {
                "i" => drop(self.documents.insert(key(o), Replayed { body: o.to_vec(), patches: Vec::new() })),
                "u" => {
                    let key = key(entry.get_document("o2").unwrap().as_bytes());
                    let Replayed { body, patches } = self.documents.get_mut(&key).unwrap();
                    patches.push(o.to_vec());
                    let after = Patches.applied(body, o);
                    *body = after.unwrap_or_else(|e| panic!("seed {}: {e:?}: {}", self.seed, shown(o)));
                    self.updates += 1;
                }
                other => panic!("an entry {other} in the oplog"),
            }
        }
    }

    /// Compares with what the server has.
    async fn compare(&mut self, place: &Place, collection: &str) {
        let found = place.database.collection::<RawDocumentBuf>(collection).find(doc! {}).await.unwrap();
        let found: Vec<RawDocumentBuf> = found.try_collect().await.unwrap();
        assert_eq!(found.len(), self.documents.len(), "seed {}", self.seed);
        for document in found {
            let Replayed { body, patches } = self.documents.get_mut(&key(document.as_bytes())).unwrap();
            if body != document.as_bytes() {
                let patches: Vec<String> = patches.iter().map(|p| shown(p)).collect();
                let (ours, theirs) = (shown(body), shown(document.as_bytes()));
                panic!("seed {}:\n{}\nours:   {ours}\nserver: {theirs}", self.seed, patches.join("\n"));
            }
            patches.clear();
        }
    }
}

fn key(document: &[u8]) -> Vec<u8> {
    let id = raw::id_element(document).unwrap();
    document[id.start..id.end].to_vec()
}

fn shown(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut at = 4;
    while let Some(field) = raw::element(bytes, at) {
        let (name, value) =
            (String::from_utf8_lossy(&bytes[field.name..field.value - 1]), &bytes[field.value..field.end]);
        text += &match field.kind {
            0x03 => format!("{name}: {{{}}}, ", shown(value)),
            0x04 => format!("{name}: [{}], ", shown(value)),
            kind => format!("{name}: {kind:02x} {}, ", value.iter().map(|b| format!("{b:02x}")).collect::<String>()),
        };
        at = field.end;
    }
    text
}

/// Runs random updates of all kinds until so many were applied, and compares after each batch.
async fn random_updates(mongod: Arc<Mongod>, count: usize) {
    let seed = seed();
    let mut rng = Rng(seed);
    let place = Place::on(mongod).await;
    let (mut updates, mut refused) = (0, 0);
    while updates < count {
        let collection = format!("c{updates}");
        let namespace = format!("{}.{collection}", place.name);
        let mut replay = Replay { seed, ..Replay::default() };
        // Documents with the same key twice take no pipelines: version 6.0.5 ends itself at that.
        let clean: Vec<Bson> = (0..30).map(|id| format!("id {id}").into()).collect();
        let spoiled: Vec<Bson> = (0..4).map(|id| format!("spoiled {id}").into()).collect();
        let hard: Vec<Vec<u8>> = hard_documents();
        let mut all: Vec<Vec<u8>> = hard.clone();
        all.extend(clean.iter().map(|id| updates::document(&mut rng, id.clone()).to_vec().unwrap()));
        let twice = |id: &Bson| updates::spoiled(&doc! { "_id": id.clone(), "dup": 1, "duQ": 2 });
        all.extend(spoiled.iter().map(twice));
        let raw_all: Vec<RawDocumentBuf> = all.into_iter().map(|d| RawDocumentBuf::from_bytes(d).unwrap()).collect();
        place.database.collection::<RawDocumentBuf>(&collection).insert_many(raw_all).await.unwrap();
        for _ in 0..3 {
            let statements: Vec<Document> = (0..150).map(|i| statement(&mut rng, i, &clean, &spoiled, &hard)).collect();
            let command = doc! { "update": &collection, "updates": statements, "ordered": false };
            let answer = place.database.run_command(command).await.unwrap();
            for error in answer.get_array("writeErrors").into_iter().flatten() {
                if std::env::var_os("REWOUND_SHOW").is_some() {
                    eprintln!("{}", error.as_document().unwrap().get_str("errmsg").unwrap_or_default());
                }
                refused += 1;
            }
            replay.go_on(&place, &namespace).await;
            replay.compare(&place, &collection).await;
        }
        place.database.collection::<Document>(&collection).drop().await.unwrap();
        updates += replay.updates;
    }
    eprintln!("seed {seed}: {updates} updates applied, {refused} refused by the server");
}

/// One update of one document, or of all the clean ones.
fn statement(rng: &mut Rng, i: usize, clean: &[Bson], spoiled: &[Bson], hard: &[Vec<u8>]) -> Document {
    let (id, pipelines) = match rng.below(12) {
        0 => (spoiled[rng.below(spoiled.len())].clone(), false),
        1 => (Document::from_reader(&hard[rng.below(hard.len())][..]).unwrap().remove("_id").unwrap(), false),
        2 if rng.one_in(3) => (format!("new {i}").into(), true),
        _ => (clean[rng.below(clean.len())].clone(), true),
    };
    let mut statement = updates::update(rng, &id, pipelines);
    let mut query = doc! { "_id": id };
    query.extend(statement.remove("q").and_then(|q| q.as_document().cloned()).unwrap_or_default());
    let is_operators = statement.get_document("u").is_ok_and(|u| u.keys().next().is_some_and(|k| k.starts_with('$')));
    let is_many = is_operators && query.len() == 1 && rng.one_in(60);
    statement.insert(
        "q",
        if is_many {
            doc! { "_id": { "$in": clean } }
        } else {
            query
        },
    );
    statement.insert("multi", is_many);
    statement.insert("upsert", !is_many);
    statement
}

#[tokio::test]
async fn random_updates_are_what_the_oldest_server_makes_of_them() {
    random_updates(Mongod::shared(), many(3000)).await;
}

#[tokio::test]
async fn random_updates_are_what_the_newest_server_makes_of_them() {
    let options = Options { newest: true, ..Options::replica_set() };
    random_updates(Arc::new(Mongod::start(options)), many(2000)).await;
}

#[tokio::test]
async fn buckets_of_time_series_are_what_the_server_makes_of_them() {
    let seed = seed();
    let mut rng = Rng(seed);
    let place = Place::new().await;
    let time_series = doc! { "timeField": "t", "metaField": "where" };
    place.run(doc! { "create": "measured", "timeseries": time_series }).await;
    let mut replay = Replay { seed, ..Replay::default() };
    for round in 0..10 {
        let measured = (0..40).map(|i| {
            let time = bson::DateTime::from_millis(1_760_000_000_000 + round * 60_000 + i * 500);
            let mut one = doc! { "t": time, "where": rng.below(3) as i32, "value": updates::number(&mut rng) };
            one.extend([(format!("more {}", rng.below(4)), updates::any(&mut rng, 2))]);
            one
        });
        let documents: Vec<Document> = measured.collect();
        for some in documents.chunks(7) {
            place.insert("measured", some.to_vec()).await;
        }
        replay.go_on(&place, &format!("{}.system.buckets.measured", place.name)).await;
        replay.compare(&place, "system.buckets.measured").await;
    }
    assert!(replay.updates > 50, "{} updates of buckets", replay.updates);
}

/// Patches that fit the documents badly or not at all, as members of a replica set apply them: the
/// server applies these entries itself.
async fn entries(make: impl Fn(&mut Rng) -> Document) {
    let seed = seed();
    let mut rng = Rng(seed);
    let place = Place::new().await;
    let client = place.database.client();
    for round in 0..many(10) {
        let collection = format!("c{round}");
        let namespace = format!("{}.{collection}", place.name);
        let documents: Vec<Vec<u8>> =
            (0..60).map(|id| updates::spoiled(&updates::spoilable(&mut rng, Bson::Int32(id)))).collect();
        let inserted: Vec<_> = documents.iter().map(|d| RawDocumentBuf::from_bytes(d.clone()).unwrap()).collect();
        place.database.collection::<RawDocumentBuf>(&collection).insert_many(inserted).await.unwrap();
        let patches: Vec<Vec<u8>> = documents.iter().map(|_| make(&mut rng).to_vec().unwrap()).collect();
        let mut entries = bson::RawArrayBuf::new();
        for (id, patch) in patches.iter().enumerate() {
            let mut entry =
                RawDocumentBuf::try_from(&doc! { "op": "u", "ns": &namespace, "o2": { "_id": id as i32 } }).unwrap();
            entry.append(bson::cstr!("o"), RawDocumentBuf::from_bytes(patch.clone()).unwrap());
            entries.push(entry);
        }
        let mut command = RawDocumentBuf::new();
        command.append(bson::cstr!("applyOps"), entries);
        client.database("admin").run_raw_command(command).await.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let found = place.database.collection::<RawDocumentBuf>(&collection).find(doc! {}).await.unwrap();
        let found: Vec<RawDocumentBuf> = found.try_collect().await.unwrap();
        for ((before, patch), found) in documents.iter().zip(&patches).zip(&found) {
            let after =
                Patches.applied(before, patch).unwrap_or_else(|e| panic!("seed {seed}: {e:?}: {}", shown(patch)));
            if after != found.as_bytes() {
                let [before, patch, ours, server] =
                    [before, patch, &after, &found.as_bytes().to_vec()].map(|d| shown(d));
                panic!("seed {seed}:\nbefore: {before}\npatch:  {patch}\nours:   {ours}\nserver: {server}");
            }
        }
    }
}

#[tokio::test]
async fn diffs_that_do_not_fit_are_applied_as_the_server_does() {
    entries(|rng| doc! { "$v": 2, "diff": updates::diff(rng, 3) }).await;
}

#[tokio::test]
async fn modifiers_are_applied_as_the_server_does() {
    entries(updates::modifiers).await;
}

#[tokio::test]
async fn broken_patches_are_refused_by_the_server_too() {
    let place = Place::new().await;
    let body = doc! { "_id": 1, "a": 1, "r": [1, 2], "o": { "x": 1 } };
    place.insert("c", vec![body.clone()]).await;
    let client = place.database.client();
    let body = body.to_vec().unwrap();
    for patch in [
        doc! { "$v": 2, "diff": {} },
        doc! { "$v": 2 },
        doc! { "$v": 2, "diff": { "so": {} } },
        doc! { "$v": 2, "diff": { "x": { "a": 1 } } },
        doc! { "$v": 2, "diff": { "u": 1 } },
        doc! { "$v": 2, "diff": { "d": { "a": false }, "u": { "a": 1 } } },
        doc! { "$v": 2, "diff": { "u": { "a": 1 }, "sa": { "u": { "b": 1 } } } },
        doc! { "$v": 2, "diff": { "sr": { "a": false, "u0": 1 } } },
        doc! { "$v": 2, "diff": { "sr": { "a": true, "u": 1 } } },
        doc! { "$v": 2, "diff": { "sr": { "a": true, "ux": 1 } } },
        doc! { "$v": 2, "diff": { "sr": { "a": true, "x1": 1 } } },
        doc! { "$v": 2, "diff": { "sr": { "a": true, "s1": 1 } } },
        doc! { "$v": 3, "diff": { "u": { "a": 2 } } },
        doc! { "a": 2 },
    ] {
        let kind = Patches.applied(&body, &patch.to_vec().unwrap()).unwrap_err().kind();
        let expected =
            if patch.get_i32("$v").is_ok_and(|v| v == 3) { ErrorKind::Unsupported } else { ErrorKind::Corrupt };
        assert_eq!(kind, expected, "{patch}");
        let entry = doc! { "op": "u", "ns": format!("{}.c", place.name), "o2": { "_id": 1 }, "o": &patch };
        let answer = client.database("admin").run_command(doc! { "applyOps": [entry] }).await;
        assert!(answer.is_err(), "the server takes {patch}");
    }
}

/// How fast: `cargo test --release -p rewound-mongodb --test patch speed -- --ignored --nocapture`.
#[test]
#[ignore = "measures"]
fn speed() {
    let mut body = doc! { "_id": 1 };
    (0..40).for_each(|i| drop(body.insert(format!("field {i}"), "x".repeat(10))));
    body.insert("array", (0..20).collect::<Vec<i32>>());
    body.insert("inner", doc! { "a": 1, "b": { "c": 2, "d": 3 } });
    let body = body.to_vec().unwrap();
    let patches = [
        ("one field", doc! { "$v": 2, "diff": { "u": { "field 20": "new" } } }),
        ("one new field", doc! { "$v": 2, "diff": { "i": { "more": 1 } } }),
        ("nested", doc! { "$v": 2, "diff": { "u": { "field 3": 1 }, "sinner": { "sb": { "u": { "d": 4 } } } } }),
        ("array", doc! { "$v": 2, "diff": { "sarray": { "a": true, "u5": 1, "u20": 2 } } }),
        ("modifiers", doc! { "$v": 1, "$set": { "field 20": "new", "inner.b.d": 4 } }),
    ];
    for (name, patch) in patches {
        let patch = patch.to_vec().unwrap();
        let (start, rounds) = (Instant::now(), 200_000);
        for _ in 0..rounds {
            std::hint::black_box(Patches.applied(&body, &patch).unwrap());
        }
        let rate = rounds as f64 / start.elapsed().as_secs_f64() / 1e6;
        eprintln!("{name}: {rate:.2} million patches/s of a document of {} bytes", body.len());
    }
}
