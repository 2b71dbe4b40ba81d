//! Updates of MongoDB's oplog, applied to documents: the first bytes say where the document ends.
//! What comes of sound input is sound, and no larger than a server stores or than what went in.
#![no_main]

use libfuzzer_sys::fuzz_target;
use model::Patcher;
use mongo::{Patches, raw};

fuzz_target!(|input: &[u8]| {
    let Some(length) = raw::document_len(input) else { return };
    let (body, patch) = input.split_at(length);
    let Ok(after) = Patches.applied(body, patch) else { return };
    assert!(after.len() <= raw::DOCUMENT_MAX.max(input.len()));
    assert_eq!(raw::document_len(&after), Some(after.len()));
    let nested = &mut Vec::new();
    if raw::flaw(body, nested).is_none() && raw::flaw(patch, nested).is_none() {
        assert_eq!(raw::flaw(&after, nested), None);
    }
});
