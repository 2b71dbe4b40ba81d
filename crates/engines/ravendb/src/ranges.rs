//! Deletions in time series, as the files of a native backup tell them: the segments that older files
//! hold are gone with all their values, if newer ones do not have them again.

use crate::dump::parse;
use crate::keys::{SEPARATOR, joined, lower};
use jiff::civil::DateTime;
use model::{Error, Result};
use serde::Deserialize;
use std::collections::HashMap;

/// From and to, in milliseconds since 1970.
type Range = (i64, i64);

/// What newer files have deleted of time series, by document and name.
#[derive(Debug, Default)]
pub(crate) struct Ranges {
    older: HashMap<String, Vec<Range>>,
    /// Those of the file that is read now, which say nothing about the file itself.
    now: Vec<(String, Range)>,
}

impl Ranges {
    /// An older file begins.
    pub fn begin(&mut self) {
        for (series, range) in self.now.drain(..) {
            self.older.entry(series).or_default().push(range);
        }
    }

    /// Takes a deletion.
    pub fn add(&mut self, body: &[u8]) -> Result<()> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Deleted {
            doc_id: String,
            name: String,
            from: String,
            to: String,
        }
        let deleted: Deleted = parse(body, "a deletion in a time series")?;
        let (from, to) = (millis(&deleted.from), millis(&deleted.to));
        let range = from
            .zip(to)
            .ok_or_else(|| Error::corrupt(format!("a deletion in a time series of {} has no times", deleted.doc_id)))?;
        self.now.push((joined(&[&lower(&deleted.doc_id), &lower(&deleted.name)]), range));
        Ok(())
    }

    /// Whether all values of a segment of an older file are gone. One that lost only some of them is in
    /// the newer file again.
    pub fn have_deleted(&self, key: &str, segment: &[u8]) -> bool {
        if self.older.is_empty() {
            return false;
        }
        let Some((series, first)) = key.rsplit_once(SEPARATOR) else { return false };
        let Some(ranges) = self.older.get(series) else { return false };
        // A segment begins with how many milliseconds its last value is after its first.
        let after = segment.first_chunk().map(|bytes| i64::from(i32::from_le_bytes(*bytes)));
        let Some((first, after)) = millis(first).zip(after) else { return false };
        ranges.iter().any(|(from, to)| *from <= first && first + after <= *to)
    }
}

/// Whether a segment holds nothing but values that were deleted. The server tells of such in increments,
/// and takes none of them: to it there are no values. What does not look as it should holds some.
pub(crate) fn is_empty(segment: &[u8]) -> bool {
    // A head of 16 bytes, then for each of the numbers that an entry has first, last, least, greatest, sum,
    // and how many there are.
    let (head, each, at) = (16, 48, 40);
    let Some(numbers) = segment.get(13).filter(|_| segment.len() > head) else { return false };
    let count = |n: usize| segment.get(head + n * each + at..)?.first_chunk().map(|c| u64::from_le_bytes(*c));
    (0..usize::from(*numbers)).all(|n| count(n) == Some(0))
}

/// A time as RavenDB writes it, in UTC, as milliseconds since 1970. The last one of all, which ends what
/// has no end, is no time of any zone.
fn millis(time: &str) -> Option<i64> {
    let time = time.strip_suffix('Z')?.parse::<DateTime>().ok()?;
    i64::try_from(time.duration_since(DateTime::constant(1970, 1, 1, 0, 0, 0, 0)).as_millis()).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn segments_without_values_are_known() {
        // As real servers had them (5.4.115, 7.1.5): one value deleted, two deleted, one of two deleted, and two.
        let head = |numbers: u8| [0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 5, 0, 0, numbers, 1, 0];
        let one = [&head(0)[..], &[0, 0x21, 0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0]].concat();
        assert!(is_empty(&one));
        let of = |count: u64| [&head(1)[..], &[0; 40], &count.to_le_bytes(), &[1, b't', 0, 3]].concat();
        assert!(!is_empty(&of(1)) && !is_empty(&of(2)) && is_empty(&of(0)));
        assert!(!is_empty(&one[..16]) && !is_empty(b"") && !is_empty(&of(0)[..30]));
    }

    #[test]
    fn a_segment_is_gone_when_all_of_it_was_deleted_later() {
        let mut ranges = Ranges::default();
        let key = "orders/1\u{1e}heart\u{1e}2024-01-01T00:00:00.0000000Z";
        let day = 86_400_000i32.to_le_bytes();
        let part = r#"{"DocId":"orders/1","Name":"heart","From":"2024-01-01T00:00:00.0000000Z","To":"2024-01-01T23:59:59.9990000Z"}"#;
        ranges.add(part.as_bytes()).unwrap();
        ranges.begin();
        assert!(!ranges.have_deleted(key, &day), "its last value is left");
        let rest = r#"{"DocId":"Orders/1","Name":"Heart","From":"0001-01-01T00:00:00.0000000Z","To":"9999-12-31T23:59:59.9999999Z"}"#;
        ranges.add(rest.as_bytes()).unwrap();
        assert!(!ranges.have_deleted(key, &day), "it is in the same file");
        ranges.begin();
        assert!(ranges.have_deleted(key, &day));
        assert!(!ranges.have_deleted(&key.replace("heart", "beat"), &day));
        assert!(ranges.add(br#"{"DocId":"a","Name":"b","From":"x","To":"y"}"#).is_err());
    }
}
