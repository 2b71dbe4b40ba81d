//! One collection of a restore, from its making to its place.

use crate::catalog::{CollectionKind, Options};
use crate::connect::Server;
use crate::error;
use crate::indexes;
use crate::insert::{Namespace, Piece, cut};
use crate::names;
use crate::place::{self, Place, Way};
use crate::retry::{self, drop_collection};
use bson::{RawDocumentBuf, doc};
use model::{Batch, BatchBuilder, Encoding, Error, ErrorKind, Kind, Result};
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::OnceCell;

/// Something of that name is there: NamespaceExists.
const NAMESPACE_EXISTS: i32 = 48;
/// Bytes that are copied at a time.
const COPIED: usize = 1 << 20;

/// How long dropping a collection may take when a restore is given up.
const GIVING_UP: Duration = Duration::from_secs(5);

/// A collection that is written.
pub(crate) struct Target {
    pub place: Place,
    server: Arc<Server>,
    /// As the source last told them.
    options: Mutex<Options>,
    /// The collection beside it: where documents are written, or the sign that it is not complete.
    scratch: String,
    made: OnceCell<()>,
    /// Whether making it was begun: then it may be there.
    is_there: AtomicBool,
    /// Batches that came, where each may be written once only; also lets one write at a time.
    pub seen: tokio::sync::Mutex<HashSet<u64>>,
    documents: AtomicU64,
    bytes: AtomicU64,
}

impl Target {
    pub fn new(server: Arc<Server>, place: Place, run: &str) -> Target {
        Target {
            server,
            options: Mutex::new(place.options.clone()),
            scratch: names::scratch(&place.database, &place.name, run),
            place,
            made: OnceCell::new(),
            is_there: false.into(),
            seen: tokio::sync::Mutex::default(),
            documents: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// Documents and bytes written so far.
    pub fn written(&self) -> (u64, u64) {
        (self.documents.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    pub fn count(&self, documents: u64, bytes: u64) {
        self.documents.fetch_add(documents, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn options(&self) -> Options {
        self.options.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Takes what the source says of it now, which may differ from what it said before.
    pub fn learn(&self, options: Options) -> Result<()> {
        let mut known = self.options.lock().unwrap_or_else(|e| e.into_inner());
        if self.made.initialized() && (known.kind != options.kind || known.options != options.options) {
            return Err(Error::new(
                ErrorKind::Retry,
                format!("{} got other options while it was read", self.place.shown()),
            )
            .hint("run the command again"));
        }
        *known = options;
        Ok(())
    }

    /// The collection that documents go into now.
    fn writes_to(&self) -> &str {
        match self.place.way {
            Way::Beside | Way::Copied | Way::Users => &self.scratch,
            Way::Marked | Way::Into | Way::View => &self.place.name,
        }
    }

    fn namespace_of(&self, name: &str) -> Namespace {
        let collection = match self.place.is_time_series() {
            true => format!("system.buckets.{name}"),
            false => name.to_owned(),
        };
        Namespace {
            server: self.server.clone(),
            database: self.place.database.clone(),
            collection,
            shown: self.place.shown().to_owned(),
        }
    }

    /// Where documents go now.
    pub fn namespace(&self) -> Namespace {
        self.namespace_of(self.writes_to())
    }

    /// Makes the collection, the first time it is called.
    pub async fn make(&self) -> Result<()> {
        self.made.get_or_try_init(|| self.make_now()).await.map(drop)
    }

    async fn make_now(&self) -> Result<()> {
        if matches!(self.place.way, Way::View | Way::Into) {
            return Ok(());
        }
        self.is_there.store(true, Ordering::Relaxed);
        if self.place.way == Way::Marked {
            self.create(&self.scratch, &place::mark()).await?;
        }
        self.create(self.writes_to(), &self.options()).await
    }

    /// Makes a collection with these options, but for what would delete documents by and by.
    async fn create(&self, name: &str, options: &Options) -> Result<()> {
        let mut command = doc! { "create": name };
        command.extend(options.options.clone());
        command.remove("expireAfterSeconds");
        if options.options.get_bool("autoIndexId").is_ok_and(|yes| !yes) {
            command.remove("autoIndexId");
        }
        if let Some(index) = indexes::unusual_id_index(options) {
            command.insert("idIndex", index);
        }
        let doing = || format!("making {} as {name}", self.place.shown());
        // It is there after a second try that followed a first one whose answer was lost.
        let is_fine = |code, again| again && code == NAMESPACE_EXISTS;
        retry::run(&self.server, &self.place.database, command, doing, is_fine).await.map(drop)
    }

    /// Builds the indexes that delete nothing.
    pub async fn index(&self) -> Result<()> {
        match self.place.way {
            Way::View | Way::Users => Ok(()),
            // Into the empty collection, before the copy.
            Way::Copied => Ok(()),
            _ => self.build_indexes(self.writes_to(), false).await,
        }
    }

    async fn build_indexes(&self, name: &str, expires: bool) -> Result<()> {
        let existing = self.place.existing.as_ref().filter(|_| self.place.way == Way::Into).map(|e| &e.options);
        let mut indexes = indexes::to_build(&self.options(), existing);
        indexes.retain(|i| indexes::expires(i) == expires);
        indexes::build(&self.server, &self.place.database, name, indexes).await
    }

    /// Refuses to go on if documents came into its place since the plan was made, which expected
    /// none.
    pub async fn refuse_newcomers(&self) -> Result<()> {
        if self.place.way != Way::Beside || self.place.replaces {
            return Ok(());
        }
        let database = self.server.client().await?.database(&self.place.database);
        let collection = database.collection::<RawDocumentBuf>(&self.place.name);
        match collection
            .find_one(doc! {})
            .await
            .map_err(|e| error::driver(format!("looking into {}", self.place.shown()), e))?
        {
            None => Ok(()),
            Some(_) => {
                Err(Error::input(format!("documents were written to {} during the restore", self.place.shown()))
                    .hint("nothing was restored; pass --if-exists replace to put the restored collection in its place"))
            }
        }
    }

    /// Puts the collection in its place by renaming it.
    pub async fn rename(&self) -> Result<()> {
        if self.place.way != Way::Beside {
            return Ok(());
        }
        let (from, to) = (format!("{}.{}", self.place.database, self.scratch), self.place.shown());
        let is_over = match &self.place.existing {
            Some(existing) if existing.options.kind == CollectionKind::Collection => true,
            Some(existing) => {
                // No collection is renamed over a view or a time series.
                drop_collection(&self.server, &existing.database, &existing.name).await?;
                false
            }
            None => false,
        };
        let command =
            doc! { "renameCollection": &from, "to": to, "dropTarget": is_over, "writeConcern": { "w": "majority" } };
        let is_fine = |code, again| again && code == error::NAMESPACE_NOT_FOUND;
        retry::run(&self.server, "admin", command, || format!("renaming {from} to {to}"), is_fine).await.map(drop)
    }

    /// Puts the documents in their place by copying them.
    pub async fn copy(&self) -> Result<()> {
        if self.place.way != Way::Copied {
            return Ok(());
        }
        let (database, name) = (&self.place.database, &self.place.name);
        let to = self.namespace_of(name);
        if name.starts_with("system.") {
            // It cannot be dropped.
            let command = doc! { "delete": name, "deletes": [{ "q": {}, "limit": 0 }] };
            let doing = || format!("emptying {}", self.place.shown());
            retry::run(&self.server, database, command, doing, |_, _| false).await?;
        } else {
            drop_collection(&self.server, database, name).await?;
            self.create(name, &self.options()).await?;
        }
        self.build_indexes(name, false).await?;
        let from = self.namespace();
        let failed = |e| error::driver(format!("copying {} from {}", to.shown, from.collection), e);
        let collection = self.server.client().await?.database(database).collection::<RawDocumentBuf>(&from.collection);
        let mut cursor = collection.find(doc! {}).await.map_err(failed)?;
        let mut batch = BatchBuilder::new(self.place.planned.info.id.clone(), Kind::Document, Encoding::Bson);
        while cursor.advance().await.map_err(failed)? {
            batch.push(b"", cursor.current().as_bytes());
            if batch.bytes() >= COPIED {
                put_all(&to, batch.take()).await?;
            }
        }
        put_all(&to, batch.take()).await?;
        drop_collection(&self.server, database, &self.scratch).await
    }

    /// Sets what deletes documents when their time comes, as the last of all.
    pub async fn expire(&self) -> Result<()> {
        if matches!(self.place.way, Way::View | Way::Users) {
            return Ok(());
        }
        let hint = "all else is restored: create the index or set expireAfterSeconds by hand";
        self.build_indexes(&self.place.name, true).await.map_err(|e| e.hint(hint))?;
        let options = self.options();
        match options.options.get("expireAfterSeconds") {
            Some(seconds) if self.place.way != Way::Into => {
                let command = doc! { "collMod": &self.place.name, "expireAfterSeconds": seconds.clone() };
                let doing = || format!("setting the expiry of {}", self.place.shown());
                let done = retry::run(&self.server, &self.place.database, command, doing, |_, _| false).await;
                done.map(drop).map_err(|e| e.hint(hint))
            }
            _ => Ok(()),
        }
    }

    /// Removes the sign that it is not complete.
    pub async fn unmark(&self) -> Result<()> {
        match self.place.way {
            Way::Marked => drop_collection(&self.server, &self.place.database, &self.scratch).await,
            _ => Ok(()),
        }
    }

    /// Waits until all that was written survives the loss of a server's memory.
    pub async fn settle(&self) -> Result<()> {
        // Changes nothing, and is acknowledged when all before it is on disk. Unlike a delete that
        // deletes nothing, the role `restore` may do it.
        let command = doc! { "collMod": &self.place.name, "writeConcern": { "w": "majority", "j": true } };
        let doing = || format!("making {} durable", self.place.database);
        retry::run(&self.server, &self.place.database, command, doing, |_, _| false).await.map(drop)
    }

    /// The scratch collection of users or roles.
    pub fn scratch(&self) -> &str {
        &self.scratch
    }

    /// Takes back what was written, unless the server cannot be reached.
    pub async fn remove(&self, is_reached: bool) -> Removed {
        let shown = self.place.shown();
        if self.place.way == Way::Into {
            return match self.written() {
                (0, _) => Removed::All,
                (documents, _) => Removed::Not(format!("{shown}: {documents} documents that were written into it")),
            };
        }
        if !self.is_there.load(Ordering::Relaxed) {
            return Removed::All;
        }
        let database = &self.place.database;
        // The sign that it is not complete goes last.
        for name in [self.writes_to(), &self.scratch] {
            let what = || format!("{database}.{name}: what was written of {shown}; the next restore of it removes it");
            if !is_reached {
                return Removed::Not(what());
            }
            let dropping = drop_collection(&self.server, database, name);
            match tokio::time::timeout(GIVING_UP, dropping).await {
                Ok(Ok(())) => {}
                Err(_) => return Removed::Unreachable(what()),
                Ok(Err(e)) if e.kind() == ErrorKind::Retry => return Removed::Unreachable(what()),
                Ok(Err(e)) => return Removed::Not(format!("{} ({})", what(), e.message())),
            }
        }
        Removed::All
    }
}

/// What became of what was written.
pub(crate) enum Removed {
    /// Nothing is there any more.
    All,
    /// This stays.
    Not(String),
    /// This stays, and the server cannot be reached.
    Unreachable(String),
}

async fn put_all(to: &Namespace, mut batch: Batch) -> Result<()> {
    for piece in cut(&mut batch, &to.shown)? {
        to.put(&batch, &piece, true).await?;
    }
    Ok(())
}

/// A number that stands for a batch.
pub(crate) fn fingerprint(batch: &Batch) -> u64 {
    let mut hasher = DefaultHasher::new();
    for i in 0..batch.len() {
        batch.body_of(i).hash(&mut hasher);
    }
    hasher.finish()
}

/// The documents of pieces, for counting.
pub(crate) fn sizes(pieces: &[Piece]) -> (u64, u64) {
    (pieces.iter().map(|p| p.docs.len() as u64).sum(), pieces.iter().map(|p| p.bytes as u64).sum())
}
