//! Removing what is not to be kept, beside running backups and restores, without locks.
//!
//! 1. Points that the rules do not keep are removed first: from then on nobody begins to use what
//!    only they needed.
//! 2. A prune writes `prune/<id>` with the names of the objects that it means to remove, then looks
//!    which runs and readers are active and names them too.
//! 3. It waits until each of those has ended or given no sign of life for a day (readers: an hour).
//! 4. It reads all points again, removes what is still not needed, then marks itself as done; the
//!    mark stays for another day, for runs that come back from the dead.
//!
//! A run does the opposite: first its sign of life, then a look at `prune/`. So for each pair of a
//! prune and a run, either the prune waits for the run, or the run treats what the prune names as
//! absent. A prune that dies anywhere leaves points that are whole, objects that no point needs, or
//! a mark that the next prune completes.

mod census;
mod commit;
#[cfg(test)]
mod many;
mod marks;
mod plan;
mod policy;
mod removed;
mod report;
mod sweep;

pub(crate) use commit::{check_after_commit, check_before_commit};
pub use policy::{Policy, Reason, parse_duration};
pub(crate) use removed::{REMOVED, check as check_removed, read_all as removed};
pub use report::{Amount, PointFate, PruneReport};

use crate::history::{Facts, history_of};
use crate::storage::Storage;
use crate::vault::{Inner, Vault};
use census::{Census, Item, Known, Objects, Survey};
use futures::{StreamExt, TryStreamExt};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use model::{Error, Result};
use plan::{Changes, Needs, Standing};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Objects that are deleted side by side.
const SIDE_BY_SIDE: usize = 16;

/// What to prune.
#[derive(Debug, Clone)]
pub struct PruneOptions {
    /// What to keep. Without rules no point is removed.
    pub policy: Policy,
    /// The tag of the source that the rules are about; none: each source by itself.
    pub source: Option<String>,
    /// Touch nothing, only say what would be done.
    pub dry_run: bool,
    /// The zone whose hours, days, weeks, months and years are meant.
    pub zone: TimeZone,
}

impl Default for PruneOptions {
    fn default() -> Self {
        PruneOptions { policy: Policy::default(), source: None, dry_run: false, zone: TimeZone::system() }
    }
}

/// All objects that a prune, running or just done, means to remove and that a run might use again.
pub(crate) async fn doomed(storage: &Arc<dyn Storage>) -> Result<HashSet<String>> {
    Ok(marks::doomed(storage).await?.objects)
}

impl Vault {
    /// Removes what no point needs: leftovers of runs that did not commit. Removes no point. Does
    /// not wait: what active runs may still need is left for a later call, and said in the report.
    pub async fn prune(&self) -> Result<PruneReport> {
        self.prune_by(&PruneOptions::default()).await
    }

    /// Removes the points that the rules do not keep, and what nothing needs any more. Does not wait,
    /// as [`Vault::prune`].
    pub async fn prune_by(&self, options: &PruneOptions) -> Result<PruneReport> {
        let vault = &self.inner;
        vault.objects()?;
        options.policy.check()?;
        let now = Timestamp::from_millisecond(vault.seams.clock.now_millis())
            .map_err(|e| Error::input(format!("the clock of this host cannot be right: {e}")))?
            .to_zoned(options.zone.clone());
        Prune { vault, options, now, census: Census::default(), report: PruneReport::default() }.run().await
    }
}

/// A prune under way.
struct Prune<'a> {
    vault: &'a Arc<Inner>,
    options: &'a PruneOptions,
    now: Zoned,
    census: Census,
    report: PruneReport,
}

impl Prune<'_> {
    async fn run(mut self) -> Result<PruneReport> {
        self.report.dry_run = self.options.dry_run;
        if !self.options.dry_run {
            self.finish_marks().await?;
        }
        // Objects before points: what points need that are committed meanwhile is not listed.
        let objects = Objects::list(self.vault).await?;
        let survey = self.census.read(self.vault).await?;
        let doomed = marks::doomed(&self.vault.storage).await?;
        let standings = self.standings(&objects, &survey, &doomed).await?;
        let goes = self.choose(&survey, &standings)?;
        let (gone, stay): (Vec<_>, Vec<_>) =
            survey.points.iter().cloned().partition(|p| goes.contains(&p.facts.name.to_string()));
        let mut survey = Survey { points: stay, ..survey };
        if !gone.is_empty() && !self.options.dry_run {
            self.remove_points(&mut survey, &gone).await?;
        }
        let is_whole = |point: &Known| standings.get(&point.facts.name.run).is_none_or(|s| s.whole);
        let needs = Needs::of(&self.census, &survey, is_whole, |tag| self.changes_to_keep(&survey, tag));
        if self.options.dry_run || !self.options.policy.is_empty() {
            self.say_what_remains(&survey, &needs, &gone);
        }
        match self.options.dry_run {
            true => self.would_go(&objects, &survey, &needs, &doomed),
            false => {
                self.mark(&objects, &survey, &needs, &doomed).await?;
                self.finish_marks().await?;
                marks::clear_old_signs(self.vault).await?;
            }
        }
        Ok(self.report)
    }

    /// How the points stand, by their runs.
    async fn standings(
        &self,
        objects: &Objects,
        survey: &Survey,
        doomed: &marks::Doomed,
    ) -> Result<HashMap<String, Standing>> {
        let doomed: HashSet<Item> = doomed.objects.iter().filter_map(|path| Item::read(path)).collect();
        let is_doomed = |item: Item| doomed.contains(&item);
        let broken = self.census.broken_layers(objects, is_doomed);
        // Read-only, as a dry run must be: a sign of life, however old, says that a run has not ended.
        let signs = marks::runs(self.vault).await?;
        let of = |p: &Arc<Known>| {
            let whole = p.is_whole(objects, &broken, is_doomed);
            let run = p.facts.name.run.clone();
            (run.clone(), Standing { whole, unsettled: signs.contains(&run) })
        };
        Ok(survey.points.iter().map(of).collect())
    }

    fn is_meant(&self, tag: &str) -> bool {
        !self.options.policy.is_empty() && self.options.source.as_deref().is_none_or(|wanted| wanted == tag)
    }

    /// Applies the rules: gives the paths of the points that go.
    fn choose(&mut self, survey: &Survey, standings: &HashMap<String, Standing>) -> Result<HashSet<String>> {
        let mut by_source: BTreeMap<&str, Vec<(&Arc<Known>, Standing)>> = BTreeMap::new();
        for point in survey.points.iter().filter(|p| self.is_meant(&p.facts.name.source)) {
            let standing = standings.get(&point.facts.name.run).copied().unwrap_or_default();
            by_source.entry(&point.facts.name.source).or_default().push((point, standing));
        }
        let mut goes = HashSet::new();
        for (tag, mut points) in by_source {
            points.sort_by_key(|(p, _)| (p.facts.time, p.facts.name.committed));
            let end = plan::end_of(survey, tag);
            let fates = plan::fates(&self.options.policy, &points, end, &self.now);
            if fates.iter().all(BTreeSet::is_empty) {
                return Err(Error::bug(format!("the rules would remove every point of {tag}: nothing was removed")));
            }
            for ((point, _), kept) in points.iter().zip(fates) {
                let facts = &point.facts;
                if kept.is_empty() {
                    goes.insert(facts.name.to_string());
                }
                let (id, tag, source) = (facts.name.id(), tag.to_owned(), facts.source.clone());
                self.report.points.push(PointFate { id, tag, source, time: facts.time, kept });
            }
        }
        Ok(goes)
    }

    /// Removes points, durably. What only they needed is left over then.
    async fn remove_points(&self, survey: &mut Survey, gone: &[Arc<Known>]) -> Result<()> {
        let storage = &self.vault.storage;
        let now = self.now.timestamp().as_millisecond();
        for point in gone {
            let name = &point.facts.name;
            survey.removed.points.insert(name.to_string(), now);
            if let Some(gap) = &point.facts.gap {
                let gap = model::Gap { to: gap.to.or(Some(point.facts.time)), ..gap.clone() };
                survey.removed.add_gap(&name.source, gap);
            }
        }
        let named: HashSet<&str> = survey.points.iter().filter_map(|p| p.previous.as_deref()).collect();
        let mut oldest: BTreeMap<&str, i64> = BTreeMap::new();
        let starts = survey.points.iter().map(|p| (p.facts.name.source.as_str(), p.facts.base.earliest.millis));
        for (tag, start) in starts.chain(survey.log.iter().map(|o| (survey.log.source(o), o.from))) {
            oldest.entry(tag).and_modify(|o| *o = start.min(*o)).or_insert(start);
        }
        survey.removed.forget(&named, &oldest, now);
        removed::store(self.vault, &mut survey.removed, now).await?;
        let paths: Vec<String> = gone.iter().map(|p| p.facts.name.to_string()).collect();
        let deleting = futures::stream::iter(paths).map(|path| async move { storage.delete(&path).await });
        deleting.buffer_unordered(SIDE_BY_SIDE).try_collect::<()>().await?;
        // A point that came back after a power loss must find what it needs.
        storage.sync().await
    }

    /// Which changes of a source the rules keep.
    fn changes_to_keep(&self, survey: &Survey, tag: &str) -> Changes {
        if !self.is_meant(tag) {
            return Changes::All;
        }
        match self.options.policy.any_second_from(plan::end_of(survey, tag), &self.now) {
            Some(start) => Changes::Since(start),
            None => Changes::Newest,
        }
    }

    fn say_what_remains(&mut self, survey: &Survey, needs: &Needs, gone: &[Arc<Known>]) {
        let mut by_source: BTreeMap<&str, Vec<&Facts>> = BTreeMap::new();
        for point in &survey.points {
            by_source.entry(&point.facts.name.source).or_default().push(&point.facts);
        }
        self.report.remaining = by_source
            .into_iter()
            .map(|(tag, facts)| {
                let mut gaps = survey.removed.gaps_of(tag);
                let of_source = gone.iter().filter(|p| p.facts.name.source == tag);
                gaps.extend(of_source.filter_map(|p| p.facts.gap.clone()));
                history_of(&survey.log, tag, &facts, gaps, |o| needs.needs_changes(&survey.log, o))
            })
            .collect();
    }
}
