//! Attachments beside a collection that lies in one file.
#![allow(clippy::unwrap_used)]

mod common;

use common::{copy, copy_with, described, pump, restored, tree, write};
use folder::{FolderSink, FolderSource};
use model::{BatchBuilder, CollectionId, Encoding, IfExists, Kind, Plan, RestoreOptions, Selection, Sink, Source};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use testkit::source::MemoryAttachments;

fn with(if_exists: IfExists) -> RestoreOptions {
    RestoreOptions { if_exists, ..RestoreOptions::default() }
}

async fn copy_if(from: &Path, to: &Path, if_exists: IfExists) -> model::Result<()> {
    copy_with(from, &FolderSink::new(to), &Selection::default(), &with(if_exists)).await.map(drop)
}

fn countries() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(
        dir.path(),
        &[
            ("countries.json", b"[\n {\"id\":\"at\"},\n {\"id\":\"de\"}\n]\n"),
            ("countries/at.attachments/flag.svg", b"<svg/>"),
            ("countries/de.attachments/old/flag.svg", b"<svg></svg>"),
            ("rows.ndjson", b"1\n2\n"),
            ("rows/2.attachments/two", b"22"),
        ],
    );
    dir
}

#[tokio::test]
async fn keys_name_the_document_and_the_plan_counts_the_bytes() {
    let from = countries();
    let source = FolderSource::new(from.path());
    let all = testkit::source::read_everything(&source, &Selection::default(), Arc::default()).await.unwrap();
    let keys: Vec<_> = all.of("countries").iter().map(|e| (e.kind == Kind::Attachment, &e.key[..])).collect();
    let expected: [(bool, &[u8]); 4] =
        [(false, b"at"), (false, b"de"), (true, b"at/flag.svg"), (true, b"de/old/flag.svg")];
    assert_eq!(keys, expected);
    let bytes = async |selection: Selection| match source.plan(&selection, None).await.unwrap() {
        Plan::Scan { parts, .. } => (parts.len(), parts.iter().filter_map(|p| p.bytes).sum::<u64>()),
        _ => panic!("a folder is scanned"),
    };
    let files = fs::metadata(from.path().join("countries.json")).unwrap().len() + 4;
    assert_eq!(bytes(Selection::default()).await, (4, files + 6 + 11 + 2));
    assert_eq!(bytes(Selection { no_attachments: true, ..Selection::default() }).await, (2, files));
    assert_eq!(source.describe().await.unwrap().collections.len(), 2);
}

#[tokio::test]
async fn attachments_can_be_left_out() {
    let (from, to) = (countries(), tempfile::tempdir().unwrap());
    let without = Selection { no_attachments: true, ..Selection::default() };
    copy_with(from.path(), &FolderSink::new(to.path()), &without, &RestoreOptions::default()).await.unwrap();
    let mut expected = tree(from.path());
    expected.retain(|name, _| name == "countries.json" || name == "rows.ndjson");
    assert_eq!(restored(to.path()), expected);
}

#[tokio::test]
async fn a_name_that_is_also_a_file_harms_nothing() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // The attachments of x.json.jsonl would lie where x.json is, but it has none.
    write(from.path(), &[("x.json", b"[1]"), ("x.json.jsonl", b"2\n"), ("x/1.attachments/a", b"a")]);
    copy(from.path(), to.path()).await.unwrap();
    assert_eq!(restored(to.path()), tree(from.path()));
    let marked = tree(to.path());
    copy_if(from.path(), to.path(), IfExists::Replace).await.unwrap();
    assert_eq!(tree(to.path()), marked);
}

#[tokio::test]
async fn attachments_in_the_place_of_another_collection_are_refused() {
    let (from, dir) = (countries(), tempfile::tempdir().unwrap());
    write(from.path(), &[("Rows/a.json", b"1")]);
    let to = dir.path().join("to");
    let mut options = RestoreOptions::default();
    options.add_rename("rows=countries.json").unwrap();
    for (sink, options, place) in [
        (FolderSink::new(&to), options, "countries.json is the place of countries, and"),
        (FolderSink::new(&to).ignoring_case(true), RestoreOptions::default(), "rows is the place of Rows, and"),
    ] {
        let error = copy_with(from.path(), &sink, &Selection::default(), &options).await.unwrap_err();
        assert!(error.to_string().contains(place), "{error}");
        assert!(error.hint_text().unwrap().contains("--rename"));
        assert!(tree(dir.path()).is_empty());
    }
}

#[tokio::test]
async fn replacing_swaps_the_folder_with_its_file() {
    let (from, to) = (countries(), tempfile::tempdir().unwrap());
    write(
        to.path(),
        &[
            ("countries.json", b"[9]"),
            ("countries/9.attachments/gone", b""),
            ("rows/as-files.json", b"1"),
            ("other.jsonl", b"1\n"),
            ("other/1.attachments/mine", b"mine"),
        ],
    );
    let mut expected = tree(to.path());
    expected.retain(|name, _| name.starts_with("other"));
    expected.extend(tree(from.path()));
    copy_if(from.path(), to.path(), IfExists::Replace).await.unwrap();
    assert_eq!(restored(to.path()), expected);
    // What has no attachments any more takes those that were there away.
    fs::remove_dir_all(from.path().join("countries")).unwrap();
    expected.retain(|name, _| !name.starts_with("countries/") && name != "countries");
    copy_if(from.path(), to.path(), IfExists::Replace).await.unwrap();
    assert_eq!(restored(to.path()), expected);
}

#[tokio::test]
async fn a_file_in_the_place_of_the_folder_is_not_replaced() {
    let (from, to) = (countries(), tempfile::tempdir().unwrap());
    for if_exists in [IfExists::Replace, IfExists::Merge] {
        write(to.path(), &[("countries", b"mine")]);
        let before = tree(to.path());
        let error = copy_if(from.path(), to.path(), if_exists).await.unwrap_err();
        assert!(error.to_string().ends_with("countries is in the way: it is not a folder"), "{error}");
        assert_eq!(tree(to.path()), before);
    }
}

#[tokio::test]
async fn merging_adds_whole_collections_only() {
    let from = countries();
    let to = tempfile::tempdir().unwrap();
    write(to.path(), &[("other/a.json", b"mine")]);
    let mut expected = tree(to.path());
    expected.extend(tree(from.path()));
    copy_if(from.path(), to.path(), IfExists::Merge).await.unwrap();
    assert_eq!(restored(to.path()), expected);
    let before = tree(to.path());
    let error = copy_if(from.path(), to.path(), IfExists::Merge).await.unwrap_err();
    assert_eq!(error.to_string(), "documents cannot be merged into the file countries.json");
    assert_eq!(tree(to.path()), before);
}

#[tokio::test]
async fn giving_up_takes_the_folder_back() {
    let from = countries();
    for if_exists in [IfExists::Fail, IfExists::Merge, IfExists::Replace] {
        let to = tempfile::tempdir().unwrap();
        if if_exists != IfExists::Fail {
            write(to.path(), &[("mine/a.json", b"1")]);
        }
        let before = tree(to.path());
        let sink = FolderSink::new(to.path());
        let (description, _) = described(from.path(), &Selection::default()).await.unwrap();
        let plan = sink.prepare(&description, &with(if_exists)).await.unwrap();
        let store = Arc::new(MemoryAttachments::default());
        let session = sink.begin(plan, store.clone()).await.unwrap();
        pump(from.path(), &Selection::default(), &*session, &store).await.unwrap();
        assert_eq!(session.abort().await.what, Vec::<String>::new());
        assert_eq!(tree(to.path()), before, "{if_exists:?}");
    }
}

/// Restores `rows.ndjson` with one attachment for each of these ids.
async fn restore_ids(to: &Path, ids: &[&str]) -> model::Result<()> {
    let from = countries();
    let sink = FolderSink::new(to);
    let (mut description, _) = described(from.path(), &Selection::default()).await?;
    description.collections.retain(|info| info.name == "rows");
    let plan = sink.prepare(&description, &RestoreOptions::default()).await?;
    let store = Arc::new(MemoryAttachments::default());
    let session = sink.begin(plan, store.clone()).await?;
    session.catalog(&description.collections[0]).await?;
    for id in ids {
        let mut batch = BatchBuilder::new(CollectionId::new("rows"), Kind::Attachment, Encoding::Json);
        let body = serde_json::json!({"document": id, "name": "n", "length": 1}).to_string();
        batch.push_attachment(format!("{id}/n").as_bytes(), body.as_bytes(), store.put_bytes(b"1").await);
        let batch = batch.take();
        session.write(batch.clone()).await?;
        session.write(batch).await?;
    }
    session.finish().await.map(drop)
}

#[tokio::test]
async fn ids_that_are_no_names_are_encoded_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("to");
    let long = "x".repeat(300);
    let ids = ["plain", "Ünï", "50%", "../../up", "a/b", ".hidden", "", &long];
    restore_ids(&to, &ids).await.unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing leaves the folder");
    assert!(to.join("rows/a%2fb.attachments/n").is_file() && to.join("rows/50%.attachments/n").is_file());
    let source = FolderSource::new(&to);
    let all = testkit::source::read_everything(&source, &Selection::default(), Arc::default()).await.unwrap();
    let mut found: Vec<_> = all.of("rows").iter().map(|e| String::from_utf8(e.key.clone()).unwrap()).collect();
    found.sort();
    let mut expected = ids.map(|id| format!("{id}/n"));
    expected.sort();
    assert_eq!(found, expected);
    let third = dir.path().join("third");
    copy(&to, &third).await.unwrap();
    let names = "rows/.rewound-names.jsonl";
    let sorted = |root: &Path| {
        let mut lines: Vec<_> = fs::read_to_string(root.join(names)).unwrap().lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&third), sorted(&to));
    let (mut one, mut other) = (restored(&third), restored(&to));
    assert!(one.remove(names).is_some() && other.remove(names).is_some());
    assert_eq!(one, other);
}

#[tokio::test]
async fn two_ids_of_one_name_are_refused() {
    for ids in [["a/b", "a%2fb"], ["a%2fb", "a/b"]] {
        let dir = tempfile::tempdir().unwrap();
        let error = restore_ids(&dir.path().join("to"), &ids).await.unwrap_err();
        assert!(error.to_string().contains("would both be called a%2fb.attachments"), "{error}");
    }
}

#[tokio::test]
async fn kept_names_that_are_forged_do_not_count() {
    let from = countries();
    write(
        from.path(),
        &[
            ("rows/%63on.attachments/x", b""),
            ("rows/con.attachments/x", b""),
            ("rows/.rewound-names.jsonl", b"{\"file\":\"2\",\"key\":\"1\"}\n{\"file\":\"%63on\",\"key\":\"con\"}\n"),
        ],
    );
    let source = FolderSource::new(from.path());
    let all = testkit::source::read_everything(&source, &Selection::default(), Arc::default()).await.unwrap();
    let keys: Vec<_> = all.of("rows")[2..].iter().map(|e| &e.key[..]).collect();
    assert_eq!(keys, [&b"%63on/x"[..], b"2/two", b"con/x"]);
}
