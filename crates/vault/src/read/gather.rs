//! Gathers changes: in a table, or, if there are more than memory holds, in a temporary file.

use crate::frame::Frame;
use crate::read::change::{Change, Op, Spot};
use crate::read::hashes::Hashes;
use crate::read::overlay::Overlay;
use crate::read::parts::{Expected, Parts};
use crate::read::spill::{OpenFile, Sorter};
use crate::read::table::{Look, Table};
use model::{Batch, EngineTime, Error, Kind, Result};

/// Keys that are looked up together: all that tells of them has room near to the processor.
const NEAR: usize = 128;

/// Collects the changes of one collection and kind space.
#[derive(Debug)]
pub(crate) struct Changes {
    hashes: Hashes,
    gathered: Gathered,
    expected: Expected,
    look: Look,
    record: Vec<u8>,
    memory: usize,
    open: OpenFile,
    ordered: bool,
}

#[derive(Debug)]
enum Gathered {
    /// All in memory.
    Table(Table),
    /// In parts that will each be in memory, as not all of them can.
    Parts(Parts),
    /// To be sorted with the help of a file, as documents must pass by them in their own order.
    Sorter(Sorter),
}

/// All changes.
#[derive(Debug)]
pub(crate) enum Finished {
    /// To be looked at while documents come.
    Whole(Overlay),
    /// Documents must wait for those of their part.
    Parts(Parts),
}

impl Changes {
    /// Collects changes of a collection that is ordered or not in about so much memory. Goes over to a
    /// file when they do not fit; at once, if that is expected.
    pub fn new(hashes: Hashes, expected: Expected, memory: usize, open: OpenFile, ordered: bool) -> Result<Self> {
        let gathered = match (expected.bytes <= memory, ordered) {
            (true, _) => Gathered::Table(Table::expecting(expected, memory, ordered)),
            // Half at most, as what was collected is here while blocks are made of it.
            (false, true) => Gathered::Sorter(Sorter::new(memory / 2, open)),
            (false, false) => Gathered::Parts(Parts::new(expected, memory, open)?),
        };
        Ok(Changes { hashes, gathered, expected, look: Look::default(), record: Vec::new(), memory, open, ordered })
    }

    /// Adds a frame of the change log, and the hashes of its keys: of its changes those after one time
    /// and up to another. Frames with changes of the same time come in order, and those of layers after all of
    /// the log: copies stand after log entries of the same time. Those of an ordered collection, of which a file
    /// is made, all come in order.
    pub fn add_log_frame(
        &mut self,
        number: u32,
        (frame, hashes): (&Frame, &[u64]),
        (after, until): (u64, u64),
    ) -> Result<()> {
        if frame.times.len() != frame.batch.len() {
            return Err(Error::corrupt("a frame of the change log has no times"));
        }
        self.add(number, &frame.batch, hashes, false, |i| {
            let time = frame.times[i].order;
            (after < time && time <= until).then_some(time)
        })
    }

    /// Adds a frame of a layer that was read at `time`, and the hashes of its keys.
    pub fn add_layer_frame(&mut self, number: u32, (frame, hashes): (&Frame, &[u64]), time: EngineTime) -> Result<()> {
        self.add(number, &frame.batch, hashes, true, |_| Some(time.order))
    }

    fn add(
        &mut self,
        frame: u32,
        batch: &Batch,
        hashes: &[u64],
        is_copy: bool,
        time: impl Fn(usize) -> Option<u64>,
    ) -> Result<()> {
        let op = match &batch.kind {
            kind if kind.is_tombstone() => Op::Delete,
            Kind::Patch => Op::Patch,
            _ => Op::Put,
        };
        if hashes.len() != batch.len() {
            return Err(Error::bug("changes without the hashes of their keys"));
        }
        for (i, hash) in hashes.iter().copied().enumerate() {
            if i % NEAR == 0 {
                self.near(&hashes[i..hashes.len().min(i + NEAR)]);
            }
            let Some(time) = time(i) else { continue };
            let key = batch.key_of(i);
            let spot = Spot { frame, doc: i as u32 };
            let patch = if op == Op::Patch { batch.body_of(i) } else { b"" };
            let change = Change { key, time, is_copy, op, spot, patch };
            if let Gathered::Table(table) = &mut self.gathered {
                if table.push(hash, &change)? {
                    continue;
                }
                self.go_over()?;
            }
            match &mut self.gathered {
                Gathered::Table(_) => return Err(Error::bug("a table of changes stays full")),
                Gathered::Parts(parts) => parts.push(hash, &change)?,
                Gathered::Sorter(sorter) => {
                    self.record.clear();
                    change.write(&mut self.record);
                    sorter.push([hash, time], &self.record)?;
                }
            }
        }
        Ok(())
    }

    /// Gives those documents of a frame that are as it puts them, or patched since, and that come later than
    /// `since`, the time that the oldest layer was read up to: they need not be gathered any more. With patches,
    /// if there are any. All changes must have been added that are later, or as late; earlier ones may come still.
    /// None are given while changes go to a file.
    pub fn settled(
        &mut self,
        number: u32,
        (frame, hashes): (&Frame, &[u64]),
        since: u64,
        mut give: impl FnMut(usize, Option<&mut dyn Iterator<Item = &[u8]>>) -> Result<()>,
    ) -> Result<()> {
        let (Gathered::Table(table), look) = (&mut self.gathered, &mut self.look) else { return Ok(()) };
        let batch = &frame.batch;
        for (i, hash) in hashes.iter().copied().enumerate() {
            if i % NEAR == 0 {
                look.put_away();
                let near = &hashes[i..hashes.len().min(i + NEAR)];
                table.near_slots(near);
                table.near_changes(look, near.iter().copied(), false);
            }
            let spot = Spot { frame: number, doc: i as u32 };
            let Some((key, patches)) = table.newest_is(look, (hash, batch.key_of(i)), spot, since)? else { continue };
            match patches.count {
                0 => give(i, None)?,
                _ => give(i, Some(&mut table.at_hand(look, patches)))?,
            }
            table.goes_out(look, key);
        }
        Ok(())
    }

    /// Brings near to the processor what tells of some hashes.
    fn near(&mut self, hashes: &[u64]) {
        match &self.gathered {
            Gathered::Table(table) => {
                table.near_slots(hashes);
                table.near_changes(&mut self.look, hashes.iter().copied(), false);
            }
            Gathered::Parts(parts) => parts.near(hashes),
            Gathered::Sorter(_) => {}
        }
    }

    /// Goes over to a file, as there are more changes than memory holds.
    fn go_over(&mut self) -> Result<()> {
        // Little more memory, as the table is here until its last change has gone.
        let to = match self.ordered {
            true => Gathered::Sorter(Sorter::new(self.memory / 8, self.open)),
            false => Gathered::Parts(Parts::new(self.expected, self.memory, self.open)?),
        };
        let Gathered::Table(table) = std::mem::replace(&mut self.gathered, to) else {
            return Err(Error::bug("changes in a file are to go to one"));
        };
        let (gathered, record) = (&mut self.gathered, &mut self.record);
        table.drain(|change| {
            let hash = self.hashes.of(change.key);
            match gathered {
                Gathered::Parts(parts) => parts.push(hash, change),
                Gathered::Sorter(sorter) => {
                    record.clear();
                    change.write(record);
                    sorter.push([hash, change.time], record)
                }
                Gathered::Table(_) => Err(Error::bug("changes of a table are to go to one")),
            }
        })
    }

    /// After it, documents can be looked up.
    pub fn finish(self) -> Result<Finished> {
        match self.gathered {
            Gathered::Table(table) => Ok(Finished::Whole(Overlay::of_table(table))),
            Gathered::Sorter(sorter) => Overlay::sorted(sorter, self.memory, self.open).map(Finished::Whole),
            Gathered::Parts(mut parts) => {
                parts.settle()?;
                Ok(Finished::Parts(parts))
            }
        }
    }
}
