//! Splitting files of many documents, line by line or element by element, in bounded memory.

use crate::json::{self, Bad, Scanned, Stop, is_space, skip_space};
use bytes::{Bytes, BytesMut};
use model::limits;
use serde::{Deserialize, Serialize};
use std::io::{self, Read};
use std::ops::Range;

/// How the documents of one file are set apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// One document on each line.
    Lines,
    /// The elements of one array.
    Array,
}

/// One document of a [`Chunk`]. Offsets are those of the chunk's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Where the bytes that set it apart from the one before begin; they end where it starts.
    pub gap: usize,
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
    /// The values of its `_id` and `id`.
    pub underscore_id: Option<Range<usize>>,
    /// See `underscore_id`.
    pub id: Option<Range<usize>>,
    /// What is wrong with it. Only lines go on after a bad document.
    pub bad: Option<Bad>,
}

/// A run of documents in the buffer they were read into.
#[derive(Debug)]
pub struct Chunk {
    /// What was read; the chunks of a file together are the file.
    pub bytes: Bytes,
    /// The documents in it. A chunk without documents is the last: it holds what follows them.
    pub items: Vec<Item>,
}

/// Why a file cannot be read on.
#[derive(Debug)]
pub enum Failure {
    /// The operating system says so.
    Io(io::Error),
    /// What follows is no JSON.
    Bad(Bad),
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Self {
        Failure::Io(e)
    }
}

/// Where in the file the buffer begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    AfterDocument,
    Done,
}

/// Reads a file as [`Chunk`]s of about [`limits::BATCH`] bytes, or of one document if that is
/// larger.
pub struct Splitter<R> {
    reader: R,
    form: Form,
    buffer: BytesMut,
    eof: bool,
    state: State,
    /// The line of the first byte of the buffer, counted from 1.
    line: u64,
    /// Bytes that the buffer should hold before it is looked at again.
    want: usize,
}

/// What looking at the buffer found.
enum Found {
    Items(Vec<Item>),
    /// Nothing whole: more bytes are needed.
    More,
    /// A line longer than a document may be starts here.
    TooLong(usize),
}

/// The most that is ever in the buffer: the largest document and some white space.
const WANT_MAX: usize = limits::DOCUMENT_MAX + limits::BATCH;
const TOO_LARGE: &str = "the document is larger than 48 MiB";

impl<R: Read> Splitter<R> {
    /// Starts at the beginning of a file.
    pub fn new(reader: R, form: Form) -> Self {
        Splitter {
            reader,
            form,
            buffer: BytesMut::new(),
            eof: false,
            state: State::Start,
            line: 1,
            want: limits::BATCH,
        }
    }

    /// The reader, for asking the file about itself.
    pub fn reader(&self) -> &R {
        &self.reader
    }

    /// The next documents; none after the last.
    pub fn next_chunk(&mut self) -> Result<Option<Chunk>, Failure> {
        while self.state != State::Done {
            self.fill()?;
            let found = match self.form {
                Form::Lines => self.look_for_lines(),
                Form::Array => self.look_for_elements().map_err(Failure::Bad)?,
            };
            match found {
                Found::Items(items) => return Ok(Some(self.cut(items))),
                Found::TooLong(start) => return self.pass_long_line(start).map(Some),
                Found::More if self.eof => {
                    self.state = State::Done;
                    return Ok(Some(Chunk { bytes: self.buffer.split().freeze(), items: Vec::new() }));
                }
                Found::More if self.want == WANT_MAX => {
                    let at = skip_space(&self.buffer, 0);
                    let what = match at == self.buffer.len() {
                        true => "more than 48 MiB of white space",
                        false => TOO_LARGE,
                    };
                    return Err(Failure::Bad(self.bad(at, what)));
                }
                // Doubling: however long a document, it is looked at twice its length in all.
                Found::More => self.want = (2 * self.want).min(WANT_MAX),
            }
        }
        Ok(None)
    }

    fn fill(&mut self) -> io::Result<()> {
        while !self.eof && self.buffer.len() < self.want {
            let old = self.buffer.len();
            self.buffer.resize(self.want, 0);
            let read = self.reader.read(&mut self.buffer[old..]);
            self.buffer.truncate(old + read.as_ref().map_or(0, |n| *n));
            match read {
                Ok(0) => self.eof = true,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn cut(&mut self, items: Vec<Item>) -> Chunk {
        let end = items.last().map_or(0, |item| item.end);
        let bytes = self.buffer.split_to(end).freeze();
        self.line += memchr::memchr_iter(b'\n', &bytes).count() as u64;
        self.state = State::AfterDocument;
        self.want = limits::BATCH;
        Chunk { bytes, items }
    }

    fn bad(&self, at: usize, what: &'static str) -> Bad {
        Bad { line: self.line - 1 + json::line_of(&self.buffer, at), what }
    }

    fn look_for_lines(&self) -> Found {
        let buffer = &self.buffer[..];
        let mut items: Vec<Item> = Vec::new();
        let mut line = self.line;
        let (mut at, mut gap) = (0, 0);
        while at < buffer.len() && items.len() < limits::BATCH_DOCUMENTS {
            let end = match memchr::memchr(b'\n', &buffer[at..]) {
                Some(n) => at + n,
                None if self.eof => buffer.len(),
                None if items.is_empty() && buffer.len() - at > limits::DOCUMENT_MAX => return Found::TooLong(at),
                None => break,
            };
            let start = skip_space(&buffer[..end], at);
            if start < end {
                let mut item = one_line(&buffer[start..end], line);
                item.gap = gap;
                item.start += start;
                item.end += start;
                for id in [&mut item.underscore_id, &mut item.id].into_iter().flatten() {
                    *id = id.start + start..id.end + start;
                }
                gap = item.end;
                items.push(item);
            }
            line += 1;
            at = end + 1;
        }
        if items.is_empty() { Found::More } else { Found::Items(items) }
    }

    /// Lists a line that is too long as bad without ever holding all of it.
    fn pass_long_line(&mut self, start: usize) -> Result<Chunk, Failure> {
        let bad = self.bad(start, TOO_LARGE);
        self.buffer.truncate(start);
        let item = Item { gap: 0, start, end: start, underscore_id: None, id: None, bad: Some(bad) };
        let chunk = self.cut(vec![item]);
        while !self.eof {
            self.fill()?;
            match memchr::memchr(b'\n', &self.buffer) {
                Some(n) => {
                    drop(self.buffer.split_to(n));
                    break;
                }
                None => self.buffer.clear(),
            }
        }
        Ok(chunk)
    }

    fn look_for_elements(&self) -> Result<Found, Bad> {
        let buffer = &self.buffer[..];
        let mut items: Vec<Item> = Vec::new();
        let (mut at, mut gap) = (0, 0);
        let mut state = self.state;
        while items.len() < limits::BATCH_DOCUMENTS {
            match self.element(buffer, at, &mut state) {
                Ok(Some((start, value))) => {
                    let end = start + value.end;
                    let moved = |id: Option<Range<usize>>| id.map(|id| id.start + start..id.end + start);
                    let (underscore_id, id) = (moved(value.underscore_id), moved(value.id));
                    items.push(Item { gap, start, end, underscore_id, id, bad: None });
                    (at, gap) = (end, end);
                }
                // What stopped the search is found again when these are out.
                _ if !items.is_empty() => break,
                Ok(None) | Err(Stop::Incomplete) if !self.eof => return Ok(Found::More),
                Ok(None) => return Ok(Found::More),
                Err(Stop::Incomplete) => {
                    return Err(self.bad(buffer.len(), "the array is cut off: its end is missing"));
                }
                Err(Stop::Bad { at, what }) => return Err(self.bad(at, what)),
            }
        }
        Ok(Found::Items(items))
    }

    /// The element after `at`, or none if the array ends there. `state` says what is at `at`.
    fn element(&self, buffer: &[u8], at: usize, state: &mut State) -> Result<Option<(usize, Scanned)>, Stop> {
        let byte = |at: usize| buffer.get(at).copied().ok_or(Stop::Incomplete);
        let mut at = skip_space(buffer, at);
        let first = *state == State::Start;
        let opening = byte(at)?;
        match (opening, first) {
            (b'[', true) | (b',', false) => at = skip_space(buffer, at + 1),
            (b']', false) => return closing(buffer, at),
            (0xEF, true) if buffer.len() < at + 3 && !self.eof => return Err(Stop::Incomplete),
            (0xEF, true) => {
                let what = match json::scan(&buffer[at..]) {
                    Err(Stop::Bad { what, .. }) => what,
                    _ => "invalid UTF-8",
                };
                return Err(Stop::Bad { at, what });
            }
            (_, true) => {
                let what =
                    "expected '[': a .json file next to the collections is one collection, an array of documents";
                return Err(Stop::Bad { at, what });
            }
            (_, false) => return Err(Stop::Bad { at, what: "expected ',' or ']'" }),
        }
        if first && byte(at)? == b']' {
            return closing(buffer, at);
        }
        let value = json::scan(&buffer[at..]).map_err(|stop| match stop {
            Stop::Bad { at: inside, what } => Stop::Bad { at: at + inside, what },
            Stop::Incomplete => Stop::Incomplete,
        })?;
        // A number that reaches the end of the buffer may go on.
        if at + value.end == buffer.len() {
            return Err(Stop::Incomplete);
        }
        if value.end > limits::DOCUMENT_MAX {
            return Err(Stop::Bad { at, what: TOO_LARGE });
        }
        *state = State::AfterDocument;
        Ok(Some((at, value)))
    }
}

fn closing(buffer: &[u8], bracket: usize) -> Result<Option<(usize, Scanned)>, Stop> {
    match skip_space(buffer, bracket + 1) {
        end if end == buffer.len() => Ok(None),
        at => Err(Stop::Bad { at, what: "text after the end of the array" }),
    }
}

/// The document of a line that begins with it; offsets are those of the line.
fn one_line(text: &[u8], line: u64) -> Item {
    let mut item = Item { gap: 0, start: 0, end: text.len(), underscore_id: None, id: None, bad: None };
    let bad = |what| Some(Bad { line, what });
    match json::scan(text) {
        Ok(value) if text[value.end..].iter().all(|b| is_space(*b)) => {
            item.end = value.end;
            item.underscore_id = value.underscore_id;
            item.id = value.id;
            if value.end > limits::DOCUMENT_MAX {
                item.bad = bad(TOO_LARGE);
            }
        }
        Ok(_) => item.bad = bad("text after the document: a line holds one document"),
        Err(Stop::Incomplete) => item.bad = bad("the line ends inside the document"),
        Err(Stop::Bad { what, .. }) => item.bad = bad(what),
    }
    item
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    /// A reader that gives `step` bytes at a time.
    struct Slowly<'a>(&'a [u8], usize);

    impl Read for Slowly<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let n = self.1.min(self.0.len()).min(buf.len());
            buf[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    /// (gap, document or complaint) of all documents, then what follows them.
    fn all(text: &[u8], form: Form, step: usize) -> Result<Vec<(String, String)>, Failure> {
        let mut splitter = Splitter::new(Slowly(text, step), form);
        splitter.want = step;
        let mut out = Vec::new();
        let mut whole = Vec::new();
        while let Some(chunk) = splitter.next_chunk()? {
            splitter.want = step;
            let show = |range: Range<usize>| String::from_utf8_lossy(&chunk.bytes[range]).into_owned();
            whole.extend_from_slice(&chunk.bytes);
            if chunk.items.is_empty() {
                out.push((show(0..chunk.bytes.len()), "END".into()));
            }
            for item in &chunk.items {
                let body = item.bad.as_ref().map_or_else(|| show(item.start..item.end), Bad::to_string);
                out.push((show(item.gap..item.start), body));
            }
        }
        assert_eq!(whole, text, "the chunks together are the file");
        Ok(out)
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect()
    }

    #[test]
    fn lines() {
        let text = b"\n {\"a\":1} \r\n\r\n2\nx\n\"3\"";
        let expected = [
            ("\n ", "{\"a\":1}"),
            (" \r\n\r\n", "2"),
            ("\n", "line 5: expected a value"),
            ("\n", "\"3\""),
            ("", "END"),
        ];
        for step in [1, 2, 3, 5, 100] {
            assert_eq!(all(text, Form::Lines, step).unwrap(), pairs(&expected), "{step}");
        }
        assert_eq!(all(b"", Form::Lines, 9).unwrap(), pairs(&[("", "END")]));
        assert_eq!(all(b"\n\n", Form::Lines, 9).unwrap(), pairs(&[("\n\n", "END")]));
        let two = all(b"1 2\n[\n", Form::Lines, 9).unwrap();
        assert_eq!(two[0].1, "line 1: text after the document: a line holds one document");
        assert_eq!(two[1].1, "line 2: the line ends inside the document");
    }

    #[test]
    fn arrays() {
        let text = b" [\n  {\"a\": [1,\n2]},\n  12 , \"x\"\n]\n";
        let expected = [(" [\n  ", "{\"a\": [1,\n2]}"), (",\n  ", "12"), (" , ", "\"x\""), ("\n]\n", "END")];
        for step in [1, 2, 3, 5, 100] {
            assert_eq!(all(text, Form::Array, step).unwrap(), pairs(&expected), "{step}");
        }
        assert_eq!(all(b"[ ]", Form::Array, 1).unwrap(), pairs(&[("[ ]", "END")]));
        for (text, what) in [
            ("", "line 1: the array is cut off: its end is missing"),
            ("[1,\n2", "line 2: the array is cut off: its end is missing"),
            ("[1,\n2\n 3]", "line 3: expected ',' or ']'"),
            ("[1,\n]", "line 2: expected a value"),
            ("[,1]", "line 1: expected a value"),
            ("[1]\n\n]", "line 3: text after the end of the array"),
            ("[]x", "line 1: text after the end of the array"),
            ("\u{feff}[]", "line 1: a byte order mark (BOM), which JSON does not allow"),
        ] {
            for step in [1, 2, 100] {
                match all(text.as_bytes(), Form::Array, step) {
                    Err(Failure::Bad(bad)) => assert_eq!(bad.to_string(), what, "{text}"),
                    other => panic!("{text}: {other:?}"),
                }
            }
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_passed() {
        let text = [b"1\n\"", &vec![b'x'; limits::DOCUMENT_MAX + 2 * limits::BATCH][..], b"\"\n2\n"].concat();
        let mut splitter = Splitter::new(&text[..], Form::Lines);
        let mut seen = Vec::new();
        while let Some(chunk) = splitter.next_chunk().unwrap() {
            assert!(chunk.bytes.len() < 1000);
            seen.extend(chunk.items.iter().map(|i| match &i.bad {
                Some(bad) => bad.to_string(),
                None => String::from_utf8_lossy(&chunk.bytes[i.start..i.end]).into_owned(),
            }));
        }
        assert_eq!(seen, ["1", "line 2: the document is larger than 48 MiB", "2"]);
        let mut splitter = Splitter::new(&text[2..], Form::Array);
        assert!(matches!(splitter.next_chunk(), Err(Failure::Bad(_))));
    }

    proptest! {
        #[test]
        fn chunk_sizes_change_nothing(
            documents in prop::collection::vec(testkit::documents::json_line(), 0..8), step in 1usize..40
        ) {
            let lines = documents.join(&b'\n');
            prop_assert_eq!(all(&lines, Form::Lines, step).unwrap(), all(&lines, Form::Lines, 1 << 20).unwrap());
            let array = [b"[", &documents.join(&b',')[..], b"]"].concat();
            let split = all(&array, Form::Array, step).unwrap();
            prop_assert_eq!(&split, &all(&array, Form::Array, 1 << 20).unwrap());
            prop_assert_eq!(split.len(), documents.len() + 1);
        }

        #[test]
        fn noise_never_panics(text in prop::collection::vec(any::<u8>(), 0..200), step in 1usize..40) {
            let _ = all(&text, Form::Lines, step);
            let _ = all(&text, Form::Array, step);
        }
    }
}
