//! What commands in the oplog make of a collection's indexes, as listIndexes tells them.

use super::options::number;
use bson::{Bson, Document};

/// The order in which a server lists the fields of an index.
const ORDER: [&str; 28] = [
    "v",
    "key",
    "name",
    "background",
    "unique",
    "hidden",
    "partialFilterExpression",
    "sparse",
    "expireAfterSeconds",
    "storageEngine",
    "weights",
    "default_language",
    "language_override",
    "textIndexVersion",
    "2dsphereIndexVersion",
    "bits",
    "min",
    "max",
    "bucketSize",
    "collation",
    "wildcardProjection",
    "columnstoreProjection",
    "coarsestIndexedLevel",
    "finestIndexedLevel",
    "dropDups",
    "originalSpec",
    "clustered",
    "prepareUnique",
];

/// A definition as listIndexes tells it: fields in its order, with its types.
pub(crate) fn listed(definition: &Document) -> Document {
    let mut fields: Vec<(String, Bson)> = definition
        .iter()
        .filter(|(name, _)| *name != "ns")
        .map(|(name, value)| (name.clone(), typed(name, value)))
        .collect();
    fields.sort_by_key(|(name, _)| ORDER.iter().position(|o| o == name).unwrap_or(ORDER.len()));
    fields.into_iter().collect()
}

fn typed(name: &str, value: &Bson) -> Bson {
    let typed = match name {
        "v"
        | "expireAfterSeconds"
        | "textIndexVersion"
        | "2dsphereIndexVersion"
        | "bits"
        | "coarsestIndexedLevel"
        | "finestIndexedLevel" => {
            let clamp = |n: i64| n.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
            number(value).map(|n| Bson::Int32(clamp(n)))
        }
        "background" | "unique" | "hidden" | "sparse" | "dropDups" | "clustered" | "prepareUnique" => {
            number(value).map(|n| Bson::Boolean(n != 0))
        }
        "min" | "max" | "bucketSize" => match value {
            Bson::Int32(n) => Some(Bson::Double(f64::from(*n))),
            Bson::Int64(n) => Some(Bson::Double(*n as f64)),
            _ => None,
        },
        _ => None,
    };
    typed.unwrap_or_else(|| value.clone())
}

/// What is listed in the place of the index on `_id` of a clustered collection.
pub(crate) fn clustered(options: &Document) -> Document {
    let mut index = options.clone();
    index.insert("clustered", true);
    listed(&index)
}

/// The definition that users see of an index of a time series, from the one on its buckets; none if
/// they do not see it.
pub(crate) fn of_series(series: &Document, definition: &Document) -> Option<Document> {
    if let Ok(original) = definition.get_document("originalSpec") {
        return Some(listed(original));
    }
    let time = series.get_str("timeField").ok()?;
    let meta = series.get_str("metaField").ok();
    let (low, high) = (format!("control.min.{time}"), format!("control.max.{time}"));
    let mut key = Document::new();
    for (field, value) in definition.get_document("key").ok()? {
        match (meta, field.strip_prefix("meta")) {
            (Some(meta), Some(rest)) if rest.is_empty() || rest.starts_with('.') => {
                key.insert(format!("{meta}{rest}"), value.clone());
            }
            // The lowest and the highest time of a bucket stand for the time, in either order.
            _ if *field == low || *field == high => {
                key.entry(time.to_owned()).or_insert(value.clone());
            }
            _ => return None,
        }
    }
    let mut index = definition.clone();
    index.insert("key", key);
    Some(listed(&index))
}

/// Adds an index, in the place of one with its name.
pub(crate) fn add(indexes: &mut Vec<Document>, index: Document) {
    match indexes.iter_mut().find(|i| i.get("name") == index.get("name")) {
        Some(old) => *old = index,
        None => indexes.push(index),
    }
}

/// Removes an index; `*` means all but the one on `_id`.
pub(crate) fn remove(indexes: &mut Vec<Document>, name: &str) {
    match name {
        "*" => indexes.retain(|i| i.get_document("key").is_ok_and(|k| k.len() == 1 && k.contains_key("_id"))),
        name => indexes.retain(|i| i.get_str("name").ok() != Some(name)),
    }
}

/// Whether the server lists an index of a time series as it was defined, whatever happened to it since.
fn is_listed_as_defined(series: &Document, index: &Document) -> bool {
    let (time, meta) = (series.get_str("timeField").ok(), series.get_str("metaField").ok());
    let is_measured = |field: &String| Some(field.split('.').next().unwrap_or(field)) != meta && Some(&**field) != time;
    index.contains_key("partialFilterExpression")
        || index.get_document("key").is_ok_and(|key| key.keys().any(is_measured))
}

/// Does what a `collMod` did to an index, of a time series if there is one; or why that is not known.
pub(crate) fn modify(indexes: &mut [Document], series: Option<&Document>, change: &Document) -> Result<(), String> {
    let is_meant = |index: &Document| match (change.get("name"), change.get("keyPattern")) {
        (Some(name), _) => index.get("name") == Some(name),
        (None, Some(key)) => index.get("key") == Some(key),
        (None, None) => false,
    };
    let index = indexes.iter_mut().find(|i| is_meant(i)).ok_or_else(|| format!("there is no index for {change}"))?;
    if series.is_some_and(|series| is_listed_as_defined(series, index)) {
        return Ok(());
    }
    for (field, value) in change {
        match (field.as_str(), value) {
            ("name" | "keyPattern", _) => {}
            ("expireAfterSeconds", value) => drop(index.insert(field, typed(field, value))),
            ("hidden" | "prepareUnique", Bson::Boolean(true)) => drop(index.insert(field, true)),
            ("hidden" | "prepareUnique", Bson::Boolean(false)) => drop(index.remove(field)),
            ("unique", Bson::Boolean(true)) => {
                index.insert(field, true);
                index.remove("prepareUnique");
            }
            _ => return Err(format!("the field {field} of an index is not known")),
        }
    }
    *index = listed(index);
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use bson::doc;

    #[test]
    fn listed_with_the_server_s_types_and_order() {
        let stored = doc! {
            "v": 2.0, "unique": 1, "hidden": true, "key": { "a": 1.0 }, "ns": "x", "name": "a", "sparse": 0,
            "expireAfterSeconds": 5.9, "min": -10,
        };
        let expected = doc! {
            "v": 2, "key": { "a": 1.0 }, "name": "a", "unique": true, "hidden": true, "sparse": false,
            "expireAfterSeconds": 5, "min": -10.0,
        };
        let told = listed(&stored);
        assert_eq!(told, expected);
        assert_eq!(told.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    }

    #[test]
    fn of_time_series() {
        let series = doc! { "timeField": "t", "metaField": "m" };
        for (stored, told) in [
            (doc! { "meta.a": 1, "control.max.t": -1, "control.min.t": -1 }, doc! { "m.a": 1, "t": -1 }),
            (doc! { "control.min.t": 1, "control.max.t": 1 }, doc! { "t": 1 }),
            (doc! { "meta": "hashed" }, doc! { "m": "hashed" }),
        ] {
            let index = of_series(&series, &doc! { "v": 2, "key": stored, "name": "x" }).unwrap();
            assert_eq!(index, doc! { "v": 2, "key": told, "name": "x" });
        }
        assert!(of_series(&series, &doc! { "key": { "control.min.v": 1 }, "name": "x" }).is_none());
    }
}
