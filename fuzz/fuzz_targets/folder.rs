//! The folder reader: what it takes for JSON is what a JSON parser takes, and however a file comes
//! in pieces, the same documents come out.
#![no_main]

use folder::json::{MAX_DEPTH, validate_json};
use folder::split::{Failure, Form, Splitter};
use libfuzzer_sys::fuzz_target;
use std::io::Read;

fuzz_target!(|input: &[u8]| {
    let Some((first, text)) = input.split_first() else { return };
    compare(text);
    for form in [Form::Lines, Form::Array] {
        let whole = split(text, form, usize::MAX);
        let pieces = split(text, form, 1 + usize::from(*first));
        assert_eq!(whole, pieces);
        for (document, bad) in whole.iter().flatten() {
            assert!(bad.is_some() || validate_json(document).is_ok());
        }
    }
});

/// Compares with serde_json.
fn compare(text: &[u8]) {
    let other = serde_json::from_slice::<&serde_json::value::RawValue>(text).is_ok();
    match validate_json(text) {
        Ok(()) => assert!(other, "serde_json refuses it"),
        Err(bad) => assert!(!other || bad.what.contains(&MAX_DEPTH.to_string()), "serde_json takes it: {bad}"),
    }
}

type Document = (Vec<u8>, Option<String>);

/// All documents with what is wrong with each, or what ends the file early.
fn split(text: &[u8], form: Form, step: usize) -> Result<Vec<Document>, String> {
    let mut splitter = Splitter::new(Slowly(text, step), form);
    let (mut documents, mut whole) = (Vec::new(), Vec::new());
    loop {
        match splitter.next_chunk() {
            Ok(Some(chunk)) => {
                for item in &chunk.items {
                    let bad = item.bad.as_ref().map(ToString::to_string);
                    documents.push((chunk.bytes[item.start..item.end].to_vec(), bad));
                    for id in [&item.underscore_id, &item.id].into_iter().flatten() {
                        assert!(validate_json(&chunk.bytes[id.clone()]).is_ok());
                    }
                }
                whole.extend_from_slice(&chunk.bytes);
            }
            Ok(None) => break,
            Err(Failure::Bad(bad)) => return Err(bad.to_string()),
            Err(Failure::Io(e)) => panic!("memory cannot fail: {e}"),
        }
    }
    assert_eq!(whole, text, "the chunks together are the file");
    Ok(documents)
}

/// Gives a few bytes at a time.
struct Slowly<'a>(&'a [u8], usize);

impl Read for Slowly<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.1.min(self.0.len()).min(buffer.len());
        buffer[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        Ok(n)
    }
}
