//! Which points stay, and what they need.

use super::census::{Census, Item, Known, Survey};
use super::policy::{Policy, Reason};
use crate::history::{Facts, LogEntry, LogTable, history_of};
use crate::log::contents;
use crate::name::{ContentsName, ObjectKind};
use jiff::Zoned;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// What is known of a point's standing when rules are applied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// All that it needs is there.
    pub whole: bool,
    /// The run that made it may still take it back.
    pub unsettled: bool,
}

/// Which changes are kept beyond those that points need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Changes {
    /// All that anything can be restored with.
    All,
    /// Only what came after the newest point.
    Newest,
    /// All since this time, in milliseconds since 1970 UTC.
    Since(i64),
}

/// Why each point of one source is kept; nothing: it may go. `points` are oldest first by the times
/// that they restore. Points that are damaged or may vanish do not count: another one stands for
/// them, and they stay as well if they would stay without being damaged.
pub(super) fn fates(
    policy: &Policy,
    points: &[(&Arc<Known>, Standing)],
    end: i64,
    now: &Zoned,
) -> Vec<BTreeSet<Reason>> {
    let time = |number: usize| points[number].0.facts.time.millis;
    let counts = |number: &usize| points[*number].1.whole && !points[*number].1.unsettled;
    let everybody: Vec<usize> = (0..points.len()).collect();
    let counted: Vec<usize> = everybody.iter().copied().filter(counts).collect();
    let mut kept: Vec<BTreeSet<Reason>> = vec![BTreeSet::new(); points.len()];
    for chosen_from in [&counted, &everybody] {
        let times: Vec<i64> = chosen_from.iter().map(|n| time(*n)).collect();
        for (number, reasons) in chosen_from.iter().zip(policy.choose(&times, now)) {
            kept[*number].extend(reasons);
        }
        // The next run goes on from the one that was committed last, whatever time it restores.
        let last = chosen_from.iter().max_by_key(|n| points[**n].0.facts.name.committed);
        // What came after all points can be restored with the newest scan: another one may lie before a gap.
        let scan = chosen_from.iter().max_by_key(|n| points[**n].0.facts.base.greatest);
        for newest in last.into_iter().chain(scan) {
            kept[*newest].insert(Reason::Newest);
        }
        let Some(start) = policy.any_second_from(end, now) else { continue };
        let young = chosen_from.iter().filter(|n| time(**n) >= start);
        let before = chosen_from.iter().rev().find(|n| time(**n) <= start);
        let greatest = |n: usize| points[n].0.facts.base.greatest;
        let bases = chosen_from.iter().filter(|n| greatest(**n).millis <= start);
        let base = bases.max_by_key(|n| greatest(**n));
        for number in young.chain(before).chain(base) {
            kept[*number].insert(Reason::AnySecond);
        }
    }
    for (kept, (_, standing)) in kept.iter_mut().zip(points) {
        if standing.unsettled {
            kept.insert(Reason::Unsettled);
        }
    }
    kept
}

/// All that points need.
#[derive(Debug, Default)]
pub(super) struct Needs {
    /// Objects, the log aside.
    pub objects: HashSet<Item>,
    /// Whether a list of contents is damaged: any object that may hold contents counts as needed then.
    unknown_contents: bool,
    /// Times whose changes are needed, by source: from, to, in milliseconds since 1970 UTC.
    changes: BTreeMap<String, Vec<(i64, i64)>>,
    /// Lists of the contents that those changes refer to.
    lists: HashSet<ContentsName>,
}

impl Needs {
    /// What all points need, and the changes that are kept besides. `whole` says which points can
    /// be built upon.
    pub fn of(
        census: &Census,
        survey: &Survey,
        whole: impl Fn(&Known) -> bool,
        changes: impl Fn(&str) -> Changes,
    ) -> Self {
        let points = &survey.points;
        let mut by_source: BTreeMap<&str, Vec<&Known>> = BTreeMap::new();
        for point in points {
            by_source.entry(&point.facts.name.source).or_default().push(point);
        }
        let ranges = by_source.into_iter().map(|(tag, points)| {
            let sound: Vec<&Known> = points.iter().copied().filter(|p| whole(p)).collect();
            (tag.to_owned(), ranges(&points, &sound, changes(tag)))
        });
        let (changes, objects) = (ranges.collect(), census.needs_of_all(points.iter()));
        let mut needs = Needs { changes, objects, unknown_contents: false, lists: HashSet::new() };
        needs.add_contents(survey);
        needs
    }

    /// The contents that needed changes refer to. A list is of those that some flushes were the first to refer
    /// to: any later one may do so again. One that another list covers is not needed, if that can be read.
    fn add_contents(&mut self, survey: &Survey) {
        if survey.contents.is_empty() {
            return;
        }
        let mut last: HashMap<(&str, &str), u32> = HashMap::new();
        for object in survey.log.iter().filter(|o| self.needs_changes(&survey.log, o)) {
            let last = last.entry((survey.log.source(object), survey.log.run(object))).or_default();
            *last = object.last.max(*last);
        }
        let readable = survey.contents.iter().filter(|list| list.items.is_some()).map(|list| list.name.clone());
        let readable: HashSet<ContentsName> = contents::current(readable.collect()).into_iter().collect();
        for list in &survey.contents {
            let ContentsName { source, run, first, .. } = &list.name;
            let counts = match &list.items {
                Some(_) => readable.contains(&list.name),
                None => !readable.iter().any(|other| other.covers(&list.name)),
            };
            if counts && last.get(&(source.as_str(), run.as_str())).is_some_and(|last| last >= first) {
                self.unknown_contents |= list.items.is_none();
                self.objects.extend(list.items.iter().flatten());
                self.lists.insert(list.name.clone());
            }
        }
    }

    /// Whether an object is needed.
    pub fn needs_object(&self, kind: ObjectKind, item: Item) -> bool {
        let may_hold_contents = matches!(kind, ObjectKind::Part | ObjectKind::Segment);
        self.objects.contains(&item) || (self.unknown_contents && may_hold_contents)
    }

    /// Whether a list of contents is needed.
    pub fn needs_list(&self, name: &ContentsName) -> bool {
        self.lists.contains(name)
    }

    /// Whether any of an object of the log is needed. Times within a millisecond cannot be told
    /// apart here: then it is.
    pub fn needs_changes(&self, log: &LogTable, object: &LogEntry) -> bool {
        let ranges = self.changes.get(log.source(object));
        ranges.is_some_and(|ranges| ranges.iter().any(|(from, to)| object.to >= *from && object.from <= *to))
    }
}

fn ranges(points: &[&Known], sound: &[&Known], changes: Changes) -> Vec<(i64, i64)> {
    let start = |p: &&Known| p.facts.base.earliest.millis;
    let of_points = points.iter().filter(|p| p.facts.needs_log).map(|p| (start(p), p.facts.time.millis));
    let mut ranges: Vec<(i64, i64)> = of_points.collect();
    for points in [points, sound] {
        // What came after the newest point is nowhere else.
        let newest = points.iter().max_by_key(|p| p.facts.time);
        let last = points.iter().max_by_key(|p| p.facts.name.committed);
        let scan = points.iter().max_by_key(|p| p.facts.base.greatest);
        ranges.extend(newest.into_iter().chain(last).chain(scan).map(|p| (start(p), i64::MAX)));
        let oldest = points.iter().map(start).min();
        ranges.extend(match changes {
            Changes::Newest => None,
            Changes::All => oldest.map(|oldest| (oldest, i64::MAX)),
            Changes::Since(time) => {
                let bases = points.iter().filter(|p| p.facts.base.greatest.millis <= time);
                let base = bases.max_by_key(|p| p.facts.base.greatest).map(start);
                base.or(oldest).map(|from| (from, i64::MAX))
            }
        });
    }
    ranges.sort_unstable();
    ranges.dedup_by(|next, last| {
        let joined = next.0 <= last.1;
        if joined {
            last.1 = last.1.max(next.1);
        }
        joined
    });
    ranges
}

/// Where the history of a source ends: the last time of it that can be restored. Changes of a run that
/// has no base yet do not count: if it never gets one, they would push out what is of use.
pub(super) fn end_of(survey: &Survey, tag: &str) -> i64 {
    let points = survey.points.iter().map(|p| &p.facts).filter(|f| f.name.source == tag);
    let facts: Vec<&Facts> = points.collect();
    let history = history_of(&survey.log, tag, &facts, survey.removed.gaps_of(tag), |_| true);
    let intervals = history.intervals.iter().map(|i| i.to);
    intervals.chain(history.points.iter().map(|p| p.time.millis)).max().unwrap_or(0)
}
