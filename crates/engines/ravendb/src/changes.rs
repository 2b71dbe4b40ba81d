//! What has changed since an etag, by exports from there on: each is one transaction, and so one state.

use crate::catalog;
use crate::dump::Reader;
use crate::gather::{DATABASE, Gather, Route, collection_id};
use crate::increment::{Increment, Nothing, Owned, Taker};
use crate::native;
use crate::server::{Server, Stats};
use crate::told::Since;
use crate::wake::Wake;
use async_trait::async_trait;
use futures::StreamExt;
use model::{
    AttachmentStore, Batch, ChangeBatch, ChangeItem, ChangeStream, Clock, EngineTime, Error, ErrorKind, Following, Gap,
    HashingStore, Position, Result, Selection, SystemClock, Until,
};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

/// How long changes gather after those that were read, so that each write is not read alone.
const REST: Duration = Duration::from_millis(50);
/// How often a database that is followed is asked for its last etag, where the server does not wake us.
const ASK: Duration = Duration::from_millis(500);
/// How often what belongs to the database itself is compared: its changes move no etag.
const ASK_DATABASE: Duration = Duration::from_secs(30);

/// A place in the history of a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// The database's own identity: etags mean something to it alone.
    database: String,
    /// The last etag that was read.
    etag: u64,
    /// The task that held tombstones at that time.
    hold: u64,
    /// When it was read: a later place is another one, also where nothing has changed.
    #[serde(default)]
    read: u64,
    /// What belonged to the database itself, hashed; none if it was not looked at.
    #[serde(default)]
    own: Option<String>,
    /// How many things documents own; none if that is not known of this very etag.
    #[serde(default)]
    owned: Option<Owned>,
    /// What the changes go on top of, if that is a backup that the server made itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base: Option<Base>,
}

/// A backup that the server made itself, as what changes go on top of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Base {
    /// Whether what belongs to the database itself was told since: the server wants it with any changes.
    own: bool,
}

/// What can be read from a place on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All changes since.
    GoesOn,
    /// No deletions, or not everything: all must be read and compared.
    Compare(String),
    /// The place is of another history.
    Lost(String),
}

impl Place {
    /// Where a database stands.
    pub fn at(stats: &Stats, hold: u64) -> Place {
        Place {
            database: stats.database_id.clone(),
            etag: stats.etag(),
            hold,
            read: 0,
            own: None,
            owned: Some(Owned::of(stats)),
            base: None,
        }
    }

    /// The same, before the server itself makes a backup, of a database to which this belongs (hashed).
    pub fn before_native(stats: &Stats, hold: u64, own: String) -> Place {
        Place { own: Some(own), base: Some(Base { own: false }), ..Place::at(stats, hold) }
    }

    /// Whether the changes go on top of a backup that the server made itself.
    pub fn is_on_native(&self) -> bool {
        self.base.is_some()
    }

    pub fn of(position: &Position) -> Result<Place> {
        serde_json::from_str(&position.0)
            .map_err(|e| Error::corrupt(format!("{} is no position of a RavenDB database", position.0)).caused_by(e))
    }

    pub fn position(&self) -> Result<Position> {
        serde_json::to_string(self).map(Position).map_err(|e| Error::bug("writing a position").caused_by(e))
    }

    /// The changes from here on.
    fn increment(&self, server: &Arc<Server>, from: &Following, store: Arc<dyn AttachmentStore>) -> Increment {
        Increment {
            server: server.clone(),
            since: Since { database: self.database.clone(), etag: self.etag },
            owned: self.owned,
            selection: from.selection.clone(),
            store,
            known: from.collections.iter().map(|c| c.name.clone()).collect(),
            marks: self.is_on_native(),
        }
    }

    /// Why changes from here on cannot be told, although deletions are; none if they can.
    pub async fn untold(&self, server: &Arc<Server>, stats: &Stats, selection: &Selection) -> Result<Option<String>> {
        if stats.etag() == self.etag {
            return Ok(None);
        }
        let (position, collections) = (self.position()?, Vec::new());
        let from = Following { position, time: EngineTime::ZERO, collections, selection: selection.clone() };
        let increment = self.increment(server, &from, Arc::new(HashingStore));
        match increment.read(&mut Nothing, true).await {
            Ok(_) => Ok(None),
            Err(e) if e.kind() == ErrorKind::HistoryLost => Ok(Some(e.message().to_owned())),
            Err(e) => Err(e),
        }
    }

    /// What can be read from here on, of a database that is now like this.
    pub fn judge(&self, stats: &Stats, hold: Option<u64>) -> Verdict {
        if self.database != stats.database_id {
            return Verdict::Lost("it is another database than before, with the same name".into());
        }
        if stats.etag() < self.etag {
            return Verdict::Lost("the database was put back to an earlier state".into());
        }
        if let Some(what) = obstacle(stats) {
            return Verdict::Compare(what.into());
        }
        if hold != Some(self.hold) {
            return Verdict::Compare("nothing has held the tombstones since, so that deletions may be untold".into());
        }
        Verdict::GoesOn
    }
}

/// What the feed of changes cannot tell, if the database has it.
pub(crate) fn obstacle(stats: &Stats) -> Option<&'static str> {
    (stats.conflicts() > 0).then_some("the database holds conflicts")
}

/// Follows a database from a place on.
pub(crate) async fn follow(
    server: Arc<Server>,
    from: &Following,
    until: Until,
    store: Arc<dyn AttachmentStore>,
) -> Result<ChangeStream> {
    let place = Place::of(&from.position)?;
    let known = from.collections.iter().map(|c| c.id.clone()).collect();
    let (out, items) = tokio::sync::mpsc::channel(2);
    let mut feed =
        Feed { server, from: from.clone(), place, known, names: HashMap::new(), time: from.time, store, out };
    tokio::spawn(async move {
        if let Err(error) = feed.run(until).await {
            let _ = feed.out.send(Err(error)).await;
        }
    });
    Ok(futures::stream::unfold(items, |mut items| async { items.recv().await.map(|item| (item, items)) }).boxed())
}

struct Feed {
    server: Arc<Server>,
    from: Following,
    place: Place,
    known: HashSet<model::CollectionId>,
    /// Names of collections, as the server last said.
    names: HashMap<model::CollectionId, String>,
    time: EngineTime,
    store: Arc<dyn AttachmentStore>,
    out: Sender<Result<ChangeItem>>,
}

#[async_trait]
impl Taker for Feed {
    fn begins(&mut self) {
        self.tick();
    }

    async fn take(&mut self, batch: Batch) -> Result<()> {
        self.give_batch(batch).await
    }
}

impl Feed {
    async fn run(&mut self, until: Until) -> Result<()> {
        let mut compared: Option<Instant> = None;
        let mut wake = None;
        loop {
            let stats = self.server.must_stats().await?;
            let hold = crate::hold::task(&self.server).await?;
            match self.place.judge(&stats, hold) {
                Verdict::GoesOn => {}
                Verdict::Compare(why) => return self.needs_scan(why).await,
                Verdict::Lost(why) => return Err(Error::new(ErrorKind::HistoryLost, why)),
            }
            let due = compared.is_none_or(|at| at.elapsed() >= ASK_DATABASE);
            let mut has_told = false;
            if stats.etag() > self.place.etag {
                has_told = true;
                match self.read().await {
                    Err(e) if e.kind() == ErrorKind::HistoryLost => {
                        return self.needs_scan(e.message().to_owned()).await;
                    }
                    read => read?,
                }
            } else {
                self.tick();
            }
            let is_owed = has_told && self.place.base.is_some_and(|base| !base.own);
            if (due || is_owed) && self.from.selection.takes(DATABASE) {
                has_told |= self.compare_own(is_owed).await?;
                compared = Some(Instant::now());
            }
            if has_told && self.place.is_on_native() {
                self.count().await?;
            }
            self.commit().await?;
            if until == Until::Now {
                return Ok(());
            }
            let wake = wake.get_or_insert_with(|| Wake::new(self.server.clone()));
            tokio::time::sleep(REST).await;
            wake.wait(ASK).await;
        }
    }

    /// Our clock, never standing still, as it orders what is read.
    fn tick(&mut self) {
        let now = SystemClock.now_millis();
        self.time = EngineTime::wall(now.max(self.time.order as i64 + 1));
    }

    async fn give(&self, item: ChangeItem) -> Result<()> {
        self.out.send(Ok(item)).await.map_err(|_| Error::new(ErrorKind::Interrupted, "nobody follows any more"))
    }

    /// Nothing is lost, but changes cannot tell it.
    async fn needs_scan(&self, why: String) -> Result<()> {
        self.give(ChangeItem::Gap(Gap { from: self.from.time, to: Some(self.from.time), why })).await
    }

    async fn commit(&mut self) -> Result<()> {
        self.place.read = self.time.order;
        self.give(ChangeItem::Commit { position: self.place.position()?, time: self.time }).await
    }

    /// Reads all changes of one transaction.
    async fn read(&mut self) -> Result<()> {
        let increment = self.place.increment(&self.server, &self.from, self.store.clone());
        let end = increment.read(self, false).await?;
        // Not what there is afterwards: what this very transaction showed.
        (self.place.etag, self.place.owned) = (end.etag, end.owned);
        Ok(())
    }

    async fn give_batch(&mut self, batch: Batch) -> Result<()> {
        let id = batch.collection.clone();
        if !self.known.contains(&id) {
            if batch.kind.is_tombstone() {
                // Nothing of it was ever read, or what the server made itself is told of by a mark.
                return Ok(());
            }
            if !self.names.contains_key(&id) {
                let all = self.server.collections().await?;
                self.names = all.into_keys().map(|name| (collection_id(&name), name)).collect();
            }
            let name = self.names.get(&id).cloned().unwrap_or_else(|| id.as_str().to_owned());
            if !self.from.selection.takes(&name) {
                return Ok(());
            }
            self.known.insert(id.clone());
            let (info, collection, time) = (catalog::info(&name), id, self.time);
            if self.place.is_on_native() {
                // What older scans of the vault have of it is not part of the server's backup.
                self.give(ChangeItem::Catalog { info: None, collection: collection.clone(), time }).await?;
                self.give(ChangeItem::Catalog { info: Some(info), collection, time }).await?;
                self.tick();
            } else {
                self.give(ChangeItem::Catalog { info: Some(info), collection, time }).await?;
            }
        }
        let times = vec![self.time; batch.len()];
        self.give(ChangeItem::Batch(ChangeBatch { batch, times })).await
    }

    /// The numbers of the database, by which a restore on top of the server's own backup is checked.
    async fn count(&mut self) -> Result<()> {
        let stats = self.server.must_stats().await?;
        let batch = native::counts(&stats, stats.etag() == self.place.etag)?;
        self.give_batch(batch).await
    }

    /// What belongs to the database itself comes as a whole, if it has changed or is owed; whether it came.
    async fn compare_own(&mut self, is_owed: bool) -> Result<bool> {
        let own = own(&self.server).await?;
        if self.place.own.as_ref() == Some(&own) && !is_owed {
            return Ok(false);
        }
        let build = self.server.build().await?;
        let types = catalog::of_database(&build);
        let mut reader = Reader::new(self.server.export(&build, types, None, None).await?);
        let mut gather = Gather::new(Route::Only(DATABASE.into()), self.from.selection.clone(), self.store.clone());
        let info = catalog::info(DATABASE);
        let collection = info.id.clone();
        let time = self.time;
        self.give(ChangeItem::Catalog { info: None, collection: collection.clone(), time }).await?;
        self.give(ChangeItem::Catalog { info: Some(info), collection, time }).await?;
        // What came after the drop of the same time must count: it is of the next moment.
        self.tick();
        while let Some(event) = reader.next().await? {
            gather.take(&mut reader, event).await?;
            for batch in gather.take_ready() {
                self.give_batch(batch).await?;
            }
        }
        for batch in gather.finish() {
            self.give_batch(batch).await?;
        }
        self.known.insert(collection_id(DATABASE));
        self.place.own = Some(own);
        self.place.base = self.place.base.map(|_| Base { own: true });
        Ok(true)
    }
}

/// What belongs to a database itself, hashed.
pub(crate) async fn own(server: &Server) -> Result<String> {
    let build = server.build().await?;
    hashed(Reader::new(server.export(&build, catalog::of_database(&build), None, None).await?)).await
}

/// The hash of all items of a dump.
async fn hashed(mut reader: Reader) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    while let Some(event) = reader.next().await? {
        let (section, body) = match &event {
            crate::dump::Event::Value { section, body } => (section.clone(), body.clone()),
            crate::dump::Event::Item(item) => (item.section.clone(), item.body.clone()),
            _ => continue,
        };
        hasher.update(section.as_bytes()).update(&[0]).update(&body).update(&[0]);
    }
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn stats(json: &str) -> Stats {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_place_is_gone_on_from_only_if_nothing_can_be_missed() {
        let now = stats(r#"{"DatabaseId":"d","LastDatabaseEtag":9}"#);
        let place = Place { database: "d".into(), etag: 7, hold: 3, read: 0, own: None, owned: None, base: None };
        assert_eq!(Place::of(&place.position().unwrap()).unwrap(), place);
        assert_eq!(place.judge(&now, Some(3)), Verdict::GoesOn);
        assert!(matches!(place.judge(&now, None), Verdict::Compare(_)));
        assert!(matches!(place.judge(&now, Some(4)), Verdict::Compare(_)));
        let other = stats(r#"{"DatabaseId":"e","LastDatabaseEtag":9}"#);
        assert!(matches!(place.judge(&other, Some(3)), Verdict::Lost(_)));
        let older = stats(r#"{"DatabaseId":"d","LastDatabaseEtag":6}"#);
        assert!(matches!(place.judge(&older, Some(3)), Verdict::Lost(_)));
        let with = stats(r#"{"DatabaseId":"d","LastDatabaseEtag":9,"CountOfConflicts":1}"#);
        assert!(matches!(place.judge(&with, Some(3)), Verdict::Compare(_)));
    }
}
