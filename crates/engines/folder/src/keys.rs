//! Keys of documents that share one file.

use crate::layout::KeyScheme;
use crate::split::Item;
use std::hash::{DefaultHasher, Hasher};

/// Documents of one file up to which their keys are compared: 8 bytes each in memory.
const COMPARED_MAX: usize = 16 << 20;
/// The longest member that is taken as a key.
const KEY_MAX: usize = 1024;

/// Puts the key of a document at the end of `keys`; false if it has none by this scheme.
/// `ordinal` is its place in the file, counted from 1.
pub(crate) fn key_of(scheme: KeyScheme, bytes: &[u8], item: &Item, ordinal: u64, keys: &mut Vec<u8>) -> bool {
    let id = match scheme {
        KeyScheme::UnderscoreId => &item.underscore_id,
        KeyScheme::Id => &item.id,
        KeyScheme::Ordinal => {
            keys.extend_from_slice(ordinal.to_string().as_bytes());
            return true;
        }
    };
    let Some(text) = id.clone().map(|id| &bytes[id]) else {
        return false;
    };
    if text.len() > KEY_MAX {
        return false;
    }
    match text.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\"")) {
        None => keys.extend_from_slice(text),
        Some(inner) if !inner.contains(&b'\\') => keys.extend_from_slice(inner),
        // Half a surrogate pair is legal JSON but no text: such a document has no key.
        Some(_) => match serde_json::from_slice::<String>(text) {
            Ok(text) => keys.extend_from_slice(text.as_bytes()),
            Err(_) => return false,
        },
    }
    true
}

/// Finds out which scheme gives every document of a file a key of its own.
#[derive(Default)]
pub(crate) struct KeyChooser {
    /// The scheme that is being tried, once there was a document.
    trying: Option<KeyScheme>,
    /// Whether `id` is worth another try if `_id` fails.
    then_id: bool,
    hashes: Vec<u64>,
    key: Vec<u8>,
}

/// What a [`KeyChooser`] found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// This scheme.
    Scheme(KeyScheme),
    /// `_id` does not do; the file must be looked at again to know whether `id` does.
    TryId,
}

impl KeyChooser {
    /// A chooser that tries only this scheme.
    pub fn only(scheme: KeyScheme) -> KeyChooser {
        KeyChooser { trying: Some(scheme), ..KeyChooser::default() }
    }

    /// The next document.
    pub fn document(&mut self, bytes: &[u8], item: &Item) {
        let trying = *self.trying.get_or_insert_with(|| {
            self.then_id = item.underscore_id.is_some() && item.id.is_some();
            match (&item.underscore_id, &item.id) {
                (Some(_), _) => KeyScheme::UnderscoreId,
                (None, Some(_)) => KeyScheme::Id,
                (None, None) => KeyScheme::Ordinal,
            }
        });
        if trying == KeyScheme::Ordinal {
            return;
        }
        self.key.clear();
        if self.hashes.len() == COMPARED_MAX || !key_of(trying, bytes, item, 0, &mut self.key) {
            self.give_up();
            return;
        }
        let mut hasher = DefaultHasher::new();
        hasher.write(&self.key);
        self.hashes.push(hasher.finish());
    }

    fn give_up(&mut self) {
        self.then_id &= self.hashes.len() < COMPARED_MAX;
        self.trying = Some(KeyScheme::Ordinal);
        self.hashes = Vec::new();
    }

    /// The scheme, after the last document. Two keys with one hash count as the same: documents
    /// then go by their places, which is always right.
    pub fn finish(mut self) -> Choice {
        self.hashes.sort_unstable();
        if self.hashes.windows(2).any(|pair| pair[0] == pair[1]) {
            self.give_up();
        }
        match self.trying {
            Some(KeyScheme::Ordinal) if self.then_id => Choice::TryId,
            scheme => Choice::Scheme(scheme.unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::split::{Form, Splitter};

    fn choose(lines: &str, mut chooser: KeyChooser) -> Choice {
        let mut splitter = Splitter::new(lines.as_bytes(), Form::Lines);
        while let Some(chunk) = splitter.next_chunk().unwrap() {
            chunk.items.iter().for_each(|item| chooser.document(&chunk.bytes, item));
        }
        chooser.finish()
    }

    #[test]
    fn every_document_has_a_key_of_its_own() {
        use KeyScheme::{Id, Ordinal, UnderscoreId};
        for (lines, choice) in [
            ("{\"_id\":1}\n{\"_id\":2}", Choice::Scheme(UnderscoreId)),
            ("{\"_id\":1}\n{\"_id\":\"1\"}", Choice::Scheme(Ordinal)),
            ("{\"_id\":\"A\"}\n{\"_id\":\"\\u0041\"}", Choice::Scheme(Ordinal)),
            ("{\"_id\":1,\"id\":1}\n{\"_id\":1,\"id\":2}", Choice::TryId),
            ("{\"_id\":1,\"id\":1}\n{\"id\":2}", Choice::TryId),
            ("{\"id\":1}\n{\"id\":1.0}", Choice::Scheme(Id)),
            ("{\"id\":1}\n7", Choice::Scheme(Ordinal)),
            ("{\"id\":\"\\ud800\"}", Choice::Scheme(Ordinal)),
            ("{\"_id\":{\"$oid\":\"1\"}}", Choice::Scheme(Ordinal)),
            ("", Choice::Scheme(Ordinal)),
        ] {
            assert_eq!(choose(lines, KeyChooser::default()), choice, "{lines}");
        }
        let lines = "{\"_id\":1,\"id\":1}\n{\"_id\":1,\"id\":2}";
        assert_eq!(choose(lines, KeyChooser::only(Id)), Choice::Scheme(Id));
    }
}
