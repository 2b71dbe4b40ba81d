//! A server and one of its databases, by HTTP.

use crate::certificate::{self, Password};
use crate::dump::Input;
use crate::intake;
use crate::refusal::{network, refused};
use model::{Error, ErrorKind, Result};
use reqwest::{Client, Method, RequestBuilder, Response, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

/// How long a server may take to take a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an answer may pause.
pub(crate) const PAUSE: Duration = Duration::from_secs(300);

/// One database on one server.
#[derive(Debug)]
pub struct Server {
    /// The database, as people write it.
    url: String,
    tombstones: Tombstones,
    /// Of the client certificate that the URL names.
    password: Password,
    /// Another database than the URL names.
    other: Option<String>,
    client: OnceLock<Client>,
}

/// What is to become of deletions, which a server forgets within minutes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tombstones {
    /// They are held if they were held before.
    #[default]
    AsBefore,
    /// They are held from now on, by a backup task in the database that is disabled.
    Hold,
    /// They are no longer held: the task is removed.
    Release,
}

/// What a URL says.
struct Place {
    base: Url,
    database: String,
    certificate: Option<String>,
    authority: Option<String>,
    hold: bool,
}

/// The server's build.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Build {
    #[serde(rename = "BuildVersion")]
    pub build: u64,
    #[serde(rename = "FullVersion")]
    pub full: String,
}

impl Build {
    /// Version and build, so that a dump can be made again as this server would.
    pub fn version(&self) -> String {
        format!("{} build {}", self.full, self.build)
    }

    /// The build out of [`Build::version`].
    pub fn of(version: &str) -> Option<u64> {
        version.rsplit_once("build ")?.1.parse().ok()
    }

    /// Whether it is older than 5.0: with gzip alone, and without attachments as a type of their own.
    pub fn is_old(&self) -> bool {
        self.build < 50_000
    }
}

/// Numbers of a database.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Stats {
    pub database_id: String,
    database_change_vector: Option<String>,
    last_database_etag: Option<u64>,
    pub count_of_documents: u64,
    pub count_of_revision_documents: u64,
    pub count_of_attachments: u64,
    pub count_of_counter_entries: u64,
    pub count_of_time_series_segments: u64,
    pub count_of_documents_conflicts: u64,
    count_of_conflicts: u64,
    pub count_of_indexes: u64,
}

impl Stats {
    /// The last etag of anything in the database, tombstones as well.
    pub fn etag(&self) -> u64 {
        let of_vector = || {
            let all = self.database_change_vector.as_deref().unwrap_or_default().split(", ");
            let mine = all.filter(|part| part.ends_with(&self.database_id)).find_map(|part| {
                let (_, rest) = part.split_once(':')?;
                rest.split('-').next()?.parse().ok()
            });
            mine.unwrap_or(0)
        };
        self.last_database_etag.unwrap_or_else(of_vector)
    }

    pub fn conflicts(&self) -> u64 {
        self.count_of_documents_conflicts + self.count_of_conflicts
    }
}

impl Server {
    /// The database that a URL `ravendb+http://HOST:PORT/DATABASE` names; nothing is opened yet.
    pub fn new(url: impl Into<String>) -> Server {
        Server {
            url: url.into(),
            tombstones: Tombstones::AsBefore,
            password: Password::default(),
            other: None,
            client: OnceLock::new(),
        }
    }

    /// The same, with deletions held or no longer held.
    pub fn tombstones(self, tombstones: Tombstones) -> Server {
        Server { tombstones, ..self }
    }

    /// The same, with the password of the client certificate that the URL names.
    pub fn password(self, password: Option<String>) -> Server {
        Server { password: Password(password), ..self }
    }

    /// Another database of the same server.
    pub(crate) fn named(&self, database: String) -> Server {
        Server { other: Some(database), password: self.password.clone(), ..Server::new(self.url.clone()) }
    }

    fn place(&self) -> Result<Place> {
        let bad = |why: &str| {
            Error::input(format!("the URL of the database is not right: {why}"))
                .hint("write it as ravendb+http://HOST:PORT/DATABASE or ravendb+https://HOST:PORT/DATABASE?certificate=FILE.pem")
        };
        let plain = self.url.strip_prefix("ravendb+").ok_or_else(|| bad("it does not begin with ravendb+"))?;
        let mut base = Url::parse(plain).map_err(|e| bad(&e.to_string()))?;
        if !base.username().is_empty() || base.password().is_some() {
            return Err(bad("RavenDB knows no users and passwords, only certificates"));
        }
        let (mut certificate, mut authority, mut hold) = (None, None, false);
        for (name, value) in base.query_pairs() {
            match &*name {
                "certificate" => certificate = Some(value.into_owned()),
                "ca" => authority = Some(value.into_owned()),
                "hold-tombstones" if matches!(&*value, "" | "yes") => hold = true,
                other => {
                    return Err(bad(&format!("{other} is no option; certificate, ca and hold-tombstones=yes are")));
                }
            }
        }
        let mut parts = base.path_segments().into_iter().flatten().filter(|p| !p.is_empty());
        let database = parts.next().ok_or_else(|| bad("it names no database"))?;
        let database = percent_decoded(database);
        if parts.next().is_some() {
            return Err(bad("more follows after the database"));
        }
        base.set_query(None);
        base.set_fragment(None);
        base.set_path("");
        Ok(Place { base, database, certificate, authority, hold })
    }

    /// The name of the database.
    pub fn database(&self) -> Result<String> {
        let named = self.place()?.database;
        Ok(self.other.clone().unwrap_or(named))
    }

    /// What the user wants to become of deletions.
    pub(crate) fn wanted_tombstones(&self) -> Result<Tombstones> {
        let asked = self.place()?.hold;
        Ok(if asked && self.tombstones == Tombstones::AsBefore { Tombstones::Hold } else { self.tombstones })
    }

    fn client(&self, place: &Place) -> Result<&Client> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        // No connection is kept: the server closes some of them without a word, and requests are few.
        let mut builder =
            Client::builder().connect_timeout(CONNECT).tcp_keepalive(Duration::from_secs(30)).pool_max_idle_per_host(0);
        if let Some(path) = &place.certificate {
            let identity = certificate::identity(path, &self.password)?;
            builder = builder.identity(identity);
        }
        if let Some(path) = &place.authority {
            let certificate = reqwest::Certificate::from_pem(&certificate::read(path)?)
                .map_err(|e| Error::input(format!("the certificate of the authority {path} cannot be used: {e}")))?;
            builder = builder.add_root_certificate(certificate);
        }
        let client = builder.build().map_err(|e| Error::bug("no HTTP client could be made").caused_by(e))?;
        Ok(self.client.get_or_init(|| client))
    }

    /// A request to the server itself.
    pub(crate) fn request(&self, method: Method, path: &[&str], query: &[(&str, &str)]) -> Result<RequestBuilder> {
        let place = self.place()?;
        let mut url = place.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.clear().extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(self.client(&place)?.request(method, url).header("Accept-Encoding", "identity"))
    }

    /// A request to the database.
    pub(crate) fn of_database(&self, method: Method, path: &[&str], query: &[(&str, &str)]) -> Result<RequestBuilder> {
        let database = self.database()?;
        let path = [&["databases", &database][..], path].concat();
        self.request(method, &path, query)
    }

    /// Sends a request that must succeed.
    pub(crate) async fn send(&self, request: RequestBuilder, doing: &str) -> Result<Response> {
        send(request, doing).await
    }

    pub(crate) async fn json<T: DeserializeOwned>(&self, request: RequestBuilder, doing: &str) -> Result<T> {
        let answer = self.send(request.timeout(PAUSE), doing).await?;
        let body = answer.bytes().await.map_err(|e| network(doing, e))?;
        // By way of a value: some answers have a member twice.
        serde_json::from_slice::<serde_json::Value>(&body)
            .and_then(serde_json::from_value)
            .map_err(|e| Error::corrupt(format!("{doing}: the server's answer cannot be read: {e}")).caused_by(e))
    }

    /// The server's build.
    pub(crate) async fn build(&self) -> Result<Build> {
        self.json(self.request(Method::GET, &["build", "version"], &[])?, "asking for the server's version").await
    }

    /// Numbers of the database; none if there is no such database.
    pub(crate) async fn stats(&self) -> Result<Option<Stats>> {
        let request = self.of_database(Method::GET, &["stats"], &[])?;
        match self.json(request, "asking for the database's numbers").await {
            Err(e) if e.kind() == ErrorKind::Missing => Ok(None),
            other => other.map(Some),
        }
    }

    /// Numbers of the database, which must be there.
    pub(crate) async fn must_stats(&self) -> Result<Stats> {
        let database = self.database()?;
        self.stats().await?.ok_or_else(|| {
            Error::missing(format!("there is no database {database} on this server"))
                .hint("check the name in the URL; RavenDB Studio lists the databases")
        })
    }

    /// The collections with their numbers of documents.
    pub(crate) async fn collections(&self) -> Result<BTreeMap<String, u64>> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(rename = "Collections")]
            collections: BTreeMap<String, u64>,
        }
        let request = self.of_database(Method::GET, &["collections", "stats"], &[])?;
        Ok(self.json::<Answer>(request, "asking for the collections").await?.collections)
    }

    /// Documents that are there of these, with their collections.
    pub(crate) async fn collections_of(&self, ids: &[String]) -> Result<Vec<(String, String)>> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(rename = "Results", default)]
            results: Vec<Option<Document>>,
        }
        #[derive(Deserialize)]
        struct Document {
            #[serde(rename = "@metadata")]
            metadata: Metadata,
        }
        #[derive(Deserialize)]
        struct Metadata {
            #[serde(rename = "@id")]
            id: String,
            #[serde(rename = "@collection")]
            collection: Option<String>,
        }
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let request = self.of_database(Method::POST, &["docs"], &[("metadataOnly", "true")])?;
        let request = request.body(serde_json::json!({ "Ids": ids }).to_string());
        let answer: Answer = self.json(request, "asking which collections documents are in").await?;
        let all = answer.results.into_iter().flatten().map(|d| d.metadata);
        Ok(all.map(|m| (m.id, m.collection.unwrap_or_else(|| crate::metadata::EMPTY.into()))).collect())
    }

    /// Stops all indexing of the database, until it is started again.
    pub(crate) async fn stop_indexing(&self) -> Result<()> {
        let request = self.of_database(Method::POST, &["admin", "indexes", "stop"], &[])?;
        self.send(request.timeout(PAUSE), "stopping the indexes").await.map(drop)
    }

    /// Disables each index of the database.
    pub(crate) async fn disable_indexes(&self) -> Result<()> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(rename = "Results", default)]
            names: Vec<String>,
        }
        let request = self.of_database(Method::GET, &["indexes"], &[("namesOnly", "true")])?;
        let answer: Answer = self.json(request, "asking for the indexes").await?;
        for name in answer.names {
            let path = ["admin", "indexes", "disable"];
            let request = self.of_database(Method::POST, &path, &[("name", &name)])?;
            self.send(request.timeout(PAUSE), &format!("disabling the index {name}")).await?;
        }
        Ok(())
    }

    /// The names of the subscriptions that are there.
    pub(crate) async fn subscriptions(&self) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(rename = "Results", default)]
            results: Vec<Subscription>,
        }
        #[derive(Deserialize)]
        struct Subscription {
            #[serde(rename = "SubscriptionName", default)]
            name: String,
        }
        let query = [("start", "0"), ("pageSize", "100000")];
        let request = self.of_database(Method::GET, &["subscriptions"], &query)?;
        let answer: Answer = self.json(request, "asking for the subscriptions").await?;
        Ok(answer.results.into_iter().map(|s| s.name).collect())
    }

    /// Makes the database.
    pub(crate) async fn create(&self) -> Result<()> {
        let database = self.database()?;
        let query = [("name", &database[..]), ("replicationFactor", "1")];
        let request = self.request(Method::PUT, &["admin", "databases"], &query)?;
        let request = request.body(serde_json::json!({ "DatabaseName": database }).to_string());
        self.send(request.timeout(PAUSE), &format!("making the database {database}")).await.map(drop)
    }

    /// Removes the database with its files.
    pub(crate) async fn delete(&self) -> Result<()> {
        let database = self.database()?;
        let request = self.request(Method::DELETE, &["admin", "databases"], &[])?;
        let what = serde_json::json!({ "DatabaseNames": [database], "HardDelete": true });
        self.send(request.body(what.to_string()).timeout(PAUSE), &format!("removing the database {database}"))
            .await
            .map(drop)
    }

    /// Starts an export: from an etag on, of these types and collections (none: all).
    pub(crate) async fn export(
        &self,
        build: &Build,
        types: &[&str],
        collection: Option<&str>,
        from: Option<u64>,
    ) -> Result<Input> {
        let from = from.map(|etag| etag.to_string());
        let query: Vec<(&str, &str)> = from.iter().map(|etag| ("startEtag", &etag[..])).collect();
        let mut options = serde_json::json!({ "OperateOnTypes": types.join(",") });
        if !build.is_old() {
            options["CompressionAlgorithm"] = "Zstd".into();
        }
        if let Some(collection) = collection {
            options["Collections"] = serde_json::json!([collection]);
        }
        let request = self.of_database(Method::POST, &["smuggler", "export"], &query)?.body(options.to_string());
        intake::take_in(request).await
    }
}

/// Sends a request that must succeed.
pub(crate) async fn send(request: RequestBuilder, doing: &str) -> Result<Response> {
    let answer = request.send().await.map_err(|e| network(doing, e))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let body = answer.text().await.unwrap_or_default();
    Err(refused(doing, status, &body))
}

fn percent_decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = (*first == b'%').then(|| after.get(..2)).flatten();
        match code.and_then(|c| u8::from_str_radix(std::str::from_utf8(c).ok()?, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &after[2..];
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn urls_name_a_database() {
        let place = Server::new("ravendb+http://h:8080/My%20Db/").place().unwrap();
        assert_eq!((place.base.as_str(), &place.database[..]), ("http://h:8080/", "My Db"));
        let place = Server::new("ravendb+https://h/d?certificate=/a/b.pem").place().unwrap();
        assert_eq!(place.certificate.as_deref(), Some("/a/b.pem"));
        for bad in [
            "http://h/d",
            "ravendb+http://h",
            "ravendb+http://h/d/e",
            "ravendb+http://u:p@h/d",
            "ravendb+http://h/d?x=1",
        ] {
            let error = Server::new(bad).place().err().unwrap();
            assert!(error.hint_text().unwrap().contains("ravendb+http://HOST"), "{bad}: {error}");
        }
    }

    #[test]
    fn etags_of_old_servers_are_in_the_change_vector() {
        let stats = Stats {
            database_id: "me".into(),
            database_change_vector: Some("B:9-other, A:7-me".into()),
            ..Stats::default()
        };
        assert_eq!(stats.etag(), 7);
        assert_eq!(Stats { last_database_etag: Some(8), ..stats }.etag(), 8);
        assert_eq!(Build::of("5.4.115 build 54106"), Some(54106));
    }
}
