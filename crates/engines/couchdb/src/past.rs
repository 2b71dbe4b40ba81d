//! Bringing one database back to what it was, by new revisions: what its documents are is looked at, many
//! at once, and only what differs is written.

use crate::attach::{self, Source};
use crate::client::{ANSWER_MAX, Request, segment};
use crate::copies;
use crate::document::{self, Content};
use crate::fetch::{self, Pace};
use crate::inline;
use crate::leaf::Leaf;
use crate::revise;
use crate::rewind::Goal;
use crate::rows::{self, Row};
use crate::server::Server;
use crate::writer::{Bulk, TOGETHER, Writer, hash, is_design};
use futures::stream::{self, StreamExt, TryStreamExt};
use model::{AttachmentStore, Batch, Error, ErrorKind, Kind, Result};
use serde::Deserialize;
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

/// Documents that are looked at together.
const AT_ONCE: usize = 500;
/// Batches that are brought in side by side, and of one batch so many documents with attachments.
pub(crate) const SIDE_BY_SIDE: usize = 4;
/// How often a document is written again that somebody else changes at the same time.
const TRIES: usize = 20;

/// One database with what is known of its past.
pub(crate) struct Past {
    pub name: String,
    pub whole: bool,
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

/// What became of its documents.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub changed: u64,
    pub deleted: u64,
    equal: u64,
    /// Documents that had conflicts then.
    conflicts: u64,
    pub attachments: u64,
    pub bytes: u64,
}

/// A document as it was.
struct Wanted<'a> {
    id: String,
    /// What won; none if it was not there.
    was: Option<Leaf<'a>>,
    /// The contents of its attachments.
    attached: Option<(&'a [Content], Option<Source>)>,
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

impl Head {
    /// The revision that a new one names as the one before it. A deleted document is made anew on top of its
    /// deletion if none is named, and only then.
    fn base(&self) -> Option<&str> {
        (!self.deleted).then_some(&*self.rev)
    }
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
    pub async fn new(server: &Arc<Server>, goal: &Goal) -> Result<Past> {
        let name = goal.planned.target.clone();
        let copies = copies::count(&server.client, &name).await?;
        let writer = Writer::new(server.clone(), &name, copies).await?;
        Ok(Past { whole: goal.whole, writer, pace: Pace::default(), noted: Mutex::default(), name })
    }

    pub fn counts(&self) -> Counts {
        self.noted().counts
    }

    fn noted(&self) -> std::sync::MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Takes a batch; design documents are put aside.
    pub async fn take(&self, batch: &Batch, store: Option<&Arc<dyn AttachmentStore>>) -> Result<()> {
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
        let abouts = numbers.iter().map(|i| attach::about(batch.body_of(*i))).collect::<Result<Vec<_>>>()?;
        let mut wanted = Vec::with_capacity(numbers.len());
        for (i, about) in numbers.iter().copied().zip(&abouts) {
            let was = revise::winner(document::leaves(about.body.get().as_bytes())?);
            {
                let mut noted = self.noted();
                noted.awaited.remove(&hash(batch.key_of(i)));
                noted.arrived.insert(hash(batch.key_of(i)));
            }
            // Else the attachments are those of revisions that had lost.
            if let Some(leaf) = was.filter(|leaf| !leaf.deleted && !leaf.attachments.is_empty()) {
                let source = store.map(|store| Source::of(batch, i, store)).transpose()?;
                let (id, attached) = (leaf.id.to_string(), Some((&*about.contents, source)));
                wanted.push(Wanted { id, was: Some(leaf), attached, revs: Vec::new(), tried: false });
            }
        }
        self.bring(wanted, store.is_some()).await
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
        let (mut attached, mut next) = (Vec::new(), 0);
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
            let rev = head.as_ref().and_then(Head::base);
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
                Some(_) => attached.push((want, head)),
                None => {
                    bulk.push(&revise::successor(&was.text, rev, std::iter::empty())?);
                    sent.push(want);
                }
            }
            if bulk.bytes() >= TOGETHER {
                overtaken.extend(self.send(std::mem::take(&mut bulk), std::mem::take(&mut sent), writes).await?);
            }
        }
        overtaken.extend(self.send(bulk, sent, writes).await?);
        overtaken.extend(self.send_attached(attached).await?);
        Ok(overtaken)
    }

    /// Sends new revisions with attachments, a request each; gives those that somebody else was faster with.
    async fn send_attached<'a>(&self, all: Vec<(Wanted<'a>, Option<Head>)>) -> Result<Vec<Wanted<'a>>> {
        let together = if self.writer.multipart { SIDE_BY_SIDE } else { 1 };
        let sending: Vec<_> = all.into_iter().map(|(want, head)| self.attached(want, head)).collect();
        let mut sending = stream::iter(sending).buffer_unordered(together);
        let mut overtaken = Vec::new();
        while let Some(again) = sending.try_next().await? {
            overtaken.extend(again);
        }
        Ok(overtaken)
    }

    /// Sends one; gives it back if somebody else was faster.
    async fn attached<'a>(&self, want: Wanted<'a>, head: Option<Head>) -> Result<Option<Wanted<'a>>> {
        let rev = head.as_ref().and_then(Head::base);
        let (Some(was), Some((contents, Some(source)))) = (&want.was, &want.attached) else { return Ok(None) };
        if self.writer.attached_anew(was, contents, source, rev).await? {
            return Ok(Some(want));
        }
        self.count(&want, true, false);
        Ok(None)
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
    pub async fn complete(&self, deletes: bool, store: Option<&Arc<dyn AttachmentStore>>) -> Result<()> {
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
            let mut deleting = Vec::new();
            while !strange.is_empty() {
                let rest = strange.split_off(strange.len().min(AT_ONCE));
                let some = std::mem::replace(&mut strange, rest).into_iter();
                let gone =
                    some.map(|row| Wanted { id: row.id, was: None, attached: None, revs: row.revs, tried: false });
                deleting.push(self.bring(gone.collect(), writes));
            }
            stream::iter(deleting).buffer_unordered(SIDE_BY_SIDE).try_collect::<()>().await?;
            if !page.more || page.last == since {
                return Ok(());
            }
            since = page.last;
        }
    }

    /// What was done, or would be.
    pub fn lines(&self) -> Vec<String> {
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
