//! What of a point counts for what can be restored: little enough that ten thousand fit in memory.

use crate::manifest::Manifest;
use crate::name::PointName;
use model::{EngineTime, Gap};

/// A point, as far as its place in the history goes.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub name: PointName,
    /// The time that it restores.
    pub time: EngineTime,
    pub base: Base,
    /// What its own chain covers, if its run wrote one.
    pub log: Option<(EngineTime, EngineTime)>,
    /// Whether its state is more than its layers: the changes between its scan and its time count.
    pub needs_log: bool,
    pub gap: Option<Gap>,
    /// What people call the source.
    pub source: String,
}

/// What was scanned: changes are applied to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Base {
    /// Changes after this time must be known.
    pub earliest: EngineTime,
    /// The first time whose state can be made of it; at that time it needs nothing else if
    /// everything was read at one time.
    pub greatest: EngineTime,
}

impl Facts {
    pub fn of(name: PointName, manifest: &Manifest) -> Self {
        let (earliest, greatest) = manifest.scanned();
        Facts {
            name,
            time: manifest.time,
            base: Base { earliest, greatest },
            log: manifest.log.as_ref().map(|log| (log.from, log.to)),
            needs_log: manifest.log.is_some(),
            gap: manifest.gap.clone(),
            source: manifest.source.name.clone(),
        }
    }
}
