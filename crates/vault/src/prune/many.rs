//! A vault of 100,000 segments, 1,000,000 objects of the log and 10,000 points: what a dry run and a
//! list of what can be restored cost. Not run by default; in a release build:
//! `cargo test --release -p rewound-vault --lib -- --ignored --nocapture a_million`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

use super::{Policy, PruneOptions};
use crate::compress::Compressor;
use crate::manifest::{Layer, LayerRef, LogSpan, Manifest, POINT_CONTEXT, ScanSpan};
use crate::name::{LogName, ObjectKind, ObjectName, PointName};
use crate::segment::SegmentEntry;
use crate::signed;
use crate::storage::{Created, Entry, MemoryStorage, Storage};
use crate::{Access, BackupOptions, PointDetails, Protection, Vault};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use jiff::ToSpan;
use jiff::tz::TimeZone;
use model::{Consistency, Description, Engine, EngineTime, FeedKind, FixedClock, Result, Seams, SeededRandom};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const POINTS: u64 = 10_000;
/// Points that one scan serves.
const SERVED: u64 = 100;
const SEGMENTS: u64 = 100_000;
/// Objects of the chain that each point's run wrote, a minute each.
const FLUSHES: u64 = 100;
const START: u64 = 1_700_000_000_000;
const MINUTE: u64 = 60_000;

/// A storage that makes up the names of segments and of the log when they are listed.
#[derive(Debug)]
struct Many {
    real: MemoryStorage,
    tag: std::sync::OnceLock<String>,
    requests: AtomicU64,
}

fn hash(what: &str, number: u64) -> [u8; 32] {
    *blake3::hash(format!("{what} {number}").as_bytes()).as_bytes()
}

fn segment(number: u64) -> ObjectName {
    let (content, stored) = (hash("content", number), hash("stored", number));
    ObjectName { kind: ObjectKind::Segment, content, stored, endings: "json.zst".into() }
}

fn run_of(point: u64) -> String {
    format!("{:016x}", point + 1)
}

/// The objects of a chain: the first half also rolled up into one.
fn log(tag: &str, number: u64) -> LogName {
    let (point, flush) = (number / FLUSHES, number % FLUSHES);
    let (first, last) = match flush {
        0 => (0, FLUSHES / 2 - 1),
        n if n == FLUSHES - 1 => (n - 1, n),
        n => (n - 1, n - 1),
    };
    let start = START + point * FLUSHES * MINUTE;
    LogName {
        source: tag.to_owned(),
        run: run_of(point),
        first: first as u32,
        last: last as u32,
        from: start + first * MINUTE,
        to: start + (last + 1) * MINUTE,
        stored: hash("log", number),
        endings: "json.zst".into(),
    }
}

fn entry(name: String) -> Result<Entry> {
    Ok(Entry { name, size: 5000, modified: START as i64 })
}

#[async_trait]
impl Storage for Many {
    fn location(&self) -> String {
        "many".into()
    }
    fn is_local(&self) -> bool {
        false
    }
    async fn create(&self, name: &str, bytes: Bytes) -> Result<Created> {
        self.real.create(name, bytes).await
    }
    async fn replace(&self, name: &str, bytes: Bytes) -> Result<()> {
        self.real.replace(name, bytes).await
    }
    async fn sync(&self) -> Result<()> {
        Ok(())
    }
    async fn read(&self, name: &str) -> Result<Bytes> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.real.read(name).await
    }
    async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Bytes> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.real.read_range(name, range).await
    }
    async fn stat(&self, name: &str) -> Result<Option<Entry>> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.real.stat(name).await
    }
    async fn list(&self, prefix: &str) -> Result<BoxStream<'static, Result<Entry>>> {
        let real = self.real.list(prefix).await?;
        let Some(tag) = self.tag.get().cloned() else { return Ok(real) };
        let made: BoxStream<'static, Result<Entry>> = match prefix {
            "segments/" => stream::iter((0..SEGMENTS).map(|n| entry(segment(n).to_string()))).boxed(),
            "history/" => stream::iter((0..POINTS * FLUSHES).map(move |n| entry(log(&tag, n).to_string()))).boxed(),
            _ => stream::empty().boxed(),
        };
        // Object storage answers with a thousand names at a time.
        let pages = match prefix {
            "segments/" => SEGMENTS / 1000,
            "history/" => (POINTS * FLUSHES + POINTS) / 1000,
            _ => 1,
        };
        self.requests.fetch_add(pages, Ordering::Relaxed);
        Ok(real.chain(made).boxed())
    }
    async fn delete(&self, name: &str) -> Result<()> {
        self.real.delete(name).await
    }
    async fn free_space(&self) -> Result<Option<u64>> {
        Ok(None)
    }
}

async fn put(vault: &Vault, kind: ObjectKind, plain: &[u8], number: u64) -> String {
    let mut bytes = Vec::new();
    Compressor::new(3).unwrap().frame(plain, &mut bytes).unwrap();
    let stored = *blake3::hash(&bytes).as_bytes();
    let name = ObjectName { kind, content: hash("layer", number), stored, endings: "json.zst".into() }.to_string();
    vault.storage().create(&name, bytes.into()).await.unwrap();
    name
}

/// Makes the points: every hundredth has a new scan of a thousand segments.
async fn fill(vault: &Vault, tag: &str, template: &Manifest) {
    let mut layer: Option<Arc<LayerRef>> = None;
    let mut previous = None;
    for number in 0..POINTS {
        let at = |minutes: u64| EngineTime::wall((START + (number * FLUSHES + minutes) * MINUTE) as i64);
        if number % SERVED == 0 {
            let each = SEGMENTS * SERVED / POINTS;
            let first = number / SERVED * each;
            let segments = (first..first + each).map(|n| SegmentEntry {
                object: segment(n).to_string(),
                size: 5_000_000,
                head: String::new(),
                frames: Vec::new(),
                raw: 16 << 20,
                counts: Vec::new(),
            });
            let content = Layer {
                rewound: "layer".into(),
                run: run_of(number),
                time: at(0),
                segments: segments.collect(),
                collections: Vec::new(),
                contents: Default::default(),
                filters: Vec::new(),
                hashes: Vec::new(),
                hash_collections: Vec::new(),
            };
            let object = put(vault, ObjectKind::Layer, &serde_json::to_vec(&content).unwrap(), number).await;
            let of = template.layers[0].as_ref().clone();
            layer = Some(Arc::new(LayerRef { object, run: run_of(number), time: at(0), ..of }));
        }
        let base = layer.clone().unwrap();
        let manifest = Manifest {
            run: run_of(number),
            committed: at(FLUSHES).millis,
            time: at(FLUSHES),
            previous: previous.clone(),
            scan: Some(ScanSpan { from: base.time, to: base.time, catalog: None, catalog_object: None }),
            log: Some(LogSpan {
                run: run_of(number),
                from: at(0),
                to: at(FLUSHES),
                objects: FLUSHES as u32,
                last: String::new(),
            }),
            layers: vec![base],
            ..template.clone()
        };
        let signed = signed::write(vault.inner.signing().unwrap(), POINT_CONTEXT, &manifest).unwrap();
        let mut bytes = Vec::new();
        Compressor::new(3).unwrap().frame(&signed, &mut bytes).unwrap();
        let name = PointName {
            source: tag.to_owned(),
            committed: manifest.committed as u64,
            run: run_of(number),
            stored: *blake3::hash(&bytes).as_bytes(),
            encrypted: false,
        };
        vault.storage().create(&name.to_string(), bytes.into()).await.unwrap();
        previous = Some(name.to_string());
    }
}

/// Memory now and at most, in MiB, and CPU seconds so far.
fn spent() -> (u64, u64, f64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let of = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    };
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<f64> = stat.rsplit(')').next().unwrap().split_whitespace().filter_map(|f| f.parse().ok()).collect();
    (of("VmRSS"), of("VmHWM"), (fields[10] + fields[11]) / 100.0)
}

#[tokio::test]
#[ignore = "a measurement"]
async fn a_million_objects_of_the_log() {
    let now = START + POINTS * FLUSHES * MINUTE;
    let clock = Arc::new(FixedClock::at(now as i64));
    let real = MemoryStorage::new(clock.clone());
    let storage = Arc::new(Many { real, tag: std::sync::OnceLock::new(), requests: AtomicU64::new(0) });
    let seams = Seams { clock, random: Arc::new(SeededRandom::new(1)) };
    let access = Access { identities: Vec::new(), config: None, seams };
    let vault = Vault::init(storage.clone(), Protection::Plain, access).await.unwrap();
    let description = Description {
        engine: Engine::new("test"),
        identity: "s".into(),
        name: "s".into(),
        version: "1".into(),
        feed: FeedKind::EveryChange,
        collections: Vec::new(),
        losses: Vec::new(),
    };
    let run = vault.start_run(&description, BackupOptions::default()).await.unwrap();
    let time = EngineTime::wall(START as i64);
    let details =
        PointDetails { time, consistency: Consistency::OneTime, position: None, gap: None, skipped: Vec::new() };
    let (name, template) = run.commit(details).await.unwrap();
    storage.delete(&name.to_string()).await.unwrap();
    fill(&vault, &name.source, &template).await;
    storage.tag.set(name.source.clone()).unwrap();
    let real: u64 = storage
        .real
        .list("")
        .await
        .unwrap()
        .map_ok(|e| e.size)
        .try_fold(0, |a, b| async move { Ok(a + b) })
        .await
        .unwrap();
    let (before, _, cpu) = spent();
    eprintln!("made: {before} MiB, of which {} MiB are the storage's own; {cpu:.1} CPU s", real >> 20);

    let options = PruneOptions {
        policy: Policy { daily: Some(30), monthly: Some(12), any_second_within: Some(30.days()), ..Policy::default() },
        dry_run: true,
        zone: TimeZone::UTC,
        source: None,
    };
    storage.requests.store(0, Ordering::Relaxed);
    let report = vault.prune_by(&options).await.unwrap();
    let (_, peak, after) = spent();
    let requests = storage.requests.swap(0, Ordering::Relaxed);
    eprintln!(
        "prune --dry-run: {:.1} CPU s, at most {peak} MiB in all, {requests} requests; {} points and {} objects would go",
        after - cpu,
        report.removed_points().count(),
        report.removed
    );
    assert!(report.removed_points().count() > 5000 && report.removed > 500_000);
    // Up to each of the older points that are kept, and all of the last 30 days.
    let intervals = &report.remaining[0].intervals;
    assert!(intervals.len() > 5 && intervals.last().unwrap().to == now as i64, "{intervals:?}");
    assert!(after - cpu < 60.0 && peak < before + 512);

    let points = vault.points().await.unwrap();
    let histories = vault.histories(&points).await.unwrap();
    let (_, peak, last) = spent();
    let requests = storage.requests.swap(0, Ordering::Relaxed);
    eprintln!("points: {:.1} CPU s, at most {peak} MiB in all, {requests} requests", last - after);
    assert_eq!((points.points.len() as u64, histories[0].intervals.len()), (POINTS, 1));
    assert!(last - after < 60.0 && peak < before + 512);
}
