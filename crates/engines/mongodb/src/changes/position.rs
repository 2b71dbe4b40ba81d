//! Places in the oplog, and what proves that they are still the same ones.

use super::entry::Entry;
use crate::connect::engine_time;
use bson::Timestamp;
use model::{EngineTime, Position};

/// An entry of the oplog up to which everything is known. Its term and its wall clock tell it from an
/// entry that another server, or this one after a restore, wrote at the same cluster time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Its cluster time.
    pub ts: Timestamp,
    /// The term of the election that its writer won.
    pub term: i64,
    /// The wall clock of its writer, in milliseconds.
    pub wall: i64,
}

impl Mark {
    /// The mark of an entry.
    pub fn of(entry: &Entry) -> Mark {
        Mark { ts: entry.ts, term: entry.term, wall: entry.wall }
    }

    /// From a position; none if another version of Rewound wrote it.
    pub fn parse(position: &Position) -> Option<Mark> {
        let rest = position.0.strip_prefix("oplog:")?;
        let mut parts = rest.split(';');
        let (time, increment) = parts.next()?.split_once(',')?;
        let ts = Timestamp { time: time.parse().ok()?, increment: increment.parse().ok()? };
        let term = parts.next()?.strip_prefix("term=")?.parse().ok()?;
        let wall = parts.next()?.strip_prefix("wall=")?.parse().ok()?;
        parts.next().is_none().then_some(Mark { ts, term, wall })
    }

    /// As a position.
    pub fn position(&self) -> Position {
        Position(format!("oplog:{},{};term={};wall={}", self.ts.time, self.ts.increment, self.term, self.wall))
    }

    /// Its time.
    pub fn time(&self) -> EngineTime {
        engine_time(self.ts)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn positions_are_read_back() {
        let mark = Mark { ts: Timestamp { time: 1_700_000_000, increment: 7 }, term: -1, wall: 1_700_000_000_123 };
        assert_eq!(mark.position().0, "oplog:1700000000,7;term=-1;wall=1700000000123");
        assert_eq!(Mark::parse(&mark.position()), Some(mark));
        for wrong in
            ["", "ts:1,2", "oplog:1,2", "oplog:1,2;term=1", "oplog:1,2;term=1;wall=3;x=1", "oplog:1;term=1;wall=3"]
        {
            assert_eq!(Mark::parse(&Position(wrong.into())), None, "{wrong}");
        }
    }
}
