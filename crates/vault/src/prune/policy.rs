//! Which points are kept: rules as people give them, and what they say of a list of times.

use jiff::{Span, Timestamp, Zoned};
use model::{Error, Result};
use serde::Serialize;
use std::collections::BTreeSet;

/// What to keep of each source. What no rule keeps may go; without any rule nothing but leftovers
/// goes.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// The newest so many points.
    pub last: Option<u32>,
    /// The newest point of each of the newest so many hours that have one.
    pub hourly: Option<u32>,
    /// Likewise of days.
    pub daily: Option<u32>,
    /// Likewise of weeks, from Monday on.
    pub weekly: Option<u32>,
    /// Likewise of months.
    pub monthly: Option<u32>,
    /// Likewise of years.
    pub yearly: Option<u32>,
    /// All points within this time before the newest one.
    pub within: Option<Span>,
    /// All changes within this time before the end of the history, so that any second of it stays
    /// restorable.
    pub any_second_within: Option<Span>,
}

/// Why a point is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// It is the newest of its source.
    Newest,
    /// One of the last points.
    Last,
    /// The newest of its hour.
    Hourly,
    /// The newest of its day.
    Daily,
    /// The newest of its week.
    Weekly,
    /// The newest of its month.
    Monthly,
    /// The newest of its year.
    Yearly,
    /// It is young enough.
    Within,
    /// Any second since its time, or a part of that, stays restorable.
    AnySecond,
    /// The run that made it may not be done with it.
    Unsettled,
}

impl Policy {
    /// Whether there is no rule at all.
    pub fn is_empty(&self) -> bool {
        self.counts().into_iter().all(|(_, n)| n.is_none()) && self.within.is_none() && self.any_second_within.is_none()
    }

    /// Refuses rules that keep nothing, and durations that are none.
    pub fn check(&self) -> Result<()> {
        let spans = [("keep-within", self.within), ("keep-any-second-within", self.any_second_within)];
        for (name, span) in spans {
            if span.is_some_and(|s| s.is_negative()) {
                return Err(Error::input(format!("{name} is negative")).hint("write a duration like 14d, 36h or 6mo"));
            }
        }
        let keeps = self.counts().into_iter().any(|(_, n)| n.is_some_and(|n| n > 0))
            || spans.into_iter().any(|(_, s)| s.is_some_and(|s| !s.is_zero()));
        if self.is_empty() || keeps {
            return Ok(());
        }
        Err(Error::input("these rules keep no point at all, so nothing was removed")
            .hint("keep at least something, for example with --keep-last 1"))
    }

    fn counts(&self) -> [(Reason, Option<u32>); 6] {
        [
            (Reason::Last, self.last),
            (Reason::Hourly, self.hourly),
            (Reason::Daily, self.daily),
            (Reason::Weekly, self.weekly),
            (Reason::Monthly, self.monthly),
            (Reason::Yearly, self.yearly),
        ]
    }

    /// What the rules about points say of one source. `times` are those of its points, oldest first,
    /// in milliseconds since 1970 UTC; hours, days and so on are those of the zone of `now`. For each
    /// point: why it is kept; nothing if it may go.
    pub fn choose(&self, times: &[i64], now: &Zoned) -> Vec<BTreeSet<Reason>> {
        let mut kept = vec![BTreeSet::new(); times.len()];
        let Some(newest) = times.last() else { return kept };
        if let Some(last) = kept.last_mut() {
            last.insert(Reason::Newest);
        }
        for (reason, count) in self.counts() {
            let mut left = count.unwrap_or(0);
            let mut current = None;
            for (number, time) in times.iter().enumerate().rev() {
                if left == 0 {
                    break;
                }
                let period = period(reason, number, *time, now);
                if current != Some(period) {
                    current = Some(period);
                    left -= 1;
                    kept[number].insert(reason);
                }
            }
        }
        if let Some(span) = self.within {
            let start = start_of(span, *newest, now);
            let young = times.partition_point(|t| *t < start);
            for reasons in &mut kept[young..] {
                reasons.insert(Reason::Within);
            }
        }
        kept
    }

    /// From when on any second is to stay restorable, of a history that ends at `end`.
    pub fn any_second_from(&self, end: i64, now: &Zoned) -> Option<i64> {
        self.any_second_within.filter(|s| !s.is_zero()).map(|span| start_of(span, end, now))
    }
}

/// Where a span begins that ends at the newest time: not at the present, so that the last points of
/// a source that is no longer backed up do not fade away; but no later than the present, so that a
/// clock that once was wrong does not let all else fall out.
fn start_of(span: Span, newest: i64, now: &Zoned) -> i64 {
    let newest = newest.min(now.timestamp().as_millisecond());
    let end = Timestamp::from_millisecond(newest).map(|t| t.to_zoned(now.time_zone().clone()));
    // Longer than time itself: everything.
    end.and_then(|end| end.checked_sub(span)).map_or(i64::MIN, |start| start.timestamp().as_millisecond())
}

/// A number that is the same for all times of the same period.
fn period(reason: Reason, number: usize, millis: i64, now: &Zoned) -> (i64, i64) {
    let Ok(time) = Timestamp::from_millisecond(millis) else { return (millis, 0) };
    let local = time.to_zoned(now.time_zone().clone());
    let date = local.date();
    let (year, month, day) = (i64::from(date.year()), i64::from(date.month()), i64::from(date.day()));
    match reason {
        // The offset tells apart the two hours of the night when clocks go back.
        Reason::Hourly => {
            (((year * 12 + month) * 31 + day) * 24 + i64::from(local.hour()), i64::from(local.offset().seconds()))
        }
        Reason::Daily => ((year * 12 + month) * 31 + day, 0),
        Reason::Weekly => {
            let week = date.iso_week_date();
            (i64::from(week.year()), i64::from(week.week()))
        }
        Reason::Monthly => (year, month),
        Reason::Yearly => (year, 0),
        _ => (number as i64, 0),
    }
}

/// Reads a duration as people write it: `36h`, `14d`, `2w`, `6mo`, `1y 6mo`.
pub fn parse_duration(text: &str) -> Result<Span> {
    let bad = |why: &str| Error::input(format!("{text}: {why}")).hint("write a duration like 36h, 14d, 2w, 6mo or 1y");
    let compact: String = text.split_whitespace().collect::<Vec<_>>().concat();
    // Minutes to some, months to others: the wrong guess would remove what was to be kept.
    let bare_m = compact
        .bytes()
        .enumerate()
        .any(|(i, b)| b == b'm' && compact.as_bytes().get(i + 1).is_none_or(|next| !next.is_ascii_alphabetic()))
        && !compact.starts_with(['p', 'P']);
    if bare_m && !compact.contains("mm") {
        return Err(bad("m may mean months or minutes").hint("write 6mo for months, 90min for minutes"));
    }
    let span: Span = text.trim().parse().map_err(|_| bad("not a duration"))?;
    match span.is_negative() {
        true => Err(bad("a negative duration")),
        false => Ok(span),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use jiff::ToSpan;
    use jiff::tz::TimeZone;
    use proptest::prelude::*;

    const HOUR: i64 = 3_600_000;

    fn berlin(utc: &str) -> Zoned {
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        utc.parse::<Timestamp>().unwrap().to_zoned(zone)
    }

    fn millis(utc: &str) -> i64 {
        utc.parse::<Timestamp>().unwrap().as_millisecond()
    }

    fn kept(policy: &Policy, times: &[i64], now: &Zoned) -> Vec<usize> {
        let chosen = policy.choose(times, now);
        chosen.iter().enumerate().filter(|(_, why)| !why.is_empty()).map(|(i, _)| i).collect()
    }

    #[test]
    fn the_newest_of_each_day_of_the_users_zone() {
        let now = berlin("2026-11-20T12:00:00Z");
        // 23:30 UTC is the next day in Berlin.
        let times = ["2026-11-18T22:00:00Z", "2026-11-18T23:30:00Z", "2026-11-19T08:00:00Z", "2026-11-20T08:00:00Z"];
        let times = times.map(millis);
        let policy = Policy { daily: Some(2), ..Policy::default() };
        assert_eq!(kept(&policy, &times, &now), [2, 3]);
        let policy = Policy { daily: Some(3), ..Policy::default() };
        assert_eq!(kept(&policy, &times, &now), [0, 2, 3]);
        // Days without a point do not count.
        let policy = Policy { daily: Some(9), ..Policy::default() };
        assert_eq!(kept(&policy, &times, &now), [0, 2, 3]);
    }

    #[test]
    fn the_hour_that_comes_twice_is_two_hours() {
        let now = berlin("2026-10-26T00:00:00Z");
        let times = ["2026-10-25T00:10:00Z", "2026-10-25T00:50:00Z", "2026-10-25T01:10:00Z"].map(millis);
        let policy = Policy { hourly: Some(5), ..Policy::default() };
        assert_eq!(kept(&policy, &times, &now), [1, 2]);
    }

    #[test]
    fn weeks_begin_on_monday_and_cross_years() {
        let now = berlin("2026-01-10T00:00:00Z");
        // Monday 2025-12-29 to Sunday 2026-01-04 is one week.
        let times = ["2025-12-28T12:00:00Z", "2025-12-30T12:00:00Z", "2026-01-02T12:00:00Z"].map(millis);
        let policy = Policy { weekly: Some(5), ..Policy::default() };
        assert_eq!(kept(&policy, &times, &now), [0, 2]);
        let policy = Policy { yearly: Some(5), ..Policy::default() };
        assert_eq!(kept(&policy, &times, &now), [1, 2]);
    }

    #[test]
    fn within_counts_from_the_newest_point_and_days_are_those_of_the_calendar() {
        // Clocks went back in between: seven days are 169 hours.
        let newest = millis("2026-10-28T12:00:00Z");
        let times = [newest - 170 * HOUR, newest - 169 * HOUR, newest - 3 * HOUR, newest];
        let policy = Policy { within: Some(7.days()), ..Policy::default() };
        for now in ["2026-10-28T12:00:00Z", "2027-10-28T12:00:00Z"] {
            assert_eq!(kept(&policy, &times, &berlin(now)), [1, 2, 3]);
        }
        // A point from the future, by a wrong clock, does not let the others fall out.
        let times = [times[1], times[2], times[3], newest + 400 * 24 * HOUR];
        assert_eq!(kept(&policy, &times, &berlin("2026-10-28T12:00:00Z")), [0, 1, 2, 3]);
        let policy = Policy { within: Some(10_000.years()), ..Policy::default() };
        assert_eq!(kept(&policy, &times, &berlin("2026-10-28T12:00:00Z")), [0, 1, 2, 3]);
    }

    #[test]
    fn rules_that_keep_nothing_are_refused() {
        assert!(Policy::default().check().is_ok() && Policy::default().is_empty());
        assert!(Policy { last: Some(0), ..Policy::default() }.check().is_err());
        assert!(Policy { within: Some(Span::new()), daily: Some(0), ..Policy::default() }.check().is_err());
        assert!(Policy { within: Some(-(1.day())), ..Policy::default() }.check().is_err());
        assert!(Policy { last: Some(0), daily: Some(1), ..Policy::default() }.check().is_ok());
    }

    #[test]
    fn durations_as_people_write_them() {
        for (text, expected) in [
            ("36h", 36.hours()),
            ("14d", 14.days()),
            ("14 days", 14.days()),
            ("2w", 2.weeks()),
            ("6mo", 6.months()),
            ("1y 6mo", 1.year().months(6)),
            ("90min", 90.minutes()),
        ] {
            assert_eq!(parse_duration(text).unwrap().fieldwise(), expected.fieldwise(), "{text}");
        }
        for text in ["6m", "1y6m", "", "soon", "7", "-3d", "3d ago"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    /// The rules again, said another way: walk through the periods that have points, newest first.
    fn model(policy: &Policy, times: &[i64], now: &Zoned) -> BTreeSet<usize> {
        let local = |t: i64| Timestamp::from_millisecond(t).unwrap().to_zoned(now.time_zone().clone());
        let mut kept: BTreeSet<usize> = times.len().checked_sub(1).into_iter().collect();
        let formats = [
            (policy.hourly, "%Y-%m-%d %H %z"),
            (policy.daily, "%Y-%m-%d"),
            (policy.weekly, "%G-%V"),
            (policy.monthly, "%Y-%m"),
            (policy.yearly, "%Y"),
        ];
        for (count, format) in formats {
            let mut newest_of: Vec<(String, usize)> = Vec::new();
            for (i, t) in times.iter().enumerate() {
                let name = local(*t).strftime(format).to_string();
                newest_of.retain(|(n, _)| *n != name);
                newest_of.push((name, i));
            }
            kept.extend(newest_of.iter().rev().take(count.unwrap_or(0) as usize).map(|(_, i)| *i));
        }
        kept.extend(times.len().saturating_sub(policy.last.unwrap_or(0) as usize)..times.len());
        if let (Some(span), Some(newest)) = (policy.within, times.last()) {
            let from = local(*newest.min(&now.timestamp().as_millisecond())).checked_sub(span).unwrap();
            kept.extend((0..times.len()).filter(|i| local(times[*i]) >= from));
        }
        kept
    }

    proptest! {
        #[test]
        fn rules_do_what_they_say(
            steps in prop::collection::vec(0_i64..200 * HOUR, 0..40),
            counts in prop::collection::vec(prop::option::of(0_u32..6), 6),
            within in prop::option::of(1_i64..300),
            fine in any::<bool>(),
        ) {
            let now = berlin("2027-06-01T00:00:00Z");
            let mut time = millis("2026-10-20T00:00:00Z");
            let times: Vec<i64> = steps.iter().map(|s| { time += if fine { s / 100 } else { *s }; time }).collect();
            let policy = Policy {
                last: counts[0], hourly: counts[1], daily: counts[2], weekly: counts[3], monthly: counts[4],
                yearly: counts[5], within: within.map(|h| h.hours()), any_second_within: None,
            };
            let found: BTreeSet<usize> = kept(&policy, &times, &now).into_iter().collect();
            prop_assert_eq!(found, model(&policy, &times, &now));
        }
    }
}
