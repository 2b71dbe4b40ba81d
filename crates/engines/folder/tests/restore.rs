//! The hard cases of restoring into a folder.
#![allow(clippy::unwrap_used)]

mod common;

use common::{copy, copy_with, described, pump, restored, tree, write};
use folder::FolderSink;
use model::{
    BatchBuilder, CollectionId, CollectionInfo, Description, Encoding, Engine, Error, ErrorKind, FeedKind, IfExists,
    Kind, RestoreOptions, Result, Selection, Sink, SinkSession, Source,
};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use testkit::source::MemoryAttachments;

fn with(if_exists: IfExists) -> RestoreOptions {
    RestoreOptions { if_exists, ..RestoreOptions::default() }
}

async fn copy_if(from: &Path, to: &Path, if_exists: IfExists) -> Result<()> {
    copy_with(from, &FolderSink::new(to), &Selection::default(), &with(if_exists)).await.map(drop)
}

fn sample() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(
        dir.path(),
        &[
            ("books/a.json", b"1"),
            ("books/a.attachments/x", b"x"),
            ("lines.jsonl", b"1\n2\n"),
            ("lines/1.attachments/y", b"y"),
            ("array.json", b"[]"),
        ],
    );
    dir
}

/// A restore of one collection with these options, as a backup might claim it to be.
async fn open(sink: &FolderSink, engine: &str, name: &str, options: Value) -> Result<Box<dyn SinkSession>> {
    let info = CollectionInfo { id: CollectionId::new("c"), name: name.into(), options, ordered: false };
    let description = Description {
        engine: Engine::new(engine),
        identity: "x".into(),
        name: "x".into(),
        version: "1".into(),
        feed: FeedKind::LatestState,
        collections: vec![info.clone()],
        losses: Vec::new(),
    };
    let plan = sink.prepare(&description, &RestoreOptions::default()).await?;
    let session = sink.begin(plan, Arc::new(MemoryAttachments::default())).await?;
    session.catalog(&info).await?;
    Ok(session)
}

async fn put(session: &dyn SinkSession, key: &[u8], body: &[u8]) -> Result<()> {
    let mut batch = BatchBuilder::new(CollectionId::new("c"), Kind::Document, Encoding::Json);
    batch.push(key, body);
    session.write(batch.take()).await
}

#[tokio::test]
async fn a_target_that_is_not_empty_is_refused_with_what_is_there() {
    let (from, to) = (sample(), tempfile::tempdir().unwrap());
    for i in 0..25 {
        write(to.path(), &[(&format!("f{i:02}"), b"")]);
    }
    let before = tree(to.path());
    let error = copy(from.path(), to.path()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Input);
    let text = error.to_string();
    assert!(text.contains("is not empty; there is: f00, f01, ") && text.ends_with("f19, and 5 more"), "{text}");
    assert!(error.hint_text().unwrap().contains("--if-exists"));
    assert_eq!(tree(to.path()), before);
    let error = copy(from.path(), &to.path().join("f00")).await.unwrap_err();
    assert!(error.to_string().ends_with("f00 is not a folder"), "{error}");
    let error = copy(from.path(), &to.path().join("f00/below")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Input, "{error}");
    assert_eq!(tree(to.path()), before);
}

#[tokio::test]
async fn a_target_that_fills_up_after_the_plan_is_refused() {
    let (from, to) = (sample(), tempfile::tempdir().unwrap());
    let sink = FolderSink::new(to.path());
    let (description, _) = described(from.path(), &Selection::default()).await.unwrap();
    let plan = sink.prepare(&description, &RestoreOptions::default()).await.unwrap();
    write(to.path(), &[("books/a.json", b"mine")]);
    assert!(sink.begin(plan, Arc::new(MemoryAttachments::default())).await.is_err());
    assert_eq!(fs::read(to.path().join("books/a.json")).unwrap(), b"mine");
}

#[tokio::test]
async fn merging_keeps_what_is_there() {
    let (from, to) = (sample(), tempfile::tempdir().unwrap());
    fs::remove_file(from.path().join("lines.jsonl")).unwrap();
    write(to.path(), &[("books/a.json", b"old"), ("books/b.json", b"mine"), ("notes.txt", b"mine")]);
    let mut expected = tree(to.path());
    expected.extend(tree(from.path()));
    fs::remove_file(from.path().join("array.json")).unwrap();
    expected.remove("array.json");
    copy_if(from.path(), to.path(), IfExists::Merge).await.unwrap();
    assert_eq!(restored(to.path()), expected);
    copy_if(from.path(), to.path(), IfExists::Merge).await.unwrap();
    assert_eq!(restored(to.path()), expected);
}

#[tokio::test]
async fn merging_into_one_file_or_a_second_place_is_refused() {
    let from = sample();
    for there in ["lines.jsonl", "lines.json", "array/a.json", "books.jsonl", "books"] {
        let to = tempfile::tempdir().unwrap();
        write(to.path(), &[(there, b"[]")]);
        let before = tree(to.path());
        let error = copy_if(from.path(), to.path(), IfExists::Merge).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{there}: {error}");
        assert_eq!(tree(to.path()), before);
    }
}

#[tokio::test]
async fn merging_does_not_follow_links() {
    let (from, to, outside) = (sample(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::remove_file(from.path().join("lines.jsonl")).unwrap();
    fs::remove_file(from.path().join("array.json")).unwrap();
    for link in ["books", "books/a.attachments"] {
        let path = to.path().join(link);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(outside.path(), &path).unwrap();
        assert!(copy_if(from.path(), to.path(), IfExists::Merge).await.is_err());
        assert!(tree(outside.path()).is_empty(), "nothing is written through a link");
        fs::remove_file(&path).unwrap();
    }
}

#[tokio::test]
async fn replacing_swaps_whole_collections_and_keeps_the_others() {
    let (from, to) = (sample(), tempfile::tempdir().unwrap());
    write(
        to.path(),
        &[("books/old.json", b"0"), ("lines/x.json", b"0"), ("array.json", b"[9]"), ("other/a.json", b"mine")],
    );
    copy_if(from.path(), to.path(), IfExists::Replace).await.unwrap();
    let mut expected = tree(from.path());
    expected.insert("other".into(), None);
    expected.insert("other/a.json".into(), Some(b"mine".to_vec()));
    assert_eq!(restored(to.path()), expected);
}

#[tokio::test]
async fn giving_up_takes_everything_back() {
    let from = sample();
    for (there, if_exists) in
        [(None, IfExists::Fail), (Some(""), IfExists::Fail), (Some("books/mine.json"), IfExists::Replace)]
    {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("a/b");
        if let Some(file) = there {
            fs::create_dir_all(&to).unwrap();
            if !file.is_empty() {
                write(&to, &[(file, b"1")]);
            }
        }
        let before = tree(dir.path());
        let sink = FolderSink::new(&to);
        let (description, _) = described(from.path(), &Selection::default()).await.unwrap();
        let plan = sink.prepare(&description, &with(if_exists)).await.unwrap();
        let store = Arc::new(MemoryAttachments::default());
        let session = sink.begin(plan, store.clone()).await.unwrap();
        pump(from.path(), &Selection::default(), &*session, &store).await.unwrap();
        assert_eq!(session.abort().await.what, Vec::<String>::new());
        assert_eq!(tree(dir.path()), before);
    }
}

#[tokio::test]
async fn giving_up_a_merge_says_what_is_left() {
    let (from, to) = (sample(), tempfile::tempdir().unwrap());
    write(to.path(), &[("mine.txt", b"")]);
    let sink = FolderSink::new(to.path());
    let (description, _) = described(from.path(), &Selection::default()).await.unwrap();
    let plan = sink.prepare(&description, &with(IfExists::Merge)).await.unwrap();
    let store = Arc::new(MemoryAttachments::default());
    let session = sink.begin(plan, store.clone()).await.unwrap();
    pump(from.path(), &Selection::default(), &*session, &store).await.unwrap();
    let left = session.abort().await.what;
    assert_eq!(left.len(), 1);
    assert!(left[0].ends_with("books: 1 documents and 1 attachments written"), "{left:?}");
    assert!(!tree(to.path()).keys().any(|name| name.contains("tmp") || name.contains("rewound.json")));
}

#[tokio::test]
async fn forged_names_stay_in_the_folder() {
    let files = json!({"layout": "files"});
    for key in ["../../x", "/etc/x", "..", ".", "", "a/b", "a\0b", ".git", &"x".repeat(251)] {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("in/to");
        let session = open(&FolderSink::new(&to), "folder", "c", files.clone()).await.unwrap();
        let error = put(&*session, key.as_bytes(), b"1").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Input, "{error}");
        session.abort().await;
        assert!(tree(dir.path()).is_empty(), "{key:?}");
    }
    for name in ["../up", "/etc/x", "..", ".hidden", "", "a/b", "rewound.json", "Rewound.json"] {
        let dir = tempfile::tempdir().unwrap();
        let refused = open(&FolderSink::new(dir.path().join("to")), "folder", name, files.clone()).await;
        assert!(refused.is_err_and(|e| e.kind() == ErrorKind::Input), "{name:?}");
        assert!(tree(dir.path()).is_empty(), "{name:?}");
    }
    let marker = open(&FolderSink::new("/nowhere/x"), "folder", "rewound", json!({"layout": "array"})).await;
    assert!(marker.is_err_and(|e| e.kind() == ErrorKind::Input));
}

#[tokio::test]
async fn forged_attachments_stay_in_the_folder() {
    for (key, body) in [
        ("../x/y", r#"{"document":"../x"}"#),
        ("a/../../y", "{}"),
        ("a//y", "{}"),
        ("a/", "{}"),
        ("a", "{}"),
        ("/etc/passwd", "{}"),
        ("a/.rewound-names.jsonl", "{}"),
        ("a/b/./c", "{}"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("in/to");
        let session = open(&FolderSink::new(&to), "folder", "c", json!({"layout": "files"})).await.unwrap();
        let content = MemoryAttachments::default().put_bytes(b"evil").await;
        let mut batch = BatchBuilder::new(CollectionId::new("c"), Kind::Attachment, Encoding::Json);
        batch.push_attachment(key.as_bytes(), body.as_bytes(), content);
        let error = session.write(batch.take()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Input, "{key}: {error}");
        session.abort().await;
        assert!(tree(dir.path()).is_empty(), "{key:?}");
    }
}

#[tokio::test]
async fn forged_spacing_and_documents_of_lines_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let sink = FolderSink::new(dir.path().join("to"));
    let forged = json!({"layout": "lines", "separator": "x", "suffix": "\n"});
    assert!(open(&sink, "folder", "c", forged).await.is_err_and(|e| e.kind() == ErrorKind::Corrupt));
    let session = open(&sink, "folder", "c", json!({"layout": "lines", "extension": "../../x"})).await.unwrap();
    assert!(put(&*session, b"1", b"[\n]").await.is_err());
    put(&*session, b"1", b"[ ]").await.unwrap();
    session.finish().await.unwrap();
    assert_eq!(fs::read(dir.path().join("to/c.jsonl")).unwrap(), b"[ ]\n");
}

#[tokio::test]
async fn names_that_differ_in_case_only_collide_where_case_is_ignored() {
    let from = tempfile::tempdir().unwrap();
    write(from.path(), &[("books/Ab.json", b"1"), ("books/aB.json", b"2")]);
    let dir = tempfile::tempdir().unwrap();
    let sink = FolderSink::new(dir.path().join("to")).ignoring_case(true);
    let (selection, options) = (Selection::default(), RestoreOptions::default());
    let error = copy_with(from.path(), &sink, &selection, &options).await.unwrap_err();
    assert!(
        error.to_string().ends_with("aB.json and Ab.json are one file here: the file system ignores case"),
        "{error}"
    );
    assert!(tree(dir.path()).is_empty());
    fs::remove_dir_all(from.path().join("books")).unwrap();
    write(from.path(), &[("Books/a.json", b"1"), ("books/a.json", b"2")]);
    let error = copy_with(from.path(), &sink, &selection, &options).await.unwrap_err();
    assert!(error.to_string().contains("the collections Books and books would both be written"), "{error}");
    assert!(tree(dir.path()).is_empty());
}

#[tokio::test]
async fn renaming_moves_collections_and_finds_collisions() {
    let (from, dir) = (sample(), tempfile::tempdir().unwrap());
    let mut options = RestoreOptions::default();
    options.add_rename("lines=rows").unwrap();
    let to = dir.path().join("to");
    copy_with(from.path(), &FolderSink::new(&to), &Selection::default(), &options).await.unwrap();
    assert_eq!(fs::read(to.join("rows.jsonl")).unwrap(), b"1\n2\n");
    options.add_rename("array=books").unwrap();
    options.add_rename("books=books.json").unwrap();
    let sink = FolderSink::new(dir.path().join("to2"));
    let error = copy_with(from.path(), &sink, &Selection::default(), &options).await.unwrap_err();
    assert!(error.to_string().contains("would both be written to books.json"), "{error}");
}

#[tokio::test]
async fn what_a_folder_cannot_hold_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let session = open(&FolderSink::new(dir.path().join("to")), "mongodb", "c", Value::Null).await.unwrap();
    for (kind, encoding) in
        [(Kind::Document, Encoding::Bson), (Kind::Revision, Encoding::Json), (Kind::Patch, Encoding::Json)]
    {
        let mut batch = BatchBuilder::new(CollectionId::new("c"), kind, encoding);
        batch.push(b"k", b"{}");
        let error = session.write(batch.take()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
    session.abort().await;
}

#[tokio::test]
async fn the_marker_says_what_was_written() {
    let (from, dir) = (sample(), tempfile::tempdir().unwrap());
    let to = dir.path().join("to");
    let report = copy(from.path(), &to).await.unwrap();
    assert_eq!((report.documents, report.attachments, report.bytes), (3, 2, 5));
    let marker: Value = serde_json::from_slice(&fs::read(to.join("rewound.json")).unwrap()).unwrap();
    assert_eq!(
        (&marker["rewound"], &marker["format"], &marker["engine"]),
        (&json!("folder"), &json!(1), &json!("folder"))
    );
    let books = json!({
        "collection": "books", "id": "books", "documents": 1, "attachments": 1, "layout": "files", "names": "verbatim"
    });
    assert_eq!(marker["written"]["books"], books);
    assert_eq!(marker["written"]["lines.jsonl"]["documents"], 2);
}

#[tokio::test]
async fn options_and_names_of_other_engines_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("to");
    let options = json!({"capped": true, "size": 5});
    let session = open(&FolderSink::new(&to), "mongodb", "Db.Ü", options.clone()).await.unwrap();
    put(&*session, b"A/\xff", b"1").await.unwrap();
    session.finish().await.unwrap();
    let source = folder::FolderSource::new(&to);
    let info = &source.describe().await.unwrap().collections[0];
    assert_eq!((info.name.as_str(), &info.options), ("Db.Ü", &options));
    // Copied on, it is the same; files that people add have their names as keys.
    let third = dir.path().join("third");
    copy(&to, &third).await.unwrap();
    assert_eq!(restored(&third), restored(&to));
    let folder = fs::read_dir(&to).unwrap().map(|e| e.unwrap().path()).find(|path| path.is_dir()).unwrap();
    write(&folder, &[("Added By Hand.json", b"2"), ("b~.json", b"3")]);
    let all = testkit::source::read_everything(&source, &Selection::default(), Arc::default()).await.unwrap();
    let keys: Vec<_> = all.of("Db.Ü").iter().map(|entry| entry.key.as_slice()).collect();
    assert_eq!(keys, [&b"A/\xff"[..], b"Added By Hand", b"b~"]);
    let encoded =
        fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).find(|n| n.to_string_lossy().starts_with("A%"));
    assert!(encoded.is_some());
    write(&folder, &[("A.json", b"4")]);
    let name = format!("A~{}.json", &blake3::hash(b"A").to_hex()[..16]);
    write(&folder, &[(&name, b"5")]);
    let error = source.plan(&Selection::default(), None).await.unwrap_err();
    assert!(error.to_string().contains("means the same document"), "{error}");
}

/// A small file system of its own, if this machine lets us have one.
struct Small(PathBuf);

impl Small {
    fn mount(options: &str) -> Option<Small> {
        let path = tempfile::tempdir().unwrap().keep();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "rewound-test"]).arg(&path).output();
        match mounted {
            Ok(output) if output.status.success() => Some(Small(path)),
            _ => None,
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).output();
        let _ = fs::remove_dir(&self.0);
    }
}

fn is_full(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    assert!(error.to_string().contains("writing ") && error.hint_text().is_some(), "{error}");
}

#[tokio::test]
async fn a_disk_that_is_full_is_told_and_left_clean() {
    // Needs the right to mount; elsewhere there is no small disk to fill.
    let Some(small) = Small::mount("size=1m") else { return };
    let big = vec![b'7'; 3 << 20];
    let files: [(&str, &[u8]); 4] = [
        ("c/a.json", &big),
        ("c.jsonl", &big),
        ("c/a.attachments/x", &big),
        ("c.json", &[b"[", &big[..], b"]"].concat()),
    ];
    for file in files {
        let from = tempfile::tempdir().unwrap();
        write(from.path(), &[("b/small.json", b"1"), file]);
        let to = small.0.join("to");
        is_full(&copy(from.path(), &to).await.unwrap_err());
        assert!(tree(&small.0).is_empty(), "{}: {:?}", file.0, tree(&small.0).keys());
        write(&to, &[("c/mine.json", b"1")]);
        is_full(&copy_if(from.path(), &to, IfExists::Replace).await.unwrap_err());
        assert_eq!(tree(&to).into_keys().collect::<Vec<_>>(), ["c", "c/mine.json"]);
        fs::remove_dir_all(&to).unwrap();
    }
}

#[tokio::test]
async fn a_target_that_is_read_only_is_told_before_the_work() {
    let Some(small) = Small::mount("ro,size=1m") else { return };
    let from = sample();
    for to in [small.0.clone(), small.0.join("a/b")] {
        let (description, _) = described(from.path(), &Selection::default()).await.unwrap();
        let error = FolderSink::new(&to).prepare(&description, &RestoreOptions::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Input, "{error}");
        assert!(error.hint_text().unwrap().contains("read-only"), "{error:?}");
    }
}

#[tokio::test]
async fn wrong_length_of_an_attachment_is_found() {
    let dir = tempfile::tempdir().unwrap();
    for size in [10, 3 << 20] {
        let store = Arc::new(MemoryAttachments::default());
        let mut content = store.put_bytes(&vec![1; size]).await;
        content.length += 1;
        let info =
            CollectionInfo { id: CollectionId::new("c"), name: "c".into(), options: Value::Null, ordered: false };
        let sink = FolderSink::new(dir.path().join("to"));
        let (mut description, _) = described(sample().path(), &Selection::default()).await.unwrap();
        description.collections = vec![info];
        let plan = sink.prepare(&description, &RestoreOptions::default()).await.unwrap();
        let session = sink.begin(plan, store).await.unwrap();
        let mut batch = BatchBuilder::new(CollectionId::new("c"), Kind::Attachment, Encoding::Json);
        batch.push_attachment(b"a/x", b"{}", content);
        assert_eq!(session.write(batch.take()).await.unwrap_err().kind(), ErrorKind::Corrupt);
        session.abort().await;
        assert!(tree(dir.path()).is_empty());
    }
}
