//! Partitions of key filters.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((bits, rest)) = input.split_first() else { return };
    let Some((hash, payload)) = rest.split_first_chunk::<8>() else { return };
    std::hint::black_box(vault::look_in_filter(payload, u64::from_le_bytes(*hash), u32::from(*bits)));
});
