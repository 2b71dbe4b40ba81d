//! BSON as bytes: framing and structure. What is taken for sound can be walked to its end.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mongo::raw;

fuzz_target!(|input: &[u8]| {
    let Some((first, bytes)) = input.split_first() else { return };
    let at = usize::from(*first);
    let _ = raw::element(bytes, at);
    let _ = raw::value_len(*first, bytes);
    let _ = raw::doc(bytes, at);
    let _ = raw::array(bytes, at, &mut Vec::new());
    let _ = mongo::keys::text(bytes);
    let mut docs = Vec::new();
    let whole = raw::sequence(bytes, &mut docs);
    let (Ok(end) | Err(end)) = whole;
    assert!(end <= bytes.len());
    for doc in docs {
        let document = &bytes[doc.start as usize..doc.end as usize];
        let key = (doc.key_start as usize)..(doc.key_start + doc.key_len) as usize;
        assert!(doc.start <= doc.key_start && key.end <= doc.end as usize && !bytes[key].is_empty());
        if raw::flaw(document, &mut Vec::new()).is_none() {
            walk(document, 0);
        }
        let _ = mongo::keys::json(document);
    }
});

/// Walks through all elements, and those of documents within documents.
fn walk(document: &[u8], depth: usize) {
    let mut at = 4;
    while let Some(element) = raw::element(document, at) {
        if matches!(element.kind, 0x03 | 0x04) && depth < 200 {
            walk(&document[element.value..element.end], depth + 1);
        }
        at = element.end;
    }
    assert_eq!(at, document.len() - 1);
}
