//! How a table writes a change down: so that it is read without looking at each byte, as that is done more often.

use crate::read::change::{Change, Op, Spot};
use model::{Error, Result};

/// Bytes before each change's key: where the change of the same key is that came before it, plus 1, and 0 for
/// none; flags and the length of the key; the time.
const HEAD: usize = 16;
/// In flags: the operation.
const OP: u32 = 3;
/// It is a copy.
const COPY: u32 = 4;
/// The change's place follows.
const SPOT: u32 = 8;
/// It need not be looked at any more.
const TAKEN: u32 = 16;
/// How many bits flags have.
const FLAGS: u32 = 5;

/// Where some bytes are among the records: from, and how many.
pub(crate) type Span = (u32, u32);

/// One change of the key that is looked at, taken apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    pub time: u64,
    /// Where it is.
    pub at: u32,
    pub is_copy: bool,
    pub op: Op,
    pub spot: Spot,
    pub patch: Span,
    pub is_taken: bool,
}

/// One change, as it is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record<'a> {
    pub before: u32,
    flags: u32,
    pub time: u64,
    pub spot: Spot,
    pub key: &'a [u8],
    pub patch: Span,
    /// Where the next one begins.
    pub end: usize,
}

impl<'a> Record<'a> {
    /// The change at a place; none if that is not one.
    #[inline]
    pub fn read(records: &'a [u8], at: usize) -> Option<Self> {
        let (head, rest) = records.get(at..)?.split_first_chunk::<HEAD>()?;
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| head[at + i]));
        let (before, flags, time) = (word(0), word(4), u64::from(word(8)) | u64::from(word(12)) << 32);
        let (mut spot, mut rest, mut at) = (Spot { frame: 0, doc: 0 }, rest, at + HEAD);
        if flags & SPOT != 0 {
            let (numbers, after) = rest.split_first_chunk::<8>()?;
            let half = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| numbers[at + i]));
            (spot, rest, at) = (Spot { frame: half(0), doc: half(4) }, after, at + 8);
        }
        let (key, rest) = rest.split_at_checked((flags >> FLAGS) as usize)?;
        let mut end = at + key.len();
        let mut patch = (end as u32, 0);
        if flags & OP == Op::Patch as u32 {
            let length = u32::from_le_bytes(*rest.first_chunk()?);
            patch = (end as u32 + 4, length);
            end += 4 + length as usize;
        }
        Some(Record { before, flags, time, spot, key, patch, end })
    }

    /// The same without its key.
    pub fn link(&self, at: u32) -> Link {
        let Record { flags, time, spot, patch, .. } = *self;
        let op = match flags & OP {
            0 => Op::Put,
            1 => Op::Delete,
            _ => Op::Patch,
        };
        Link { time, at, is_copy: flags & COPY != 0, op, spot, patch, is_taken: flags & TAKEN != 0 }
    }
}

/// Bytes among the records.
pub(crate) fn span(records: &[u8], (from, length): Span) -> &[u8] {
    records.get(from as usize..from as usize + length as usize).unwrap_or_default()
}

/// How many bytes a change takes at most.
pub(crate) fn most_bytes(change: &Change<'_>) -> usize {
    HEAD + 8 + change.key.len() + 4 + change.patch.len()
}

/// Writes a change down after others, of which one of the same key is `before`; the place also of one that has no
/// body, if all are wanted.
pub(crate) fn write(before: u32, change: &Change<'_>, all_spots: bool, records: &mut Vec<u8>) -> Result<()> {
    let length = u32::try_from(change.key.len()).ok().filter(|length| length >> (32 - FLAGS) == 0);
    let length = length.ok_or_else(|| Error::bug("a key is too long"))?;
    let has_spot = all_spots || change.op == Op::Put;
    let flags = change.op as u32 | if change.is_copy { COPY } else { 0 } | if has_spot { SPOT } else { 0 };
    let mut head = [0; HEAD + 8];
    head[..4].copy_from_slice(&before.to_le_bytes());
    head[4..8].copy_from_slice(&(length << FLAGS | flags).to_le_bytes());
    head[8..HEAD].copy_from_slice(&change.time.to_le_bytes());
    head[HEAD..HEAD + 4].copy_from_slice(&change.spot.frame.to_le_bytes());
    head[HEAD + 4..].copy_from_slice(&change.spot.doc.to_le_bytes());
    records.extend_from_slice(if has_spot { &head } else { &head[..HEAD] });
    records.extend_from_slice(change.key);
    if change.op == Op::Patch {
        records.extend_from_slice(&(change.patch.len() as u32).to_le_bytes());
        records.extend_from_slice(change.patch);
    }
    Ok(())
}

/// Makes a put a deletion.
pub(crate) fn delete(records: &mut [u8], at: u32) {
    if let Some(flags) = records.get_mut(at as usize + 4) {
        *flags = *flags & !(OP as u8) | Op::Delete as u8;
    }
}

/// Notes of a change that it need not be looked at any more.
pub(crate) fn take(records: &mut [u8], at: u32) {
    if let Some(flags) = records.get_mut(at as usize + 4) {
        *flags |= TAKEN as u8;
    }
}
