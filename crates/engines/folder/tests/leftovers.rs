//! What restores that were killed left, and hidden entries in general.
#![allow(clippy::unwrap_used)]

mod common;

use common::{copy, copy_with, restored, tree, write};
use folder::{FolderSink, FolderSource};
use model::{Error, ErrorKind, IfExists, RestoreOptions, Selection, Source};
use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

async fn copy_if(from: &Path, to: &Path, if_exists: IfExists) -> Result<(), Error> {
    let options = RestoreOptions { if_exists, ..RestoreOptions::default() };
    copy_with(from, &FolderSink::new(to), &Selection::default(), &options).await.map(drop)
}

fn sample() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[("books/a.json", b"1"), ("books/a.attachments/x", b"x"), ("rows.jsonl", b"1\n")]);
    dir
}

const ALL: [IfExists; 3] = [IfExists::Fail, IfExists::Merge, IfExists::Replace];

#[tokio::test]
async fn a_folder_of_leftovers_says_where_they_are_from() {
    let (from, to) = (sample(), tempfile::tempdir().unwrap());
    write(to.path(), &[(".rewound-tmp-0123456789ab-0", b"1"), (".rewound-0123456789ab/books/a.json", b"1")]);
    let before = tree(to.path());
    let error = copy(from.path(), to.path()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Input);
    let text = error.to_string();
    assert!(
        text.ends_with("holds nothing but what an interrupted restore left: .rewound-0123456789ab and 1 more"),
        "{text}"
    );
    assert_eq!(error.hint_text().unwrap(), "remove every .rewound-* in it and run this again");
    assert_eq!(tree(to.path()), before);
    for other in [".rewound-notes", "mine.txt", "rewound.json"] {
        write(to.path(), &[(other, b"")]);
        let error = copy(from.path(), to.path()).await.unwrap_err();
        assert!(error.to_string().contains("is not empty; there is: .rewound-0123456789ab, "), "{error}");
        fs::remove_file(to.path().join(other)).unwrap();
    }
}

#[tokio::test]
async fn old_collections_that_were_moved_away_are_named_and_kept() {
    let from = sample();
    for (old, said) in [
        ("replaced/books/old.json", "; in .rewound-0123456789ab/replaced there are the old books"),
        // Killed between the two steps in which one collection takes the place of another.
        ("replaced/", ""),
    ] {
        let to = tempfile::tempdir().unwrap();
        let run = to.path().join(".rewound-0123456789ab");
        write(&run, &[(old, b"0"), ("books/old.json", b"0")]);
        for there in [None, Some("mine/a.json")] {
            write(to.path(), &there.map(|path| (path, &b"1"[..])).into_iter().collect::<Vec<_>>());
            let before = tree(to.path());
            for if_exists in ALL {
                let error = copy_if(from.path(), to.path(), if_exists).await.unwrap_err();
                let text = format!("interrupted while it replaced collections of {}{said}", to.path().display());
                assert!(error.to_string().ends_with(&text), "{error}");
                assert!(error.hint_text().unwrap().starts_with("move back from .rewound-0123456789ab what is missing"));
                assert_eq!(tree(to.path()), before);
            }
        }
    }
}

#[tokio::test]
async fn incomplete_files_are_removed_once_a_restore_is_complete() {
    let from = sample();
    for if_exists in [IfExists::Merge, IfExists::Replace] {
        let to = tempfile::tempdir().unwrap();
        let hour = Duration::from_secs(3600);
        for (path, age) in [
            (".rewound-tmp-0123456789ab-0", SystemTime::now() - hour),
            ("books/.rewound-tmp-0123456789ab-1", SystemTime::now() - hour),
            // Somebody is still writing this.
            (".rewound-tmp-ba9876543210-0", SystemTime::now() + hour),
        ] {
            write(to.path(), &[(path, b"half")]);
            File::options().write(true).open(to.path().join(path)).unwrap().set_modified(age).unwrap();
        }
        write(to.path(), &[(".rewound-0123456789ab/books/a.json", b"1"), (".rewound-tmp-notes/mine", b"")]);
        copy_if(from.path(), to.path(), if_exists).await.unwrap();
        let mut expected = tree(from.path());
        for folder in [".rewound-0123456789ab", ".rewound-0123456789ab/books", ".rewound-tmp-notes"] {
            expected.insert(folder.into(), None);
        }
        expected.insert(".rewound-0123456789ab/books/a.json".into(), Some(b"1".to_vec()));
        expected.insert(".rewound-tmp-notes/mine".into(), Some(Vec::new()));
        expected.insert(".rewound-tmp-ba9876543210-0".into(), Some(b"half".to_vec()));
        assert_eq!(restored(to.path()), expected, "{if_exists:?}");
    }
}

#[tokio::test]
async fn folders_of_killed_restores_are_told_in_the_plan() {
    use model::Sink;
    let to = tempfile::tempdir().unwrap();
    write(to.path(), &[(".rewound-0123456789ab/books/a.json", b"1")]);
    let description = FolderSource::new(sample().path()).describe().await.unwrap();
    let options = RestoreOptions { if_exists: IfExists::Merge, ..RestoreOptions::default() };
    let plan = FolderSink::new(to.path()).prepare(&description, &options).await.unwrap();
    assert!(plan.phases.iter().any(|phase| phase.ends_with("by hand: .rewound-0123456789ab")), "{:?}", plan.phases);
}

#[tokio::test]
async fn hidden_entries_are_named_but_not_our_own() {
    let dir = sample();
    let losses = async || FolderSource::new(dir.path()).describe().await.unwrap().losses;
    write(dir.path(), &[(".rewound-tmp-0123456789ab-0", b""), (".rewound-0123456789ab/x", b""), ("books/.x", b"")]);
    assert_eq!(losses().await, []);
    write(dir.path(), &[(".git/x", b""), (".env", b"")]);
    let found = losses().await;
    assert_eq!((found.len(), &found[0].what[..], &found[0].why[..]), (1, ".env, .git", "hidden entries are left out"));
    write(dir.path(), &[(".a", b""), (".b", b""), (".c", b""), (".d", b""), (".z", b"")]);
    assert_eq!(losses().await[0].what, ".a, .b, .c, .d, .env, and 2 more");
}
