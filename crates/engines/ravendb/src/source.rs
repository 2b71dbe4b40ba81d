//! A RavenDB database as a source: its export, collection by collection.

use crate::catalog;
use crate::changes::{self, Place};
use crate::dump::Reader;
use crate::gather::{DATABASE, Gather, Route, collection_id};
use crate::hold;
use crate::server::{Build, Server, Stats, Tombstones};
use async_trait::async_trait;
use futures::StreamExt;
use model::limits::QUEUE;
use model::{
    AttachmentStore, ChangeStream, CollectionId, CollectionInfo, Consistency, Description, Engine, Error, ErrorKind,
    FeedKind, Following, Gap, Loss, Part, Plan, Result, ScanItem, ScanStream, Selection, Source, SourceState, Until,
};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::sync::Arc;

/// A RavenDB database.
#[derive(Debug)]
pub struct RavenSource {
    server: Arc<Server>,
}

/// What the token of a part begins with that is read together with the others.
const TOGETHER: &str = "together ";
/// Documents up to which everything is read together.
const TOGETHER_MAX: u64 = 4_000_000;
/// The first build that may have kinds of data which nobody knows here.
const UNKNOWN: u64 = 72_000;

/// What reading a part needs to know.
#[derive(Debug, Serialize, Deserialize)]
struct Token {
    collection: String,
    selection: Selection,
}

impl RavenSource {
    /// The database that the server stands for; nothing is opened yet.
    pub fn new(server: Arc<Server>) -> RavenSource {
        RavenSource { server }
    }

    /// The database's numbers, and the task that holds tombstones: as the user wants it.
    pub(crate) async fn stand(&self) -> Result<(Stats, Option<u64>)> {
        let (_, stats) = self.look().await?;
        let hold = match self.server.wanted_tombstones()? {
            Tombstones::Hold => Some(hold::begin(&self.server).await?),
            Tombstones::AsBefore => hold::task(&self.server).await?,
            Tombstones::Release => {
                hold::end(&self.server).await?;
                None
            }
        };
        // Numbers from before the hold would promise tombstones that may be gone.
        let stats = if hold.is_some() { self.server.must_stats().await? } else { stats };
        Ok((stats, hold))
    }

    async fn look(&self) -> Result<(Build, Stats)> {
        let build = self.server.build().await?;
        Ok((build, self.server.must_stats().await?))
    }

    /// The collections with their numbers of documents, and the one of the database itself.
    async fn list(&self) -> Result<Vec<(CollectionInfo, Option<u64>)>> {
        let all = self.server.collections().await?;
        let mut listed: Vec<_> = all.into_iter().map(|(name, n)| (catalog::info(&name), Some(n))).collect();
        listed.push((catalog::info(DATABASE), None));
        Ok(listed)
    }

    /// Whether everything is read by one export, in one transaction. What the vault knows of all its
    /// collections is in memory then, so that many documents are read by collection instead. The export
    /// does not say which collections conflicts belong to.
    fn is_together(&self, parts: &[Part], stats: &Stats, selection: &Selection) -> bool {
        parts.len() > 1
            && selection.only.is_empty()
            && stats.conflicts() == 0
            && stats.count_of_documents <= TOGETHER_MAX
    }

    async fn scan(&self, selection: &Selection, stats: &Stats, hold: Option<u64>) -> Result<Plan> {
        let whole = |info: &CollectionInfo| selection.takes_all_of(&info.name);
        let mut parts = Vec::new();
        for (info, documents) in self.list().await? {
            if !selection.takes(&info.name) {
                continue;
            }
            let token = Token { collection: info.name.clone(), selection: selection.clone() };
            parts.push(Part {
                token: serde_json::to_string(&token).map_err(|e| Error::bug("a part's token").caused_by(e))?,
                documents: documents.filter(|_| whole(&info)),
                bytes: None,
                collection: info,
            });
        }
        let place = hold.filter(|_| changes::obstacle(stats).is_none() && parts.iter().all(|p| whole(&p.collection)));
        let start = place.map(|hold| Place::at(stats, hold).position()).transpose()?;
        // Each collection is read in a transaction of its own; the changes since make one state of them.
        let together = self.is_together(&parts, stats, selection);
        if together {
            for part in &mut parts {
                part.token = TOGETHER.to_owned() + &part.token;
            }
        }
        let one = parts.len() == 1 || start.is_some() || together;
        let consistency = if one { Consistency::OneTime } else { Consistency::PerDocument };
        Ok(Plan::Scan { start, parts, at: None, consistency, skipped: Vec::new() })
    }
}

#[async_trait]
impl Source for RavenSource {
    async fn describe(&self) -> Result<Description> {
        let (build, stats) = self.look().await?;
        Ok(Description {
            engine: Engine::new("ravendb"),
            identity: format!("ravendb:{}", stats.database_id),
            name: self.server.database()?,
            version: build.version(),
            feed: FeedKind::LatestState,
            collections: self.list().await?.into_iter().map(|(info, _)| info).collect(),
            losses: losses(&build),
        })
    }

    async fn plan(&self, selection: &Selection, last: Option<&SourceState>) -> Result<Plan> {
        let (stats, hold) = self.stand().await?;
        let last = last.and_then(|last| Some((last, last.position.clone()?)));
        let Some((last, from)) = last else { return self.scan(selection, &stats, hold).await };
        let place = Place::of(&from)?;
        let compare = match place.judge(&stats, hold) {
            changes::Verdict::GoesOn if place.is_on_native() && !selection.is_all() => {
                "the server's own backup is of the whole database".to_owned()
            }
            changes::Verdict::GoesOn => match place.untold(&self.server, &stats, selection).await? {
                None => return Ok(Plan::Changes { from }),
                Some(why) => why,
            },
            changes::Verdict::Compare(why) => why,
            changes::Verdict::Lost(why) => {
                let then = self.scan(selection, &stats, hold).await?;
                return Ok(Plan::Gap { gap: Gap { from: last.time, to: None, why }, then: Box::new(then) });
            }
        };
        match place.is_on_native() {
            // It cannot be compared with anything: the user waits for a scan, and pays for its room.
            true => tracing::warn!("everything is read, and stored beside the backup that the server made: {compare}"),
            false => tracing::info!("everything is read and compared: {compare}"),
        }
        self.scan(selection, &stats, hold).await
    }

    async fn read_together(&self, parts: &[Part], attachments: Arc<dyn AttachmentStore>) -> Result<Option<ScanStream>> {
        let Some(first) = parts.first().and_then(|part| part.token.strip_prefix(TOGETHER)) else { return Ok(None) };
        let token: Token = serde_json::from_str(first).map_err(|e| Error::bug("a part's token").caused_by(e))?;
        let build = self.server.build().await?;
        let types = [catalog::of_collection(&build), catalog::of_database(&build)].concat();
        let input = self.server.export(&build, &types, None, None).await?;
        let gather = Gather::new(Route::Each, token.selection, attachments);
        let known = parts.iter().map(|part| part.collection.id.clone()).collect();
        Ok(Some(announced(scan(Reader::new(input), gather), known, self.server.clone())))
    }

    async fn read(&self, part: &Part, attachments: Arc<dyn AttachmentStore>) -> Result<ScanStream> {
        let token: Token = serde_json::from_str(part.token.trim_start_matches(TOGETHER))
            .map_err(|e| Error::bug("a part of another source was read from RavenDB").caused_by(e))?;
        let build = self.server.build().await?;
        let input = match token.collection.as_str() {
            DATABASE => self.server.export(&build, catalog::of_database(&build), None, None).await?,
            name => self.server.export(&build, catalog::of_collection(&build), Some(name), None).await?,
        };
        let gather = Gather::new(Route::All(token.collection), token.selection, attachments);
        Ok(scan(Reader::new(input), gather))
    }

    async fn changes(
        &self,
        from: &Following,
        until: Until,
        attachments: Arc<dyn AttachmentStore>,
    ) -> Result<ChangeStream> {
        changes::follow(self.server.clone(), from, until, attachments).await
    }
}

/// What is not asked for. Servers that came later may hold kinds of things that nobody knows here.
fn losses(build: &Build) -> Vec<Loss> {
    if build.build < UNKNOWN {
        return Vec::new();
    }
    let why = format!("this version of Rewound knows RavenDB up to 7.1, the server is {}", build.version());
    vec![Loss { what: "kinds of data that only newer servers have".into(), why }]
}

/// The same, with collections announced that are not known yet.
fn announced(items: ScanStream, known: HashSet<CollectionId>, server: Arc<Server>) -> ScanStream {
    let state = (items, known, server, None);
    futures::stream::try_unfold(state, |(mut items, mut known, server, waiting)| async move {
        if let Some(batch) = waiting {
            return Ok(Some((ScanItem::Batch(batch), (items, known, server, None))));
        }
        let Some(item) = items.next().await.transpose()? else { return Ok(None) };
        match item {
            ScanItem::Batch(batch) if known.insert(batch.collection.clone()) => {
                let all = server.collections().await?;
                let name = all.into_keys().find(|name| collection_id(name) == batch.collection);
                let name = name.unwrap_or_else(|| batch.collection.as_str().to_owned());
                Ok(Some((ScanItem::Catalog(catalog::info(&name)), (items, known, server, Some(batch)))))
            }
            item => Ok(Some((item, (items, known, server, None)))),
        }
    })
    .boxed()
}

/// All batches of a dump.
pub(crate) fn scan(reader: Reader, gather: Gather) -> ScanStream {
    let (out, items) = tokio::sync::mpsc::channel(QUEUE);
    tokio::spawn(async move {
        if let Err(error) = pump(reader, gather, &out).await {
            let _ = out.send(Err(error)).await;
        }
    });
    futures::stream::unfold(items, |mut items| async { items.recv().await.map(|item| (item, items)) }).boxed()
}

type Out = tokio::sync::mpsc::Sender<Result<ScanItem>>;

async fn pump(mut reader: Reader, mut gather: Gather, out: &Out) -> Result<()> {
    let gone = |_| Error::new(ErrorKind::Interrupted, "nobody reads on");
    while let Some(event) = reader.next().await? {
        gather.take(&mut reader, event).await?;
        for batch in gather.take_ready() {
            out.send(Ok(ScanItem::Batch(batch))).await.map_err(gone)?;
        }
    }
    for batch in gather.finish() {
        out.send(Ok(ScanItem::Batch(batch))).await.map_err(gone)?;
    }
    Ok(())
}
