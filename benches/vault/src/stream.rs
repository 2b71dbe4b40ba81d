//! One large backup written and read back.

use crate::Arguments;
use crate::documents::batches;
use crate::machine::{Watch, peak};
use crate::place::{Place, backup, documents_in};
use futures::TryStreamExt;
use model::{Error, Result, Selection};
use serde_json::{Value, json};
use std::io::Write;
use vault::Digest;

/// Writes the documents to a plain file, for other programs to compress.
pub fn file(arguments: &Arguments) -> Result<Value> {
    let form = arguments.form()?;
    let failed = |e| Error::io("writing the file", e);
    let mut out = std::io::BufWriter::new(std::fs::File::create(arguments.get("file")?).map_err(failed)?);
    let mut raw = 0;
    for batch in batches(form, 0..documents_in(form, arguments.number("bytes")?), |_| 0) {
        out.write_all(&batch.body).map_err(failed)?;
        raw += batch.body.len();
    }
    out.flush().map_err(failed)?;
    Ok(json!({"raw": raw}))
}

/// Only compresses the documents, from memory to nowhere, as one zstd stream.
pub fn compress(arguments: &Arguments) -> Result<Value> {
    let form = arguments.form()?;
    let ready: Vec<_> = batches(form, 0..documents_in(form, arguments.number("bytes")?), |_| 0).collect();
    let watch = Watch::start();
    let failed = |e| Error::io("compressing", e);
    let mut encoder = zstd::stream::write::Encoder::new(std::io::sink(), 1).map_err(failed)?;
    encoder.include_checksum(true).map_err(failed)?;
    for batch in &ready {
        encoder.write_all(&batch.body).map_err(failed)?;
    }
    encoder.finish().map_err(failed)?;
    Ok(json!({"cpu": watch.cpu(), "wall": watch.wall()}))
}

/// A first backup into a new vault. With `memory=yes` all documents are made before the clock
/// starts; without, while it runs, so that they take no memory.
pub async fn write(arguments: &Arguments) -> Result<Value> {
    let form = arguments.form()?;
    let numbers = 0..documents_in(form, arguments.number("bytes")?);
    let vault = Place::new(arguments.get("dir")?).make().await?;
    let compare = arguments.flag("compare");
    let (watch, manifest) = if arguments.flag("memory") {
        let ready: Vec<_> = batches(form, numbers, |_| 0).collect();
        let watch = Watch::start();
        (watch, backup(&vault, ready.into_iter(), compare).await?)
    } else {
        (Watch::start(), backup(&vault, batches(form, numbers, |_| 0), compare).await?)
    };
    Ok(json!({
        "cpu": watch.cpu(),
        "wall": watch.wall(),
        "raw": manifest.totals.document_bytes,
        "documents": manifest.totals.documents,
        "stored": manifest.totals.stored,
        "peak": peak(),
    }))
}

/// Reads the newest point to nowhere, and compares its digest.
pub async fn read(arguments: &Arguments) -> Result<Value> {
    let vault = Place::new(arguments.get("dir")?).open().await?;
    let watch = Watch::start();
    let points = vault.points().await?;
    let point = points.points.last().ok_or_else(|| Error::missing("there is no point"))?;
    let state = vault.resolve(point, &Selection::default(), None).await?;
    let keys = vault.hash_keys()?;
    let mut raw = 0;
    for collection in state.collections() {
        let mut digest = Digest::default();
        let mut documents = state.read(collection);
        while let Some(batch) = documents.try_next().await? {
            (0..batch.len()).for_each(|i| digest.add(keys.document(&batch, i)));
            raw += batch.raw_bytes();
        }
        if digest != collection.digest {
            return Err(Error::corrupt("what was read has another digest than what was written"));
        }
    }
    Ok(
        json!({"cpu": watch.cpu(), "wall": watch.wall(), "raw": raw, "layers": point.manifest.layers.len(), "peak": peak()}),
    )
}
