//! Names of objects: what they say and how they are read back.

use crate::hash::{hex, unhex32};
use model::{Error, Result};
use std::fmt;

/// What an object is. Each kind has a folder of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectKind {
    /// Documents, or packed attachments.
    Segment,
    /// A part of a large attachment.
    Part,
    /// What one run stored.
    Layer,
    /// The collections of a point.
    Catalog,
    /// Where keys are.
    Filter,
    /// Hashes of documents, for finding out what has changed.
    Hashes,
}

impl ObjectKind {
    /// All kinds.
    pub const ALL: [ObjectKind; 6] = [
        ObjectKind::Segment,
        ObjectKind::Part,
        ObjectKind::Layer,
        ObjectKind::Catalog,
        ObjectKind::Filter,
        ObjectKind::Hashes,
    ];

    /// The folder.
    pub fn folder(self) -> &'static str {
        match self {
            ObjectKind::Segment => "segments",
            ObjectKind::Part => "parts",
            ObjectKind::Layer => "layers",
            ObjectKind::Catalog => "catalogs",
            ObjectKind::Filter => "filters",
            ObjectKind::Hashes => "hashes",
        }
    }
}

/// The name of an immutable object: what kind it is, the id of its content (for finding
/// duplicates), the hash of its stored bytes (for checking them without keys), and its endings.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// What it is.
    pub kind: ObjectKind,
    /// Keyed hash of the plain content.
    pub content: [u8; 32],
    /// blake3 of the stored bytes.
    pub stored: [u8; 32],
    /// Endings, for example `json.zst.age`.
    pub endings: String,
}

impl ObjectName {
    /// The beginning that all names of the same content share.
    pub fn content_prefix(kind: ObjectKind, content: &[u8; 32]) -> String {
        let content = hex(content);
        format!("{}/{}/{content}-", kind.folder(), &content[..2])
    }

    /// Reads the path of an object.
    pub fn parse(path: &str) -> Result<Self> {
        Self::read(path).ok_or_else(|| Error::corrupt(format!("{path} is not the name of an object of a vault")))
    }

    fn read(path: &str) -> Option<Self> {
        let mut steps = path.split('/');
        let (folder, two, file) = (steps.next()?, steps.next()?, steps.next()?);
        let kind = ObjectKind::ALL.into_iter().find(|k| k.folder() == folder)?;
        let (content, rest) = file.split_once('-')?;
        let (stored, endings) = rest.split_once('.')?;
        let known = ["json", "bson", "bin"].iter().any(|e| endings.strip_prefix(e).is_some_and(is_wrapping));
        if steps.next().is_some() || !known || !content.starts_with(two) || two.len() != 2 {
            return None;
        }
        Some(ObjectName { kind, content: unhex32(content)?, stored: unhex32(stored)?, endings: endings.to_owned() })
    }
}

fn is_wrapping(endings: &str) -> bool {
    matches!(endings, "" | ".zst" | ".age" | ".zst.age")
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}.{}", Self::content_prefix(self.kind, &self.content), hex(&self.stored), self.endings)
    }
}

/// The name of a point: `history/<source>/points/<time>-<run>-<hash>.json.zst[.age]`, where time
/// is the milliseconds of the commit in 12 hex digits, so that names sort by time.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PointName {
    /// Tag of the source.
    pub source: String,
    /// When it was committed: milliseconds since 1970 UTC, by the writer's clock.
    pub committed: u64,
    /// The run that made it: 16 hex digits.
    pub run: String,
    /// blake3 of the stored bytes.
    pub stored: [u8; 32],
    /// Whether it is encrypted.
    pub encrypted: bool,
}

/// Where points and the change log are: one listing shows all of it.
pub(crate) const HISTORY: &str = "history/";

impl PointName {
    /// What people call it: the run that made it, short enough to type.
    pub fn id(&self) -> String {
        self.run.clone()
    }

    /// Reads the path of a point.
    pub fn parse(path: &str) -> Option<Self> {
        let rest = path.strip_prefix(HISTORY)?;
        let (source, rest) = rest.split_once("/points/")?;
        let (committed, rest) = rest.split_once('-')?;
        let (run, rest) = rest.split_once('-')?;
        let (stored, endings) = rest.split_once('.')?;
        let encrypted = match endings {
            "json.zst.age" => true,
            "json.zst" => false,
            _ => return None,
        };
        if !is_hex(source, 16) || !is_hex(committed, 12) || !is_hex(run, 16) {
            return None;
        }
        Some(PointName {
            source: source.to_owned(),
            committed: u64::from_str_radix(committed, 16).ok()?,
            run: run.to_owned(),
            stored: unhex32(stored)?,
            encrypted,
        })
    }
}

impl fmt::Display for PointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ending = if self.encrypted { "json.zst.age" } else { "json.zst" };
        let PointName { source, committed, run, .. } = self;
        write!(f, "{HISTORY}{source}/points/{committed:012x}-{run}-{}.{ending}", hex(&self.stored))
    }
}

/// The name of an object of the change log:
/// `history/<source>/log/<run>/<first>-<last>-<from>-<to>-<hash>.<encoding>.zst[.age]`, with first and
/// last in 8 hex digits, from and to in 12.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogName {
    /// Tag of the source.
    pub source: String,
    /// The run whose chain it belongs to: 16 hex digits.
    pub run: String,
    /// Number of the first flush that it holds, from 0.
    pub first: u32,
    /// Number of the last: the same, unless flushes were rolled up.
    pub last: u32,
    /// The engine time before its first change, in milliseconds since 1970 UTC.
    pub from: u64,
    /// The engine time up to which it is complete, likewise.
    pub to: u64,
    /// blake3 of the stored bytes.
    pub stored: [u8; 32],
    /// Endings, for example `bson.zst.age`.
    pub endings: String,
}

impl LogName {
    /// Reads the path of an object of the log.
    pub fn parse(path: &str) -> Option<Self> {
        let (source, rest) = path.strip_prefix(HISTORY)?.split_once("/log/")?;
        let (run, rest) = rest.split_once('/')?;
        let (numbers, endings) = rest.split_once('.')?;
        let mut parts = numbers.split('-');
        let mut number = |digits| {
            let part = parts.next().filter(|p| is_hex(p, digits))?;
            u64::from_str_radix(part, 16).ok()
        };
        let (first, last, from, to) = (number(8)? as u32, number(8)? as u32, number(12)?, number(12)?);
        let stored = unhex32(parts.next()?)?;
        let known = ["json", "bson", "bin"].iter().any(|e| endings.strip_prefix(e).is_some_and(is_wrapping));
        if parts.next().is_some() || !is_hex(source, 16) || !is_hex(run, 16) || first > last || from > to || !known {
            return None;
        }
        let (source, run, endings) = (source.to_owned(), run.to_owned(), endings.to_owned());
        Some(LogName { source, run, first, last, from, to, stored, endings })
    }

    /// Whether it holds several flushes, rolled up.
    pub fn is_rolled(&self) -> bool {
        self.first < self.last
    }

    /// Whether another object of the same chain holds everything that this one does.
    pub fn is_superseded_by(&self, other: &LogName) -> bool {
        self.run == other.run
            && self.source == other.source
            && other.first <= self.first
            && self.last <= other.last
            && (other.first, other.last) != (self.first, self.last)
    }
}

impl fmt::Display for LogName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LogName { source, run, first, last, from, to, endings, .. } = self;
        write!(f, "{HISTORY}{source}/log/{run}/{first:08x}-{last:08x}-{from:012x}-{to:012x}-")?;
        write!(f, "{}.{endings}", hex(&self.stored))
    }
}

/// The name of a list of the contents that a chain refers to:
/// `history/<source>/contents/<run>/<first>-<last>-<hash>.json.zst[.age]`, with the numbers of the first and the
/// last flush whose new contents it lists in 8 hex digits each.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentsName {
    /// Tag of the source.
    pub source: String,
    /// The run whose chain it is: 16 hex digits.
    pub run: String,
    /// Number of the first flush that refers to what it lists.
    pub first: u32,
    /// Number of the last flush that is the first one to refer to some of it.
    pub last: u32,
    /// blake3 of the stored bytes.
    pub stored: [u8; 32],
    /// Whether it is encrypted.
    pub encrypted: bool,
}

impl ContentsName {
    /// Reads the path of a list.
    pub fn parse(path: &str) -> Option<Self> {
        let (source, rest) = path.strip_prefix(HISTORY)?.split_once("/contents/")?;
        let (run, rest) = rest.split_once('/')?;
        let (first, rest) = rest.split_once('-')?;
        let (last, rest) = rest.split_once('-')?;
        let (stored, endings) = rest.split_once('.')?;
        let encrypted = match endings {
            "json.zst.age" => true,
            "json.zst" => false,
            _ => return None,
        };
        if !is_hex(source, 16) || !is_hex(run, 16) || !is_hex(first, 8) || !is_hex(last, 8) {
            return None;
        }
        let (first, last) = (u32::from_str_radix(first, 16).ok()?, u32::from_str_radix(last, 16).ok()?);
        let (source, run, stored) = (source.to_owned(), run.to_owned(), unhex32(stored)?);
        (first <= last).then_some(ContentsName { source, run, first, last, stored, encrypted })
    }

    /// Whether all that another list says is in this one, too: then the other one no longer counts.
    pub fn covers(&self, other: &ContentsName) -> bool {
        let is_wider = self.last - self.first > other.last - other.first;
        let of_one = (&self.source, &self.run) == (&other.source, &other.run);
        of_one && is_wider && self.first <= other.first && other.last <= self.last
    }
}

impl fmt::Display for ContentsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ending = if self.encrypted { "json.zst.age" } else { "json.zst" };
        let ContentsName { source, run, first, last, .. } = self;
        write!(f, "{HISTORY}{source}/contents/{run}/{first:08x}-{last:08x}-{}.{ending}", hex(&self.stored))
    }
}

/// Whether a text is this many lower-case hex digits.
pub(crate) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// The hash of the stored bytes and the endings that the path of any object names.
pub(crate) fn stored_hash(path: &str) -> Result<([u8; 32], String)> {
    if let Some(name) = LogName::parse(path) {
        return Ok((name.stored, name.endings));
    }
    ObjectName::parse(path).map(|name| (name.stored, name.endings))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_read_back() {
        let name = ObjectName {
            kind: ObjectKind::Segment,
            content: [0xab; 32],
            stored: [1; 32],
            endings: "json.zst.age".into(),
        };
        assert_eq!(ObjectName::parse(&name.to_string()).unwrap(), name);
        let point = PointName {
            source: "0123456789abcdef".into(),
            committed: 1_760_000_000_123,
            run: "ffffffffffffffff".into(),
            stored: [9; 32],
            encrypted: true,
        };
        assert_eq!(PointName::parse(&point.to_string()).unwrap(), point);
    }

    #[test]
    fn names_of_the_log_read_back() {
        let name = LogName {
            source: "0123456789abcdef".into(),
            run: "ffffffffffffffff".into(),
            first: 7,
            last: 1006,
            from: 1_760_000_000_123,
            to: 1_760_000_999_123,
            stored: [9; 32],
            endings: "bson.zst.age".into(),
        };
        let text = name.to_string();
        assert_eq!(LogName::parse(&text).unwrap(), name);
        let flush = LogName { first: 8, last: 8, ..name.clone() };
        assert!(flush.is_superseded_by(&name) && !name.is_superseded_by(&flush) && !name.is_superseded_by(&name));
        assert!(!LogName { run: "0".repeat(16), ..flush }.is_superseded_by(&name));
        for bad in [
            text.replace("00000007-", "000003ef-"),
            text.replace("00000007-", "7-"),
            text.replace("/log/", "/points/"),
            text.replace("bson", "exe"),
            text.replace(".bson", "-00.bson"),
            text.to_uppercase(),
            format!("{text}/x"),
        ] {
            assert!(LogName::parse(&bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn names_of_lists_read_back() {
        let (source, run) = ("0123456789abcdef".to_owned(), "ffffffffffffffff".to_owned());
        let name = ContentsName { source, run, first: 7, last: 9, stored: [9; 32], encrypted: true };
        let text = name.to_string();
        assert_eq!(ContentsName::parse(&text).unwrap(), name);
        assert!(LogName::parse(&text).is_none() && PointName::parse(&text).is_none());
        for bad in [
            text.replace("00000007-", "7-"),
            text.replace("00000007-", "0000000a-"),
            text.replace("/contents/", "/log/"),
            text.replace(".age", ".exe"),
        ] {
            assert!(ContentsName::parse(&bad).is_none(), "{bad}");
        }
        let of = |first, last| ContentsName { first, last, ..name.clone() };
        assert!([of(7, 7), of(8, 8), of(8, 9)].iter().all(|part| name.covers(part)));
        assert!([of(7, 9), of(6, 7), of(9, 10), of(5, 5)].iter().all(|other| !name.covers(other)));
        assert!(!name.covers(&ContentsName { run: "0123456789abcdef".into(), ..of(8, 8) }));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let good =
            ObjectName { kind: ObjectKind::Part, content: [0xab; 32], stored: [1; 32], endings: "bin.zst".into() }
                .to_string();
        assert!(ObjectName::parse(&good).is_ok());
        for bad in [
            good.replace("parts", "party"),
            good.replace("/ab/", "/ba/"),
            good.replace(".bin.zst", ".exe"),
            good.replace("0101", "01010"),
            good.to_uppercase(),
            format!("{good}/x"),
            String::new(),
        ] {
            assert!(ObjectName::parse(&bad).is_err(), "{bad}");
        }
    }
}
