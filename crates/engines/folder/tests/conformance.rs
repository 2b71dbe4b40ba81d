//! The shared suites, on folders.
#![allow(clippy::unwrap_used)]

use folder::{FolderSink, FolderSource};
use std::fs;
use std::sync::Arc;
use testkit::sink::Target;

#[tokio::test(flavor = "multi_thread")]
async fn source() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for folder in ["files", "files/k1.attachments/deep/er", "files/alone.attachments", "none"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    for (i, text) in testkit::documents::hard_documents().iter().enumerate() {
        fs::write(root.join(format!("files/k{i}.json")), text).unwrap();
    }
    fs::write(root.join("files/k1.attachments/deep/er/a.bin"), vec![1; 1_000_000]).unwrap();
    fs::write(root.join("files/k1.attachments/b.bin"), b"").unwrap();
    fs::write(root.join("files/alone.attachments/c \u{e9}.bin"), b"c").unwrap();
    let documents = testkit::documents::generate(7, 20_000);
    let lines: Vec<&[u8]> = documents.iter().map(|(_, text)| &text[..]).collect();
    fs::write(root.join("lines.jsonl"), lines.join(&b'\n')).unwrap();
    fs::write(root.join("array.json"), [b"[", &lines.join(&b',')[..], b"]"].concat()).unwrap();
    fs::write(root.join("ordinals.ndjson"), b"1\n1\n\"x\"\n").unwrap();
    fs::write(root.join("nothing.jsonl"), b"").unwrap();
    for (folder, content) in [("ordinals/2.attachments", vec![2; 300_000]), ("array/beside.attachments", vec![])] {
        fs::create_dir_all(root.join(folder)).unwrap();
        fs::write(root.join(folder).join("a.bin"), content).unwrap();
    }
    let path = root.to_owned();
    testkit::source::conformance(move || Arc::new(FolderSource::new(&path))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sink() {
    testkit::sink::conformance(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new").join("target");
        let sink = Arc::new(FolderSink::new(&path));
        Target { sink, source: Arc::new(FolderSource::new(&path)), keep: Box::new(dir) }
    })
    .await;
}
