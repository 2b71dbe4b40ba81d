//! Answers about many documents, understood in one pass: where each leaf stands in them, and whether it
//! needs a closer look. Most do not, as CouchDB writes its own members where we have them; and most answers
//! are spelled so that [`quick`] understands them.

use crate::leaf::generation;
use crate::members::Text;
use crate::quick;
use crate::rows::Row;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::fmt;

/// A leaf in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spot {
    pub start: usize,
    pub end: usize,
    /// Whether it is in our order of members, without attachments, and says that it is the document that
    /// was asked for.
    pub is_plain: bool,
}

/// Understands the answer of `_bulk_get` about these documents: for each leaf, the document's number.
pub(crate) fn read(bytes: &[u8], rows: &[Row]) -> serde_json::Result<Vec<(usize, Spot)>> {
    let text = std::str::from_utf8(bytes).map_err(serde_json::Error::custom)?;
    let mut found = Found::new(text, rows);
    if quick::read(&mut found).is_some() {
        return Ok(found.leaves);
    }
    any_spelling(text, rows)
}

/// Reads the answer of `_bulk_get` about documents with these ids, first as [`quick`] does, if it does, then in
/// any spelling: for tools and tests that have nothing but the bytes. Of each leaf the document's number,
/// where its text is, and whether that is its body as it is. Never panics, whatever the bytes.
pub fn leaves_in_answer(answer: &str, ids: &[&str]) -> (Option<Vec<LeafSpot>>, Option<Vec<LeafSpot>>) {
    let rows: Vec<Row> = ids.iter().map(|id| Row { id: (*id).to_owned(), revs: Vec::new() }).collect();
    let shown = |leaves: Vec<(usize, Spot)>| leaves.into_iter().map(|(n, s)| (n, s.start..s.end, s.is_plain)).collect();
    let mut found = Found::new(answer, &rows);
    let quick = quick::read(&mut found).map(|()| shown(found.leaves));
    (quick, any_spelling(answer, &rows).ok().map(shown))
}

/// The number of the document that a leaf belongs to, where its text is, and whether it needs no closer look.
pub type LeafSpot = (usize, std::ops::Range<usize>, bool);

/// The same, however it is spelled.
fn any_spelling(text: &str, rows: &[Row]) -> serde_json::Result<Vec<(usize, Spot)>> {
    let mut found = Found::new(text, rows);
    let mut deserializer = serde_json::Deserializer::from_str(text);
    Object("results", &mut found).deserialize(&mut deserializer)?;
    deserializer.end()?;
    if found.lost { slowly(text, found) } else { Ok(found.leaves) }
}

/// The same in two passes, whatever the members and their order.
fn slowly(text: &str, mut found: Found<'_>) -> serde_json::Result<Vec<(usize, Spot)>> {
    (found.at, found.leaves) = (0, Vec::new());
    let answer: Answer<'_> = serde_json::from_str(text)?;
    for one in answer.results {
        let Some(number) = found.number(&one.id.0) else { continue };
        for ok in one.docs.iter().filter_map(|d| d.ok) {
            let (start, end) = place(text.as_bytes(), ok.get());
            found.leaves.push((number, Spot { start, end, is_plain: false }));
        }
    }
    Ok(found.leaves)
}

/// The leaves of one document in an answer of `open_revs`, or of `_bulk_get`.
pub(crate) fn one(bytes: &[u8]) -> serde_json::Result<Vec<(usize, usize)>> {
    let revs: Vec<OneRev<'_>> = match bytes.first() {
        Some(b'{') => serde_json::from_slice::<Answer<'_>>(bytes)?.results.into_iter().flat_map(|r| r.docs).collect(),
        _ => serde_json::from_slice(bytes)?,
    };
    Ok(revs.iter().filter_map(|d| d.ok).map(|ok| place(bytes, ok.get())).collect())
}

/// Where a piece of a text stands in it.
fn place(whole: &[u8], piece: &str) -> (usize, usize) {
    let start = piece.as_ptr() as usize - whole.as_ptr() as usize;
    (start, start + piece.len())
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    results: Vec<OneId<'a>>,
}

#[derive(Deserialize)]
struct OneId<'a> {
    #[serde(borrow)]
    id: Text<'a>,
    #[serde(borrow)]
    docs: Vec<OneRev<'a>>,
}

#[derive(Deserialize)]
struct OneRev<'a> {
    #[serde(borrow, default)]
    ok: Option<&'a RawValue>,
}

/// What was found so far.
pub(crate) struct Found<'a> {
    pub text: &'a str,
    pub rows: &'a [Row],
    at: usize,
    numbers: Option<HashMap<&'a str, usize>>,
    pub leaves: Vec<(usize, Spot)>,
    /// Whether one pass is not enough.
    lost: bool,
}

impl<'a> Found<'a> {
    pub fn new(text: &'a str, rows: &'a [Row]) -> Found<'a> {
        Found { text, rows, at: 0, numbers: None, leaves: Vec::with_capacity(rows.len()), lost: false }
    }

    /// The number of the row that an answer belongs to. Answers come in the order of the questions; if not,
    /// they are looked up.
    pub fn number(&mut self, id: &str) -> Option<usize> {
        let has_all = |found: &Self| {
            let so_far = found.leaves.iter().rev().take_while(|(number, _)| *number == found.at).count();
            so_far >= found.rows[found.at].revs.len()
        };
        while self.at < self.rows.len() && self.rows[self.at].id != id && has_all(self) {
            self.at += 1;
        }
        if self.rows.get(self.at).is_some_and(|row| row.id == id) {
            return Some(self.at);
        }
        let rows = self.rows;
        let numbers = self.numbers.get_or_insert_with(|| rows.iter().enumerate().map(|(i, r)| (&*r.id, i)).collect());
        numbers.get(id).copied()
    }

    /// A leaf whose first member's name and whose last value stand here in the text.
    fn leaf(&mut self, number: usize, first: usize, last: usize, is_plain: bool) {
        let bytes = self.text.as_bytes();
        let start = bytes[..first].iter().rposition(|b| *b == b'{');
        let end = bytes[last..].iter().position(|b| *b == b'}').map(|at| last + at + 1);
        match (start, end) {
            (Some(start), Some(end)) => self.leaves.push((number, Spot { start, end, is_plain })),
            _ => self.lost = true,
        }
    }
}

/// An object of which one member matters: that with the results.
struct Object<'f, 'a>(&'static str, &'f mut Found<'a>);

impl<'de: 'a, 'a> DeserializeSeed<'de> for Object<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de: 'a, 'a> Visitor<'de> for Object<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an answer")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut is_there = false;
        while let Some(Text(name)) = map.next_key::<Text<'de>>()? {
            if name == self.0 {
                is_there = true;
                map.next_value_seed(Results(self.1))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        if is_there { Ok(()) } else { Err(A::Error::missing_field(self.0)) }
    }
}

struct Results<'f, 'a>(&'f mut Found<'a>);

impl<'de: 'a, 'a> DeserializeSeed<'de> for Results<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de: 'a, 'a> Visitor<'de> for Results<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of results")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(OfOneId(self.0))?.is_some() {}
        Ok(())
    }
}

/// What is told of one document.
struct OfOneId<'f, 'a>(&'f mut Found<'a>);

impl<'de: 'a, 'a> DeserializeSeed<'de> for OfOneId<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de: 'a, 'a> Visitor<'de> for OfOneId<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the revisions of a document")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (mut number, mut has_id, mut has_docs) = (None, false, false);
        while let Some(Text(name)) = map.next_key::<Text<'de>>()? {
            match &*name {
                "id" => {
                    number = self.0.number(&map.next_value::<Text<'de>>()?.0);
                    has_id = true;
                }
                "docs" if has_id => {
                    has_docs = true;
                    map.next_value_seed(Docs(self.0, number))?;
                }
                name => {
                    // Whose they are comes only afterwards.
                    self.0.lost |= name == "docs";
                    has_docs |= name == "docs";
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        if has_id && has_docs { Ok(()) } else { Err(A::Error::custom("a result without id or docs")) }
    }
}

struct Docs<'f, 'a>(&'f mut Found<'a>, Option<usize>);

impl<'de: 'a, 'a> DeserializeSeed<'de> for Docs<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de: 'a, 'a> Visitor<'de> for Docs<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of revisions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(OfOneRev(self.0, self.1))?.is_some() {}
        Ok(())
    }
}

struct OfOneRev<'f, 'a>(&'f mut Found<'a>, Option<usize>);

impl<'de: 'a, 'a> DeserializeSeed<'de> for OfOneRev<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de: 'a, 'a> Visitor<'de> for OfOneRev<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a revision, or why there is none")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Text(name)) = map.next_key::<Text<'de>>()? {
            match self.1.filter(|_| name == "ok") {
                Some(number) => map.next_value_seed(Leaf(self.0, number))?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// A leaf itself.
struct Leaf<'f, 'a>(&'f mut Found<'a>, usize);

/// How far a leaf is in our order of members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Start,
    Id,
    Rev,
    Deleted,
    Revisions,
    /// It is in another order, or needs a closer look.
    Other,
}

impl<'de: 'a, 'a> DeserializeSeed<'de> for Leaf<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de: 'a, 'a> Visitor<'de> for Leaf<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a revision")
    }

    /// There may be none.
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Leaf(found, number) = self;
        let (id, base) = (&*found.rows[number].id, found.text.as_ptr() as usize);
        let (mut step, mut first, mut last) = (Step::Start, None, None);
        while let Some(Text(name)) = map.next_key::<Text<'de>>()? {
            if step == Step::Start {
                // An unescaped name stands in the text itself.
                first = matches!(name, std::borrow::Cow::Borrowed(_)).then(|| name.as_ptr() as usize - base);
            }
            // Only where the last value ends is to be known.
            if step == Step::Rev && !name.starts_with('_') {
                map.next_value::<IgnoredAny>()?;
                last = None;
                continue;
            }
            let value: &'de RawValue = map.next_value()?;
            last = Some(place(found.text.as_bytes(), value.get()).1);
            let is_text = |fits: &dyn Fn(&str) -> bool| {
                serde_json::from_str::<Text<'_>>(value.get()).is_ok_and(|text| fits(&text.0))
            };
            step = match (step, &*name) {
                (Step::Start, "_id") if is_text(&|text| text == id) => Step::Id,
                (Step::Id, "_rev") if is_text(&|text| generation(text).is_some()) => Step::Rev,
                (Step::Rev, "_deleted") if value.get() == "true" => Step::Deleted,
                (Step::Rev | Step::Deleted, "_revisions") => Step::Revisions,
                (Step::Rev, name) if !crate::leaf::is_servers(name) => Step::Rev,
                _ => Step::Other,
            };
        }
        match (first, last) {
            (Some(first), Some(last)) => found.leaf(number, first, last, step == Step::Revisions),
            _ => found.lost = true,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::leaf;
    use proptest::prelude::*;
    use std::borrow::Cow;

    fn rows(ids: &[(&str, usize)]) -> Vec<Row> {
        ids.iter().map(|(id, revs)| Row { id: (*id).into(), revs: vec!["1-x".into(); *revs] }).collect()
    }

    fn texts<'a>(answer: &'a str, found: &[(usize, Spot)]) -> Vec<(usize, &'a str, bool)> {
        found.iter().map(|(number, spot)| (*number, &answer[spot.start..spot.end], spot.is_plain)).collect()
    }

    /// All ways find the same; and what is plain needs no closer look.
    #[track_caller]
    fn check(answer: &str, rows: &[Row]) -> Vec<(usize, Spot)> {
        let quick = read(answer.as_bytes(), rows).unwrap();
        assert_eq!(quick, any_spelling(answer, rows).unwrap());
        let slow = slowly(answer, Found::new(answer, rows)).unwrap();
        let texts_only = |found: &[_]| -> Vec<_> {
            texts(answer, found).into_iter().map(|(number, text, _)| (number, text.to_owned())).collect()
        };
        assert_eq!(texts_only(&quick), texts_only(&slow));
        for (number, text, is_plain) in texts(answer, &quick) {
            if is_plain {
                let leaf = leaf::Leaf::parse(text, false).unwrap();
                assert!(leaf.id == rows[number].id && leaf.attachments.is_empty());
                assert!(matches!(leaf.text, Cow::Borrowed(own) if own == text), "{text}");
            }
        }
        quick
    }

    #[test]
    fn leaves_are_found_in_answers() {
        let plain = r#"{"_id":"a","_rev":"1-x","s":"} {\"","n":[{"_id":1}],"_revisions":{"start":1,"ids":["x"]}}"#;
        let gone = r#"{"_id":"b\"","_rev":"2-y","_deleted":true,"_revisions":{"start":2,"ids":["y","x"]}}"#;
        let file =
            r#"{"_id":"c","_rev":"1-x","_revisions":{"start":1,"ids":["x"]},"_attachments":{"f":{"stub":true}}}"#;
        let odd = r#"{"_id":"d","_rev":"1-x","x":1.0}"#;
        let answer = format!(
            r#" {{"results" : [{{"id":"a","docs":[{{"ok":{plain}}}]}},
                {{"id":"b\"","docs":[ {{"ok" : {gone} }} ]}},{{"id":"c","docs":[{{"ok":{file}}},{{"error":{{"id":"c"}}}}]}},
                {{"id":"d","docs":[{{"ok":{odd}}}]}},{{"id":"none","docs":[{{"ok":{plain}}}]}},{{"id":"e","docs":[{{"error":{{}}}},{{}}]}}],"x":0}}"#
        );
        let rows = rows(&[("a", 1), ("b\"", 1), ("c", 2), ("d", 1), ("e", 1)]);
        let found = check(&answer, &rows);
        // Of the fourth it is not seen where it ends: all is read a second time.
        let expected = [(0, plain, false), (1, gone, false), (2, file, false), (3, odd, false)];
        assert_eq!(texts(&answer, &found), expected);
        let answer = format!(
            r#"{{"results":[{{"id":"b\"","docs":[{{"ok":{gone}}}]}},{{"id":"a","docs":[{{"ok":{plain}}}]}},{{"id":"c","docs":[{{"ok":{file}}}]}},{{"id":"d","docs":[{{"ok":{plain}}}]}}]}}"#
        );
        let found = check(&answer, &rows);
        let expected = [(1, gone, true), (0, plain, true), (2, file, false), (3, plain, false)];
        assert_eq!(texts(&answer, &found), expected, "in any order, and what says that it is another is seen");
    }

    #[test]
    fn what_is_cut_off_or_garbled_is_refused() {
        let answer = r#"{"results":[{"id":"a","docs":[{"ok":{"_id":"a","_rev":"1-x","v":"é","_revisions":{"start":1,"ids":["x"]}}}]}]}"#;
        let rows = rows(&[("a", 1)]);
        assert_eq!(check(answer, &rows).len(), 1);
        for at in 0..answer.len() {
            assert!(read(&answer.as_bytes()[..at], &rows).is_err(), "{at}");
            let mut garbled = answer.as_bytes().to_vec();
            garbled[at] ^= 0x80;
            assert!(read(&garbled, &rows).is_err(), "{at}");
        }
        assert!(read(b"{}", &rows).is_err() && read(b"[]", &rows).is_err());
    }

    proptest! {
        /// Members in any order and number, names that need escapes, values that look like more.
        #[test]
        fn all_ways_find_the_same(members in prop::collection::vec(
            (prop::sample::select(vec!["_id", "_rev", "_deleted", "_revisions", "_attachments", "v", "\"}", "_x", ""]),
             prop::sample::select(vec!["\"a\"", "\"1-x\"", "true", "{}", "[{\"}\":1}]", "1.0", "\"}{\"", "null"])), 0..7),
            space in prop::sample::select(vec!["", " ", "\n "])) {
            let members: Vec<_> = members.iter().map(|(name, value)| {
                format!("{space}{}{space}:{space}{value}{space}", serde_json::to_string(name).unwrap())
            }).collect();
            let answer = format!(r#"{{"results":[{{"id":"a","docs":[{{"ok":{space}{{{}}}}}]}}]}}"#, members.join(","));
            prop_assert_eq!(check(&answer, &rows(&[("a", 1)])).len(), 1);
        }
    }
}
