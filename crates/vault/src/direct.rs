//! Places of contents that name the objects themselves: the change log has no table of contents, and what
//! it tells of must be found whichever layers it is read with.

use crate::manifest::{Borrowed, ContentPart};
use model::{AttachmentRef, Error, Result};
use serde::{Deserialize, Serialize};

/// What such a place begins with.
const DIRECT: char = '@';

/// Where a content is: the objects that hold it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Direct {
    /// In objects that hold nothing else, in order.
    Parts(Vec<ContentPart>),
    /// In a pack.
    Packed(Borrowed),
}

impl Direct {
    /// Whether a place is one of these.
    pub fn is_one(place: &str) -> bool {
        place.starts_with(DIRECT)
    }

    /// Reads a place; none if it is none of these.
    pub fn read(place: &str) -> Option<Result<Direct>> {
        let json = place.strip_prefix(DIRECT)?;
        let wrong = |e| Error::corrupt("the place of an attachment in the change log cannot be read").caused_by(e);
        Some(serde_json::from_str(json).map_err(wrong))
    }

    /// The place as text.
    pub fn place(&self) -> Result<String> {
        let json = serde_json::to_string(self).map_err(|e| Error::bug("a place is no JSON").caused_by(e))?;
        Ok(format!("{DIRECT}{json}"))
    }

    /// Paths of the objects.
    pub fn objects(&self) -> impl Iterator<Item = &str> {
        let (parts, packed) = match self {
            Direct::Parts(parts) => (&parts[..], None),
            Direct::Packed(at) => (&[][..], Some(&*at.object)),
        };
        parts.iter().map(|part| &*part.object).chain(packed)
    }
}

/// Whether a place means the same whatever table of contents is at hand: the content is with it, or it
/// names objects.
pub(crate) fn stands_alone(place: &str) -> bool {
    model::is_inline(place) || Direct::is_one(place)
}

/// Whether a reference can stand in the change log.
pub(crate) fn can_be_logged(content: &AttachmentRef) -> Result<bool> {
    match content.pieces() {
        Some(pieces) => Ok(pieces?.iter().all(|piece| stands_alone(&piece.content.place))),
        None => Ok(stands_alone(&content.place)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn places_read_back() {
        let part = |n: u64| ContentPart { object: format!("parts/{n}"), size: n, raw: 2 * n };
        let packed = Borrowed { object: "segments/x".into(), size: 3, index: 9 };
        for (direct, objects) in [
            (Direct::Parts(vec![part(1), part(2)]), vec!["parts/1", "parts/2"]),
            (Direct::Packed(packed), vec!["segments/x"]),
        ] {
            let place = direct.place().unwrap();
            assert_eq!(Direct::read(&place).unwrap().unwrap(), direct);
            assert_eq!(direct.objects().collect::<Vec<_>>(), objects);
        }
        assert!(Direct::read("p3+2").is_none() && Direct::read("@{}").unwrap().is_err());
    }
}
