//! Checking a vault: every stored byte, that nothing is missing, and, with an identity, that what
//! is stored says what it must.

use crate::frame::Frame;
use crate::hash::{Digest, hex};
use crate::manifest::Layer;
use crate::name::{HISTORY, LogName, ObjectKind, ObjectName, PointName};
use crate::objects::{Objects, blocking};
use crate::points::{self, Point};
use crate::segment;
use crate::vault::{Inner, Vault};
use crate::vault_file::VAULT_FILE;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use model::{Encoding, Error, ErrorKind, Result, Selection};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// How much is checked.
#[derive(Debug, Clone, Copy, Default)]
pub struct VerifyOptions {
    /// Only stored bytes and references: needs no identity.
    pub quick: bool,
}

/// How far a check has come.
#[derive(Debug, Clone, Copy, Default)]
pub struct VerifyProgress {
    /// Objects checked.
    pub objects: u64,
    /// Objects to check.
    pub total_objects: u64,
    /// Stored bytes checked.
    pub bytes: u64,
    /// Stored bytes to check.
    pub total_bytes: u64,
}

/// What a check found.
#[derive(Debug, Default, Serialize)]
pub struct VerifyReport {
    /// Objects checked.
    pub objects: u64,
    /// Their stored bytes.
    pub bytes: u64,
    /// Points found.
    pub points: u64,
    /// Whether contents were decrypted, decompressed and compared with their digests.
    pub checked_content: bool,
    /// Whether it was checked that every object that points need is there.
    pub checked_references: bool,
    /// What is damaged.
    pub damages: Vec<Damage>,
    /// Objects that no point needs: left by runs that did not commit.
    pub leftovers: u64,
    /// Their stored bytes.
    pub leftover_bytes: u64,
    /// Harmless findings.
    pub notes: Vec<String>,
}

/// A damaged, missing or foreign object.
#[derive(Debug, Serialize)]
pub struct Damage {
    /// Path of the object.
    pub object: String,
    /// What is wrong.
    pub problem: String,
    /// What can no longer be restored because of it.
    pub hits: Vec<Hit>,
}

/// Documents of one collection that damage has hit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hit {
    /// The source's name.
    pub source: String,
    /// Points that are hit: their ids.
    pub points: Vec<String>,
    /// The collection; none if the whole point is hit.
    pub collection: Option<String>,
    /// The first documents that are hit, where they can be told.
    pub documents: Vec<String>,
    /// Documents that are hit, at most.
    pub document_count: u64,
}

/// Keys named for one hit.
const NAMED: usize = 20;

impl Vault {
    /// Checks the vault. Without `quick`, contents are checked too, which needs a reader; what is
    /// damaged is in the report, an error means that the check itself could not be done.
    pub async fn verify(
        &self,
        options: &VerifyOptions,
        progress: &(dyn Fn(VerifyProgress) + Sync),
    ) -> Result<VerifyReport> {
        if !options.quick {
            self.inner.need_reader()?;
        }
        let mut check = Check::new(&self.inner, options.quick, progress);
        check.list().await?;
        check.read_points().await?;
        check.stored_bytes().await?;
        check.references().await?;
        if !options.quick {
            check.digests().await?;
        }
        check.finish().await
    }
}

struct Check<'a> {
    vault: &'a Arc<Inner>,
    quick: bool,
    progress: &'a (dyn Fn(VerifyProgress) + Sync),
    report: VerifyReport,
    /// All objects with their sizes.
    there: BTreeMap<String, u64>,
    points: Vec<Point>,
    /// What is wrong with which object.
    bad: BTreeMap<String, String>,
    layers: HashMap<String, Option<Arc<Layer>>>,
}

impl<'a> Check<'a> {
    fn new(vault: &'a Arc<Inner>, quick: bool, progress: &'a (dyn Fn(VerifyProgress) + Sync)) -> Self {
        Check {
            vault,
            quick,
            progress,
            report: VerifyReport::default(),
            there: BTreeMap::new(),
            points: Vec::new(),
            bad: BTreeMap::new(),
            layers: HashMap::new(),
        }
    }

    async fn list(&mut self) -> Result<()> {
        let mut entries = self.vault.storage.list("").await?;
        while let Some(entry) = entries.try_next().await? {
            self.there.insert(entry.name, entry.size);
        }
        Ok(())
    }

    async fn read_points(&mut self) -> Result<()> {
        if self.vault.objects().is_err() {
            self.report.points = self.there.keys().filter(|n| PointName::parse(n).is_some()).count() as u64;
            return Ok(());
        }
        let all = points::read_all(self.vault).await?;
        self.report.points = all.points.len() as u64;
        for broken in all.broken {
            self.bad.insert(broken.path, broken.error.to_string());
        }
        self.points = all.points;
        let mut newest: BTreeSet<&str> = BTreeSet::new();
        let history: Vec<PointName> = self.points.iter().map(|p| p.name.clone()).collect();
        for point in self.points.iter().rev() {
            if newest.insert(&point.name.source)
                && let Some(lost) = self.vault.lost_newest(&point.name.source, &history)?
            {
                self.bad.entry(lost).or_insert_with(|| {
                    "this host wrote it as the newest point of its source, but it is not there any more".into()
                });
            }
        }
        Ok(())
    }

    /// Reads every object and compares its bytes with its name; with an identity, also opens it.
    async fn stored_bytes(&mut self) -> Result<()> {
        let mut done = VerifyProgress {
            total_objects: self.there.len() as u64,
            total_bytes: self.there.values().sum(),
            ..VerifyProgress::default()
        };
        let open = if self.quick { None } else { Some(self.vault.need_reader()?) };
        let names: Vec<(String, u64)> = self.there.iter().map(|(n, s)| (n.clone(), *s)).collect();
        let mut running = futures::stream::iter(names)
            .map(|(name, size)| {
                let (vault, open) = (self.vault.clone(), open.clone());
                async move { (check_object(&vault, open, &name).await, name, size) }
            })
            .buffer_unordered(4);
        let mut bad = Vec::new();
        while let Some((result, name, size)) = running.next().await {
            match result {
                Ok(()) => {}
                Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Missing) => {
                    bad.push((name, e.to_string()))
                }
                Err(e) => return Err(e),
            }
            done.objects += 1;
            done.bytes += size;
            (self.progress)(done);
        }
        drop(running);
        for (name, problem) in bad {
            self.bad.entry(name).or_insert(problem);
        }
        self.report.objects = done.objects;
        self.report.bytes = done.bytes;
        Ok(())
    }

    async fn layer(&mut self, path: &str) -> Result<Option<Arc<Layer>>> {
        if let Some(known) = self.layers.get(path) {
            return Ok(known.clone());
        }
        let layer = match self.vault.objects()?.layer(path).await {
            Ok(layer) => Some(Arc::new(layer)),
            Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Missing) => {
                self.bad.entry(path.to_owned()).or_insert_with(|| e.to_string());
                None
            }
            Err(e) => return Err(e),
        };
        self.layers.insert(path.to_owned(), layer.clone());
        Ok(layer)
    }

    /// Looks for objects that points need and that are not there, and counts those that none needs.
    async fn references(&mut self) -> Result<()> {
        if self.vault.objects().is_err() {
            self.report.notes.push(
                "without an identity or the writer's secrets it cannot be told whether an object is missing".into(),
            );
            return Ok(());
        }
        self.report.checked_references = true;
        let paths: BTreeSet<String> =
            self.points.iter().flat_map(|p| &p.manifest.layers).map(|l| l.object.clone()).collect();
        let mut needed: HashSet<String> = paths.iter().cloned().collect();
        needed.extend(self.points.iter().filter_map(|p| p.manifest.catalog_object.clone()));
        for path in &paths {
            if let Some(layer) = self.layer(path).await? {
                needed.extend(layer.objects().map(str::to_owned));
            }
        }
        for path in &needed {
            if !self.there.contains_key(path) {
                self.bad.entry(path.clone()).or_insert_with(|| "it is missing".into());
            }
        }
        // What a damaged point or layer needs is not known: then nothing counts as left over.
        let all_known =
            self.layers.values().all(Option::is_some) && !self.bad.keys().any(|path| PointName::parse(path).is_some());
        let unneeded: Vec<(String, u64)> = self
            .there
            .iter()
            .filter(|(path, _)| ObjectName::parse(path).is_ok() && !needed.contains(*path))
            .map(|(path, size)| (path.clone(), *size))
            .collect();
        if all_known {
            for (path, size) in unneeded {
                self.report.leftovers += 1;
                self.report.leftover_bytes += size;
                if let Some(problem) = self.bad.remove(&path) {
                    self.report.notes.push(format!("{path}, left by a run that did not commit: {problem}"));
                }
            }
        }
        Ok(())
    }

    /// Resolves the newest point of each source and compares counts and digests.
    async fn digests(&mut self) -> Result<()> {
        self.report.checked_content = true;
        let vault = Vault { inner: self.vault.clone() };
        let mut seen: HashSet<String> = HashSet::new();
        let newest: Vec<Point> =
            self.points.iter().rev().filter(|p| seen.insert(p.name.source.clone())).cloned().collect();
        for point in newest {
            let state = match vault.resolve(&point, &Selection::default()).await {
                Ok(state) => state,
                // The layer or catalog is named as damaged already.
                Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Missing) => continue,
                Err(e) => return Err(e),
            };
            for collection in state.collections() {
                let mut digest = Digest::default();
                let mut batches = state.read(collection);
                let problem = loop {
                    match batches.try_next().await {
                        Ok(Some(batch)) => {
                            (0..batch.len()).for_each(|i| digest.add(vault.inner_keys().document(&batch, i)));
                        }
                        Ok(None) if digest == collection.digest => break None,
                        Ok(None) => {
                            break Some(format!(
                                "collection {} has {} documents and another digest than the {} that were read",
                                collection.info.name, digest.count, collection.digest.count
                            ));
                        }
                        // A damaged object has been named already.
                        Err(_) if !self.bad.is_empty() => break None,
                        Err(e) => break Some(e.to_string()),
                    }
                };
                if let Some(problem) = problem {
                    self.bad.entry(point.name.to_string()).or_insert(problem);
                }
            }
        }
        Ok(())
    }

    /// Names what each damaged object hits.
    async fn finish(mut self) -> Result<VerifyReport> {
        let bad = std::mem::take(&mut self.bad);
        for (object, problem) in bad {
            let hits = self.hits(&object).await?;
            self.report.damages.push(Damage { object, problem, hits });
        }
        Ok(self.report)
    }

    async fn hits(&mut self, object: &str) -> Result<Vec<Hit>> {
        let mut hits: Vec<Hit> = Vec::new();
        for point in self.points.clone() {
            let whole_point = Hit {
                source: point.manifest.source.name.clone(),
                points: vec![point.name.id()],
                collection: None,
                documents: Vec::new(),
                document_count: point.manifest.totals.documents,
            };
            let mut found = Vec::new();
            if point.name.to_string() == object || point.manifest.catalog_object.as_deref() == Some(object) {
                found.push(whole_point.clone());
            }
            for reference in point.manifest.layers.clone() {
                if reference.object == object {
                    found.push(whole_point.clone());
                }
                if let Some(layer) = self.layer(&reference.object).await? {
                    found.extend(self.hits_in_layer(&point, &layer, object).await?);
                }
            }
            for hit in found {
                let same = |h: &&mut Hit| {
                    h.source == hit.source && h.collection == hit.collection && h.documents == hit.documents
                };
                match hits.iter_mut().find(same) {
                    Some(known) if !known.points.contains(&hit.points[0]) => known.points.push(hit.points[0].clone()),
                    Some(_) => {}
                    None => hits.push(hit),
                }
            }
        }
        Ok(hits)
    }

    async fn hits_in_layer(&self, point: &Point, layer: &Layer, object: &str) -> Result<Vec<Hit>> {
        let hit = |collection: Option<String>, documents: Vec<String>, document_count: u64| Hit {
            source: point.manifest.source.name.clone(),
            points: vec![point.name.id()],
            collection,
            documents,
            document_count,
        };
        let mut hits = Vec::new();
        for (number, segment) in layer.segments.iter().enumerate().filter(|(_, s)| s.object == object) {
            let number = number as u32;
            for collection in &layer.collections {
                let frames: Vec<u32> =
                    collection.places().filter(|(s, _)| *s == number).map(|(_, frame)| frame).collect();
                if frames.is_empty() {
                    continue;
                }
                let count = frames.iter().map(|f| u64::from(segment.documents_in(*f as usize))).sum();
                let name = self.collection_name(point, &collection.id).await?;
                let keys = self.keys_of(layer, collection, number, &frames).await.unwrap_or_default();
                hits.push(hit(Some(name), keys, count));
            }
        }
        let contents = &layer.contents;
        if contents.packs.iter().any(|p| p.segment.object == object)
            || contents.borrowed.iter().any(|b| b.object == object)
            || contents.parts.iter().any(|p| p.object == object)
        {
            hits.push(hit(Some("(content of attachments)".into()), Vec::new(), 0));
        }
        Ok(hits)
    }

    async fn collection_name(&self, point: &Point, id: &model::CollectionId) -> Result<String> {
        let name = match points::catalog(self.vault, &point.manifest).await {
            Ok(catalog) => catalog.collections.into_iter().find(|c| c.info.id == *id).map(|c| c.info.name),
            Err(_) => None,
        };
        Ok(name.unwrap_or_else(|| id.to_string()))
    }

    /// The first keys in some frames of a segment, from the hash lists: these hold the same keys in
    /// the same order.
    async fn keys_of(
        &self,
        layer: &Layer,
        collection: &crate::manifest::LayerCollection,
        segment: u32,
        frames: &[u32],
    ) -> Result<Vec<String>> {
        let mut before = 0usize;
        let mut wanted: Vec<std::ops::Range<usize>> = Vec::new();
        for (s, f) in collection.places() {
            let count = layer.segments.get(s as usize).map_or(0, |e| e.documents_in(f as usize)) as usize;
            if s == segment && frames.contains(&f) {
                wanted.push(before..before + count);
            }
            before += count;
        }
        let objects = self.vault.objects()?;
        let mut at = 0usize;
        let mut keys = Vec::new();
        let mut open: Option<(u32, Vec<(Bytes, u32)>)> = None;
        let lists = Layer::of(&layer.hash_collections, &collection.id).iter().filter(|c| c.space == collection.space);
        for (s, f) in lists.flat_map(|list| list.places()) {
            let Some(entry) = layer.hashes.get(s as usize) else { continue };
            if open.as_ref().is_none_or(|(o, _)| *o != s) {
                open = Some((s, objects.segment(&entry.object).await?));
            }
            let Some((stored, raw)) = open.as_ref().and_then(|(_, frames)| frames.get(f as usize)) else { continue };
            let Frame { batch, .. } = segment::read_frame(Encoding::Bin, stored, *raw)?;
            for i in 0..batch.len() {
                if wanted.iter().any(|w| w.contains(&(at + i))) {
                    keys.push(String::from_utf8_lossy(batch.key_of(i)).into_owned());
                    if keys.len() == NAMED {
                        return Ok(keys);
                    }
                }
            }
            at += batch.len();
        }
        Ok(keys)
    }
}

impl Vault {
    fn inner_keys(&self) -> crate::hash::HashKeys {
        // A caller that resolves has keys.
        self.hash_keys().cloned().unwrap_or_else(|_| crate::hash::HashKeys::derive(&[0; 32]))
    }
}

/// Checks one object: its name, its bytes, and with `open` its content.
async fn check_object(vault: &Arc<Inner>, open: Option<Objects>, path: &str) -> Result<()> {
    if path == VAULT_FILE || path.starts_with("active/") || path.starts_with("prune/") {
        return Ok(());
    }
    if path.starts_with(HISTORY) {
        let name = PointName::parse(path).map(|n| n.stored).or_else(|| LogName::parse(path).map(|n| n.stored));
        let expected = name.ok_or_else(|| foreign(path))?;
        let stored = vault.storage.read(path).await?;
        return blocking(move || match blake3::hash(&stored).as_bytes() == &expected {
            true => Ok(()),
            false => Err(Error::corrupt("its bytes do not have the hash in its name")),
        })
        .await;
    }
    let name = ObjectName::parse(path).map_err(|_| foreign(path))?;
    let stored = vault.storage.read(path).await?;
    blocking(move || {
        if blake3::hash(&stored).as_bytes() != &name.stored {
            return Err(Error::corrupt("its bytes do not have the hash in its name"));
        }
        match open {
            Some(objects) => check_content(&objects, &name, stored),
            None => Ok(()),
        }
    })
    .await
}

fn foreign(path: &str) -> Error {
    Error::corrupt(format!("{path} does not belong into a vault"))
}

/// Opens an object and compares its content with the id in its name.
fn check_content(objects: &Objects, name: &ObjectName, stored: Bytes) -> Result<()> {
    let plain = Bytes::from(objects.cipher.open(stored.into())?);
    let forged = || Error::corrupt("its content does not have the id in its name");
    match name.kind {
        ObjectKind::Segment | ObjectKind::Hashes => {
            let encoding = segment::encoding_of(&name.endings)?;
            let mut hasher = objects.keys.content();
            for (stored, raw) in segment::split(&plain)? {
                let frame = segment::decompress(&stored, raw)?;
                hasher.update(&frame);
                crate::frame::parse(encoding, frame)?;
            }
            if *hasher.finalize().as_bytes() != name.content {
                return Err(forged());
            }
        }
        ObjectKind::Part => {
            let length = zstd::zstd_safe::find_frame_compressed_size(&plain).map_err(|_| forged())?;
            let size = zstd::zstd_safe::get_frame_content_size(&plain).ok().flatten().ok_or_else(forged)?;
            let size = u32::try_from(size).map_err(|_| forged())?;
            let raw = segment::decompress(plain.get(..length).ok_or_else(forged)?, size)?;
            if objects.keys.content_id(&raw) != name.content {
                return Err(forged());
            }
        }
        ObjectKind::Layer | ObjectKind::Catalog => {
            let length = zstd::zstd_safe::find_frame_compressed_size(&plain).map_err(|_| forged())?;
            if plain.get(..length).is_none_or(|frame| objects.keys.content_id(frame) != name.content) {
                return Err(forged());
            }
        }
        ObjectKind::Filter => {
            // A salt of 16 bytes may follow; then the id is that of what comes before it.
            let salted = plain.len().checked_sub(16).map(|end| objects.keys.content_id(&plain[..end]));
            if objects.keys.content_id(&plain) != name.content && salted != Some(name.content) {
                return Err(forged());
            }
        }
    }
    tracing::trace!("{} is sound", hex(&name.content[..6]));
    Ok(())
}
