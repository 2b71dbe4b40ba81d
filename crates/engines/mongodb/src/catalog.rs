//! Collections as MongoDB describes them: kind, options, indexes.

use crate::connect::Server;
use crate::error;
use bson::{Bson, Document, doc};
use futures::{StreamExt, TryStreamExt};
use model::{CollectionId, CollectionInfo, Error, Loss, Result};
use serde_json::{Map, Value, json};

/// What a namespace is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CollectionKind {
    /// A collection, also a capped or clustered one.
    Collection,
    /// A view: options, no documents.
    View,
    /// A time series: its documents are those of its bucket collection, as stored.
    TimeSeries,
}

impl CollectionKind {
    /// The server's word for it (listCollections, field `type`).
    pub fn word(self) -> &'static str {
        match self {
            CollectionKind::Collection => "collection",
            CollectionKind::View => "view",
            CollectionKind::TimeSeries => "timeseries",
        }
    }

    fn of(word: &str) -> Option<CollectionKind> {
        [CollectionKind::Collection, CollectionKind::View, CollectionKind::TimeSeries]
            .into_iter()
            .find(|k| k.word() == word)
    }
}

/// What [`CollectionInfo::options`] holds for a collection of MongoDB, as canonical Extended JSON
/// (version 2): `{"type": …, "options": {…}, "indexes": [{…}, …]}`, keys in their order.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// What it is.
    pub kind: CollectionKind,
    /// As listCollections gives them, and `create` takes them.
    pub options: Document,
    /// As listIndexes gives them, without `ns`; with the one on `_id`, where there is one.
    pub indexes: Vec<Document>,
}

impl Options {
    /// As JSON.
    pub fn to_json(&self) -> Value {
        let json = |d: &Document| Bson::Document(d.clone()).into_canonical_extjson();
        json!({
            "type": self.kind.word(),
            "options": json(&self.options),
            "indexes": self.indexes.iter().map(json).collect::<Vec<_>>(),
        })
    }

    /// From JSON; null (a collection of another engine) is a plain collection.
    pub fn from_json(value: &Value) -> Result<Options> {
        let broken = || Error::corrupt("options of a collection are not those of MongoDB");
        let Some(object) = value.as_object() else {
            return Ok(Options { kind: CollectionKind::Collection, options: Document::new(), indexes: Vec::new() });
        };
        let kind = object.get("type").and_then(Value::as_str).and_then(CollectionKind::of).ok_or_else(broken)?;
        let indexes = object.get("indexes").and_then(Value::as_array).ok_or_else(broken)?;
        Ok(Options {
            kind,
            options: document(object.get("options").and_then(Value::as_object).ok_or_else(broken)?)?,
            indexes: indexes.iter().map(|i| document(i.as_object().ok_or_else(broken)?)).collect::<Result<_>>()?,
        })
    }

    /// Whether it is capped: documents have an order, and only fit in while there is room.
    pub fn is_capped(&self) -> bool {
        self.options.get_bool("capped").unwrap_or(false)
    }

    /// Whether it is clustered: its documents lie in the order of `_id`, without an index on it.
    pub fn is_clustered(&self) -> bool {
        self.kind == CollectionKind::Collection && self.options.contains_key("clusteredIndex")
    }
}

/// A document from its Extended JSON.
pub(crate) fn document(object: &Map<String, Value>) -> Result<Document> {
    match Bson::try_from(object.clone()) {
        Ok(Bson::Document(document)) => Ok(document),
        Ok(_) => Err(Error::corrupt("a value stands where a document must be")),
        Err(e) => Err(Error::corrupt("this is no Extended JSON").caused_by(e)),
    }
}

/// A collection as the server lists it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Listed {
    pub database: String,
    /// Its name, without the database. Of a time series: what users call it.
    pub name: String,
    pub options: Options,
    /// Of what holds its documents; none for a view.
    pub uuid: Option<bson::Uuid>,
}

impl Listed {
    /// `database.collection`.
    pub fn namespace(&self) -> String {
        format!("{}.{}", self.database, self.name)
    }

    /// The name of the collection that holds its documents: of a time series its buckets.
    pub fn stored_name(&self) -> String {
        match self.options.kind {
            CollectionKind::TimeSeries => format!("system.buckets.{}", self.name),
            _ => self.name.clone(),
        }
    }

    /// As the stream has it. Views have no identity but their name.
    pub fn info(&self) -> CollectionInfo {
        let id = match self.uuid {
            Some(uuid) => uuid.bytes().iter().map(|b| format!("{b:02x}")).collect(),
            None => format!("view:{}", self.namespace()),
        };
        CollectionInfo {
            id: CollectionId::new(id),
            name: self.namespace(),
            options: self.options.to_json(),
            ordered: self.options.is_capped(),
        }
    }
}

/// The database and the collection of `database.collection`.
pub(crate) fn split_namespace(namespace: &str) -> Result<(&str, &str)> {
    namespace.split_once('.').filter(|(d, c)| !d.is_empty() && !c.is_empty()).ok_or_else(|| {
        Error::input(format!("{namespace} is no name of a collection in MongoDB"))
            .hint("name it DATABASE.COLLECTION, for example with --rename OLD=DATABASE.COLLECTION")
    })
}

/// Databases that belong to the server itself.
pub(crate) const INTERNAL: [&str; 3] = ["admin", "config", "local"];

/// The databases that are not the server's own, by name.
pub(crate) async fn databases(server: &Server) -> Result<Vec<String>> {
    let answer = server.admin(doc! { "listDatabases": 1, "nameOnly": true, "authorizedDatabases": true }).await?;
    let listed = answer.get_array("databases").cloned().unwrap_or_default();
    let mut names: Vec<String> =
        listed.iter().filter_map(|d| d.as_document()?.get_str("name").ok().map(str::to_owned)).collect();
    names.retain(|name| !INTERNAL.contains(&name.as_str()));
    names.sort();
    Ok(names)
}

/// The collections of a database by name, without their indexes; system collections are left out,
/// but for `system.js`, which holds users' functions. The second list names what was left out.
pub(crate) async fn collections(server: &Server, database: &str) -> Result<(Vec<Listed>, Vec<Loss>)> {
    let what = || format!("listing the collections of the database {database}");
    let client = server.client().await?;
    let listing = client.database(database).list_collections().await.map_err(|e| error::driver(what(), e))?;
    let specs: Vec<Document> =
        listing.with_type::<Document>().try_collect().await.map_err(|e| error::driver(what(), e))?;
    let uuid_of = |spec: &Document| match spec.get_document("info").ok()?.get("uuid")? {
        Bson::Binary(binary) => binary.to_uuid().ok(),
        _ => None,
    };
    let name_of = |spec: &Document| spec.get_str("name").unwrap_or_default().to_owned();
    let (mut found, mut left_out) = (Vec::new(), Vec::new());
    for spec in &specs {
        let name = name_of(spec);
        if name.starts_with("system.") && name != "system.js" {
            if !name.starts_with("system.buckets.") && name != "system.views" {
                left_out.push(Loss { what: format!("{database}.{name}"), why: "it belongs to the server".into() });
            }
            continue;
        }
        let kind = CollectionKind::of(spec.get_str("type").unwrap_or("collection")).ok_or_else(|| {
            Error::unsupported(format!("{database}.{name} is of a kind that this version of Rewound does not know"))
                .hint("leave it out with --exclude")
        })?;
        let uuid = match kind {
            CollectionKind::Collection => uuid_of(spec),
            CollectionKind::View => None,
            CollectionKind::TimeSeries => {
                let buckets = format!("system.buckets.{name}");
                specs.iter().find(|s| name_of(s) == buckets).and_then(uuid_of)
            }
        };
        let options = spec.get_document("options").cloned().unwrap_or_default();
        found.push(Listed {
            database: database.to_owned(),
            name,
            options: Options { kind, options, indexes: Vec::new() },
            uuid,
        });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((found, left_out))
}

/// The collections of users and roles, those that there are.
pub(crate) async fn users(server: &Server) -> Result<Vec<Listed>> {
    let what = "listing the collections of users and roles";
    let client = server.client().await?;
    let wanted = doc! { "name": { "$in": ["system.users", "system.roles"] } };
    let listing =
        client.database("admin").list_collections().filter(wanted).await.map_err(|e| error::driver(what, e))?;
    let specs: Vec<Document> =
        listing.with_type::<Document>().try_collect().await.map_err(|e| error::driver(what, e))?;
    Ok(specs
        .into_iter()
        .map(|spec| Listed {
            database: "admin".into(),
            name: spec.get_str("name").unwrap_or_default().to_owned(),
            options: Options { kind: CollectionKind::Collection, options: Document::new(), indexes: Vec::new() },
            uuid: spec.get_document("info").ok().and_then(|i| match i.get("uuid")? {
                Bson::Binary(binary) => binary.to_uuid().ok(),
                _ => None,
            }),
        })
        .collect())
}

/// The identities of all collections of a database that hold documents.
pub(crate) async fn identities(server: &Server, database: &str) -> Result<Vec<bson::Uuid>> {
    let listed = match database {
        "admin" => users(server).await?,
        _ => collections(server, database).await?.0,
    };
    Ok(listed.into_iter().filter_map(|l| l.uuid).collect())
}

/// Index listings that are asked for side by side.
const LISTINGS: usize = 8;

/// Fills in the indexes of each collection. One that is gone by now keeps none.
pub(crate) async fn add_indexes(server: &Server, listed: &mut [Listed]) -> Result<()> {
    let mut asking = Vec::new();
    for one in listed {
        if one.options.kind != CollectionKind::View {
            asking.push(add_indexes_of(server, one));
        }
    }
    futures::stream::iter(asking).buffer_unordered(LISTINGS).try_collect::<Vec<()>>().await.map(drop)
}

async fn add_indexes_of(server: &Server, one: &mut Listed) -> Result<()> {
    let database = server.client().await?.database(&one.database);
    let indexes: Result<Vec<Document>, _> = match database.run_cursor_command(doc! { "listIndexes": &one.name }).await {
        Ok(cursor) => cursor.try_collect().await,
        Err(e) => Err(e),
    };
    match indexes {
        Ok(indexes) => {
            one.options.indexes = indexes;
            for index in &mut one.options.indexes {
                index.remove("ns");
                // Some versions repeat the collection's option here.
                if index.contains_key("clustered") {
                    index.remove("expireAfterSeconds");
                }
            }
            Ok(())
        }
        Err(e) if error::code(&e) == Some(error::NAMESPACE_NOT_FOUND) => Ok(()),
        Err(e) => Err(error::driver(format!("listing the indexes of {}", one.namespace()), e)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn options_survive_as_json_in_their_order() {
        let options = Options {
            kind: CollectionKind::Collection,
            options: doc! { "validator": { "z": { "$gt": 1i64 }, "a": { "$type": "int" } }, "capped": true, "size": 4096.0 },
            indexes: vec![doc! { "v": 2, "key": { "z": 1, "a": -1.0, "m": "text" }, "name": "x" }],
        };
        let text = serde_json::to_string(&options.to_json()).unwrap();
        assert_eq!(Options::from_json(&serde_json::from_str(&text).unwrap()).unwrap(), options);
        assert!(text.contains(r#""z":{"$numberInt":"1"},"a":{"$numberDouble":"-1.0"},"m":"text""#), "{text}");
        assert!(options.is_capped());
    }

    #[test]
    fn namespaces_split_at_the_first_dot() {
        assert_eq!(split_namespace("a.b.c").unwrap(), ("a", "b.c"));
        for wrong in ["a", ".b", "a."] {
            assert!(split_namespace(wrong).unwrap_err().hint_text().is_some());
        }
    }
}
