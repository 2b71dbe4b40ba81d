//! Which documents a server deletes by itself as soon as it may, because their time has passed.

use crate::catalog::{CollectionKind, Options};
use crate::indexes;
use crate::raw;
use bson::{Bson, Document};

/// Documents of a collection expire by a field.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    /// The names on the way to the field.
    path: Vec<String>,
    /// Documents whose date is before this one (milliseconds since 1970 UTC) are deleted.
    before: i64,
}

/// The rules by which documents of one collection expire. A rule that has a condition
/// (`partialFilterExpression`) counts as if it had none: what is found is the most that can go.
#[derive(Debug)]
pub(crate) struct Expiry(Vec<Rule>);

impl Expiry {
    /// What the options and indexes say; none if nothing expires.
    pub fn of(options: &Options, now_millis: i64) -> Option<Expiry> {
        let of_index = |index: &Document| {
            let field = index.get_document("key").ok()?.keys().next()?.clone();
            Rule::new(&field, index.get("expireAfterSeconds"), now_millis)
        };
        let mut rules: Vec<Rule> =
            options.indexes.iter().filter(|i| indexes::expires(i)).filter_map(of_index).collect();
        let of_collection = match options.kind {
            // A bucket goes when the newest of its measurements may.
            CollectionKind::TimeSeries => options
                .options
                .get_document("timeseries")
                .and_then(|t| t.get_str("timeField"))
                .ok()
                .map(|field| format!("control.max.{field}")),
            _ => options.is_clustered().then(|| "_id".to_owned()),
        };
        rules.extend(of_collection.and_then(|f| Rule::new(&f, options.options.get("expireAfterSeconds"), now_millis)));
        (!rules.is_empty()).then_some(Expiry(rules))
    }

    /// Whether a document's time has passed.
    pub fn has_passed(&self, document: &[u8]) -> bool {
        self.0.iter().any(|rule| least_date(document, &rule.path).is_some_and(|date| date < rule.before))
    }
}

impl Rule {
    fn new(field: &str, seconds: Option<&Bson>, now_millis: i64) -> Option<Rule> {
        let seconds = indexes::number(seconds)?;
        // Also the servers' largest is a whole number of milliseconds that fits.
        let before = now_millis.saturating_sub((seconds * 1000.0) as i64);
        Some(Rule { path: field.split('.').map(str::to_owned).collect(), before })
    }
}

/// The earliest date at a path, also in the elements of arrays, as an index sees it.
fn least_date(document: &[u8], path: &[String]) -> Option<i64> {
    let (name, rest) = path.split_first()?;
    let (mut at, mut least) = (4, None);
    while let Some(element) = raw::element(document, at) {
        at = element.end;
        if &document[element.name..element.value - 1] == name.as_bytes() {
            least = earlier(least, date_of(element.kind, &document[element.value..element.end], rest));
        }
    }
    least
}

/// The earliest date of a value, which may be an array of dates or, with a rest of the path, a
/// document or an array of documents.
fn date_of(kind: u8, value: &[u8], rest: &[String]) -> Option<i64> {
    match (kind, rest.is_empty()) {
        (0x09, true) => value.try_into().ok().map(i64::from_le_bytes),
        (0x03, false) => least_date(value, rest),
        (0x04, _) => {
            let (mut at, mut least) = (4, if rest.is_empty() { None } else { least_date(value, rest) });
            while let Some(element) = raw::element(value, at) {
                at = element.end;
                // An array in an array is not looked into.
                if element.kind != 0x04 {
                    least = earlier(least, date_of(element.kind, &value[element.value..element.end], rest));
                }
            }
            least
        }
        _ => None,
    }
}

fn earlier(a: Option<i64>, b: Option<i64>) -> Option<i64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        _ => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use bson::{DateTime, doc};

    fn rules(options: Document, indexes: Vec<Document>, kind: CollectionKind) -> Option<Expiry> {
        Expiry::of(&Options { kind, options, indexes }, 100_000)
    }

    fn passed(expiry: &Option<Expiry>, document: Document) -> bool {
        expiry.as_ref().unwrap().has_passed(&document.to_vec().unwrap())
    }

    #[test]
    fn dates_wherever_an_index_sees_them() {
        let date = DateTime::from_millis;
        let plain = doc! { "key": { "at": 1 }, "expireAfterSeconds": 60 };
        let expiry = rules(doc! {}, vec![doc! { "key": { "_id": 1 } }, plain], CollectionKind::Collection);
        for (value, is_past) in [
            (Bson::from(date(39_999)), true),
            (date(40_000).into(), false),
            (vec![date(90_000), date(10)].into(), true),
            (Bson::Int64(5), false),
            (doc! { "at": date(5) }.into(), false),
        ] {
            assert_eq!(passed(&expiry, doc! { "_id": 1, "at": value.clone() }), is_past, "{value}");
        }
        assert!(!passed(&expiry, doc! { "_id": 1 }));
        let deep = doc! { "key": { "a.b.at": 1 }, "expireAfterSeconds": 0i64 };
        let expiry = rules(doc! {}, vec![deep], CollectionKind::Collection);
        assert!(passed(&expiry, doc! { "a": [{ "b": { "at": date(100_001) } }, { "b": [{ "at": date(99_999) }] }] }));
        assert!(!passed(&expiry, doc! { "a": { "b": { "at": date(100_000) } }, "at": date(1) }));
    }

    #[test]
    fn collections_that_expire_as_a_whole() {
        let date = DateTime::from_millis;
        let clustered = doc! { "clusteredIndex": { "key": { "_id": 1 } }, "expireAfterSeconds": 10i64 };
        let by_id = rules(clustered, vec![], CollectionKind::Collection);
        assert!(passed(&by_id, doc! { "_id": date(1) }) && !passed(&by_id, doc! { "_id": date(95_000) }));
        let series = doc! { "timeseries": { "timeField": "t" }, "expireAfterSeconds": 10i64 };
        let buckets = rules(series, vec![], CollectionKind::TimeSeries);
        let bucket = |newest| doc! { "_id": 1, "control": { "min": { "t": date(1) }, "max": { "t": date(newest) } } };
        assert!(passed(&buckets, bucket(80_000)) && !passed(&buckets, bucket(95_000)));
        assert!(rules(doc! {}, vec![doc! { "key": { "a": 1 } }], CollectionKind::Collection).is_none());
    }
}
