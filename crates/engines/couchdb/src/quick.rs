//! Answers about many documents as CouchDB itself spells them, understood byte by byte: most of what a
//! backup reads is this. Whatever is spelled otherwise is left to [`crate::answer`], and so is what is wrong.

use crate::answer::{Found, Spot};
use crate::leaf::{generation, is_servers};

/// How deep values may lie in one another here.
const DEPTH: u32 = 64;

/// Finds all leaves in an answer, each with its document's number; `None` if it is not spelled as CouchDB does,
/// or anything is wrong with it.
pub(crate) fn read(found: &mut Found<'_>) -> Option<()> {
    let text = Text { bytes: found.text.as_bytes() };
    let mut at = text.past(0, b"{\"results\":[")?;
    if text.byte(at) == b']' {
        at += 1;
    } else {
        loop {
            let (id, next) = text.name(text.past(at, b"{\"id\":")?)?;
            let number = found.number(found.text.get(id)?)?;
            at = text.past(next, b",\"docs\":[")?;
            loop {
                at = text.leaf(text.past(at, b"{\"ok\":")?, number, found)?;
                at = text.past(at, b"}")?;
                match text.byte(at) {
                    b',' => at += 1,
                    _ => break,
                }
            }
            at = text.past(at, b"]}")?;
            match text.byte(at) {
                b',' => at += 1,
                _ => break,
            }
        }
        at = text.past(at, b"]")?;
    }
    at = text.past(at, b"}")?;
    text.bytes[at..].iter().all(u8::is_ascii_whitespace).then_some(())
}

/// JSON without a space between its tokens. Each function says where what stands at a place ends.
struct Text<'a> {
    bytes: &'a [u8],
}

impl Text<'_> {
    /// The byte at a place; one that no JSON has behind the end.
    fn byte(&self, at: usize) -> u8 {
        self.bytes.get(at).copied().unwrap_or(0)
    }

    fn past(&self, at: usize, piece: &[u8]) -> Option<usize> {
        self.bytes.get(at..)?.starts_with(piece).then(|| at + piece.len())
    }

    /// A leaf; it is plain if its members are in our order, without attachments.
    fn leaf(&self, start: usize, number: usize, found: &mut Found<'_>) -> Option<usize> {
        let (id, next) = self.name(self.past(start, b"{\"_id\":")?)?;
        let (rev, mut at) = self.name(self.past(next, b",\"_rev\":")?)?;
        let mut is_plain = found.text.get(id)? == found.rows[number].id;
        generation(found.text.get(rev)?)?;
        let (mut is_deleted, mut has_history) = (false, false);
        while self.byte(at) == b',' {
            let (name, value) = self.name(at + 1)?;
            let name = found.text.get(name)?;
            at = self.value(self.past(value, b":")?, DEPTH)?;
            match name {
                // The history is the last one, and this the one before.
                _ if has_history => is_plain = false,
                "_revisions" => has_history = true,
                "_deleted" => {
                    is_plain &= !is_deleted && &self.bytes[value + 1..at] == b"true";
                    is_deleted = true;
                }
                name => is_plain &= !is_deleted && !is_servers(name),
            }
        }
        let end = self.past(at, b"}")?;
        found.leaves.push((number, Spot { start, end, is_plain: is_plain && has_history }));
        Some(end)
    }

    /// A string without escapes: where its text is, and where it ends.
    fn name(&self, at: usize) -> Option<(std::ops::Range<usize>, usize)> {
        let start = self.past(at, b"\"")?;
        let end = self.plain_text(start);
        Some((start..end, self.past(end, b"\"")?))
    }

    fn value(&self, at: usize, depth: u32) -> Option<usize> {
        match self.byte(at) {
            b'"' => self.string(at),
            b'{' => self.many(at, b'}', depth, |at| self.value(self.past(self.string(at)?, b":")?, depth - 1)),
            b'[' => self.many(at, b']', depth, |at| self.value(at, depth - 1)),
            b't' => self.past(at, b"true"),
            b'f' => self.past(at, b"false"),
            b'n' => self.past(at, b"null"),
            _ => self.number(at),
        }
    }

    /// The members of an object or a list.
    fn many(&self, at: usize, last: u8, depth: u32, one: impl Fn(usize) -> Option<usize>) -> Option<usize> {
        if self.byte(at + 1) == last {
            return Some(at + 2);
        }
        if depth == 0 {
            return None;
        }
        let mut at = one(at + 1)?;
        while self.byte(at) == b',' {
            at = one(at + 1)?;
        }
        (self.byte(at) == last).then_some(at + 1)
    }

    fn string(&self, at: usize) -> Option<usize> {
        let mut at = self.plain_text(self.past(at, b"\"")?);
        while self.byte(at) == b'\\' {
            at = match self.byte(at + 1) {
                b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => at + 2,
                b'u' => {
                    let code = self.bytes.get(at + 2..at + 6)?;
                    code.iter().all(u8::is_ascii_hexdigit).then_some(at + 6)?
                }
                _ => return None,
            };
            at = self.plain_text(at);
        }
        self.past(at, b"\"")
    }

    /// Where a text ends, or is more than itself.
    fn plain_text(&self, mut at: usize) -> usize {
        let is_end = |b: u8| b == b'"' || b == b'\\' || b < b' ';
        // All at once, so that the processor takes them at once as well.
        while let Some(some) = self.bytes.get(at..).and_then(<[u8]>::first_chunk::<16>) {
            if some.iter().fold(false, |any, b| any | is_end(*b)) {
                break;
            }
            at += some.len();
        }
        at + self.bytes.get(at..).map_or(0, |rest| rest.iter().position(|b| is_end(*b)).unwrap_or(rest.len()))
    }

    fn number(&self, at: usize) -> Option<usize> {
        let whole = if self.byte(at) == b'-' { at + 1 } else { at };
        let mut at = match self.byte(whole) {
            b'0' => whole + 1,
            _ => self.digits(whole)?,
        };
        if self.byte(at) == b'.' {
            at = self.digits(at + 1)?;
        }
        if matches!(self.byte(at), b'e' | b'E') {
            at = self.digits(if matches!(self.byte(at + 1), b'+' | b'-') { at + 2 } else { at + 1 })?;
        }
        Some(at)
    }

    fn digits(&self, start: usize) -> Option<usize> {
        let count = self.bytes.get(start..)?.iter().take_while(|b| b.is_ascii_digit()).count();
        (count > 0).then_some(start + count)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::rows::Row;
    use proptest::prelude::*;

    fn spots(answer: &str) -> Option<Vec<(usize, Spot)>> {
        let rows = [Row { id: "a".into(), revs: vec!["1-x".into()] }, Row { id: "b".into(), revs: vec![] }];
        let mut found = Found::new(answer, &rows);
        read(&mut found).map(|()| found.leaves)
    }

    fn of(document: &str) -> String {
        format!(r#"{{"results":[{{"id":"a","docs":[{{"ok":{document}}}]}}]}}"#)
    }

    /// What CouchDB gave really is understood here: otherwise this would be of no use.
    #[test]
    fn what_couchdb_gives_is_understood() {
        let real = "{\"results\":[{\"id\":\"a\",\"docs\":[{\"ok\":{\"_id\":\"a\",\"_rev\":\"1-7\",\"n\":-1.5e+3,\"z\":0,\"o\":{\"l\":[1,\"\\u00e9\\\"\",{},[]],\"t\":true,\"f\":false,\"u\":null},\"long\":\"a text that is longer than sixteen bytes, é\",\"_revisions\":{\"start\":1,\"ids\":[\"7\"]}}}]},{\"id\":\"b\",\"docs\":[{\"ok\":{\"_id\":\"b\",\"_rev\":\"2-8\",\"_deleted\":true,\"_revisions\":{\"start\":2,\"ids\":[\"8\",\"7\"]}}},{\"ok\":{\"_id\":\"b\",\"_rev\":\"2-9\",\"_revisions\":{\"start\":2,\"ids\":[\"9\",\"7\"]},\"_attachments\":{\"f\":{\"stub\":true}}}}]}]}\n";
        let found = spots(real).unwrap();
        let plain: Vec<_> = found.iter().map(|(number, spot)| (*number, spot.is_plain)).collect();
        assert_eq!(plain, [(0, true), (1, true), (1, false)]);
        for (_, spot) in found {
            let text = &real[spot.start..spot.end];
            assert!(text.starts_with("{\"_id\"") && serde_json::from_str::<serde_json::Value>(text).is_ok(), "{text}");
        }
        assert_eq!(spots("{\"results\":[]}").unwrap(), []);
        assert_eq!(spots(&of(r#"{"_id":"a","_rev":"1-x","huge":1e901}"#)).unwrap().len(), 1);
    }

    #[test]
    fn what_is_no_json_is_not_understood() {
        let deep =
            |depth: usize| format!(r#"{{"_id":"a","_rev":"1-x","v":{}1{}}}"#, "[".repeat(depth), "]".repeat(depth));
        assert!(spots(&of(&deep(DEPTH as usize))).is_some() && spots(&of(&deep(DEPTH as usize + 1))).is_none());
        for bad in [
            "01",
            "1.",
            ".5",
            "-",
            "1e",
            "+1",
            "tru",
            "nul",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"\n\"",
            "\"",
            "[1,]",
            "[,1]",
            "{\"a\"}",
            "{\"a\":1,}",
            "{a:1}",
            "[1}",
            " 1",
            "",
        ] {
            assert!(spots(&of(&format!(r#"{{"_id":"a","_rev":"1-x","v":{bad}}}"#))).is_none(), "{bad}");
        }
        for odd in
            [r#"{"_id":"a","_rev":"x"}"#, r#"{"_id":1,"_rev":"1-x"}"#, r#"{"_rev":"1-x","_id":"a"}"#, "null", "{}"]
        {
            assert!(spots(&of(odd)).is_none(), "{odd}");
        }
    }

    proptest! {
        /// Whatever is taken here is JSON.
        #[test]
        fn what_is_understood_is_json(pieces in prop::collection::vec(prop::sample::select(vec![
            "{", "}", "[", "]", ",", ":", "\"", "\"a\"", "\"a\":", "1", "-0", "0.5", "1e9", "01", "true", "null", "\\", "\\u0041", "\u{1}", "é", " ",
            "sixteen bytes....", ",\"_deleted\":true", ",\"_revisions\":{}",
        ]), 0..9)) {
            let answer = of(&format!(r#"{{"_id":"a","_rev":"1-x","v":{}}}"#, pieces.concat()));
            if spots(&answer).is_some() {
                // As text: a number may be larger than any that a program has.
                prop_assert!(serde_json::from_str::<&serde_json::value::RawValue>(&answer).is_ok(), "{}", answer);
            }
        }
    }
}
