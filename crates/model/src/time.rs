//! Engine times and positions.

use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::fmt;

/// A moment in an engine's own clock.
///
/// `order` is what is compared: a number that grows with every change the engine tells apart
/// (MongoDB: the cluster time, seconds in the upper 32 bits; engines without such a number: the
/// milliseconds of our clock when we read). `millis` is the wall time shown to people, in
/// milliseconds since 1970 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EngineTime {
    /// What is compared.
    pub order: u64,
    /// Milliseconds since 1970 UTC, for people.
    pub millis: i64,
}

impl EngineTime {
    /// A time of an engine whose order is our wall clock.
    pub fn wall(millis: i64) -> Self {
        EngineTime { order: millis.max(0) as u64, millis }
    }

    /// Before everything.
    pub const ZERO: EngineTime = EngineTime { order: 0, millis: 0 };
    /// After everything.
    pub const MAX: EngineTime = EngineTime { order: u64::MAX, millis: i64::MAX };
}

impl PartialOrd for EngineTime {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for EngineTime {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order.cmp(&other.order).then(self.millis.cmp(&other.millis))
    }
}

impl fmt::Display for EngineTime {
    /// RFC 3339 in UTC with milliseconds, for example `2026-11-20T09:03:00.123Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.millis) {
            Ok(t) => write!(f, "{t:.3}"),
            Err(_) => write!(f, "{} ms", self.millis),
        }
    }
}

/// An engine's own resume point (resume token, update sequence, etag), opaque to all but the
/// engine that made it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Position(pub String);
