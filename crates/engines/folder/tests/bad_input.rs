//! What is bad is refused with its place before anything is written, or left out and listed.
#![allow(clippy::unwrap_used)]

mod common;

use common::{copy, copy_with, described, restored, tree, write};
use folder::{FolderSink, FolderSource};
use futures::StreamExt;
use model::{ErrorKind, Plan, RestoreOptions, Selection, Source};
use std::fs;
use std::path::Path;

async fn refusal(root: &Path) -> String {
    let error = FolderSource::new(root).plan(&Selection::default(), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Input, "{error}");
    assert!(error.hint_text().is_some(), "{error}");
    error.to_string()
}

fn skipping() -> Selection {
    Selection { skip_bad: true, ..Selection::default() }
}

#[tokio::test]
async fn one_bad_thing_is_named_with_its_line() {
    for (path, content, complaint) in [
        ("books/a.json", &b"{\n\"a\":1,\n}"[..], "books/a.json line 3: expected a name in quotes"),
        ("books/a.json", b"", "books/a.json line 1: there is no document"),
        ("books/a.json", b"1 2", "books/a.json line 1: text after the end of the document"),
        ("books/a.json", b"{\"a\":\n\n\"\xff\"}", "books/a.json line 3: invalid UTF-8"),
        ("books/a.json", b"\xEF\xBB\xBF{}", "books/a.json line 1: a byte order mark (BOM), which JSON does not allow"),
        ("books.jsonl", b"{}\n\n{]\n", "books.jsonl line 3: expected a name in quotes or '}'"),
        ("books.jsonl", b"\xEF\xBB\xBF{}\n", "books.jsonl line 1: a byte order mark (BOM), which JSON does not allow"),
        ("books.ndjson", b"{\n{}", "books.ndjson line 1: the line ends inside the document"),
        ("books.json", b"[1,\n2,\n]", "books.json line 3: expected a value"),
        ("books.json", b"[1,\n2", "books.json line 2: the array is cut off: its end is missing"),
        (
            "books.json",
            b"{}",
            "books.json line 1: expected '[': a .json file next to the collections is one collection, an array of documents",
        ),
        ("README.md", b"", "README.md: it is not a collection (.json, .jsonl, .ndjson or a folder)"),
        ("books/notes.txt", b"", "books/notes.txt: it is not a .json document"),
        ("books/more/a.json", b"1", "books/more: a folder inside a collection must be called NAME.attachments"),
        ("rewound.json", b"[]", "rewound.json: this name is kept for what Rewound says of a folder"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &[("other/fine.json", b"1"), (path, content)]);
        assert_eq!(refusal(dir.path()).await, complaint);
        let target = dir.path().join("target");
        copy(dir.path(), &target).await.unwrap_err();
        assert!(!target.exists(), "nothing was written");
        let out = tempfile::tempdir().unwrap();
        copy_with(dir.path(), &FolderSink::new(out.path()), &skipping(), &RestoreOptions::default()).await.unwrap();
        assert!(restored(out.path()).contains_key("other/fine.json"));
        let (_, skipped) = described(dir.path(), &skipping()).await.unwrap();
        assert_eq!(format!("{}: {}", skipped[0].what, skipped[0].why), complaint);
    }
}

#[tokio::test]
async fn many_bad_things_are_listed_together() {
    let dir = tempfile::tempdir().unwrap();
    let bad = "{}\nx\n".repeat(30);
    write(dir.path(), &[("books.jsonl", bad.as_bytes()), ("a/a.json", b""), (".git/x", b"")]);
    let text = refusal(dir.path()).await;
    assert!(text.starts_with("31 places in the folder are bad:\n  a/a.json line 1: there is no document\n"), "{text}");
    assert!(text.contains("\n  books.jsonl line 38: expected a value\n  and 11 more"), "{text}");
}

#[tokio::test]
async fn links_are_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[("books/a.json", b"1"), ("books/a.attachments/x", b"1")]);
    for link in ["books/b.json", "books/c.attachments", "books/a.attachments/y", "more", "lines.jsonl"] {
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join(link)).unwrap();
    }
    let text = refusal(dir.path()).await;
    for link in ["books/b.json", "books/c.attachments", "books/a.attachments/y", "more", "lines.jsonl"] {
        assert!(text.contains(&format!("{link}: a symbolic link is not followed")), "{text}");
    }
    let out = tempfile::tempdir().unwrap();
    copy_with(dir.path(), &FolderSink::new(out.path()), &skipping(), &RestoreOptions::default()).await.unwrap();
    assert_eq!(restored(out.path()).len(), 4);
}

#[tokio::test]
async fn one_collection_in_two_places_is_refused_whatever_the_user_says() {
    for pair in [["a/", "a.jsonl"], ["a.jsonl", "a.ndjson"], ["a.json", "a.jsonl"], ["a.json", "a/"]] {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &[(pair[0], b"[]"), (pair[1], b"[]")]);
        let error = FolderSource::new(dir.path()).plan(&skipping(), None).await.unwrap_err();
        assert!(error.to_string().starts_with("the collection a is there twice: as a"), "{error}");
    }
    // Attachments may lie beside a file, documents may not.
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[("a.json", b"[]"), ("a/x.attachments/y", b"1")]);
    FolderSource::new(dir.path()).plan(&Selection::default(), None).await.unwrap();
    write(dir.path(), &[("a/x.json", b"1")]);
    let error = FolderSource::new(dir.path()).plan(&skipping(), None).await.unwrap_err();
    assert!(error.to_string().starts_with("the collection a is there twice: as a and as a.json"), "{error}");
    assert!(error.hint_text().unwrap().ends_with("a folder may hold only NAME.attachments"));
}

#[tokio::test]
async fn what_is_left_out_leaves_the_rest_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    write(
        dir.path(),
        &[
            ("a.jsonl", b"x\n\n1\r\ny\nz\n2\n\xff\n"),
            ("b.json", b"[1,2,x]"),
            ("b/1.attachments/x", b"kept"),
            ("c/good.json", b"1\n"),
            ("c/bad.json", b"{"),
            ("c/bad.attachments/x", b"kept"),
        ],
    );
    let target = tempfile::tempdir().unwrap();
    copy_with(dir.path(), &FolderSink::new(target.path()), &skipping(), &RestoreOptions::default()).await.unwrap();
    let mut expected = tree(dir.path());
    expected.remove("b.json");
    expected.remove("c/bad.json");
    expected.insert("a.jsonl".into(), Some(b"1\r\n2\n".to_vec()));
    assert_eq!(restored(target.path()), expected);
    let (_, skipped) = described(dir.path(), &skipping()).await.unwrap();
    let what: Vec<_> = skipped.iter().map(|s| s.what.as_str()).collect();
    let expected =
        ["a.jsonl line 1", "a.jsonl line 4", "a.jsonl line 5", "a.jsonl line 7", "b.json line 1", "c/bad.json line 1"];
    assert_eq!(what, expected);
}

#[tokio::test]
async fn strays_outside_of_what_is_selected_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[("README.md", b""), ("books/a.json", b"1"), ("bad/a.json", b"x")]);
    let only = Selection { only: vec!["books".into()], ..Selection::default() };
    assert!(FolderSource::new(dir.path()).plan(&only, None).await.is_ok());
    let but = Selection { exclude: vec!["bad".into(), "*.md".into()], ..Selection::default() };
    assert!(FolderSource::new(dir.path()).plan(&but, None).await.is_ok());
}

#[tokio::test]
async fn a_change_between_plan_and_reading_is_told() {
    let files = [("books/a.json", &b"1"[..]), ("lines.jsonl", b"1\n"), ("att/a.attachments/x", b"1")];
    let changes: [(usize, &str, Option<&[u8]>); 6] = [
        (0, "books/a.json", Some(b"22")),
        (0, "books/a.json", None),
        (0, "books/b.json", Some(b"1")),
        (1, "lines.jsonl", Some(b"1\n2\n")),
        (1, "lines.jsonl", None),
        (2, "att/a.attachments/x", Some(b"12")),
    ];
    for (which, path, change) in changes {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &files);
        let source = FolderSource::new(dir.path());
        let Plan::Scan { parts, .. } = source.plan(&Selection::default(), None).await.unwrap() else { panic!() };
        let path = dir.path().join(path);
        change.map_or_else(|| fs::remove_file(&path), |text| fs::write(&path, text)).unwrap();
        let name = ["books", "lines", "att"][which];
        let part = parts.iter().find(|part| part.collection.name == name).unwrap();
        let items = source.read(part, std::sync::Arc::new(model::HashingStore)).await.unwrap();
        let items: Vec<_> = items.collect().await;
        let error = items.into_iter().find_map(Result::err).unwrap();
        assert_eq!(error.kind(), ErrorKind::Retry, "{error}");
        assert!(error.to_string().contains("changed while it was being read"), "{error}");
    }
}

#[tokio::test]
async fn no_folder() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[("file", b"")]);
    let error = FolderSource::new(dir.path().join("nothing")).describe().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Missing);
    let error = FolderSource::new(dir.path().join("file")).describe().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Input);
}
