//! Building indexes as they were.

use crate::catalog::{CollectionKind, Options};
use crate::connect::Server;
use crate::retry;
use bson::{Bson, Document, doc};
use model::Result;

/// The name of an index.
pub(crate) fn name(index: &Document) -> String {
    index.get_str("name").unwrap_or("an index without a name").to_owned()
}

/// Whether it deletes documents when their time comes.
pub(crate) fn expires(index: &Document) -> bool {
    index.contains_key("expireAfterSeconds")
}

/// Whether the collection has it anyway: the one on `_id`.
fn is_of_id(index: &Document) -> bool {
    index.get_document("key").is_ok_and(|k| k.len() == 1 && number(k.get("_id")) == Some(1.0))
}

/// The definitions that `createIndexes` takes, of those that are to be built.
pub(crate) fn to_build(options: &Options, existing: Option<&Options>) -> Vec<Document> {
    let is_there = |i: &Document| existing.is_some_and(|e| e.indexes.iter().any(|x| is_same(x, i)));
    let mut all: Vec<Document> = options.indexes.iter().filter(|i| !is_of_id(i) && !is_there(i)).cloned().collect();
    // Without a collation, an index would take that of the collection.
    if options.options.contains_key("collation") && options.kind == CollectionKind::Collection {
        for index in all.iter_mut().filter(|i| !i.contains_key("collation")) {
            index.insert("collation", doc! { "locale": "simple" });
        }
    }
    all
}

/// The definition of the index on `_id`, if it is not what a new collection has.
pub(crate) fn unusual_id_index(options: &Options) -> Option<Document> {
    let index = options.indexes.iter().find(|i| is_of_id(i) && !i.contains_key("clustered"))?;
    let is_usual = number(index.get("v")) == Some(2.0);
    (!is_usual).then(|| index.clone())
}

/// Builds indexes of a collection, all in one pass over it.
pub(crate) async fn build(server: &Server, database: &str, collection: &str, indexes: Vec<Document>) -> Result<()> {
    if indexes.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = indexes.iter().map(name).collect();
    let doing = || format!("building indexes of {database}.{collection} ({})", names.join(", "));
    let command = doc! { "createIndexes": collection, "indexes": indexes };
    retry::run(server, database, command, doing, |_, _| false).await.map(drop)
}

/// The names of indexes to restore that those that are there stand in the way of.
pub(crate) fn conflicts(existing: &Options, options: &Options) -> Vec<String> {
    let new = options.indexes.iter().filter(|i| !existing.indexes.iter().any(|e| is_same(e, i)));
    new.filter(|i| !is_of_id(i))
        .filter(|i| existing.indexes.iter().any(|e| name(e) == name(i) || says_same(e, i)))
        .map(name)
        .collect()
}

/// What makes two indexes of the same key different ones for the server.
const SIGNATURE: [&str; 5] = ["key", "collation", "partialFilterExpression", "unique", "sparse"];

fn says_same(a: &Document, b: &Document) -> bool {
    SIGNATURE.iter().all(|field| same_value(a.get(field), b.get(field)))
}

/// Whether two definitions are the same but for how they are written down.
pub(crate) fn is_same(a: &Document, b: &Document) -> bool {
    let others = ["v", "ns", "background"];
    let all = |x: &Document, y: &Document| {
        x.iter().filter(|(k, _)| !others.contains(&k.as_str())).all(|(k, v)| same_value(Some(v), y.get(k)))
    };
    all(a, b) && all(b, a)
}

fn same_value(a: Option<&Bson>, b: Option<&Bson>) -> bool {
    match (a, b) {
        (Some(Bson::Document(a)), Some(Bson::Document(b))) => {
            a.len() == b.len() && a.iter().zip(b).all(|((ka, va), (kb, vb))| ka == kb && same_value(Some(va), Some(vb)))
        }
        _ => a == b || number(a).is_some_and(|n| number(b) == Some(n)),
    }
}

/// A number of any type.
pub(crate) fn number(value: Option<&Bson>) -> Option<f64> {
    match value? {
        Bson::Int32(n) => Some(f64::from(*n)),
        Bson::Int64(n) => Some(*n as f64),
        Bson::Double(n) => Some(*n),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn options(indexes: Vec<Document>) -> Options {
        Options { kind: CollectionKind::Collection, options: Document::new(), indexes }
    }

    #[test]
    fn what_is_built() {
        let id = doc! { "v": 2, "key": { "_id": 1 }, "name": "_id_" };
        let hashed = doc! { "v": 2, "key": { "_id": "hashed" }, "name": "h" };
        let a = doc! { "v": 2, "key": { "a": 1 }, "name": "a" };
        let mut all = options(vec![id.clone(), hashed.clone(), a.clone()]);
        assert_eq!(to_build(&all, None), [hashed.clone(), a.clone()]);
        let there = options(vec![id, doc! { "v": 1, "key": { "a": 1.0 }, "name": "a", "background": true }]);
        assert_eq!(to_build(&all, Some(&there)), [hashed]);
        assert!(conflicts(&there, &all).is_empty());
        all.options = doc! { "collation": { "locale": "de" } };
        assert_eq!(to_build(&all, None)[1].get_document("collation").unwrap(), &doc! { "locale": "simple" });
        assert!(unusual_id_index(&all).is_none());
    }

    #[test]
    fn what_conflicts() {
        let there = options(vec![doc! { "v": 2, "key": { "a": 1 }, "name": "a", "unique": true }]);
        for (index, yes) in [
            (doc! { "v": 2, "key": { "b": 1 }, "name": "a" }, true),
            (doc! { "v": 2, "key": { "a": 1 }, "name": "a" }, true),
            (doc! { "v": 2, "key": { "a": 1 }, "name": "other", "unique": true }, true),
            (doc! { "v": 2, "key": { "a": -1 }, "name": "other", "unique": true }, false),
            (doc! { "v": 2, "key": { "a": 1, "b": 1 }, "name": "ab" }, false),
        ] {
            assert_eq!(!conflicts(&there, &options(vec![index.clone()])).is_empty(), yes, "{index}");
        }
    }
}
