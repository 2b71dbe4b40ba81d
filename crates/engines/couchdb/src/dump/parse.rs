//! Taking dumps apart, document by document, in bounded memory.

use crate::members::Members;
use serde_json::value::RawValue;
use std::io::{self, BufRead, BufReader, Read};

/// Bytes of one line: a document of couchdb-dump with its attachments, or some hundred of couchbackup.
const LINE_MAX: usize = 256 << 20;
/// How couchdb-dump's files begin and end.
pub(crate) const DUMP_BEGIN: &str = "{\"new_edits\":false,\"docs\":[";
pub(crate) const DUMP_END: &str = "]}";
/// What couchbackup writes where it goes on after an interruption.
const RESUME: &str = "{\"marker\":\"@cloudant/couchbackup:resume\"}";
/// What couchbackup's first line says.
pub(crate) const BACKUP_NAME: &str = "@cloudant/couchbackup";

/// Whose dump it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One document a line in one request to `_bulk_docs`.
    CouchdbDump,
    /// A list of documents a line.
    Couchbackup,
}

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// The line, counted from 1.
    pub line: u64,
    /// The document, if that can be told.
    pub id: Option<String>,
    /// What is wrong.
    pub why: String,
}

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// Revisions of one document that stand together, each a JSON object with `_id` and `_rev`.
    Document {
        /// The line.
        line: u64,
        /// Its id.
        id: &'a str,
        /// The revisions.
        revisions: &'a [&'a str],
    },
    /// Something bad.
    Flaw(Flaw),
}

/// Goes through a dump from its start to its end, whatever is in it; `give` says no to end it.
pub fn walk(form: Form, input: impl Read, mut give: impl FnMut(Found<'_>) -> bool) -> io::Result<()> {
    let mut lines = Lines { input: BufReader::with_capacity(256 << 10, input), line: String::new(), number: 0 };
    match form {
        Form::CouchdbDump => couchdb_dump(&mut lines, &mut give),
        Form::Couchbackup => couchbackup(&mut lines, &mut give),
    }
}

struct Lines<R> {
    input: BufReader<R>,
    line: String,
    number: u64,
}

/// What comes next in a dump.
#[derive(PartialEq, Eq)]
enum Next {
    /// A line, which [`Lines::text`] gives.
    Line,
    /// Nothing more.
    End,
    /// Nobody wants more.
    Enough,
}

impl<R: Read> Lines<R> {
    /// Goes to the next line that is text; what is not is given as bad.
    fn next(&mut self, give: &mut dyn FnMut(Found<'_>) -> bool) -> io::Result<Next> {
        loop {
            match self.read()? {
                None => return Ok(Next::End),
                Some(Ok(())) => return Ok(Next::Line),
                Some(Err(why)) => {
                    if !give(self.flaw(why)) {
                        return Ok(Next::Enough);
                    }
                }
            }
        }
    }

    /// The line without its end.
    fn text(&self) -> &str {
        self.line.trim()
    }

    /// Reads a line; gives what is wrong if it is too long or no text.
    fn read(&mut self) -> io::Result<Option<Result<(), String>>> {
        let mut line = std::mem::take(&mut self.line).into_bytes();
        line.clear();
        let read = self.input.by_ref().take(LINE_MAX as u64 + 1).read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(None);
        }
        self.number += 1;
        if read > LINE_MAX {
            // The rest of it says nothing.
            loop {
                let buffer = self.input.fill_buf()?;
                let (used, ends) = match buffer.iter().position(|b| *b == b'\n') {
                    Some(at) => (at + 1, true),
                    None => (buffer.len(), buffer.is_empty()),
                };
                self.input.consume(used);
                if ends {
                    break;
                }
            }
            return Ok(Some(Err(format!("the line has more than {LINE_MAX} bytes"))));
        }
        Ok(Some(match String::from_utf8(line) {
            Ok(text) => {
                self.line = text;
                Ok(())
            }
            Err(_) => Err("the line is no UTF-8".into()),
        }))
    }

    fn flaw(&self, why: impl Into<String>) -> Found<'static> {
        Found::Flaw(Flaw { line: self.number, id: None, why: why.into() })
    }
}

fn couchdb_dump<R: Read>(lines: &mut Lines<R>, give: &mut dyn FnMut(Found<'_>) -> bool) -> io::Result<()> {
    let begins = matches!(lines.read()?, Some(Ok(())))
        && lines.text().chars().filter(|c| !c.is_whitespace()).eq(DUMP_BEGIN.chars());
    if !begins {
        lines.number = lines.number.max(1);
        give(lines.flaw(format!("a dump of couchdb-dump begins with {DUMP_BEGIN}")));
        return Ok(());
    }
    let mut ended = false;
    let mut before = Before::default();
    loop {
        match lines.next(give)? {
            Next::Line => {}
            Next::End => break,
            Next::Enough => return Ok(()),
        }
        let (number, text) = (lines.number, lines.text());
        if text.is_empty() {
            continue;
        }
        let goes_on = match () {
            () if ended => {
                give(Found::Flaw(Flaw { line: number, id: None, why: "something follows the end".into() }));
                return Ok(());
            }
            () if text == DUMP_END => {
                ended = true;
                before.flush(give)
            }
            () => before.take(number, text.strip_suffix(',').unwrap_or(text), give),
        };
        if !goes_on {
            return Ok(());
        }
    }
    if !before.flush(give) {
        return Ok(());
    }
    if !ended {
        lines.number += 1;
        give(lines.flaw("the dump is cut off: its last line is missing"));
    }
    Ok(())
}

fn couchbackup<R: Read>(lines: &mut Lines<R>, give: &mut dyn FnMut(Found<'_>) -> bool) -> io::Result<()> {
    let mut any = false;
    loop {
        match lines.next(give)? {
            Next::Line => {}
            Next::End => break,
            Next::Enough => return Ok(()),
        }
        let (number, text) = (lines.number, lines.text());
        // What stands before the marker was cut off, and comes again.
        if text.is_empty() || text.ends_with(RESUME) {
            continue;
        }
        if number == 1 && text.starts_with('{') {
            let name =
                serde_json::from_str::<Members<'_>>(text).ok().and_then(|m| m.text("name").map(|n| n.into_owned()));
            if name.as_deref() == Some(BACKUP_NAME) {
                any = true;
                continue;
            }
        }
        if !text.starts_with('[') {
            let why = "a backup of couchbackup has a list of documents on each line";
            if !give(Found::Flaw(Flaw { line: number, id: None, why: why.into() })) {
                return Ok(());
            }
            continue;
        }
        any = true;
        let (all, flaw) = elements(text);
        let flaw = flaw.map(|why| Flaw { line: number, id: None, why });
        if !together(number, &all, give) || flaw.is_some_and(|flaw| !give(Found::Flaw(flaw))) {
            return Ok(());
        }
    }
    if !any {
        lines.number = 1;
        give(lines.flaw("the file is empty"));
    }
    Ok(())
}

/// The elements of a list, and what is wrong after the last sound one.
fn elements(text: &str) -> (Vec<&RawValue>, Option<String>) {
    let mut all = Vec::new();
    let mut rest = text.strip_prefix('[').unwrap_or(text).trim_start();
    let bad = |count: usize, why: &str| Some(format!("the line is no JSON after {count} documents: {why}"));
    if rest == "]" {
        return (all, None);
    }
    loop {
        let mut elements = serde_json::Deserializer::from_str(rest).into_iter::<&RawValue>();
        match elements.next() {
            Some(Ok(element)) => all.push(element),
            Some(Err(e)) => {
                let flaw = bad(all.len(), &e.to_string());
                return (all, flaw);
            }
            None => {
                let flaw = bad(all.len(), "it is cut off");
                return (all, flaw);
            }
        }
        rest = rest[elements.byte_offset()..].trim_start();
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None if rest == "]" => return (all, None),
            None => {
                let flaw = bad(all.len(), "there is no , or ]");
                return (all, flaw);
            }
        }
    }
}

/// Gives revisions of one document that follow one another as one.
fn together(line: u64, all: &[&RawValue], give: &mut dyn FnMut(Found<'_>) -> bool) -> bool {
    let mut before: Option<String> = None;
    let mut revisions: Vec<&str> = Vec::new();
    for raw in all {
        let id = match id_of(raw.get()) {
            Ok(id) => id,
            Err((id, why)) => {
                if !give(Found::Flaw(Flaw { line, id, why })) {
                    return false;
                }
                continue;
            }
        };
        if before.as_ref() != Some(&id)
            && let Some(id) = before.replace(id)
            && !give(Found::Document { line, id: &id, revisions: &std::mem::take(&mut revisions) })
        {
            return false;
        }
        revisions.push(raw.get());
    }
    match before {
        Some(id) if !revisions.is_empty() => give(Found::Document { line, id: &id, revisions: &revisions }),
        _ => true,
    }
}

/// Revisions of one document on lines that follow one another.
#[derive(Default)]
struct Before {
    line: u64,
    id: String,
    revisions: Vec<String>,
}

impl Before {
    fn take(&mut self, line: u64, text: &str, give: &mut dyn FnMut(Found<'_>) -> bool) -> bool {
        let id = match id_of(text) {
            Ok(id) => id,
            Err((id, why)) => return self.flush(give) && give(Found::Flaw(Flaw { line, id, why })),
        };
        if self.revisions.is_empty() || id != self.id {
            if !self.flush(give) {
                return false;
            }
            (self.line, self.id) = (line, id);
        }
        self.revisions.push(text.to_owned());
        true
    }

    fn flush(&mut self, give: &mut dyn FnMut(Found<'_>) -> bool) -> bool {
        let revisions = std::mem::take(&mut self.revisions);
        let id = std::mem::take(&mut self.id);
        let all: Vec<&str> = revisions.iter().map(|r| &**r).collect();
        all.is_empty() || give(Found::Document { line: self.line, id: &id, revisions: &all })
    }
}

/// The id of a document with a revision; else why it is none, with the id if that can be told.
fn id_of(text: &str) -> Result<String, (Option<String>, String)> {
    let members: Members<'_> =
        serde_json::from_str(text).map_err(|e| (guess(text), format!("the document is no JSON object: {e}")))?;
    let id = members.text("_id").map(|id| id.into_owned());
    match (id, members.text("_rev")) {
        (Some(id), Some(_)) => Ok(id),
        (id, _) => Err((id, "the document has no _id or no _rev".into())),
    }
}

/// The id that a damaged document begins with.
fn guess(text: &str) -> Option<String> {
    let rest = text.strip_prefix("{\"_id\":")?;
    serde_json::Deserializer::from_str(rest).into_iter::<String>().next()?.ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn all(form: Form, text: &str) -> Vec<String> {
        let mut all = Vec::new();
        walk(form, text.as_bytes(), |found| {
            all.push(match found {
                Found::Document { line, id, revisions } => format!("{line} {id} {}", revisions.len()),
                Found::Flaw(flaw) => format!("{} {:?}! {}", flaw.line, flaw.id, flaw.why),
            });
            true
        })
        .unwrap();
        all
    }

    const A: &str = r#"{"_id":"a","_rev":"1-x"}"#;
    const B: &str = r#"{"_id":"b","_rev":"1-x","s":"],\n}"}"#;

    #[test]
    fn dumps_of_couchdb_dump_are_read() {
        let of = |text: String| all(Form::CouchdbDump, &text);
        assert_eq!(of(format!("{DUMP_BEGIN}\n{A},\n{B}\n]}}\n")), ["2 a 1", "3 b 1"]);
        assert_eq!(of(format!("{DUMP_BEGIN}\r\n{A}\r\n]}}")), ["2 a 1"]);
        assert_eq!(of(format!("{DUMP_BEGIN}\n{A},\n{A},\n{B}\n]}}")), ["2 a 2", "4 b 1"], "revisions of one document");
        assert_eq!(
            of(format!("{DUMP_BEGIN}\n{A},\n")),
            ["2 a 1", "3 None! the dump is cut off: its last line is missing"]
        );
        let mangled = of(format!("{DUMP_BEGIN}\n{{\"_id\":\"m\",\"_rev\":\"1-x\",\"v\":}},\n{B}\n]}}"));
        assert!(mangled[0].starts_with("2 Some(\"m\")! the document is no JSON object"), "{mangled:?}");
        assert_eq!(mangled[1], "3 b 1");
        assert!(of("<html>".into())[0].starts_with("1 None! a dump of couchdb-dump begins with"));
        assert!(of(String::new())[0].starts_with("1 None!"));
        assert!(of(format!("{DUMP_BEGIN}\n]}}\n{A}"))[0].contains("follows the end"));
    }

    #[test]
    fn backups_of_couchbackup_are_read() {
        let of = |text: String| all(Form::Couchbackup, &text);
        let head = r#"{"name":"@cloudant/couchbackup","version":"2.11.12","mode":"full","attachments":true}"#;
        assert_eq!(of(format!("{head}\n[{A},{A},{B}]\n[]\n[{B}]\n")), ["2 a 2", "2 b 1", "4 b 1"]);
        assert_eq!(of(format!("[{A}]\n")), ["1 a 1"], "old files have no head");
        assert_eq!(of(format!("{head}\n[{A},{{\"_id\":{RESUME}\n{RESUME}\n[{A}]\n")), ["4 a 1"]);
        let cut = of(format!("{head}\n[{A},{B},{{\"_id\":\"c"));
        assert_eq!(cut[..2], ["2 a 1", "2 b 1"], "what is sound");
        assert!(cut[2].starts_with("2 None! the line is no JSON after 2 documents"), "{cut:?}");
        for bad in ["[", "[}", "[1 2]", "[{A}]]"] {
            assert!(of(bad.into()).iter().any(|found| found.contains('!')), "{bad}");
        }
        assert!(of("{}".into())[0].contains("list of documents"));
        assert_eq!(of(String::new()), ["1 None! the file is empty"]);
    }

    proptest::proptest! {
        #[test]
        fn whatever_comes_is_read_to_its_end(pieces in proptest::collection::vec("(\\{\"new_edits\":false,\"docs\":\\[|\\{\"_id\":\"[ab]\",\"_rev\":\"1-x\"\\}|[\\[\\],\n {}\"x]){0,6}", 0..6)) {
            let text = pieces.concat();
            for (form, text) in [(Form::CouchdbDump, &text), (Form::CouchdbDump, &format!("{DUMP_BEGIN}\n{text}")), (Form::Couchbackup, &text)] {
                let lines = text.matches('\n').count() as u64 + 2;
                for found in all(form, text) {
                    let line: u64 = found.split(' ').next().unwrap().parse().unwrap();
                    proptest::prop_assert!((1..=lines).contains(&line), "{}", found);
                }
            }
        }
    }
}
