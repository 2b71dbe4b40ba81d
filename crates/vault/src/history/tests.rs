#![allow(clippy::unwrap_used)]
use super::cover::history;
use super::facts::{Base, Facts};
use super::*;
use crate::name::PointName;
use proptest::prelude::*;

fn name(run: u64, first: u32, last: u32, from: u64, to: u64) -> LogName {
    LogName {
        source: "00000000000000aa".into(),
        run: format!("{run:016x}"),
        first,
        last,
        from,
        to,
        stored: [(first * 16 + last) as u8; 32],
        endings: "json.zst".into(),
    }
}

fn table(names: &[LogName]) -> LogTable {
    let mut log = LogTable::default();
    names.iter().for_each(|n| log.push(n, 1));
    log.finish()
}

/// A point that was scanned from `scan.0` to `scan.1` and has changes up to `time`.
fn point(run: u64, scan: (i64, i64), time: i64, log: Option<(EngineTime, EngineTime)>) -> Facts {
    let wall = EngineTime::wall;
    Facts {
        name: PointName {
            source: "00000000000000aa".into(),
            committed: time as u64,
            run: format!("{run:016x}"),
            stored: [run as u8; 32],
            encrypted: false,
        },
        time: wall(time),
        base: Base { earliest: wall(scan.0), greatest: wall(scan.1) },
        needs_log: log.is_some(),
        log,
        gap: None,
        source: "s".into(),
    }
}

fn intervals(names: &[LogName], points: &[Facts]) -> Vec<(i64, i64)> {
    let all: Vec<&Facts> = points.iter().collect();
    let found = history(&table(names), "00000000000000aa", &all, Vec::new(), |_| true);
    found.intervals.iter().map(|i| (i.from, i.to)).collect()
}

#[test]
fn a_scan_and_chains_make_an_interval() {
    let scan = [point(1, (10, 10), 10, None)];
    assert_eq!(intervals(&[], &scan), []);
    assert_eq!(intervals(&[name(2, 0, 0, 10, 15), name(2, 1, 1, 15, 20)], &scan), [(10, 20)]);
    // A hole; a chain that begins too late; one that ends before the scan does.
    assert_eq!(intervals(&[name(2, 0, 0, 10, 15), name(2, 2, 2, 16, 20)], &scan), [(10, 15)]);
    assert_eq!(intervals(&[name(2, 0, 0, 11, 15)], &scan), []);
    assert_eq!(intervals(&[name(2, 0, 0, 5, 9)], &[point(1, (5, 10), 10, None)]), []);
    // What is read over some time can be restored from the end of the scan on.
    assert_eq!(intervals(&[name(1, 0, 0, 9, 30)], &[point(1, (10, 20), 30, None)]), [(20, 30)]);
}

#[test]
fn chains_of_dead_runs_count_and_overlaps_are_harmless() {
    let scan = [point(1, (10, 10), 10, None)];
    let dead = [name(2, 0, 3, 10, 40), name(2, 1, 1, 15, 20), name(3, 0, 0, 25, 60)];
    assert_eq!(intervals(&dead, &scan), [(10, 60)]);
    // A later scan adds nothing where the first is still served.
    let scans = [point(1, (10, 10), 10, None), point(4, (50, 52), 55, None)];
    assert_eq!(intervals(&dead, &scans), [(10, 60)]);
    // After a hole only the later scan serves.
    let hole = [name(2, 0, 0, 10, 20), name(3, 0, 0, 45, 60)];
    assert_eq!(intervals(&hole, &scans), [(10, 20), (52, 60)]);
}

#[test]
fn within_a_millisecond_the_points_tell() {
    let at = |order: u64| EngineTime { order, millis: 20 };
    let wall = EngineTime::wall;
    let names = [name(2, 0, 0, 10, 20), name(3, 0, 0, 20, 30)];
    let points = |end: u64, start: u64| {
        [
            point(1, (10, 10), 10, None),
            point(2, (10, 10), 20, Some((wall(10), at(end)))),
            point(3, (10, 10), 30, Some((at(start), wall(30)))),
        ]
    };
    assert_eq!(intervals(&names, &points(7, 7)), [(10, 30)]);
    assert_eq!(intervals(&names, &points(7, 9)), [(10, 20)]);
    // A lost object in the middle of a second.
    let lost = [name(2, 0, 0, 10, 20), name(2, 2, 2, 20, 30)];
    assert_eq!(intervals(&lost, &[point(1, (10, 10), 10, None)]), [(10, 20)]);
}

#[test]
fn nothing_is_bridged_across_a_gap() {
    let wall = EngineTime::wall;
    let names = [name(2, 0, 0, 10, 50), name(3, 0, 0, 50, 80)];
    let mut healed = point(3, (60, 60), 60, None);
    healed.gap = Some(Gap { from: wall(40), to: None, why: "w".into() });
    let points = [point(1, (10, 10), 10, None), healed.clone()];
    assert_eq!(intervals(&names, &points), [(10, 40), (60, 80)]);
    // Told by the record of a removed point, too.
    let gap = Gap { from: wall(40), to: Some(wall(60)), why: "w".into() };
    healed.gap = None;
    let all = [&points[0], &healed];
    let found = history(&table(&names), "00000000000000aa", &all, vec![gap], |_| true);
    assert_eq!(found.intervals, [Interval { from: 10, to: 40 }, Interval { from: 60, to: 80 }]);
    assert!(found.gap_at(50).is_some() && found.gap_at(40).is_none() && found.gap_at(60).is_none());
    assert_eq!(found.nearest(50), (Some(40), Some(60)));
    assert_eq!(found.nearest(5), (None, Some(10)));
    assert_eq!(found.nearest(99), (Some(80), None));
    assert_eq!(found.nearest(70), (Some(70), Some(71)));
    assert!(found.hint(50).contains("1970-01-01T00:00:00.040Z and 1970-01-01T00:00:00.060Z"));
}

proptest! {
    /// Against a model that knows of each time alone whether some object covers it.
    #[test]
    fn intervals_are_what_bases_and_objects_cover(
        chains in prop::collection::vec((0_u64..60, prop::collection::vec((0_u64..9, any::<bool>()), 1..6)), 0..5),
        scans in prop::collection::vec((0_i64..60, 0_i64..6), 1..4),
        gap in prop::option::of((1_i64..50, 1_i64..12)),
    ) {
        let mut names = Vec::new();
        for (run, (start, steps)) in chains.iter().enumerate() {
            let mut at = *start;
            for (number, (step, there)) in steps.iter().enumerate() {
                let to = at + step + 1;
                if *there {
                    names.push(name(run as u64 + 100, number as u32, number as u32, at, to));
                }
                at = to;
            }
        }
        let points: Vec<Facts> =
            scans.iter().enumerate().map(|(i, (at, long))| point(i as u64, (*at, at + long), at + long, None)).collect();
        let gap = gap.map(|(from, long)| (from, from + long));
        let gaps: Vec<Gap> = gap
            .map(|(from, to)| Gap { from: EngineTime::wall(from), to: Some(EngineTime::wall(to)), why: String::new() })
            .into_iter()
            .collect();
        let all: Vec<&Facts> = points.iter().collect();
        let found = history(&table(&names), "00000000000000aa", &all, gaps, |_| true);
        let covered = |t: i64| {
            names.iter().any(|n| (n.from as i64) < t && t <= n.to as i64)
                && gap.is_none_or(|(from, to)| t <= from || t > to)
        };
        for t in 0..130 {
            let expected = scans.iter().any(|(at, long)| {
                let greatest = at + long;
                greatest <= t && (at + 1..=t.max(greatest + 1)).all(covered)
            });
            let is = found.intervals.iter().any(|i| i.from <= t && t <= i.to);
            prop_assert_eq!(is, expected, "{} {:?} {:?}", t, names, found);
        }
    }
}
