//! The reader of mongodump's archives: it ends well whatever comes, however it comes in pieces, and
//! what it finds is there.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mongo::dump::archive;
use mongo::raw;
use std::io::Read;

fuzz_target!(|input: &[u8]| {
    let Some((first, rest)) = input.split_first() else { return };
    // Few inputs would ever begin with the magic number by themselves.
    let bytes = [&0x8199_E26D_u32.to_le_bytes()[..], rest].concat();
    let _ = archive::index(rest);
    let index = archive::index(&bytes[..]).expect("memory cannot fail");
    let slowly = archive::index(Slowly(&bytes, 1 + usize::from(*first))).expect("memory cannot fail");
    assert_eq!((&index.prelude, &index.stored, &index.flaw), (&slowly.prelude, &slowly.stored, &slowly.flaw));
    if let Ok(prelude) = archive::prelude(&bytes[..]) {
        assert_eq!(prelude, index.prelude);
    }
    for stored in index.stored.values() {
        let mut docs = Vec::new();
        for (from, to) in &stored.ranges {
            let range = &bytes[*from as usize..*to as usize];
            assert_eq!(raw::sequence(range, &mut docs), Ok(range.len()));
        }
        assert_eq!(docs.len() as u64, stored.documents);
    }
});

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
