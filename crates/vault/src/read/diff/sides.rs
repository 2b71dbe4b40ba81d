//! What the two states know of one kind space of a collection: which frames, and for which of them.

use crate::log::LogFrame;
use crate::manifest::{CatalogEntry, LayerRef};
use crate::read::state::State;
use crate::segment::SegmentEntry;
use model::{CollectionId, EngineTime, Patcher};
use std::collections::HashMap;
use std::sync::Arc;

/// A frame of a layer.
#[derive(Clone)]
pub(super) struct LayerFrame {
    pub entry: Arc<SegmentEntry>,
    pub number: u32,
    /// The engine time its documents were read at.
    pub read: EngineTime,
}

/// What one state knows of a kind space of a collection.
pub(super) struct Side {
    pub there: bool,
    pub id: CollectionId,
    /// Layers that count, oldest first, with their frames.
    pub layers: Vec<(Arc<LayerRef>, Vec<LayerFrame>)>,
    pub log: Vec<LogFrame>,
    /// What is not later than this is gone: the collection was dropped or emptied then.
    pub dropped: Option<EngineTime>,
    /// The greatest time that the collection was read at.
    pub read: EngineTime,
    pub patcher: Option<Arc<dyn Patcher>>,
}

impl Side {
    pub fn of(state: &State, entry: Option<&CatalogEntry>, space: &str) -> Side {
        let id = entry.map_or_else(|| CollectionId::new(""), |e| e.info.id.clone());
        let mut side = Side {
            there: entry.is_some(),
            layers: Vec::new(),
            log: Vec::new(),
            dropped: None,
            read: EngineTime::ZERO,
            patcher: None,
            id: id.clone(),
        };
        if entry.is_none() {
            return side;
        }
        let from = state.layers.iter().rposition(|l| l.reference.whole.contains(&id)).unwrap_or(0);
        for loaded in state.layers.iter().skip(from) {
            let mut last: Option<(u32, Arc<SegmentEntry>)> = None;
            let mut frames = Vec::new();
            for (segment, number, read) in loaded.layer.timed_frames_of(&id, space) {
                let entry = match &last {
                    Some((same, entry)) if *same == segment => entry.clone(),
                    _ => Arc::new(loaded.layer.segments.get(segment as usize).cloned().unwrap_or_else(no_segment)),
                };
                last = Some((segment, entry.clone()));
                frames.push(LayerFrame { entry, number, read });
            }
            side.read = side.read.max(loaded.reference.time);
            side.layers.push((loaded.reference.clone(), frames));
        }
        if let Some(changes) = &state.changes {
            let ours = changes.index.frames.iter().filter(|f| f.collection == id && f.space == space);
            side.log = ours.cloned().collect();
            side.dropped = changes.index.dropped(&id);
            side.patcher = changes.patcher.clone();
        }
        side
    }
}

/// Stands for a segment that a layer's table lacks: reading it fails as damage.
fn no_segment() -> SegmentEntry {
    SegmentEntry { object: String::new(), size: 0, head: String::new(), frames: vec![], raw: 0, counts: vec![] }
}

/// A frame that one side or both know.
#[derive(Clone)]
pub(super) enum Piece {
    Layer {
        frame: LayerFrame,
        /// Which sides know it.
        known: [bool; 2],
        /// Whether it is part of the oldest layer that counts.
        is_base: bool,
    },
    Log {
        frame: LogFrame,
        /// For each side that knows it, after and up to which time changes count.
        counts: [Option<(EngineTime, EngineTime)>; 2],
    },
}

/// The frames of both sides, each once, in an order that is the order of each.
pub(super) fn pieces(sides: &[Side; 2]) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    for s in [0, 1] {
        for (number, (layer, frames)) in sides[s].layers.iter().enumerate() {
            // A layer holds frames of both where the collection has been made anew.
            let same = sides[0].id == sides[1].id;
            let shared = same && sides[1 - s].layers.iter().any(|(other, _)| other.object == layer.object);
            if s == 1 && shared {
                continue;
            }
            let known = if shared { [true, true] } else { [s == 0, s == 1] };
            let piece = |frame: &LayerFrame| Piece::Layer { frame: frame.clone(), known, is_base: number == 0 };
            pieces.extend(frames.iter().map(piece));
        }
    }
    let name = |f: &LogFrame| (f.entry.object.clone(), f.number);
    let mut places: HashMap<(String, u32), usize> = HashMap::new();
    for s in [0, 1] {
        for frame in &sides[s].log {
            let at = *places.entry(name(frame)).or_insert_with(|| {
                pieces.push(Piece::Log { frame: frame.clone(), counts: [None, None] });
                pieces.len() - 1
            });
            if let Piece::Log { counts, .. } = &mut pieces[at] {
                counts[s] = Some((frame.after, frame.until));
            }
        }
    }
    pieces
}
