//! Documents become what a simple model makes of them, in any memory.
#![allow(clippy::unwrap_used)]
use super::*;
use crate::frame::Frame;
use crate::read::gather::{Changes, Finished};
use crate::read::hashes::Hashes;
use crate::read::parts::Expected;
use model::{BatchBuilder, Encoding, ErrorKind, Kind, Patcher};
use proptest::prelude::*;

struct Append;

impl Patcher for Append {
    fn apply(&self, body: &[u8], patch: &[u8], into: &mut Vec<u8>) -> Result<()> {
        into.extend_from_slice(body);
        into.extend_from_slice(patch);
        Ok(())
    }
}

fn applier() -> Applier {
    Applier::new(Some(Arc::new(Append)))
}

fn applied(overlay: &mut Overlay, patches: Patches, body: &[u8]) -> Vec<u8> {
    let mut made = b"others before it".to_vec();
    overlay.apply(patches, body, &mut applier(), &mut made).unwrap();
    made.split_off(16)
}

fn id() -> CollectionId {
    CollectionId::new("c")
}

fn frame(kind: Kind, changes: &[(u8, u8, u64)]) -> Frame {
    let mut builder = BatchBuilder::new(id(), kind, Encoding::Bin);
    changes.iter().for_each(|(key, body, _)| builder.push(&[*key], &[b'+', *body]));
    Frame { batch: builder.take(), times: changes.iter().map(|(.., t)| at(*t)).collect() }
}

fn at(time: u64) -> EngineTime {
    EngineTime { order: time, millis: 0 }
}

/// A frame of a layer (read at a time) or of the log: (is a layer's, kind, (key, body, time)…).
type Plain = (bool, Kind, Vec<(u8, u8, u64)>);

/// Layers first, each read after the one before; log frames in any order of time.
fn frames() -> impl Strategy<Value = Vec<Plain>> {
    let kind = prop_oneof![4 => Just(Kind::Document), 1 => Just(Kind::Tombstone), 4 => Just(Kind::Patch)];
    let changes = proptest::collection::vec((0..12u8, any::<u8>(), 1..30u64), 0..12);
    let layers = proptest::collection::vec((proptest::bool::weighted(0.7), 5..12u64, changes.clone()), 0..3);
    let log = proptest::collection::vec((kind, changes), 0..14);
    (layers, log).prop_map(|(layers, log)| {
        let mut time = 0;
        let layers = layers.into_iter().map(|(puts, later, mut changes)| {
            time += later;
            changes.iter_mut().for_each(|c| c.2 = time);
            // A layer has a key once.
            changes.sort_by_key(|c| c.0);
            changes.dedup_by_key(|c| c.0);
            (true, if puts { Kind::Document } else { Kind::Tombstone }, changes)
        });
        layers.chain(log.into_iter().map(|(kind, changes)| (false, kind, changes))).collect()
    })
}

/// What there is in the end, in order, or the key that is patched without a document.
type Outcome = std::result::Result<Vec<(u8, Vec<u8>)>, u8>;

/// Each key's changes, one after the other; the simple way.
fn expected(frames: &[Plain], base: &[(u8, u64)], ordered: bool, until: u64) -> Outcome {
    let mut here: Vec<(usize, usize, u8, Vec<u8>)> = Vec::new();
    let mut wrong: Option<u8> = None;
    for key in 0..12u8 {
        let mut all = Vec::new();
        for (f, (is_copy, kind, changes)) in frames.iter().enumerate() {
            for (d, (k, body, time)) in changes.iter().enumerate() {
                if *k == key && (*is_copy || *time <= until) {
                    all.push(((*time, *is_copy, f, d), kind.clone(), vec![b'+', *body]));
                }
            }
        }
        all.sort_by_key(|(place, ..)| *place);
        let found = base.iter().position(|(k, _)| *k == key);
        let mut body: Option<(usize, usize, Vec<u8>)> = found.map(|i| (0, i, vec![b'b', key]));
        let mut dangling = false;
        for ((time, is_copy, f, d), kind, bytes) in all {
            if found.is_some_and(|i| time <= base[i].1 && !is_copy) {
                continue;
            }
            match (kind, &mut body) {
                (Kind::Tombstone, _) => (body, dangling) = (None, false),
                (Kind::Patch, Some((.., body))) => body.extend(bytes),
                (Kind::Patch, none) => {
                    // Its place, though its body comes later.
                    *none = Some((f + 1, d, Vec::new()));
                    dangling = true;
                }
                (_, Some((_, _, body))) => (*body, dangling) = (bytes, false),
                (_, none) => *none = Some((f + 1, d, bytes)),
            }
        }
        match body {
            Some(_) if dangling => wrong = wrong.or(Some(key)),
            Some((f, d, body)) => here.push((f, d, key, body)),
            None => {}
        }
    }
    match wrong {
        Some(key) => Err(key),
        None => {
            here.sort_by_key(|(f, d, key, _)| if ordered { (*f, *d, 0) } else { (0, 0, *key) });
            Ok(here.into_iter().map(|(.., key, body)| (key, body)).collect())
        }
    }
}

/// What a driver does of frames and a base, in so much memory.
struct Driven<'a> {
    frames: &'a [Plain],
    ordered: bool,
    here: Vec<(u8, Vec<u8>)>,
    rest: Vec<(Spot, u8, Vec<u8>)>,
}

impl Driven<'_> {
    fn body_at(&self, spot: Spot) -> Vec<u8> {
        vec![b'+', self.frames[spot.frame as usize].2[spot.doc as usize].1]
    }

    fn document(&mut self, overlay: &mut Overlay, hash: u64, key: u8, read: EngineTime) {
        match overlay.fate(hash, &[key], read, self.ordered).unwrap() {
            Fate::Kept => self.here.push((key, vec![b'b', key])),
            Fate::Dropped => {}
            Fate::Becomes { start, patches } => {
                let start = start.map_or(vec![b'b', key], |start| self.body_at(start));
                self.here.push((key, applied(overlay, patches, &start)));
                overlay.take(patches);
            }
        }
    }

    /// The documents that are left; the key that is patched without one.
    fn left(&mut self, overlay: &mut Overlay, most: usize) -> std::result::Result<(), u8> {
        let mut all = Vec::new();
        let given = overlay.rest(most, |left| {
            let mut bytes = Vec::new();
            left.patches.write(&mut bytes);
            assert_eq!(Patches::read(&bytes), Some(left.patches));
            all.push((left.place, left.start, left.patches, left.written.map(<[u8]>::to_vec)));
            Ok(())
        });
        for (place, start, patches, written) in all {
            let body = applied(overlay, patches, &self.body_at(start));
            match written {
                Some(written) => {
                    let mut other = b"others before it".to_vec();
                    applier().apply_written(&written, &self.body_at(start), &mut other).unwrap();
                    assert_eq!(other[16..], body);
                    assert!(written.len() <= most);
                }
                None => assert!(!patches.is_empty() && body.len() > 7),
            }
            self.rest.push((place, self.frames[start.frame as usize].2[start.doc as usize].0, body));
        }
        given.map_err(|e| {
            assert_eq!(e.kind(), ErrorKind::Corrupt);
            e.message().split("document ").nth(1).unwrap().as_bytes()[0]
        })
    }
}

/// What goes out of a frame at once, as later changes have come already.
fn settled(changes: &mut Changes, number: usize, plain: &Plain, keys: &Hashes, since: u64) -> Vec<(u8, Vec<u8>)> {
    let (_, kind, all) = plain;
    if *kind != Kind::Document {
        return Vec::new();
    }
    let (frame, mut hashes, mut out) = (frame(kind.clone(), all), Vec::new(), Vec::new());
    keys.of_batch(&frame.batch, &mut hashes);
    let give = |i: usize, patches: Option<&mut dyn Iterator<Item = &[u8]>>| {
        let mut body = frame.batch.body_of(i).to_vec();
        if let Some(patches) = patches {
            body.clear();
            applier().apply(patches, frame.batch.body_of(i), &mut body)?;
        }
        out.push((frame.batch.key_of(i)[0], body));
        Ok(())
    };
    changes.settled(number as u32, (&frame, &hashes), since, give).unwrap();
    out
}

/// The log from its end, in pieces that end at these times, then the documents of the oldest layer: nobody looks
/// at what was put twice.
fn from_end(frames: &[Plain], base: &[(u8, u64)], until: u64, ends: &[u64], memory: usize) -> Outcome {
    let keys = Hashes::default();
    let expected = Expected { changes: 40, bytes: 0 };
    let mut changes = Changes::new(keys.clone(), expected, memory, tempfile::tempfile, false).unwrap();
    let since = base.iter().map(|(_, read)| *read).max().unwrap_or(0);
    let mut driven = Driven { frames, ordered: false, here: Vec::new(), rest: Vec::new() };
    let starts = std::iter::once(0).chain(ends.iter().copied());
    let pieces: Vec<(u64, u64)> = starts.zip(ends.iter().copied().chain([u64::MAX])).collect();
    for (after, end) in pieces.into_iter().rev() {
        for (number, (_, kind, all)) in frames.iter().enumerate() {
            let (frame, mut hashes) = (frame(kind.clone(), all), Vec::new());
            keys.of_batch(&frame.batch, &mut hashes);
            changes.add_log_frame(number as u32, (&frame, &hashes), (after, end.min(until))).unwrap();
        }
        for (number, plain) in frames.iter().enumerate() {
            driven.here.extend(settled(&mut changes, number, plain, &keys, since));
        }
    }
    overlaid(changes.finish().unwrap(), driven, base, &keys, false)
}

/// Changes in any order, then the documents of the oldest layer. With `large`, it is known that memory will not hold
/// the changes.
fn in_order(
    frames: &[Plain],
    base: &[(u8, u64)],
    ordered: bool,
    until: u64,
    (memory, large): (usize, bool),
) -> Outcome {
    let keys = Hashes::default();
    let expected = Expected { changes: 40, bytes: if large { usize::MAX } else { 0 } };
    let mut changes = Changes::new(keys.clone(), expected, memory, tempfile::tempfile, ordered).unwrap();
    for layers in [false, true] {
        for (number, (is_copy, kind, all)) in frames.iter().enumerate().filter(|(_, f)| f.0 == layers) {
            let (frame, mut hashes, number) = (frame(kind.clone(), all), Vec::new(), number as u32);
            keys.of_batch(&frame.batch, &mut hashes);
            let read = at(all.first().map_or(0, |c| c.2));
            match is_copy {
                true => changes.add_layer_frame(number, (&frame, &hashes), read).unwrap(),
                false => changes.add_log_frame(number, (&frame, &hashes), (0, until)).unwrap(),
            }
        }
    }
    let driven = Driven { frames, ordered, here: Vec::new(), rest: Vec::new() };
    overlaid(changes.finish().unwrap(), driven, base, &keys, large)
}

/// What becomes of the documents of the oldest layer, beside those that have gone out.
fn overlaid(changes: Finished, mut driven: Driven<'_>, base: &[(u8, u64)], keys: &Hashes, large: bool) -> Outcome {
    let ordered = driven.ordered;
    let hash = |key: u8| keys.of(&[key]);
    match changes {
        Finished::Whole(mut overlay) => {
            assert!(!large || ordered);
            // Documents without an order are looked up side by side.
            let mut shared = (!ordered).then(|| overlay.shared().unwrap());
            for (i, (key, read)) in base.iter().enumerate() {
                let looked_up = shared.as_mut().filter(|_| i % 2 == 1).unwrap_or(&mut overlay);
                driven.document(looked_up, hash(*key), *key, at(*read));
            }
            if let Some(shared) = shared {
                overlay.mark(shared.marks());
            }
            driven.left(&mut overlay, 12)?;
        }
        Finished::Parts(mut parts) => {
            assert!(!ordered);
            let mut maybe = Vec::new();
            for (key, read) in base {
                let mut builder = BatchBuilder::new(id(), Kind::Document, Encoding::Bin);
                builder.push(&[*key], &[b'b', *key]);
                parts.may_hold(&[hash(*key)], &mut maybe);
                match maybe.is_empty() {
                    true => driven.here.push((*key, vec![b'b', *key])),
                    false => parts.put_aside(&builder.take(), at(*read), &[hash(*key)], &[0]).unwrap(),
                }
            }
            parts.all_have_come().unwrap();
            let mut wrong = None;
            while let Some((mut overlay, mut places)) = parts.next_part().unwrap() {
                while let Some(all) = parts.documents(&mut places).unwrap() {
                    for waited in all {
                        assert_eq!(waited.batch.len(), waited.hashes.len());
                        for (i, found) in waited.hashes.iter().enumerate() {
                            let key = waited.batch.key_of(i)[0];
                            assert_eq!((*found, waited.batch.body_of(i)), (hash(key), &[b'b', key][..]));
                            driven.document(&mut overlay, hash(key), key, waited.read);
                        }
                    }
                }
                wrong = wrong.or(driven.left(&mut overlay, 12).err());
            }
            wrong.map_or(Ok(()), Err)?;
        }
    }
    driven.rest.sort_by_key(|(place, ..)| *place);
    driven.here.extend(driven.rest.into_iter().map(|(_, key, body)| (key, body)));
    if !ordered {
        driven.here.sort();
    }
    Ok(driven.here)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn documents_become_what_their_changes_make_of_them(
        frames in frames(),
        base in proptest::collection::btree_map(0..12u8, 0..15u64, 0..10),
        ordered: bool,
        until in prop_oneof![3 => Just(100u64), 1 => 0..30u64],
    ) {
        let base: Vec<(u8, u64)> = base.into_iter().collect();
        let expected = expected(&frames, &base, ordered, until);
        for memory in [(0, false), (600, false), (2500, false), (0, true), (1 << 20, true), (1 << 20, false)] {
            let got = in_order(&frames, &base, ordered, until, memory);
            match &expected {
                // Which of several is named is not told by the keys' order.
                Err(_) => prop_assert!(got.is_err()),
                Ok(_) => prop_assert_eq!(&got, &expected, "with {:?} bytes", memory),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn read_from_its_end_the_log_tells_the_same(
        frames in frames(),
        base in proptest::collection::btree_map(0..12u8, 0..15u64, 0..10),
        until in prop_oneof![3 => Just(100u64), 1 => 0..30u64],
        ends in proptest::collection::btree_set(1..30u64, 0..5),
    ) {
        let (base, ends): (Vec<_>, Vec<_>) = (base.into_iter().collect(), ends.into_iter().collect());
        let frames: Vec<Plain> = frames.into_iter().filter(|(is_copy, ..)| !is_copy).collect();
        let expected = expected(&frames, &base, false, until);
        // In the least of these the changes go to a file, before or after documents have gone out.
        for memory in [0, 600, 2500, 3000, 1 << 20] {
            let got = from_end(&frames, &base, until, &ends, memory);
            match &expected {
                Err(_) => prop_assert!(got.is_err()),
                Ok(_) => prop_assert_eq!(&got, &expected, "with {:?} bytes", memory),
            }
        }
    }
}

#[test]
fn what_has_gone_out_is_not_left_over() {
    let (keys, base) = (Hashes::default(), [(1, 3), (2, 3)]);
    let frames = [
        (false, Kind::Document, vec![(1, 1, 5), (2, 2, 5), (3, 3, 2)]),
        (false, Kind::Patch, vec![(1, 9, 6)]),
        (false, Kind::Tombstone, vec![(2, 0, 7)]),
    ];
    let mut changes = Changes::new(keys.clone(), Expected::default(), 1 << 20, tempfile::tempfile, false).unwrap();
    for (number, (_, kind, all)) in frames.iter().enumerate().rev() {
        let (frame, mut hashes) = (frame(kind.clone(), all), Vec::new());
        keys.of_batch(&frame.batch, &mut hashes);
        changes.add_log_frame(number as u32, (&frame, &hashes), (0, 9)).unwrap();
    }
    // The second is deleted, the third was put while the oldest layer was still read.
    assert_eq!(settled(&mut changes, 0, &frames[0], &keys, 3), [(1, b"+\x01+\x09".to_vec())]);
    assert!(settled(&mut changes, 0, &frames[0], &keys, 3).is_empty());
    let mut driven = Driven { frames: &frames, ordered: false, here: Vec::new(), rest: Vec::new() };
    let Finished::Whole(mut overlay) = changes.finish().unwrap() else { panic!() };
    for (key, read) in base {
        driven.document(&mut overlay, keys.of(&[key]), key, at(read));
    }
    assert!(driven.here.is_empty());
    driven.left(&mut overlay, 12).unwrap();
    assert_eq!(driven.rest, [(Spot { frame: 0, doc: 2 }, 3, b"+\x03".to_vec())]);
}

#[test]
fn changes_that_are_not_understood_are_refused() {
    let keys = Hashes::default();
    let hash = keys.of(&[1]);
    let mut changes = Changes::new(keys, Expected::default(), 1 << 20, tempfile::tempfile, false).unwrap();
    let mut without_times = frame(Kind::Document, &[(1, 1, 1)]);
    without_times.times.clear();
    assert_eq!(changes.add_log_frame(0, (&without_times, &[hash]), (0, 9)).unwrap_err().kind(), ErrorKind::Corrupt);
    changes.add_log_frame(0, (&frame(Kind::Patch, &[(1, 1, 5)]), &[hash]), (0, 9)).unwrap();
    let Finished::Whole(mut overlay) = changes.finish().unwrap() else { panic!() };
    let Fate::Becomes { start: None, patches } = overlay.fate(hash, &[1], at(1), false).unwrap() else { panic!() };
    let error = overlay.apply(patches, b"body", &mut Applier::new(None), &mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    // Another key with the same hash has not changed.
    let mut maybe = vec![5];
    overlay.may_hold(&[!hash, hash], &mut maybe);
    assert_eq!(maybe, [1]);
    assert_eq!(overlay.fate(hash, &[2], at(1), false).unwrap(), Fate::Kept);
}
