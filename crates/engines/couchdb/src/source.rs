//! CouchDB as a source.

use crate::changes;
use crate::copies;
use crate::fetch::Pace;
use crate::position::{Places, Stand};
use crate::read::{Reader, Token};
use crate::server::{ASKING, Database, Server};
use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use model::{
    AttachmentStore, ChangeStream, CollectionId, Consistency, Description, Engine, Error, ErrorKind, FeedKind,
    Following, Gap, Loss, Part, Plan, Result, ScanItem, ScanStream, Selection, Source, SourceState, Until,
};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Requests that fetch documents side by side: more do not make a server faster.
const CONCURRENCY: usize = 4;
/// Databases that are read side by side.
const DATABASES: usize = 6;
/// Items that may wait for whoever reads.
const WAITING: usize = 4;
/// Databases of the server's own that hold users and what they replicate.
const SYSTEM: &[&str] = &["_users", "_replicator"];

/// The databases of a CouchDB server, or of one that speaks its protocol.
///
/// - A collection is a database; a document is all leaf revisions of an id, conflicts and deletions
///   with it, with their histories; its body is the winner, or a list of the leaves, the winner first.
/// - All attachments of a document are one entry under its id.
/// - `_security`, `_revs_limit` and the `_local` documents are entries of their own.
///
/// Each document is as it was when it was read. Changes are followed by the sequence of each database.
#[derive(Debug, Clone)]
pub struct CouchSource {
    pub(crate) server: Arc<Server>,
    pub(crate) concurrency: usize,
    turns: Arc<Semaphore>,
}

impl CouchSource {
    /// The server's databases; nothing is asked yet.
    pub fn new(server: Arc<Server>) -> CouchSource {
        CouchSource { server, concurrency: CONCURRENCY, turns: Arc::new(Semaphore::new(CONCURRENCY)) }
    }

    /// How many requests fetch documents side by side; 4 unless told.
    pub fn concurrency(mut self, requests: usize) -> CouchSource {
        self.concurrency = requests.clamp(1, 32);
        self.turns = Arc::new(Semaphore::new(self.concurrency));
        self
    }

    /// The databases that are meant, with those of the server's own if they are.
    pub(crate) async fn databases(&self, selection: &Selection) -> Result<Vec<Database>> {
        let mut names = self.server.names().await?;
        if selection.users && self.server.place().only().is_none() {
            names.extend(SYSTEM.iter().map(|s| (*s).to_owned()));
        }
        names.retain(|name| selection.takes(name));
        let found = self.server.databases(&names).await?;
        match (self.server.place().only(), found.is_empty()) {
            (Some(only), true) if !names.is_empty() => {
                Err(Error::missing(format!("the server has no database {only}"))
                    .hint("leave the database out of the URL to mean all of them"))
            }
            _ => Ok(found),
        }
    }

    async fn losses(&self, databases: &[Database]) -> Result<Vec<Loss>> {
        let mut losses = Vec::new();
        if let Some(first) = databases.first()
            && !self.server.lists_local(&first.name).await?
        {
            losses.push(Loss { what: "_local documents".into(), why: "the server does not list them".into() });
        }
        if self.server.place().database.is_none() {
            losses.push(Loss { what: SYSTEM.join(", "), why: "they are left out without --users".into() });
        }
        Ok(losses)
    }

    async fn part_of(&self, database: &Database, selection: &Selection) -> Result<(Part, Stand)> {
        // First of all: what changes from here on, the feed tells.
        let mut stand = Stand::now(&self.server, database).await?;
        let mut since = None;
        if database.info.copies() > 1 {
            let begins = copies::beginning(&self.server.client, &database.name).await;
            // One that was deleted since is seen to be gone when it is read.
            let begins = begins.or_else(|e| if e.kind() == ErrorKind::Missing { Ok(None) } else { Err(e) })?;
            if let Some((none, all)) = begins {
                (since, stand.seq) = (Some(none), all);
            }
        }
        let limit = self.server.revs_limit(&database.name).await?;
        let info = &database.info;
        let whole = selection.takes_all_of(&database.name);
        let token = Token {
            database: database.name.clone(),
            id: database.id().as_str().to_owned(),
            since,
            selection: selection.clone(),
        };
        let part = Part {
            collection: database.collection(limit, selection.no_attachments),
            token: serde_json::to_string(&token).map_err(|e| Error::bug("a plan is no JSON").caused_by(e))?,
            documents: info.doc_del_count.filter(|_| whole).map(|deleted| deleted + info.doc_count),
            bytes: None,
        };
        Ok((part, stand))
    }

    async fn plan_scan(&self, databases: Vec<Database>, selection: &Selection) -> Result<Plan> {
        let planning: Vec<_> = databases.iter().map(|database| self.part_of(database, selection)).collect();
        let planned: Vec<_> = stream::iter(planning).buffered(ASKING).try_collect().await?;
        let (mut places, mut parts) = (Places::default(), Vec::new());
        for (part, stand) in planned {
            places.databases.insert(part.collection.name.clone(), stand);
            parts.push(part);
        }
        parts.sort_by_key(|part| std::cmp::Reverse(part.documents));
        let start = Some(places.position()?);
        Ok(Plan::Scan { start, parts, at: None, consistency: Consistency::PerDocument, skipped: Vec::new() })
    }

    pub(crate) fn reader(
        &self,
        database: &str,
        collection: CollectionId,
        store: Arc<dyn AttachmentStore>,
        selection: Arc<Selection>,
    ) -> Reader {
        Reader {
            server: self.server.clone(),
            database: database.to_owned(),
            collection,
            store,
            pace: Arc::new(Pace::default()),
            selection,
            since: "0".into(),
            concurrency: self.concurrency,
            turns: self.turns.clone(),
        }
    }
}

#[async_trait]
impl Source for CouchSource {
    async fn describe(&self) -> Result<Description> {
        let welcome = self.server.welcome().await?;
        let databases = self.databases(&Selection::default()).await?;
        let place = self.server.place();
        let host = format!(
            "{}:{}",
            place.base.host_str().unwrap_or_default(),
            place.base.port_or_known_default().unwrap_or_default()
        );
        let of = place.database.as_deref().map(|d| format!("/{d}")).unwrap_or_default();
        Ok(Description {
            engine: Engine::new("couchdb"),
            identity: format!("couchdb:{}{of}", welcome.uuid.as_deref().unwrap_or(&host)),
            name: place.database.clone().unwrap_or(host),
            version: welcome.version.clone(),
            feed: FeedKind::LatestState,
            losses: self.losses(&databases).await?,
            collections: databases.iter().map(|d| d.collection(None, false)).collect(),
        })
    }

    async fn plan(&self, selection: &Selection, last: Option<&SourceState>) -> Result<Plan> {
        let databases = self.databases(selection).await?;
        let Some((last, from)) = last.and_then(|l| Some((l, l.position.as_ref()?))) else {
            return self.plan_scan(databases, selection).await;
        };
        let places = Places::read(from)?;
        for database in &databases {
            let Some(stand) = places.databases.get(&database.name) else { continue };
            if let Some(why) = stand.lost(&self.server, database).await? {
                let gap = Gap { from: last.time, to: None, why };
                return Ok(Plan::Gap { gap, then: Box::new(self.plan_scan(databases, selection).await?) });
            }
        }
        Ok(Plan::Changes { from: from.clone() })
    }

    fn side_by_side(&self) -> usize {
        // Small databases cost a few requests one after the other each.
        if self.server.place().only().is_some() { 1 } else { DATABASES }
    }

    async fn read(&self, part: &Part, store: Arc<dyn AttachmentStore>) -> Result<ScanStream> {
        let token: Token = serde_json::from_str(&part.token)
            .map_err(|e| Error::bug("a part of another source was read from CouchDB").caused_by(e))?;
        let mut reader = self.reader(&token.database, part.collection.id.clone(), store, Arc::new(token.selection));
        reader.since = token.since.unwrap_or(reader.since);
        let (out, items) = tokio::sync::mpsc::channel(WAITING);
        tokio::spawn(async move {
            let result = tokio::select! {
                result = reader.scan(&out) => result,
                // Nobody listens any more: what is under way ends.
                () = out.closed() => return,
            };
            let result = match result {
                Err(e) if e.kind() == ErrorKind::Missing => gone(&reader, e).await,
                other => other.map(|()| None),
            };
            let last = match result {
                // A database that was made anew meanwhile is another one.
                Ok(None) => is_another(&reader).await.map(|yes| yes.then_some(ScanItem::Gone)),
                other => other,
            };
            if let Some(last) = last.transpose() {
                // If nobody listens any more, nobody wants to know.
                let _ = out.send(last).await;
            }
        });
        Ok(stream::unfold(items, |mut items| async { items.recv().await.map(|item| (item, items)) }).boxed())
    }

    async fn changes(&self, from: &Following, until: Until, store: Arc<dyn AttachmentStore>) -> Result<ChangeStream> {
        changes::follow(self.clone(), from.clone(), until, store).await
    }
}

/// Something was missing: is it the database?
async fn gone(reader: &Reader, error: Error) -> Result<Option<ScanItem>> {
    match reader.server.info(&reader.database).await? {
        None => Ok(Some(ScanItem::Gone)),
        Some(_) => Err(error),
    }
}

async fn is_another(reader: &Reader) -> Result<bool> {
    Ok(reader.server.database(&reader.database).await?.is_none_or(|now| now.id() != reader.collection))
}
