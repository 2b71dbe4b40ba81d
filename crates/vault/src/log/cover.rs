//! Which log objects together hold every change between two times.

use super::object::{self, LogObject};
use super::{Listed, current, list};
use crate::objects::is_damage;
use crate::vault::Inner;
use futures::StreamExt;
use model::{EngineTime, Error, Result};
use std::collections::HashMap;
use std::sync::Arc;

/// Headers that are read side by side.
const AHEAD: usize = 16;
/// Bytes of small objects that are kept, as they will be read again.
const KEPT: usize = 32 << 20;
/// How often objects may turn out to be gone or damaged before that is an error.
const TRIES: usize = 50;

/// A log object, and which of its changes count: those after `after`, up to and including `until`.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub object: Arc<LogObject>,
    pub after: EngineTime,
    pub until: EngineTime,
}

/// What the log holds from one time on.
#[derive(Debug)]
pub(crate) struct Cover {
    /// In the order of time; each begins where the one before it ends.
    pub pieces: Vec<Piece>,
    /// Every change up to this time is in them.
    pub complete: EngineTime,
    /// Whether more was there once: objects are missing or damaged where it ends.
    pub torn: bool,
    /// What is wrong with objects that would have been of use.
    pub broken: Vec<Error>,
}

impl Cover {
    /// Leaves out what comes after the last flush up to a time: of a source that tells only states,
    /// what is between flushes never was.
    pub fn end_at_flush(&mut self, after: EngineTime, at: EngineTime) {
        self.complete = after;
        self.pieces.retain_mut(|piece| {
            let Some(end) = piece.object.header.last_commit(piece.after, at) else { return false };
            piece.until = end;
            self.complete = end;
            true
        });
    }
}

/// Finds the objects that hold every change after `after` up to `until`, or as far as they go.
///
/// Several runs may have written of the same time, living or dead; what one object does not have,
/// another may. As flushes end where the engine has made something whole, the changes of one object
/// can be cut off at the end of another.
pub(crate) async fn cover(vault: &Inner, source: &str, after: EngineTime, until: EngineTime) -> Result<Cover> {
    let millis = |time: EngineTime| time.millis.max(0) as u64;
    let mut broken: HashMap<String, Error> = HashMap::new();
    let mut read: HashMap<String, Arc<LogObject>> = HashMap::new();
    let mut kept = 0;
    for _ in 0..TRIES {
        let mut all = list(vault, source).await?;
        // Without what is damaged, the flushes that it held count again.
        all.retain(|l| !broken.contains_key(&l.name.to_string()));
        let mut wanted = current(all);
        wanted.retain(|l| l.name.to >= millis(after) && l.name.from <= millis(until));
        let missing: Vec<Listed> = wanted.iter().filter(|l| !read.contains_key(&l.name.to_string())).cloned().collect();
        let mut opening = futures::stream::iter(missing)
            .map(|listed| async move { (object::open(vault, &listed).await, listed.name.to_string()) })
            .buffer_unordered(AHEAD);
        let mut lost = false;
        while let Some((opened, path)) = opening.next().await {
            match opened {
                Ok(mut object) => {
                    kept += object.kept_bytes();
                    if kept > KEPT {
                        object.forget();
                    }
                    read.insert(path, Arc::new(object));
                }
                // Gone since the listing, as it was rolled up; or damaged, and perhaps held elsewhere.
                Err(e) if is_damage(&e) => {
                    lost = true;
                    broken.insert(path, e);
                }
                Err(e) => return Err(e),
            }
        }
        drop(opening);
        if !lost {
            let objects = wanted.iter().filter_map(|l| read.get(&l.name.to_string()).cloned()).collect();
            let mut cover = sweep(objects, after, until)?;
            if cover.complete.order < until.order && !broken.is_empty() {
                cover.torn = true;
                cover.broken = broken.into_values().collect();
            }
            return Ok(cover);
        }
    }
    Err(broken.into_values().next().unwrap_or_else(|| Error::bug("objects of the change log come and go")))
}

fn sweep(mut objects: Vec<Arc<LogObject>>, after: EngineTime, until: EngineTime) -> Result<Cover> {
    objects.sort_unstable_by_key(|o| (o.header.from_time.order, o.header.first));
    let mut cover = Cover { pieces: Vec::new(), complete: after, torn: false, broken: Vec::new() };
    let mut rest = objects.iter().peekable();
    let mut farthest: Option<&Arc<LogObject>> = None;
    while cover.complete.order < until.order {
        while let Some(object) = rest.next_if(|o| o.header.from_time.order <= cover.complete.order) {
            if farthest.is_none_or(|f| object.header.to_time.order > f.header.to_time.order) {
                farthest = Some(object);
            }
        }
        let Some(object) = farthest.filter(|o| o.header.to_time.order > cover.complete.order) else {
            // The first object of a chain follows nothing; another one followed what is not here.
            cover.torn = rest.peek().is_some_and(|o| o.header.first > 0);
            break;
        };
        if let Some(last) = cover.pieces.last() {
            check_link(&objects, &last.object, object)?;
        }
        let end = if object.header.to_time.order < until.order { object.header.to_time } else { until };
        cover.pieces.push(Piece { object: object.clone(), after: cover.complete, until: end });
        cover.complete = object.header.to_time;
    }
    Ok(cover)
}

/// Of two neighbours in a chain the second must name the first.
fn check_link(all: &[Arc<LogObject>], first: &LogObject, second: &LogObject) -> Result<()> {
    let (a, b) = (&first.name, &second.name);
    if a.run != b.run || b.first != a.last.wrapping_add(1) {
        return Ok(());
    }
    // A flush whose writing failed and was tried again may be there twice.
    let named = |o: &LogObject| second.header.previous.as_deref() == Some(o.header.ends(&o.name.stored).as_str());
    if all.iter().filter(|o| o.name.run == a.run && o.name.last == a.last).any(|o| named(o)) {
        return Ok(());
    }
    Err(Error::corrupt(format!("{b} of the change log follows another object than {a}"))
        .hint("somebody has put objects of another time there: do not trust this vault before you know who"))
}
