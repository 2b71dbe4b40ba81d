//! MongoDB as a source.

use crate::catalog::{self, CollectionKind, Listed};
use crate::changes;
use crate::connect::{Server, ServerInfo, timestamp};
use crate::error;
use crate::keys;
use crate::names;
use crate::scan::{self, ReadTime, Scan, Token, Walk};
use async_trait::async_trait;
use bson::{Bson, Document, doc};
use futures::{StreamExt, TryStreamExt};
use model::{
    AttachmentStore, ChangeStream, Consistency, Description, Engine, EngineTime, Error, ErrorKind, FeedKind, Following,
    Gap, Loss, Part, Plan, Result, ScanStream, Selection, Source, SourceState, Until,
};
use std::sync::Arc;

/// Bytes that one answer of the server should hold: large enough that asking costs nothing, small
/// enough that several fit in memory.
const ANSWER: u64 = 4 << 20;
/// Bytes of a collection from which on it is read in several ranges side by side.
const RANGE_MIN: u64 = 64 << 20;
/// Records that are looked at for each end of a range.
const SAMPLES: u64 = 24;
/// Collections whose size is asked for side by side.
const ASKING: usize = 8;
/// How often the collections may change while they are listed.
const LISTINGS_MAX: u32 = 10;

/// A MongoDB server, replica set or cluster, all of it or one database.
///
/// - A replica set (5.0 or later) is read at one cluster time, by the collections' identities; what
///   takes longer than the server keeps its snapshots is read at a later time, and the point says so.
///   Capped collections cannot be read at a time: a point that has some says so, too.
///   Its changes are followed by the oplog, if the user may read that.
/// - Others are read as they are while they are read.
///
/// Options and indexes are those of the time of reading.
#[derive(Debug, Clone)]
pub struct MongoSource {
    server: Arc<Server>,
    concurrency: usize,
    by_id: bool,
    database: Option<String>,
    times: Arc<ReadTime>,
}

impl MongoSource {
    /// The server's data; nothing is opened yet.
    pub fn new(server: Arc<Server>) -> MongoSource {
        MongoSource { server, concurrency: 2, by_id: false, database: None, times: Arc::default() }
    }

    /// How many ranges of a large collection are read side by side; 2 unless told.
    pub fn concurrency(mut self, ranges: usize) -> MongoSource {
        self.concurrency = ranges.clamp(1, 64);
        self
    }

    /// Goes through collections by `_id`, as with servers that number no records for their users.
    pub fn by_id(mut self, yes: bool) -> MongoSource {
        self.by_id = yes;
        self
    }

    /// Only this database, whatever the URL's path says.
    pub fn of_database(mut self, name: &str) -> MongoSource {
        self.database = Some(name.to_owned());
        self
    }

    /// The only database that is meant, if it is one.
    async fn only_database(&self) -> Result<Option<String>> {
        match &self.database {
            Some(name) => Ok(Some(name.clone())),
            None => self.server.database().await,
        }
    }

    async fn databases(&self, selection: Option<&Selection>) -> Result<Vec<String>> {
        if let Some(database) = self.only_database().await? {
            return Ok(vec![database]);
        }
        let mut databases = catalog::databases(&self.server).await?;
        if selection.is_some_and(|s| s.users) {
            databases.insert(0, "admin".into());
        }
        Ok(databases)
    }

    /// All collections of the databases meant, without indexes, and what is left out.
    async fn list(&self, databases: &[String], users: bool) -> Result<(Vec<Listed>, Vec<Loss>)> {
        let mut listing = Vec::new();
        for database in databases {
            listing.push(self.list_database(database, users));
        }
        let all: Vec<_> = futures::stream::iter(listing).buffered(ASKING).try_collect().await?;
        let (listed, left_out): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        Ok((listed.into_iter().flatten().collect(), left_out.into_iter().flatten().collect()))
    }

    async fn list_database(&self, database: &str, users: bool) -> Result<(Vec<Listed>, Vec<Loss>)> {
        if database == "admin" && self.only_database().await?.is_none() {
            // Here only for its users.
            let listed = if users { catalog::users(&self.server).await? } else { Vec::new() };
            return Ok((listed, Vec::new()));
        }
        let (listed, mut left_out) = catalog::collections(&self.server, database).await?;
        let (scratch, listed) = listed.into_iter().partition::<Vec<_>, _>(|l| names::is_scratch(&l.name));
        left_out.extend(scratch.iter().map(|l| Loss {
            what: l.namespace(),
            why: "it is what a restore that is under way or was interrupted has written".into(),
        }));
        Ok((listed, left_out))
    }

    async fn identity(&self, info: &ServerInfo, database: Option<&str>) -> Result<String> {
        let set = match &info.set {
            // Only members' own configuration has an id that outlives their names.
            Some(set) => match self.server.admin(doc! { "replSetGetConfig": 1 }).await {
                // Another identity for a moment would make another source of it.
                Err(e) if e.kind() == ErrorKind::Retry => return Err(e),
                Ok(answer) => answer
                    .get_document("config")
                    .and_then(|c| c.get_document("settings"))
                    .and_then(|s| s.get_object_id("replicaSetId"))
                    .map(|id| id.to_hex())
                    .unwrap_or_else(|_| set.clone()),
                Err(_) => format!("{set}@{}", info.members.join(",")),
            },
            None => info.me.clone(),
        };
        Ok(format!("mongodb:{set}{}", database.map(|d| format!("/{d}")).unwrap_or_default()))
    }

    async fn list_selected(&self, databases: &[String], selection: &Selection) -> Result<Vec<Listed>> {
        let (listed, _) = self.list(databases, selection.users).await?;
        Ok(listed.into_iter().filter(|l| selection.takes(&l.namespace())).collect())
    }

    /// The collections as they are at one time, and that time; without a time where there is none.
    async fn list_at_one_time(
        &self,
        info: &ServerInfo,
        selection: &Selection,
    ) -> Result<(Vec<Listed>, Option<EngineTime>)> {
        let databases = self.databases(Some(selection)).await?;
        let mut before = self.list_selected(&databases, selection).await?;
        if info.set.is_none() || info.release() < (5, 0) {
            return Ok((before, None));
        }
        for _ in 0..LISTINGS_MAX {
            let time = self.server.cluster_time().await?;
            // Lists of collections cannot be read at a time: what is the same before and after a
            // time is as it was at that time.
            let after = self.list_selected(&databases, selection).await?;
            if before == after {
                return Ok((after, time));
            }
            before = after;
        }
        Err(Error::new(ErrorKind::Retry, "collections are made and removed faster than they can be listed")
            .hint("leave out the ones that come and go with --exclude, or back up when it is quieter"))
    }

    /// Everything is to be read; `start` was taken before.
    async fn plan_scan(
        &self,
        info: &ServerInfo,
        selection: &Selection,
        start: Option<model::Position>,
    ) -> Result<Plan> {
        let (mut listed, at) = self.list_at_one_time(info, selection).await?;
        catalog::add_indexes(&self.server, &mut listed).await?;
        let ways = self.ways(info, &listed).await?;
        let mut planning = Vec::new();
        for one in &listed {
            planning.push(self.parts_of(one, &ways, at, selection));
        }
        let mut parts: Vec<Vec<Part>> = futures::stream::iter(planning).buffered(ASKING).try_collect().await?;
        parts.sort_by_key(|ranges| std::cmp::Reverse(ranges.iter().filter_map(|r| r.bytes).sum::<u64>()));
        let whole = at.is_some() && listed.iter().all(|l| !l.options.is_capped());
        let consistency = if whole { Consistency::OneTime } else { Consistency::PerDocument };
        Ok(Plan::Scan { start, parts: parts.into_iter().flatten().collect(), at, consistency, skipped: Vec::new() })
    }

    /// Finds out how this server and this user let collections be read.
    async fn ways(&self, info: &ServerInfo, listed: &[Listed]) -> Result<Ways> {
        let process = scan::process(&self.server).await.map_err(|e| error::driver("asking the server", e))?;
        // Numbers of records are of one member: they are of no use where any of them may answer.
        let has_records =
            !self.by_id && !info.is_router && info.release() >= (4, 4) && self.server.is_one_member().await?;
        let Some(one) = listed.iter().find(|l| l.uuid.is_some()) else {
            return Ok(Ways { process, by_identity: true, records: has_records });
        };
        // Both are for the role `backup` and the like; who may only read gets neither.
        let mut find = doc! { "find": one.uuid, "limit": 1, "batchSize": 0 };
        let by_identity = !info.is_router && self.may(&one.database, &find).await?;
        find = doc! { "find": one.stored_name(), "limit": 1, "batchSize": 0, "hint": { "$natural": 1 }, "$_requestResumeToken": true };
        let records = has_records && self.may(&one.database, &find).await?;
        Ok(Ways { process, by_identity, records })
    }

    /// Whether the user may ask this. That the collection is gone by now does not matter.
    async fn may(&self, database: &str, command: &Document) -> Result<bool> {
        let client = self.server.client().await?;
        match client.database(database).run_cursor_command(command.clone()).await {
            Err(e) if error::code(&e) == Some(error::UNAUTHORIZED) => Ok(false),
            Err(e) if error::is_passing(&e) => Err(error::driver("trying how collections can be read", e)),
            _ => Ok(true),
        }
    }

    async fn parts_of(
        &self,
        one: &Listed,
        ways: &Ways,
        at: Option<EngineTime>,
        selection: &Selection,
    ) -> Result<Vec<Part>> {
        let namespace = one.namespace();
        let kind = one.options.kind;
        let name = one.stored_name();
        let one_by_one = !selection.takes_all_of(&namespace);
        let walk = match () {
            () if one_by_one => Walk::Once,
            () if ways.records => Walk::Records,
            // Without an index on _id there is no other way.
            () if one.options.is_capped() || one.options.is_clustered() || kind == CollectionKind::TimeSeries => {
                Walk::Once
            }
            () => Walk::Ids,
        };
        let ids = one_by_one.then(|| {
            let texts = selection.only.iter().filter_map(|p| p.strip_prefix(&namespace)?.strip_prefix('/'));
            Bson::Array(texts.flat_map(keys::candidates).collect())
        });
        // Capped collections keep no history to read at a time.
        let at = at.filter(|_| !one.options.is_capped());
        let (count, size) = match kind {
            CollectionKind::View => (Some(0), Some(0)),
            _ => self.size_of(one, &name).await.map_or((None, None), |(count, size)| (Some(count), Some(size))),
        };
        let average = match (count, size) {
            (Some(count), Some(size)) if count > 0 => (size / count).max(1),
            _ => 1024,
        };
        let mut token = Token {
            database: one.database.clone(),
            name,
            kind: kind.word().into(),
            uuid: one.uuid,
            by_name: !ways.by_identity,
            walk,
            at,
            after: None,
            until: None,
            process: ways.process.clone(),
            is_long: size.is_none_or(|size| size > ANSWER / 2),
            batch: (ANSWER / average).clamp(1, 1 << 20) as u32,
            ids,
        };
        let bounds = self.bounds(&token, one, size.unwrap_or_default()).await;
        if bounds.is_empty() {
            token.process = None;
        }
        let ranges = bounds.len() as u64 + 1;
        let mut parts = Vec::with_capacity(bounds.len() + 1);
        let mut after = None;
        for until in bounds.into_iter().map(Some).chain([None]) {
            let range = Token { after: after.take(), until: until.clone(), ..token.clone() };
            after = until;
            parts.push(Part {
                documents: count.filter(|_| !one_by_one).map(|n| n / ranges),
                bytes: size.filter(|_| !one_by_one).map(|n| n / ranges),
                ..range.part(&one.info())?
            });
        }
        Ok(parts)
    }

    /// Documents and bytes of a collection, as the server counts along; none if it does not tell.
    async fn size_of(&self, one: &Listed, name: &str) -> Option<(u64, u64)> {
        let client = self.server.client().await.ok()?;
        let stages = vec![
            doc! { "$collStats": { "storageStats": {} } },
            doc! { "$project": { "storageStats.count": 1, "storageStats.size": 1 } },
        ];
        let mut answers = client.database(&one.database).collection::<Document>(name).aggregate(stages).await.ok()?;
        let (mut count, mut size) = (0, 0);
        // One answer for each shard.
        while let Some(Ok(answer)) = answers.next().await {
            let stats = answer.get_document("storageStats").ok()?;
            let number = |name| match stats.get(name) {
                Some(Bson::Int32(n)) => u64::try_from(*n).ok(),
                Some(Bson::Int64(n)) => u64::try_from(*n).ok(),
                Some(Bson::Double(n)) => Some(*n as u64),
                _ => None,
            };
            count += number("count")?;
            size += number("size")?;
        }
        Some((count, size))
    }

    /// Where ranges of about the same size end, in order; none if the collection is small, or has
    /// no records or `_id`s to tell them by.
    async fn bounds(&self, token: &Token, one: &Listed, size: u64) -> Vec<Bson> {
        let ranges = (size / RANGE_MIN).min(self.concurrency as u64);
        let plain =
            one.options.kind == CollectionKind::Collection && !one.options.is_capped() && !one.options.is_clustered();
        if ranges < 2 || !plain || token.walk == Walk::Once {
            return Vec::new();
        }
        match self.sample(token, ranges).await {
            Ok(bounds) => bounds,
            Err(e) => {
                tracing::debug!("{} is read in one piece: {e}", one.namespace());
                Vec::new()
            }
        }
    }

    async fn sample(&self, token: &Token, ranges: u64) -> mongodb::error::Result<Vec<Bson>> {
        let client = self.server.client().await.map_err(mongodb::error::Error::custom)?;
        let database = client.database(&token.database);
        let size = (ranges * SAMPLES) as i64;
        let concern = token.at.map(|at| doc! { "level": "snapshot", "atClusterTime": timestamp(at) });
        let mut command = doc! {
            "aggregate": &token.name,
            "pipeline": [
                { "$sample": { "size": size } },
                { "$project": { "_id": 1 } },
                { "$sort": { "_id": 1 } },
            ],
            "cursor": { "batchSize": size },
        };
        command.extend(concern.as_ref().map(|c| doc! { "readConcern": c.clone() }).into_iter().flatten());
        let samples: Vec<Document> = database.run_cursor_command(command).await?.try_collect().await?;
        let ids: Vec<Bson> = samples.iter().filter_map(|d| d.get("_id").cloned()).collect();
        if token.walk == Walk::Ids {
            return Ok(evenly(ids, ranges));
        }
        // Samples come without the numbers of their records.
        let mut command = doc! {
            "find": &token.name,
            "filter": { "_id": { "$in": ids } },
            "projection": { "_id": 1 },
            "showRecordId": true,
            "batchSize": size,
        };
        command.extend(concern.map(|c| doc! { "readConcern": c }).into_iter().flatten());
        let found: Vec<Document> = database.run_cursor_command(command).await?.try_collect().await?;
        let mut records: Vec<i64> = found.iter().filter_map(|d| d.get_i64("$recordId").ok()).collect();
        records.sort_unstable();
        Ok(evenly(records.into_iter().map(Bson::Int64).collect(), ranges))
    }
}

/// The bounds that cut a sorted sample into this many ranges.
fn evenly(mut sample: Vec<Bson>, ranges: u64) -> Vec<Bson> {
    sample.dedup();
    let step = sample.len() / ranges as usize;
    if step == 0 {
        return Vec::new();
    }
    sample.into_iter().step_by(step).skip(1).take(ranges as usize - 1).collect()
}

/// How collections can be read.
struct Ways {
    /// The server process that numbers records.
    process: Option<String>,
    /// By their identities, which no rename and no drop can confuse.
    by_identity: bool,
    /// By the numbers of records.
    records: bool,
}

#[async_trait]
impl Source for MongoSource {
    async fn describe(&self) -> Result<Description> {
        let info = self.server.info().await?;
        let database = self.only_database().await?;
        let (mut listed, mut left_out) = self.list(&self.databases(None).await?, false).await?;
        catalog::add_indexes(&self.server, &mut listed).await?;
        let has_feed = match info.set {
            Some(_) => changes::place(&self.server).await?.is_some(),
            None => false,
        };
        if info.set.is_some() && !has_feed {
            left_out.push(Loss {
                what: "every second between two backups".into(),
                why: "the user may not read the oplog, so that only the moments of backups can be restored: \
                      grant the role backup, or find on local.oplog.rs"
                    .into(),
            });
        }
        Ok(Description {
            engine: Engine::new("mongodb"),
            identity: self.identity(&info, database.as_deref()).await?,
            name: database.or(info.set.clone()).unwrap_or_else(|| self.server.host()),
            version: info.version.clone(),
            feed: if has_feed { FeedKind::EveryChange } else { FeedKind::LatestState },
            collections: listed.iter().map(Listed::info).collect(),
            losses: left_out,
        })
    }

    async fn plan(&self, selection: &Selection, last: Option<&SourceState>) -> Result<Plan> {
        let info = self.server.info().await?;
        let start = match info.set {
            Some(_) => changes::place(&self.server).await?.map(|place| place.position()),
            None => None,
        };
        let Some((last, from)) = last.and_then(|l| Some((l, l.position.clone()?))).filter(|_| start.is_some()) else {
            return self.plan_scan(&info, selection, start).await;
        };
        let identity = self.identity(&info, self.only_database().await?.as_deref()).await?;
        let lost = match identity == last.identity {
            true => changes::prove(&self.server, &from).await?,
            false => Some(format!("it is another replica set than before ({identity}, not {})", last.identity)),
        };
        let Some(why) = lost else { return Ok(Plan::Changes { from }) };
        let then = self.plan_scan(&info, selection, start).await?;
        let to = match &then {
            Plan::Scan { at, .. } => *at,
            _ => None,
        };
        Ok(Plan::Gap { gap: Gap { from: last.time, to, why }, then: Box::new(then) })
    }

    fn side_by_side(&self) -> usize {
        self.concurrency
    }

    async fn read(&self, part: &Part, _: Arc<dyn AttachmentStore>) -> Result<ScanStream> {
        let token: Token = serde_json::from_str(&part.token)
            .map_err(|e| Error::bug("a part of another source was read from MongoDB").caused_by(e))?;
        let (out, items) = tokio::sync::mpsc::channel(1);
        let scan =
            Scan { server: self.server.clone(), times: self.times.clone(), info: part.collection.clone(), token, out };
        tokio::spawn(scan.run());
        Ok(futures::stream::unfold(items, |mut items| async { items.recv().await.map(|item| (item, items)) }).boxed())
    }

    async fn changes(&self, from: &Following, until: Until, _: Arc<dyn AttachmentStore>) -> Result<ChangeStream> {
        changes::follow(self.server.clone(), self.only_database().await?, from, until).await
    }
}
