//! Reading the oplog: from a place on, single entries, and whether a place is still in it.
//!
//! Only what a majority of the members has is read, so that nothing is ever given that an election
//! could take back.

use super::entry::Entry;
use super::position::Mark;
use crate::connect::Server;
use crate::error;
use crate::reply::{self, Answer};
use bson::{Document, RawDocumentBuf, Timestamp, doc};
use futures::StreamExt;
use model::Result;
use mongodb::error::Error as DriverError;
use mongodb::options::RunCursorCommandOptions;
use mongodb::raw_batch_cursor::RawBatchCursor;
use std::time::Duration;

/// How long the server waits for something new before it answers that there is nothing.
const AWAIT: Duration = Duration::from_millis(450);

/// How often, and after which pauses, a member is asked where its oplog ends that shows nothing of it.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(300);

/// Where a place stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Its entry is in the oplog, so that everything after it is, too.
    Here,
    /// The member that answered has no entry as new as that.
    Ahead,
    /// It cannot be gone on from, and why.
    Lost(String),
}

/// A cursor on the entries from a time on, which waits for more at the end.
pub(crate) async fn tail(server: &Server, from: Timestamp) -> mongodb::error::Result<RawBatchCursor> {
    let find = doc! {
        "find": "oplog.rs",
        "filter": { "ts": { "$gte": from } },
        "tailable": true,
        "awaitData": true,
        "readConcern": { "level": "majority" },
    };
    let mut options = RunCursorCommandOptions::default();
    options.max_time = Some(AWAIT);
    open(server, &find, options).await
}

async fn open(
    server: &Server,
    find: &Document,
    mut options: RunCursorCommandOptions,
) -> mongodb::error::Result<RawBatchCursor> {
    let command = RawDocumentBuf::try_from(find)
        .map_err(|e| DriverError::custom(format!("a query of the oplog could not be written: {e}")))?;
    let client = server.client().await.map_err(DriverError::custom)?;
    options.selection_criteria = client.selection_criteria().cloned();
    client.database("local").run_raw_cursor_command(command).with_options(options).batch().await
}

/// The first entry that a query gives, as bytes in its answer; none if there is none.
pub(crate) async fn first(server: &Server, find: &Document) -> mongodb::error::Result<Option<Answer>> {
    let mut cursor = open(server, find, RunCursorCommandOptions::default()).await?;
    match cursor.next().await.transpose()? {
        Some(reply) => {
            let answer = reply::answer(reply).map_err(DriverError::custom)?;
            Ok(Some(answer).filter(|a| !a.docs.is_empty()))
        }
        None => Ok(None),
    }
}

fn query(filter: Document, order: i32) -> Document {
    doc! {
        "find": "oplog.rs",
        "filter": filter,
        "sort": { "$natural": order },
        "limit": 1,
        "singleBatch": true,
        "readConcern": { "level": "majority" },
    }
}

/// The entry with exactly this time, with only the fields named.
pub(crate) fn at(ts: Timestamp, projection: Option<Document>) -> Document {
    let mut find = query(doc! { "ts": ts }, 1);
    find.extend(projection.map(|p| doc! { "projection": p }).into_iter().flatten());
    find
}

/// The newest entry that a majority has: everything before now is up to it.
pub(crate) async fn newest(server: &Server) -> mongodb::error::Result<Option<Timestamp>> {
    let client = server.client().await.map_err(DriverError::custom)?;
    let hello = client.database("admin").run_command(doc! { "hello": 1 }).await?;
    let last = hello.get_document("lastWrite").and_then(|w| w.get_document("majorityOpTime"));
    Ok(last.ok().and_then(|t| t.get_timestamp("ts").ok()))
}

/// The place of the newest entry that a majority has; none where there is no oplog, or where the user
/// may not read it.
pub(crate) async fn place(server: &Server) -> Result<Option<Mark>> {
    let doing = || format!("reading the oplog of {}", server.host());
    for number in 0..TRIES {
        // A member that has just started shows nothing of its oplog for a moment.
        if number > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        let found = match newest(server).await {
            Ok(Some(ts)) => first(server, &query(doc! { "ts": { "$gte": ts } }, 1)).await,
            Ok(None) => continue,
            Err(e) => Err(e),
        };
        match found {
            Ok(Some(answer)) => return Ok(Some(Mark::of(&Entry::parse(one(&answer))?))),
            Ok(None) => {}
            Err(e) if error::code(&e) == Some(error::UNAUTHORIZED) => return Ok(None),
            Err(e) => return Err(error::driver(doing(), e)),
        }
    }
    Ok(None)
}

/// The first document of an answer that has one.
pub(crate) fn one(answer: &Answer) -> &[u8] {
    answer.docs.first().map_or(&[], |d| &answer.body[d.start as usize..d.end as usize])
}

/// Looks a place up.
pub(crate) async fn standing(server: &Server, mark: &Mark) -> mongodb::error::Result<Standing> {
    let found = first(server, &query(doc! { "ts": { "$gte": mark.ts } }, 1)).await?;
    match found {
        None => Ok(Standing::Ahead),
        Some(answer) => {
            let entry = Entry::parse(one(&answer)).map_err(DriverError::custom)?;
            judge(server, mark, &Mark::of(&entry)).await
        }
    }
}

/// Where a place stands if this is the first entry that is not before it.
pub(crate) async fn judge(server: &Server, mark: &Mark, found: &Mark) -> mongodb::error::Result<Standing> {
    if found == mark {
        return Ok(Standing::Here);
    }
    let oldest = match first(server, &query(doc! {}, 1)).await? {
        Some(answer) => Entry::parse(one(&answer)).map_err(DriverError::custom)?.ts,
        None => found.ts,
    };
    let begins_later = (oldest.time, oldest.increment) > (mark.ts.time, mark.ts.increment);
    Ok(Standing::Lost(match begins_later {
        true => format!(
            "the oplog of {} begins after {}: what came before has been overwritten there",
            server.host(),
            mark.time()
        ),
        false => other_history(server, mark),
    }))
}

/// Why a place is lost whose entry was never written by this server.
pub(crate) fn other_history(server: &Server, mark: &Mark) -> String {
    format!(
        "the oplog of {} does not have the entry of {} that was read before: the server was restored or set up anew",
        server.host(),
        mark.time()
    )
}
