//! `vault.json` and points: bytes as they are, and fuzzed JSON with a good hash and signature.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rewound_fuzz::{signed, writer_key};
use vault::VaultFile;

fuzz_target!(|input: &[u8]| {
    let Some((first, rest)) = input.split_first() else { return };
    match first % 4 {
        0 => drop(VaultFile::parse(rest)),
        1 => drop(vault::read_point(rest, &writer_key())),
        2 => {
            let Ok(file) = VaultFile::parse(&signed("rewound format 1 vault file", rest)) else { return };
            assert_eq!(file.writer, writer_key());
        }
        _ => {
            let point = |json: &[u8]| {
                let stored = zstd::bulk::compress(&signed("rewound format 1 point", json), 1).expect("zstd compresses");
                vault::read_point(&stored, &writer_key())
            };
            let Ok(manifest) = point(rest) else { return };
            let again = serde_json::to_vec(&manifest).expect("what is read can be written");
            assert_eq!(point(&again).expect("and read again"), manifest);
        }
    }
});
