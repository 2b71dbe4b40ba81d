//! What several changes of one document come to.

use model::{ChangeBatch, ChangeItem, CollectionId, CollectionInfo, EngineTime, Error, Kind, Result};
use std::collections::HashMap;

/// What is known of a document before its patches.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Base {
    /// What it was before all these changes.
    Before,
    /// This body.
    Put(Vec<u8>),
    /// Nothing: it was deleted.
    Gone,
}

/// All changes of one document, in the engine's own bytes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Folded {
    pub key: Vec<u8>,
    pub base: Base,
    /// Patches after that, with their times.
    pub patches: Vec<(u64, Vec<u8>)>,
    /// The time of the last change.
    pub time: u64,
}

/// What happened, in order.
pub(super) enum Step {
    /// Documents of one collection; each document comes once.
    Documents(CollectionId, Vec<Folded>),
    /// Attachment `i` of these was put or deleted.
    Attachment(usize, usize),
    /// A collection is another from now on, or gone.
    Catalog(CollectionId, Option<CollectionInfo>, EngineTime),
}

enum What {
    Change(usize, usize),
    Catalog(CollectionId, Option<CollectionInfo>, EngineTime),
}

/// Puts in order what came between two commits. Also gives the batches, which steps point into.
pub(super) fn steps(items: Vec<ChangeItem>) -> Result<(Vec<Step>, Vec<ChangeBatch>)> {
    let mut batches = Vec::new();
    let mut events: Vec<(u64, What)> = Vec::new();
    for item in items {
        match item {
            ChangeItem::Batch(change) => {
                change.batch.check()?;
                if change.times.len() != change.batch.len() {
                    return Err(Error::bug("a feed gave changes without their times"));
                }
                let number = batches.len();
                events.extend(change.times.iter().enumerate().map(|(i, t)| (t.order, What::Change(number, i))));
                batches.push(change);
            }
            ChangeItem::Catalog { info, collection, time } => {
                events.push((time.order, What::Catalog(collection, info, time)));
            }
            ChangeItem::Commit { .. } | ChangeItem::Gap(_) => {}
        }
    }
    // Equal times stay in the order in which they came.
    events.sort_by_key(|(time, _)| *time);
    let mut steps = Vec::new();
    let mut folding = Folding::default();
    for (time, what) in events {
        match what {
            What::Catalog(id, info, time) => {
                folding.flush(&mut steps);
                steps.push(Step::Catalog(id, info, time));
            }
            What::Change(number, i) => {
                let batch = &batches[number].batch;
                match &batch.kind {
                    Kind::Document | Kind::Tombstone | Kind::Patch => folding.add(&batches[number], i, time),
                    Kind::Attachment => folding.attachments.push((number, i)),
                    Kind::TombstoneOf(space) if space == Kind::Attachment.space() => {
                        folding.attachments.push((number, i));
                    }
                    other => {
                        let text = format!("a folder has no place for {} entries", other.space());
                        return Err(Error::unsupported(text).hint("leave the collection out with --exclude"));
                    }
                }
            }
        }
    }
    folding.flush(&mut steps);
    Ok((steps, batches))
}

#[derive(Default)]
struct Folding {
    /// In the order in which they come first.
    collections: Vec<(CollectionId, Vec<Folded>)>,
    places: HashMap<(CollectionId, Vec<u8>), (usize, usize)>,
    attachments: Vec<(usize, usize)>,
}

impl Folding {
    fn add(&mut self, change: &ChangeBatch, i: usize, time: u64) {
        let batch = &change.batch;
        let at = self.collections.iter().position(|(id, _)| *id == batch.collection).unwrap_or_else(|| {
            self.collections.push((batch.collection.clone(), Vec::new()));
            self.collections.len() - 1
        });
        let all = &mut self.collections[at].1;
        let key = batch.key_of(i).to_vec();
        let place = *self.places.entry((batch.collection.clone(), key.clone())).or_insert_with(|| {
            all.push(Folded { key, base: Base::Before, patches: Vec::new(), time });
            (at, all.len() - 1)
        });
        let folded = &mut all[place.1];
        folded.time = time;
        let body = || batch.body_of(i).to_vec();
        match batch.kind {
            Kind::Patch => folded.patches.push((time, body())),
            Kind::Tombstone => (folded.base, folded.patches) = (Base::Gone, Vec::new()),
            _ => (folded.base, folded.patches) = (Base::Put(body()), Vec::new()),
        }
    }

    fn flush(&mut self, steps: &mut Vec<Step>) {
        let folded = std::mem::take(self);
        steps.extend(folded.collections.into_iter().map(|(id, all)| Step::Documents(id, all)));
        steps.extend(folded.attachments.into_iter().map(|(number, i)| Step::Attachment(number, i)));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use model::{BatchBuilder, Encoding};

    fn batch(id: &str, kind: Kind, changes: &[(&str, &str, u64)]) -> ChangeItem {
        let mut built = BatchBuilder::new(CollectionId::new(id), kind, Encoding::Json);
        changes.iter().for_each(|(key, body, _)| built.push(key.as_bytes(), body.as_bytes()));
        let times = changes.iter().map(|(.., t)| EngineTime { order: *t, millis: 0 }).collect();
        ChangeItem::Batch(ChangeBatch { batch: built.take(), times })
    }

    fn folded(key: &str, base: Base, patches: &[(u64, &str)], time: u64) -> Folded {
        let patches = patches.iter().map(|(t, p)| (*t, p.as_bytes().to_vec())).collect();
        Folded { key: key.into(), base, patches, time }
    }

    #[test]
    fn times_tell_the_order_of_what_came_in_groups() {
        let items = vec![
            batch("c", Kind::Patch, &[("a", "p2", 2), ("a", "p4", 4), ("b", "p1", 1)]),
            batch("c", Kind::Document, &[("a", "d3", 3), ("x", "d5", 5)]),
            batch("c", Kind::Tombstone, &[("b", "", 2), ("x", "", 5)]),
        ];
        let (steps, _) = steps(items).unwrap();
        let [Step::Documents(_, all)] = &steps[..] else { panic!("one step") };
        assert_eq!(
            all[..],
            [
                folded("b", Base::Gone, &[], 2),
                folded("a", Base::Put(b"d3".to_vec()), &[(4, "p4")], 4),
                // At one time, the later one counts.
                folded("x", Base::Gone, &[], 5),
            ]
        );
    }

    #[test]
    fn a_drop_parts_what_was_before_from_what_comes_after() {
        let time = EngineTime { order: 3, millis: 0 };
        let items = vec![
            batch("c", Kind::Document, &[("a", "old", 2), ("b", "new", 4)]),
            ChangeItem::Catalog { info: None, collection: CollectionId::new("c"), time },
            batch("d", Kind::Patch, &[("a", "p", 1)]),
        ];
        let (steps, _) = steps(items).unwrap();
        let shown: Vec<String> = steps
            .iter()
            .map(|step| match step {
                Step::Documents(id, all) => format!("{id}{}", all.len()),
                Step::Attachment(..) => "attachment".into(),
                Step::Catalog(..) => "drop".into(),
            })
            .collect();
        assert_eq!(shown, ["d1", "c1", "drop", "c1"]);
    }
}
