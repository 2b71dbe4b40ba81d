//! `NAME.metadata.json` and `prelude.json`.

use crate::catalog::{self, CollectionKind, Options};
use bson::{Bson, Document};
use serde_json::{Map, Value, json};

/// What a metadata file says of a collection.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Metadata {
    pub options: Options,
    pub uuid: Option<bson::Uuid>,
    /// The collection's name, which wins over the file's: that one may be cut or changed.
    pub name: Option<String>,
}

impl Metadata {
    /// Of a collection that has none.
    pub fn none() -> Metadata {
        let options = Options { kind: CollectionKind::Collection, options: Document::new(), indexes: Vec::new() };
        Metadata { options, uuid: None, name: None }
    }

    /// Reads a metadata file; an error says what is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Metadata, String> {
        let object: Map<String, Value> =
            serde_json::from_slice(text).map_err(|e| format!("it is no object in JSON ({e})"))?;
        let extended = |value: &Value, what: &str| {
            let object = value.as_object().ok_or_else(|| format!("{what} is no object"))?;
            catalog::document(object).map_err(|e| format!("{what}: {e}"))
        };
        let options = match object.get("options") {
            None | Some(Value::Null) => Document::new(),
            Some(options) => extended(options, "options")?,
        };
        let mut indexes = Vec::new();
        match object.get("indexes") {
            None | Some(Value::Null) => {}
            Some(Value::Array(all)) => {
                for index in all {
                    let mut index = extended(index, "an index")?;
                    index.remove("ns");
                    indexes.push(index);
                }
            }
            Some(_) => return Err("indexes is no array".into()),
        }
        let text = |name: &str| match object.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone()).filter(|t| !t.is_empty())),
            Some(_) => Err(format!("{name} is no text")),
        };
        let kind = match text("type")?.as_deref() {
            Some("collection") => CollectionKind::Collection,
            Some("view") => CollectionKind::View,
            Some("timeseries") => CollectionKind::TimeSeries,
            Some(other) => {
                return Err(format!("it is of the type {other:?}, which this version of Rewound does not know"));
            }
            // Before 100.x there was no type.
            None if options.contains_key("viewOn") => CollectionKind::View,
            None if options.contains_key("timeseries") => CollectionKind::TimeSeries,
            None => CollectionKind::Collection,
        };
        let uuid = match text("uuid")? {
            Some(uuid) => Some(bson::Uuid::parse_str(&uuid).map_err(|_| format!("{uuid:?} is no uuid"))?),
            None => None,
        };
        Ok(Metadata { options: Options { kind, options, indexes }, uuid, name: text("collectionName")? })
    }

    /// The text of a metadata file, fields in the order in which mongodump writes them.
    pub fn to_text(&self) -> String {
        let extended = |d: &Document| Bson::Document(d.clone()).into_canonical_extjson();
        let mut object = Map::new();
        if !self.options.options.is_empty() {
            object.insert("options".into(), extended(&self.options.options));
        }
        object.insert("indexes".into(), self.options.indexes.iter().map(extended).collect());
        if let Some(uuid) = self.uuid {
            let digits: String = uuid.bytes().iter().map(|b| format!("{b:02x}")).collect();
            object.insert("uuid".into(), digits.into());
        }
        if let Some(name) = &self.name {
            object.insert("collectionName".into(), name.clone().into());
        }
        object.insert("type".into(), self.options.kind.word().into());
        Value::Object(object).to_string()
    }
}

/// The server's version in `prelude.json`; an error says what is wrong with it.
pub(crate) fn prelude_version(text: &[u8]) -> Result<String, String> {
    let value: Value = serde_json::from_slice(text).map_err(|e| format!("it is no JSON ({e})"))?;
    value.get("ServerVersion").and_then(Value::as_str).map(str::to_owned).ok_or("it has no ServerVersion".into())
}

/// The text of `prelude.json`.
pub(crate) fn prelude(server_version: &str) -> String {
    json!({ "ServerVersion": server_version, "ToolVersion": concat!("rewound ", env!("CARGO_PKG_VERSION")) })
        .to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_mongodump_writes_comes_out_the_same() {
        let texts = [
            r#"{"options":{"capped":true,"size":{"$numberInt":"4096"}},"indexes":[{"v":{"$numberInt":"2"},"key":{"_id":{"$numberInt":"1"}},"name":"_id_"},{"v":{"$numberInt":"2"},"key":{"z":{"$numberDouble":"-1.0"},"a":"text"},"name":"x","expireAfterSeconds":{"$numberInt":"5"}}],"uuid":"0123456789abcdef0123456789abcdef","collectionName":"with/slash","type":"collection"}"#,
            r#"{"options":{"viewOn":"t","pipeline":[{"$match":{"a":{"$gt":{"$numberLong":"1"}}}}]},"indexes":[],"collectionName":"v","type":"view"}"#,
        ];
        for text in texts {
            let metadata = Metadata::parse(text.as_bytes()).unwrap();
            assert_eq!(metadata.to_text(), text);
        }
    }

    #[test]
    fn older_dumps_have_no_type() {
        let kind = |text: &str| Metadata::parse(text.as_bytes()).unwrap().options.kind;
        assert_eq!(kind(r#"{"options":{"viewOn":"t","pipeline":[]},"indexes":[]}"#), CollectionKind::View);
        let plain = Metadata::parse(br#"{"indexes":[{"v":1,"key":{"a":1},"ns":"d.c","name":"a_1"}]}"#).unwrap();
        assert_eq!(plain.options.indexes, [bson::doc! { "v": 1, "key": { "a": 1 }, "name": "a_1" }]);
    }

    #[test]
    fn what_is_cut_is_refused() {
        let text = r#"{"indexes":[],"uuid":"0123456789abcdef0123456789abcdef","type":"collection"}"#;
        assert!((0..text.len()).all(|at| Metadata::parse(&text.as_bytes()[..at]).is_err()));
        for bad in [r#"{"type":"other"}"#, r#"{"indexes":7}"#, r#"{"options":[]}"#, r#"{"uuid":"x"}"#] {
            assert!(Metadata::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
