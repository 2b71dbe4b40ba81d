//! The readers of CouchDB's dumps: they end well whatever comes, however it comes in pieces, and name
//! only lines that are there.
#![no_main]

use couch::dump::parse::{Form, Found, walk};
use libfuzzer_sys::fuzz_target;
use std::io::Read;

fuzz_target!(|input: &[u8]| {
    let Some((first, rest)) = input.split_first() else { return };
    // Few inputs would ever begin so by themselves.
    let dump = [b"{\"new_edits\":false,\"docs\":[\n", rest].concat();
    for (form, bytes) in [(Form::CouchdbDump, rest), (Form::CouchdbDump, &dump[..]), (Form::Couchbackup, rest)] {
        let lines = bytes.iter().filter(|b| **b == b'\n').count() as u64 + 1;
        let found = all(form, bytes);
        assert_eq!(found, all(form, Slowly(bytes, 1 + usize::from(*first))));
        assert!(found.iter().all(|(line, _)| (1..=lines + 1).contains(line)));
    }
});

fn all(form: Form, input: impl Read) -> Vec<(u64, String)> {
    let mut all = Vec::new();
    let walked = walk(form, input, |found| {
        all.push(match found {
            Found::Document { line, id, revisions } => {
                assert!(!revisions.is_empty());
                (line, format!("{id} {revisions:?}"))
            }
            Found::Flaw(flaw) => (flaw.line, format!("{flaw:?}")),
        });
        true
    });
    walked.expect("memory cannot fail");
    all
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
