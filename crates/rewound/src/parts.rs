//! What a plan comes to: parts, grouped by collection.

use model::{CollectionInfo, Consistency, EngineTime, Error, Gap, Part, Plan, Position, Result, Skipped};
use std::collections::HashMap;

/// A scan, and the gap before it.
pub(crate) struct Scan {
    pub parts: Vec<Part>,
    pub start: Option<Position>,
    pub at: Option<EngineTime>,
    pub consistency: Consistency,
    pub skipped: Vec<Skipped>,
    pub gap: Option<Gap>,
}

impl Scan {
    /// The scan that a plan is, or leads to.
    pub fn of(mut plan: Plan) -> Result<Scan> {
        let mut lost = None;
        loop {
            plan = match plan {
                Plan::Scan { start, parts, at, consistency, skipped } => {
                    return Ok(Scan { parts, start, at, consistency, skipped, gap: lost });
                }
                Plan::Gap { gap, then } => {
                    lost = Some(gap);
                    *then
                }
                Plan::Changes { .. } => {
                    return Err(Error::bug("a source was to be scanned, but wants to tell changes only"));
                }
            };
        }
    }
}

/// Parts grouped by collection, in the order in which the collections come first.
pub(crate) fn by_collection(parts: Vec<Part>) -> Vec<(CollectionInfo, Vec<Part>)> {
    let mut groups: Vec<(CollectionInfo, Vec<Part>)> = Vec::new();
    let mut places = HashMap::new();
    for part in parts {
        let place = *places.entry(part.collection.id.clone()).or_insert_with(|| {
            groups.push((part.collection.clone(), Vec::new()));
            groups.len() - 1
        });
        groups[place].1.push(part);
    }
    groups
}
