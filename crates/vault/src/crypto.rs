//! Encryption of objects with age, and signatures with ed25519.

mod file_keys;

use self::file_keys::FileKeys;
use crate::buffers::Buffers;
use crate::hash::unhex32;
use bytes::Bytes;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use model::{Error, Result};
use std::io::{Read, Seek, SeekFrom, Write};
use std::str::FromStr;

/// Plain bytes in one chunk of an age file (age specification, "Payload").
pub(crate) const CHUNK: u64 = 64 << 10;
/// Stored bytes of one chunk: 16 of them authenticate it.
pub(crate) const STORED_CHUNK: u64 = CHUNK + 16;

/// Who can read an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// The vault's recipients.
    Readers,
    /// The vault's recipients and its writer.
    Writers,
}

/// An age identity (`AGE-SECRET-KEY-1…`).
#[derive(Clone)]
pub struct Identity(std::sync::Arc<age::x25519::Identity>);

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.recipient())
    }
}

impl Identity {
    /// A new identity from the operating system's randomness.
    pub fn generate() -> Self {
        Identity(std::sync::Arc::new(age::x25519::Identity::generate()))
    }

    /// The identity written as `AGE-SECRET-KEY-1…`.
    pub fn parse(text: &str) -> Result<Self> {
        age::x25519::Identity::from_str(text.trim()).map(|i| Identity(std::sync::Arc::new(i))).map_err(|e| {
            Error::credentials(format!("not an age identity: {e}"))
                .hint("an identity file holds a line AGE-SECRET-KEY-1…; `rewound keygen` makes one")
        })
    }

    /// All identities in the text of an identity file; lines that are empty or start with `#` do
    /// not count.
    pub fn parse_file(text: &str) -> Result<Vec<Self>> {
        let found: Vec<_> = text
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty() && !l.starts_with('#'))
            .map(Self::parse)
            .collect::<Result<_>>()?;
        if found.is_empty() {
            return Err(Error::credentials("the identity file holds no identity")
                .hint("it must hold a line AGE-SECRET-KEY-1…; `rewound keygen` makes one"));
        }
        Ok(found)
    }

    /// The secret as text. Do not print it anywhere but into an identity file.
    pub fn secret_text(&self) -> String {
        use age::secrecy::ExposeSecret;
        self.0.to_string().expose_secret().to_owned()
    }

    /// The recipient that belongs to it, as `age1…`.
    pub fn recipient(&self) -> String {
        self.0.to_public().to_string()
    }
}

/// Checks that a text is an age recipient (`age1…`).
pub fn check_recipient(text: &str) -> Result<()> {
    recipient(text).map(drop)
}

fn recipient(text: &str) -> Result<age::x25519::Recipient> {
    age::x25519::Recipient::from_str(text).map_err(|e| {
        Error::input(format!("{text:?} is not an age recipient: {e}"))
            .hint("a recipient starts with age1; `rewound keygen` prints the one of a new identity")
    })
}

/// Encrypts and decrypts the objects of one vault.
#[derive(Clone)]
pub(crate) struct Cipher {
    /// Recipients and the writer's recipient; none in a plain vault.
    encrypt_to: Option<(Vec<age::x25519::Recipient>, age::x25519::Recipient)>,
    identities: Vec<Identity>,
    /// Of objects that parts were read of.
    keys: FileKeys,
}

impl std::fmt::Debug for Cipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cipher").field("encrypted", &self.encrypt_to.is_some()).finish_non_exhaustive()
    }
}

impl Cipher {
    pub(crate) fn plain() -> Self {
        Cipher { encrypt_to: None, identities: Vec::new(), keys: FileKeys::default() }
    }

    pub(crate) fn age(recipients: &[String], writer: &str, identities: Vec<Identity>) -> Result<Self> {
        let recipients = recipients.iter().map(|r| recipient(r)).collect::<Result<Vec<_>>>()?;
        Ok(Cipher { encrypt_to: Some((recipients, recipient(writer)?)), identities, keys: FileKeys::default() })
    }

    pub(crate) fn is_plain(&self) -> bool {
        self.encrypt_to.is_none()
    }

    /// Encrypts an object; gives the stored bytes and how many of them are the head: all that a
    /// reader needs, beside the key, to decrypt a part from the middle (none in a plain vault).
    pub(crate) fn seal(&self, audience: Audience, plain: Vec<u8>) -> Result<(Vec<u8>, usize)> {
        if self.is_plain() {
            return Ok((plain, 0));
        }
        let chunks = plain.len() / CHUNK as usize + 1;
        let stored = Vec::with_capacity(plain.len() + chunks * 16 + 1024);
        let mut sealing = self.sealing(audience, stored)?;
        sealing.write(&plain)?;
        sealing.finish()
    }

    /// Encrypts an object piece by piece, as [`Cipher::seal`] does, into an empty buffer.
    pub(crate) fn sealing(&self, audience: Audience, stored: Vec<u8>) -> Result<Sealing> {
        let Some((readers, writer)) = &self.encrypt_to else { return Ok(Sealing::Plain(stored)) };
        let mut to: Vec<&dyn age::Recipient> = readers.iter().map(|r| r as &dyn age::Recipient).collect();
        if audience == Audience::Writers {
            to.push(writer);
        }
        Sealing::age(&to, stored)
    }

    /// Decrypts a whole object.
    pub(crate) fn open(&self, stored: Vec<u8>) -> Result<Vec<u8>> {
        if self.is_plain() {
            return Ok(stored);
        }
        decrypt(&self.identities, &stored)
    }

    /// The same, into memory of these buffers.
    pub(crate) fn open_into(&self, stored: Bytes, buffers: &Buffers) -> Result<Bytes> {
        if self.is_plain() {
            return Ok(stored);
        }
        decrypt_into(&self.identities, &stored, buffers.take(stored.len())).map(|plain| buffers.lend(plain))
    }

    /// Which stored bytes are needed to read `plain` bytes (a range of the decrypted object) of an
    /// object with a head of `head` bytes and `size` bytes in all.
    pub(crate) fn stored_range(&self, head: u64, size: u64, plain: std::ops::Range<u64>) -> std::ops::Range<u64> {
        if self.is_plain() {
            return plain.start.min(size)..plain.end.min(size);
        }
        let first = first_chunk(plain.start);
        let last = plain.end.saturating_sub(1).max(plain.start) / CHUNK;
        (head + first * STORED_CHUNK).min(size)..(head + (last + 1) * STORED_CHUNK).min(size)
    }

    /// Decrypts the bytes of [`Cipher::stored_range`].
    pub(crate) fn open_range(&self, head: &[u8], fetched: &[u8], plain: std::ops::Range<u64>) -> Result<Vec<u8>> {
        self.open_range_into(head, fetched, plain, Vec::new())
    }

    /// The same, into an empty buffer.
    pub(crate) fn open_range_into(
        &self,
        head: &[u8],
        fetched: &[u8],
        plain: std::ops::Range<u64>,
        mut out: Vec<u8>,
    ) -> Result<Vec<u8>> {
        let length = (plain.end - plain.start) as usize;
        if self.is_plain() {
            if fetched.len() != length {
                return Err(truncated());
            }
            out.extend_from_slice(fetched);
            return Ok(out);
        }
        let body_at = head.len() as u64 + first_chunk(plain.start) * STORED_CHUNK;
        let sparse = Sparse { head, body: fetched, body_at, at: 0 };
        let reader = age::Decryptor::new(sparse).map_err(|e| damaged(&e))?;
        let identity = self.keys.of(head, &self.identities);
        let mut reader = reader.decrypt(std::iter::once(&identity as &dyn age::Identity)).map_err(|e| no_key(&e))?;
        // Seeking to the edge of a chunk would read the file's last one, which is not here: go
        // through the chunk before it.
        let edge = plain.start > 0 && plain.start % CHUNK == 0;
        reader.seek(SeekFrom::Start(plain.start - u64::from(edge))).map_err(|e| damaged(&e))?;
        if edge {
            reader.read_exact(&mut [0]).map_err(|e| damaged(&e))?;
        }
        out.reserve_exact(length);
        reader.take(length as u64).read_to_end(&mut out).map_err(|e| damaged(&e))?;
        if out.len() == length { Ok(out) } else { Err(truncated()) }
    }
}

/// An object that is being encrypted.
pub(crate) enum Sealing {
    /// In a plain vault it is not.
    Plain(Vec<u8>),
    /// As an age file.
    Age(age::stream::StreamWriter<Vec<u8>>),
}

impl Sealing {
    fn age(to: &[&dyn age::Recipient], stored: Vec<u8>) -> Result<Self> {
        let encryptor = age::Encryptor::with_recipients(to.iter().copied()).map_err(|e| not_sealed(&e))?;
        Ok(Sealing::Age(encryptor.wrap_output(stored).map_err(|e| not_sealed(&e))?))
    }

    pub(crate) fn write(&mut self, plain: &[u8]) -> Result<()> {
        match self {
            Sealing::Plain(stored) => stored.extend_from_slice(plain),
            Sealing::Age(writer) => writer.write_all(plain).map_err(|e| not_sealed(&e))?,
        }
        Ok(())
    }

    /// The stored bytes, and how many of them are the head.
    pub(crate) fn finish(self) -> Result<(Vec<u8>, usize)> {
        match self {
            Sealing::Plain(stored) => Ok((stored, 0)),
            Sealing::Age(writer) => {
                let stored = writer.finish().map_err(|e| not_sealed(&e))?;
                let head = head_length(&stored).ok_or_else(|| Error::bug("an age file without a header was made"))?;
                Ok((stored, head))
            }
        }
    }
}

fn not_sealed(cause: &dyn std::fmt::Display) -> Error {
    Error::bug(format!("encrypting an object failed: {cause}"))
}

/// Encrypts a small secret to recipients, as text of an age file.
pub(crate) fn encrypt_to(recipients: &[String], plain: &[u8]) -> Result<Vec<u8>> {
    let to = recipients.iter().map(|r| recipient(r)).collect::<Result<Vec<_>>>()?;
    let to: Vec<&dyn age::Recipient> = to.iter().map(|r| r as &dyn age::Recipient).collect();
    let mut sealing = Sealing::age(&to, Vec::new())?;
    sealing.write(plain)?;
    sealing.finish().map(|(stored, _)| stored)
}

/// Decrypts a whole age file with any of the identities.
pub(crate) fn decrypt(identities: &[Identity], stored: &[u8]) -> Result<Vec<u8>> {
    decrypt_into(identities, stored, Vec::new())
}

fn decrypt_into(identities: &[Identity], stored: &[u8], mut plain: Vec<u8>) -> Result<Vec<u8>> {
    let decryptor = age::Decryptor::new_buffered(stored).map_err(|e| damaged(&e))?;
    let identities = identities.iter().map(|i| &*i.0 as &dyn age::Identity);
    let mut reader = decryptor.decrypt(identities).map_err(|e| no_key(&e))?;
    plain.reserve_exact(stored.len());
    reader.read_to_end(&mut plain).map_err(|e| damaged(&e))?;
    Ok(plain)
}

/// Bytes of an age file's header and payload nonce.
pub(crate) fn head_length(stored: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let line = stored[at..].iter().position(|b| *b == b'\n')?;
        let is_last = stored[at..].starts_with(b"--- ");
        at += line + 1;
        if is_last {
            return (at + 16 <= stored.len()).then_some(at + 16);
        }
    }
}

fn first_chunk(plain: u64) -> u64 {
    let edge = plain > 0 && plain % CHUNK == 0;
    plain / CHUNK - u64::from(edge)
}

fn truncated() -> Error {
    Error::corrupt("an object ends too early")
}

fn damaged(cause: &dyn std::fmt::Display) -> Error {
    Error::corrupt(format!("the encrypted bytes are damaged: {cause}"))
}

fn no_key(cause: &age::DecryptError) -> Error {
    match cause {
        age::DecryptError::NoMatchingKeys => Error::credentials("none of the given identities can read this vault")
            .hint("pass the identity of one of the vault's recipients: --identity FILE or REWOUND_IDENTITY"),
        other => damaged(other),
    }
}

/// A stored object of which only the head and one range are here.
struct Sparse<'a> {
    head: &'a [u8],
    body: &'a [u8],
    body_at: u64,
    at: u64,
}

impl Read for Sparse<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let from = if self.at < self.head.len() as u64 {
            &self.head[self.at as usize..]
        } else {
            let skip = self.at.checked_sub(self.body_at).ok_or_else(|| std::io::Error::other("outside the range"))?;
            self.body.get(skip as usize..).unwrap_or_default()
        };
        let n = from.len().min(out.len());
        out[..n].copy_from_slice(&from[..n]);
        self.at += n as u64;
        Ok(n)
    }
}

impl Seek for Sparse<'_> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(_) => None,
        };
        self.at = at.ok_or_else(|| std::io::Error::other("outside the range"))?;
        Ok(self.at)
    }
}

/// Signs with the writer's key.
pub(crate) fn sign(key: &SigningKey, context: &str, message: &[u8]) -> String {
    crate::hash::hex(&key.sign(&signed_bytes(context, message)).to_bytes())
}

/// Whether a signature by the writer's key is right.
pub(crate) fn is_signed(key: &VerifyingKey, context: &str, message: &[u8], signature: &str) -> bool {
    // Only lower-case hex: one signature is written in one way.
    let (Some(first), Some(second)) = (signature.get(..64), signature.get(64..)) else { return false };
    let (Some(first), Some(second)) = (unhex32(first), unhex32(second)) else { return false };
    let mut bytes = [0; 64];
    bytes[..32].copy_from_slice(&first);
    bytes[32..].copy_from_slice(&second);
    key.verify_strict(&signed_bytes(context, message), &Signature::from_bytes(&bytes)).is_ok()
}

/// What is signed: the hash of the message, bound to what kind of message it is.
fn signed_bytes(context: &str, message: &[u8]) -> [u8; 32] {
    blake3::derive_key(context, message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn cipher() -> (Cipher, Identity) {
        let (reader, writer) = (Identity::generate(), Identity::generate());
        let cipher = Cipher::age(&[reader.recipient()], &writer.recipient(), vec![reader.clone()]).unwrap();
        (cipher, writer)
    }

    #[test]
    fn any_range_of_an_object_can_be_read() {
        let (cipher, _) = cipher();
        for size in [0usize, 1, 65535, 65536, 65537, 200_000, 131_072] {
            let plain: Vec<u8> = (0..size).map(|i| (i * 7 % 251) as u8).collect();
            let (stored, head) = cipher.seal(Audience::Readers, plain.clone()).unwrap();
            assert_eq!(cipher.open(stored.clone()).unwrap(), plain);
            let cuts = [0, 1, 100, 65535, 65536, 65537, 131_071, 131_072, 199_999, 200_000];
            for a in cuts.iter().filter(|a| **a < size) {
                for b in cuts.iter().filter(|b| *b > a && **b <= size) {
                    let range = *a as u64..*b as u64;
                    let at = cipher.stored_range(head as u64, stored.len() as u64, range.clone());
                    let fetched = &stored[at.start as usize..at.end as usize];
                    assert_eq!(
                        cipher.open_range(&stored[..head], fetched, range).unwrap(),
                        &plain[*a..*b],
                        "{a}..{b} of {size}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_writer_cannot_read_what_is_for_readers() {
        let (cipher, writer) = cipher();
        let (for_readers, _) = cipher.seal(Audience::Readers, b"x".to_vec()).unwrap();
        let (for_writers, _) = cipher.seal(Audience::Writers, b"y".to_vec()).unwrap();
        let error = decrypt(std::slice::from_ref(&writer), &for_readers).unwrap_err();
        assert_eq!(error.kind(), model::ErrorKind::Credentials);
        assert_eq!(decrypt(&[writer], &for_writers).unwrap(), b"y");
        assert_eq!(cipher.open(for_writers).unwrap(), b"y");
    }

    #[test]
    fn a_flipped_bit_in_a_range_is_found() {
        let (cipher, _) = cipher();
        let (stored, head) = cipher.seal(Audience::Readers, vec![5; 100_000]).unwrap();
        let range = 70_000..70_010;
        let at = cipher.stored_range(head as u64, stored.len() as u64, range.clone());
        let mut fetched = stored[at.start as usize..at.end as usize].to_vec();
        fetched[17] ^= 1;
        let error = cipher.open_range(&stored[..head], &fetched, range).unwrap_err();
        assert_eq!(error.kind(), model::ErrorKind::Corrupt);
    }

    #[test]
    fn signatures_hold_for_their_message_and_context_only() {
        let key = SigningKey::from_bytes(&[3; 32]);
        let signature = sign(&key, "a", b"message");
        assert!(is_signed(&key.verifying_key(), "a", b"message", &signature));
        assert!(!is_signed(&key.verifying_key(), "b", b"message", &signature));
        assert!(!is_signed(&key.verifying_key(), "a", b"massage", &signature));
        assert!(!is_signed(&key.verifying_key(), "a", b"message", "é"));
    }
}
