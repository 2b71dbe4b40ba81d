//! Reading one part of a plan: a collection, or a range of its records, going on after whatever
//! can interrupt that.

use crate::catalog::{self, CollectionKind};
use crate::connect::{Server, timestamp};
use crate::error;
use crate::reply::{self, Answer};
use bson::{Bson, Document, doc};
use futures::{StreamExt, TryStreamExt};
use model::{CollectionInfo, EngineTime, Error, ErrorKind, Part, Result, ScanItem};
use mongodb::options::RunCursorCommandOptions;
use mongodb::raw_batch_cursor::RawBatchCursor;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tokio::sync::mpsc::Sender;

/// How long a server that does not answer is waited for, without any progress.
const PATIENCE: Duration = Duration::from_secs(120);
/// The longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How often in a row a collection may change under a reader that gets no further.
const CHANGES_MAX: u32 = 20;

/// How the records of a collection are walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Walk {
    /// In the order in which they are stored, going on after a record's number.
    Records,
    /// In the order of `_id`, going on from one.
    Ids,
    /// In the order in which they are stored, from the start to the end in one go.
    Once,
}

/// What is read of a collection, as a part's token.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Token {
    pub database: String,
    /// The collection that holds the documents: of a time series its buckets.
    pub name: String,
    pub kind: String,
    pub uuid: Option<bson::Uuid>,
    /// Whether it is read by its name, as the user may not read by identity.
    pub by_name: bool,
    pub walk: Walk,
    /// The cluster time to read at; none reads what is there.
    pub at: Option<EngineTime>,
    /// The range: after this record (or from this `_id`) …
    #[serde(with = "exact")]
    pub after: Option<Bson>,
    /// … up to and with this record (or up to this `_id`, without it).
    #[serde(with = "exact")]
    pub until: Option<Bson>,
    /// The server process whose numbers the records of the range are.
    pub process: Option<String>,
    /// Whether there may be more than one answer holds: then it must be known which process gives it.
    pub is_long: bool,
    /// Documents that the server puts into one answer.
    pub batch: u32,
    /// Only these `_id`s.
    #[serde(with = "exact")]
    pub ids: Option<Bson>,
}

/// Values of BSON with their exact types in JSON.
mod exact {
    use bson::Bson;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(value: &Option<Bson>, to: S) -> Result<S::Ok, S::Error> {
        value.clone().map(Bson::into_canonical_extjson).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Bson>, D::Error> {
        let json = Option::<serde_json::Value>::deserialize(from)?;
        json.map(|json| Bson::try_from(json).map_err(serde::de::Error::custom)).transpose()
    }
}

/// The cluster time that all readers of a source read at; one that is too old is renewed once for
/// all of them.
#[derive(Debug, Default)]
pub(crate) struct ReadTime(Mutex<Option<EngineTime>>);

impl ReadTime {
    /// A time after `old`.
    async fn after(&self, server: &Server, old: EngineTime) -> Result<EngineTime> {
        let mut time = self.0.lock().await;
        if let Some(time) = *time
            && time > old
        {
            return Ok(time);
        }
        let now = server.cluster_time().await?.unwrap_or(old);
        *time = Some(now);
        Ok(now)
    }
}

/// Reads one part.
pub(crate) struct Scan {
    pub server: Arc<Server>,
    pub times: Arc<ReadTime>,
    pub info: CollectionInfo,
    pub token: Token,
    pub out: Sender<Result<ScanItem>>,
}

/// Why the reading of a cursor ended.
enum Stopped {
    /// Everything of the part has been read.
    Done,
    /// Nobody listens any more.
    Unwanted,
    /// The cursor cannot go on.
    Failed(mongodb::error::Error),
    /// The answer passed the end of the range: it must be read once more, with record numbers.
    Passed,
    /// Something that another try does not change.
    Hopeless(Error),
    /// The cursor is on another process than the one whose records are known, or another collection
    /// has the name, or none.
    Moved,
}

/// How far the reading has come.
struct Progress {
    /// The last record (or `_id`) that was given, and some before it, newest last.
    marks: Vec<Bson>,
    /// When something was last given.
    moved: Instant,
    tries: u32,
    /// Whether anything was given.
    gave: bool,
    /// Whether records are asked for with their numbers.
    numbered: bool,
    /// Marks that turned out to be gone on the server.
    steps_back: usize,
}

/// Marks that are kept, in case that the record of the last one is deleted.
const MARKS: usize = 64;

impl Scan {
    /// Reads it to its end. An error goes to whoever listens.
    pub async fn run(mut self) {
        if let Err(e) = self.read().await {
            let _ = self.out.send(Err(e.context(format!("reading {}", self.info.name)))).await;
        }
    }

    async fn read(&mut self) -> Result<()> {
        if self.token.at.is_none()
            && let Some(now) = self.server.cluster_time().await?
        {
            // Whatever is read from now on is at least as new as this.
            self.tell(ScanItem::Progress { true_at: now }).await;
        }
        if let Some(at) = self.token.at {
            self.tell(ScanItem::Progress { true_at: at }).await;
        }
        if self.token.kind == CollectionKind::View.word() {
            return Ok(());
        }
        let mut progress = Progress {
            marks: Vec::new(),
            moved: Instant::now(),
            tries: 0,
            gave: false,
            numbered: false,
            steps_back: 0,
        };
        loop {
            let stopped = match self.open_here(&progress).await {
                Ok(Some(cursor)) => self.drain(cursor, &mut progress).await,
                Ok(None) => Stopped::Moved,
                Err(e) => Stopped::Failed(e),
            };
            match stopped {
                Stopped::Unwanted => return Ok(()),
                Stopped::Done if !self.token.by_name => return Ok(()),
                // A name gives nothing at a time when its collection is dropped or renamed later:
                // what was read counts only if it is still there.
                Stopped::Done => {
                    let name = self.info.name.clone();
                    if !self.still_there().await? || self.info.name == name {
                        return Ok(());
                    }
                    return self.again().await.map(drop);
                }
                Stopped::Moved if self.token.by_name => {
                    if self.still_there().await? {
                        self.again().await?;
                    }
                    return Ok(());
                }
                Stopped::Passed => progress.numbered = true,
                Stopped::Hopeless(e) => return Err(e),
                Stopped::Moved => return self.again().await.map(drop),
                Stopped::Failed(e) => {
                    if !self.recover(e, &mut progress).await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn tell(&self, item: ScanItem) -> bool {
        self.out.send(Ok(item)).await.is_ok()
    }

    /// What to do after an error: whether to go on.
    async fn recover(&mut self, e: mongodb::error::Error, progress: &mut Progress) -> Result<bool> {
        let what = format!("reading {}", self.info.name);
        progress.tries += 1;
        let code = error::code(&e);
        let passing = error::is_passing(&e);
        if passing && progress.moved.elapsed() > PATIENCE || !passing && progress.tries > CHANGES_MAX {
            return Err(error::driver(what, e));
        }
        tracing::debug!("{what}: going on after: {e}");
        match code {
            Some(error::SNAPSHOT_TOO_OLD | error::SNAPSHOT_UNAVAILABLE) if self.token.at.is_some() => {
                // Servers need a moment until a time after a change of the catalog can be read.
                if progress.tries > 1 {
                    self.pause(progress.tries).await;
                }
                return self.renew(progress).await;
            }
            Some(error::KEY_NOT_FOUND) if !progress.marks.is_empty() || self.token.after.is_some() => {
                progress.steps_back = (progress.steps_back * 2).max(1);
            }
            Some(error::NAMESPACE_NOT_FOUND) => {
                return self.gone().await;
            }
            Some(error::CAPPED_POSITION_LOST) => {
                return self.again().await;
            }
            Some(error::QUERY_PLAN_KILLED | error::CURSOR_NOT_FOUND | error::CURSOR_KILLED) => {
                if self.token.at.is_some() {
                    return self.renew(progress).await;
                }
                return self.still_there().await;
            }
            _ if passing => self.pause(progress.tries).await,
            _ => return Err(error::driver(what, e)),
        }
        let is_blind = self.token.walk == Walk::Once || self.token.walk == Walk::Records && !self.token.is_long;
        if is_blind && progress.gave {
            return self.again().await;
        }
        Ok(true)
    }

    /// The collection is to be read from its start, in one piece.
    async fn again(&self) -> Result<bool> {
        let token = Token { after: None, until: None, process: None, ..self.token.clone() };
        self.tell(ScanItem::Again(vec![token.part(&self.info)?])).await;
        Ok(false)
    }

    async fn pause(&self, tries: u32) {
        let pause = Duration::from_millis(50) * 2u32.saturating_pow(tries.min(10));
        tokio::time::sleep(pause.min(PAUSE_MAX)).await;
    }

    /// Goes on at a later time, under the name that the collection has then.
    async fn renew(&mut self, progress: &mut Progress) -> Result<bool> {
        let Some(old) = self.token.at else { return Ok(true) };
        let new = self.times.after(&self.server, old).await?;
        self.token.at = Some(new);
        progress.numbered = progress.numbered || self.token.until.is_some() && self.token.walk == Walk::Records;
        if !self.still_there().await? {
            return Ok(false);
        }
        Ok(self.tell(ScanItem::Progress { true_at: new }).await)
    }

    /// Looks the collection up by its identity: whether it is still there. Tells its new name.
    async fn still_there(&mut self) -> Result<bool> {
        if self.token.uuid.is_none() {
            return Ok(true);
        }
        let (listed, _) = catalog::collections(&self.server, &self.token.database).await?;
        let found = listed.into_iter().find(|l| l.uuid.is_some() && l.uuid == self.token.uuid);
        let Some(mut found) = found else { return self.gone().await };
        catalog::add_indexes(&self.server, std::slice::from_mut(&mut found)).await?;
        let info = found.info();
        if info.name != self.info.name {
            self.info = info.clone();
            self.token.name = found.stored_name();
            return Ok(self.tell(ScanItem::Catalog(info)).await);
        }
        Ok(true)
    }

    async fn gone(&self) -> Result<bool> {
        self.tell(ScanItem::Gone).await;
        Ok(false)
    }

    /// Opens a cursor where the reading stands; none if that is a place that this server process
    /// does not know, or if the name is not the collection's. Records have other numbers on another member, and may have after a restart.
    async fn open_here(&mut self, progress: &Progress) -> mongodb::error::Result<Option<RawBatchCursor>> {
        if self.token.by_name {
            // A collection that has another name for a moment gives nothing under its own.
            let is_there = self.has_its_name().await?;
            let cursor = self.open(progress).await?;
            return Ok((is_there && self.has_its_name().await?).then_some(cursor));
        }
        if self.token.walk != Walk::Records || !self.token.is_long {
            return self.open(progress).await.map(Some);
        }
        loop {
            let before = process(&self.server).await?;
            if self.token.process.is_some() && self.token.process != before {
                return Ok(None);
            }
            let cursor = self.open(progress).await?;
            if process(&self.server).await? == before {
                self.token.process = before;
                return Ok(Some(cursor));
            }
        }
    }

    /// Whether the name is the collection's now.
    async fn has_its_name(&self) -> mongodb::error::Result<bool> {
        let Some(uuid) = self.token.uuid else { return Ok(true) };
        let client = self.server.client().await.map_err(mongodb::error::Error::custom)?;
        let command = doc! { "listCollections": 1, "filter": { "name": &self.token.name } };
        let found: Vec<Document> =
            client.database(&self.token.database).run_cursor_command(command).await?.try_collect().await?;
        Ok(found.iter().any(|spec| match spec.get_document("info").map(|info| info.get("uuid")) {
            Ok(Some(Bson::Binary(binary))) => binary.to_uuid().is_ok_and(|found| found == uuid),
            _ => false,
        }))
    }

    /// Opens a cursor where the reading stands.
    async fn open(&self, progress: &Progress) -> mongodb::error::Result<RawBatchCursor> {
        let token = &self.token;
        let mut find = doc! {};
        match token.uuid.filter(|_| !token.by_name) {
            Some(uuid) => find.insert("find", uuid),
            None => find.insert("find", &token.name),
        };
        find.insert("batchSize", token.batch as i64);
        if let Some(ids) = &token.ids {
            find.insert("filter", doc! { "_id": { "$in": ids.clone() } });
        }
        match token.walk {
            Walk::Records => {
                find.extend(doc! { "hint": { "$natural": 1 }, "$_requestResumeToken": true });
                if let Some(record) = self.resume_at(progress) {
                    find.insert("$_resumeAfter", doc! { "$recordId": record });
                }
                if progress.numbered || progress.steps_back > 0 {
                    find.insert("showRecordId", true);
                }
            }
            Walk::Ids => {
                find.insert("hint", doc! { "_id": 1 });
                let from = progress.marks.last().cloned().or_else(|| token.after.clone());
                if let Some(from) = from {
                    find.insert("min", doc! { "_id": from });
                }
                if let Some(until) = token.until.clone() {
                    find.insert("max", doc! { "_id": until });
                }
            }
            Walk::Once if token.ids.is_none() => {
                find.insert("hint", doc! { "$natural": 1 });
            }
            Walk::Once => {}
        }
        if let Some(at) = token.at {
            find.insert("readConcern", doc! { "level": "snapshot", "atClusterTime": timestamp(at) });
        }
        let command = bson::RawDocumentBuf::try_from(&find)
            .map_err(|e| mongodb::error::Error::custom(format!("a query could not be written: {e}")))?;
        let client = self.server.client().await.map_err(mongodb::error::Error::custom)?;
        let mut options = RunCursorCommandOptions::default();
        options.batch_size = Some(token.batch);
        options.selection_criteria = client.selection_criteria().cloned();
        client.database(&token.database).run_raw_cursor_command(command).with_options(options).batch().await
    }

    /// The record to go on after: the last one, or one before it if that one is gone; none is the
    /// beginning of the collection.
    fn resume_at(&self, progress: &Progress) -> Option<Bson> {
        let marks = progress.marks.len();
        match progress.steps_back {
            back if back < marks => progress.marks.get(marks - 1 - back).cloned(),
            back if back == marks => self.token.after.clone(),
            _ => None,
        }
    }

    /// Reads a cursor to its end.
    async fn drain(&mut self, mut cursor: RawBatchCursor, progress: &mut Progress) -> Stopped {
        let stepped_back = progress.steps_back > 0;
        let until = self.token.until.clone();
        // What was given before, when the reading goes on from an earlier record.
        let given = match stepped_back {
            true => progress.marks.last().cloned().or_else(|| self.token.after.clone()),
            false => None,
        };
        while let Some(reply) = cursor.next().await {
            let answer = match reply {
                Ok(reply) => reply::answer(reply),
                Err(e) => return Stopped::Failed(e),
            };
            let mut answer = match answer {
                Ok(answer) => answer,
                Err(e) => return Stopped::Hopeless(e),
            };
            let mut is_past = false;
            if self.token.walk == Walk::Records {
                match self.cut(answer, progress, until.as_ref(), given.as_ref()) {
                    Ok(Some((cut, past))) => (answer, is_past) = (cut, past),
                    Ok(None) => return Stopped::Passed,
                    Err(e) => return Stopped::Hopeless(e),
                }
            }
            if self.token.walk == Walk::Ids {
                drop_first(&mut answer, progress.marks.last());
            }
            let mark = match self.token.walk {
                Walk::Records => answer.resume.clone(),
                Walk::Ids => last_id(&answer),
                Walk::Once => None,
            };
            let is_last = answer.is_last;
            if !answer.docs.is_empty() {
                progress.gave = true;
                let batch = answer.into_batch(&self.info.id);
                if !self.tell(ScanItem::Batch(batch)).await {
                    return Stopped::Unwanted;
                }
                progress.tries = 0;
            }
            progress.moved = Instant::now();
            if let Some(mark) = mark
                && (!stepped_back || passes(&mark, given.as_ref()))
            {
                progress.steps_back = 0;
                progress.marks.push(mark);
                if progress.marks.len() > MARKS {
                    progress.marks.remove(0);
                }
            }
            if is_past || is_last {
                return Stopped::Done;
            }
        }
        Stopped::Done
    }

    /// The part of an answer that belongs to the range and was not given before, and whether the
    /// range ends in it. None if that cannot be told without the numbers of the records.
    fn cut(
        &self,
        answer: Answer,
        progress: &Progress,
        until: Option<&Bson>,
        given: Option<&Bson>,
    ) -> Result<Option<(Answer, bool)>> {
        let numbered = progress.numbered || given.is_some() || progress.steps_back > 0;
        if numbered {
            let number = |record: Option<&Bson>| match record {
                None => Ok(None),
                Some(Bson::Int64(n)) => Ok(Some(*n)),
                Some(_) => Err(Error::new(
                    ErrorKind::Retry,
                    format!("documents of {} were deleted where its reading was interrupted", self.info.name),
                )
                .hint("run the command again")),
            };
            let (until, given) = (number(until)?.unwrap_or(i64::MAX), number(given)?);
            return answer.up_to(until, given).map(Some);
        }
        let Some(Bson::Int64(until)) = until else { return Ok(Some((answer, false))) };
        match answer.resume {
            Some(Bson::Int64(last)) if last <= *until => {
                let is_past = last == *until;
                Ok(Some((answer, is_past)))
            }
            _ if answer.docs.is_empty() => Ok(Some((answer, false))),
            _ => Ok(None),
        }
    }
}

impl Token {
    /// As a part of a plan, of a size that is not known.
    pub fn part(&self, info: &CollectionInfo) -> Result<Part> {
        let token = serde_json::to_string(self).map_err(|e| Error::bug("a plan is no JSON").caused_by(e))?;
        Ok(Part { collection: info.clone(), token, documents: None, bytes: None })
    }
}

/// Which process answers: another one after a restart or an election.
pub(crate) async fn process(server: &Server) -> mongodb::error::Result<Option<String>> {
    let client = server.client().await.map_err(mongodb::error::Error::custom)?;
    let answer = client.database("admin").run_command(doc! { "hello": 1 }).await?;
    let process = answer.get_document("topologyVersion").ok().and_then(|v| v.get_object_id("processId").ok());
    // Each election has its own id: what a member rolls back after one may be numbered anew.
    let election = answer.get_object_id("electionId").map(|id| id.to_hex()).unwrap_or_default();
    Ok(process.map(|id| format!("{id} {election}")))
}

/// Whether a record comes after the one given last.
fn passes(mark: &Bson, given: Option<&Bson>) -> bool {
    match (mark, given) {
        (Bson::Int64(mark), Some(Bson::Int64(given))) => mark > given,
        _ => true,
    }
}

/// The `_id` of an answer's last document.
fn last_id(answer: &Answer) -> Option<Bson> {
    let doc = answer.docs.last()?;
    let document = bson::RawDocument::from_bytes(&answer.body[doc.start as usize..doc.end as usize]).ok()?;
    Bson::try_from(document.get("_id").ok()??).ok()
}

/// `min` includes the `_id` that was given last: leaves it out.
fn drop_first(answer: &mut Answer, last: Option<&Bson>) {
    let Some(key) = last.and_then(crate::keys::key) else { return };
    let is_last = answer
        .docs
        .first()
        .is_some_and(|d| answer.body[d.key_start as usize..(d.key_start + d.key_len) as usize] == key[..]);
    if is_last {
        answer.docs.remove(0);
    }
}
