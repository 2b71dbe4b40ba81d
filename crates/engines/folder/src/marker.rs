//! What a folder that was written by Rewound says of itself: `rewound.json`, and the keys that do
//! not fit into names.

use crate::names::MARKER;
use crate::writer::write_error;
use model::{Engine, Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

/// The format of folders that this program writes.
const FORMAT: u32 = 1;
/// The largest marker that is read: room for a million collections.
const MARKER_MAX: u64 = 512 << 20;

/// The content of `rewound.json`. That it is there says that the restore was completed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Marker {
    /// Always `folder`.
    pub rewound: String,
    /// Version of the format.
    pub format: u32,
    /// The engine that the data came from.
    pub engine: Engine,
    /// What was written, by the name of its file or folder.
    pub written: BTreeMap<String, Written>,
}

/// One collection that was written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Written {
    /// Its name.
    pub collection: String,
    /// Its identity in the engine it came from.
    pub id: String,
    /// Documents written.
    pub documents: u64,
    /// Attachments written.
    pub attachments: u64,
    /// How they lie in files.
    pub layout: String,
    /// Whether names of files are keys as they are, or encoded.
    pub names: Naming,
    /// Options of the collection in the engine it came from.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub options: Value,
}

/// How keys became names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Naming {
    /// As they are.
    Verbatim,
    /// Encoded, so that no two can collide.
    Encoded,
}

impl Marker {
    /// An empty marker for data of this engine.
    pub fn new(engine: Engine) -> Marker {
        Marker { rewound: "folder".into(), format: FORMAT, engine, written: BTreeMap::new() }
    }

    /// The marker of a folder. None if there is no file of that name; an error with kind
    /// [`ErrorKind::Input`] if there is one that is no marker.
    pub fn read(root: &Path) -> Result<Option<Marker>> {
        let path = root.join(MARKER);
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_file() && found.len() <= MARKER_MAX => {}
            Ok(_) => return Err(not_ours()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(format!("looking at {}", path.display()), e)),
        }
        let text = fs::read(&path).map_err(|e| Error::io(format!("reading {}", path.display()), e))?;
        let value: Value = serde_json::from_slice(&text).map_err(|_| not_ours())?;
        if value.get("rewound").and_then(Value::as_str) != Some("folder") {
            return Err(not_ours());
        }
        if value.get("format").and_then(Value::as_u64) != Some(u64::from(FORMAT)) {
            return Err(Error::unsupported(format!("{} was written by another version of Rewound", path.display()))
                .hint("use a newer version of Rewound"));
        }
        match serde_json::from_value(value) {
            Ok(marker) => Ok(Some(marker)),
            Err(e) => Err(Error::corrupt(format!("{} is damaged: {e}", path.display()))
                .hint("move it away to read the folder as plain files")),
        }
    }

    /// The text of the file.
    pub fn to_text(&self) -> Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::bug("the folder's marker cannot be written as JSON").caused_by(e))?;
        text.push(b'\n');
        Ok(text)
    }
}

fn not_ours() -> Error {
    Error::new(ErrorKind::Input, format!("{MARKER} is not Rewound's own; no collection can have this name"))
}

/// One key that its file's name does not tell.
#[derive(Debug, Serialize, Deserialize)]
struct LongName {
    file: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// The key in hexadecimal digits, where it is not text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_hex: Option<String>,
    /// For attachments: the text of what the engine says of it, where that is not what this
    /// engine would say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body: Option<String>,
}

/// One line that keeps a key, and what an engine says of it, beside its file.
pub(crate) fn long_name_line(file: &str, key: &[u8], body: Option<&[u8]>) -> Result<Vec<u8>> {
    let text = std::str::from_utf8(key).ok();
    let line = LongName {
        file: file.to_owned(),
        key: text.map(str::to_owned),
        key_hex: text.is_none().then(|| key.iter().map(|b| format!("{b:02x}")).collect()),
        body: match body.map(std::str::from_utf8) {
            None => None,
            Some(Ok(text)) => Some(text.to_owned()),
            Some(Err(_)) => return Err(Error::corrupt("the description of an attachment is not text")),
        },
    };
    let mut line =
        serde_json::to_vec(&line).map_err(|e| Error::bug("a name cannot be written as JSON").caused_by(e))?;
    line.push(b'\n');
    Ok(line)
}

/// The keys, and what engines said of them, that are kept in this file beside the documents.
pub(crate) struct LongNames {
    /// Keys by the names of their files.
    pub keys: HashMap<String, Vec<u8>>,
    /// What the engine says of attachments, by the names of their files.
    pub bodies: HashMap<String, Vec<u8>>,
}

/// Reads the file that keeps long keys, if there is one.
pub(crate) fn read_long_names(path: &Path) -> Result<LongNames> {
    let mut all = LongNames { keys: HashMap::new(), bodies: HashMap::new() };
    let file = match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() => File::open(path),
        Ok(_) => return Ok(all),
        Err(e) => Err(e),
    };
    let file = match file {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(all),
        Err(e) => return Err(Error::io(format!("reading {}", path.display()), e)),
    };
    for line in BufReader::new(file).split(b'\n') {
        let line = line.map_err(|e| Error::io(format!("reading {}", path.display()), e))?;
        let damaged = || Error::corrupt(format!("{} is damaged", path.display()));
        let entry: LongName = serde_json::from_slice(&line).map_err(|e| damaged().caused_by(e))?;
        let key = match (entry.key, entry.key_hex) {
            (Some(key), None) => key.into_bytes(),
            (None, Some(hex)) => from_hex(&hex).ok_or_else(damaged)?,
            _ => return Err(damaged()),
        };
        if let Some(body) = entry.body {
            all.bodies.insert(entry.file.clone(), body.into_bytes());
        }
        all.keys.insert(entry.file, key);
    }
    Ok(all)
}

/// The lines of a file of long names, each with its end; what was cut off at its end is cut away.
pub(crate) fn long_name_lines(path: &Path) -> Result<HashSet<Vec<u8>>> {
    mend_long_names(path)?;
    match fs::read(path) {
        Ok(text) => Ok(text.split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(HashSet::new()),
        Err(e) => Err(Error::io(format!("reading {}", path.display()), e)),
    }
}

/// Cuts away what was cut off at the end of a file of long names.
pub(crate) fn mend_long_names(path: &Path) -> Result<()> {
    let Ok(mut file) = OpenOptions::new().read(true).write(true).open(path) else { return Ok(()) };
    let mut mend = || {
        let length = file.metadata()?.len();
        // No line is longer than a key may be long, twice, in hexadecimal digits.
        let tail = length.min(1 << 20);
        file.seek(SeekFrom::Start(length - tail))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at as u64 + 1);
        if whole < tail { file.set_len(length - tail + whole) } else { Ok(()) }
    };
    mend().map_err(|e| write_error(path, e))
}

fn from_hex(hex: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = hex.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    let digits = digits.filter(|d| d.len() % 2 == 0)?;
    Some(digits.chunks_exact(2).map(|pair| pair[0] * 16 + pair[1]).collect())
}
