//! Comparing one kind space of one collection: which keys may differ, and whether they do.

use super::Change;
use super::record::{Entry, PATCH, PUT, Seen, digest, write};
use super::sides::{Piece, Side, pieces};
use crate::filter;
use crate::frame::Frame;
use crate::objects::{Objects, is_damage};
use crate::read::overlay::check_collection;
use crate::read::partitions::{Group, Partitions};
use crate::read::segments::Segments;
use crate::read::state::takes;
use model::{CollectionId, CollectionInfo, EngineTime, Error, Kind, Result, Selection};
use std::collections::HashSet;

/// Keys that are remembered to be looked at; if there are more, all are looked at.
const CANDIDATES: usize = 4 << 20;
/// Frames that are decoded at once.
const TOGETHER: usize = 8;

/// Comparing one kind space of one collection.
pub(super) struct Work<'a> {
    name: &'a str,
    id: &'a CollectionId,
    selection: &'a Selection,
    objects: Objects,
    segments: Segments,
    sides: [Side; 2],
    pieces: Vec<Piece>,
    /// Hashes of keys that may differ; none: all may.
    candidates: Option<HashSet<u64>>,
    /// Hashes of keys that have patches: their bodies are needed.
    patched: HashSet<u64>,
}

impl<'a> Work<'a> {
    /// Both sides hash alike, also where the collection has been made anew: as `info` says.
    pub fn new(objects: Objects, info: &'a CollectionInfo, selection: &'a Selection, sides: [Side; 2]) -> Self {
        Work {
            name: &info.name,
            id: &info.id,
            selection,
            pieces: pieces(&sides),
            sides,
            segments: Segments::new(objects.clone()),
            objects,
            candidates: Some(HashSet::new()),
            patched: HashSet::new(),
        }
    }

    fn hash(&self, frame: &Frame, i: usize) -> u64 {
        self.objects.keys.key(self.id, &frame.batch.kind, frame.batch.key_of(i))
    }

    fn is_selected(&self, frame: &Frame, i: usize) -> bool {
        takes(self.selection, self.name, &frame.batch, i)
    }

    /// Which sides a document of a frame counts for, and at which time.
    fn counts(&self, piece: &Piece, frame: &Frame, i: usize) -> ([bool; 2], EngineTime) {
        let stays = |s: usize, time: EngineTime| self.sides[s].dropped.is_none_or(|d| time.order > d.order);
        match piece {
            Piece::Layer { frame, known, .. } => ([0, 1].map(|s| known[s] && stays(s, frame.read)), frame.read),
            Piece::Log { counts, .. } => {
                let time = frame.times[i];
                let within =
                    |(after, until): &(EngineTime, EngineTime)| time.order > after.order && time.order <= until.order;
                ([0, 1].map(|s| counts[s].as_ref().is_some_and(within) && stays(s, time)), time)
            }
        }
    }

    /// Reads the next pieces, some frames at a time.
    async fn read<'p>(&self, pieces: &mut &'p [Piece]) -> Result<Vec<(&'p Piece, Frame)>> {
        let (first, id) = match pieces.first() {
            None => return Ok(Vec::new()),
            Some(piece @ Piece::Log { frame, counts }) => {
                let read = frame.read(&self.objects).await?;
                check_collection(&read.batch, &self.sides[usize::from(counts[0].is_none())].id)?;
                *pieces = &pieces[1..];
                return Ok(vec![(piece, read)]);
            }
            Some(Piece::Layer { frame, known, .. }) => (frame, &self.sides[usize::from(!known[0])].id),
        };
        let same = |p: &&Piece| matches!(p, Piece::Layer { frame, .. } if frame.entry.object == first.entry.object);
        let count = pieces.iter().take(TOGETHER).take_while(same).count();
        let (now, rest) = pieces.split_at(count);
        let numbers = now.iter().filter_map(|p| match p {
            Piece::Layer { frame, .. } => Some(frame.number),
            Piece::Log { .. } => None,
        });
        let frames = self.segments.read(&first.entry, numbers.collect()).await?;
        frames.iter().try_for_each(|f| check_collection(&f.batch, id))?;
        *pieces = rest;
        Ok(now.iter().zip(frames).collect())
    }

    /// Finds out which keys may differ, and which of them have patches. False if none can.
    pub async fn choose(&mut self) -> Result<bool> {
        let base = |s: usize| self.sides[s].layers.first().map(|(layer, _)| &layer.object);
        let [older, newer] = &self.sides;
        // What one side does not have at all differs as a whole.
        let both = older.there && newer.there && older.id == newer.id;
        if !both || base(0) != base(1) || older.dropped != newer.dropped {
            self.candidates = None;
        }
        let all = std::mem::take(&mut self.pieces);
        let log: Vec<Piece> = all.iter().filter(|p| matches!(p, Piece::Log { .. })).cloned().collect();
        let mut left = &log[..];
        while !left.is_empty() {
            for (piece, frame) in self.read(&mut left).await? {
                for i in 0..frame.batch.len() {
                    let (counts, _) = self.counts(piece, &frame, i);
                    if counts == [false, false] || !self.is_selected(&frame, i) {
                        continue;
                    }
                    let hash = self.hash(&frame, i);
                    if frame.batch.kind == Kind::Patch {
                        self.patched.insert(hash);
                    }
                    if counts[0] != counts[1] {
                        self.remember(hash);
                    }
                }
            }
        }
        let is_own = |p: &&Piece| matches!(p, Piece::Layer { known, .. } if *known != [true, true]);
        let own: Vec<Piece> = all.iter().filter(is_own).cloned().collect();
        let mut left = if self.candidates.is_some() { &own[..] } else { &[] };
        while !left.is_empty() {
            for (_, frame) in self.read(&mut left).await? {
                for i in 0..frame.batch.len() {
                    if self.is_selected(&frame, i) {
                        let hash = self.hash(&frame, i);
                        self.remember(hash);
                    }
                }
            }
        }
        self.pieces = all;
        Ok(self.candidates.as_ref().is_none_or(|c| !c.is_empty()))
    }

    fn remember(&mut self, hash: u64) {
        let Some(candidates) = &mut self.candidates else { return };
        candidates.insert(hash);
        if candidates.len() > CANDIDATES {
            self.candidates = None;
        }
    }

    /// Sorts what is known of the keys that may differ into groups.
    pub async fn collect(&mut self, partitions: &mut Partitions) -> Result<()> {
        let frames = self.frames_of_base().await?;
        let is_wanted = |p: &Piece| match (p, &frames) {
            (Piece::Layer { frame, is_base: true, .. }, Some(frames)) => {
                frames.contains(&(frame.entry.object.clone(), frame.number))
            }
            _ => true,
        };
        let pieces: Vec<Piece> = std::mem::take(&mut self.pieces).into_iter().filter(is_wanted).collect();
        let mut record = Vec::new();
        let mut number = 0u32;
        let mut left = &pieces[..];
        while !left.is_empty() {
            for (piece, frame) in self.read(&mut left).await? {
                for i in 0..frame.batch.len() {
                    let (counts, time) = self.counts(piece, &frame, i);
                    if counts == [false, false] {
                        continue;
                    }
                    let hash = self.hash(&frame, i);
                    let is_candidate = self.candidates.as_ref().is_none_or(|c| c.contains(&hash));
                    if is_candidate && self.is_selected(&frame, i) {
                        let is_copy = matches!(piece, Piece::Layer { .. });
                        let is_body = self.patched.contains(&hash);
                        write(&mut record, &frame, i, is_body, Seen { counts, time, is_copy, number });
                        partitions.push(hash, &record)?;
                        number = number.wrapping_add(1);
                    }
                }
            }
        }
        Ok(())
    }

    /// The frames of the oldest layer that may hold keys that may differ, found by its key filters;
    /// none if reading all of it is the shorter way.
    async fn frames_of_base(&self) -> Result<Option<HashSet<(String, u32)>>> {
        let Some(candidates) = &self.candidates else { return Ok(None) };
        let count = self.pieces.iter().filter(|p| matches!(p, Piece::Layer { is_base: true, .. })).count();
        let Some((layer, _)) = self.sides[1].layers.first() else { return Ok(None) };
        if candidates.len() >= count.min(10_000) {
            return Ok(None);
        }
        let mut hashes: Vec<u64> = candidates.iter().copied().collect();
        hashes.sort_unstable();
        let mut frames = HashSet::new();
        for reference in &layer.filters {
            match filter::look_up_many(&self.objects, reference, &hashes).await {
                Ok(found) => frames.extend(found.into_iter().map(|c| (c.object, c.frame as u32))),
                // Without it, everything is read.
                Err(e) if is_damage(&e) => return Ok(None),
                Err(e) => return Err(e),
            }
        }
        Ok(Some(frames))
    }

    /// The keys of a group whose bodies differ, by key.
    pub fn compare(&self, group: &Group) -> Result<Vec<(Vec<u8>, Change)>> {
        let mut entries: Vec<Entry<'_>> = group.records().filter_map(|(_, record)| Entry::read(record)).collect();
        entries.sort_unstable_by_key(|e| (e.key, e.time, e.is_copy, e.number));
        let mut changes = Vec::new();
        for entries in entries.chunk_by(|a, b| a.key == b.key) {
            let [before, now] = [self.body(0, entries)?, self.body(1, entries)?];
            let change = match (before, now) {
                (None, Some(_)) => Change::Added,
                (Some(_), None) => Change::Deleted,
                (Some(before), Some(now)) if before != now => Change::Changed,
                _ => continue,
            };
            changes.push((entries[0].key.to_vec(), change));
        }
        Ok(changes)
    }

    /// What stands for the body of a key on one side; none if it is not there.
    fn body(&self, s: usize, entries: &[Entry<'_>]) -> Result<Option<[u8; 32]>> {
        let side = &self.sides[s];
        let counting: Vec<&Entry<'_>> = entries.iter().filter(|e| e.counts[s]).collect();
        let last = counting.iter().rposition(|e| e.op != PATCH);
        let patches = &counting[last.map_or(0, |l| l + 1)..];
        let start = last.map(|l| counting[l]).filter(|e| e.op == PUT);
        let Some(start) = start else {
            // Older than the scan, which did not see the document: it was gone by then.
            return match patches.iter().find(|p| last.is_some() || p.time > side.read.order) {
                None => Ok(None),
                Some(patch) => {
                    let key = String::from_utf8_lossy(patch.key);
                    Err(Error::corrupt(format!("the change log updates document {key}, which is not there"))
                        .hint("run `rewound verify`, and `rewound backup --full` to heal the history"))
                }
            };
        };
        if !start.is_body {
            return Ok(start.rest.try_into().ok());
        }
        let mut body = std::borrow::Cow::Borrowed(start.rest);
        for patch in patches {
            let patcher =
                side.patcher.as_ref().ok_or_else(|| Error::unsupported("this engine's patches are not known"))?;
            body = patcher.applied(&body, patch.rest)?.into();
        }
        Ok(Some(digest(&body, &[])))
    }
}
