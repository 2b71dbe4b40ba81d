//! How well the sources of a vault are backed up.

use crate::choose;
use model::{EngineTime, Error, Gap, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;
use vault::{Check, Point, PointName, Vault};

/// How one source is doing.
#[derive(Debug, Clone, Serialize)]
pub struct SourceStatus {
    /// The source's name.
    pub source: String,
    /// Its tag.
    pub tag: String,
    /// Its engine.
    pub engine: String,
    /// The newest point that can be read.
    pub point: String,
    /// That point's time, RFC 3339 in UTC.
    pub time: String,
    /// The newest time that can be restored: that of the point, or of the change log after it.
    pub restorable: String,
    /// The same in milliseconds since 1970 UTC.
    pub millis: i64,
    /// How long ago that was, in seconds.
    pub age: u64,
    /// Whether changes are followed: the log goes on after the point.
    pub live: bool,
    /// Points that can be read.
    pub points: u64,
    /// Points of this source that cannot be read.
    pub broken: u64,
    /// Holes in the history.
    pub gaps: Vec<Gap>,
    /// The last drill.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drill: Option<Check>,
    /// Whether it is older than it may be.
    pub stale: bool,
}

/// How a vault is doing.
#[derive(Debug, Clone, Serialize)]
pub struct VaultStatus {
    /// Where it is.
    pub vault: String,
    /// Its sources, by name.
    #[serde(skip)]
    pub sources: Vec<SourceStatus>,
    /// The last verify.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify: Option<Check>,
    /// Points and records of checks that cannot be read: what is wrong.
    pub broken: Vec<String>,
    /// Whether there is no point at all although one must be there.
    pub stale: bool,
}

impl VaultStatus {
    /// Whether something is older than it may be.
    pub fn is_stale(&self) -> bool {
        self.stale || self.sources.iter().any(|s| s.stale)
    }

    /// Whether the last verify or a last drill was bad.
    pub fn has_failed_checks(&self) -> bool {
        let drills = self.sources.iter().filter_map(|s| s.drill.as_ref());
        self.verify.iter().chain(drills).any(|check| !check.good)
    }
}

/// How a vault is doing at a time (milliseconds since 1970 UTC); all its sources, or one.
pub async fn status(vault: &Vault, source: Option<&str>, max_age: Option<Duration>, now: i64) -> Result<VaultStatus> {
    let points = vault.points().await?;
    let wanted = source.map(|s| choose::source(&points, Some(s))).transpose()?;
    let mut checks = vault.last_checks().await?;
    let histories = vault.histories(&points).await?;
    let mut by_tag: BTreeMap<&str, Vec<&Point>> = BTreeMap::new();
    for point in points.points.iter().filter(|p| wanted.as_ref().is_none_or(|w| *w == p.name.source)) {
        by_tag.entry(&point.name.source).or_default().push(point);
    }
    let too_old = |age: Duration| max_age.is_some_and(|max| age > max);
    let mut sources = Vec::new();
    for (tag, of_source) in by_tag {
        let Some(newest) = of_source.iter().max_by_key(|p| (p.manifest.time, p.name.committed)) else { continue };
        let broken = points.broken.iter().filter(|b| PointName::parse(&b.path).is_some_and(|n| n.source == tag));
        let history = histories.iter().find(|h| h.source == tag);
        let point = newest.manifest.time;
        let followed = history.and_then(|h| h.intervals.last()).map_or(point.millis, |i| i.to);
        let restorable = followed.max(point.millis);
        let age = Duration::from_millis(now.saturating_sub(restorable).max(0) as u64);
        sources.push(SourceStatus {
            source: newest.manifest.source.name.clone(),
            tag: tag.to_owned(),
            engine: newest.manifest.source.engine.0.clone(),
            point: newest.name.id(),
            time: newest.manifest.time.to_string(),
            restorable: EngineTime { order: 0, millis: restorable }.to_string(),
            millis: restorable,
            age: age.as_secs(),
            live: restorable > point.millis,
            points: of_source.len() as u64,
            broken: broken.count() as u64,
            gaps: history.map(|h| h.gaps.clone()).unwrap_or_default(),
            drill: checks.drills.remove(tag),
            stale: too_old(age),
        });
    }
    sources.sort_by(|a, b| (&a.source, &a.tag).cmp(&(&b.source, &b.tag)));
    let broken = points.broken.iter().map(|b| b.error.to_string()).chain(checks.broken);
    Ok(VaultStatus {
        vault: vault.location(),
        stale: sources.is_empty() && max_age.is_some(),
        sources,
        verify: checks.verify,
        broken: broken.collect(),
    })
}

/// Reads an age: `90s`, `15m`, `26h`, `2d`, `1w`.
pub fn parse_age(text: &str) -> Result<Duration> {
    let wrong = || Error::input(format!("{text} is not an age")).hint("write it as 90s, 15m, 26h, 2d or 1w");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let count: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let seconds = match text[digits..].trim() {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        "w" => 7 * 24 * 3600,
        _ => return Err(wrong()),
    };
    count.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ages_are_read() {
        for (text, seconds) in [("90s", 90), ("15m", 900), ("26h", 93_600), ("2 d", 172_800), ("1w", 604_800)] {
            assert_eq!(parse_age(text).unwrap(), Duration::from_secs(seconds), "{text}");
        }
        for wrong in ["", "5", "h", "-1h", "1y", "99999999999999999999s", "9999999999999999999w"] {
            assert!(parse_age(wrong).is_err(), "{wrong}");
        }
    }
}
