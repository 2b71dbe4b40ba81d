//! What commands in the oplog make of a collection's options, as listCollections tells them.

use super::indexes;
use crate::catalog::{CollectionKind, Listed, Options};
use bson::{Bson, Document, doc};

/// The order in which a server lists options.
const ORDER: [&str; 17] = [
    "capped",
    "size",
    "max",
    "autoIndexId",
    "temp",
    "recordPreImages",
    "changeStreamPreAndPostImages",
    "storageEngine",
    "indexOptionDefaults",
    "validator",
    "validationLevel",
    "validationAction",
    "collation",
    "clusteredIndex",
    "expireAfterSeconds",
    "encryptedFields",
    "timeseries",
];

/// Before the name of the collection that holds a time series.
pub(crate) const BUCKETS: &str = "system.buckets.";

/// The collection that a `create` makes; its options without what is not among them.
pub(crate) fn created(database: &str, command: &Document, uuid: bson::Uuid) -> Option<Listed> {
    let stored = command.get_str("create").ok()?;
    let mut options = command.clone();
    options.remove("create");
    let id_index = options.remove("idIndex");
    if let Some(name) = stored.strip_prefix(BUCKETS) {
        // The server makes these two of what the user says.
        options.remove("validator");
        options.remove("clusteredIndex");
        let options = Options { kind: CollectionKind::TimeSeries, options, indexes: Vec::new() };
        return Some(Listed { database: database.to_owned(), name: name.to_owned(), options, uuid: Some(uuid) });
    }
    let index = match (options.get_document("clusteredIndex"), id_index) {
        (Ok(clustered), _) => indexes::clustered(clustered),
        (_, Some(Bson::Document(index))) => indexes::listed(&index),
        // What applyOps makes without saying which.
        (Err(_), _) => doc! { "v": 1, "key": { "_id": 1 }, "name": "_id_" },
    };
    let has_index = options.get_bool("autoIndexId").unwrap_or(true);
    let indexes = if has_index { vec![index] } else { Vec::new() };
    let options = Options { kind: CollectionKind::Collection, options, indexes };
    Some(Listed { database: database.to_owned(), name: stored.to_owned(), options, uuid: Some(uuid) })
}

/// Does what a `collMod` did; or why that is not known.
pub(crate) fn modify(one: &mut Listed, command: &Document) -> Result<(), String> {
    let mut has_validation = false;
    for (field, value) in command.iter().skip(1) {
        let options = &mut one.options.options;
        match (field.as_str(), value) {
            ("index", Bson::Document(change)) => {
                let series = options.get_document("timeseries").ok();
                indexes::modify(&mut one.options.indexes, series, change)?;
            }
            ("validator", Bson::Document(validator)) => {
                has_validation = true;
                set(options, "validator", (!validator.is_empty()).then(|| value.clone()));
            }
            ("validationLevel" | "validationAction", Bson::String(_)) => {
                has_validation = true;
                set(options, field, Some(value.clone()));
            }
            ("changeStreamPreAndPostImages", Bson::Document(images)) => {
                let enabled = images.get_bool("enabled").unwrap_or(false);
                set(options, field, enabled.then(|| value.clone()));
            }
            ("expireAfterSeconds", Bson::String(off)) if off == "off" => set(options, field, None),
            ("expireAfterSeconds", _) => {
                let seconds = number(value).ok_or_else(|| format!("{field} is no number"))?;
                set(options, field, Some(Bson::Int64(seconds)));
            }
            ("cappedSize", _) => {
                let size = number(value).ok_or_else(|| format!("{field} is no number"))?;
                // In steps of 256 bytes.
                set(options, "size", Some(smallest(size.saturating_add(0xFF) & !0xFF)));
            }
            ("cappedMax", _) => {
                let max = number(value).ok_or_else(|| format!("{field} is no number"))?;
                let max = if max <= 0 { i64::from(i32::MAX) } else { max };
                set(options, "max", Some(smallest(max)));
            }
            ("timeseries", Bson::Document(change)) => {
                let granularity = change.get_str("granularity").ok().filter(|_| change.len() == 1);
                let span = match granularity {
                    Some("seconds") => 3600,
                    Some("minutes") => 24 * 3600,
                    Some("hours") => 30 * 24 * 3600,
                    _ => return Err("it changes a time series in an unknown way".into()),
                };
                let series = options.get_document_mut("timeseries").map_err(|_| "it is no time series".to_owned())?;
                series.insert("granularity", granularity);
                series.insert("bucketMaxSpanSeconds", span);
            }
            // How the server reads its own buckets; no option.
            ("timeseriesBucketsMayHaveMixedSchemaData" | "isTimeseriesNamespace", _) => {}
            _ => return Err(format!("the field {field} is not known")),
        }
    }
    let options = &mut one.options.options;
    if has_validation {
        for (field, value) in [("validationLevel", "strict"), ("validationAction", "error")] {
            options.entry(field).or_insert_with(|| value.into());
        }
    }
    in_order(options);
    Ok(())
}

fn set(options: &mut Document, field: &str, value: Option<Bson>) {
    match value {
        Some(value) => drop(options.insert(field, value)),
        None => drop(options.remove(field)),
    }
}

fn in_order(options: &mut Document) {
    let mut fields: Vec<(String, Bson)> = std::mem::take(options).into_iter().collect();
    fields.sort_by_key(|(name, _)| ORDER.iter().position(|o| o == name).unwrap_or(ORDER.len()));
    options.extend(fields);
}

/// A whole number, whatever its type.
pub(crate) fn number(value: &Bson) -> Option<i64> {
    match value {
        Bson::Int32(n) => Some(i64::from(*n)),
        Bson::Int64(n) => Some(*n),
        Bson::Double(n) => Some(*n as i64),
        _ => None,
    }
}

/// As the server writes sizes: in four bytes where they fit.
fn smallest(number: i64) -> Bson {
    i32::try_from(number).map_or(Bson::Int64(number), Bson::Int32)
}

/// A view, from its document in `system.views`; none if it is how a time series is read.
pub(crate) fn view(document: &Document) -> Option<Listed> {
    let (database, name) = document.get_str("_id").ok()?.split_once('.')?;
    if document.get_str("viewOn").ok()?.strip_prefix(BUCKETS) == Some(name) {
        return None;
    }
    let mut options = document.clone();
    options.remove("_id");
    let options = Options { kind: CollectionKind::View, options, indexes: Vec::new() };
    Some(Listed { database: database.to_owned(), name: name.to_owned(), options, uuid: None })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn plain() -> Listed {
        let create = doc! { "create": "a", "idIndex": { "v": 2, "key": { "_id": 1 }, "name": "_id_" } };
        created("db", &create, bson::Uuid::from_bytes([1; 16])).unwrap()
    }

    #[test]
    fn unknown_changes_are_refused() {
        for unknown in [
            doc! { "collMod": "a", "x": 1 },
            doc! { "collMod": "a", "timeseries": { "bucketMaxSpanSeconds": 1 } },
            doc! { "collMod": "a", "index": { "name": "_id_", "x": 1 } },
            doc! { "collMod": "a", "index": { "name": "none", "hidden": true } },
            doc! { "collMod": "a", "cappedSize": "x" },
        ] {
            assert!(modify(&mut plain(), &unknown).is_err(), "{unknown}");
        }
    }

    #[test]
    fn validation_has_defaults_and_an_order() {
        let mut one = plain();
        modify(&mut one, &doc! { "collMod": "a", "validationAction": "warn", "expireAfterSeconds": 5.0 }).unwrap();
        modify(&mut one, &doc! { "collMod": "a", "validator": { "x": 1 } }).unwrap();
        let expected = doc! {
            "validator": { "x": 1 }, "validationLevel": "strict", "validationAction": "warn", "expireAfterSeconds": 5i64,
        };
        assert_eq!(one.options.options, expected);
        assert_eq!(one.options.options.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    }

    #[test]
    fn views_are_told_from_time_series() {
        let series = doc! { "_id": "db.t", "viewOn": "system.buckets.t", "pipeline": [] };
        assert!(view(&series).is_none());
        let one = view(&doc! { "_id": "db.v.w", "viewOn": "a", "pipeline": [] }).unwrap();
        assert_eq!((one.namespace().as_str(), one.info().id.as_str()), ("db.v.w", "view:db.v.w"));
        assert_eq!(one.options.options, doc! { "viewOn": "a", "pipeline": [] });
    }
}
