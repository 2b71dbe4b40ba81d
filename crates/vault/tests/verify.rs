//! Checking the change log, samples, repair, and what is remembered of checks.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::*;
use model::{
    BatchBuilder, ChangeBatch, CollectionId, CollectionInfo, Consistency, Encoding, EngineTime, FeedKind, Kind,
    Position, Selection,
};
use testkit::faulty::SimDisk;
use vault::{
    BackupOptions, Check, CheckKind, Flush, LogName, PointDetails, Run, Sample, Vault, VerifyOptions, VerifyReport,
};

struct Fixture {
    keys: Keys,
    disk: SimDisk,
    vault: Vault,
}

fn at(time: u64) -> EngineTime {
    EngineTime::wall(time as i64)
}

fn books() -> CollectionInfo {
    CollectionInfo { name: "shop.books".into(), ..info("books", false) }
}

fn details(time: u64) -> PointDetails {
    let position = Some(Position(time.to_string()));
    PointDetails { time: at(time), consistency: Consistency::OneTime, position, gap: None, skipped: vec![] }
}

fn put(key: &str, time: u64) -> ChangeBatch {
    let mut builder = BatchBuilder::new(CollectionId::new("books"), Kind::Document, Encoding::Json);
    builder.push(key.as_bytes(), format!("{{\"t\":{time}}}").as_bytes());
    ChangeBatch { batch: builder.take(), times: vec![at(time)] }
}

async fn flush(run: &Run, time: u64, changes: Vec<ChangeBatch>) {
    let flush = Flush { to: Position(time.to_string()), time: at(time), changes, catalog: vec![] };
    run.append(flush).await.unwrap();
}

impl Fixture {
    /// A scan at 1000, then two runs that follow: to 2000 in three flushes that are rolled up, and to
    /// 3000 in one.
    async fn new(plain: bool) -> Fixture {
        let keys = Keys::new(21);
        let disk = SimDisk::new(keys.clock.clone());
        let vault = init(disk.storage(), &keys, plain).await.unwrap();
        let fixture = Fixture { keys, disk, vault };
        let run = fixture.start().await;
        run.begin(&books()).await.unwrap();
        let mut builder = BatchBuilder::new(CollectionId::new("books"), Kind::Document, Encoding::Json);
        (0..30).for_each(|i| builder.push(format!("b{i}").as_bytes(), b"{}"));
        run.write(builder.take()).await.unwrap();
        run.end(&books().id).await.unwrap();
        run.commit(details(1000)).await.unwrap();
        for (from, times) in [(1000, vec![1300, 1600, 2000]), (2000, vec![3000])] {
            let run = fixture.start().await;
            run.follow_from(&Position(from.to_string()), at(from)).await.unwrap();
            let last = *times.last().unwrap();
            for time in times {
                flush(&run, time, vec![put("b1", time - 1), put("new", time)]).await;
            }
            run.commit(details(last)).await.unwrap();
        }
        fixture
    }

    async fn start(&self) -> Run {
        self.keys.clock.advance(1000);
        let description = model::Description { feed: FeedKind::EveryChange, ..description("s", &World::new()) };
        let options = BackupOptions { workers: 1, level: 1, ..BackupOptions::default() };
        self.vault.start_run(&description, options).await.unwrap()
    }

    async fn verify(&self, options: VerifyOptions) -> VerifyReport {
        let vault = Vault::open(self.disk.storage(), self.keys.reader()).await.unwrap();
        vault.verify(&options, &|_| {}).await.unwrap()
    }

    async fn both(&self) -> [VerifyReport; 2] {
        let quick = self.verify(VerifyOptions { quick: true, ..VerifyOptions::default() }).await;
        [quick, self.verify(VerifyOptions::default()).await]
    }

    fn log(&self) -> Vec<LogName> {
        let mut names: Vec<LogName> = self.disk.names("history/").iter().filter_map(|n| LogName::parse(n)).collect();
        names.sort_by_key(|n| (n.from, n.first, n.last));
        names
    }

    async fn point_ids(&self) -> Vec<String> {
        let mut points = self.vault.points().await.unwrap().points;
        points.sort_by_key(|p| p.manifest.time);
        points.iter().map(|p| p.name.id()).collect()
    }
}

#[tokio::test]
async fn damage_to_the_log_names_times_points_and_collections() {
    for plain in [true, false] {
        let fixture = Fixture::new(plain).await;
        for report in fixture.both().await {
            assert!(report.damages.is_empty() && report.healed.is_empty() && report.notes.is_empty(), "{report:?}");
        }
        let ids = fixture.point_ids().await;
        let log = fixture.log();
        assert_eq!(
            log.iter().map(|n| (n.from, n.to, n.is_rolled())).collect::<Vec<_>>(),
            [(1000, 1300, false), (1000, 2000, true), (1300, 1600, false), (1600, 2000, false), (2000, 3000, false),]
        );
        for name in &log {
            let path = name.to_string();
            let whole = fixture.disk.get(&path).unwrap();
            let bits = whole.len() as u64 * 8;
            for bit in [1, bits / 3, bits / 2, bits - 1] {
                fixture.disk.flip(&path, bit);
                for report in fixture.both().await {
                    if name.from != 2000 {
                        // The others hold the same changes.
                        assert!(report.damages.is_empty(), "{path} {bit}: {report:?}");
                        assert_eq!(report.healed.len(), 1);
                        assert_eq!(report.healed[0].object, path);
                        continue;
                    }
                    let damage = report.damages.iter().find(|d| d.object == path).expect("it is named");
                    assert_eq!(report.damages.len(), 1, "{report:?}");
                    assert!(damage.loses());
                    let hit = &damage.hits[0];
                    assert_eq!((&hit.source[..], &hit.points[..]), ("s", &ids[2..]));
                    assert_eq!(hit.times.iter().map(|t| (t.from, t.to)).collect::<Vec<_>>(), [(2000, 3000)]);
                }
                fixture.disk.put(&path, whole.clone());
            }
        }
        // Only the rolled object is left, and it goes: both points lack what was in it.
        for name in log.iter().filter(|n| n.from < 2000 && !n.is_rolled()) {
            fixture.disk.remove(&name.to_string());
        }
        assert!(fixture.verify(VerifyOptions::default()).await.damages.is_empty());
        let path = log[1].to_string();
        let whole = fixture.disk.get(&path).unwrap();
        fixture.disk.flip(&path, whole.len() as u64 * 4);
        for report in fixture.both().await {
            let hit = &report.damages.iter().find(|d| d.object == path).unwrap().hits[0];
            assert_eq!(hit.points, ids[1..]);
            assert_eq!(hit.times.iter().map(|t| (t.from, t.to)).collect::<Vec<_>>(), [(1000, 3000)]);
        }
        fixture.disk.remove(&path);
        for report in fixture.both().await {
            let mut hit: Vec<String> = report.damages.iter().flat_map(|d| d.hits[0].points.clone()).collect();
            let mut expected = ids[1..].to_vec();
            hit.sort();
            expected.sort();
            assert_eq!(hit, expected, "{report:?}");
            assert!(report.damages.iter().all(|d| d.problem.contains("are missing")), "{report:?}");
        }
    }
}

#[tokio::test]
async fn documents_of_a_readable_header_are_counted() {
    let fixture = Fixture::new(true).await;
    // Large enough that a header can be read by itself.
    let run = fixture.start().await;
    run.follow_from(&Position("3000".into()), at(3000)).await.unwrap();
    let mut builder = BatchBuilder::new(CollectionId::new("books"), Kind::Document, Encoding::Json);
    let mut random = 1u64;
    for i in 0..3000u64 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        builder.push(format!("x{i}").as_bytes(), format!("{{\"r\":{random},\"s\":{}}}", random >> 7).as_bytes());
    }
    let times = (0..3000).map(|_| at(3500)).collect();
    flush(&run, 4000, vec![ChangeBatch { batch: builder.take(), times }]).await;
    run.commit(details(4000)).await.unwrap();
    let name = fixture.log().into_iter().find(|n| n.from == 3000).unwrap().to_string();
    let length = fixture.disk.get(&name).unwrap().len() as u64;
    assert!(length > 64 << 10, "{length}");
    fixture.disk.flip(&name, length * 6);
    let report = fixture.verify(VerifyOptions::default()).await;
    let hit = &report.damages[0].hits[0];
    assert_eq!((hit.collection.as_deref(), hit.document_count), (Some("shop.books"), 3000));
}

#[tokio::test]
async fn samples_look_at_everything_in_turn_and_always_for_what_is_missing() {
    let fixture = Fixture::new(false).await;
    let all: Vec<String> = fixture.disk.names("").into_iter().filter(|n| n != "vault.json").collect();
    let of = 4;
    let samples = || (0..of).map(|first| Sample { first, count: 1, of });
    for name in &all {
        let whole = fixture.disk.get(name).unwrap();
        fixture.disk.flip(name, whole.len() as u64 * 4);
        let mut found = 0;
        for sample in samples() {
            let options = VerifyOptions { sample: Some(sample), quick: true, ..VerifyOptions::default() };
            let report = fixture.verify(options).await;
            found += usize::from(report.damages.iter().any(|d| d.object == *name) || !report.healed.is_empty());
            assert!(report.objects < report.total_objects, "{report:?}");
        }
        assert!(found >= 1, "{name} is in no sample");
        fixture.disk.put(name, whole.clone());
        if name.starts_with("segments/") {
            fixture.disk.truncate(name, whole.len() - 1);
            for sample in samples() {
                let options = VerifyOptions { sample: Some(sample), quick: true, ..VerifyOptions::default() };
                assert!(!fixture.verify(options).await.damages.is_empty(), "a cut object is found by its size");
            }
            fixture.disk.put(name, whole);
        }
    }
}

#[tokio::test]
async fn records_of_checks_are_signed_and_the_newest_count() {
    for plain in [true, false] {
        let fixture = Fixture::new(plain).await;
        let vault = &fixture.vault;
        assert_eq!(vault.last_checks().await.unwrap(), Default::default());
        let mut newest = None;
        for i in 0..105i64 {
            let check = Check::new(CheckKind::Verify, i * 10, i * 10 + 5, (i % 2 == 0).then(|| "bad".into()));
            vault.record_check(&check).await.unwrap();
            newest = Some(check);
        }
        assert_eq!(vault.last_checks().await.unwrap().verify, newest);
        let records = fixture.disk.names("checks/");
        assert_eq!(records.len(), 100, "old ones are taken away");
        // A record belongs into a vault, and is checked like everything else.
        assert!(fixture.verify(VerifyOptions::default()).await.damages.is_empty());
        let last = records.last().unwrap();
        let stored = fixture.disk.get(last).unwrap();
        fixture.disk.flip(last, stored.len() as u64 * 4);
        let checks = vault.last_checks().await.unwrap();
        assert!(checks.verify.is_none() && checks.broken.len() == 1, "{checks:?}");
        assert!(fixture.both().await.iter().all(|r| r.damages.iter().any(|d| d.object == *last)));
        // Somebody else's record under a right name is not believed.
        fixture.disk.remove(last);
        let disk = SimDisk::new(fixture.keys.clock.clone());
        let theirs = init(disk.storage(), &fixture.keys, plain).await.unwrap();
        let check = Check::new(CheckKind::Verify, 9_000_000, 9_000_001, None);
        let name = theirs.record_check(&check).await.unwrap().to_string();
        fixture.disk.put(&name, disk.get(&name).unwrap());
        let checks = vault.last_checks().await.unwrap();
        assert!(checks.verify.is_none() && !checks.broken.is_empty(), "{checks:?}");
    }
}

#[tokio::test]
async fn a_run_stores_anew_what_a_check_has_found_damaged() {
    let fixture = Fixture::new(false).await;
    let segment = fixture.disk.names("segments/").remove(0);
    let length = fixture.disk.get(&segment).unwrap().len() as u64;
    fixture.disk.flip(&segment, length * 4);
    let points = fixture.vault.points().await.unwrap().points;
    let first = points.iter().min_by_key(|p| p.manifest.time).unwrap();
    let read = async || {
        let state = fixture.vault.resolve(first, &Selection::default(), None).await?;
        let mut batches = state.read(&state.collections()[0]);
        let mut count = 0;
        while let Some(batch) = futures::TryStreamExt::try_next(&mut batches).await? {
            count += batch.len();
        }
        Ok::<_, model::Error>(count)
    };
    assert!(read().await.is_err());
    let report = fixture.verify(VerifyOptions::default()).await;
    let mut check = Check::new(CheckKind::Verify, 1, 2, Some("damaged".into()));
    let damaged = report.damages.iter().map(|d| d.object.clone()).collect();
    check.verified = Some(vault::Verified { damaged, ..Default::default() });
    fixture.vault.record_check(&check).await.unwrap();
    let run = fixture.start().await;
    assert!(run.is_full() && !run.has_base(), "it does not build on what is damaged");
    run.begin(&books()).await.unwrap();
    let mut builder = BatchBuilder::new(CollectionId::new("books"), Kind::Document, Encoding::Json);
    (0..30).for_each(|i| builder.push(format!("b{i}").as_bytes(), b"{}"));
    run.write(builder.take()).await.unwrap();
    run.end(&books().id).await.unwrap();
    run.commit(details(5000)).await.unwrap();
    assert_eq!(read().await.unwrap(), 30, "the old point reads the new copy");
    let report = fixture.verify(VerifyOptions::default()).await;
    assert!(report.damages.is_empty() && report.healed.len() == 1, "{report:?}");
    assert!(!fixture.start().await.is_full(), "the next run builds on the new point");
}
