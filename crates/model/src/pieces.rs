//! Contents in pieces: a store keeps and knows each piece by itself.
//!
//! A document may have many attachments of which one changes. Its entry has one content, so that it can be
//! written by itself; the pieces are its attachments.

use crate::{AttachmentRef, AttachmentStream, Error, Result};
use futures::{StreamExt, TryStreamExt, stream};
use std::sync::Arc;

/// What the place of a reference begins with that is made of others.
const PIECES: char = '+';

/// A piece of a content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// What the source calls it: the same name of the same key means the same content.
    pub name: String,
    /// Its content.
    pub content: AttachmentRef,
}

impl AttachmentRef {
    /// A reference to these pieces, one after the other. Its digest is that of the only piece, or the blake3
    /// hash of the digests of all.
    pub fn of_pieces(pieces: &[Piece]) -> Result<AttachmentRef> {
        let list: Vec<(&str, String, u64, &str)> = pieces
            .iter()
            .map(|Piece { name, content }| {
                let digest = blake3::Hash::from(content.digest).to_hex().to_string();
                (&**name, digest, content.length, &*content.place)
            })
            .collect();
        let json = serde_json::to_string(&list).map_err(|e| Error::bug("a list of pieces is no JSON").caused_by(e))?;
        Ok(AttachmentRef {
            digest: digest_of(pieces.iter().map(|p| &p.content.digest)),
            length: pieces.iter().map(|p| p.content.length).sum(),
            place: format!("{PIECES}{json}").into(),
        })
    }

    /// The pieces that it is made of; none if it is one content. Fails if they do not fit it.
    pub fn pieces(&self) -> Option<Result<Vec<Piece>>> {
        let json = self.place.strip_prefix(PIECES)?;
        let wrong = || Error::corrupt("the pieces of an attachment do not fit it");
        let read = || {
            let list: Vec<(String, String, u64, String)> = serde_json::from_str(json).map_err(|_| wrong())?;
            let pieces: Vec<Piece> = list
                .into_iter()
                .map(|(name, digest, length, place)| {
                    let digest = *blake3::Hash::from_hex(digest).map_err(|_| wrong())?.as_bytes();
                    if place.starts_with(PIECES) {
                        return Err(wrong());
                    }
                    Ok(Piece { name, content: AttachmentRef { digest, length, place: place.into() } })
                })
                .collect::<Result<_>>()?;
            let length = pieces.iter().try_fold(0u64, |sum, piece| sum.checked_add(piece.content.length));
            let fits =
                length == Some(self.length) && digest_of(pieces.iter().map(|p| &p.content.digest)) == self.digest;
            if fits { Ok(pieces) } else { Err(wrong()) }
        };
        Some(read())
    }

    /// The same content at other places: those of its pieces, if it is made of some.
    pub fn placed(&self, place: impl Fn(&str) -> Result<Arc<str>>) -> Result<AttachmentRef> {
        let moved = |content: &AttachmentRef| {
            Ok(AttachmentRef { place: place(&content.place)?, digest: content.digest, length: content.length })
        };
        match self.pieces() {
            Some(pieces) => {
                let moved = pieces?.into_iter().map(|p| Ok(Piece { content: moved(&p.content)?, name: p.name }));
                AttachmentRef::of_pieces(&moved.collect::<Result<Vec<_>>>()?)
            }
            None => moved(self),
        }
    }
}

/// The contents of pieces, one after the other, each opened when it is its turn.
pub fn in_turn<F>(pieces: Vec<Piece>, open: impl Fn(AttachmentRef) -> F + Send + 'static) -> AttachmentStream
where
    F: Future<Output = Result<AttachmentStream>> + Send + 'static,
{
    stream::iter(pieces).then(move |piece| open(piece.content)).try_flatten().boxed()
}

/// The digest of a content with pieces that have these.
fn digest_of<'a>(pieces: impl ExactSizeIterator<Item = &'a [u8; 32]>) -> [u8; 32] {
    let alone = pieces.len() == 1;
    let mut hasher = blake3::Hasher::new();
    for digest in pieces {
        if alone {
            return *digest;
        }
        hasher.update(digest);
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn piece(name: &str, content: &[u8], place: &str) -> Piece {
        let digest = *blake3::hash(content).as_bytes();
        Piece {
            name: name.into(),
            content: AttachmentRef { digest, length: content.len() as u64, place: place.into() },
        }
    }

    #[test]
    fn pieces_read_back() {
        let all = [piece("a \"b\"", b"one", "n1"), piece("c", b"three", "p3+2")];
        for pieces in [&all[..0], &all[..1], &all[..]] {
            let reference = AttachmentRef::of_pieces(pieces).unwrap();
            assert_eq!(reference.pieces().unwrap().unwrap(), pieces);
        }
        let one = AttachmentRef::of_pieces(&all[..1]).unwrap();
        assert_eq!((one.digest, one.length), (all[0].content.digest, 3), "one piece is that content");
        assert!(all[0].content.pieces().is_none());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let good = AttachmentRef::of_pieces(&[piece("a", b"one", "n1"), piece("b", b"two", "n2")]).unwrap();
        let swapped = AttachmentRef::of_pieces(&[piece("b", b"two", "n2"), piece("a", b"one", "n1")]).unwrap();
        let nested = AttachmentRef::of_pieces(&[Piece { name: "x".into(), content: good.clone() }]).unwrap();
        let bad = [
            AttachmentRef { length: 7, ..good.clone() },
            AttachmentRef { place: swapped.place, ..good.clone() },
            AttachmentRef { place: "+[[".into(), ..good.clone() },
            nested,
        ];
        for bad in bad {
            assert!(bad.pieces().unwrap().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn places_change_and_nothing_else() {
        let other = |place: &str| Ok(format!("4/{place}").into());
        let (a, b) = (piece("a", b"one", "n1"), piece("b", b"two", "n2"));
        let moved = AttachmentRef::of_pieces(&[a.clone(), b]).unwrap().placed(other).unwrap();
        let places: Vec<_> = moved.pieces().unwrap().unwrap().into_iter().map(|p| p.content.place).collect();
        assert_eq!(places, ["4/n1".into(), "4/n2".into()] as [Arc<str>; 2]);
        assert_eq!(&*a.content.placed(other).unwrap().place, "4/n1");
    }
}
