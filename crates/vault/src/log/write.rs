//! Writing one run's chain: flush by flush, many small ones rolled up into one object.

use super::contents::{self, ListedContent, Mention};
use super::gather::Gather;
use super::header::LogHeader;
use super::{Appended, CatalogChange, Flush, seal};
use crate::frame::ClosedFrame;
use crate::hash::hex;
use crate::manifest::{Catalog, LogSpan};
use crate::name::LogName;
use crate::objects::blocking;
use crate::segment;
use crate::vault::Inner;
use model::{ChangeBatch, CollectionId, Encoding, EngineTime, Error, Position, Result};
use std::collections::HashSet;

/// Raw bytes of flushes that are rolled up into one object (16 MiB), as much as a segment holds.
const ROLL_RAW: usize = 16 << 20;
/// Raw bytes of a flush that stays as it is (4 MiB): as an object it is large enough.
const ALONE_RAW: usize = 4 << 20;
/// Flushes that are rolled up at the latest.
const ROLL_FLUSHES: usize = 1000;
/// Contents in objects of their own after which flushes are rolled up at the latest: their list takes about 20 MiB.
const ROLL_CONTENTS: usize = 1 << 16;
/// Mentions of contents that are remembered, so that each is listed once (a million, about 40 MiB). Beyond, what
/// is mentioned again is listed again.
const MENTIONED: usize = 1 << 20;
/// Milliseconds after which flushes are rolled up at the latest: an hour.
const ROLL_MILLIS: i64 = 3_600_000;

/// The chain of one run.
#[derive(Debug)]
pub(crate) struct Chain {
    source: String,
    run: String,
    level: i32,
    /// The time it begins after.
    pub from: EngineTime,
    /// The time up to which it is complete.
    pub time: EngineTime,
    /// The position at that time.
    pub position: Position,
    /// How many flushes it has.
    pub flushes: u32,
    /// blake3 of the stored bytes of the last flush.
    pub last: Option<String>,
    /// What became of collections.
    pub catalog: Vec<CatalogChange>,
    /// Collections with changes.
    pub touched: HashSet<CollectionId>,
    /// Puts and patches so far.
    pub changed: u64,
    /// Deletions so far.
    pub deleted: u64,
    /// Stored bytes so far.
    pub bytes: u64,
    encoding: Encoding,
    roll: Option<Roll>,
    /// Whether it is time to roll up what there is.
    is_due: bool,
    /// Contents in objects of their own that are listed.
    mentioned: HashSet<Mention>,
}

/// Flushes that may be rolled up.
#[derive(Debug)]
pub(crate) struct Roll {
    /// What its flushes say.
    pub changes: Vec<ChangeBatch>,
    catalog: Vec<CatalogChange>,
    raw: usize,
    /// What the lists of its flushes say, and how many there are.
    listed: Vec<ListedContent>,
    lists: usize,
    start: Start,
    /// The times at which its flushes ended; the last of them is the end.
    commits: Vec<EngineTime>,
    end: End,
    began: i64,
}

/// Where an object begins.
#[derive(Debug, Clone)]
struct Start {
    first: u32,
    previous: Option<String>,
    position: Position,
    time: EngineTime,
}

/// Where an object ends.
#[derive(Debug, Clone)]
struct End {
    /// blake3 of the stored bytes of the last flush, if that is not the object itself.
    hash: Option<String>,
    position: Position,
    time: EngineTime,
}

impl Chain {
    /// A chain that begins after a position, whose time is `time`.
    pub fn new(source: &str, run: &str, level: i32, position: &Position, time: EngineTime) -> Chain {
        Chain {
            source: source.to_owned(),
            run: run.to_owned(),
            level,
            from: time,
            time,
            position: position.clone(),
            flushes: 0,
            last: None,
            catalog: Vec::new(),
            touched: HashSet::new(),
            changed: 0,
            deleted: 0,
            bytes: 0,
            encoding: Encoding::Json,
            roll: None,
            is_due: false,
            mentioned: HashSet::new(),
        }
    }

    /// What a point says of it.
    pub fn span(&self) -> Option<LogSpan> {
        let last = self.last.clone()?;
        Some(LogSpan { run: self.run.clone(), from: self.from, to: self.time, objects: self.flushes, last })
    }

    /// Whether anything has changed.
    pub fn has_changes(&self) -> bool {
        !self.touched.is_empty() || !self.catalog.is_empty()
    }

    /// Changes a catalog from before the chain.
    pub fn change(&self, catalog: &mut Catalog) {
        super::apply(catalog, &self.catalog, |id| self.touched.contains(id));
    }

    /// Writes one flush, durably. After an error nothing of it counts: it may be given again, alone
    /// or with what came since. Gives also the contents that it is the first one to refer to.
    pub async fn append(&mut self, vault: &Inner, flush: &Flush) -> Result<(Appended, Vec<ListedContent>)> {
        self.check(flush)?;
        let flushed = gather(vault, &flush.changes, &flush.catalog)?;
        let (raw, encoding) = (flushed.raw(), flushed.encoding().unwrap_or(self.encoding));
        let (encoding, frames) = flushed.finish(encoding)?;
        let mentioned = contents::new_in(&flush.changes, &self.mentioned)?;
        if !mentioned.is_empty() {
            let new = mentioned.iter().map(|(_, listed)| listed.clone()).collect();
            let flush = (self.flushes, self.flushes);
            self.bytes += contents::store(vault, (&self.source, &self.run), flush, new).await?;
        }
        let start = Start {
            first: self.flushes,
            previous: self.last.clone(),
            position: self.position.clone(),
            time: self.time,
        };
        let end = End { hash: None, position: flush.to.clone(), time: flush.time };
        let (name, bytes) = self.store(vault, start.clone(), end.clone(), Vec::new(), encoding, frames).await?;
        (self.time, self.position, self.encoding) = (flush.time, flush.to.clone(), encoding);
        self.last = Some(hex(&name.stored));
        self.flushes += 1;
        let (mentions, listed): (Vec<_>, Vec<_>) = mentioned.into_iter().unzip();
        remember(&mut self.mentioned, mentions, MENTIONED);
        self.count(flush);
        if raw >= ALONE_RAW {
            self.is_due = true;
        } else {
            let now = vault.seams.clock.now_millis();
            let roll = self.roll.get_or_insert_with(|| Roll {
                changes: Vec::new(),
                catalog: Vec::new(),
                raw: 0,
                listed: Vec::new(),
                lists: 0,
                start,
                commits: Vec::new(),
                end: end.clone(),
                began: now,
            });
            roll.changes.extend_from_slice(&flush.changes);
            roll.catalog.extend_from_slice(&flush.catalog);
            roll.raw += raw;
            roll.lists += usize::from(!listed.is_empty());
            roll.listed.extend_from_slice(&listed);
            roll.commits.push(end.time);
            roll.end = End { hash: self.last.clone(), ..end };
            let old = now - roll.began >= ROLL_MILLIS;
            let much = roll.raw >= ROLL_RAW || roll.listed.len() >= ROLL_CONTENTS;
            self.is_due = much || roll.commits.len() >= ROLL_FLUSHES || old;
        }
        Ok((Appended { object: name.to_string(), bytes }, listed))
    }

    /// Readers leave out what lies outside of an object's times, so nothing may.
    fn check(&self, flush: &Flush) -> Result<()> {
        let times = flush.changes.iter().flat_map(|c| &c.times).chain(flush.catalog.iter().map(|(.., time)| time));
        let outside = |time: EngineTime| time.order <= self.time.order || time.order > flush.time.order;
        let wrong = times.copied().find(|time| outside(*time));
        if flush.time.order < self.time.order || wrong.is_some() {
            return Err(Error::bug(format!(
                "a flush from {} to {} has a change of {}",
                self.time,
                flush.time,
                wrong.unwrap_or(flush.time)
            )));
        }
        Ok(())
    }

    fn count(&mut self, flush: &Flush) {
        for change in &flush.changes {
            let counter = if change.batch.kind.is_tombstone() { &mut self.deleted } else { &mut self.changed };
            *counter += change.batch.len() as u64;
            if !change.batch.is_empty() && !self.touched.contains(&change.batch.collection) {
                self.touched.insert(change.batch.collection.clone());
            }
        }
        self.catalog.extend(flush.catalog.iter().cloned());
    }

    /// Whether the next flush is the first one of those that are rolled up together.
    pub fn begins_roll(&self) -> bool {
        self.roll.is_none()
    }

    /// Whether it is time to roll up.
    pub fn is_due(&self) -> bool {
        self.is_due
    }

    /// The flushes since the last rolled object, if there are several. They are no longer rolled up after it.
    pub fn take_roll(&mut self) -> Option<Roll> {
        self.is_due = false;
        self.roll.take().filter(|roll| roll.commits.len() > 1)
    }

    /// Writes flushes as one, and their lists. That it fails harms nothing, as the flushes stay. Gives the contents
    /// that no flush has listed.
    pub async fn roll_up(&mut self, vault: &Inner, roll: Roll) -> Result<Vec<ListedContent>> {
        let Roll { changes, catalog, mut listed, lists, start, mut commits, end, .. } = roll;
        commits.pop();
        let flushes = (start.first, start.first + commits.len() as u32);
        let (mentions, new): (Vec<_>, Vec<_>) = contents::new_in(&changes, &self.mentioned)?.into_iter().unzip();
        listed.extend_from_slice(&new);
        if lists > 1 || !new.is_empty() {
            self.bytes += contents::store(vault, (&self.source, &self.run), flushes, listed).await?;
        }
        let (encoding, frames) = gather(vault, &changes, &catalog)?.finish(self.encoding)?;
        self.store(vault, start, end, commits, encoding, frames).await?;
        remember(&mut self.mentioned, mentions, MENTIONED);
        Ok(new)
    }

    /// Stores an object, durably. `commits` are the ends of its flushes but the last.
    async fn store(
        &mut self,
        vault: &Inner,
        start: Start,
        end: End,
        commits: Vec<EngineTime>,
        encoding: Encoding,
        frames: Vec<ClosedFrame>,
    ) -> Result<(LogName, u64)> {
        let (source, run) = (self.source.clone(), self.run.clone());
        let (first, last) = (start.first, start.first + commits.len() as u32);
        let header = LogHeader {
            rewound: "log".into(),
            format: crate::vault_file::FORMAT,
            source: source.clone(),
            run: run.clone(),
            first,
            last,
            previous: start.previous,
            ends: end.hash,
            from: start.position,
            to: end.position,
            from_time: start.time,
            to_time: end.time,
            commits,
            written: vault.seams.clock.now_millis(),
            frames: Vec::new(),
        };
        let (cipher, signing, level) = (vault.objects()?.cipher, vault.signing()?.clone(), self.level);
        let age = if cipher.is_plain() { "" } else { ".age" };
        let stored = blocking(move || seal::seal(header, encoding, frames, level, &signing, &cipher)).await?;
        let name = LogName {
            source,
            run,
            first,
            last,
            from: start.time.millis.max(0) as u64,
            to: end.time.millis.max(0) as u64,
            stored: *blake3::hash(&stored).as_bytes(),
            endings: format!("{}.zst{age}", segment::ending(encoding)),
        };
        let bytes = stored.len() as u64;
        vault.storage.create(&name.to_string(), stored.into()).await?;
        vault.storage.sync().await?;
        self.bytes += bytes;
        Ok((name, bytes))
    }
}

fn gather(vault: &Inner, changes: &[ChangeBatch], catalog: &[CatalogChange]) -> Result<Gather> {
    let (keys, mut gather) = (vault.objects()?.keys, Gather::default());
    changes.iter().try_for_each(|change| gather.push(&keys, change))?;
    catalog.iter().for_each(|change| gather.push_catalog(change));
    Ok(gather)
}

/// Remembers mentions, at most so many; if there are more, none from before.
fn remember(known: &mut HashSet<Mention>, new: Vec<Mention>, most: usize) {
    if known.len() + new.len() > most {
        known.clear();
    }
    known.extend(new);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_mentions_are_remembered_than_there_is_room_for() {
        let mut known = HashSet::new();
        for flush in 0..100u8 {
            remember(&mut known, vec![[flush; 32], [flush ^ 0x80; 32]], 10);
            assert!(known.len() <= 10 && known.contains(&[flush; 32]), "{flush}: {}", known.len());
        }
    }
}
