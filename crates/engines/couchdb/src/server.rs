//! What a server and its databases are, found out by asking.

use crate::client::{ANSWER_MAX, Client, Request, segment};
use crate::place::Place;
use futures::{StreamExt, TryStreamExt, stream};
use model::{CollectionId, CollectionInfo, Error, ErrorKind, Result};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::OnceCell;

/// Databases that are asked side by side.
pub(crate) const ASKING: usize = 8;
/// Databases that one question may be about.
const AT_ONCE: usize = 100;
/// Seconds from which on a database was not made just now, even if the clocks are not the same.
const SETTLED: u64 = 3600;

/// A CouchDB server, or one that speaks its protocol; nothing is asked before it is needed.
#[derive(Debug)]
pub struct Server {
    pub(crate) client: Client,
    welcome: OnceCell<Welcome>,
}

/// What the server says of itself.
#[derive(Debug, Clone)]
pub(crate) struct Welcome {
    /// Its lasting identity, if it has one.
    pub uuid: Option<String>,
    pub version: String,
    /// Whether it is CouchDB itself by its own word: then it takes and gives multipart bodies, which
    /// others may choke on.
    pub is_couchdb: bool,
}

/// What a database says of itself.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Info {
    pub db_name: String,
    pub doc_count: u64,
    pub doc_del_count: Option<u64>,
    pub update_seq: Box<RawValue>,
    #[serde(default)]
    pub purge_seq: Option<Box<RawValue>>,
    #[serde(default)]
    pub instance_start_time: Option<Value>,
    #[serde(default)]
    pub props: Value,
    #[serde(default)]
    pub cluster: Value,
}

/// A sequence as `since` takes it back.
pub(crate) fn sequence(raw: &RawValue) -> String {
    serde_json::from_str::<String>(raw.get()).unwrap_or_else(|_| raw.get().to_owned())
}

impl Info {
    pub fn seq(&self) -> String {
        sequence(&self.update_seq)
    }

    pub fn purge_seq(&self) -> String {
        self.purge_seq.as_deref().map(sequence).unwrap_or_default()
    }

    /// How many copies of it the nodes of a cluster keep; 1 where the server does not tell.
    pub fn copies(&self) -> u64 {
        self.cluster.get("n").and_then(Value::as_u64).unwrap_or(1)
    }

    /// When the database was made, in seconds. Others give under this name, in smaller units, when the
    /// server began to serve it, which tells nothing; old servers say 0 of all.
    fn made(&self) -> Option<String> {
        let text = match self.instance_start_time.as_ref()? {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let is_seconds = text.len() == 10 && text.bytes().all(|b| b.is_ascii_digit());
        is_seconds.then_some(text)
    }
}

/// A database with what is known of it.
#[derive(Debug, Clone)]
pub(crate) struct Database {
    pub name: String,
    /// Tells it from another one of the same name; none if the server does not tell them apart.
    pub instance: Option<String>,
    pub info: Info,
}

impl Database {
    /// Its lasting identity.
    pub fn id(&self) -> CollectionId {
        match &self.instance {
            Some(instance) => CollectionId::new(format!("{}@{instance}", self.name)),
            None => CollectionId::new(&self.name),
        }
    }

    /// Whether when it was made tells it for sure from all others of its name. CouchDB tells seconds: one
    /// that is a few of them old may yet be deleted and made anew in the same one.
    pub fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.instance.as_ref().and_then(|s| s.parse().ok()).is_some_and(|made: u64| now.abs_diff(made) > SETTLED)
    }

    /// What is needed to make it again.
    pub fn collection(&self, revs_limit: Option<u64>, without: bool) -> CollectionInfo {
        let mut options = serde_json::Map::new();
        for key in ["q", "n"] {
            if let Some(value) = self.info.cluster.get(key) {
                options.insert(key.into(), value.clone());
            }
        }
        if self.info.props.get("partitioned") == Some(&Value::Bool(true)) {
            options.insert("partitioned".into(), json!(true));
        }
        if let Some(limit) = revs_limit {
            options.insert("revs_limit".into(), json!(limit));
        }
        if without {
            options.insert("attachments".into(), json!(false));
        }
        CollectionInfo { id: self.id(), name: self.name.clone(), options: Value::Object(options), ordered: false }
    }
}

impl Server {
    /// The server that a URL names.
    pub fn new(place: Place) -> Result<Server> {
        Ok(Server { client: Client::new(place)?, welcome: OnceCell::new() })
    }

    pub(crate) fn place(&self) -> &Place {
        self.client.place()
    }

    pub(crate) async fn welcome(&self) -> Result<&Welcome> {
        self.welcome
            .get_or_try_init(|| async {
                let said: Option<Value> = self.client.find(&Request::get("")).await?;
                let said = said.filter(Value::is_object).ok_or_else(|| {
                    Error::input("what answers at this URL is no CouchDB").hint("check host, port and path of the URL")
                })?;
                let text = |key: &str| said.get(key).and_then(Value::as_str).map(str::to_owned);
                Ok(Welcome {
                    uuid: text("uuid"),
                    version: text("version").unwrap_or_else(|| "unknown".into()),
                    is_couchdb: text("couchdb").is_some(),
                })
            })
            .await
    }

    /// The names of all databases that are meant, sorted.
    pub(crate) async fn names(&self) -> Result<Vec<String>> {
        if let Some(only) = self.place().only() {
            return Ok(vec![only.to_owned()]);
        }
        let request = Request::get("_all_dbs");
        let mut all: Vec<String> = self.client.json(&request, ANSWER_MAX, |b| serde_json::from_slice(b)).await?;
        all.retain(|name| self.place().takes(name));
        all.sort();
        Ok(all)
    }

    /// A database; `None` if there is none of this name.
    pub(crate) async fn database(&self, name: &str) -> Result<Option<Database>> {
        let Some(info) = self.info(name).await? else { return Ok(None) };
        Ok(Some(Database { name: name.to_owned(), instance: info.made(), info }))
    }

    pub(crate) async fn info(&self, name: &str) -> Result<Option<Info>> {
        self.client.find(&Request::get(segment(name))).await
    }

    /// The databases of these names; those that are gone are left out.
    pub(crate) async fn databases(&self, names: &[String]) -> Result<Vec<Database>> {
        let mut all = Vec::with_capacity(names.len());
        if names.len() > 1
            && let Some(infos) = self.infos(names).await?
        {
            all.extend(infos.into_iter().map(|(name, info)| Database { name, instance: info.made(), info }));
            return Ok(all);
        }
        let asking: Vec<_> = names.iter().map(|name| self.database(name)).collect();
        let mut asking = stream::iter(asking).buffered(ASKING);
        while let Some(found) = asking.try_next().await? {
            all.extend(found);
        }
        Ok(all)
    }

    /// Many at once, if the server can do that.
    async fn infos(&self, names: &[String]) -> Result<Option<Vec<(String, Info)>>> {
        #[derive(Deserialize)]
        struct One {
            key: String,
            info: Option<Info>,
        }
        if !self.welcome().await?.is_couchdb {
            return Ok(None);
        }
        let mut all = Vec::with_capacity(names.len());
        for some in names.chunks(AT_ONCE) {
            let request = Request::post("_dbs_info", json!({ "keys": some }).to_string());
            let found: Vec<One> = match self.client.find(&request).await {
                Ok(Some(found)) => found,
                Ok(None) => return Ok(None),
                Err(e) if matches!(e.kind(), ErrorKind::Input | ErrorKind::Credentials) => return Ok(None),
                Err(e) => return Err(e),
            };
            all.extend(found.into_iter().filter_map(|one| Some((one.key, one.info?))));
        }
        Ok(Some(all))
    }

    /// How many revisions of each document it remembers; `None` if the server does not tell.
    pub(crate) async fn revs_limit(&self, database: &str) -> Result<Option<u64>> {
        asked(&self.client, &format!("{}/_revs_limit", segment(database))).await
    }

    /// `_security`, verbatim.
    pub(crate) async fn security(&self, database: &str) -> Result<Option<Box<RawValue>>> {
        asked(&self.client, &format!("{}/_security", segment(database))).await
    }

    /// Whether it lists `_local` documents.
    pub(crate) async fn lists_local(&self, database: &str) -> Result<bool> {
        let path = format!("{}/_local_docs?limit=1", segment(database));
        Ok(asked::<Value>(&self.client, &path).await?.is_some_and(|v| v.get("rows").is_some()))
    }

    /// Whether the tree of a document knows this revision: proof that it is the same database.
    pub(crate) async fn knows(&self, database: &str, id: &str, rev: &str) -> Result<bool> {
        let request = Request::post(format!("{}/_revs_diff", segment(database)), json!({ id: [rev] }).to_string());
        let missing = self.client.json(&request, ANSWER_MAX, |b| serde_json::from_slice::<Value>(b)).await?;
        Ok(missing.get(id).is_none())
    }
}

/// Answers that a server may not have.
async fn asked<T: for<'a> Deserialize<'a>>(client: &Client, path: &str) -> Result<Option<T>> {
    match client.find(&Request::get(path)).await {
        Err(e) if matches!(e.kind(), ErrorKind::Input) => Ok(None),
        other => other,
    }
}

/// The ids of what was purged, as far as the server remembers; `None` if it does not tell.
pub(crate) async fn purged(client: &Client, database: &str) -> Result<Option<Vec<String>>> {
    #[derive(Deserialize)]
    struct One {
        id: String,
    }
    #[derive(Deserialize)]
    struct All {
        purged_infos: Vec<One>,
    }
    let found: Option<All> = asked(client, &format!("{}/_purged_infos", segment(database))).await?;
    Ok(found.map(|all| all.purged_infos.into_iter().map(|one| one.id).collect()))
}

/// A server that all parts of a command share.
pub type SharedServer = Arc<Server>;
