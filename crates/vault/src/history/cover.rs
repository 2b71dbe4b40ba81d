//! Which times the chains of a source cover, and so which can be restored.

use super::facts::Facts;
use super::logs::{LogEntry, LogTable};
use super::{History, Interval, Moment};
use model::{EngineTime, Gap};
use std::collections::HashMap;

/// An end of what a chain covers. Names tell milliseconds; points of the same run tell the exact
/// time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bound {
    millis: i64,
    order: Option<u64>,
}

/// A part of a chain without a hole.
#[derive(Debug, Clone, Copy)]
struct Piece {
    /// The number of any of its objects: tells chains apart.
    chain: usize,
    from: Bound,
    to: Bound,
}

/// Times without a hole: after the first, up to the second.
type Cover = (Bound, Bound);

/// Whether nothing can be missing between the end of one piece and the start of another.
fn touches(log: &LogTable, end: &Piece, start: &Piece) -> bool {
    match (end.to.millis.cmp(&start.from.millis), end.to.order, start.from.order) {
        (std::cmp::Ordering::Greater, ..) => true,
        (std::cmp::Ordering::Less, ..) => false,
        (_, Some(end), Some(start)) => end >= start,
        // A run goes on where a point ends. Within a chain there would be no two pieces without a
        // hole.
        _ => !LogTable::same_chain(log.get(end.chain), log.get(start.chain)),
    }
}

/// The chains of a source, in pieces without holes, by their starts.
fn pieces(log: &LogTable, tag: &str, facts: &[&Facts], counts: impl Fn(&LogEntry) -> bool) -> Vec<Piece> {
    let known: HashMap<&str, (EngineTime, EngineTime)> =
        facts.iter().filter_map(|f| f.log.map(|span| (f.name.run.as_str(), span))).collect();
    let mut pieces: Vec<Piece> = Vec::new();
    let mut last: Option<&LogEntry> = None;
    for number in log.of(tag) {
        let object = log.get(number);
        if object.is_superseded() || !counts(object) {
            continue;
        }
        let goes_on = last.is_some_and(|l| LogTable::same_chain(l, object) && object.first <= l.last + 1);
        let exact = |millis: i64, of_point: fn(&(EngineTime, EngineTime)) -> EngineTime| {
            let time = known.get(log.run(object)).map(of_point).filter(|t| t.millis == millis);
            Bound { millis, order: time.map(|t| t.order) }
        };
        let to = exact(object.to, |span| span.1);
        match pieces.last_mut() {
            Some(piece) if goes_on => piece.to = to,
            _ => pieces.push(Piece { chain: number, from: exact(object.from, |span| span.0), to }),
        }
        last = Some(object);
    }
    pieces.sort_by_key(|p| (p.from.millis, p.from.order));
    pieces
}

fn covers(log: &LogTable, tag: &str, facts: &[&Facts], gaps: &[Gap], counts: impl Fn(&LogEntry) -> bool) -> Vec<Cover> {
    let mut covers: Vec<Cover> = Vec::new();
    let mut end: Option<Piece> = None;
    for piece in pieces(log, tag, facts, counts) {
        match (&mut end, covers.last_mut()) {
            (Some(end), Some(cover)) if touches(log, end, &piece) => {
                if (piece.to.millis, piece.to.order) > (end.to.millis, end.to.order) {
                    *end = piece;
                    cover.1 = piece.to;
                }
            }
            _ => {
                end = Some(piece);
                covers.push((piece.from, piece.to));
            }
        }
    }
    gaps.iter().fold(covers, |covers, gap| covers.into_iter().flat_map(|c| without(c, gap)).collect())
}

/// What is left of a cover outside a gap.
fn without(cover: Cover, gap: &Gap) -> impl Iterator<Item = Cover> {
    let (from, to) = (gap.from, gap.to.unwrap_or(EngineTime::MAX));
    let bound = |t: EngineTime| Bound { millis: t.millis, order: Some(t.order) };
    let before = |a: Bound, b: Bound| match (a.millis == b.millis, a.order, b.order) {
        (true, Some(a), Some(b)) => a < b,
        (same, ..) => !same && a.millis < b.millis,
    };
    let (start, end) = cover;
    let apart = !before(start, bound(to)) || !before(bound(from), end);
    let left = match before(bound(from), end) {
        true => Some((start, bound(from))),
        false => Some(cover),
    };
    let right = before(bound(to), end).then(|| (bound(to), end));
    let (left, right) = match apart {
        true => (Some(cover), None),
        false => (left.filter(|(a, b)| before(*a, *b)), right),
    };
    left.into_iter().chain(right)
}

/// Whether the log has all changes between a base's scan and a point's time.
pub(crate) fn is_whole(log: &LogTable, point: &Facts) -> bool {
    let (from, to) = (point.base.earliest, point.time);
    let reaches = |at: Bound| at.millis > to.millis || at.millis == to.millis && at.order.is_none_or(|o| o >= to.order);
    let begins =
        |at: Bound| at.millis < from.millis || at.millis == from.millis && at.order.is_none_or(|o| o <= from.order);
    let covers = covers(log, &point.name.source, &[point], &[], |_| true);
    from >= to || covers.iter().any(|(start, end)| begins(*start) && reaches(*end))
}

/// What can be restored of one source, with the objects of the log that count. `facts` are those of
/// its points.
pub(crate) fn history(
    log: &LogTable,
    tag: &str,
    facts: &[&Facts],
    mut gaps: Vec<Gap>,
    counts: impl Fn(&LogEntry) -> bool,
) -> History {
    gaps.extend(facts.iter().filter_map(|f| f.gap.clone().map(|gap| Gap { to: gap.to.or(Some(f.time)), ..gap })));
    gaps.sort_by_key(|g| (g.from, g.to));
    gaps.dedup();
    let covers = covers(log, tag, facts, &gaps, counts);
    let mut intervals: Vec<Interval> = Vec::new();
    for base in facts.iter().map(|f| f.base) {
        // The last cover that begins before the base does: it alone can hold it.
        let after = covers.partition_point(|(from, _)| from.millis <= base.earliest.millis);
        let cover = after.checked_sub(1).map(|at| covers[at]);
        if let Some((from, to)) = cover
            && from.order.is_none_or(|order| from.millis < base.earliest.millis || order <= base.earliest.order)
            && to.millis > base.greatest.millis
        {
            intervals.push(Interval { from: base.greatest.millis, to: to.millis });
        }
    }
    intervals.sort_by_key(|i| (i.from, i.to));
    intervals.dedup_by(|next, last| {
        let joined = next.from <= last.to;
        if joined {
            last.to = last.to.max(next.to);
        }
        joined
    });
    let mut points: Vec<Moment> =
        facts.iter().map(|f| Moment { point: f.name.id(), time: f.time, committed: f.name.committed as i64 }).collect();
    points.sort_by_key(|p| (p.time, p.committed));
    let name = facts.iter().max_by_key(|f| f.name.committed).map(|f| f.source.clone());
    History { source: tag.to_owned(), name, intervals, points, gaps }
}
