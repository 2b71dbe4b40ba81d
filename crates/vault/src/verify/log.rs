//! What damage to the change log hits: times, points, collections.

use super::{Check, Damage, Healed, Hit};
use crate::history::{Facts, History, Interval, LogTable, history_of, is_whole};
use crate::log::{self, CATALOG_SPACE, Listed};
use crate::name::LogName;
use crate::objects::is_damage;
use crate::points::{self, Point};
use crate::prune;
use model::{CollectionId, Engine, Result};
use std::collections::{BTreeMap, HashSet};

impl Check<'_> {
    /// What is known of the log without these objects.
    fn log_without(&self, tag: &str, lost: &HashSet<&str>) -> LogTable {
        let mut table = LogTable::default();
        // Of the other sources nothing is asked.
        let prefix = format!("{}{tag}/log/", crate::name::HISTORY);
        let ours = self.there.range(prefix.clone()..).take_while(|(path, _)| path.starts_with(&prefix));
        for (path, size) in ours.filter(|(path, _)| !lost.contains(path.as_str())) {
            if let Some(name) = LogName::parse(path) {
                table.push(&name, *size);
            }
        }
        table.finish()
    }

    fn facts_of(&self, tag: &str) -> Vec<Facts> {
        let points = self.points.iter().filter(|p| p.name.source == tag);
        points.map(|p| Facts::of(p.name.clone(), &p.manifest)).collect()
    }

    /// Reports damaged objects of the log, and points that lack changes which nobody has seen damaged:
    /// those are missing.
    pub(super) async fn log(&mut self, bad: &mut BTreeMap<String, String>) -> Result<()> {
        if self.vault.objects().is_err() {
            return Ok(());
        }
        let removed = prune::removed(self.vault).await?;
        let tags: HashSet<String> = self.points.iter().map(|p| p.name.source.clone()).collect();
        for tag in tags {
            let damaged: Vec<(LogName, String)> = bad
                .iter()
                .filter_map(|(path, problem)| Some((LogName::parse(path)?, problem.clone())))
                .filter(|(name, _)| name.source == tag)
                .collect();
            let paths: Vec<String> = damaged.iter().map(|(name, _)| name.to_string()).collect();
            let all: HashSet<&str> = paths.iter().map(String::as_str).collect();
            let facts = self.facts_of(&tag);
            let refs: Vec<&Facts> = facts.iter().collect();
            let history = |log: &LogTable| history_of(log, &tag, &refs, removed.gaps_of(&tag), |_| true);
            let without = self.log_without(&tag, &all);
            let left = history(&without);
            let mut known: HashSet<String> = HashSet::new();
            for (name, problem) in damaged {
                let object = name.to_string();
                let others: HashSet<&str> = all.iter().copied().filter(|path| *path != object).collect();
                let with = self.log_without(&tag, &others);
                let hit_points: Vec<&Facts> =
                    facts.iter().filter(|f| f.needs_log && is_whole(&with, f) && !is_whole(&without, f)).collect();
                let times = lost_times(&history(&with), &left);
                bad.remove(&object);
                if times.is_empty() && hit_points.is_empty() {
                    let by = "other objects of the change log".to_owned();
                    self.report.healed.push(Healed { object, problem, by, repaired: false });
                    continue;
                }
                known.extend(hit_points.iter().map(|f| f.name.run.clone()));
                let hit = Hit {
                    source: facts.last().map(|f| f.source.clone()).unwrap_or_default(),
                    points: hit_points.iter().map(|f| f.name.id()).collect(),
                    collection: None,
                    documents: Vec::new(),
                    keys: Vec::new(),
                    engine: engine_of(&self.points, &tag),
                    document_count: 0,
                    times,
                };
                let hits = self.hits_in_log(&name, hit).await?;
                self.report.damages.push(Damage { object, problem, hits, advice: None });
            }
            for fact in facts.iter().filter(|f| f.needs_log && !known.contains(&f.name.run)) {
                if !is_whole(&without, fact) {
                    let problem = "the change log does not hold all changes that it needs: objects of it are missing";
                    bad.entry(fact.name.to_string()).or_insert_with(|| problem.into());
                }
            }
        }
        Ok(())
    }

    /// The same hit for each collection that the object's header names, where that can be read: it is
    /// signed by itself.
    async fn hits_in_log(&self, name: &LogName, hit: Hit) -> Result<Vec<Hit>> {
        let size = self.there.get(&name.to_string()).copied().unwrap_or_default();
        let listed = Listed { name: name.clone(), size, modified: 0 };
        let object = match (self.vault.need_reader(), log::open(self.vault, &listed).await) {
            (Ok(_), Ok(object)) => object,
            (Ok(_), Err(e)) if !is_damage(&e) => return Err(e),
            _ => return Ok(vec![hit]),
        };
        let mut counts: BTreeMap<&CollectionId, u64> = BTreeMap::new();
        for frame in object.header.frames.iter().filter(|f| f.kind.space() != CATALOG_SPACE) {
            *counts.entry(&frame.collection).or_default() += u64::from(frame.count);
        }
        let newest = self.points.iter().rev().find(|p| p.name.source == name.source);
        let catalog = match newest {
            Some(point) => points::catalog(self.vault, &point.manifest).await.unwrap_or_default(),
            None => Default::default(),
        };
        let name_of = |id: &CollectionId| {
            let known = catalog.collections.iter().find(|c| c.info.id == *id);
            known.map_or_else(|| id.to_string(), |c| c.info.name.clone())
        };
        let hits: Vec<Hit> = counts
            .into_iter()
            .map(|(id, count)| Hit { collection: Some(name_of(id)), document_count: count, ..hit.clone() })
            .collect();
        Ok(if hits.is_empty() { vec![hit] } else { hits })
    }
}

fn engine_of(points: &[Point], tag: &str) -> Engine {
    let newest = points.iter().rev().find(|p| p.name.source == tag);
    newest.map_or_else(|| Engine::new(""), |p| p.manifest.source.engine.clone())
}

/// The times that the first history can restore and the second cannot.
fn lost_times(with: &History, without: &History) -> Vec<Interval> {
    let mut lost = Vec::new();
    for whole in &with.intervals {
        let mut from = whole.from;
        for left in without.intervals.iter().filter(|l| l.to >= whole.from && l.from <= whole.to) {
            if left.from > from {
                lost.push(Interval { from, to: left.from });
            }
            from = from.max(left.to);
        }
        if from < whole.to {
            lost.push(Interval { from, to: whole.to });
        }
    }
    lost
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_taken_from_each_other() {
        let history = |intervals: &[(i64, i64)]| History {
            intervals: intervals.iter().map(|(from, to)| Interval { from: *from, to: *to }).collect(),
            ..History::default()
        };
        for (with, without, lost) in [
            (&[(0, 10)][..], &[(0, 10)][..], &[][..]),
            (&[(0, 10)], &[], &[(0, 10)]),
            (&[(0, 10)], &[(0, 4)], &[(4, 10)]),
            (&[(0, 10)], &[(2, 4), (6, 10)], &[(0, 2), (4, 6)]),
            (&[(0, 10), (20, 30)], &[(0, 10), (25, 30)], &[(20, 25)]),
        ] {
            let got: Vec<(i64, i64)> =
                lost_times(&history(with), &history(without)).iter().map(|i| (i.from, i.to)).collect();
            assert_eq!(got, lost, "{with:?} without {without:?}");
        }
    }
}
