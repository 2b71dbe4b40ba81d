//! The contents of attachments that the change log refers to.

use super::{Check, Hit};
use crate::history::Facts;
use crate::log::contents::{self, ContentList};
use crate::name::{ContentsName, LogName};
use crate::objects::is_damage;
use crate::points;
use futures::StreamExt;
use model::Result;
use std::collections::{BTreeMap, HashMap};

/// Keys named for one hit.
const NAMED: usize = 20;

/// A list of contents, and the part of the log that it counts for.
#[derive(Debug)]
pub(super) struct Contents {
    name: ContentsName,
    list: ContentList,
    /// The log after this time, in milliseconds since 1970 UTC …
    from: i64,
    /// … up to this one refers to them.
    to: i64,
}

impl Contents {
    /// Paths of the objects that hold them.
    pub fn objects(&self) -> impl Iterator<Item = &str> {
        self.list.objects()
    }
}

impl Check<'_> {
    /// Reads the lists that count for something that is there; says whether all could be read.
    pub(super) async fn read_contents(&mut self) -> Result<bool> {
        let names = contents::current(self.there.keys().filter_map(|path| ContentsName::parse(path)).collect());
        let (mut times, mut counted) = (HashMap::new(), Vec::new());
        for name in &names {
            let flushes = times.entry((&name.source, &name.run)).or_insert_with(|| self.times_of(name));
            // The first of those that hold this flush or a later one.
            let at = flushes.partition_point(|(last, ..)| *last < name.first);
            let Some((_, from, to)) = flushes.get(at).copied() else { continue };
            counted.push((name.clone(), from, to));
        }
        let (mut all, mut lists) = (true, Vec::new());
        let mut reading =
            std::pin::pin!(contents::read_all(self.vault, counted.iter().map(|(n, ..)| n.clone()).collect()));
        let mut counted = counted.iter();
        while let (Some((name, list)), Some((_, from, to))) = (reading.next().await, counted.next()) {
            match list {
                Ok(list) => lists.push(Contents { name, list, from: *from, to: *to }),
                Err(e) if is_damage(&e) => {
                    self.bad.entry(name.to_string()).or_insert_with(|| e.to_string());
                    all = false;
                }
                Err(e) => return Err(e),
            }
        }
        self.contents = lists;
        Ok(all)
    }

    /// The last flushes of the objects of a list's chain, in order; for each, after which time it or a later
    /// one holds something, and up to which.
    fn times_of(&self, name: &ContentsName) -> Vec<(u32, i64, i64)> {
        let chain = format!("{}{}/log/{}/", crate::name::HISTORY, name.source, name.run);
        let of_chain = self.there.range(chain.clone()..).take_while(|(path, _)| path.starts_with(&chain));
        let mut all: Vec<_> = of_chain.filter_map(|(path, _)| LogName::parse(path)).collect();
        all.sort_by_key(|log| log.last);
        let mut times: Vec<(u32, i64, i64)> = Vec::with_capacity(all.len());
        for log in all.iter().rev() {
            let (from, to) = times.last().map_or((i64::MAX, i64::MIN), |(_, from, to)| (*from, *to));
            times.push((log.last, from.min(log.from as i64), to.max(log.to as i64)));
        }
        times.reverse();
        times
    }

    /// What an object with contents hits that the log refers to.
    pub(super) async fn hits_in_contents(&self, object: &str) -> Result<Vec<Hit>> {
        let mut hits: Vec<Hit> = Vec::new();
        for Contents { name, list, from, to } in &self.contents {
            let mut keys: BTreeMap<_, Vec<Vec<u8>>> = BTreeMap::new();
            for content in list.contents.iter().filter(|c| c.place.objects().any(|path| path == object)) {
                let of_collection = keys.entry(content.collection.clone()).or_default();
                let key = content.key()?;
                if !of_collection.contains(&key) {
                    of_collection.push(key);
                }
            }
            if keys.is_empty() {
                continue;
            }
            let of_source: Vec<_> = self.points.iter().filter(|p| p.name.source == name.source).collect();
            let Some(newest) = of_source.last() else { continue };
            let hit_points = of_source.iter().filter(|p| {
                let facts = Facts::of(p.name.clone(), &p.manifest);
                facts.needs_log && facts.base.earliest.millis < *to && facts.time.millis > *from
            });
            let hit_points: Vec<String> = hit_points.map(|p| p.name.id()).collect();
            let catalog = points::catalog(self.vault, &newest.manifest).await.unwrap_or_default();
            for (id, mut keys) in keys {
                let known = catalog.collections.iter().find(|c| c.info.id == id);
                let count = keys.len() as u64;
                keys.truncate(NAMED);
                hits.push(Hit {
                    source: newest.manifest.source.name.clone(),
                    points: hit_points.clone(),
                    collection: Some(known.map_or_else(|| id.to_string(), |c| c.info.name.clone())),
                    documents: keys.iter().map(|key| String::from_utf8_lossy(key).into_owned()).collect(),
                    keys,
                    engine: newest.manifest.source.engine.clone(),
                    document_count: count,
                    times: Vec::new(),
                });
            }
        }
        Ok(hits)
    }
}
