//! Signed JSON: one line of JSON, and a second line with its blake3 hash and the writer's
//! signature.

use crate::crypto;
use crate::hash::hex;
use ed25519_dalek::{SigningKey, VerifyingKey};
use model::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seal {
    blake3: String,
    signature: String,
}

/// Writes a value as signed JSON. `context` says what kind of thing it is.
pub(crate) fn write<T: Serialize>(key: &SigningKey, context: &str, value: &T) -> Result<Vec<u8>> {
    let bug = |e: serde_json::Error| Error::bug(format!("writing {context} as JSON failed: {e}"));
    let mut bytes = serde_json::to_vec(value).map_err(bug)?;
    let seal = Seal { blake3: hex(blake3::hash(&bytes).as_bytes()), signature: crypto::sign(key, context, &bytes) };
    bytes.push(b'\n');
    serde_json::to_writer(&mut bytes, &seal).map_err(bug)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// The JSON line of signed JSON whose hash is right, and its signature.
pub(crate) fn split(bytes: &[u8]) -> Result<(&[u8], String)> {
    let broken = || Error::corrupt("its checksum does not fit its content");
    let mut lines = bytes.splitn(3, |b| *b == b'\n');
    let (Some(json), Some(seal), Some(&[])) = (lines.next(), lines.next(), lines.next()) else {
        return Err(broken());
    };
    let seal: Seal = serde_json::from_slice(seal).map_err(|_| broken())?;
    if seal.blake3 != hex(blake3::hash(json).as_bytes()) {
        return Err(broken());
    }
    Ok((json, seal.signature))
}

/// Reads signed JSON and checks its hash and signature.
pub(crate) fn read<T: DeserializeOwned>(key: &VerifyingKey, context: &str, bytes: &[u8]) -> Result<T> {
    let (json, signature) = split(bytes)?;
    if !crypto::is_signed(key, context, json, &signature) {
        return Err(Error::corrupt("it is not signed by the vault's writer")
            .hint("somebody else wrote it: do not trust this vault before you know who"));
    }
    serde_json::from_slice(json).map_err(|e| Error::corrupt(format!("its JSON cannot be read: {e}")))
}
