//! Buffers that are used again.
//!
//! A backup fills half a megabyte of frame after half a megabyte of frame, on one thread, and
//! empties them on others; a restore does it the other way round. Allocators keep what is freed like
//! that, for each thread by itself, and clear fresh pages each time; here the same few buffers go around.

use bytes::Bytes;
use model::limits::{FRAME, SEGMENT_MAX, SEGMENT_TARGET};
use std::sync::{Arc, Mutex, PoisonError};

/// Room after a frame's size for the document that ends it.
const SPARE: usize = FRAME / 16;

/// What a pool of buffers is for, in bytes.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    /// Who expects less gets a small buffer, which is not kept: frames of small collections may wait by
    /// the thousands.
    expected: usize,
    /// A new buffer has this.
    new: usize,
    /// Buffers of at least and at most this are kept.
    kept: (usize, usize),
    /// So many.
    count: usize,
}

/// Bodies of frames: those of four segments.
const FRAMES: Sizes = Sizes {
    expected: FRAME / 4,
    new: FRAME + SPARE,
    kept: (FRAME, 2 * FRAME + 2 * SPARE),
    count: 4 * SEGMENT_TARGET / FRAME,
};
/// Whole segments, and some frames of an object together: those that are decoded side by side.
const SEGMENTS: Sizes = Sizes { expected: 256 << 10, new: 0, kept: (256 << 10, SEGMENT_MAX), count: 3 };

/// Buffers that wait to be filled again.
#[derive(Debug, Clone)]
pub(crate) struct Buffers {
    sizes: Sizes,
    kept: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Default for Buffers {
    fn default() -> Self {
        Buffers::of_frames()
    }
}

impl Buffers {
    /// For the bodies of frames.
    pub fn of_frames() -> Self {
        Buffers { sizes: FRAMES, kept: Arc::default() }
    }

    /// For whole segments, as they are stored.
    pub fn of_segments() -> Self {
        Buffers { sizes: SEGMENTS, kept: Arc::default() }
    }

    /// An empty buffer for what begins with this many bytes.
    pub fn take(&self, expected: usize) -> Vec<u8> {
        if expected < self.sizes.expected {
            return Vec::with_capacity(expected + 1024);
        }
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| Vec::with_capacity(self.sizes.new))
    }

    /// Frees what waits.
    pub fn clear(&self) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// A buffer's bytes, which comes back when nobody has them any more.
    pub fn lend(&self, buffer: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent { buffer, home: self.clone() })
    }

    /// Gives a buffer back.
    pub fn give(&self, mut buffer: Vec<u8>) {
        let (least, most) = self.sizes.kept;
        if (least..=most).contains(&buffer.capacity()) {
            buffer.clear();
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() < self.sizes.count {
                kept.push(buffer);
            }
        }
    }
}

/// A buffer on loan.
struct Lent {
    buffer: Vec<u8>,
    home: Buffers,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.home.give(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lent_comes_back_from_the_last_who_has_it() {
        let buffers = Buffers::of_frames();
        let mut body = buffers.take(FRAME);
        body.extend_from_slice(b"lent");
        let place = body.as_ptr();
        let lent = buffers.lend(body);
        let part = lent.slice(1..3);
        drop(lent);
        let other = buffers.take(FRAME);
        assert_ne!(other.as_ptr(), place);
        assert_eq!(&part[..], b"en");
        drop(part);
        let again = buffers.take(FRAME);
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
    }

    #[test]
    fn frames_use_the_same_memory_again() {
        let buffers = Buffers::of_frames();
        let mut body = buffers.take(FRAME / 2);
        body.resize(FRAME + 100, 1);
        let place = body.as_ptr();
        buffers.give(body);
        assert!(buffers.take(10).capacity() < FRAME / 4);
        let again = buffers.take(FRAME);
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
        let other = buffers.take(FRAME);
        assert_ne!(other.as_ptr(), place);
    }

    #[test]
    fn neither_small_nor_huge_buffers_are_kept() {
        let buffers = Buffers::of_frames();
        for capacity in [10, FRAME / 2, 10 * FRAME] {
            buffers.give(Vec::with_capacity(capacity));
        }
        for _ in 0..2 * FRAMES.count {
            buffers.give(Vec::with_capacity(FRAME));
        }
        assert_eq!(buffers.kept.lock().map(|kept| kept.len()).ok(), Some(FRAMES.count));
    }
}
