//! The keys of objects of which parts are read one after the other.
//!
//! Each object of an encrypted vault has a key of its own, which stands in its head, encrypted to the recipients.
//! To decrypt that takes some 80 µs, more than many a part that is read: so the last ones are remembered.

use super::Identity;
use age::DecryptError;
use age::secrecy::ExposeSecret;
use age_core::format::{FileKey, Stanza};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Keys that are remembered.
const KEPT: usize = 64;

/// The head of an object, and its key.
type Known = (Vec<u8>, FileKey);

/// Keys of objects, found by their heads.
#[derive(Clone, Default)]
pub(super) struct FileKeys(Arc<Mutex<VecDeque<Known>>>);

impl FileKeys {
    /// What decrypts the object with this head: its key, if that is remembered, or else the identities.
    pub fn of<'a>(&'a self, head: &'a [u8], identities: &'a [Identity]) -> Remembering<'a> {
        Remembering { keys: self, head, identities }
    }

    fn known(&self, head: &[u8]) -> Option<FileKey> {
        let keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        keys.iter().find(|(known, _)| known == head).map(|(_, key)| copy(key))
    }

    fn note(&self, head: &[u8], key: &FileKey) {
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.len() >= KEPT {
            keys.pop_front();
        }
        keys.push_back((head.to_vec(), copy(key)));
    }
}

fn copy(key: &FileKey) -> FileKey {
    FileKey::new(Box::new(*key.expose_secret()))
}

/// Identities that remember the key of one object.
pub(super) struct Remembering<'a> {
    keys: &'a FileKeys,
    head: &'a [u8],
    identities: &'a [Identity],
}

impl age::Identity for Remembering<'_> {
    fn unwrap_stanza(&self, stanza: &Stanza) -> Option<Result<FileKey, DecryptError>> {
        self.unwrap_stanzas(std::slice::from_ref(stanza))
    }

    fn unwrap_stanzas(&self, stanzas: &[Stanza]) -> Option<Result<FileKey, DecryptError>> {
        // The head is authenticated with the key: a wrong one is refused.
        if let Some(key) = self.keys.known(self.head) {
            return Some(Ok(key));
        }
        let found = self.identities.iter().find_map(|identity| identity.0.unwrap_stanzas(stanzas));
        if let Some(Ok(key)) = &found {
            self.keys.note(self.head, key);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Audience, CHUNK, Cipher};
    use super::*;

    #[test]
    fn parts_of_many_objects_are_decrypted_each_with_its_own_key() {
        let (one, other) = (Identity::generate(), Identity::generate());
        let writer = Identity::generate().recipient();
        let cipher = |of: Vec<Identity>| Cipher::age(&[one.recipient()], &writer, of).unwrap();
        let (ours, strange) = (cipher(vec![other.clone(), one.clone()]), cipher(vec![other.clone()]));
        let plain = |n: usize| vec![n as u8; CHUNK as usize + n];
        let objects: Vec<_> = (0..KEPT + 9).map(|n| ours.seal(Audience::Readers, plain(n)).unwrap()).collect();
        let part = |cipher: &Cipher, n: usize, head: &[u8]| {
            let (stored, length) = (&objects[n].0, objects[n].1);
            let at = cipher.stored_range(length as u64, stored.len() as u64, 5..9);
            cipher.open_range(head, &stored[at.start as usize..at.end as usize], 5..9)
        };
        for round in 0..2 {
            for (n, (stored, head)) in objects.iter().enumerate() {
                assert_eq!(part(&ours, n, &stored[..*head]).unwrap(), [n as u8; 4], "round {round}");
                assert!(part(&strange, n, &stored[..*head]).is_err());
            }
            assert_eq!(ours.keys.0.lock().unwrap().len(), KEPT);
        }
        // What is remembered is not for a head that was changed, nor for another object's bytes.
        let (stored, head) = (&objects[KEPT + 8].0, objects[KEPT + 8].1);
        assert!(part(&ours, 0, &stored[..head]).is_err());
        for at in 0..head {
            let mut changed = stored[..head].to_vec();
            changed[at] ^= 1;
            assert!(part(&ours, KEPT + 8, &changed).is_err(), "{at}");
        }
        assert!(strange.keys.0.lock().unwrap().is_empty());
    }
}
