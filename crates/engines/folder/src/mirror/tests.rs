#![allow(clippy::unwrap_used)]
use super::*;
use crate::FolderSource;
use futures::StreamExt;
use model::{AttachmentStore, Kind, Selection};
use serde_json::json;
use std::collections::BTreeMap;
use testkit::source::{MemoryAttachments, read_everything};

fn info(id: &str, name: &str) -> CollectionInfo {
    CollectionInfo { id: CollectionId::new(id), name: name.into(), options: json!({ "made": name }), ordered: false }
}

fn put(key: &str, body: &str, time: u64) -> Change {
    Change { key: key.into(), body: Some(body.into()), time }
}

fn gone(key: &str) -> Change {
    Change { key: key.into(), body: None, time: 0 }
}

/// All files but those of the mirror itself.
fn tree(root: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    ledger::each_file(root, |name, path| {
        let name = String::from_utf8(name.to_vec()).unwrap();
        if !name.starts_with(HOME) {
            all.insert(name, fs::read_to_string(path).unwrap());
        }
        Ok(())
    })
    .unwrap();
    all
}

fn names(touched: &[Touched]) -> Vec<(&str, bool)> {
    touched.iter().map(|t| (t.file.as_str(), t.deleted)).collect()
}

#[test]
fn documents_are_kept_in_step() {
    let home = tempfile::tempdir().unwrap();
    let root = home.path().join("a/mirror");
    let mirror = Mirror::open(&root).unwrap();
    assert_eq!(mirror.memory(), Value::Null);
    let id = CollectionId::new("1");
    mirror.keep(&info("1", "db.users")).unwrap();
    let touched = mirror.write(&id, &[put("a", "1", 5), put("b/c", "2", 5), put("A", "3", 0)]).unwrap();
    assert_eq!(names(&touched)[..2], [("db.users/a.json", false), ("db.users/b%2fc.json", false)]);
    // What is right stays as it is; what is not there need not be deleted.
    assert!(mirror.write(&id, &[put("a", "1", 6), gone("none")]).unwrap().is_empty());
    assert_eq!(mirror.read(&id, b"a").unwrap(), Found::Same(b"1".to_vec(), 6));
    assert_eq!(mirror.read(&id, b"none").unwrap(), Found::Missing);
    fs::write(root.join("db.users/a.json"), "mine").unwrap();
    assert_eq!(mirror.read(&id, b"a").unwrap(), Found::Changed);
    assert_eq!(names(&mirror.write(&id, &[put("a", "1", 7), gone("b/c")]).unwrap()).len(), 2);
    mirror.save(json!("here"), None, false).unwrap();
    assert!(!root.join(MARKER).exists(), "not complete yet");
    mirror.save(json!("there"), Some(&Engine::new("mongodb")), false).unwrap();
    assert!(Mirror::open(&root).unwrap_err().to_string().contains("another process"));
    drop(mirror);

    let mirror = Mirror::open(&root).unwrap();
    assert_eq!((mirror.memory(), mirror.collections()), (json!("there"), vec![info("1", "db.users")]));
    assert_eq!(mirror.read(&id, b"a").unwrap(), Found::Same(b"1".to_vec(), 7));
    let files: Vec<String> = tree(&root).into_keys().collect();
    assert_eq!(files.len(), 3, "{files:?}");
}

#[test]
fn what_it_did_not_write_is_left_alone() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("mine.txt"), "mine").unwrap();
    assert!(Mirror::open(home.path()).unwrap_err().to_string().contains("mine.txt"));
    fs::remove_file(home.path().join("mine.txt")).unwrap();
    let mirror = Mirror::open(home.path()).unwrap();
    // A folder of that name.
    fs::create_dir(home.path().join("c")).unwrap();
    assert!(mirror.keep(&info("1", "c")).unwrap_err().to_string().contains("in the way"));
    fs::remove_dir(home.path().join("c")).unwrap();
    mirror.keep(&info("1", "c")).unwrap();
    let id = CollectionId::new("1");
    mirror.write(&id, &[put("a", "1", 1), put("b", "2", 1)]).unwrap();
    fs::write(home.path().join("c/mine.json"), "mine").unwrap();
    let error = mirror.write(&id, &[put("mine", "theirs", 1)]).unwrap_err();
    assert!(error.to_string().contains("in the way") && error.hint_text().is_some());
    assert!(mirror.write(&id, &[gone("mine")]).unwrap().is_empty());
    mirror.begin_scan(&id).unwrap();
    mirror.write(&id, &[put("a", "1", 1)]).unwrap();
    assert_eq!(names(&mirror.end_scan(&id).unwrap()), [("c/b.json", true)]);
    let (touched, is_left) = mirror.drop_collection(&id, None).unwrap();
    assert_eq!((names(&touched), is_left), (vec![("c/a.json", true)], true));
    assert_eq!(tree(home.path()), BTreeMap::from([("c/mine.json".into(), "mine".into())]));
    assert!(mirror.collections().is_empty());
    // The same content is taken over: nothing is lost by it.
    fs::remove_dir_all(home.path().join("c")).unwrap();
    mirror.keep(&info("2", "c")).unwrap();
    fs::write(home.path().join("c/x.json"), "1").unwrap();
    assert!(mirror.write(&CollectionId::new("2"), &[put("x", "1", 1)]).unwrap().is_empty());
}

#[test]
fn collections_are_renamed_emptied_and_dropped() {
    let home = tempfile::tempdir().unwrap();
    let mirror = Mirror::open(home.path()).unwrap();
    let (one, two) = (CollectionId::new("1"), CollectionId::new("2"));
    for (id, name) in [("1", "x"), ("2", "y")] {
        mirror.keep(&info(id, name)).unwrap();
        mirror.write(&CollectionId::new(id), &[put("a", name, 3), put(&"k".repeat(300), name, 9)]).unwrap();
    }
    // They change names with each other.
    mirror.keep(&info("1", "y")).unwrap();
    assert!(!home.path().join("x").exists());
    mirror.keep(&info("2", "x")).unwrap();
    assert_eq!((tree(home.path())["y/a.json"].as_str(), tree(home.path())["x/a.json"].as_str()), ("x", "y"));
    assert_eq!(mirror.read(&one, "k".repeat(300).as_bytes()).unwrap(), Found::Same(b"x".to_vec(), 9));
    // Emptied at 5: what is newer stays.
    let (touched, _) = mirror.drop_collection(&one, Some(5)).unwrap();
    assert_eq!(names(&touched), [("y/a.json", true)]);
    assert_eq!(mirror.collections().len(), 2);
    mirror.drop_collection(&one, Some(9)).unwrap();
    mirror.drop_collection(&two, None).unwrap();
    assert!(tree(home.path()).is_empty(), "{:?}", tree(home.path()));
    assert!(mirror.collections().is_empty() && !home.path().join("x").exists());
    assert_eq!(fs::read_dir(home.path().join(HOME)).unwrap().count(), 2, "state and lock");
}

#[test]
fn a_rename_that_was_cut_off_is_completed() {
    for moved in [false, true] {
        let home = tempfile::tempdir().unwrap();
        let mirror = Mirror::open(home.path()).unwrap();
        mirror.keep(&info("1", "old")).unwrap();
        mirror.write(&CollectionId::new("1"), &[put("a", "1", 3)]).unwrap();
        drop(mirror);
        let path = home.path().join(HOME).join("state.json");
        let mut state = State::read(&path).unwrap().unwrap();
        state.moving = Some(state::Moving { number: 0, to: "new".into() });
        state.write(&path).unwrap();
        if moved {
            fs::rename(home.path().join("old"), home.path().join("new")).unwrap();
        }
        let mirror = Mirror::open(home.path()).unwrap();
        assert_eq!(mirror.read(&CollectionId::new("1"), b"a").unwrap(), Found::Same(b"1".to_vec(), 3));
        assert_eq!(tree(home.path()).keys().collect::<Vec<_>>(), ["new/a.json"]);
    }
}

#[tokio::test]
async fn attachments_come_and_go() {
    let home = tempfile::tempdir().unwrap();
    let mirror = Arc::new(Mirror::open(home.path()).unwrap());
    let store = MemoryAttachments::default();
    let id = CollectionId::new("1");
    mirror.keep(&info("1", "c")).unwrap();
    mirror.write(&id, &[put("a/b", "{}", 1)]).unwrap();
    let said = br#"{"document":"a/b","name":"x y/z.bin","length":3}"#;
    for (content, is_new) in [("one", true), ("one", false), ("two", true)] {
        let content = store.put(futures::stream::iter([Ok(content.into())]).boxed()).await.unwrap();
        let done = mirror.attach(&id, (b"a/b/x y/z.bin", said), &content, &store, 2).await.unwrap();
        assert_eq!(done.is_some(), is_new);
    }
    mirror.save(Value::Null, Some(&Engine::new("other")), true).unwrap();
    let source = FolderSource::new(home.path());
    let all = read_everything(&source, &Selection::default(), Arc::default()).await.unwrap();
    let attachment = all.of("c").iter().find(|e| e.kind == Kind::Attachment).unwrap();
    assert_eq!((attachment.key.as_slice(), attachment.body.as_slice()), (&b"a/b/x y/z.bin"[..], &said[..]));
    assert_eq!(attachment.content, Some(*blake3::hash(b"two").as_bytes()));
    let done = mirror.detach(&id, b"a/b/x y/z.bin").unwrap().unwrap();
    assert!(done.deleted && done.file.starts_with("c/a%2fb.attachments/"), "{done:?}");
    assert!(mirror.detach(&id, b"a/b/x y/z.bin").unwrap().is_none());
    assert!(!home.path().join("c/a%2fb.attachments").exists());
    // A scan that does not meet one deletes it.
    let content = store.put_bytes(b"three").await;
    mirror.attach(&id, (b"a/b/w", br#"{"document":"a/b","name":"w","length":5}"#), &content, &store, 2).await.unwrap();
    mirror.begin_scan(&id).unwrap();
    mirror.write(&id, &[put("a/b", "{}", 1)]).unwrap();
    assert_eq!(mirror.end_scan(&id).unwrap().len(), 1);
    assert_eq!(mirror.read(&id, b"a/b").unwrap(), Found::Same(b"{}".to_vec(), 1));
}

#[test]
fn long_keys_are_told_once_however_often_it_begins_anew() {
    let home = tempfile::tempdir().unwrap();
    let (id, long) = (CollectionId::new("1"), "x".repeat(300));
    let told = || fs::read_to_string(home.path().join("c").join(NAMES_FILE)).unwrap();
    let mut first = None;
    for torn in ["", "", "{\"file\":\"x"] {
        let mirror = Mirror::open(home.path()).unwrap();
        mirror.keep(&info("1", "c")).unwrap();
        mirror.write(&id, &[put(&long, "1", 5), put(&long.to_uppercase(), "2", 5)]).unwrap();
        assert_eq!(told(), *first.get_or_insert_with(told));
        assert_eq!(told().lines().count(), 2);
        drop(mirror);
        // As if the power had gone.
        fs::write(home.path().join("c").join(NAMES_FILE), told() + torn).unwrap();
    }
    Mirror::open(home.path()).unwrap();
    assert_eq!(told(), first.unwrap());
}
