//! Contents of attachments that change: stored once, found again by later runs, kept as long as anything
//! refers to them, and named when they are lost.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use bytes::Bytes;
use common::*;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use jiff::ToSpan;
use model::limits::ATTACHMENT_BESIDE;
use model::{
    AttachmentRef, AttachmentStore, Batch, BatchBuilder, ChangeBatch, Consistency, Encoding, EngineTime, ErrorKind,
    Kind, Piece, Position, Selection, collect_attachment,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use testkit::faulty::SimDisk;
use vault::storage::{Created, Entry, Storage};
use vault::{BackupOptions, Flush, PointDetails, PointName, Policy, PruneOptions, Run, State, Vault, VerifyOptions};

const DAY: i64 = 24 * 3_600_000;

/// What the entries of a collection have: their pieces, by name, each with its content.
type Entries = BTreeMap<&'static str, Vec<(&'static str, Vec<u8>)>>;

fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut out = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// One that is a part, one that is packed, one that would stand beside its change if it were no piece.
fn large() -> Vec<u8> {
    content(1, (1 << 20) + 7)
}

fn middle() -> Vec<u8> {
    content(2, ATTACHMENT_BESIDE + 1)
}

fn small() -> Vec<u8> {
    content(3, ATTACHMENT_BESIDE)
}

struct Host<'a> {
    keys: &'a Keys,
    vault: Vault,
    /// Pieces that had to be given to the store.
    fetched: std::cell::Cell<usize>,
}

impl Host<'_> {
    fn time(&self) -> EngineTime {
        EngineTime::wall(model::Clock::now_millis(&*self.keys.clock))
    }

    async fn start(&self, full: bool) -> Run {
        let source = description("s", &World::from([("c".into(), Model::default())]));
        let options = BackupOptions { level: 1, workers: 1, full, ..BackupOptions::default() };
        self.vault.start_run(&source, options).await.unwrap()
    }

    async fn batch(&self, store: &dyn AttachmentStore, entries: &Entries) -> Batch {
        let id = info("c", false).id;
        let mut builder = BatchBuilder::new(id.clone(), Kind::Attachment, Encoding::Json);
        for (key, pieces) in entries {
            let mut list = Vec::new();
            for (name, content) in pieces {
                let known = store.known(&id, key.as_bytes(), name).await.unwrap();
                let content = match known {
                    Some(known) => known,
                    None => {
                        self.fetched.set(self.fetched.get() + 1);
                        let halves = [&content[..content.len() / 2], &content[content.len() / 2..]];
                        let halves: Vec<_> = halves.map(|half| Ok(half.to_vec().into())).into();
                        store.put(futures::stream::iter(halves).boxed()).await.unwrap()
                    }
                };
                list.push(Piece { name: (*name).to_owned(), content });
            }
            builder.push_attachment(key.as_bytes(), b"{}", AttachmentRef::of_pieces(&list).unwrap());
        }
        builder.take()
    }

    async fn commit(&self, run: Run, time: EngineTime) -> PointName {
        let details = PointDetails {
            time,
            consistency: Consistency::PerDocument,
            position: Some(Position("p".into())),
            gap: None,
            skipped: Vec::new(),
        };
        run.commit(details).await.unwrap().0
    }

    async fn scan(&self, entries: &Entries, full: bool) -> PointName {
        self.keys.clock.advance(1000);
        let (run, time) = (self.start(full).await, self.time());
        run.begin(&info("c", false)).await.unwrap();
        run.write(self.batch(&*run.attachments(), entries).await).await.unwrap();
        run.end(&info("c", false).id).await.unwrap();
        self.commit(run, time).await
    }

    /// Flushes of one run, one for each of these.
    async fn change(&self, flushes: &[&Entries]) -> PointName {
        let run = self.start(false).await;
        let last = run.last().unwrap();
        run.follow_from(&last.position.unwrap(), last.time).await.unwrap();
        let store = run.changed_attachments();
        let mut time = last.time;
        for entries in flushes {
            self.keys.clock.advance(1000);
            time = self.time();
            let batch = self.batch(&*store, entries).await;
            let times = vec![time; batch.len()];
            let changes = vec![ChangeBatch { batch, times }];
            run.append(Flush { to: Position("p".into()), time, changes, catalog: Vec::new() }).await.unwrap();
        }
        self.commit(run, time).await
    }

    async fn fetches(&self, what: impl Future<Output = PointName>) -> (PointName, usize) {
        let before = self.fetched.get();
        let point = what.await;
        (point, self.fetched.get() - before)
    }
}

async fn contents(state: &State) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for collection in state.collections() {
        let mut batches = state.read(collection);
        while let Some(batch) = batches.try_next().await.unwrap() {
            for (i, reference) in batch.attachments.iter().enumerate() {
                let content = state.attachments().open(reference).await.unwrap();
                let content = collect_attachment(content, 64 << 20).await.unwrap();
                found.insert(String::from_utf8(batch.key_of(i).to_vec()).unwrap(), content.to_vec());
            }
        }
    }
    found
}

fn expected(entries: &[&Entries]) -> BTreeMap<String, Vec<u8>> {
    let all = entries.iter().flat_map(|entries| entries.iter());
    all.map(|(key, pieces)| ((*key).to_owned(), pieces.iter().flat_map(|(_, c)| c.clone()).collect())).collect()
}

async fn restored(vault: &Vault, name: &PointName) -> BTreeMap<String, Vec<u8>> {
    let state = vault.resolve(&point(vault, name).await, &Selection::default(), None).await.unwrap();
    state.check_there().await.unwrap();
    contents(&state).await
}

async fn sound(vault: &Vault) {
    let report = vault.verify(&VerifyOptions::default(), &|_| {}).await.unwrap();
    assert!(report.damages.is_empty(), "{:?}", report.damages);
    assert_eq!(report.leftovers, 0);
}

#[tokio::test]
async fn what_the_vault_has_is_not_fetched_again() {
    for plain in [true, false] {
        let keys = Keys::new(1);
        let disk = SimDisk::new(keys.clock.clone());
        let host = Host { keys: &keys, vault: init(disk.storage(), &keys, plain).await.unwrap(), fetched: 0.into() };
        let base = Entries::from([("a", vec![("l", large()), ("m", middle()), ("s", small())])]);
        host.scan(&base, false).await;
        let held = || disk.names("parts/").len() + disk.names("segments/").len();
        let scanned = held();
        assert_eq!(disk.names("parts/").len(), 1);
        // The same names again.
        let (point, fetched) = host.fetches(host.change(&[&base, &base])).await;
        assert_eq!((fetched, held()), (0, scanned));
        assert!(restored(&host.vault, &point).await == expected(&[&base]));
        // What is new is stored once, and known in the same run and in the next.
        let new =
            Entries::from([("a", vec![("l", large()), ("new", content(4, 200_000))]), ("b", vec![("m", middle())])]);
        let (point, fetched) = host.fetches(host.change(&[&new, &base, &new])).await;
        // Of `b` nothing was known: the same content of another key is not taken for granted. What is new of one
        // flush is packed together.
        assert_eq!((fetched, held()), (2, scanned + 1));
        assert!(restored(&host.vault, &point).await == expected(&[&new]));
        let (point, fetched) = host.fetches(host.change(&[&new])).await;
        assert_eq!((fetched, held()), (0, scanned + 1));
        assert!(restored(&host.vault, &point).await == expected(&[&new]));
        // A scan knows what the log has, too; a full one fetches all, and stores nothing twice.
        let (point, fetched) = host.fetches(host.scan(&new, false)).await;
        assert_eq!((fetched, disk.names("parts/").len()), (0, 1));
        assert!(restored(&host.vault, &point).await == expected(&[&new]));
        let (point, fetched) = host.fetches(host.scan(&new, true)).await;
        assert_eq!((fetched, disk.names("parts/").len()), (3, 1));
        assert!(restored(&host.vault, &point).await == expected(&[&new]));
        sound(&host.vault).await;
    }
}

#[tokio::test]
async fn lists_of_flushes_that_are_rolled_up_become_one() {
    let keys = Keys::new(7);
    let disk = SimDisk::new(keys.clock.clone());
    let host = Host { keys: &keys, vault: init(disk.storage(), &keys, false).await.unwrap(), fetched: 0.into() };
    host.scan(&Entries::from([("a", vec![("s", small())])]), false).await;
    let lists = || disk.names("history/").into_iter().filter(|n| n.contains("/contents/")).collect::<Vec<_>>();
    let rolled = |name: &String| name.contains("/00000000-00000002-");
    let names = ["0", "1", "2", "3", "4", "5", "6"];
    let entries =
        |n: u64| Entries::from([("a", vec![(names[n as usize], content(10 + n, (1 << 20) + 1)), ("m", middle())])]);
    let all = [entries(0), entries(1), entries(2)];
    let name = host.change(&[&all[0], &all[1], &all[2]]).await;
    assert_eq!((lists().len(), lists().iter().filter(|n| rolled(n)).count()), (4, 1));
    // What they say is known from the one.
    let (newest, fetched) = host.fetches(host.change(&[&all[2], &all[0]])).await;
    assert_eq!((fetched, lists().len()), (0, 7));
    for _ in 0..2 {
        keys.clock.advance(3 * DAY);
        host.vault.prune().await.unwrap();
    }
    assert_eq!((lists().len(), lists().iter().filter(|n| rolled(n)).count()), (2, 1));
    assert!(restored(&host.vault, &name).await == expected(&[&all[2]]));
    assert!(restored(&host.vault, &newest).await == expected(&[&all[0]]));
    sound(&host.vault).await;
    // Only as long as that one can be read are the others not needed.
    let run = host.change(&[&entries(3), &entries(4)]).await.run;
    let of_run = |names: Vec<String>| names.into_iter().filter(|n| n.contains(&run)).collect::<Vec<_>>();
    let one = of_run(lists()).into_iter().find(|n| n.contains("/00000000-00000001-")).unwrap();
    host.vault.storage().replace(&one, b"not a list".to_vec().into()).await.unwrap();
    for _ in 0..2 {
        keys.clock.advance(3 * DAY);
        host.vault.prune().await.unwrap();
    }
    assert_eq!(of_run(lists()).len(), 3);
    // A small one that cannot be read does not matter beside one that can.
    host.vault.storage().delete(&one).await.unwrap();
    let run = host.change(&[&entries(5), &entries(6)]).await.run;
    let small = of_run(lists()).len();
    let of_run = |names: Vec<String>| names.into_iter().filter(|n| n.contains(&run)).collect::<Vec<_>>();
    let first = of_run(lists()).into_iter().find(|n| n.contains("/00000000-00000000-")).unwrap();
    host.vault.storage().replace(&first, b"not a list".to_vec().into()).await.unwrap();
    for _ in 0..2 {
        keys.clock.advance(3 * DAY);
        host.vault.prune().await.unwrap();
    }
    assert_eq!((small, of_run(lists()).len()), (2, 1));
    sound(&host.vault).await;
}

#[tokio::test]
async fn small_contents_that_are_no_pieces_stand_beside_their_change() {
    let keys = Keys::new(7);
    let disk = SimDisk::new(keys.clock.clone());
    let host = Host { keys: &keys, vault: init(disk.storage(), &keys, false).await.unwrap(), fetched: 0.into() };
    host.scan(&Entries::new(), false).await;
    let held = || disk.names("parts/").len() + disk.names("segments/").len();
    for (bytes, objects) in [(small(), 0), (middle(), 1)] {
        let (run, before) = (host.start(false).await, held());
        let last = run.last().unwrap();
        run.follow_from(&last.position.unwrap(), last.time).await.unwrap();
        let store = run.changed_attachments();
        let content = store.put(futures::stream::iter([Ok(bytes.clone().into())]).boxed()).await.unwrap();
        let mut builder = BatchBuilder::new(info("c", false).id, Kind::Attachment, Encoding::Json);
        builder.push_attachment(b"a", b"{}", content);
        keys.clock.advance(1000);
        let time = host.time();
        let changes = vec![ChangeBatch { batch: builder.take(), times: vec![time] }];
        run.append(Flush { to: Position("p".into()), time, changes, catalog: Vec::new() }).await.unwrap();
        let point = host.commit(run, time).await;
        assert_eq!(held() - before, objects);
        assert!(restored(&host.vault, &point).await == BTreeMap::from([("a".to_owned(), bytes)]));
    }
}

/// A pack each flush would be too many objects.
#[tokio::test]
async fn small_contents_of_many_flushes_share_a_pack() {
    let keys = Keys::new(9);
    let disk = SimDisk::new(keys.clock.clone());
    let host = Host { keys: &keys, vault: init(disk.storage(), &keys, false).await.unwrap(), fetched: 0.into() };
    host.scan(&Entries::from([("z", vec![("s", small())])]), false).await;
    let (scanned, name) = (disk.names("segments/").len(), |i: u64| -> &'static str { format!("{i:04}").leak() });
    let entries = |i: u64| (name(i), vec![(name(i), content(i, 5000)), ("other", content(i + 1000, 6000))]);
    let flushes: Vec<Entries> = (0..20).map(|i| Entries::from([entries(i)])).collect();
    let all: Entries = (0..20).map(entries).collect();
    let (point, fetched) = host.fetches(host.change(&flushes.iter().collect::<Vec<_>>())).await;
    assert_eq!((fetched, disk.names("segments/").len() - scanned), (40, 2), "of the first, and of the others");
    assert!(restored(&host.vault, &point).await == expected(&[&all, &Entries::from([("z", vec![("s", small())])])]));
    for _ in 0..2 {
        keys.clock.advance(3 * DAY);
        host.vault.prune().await.unwrap();
    }
    // Later changes refer to it.
    let (again, fetched) = host.fetches(host.change(&[&all, &flushes[3]])).await;
    assert_eq!((fetched, disk.names("segments/").len() - scanned), (0, 2));
    for point in [&point, &again] {
        assert!(restored(&host.vault, point).await.len() == 21);
    }
    // Much of what is small is worth a pack at once.
    let much: Entries = (100..200).map(entries).collect();
    let more: Entries = (200..300).map(entries).collect();
    let (point, fetched) = host.fetches(host.change(&[&much, &more, &much, &flushes[0]])).await;
    assert_eq!((fetched, disk.names("segments/").len() - scanned), (400, 4));
    let left = restored(&host.vault, &point).await;
    assert!(expected(&[&all, &much, &more]).iter().all(|(key, content)| left[key] == *content));
    sound(&host.vault).await;
}

/// Contents of a scan and of changes after it come by turns; no pack is fetched for each of them.
#[tokio::test]
async fn packs_that_are_used_by_turns_are_read_once() {
    let keys = Keys::new(8);
    let disk = SimDisk::new(keys.clock.clone());
    let host = Host { keys: &keys, vault: init(disk.storage(), &keys, false).await.unwrap(), fetched: 0.into() };
    let name = |i: u64| -> &'static str { format!("{i:02}").leak() };
    let entries = |i: u64, seed: u64| (name(i), vec![(name(seed), content(seed, 5000)), ("same", content(i, 6000))]);
    host.scan(&(0..40).map(|i| entries(i, i + 100)).collect(), false).await;
    let changed: Vec<Entries> = [0, 1].map(|of| (of..40).step_by(3).map(|i| entries(i, i + 200)).collect()).into();
    let point_name = host.change(&changed.iter().collect::<Vec<_>>()).await;
    let storage = Arc::new(Away { inner: disk.storage(), left: AtomicU64::new(u64::MAX) });
    let vault = Vault::open(storage.clone(), keys.reader()).await.unwrap();
    let state = vault.resolve(&point(&vault, &point_name).await, &Selection::default(), None).await.unwrap();
    let (mut references, mut batches) = (Vec::new(), state.read(&state.collections()[0]));
    while let Some(batch) = batches.try_next().await.unwrap() {
        references.extend(batch.attachments.iter().cloned());
    }
    assert_eq!(references.len(), 40);
    references.sort_by_key(|reference| reference.digest);
    let before = storage.left.load(Ordering::SeqCst);
    for reference in &references {
        collect_attachment(state.attachments().open(reference).await.unwrap(), 20_000).await.unwrap();
    }
    // The scan's, and one for each flush.
    assert_eq!(before - storage.left.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn what_is_lost_is_fetched_again() {
    let keys = Keys::new(2);
    let disk = SimDisk::new(keys.clock.clone());
    let host = Host { keys: &keys, vault: init(disk.storage(), &keys, false).await.unwrap(), fetched: 0.into() };
    host.scan(&Entries::from([("a", vec![("s", small())])]), false).await;
    let entries = Entries::from([("a", vec![("l", large())])]);
    host.change(&[&entries]).await;
    let part = disk.names("parts/").remove(0);
    host.vault.storage().delete(&part).await.unwrap();
    let (point, fetched) = host.fetches(host.change(&[&entries])).await;
    assert_eq!(fetched, 1);
    assert!(restored(&host.vault, &point).await == expected(&[&entries]));
}

#[tokio::test]
async fn a_vault_that_was_away_takes_contents_later() {
    let keys = Keys::new(6);
    let disk = SimDisk::new(keys.clock.clone());
    init(disk.storage(), &keys, false).await.unwrap();
    let entries = Entries::from([("a", vec![("l", large()), ("m", middle()), ("s", small())])]);
    // It stops answering at one operation after the other, and answers again.
    let mut failed = 0;
    for number in 0.. {
        let storage = Arc::new(Away { inner: disk.storage(), left: AtomicU64::new(u64::MAX) });
        let vault = Vault::open(storage.clone(), keys.reader()).await.unwrap();
        let host = Host { keys: &keys, vault, fetched: 0.into() };
        if number == 0 {
            host.scan(&Entries::from([("a", vec![("s", small())])]), false).await;
        }
        let run = host.start(false).await;
        let last = run.last().unwrap();
        run.follow_from(&last.position.unwrap(), last.time).await.unwrap();
        let store = run.changed_attachments();
        keys.clock.advance(1000);
        let time = host.time();
        let other = |(name, content): &(&str, Vec<u8>)| {
            let name: &'static str = format!("{name}{number}").leak();
            (name, [&content[..], &[number]].concat())
        };
        let entries: Entries = entries.iter().map(|(k, pieces)| (*k, pieces.iter().map(other).collect())).collect();
        let batch = host.batch(&*store, &entries).await;
        let changes = vec![ChangeBatch { times: vec![time], batch }];
        let flush = Flush { to: Position("p".into()), time, changes, catalog: Vec::new() };
        storage.left.store(u64::from(number), Ordering::SeqCst);
        let tried = run.append(flush.clone()).await;
        storage.left.store(u64::MAX, Ordering::SeqCst);
        let done = tried.is_ok();
        if !done {
            failed += 1;
            run.append(flush).await.unwrap();
        }
        let name = host.commit(run, time).await;
        assert!(restored(&host.vault, &name).await == expected(&[&entries]));
        sound(&host.vault).await;
        if done {
            break;
        }
    }
    assert!(failed >= 5, "{failed}");
}

/// A storage that refuses everything after so many operations.
#[derive(Debug)]
struct Away {
    inner: Arc<dyn Storage>,
    left: AtomicU64,
}

impl Away {
    fn step(&self) -> model::Result<()> {
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| Some(left.saturating_sub(1)));
        match left {
            Ok(0) => Err(model::Error::new(ErrorKind::Retry, "away")),
            _ => Ok(()),
        }
    }
}

#[async_trait::async_trait]
impl Storage for Away {
    fn location(&self) -> String {
        self.inner.location()
    }
    fn is_local(&self) -> bool {
        self.inner.is_local()
    }
    async fn create(&self, name: &str, bytes: Bytes) -> model::Result<Created> {
        self.step()?;
        self.inner.create(name, bytes).await
    }
    async fn replace(&self, name: &str, bytes: Bytes) -> model::Result<()> {
        self.step()?;
        self.inner.replace(name, bytes).await
    }
    async fn sync(&self) -> model::Result<()> {
        self.step()?;
        self.inner.sync().await
    }
    async fn read(&self, name: &str) -> model::Result<Bytes> {
        self.step()?;
        self.inner.read(name).await
    }
    async fn read_range(&self, name: &str, range: std::ops::Range<u64>) -> model::Result<Bytes> {
        self.step()?;
        self.inner.read_range(name, range).await
    }
    async fn stat(&self, name: &str) -> model::Result<Option<Entry>> {
        self.step()?;
        self.inner.stat(name).await
    }
    async fn list(&self, prefix: &str) -> model::Result<BoxStream<'static, model::Result<Entry>>> {
        self.step()?;
        self.inner.list(prefix).await
    }
    async fn delete(&self, name: &str) -> model::Result<()> {
        self.step()?;
        self.inner.delete(name).await
    }
    async fn free_space(&self) -> model::Result<Option<u64>> {
        self.inner.free_space().await
    }
}

#[tokio::test]
async fn only_what_stands_alone_goes_into_the_log() {
    let keys = Keys::new(3);
    let disk = SimDisk::new(keys.clock.clone());
    let host = Host { keys: &keys, vault: init(disk.storage(), &keys, false).await.unwrap(), fetched: 0.into() };
    host.scan(&Entries::from([("a", vec![("m", middle())])]), false).await;
    let run = host.start(false).await;
    let last = run.last().unwrap();
    run.follow_from(&last.position.unwrap(), last.time).await.unwrap();
    keys.clock.advance(1000);
    let inline = AttachmentRef::inline(b"content");
    let place = |place: &str| AttachmentRef { place: place.into(), ..inline.clone() };
    let pieces = AttachmentRef::of_pieces(&[Piece { name: "x".into(), content: place("n0") }]).unwrap();
    for bad in [place("n0"), pieces] {
        let mut builder = BatchBuilder::new(info("c", false).id, Kind::Attachment, Encoding::Json);
        builder.push_attachment(b"a", b"{}", bad);
        let changes = vec![ChangeBatch { batch: builder.take(), times: vec![host.time()] }];
        let flush = Flush { to: Position("q".into()), time: host.time(), changes, catalog: Vec::new() };
        assert_eq!(run.append(flush).await.unwrap_err().kind(), ErrorKind::Bug);
    }
}

#[tokio::test]
async fn a_prune_keeps_what_changes_refer_to() {
    let keys = Keys::new(4);
    let disk = SimDisk::new(keys.clock.clone());
    let host = Host { keys: &keys, vault: init(disk.storage(), &keys, false).await.unwrap(), fetched: 0.into() };
    let zone = jiff::tz::TimeZone::UTC;
    let prune = async |policy: Policy| {
        let options = PruneOptions { policy, zone: zone.clone(), ..PruneOptions::default() };
        host.vault.prune_by(&options).await.unwrap()
    };
    let old = Entries::from([("a", vec![("s", small())])]);
    let entries = Entries::from([("a", vec![("l", large()), ("m", middle())])]);
    let first = host.scan(&old, false).await;
    // A second scan brings contents; the changes after it refer to them, and can also be read with the first.
    let run = host.start(true).await;
    let begin = run.last().unwrap();
    run.follow_from(&begin.position.unwrap(), begin.time).await.unwrap();
    keys.clock.advance(1000);
    let scanned = host.time();
    run.scanned_at(scanned).await;
    run.begin(&info("c", false)).await.unwrap();
    run.write(host.batch(&*run.attachments(), &entries).await).await.unwrap();
    run.end(&info("c", false).id).await.unwrap();
    let batch = host.batch(&*run.changed_attachments(), &entries).await;
    let changes = vec![ChangeBatch { times: vec![scanned], batch }];
    run.append(Flush { to: Position("p".into()), time: scanned, changes, catalog: Vec::new() }).await.unwrap();
    let second = host.commit(run, scanned).await;
    let new = Entries::from([("b", vec![("n", content(9, (1 << 20) + 1))])]);
    let later = host.change(&[&entries, &new]).await;
    assert_eq!(disk.names("history/").iter().filter(|n| n.contains("/contents/")).count(), 4, "one of both");
    // The second scan's point is given up; what the log needs of it stays.
    for name in [&second, &later] {
        host.vault.storage().delete(&name.to_string()).await.unwrap();
    }
    prune(Policy::default()).await;
    let source = first.source.clone();
    let state = host.vault.resolve_at(&source, host.time(), &Selection::default(), None).await.unwrap();
    state.check_there().await.unwrap();
    assert!(contents(&state).await == expected(&[&entries, &new]));
    sound(&host.vault).await;
    // Once the changes are not kept any more, neither are their contents.
    keys.clock.advance(3 * DAY);
    host.scan(&old, true).await;
    for _ in 0..3 {
        keys.clock.advance(3 * DAY);
        prune(Policy { last: Some(1), ..Policy::default() }).await;
    }
    let left: Vec<String> =
        disk.names("").into_iter().filter(|n| n.contains("contents/") || n.contains("parts/")).collect();
    assert_eq!(left, Vec::<String>::new());
    sound(&host.vault).await;
    // By the window, too.
    host.change(&[&new]).await;
    keys.clock.advance(3 * DAY);
    host.change(&[&old]).await;
    prune(Policy { last: Some(1), any_second_within: Some(1.days()), ..Policy::default() }).await;
    assert_eq!(disk.names("parts/").len(), 1, "the newest point's base is older than the changes");
}

#[tokio::test]
async fn what_is_damaged_is_named() {
    let keys = Keys::new(5);
    let disk = SimDisk::new(keys.clock.clone());
    let host = Host { keys: &keys, vault: init(disk.storage(), &keys, false).await.unwrap(), fetched: 0.into() };
    host.scan(&Entries::from([("a", vec![("s", small())])]), false).await;
    let scanned = disk.names("segments/");
    let mut entries = Entries::from([("a", vec![("l", large())]), ("b", vec![("n", content(9, (1 << 20) + 1))])]);
    entries.insert("c", vec![("m", middle())]);
    let name = host.change(&[&entries]).await;
    let mut parts = disk.names("parts/");
    parts.extend(disk.names("segments/").into_iter().filter(|segment| !scanned.contains(segment)));
    let mut hit = Vec::new();
    for part in &parts {
        let bytes = host.vault.storage().read(part).await.unwrap();
        host.vault.storage().delete(part).await.unwrap();
        let report = host.vault.verify(&VerifyOptions::default(), &|_| {}).await.unwrap();
        let damage = report.damages.iter().find(|d| d.object == *part).unwrap();
        let hits: Vec<_> = damage.hits.iter().map(|h| (h.collection.clone().unwrap(), h.points.clone())).collect();
        assert_eq!(hits, [("c".to_owned(), vec![name.id()])]);
        hit.extend(damage.hits[0].documents.clone());
        let state = host.vault.resolve(&point(&host.vault, &name).await, &Selection::default(), None).await.unwrap();
        assert_eq!(state.check_there().await.unwrap_err().kind(), ErrorKind::Corrupt);
        host.vault.storage().create(part, bytes).await.unwrap();
    }
    hit.sort();
    assert_eq!(hit, ["a", "b", "c"]);
    // Without a list it is not known what may go: nothing that holds contents does.
    let list = disk.names("history/").into_iter().find(|n| n.contains("/contents/")).unwrap();
    host.vault.storage().replace(&list, b"not a list".to_vec().into()).await.unwrap();
    let report = host.vault.verify(&VerifyOptions::default(), &|_| {}).await.unwrap();
    let damage = report.damages.iter().find(|d| d.object == list).unwrap();
    assert!(!damage.loses() && damage.hits.is_empty(), "{damage:?}");
    keys.clock.advance(3 * DAY);
    host.vault.prune().await.unwrap();
    assert!(parts.iter().all(|part| disk.names("").contains(part)));
    assert!(restored(&host.vault, &name).await == expected(&[&entries]));
    // Backups go on, and once its changes may go, so does the list.
    let newest = host.scan(&entries, true).await;
    for _ in 0..3 {
        keys.clock.advance(3 * DAY);
        let policy = Policy { last: Some(1), ..Policy::default() };
        let options = PruneOptions { policy, zone: jiff::tz::TimeZone::UTC, ..PruneOptions::default() };
        host.vault.prune_by(&options).await.unwrap();
    }
    assert!(!disk.names("history/").iter().any(|n| n.contains("/contents/")));
    assert!(restored(&host.vault, &newest).await == expected(&[&entries]));
    sound(&host.vault).await;
}
