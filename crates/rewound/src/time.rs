//! What `--at` means.

use jiff::civil::{Date, DateTime, Time, Weekday};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp, ToSpan, Zoned};
use model::{EngineTime, Error, FeedKind, Result};
use std::cmp::Ordering;

/// A time that the user means.
#[derive(Debug, Clone, PartialEq)]
pub enum At {
    /// A time of day, in the time zone it is to be shown in.
    Wall(Zoned),
    /// A time of an engine with a clock of its own: `ts:SECONDS,INCREMENT`.
    Cluster {
        /// Seconds since 1970 UTC.
        seconds: u32,
        /// Which change of that second.
        increment: u32,
    },
}

impl At {
    /// Reads what the user wrote. `now` also gives the time zone of times that name none.
    pub fn parse(text: &str, now: &Zoned) -> Result<At> {
        let text = text.trim();
        if let Some(cluster) = text.strip_prefix("ts:") {
            return parse_cluster(cluster).ok_or_else(|| malformed(text));
        }
        // RFC 3339: it names its own offset.
        if let Ok(instant) = text.parse::<Timestamp>() {
            return Ok(At::Wall(instant.to_zoned(now.time_zone().clone())));
        }
        if text.eq_ignore_ascii_case("now") {
            return Ok(At::Wall(now.clone()));
        }
        if let Some(ago) = text.strip_suffix("ago") {
            return parse_ago(ago.trim(), now).ok_or_else(|| malformed(text));
        }
        let (day, time) = text.split_once([' ', 'T']).ok_or_else(|| match is_day(text, now) {
            true => Error::input(format!("--at {text}: a day is not a time"))
                .hint(format!("add the time of day: --at '{text} 14:00'")),
            false => malformed(text),
        })?;
        let time = parse_time(time.trim()).ok_or_else(|| malformed(text))?;
        let date = parse_day(day, time, now).ok_or_else(|| malformed(text))?;
        local(date.to_datetime(time), now.time_zone()).map(At::Wall)
    }

    /// The time in full, so that the user can see what was understood.
    pub fn in_full(&self) -> String {
        match self {
            At::Wall(zoned) => zoned.strftime("%a %Y-%m-%d %H:%M:%S%.f %:z").to_string(),
            At::Cluster { seconds, increment } => format!("ts:{seconds},{increment}"),
        }
    }

    /// The last engine time that this time includes. A time of day means its whole second for engines
    /// that count changes within seconds.
    pub fn engine_time(&self, feed: FeedKind) -> Result<EngineTime> {
        match (self, feed) {
            (At::Wall(zoned), FeedKind::EveryChange) => {
                let second = zoned.timestamp().as_millisecond().div_euclid(1000);
                let seconds = second.clamp(0, i64::from(u32::MAX)) as u64;
                Ok(EngineTime { order: seconds << 32 | u64::from(u32::MAX), millis: seconds as i64 * 1000 })
            }
            (At::Wall(zoned), FeedKind::LatestState) => Ok(EngineTime::wall(zoned.timestamp().as_millisecond())),
            (At::Cluster { seconds, increment }, FeedKind::EveryChange) => Ok(EngineTime {
                order: u64::from(*seconds) << 32 | u64::from(*increment),
                millis: i64::from(*seconds) * 1000,
            }),
            (At::Cluster { .. }, FeedKind::LatestState) => Err(no_clock()),
        }
    }

    /// Whether a point of this time is at or before this time.
    pub fn covers(&self, point: EngineTime, feed: FeedKind) -> Result<bool> {
        match (self, feed) {
            (At::Wall(zoned), _) => Ok(point.millis <= zoned.timestamp().as_millisecond()),
            (At::Cluster { seconds, increment }, FeedKind::EveryChange) => {
                let order = u64::from(*seconds) << 32 | u64::from(*increment);
                Ok(point.order.cmp(&order) != Ordering::Greater)
            }
            (At::Cluster { .. }, FeedKind::LatestState) => Err(no_clock()),
        }
    }
}

/// An engine time as `--at` takes it, exactly: of engines that count changes within seconds that count.
pub fn exactly(time: EngineTime, feed: FeedKind) -> String {
    match feed {
        FeedKind::EveryChange => format!("ts:{},{}", time.order >> 32, time.order & 0xFFFF_FFFF),
        FeedKind::LatestState => time.to_string(),
    }
}

fn no_clock() -> Error {
    Error::unsupported("the source of this vault has no clock of its own, so that ts: means nothing")
        .hint("write a time of day: --at '2026-11-20 09:03'")
}

fn malformed(text: &str) -> Error {
    Error::input(format!("--at {text}: not a time")).hint(
        "write it as '2026-11-20 09:03', '2026-11-20T09:03:00Z', 'today 9:00', 'yesterday 14:00', 'friday 09:03', '2h ago' or 'ts:SECONDS,INCREMENT'",
    )
}

fn parse_cluster(text: &str) -> Option<At> {
    let (seconds, increment) = text.split_once(',')?;
    Some(At::Cluster { seconds: seconds.trim().parse().ok()?, increment: increment.trim().parse().ok()? })
}

/// `2h`, `90 minutes`, `3d`: days and weeks are days of the calendar.
fn parse_ago(text: &str, now: &Zoned) -> Option<At> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let count: i64 = text[..digits].parse().ok()?;
    if count > 1_000_000_000 {
        return None;
    }
    let seconds = |each: i64| now.checked_sub(SignedDuration::from_secs(count * each)).ok();
    let zoned = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "s" | "sec" | "secs" | "second" | "seconds" => seconds(1),
        "m" | "min" | "mins" | "minute" | "minutes" => seconds(60),
        "h" | "hour" | "hours" => seconds(3600),
        "d" | "day" | "days" => now.checked_sub(1.days().checked_mul(count).ok()?).ok(),
        "w" | "week" | "weeks" => now.checked_sub(1.weeks().checked_mul(count).ok()?).ok(),
        _ => None,
    };
    zoned.map(At::Wall)
}

/// `9:00`, `09:03`, `09:03:12`, `09:03:12.345`.
fn parse_time(text: &str) -> Option<Time> {
    let (hour, rest) = text.split_once(':')?;
    if hour.is_empty() || hour.len() > 2 || !hour.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let is_rest = |b: u8| b.is_ascii_digit() || b == b':' || b == b'.';
    if rest.len() < 2 || !rest.bytes().all(is_rest) {
        return None;
    }
    format!("{hour:0>2}:{rest}").parse().ok()
}

fn is_day(text: &str, now: &Zoned) -> bool {
    parse_day(text, Time::midnight(), now).is_some()
}

/// The date of a day; `time` is needed for weekdays, which mean the last one that is not in the
/// future.
fn parse_day(day: &str, time: Time, now: &Zoned) -> Option<Date> {
    let today = now.date();
    match day.to_ascii_lowercase().as_str() {
        "today" => return Some(today),
        "yesterday" => return today.yesterday().ok(),
        _ => {}
    }
    if let Some(weekday) = parse_weekday(day) {
        let back = i64::from(weekday.until(today.weekday()));
        let date = today.checked_sub(back.days()).ok()?;
        return match date == today && time > now.time() {
            true => date.checked_sub(1.week()).ok(),
            false => Some(date),
        };
    }
    let is_date = day.len() == 10 && day.bytes().all(|b| b.is_ascii_digit() || b == b'-');
    is_date.then(|| day.parse().ok()).flatten()
}

fn parse_weekday(text: &str) -> Option<Weekday> {
    let text = text.to_ascii_lowercase();
    let all = [
        ("monday", Weekday::Monday),
        ("tuesday", Weekday::Tuesday),
        ("wednesday", Weekday::Wednesday),
        ("thursday", Weekday::Thursday),
        ("friday", Weekday::Friday),
        ("saturday", Weekday::Saturday),
        ("sunday", Weekday::Sunday),
    ];
    all.into_iter().find(|(name, _)| *name == text || name[..3] == text).map(|(_, day)| day)
}

/// A local time as an instant. One that the change of clocks made ambiguous, or left out, is
/// refused with both readings.
fn local(datetime: DateTime, zone: &TimeZone) -> Result<Zoned> {
    let ambiguous = zone.to_ambiguous_zoned(datetime);
    let out_of_range = |e: jiff::Error| Error::input(format!("--at: {e}")).hint("choose a time that a clock can show");
    let offsets = match ambiguous.offset() {
        AmbiguousOffset::Unambiguous { .. } => return ambiguous.unambiguous().map_err(out_of_range),
        AmbiguousOffset::Gap { before, after } => (before, after, "did not exist: clocks went forward"),
        AmbiguousOffset::Fold { before, after } => (before, after, "came twice: clocks went back"),
    };
    let (before, after, why) = offsets;
    Err(Error::input(format!("--at: {} {why}", datetime.strftime("%Y-%m-%d %H:%M:%S"))).hint(format!(
        "say which you mean: --at {}{before} or --at {}{after}",
        datetime.strftime("%Y-%m-%dT%H:%M:%S"),
        datetime.strftime("%Y-%m-%dT%H:%M:%S"),
    )))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn now_in(zone: &str, utc: &str) -> Zoned {
        utc.parse::<Timestamp>().unwrap().to_zoned(TimeZone::posix(zone).unwrap())
    }

    /// Friday, 2026-11-20, 10:30 in Berlin.
    fn berlin() -> Zoned {
        now_in("CET-1CEST,M3.5.0,M10.5.0/3", "2026-11-20T09:30:00Z")
    }

    fn utc(text: &str, now: &Zoned) -> String {
        match At::parse(text, now).unwrap() {
            At::Wall(zoned) => zoned.timestamp().to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn all_ways_to_write_a_time() {
        let now = berlin();
        for (text, expected) in [
            ("2026-11-20T09:03:00Z", "2026-11-20T09:03:00Z"),
            ("2026-11-20T09:03:00+02:00", "2026-11-20T07:03:00Z"),
            ("2026-11-20 09:03:00.5-05:00", "2026-11-20T14:03:00.5Z"),
            ("2026-11-20 09:03", "2026-11-20T08:03:00Z"),
            ("2026-11-20T09:03", "2026-11-20T08:03:00Z"),
            ("2026-11-20 9:03:12", "2026-11-20T08:03:12Z"),
            ("2026-11-20 09:03:12.345", "2026-11-20T08:03:12.345Z"),
            ("2026-07-01 09:03", "2026-07-01T07:03:00Z"),
            ("today 9:00", "2026-11-20T08:00:00Z"),
            ("Yesterday 14:00", "2026-11-19T13:00:00Z"),
            ("friday 09:03", "2026-11-20T08:03:00Z"),
            ("friday 10:30", "2026-11-20T09:30:00Z"),
            ("friday 10:31", "2026-11-13T09:31:00Z"),
            ("sat 10:00", "2026-11-14T09:00:00Z"),
            ("Monday 00:00", "2026-11-15T23:00:00Z"),
            ("2h ago", "2026-11-20T07:30:00Z"),
            ("30m ago", "2026-11-20T09:00:00Z"),
            ("90 minutes ago", "2026-11-20T08:00:00Z"),
            ("3d ago", "2026-11-17T09:30:00Z"),
            // The clocks changed in between: the same time of day.
            ("4w ago", "2026-10-23T08:30:00Z"),
            ("now", "2026-11-20T09:30:00Z"),
        ] {
            assert_eq!(utc(text, &now), expected, "{text}");
        }
        assert_eq!(At::parse("ts:1700000000,3", &now).unwrap(), At::Cluster { seconds: 1_700_000_000, increment: 3 });
    }

    #[test]
    fn what_is_no_time_is_refused_with_examples() {
        for text in [
            "",
            "soon",
            "25:00",
            "2026-13-01 00:00",
            "2026-11-20 24:01",
            "friday 9",
            "friday",
            "2026-11-20",
            "h ago",
            "2x ago",
            "-2h ago",
            "ts:1",
            "ts:x,1",
            "today 9:00 Z",
            "20.11.2026 09:03",
            "99999999999999999999h ago",
        ] {
            let error = At::parse(text, &berlin()).unwrap_err();
            assert!(error.to_string().starts_with(&format!("--at {text}")), "{error}");
            assert!(error.hint_text().is_some(), "{text}");
        }
        let error = At::parse("friday", &berlin()).unwrap_err();
        assert_eq!(error.hint_text(), Some("add the time of day: --at 'friday 14:00'"));
    }

    #[test]
    fn an_hour_that_came_twice_is_refused_with_both_readings() {
        let error = At::parse("2026-10-25 02:30", &berlin()).unwrap_err();
        assert!(error.to_string().contains("came twice"));
        let hint = error.hint_text().unwrap();
        assert!(hint.contains("2026-10-25T02:30:00+02") && hint.contains("2026-10-25T02:30:00+01"), "{hint}");
        // Both readings are times that can be given.
        for reading in hint.split("--at ").skip(1) {
            At::parse(reading.trim().trim_end_matches(" or"), &berlin()).unwrap();
        }
        let error = At::parse("2026-03-29 02:30", &berlin()).unwrap_err();
        assert!(error.to_string().contains("did not exist"));
        assert!(At::parse("2026-10-25 03:00", &berlin()).is_ok());
    }

    #[test]
    fn the_zone_matters() {
        let kathmandu = now_in("<+0545>-5:45", "2026-11-20T09:30:00Z");
        assert_eq!(utc("today 15:15", &kathmandu), "2026-11-20T09:30:00Z");
        assert_eq!(At::parse("today 15:15", &kathmandu).unwrap().in_full(), "Fri 2026-11-20 15:15:00 +05:45");
    }

    #[test]
    fn a_time_of_day_includes_its_second() {
        let at = At::parse("2026-11-20T09:03:00.5Z", &berlin()).unwrap();
        let every = at.engine_time(FeedKind::EveryChange).unwrap();
        let second = 1_795_165_380;
        assert_eq!((every.order >> 32, every.order as u32, every.millis), (second, u32::MAX, second as i64 * 1000));
        assert_eq!(at.engine_time(FeedKind::LatestState).unwrap().millis, second as i64 * 1000 + 500);
        let at = At::Cluster { seconds: 7, increment: 9 };
        let time = at.engine_time(FeedKind::EveryChange).unwrap();
        assert_eq!(exactly(time, FeedKind::EveryChange), "ts:7,9");
        assert_eq!(At::parse(&exactly(time, FeedKind::EveryChange), &berlin()).unwrap(), at);
        assert!(at.engine_time(FeedKind::LatestState).is_err());
    }

    #[test]
    fn times_include_themselves() {
        let at = At::parse("2026-11-20T09:03:00Z", &berlin()).unwrap();
        let point = |text: &str| EngineTime::wall(text.parse::<Timestamp>().unwrap().as_millisecond());
        assert!(at.covers(point("2026-11-20T09:03:00Z"), FeedKind::LatestState).unwrap());
        assert!(!at.covers(point("2026-11-20T09:03:00.001Z"), FeedKind::LatestState).unwrap());
        let at = At::Cluster { seconds: 5, increment: 2 };
        let order = |order| EngineTime { order, millis: 0 };
        assert!(at.covers(order(5 << 32 | 2), FeedKind::EveryChange).unwrap());
        assert!(!at.covers(order(5 << 32 | 3), FeedKind::EveryChange).unwrap());
        assert!(at.covers(order(0), FeedKind::LatestState).is_err());
    }
}
