//! The segment reader: bytes as they are, and frames with fuzzed headers.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((first, rest)) = input.split_first() else { return };
    let encoding = rewound_fuzz::encoding(*first);
    let plain = if first & 0x80 != 0 {
        Bytes::copy_from_slice(rest)
    } else {
        rewound_fuzz::segment(&rewound_fuzz::frames(rest))
    };
    let Ok(batches) = vault::read_segment(encoding, plain) else { return };
    for batch in batches {
        batch.check().expect("what is read lies inside its buffers");
        for i in 0..batch.len() {
            std::hint::black_box((batch.key_of(i), batch.body_of(i)));
        }
    }
});
