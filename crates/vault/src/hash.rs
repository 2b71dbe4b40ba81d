//! The hashes of a vault: content ids, document hashes and their sums, key hashes, source tags.
//!
//! All are keyed with secrets derived from the vault's naming secret, so that names and numbers
//! in the clear say nothing about documents, not even to somebody who guesses their content.

use highway::{HighwayHash, HighwayHasher, Key};
use model::{Batch, CollectionId, Kind};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The hash keys of one vault.
#[derive(Clone)]
pub struct HashKeys {
    content: [u8; 32],
    document: Key,
    key: Key,
    frame: Key,
    tag: [u8; 32],
}

impl std::fmt::Debug for HashKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashKeys")
    }
}

fn highway_key(secret: &[u8; 32], context: &str) -> Key {
    let bytes = blake3::derive_key(context, secret);
    let word = |i: usize| {
        let mut w = [0; 8];
        w.copy_from_slice(&bytes[i * 8..i * 8 + 8]);
        u64::from_le_bytes(w)
    };
    Key([word(0), word(1), word(2), word(3)])
}

impl HashKeys {
    /// The keys that belong to a naming secret.
    pub fn derive(naming: &[u8; 32]) -> Self {
        HashKeys {
            content: blake3::derive_key("rewound format 1 content id", naming),
            document: highway_key(naming, "rewound format 1 document hash"),
            key: highway_key(naming, "rewound format 1 key hash"),
            frame: highway_key(naming, "rewound format 1 frame check"),
            tag: blake3::derive_key("rewound format 1 source tag", naming),
        }
    }

    /// A hasher for the content id of an object: over all its plain bytes.
    pub(crate) fn content(&self) -> blake3::Hasher {
        blake3::Hasher::new_keyed(&self.content)
    }

    /// The content id of plain bytes that are whole in memory.
    pub(crate) fn content_id(&self, plain: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(&self.content, plain).as_bytes()
    }

    /// The name under which a source appears in object names: 16 hex digits.
    pub fn source_tag(&self, engine: &str, identity: &str) -> String {
        let mut hasher = blake3::Hasher::new_keyed(&self.tag);
        hasher.update(engine.as_bytes()).update(&[0]).update(identity.as_bytes());
        hasher.finalize().to_hex()[..16].to_owned()
    }

    /// The hash of document `i` of a batch: of its kind, key, body and attachment's content.
    pub fn document(&self, batch: &Batch, i: usize) -> DocumentHash {
        let digest = batch.attachments.get(i).map(|a| &a.digest[..]).unwrap_or_default();
        self.parts(batch.kind.space(), batch.key_of(i), batch.body_of(i), digest)
    }

    fn parts(&self, space: &str, key: &[u8], body: &[u8], digest: &[u8]) -> DocumentHash {
        let mut hasher = HighwayHasher::new(self.document);
        // Lengths first, so that no two different documents give the same bytes.
        let mut lengths = [0; 16];
        lengths[..4].copy_from_slice(&(space.len() as u32).to_le_bytes());
        lengths[4..8].copy_from_slice(&(key.len() as u32).to_le_bytes());
        lengths[8..].copy_from_slice(&(body.len() as u64).to_le_bytes());
        hasher.append(&lengths);
        hasher.append(space.as_bytes());
        hasher.append(key);
        hasher.append(body);
        hasher.append(digest);
        DocumentHash(hasher.finalize256())
    }

    /// The hash of a key, for filters and tables. The same for all kinds that speak of the same
    /// thing ([`Kind::space`]).
    pub(crate) fn key(&self, collection: &CollectionId, kind: &Kind, key: &[u8]) -> u64 {
        key_after(&self.key_prefix(collection, kind), key)
    }

    /// The part of a key's hash that all documents of a batch share: clone it for each.
    pub(crate) fn key_prefix(&self, collection: &CollectionId, kind: &Kind) -> HighwayHasher {
        let mut hasher = HighwayHasher::new(self.key);
        let id = collection.as_str().as_bytes();
        let space = kind.space().as_bytes();
        let mut lengths = [0; 8];
        lengths[..4].copy_from_slice(&(id.len() as u32).to_le_bytes());
        lengths[4..].copy_from_slice(&(space.len() as u32).to_le_bytes());
        hasher.append(&lengths);
        hasher.append(id);
        hasher.append(space);
        hasher
    }

    /// The hashes of all keys of a batch, in the place of what is there.
    pub(crate) fn keys_of(&self, batch: &Batch, into: &mut Vec<u64>) {
        let prefix = self.key_prefix(&batch.collection, &batch.kind);
        into.clear();
        into.extend((0..batch.len()).map(|i| key_after(&prefix, batch.key_of(i))));
    }

    /// The check of a frame's stored bytes, for reads of single frames.
    pub(crate) fn frame(&self, stored: &[u8]) -> u64 {
        let mut hasher = HighwayHasher::new(self.frame);
        hasher.append(stored);
        hasher.finalize64()
    }
}

/// The hash of a key, from what [`HashKeys::key_prefix`] gave.
pub(crate) fn key_after(prefix: &HighwayHasher, key: &[u8]) -> u64 {
    let mut hasher = prefix.clone();
    hasher.append(key);
    hasher.finalize64()
}

/// The keyed 256-bit hash of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DocumentHash([u64; 4]);

impl DocumentHash {
    /// The 64 bits that are kept to find out whether a document has changed.
    pub(crate) fn short(self) -> u64 {
        self.0[0]
    }
}

/// Count and sum (mod 2²⁵⁶) of document hashes: equal for equal sets of documents, in any order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Digest {
    /// Number of documents.
    pub count: u64,
    sum: [u64; 4],
}

impl Digest {
    /// Adds one document.
    pub fn add(&mut self, hash: DocumentHash) {
        self.count += 1;
        self.add_words(hash.0);
    }

    /// Adds all documents of another digest.
    pub fn merge(&mut self, other: &Digest) {
        self.count += other.count;
        self.add_words(other.sum);
    }

    fn add_words(&mut self, words: [u64; 4]) {
        let mut carry = false;
        for (sum, word) in self.sum.iter_mut().zip(words) {
            let (a, c1) = sum.overflowing_add(word);
            let (b, c2) = a.overflowing_add(u64::from(carry));
            *sum = b;
            carry = c1 || c2;
        }
    }

    /// The sum as 64 hex digits, most significant first.
    pub fn hex(&self) -> String {
        format!("{:016x}{:016x}{:016x}{:016x}", self.sum[3], self.sum[2], self.sum[1], self.sum[0])
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        format!("{}:{}", self.count, self.hex()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_digest(&text).ok_or_else(|| serde::de::Error::custom("not a digest"))
    }
}

fn parse_digest(text: &str) -> Option<Digest> {
    let (count, hex) = text.split_once(':')?;
    let mut digest = Digest { count: count.parse().ok()?, sum: [0; 4] };
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    for (i, sum) in digest.sum.iter_mut().rev().enumerate() {
        *sum = u64::from_str_radix(&hex[i * 16..i * 16 + 16], 16).ok()?;
    }
    Some(digest)
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for b in bytes {
        text.push(DIGITS[usize::from(b >> 4)] as char);
        text.push(DIGITS[usize::from(b & 15)] as char);
    }
    text
}

/// Exactly 64 lower-case hex digits as bytes.
pub(crate) fn unhex32(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return None;
    }
    let mut bytes = [0; 32];
    for (i, b) in bytes.iter_mut().enumerate() {
        *b = u8::from_str_radix(&text[i * 2..i * 2 + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sums_do_not_depend_on_order(mut words in proptest::collection::vec(any::<[u64; 4]>(), 0..20)) {
            let sum = |w: &[[u64; 4]]| { let mut d = Digest::default(); w.iter().for_each(|h| d.add(DocumentHash(*h))); d };
            let forward = sum(&words);
            words.reverse();
            prop_assert_eq!(forward, sum(&words));
            let (a, b) = words.split_at(words.len() / 2);
            let mut merged = sum(a);
            merged.merge(&sum(b));
            prop_assert_eq!(forward, merged);
            let text = serde_json::to_string(&forward).unwrap_or_default();
            prop_assert_eq!(serde_json::from_str::<Digest>(&text).ok(), Some(forward));
        }
    }

    #[test]
    fn carries_reach_the_top() {
        let mut d = Digest::default();
        d.add(DocumentHash([u64::MAX; 4]));
        d.add(DocumentHash([1, 0, 0, 0]));
        assert_eq!(d.hex(), "0".repeat(64));
    }

    #[test]
    fn parts_are_told_apart() {
        let keys = HashKeys::derive(&[1; 32]);
        assert_ne!(keys.parts("document", b"ab", b"c", b""), keys.parts("document", b"a", b"bc", b""));
        assert_ne!(keys.parts("document", b"a", b"b", b""), keys.parts("revision", b"a", b"b", b""));
        assert_ne!(HashKeys::derive(&[2; 32]).content_id(b"x"), keys.content_id(b"x"));
    }
}
