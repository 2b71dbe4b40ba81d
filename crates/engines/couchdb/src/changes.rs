//! Following the databases of a server by their sequences.
//!
//! Each round asks databases where they stand, and reads what has changed of those that have moved: those of
//! which the server says that they have, and now and then all.
//! The feed tells what a document is now, not what happened to it.

use crate::error::unheard;
use crate::extras::{self, Extra};
use crate::fetch;
use crate::inline;
use crate::position::{Places, Stand, number};
use crate::read::{Attached, Read, Reader};
use crate::rows::{self, Row};
use crate::server::{self, ASKING, Database};
use crate::source::CouchSource;
use crate::wake::{Next, Wake};
use futures::{StreamExt, TryStreamExt, stream};
use model::{
    AttachmentStore, Batch, BatchBuilder, ChangeBatch, ChangeItem, ChangeStream, CollectionId, Encoding, EngineTime,
    Following, Gap, Kind, Result, Until, limits,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc::Sender;

/// Items that may wait for whoever reads.
const WAITING: usize = 4;
/// Rows that are asked for at first, before it is known how much they come to.
const PAGE_FIRST: usize = 200;
/// Bytes that a page of rows should come to: whoever reads holds them until the next commit.
const PAGE_BYTES: usize = 4 << 20;
/// How often settings and `_local` documents are looked at while following for ever, at most: no sequence
/// tells of their changes.
const EXTRAS: Duration = Duration::from_secs(30);

pub(crate) async fn follow(
    source: CouchSource,
    from: Following,
    until: Until,
    store: Arc<dyn AttachmentStore>,
) -> Result<ChangeStream> {
    let places = Places::read(&from.position)?;
    let (out, items) = tokio::sync::mpsc::channel(WAITING);
    let mut follower =
        Follower { source, last: from.time, from, places, out: out.clone(), looked: BTreeMap::new(), store };
    tokio::spawn(async move {
        let result = tokio::select! {
            result = follower.run(until) => result,
            () = out.closed() => return,
        };
        if let Err(e) = result {
            // If nobody listens any more, nobody wants to know.
            let _ = out.send(Err(e)).await;
        }
    });
    Ok(stream::unfold(items, |mut items| async { items.recv().await.map(|item| (item, items)) }).boxed())
}

struct Follower {
    source: CouchSource,
    from: Following,
    places: Places,
    /// The time of the last change or commit.
    last: EngineTime,
    out: Sender<Result<ChangeItem>>,
    /// When the settings of each database were last looked at.
    looked: BTreeMap<String, Instant>,
    store: Arc<dyn AttachmentStore>,
}

/// How a round ended.
enum Round {
    Complete,
    Lost,
}

impl Follower {
    async fn run(&mut self, until: Until) -> Result<()> {
        let mut wake = Wake::new(self.source.server.clone());
        let mut next = Next::All;
        loop {
            let round = match &next {
                Next::All => self.round(&mut wake).await?,
                Next::Some(names) => self.some(names, &mut wake).await?,
                Next::Nothing => Round::Complete,
            };
            match round {
                Round::Lost => return Ok(()),
                Round::Complete => self.commit().await?,
            }
            if until == Until::Now {
                return Ok(());
            }
            wake.follow(self.places.databases.keys());
            next = wake.next().await;
        }
    }

    async fn send(&self, item: ChangeItem) -> Result<()> {
        self.out.send(Ok(item)).await.map_err(|_| unheard())
    }

    /// Says that all is told up to where the databases are known to stand.
    async fn commit(&mut self) -> Result<()> {
        let (position, time) = (self.places.position()?, self.tick());
        self.send(ChangeItem::Commit { position, time }).await
    }

    /// Our clock, never going back.
    fn tick(&mut self) -> EngineTime {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
        self.last = EngineTime::wall(now.max(self.last.millis + 1));
        self.last
    }

    /// Brings these databases up to where they stand at its beginning.
    async fn some(&mut self, names: &BTreeSet<String>, wake: &mut Wake) -> Result<Round> {
        let names: Vec<String> = names.iter().cloned().collect();
        let databases = self.source.server.databases(&names).await?;
        if databases.len() < names.len() {
            // One is gone.
            return self.round(wake).await;
        }
        for database in &databases {
            if let Some(gap) = self.database(database, false).await? {
                self.send(ChangeItem::Gap(gap)).await?;
                return Ok(Round::Lost);
            }
        }
        Ok(Round::Complete)
    }

    /// Brings everything up to where the databases stand at its beginning.
    async fn round(&mut self, wake: &mut Wake) -> Result<Round> {
        let databases = self.source.databases(&self.from.selection).await;
        let databases = match databases {
            Err(e) if e.kind() == model::ErrorKind::Missing => Vec::new(),
            other => other?,
        };
        wake.found(databases.iter().filter(|database| self.has_changed(database)).map(|database| &*database.name));
        let there: BTreeSet<&str> = databases.iter().map(|d| &*d.name).collect();
        let gone: Vec<String> =
            self.places.databases.keys().filter(|name| !there.contains(&***name)).cloned().collect();
        for name in gone {
            let Some(stand) = self.places.databases.remove(&name) else { continue };
            let time = self.tick();
            self.send(ChangeItem::Catalog { info: None, collection: CollectionId::new(&stand.id), time }).await?;
        }
        self.looked.retain(|name, _| there.contains(&**name));
        let due = due(&self.looked, databases.iter().map(|database| &*database.name));
        let (still, moved): (Vec<_>, Vec<_>) = databases.iter().partition(|database| self.stands_still(database));
        let still: Vec<_> = still.into_iter().filter(|database| due.contains(&database.name)).collect();
        self.look(&still).await?;
        for database in moved {
            if let Some(gap) = self.database(database, due.contains(&database.name)).await? {
                self.send(ChangeItem::Gap(gap)).await?;
                return Ok(Round::Lost);
            }
        }
        self.looked.extend(due.into_iter().map(|name| (name, Instant::now())));
        Ok(Round::Complete)
    }

    /// Brings one database up to date; why that is not possible, if so.
    async fn database(&mut self, database: &Database, looks: bool) -> Result<Option<Gap>> {
        let name = &database.name;
        let server = self.source.server.clone();
        let known = self.places.databases.get(name).cloned();
        let is_new = known.is_none();
        let mut stand = match known {
            Some(stand) => {
                let moved = stand.seq != database.info.seq() || stand.id != database.id().as_str();
                if (moved || looks)
                    && let Some(why) = stand.lost(&server, database).await?
                {
                    return Ok(Some(self.gap(why)));
                }
                stand
            }
            None => {
                let limit = server.revs_limit(name).await?;
                let info = database.collection(limit, self.from.selection.no_attachments);
                let time = self.tick();
                self.send(ChangeItem::Catalog { collection: info.id.clone(), info: Some(info), time }).await?;
                Stand { seq: "0".into(), purge: String::new(), ..Stand::now(&server, database).await? }
            }
        };
        let selection = Arc::new(self.from.selection.clone());
        let reader = self.source.reader(name, database.id(), self.store.clone(), selection);
        if has_purged(&stand, database) {
            if !is_new && let Some(gap) = self.purges(&reader, &stand, database).await? {
                return Ok(Some(gap));
            }
            stand.purge = database.info.purge_seq();
        }
        if stand.seq != database.info.seq() {
            let mut limit = PAGE_FIRST;
            loop {
                let page = rows::page(&server.client, name, &stand.seq, limit).await?;
                let (given, bytes) = self.documents(&reader, &page.rows, PAGE_BYTES).await?;
                limit = (PAGE_BYTES / (bytes / given.max(1)).max(1)).clamp(1, rows::PAGE);
                if given < page.rows.len() {
                    // Only the server knows where that is.
                    let short = rows::page(&server.client, name, &stand.seq, given).await?;
                    if short.rows[..] != page.rows[..given] {
                        // Some have changed once more, or come in another order from another part of the
                        // database: so few that they weigh less for sure.
                        limit = given.div_ceil(2);
                        continue;
                    }
                    stand.seq = short.last;
                    stand.saw(database, &page.rows[..given]);
                } else {
                    let same = stand.seq == page.last;
                    stand.seq = page.last;
                    stand.saw(database, &page.rows);
                    if same || !page.more {
                        break;
                    }
                }
                // Whoever reads need not hold all of it.
                self.places.databases.insert(name.clone(), stand.clone());
                self.commit().await?;
            }
        }
        // As a scan: of a whole database only.
        if (is_new || looks) && self.from.selection.takes_all_of(name) {
            let extras = extras::read(&server, name).await?;
            self.beside(&reader, &extras, &mut stand).await?;
        }
        self.places.databases.insert(name.clone(), stand);
        Ok(None)
    }

    /// Whether nothing that a sequence tells of has happened to a database, and it is the same for sure.
    fn stands_still(&self, now: &Database) -> bool {
        now.instance.is_some()
            && self.places.databases.get(&now.name).is_some_and(|then| {
                then.seq == now.info.seq() && !has_purged(then, now) && then.id == now.id().as_str()
            })
    }

    /// Whether a database that is known has changes that were not read. Of a sequence only the number counts:
    /// the rest tells which of a cluster's nodes have answered.
    fn has_changed(&self, now: &Database) -> bool {
        let then = self.places.databases.get(&now.name).filter(|then| then.id == now.id().as_str());
        then.is_some_and(|then| number(&then.seq) < number(&now.info.seq()))
    }

    /// Looks at what has no sequence of databases that stand still: of several at once, as there may be many.
    async fn look(&mut self, still: &[&Database]) -> Result<()> {
        let server = self.source.server.clone();
        // What is beside documents belongs to a whole database only.
        let whole = |database: &&&Database| self.from.selection.takes_all_of(&database.name);
        let still: Vec<&Database> = still.iter().filter(whole).copied().collect();
        let asking: Vec<_> = still.iter().map(|database| extras::read(&server, &database.name)).collect();
        let mut asking = stream::iter(asking).buffered(ASKING);
        let selection = Arc::new(self.from.selection.clone());
        for database in still {
            let Some(extras) = asking.try_next().await? else { break };
            let Some(mut stand) = self.places.databases.get(&database.name).cloned() else { continue };
            let reader = self.source.reader(&database.name, database.id(), self.store.clone(), selection.clone());
            self.beside(&reader, &extras, &mut stand).await?;
            self.places.databases.insert(database.name.clone(), stand);
        }
        Ok(())
    }

    /// Tells what is beside documents, if it is not what it was.
    async fn beside(&mut self, reader: &Reader, extras: &[Extra], stand: &mut Stand) -> Result<()> {
        let now = extras::fingerprint(extras);
        if now != stand.extras {
            for batch in reader.extras(extras) {
                let times = vec![self.tick(); batch.len()];
                self.send(ChangeItem::Batch(ChangeBatch { batch, times })).await?;
            }
            stand.extras = now;
        }
        Ok(())
    }

    /// What was purged leaves no row: each of those documents is looked at.
    async fn purges(&mut self, reader: &Reader, stand: &Stand, database: &Database) -> Result<Option<Gap>> {
        let (then, now) = (number(&stand.purge), number(&database.info.purge_seq()));
        let count = now.zip(then).and_then(|(now, then)| now.checked_sub(then));
        let purged = server::purged(&self.source.server.client, &database.name).await?;
        let (Some(count), Some(ids)) = (count, purged) else {
            let why = format!("documents of {} were purged, and the server does not tell which", database.name);
            return Ok(Some(self.gap(why)));
        };
        if ids.len() as u64 >= count {
            let rows = ids.into_iter().collect::<BTreeSet<_>>().into_iter().map(|id| Row { id, revs: Vec::new() });
            self.documents(reader, &rows.collect::<Vec<_>>(), usize::MAX).await?;
            return Ok(None);
        }
        let name = &database.name;
        let why = format!("{count} documents of {name} were purged, and the server no longer knows all of them");
        Ok(Some(self.gap(why)))
    }

    fn gap(&self, why: String) -> Gap {
        Gap { from: self.from.time, to: None, why }
    }

    /// Tells what these documents are now, as many as have about so many bytes; gives how many, and what they
    /// came to.
    async fn documents(&mut self, reader: &Reader, rows: &[Row], most: usize) -> Result<(usize, usize)> {
        let (mut bytes, mut given) = (0, 0);
        while given < rows.len() && bytes < most {
            let some = &rows[given..];
            let some = &some[..some.len().min(reader.pace.count())];
            let fetched = fetch::fetch(&reader.server.client, &reader.database, some, &reader.pace).await?;
            let time = self.tick();
            let mut gathered = Gathered::new(&reader.collection);
            for (i, row) in some.iter().enumerate() {
                if bytes >= most {
                    break;
                }
                given += 1;
                if !reader.selection.takes_key(&reader.database, row.id.as_bytes()) {
                    continue;
                }
                let read = reader.read_one(&fetched, i, row).await?;
                gathered.add(row, read);
                if gathered.bytes() >= limits::BATCH {
                    bytes += gathered.bytes();
                    self.give(&mut gathered, time).await?;
                }
            }
            bytes += gathered.bytes();
            self.give(&mut gathered, time).await?;
        }
        Ok((given, bytes))
    }

    async fn give(&self, gathered: &mut Gathered, time: EngineTime) -> Result<()> {
        for batch in gathered.take() {
            let times = vec![time; batch.len()];
            self.send(ChangeItem::Batch(ChangeBatch { batch, times })).await?;
        }
        Ok(())
    }
}

/// Whether purges are not known yet. Copies in a cluster count them each for themselves, and some lag behind
/// others: the one that is furthest tells.
fn has_purged(then: &Stand, now: &Database) -> bool {
    let purge = now.info.purge_seq();
    match now.info.copies() {
        0 | 1 => then.purge != purge,
        _ => number(&then.purge) < number(&purge),
    }
}

/// The databases whose settings are to be looked at: at first all, later on a few at a time, so that many do
/// not keep changes waiting.
fn due<'a>(looked: &BTreeMap<String, Instant>, names: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    if looked.is_empty() {
        return names.map(str::to_owned).collect();
    }
    let mut due: Vec<_> = names.map(|name| (looked.get(name), name)).collect();
    due.retain(|(looked, _)| looked.is_none_or(|at| at.elapsed() >= EXTRAS));
    due.sort_unstable();
    due.into_iter().take(ASKING).map(|(_, name)| name.to_owned()).collect()
}

/// Changes by what they are.
struct Gathered([BatchBuilder; 6]);

impl Gathered {
    fn new(collection: &CollectionId) -> Gathered {
        let kinds = [
            Kind::Document,
            Kind::Tombstone,
            inline::kind(),
            Kind::tombstone_of(inline::kind().space()),
            Kind::Attachment,
            Kind::tombstone_of(Kind::Attachment.space()),
        ];
        Gathered(kinds.map(|kind| BatchBuilder::new(collection.clone(), kind, Encoding::Json)))
    }

    fn add(&mut self, row: &Row, read: Read<'_>) {
        let key = row.id.as_bytes();
        let [documents, gone, inlined, not_inlined, stored, not_stored] = &mut self.0;
        match read.body {
            Some(body) => documents.push(key, &body),
            None => gone.push(key, b""),
        }
        // They are in one place, and what was in the other no longer counts.
        match read.attached {
            Attached::Inline(entry) => {
                inlined.push(key, &entry);
                not_stored.push(key, b"");
            }
            Attached::Stored(about, content) => {
                not_inlined.push(key, b"");
                stored.push_attachment(key, &about, content);
            }
            Attached::None => {
                not_inlined.push(key, b"");
                not_stored.push(key, b"");
            }
        }
    }

    fn bytes(&self) -> usize {
        self.0.iter().map(BatchBuilder::bytes).sum()
    }

    fn take(&mut self) -> Vec<Batch> {
        self.0.iter_mut().filter(|b| !b.is_empty()).map(BatchBuilder::take).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn settings_are_looked_at_by_turns() {
        let names: Vec<String> = (0..100).map(|i| format!("d{i:02}")).collect();
        let all = |looked: &BTreeMap<String, Instant>| due(looked, names.iter().map(|name| &**name));
        assert_eq!(all(&BTreeMap::new()).len(), 100, "all at first");
        let long_ago = Instant::now().checked_sub(EXTRAS).unwrap();
        let mut looked: BTreeMap<_, _> = names[..99].iter().map(|name| (name.clone(), long_ago)).collect();
        let mut seen = BTreeSet::new();
        for round in 0..100_usize.div_ceil(ASKING) {
            let some = all(&looked);
            assert!(some.len() <= ASKING && (round > 0 || some.contains("d99")), "what is new comes first");
            looked.extend(some.iter().map(|name| (name.clone(), Instant::now())));
            seen.extend(some);
        }
        assert_eq!(seen.len(), 100);
        assert_eq!(all(&looked).len(), 0, "and then none for a while");
    }
}
