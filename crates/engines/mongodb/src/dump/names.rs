//! Names of files in a dump, as mongo-tools 100.x make them.

use sha1::{Digest, Sha1};

/// The longest escaped name (255 bytes less `.metadata.json.gz`); longer ones are cut.
const ESCAPED_MAX: usize = 238;
/// What is kept of a longer name; `%24` and a hash of the whole follow.
const ESCAPED_KEPT: usize = 208;
/// Stands before the hash.
const CUT: &str = "%24";
/// Digits of base64 as it is used in URLs.
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The name of a collection's files, without their ending.
pub(crate) fn file_stem(collection: &str) -> String {
    let escaped = escape(collection);
    if escaped.len() <= ESCAPED_MAX {
        return escaped;
    }
    format!("{}{CUT}{}", &escaped[..ESCAPED_KEPT], base64(&Sha1::digest(collection.as_bytes())))
}

/// Whether this is the stem of a name that was cut: the whole is in the metadata only.
pub(crate) fn is_cut(stem: &str) -> bool {
    stem.len() == ESCAPED_MAX && stem.contains(CUT)
}

/// The collection that a file's stem means; none if it is malformed.
pub(crate) fn collection(stem: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(stem.len());
    let mut rest = stem.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        bytes.push(match first {
            b'+' => b' ',
            b'%' => {
                let digit = |i: usize| rest.get(i).and_then(|b| (*b as char).to_digit(16));
                let byte = (digit(0)? * 16 + digit(1)?) as u8;
                rest = &rest[2..];
                byte
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

/// As in the query of a URL: letters, digits and `-_.~` as they are, a space as `+`.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' ' => escaped.push('+'),
            b if b.is_ascii_alphanumeric() || b"-_.~".contains(&b) => escaped.push(b as char),
            b => escaped.push_str(&format!("%{b:02X}")),
        }
    }
    escaped
}

/// Without padding.
fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let byte = |i: usize| u32::from(three.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..=three.len() {
            text.push(DIGITS[(bits >> (18 - 6 * i)) as usize & 63] as char);
        }
    }
    text
}

/// Why this cannot be the name of a database; such a name is not made into a path either.
pub(crate) fn database_flaw(name: &str) -> Option<&'static str> {
    match name {
        "" => Some("a name of a database cannot be empty"),
        _ if name.contains(['/', '\\', '.', ' ', '"', '$', '\0']) => {
            Some("a name of a database cannot hold any of / \\ . \" $, a space or a zero byte")
        }
        _ if name.len() > 63 => Some("a name of a database can have 63 bytes"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn stems() {
        for (name, stem) in [
            ("plain", "plain"),
            ("with/slash", "with%2Fslash"),
            ("a b", "a+b"),
            ("a+b", "a%2Bb"),
            ("ü", "%C3%BC"),
            ("a.b-c_d~e", "a.b-c_d~e"),
            ("100%$", "100%25%24"),
        ] {
            assert_eq!(file_stem(name), stem);
            assert_eq!(collection(stem).unwrap(), name);
        }
        assert_eq!(collection("%c3%bc").unwrap(), "ü");
        for bad in ["%", "%2", "%zz", "%FF"] {
            assert_eq!(collection(bad), None, "{bad}");
        }
    }

    #[test]
    fn long_names_are_cut_and_hashed() {
        let name = "я".repeat(60);
        let stem = file_stem(&name);
        // What mongodump 100.x makes of this name.
        assert_eq!(stem, format!("{}%D1%%24Up4i4r_CNAf_GKrFKUqy_5hQeHQ", "%D1%8F".repeat(34)));
        assert!(is_cut(&stem) && !is_cut(&file_stem(&"x".repeat(238))));
        assert_ne!(stem, file_stem(&"я".repeat(61)));
    }

    #[test]
    fn base64_of_every_length() {
        // RFC 4648, section 10, and the two digits that differ in URLs.
        for (bytes, text) in [("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xFB, 0xFF]), "-_8");
    }
}
