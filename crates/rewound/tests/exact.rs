//! Any second of a real database: a writer does everything that can be done and remembers what the
//! database held after each step, while backups run beside it. Whatever moment is asked for comes back,
//! byte for byte.
//!
//! `REWOUND_LONG=1` makes it long (thousands of moments); `REWOUND_SEED=N` replays a failing seed.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "exact/writer.rs"]
mod writer;

use futures::TryStreamExt;
use model::{EngineTime, Seams, Selection};
use mongo::{MongoSource, Server};
use rewound::backup::{Destination, backup};
use rewound::{Event, Job, Observer, Stop, registry};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use testkit::mongod::{Mongod, Options};
use vault::storage::MemoryStorage;
use vault::{Access, BackupOptions, Protection, Vault};
use writer::{Held, Writer};

struct Silent;

impl Observer for Silent {
    fn on(&self, _: Event) {}
}

fn seed() -> u64 {
    std::env::var("REWOUND_SEED").map_or_else(|_| rand_seed(), |text| text.parse().unwrap())
}

fn rand_seed() -> u64 {
    u64::from_le_bytes(Seams::system().bytes())
}

async fn new_vault() -> Vault {
    let seams = Seams::system();
    let storage = Arc::new(MemoryStorage::new(seams.clock.clone()));
    Vault::init(storage, Protection::Plain, Access { identities: Vec::new(), config: None, seams }).await.unwrap()
}

/// What a vault says that a database held at a time.
async fn held_at(vault: &Vault, tag: &str, time: EngineTime) -> Held {
    let patcher = registry::patcher(&model::Engine::new("mongodb"));
    let state = vault.resolve_at(tag, time, &Selection::default(), patcher).await.unwrap();
    let mut held = BTreeMap::new();
    for entry in state.collections() {
        let mut documents = Vec::new();
        let mut batches = state.read(entry);
        while let Some(batch) = batches.try_next().await.unwrap() {
            documents.extend((0..batch.len()).map(|i| batch.body_of(i).to_vec()));
        }
        documents.sort();
        let name = entry.info.name.split_once('.').unwrap().1.to_owned();
        assert!(held.insert(name, Arc::new(documents)).is_none(), "two collections have one name");
    }
    held
}

fn show(document: &[u8]) -> String {
    bson::Document::from_reader(document).map_or_else(|e| e.to_string(), |d| d.to_string())
}

/// Says what differs, not all that there is.
fn compare(found: &Held, expected: &Held, when: &str) {
    let names = |held: &Held| held.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected), "collections {when}");
    for (name, documents) in expected {
        let missing: Vec<String> = documents.iter().filter(|d| !found[name].contains(d)).map(|d| show(d)).collect();
        let extra: Vec<String> = found[name].iter().filter(|d| !documents.contains(d)).map(|d| show(d)).collect();
        assert!(missing.is_empty() && extra.is_empty(), "{name} {when}:\nlacks {missing:#?}\nhas {extra:#?}");
        assert_eq!(found[name].len(), documents.len(), "{name} {when}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_moment_comes_back() {
    let seed = seed();
    println!("REWOUND_SEED={seed}");
    let (steps, asked) = if std::env::var_os("REWOUND_LONG").is_some() { (6000, 1000) } else { (900, 290) };
    let mongod = Arc::new(Mongod::start(Options::replica_set()));
    let database = mongod.database_name();
    let mut writer = Writer::new(&mongod.url(), &database, seed).await;
    for _ in 0..50 {
        writer.step().await;
    }
    let done = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn({
        let done = done.clone();
        async move {
            for _ in 0..steps {
                writer.step().await;
            }
            done.store(true, Ordering::Relaxed);
            writer
        }
    });
    let vault = new_vault().await;
    let source = MongoSource::new(Arc::new(Server::new(mongod.url_of(&database), None))).concurrency(2);
    let job = Job::new(Arc::new(Silent), Stop::new());
    let mut backups = 0;
    let mut last = false;
    while !last {
        last = done.load(Ordering::Relaxed);
        let destination = Destination { url: "memory".into(), vault: Ok(vault.clone()) };
        // Now and then everything is scanned anew, and must fit what the log says.
        let options = BackupOptions { full: backups % 7 == 6, ..BackupOptions::default() };
        let report = backup(&job, &source, vec![destination], &Selection::default(), &options).await.unwrap();
        assert!(report.gap.is_none(), "{:?}", report.gap);
        backups += 1;
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
    let mut writer = writing.await.unwrap();
    let points = vault.points().await.unwrap();
    assert!(points.points.len() == backups && backups > 2, "{backups} backups");
    let tag = points.points[0].name.source.clone();
    let (from, to) = (points.points[0].manifest.time, points.points[backups - 1].manifest.time);
    let moments: Vec<_> = writer.moments.iter().filter(|m| m.time >= from && m.time <= to).cloned().collect();
    assert!(moments.len() * 2 > writer.moments.len(), "{} of {}", moments.len(), writer.moments.len());
    assert_eq!(moments.last().unwrap().time, writer.moments.last().unwrap().time, "the last point has everything");
    for _ in 0..asked {
        let moment = &moments[writer.number(moments.len() as u64) as usize];
        let when = format!("at {:?} after {} (REWOUND_SEED={seed})", moment.time, moment.step);
        compare(&held_at(&vault, &tag, moment.time).await, &moment.held, &when);
    }
}
