//! Names of files for keys and collections, and back.
//!
//! Data from another folder keeps its names (`verbatim`), after a check that they can do no harm.
//! Keys of other engines are encoded so that no two give the same file on any file system.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};

/// The marker at the root of a folder that Rewound wrote.
pub(crate) const MARKER: &str = "rewound.json";
/// What the folder of a document's attachments is called, after the document's stem.
pub(crate) const ATTACHMENTS: &str = ".attachments";
/// Lines of {file, key} for keys that are too long for a file name.
pub(crate) const NAMES_FILE: &str = ".rewound-names.jsonl";
/// The longest encoded name; leaves room for endings within the 255 bytes of most file systems.
const ENCODED_MAX: usize = 200;
/// The longest name of a file on most file systems.
const NAME_MAX: usize = 255;

/// The bytes of a name, as the operating system has them.
pub(crate) fn bytes_of(name: &OsStr) -> &[u8] {
    name.as_encoded_bytes()
}

/// The operating system's form of a name, if it has one.
#[cfg(unix)]
pub(crate) fn os_name(name: &[u8]) -> Option<Cow<'_, OsStr>> {
    Some(Cow::Borrowed(<OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name)))
}

/// The operating system's form of a name, if it has one.
#[cfg(not(unix))]
pub(crate) fn os_name(name: &[u8]) -> Option<Cow<'_, OsStr>> {
    std::str::from_utf8(name).ok().map(|name| Cow::Owned(OsString::from(name)))
}

/// A name followed by an ending.
pub(crate) fn with_ending(name: &[u8], ending: &str) -> Option<OsString> {
    let mut all = os_name(name)?.into_owned();
    all.push(ending);
    Some(all)
}

/// A name as people can read it on one line.
pub(crate) fn show(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    match text.chars().any(char::is_control) {
        true => text.escape_debug().to_string(),
        false => text.into_owned(),
    }
}

/// Whether a name would do no harm as it is: it stays in its folder, is not hidden, and is none
/// of ours. `ending` is what will be put after it. Says what is wrong otherwise.
pub(crate) fn check_verbatim(name: &[u8], ending: usize) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("it is empty");
    }
    if name[0] == b'.' {
        return Err("it begins with a dot");
    }
    if name.contains(&b'/') || name.contains(&0) {
        return Err("it contains a slash or a zero byte");
    }
    if name.len() + ending > NAME_MAX {
        return Err("it is too long for a file name");
    }
    if cfg!(windows)
        && (is_device(name)
            || (ending == 0 && name.ends_with(b".") || name.ends_with(b" "))
            || name.iter().any(|b| *b < b' ' || b"\\:*?\"<>|".contains(b)))
    {
        return Err("Windows does not allow it");
    }
    Ok(())
}

/// Whether Windows takes a name for a device, whatever its extension.
fn is_device(name: &[u8]) -> bool {
    let base = name.split(|b| *b == b'.').next().unwrap_or(name).trim_ascii_end();
    let base = base.to_ascii_lowercase();
    match base.as_slice() {
        b"con" | b"prn" | b"aux" | b"nul" => true,
        [b'c', b'o', b'm', d] | [b'l', b'p', b't', d] => d.is_ascii_digit(),
        _ => false,
    }
}

/// The name of a file for any key: readable for ordinary keys, different for different keys also
/// where the file system ignores case, and harmless everywhere.
pub(crate) fn encode(key: &[u8]) -> String {
    if key.is_empty() {
        return "%".into();
    }
    let mut name = String::with_capacity(key.len() + 24);
    let last = key.len() - 1;
    let device = is_device(key) || key.eq_ignore_ascii_case(MARKER.as_bytes());
    let attachments = (key.len() >= ATTACHMENTS.len()).then(|| key.len() - ATTACHMENTS.len());
    let attachments = attachments.filter(|at| key[*at..].eq_ignore_ascii_case(ATTACHMENTS.as_bytes()));
    for (i, byte) in key.iter().enumerate() {
        let safe = byte.is_ascii_alphanumeric() || b" ._@+=,-".contains(byte);
        let odd = (i == 0 && (device || *byte == b'.'))
            || (i == last && (*byte == b'.' || *byte == b' '))
            || attachments == Some(i);
        if safe && !odd {
            name.push(char::from(*byte));
        } else {
            // Lower-case digits: an upper-case letter means that the key has one.
            const HEX: &[u8; 16] = b"0123456789abcdef";
            name.push('%');
            name.push(char::from(HEX[usize::from(byte >> 4)]));
            name.push(char::from(HEX[usize::from(byte & 15)]));
        }
        if name.len() > ENCODED_MAX {
            break;
        }
    }
    let upper = name.bytes().any(|b| b.is_ascii_uppercase());
    if name.len() + if upper { 17 } else { 0 } > ENCODED_MAX {
        name.truncate(ENCODED_MAX - 33);
        name.push('~');
        name.push_str(blake3::hash(key).to_hex().get(..32).unwrap_or_default());
    } else if upper {
        name.push('~');
        name.push_str(blake3::hash(key).to_hex().get(..16).unwrap_or_default());
    }
    name
}

/// Whether an encoded name does not tell its key, so that the key must be kept beside it.
pub(crate) fn is_shortened(name: &str) -> bool {
    name.len() == ENCODED_MAX && name.as_bytes()[ENCODED_MAX - 33] == b'~'
}

/// The key of an encoded name, if it is one; `long` are the keys kept beside shortened names.
pub(crate) fn decode<'a>(name: &[u8], long: &'a HashMap<String, Vec<u8>>) -> Option<Cow<'a, [u8]>> {
    let name = std::str::from_utf8(name).ok()?;
    if let Some(key) = long.get(name) {
        return Some(Cow::Borrowed(key));
    }
    let key = match name {
        "%" => Vec::new(),
        _ => percent_decode(name.rsplit_once('~').map_or(name, |(base, _)| base))?,
    };
    // Whoever adds files by hand need not know the rules: only what we would write is decoded.
    (encode(&key) == name).then_some(Cow::Owned(key))
}

fn percent_decode(name: &str) -> Option<Vec<u8>> {
    let mut key = Vec::with_capacity(name.len());
    let mut bytes = name.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let high = char::from(bytes.next()?).to_digit(16)?;
            let low = char::from(bytes.next()?).to_digit(16)?;
            key.push((high * 16 + low) as u8);
        } else {
            key.push(byte);
        }
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn ordinary_keys_stay_readable() {
        for (key, name) in [
            ("books-1_a@b.c", "books-1_a@b.c"),
            ("a b", "a b"),
            ("", "%"),
            ("..", "%2e%2e"),
            (".", "%2e"),
            (".git", "%2egit"),
            ("a/b", "a%2fb"),
            ("con", "%63on"),
            ("nul.txt", "%6eul.txt"),
            ("com1", "%63om1"),
            ("com10", "com10"),
            ("100%", "100%25"),
            ("é", "%c3%a9"),
            ("end.", "end%2e"),
            ("x.attachments", "x%2eattachments"),
            ("rewound.json", "%72ewound.json"),
        ] {
            assert_eq!(encode(key.as_bytes()), name);
        }
        assert!(encode(b"A").starts_with("A~"));
        assert!(is_shortened(&encode(&[b'x'; 201])) && !is_shortened(&encode(&[b'x'; 200])));
        assert!(is_shortened(&encode(&[b'X'; 184])) && !is_shortened(&encode(&[b'X'; 183])));
    }

    #[test]
    fn hard_keys_give_different_harmless_names() {
        let keys = testkit::documents::hard_keys();
        let names: HashSet<String> = keys.iter().map(|key| encode(key).to_lowercase()).collect();
        assert_eq!(names.len(), keys.len());
        for name in names {
            assert_eq!(check_verbatim(name.as_bytes(), 20), Ok(()), "{name}");
            assert!(name.len() <= ENCODED_MAX && !is_device(name.as_bytes()) && !name.ends_with(['.', ' ']));
        }
    }

    #[test]
    fn forged_names_are_refused() {
        for name in ["", ".", "..", "../../x", "/etc/passwd", "a/b", "a\0", ".rewound-names.jsonl"] {
            assert!(check_verbatim(name.as_bytes(), 5).is_err(), "{name:?}");
        }
        assert!(check_verbatim(&[b'a'; 251], 5).is_err());
        assert_eq!(check_verbatim(&[b'a'; 250], 5), Ok(()));
    }

    #[test]
    fn names_that_are_not_ours_are_not_decoded() {
        let none = HashMap::new();
        for name in ["A", "a%2F", "a%61", "a~0123456789abcdef", "%zz", "%4", "é", "end."] {
            assert_eq!(decode(name.as_bytes(), &none), None, "{name}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn decoding_gives_the_key_back(key in testkit::documents::key()) {
            let name = encode(&key);
            let mut long = HashMap::new();
            if is_shortened(&name) {
                long.insert(name.clone(), key.clone());
            }
            prop_assert_eq!(decode(name.as_bytes(), &long).unwrap().into_owned(), key);
        }

        #[test]
        fn different_keys_differ_in_more_than_case(a in testkit::documents::key(), b in testkit::documents::key()) {
            if a != b {
                prop_assert_ne!(encode(&a).to_lowercase(), encode(&b).to_lowercase());
            }
        }

        #[test]
        fn case_alone_is_told_apart(key in "[a-cA-C]{1,4}") {
            let (low, up) = (key.to_lowercase(), key.to_uppercase());
            prop_assert_ne!(encode(low.as_bytes()).to_lowercase(), encode(up.as_bytes()).to_lowercase());
            if low != key {
                prop_assert_ne!(encode(low.as_bytes()).to_lowercase(), encode(key.as_bytes()).to_lowercase());
            }
        }
    }
}
