//! A vault of very many points and segments, listed and checked.
//!
//! It is made by the vault's own runs, in memory, and then laid down on the disk without waiting
//! for it. Each point changes documents in three encodings and five attachments, so it adds three
//! segments, a list of hashes, a pack, five parts, a filter and a layer; up to 64 layers pile up
//! before a run stores everything anew.

use crate::Arguments;
use crate::machine::{Watch, cpu, peak};
use crate::place::{Place, commit, options, source};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use model::{BatchBuilder, CollectionId, CollectionInfo, Encoding, Error, FixedClock, Kind, OsRandom, Result, Seams};
use serde_json::{Value, json};
use std::sync::Arc;
use vault::storage::{MemoryStorage, Storage};
use vault::{Access, Protection, Vault, VerifyOptions};

/// Documents of each collection.
const DOCUMENTS: usize = 4;
/// Attachments that a point stores as parts of their own.
const LARGE: usize = 5;
/// The smallest content that is stored as a part.
const LARGE_BYTES: usize = 1 << 20;

/// Makes the vault: `points` points of `sources` sources.
pub async fn make(arguments: &Arguments) -> Result<Value> {
    let place = Place::new(arguments.get("dir")?);
    let identity = place.make_identity()?;
    let clock = || Arc::new(FixedClock::at(1_760_000_000_000));
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(clock()));
    let (points, sources) = (arguments.number("points")?, arguments.number("sources")?);
    let access = |clock: Arc<FixedClock>| Access {
        identities: vec![identity.clone()],
        config: None,
        seams: Seams { clock, random: Arc::new(OsRandom) },
    };
    Vault::init(storage.clone(), Protection::Recipients(vec![identity.recipient()]), access(clock())).await?;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..sources {
        let clock = clock();
        let vault = Vault::open(storage.clone(), access(clock.clone())).await?;
        tasks.spawn(async move {
            for point in 0..points / sources {
                add_point(&vault, number, point, 1_760_000_000_000 + point as i64 * 3_600_000).await?;
                clock.advance(3_600_000);
            }
            Ok::<_, Error>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.map_err(|e| Error::bug(e.to_string()))??;
    }
    let objects: Vec<_> = storage.list("").await?.try_collect().await?;
    let mut count = std::collections::BTreeMap::new();
    for object in objects {
        let path = place.vault_folder().join(&object.name);
        let failed = |e| Error::io("laying the vault down", e);
        std::fs::create_dir_all(path.parent().unwrap_or(&path)).map_err(failed)?;
        std::fs::write(&path, storage.read(&object.name).await?).map_err(failed)?;
        let folder = object.name.split('/').next().unwrap_or_default().to_owned();
        *count.entry(folder).or_insert(0u64) += 1;
    }
    Ok(json!({"objects": count, "bytes": place.bytes(), "cpu": cpu()}))
}

async fn add_point(vault: &Vault, number: u64, point: u64, millis: i64) -> Result<()> {
    let encodings = [("json", Encoding::Json), ("bson", Encoding::Bson), ("bin", Encoding::Bin)];
    let collections = encodings.map(|(name, _)| CollectionInfo {
        id: CollectionId::new(name),
        name: name.into(),
        options: Value::Null,
        ordered: false,
    });
    let run = vault.start_run(&source(&format!("source {number}"), collections.to_vec()), options(true)).await?;
    for ((_, encoding), info) in encodings.into_iter().zip(&collections) {
        run.begin(info).await?;
        let mut documents = BatchBuilder::new(info.id.clone(), Kind::Document, encoding);
        for i in 0..DOCUMENTS {
            let body = format!("{{\"source\":{number},\"document\":{i},\"point\":{point}}}");
            documents.push(format!("{}{i}", info.name).as_bytes(), body.as_bytes());
        }
        run.write(documents.take()).await?;
    }
    let info = &collections[0];
    let mut attachments = BatchBuilder::new(info.id.clone(), Kind::Attachment, Encoding::Json);
    for i in 0..=LARGE {
        let mut content = format!("{number} {point} {i}").into_bytes();
        content.resize(if i == LARGE { 100 } else { LARGE_BYTES }, b' ');
        let content = stream::iter([Ok(Bytes::from(content))]).boxed();
        let stored = run.attachments().put(content).await?;
        attachments.push_attachment(format!("json0/{i}").as_bytes(), b"{\"document\":\"json0\"}", stored);
    }
    run.write(attachments.take()).await?;
    for info in &collections {
        run.end(&info.id).await?;
    }
    commit(run, millis).await.map(drop)
}

/// Lists all points.
pub async fn points(arguments: &Arguments) -> Result<Value> {
    let place = Place::new(arguments.get("dir")?);
    let watch = Watch::start();
    let all = place.open().await?.points().await?;
    if !all.broken.is_empty() {
        return Err(Error::corrupt(format!("{} points are broken", all.broken.len())));
    }
    let layers: usize = all.points.iter().map(|p| p.manifest.layers.len()).sum();
    Ok(
        json!({"points": all.points.len(), "layers_named": layers, "cpu": watch.cpu(), "wall": watch.wall(), "peak": peak()}),
    )
}

/// Checks all stored bytes and references.
pub async fn verify(arguments: &Arguments) -> Result<Value> {
    let place = Place::new(arguments.get("dir")?);
    let watch = Watch::start();
    let report =
        place.open().await?.verify(&VerifyOptions { quick: true, ..VerifyOptions::default() }, &|_| {}).await?;
    if !report.damages.is_empty() || !report.checked_references {
        return Err(Error::corrupt(format!("{} objects are damaged", report.damages.len())));
    }
    Ok(
        json!({"objects": report.objects, "points": report.points, "cpu": watch.cpu(), "wall": watch.wall(), "peak": peak()}),
    )
}
