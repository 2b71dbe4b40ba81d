//! Checking a vault: every stored byte, that nothing is missing, and, with an identity, that what
//! is stored says what it must.

mod contents;
mod hits;
mod log;
mod object;
mod repair;

use self::contents::Contents;
use crate::checks::Sample;
use crate::hash::Digest;
use crate::history::Interval;
use crate::manifest::Layer;
use crate::name::{ObjectKind, ObjectName, PointName};
use crate::objects::is_damage;
use crate::points::{self, Point};
use crate::vault::{Inner, Vault};
use futures::{StreamExt, TryStreamExt};
use model::{Engine, Result, Selection};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// How much is checked.
#[derive(Debug, Clone, Copy, Default)]
pub struct VerifyOptions {
    /// Only stored bytes and references: needs no identity.
    pub quick: bool,
    /// Only a part of the objects and collections. That nothing is missing is checked of all.
    pub sample: Option<Sample>,
    /// Make anew what can be made from other objects. Removes nothing.
    pub repair: bool,
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
    /// All objects.
    pub total_objects: u64,
    /// Their stored bytes.
    pub total_bytes: u64,
    /// Points found.
    pub points: u64,
    /// Whether contents were decrypted, decompressed and compared with their digests.
    pub checked_content: bool,
    /// Whether it was checked that every object that points need is there.
    pub checked_references: bool,
    /// What is damaged.
    pub damages: Vec<Damage>,
    /// Damaged or missing objects whose content is there in another object: nothing is lost.
    pub healed: Vec<Healed>,
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
    /// What it means where nothing is hit, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Damage {
    /// Whether something can no longer be restored.
    pub fn loses(&self) -> bool {
        self.advice.is_none()
    }
}

/// A damaged or missing object whose content is there in another one.
#[derive(Debug, Serialize)]
pub struct Healed {
    /// Path of the object.
    pub object: String,
    /// What is wrong with it.
    pub problem: String,
    /// The object that stands in for it.
    pub by: String,
    /// Whether that was made by this repair.
    pub repaired: bool,
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
    /// The first documents that are hit, where they can be told: their keys as text.
    pub documents: Vec<String>,
    /// The same keys in the engine's own bytes.
    #[serde(skip)]
    pub keys: Vec<Vec<u8>>,
    /// The source's engine.
    #[serde(skip)]
    pub engine: Engine,
    /// Documents that are hit, at most; of the change log: changes.
    pub document_count: u64,
    /// Times between points that can no longer be restored, in milliseconds since 1970 UTC.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub times: Vec<Interval>,
}

impl Vault {
    /// Checks the vault. Without `quick`, contents are checked too, which needs a reader; what is
    /// damaged is in the report, an error means that the check itself could not be done.
    pub async fn verify(
        &self,
        options: &VerifyOptions,
        progress: &(dyn Fn(VerifyProgress) + Sync),
    ) -> Result<VerifyReport> {
        if !options.quick || options.repair {
            self.inner.need_reader()?;
        }
        let mut check = Check::new(&self.inner, options, progress);
        check.list().await?;
        check.read_points().await?;
        check.stored_bytes().await?;
        check.references().await?;
        if !options.quick {
            check.digests().await?;
        }
        if options.repair {
            check.repair().await?;
        }
        check.finish().await
    }
}

struct Check<'a> {
    vault: &'a Arc<Inner>,
    options: &'a VerifyOptions,
    progress: &'a (dyn Fn(VerifyProgress) + Sync),
    report: VerifyReport,
    /// All objects with their sizes.
    there: BTreeMap<String, u64>,
    points: Vec<Point>,
    /// What is wrong with which object.
    bad: BTreeMap<String, String>,
    layers: HashMap<String, Option<Arc<Layer>>>,
    /// What the change log refers to.
    contents: Vec<Contents>,
    /// Objects that this repair has made.
    made: HashSet<String>,
}

impl<'a> Check<'a> {
    fn new(vault: &'a Arc<Inner>, options: &'a VerifyOptions, progress: &'a (dyn Fn(VerifyProgress) + Sync)) -> Self {
        Check {
            vault,
            options,
            progress,
            report: VerifyReport::default(),
            there: BTreeMap::new(),
            points: Vec::new(),
            bad: BTreeMap::new(),
            layers: HashMap::new(),
            contents: Vec::new(),
            made: HashSet::new(),
        }
    }

    /// Whether something with this name is to be looked at.
    fn takes(&self, name: &str) -> bool {
        self.options.sample.is_none_or(|s| s.takes(name))
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
                && let Some(lost) = self.vault.lost_newest(&point.name.source, &history).await?
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
        self.report.total_objects = self.there.len() as u64;
        self.report.total_bytes = self.there.values().sum();
        let names: Vec<(String, u64)> =
            self.there.iter().filter(|(n, _)| self.takes(n)).map(|(n, s)| (n.clone(), *s)).collect();
        let mut done = VerifyProgress {
            total_objects: names.len() as u64,
            total_bytes: names.iter().map(|(_, size)| size).sum(),
            ..VerifyProgress::default()
        };
        let open = if self.options.quick { None } else { Some(self.vault.need_reader()?) };
        let mut running = futures::stream::iter(names)
            .map(|(name, size)| {
                let (vault, open) = (self.vault.clone(), open.clone());
                async move { (object::check(&vault, open, &name).await, name, size) }
            })
            .buffer_unordered(4);
        let mut bad = Vec::new();
        while let Some((result, name, size)) = running.next().await {
            match result {
                Ok(()) => {}
                Err(e) if is_damage(&e) => bad.push((name, e.to_string())),
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
            Err(e) if is_damage(&e) => {
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
        needed.extend(self.points.iter().flat_map(|p| p.manifest.catalog_objects().cloned()));
        for path in &paths {
            let Some(layer) = self.layer(path).await? else { continue };
            for (path, size) in layer.sizes() {
                needed.insert(path.to_owned());
                if let Some(found) = self.there.get(path).filter(|found| **found != size) {
                    let problem = || format!("it has {found} bytes, but its layer says {size}");
                    self.bad.entry(path.to_owned()).or_insert_with(problem);
                }
            }
        }
        let lists_known = self.read_contents().await?;
        needed.extend(self.contents.iter().flat_map(Contents::objects).map(str::to_owned));
        for path in &needed {
            if !self.there.contains_key(path) {
                self.bad.entry(path.clone()).or_insert_with(|| "it is missing".into());
            }
        }
        // What stands in for something damaged is needed, though no point names it.
        let content = |path: &str| ObjectName::parse(path).ok().map(|n| (n.kind, n.content));
        let hurt: HashSet<(ObjectKind, [u8; 32])> =
            self.bad.keys().filter(|path| needed.contains(*path)).filter_map(|path| content(path)).collect();
        // What a damaged point or layer needs is not known: then nothing counts as left over.
        let all_known = lists_known
            && self.layers.values().all(Option::is_some)
            && !self.bad.keys().any(|path| PointName::parse(path).is_some());
        let unneeded: Vec<(String, u64)> = self
            .there
            .iter()
            .filter(|(path, _)| content(path).is_some_and(|c| !hurt.contains(&c)) && !needed.contains(*path))
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
            let state = match vault.resolve(&point, &Selection::default(), None).await {
                Ok(state) => state,
                // The layer or catalog is named as damaged already.
                Err(e) if is_damage(&e) => continue,
                Err(e) => return Err(e),
            };
            for collection in state.collections() {
                // Where the change log goes on from what was counted, there is nothing to compare.
                if !collection.counted || !self.takes(&format!("digests/{}/{}", point.name.source, collection.info.id))
                {
                    continue;
                }
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
        let mut bad = std::mem::take(&mut self.bad);
        self.log(&mut bad).await?;
        for (object, problem) in bad {
            if let Some(by) = self.stand_in(&object).await? {
                let repaired = self.made.contains(&by);
                self.report.healed.push(Healed { object, problem, by, repaired });
                continue;
            }
            let hits = self.hits(&object).await?;
            let advice = if hits.is_empty() { hits::advice(&object) } else { None };
            self.report.damages.push(Damage { object, problem, hits, advice });
        }
        Ok(self.report)
    }

    /// A sound object with the same content as a damaged one; only a reader can tell.
    async fn stand_in(&self, object: &str) -> Result<Option<String>> {
        if self.made.contains(object) {
            return Ok(Some(object.to_owned()));
        }
        let Ok(objects) = self.vault.need_reader() else { return Ok(None) };
        for twin in objects.twins(object).await? {
            match object::check(self.vault, Some(objects.clone()), &twin).await {
                Ok(()) => return Ok(Some(twin)),
                Err(e) if is_damage(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }
}

impl Vault {
    fn inner_keys(&self) -> crate::hash::HashKeys {
        // A caller that resolves has keys.
        self.hash_keys().cloned().unwrap_or_else(|_| crate::hash::HashKeys::derive(&[0; 32]))
    }
}
