//! Log objects: bytes as they are, and fuzzed headers and frames with a good hash and signature.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use model::Encoding;
use rewound_fuzz::{compressed, encoding, frames, hex, segment, signed, writer_key};

fuzz_target!(|input: &[u8]| {
    let Some((first, rest)) = input.split_first() else { return };
    let encoding = encoding(*first);
    let plain = if first & 0x80 != 0 {
        Bytes::copy_from_slice(rest)
    } else {
        let frames = frames(rest);
        let (header, changes) = frames.split_first().expect("there is always one");
        let head = header_frame(encoding, header, changes);
        segment(&std::iter::once(&head[..]).chain(changes.iter().copied()).collect::<Vec<_>>())
    };
    let Ok((_, changes)) = vault::read_log(encoding, &plain, &writer_key()) else { return };
    for change in changes {
        change.batch.check().expect("what is read lies inside its buffers");
        assert_eq!(change.times.len(), change.batch.len());
    }
});

/// The first frame: the fuzzed header with sizes and hashes of what follows, signed.
fn header_frame(encoding: Encoding, json: &[u8], changes: &[&[u8]]) -> Vec<u8> {
    let json = match serde_json::from_slice::<serde_json::Value>(json) {
        Ok(serde_json::Value::Object(mut fields)) => {
            let said = fields.remove("frames").and_then(|f| f.as_array().cloned()).unwrap_or_default();
            let infos = changes.iter().enumerate().map(|(i, change)| {
                let mut info = said.get(i).and_then(|i| i.as_object()).cloned().unwrap_or_default();
                let stored = compressed(change);
                info.insert("stored".into(), stored.len().into());
                info.insert("raw".into(), change.len().into());
                info.insert("blake3".into(), hex(blake3::hash(&stored).as_bytes()).into());
                serde_json::Value::Object(info)
            });
            fields.insert("frames".into(), infos.collect());
            serde_json::to_vec(&fields).expect("JSON can be written")
        }
        _ => json.to_vec(),
    };
    let signed = signed("rewound format 1 log object", &json);
    let body = if encoding == Encoding::Bson { bson(&signed) } else { signed };
    let header =
        format!(r#"{{"rewound":{{"collection":"","kind":{{"meta":"log"}},"lengths":[{}],"keys":[""]}}}}"#, body.len());
    match encoding {
        Encoding::Bson => [bson(header.as_bytes()), body].concat(),
        Encoding::Json => [header.as_bytes(), b"\n", &body, b"\n"].concat(),
        Encoding::Bin => [header.as_bytes(), b"\n", &body].concat(),
    }
}

fn bson(json: &[u8]) -> Vec<u8> {
    let length = |n: usize| (n as u32).to_le_bytes();
    let total = length(4 + 1 + 8 + 4 + json.len() + 1 + 1);
    [&total[..], &[2], b"rewound\0", &length(json.len() + 1)[..], json, &[0, 0]].concat()
}
