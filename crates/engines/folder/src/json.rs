//! Finding where JSON values end, and what is wrong with those that are not JSON.
//!
//! Nothing is decoded: numbers, key order, duplicate keys, escapes and spaces stay as they are.
//! Pure functions, so that they can be fuzzed as they stand.

use std::fmt;
use std::ops::Range;

/// How deep arrays and objects may be nested; what is deeper breaks most other programs.
pub const MAX_DEPTH: usize = 512;

/// What is wrong with a text, and on which line, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bad {
    /// The line.
    pub line: u64,
    /// What is wrong there.
    pub what: &'static str,
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

/// Why a scan ended before the end of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The bytes end inside the value.
    Incomplete,
    /// The bytes from here on are no JSON.
    Bad {
        /// Offset of the first wrong byte.
        at: usize,
        /// What is wrong there.
        what: &'static str,
    },
}

/// Where a value ends, and the texts of its members `_id` and `id` if it is an object that has
/// them as strings or numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scanned {
    /// One past the last byte.
    pub end: usize,
    /// The value of the first top-level `_id`, quotes included.
    pub underscore_id: Option<Range<usize>>,
    /// The value of the first top-level `id`, quotes included.
    pub id: Option<Range<usize>>,
}

/// What JSON calls white space.
pub fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// The offset of the first byte from `at` on that is not white space.
pub fn skip_space(bytes: &[u8], mut at: usize) -> usize {
    while at < bytes.len() && is_space(bytes[at]) {
        at += 1;
    }
    at
}

/// Checks that `bytes` are one JSON value, with white space around it at most.
pub fn validate_json(bytes: &[u8]) -> Result<(), Bad> {
    let bad = |at: usize, what| Err(Bad { line: line_of(bytes, at), what });
    let start = skip_space(bytes, 0);
    match scan(&bytes[start..]) {
        Ok(value) => match skip_space(bytes, start + value.end) {
            end if end == bytes.len() => Ok(()),
            end => bad(end, "text after the end of the document"),
        },
        Err(Stop::Incomplete) if start == bytes.len() => bad(start, "there is no document"),
        Err(Stop::Incomplete) => bad(bytes.len(), "the document is cut off: its end is missing"),
        Err(Stop::Bad { at, what }) => bad(start + at, what),
    }
}

/// The line, counted from 1, of the byte at `at`.
pub(crate) fn line_of(bytes: &[u8], at: usize) -> u64 {
    1 + memchr::memchr_iter(b'\n', &bytes[..at.min(bytes.len())]).count() as u64
}

/// Scans the JSON value that starts with the first byte. A number that reaches the end of the
/// bytes counts as complete: the caller knows whether more could follow.
pub fn scan(bytes: &[u8]) -> Result<Scanned, Stop> {
    let result = scan_structure(bytes);
    // The structure is found without looking at bytes above 127; whether they are UTF-8 is asked
    // once for the whole value, which the standard library does many bytes at a time.
    let seen = match &result {
        Ok(value) => value.end,
        Err(Stop::Incomplete) => return result,
        Err(Stop::Bad { at, .. }) => *at,
    };
    match std::str::from_utf8(&bytes[..seen]) {
        Ok(_) => result,
        // A sequence cut by an error that comes later is that error's.
        Err(e) if e.error_len().is_none() && result.is_err() => result,
        Err(e) => Err(Stop::Bad { at: e.valid_up_to(), what: "invalid UTF-8" }),
    }
}

/// Kinds of the open brackets, as bits: set for an object.
#[derive(Default)]
struct Brackets {
    objects: [u64; MAX_DEPTH / 64],
    depth: usize,
}

impl Brackets {
    fn open(&mut self, object: bool, at: usize) -> Result<(), Stop> {
        if self.depth == MAX_DEPTH {
            return Err(Stop::Bad { at, what: "arrays and objects are nested more than 512 deep" });
        }
        let (word, bit) = (self.depth / 64, 1 << (self.depth % 64));
        if object {
            self.objects[word] |= bit;
        } else {
            self.objects[word] &= !bit;
        }
        self.depth += 1;
        Ok(())
    }

    fn in_object(&self) -> bool {
        let top = self.depth - 1;
        self.objects[top / 64] & (1 << (top % 64)) != 0
    }
}

/// Which id the value to come is.
#[derive(Clone, Copy)]
enum Slot {
    None,
    UnderscoreId,
    Id,
}

fn scan_structure(bytes: &[u8]) -> Result<Scanned, Stop> {
    let mut found = Scanned::default();
    let mut open = Brackets::default();
    let mut slot = Slot::None;
    let mut at = 0;
    'value: loop {
        let start = at;
        match byte(bytes, at)? {
            b'{' => {
                open.open(true, at)?;
                at = skip_space(bytes, at + 1);
                match byte(bytes, at)? {
                    b'}' => {
                        open.depth -= 1;
                        at += 1;
                    }
                    b'"' => {
                        (at, slot) = member(bytes, at, open.depth)?;
                        continue 'value;
                    }
                    _ => return Err(Stop::Bad { at, what: "expected a name in quotes or '}'" }),
                }
            }
            b'[' => {
                open.open(false, at)?;
                slot = Slot::None;
                at = skip_space(bytes, at + 1);
                if byte(bytes, at)? != b']' {
                    continue 'value;
                }
                open.depth -= 1;
                at += 1;
            }
            b'"' => {
                at = string(bytes, at + 1)?;
                keep_id(&mut found, &mut slot, start..at);
            }
            b'-' | b'0'..=b'9' => {
                at = number(bytes, at)?;
                keep_id(&mut found, &mut slot, start..at);
            }
            b't' => at = literal(bytes, at, b"true")?,
            b'f' => at = literal(bytes, at, b"false")?,
            b'n' => at = literal(bytes, at, b"null")?,
            other => return Err(Stop::Bad { at, what: no_value(bytes, at, other) }),
        }
        slot = Slot::None;
        loop {
            if open.depth == 0 {
                found.end = at;
                return Ok(found);
            }
            at = skip_space(bytes, at);
            match (byte(bytes, at)?, open.in_object()) {
                (b',', true) => {
                    at = skip_space(bytes, at + 1);
                    if byte(bytes, at)? != b'"' {
                        return Err(Stop::Bad { at, what: "expected a name in quotes" });
                    }
                    (at, slot) = member(bytes, at, open.depth)?;
                    continue 'value;
                }
                (b',', false) => {
                    at = skip_space(bytes, at + 1);
                    continue 'value;
                }
                (b'}', true) | (b']', false) => {
                    open.depth -= 1;
                    at += 1;
                }
                (_, true) => return Err(Stop::Bad { at, what: "expected ',' or '}'" }),
                (_, false) => return Err(Stop::Bad { at, what: "expected ',' or ']'" }),
            }
        }
    }
}

fn byte(bytes: &[u8], at: usize) -> Result<u8, Stop> {
    bytes.get(at).copied().ok_or(Stop::Incomplete)
}

fn no_value(bytes: &[u8], at: usize, first: u8) -> &'static str {
    match first {
        0xEF if bytes[at..].starts_with(b"\xEF\xBB\xBF") => "a byte order mark (BOM), which JSON does not allow",
        0xFE | 0xFF => "this is not UTF-8 (UTF-16?)",
        0x80.. => "invalid UTF-8, or text outside quotes",
        _ => "expected a value",
    }
}

fn keep_id(found: &mut Scanned, slot: &mut Slot, value: Range<usize>) {
    match slot {
        Slot::None => {}
        Slot::UnderscoreId => drop(found.underscore_id.get_or_insert(value)),
        Slot::Id => drop(found.id.get_or_insert(value)),
    }
}

/// Passes a member's name and colon: the offset of its value, and whether it is an id.
fn member(bytes: &[u8], at: usize, depth: usize) -> Result<(usize, Slot), Stop> {
    let end = string(bytes, at + 1)?;
    let slot = match &bytes[at..end] {
        b"\"_id\"" if depth == 1 => Slot::UnderscoreId,
        b"\"id\"" if depth == 1 => Slot::Id,
        _ => Slot::None,
    };
    let at = skip_space(bytes, end);
    if byte(bytes, at)? != b':' {
        return Err(Stop::Bad { at, what: "expected ':'" });
    }
    Ok((skip_space(bytes, at + 1), slot))
}

/// The offset after the closing quote of the string whose content starts at `at`.
fn string(bytes: &[u8], mut at: usize) -> Result<usize, Stop> {
    const ONES: u64 = u64::MAX / 255;
    const HIGHS: u64 = ONES << 7;
    loop {
        // Eight bytes at a time, as long as none is a quote, a backslash or a control character.
        while let Some(Ok(chunk)) = bytes.get(at..at + 8).map(<[u8; 8]>::try_from) {
            let word = u64::from_le_bytes(chunk);
            let quote = word ^ (ONES * u64::from(b'"'));
            let slash = word ^ (ONES * u64::from(b'\\'));
            let control = word.wrapping_sub(ONES * 0x20) & !word;
            let special = ((quote.wrapping_sub(ONES) & !quote) | (slash.wrapping_sub(ONES) & !slash) | control) & HIGHS;
            if special != 0 {
                // The lowest flag is exact; higher ones may be borrows.
                at += (special.trailing_zeros() / 8) as usize;
                break;
            }
            at += 8;
        }
        match byte(bytes, at)? {
            b'"' => return Ok(at + 1),
            b'\\' => at = escape(bytes, at)?,
            0..=0x1F => return Err(Stop::Bad { at, what: "a control character inside quotes" }),
            _ => at += 1,
        }
    }
}

fn escape(bytes: &[u8], at: usize) -> Result<usize, Stop> {
    match byte(bytes, at + 1)? {
        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Ok(at + 2),
        b'u' => {
            for i in at + 2..at + 6 {
                if !byte(bytes, i)?.is_ascii_hexdigit() {
                    return Err(Stop::Bad { at: i, what: "expected four hexadecimal digits after \\u" });
                }
            }
            Ok(at + 6)
        }
        _ => Err(Stop::Bad { at, what: "an escape that JSON does not know" }),
    }
}

fn number(bytes: &[u8], mut at: usize) -> Result<usize, Stop> {
    if bytes[at] == b'-' {
        at += 1;
    }
    at = match byte(bytes, at)? {
        b'0' => at + 1,
        b'1'..=b'9' => digits(bytes, at),
        _ => return Err(Stop::Bad { at, what: "expected a digit" }),
    };
    if bytes.get(at) == Some(&b'.') {
        at = some_digits(bytes, at + 1)?;
    }
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        at += 1;
        if matches!(byte(bytes, at)?, b'+' | b'-') {
            at += 1;
        }
        at = some_digits(bytes, at)?;
    }
    match bytes.get(at) {
        Some(b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'.' | b'+' | b'-') => {
            Err(Stop::Bad { at, what: "a number that JSON does not allow" })
        }
        _ => Ok(at),
    }
}

fn digits(bytes: &[u8], mut at: usize) -> usize {
    while bytes.get(at).is_some_and(u8::is_ascii_digit) {
        at += 1;
    }
    at
}

fn some_digits(bytes: &[u8], at: usize) -> Result<usize, Stop> {
    byte(bytes, at)?;
    match digits(bytes, at) {
        end if end == at => Err(Stop::Bad { at, what: "expected a digit" }),
        end => Ok(end),
    }
}

fn literal(bytes: &[u8], at: usize, word: &[u8]) -> Result<usize, Stop> {
    let rest = &bytes[at..];
    if rest.starts_with(word) {
        Ok(at + word.len())
    } else if word.starts_with(rest) {
        Err(Stop::Incomplete)
    } else {
        Err(Stop::Bad { at, what: "expected a value" })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn bad(text: &[u8]) -> String {
        validate_json(text).unwrap_err().to_string()
    }

    #[test]
    fn hard_documents_are_taken() {
        for text in testkit::documents::hard_documents() {
            assert_eq!(validate_json(&text), Ok(()), "{}", String::from_utf8_lossy(&text));
        }
        let deep = ["[".repeat(512), "]".repeat(512)].concat();
        assert_eq!(validate_json(deep.as_bytes()), Ok(()));
    }

    #[test]
    fn what_is_wrong_and_where() {
        assert_eq!(bad(b""), "line 1: there is no document");
        assert_eq!(bad(b"\n\n"), "line 3: there is no document");
        assert_eq!(bad(b"{\n\"a\": 1,\n\"b\" 2}"), "line 3: expected ':'");
        assert_eq!(bad(b"{\n\"a\": 1,\n}"), "line 3: expected a name in quotes");
        assert_eq!(bad(b"[1,\n2 3]"), "line 2: expected ',' or ']'");
        assert_eq!(bad(b"[1,]"), "line 1: expected a value");
        assert_eq!(bad(b"{\"a\":1]"), "line 1: expected ',' or '}'");
        assert_eq!(bad(b"\xEF\xBB\xBF{}"), "line 1: a byte order mark (BOM), which JSON does not allow");
        assert_eq!(bad(b"{\"a\":\n\"\xFF\"}"), "line 2: invalid UTF-8");
        assert_eq!(bad(b"{\"a\":\n\"\xC3\"}"), "line 2: invalid UTF-8");
        assert_eq!(bad(b"\"a\tb\""), "line 1: a control character inside quotes");
        assert_eq!(bad(b"{} {}"), "line 1: text after the end of the document");
        assert_eq!(bad(b"{\"a\": [1, 2"), "line 1: the document is cut off: its end is missing");
        for number in ["01", "1.", "1e", ".5", "+1", "-", "1.e5", "0x1", "1e+", "--1", "NaN", "tru", "nul1"] {
            assert!(validate_json(number.as_bytes()).is_err(), "{number}");
        }
        let deep = "[".repeat(513);
        assert_eq!(bad(deep.as_bytes()), "line 1: arrays and objects are nested more than 512 deep");
    }

    #[test]
    fn ids_of_the_top_level_only() {
        let text = br#"{"x":{"_id":1},"_id" : "a\"b", "id":-1.0e5,"_id":2,"y":[{"id":3}]}"#;
        let found = scan(text).unwrap();
        assert_eq!(&text[found.underscore_id.unwrap()], br#""a\"b""#);
        assert_eq!(&text[found.id.unwrap()], b"-1.0e5");
        assert_eq!(scan(br#"{"_id":{"_id":1}}"#).unwrap().underscore_id, None);
        assert_eq!(scan(br#"[{"_id":1}]"#).unwrap().underscore_id, None);
    }

    fn serde_takes(bytes: &[u8]) -> bool {
        let mut reader = serde_json::Deserializer::from_slice(bytes);
        <&serde_json::value::RawValue as serde::Deserialize>::deserialize(&mut reader).is_ok() && reader.end().is_ok()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Texts of JSON's own alphabet, mostly broken.
        #[test]
        fn agrees_with_serde_json_on_noise(text in r#"[\[\]{}",:0-9eE.+\-\\utrfalsn \n]{0,12}"#) {
            prop_assert_eq!(validate_json(text.as_bytes()).is_ok(), serde_takes(text.as_bytes()), "{}", text);
        }

        /// Valid documents with one byte changed.
        #[test]
        fn agrees_with_serde_json_on_damage(
            text in testkit::documents::json_text(), at in any::<prop::sample::Index>(), byte in any::<u8>()
        ) {
            prop_assert!(validate_json(&text).is_ok());
            let mut broken = text.clone();
            let at = at.index(broken.len());
            broken[at] = byte;
            prop_assert_eq!(validate_json(&broken).is_ok(), serde_takes(&broken), "{}", String::from_utf8_lossy(&broken));
        }

        #[test]
        fn no_prefix_of_an_object_is_complete(text in testkit::documents::json_text(), cut in any::<prop::sample::Index>()) {
            let text = [b"[", &text[..], b"]"].concat();
            let cut = cut.index(text.len());
            prop_assert_eq!(scan(&text[..cut]), Err(Stop::Incomplete));
        }
    }
}
