//! What the targets share: they build the outside of an object (zstd frames, seek table, hash,
//! signature) around fuzzed insides, as random bytes would hardly ever get past it.

use bytes::Bytes;
use ed25519_dalek::{Signer, SigningKey};
use model::Encoding;

/// Stands between the frames in an input.
pub const BETWEEN: &[u8] = b"\xff\xff\xff";

/// The encoding that a byte of the input chooses.
pub fn encoding(byte: u8) -> Encoding {
    match byte % 3 {
        0 => Encoding::Json,
        1 => Encoding::Bson,
        _ => Encoding::Bin,
    }
}

/// The byte that chooses an encoding.
pub fn byte_of(encoding: Encoding) -> u8 {
    match encoding {
        Encoding::Json => 0,
        Encoding::Bson => 1,
        Encoding::Bin => 2,
    }
}

/// The frames in an input.
pub fn frames(input: &[u8]) -> Vec<&[u8]> {
    let mut frames = Vec::new();
    let mut rest = input;
    while let Some(at) = rest.windows(BETWEEN.len()).position(|w| w == BETWEEN) {
        frames.push(&rest[..at]);
        rest = &rest[at + BETWEEN.len()..];
    }
    frames.push(rest);
    frames
}

/// A frame as it is in a segment.
pub fn compressed(frame: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(frame, 1).expect("zstd compresses anything")
}

/// A segment of these frames, in the zstd seekable format.
pub fn segment(frames: &[&[u8]]) -> Bytes {
    let mut out = Vec::new();
    let mut table = Vec::new();
    for frame in frames {
        let stored = compressed(frame);
        table.extend_from_slice(&(stored.len() as u32).to_le_bytes());
        table.extend_from_slice(&(frame.len() as u32).to_le_bytes());
        out.extend_from_slice(&stored);
    }
    out.extend_from_slice(&0x184D_2A5Eu32.to_le_bytes());
    out.extend_from_slice(&(table.len() as u32 + 9).to_le_bytes());
    out.extend_from_slice(&table);
    out.extend_from_slice(&(frames.len() as u32).to_le_bytes());
    out.push(0);
    out.extend_from_slice(&0x8F92_EAB1u32.to_le_bytes());
    out.into()
}

/// The writer of all signed objects here.
fn writer() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

/// Its public key, as `vault.json` shows it.
pub fn writer_key() -> String {
    hex(writer().verifying_key().as_bytes())
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Signed JSON: the line, its hash and its signature.
pub fn signed(context: &str, json: &[u8]) -> Vec<u8> {
    let signature = writer().sign(&blake3::derive_key(context, json)).to_bytes();
    let seal = format!(r#"{{"blake3":"{}","signature":"{}"}}"#, hex(blake3::hash(json).as_bytes()), hex(&signature));
    [json, b"\n", seal.as_bytes(), b"\n"].concat()
}
