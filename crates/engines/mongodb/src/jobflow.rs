//! The queue of a jobflow-remote project: which collections it has, and where.
//!
//! Facts: jobflow-remote 1.0.1 (`config/base.py`, `jobs/jobcontroller.py`) and maggma's MongoStore
//! and MongoURIStore.

use crate::connect::Server;
use crate::error;
use crate::{MongoSink, MongoSource};
use async_trait::async_trait;
use bson::{Document, doc};
use futures::{StreamExt, TryStreamExt};
use model::{
    AttachmentStore, ChangeItem, ChangeStream, CollectionInfo, Description, Error, Following, IfExists, Loss, Part,
    Plan, RestoreOptions, RestorePlan, Result, ScanItem, ScanStream, Selection, Sink, SinkSession, Source, SourceState,
    Until,
};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// The names that backups of jobflow-remote have, whatever the collections are called.
pub const STANDARD: [&str; 4] = ["jobs", "flows", "jf_auxiliary", "batches"];

/// What the identity of a queue ends with: its database is another source.
const QUEUE: &str = "#jobflow";

/// Where the queue of a project is.
#[derive(Clone, PartialEq)]
pub struct Project {
    /// The project's name.
    pub name: String,
    /// The server's URL, with the user, if there is one.
    pub url: String,
    /// The user's password.
    pub password: Option<String>,
    /// The database.
    pub database: String,
    /// What each standard name is called in the database.
    pub names: BTreeMap<&'static str, String>,
}

impl fmt::Debug for Project {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Project").field("name", &self.name).field("database", &self.database).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct File {
    name: Option<String>,
    queue: Queue,
}

#[derive(Deserialize)]
struct Queue {
    store: Store,
    flows_collection: Option<String>,
    auxiliary_collection: Option<String>,
    batches_collection: Option<String>,
}

#[derive(Deserialize)]
struct Store {
    #[serde(rename = "type", alias = "@class")]
    class: Option<String>,
    uri: Option<String>,
    host: Option<String>,
    port: Option<u16>,
    database: Option<String>,
    collection_name: Option<String>,
    username: Option<String>,
    password: Option<String>,
    auth_source: Option<String>,
    ssh_tunnel: Option<serde_json::Value>,
    mongoclient_kwargs: Option<BTreeMap<String, serde_json::Value>>,
}

impl Project {
    /// Reads a project's file (YAML or JSON).
    pub fn read(path: &Path) -> Result<Project> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::io(format!("reading the project {}", path.display()), e))?;
        let fallback = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        Project::parse(&text, &fallback).map_err(|e| e.context(format!("reading the project {}", path.display())))
    }

    fn parse(text: &str, fallback: &str) -> Result<Project> {
        let file: File = serde_saphyr::from_str(text).map_err(|e| {
            Error::input(format!("this is no project of jobflow-remote: {e}"))
                .hint("name the project's file, as a rule ~/.jfremote/PROJECT.yaml; its section `queue` says where the database is")
        })?;
        let store = file.queue.store;
        let class = store.class.as_deref().unwrap_or("MongoStore");
        if class != "MongoStore" && class != "MongoURIStore" {
            return Err(Error::unsupported(format!("the queue is in a {class}"))
                .hint("MongoStore and MongoURIStore can be backed up; for another store name its URL instead"));
        }
        if store.ssh_tunnel.as_ref().is_some_and(|t| !t.is_null()) {
            return Err(Error::unsupported("the queue's database is behind an ssh tunnel")
                .hint("open the tunnel with ssh -L and name the database's URL instead of the project"));
        }
        let (url, database) = match &store.uri {
            Some(uri) => (uri.clone(), store.database.or_else(|| database_of(uri))),
            None => (url_of(&store)?, store.database),
        };
        let database = database
            .ok_or_else(|| Error::input("the project's queue names no database").hint("add queue.store.database"))?;
        let names = [
            store.collection_name.or_else(|| Some("jobs".into())),
            file.queue.flows_collection,
            file.queue.auxiliary_collection,
            file.queue.batches_collection,
        ];
        let names =
            STANDARD.into_iter().zip(names).map(|(standard, name)| (standard, name.unwrap_or_else(|| standard.into())));
        Ok(Project {
            name: file.name.unwrap_or_else(|| fallback.to_owned()),
            url,
            password: store.password.filter(|_| store.uri.is_none()),
            database,
            names: names.collect(),
        })
    }

    /// The project's server.
    pub fn server(&self) -> Arc<Server> {
        Arc::new(Server::new(self.url.clone(), self.password.clone()))
    }

    /// The name in the database of a collection of a backup: `DATABASE.STANDARD`, a standard name
    /// alone, or, in dumps that keep the names of the database, the project's own; none if it is not
    /// one of the queue's.
    pub fn target_name(&self, backup: &str) -> Option<String> {
        let name = backup.split_once('.').map_or(backup, |(_, name)| name);
        let own = || self.names.values().find(|own| *own == name);
        self.names.get(name).or_else(own).map(|name| format!("{}.{name}", self.database))
    }

    /// The name in backups of a collection of the database.
    fn standard_name(&self, namespace: &str) -> Option<String> {
        let (database, name) = namespace.split_once('.')?;
        let (standard, _) = self.names.iter().find(|(_, n)| *n == name && database == self.database)?;
        Some(format!("{database}.{standard}"))
    }
}

/// The URL of a MongoStore: MongoClient(host, port, username, password, authSource, **kwargs).
fn url_of(store: &Store) -> Result<String> {
    let host = store.host.as_deref().unwrap_or("localhost");
    if host.contains("://") {
        return Ok(host.to_owned());
    }
    let user = store.username.as_deref().filter(|u| !u.is_empty());
    let mut options = Vec::new();
    if user.is_some()
        && let Some(source) = store.auth_source.as_ref().or(store.database.as_ref())
    {
        options.push(format!("authSource={}", encoded(source)));
    }
    for (name, value) in store.mongoclient_kwargs.iter().flatten() {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        options.push(format!("{name}={}", encoded(&value)));
    }
    let user = user.map(|u| format!("{}@", encoded(u))).unwrap_or_default();
    let hosts: Vec<_> = host.split(',').map(|h| with_port(h, store.port.unwrap_or(27017))).collect();
    Ok(format!("mongodb://{user}{}/?{}", hosts.join(","), options.join("&")))
}

fn with_port(host: &str, port: u16) -> String {
    if host.contains(':') { host.to_owned() } else { format!("{host}:{port}") }
}

/// Percent-encoded, as in RFC 3986, but for what is never special.
fn encoded(text: &str) -> String {
    let keep = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    text.bytes().map(|b| if keep(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}

/// The database in the path of a URL.
fn database_of(uri: &str) -> Option<String> {
    let (_, rest) = uri.split_once("://")?;
    let (_, path) = rest.split_once('/')?;
    let name = path.split('?').next()?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// The queue of a project as a source: its collections under their standard names.
#[derive(Debug, Clone)]
pub struct JobflowSource {
    project: Project,
    inner: MongoSource,
}

impl JobflowSource {
    /// The queue of this project; nothing is opened yet.
    pub fn new(project: Project) -> JobflowSource {
        let inner = MongoSource::new(project.server()).of_database(&project.database);
        JobflowSource { project, inner }
    }

    /// The collections of the queue that are meant, by their names in the database.
    fn queue(&self, selection: &Selection) -> Selection {
        let Project { database, names, .. } = &self.project;
        let taken = names.iter().filter(|(standard, _)| selection.takes(&format!("{database}.{standard}")));
        Selection { only: taken.map(|(_, name)| format!("{database}.{name}")).collect(), ..Selection::default() }
    }

    fn renamed(&self, info: CollectionInfo) -> Option<CollectionInfo> {
        let name = self.project.standard_name(&info.name)?;
        Some(CollectionInfo { name, ..info })
    }
}

#[async_trait]
impl Source for JobflowSource {
    async fn describe(&self) -> Result<Description> {
        let mut description = self.inner.describe().await?;
        description.identity.push_str(QUEUE);
        description.name.clone_from(&self.project.name);
        description.collections = description.collections.into_iter().filter_map(|i| self.renamed(i)).collect();
        let why = "it is not part of the queue's database: back it up for itself";
        description.losses.push(Loss { what: "the JobStore, with the outputs of the jobs".into(), why: why.into() });
        Ok(description)
    }

    async fn plan(&self, selection: &Selection, last: Option<&SourceState>) -> Result<Plan> {
        let queue = self.queue(&Selection::default());
        let last = last.map(|last| SourceState {
            identity: last.identity.strip_suffix(QUEUE).unwrap_or(&last.identity).to_owned(),
            ..last.clone()
        });
        let mut plan = self.inner.plan(&queue, last.as_ref()).await?;
        let mut innermost = &mut plan;
        while let Plan::Gap { then, .. } = innermost {
            innermost = then;
        }
        if let Plan::Scan { parts, .. } = innermost {
            let all = std::mem::take(parts).into_iter();
            let renamed = all.filter_map(|p| Some(Part { collection: self.renamed(p.collection.clone())?, ..p }));
            parts.extend(renamed.filter(|p| selection.takes(&p.collection.name)));
            if parts.is_empty() {
                return Err(Error::missing(format!(
                    "the database {} holds nothing of the queue",
                    self.project.database
                ))
                .hint("check the names of database and collections in the project's section `queue`"));
            }
        }
        Ok(plan)
    }

    fn side_by_side(&self) -> usize {
        self.inner.side_by_side()
    }

    async fn read(&self, part: &Part, attachments: Arc<dyn AttachmentStore>) -> Result<ScanStream> {
        let items = self.inner.read(part, attachments).await?;
        let name = part.collection.name.clone();
        // Whatever it is renamed to while it is read, in the backup it has its standard name.
        Ok(items
            .map(move |item| {
                Ok(match item? {
                    ScanItem::Catalog(info) => ScanItem::Catalog(CollectionInfo { name: name.clone(), ..info }),
                    ScanItem::Again(parts) => ScanItem::Again(
                        parts
                            .into_iter()
                            .map(|p| Part { collection: CollectionInfo { name: name.clone(), ..p.collection }, ..p })
                            .collect(),
                    ),
                    other => other,
                })
            })
            .boxed())
    }

    async fn changes(
        &self,
        from: &Following,
        until: Until,
        attachments: Arc<dyn AttachmentStore>,
    ) -> Result<ChangeStream> {
        let Project { database, names, .. } = &self.project;
        let mut there = Following { selection: self.queue(&from.selection), ..from.clone() };
        for info in &mut there.collections {
            let standard = info.name.strip_prefix(database.as_str()).and_then(|n| n.strip_prefix('.'));
            if let Some(name) = standard.and_then(|n| names.get(n)) {
                info.name = format!("{database}.{name}");
            }
        }
        let items = self.inner.changes(&there, until, attachments).await?;
        let project = self.project.clone();
        Ok(items
            .map_ok(move |item| match item {
                // One that is called otherwise from now on is no longer the queue's.
                ChangeItem::Catalog { info: Some(info), collection, time } => {
                    let name = project.standard_name(&info.name);
                    let info = name.map(|name| CollectionInfo { name, ..info });
                    ChangeItem::Catalog { info, collection, time }
                }
                other => other,
            })
            .boxed())
    }
}

/// The queue of a project as a target: collections of a backup under the names that the project
/// gives them.
#[derive(Debug)]
pub struct JobflowSink {
    project: Project,
    server: Arc<Server>,
    inner: MongoSink,
}

impl JobflowSink {
    /// The queue of this project; nothing is opened yet.
    pub fn new(project: Project) -> JobflowSink {
        let server = project.server();
        JobflowSink { inner: MongoSink::new(server.clone()), server, project }
    }

    /// As `jf backup restore`: jobs, flows and batches must be empty, and no job may have been
    /// numbered yet. What a new project writes into its auxiliary collection is no hindrance.
    async fn refuse_a_queue_in_use(&self) -> Result<()> {
        let database = self.server.client().await?.database(&self.project.database);
        let mut full = Vec::new();
        for standard in ["jobs", "flows", "batches"] {
            let name = &self.project.names[standard];
            let count = database.collection::<Document>(name).count_documents(doc! {}).await;
            match count.map_err(|e| error::driver(format!("counting the documents of {name}"), e))? {
                0 => {}
                count => full.push(format!("{}.{name} ({count} documents)", self.project.database)),
            }
        }
        if !full.is_empty() {
            return Err(Error::input(format!(
                "the queue of the project {} is not empty: {}",
                self.project.name,
                full.join(", ")
            ))
            .hint("restore into a new project, or empty it with `jf admin reset`; --if-exists replace overwrites it"));
        }
        let auxiliary = database.collection::<Document>(&self.project.names["jf_auxiliary"]);
        let next = auxiliary.find_one(doc! { "next_id": { "$exists": true, "$nin": [1, 1i64, 1.0] } }).await;
        match next.map_err(|e| error::driver("reading the queue's auxiliary collection", e))? {
            None => Ok(()),
            Some(_) => Err(Error::input(format!("the project {} has numbered jobs already", self.project.name)).hint(
                "restore into a new project, or empty it with `jf admin reset`; --if-exists replace overwrites it",
            )),
        }
    }
}

#[async_trait]
impl Sink for JobflowSink {
    async fn prepare(&self, what: &Description, options: &RestoreOptions) -> Result<RestorePlan> {
        let mut options = options.clone();
        let chosen = what.collections.iter().filter(|info| options.selection.takes(&info.name));
        let mut rename = Vec::new();
        for info in chosen {
            let target = self.project.target_name(&info.name).ok_or_else(|| {
                Error::input(format!("{} is no collection of a queue of jobflow-remote", info.name))
                    .hint(format!("choose some of {} with --only", STANDARD.join(", ")))
            })?;
            rename.push((info.name.clone(), target));
        }
        options.rename = rename;
        if options.if_exists == IfExists::Fail {
            self.refuse_a_queue_in_use().await?;
            options.if_exists = IfExists::Replace;
        }
        let mut plan = self.inner.prepare(what, &options).await?;
        plan.phases.push("not included: the JobStore, with the outputs of the jobs; restore it for itself".into());
        Ok(plan)
    }

    async fn begin(&self, plan: RestorePlan, attachments: Arc<dyn AttachmentStore>) -> Result<Box<dyn SinkSession>> {
        self.inner.begin(plan, attachments).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn projects_say_where_their_queue_is() {
        let text = "
name: std
workers: {local: {type: local}}
queue:
  store:
    type: MongoStore
    host: db.example
    port: 27018
    database: jf
    username: us er
    password: 'p@ss: word'
    collection_name: my_jobs
    mongoclient_kwargs: {directConnection: true}
  flows_collection: my_flows
";
        let project = Project::parse(text, "file").unwrap();
        assert_eq!(project.url, "mongodb://us%20er@db.example:27018/?authSource=jf&directConnection=true");
        assert_eq!(project.password.as_deref(), Some("p@ss: word"));
        assert_eq!(project.target_name("jf.jobs").as_deref(), Some("jf.my_jobs"));
        assert_eq!(project.target_name("old.flows").as_deref(), Some("jf.my_flows"));
        assert_eq!(project.target_name("batches").as_deref(), Some("jf.batches"));
        assert_eq!(project.target_name("jf.my_jobs").as_deref(), Some("jf.my_jobs"));
        assert_eq!(project.target_name("jf.other"), None);
        assert_eq!(project.standard_name("jf.my_jobs").as_deref(), Some("jf.jobs"));
        assert!(!format!("{project:?}").contains("word"));

        let uri = "queue: {store: {type: MongoURIStore, uri: 'mongodb://u:p@h/jf?x=1', collection_name: jobs}}";
        let project = Project::parse(uri, "file").unwrap();
        assert_eq!((project.name.as_str(), project.database.as_str()), ("file", "jf"));

        for bad in [
            "queue: 7",
            "a: [",
            "queue: {store: {type: MemoryStore}}",
            "queue: {store: {ssh_tunnel: {a: 1}, database: x}}",
        ] {
            assert!(Project::parse(bad, "x").unwrap_err().hint_text().is_some(), "{bad}");
        }
    }
}
