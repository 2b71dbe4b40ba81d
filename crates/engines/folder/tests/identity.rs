//! A folder that is copied is the same folder.
#![allow(clippy::unwrap_used)]

mod common;

use common::{copy, described, restored, tree, write};
use model::Selection;
use proptest::prelude::*;
use std::path::Path;

async fn same(root: &Path) {
    let target = tempfile::tempdir().unwrap();
    copy(root, target.path()).await.unwrap();
    assert_eq!(restored(target.path()), tree(root));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_layout_comes_back_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let big = [b"[\"".to_vec(), vec![b'x'; 5 << 20], b"\"]\n".to_vec()].concat();
    write(
        dir.path(),
        &[
            ("files/a.json", b"{\"a\": 1.0}\n"),
            ("files/A.json", b"1"),
            ("files/no newline.json", b"  [ 1 ,2]"),
            ("files/crlf.json", b"{\r\n}\r\n\r\n"),
            ("files/ünï😀.json", "{\"ü\":\"\\ud800\"}".as_bytes()),
            ("files/con.json", b"null"),
            ("files/a%2fb.json", b"0"),
            ("files/x.attachments.json", b"0"),
            ("files/x.attachments/a.bin", b"\0\xff"),
            ("files/x.attachments/deep/er/b.txt", b""),
            ("files/nobody.attachments/c", &big),
            ("empty/", b""),
            ("none.jsonl", b""),
            ("blank.jsonl", b"\n \r\n"),
            ("plain.jsonl", b"{\"_id\":1}\n{\"_id\":2}\n"),
            ("cut.ndjson", b"{\"_id\":1}\n{\"_id\":1}"),
            ("crlf.jsonl", b"1\r\n2\r\n3\r\n"),
            ("mixed.jsonl", b"\n\n 1 \r\n2\n\n\n\"3\"\t\n4\r\n5 "),
            ("no-docs.json", b" [\n] \n"),
            ("tight.json", b"[1,2,{\"a\":[ 1 ]}]"),
            ("pretty.json", b"[\n  {\n    \"id\": \"x\"\n  },\n  {\n    \"id\": \"y\"\n  }\n]\n"),
            ("odd.json", b"\r\n[1 ,2, 3\n,\n4,5 ]"),
            ("pretty/x.attachments/flag.svg", b"<svg/>"),
            ("pretty/nobody.attachments/deep/er", b"\0"),
            ("plain/1.attachments/one", b"1"),
            ("cut/2.attachments/two", &big),
            ("big.json", &big),
            ("big.jsonl.jsonl", &big),
            (".hidden/x", b""),
        ],
    );
    let target = tempfile::tempdir().unwrap();
    copy(dir.path(), target.path()).await.unwrap();
    let mut expected = tree(dir.path());
    expected.retain(|name, _| !name.starts_with(".hidden"));
    assert_eq!(restored(target.path()), expected);
    // What has a marker is a folder like any other.
    let third = tempfile::tempdir().unwrap();
    copy(target.path(), third.path()).await.unwrap();
    assert_eq!(tree(third.path()), tree(target.path()));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_batches_of_lines_and_elements() {
    let dir = tempfile::tempdir().unwrap();
    let documents = testkit::documents::generate(3, 30_000);
    let mut lines = Vec::new();
    let mut array = b"[".to_vec();
    for (i, (_, text)) in documents.iter().enumerate() {
        lines.extend_from_slice(text);
        lines.extend_from_slice(if i % 1000 == 7 { b"\r\n\n" } else { b"\n" });
        array.extend_from_slice(if i == 0 {
            b"\n\t"
        } else if i % 777 == 0 {
            b" , "
        } else {
            b",\n\t"
        });
        array.extend_from_slice(text);
    }
    array.extend_from_slice(b"\n]");
    write(dir.path(), &[("lines.jsonl", &lines), ("array.json", &array), ("ones.jsonl", &b"1\n".repeat(100_000))]);
    same(dir.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spacing_that_is_too_irregular_is_named_and_normalised() {
    let dir = tempfile::tempdir().unwrap();
    let text: String = (0..200_000).map(|i| if i % 2 == 0 { "1\n" } else { "1\r\n" }).collect();
    write(dir.path(), &[("odd.jsonl", text.as_bytes())]);
    let (_, skipped) = described(dir.path(), &Selection::default()).await.unwrap();
    assert_eq!(skipped[0].what, "odd.jsonl: spacing between documents");
    let target = tempfile::tempdir().unwrap();
    copy(dir.path(), target.path()).await.unwrap();
    let found = std::fs::read_to_string(target.path().join("odd.jsonl")).unwrap();
    assert_eq!(found.lines().count(), 200_000);
}

#[tokio::test]
async fn names_that_are_not_text() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let name = std::ffi::OsStr::from_bytes(b"\xff\xfe.json");
    write(dir.path(), &[("files/", b"")]);
    std::fs::write(dir.path().join("files").join(name), b"1").unwrap();
    same(dir.path()).await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_lines_and_arrays_come_back(
        documents in prop::collection::vec((testkit::documents::json_line(), "[ \t]{0,2}(\r?\n[ \t]{0,2}){1,3}"), 0..12),
        around in ("[ \n]{0,3}", "[ \n]{0,3}", "[ \n]{0,3}"),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let lines: Vec<u8> = documents.iter().flat_map(|(text, end)| [&text[..], end.as_bytes()].concat()).collect();
        let lines = [around.0.as_bytes(), &lines].concat();
        let elements: Vec<Vec<u8>> = documents
            .iter()
            .map(|(text, space)| [space.as_bytes(), &text[..], around.1.as_bytes()].concat())
            .collect();
        let array = [around.0.as_bytes(), b"[", &elements.join(&b',')[..], around.2.as_bytes(), b"]"].concat();
        write(dir.path(), &[("lines.jsonl", &lines), ("array.json", &array)]);
        tokio::runtime::Runtime::new().unwrap().block_on(same(dir.path()));
    }
}
