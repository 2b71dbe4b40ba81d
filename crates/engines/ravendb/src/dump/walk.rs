//! Finding where one JSON value ends, while its bytes are still coming.

use model::limits::DOCUMENT_MAX;
use model::{Error, Result};

/// The name of the member that tells what a document is.
const METADATA: &[u8] = b"\"@metadata\"";
/// The name of the member that tells how many raw bytes follow.
const BLOB_SIZE: &[u8] = b"\"@raven-blob-size\"";

/// The walk over one value. It remembers where it stands, so that no byte is looked at twice.
#[derive(Debug, Default)]
pub struct Walk {
    /// The first byte that was not looked at.
    at: usize,
    /// The brackets that are open.
    open: Vec<u8>,
    /// Where the string began that the walk is in.
    string: Option<usize>,
    escaped: bool,
    /// The last byte outside strings that was no space.
    last: u8,
    /// What was found.
    found: Found,
}

/// What a walk found on its way.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// One past the last byte.
    pub end: usize,
    /// One past the name `@metadata`, if the value is an object that has such a member.
    pub metadata: Option<usize>,
    /// One past the name `@raven-blob-size`, likewise.
    pub blob_size: Option<usize>,
    /// Whether it holds what JSON does not allow: a trailing comma, a control character in a string,
    /// or a line end between its tokens, which would part one line of a vault into two.
    pub is_odd: bool,
}

impl Walk {
    /// Goes on over a value that begins where `buffer` does; none if it does not end there yet.
    pub fn run(&mut self, buffer: &[u8]) -> Result<Option<Found>> {
        while self.at < buffer.len() {
            if self.at > DOCUMENT_MAX {
                return Err(too_large());
            }
            if let Some(start) = self.string {
                if !self.rest_of_string(buffer) {
                    return Ok(None);
                }
                self.name(start, &buffer[start..self.at]);
                self.string = None;
                if self.open.is_empty() {
                    return Ok(Some(Found { end: self.at, ..self.found }));
                }
                self.last = b'"';
                continue;
            }
            let byte = buffer[self.at];
            match byte {
                b'"' => {
                    self.string = Some(self.at);
                    self.at += 1;
                    continue;
                }
                b'{' | b'[' => self.open.push(byte),
                b'}' | b']' => {
                    if self.open.is_empty() {
                        // The end of what this value stands in.
                        return Ok(Some(Found { end: self.at, ..self.found }));
                    }
                    self.found.is_odd |= self.last == b',';
                    let opened = if byte == b'}' { b'{' } else { b'[' };
                    if self.open.pop() != Some(opened) {
                        return Err(Error::corrupt("brackets in the dump do not match"));
                    }
                    if self.open.is_empty() {
                        return Ok(Some(Found { end: self.at + 1, ..self.found }));
                    }
                }
                b',' if self.open.is_empty() => return Ok(Some(Found { end: self.at, ..self.found })),
                b'\n' | b'\r' | b'\t' | b' ' if self.open.is_empty() => {
                    return Ok(Some(Found { end: self.at, ..self.found }));
                }
                b'\n' | b'\r' | b'\t' => self.found.is_odd = true,
                0..0x20 => return Err(Error::corrupt(format!("a byte {byte:#04x} stands between values of the dump"))),
                _ => {}
            }
            if byte > b' ' {
                self.last = byte;
            }
            self.at += 1;
        }
        Ok(None)
    }

    /// Goes on to the end of a string; whether it was reached.
    fn rest_of_string(&mut self, buffer: &[u8]) -> bool {
        if self.at == self.string.unwrap_or(0) {
            self.at += 1;
        }
        while self.at < buffer.len() {
            if self.escaped {
                self.escaped = false;
                self.at += 1;
                continue;
            }
            let rest = &buffer[self.at..];
            let Some(n) = special(rest) else {
                self.at = buffer.len();
                return false;
            };
            self.at += n + 1;
            match rest[n] {
                b'"' => return true,
                b'\\' => self.escaped = true,
                _ => self.found.is_odd = true,
            }
        }
        false
    }

    /// Remembers where the members are that the dump's form hangs on.
    fn name(&mut self, start: usize, text: &[u8]) {
        if self.open[..] != *b"{" || self.last == b':' {
            return;
        }
        let end = start + text.len();
        match text {
            METADATA => self.found.metadata = Some(end),
            BLOB_SIZE => self.found.blob_size = Some(end),
            _ => {}
        }
    }
}

/// Where the first byte is that means something in a string: a quotation mark, a backslash or a control
/// character. Looks at eight at once, as most bytes of a dump stand in strings.
fn special(text: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const HIGH: u64 = u64::from_le_bytes([0x80; 8]);
    // The highest bit of each byte less than a limit; above the first such byte perhaps also others.
    let below = |word: u64, limit: u64| word.wrapping_sub(ONES * limit) & !word & HIGH;
    let is = |word: u64, byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    let (words, rest) = text.as_chunks::<8>();
    for (number, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let found = is(word, b'"') | is(word, b'\\') | below(word, 0x20);
        if found != 0 {
            return Some(number * 8 + found.trailing_zeros() as usize / 8);
        }
    }
    let in_rest = rest.iter().position(|b| *b == b'"' || *b == b'\\' || *b < 0x20);
    in_rest.map(|at| words.len() * 8 + at)
}

fn too_large() -> Error {
    Error::input(format!("the dump holds a value of more than {} MiB", DOCUMENT_MAX >> 20))
        .hint("such large documents are not supported; keep large content in attachments")
}

/// A value that holds what JSON does not allow, as JSON: control characters in strings escaped,
/// trailing commas and line ends between tokens left out.
pub fn as_json(odd: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(odd.len() + 16);
    let (mut in_string, mut escaped) = (false, false);
    for byte in odd {
        if in_string {
            match byte {
                0..0x20 => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
                _ => out.push(*byte),
            }
            in_string = escaped || *byte != b'"';
            escaped = !escaped && *byte == b'\\';
            continue;
        }
        match byte {
            b'\n' | b'\r' | b'\t' => continue,
            b'}' | b']' => {
                while out.last() == Some(&b' ') {
                    out.pop();
                }
                if out.last() == Some(&b',') {
                    out.pop();
                }
            }
            b'"' => in_string = true,
            _ => {}
        }
        out.push(*byte);
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Walks over a text that comes in pieces.
    fn walk(text: &[u8], piece: usize) -> Option<Found> {
        let mut walk = Walk::default();
        let mut end = 0;
        while end < text.len() {
            end = (end + piece).min(text.len());
            if let Some(found) = walk.run(&text[..end]).unwrap() {
                return Some(found);
            }
        }
        None
    }

    #[test]
    fn ends_are_found_whatever_the_pieces() {
        for (text, end, odd) in [
            (&b"{}x"[..], 2, false),
            (br#"{"a":"}\"]","b":[1,{}]} "#, 23, false),
            (br#""a\\","#, 5, false),
            (b"12,", 2, false),
            (b"null]", 4, false),
            (br#"{"a":1,}"#, 8, true),
            (b"{\"a\":\"\x01\"}", 9, true),
            (b"{\"a\":\n1}", 8, true),
        ] {
            for piece in 1..=text.len() {
                let found = walk(text, piece).unwrap();
                assert_eq!((found.end, found.is_odd), (end, odd), "{} by {piece}", String::from_utf8_lossy(text));
            }
        }
    }

    #[test]
    fn the_first_special_byte_of_a_string_is_found() {
        for (before, byte) in (0..20).flat_map(|n| (0..=255).map(move |byte| (n, byte))) {
            for filler in [0x20, b'!', b'#', b'[', b']', 0x7f, 0x80, 0xa2, 0xdc, 0xff] {
                let mut text = vec![filler; before];
                text.push(byte);
                // What comes later must not count, nor hide it.
                text.extend_from_slice(b"a\"\x01\\ b \x1f\"");
                let expected = text.iter().position(|b| matches!(b, b'"' | b'\\' | 0..0x20));
                assert_eq!(special(&text), expected, "{text:?}");
                assert_eq!(special(&text[..before]), None);
            }
        }
    }

    #[test]
    fn only_members_of_the_value_itself_count() {
        let text = br#"{"a":{"@metadata":1},"b":"@metadata","@metadata" : {"@id":"x"},"@raven-blob-size":3}"#;
        let found = walk(text, 7).unwrap();
        assert_eq!(&text[found.metadata.unwrap()..][..3], b" : ");
        assert_eq!(&text[found.blob_size.unwrap()..], b":3}");
        assert_eq!(walk(br#"["@metadata"]"#, 4).unwrap().metadata, None);
    }

    #[test]
    fn damage_is_noticed() {
        assert!(Walk::default().run(b"{]").is_err());
        assert!(Walk::default().run(b"{\x00}").is_err());
    }

    #[test]
    fn odd_values_become_json() {
        let odd = b"{\"a\":\"x\x01\\\"\n\",\"b\":[1,2, ],\n\"c\":{\"d\":\",}\",},}";
        let json = as_json(odd);
        assert_eq!(String::from_utf8_lossy(&json), "{\"a\":\"x\\u0001\\\"\\u000a\",\"b\":[1,2],\"c\":{\"d\":\",}\"}}");
        serde_json::from_slice::<serde_json::Value>(&json).unwrap();
    }
}
