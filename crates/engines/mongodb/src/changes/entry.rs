//! Entries of the oplog, as bytes: only what they are about is looked at.

use crate::raw;
use bson::Timestamp;
use model::{Error, ErrorKind, Result};

/// What identifies a collection for the server.
pub(crate) type Uuid = [u8; 16];

/// An entry of the oplog, or an operation inside of one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry<'a> {
    /// `i`, `u`, `d`, `c` or `n`.
    pub op: &'a str,
    /// `database.collection`; for commands `database.$cmd`.
    pub ns: &'a str,
    /// The collection.
    pub ui: Option<Uuid>,
    /// The document, the update, the key of a deleted document, or the command.
    pub o: &'a [u8],
    /// The key of an updated document; of commands, what was before.
    pub o2: Option<&'a [u8]>,
    /// Its cluster time; zero for operations inside of an entry.
    pub ts: Timestamp,
    pub term: i64,
    pub wall: i64,
    /// The entry before it of the same session; zero if there is none.
    pub prev: Timestamp,
    /// The session and the number of its transaction.
    pub session: Option<&'a [u8]>,
    pub number: Option<i64>,
    /// Whether its operations are writes of their own, linked to others only for retrying.
    pub is_vectored: bool,
}

/// The time of entries that do not exist.
pub(crate) const NO_TIME: Timestamp = Timestamp { time: 0, increment: 0 };

/// An element of a document, with its value.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field<'a> {
    pub kind: u8,
    pub name: &'a [u8],
    pub value: &'a [u8],
}

/// The elements of a document, up to its end or to where it is malformed.
pub(crate) fn fields(document: &[u8]) -> impl Iterator<Item = Field<'_>> {
    let mut at = 4;
    std::iter::from_fn(move || {
        let element = raw::element(document, at)?;
        at = element.end;
        let name = &document[element.name..element.value - 1];
        Some(Field { kind: element.kind, name, value: &document[element.value..element.end] })
    })
}

/// The first element with this name.
pub(crate) fn field<'a>(document: &'a [u8], name: &str) -> Option<Field<'a>> {
    fields(document).find(|f| f.name == name.as_bytes())
}

impl<'a> Field<'a> {
    /// As text.
    pub fn text(&self) -> Option<&'a str> {
        let text = (self.kind == 0x02).then_some(self.value)?.get(4..)?;
        std::str::from_utf8(text.strip_suffix(b"\0")?).ok()
    }

    /// As a document.
    pub fn document(&self) -> Option<&'a [u8]> {
        (self.kind == 0x03 && raw::document_len(self.value) == Some(self.value.len())).then_some(self.value)
    }

    /// The documents of an array.
    pub fn documents(&self) -> Option<Vec<&'a [u8]>> {
        if self.kind != 0x04 || raw::document_len(self.value) != Some(self.value.len()) {
            return None;
        }
        fields(self.value).map(|f| f.document()).collect()
    }

    /// As a whole number.
    pub fn integer(&self) -> Option<i64> {
        match self.kind {
            0x10 => self.value.try_into().ok().map(i32::from_le_bytes).map(i64::from),
            0x12 | 0x09 => self.value.try_into().ok().map(i64::from_le_bytes),
            0x01 => self.value.try_into().ok().map(f64::from_le_bytes).map(|n| n as i64),
            _ => None,
        }
    }

    /// As yes or no.
    pub fn is_true(&self) -> bool {
        self.kind == 0x08 && self.value == [1]
    }

    /// As a time of the cluster.
    pub fn timestamp(&self) -> Option<Timestamp> {
        let number = (self.kind == 0x11).then_some(self.value)?.try_into().ok().map(u64::from_le_bytes)?;
        Some(Timestamp { time: (number >> 32) as u32, increment: number as u32 })
    }

    /// As the identity of a collection.
    pub fn uuid(&self) -> Option<Uuid> {
        // Length 16, subtype 4.
        (self.kind == 0x05 && self.value.starts_with(&[16, 0, 0, 0, 4])).then(|| self.value[5..].try_into().ok())?
    }
}

impl<'a> Entry<'a> {
    /// Takes an entry apart.
    pub fn parse(bytes: &'a [u8]) -> Result<Entry<'a>> {
        let mut entry = Entry {
            op: "",
            ns: "",
            ui: None,
            o: &[],
            o2: None,
            ts: NO_TIME,
            term: -1,
            wall: 0,
            prev: NO_TIME,
            session: None,
            number: None,
            is_vectored: false,
        };
        let mut is_sound = true;
        let mut end = 4;
        for f in fields(bytes) {
            end += 2 + f.name.len() + f.value.len();
            match f.name {
                b"op" => entry.op = f.text().unwrap_or_default(),
                b"ns" => match f.text() {
                    Some(ns) => entry.ns = ns,
                    None => is_sound = false,
                },
                b"ui" => {
                    entry.ui = f.uuid();
                    is_sound = is_sound && entry.ui.is_some();
                }
                b"o" => entry.o = f.document().unwrap_or_default(),
                b"o2" => entry.o2 = f.document(),
                b"ts" => entry.ts = f.timestamp().unwrap_or(NO_TIME),
                b"t" => entry.term = f.integer().unwrap_or(-1),
                b"wall" => entry.wall = f.integer().unwrap_or_default(),
                b"prevOpTime" => {
                    let ts = f.document().and_then(|d| field(d, "ts")).and_then(|f| f.timestamp());
                    entry.prev = ts.unwrap_or(NO_TIME);
                    is_sound = is_sound && ts.is_some();
                }
                b"lsid" => entry.session = f.document(),
                b"txnNumber" => entry.number = f.integer(),
                b"multiOpType" => entry.is_vectored = f.integer().is_some_and(|n| n != 0),
                _ => {}
            }
        }
        if !is_sound || end + 1 != bytes.len() || entry.op.is_empty() || entry.o.is_empty() {
            return Err(entry.unsupported(entry.ts, "it is not built as entries of the oplog are"));
        }
        Ok(entry)
    }

    /// The first field of the command.
    pub fn command(&self) -> Option<Field<'a>> {
        fields(self.o).next()
    }

    /// The database.
    pub fn database(&self) -> &'a str {
        self.ns.split_once('.').map_or(self.ns, |(database, _)| database)
    }

    /// The error for what is not understood. `ts` is the time of the entry that this is part of.
    pub fn unsupported(&self, ts: Timestamp, why: &str) -> Error {
        let what = match (self.op, self.command()) {
            ("c", Some(command)) => format!("{} in {}", String::from_utf8_lossy(command.name), self.ns),
            (op, _) => format!("operation {op:?} on {}", self.ns),
        };
        let (time, increment) = (ts.time, ts.increment);
        Error::new(
            ErrorKind::Unsupported,
            format!("an entry of the oplog ({what} at ts:{time},{increment}) is not understood: {why}"),
        )
        .hint("back up with --full, which reads everything and goes on after it; and please report this entry")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use bson::{Bson, Document, doc};

    fn bytes(document: &Document) -> Vec<u8> {
        document.to_vec().unwrap()
    }

    #[test]
    fn entries_are_taken_apart() {
        let ui = bson::Uuid::from_bytes([7; 16]);
        let whole = doc! {
            "lsid": { "id": bson::Uuid::from_bytes([1; 16]) }, "txnNumber": 3i64, "op": "u", "ns": "db.a.b", "ui": ui,
            "o": { "$v": 2, "diff": { "u": { "x": 1 } } }, "o2": { "_id": 1 }, "stmtId": 0,
            "ts": Timestamp { time: 5, increment: 6 }, "t": 2i64, "v": 2i64,
            "wall": bson::DateTime::from_millis(77), "prevOpTime": { "ts": Timestamp { time: 4, increment: 1 }, "t": 1i64 },
        };
        let raw = bytes(&whole);
        let entry = Entry::parse(&raw).unwrap();
        assert_eq!((entry.op, entry.ns, entry.ui, entry.database()), ("u", "db.a.b", Some([7; 16]), "db"));
        assert_eq!((entry.ts, entry.term, entry.wall), (Timestamp { time: 5, increment: 6 }, 2, 77));
        assert_eq!((entry.prev, entry.number), (Timestamp { time: 4, increment: 1 }, Some(3)));
        assert_eq!(entry.o2.unwrap(), bytes(&doc! { "_id": 1 }));
        for cut in 5..raw.len() {
            let mut bytes = raw[..cut].to_vec();
            let length = bytes.len() as u32;
            bytes[..4].copy_from_slice(&length.to_le_bytes());
            assert!(Entry::parse(&bytes).is_err() || cut < raw.len() - 30, "{cut}");
        }
    }

    #[test]
    fn what_is_no_entry_is_named() {
        let ts = Timestamp { time: 5, increment: 6 };
        for wrong in [
            doc! { "op": "i", "ns": "db.a", "ts": ts },
            doc! { "op": 1, "ns": "db.a", "ts": ts, "o": {} },
            doc! { "op": "i", "ns": "db.a", "ts": ts, "o": [1] },
            doc! { "op": "i", "ns": "db.a", "ts": ts, "o": { "_id": 1 }, "ui": "x" },
            doc! { "op": "i", "ns": Bson::Null, "ts": ts, "o": { "_id": 1 } },
        ] {
            let error = Entry::parse(&bytes(&wrong)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains("ts:5,6"), "{error}");
            assert!(error.hint_text().is_some());
        }
    }
}
