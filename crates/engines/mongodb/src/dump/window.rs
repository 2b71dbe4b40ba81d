//! Walking through documents that follow each other, whatever they come from.

use crate::raw;
use std::io::{self, Read};

/// Bytes asked for at once.
const STEP: usize = 1 << 20;
/// What stands in an archive where a block ends, in the place of a document's length.
const TERMINATOR: [u8; 4] = [0xFF; 4];

/// The first thing that is wrong with some input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// How many bytes of the content come before it.
    pub at: u64,
    /// What is wrong.
    pub why: String,
}

/// Why a walk ended before its end.
#[derive(Debug)]
pub enum Stop {
    /// The input is damaged.
    Flaw(Flaw),
    /// The input could not be read.
    Io(io::Error),
}

/// What comes next.
#[derive(Debug, PartialEq)]
pub(crate) enum Next<'a> {
    Document(&'a [u8]),
    Terminator,
    End,
}

/// A walk over documents in bounded memory: what is read, and the largest document.
pub(crate) struct Window<R> {
    reader: R,
    buffer: Vec<u8>,
    /// Where the next document begins in the buffer.
    at: usize,
    /// How many bytes came before the buffer.
    before: u64,
    ended: bool,
    /// What ended it too early, if the input says so itself.
    damage: Option<String>,
    nested: Vec<usize>,
}

impl<R: Read> Window<R> {
    pub fn new(reader: R) -> Window<R> {
        Window { reader, buffer: Vec::new(), at: 0, before: 0, ended: false, damage: None, nested: Vec::new() }
    }

    /// How many bytes of the content come before what comes next.
    pub fn position(&self) -> u64 {
        self.before + self.at as u64
    }

    /// The next bytes, if there are that many.
    pub fn bytes(&mut self, count: usize) -> Result<Option<&[u8]>, Stop> {
        if !self.fill(count)? {
            return Ok(None);
        }
        self.at += count;
        Ok(Some(&self.buffer[self.at - count..self.at]))
    }

    /// The next document, whose structure is sound. At the end of the input comes an end only if
    /// nothing is cut.
    pub fn next(&mut self) -> Result<Next<'_>, Stop> {
        if !self.fill(4)? {
            return match self.buffer.len() - self.at {
                0 => Ok(Next::End),
                left => Err(self.flaw(0, format!("it ends in the middle of a document, after {left} bytes of it"))),
            };
        }
        let length = [0, 1, 2, 3].map(|i| self.buffer[self.at + i]);
        if length == TERMINATOR {
            self.at += 4;
            return Ok(Next::Terminator);
        }
        let said = i32::from_le_bytes(length);
        let Some(length) = usize::try_from(said).ok().filter(|n| (5..=raw::DOCUMENT_MAX).contains(n)) else {
            return Err(self.flaw(0, format!("no document has {said} bytes")));
        };
        if !self.fill(length)? {
            let there = self.buffer.len() - self.at;
            return Err(
                self.flaw(0, format!("it ends in the middle of a document: {there} of {length} bytes are there"))
            );
        }
        let from = self.at;
        if let Some(wrong) = raw::flaw(&self.buffer[from..from + length], &mut self.nested) {
            return Err(
                self.flaw(wrong as u64, format!("this is no BSON (in the document at byte {})", self.position()))
            );
        }
        self.at += length;
        Ok(Next::Document(&self.buffer[from..from + length]))
    }

    /// What is wrong, this many bytes after the position.
    pub fn flaw(&self, after: u64, why: String) -> Stop {
        Stop::Flaw(Flaw { at: self.position() + after, why })
    }

    /// Reads until this many bytes are there; false if the input ends before.
    fn fill(&mut self, count: usize) -> Result<bool, Stop> {
        while self.buffer.len() - self.at < count {
            if self.ended {
                return match &self.damage {
                    Some(why) => Err(Stop::Flaw(Flaw { at: self.before + self.buffer.len() as u64, why: why.clone() })),
                    None => Ok(false),
                };
            }
            self.buffer.drain(..self.at);
            self.before += self.at as u64;
            self.at = 0;
            let held = self.buffer.len();
            let want = STEP.max(count) - held;
            // What comes before an error is kept, and walked first.
            match self.reader.by_ref().take(want as u64).read_to_end(&mut self.buffer) {
                Ok(_) => self.ended = self.buffer.len() - held < want,
                Err(e) if is_damage(&e) => {
                    self.damage = Some(damage(&e));
                    self.ended = true;
                }
                Err(e) => return Err(Stop::Io(e)),
            }
        }
        Ok(true)
    }
}

/// Whether an error of a decompressor means that its input is damaged.
fn is_damage(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof)
}

fn damage(e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => "the compressed file is cut off".into(),
        _ => format!("the compressed file is damaged ({e})"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use bson::doc;

    fn walk(bytes: &[u8]) -> Result<usize, Flaw> {
        let mut window = Window::new(bytes);
        let mut count = 0;
        loop {
            match window.next() {
                Ok(Next::Document(_)) => count += 1,
                Ok(Next::Terminator) => return Err(Flaw { at: window.position(), why: "terminator".into() }),
                Ok(Next::End) => return Ok(count),
                Err(Stop::Flaw(flaw)) => return Err(flaw),
                Err(Stop::Io(e)) => panic!("{e}"),
            }
        }
    }

    #[test]
    fn cuts_are_found_where_they_are() {
        let one = doc! { "_id": 1, "a": { "b": ["x"] } }.to_vec().unwrap();
        let two = [&one[..], &one[..]].concat();
        assert_eq!(walk(&two), Ok(2));
        for cut in 1..one.len() {
            let flaw = walk(&two[..one.len() + cut]).unwrap_err();
            assert_eq!(flaw.at, one.len() as u64, "{cut}: {}", flaw.why);
        }
    }

    #[test]
    fn large_documents_pass() {
        let large = doc! { "_id": 1, "a": "x".repeat(16 << 20) }.to_vec().unwrap();
        let small = doc! { "_id": 2 }.to_vec().unwrap();
        assert_eq!(walk(&[&small[..], &large, &small, &large].concat()), Ok(4));
    }
}
