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

/// The name of a log object: `history/<source>/log/<epoch>/<sequence>-<hash>.<encoding>.zst[.age]`,
/// with epoch in 8 and sequence in 12 hex digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LogName {
    /// Tag of the source.
    pub source: String,
    /// Which unbroken sequence it belongs to.
    pub epoch: u32,
    /// Its number in the sequence.
    pub sequence: u64,
    /// blake3 of the stored bytes.
    pub stored: [u8; 32],
    /// Endings, for example `bson.zst.age`.
    pub endings: String,
}

impl LogName {
    /// Reads the path of a log object.
    pub fn parse(path: &str) -> Option<Self> {
        let (source, rest) = path.strip_prefix(HISTORY)?.split_once("/log/")?;
        let (epoch, rest) = rest.split_once('/')?;
        let (sequence, rest) = rest.split_once('-')?;
        let (stored, endings) = rest.split_once('.')?;
        let known = ["json", "bson", "bin"].iter().any(|e| endings.strip_prefix(e).is_some_and(is_wrapping));
        if !is_hex(source, 16) || !is_hex(epoch, 8) || !is_hex(sequence, 12) || !known {
            return None;
        }
        Some(LogName {
            source: source.to_owned(),
            epoch: u32::from_str_radix(epoch, 16).ok()?,
            sequence: u64::from_str_radix(sequence, 16).ok()?,
            stored: unhex32(stored)?,
            endings: endings.to_owned(),
        })
    }
}

impl fmt::Display for LogName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LogName { source, epoch, sequence, endings, .. } = self;
        write!(f, "{HISTORY}{source}/log/{epoch:08x}/{sequence:012x}-{}.{endings}", hex(&self.stored))
    }
}

/// Whether a text is this many lower-case hex digits.
fn is_hex(text: &str, digits: usize) -> bool {
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
