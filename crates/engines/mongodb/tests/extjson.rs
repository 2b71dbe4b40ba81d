//! Documents that are easily lost, as Extended JSON and back.
#![allow(clippy::unwrap_used)]

mod common;

use mongo::extjson::{self, Style};

#[test]
fn hard_documents_come_back() {
    let mut names = std::collections::HashSet::new();
    for document in common::hard_documents() {
        let mut text = Vec::new();
        extjson::write(&document, Style::Canonical, &mut text);
        let mut back = Vec::new();
        extjson::read(&text, extjson::DEEPEST, &mut back).unwrap();
        assert_eq!(back, document, "{}", String::from_utf8_lossy(&text));
        let at = mongo::raw::doc(&document, 0).unwrap();
        let key = &document[at.key_start as usize..][..at.key_len as usize];
        assert!(names.insert(mongo::keys::text(key)), "no two have one name");
    }
}
