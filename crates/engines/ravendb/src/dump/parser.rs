//! The parser of the dump format. It reads no input by itself: bytes are pushed into it, events are
//! taken out, so that the same code serves answers of servers, files and the fuzzer.
//!
//! The format is an object of sections that looks like JSON and is not: raw bytes follow some items,
//! commas stand where none may, strings hold control characters, and a section may come twice.

use crate::dump::walk::{Found, Walk, as_json};
use bytes::{Buf, Bytes, BytesMut};
use model::{Error, Result};
use serde::Deserialize;
use std::sync::Arc;

/// Bytes of the name of a section at most.
const NAME_MAX: usize = 1024;

/// What a dump holds, piece by piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A section that is one value: the build of the server, the database record.
    Value {
        /// The section.
        section: Arc<str>,
        /// Its value, as JSON.
        body: Bytes,
    },
    /// One element of a section.
    Item(Item),
    /// A piece of the raw bytes that follow the last item.
    Blob(Bytes),
    /// The raw bytes are at their end.
    BlobEnd,
}

/// One element of a section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The section.
    pub section: Arc<str>,
    /// The element: as it came, but for what JSON does not allow.
    pub body: Bytes,
    /// Where the value of its `@metadata` begins.
    pub metadata: Option<usize>,
    /// How many raw bytes follow.
    pub blob: Option<u64>,
}

/// What tells that raw bytes follow.
#[derive(Deserialize)]
struct Export {
    #[serde(rename = "@export-type")]
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Size {
    #[serde(rename = "Size")]
    size: u64,
}

#[derive(Debug)]
enum State {
    Start,
    Name,
    Value(Arc<str>),
    Items(Arc<str>),
    Blob(u64, Arc<str>),
    End,
}

/// The parser.
#[derive(Debug)]
pub struct Parser {
    buffer: BytesMut,
    state: State,
    walk: Walk,
    /// Bytes taken from the buffer.
    taken: u64,
}

impl Default for Parser {
    fn default() -> Self {
        Parser { buffer: BytesMut::new(), state: State::Start, walk: Walk::default(), taken: 0 }
    }
}

impl Parser {
    /// Takes the next bytes of the dump, decompressed.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether the closing brace was read: only then the dump is complete.
    pub fn is_complete(&self) -> bool {
        matches!(self.state, State::End)
    }

    /// Says that no more bytes come.
    pub fn finish(&self) -> Result<()> {
        if self.is_complete() {
            return Ok(());
        }
        let text = format!("the dump ends after {} bytes, in the middle", self.taken + self.buffer.len() as u64);
        Err(Error::corrupt(text).hint("it is not complete: take it from the server again"))
    }

    /// The next event; none if more bytes are needed, or the dump is at its end.
    pub fn event(&mut self) -> Result<Option<Event>> {
        loop {
            let commas = matches!(self.state, State::Name | State::Items(_));
            if !matches!(self.state, State::Blob(..)) {
                self.skip(commas);
            }
            let Some(first) = self.buffer.first().copied() else {
                return match self.state {
                    State::Blob(0, _) => Ok(Some(self.blob_end())),
                    _ => Ok(None),
                };
            };
            match (&self.state, first) {
                (State::Start, b'{') => {
                    self.take(1);
                    self.state = State::Name;
                }
                (State::Start, _) if BOM.starts_with(&self.buffer) => return Ok(None),
                (State::Start, _) => {
                    return Err(Error::corrupt("this is no RavenDB dump: it does not begin with a brace")
                        .hint("a .ravendbdump is made by RavenDB's export, or by `rewound copy`"));
                }
                (State::Name, b'}') => {
                    self.take(1);
                    self.state = State::End;
                }
                (State::Name, b'"') => match self.name()? {
                    Some(name) => self.state = State::Value(name),
                    None => return Ok(None),
                },
                (State::Value(section), b'[') => {
                    self.state = State::Items(section.clone());
                    self.take(1);
                }
                (State::Items(_), b']') => {
                    self.take(1);
                    self.state = State::Name;
                }
                (State::Value(section), _) => {
                    let section = section.clone();
                    let Some((body, _)) = self.value()? else { return Ok(None) };
                    self.state = State::Name;
                    return Ok(Some(Event::Value { section, body }));
                }
                (State::Items(section), _) => {
                    let section = section.clone();
                    let Some((body, found)) = self.value()? else { return Ok(None) };
                    return self.item(section, body, found).map(Some);
                }
                (State::Blob(0, _), _) => return Ok(Some(self.blob_end())),
                (State::Blob(left, section), _) => {
                    let piece = (self.buffer.len() as u64).min(*left);
                    self.state = State::Blob(left - piece, section.clone());
                    return Ok(Some(Event::Blob(self.take(piece as usize))));
                }
                (State::Name, _) => return Err(self.unexpected(first)),
                (State::End, _) => return Err(Error::corrupt("there are bytes after the end of the dump")),
            }
        }
    }

    fn blob_end(&mut self) -> Event {
        if let State::Blob(_, section) = &self.state {
            self.state = State::Items(section.clone());
        }
        Event::BlobEnd
    }

    fn item(&mut self, section: Arc<str>, body: Bytes, found: Found) -> Result<Event> {
        let metadata = found.metadata.and_then(|at| value_at(&body, at));
        let mut blob = None;
        if let Some(at) = found.blob_size.and_then(|at| value_at(&body, at)) {
            blob = Some(parse::<u64>(&body[at..], "the size of a time series")?);
        } else if let Some(at) = metadata
            && memchr::memmem::find(&body[at..], b"@export-type").is_some()
            && parse::<Export>(&body[at..], "metadata")?.kind.as_deref() == Some("Attachment")
        {
            blob = Some(parse::<Size>(&body, "the head of an attachment")?.size);
        }
        if let Some(size) = blob {
            self.state = State::Blob(size, section.clone());
        }
        Ok(Event::Item(Item { section, body, metadata, blob }))
    }

    /// The value that begins here, once all of it is there.
    fn value(&mut self) -> Result<Option<(Bytes, Found)>> {
        let Some(found) = self.walk.run(&self.buffer)? else { return Ok(None) };
        self.walk = Walk::default();
        if found.end == 0 {
            return Err(self.unexpected(self.buffer[0]));
        }
        let body = self.take(found.end);
        if !found.is_odd {
            return Ok(Some((body, found)));
        }
        // Rare: its places are others once it is put right.
        let body = Bytes::from(as_json(&body));
        let found = Walk::default().run(&[&body[..], b","].concat())?.unwrap_or(found);
        Ok(Some((body, found)))
    }

    /// The name of a section and its colon, once all of it is there.
    fn name(&mut self) -> Result<Option<Arc<str>>> {
        let Some(end) = self.buffer[1..].iter().position(|b| *b == b'"').map(|n| n + 2) else {
            return match self.buffer.len() > NAME_MAX {
                true => Err(Error::corrupt("the dump holds a section without a name")),
                false => Ok(None),
            };
        };
        let colon = self.buffer[end..].iter().position(|b| !is_space(*b)).map(|n| end + n);
        match colon.map(|at| (at, self.buffer[at])) {
            None if self.buffer.len() > NAME_MAX => Err(Error::corrupt("the dump holds a section without a value")),
            None => Ok(None),
            Some((at, b':')) => {
                let name = self.take(at + 1);
                Ok(Some(Arc::from(String::from_utf8_lossy(&name[1..end - 1]))))
            }
            Some((_, other)) => Err(self.unexpected(other)),
        }
    }

    fn skip(&mut self, commas: bool) {
        let space = |b: &u8| is_space(*b) || (commas && *b == b',');
        let n = self.buffer.iter().take_while(|b| space(b)).count();
        self.buffer.advance(n);
        self.taken += n as u64;
        if matches!(self.state, State::Start) && self.buffer.starts_with(BOM) {
            self.take(BOM.len());
            self.skip(commas);
        }
    }

    fn take(&mut self, n: usize) -> Bytes {
        self.taken += n as u64;
        self.buffer.split_to(n).freeze()
    }

    fn unexpected(&self, byte: u8) -> Error {
        Error::corrupt(format!("byte {} of the dump, {:?}, cannot stand there", self.taken, char::from(byte)))
            .hint("the dump is damaged: take it from the server again")
    }
}

/// What some programs put before a text in UTF-8.
const BOM: &[u8] = b"\xef\xbb\xbf";

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t')
}

/// Where the value of a member begins, by the end of its name.
fn value_at(body: &[u8], name_end: usize) -> Option<usize> {
    let colon = name_end + body.get(name_end..)?.iter().position(|b| !is_space(*b))?;
    let value = colon + 1 + body.get(colon + 1..)?.iter().position(|b| !is_space(*b))?;
    (body[colon] == b':').then_some(value)
}

/// The value that a text begins with.
pub(crate) fn parse<'a, T: Deserialize<'a>>(text: &'a [u8], what: &str) -> Result<T> {
    T::deserialize(&mut serde_json::Deserializer::from_slice(text))
        .map_err(|e| Error::corrupt(format!("{what} in the dump cannot be read: {e}")).caused_by(e))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn events(dump: &[u8], piece: usize) -> Result<Vec<Event>> {
        let mut parser = Parser::default();
        let mut all: Vec<Event> = Vec::new();
        for piece in dump.chunks(piece) {
            parser.push(piece);
            while let Some(event) = parser.event()? {
                match (all.last_mut(), event) {
                    (Some(Event::Blob(a)), Event::Blob(b)) => *a = [&a[..], &b[..]].concat().into(),
                    (_, event) => all.push(event),
                }
            }
        }
        parser.finish()?;
        Ok(all)
    }

    #[test]
    fn a_mark_before_the_text_may_come_in_pieces() {
        let dump = [BOM, b" {\"BuildVersion\":54106}"].concat();
        let whole = events(&dump, dump.len()).unwrap();
        for piece in 1..6 {
            assert_eq!(events(&dump, piece).unwrap(), whole);
        }
        assert_eq!(events(&BOM[..2], 1).unwrap_err().kind(), model::ErrorKind::Corrupt);
    }

    const DUMP: &[u8] = b"{\"BuildVersion\":54106,\"DatabaseRecord\":{\"a\":null},\"Docs\":[\
        {\"@metadata\":{\"@export-type\":\"Attachment\"},\"Hash\":\"h\",\"Size\":5,\"Tag\":\"t\"}}]},\",\
        {\"N\":1.0,\"@metadata\":{\"@id\":\"a\"}}],\"Docs\":[],\"Indexes\":[{\"a\":[{\"b\":1,}]}],\
        \"TimeSeries\":[{\"@raven-data\":{\"DocId\":\"a\"},\"@raven-blob-size\":0},{\"@raven-data\":{},\"@raven-blob-size\":2}{{]}";

    #[test]
    fn everything_is_found_whatever_the_pieces() {
        let whole = events(DUMP, DUMP.len()).unwrap();
        assert_eq!(whole.len(), 12, "{whole:#?}");
        assert_eq!(whole[3], Event::Blob(Bytes::from_static(b"}]},\"")));
        let Event::Item(document) = &whole[5] else { panic!("{whole:?}") };
        assert_eq!(&document.body[document.metadata.unwrap()..], br#"{"@id":"a"}}"#);
        let Event::Item(index) = &whole[6] else { panic!("{whole:?}") };
        assert_eq!(&index.body[..], br#"{"a":[{"b":1}]}"#);
        for piece in 1..80 {
            assert_eq!(events(DUMP, piece).unwrap(), whole, "pieces of {piece}");
        }
    }

    #[test]
    fn it_is_complete_only_with_its_last_brace() {
        for end in 0..DUMP.len() {
            assert!(events(&DUMP[..end], 7).is_err(), "{end} bytes");
        }
        assert!(events(b"{}", 1).unwrap().is_empty());
        assert!(events(b" {} \n", 1).unwrap().is_empty());
    }

    #[test]
    fn what_is_no_dump_is_refused() {
        for bad in [&b"[]"[..], b"{}{}", b"{1}", b"{\"a\"}", b"{\"a\":}", b"{\"a\":[}]}", b"{\"Docs\":[{]}]}"] {
            let error = events(bad, 3).unwrap_err();
            assert_eq!(error.kind(), model::ErrorKind::Corrupt, "{}: {error}", String::from_utf8_lossy(bad));
        }
    }

    proptest::proptest! {
        /// Whatever happens to a dump: it ends well, and pieces change nothing.
        #[test]
        fn damage_never_depends_on_the_pieces(
            damage in proptest::collection::vec((0..DUMP.len(), proptest::num::u8::ANY), 0..4),
            end in 0..=DUMP.len(),
            piece in 1usize..40,
        ) {
            let mut dump = DUMP.to_vec();
            damage.into_iter().for_each(|(at, byte)| dump[at] = byte);
            let (whole, pieces) = (events(&dump[..end], DUMP.len()), events(&dump[..end], piece));
            match (whole, pieces) {
                (Ok(a), Ok(b)) => proptest::prop_assert_eq!(a, b),
                (Err(a), Err(b)) => proptest::prop_assert_eq!(a.kind(), b.kind()),
                (a, b) => proptest::prop_assert!(false, "{:?} {:?}", a, b),
            }
        }
    }
}
