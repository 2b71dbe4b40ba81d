//! Rewinding databases that clients replicate with: what documents were becomes new revisions on top of
//! what they are. Nothing is written where that is the same already.

use crate::attach::{self, Source};
use crate::client::{ANSWER_MAX, Request, segment};
use crate::document::{self, Content};
use crate::extras;
use crate::fetch::{self, Pace};
use crate::inline;
use crate::leaf::Leaf;
use crate::revise;
use crate::rows::{self, Row};
use crate::server::Server;
use crate::writer::{Bulk, TOGETHER, Writer, hash, is_design};
use async_trait::async_trait;
use model::{
    AttachmentStore, Batch, CollectionId, CollectionInfo, Error, ErrorKind, Kind, Leftovers, PlannedCollection,
    Rehearsal, RestoreReport, Result, SinkSession,
};
use serde::Deserialize;
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

/// Documents that are looked at together.
const AT_ONCE: usize = 500;
/// How often a document is written again that somebody else changes at the same time.
const TRIES: usize = 20;

/// One database that is to be rewound.
#[derive(Debug, Clone)]
pub(crate) struct Goal {
    pub planned: PlannedCollection,
    /// Whether all of it is: then what was not there then is deleted.
    pub whole: bool,
}

/// The databases of which a backup has more than single documents: it has their settings.
#[derive(Debug, Clone, Default)]
pub(crate) struct Whole(Arc<Mutex<HashSet<CollectionId>>>);

impl Whole {
    /// Learns from what a backup has.
    pub fn note(&self, batch: &Batch) {
        if batch.kind == extras::settings() {
            self.0.lock().unwrap_or_else(|e| e.into_inner()).insert(batch.collection.clone());
        }
    }

    fn has(&self, id: &CollectionId) -> bool {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).contains(id)
    }
}

/// Databases that are being rewound, or looked at for that.
pub(crate) struct Rewind {
    known: Whole,
    pasts: HashMap<CollectionId, Past>,
    /// Writes nothing without one.
    store: Option<Arc<dyn AttachmentStore>>,
}

/// One database with what is known of its past.
struct Past {
    name: String,
    whole: bool,
    writer: Writer,
    pace: Pace,
    noted: Mutex<Noted>,
}

#[derive(Default)]
struct Noted {
    /// The documents that there were, as hashes: 8 bytes each are what memory has to hold.
    ids: Vec<u64>,
    /// Design documents and their attachments come last, as they may refuse others.
    later: Vec<Batch>,
    /// Documents whose attachments have not come yet, and those whose attachments have.
    awaited: HashSet<u64>,
    arrived: HashSet<u64>,
    counts: Counts,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    changed: u64,
    deleted: u64,
    equal: u64,
    /// Documents that had conflicts then.
    conflicts: u64,
    attachments: u64,
    bytes: u64,
}

/// A document as it was.
struct Wanted<'a> {
    id: String,
    /// What won; none if it was not there.
    was: Option<Leaf<'a>>,
    /// The contents of its attachments.
    attached: Option<(Vec<Content>, Option<Source>)>,
    /// Its leaves now, as far as they are known.
    revs: Vec<String>,
    /// Whether it was written before, and somebody else was faster.
    tried: bool,
}

/// What the server says of the winner of a document.
#[derive(Debug, Clone, Deserialize)]
struct Head {
    rev: String,
    #[serde(default)]
    deleted: bool,
}

#[derive(Deserialize)]
struct HeadRow {
    key: String,
    #[serde(default)]
    value: Option<Head>,
}

#[derive(Deserialize)]
struct HeadRows {
    rows: Vec<HeadRow>,
}

impl Past {
    fn noted(&self) -> std::sync::MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Takes a batch; design documents are put aside.
    async fn take(&self, batch: &Batch, store: Option<&Arc<dyn AttachmentStore>>) -> Result<()> {
        let (designs, others): (Vec<_>, Vec<_>) = (0..batch.len()).partition(|i| is_design(batch.key_of(*i)));
        if batch.kind == Kind::Document {
            self.noted().ids.extend((0..batch.len()).map(|i| hash(batch.key_of(i))));
        }
        if !designs.is_empty() {
            let mut later = batch.clone();
            later.docs = designs.iter().map(|i| batch.docs[*i]).collect();
            later.attachments = designs.iter().filter_map(|i| batch.attachments.get(*i).cloned()).collect();
            self.noted().later.push(later);
        }
        self.batch(batch, &others, store).await
    }

    async fn batch(&self, batch: &Batch, numbers: &[usize], store: Option<&Arc<dyn AttachmentStore>>) -> Result<()> {
        if batch.kind == Kind::Document {
            return self.documents(batch, numbers, store.is_some()).await;
        }
        if batch.kind != Kind::Attachment && batch.kind != inline::kind() {
            return Err(Error::unsupported(format!("{} entries have no revisions", batch.kind.space())));
        }
        for i in numbers.iter().copied() {
            let about = attach::about(batch.body_of(i))?;
            let source = store.map(|store| Source::of(batch, i, store)).transpose()?;
            let was = revise::winner(document::leaves(about.body.get().as_bytes())?);
            {
                let mut noted = self.noted();
                noted.awaited.remove(&hash(batch.key_of(i)));
                noted.arrived.insert(hash(batch.key_of(i)));
            }
            // Else the attachments are those of revisions that had lost.
            if let Some(leaf) = was.filter(|leaf| !leaf.deleted && !leaf.attachments.is_empty()) {
                let attached = Some((about.contents, source));
                let id = leaf.id.to_string();
                self.bring(
                    vec![Wanted { id, was: Some(leaf), attached, revs: Vec::new(), tried: false }],
                    store.is_some(),
                )
                .await?;
            }
        }
        Ok(())
    }

    async fn documents(&self, batch: &Batch, numbers: &[usize], writes: bool) -> Result<()> {
        for some in numbers.chunks(AT_ONCE) {
            let mut wanted = Vec::with_capacity(some.len());
            for i in some.iter().copied() {
                let leaves = document::leaves(batch.body_of(i))?;
                let key = hash(batch.key_of(i));
                let mut noted = self.noted();
                noted.counts.conflicts += u64::from(leaves.iter().filter(|leaf| !leaf.deleted).count() > 1);
                let Some(leaf) = revise::winner(leaves) else { continue };
                if !leaf.deleted && !leaf.attachments.is_empty() {
                    if !noted.arrived.contains(&key) {
                        noted.awaited.insert(key);
                    }
                    continue;
                }
                let (id, was) = (leaf.id.to_string(), Some(leaf).filter(|leaf| !leaf.deleted));
                wanted.push(Wanted { id, was, attached: None, revs: Vec::new(), tried: false });
            }
            self.bring(wanted, writes).await?;
        }
        Ok(())
    }

    /// Makes documents what they were, as long as somebody else is faster.
    async fn bring(&self, mut wanted: Vec<Wanted<'_>>, writes: bool) -> Result<()> {
        for _ in 0..TRIES {
            if wanted.is_empty() {
                return Ok(());
            }
            wanted = self.try_once(wanted, writes).await?;
        }
        let first = wanted.first().map_or("", |want| &want.id);
        Err(Error::new(
            ErrorKind::Retry,
            format!("document {first} of {} is changed by others all the time", self.name),
        )
        .hint("run the command again when the clients are quiet: it goes on where it was"))
    }

    /// Gives those that somebody else was faster with.
    async fn try_once<'a>(&self, wanted: Vec<Wanted<'a>>, writes: bool) -> Result<Vec<Wanted<'a>>> {
        let heads = self.heads(&wanted).await?;
        let rows: Vec<Option<Row>> = wanted.iter().zip(&heads).map(|(want, head)| row(want, head.as_ref())).collect();
        let look: Vec<Row> = rows.iter().flatten().cloned().collect();
        let fetched = fetch::fetch(&self.writer.server.client, &self.name, &look, &self.pace).await?;
        let (mut bulk, mut sent, mut overtaken) = (Bulk::default(), Vec::new(), Vec::new());
        let mut next = 0;
        for ((mut want, head), row) in wanted.into_iter().zip(heads).zip(rows) {
            let leaves = if row.is_some() { fetched.leaves(next, false)? } else { Vec::new() };
            next += usize::from(row.is_some());
            let is_there = head.as_ref().is_some_and(|head| !head.deleted);
            let tried = std::mem::replace(&mut want.tried, true);
            let Some(was) = &want.was else {
                let there: Vec<_> = leaves.iter().filter(|leaf| !leaf.deleted).collect();
                there.iter().for_each(|leaf| bulk.push(&revise::tombstone(&want.id, &leaf.rev)));
                match is_there && !there.is_empty() {
                    true => sent.push(want),
                    false => self.count(&want, tried, true),
                }
                continue;
            };
            // A deleted document is made anew on top of its deletion if no revision is named, and only then.
            let rev = head.as_ref().filter(|head| !head.deleted).map(|head| &*head.rev);
            let now = revise::winner(leaves);
            let is_equal = is_there
                && (rev == Some(&was.rev)
                    || match &now {
                        Some(now) => revise::content(now)? == revise::content(was)?,
                        None => false,
                    });
            if is_equal {
                self.count(&want, tried, false);
                continue;
            }
            match &want.attached {
                _ if !writes => self.count(&want, true, false),
                Some((contents, Some(source))) => match self.writer.attached_anew(was, contents, source, rev).await? {
                    true => overtaken.push(want),
                    false => self.count(&want, true, false),
                },
                _ => {
                    bulk.push(&revise::successor(&was.text, rev, std::iter::empty())?);
                    sent.push(want);
                }
            }
            if bulk.bytes() >= TOGETHER {
                overtaken.extend(self.send(std::mem::take(&mut bulk), std::mem::take(&mut sent), writes).await?);
            }
        }
        overtaken.extend(self.send(bulk, sent, writes).await?);
        Ok(overtaken)
    }

    /// Sends new revisions; gives those that somebody else was faster with.
    async fn send<'a>(&self, bulk: Bulk, sent: Vec<Wanted<'a>>, writes: bool) -> Result<Vec<Wanted<'a>>> {
        let overtaken = if writes { self.writer.bulk_new(bulk).await? } else { HashSet::new() };
        let (again, done): (Vec<_>, Vec<_>) = sent.into_iter().partition(|want| overtaken.contains(&want.id));
        done.iter().for_each(|want| self.count(want, true, want.was.is_none()));
        let again = again.into_iter().map(|want| Wanted { revs: Vec::new(), ..want });
        Ok(again.collect())
    }

    /// Counts a document that is as it was, because it was written or without that.
    fn count(&self, want: &Wanted<'_>, written: bool, deleted: bool) {
        let counts = &mut self.noted().counts;
        match (written, deleted) {
            (true, false) => counts.changed += 1,
            (true, true) => counts.deleted += 1,
            (false, false) => counts.equal += 1,
            (false, true) => {}
        }
        if let (true, Some(was)) = (written, &want.was) {
            counts.bytes += was.text.len() as u64 + was.attachments.iter().map(|a| a.stored).sum::<u64>();
            counts.attachments += was.attachments.len() as u64;
        }
    }

    /// The winners of documents now, deleted ones, too.
    async fn heads(&self, wanted: &[Wanted<'_>]) -> Result<Vec<Option<Head>>> {
        let keys: Vec<&str> = wanted.iter().map(|want| &*want.id).collect();
        let request = Request::post(format!("{}/_all_docs", segment(&self.name)), json!({ "keys": keys }).to_string());
        let read = |bytes: &bytes::Bytes| serde_json::from_slice::<HeadRows>(bytes);
        let rows = self.writer.server.client.json(&request, ANSWER_MAX, read).await?.rows;
        let mut told: HashMap<String, Option<Head>> = rows.into_iter().map(|row| (row.key, row.value)).collect();
        let one = |key: &&str| {
            told.remove(*key).ok_or_else(|| {
                Error::corrupt(format!("the server was asked for document {key} of {}, and does not tell", self.name))
            })
        };
        keys.iter().map(one).collect()
    }

    /// Deletes what was not there then, and writes what had to wait.
    async fn complete(&self, deletes: bool, store: Option<&Arc<dyn AttachmentStore>>) -> Result<()> {
        self.all_came()?;
        if deletes {
            self.delete_others(store.is_some()).await?;
        }
        let later = std::mem::take(&mut self.noted().later);
        for batch in &later {
            self.batch(batch, &(0..batch.len()).collect::<Vec<_>>(), store).await?;
        }
        self.all_came()
    }

    fn all_came(&self) -> Result<()> {
        let awaited = self.noted().awaited.len();
        if awaited > 0 {
            return Err(Error::corrupt(format!(
                "the attachments of {awaited} documents of {} did not come",
                self.name
            ))
            .hint("they were left out of the backup or of the restore: take a backup that has them"));
        }
        Ok(())
    }

    /// Deletes what was not there then; before design documents are what they were, as they may refuse that.
    async fn delete_others(&self, writes: bool) -> Result<()> {
        let mut ids = std::mem::take(&mut self.noted().ids);
        ids.sort_unstable();
        let mut since = "0".to_owned();
        loop {
            let page = rows::page(&self.writer.server.client, &self.name, &since, rows::PAGE).await?;
            let strange = page.rows.into_iter().filter(|row| ids.binary_search(&hash(row.id.as_bytes())).is_err());
            let mut strange: Vec<Row> = strange.collect();
            while !strange.is_empty() {
                let rest = strange.split_off(strange.len().min(AT_ONCE));
                let some = std::mem::replace(&mut strange, rest).into_iter();
                let gone =
                    some.map(|row| Wanted { id: row.id, was: None, attached: None, revs: row.revs, tried: false });
                self.bring(gone.collect(), writes).await?;
            }
            if !page.more || page.last == since {
                return Ok(());
            }
            since = page.last;
        }
    }

    /// What was done, or would be.
    fn lines(&self) -> Vec<String> {
        let (Counts { changed, deleted, equal, conflicts, .. }, name) = (self.noted().counts, &self.name);
        let documents = |n: u64| if n == 1 { "1 document".to_owned() } else { format!("{n} documents") };
        let mut lines = vec![format!(
            "{name}: {} changed by a new revision, {deleted} deleted by one, {equal} left alone: they are what they were",
            documents(changed)
        )];
        if conflicts > 0 {
            lines.push(format!("{name}: {} had conflicts: only what won is written", documents(conflicts)));
        }
        lines
    }
}

/// What of a document must be fetched to know what it is.
fn row(want: &Wanted<'_>, head: Option<&Head>) -> Option<Row> {
    let head = head.filter(|head| !head.deleted)?;
    match &want.was {
        Some(was) if head.rev == was.rev => None,
        Some(_) => Some(Row { id: want.id.clone(), revs: vec![head.rev.clone()] }),
        None => Some(Row { id: want.id.clone(), revs: want.revs.clone() }),
    }
}

impl Rewind {
    /// Without a store, it only looks.
    pub async fn new(
        server: &Arc<Server>,
        goals: Vec<Goal>,
        known: Whole,
        store: Option<Arc<dyn AttachmentStore>>,
    ) -> Result<Rewind> {
        let mut pasts = HashMap::new();
        for goal in goals {
            let name = goal.planned.target;
            let past = Past {
                whole: goal.whole,
                writer: Writer::new(server.clone(), &name).await?,
                pace: Pace::default(),
                noted: Mutex::default(),
                name,
            };
            pasts.insert(goal.planned.info.id, past);
        }
        Ok(Rewind { known, pasts, store })
    }

    async fn take(&self, batch: &Batch) -> Result<()> {
        batch.check()?;
        let past = self.pasts.get(&batch.collection);
        let past = past.ok_or_else(|| Error::bug(format!("{} is not in the plan", batch.collection)))?;
        past.take(batch, self.store.as_ref()).await
    }

    async fn complete(&self) -> Result<RestoreReport> {
        let mut report = RestoreReport::default();
        let mut pasts: Vec<_> = self.pasts.iter().collect();
        pasts.sort_by(|a, b| a.1.name.cmp(&b.1.name));
        for (id, past) in pasts {
            let is_known = self.known.has(id);
            if past.whole && !is_known {
                let name = &past.name;
                report.notes.push(format!("{name}: nothing is deleted, as the backup may not have all that there was"));
            }
            past.complete(past.whole && is_known, self.store.as_ref()).await?;
            let counts = past.noted().counts;
            report.documents += counts.changed + counts.deleted;
            report.attachments += counts.attachments;
            report.bytes += counts.bytes;
            report.notes.extend(past.lines());
        }
        Ok(report)
    }

    /// What has been written so far, and stays.
    fn left(&self) -> Vec<String> {
        let counts = self.pasts.values().map(|past| (&past.name, past.noted().counts));
        let written = counts.map(|(name, counts)| (name, counts.changed + counts.deleted)).filter(|(_, n)| *n > 0);
        let mut left: Vec<_> = written
            .map(|(name, n)| format!("{n} new revisions in {name} (the same command goes on from there)"))
            .collect();
        left.sort();
        left
    }
}

#[async_trait]
impl SinkSession for Rewind {
    async fn catalog(&self, _: &CollectionInfo) -> Result<()> {
        Ok(())
    }

    async fn write(&self, batch: Batch) -> Result<()> {
        self.take(&batch).await
    }

    async fn finish(self: Box<Self>) -> Result<RestoreReport> {
        self.complete().await.map_err(|e| {
            let left = self.left();
            if left.is_empty() { e } else { e.hint(format!("left behind in the target: {}", left.join(", "))) }
        })
    }

    async fn abort(self: Box<Self>) -> Leftovers {
        Leftovers { what: self.left() }
    }
}

#[async_trait]
impl Rehearsal for Rewind {
    fn looks_at(&self, space: &str) -> bool {
        let kinds = [Kind::Document, Kind::Attachment, inline::kind(), extras::settings()];
        kinds.iter().any(|kind| kind.space() == space)
    }

    async fn see(&self, batch: &Batch) -> Result<()> {
        self.known.note(batch);
        if batch.kind == extras::settings() { Ok(()) } else { self.take(batch).await }
    }

    async fn lines(self: Box<Self>) -> Result<Vec<String>> {
        Ok(self.complete().await?.notes)
    }
}
