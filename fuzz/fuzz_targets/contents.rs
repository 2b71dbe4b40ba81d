//! Lists of the contents that the change log refers to, and references that are made of pieces.
#![no_main]

use libfuzzer_sys::fuzz_target;
use model::AttachmentRef;
use rewound_fuzz::{compressed, signed, writer_key};

fuzz_target!(|input: &[u8]| {
    let Some((first, rest)) = input.split_first() else { return };
    let plain = match first & 1 {
        0 => rest.to_vec(),
        _ => compressed(&signed("rewound format 1 log contents", rest)),
    };
    if let Ok(list) = vault::read_contents(&plain, &writer_key()) {
        // What is read can be written and read again.
        let json = serde_json::to_vec(&list).expect("JSON can be written");
        let again = vault::read_contents(&compressed(&signed("rewound format 1 log contents", &json)), &writer_key());
        assert_eq!(again.expect("what was written is read"), list);
    }
    let Ok(place) = std::str::from_utf8(rest) else { return };
    let reference = AttachmentRef { digest: [*first; 32], length: u64::from(*first), place: place.into() };
    if let Some(Ok(pieces)) = reference.pieces() {
        let again = AttachmentRef::of_pieces(&pieces).expect("what was read can be written");
        assert_eq!((again.digest, again.length), (reference.digest, reference.length));
    }
});
