//! What it costs to resolve a time after many increments, and to find a document among many flushes.

use crate::Arguments;
use crate::documents::{COLLECTION, Dice, Form, batches, key};
use crate::machine::{Watch, peak};
use crate::place::{Place, collection, documents_in, options, source};
use futures::TryStreamExt;
use model::{
    Batch, BatchBuilder, ChangeBatch, CollectionId, Consistency, Description, Encoding, EngineTime, Error, FeedKind,
    Kind, Patcher, Position, Result, Selection,
};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use testkit::faulty::CountingStorage;
use vault::{Flush, PointDetails, Run, Vault, WriteOutcome};

/// The time of the base.
const START: i64 = 1_000_000;
/// What a patch adds: about as many bytes as MongoDB writes of an update of two fields.
const PATCH: &[u8] = b"{\"diff\":{\"u\":{\"visits\":4711,\"modified\":\"2026-11-20T09:03:00Z\"}}}";

/// Appends, which costs what any patch costs at least: the body is copied.
struct Append;

impl Patcher for Append {
    fn apply(&self, body: &[u8], patch: &[u8], into: &mut Vec<u8>) -> Result<()> {
        into.extend_from_slice(body);
        into.extend_from_slice(patch);
        Ok(())
    }
}

fn described() -> Description {
    Description { feed: FeedKind::EveryChange, ..source("bench", vec![collection()]) }
}

fn position(time: i64) -> Position {
    Position(time.to_string())
}

fn details(time: i64) -> PointDetails {
    PointDetails {
        time: EngineTime::wall(time),
        consistency: Consistency::OneTime,
        position: Some(position(time)),
        gap: None,
        skipped: Vec::new(),
    }
}

/// Whether an increment changes a document: each the hundredth part at random, or, if all are to be
/// changed, each once.
fn changes(number: u64, increment: u64, increments: u64, all: bool) -> bool {
    match all {
        true => Dice::new(number, 55).below(increments) == increment - 1,
        false => Dice::new(number, 1000 + increment).below(100) == 0,
    }
}

/// Whether a change is a put of the whole document, and not a patch.
fn is_put(number: u64, increment: u64, puts: u64) -> bool {
    Dice::new(number, 5000 + increment).below(100) < puts
}

/// A base, and `increments` flushes, of which each changes 1 % of the documents, or with `all=yes` all
/// together change each document once; of each hundred changes `puts` are whole documents.
pub async fn make(arguments: &Arguments) -> Result<Value> {
    let (form, increments, puts) = (arguments.form()?, arguments.number("increments")?, arguments.number("puts")?);
    let (documents, all) = (documents_in(form, arguments.number("bytes")?), arguments.flag("all"));
    let place = Place::new(arguments.get("dir")?);
    let vault = place.make().await?;
    let mut lengths = base(&vault, batches(form, 0..documents, |_| 0)).await?;
    let run = vault.start_run(&described(), options(false)).await?;
    run.follow_from(&position(START), EngineTime::wall(START)).await?;
    let mut changed = 0;
    for increment in 1..=increments {
        let ours = |put: bool| {
            let wanted = move |n: &u64| changes(*n, increment, increments, all) && is_put(*n, increment, puts) == put;
            (0..documents).filter(wanted)
        };
        let mut flush = Vec::new();
        // Documents are told apart by their numbers, which batches do not say.
        let mut numbers = ours(true);
        for batch in batches(form, ours(true), |_| increment) {
            for (i, number) in (0..batch.len()).zip(&mut numbers) {
                lengths[number as usize] = batch.body_of(i).len() as u32;
            }
            flush.push(batch);
        }
        flush
            .extend(patches(flush_encoding(form), ours(false).inspect(|n| lengths[*n as usize] += PATCH.len() as u32)));
        changed += flush.iter().map(Batch::len).sum::<usize>();
        append(&run, increment, flush).await?;
    }
    run.commit(details(START + increments as i64)).await?;
    let raw: u64 = lengths.iter().map(|l| u64::from(*l)).sum();
    let made = json!({"documents": documents, "raw": raw, "changed": changed, "increments": increments});
    std::fs::write(expected(arguments)?, made.to_string()).map_err(|e| Error::io("writing what is expected", e))?;
    Ok(made)
}

fn flush_encoding(form: Form) -> Encoding {
    if form == Form::Bson { Encoding::Bson } else { Encoding::Json }
}

fn expected(arguments: &Arguments) -> Result<PathBuf> {
    Ok(PathBuf::from(arguments.get("dir")?).join("expected.json"))
}

/// Backs the base up; gives the lengths of its documents.
async fn base(vault: &Vault, batches: impl Iterator<Item = Batch>) -> Result<Vec<u32>> {
    let mut lengths = Vec::new();
    let run = vault.start_run(&described(), options(false)).await?;
    run.scanned_at(EngineTime::wall(START)).await;
    run.begin(&collection()).await?;
    run.read_at(&collection().id, EngineTime::wall(START)).await;
    for batch in batches {
        lengths.extend(batch.docs.iter().map(|d| d.end - d.start));
        if run.write(batch).await? == WriteOutcome::ReadAgain {
            return Err(Error::bug("a collection without an order was out of order"));
        }
    }
    run.end(&collection().id).await?;
    run.commit(details(START)).await?;
    Ok(lengths)
}

/// Patches of documents.
fn patches(encoding: Encoding, numbers: impl Iterator<Item = u64>) -> Vec<Batch> {
    let mut builder = BatchBuilder::new(CollectionId::new(COLLECTION), Kind::Patch, encoding);
    let mut batches = Vec::new();
    for number in numbers {
        builder.push(key(number).as_bytes(), PATCH);
        if builder.bytes() >= model::limits::BATCH {
            batches.push(builder.take());
        }
    }
    batches.push(builder.take());
    batches
}

async fn append(run: &Run, increment: u64, batches: Vec<Batch>) -> Result<()> {
    let time = EngineTime::wall(START + increment as i64);
    let change = |batch: Batch| ChangeBatch { times: vec![time; batch.len()], batch };
    let changes = batches.into_iter().filter(|b| !b.is_empty()).map(change).collect();
    run.append(Flush { to: position(time.millis), time, changes, catalog: Vec::new() }).await.map(drop)
}

/// Resolves the newest time to nowhere with `memory` MiB, or with `base=yes` the base alone.
pub async fn read(arguments: &Arguments) -> Result<Value> {
    let vault = Place::new(arguments.get("dir")?).open().await?;
    let text = std::fs::read_to_string(expected(arguments)?).map_err(|e| Error::io("reading what is expected", e))?;
    let told: Value = serde_json::from_str(&text).map_err(|_| Error::corrupt("what is expected is not JSON"))?;
    let increments = if arguments.flag("base") { 0 } else { told["increments"].as_i64().unwrap_or_default() };
    let watch = Watch::start();
    let points = vault.points().await?;
    let tag = points.points.last().map(|p| p.name.source.clone()).ok_or_else(|| Error::missing("there is no point"))?;
    let at = EngineTime::wall(START + increments);
    let state = vault.resolve_at(&tag, at, &Selection::default(), Some(Arc::new(Append))).await?;
    let state = state.with_memory((arguments.number("memory")? as usize) << 20);
    let (mut documents, mut raw) = (0, 0);
    for collection in state.collections() {
        let mut batches = state.read(collection);
        while let Some(batch) = batches.try_next().await? {
            documents += batch.len();
            raw += batch.raw_bytes();
        }
    }
    if told["documents"] != documents || (increments > 0 && told["raw"] != raw) {
        return Err(Error::corrupt(format!("{documents} documents of {raw} bytes were read, not {text}")));
    }
    Ok(json!({"cpu": watch.cpu(), "wall": watch.wall(), "raw": raw, "documents": documents, "peak": peak()}))
}

/// A live backup's chains: `runs` of them, `flushes` in all, a second and 20 documents each.
pub async fn make_flushes(arguments: &Arguments) -> Result<Value> {
    let (flushes, runs, documents) =
        (arguments.number("flushes")?, arguments.number("runs")?, arguments.number("documents")?);
    let place = Place::new(arguments.get("dir")?);
    let vault = place.make().await?;
    base(&vault, batches(Form::Small, 0..documents, |_| 0)).await?;
    let each = flushes / runs;
    for number in 0..runs {
        let (first, last) = (number * each, (number + 1) * each);
        let run = vault.start_run(&described(), options(false)).await?;
        let start = START + first as i64;
        run.follow_from(&position(start), EngineTime::wall(start)).await?;
        for flush in first + 1..=last {
            let numbers = (0..20).map(|n| changed_by(flush, n, documents));
            append(&run, flush, batches(Form::Small, numbers, |_| flush).collect()).await?;
        }
        run.commit(details(START + last as i64)).await?;
    }
    Ok(json!({"stored": place.bytes()}))
}

/// The document that is the `n`th of a flush.
fn changed_by(flush: u64, n: u64, documents: u64) -> u64 {
    Dice::new(flush * 20 + n, 77).below(documents)
}

/// Finds all versions of some documents, opening the vault each time.
pub async fn find(arguments: &Arguments) -> Result<Value> {
    let (flushes, documents) = (arguments.number("flushes")?, arguments.number("documents")?);
    let place = Place::new(arguments.get("dir")?);
    let storage = CountingStorage::new(place.storage()?);
    let mut finds = Vec::new();
    for turn in 0..arguments.number("finds")? {
        let wanted = Dice::new(turn, 88).below(documents);
        let changed = |flush: &u64| (0..20).any(|n| changed_by(*flush, n, documents) == wanted);
        let expected = 1 + (1..=flushes).filter(changed).count();
        storage.reset();
        let watch = Watch::start();
        let vault = Vault::open(storage.clone(), place.access()?).await?;
        let found = vault.find(COLLECTION, key(wanted).as_bytes(), None).await?;
        let (wall, asked) = (watch.wall(), storage.operations());
        if found.len() != expected {
            return Err(Error::bug(format!("{} versions were found, not {expected}", found.len())));
        }
        finds.push(json!({
            "wall": wall,
            "cpu": watch.cpu(),
            "versions": expected,
            "reads": asked.reads,
            "requests": asked.reads + asked.lists + asked.stats,
            "bytes": asked.bytes_read,
        }));
    }
    Ok(json!({"finds": finds}))
}
