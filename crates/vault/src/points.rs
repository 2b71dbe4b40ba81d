//! Points: listing and reading them.

use crate::log::{self, Listed};
use crate::manifest::{Catalog, LayerRef, Manifest, POINT_CONTEXT};
use crate::name::{HISTORY, PointName};
use crate::objects::blocking;
use crate::prune;
use crate::signed;
use crate::vault::Inner;
use ed25519_dalek::VerifyingKey;
use futures::StreamExt;
use model::{Error, Result, ResultExt};
use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::sync::Arc;

/// A point that can be read.
#[derive(Debug, Clone)]
pub struct Point {
    /// Its name.
    pub name: PointName,
    /// What it holds.
    pub manifest: Manifest,
}

/// A point that cannot be read, or that another one names but is not there.
#[derive(Debug)]
pub struct BrokenPoint {
    /// Its object.
    pub path: String,
    /// What is wrong.
    pub error: Error,
}

/// All points of a vault.
#[derive(Debug, Default)]
pub struct Points {
    /// Those that can be read, oldest first.
    pub points: Vec<Point>,
    /// The others.
    pub broken: Vec<BrokenPoint>,
}

impl Points {
    /// The points of one source, oldest first.
    pub fn of<'a>(&'a self, tag: &'a str) -> impl DoubleEndedIterator<Item = &'a Point> + 'a {
        self.points.iter().filter(move |p| p.name.source == tag)
    }
}

/// The names of all points, oldest first.
pub(crate) async fn list(vault: &Inner) -> Result<Vec<PointName>> {
    list_with_log(vault, |_| {}).await
}

/// The names of all points, oldest first, and from the same listing the objects of the change log.
pub(crate) async fn list_with_log(vault: &Inner, mut log: impl FnMut(Listed)) -> Result<Vec<PointName>> {
    let mut names: Vec<PointName> = Vec::new();
    let mut entries = vault.storage.list(HISTORY).await?;
    while let Some(entry) = entries.next().await {
        let entry = entry?;
        match PointName::parse(&entry.name) {
            Some(name) => names.push(name),
            None => log::listed(&entry).into_iter().for_each(&mut log),
        }
    }
    names.sort_by(|a, b| (a.committed, &a.run).cmp(&(b.committed, &b.run)));
    Ok(names)
}

/// The newest point of a source.
pub(crate) fn newest_of<'a>(history: &'a [PointName], tag: &str) -> Option<&'a PointName> {
    history.iter().rev().find(|n| n.source == tag)
}

/// Reads one point and checks its hash, signature, and that it is what its name says.
pub(crate) async fn read(vault: &Inner, name: &PointName) -> Result<Manifest> {
    let path = name.to_string();
    let objects = vault.objects()?;
    let stored = vault.storage.read(&path).await.map_err(|e| match e.kind() {
        model::ErrorKind::Missing => Error::missing(format!("the point {path} is missing")),
        _ => e,
    })?;
    let key = vault.file.writer_key()?;
    let (name, id) = (name.clone(), name.to_string());
    blocking(move || {
        objects.check(&path, &stored, &name.stored)?;
        let plain = objects.cipher.open(stored.into())?;
        let manifest = checked(&plain, &key)?;
        // A signed point under another name would be another point's twin.
        if manifest.run != name.run || manifest.committed.max(0) as u64 != name.committed {
            return Err(Error::corrupt("it is another point's content under this name"));
        }
        Ok(manifest)
    })
    .await
    .context(|| format!("reading the point {id}"))
}

/// Reads the decrypted bytes of a point's object: for tools and tests that have nothing but the
/// bytes and the writer's key, as `vault.json` shows it. Never panics, whatever the bytes.
pub fn parse(plain: &[u8], writer: &str) -> Result<Manifest> {
    checked(plain, &crate::vault_file::verifying_key(writer)?)
}

fn checked(plain: &[u8], key: &VerifyingKey) -> Result<Manifest> {
    let mut signed = Vec::new();
    let failed = |e: std::io::Error| Error::corrupt(format!("it cannot be decompressed: {e}"));
    let decoder = zstd::stream::read::Decoder::new(plain).map_err(failed)?;
    decoder.take(1 << 30).read_to_end(&mut signed).map_err(failed)?;
    let manifest: Manifest = signed::read(key, POINT_CONTEXT, &signed)?;
    if manifest.format > crate::vault_file::FORMAT {
        return Err(Error::unsupported(format!("it has format {}", manifest.format)).hint("install a newer rewound"));
    }
    Ok(manifest)
}

/// Reads all points, several side by side.
pub(crate) async fn read_all(vault: &Arc<Inner>) -> Result<Points> {
    vault.objects()?;
    let names = list(vault).await?;
    let mut all = Points::default();
    // Points share most of their layers: each is kept once.
    let mut layers: HashMap<String, Arc<LayerRef>> = HashMap::new();
    let mut reading = futures::stream::iter(names)
        .map(|name| {
            let vault = vault.clone();
            async move { (read(&vault, &name).await, name) }
        })
        .buffered(16);
    while let Some((result, name)) = reading.next().await {
        match result {
            Ok(mut manifest) => {
                for layer in &mut manifest.layers {
                    match layers.get(&layer.object) {
                        Some(known) if known == layer => *layer = known.clone(),
                        _ => drop(layers.insert(layer.object.clone(), layer.clone())),
                    }
                }
                all.points.push(Point { name, manifest });
            }
            Err(error) if is_about_the_point(&error) => {
                all.broken.push(BrokenPoint { path: name.to_string(), error });
            }
            Err(error) => return Err(error),
        }
    }
    drop(reading);
    let there: HashSet<String> =
        all.points.iter().map(|p| p.name.to_string()).chain(all.broken.iter().map(|b| b.path.clone())).collect();
    let missing: Vec<BrokenPoint> = all
        .points
        .iter()
        .filter_map(|p| p.manifest.previous.clone().map(|previous| (p, previous)))
        .filter(|(_, previous)| !there.contains(previous))
        .map(|(p, previous)| BrokenPoint {
            error: Error::missing(format!("the point {previous} is missing; the point {} follows it", p.name.id())),
            path: previous,
        })
        .collect();
    all.broken.extend(missing);
    let is_missing = |b: &BrokenPoint| b.error.kind() == model::ErrorKind::Missing;
    if all.broken.iter().any(is_missing) {
        // What a prune has removed, also just now, nobody misses.
        let removed = prune::removed(vault).await?;
        all.broken.retain(|b| !is_missing(b) || !removed.points.contains_key(&b.path));
    }
    Ok(all)
}

fn is_about_the_point(error: &Error) -> bool {
    matches!(error.kind(), model::ErrorKind::Corrupt | model::ErrorKind::Missing | model::ErrorKind::Unsupported)
}

/// The collections of a point as its last scan read them, before the change log went on.
pub(crate) async fn scanned_catalog(vault: &Inner, manifest: &Manifest) -> Result<Catalog> {
    match manifest.scan.as_ref().map(|s| (&s.catalog, &s.catalog_object)) {
        Some((Some(catalog), _)) => Ok(catalog.clone()),
        Some((None, Some(path))) => vault.objects()?.read_json(path).await,
        Some((None, None)) | None => catalog(vault, manifest).await,
    }
}

/// The collections of a point.
pub(crate) async fn catalog(vault: &Inner, manifest: &Manifest) -> Result<Catalog> {
    match (&manifest.catalog, &manifest.catalog_object) {
        (Some(catalog), _) => Ok(catalog.clone()),
        (None, Some(path)) => vault.objects()?.read_json(path).await,
        (None, None) => Err(Error::corrupt(format!("the point {} names no catalog", manifest.run))),
    }
}
