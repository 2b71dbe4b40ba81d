//! Buffers that are used again.
//!
//! A backup fills half a megabyte of frame after half a megabyte of frame, on one thread, and
//! empties them on others. Allocators keep what is freed like that, for each thread by itself, and
//! clear fresh pages each time; here the same few buffers go around.

use model::limits::{FRAME, SEGMENT_TARGET};
use std::sync::{Arc, Mutex, PoisonError};

/// Buffers that are kept at most: four segments' frames.
const KEPT: usize = 4 * SEGMENT_TARGET / FRAME;
/// Room after a frame's size for the document that ends it.
const SPARE: usize = FRAME / 16;

/// Frame bodies that wait to be filled again.
#[derive(Debug, Clone, Default)]
pub(crate) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

impl Buffers {
    /// An empty buffer for the body of a frame whose first batch has this many bytes. Small
    /// collections get small buffers: they may wait by the thousands.
    pub fn take(&self, expected: usize) -> Vec<u8> {
        if expected < FRAME / 4 {
            return Vec::with_capacity(expected + 1024);
        }
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| Vec::with_capacity(FRAME + SPARE))
    }

    /// Frees what waits.
    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Gives a buffer back.
    pub fn give(&self, mut buffer: Vec<u8>) {
        if (FRAME..=2 * FRAME + 2 * SPARE).contains(&buffer.capacity()) {
            buffer.clear();
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() < KEPT {
                kept.push(buffer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_use_the_same_memory_again() {
        let buffers = Buffers::default();
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
        let buffers = Buffers::default();
        for capacity in [10, FRAME / 2, 10 * FRAME] {
            buffers.give(Vec::with_capacity(capacity));
        }
        for _ in 0..2 * KEPT {
            buffers.give(Vec::with_capacity(FRAME));
        }
        assert_eq!(buffers.0.lock().map(|kept| kept.len()).ok(), Some(KEPT));
    }
}
