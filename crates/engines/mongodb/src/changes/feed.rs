//! The feed of changes: reads the oplog from a position on, and goes on after whatever interrupts it.

use super::ddl::{self, Meaning};
use super::entry::{Entry, Uuid, field};
use super::gather::{Does, Gather};
use super::known::{Known, Scope};
use super::oplog::{self, Standing};
use super::position::Mark;
use super::transactions;
use crate::catalog;
use crate::connect::{Server, engine_time};
use crate::error;
use crate::raw;
use crate::reply::{self, Answer};
use crate::retry::Patience;
use bson::Timestamp;
use futures::StreamExt;
use model::{ChangeItem, ChangeStream, Error, ErrorKind, Following, Gap, Result, Until};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::Sender;

/// Items that may wait to be taken.
const QUEUE: usize = 4;
/// Bytes after which there is a commit, if the server's answer is longer than that.
const COMMIT: usize = 8 << 20;
/// How often there is a commit at least.
const HEARTBEAT: Duration = Duration::from_millis(900);
/// Entries below which an answer is a short one: then a moment is waited for more, as each answer
/// costs the server as much as many entries.
const SHORT: usize = 100;
const MOMENT: Duration = Duration::from_millis(20);
/// How long a member may take until it has the entry that was read last.
const CATCH_UP: Duration = Duration::from_secs(10);
const CATCH_UP_PAUSE: Duration = Duration::from_millis(200);

/// Why the reading of a cursor ended.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Everything that was asked for has been given.
    Done,
    /// Nobody listens any more.
    Unwanted,
    /// History was lost, and why.
    Lost(String),
    /// Something that another try does not change.
    Failed(Error),
    /// The cursor cannot go on.
    Broken(mongodb::error::Error),
    /// The server closed the cursor.
    Closed,
}

/// What a step of the reading gives, or why there is no other one.
pub(crate) type Step<T> = Result<T, Stop>;

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Failed(error)
    }
}

/// Whether a position can be gone on from: nothing if it can, or why not.
pub(crate) async fn prove(server: &Server, position: &model::Position) -> Result<Option<String>> {
    let Some(mark) = Mark::parse(position) else { return Ok(Some(unreadable())) };
    let (mut patience, began) = (Patience::new(), Instant::now());
    loop {
        match oplog::standing(server, &mark).await {
            Ok(Standing::Here) => return Ok(None),
            Ok(Standing::Lost(why)) => return Ok(Some(why)),
            Ok(Standing::Ahead) if began.elapsed() < CATCH_UP => tokio::time::sleep(CATCH_UP_PAUSE).await,
            Ok(Standing::Ahead) => return behind(server, &mark).await.map(Some),
            Err(e) if error::is_passing(&e) && patience.again().await => {}
            Err(e) => return Err(error::driver(format!("reading the oplog of {}", server.host()), e)),
        }
    }
}

fn unreadable() -> String {
    "the position is of another version of Rewound or of another kind of database".into()
}

/// Why a place is lost that is after everything that the server has; an error where another member may
/// have it.
async fn behind(server: &Server, mark: &Mark) -> Result<String> {
    // One that has just started, and is no primary yet, may not show everything that it has.
    if server.is_one_member().await? && server.is_primary().await? {
        return Ok(oplog::other_history(server, mark));
    }
    let what =
        format!("the member of {} that is read from is behind: it has nothing of {}", server.host(), mark.time());
    Err(Error::new(ErrorKind::Retry, what).hint("read from the primary, or try again when the member has caught up"))
}

/// Follows the oplog from a position on.
pub(crate) async fn follow(
    server: Arc<Server>,
    database: Option<String>,
    from: &Following,
    until: Until,
) -> Result<ChangeStream> {
    let Some(mark) = Mark::parse(&from.position) else {
        let gap = Gap { from: from.time, to: None, why: unreadable() };
        return Ok(futures::stream::once(async { Ok(ChangeItem::Gap(gap)) }).boxed());
    };
    let end = match until {
        Until::Stopped => None,
        Until::Now => Some(newest(&server).await?),
    };
    let scope = Scope { database, selection: from.selection.clone() };
    let known = Known::new(scope, &from.collections)?;
    let (out, items) = tokio::sync::mpsc::channel(QUEUE);
    let feed = Feed {
        server,
        out,
        known,
        gather: Gather::default(),
        mark,
        at: mark,
        end,
        given: 0,
        committed: None,
        unproven: Instant::now(),
        listings: HashMap::new(),
        ignored: HashSet::new(),
    };
    tokio::spawn(feed.run());
    Ok(futures::stream::unfold(items, |mut items| async { items.recv().await.map(|item| (item, items)) }).boxed())
}

/// The time of the newest entry that a majority has.
async fn newest(server: &Server) -> Result<Timestamp> {
    let mut patience = Patience::new();
    loop {
        match oplog::newest(server).await {
            Ok(Some(ts)) => return Ok(ts),
            Ok(None) => {
                return Err(Error::unsupported(format!(
                    "{} is no member of a replica set: it has no oplog",
                    server.host()
                ))
                .hint("back up without following changes"));
            }
            Err(e) if error::is_passing(&e) && patience.again().await => {}
            Err(e) => return Err(error::driver(format!("asking {} for its newest entry", server.host()), e)),
        }
    }
}

struct Feed {
    server: Arc<Server>,
    out: Sender<Result<ChangeItem>>,
    known: Known,
    gather: Gather,
    /// Everything up to here has been given and committed.
    mark: Mark,
    /// The last entry that was read.
    at: Mark,
    /// The entry to stop after.
    end: Option<Timestamp>,
    /// Bytes given since the last commit.
    given: usize,
    /// When the last commit was.
    committed: Option<Instant>,
    /// Since when it is not known whether `mark` is still in the oplog.
    unproven: Instant,
    /// The collections that there were in a database when it was first asked for.
    listings: HashMap<String, HashSet<Uuid>>,
    /// Collections that are not followed.
    ignored: HashSet<Uuid>,
}

impl Feed {
    /// Reads until the end, or until nobody listens.
    async fn run(mut self) {
        let out = self.out.clone();
        tokio::select! {
            () = out.closed() => {}
            () = self.follow() => {}
        }
    }

    async fn follow(&mut self) {
        let mut patience = Patience::new();
        loop {
            let before = self.mark;
            self.unproven = Instant::now();
            let stop = self.read().await;
            if self.mark != before {
                patience = Patience::new();
            }
            let last = match stop {
                Stop::Done | Stop::Unwanted => return,
                Stop::Lost(why) => Ok(ChangeItem::Gap(Gap { from: self.mark.time(), to: None, why })),
                Stop::Failed(e) => Err(e),
                Stop::Closed if patience.again().await => continue,
                Stop::Closed => Err(Error::new(ErrorKind::Retry, "the server closes the cursor on its oplog")),
                Stop::Broken(e) => {
                    tracing::debug!("following {} after: {e}", self.server.host());
                    match is_passing(&e) && patience.again().await {
                        true => continue,
                        false => Err(error::driver(format!("reading the oplog of {}", self.server.host()), e)),
                    }
                }
            };
            let _ = self.out.send(last).await;
            return;
        }
    }

    /// Reads one cursor until it ends.
    async fn read(&mut self) -> Stop {
        // What an interrupted cursor gave is all committed: nothing is given twice.
        let mut cursor = match oplog::tail(&self.server, self.mark.ts).await {
            Ok(cursor) => cursor,
            Err(e) => return Stop::Broken(e),
        };
        let mut is_proven = false;
        while let Some(reply) = cursor.next().await {
            let answer = match reply.map(reply::answer) {
                Ok(Ok(answer)) => answer,
                Ok(Err(e)) => return Stop::Failed(e),
                Err(e) => return Stop::Broken(e),
            };
            let (length, is_last) = (answer.docs.len(), answer.is_last);
            if let Err(stop) = self.answer(answer, &mut is_proven).await {
                return stop;
            }
            if !is_proven && self.unproven.elapsed() > CATCH_UP {
                return behind(&self.server, &self.mark).await.map_or_else(Stop::Failed, Stop::Lost);
            }
            if is_last {
                break;
            }
            if length < SHORT {
                tokio::time::sleep(MOMENT).await;
            }
        }
        Stop::Closed
    }

    /// Takes what one answer holds. The first entry of a cursor is the last one that is known: that it
    /// is there proves that nothing between is missing.
    async fn answer(&mut self, answer: Answer, is_proven: &mut bool) -> Step<()> {
        for doc in &answer.docs {
            let entry = Entry::parse(&answer.body[doc.start as usize..doc.end as usize])?;
            let here = Mark::of(&entry);
            if !*is_proven {
                match oplog::judge(&self.server, &self.mark, &here).await.map_err(Stop::Broken)? {
                    Standing::Lost(why) => return Err(Stop::Lost(why)),
                    _ => *is_proven = true,
                }
                self.at = here;
                // At the start this tells the time of the position.
                self.commit().await?;
                continue;
            }
            if self.is_past(entry.ts) {
                break;
            }
            self.take(&entry).await?;
            self.at = here;
            if self.given >= COMMIT {
                self.commit().await?;
            }
        }
        if !*is_proven {
            return Ok(());
        }
        self.commit().await?;
        match self.end {
            Some(end) if (self.at.ts.time, self.at.ts.increment) >= (end.time, end.increment) => Err(Stop::Done),
            _ => Ok(()),
        }
    }

    fn is_past(&self, ts: Timestamp) -> bool {
        self.end.is_some_and(|end| (ts.time, ts.increment) > (end.time, end.increment))
    }

    async fn take(&mut self, entry: &Entry<'_>) -> Step<()> {
        match (entry.op, entry.command().map(|c| c.name)) {
            ("n", _) => Ok(()),
            ("i" | "u" | "d", _) => self.write(entry, entry.ts, false).await,
            ("c", Some(b"applyOps" | b"commitTransaction")) => self.transaction(entry).await,
            ("c", Some(b"abortTransaction")) => Ok(()),
            ("c", _) => self.command(entry, entry.ts).await,
            _ => Err(entry.unsupported(entry.ts, "its kind is not known to this version of Rewound").into()),
        }
    }

    /// A write to one document.
    async fn write(&mut self, entry: &Entry<'_>, ts: Timestamp, is_in_transaction: bool) -> Step<()> {
        let followed = entry.ui.and_then(|uuid| self.known.get(&uuid));
        let Some(followed) = followed else { return self.write_elsewhere(entry, ts).await };
        let (does, of_key, body): (_, _, &[u8]) = match entry.op {
            "i" => (Does::Put, Some(entry.o), entry.o),
            "d" => (Does::Delete, Some(entry.o), &[]),
            _ if entry.command().is_some_and(|c| c.name.starts_with(b"$")) => (Does::Patch, entry.o2, entry.o),
            _ => (Does::Put, entry.o2, entry.o),
        };
        let key = of_key.and_then(|document| raw::id_element(document).map(|id| &document[id.start..id.end]));
        let key = key.ok_or_else(|| entry.unsupported(ts, "it does not say which document"))?;
        let (number, id) = (followed.number, followed.id.clone());
        if followed.is_part && !self.known.scope.selection.takes_key(&followed.listed.namespace(), key) {
            return Ok(());
        }
        if is_in_transaction && self.gather.is_second(number, does, key) {
            self.give().await?;
            self.gather.is_second(number, does, key);
        }
        self.gather.push(number, &id, does, key, body, engine_time(ts));
        if self.gather.is_full() {
            self.give().await?;
        }
        Ok(())
    }

    /// A write to a collection that is not followed, or to the list of views.
    async fn write_elsewhere(&mut self, entry: &Entry<'_>, ts: Timestamp) -> Step<()> {
        let (database, name) = entry.ns.split_once('.').unwrap_or((entry.ns, ""));
        if name == "system.views" && self.known.scope.has_database(database) {
            let meaning = ddl::view(&mut self.known, entry, ts)?;
            return self.tell(meaning, entry, ts).await;
        }
        match entry.ui {
            Some(uuid) if self.ignored.contains(&uuid) => Ok(()),
            _ if !self.known.scope.takes(database, name, false) => {
                self.ignored.extend(entry.ui);
                Ok(())
            }
            Some(uuid) => self.stranger(uuid, database, name).await,
            None => Err(entry.unsupported(ts, "it does not say which collection").into()),
        }
    }

    /// A collection that should be followed by its name, but is not known. One that was dropped while
    /// the scan began is nothing to worry about; one that is there was never read.
    async fn stranger(&mut self, uuid: Uuid, database: &str, name: &str) -> Step<()> {
        if !self.listings.contains_key(database) {
            let mut patience = Patience::new();
            let listed = loop {
                match catalog::identities(&self.server, database).await {
                    Err(e) if e.kind() == ErrorKind::Retry && patience.again().await => {}
                    listed => break listed?,
                }
            };
            self.listings.insert(database.to_owned(), listed.iter().map(|uuid| uuid.bytes()).collect());
        }
        if self.listings.get(database).is_some_and(|there| there.contains(&uuid)) {
            return Err(Stop::Lost(format!("{database}.{name} was changed, and is not part of what was read before")));
        }
        self.ignored.insert(uuid);
        Ok(())
    }

    /// A transaction that is complete with this entry, or other operations that were done as one.
    async fn transaction(&mut self, entry: &Entry<'_>) -> Step<()> {
        if transactions::is_open(entry) {
            return Ok(());
        }
        let is_commit = entry.command().is_some_and(|c| c.name == b"commitTransaction");
        let earlier = transactions::before(&self.server, entry).await?;
        if is_commit && earlier.is_empty() {
            return Err(entry.unsupported(entry.ts, "it does not say what it commits").into());
        }
        self.gather.another_time();
        let mut count = 0;
        for ts in earlier {
            let answer = transactions::entry_at(&self.server, ts, None).await?;
            count += self.operations(&Entry::parse(oplog::one(&answer))?, entry.ts).await?;
        }
        if !is_commit {
            count += self.operations(entry, entry.ts).await?;
        }
        match field(entry.o, "count").and_then(|f| f.integer()) {
            Some(said) if !is_commit && said != count as i64 => {
                Err(entry.unsupported(entry.ts, &format!("of its {said} operations {count} are there")).into())
            }
            _ => Ok(()),
        }
    }

    /// The operations of one entry of a transaction that ends at `ts`; gives how many they are.
    async fn operations(&mut self, entry: &Entry<'_>, ts: Timestamp) -> Step<usize> {
        // What somebody asked the server to apply may change documents that are not there: it makes them.
        let makes_documents = field(entry.o, "$db").is_some();
        let operations = transactions::operations(entry, ts)?;
        for bytes in &operations {
            let operation = Entry::parse(bytes)?;
            match operation.op {
                "n" => {}
                "c" => self.command(&operation, ts).await?,
                "u" if makes_documents
                    && operation.command().is_some_and(|c| c.name.starts_with(b"$"))
                    && operation.ui.is_some_and(|uuid| self.known.get(&uuid).is_some()) =>
                {
                    return Err(operation.unsupported(ts, "it may have made the document that it changes").into());
                }
                "i" | "u" | "d" => self.write(&operation, ts, true).await?,
                _ => return Err(operation.unsupported(ts, "its kind is not known to this version of Rewound").into()),
            }
        }
        Ok(operations.len())
    }

    async fn command(&mut self, entry: &Entry<'_>, ts: Timestamp) -> Step<()> {
        let meaning = ddl::apply(&mut self.known, entry, ts)?;
        self.tell(meaning, entry, ts).await
    }

    /// Gives on what a command means, after all changes before it.
    async fn tell(&mut self, meaning: Meaning, entry: &Entry<'_>, ts: Timestamp) -> Step<()> {
        match meaning {
            Meaning::Told(told) if told.is_empty() => Ok(()),
            Meaning::Told(told) => {
                self.give().await?;
                for (collection, info) in told {
                    self.send(ChangeItem::Catalog { info, collection, time: engine_time(ts) }).await?;
                }
                Ok(())
            }
            Meaning::Stranger { uuid, .. } if self.ignored.contains(&uuid) => Ok(()),
            Meaning::Stranger { uuid, name } => self.stranger(uuid, entry.database(), &name).await,
            Meaning::Joins { name } => Err(Stop::Lost(format!(
                "{name} is another collection now: one that was not part of the backup was renamed to it"
            ))),
        }
    }

    /// Gives on what has been gathered.
    async fn give(&mut self) -> Step<()> {
        let (batches, bytes) = self.gather.take();
        self.given += bytes;
        for batch in batches {
            self.send(ChangeItem::Batch(batch)).await?;
        }
        Ok(())
    }

    /// Completes everything up to the last entry that was read.
    async fn commit(&mut self) -> Step<()> {
        self.give().await?;
        let is_due = self.committed.is_none_or(|last| last.elapsed() >= HEARTBEAT);
        if self.at == self.mark && !is_due {
            return Ok(());
        }
        self.mark = self.at;
        self.given = 0;
        self.committed = Some(Instant::now());
        self.send(ChangeItem::Commit { position: self.mark.position(), time: self.mark.time() }).await
    }

    async fn send(&self, item: ChangeItem) -> Step<()> {
        self.out.send(Ok(item)).await.map_err(|_| Stop::Unwanted)
    }
}

/// Whether another cursor may get further: also where the oplog has overtaken the reader, as the new
/// one's first entry tells.
fn is_passing(e: &mongodb::error::Error) -> bool {
    let lost = [
        error::CURSOR_NOT_FOUND,
        error::QUERY_PLAN_KILLED,
        error::CURSOR_KILLED,
        error::CAPPED_POSITION_LOST,
        error::INTERRUPTED,
    ];
    error::is_passing(e) || error::code(e).is_some_and(|code| lost.contains(&code))
}
