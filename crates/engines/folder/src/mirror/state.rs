//! What a mirror remembers of itself: its collections, and what its user keeps with them.

use crate::writer;
use crate::writer::write_error;
use model::{CollectionInfo, Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

/// The format of mirrors that this program writes.
const FORMAT: u32 = 1;

/// The content of `state.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct State {
    /// Always `mirror`.
    pub rewound: String,
    pub format: u32,
    /// What the user of the mirror keeps.
    pub memory: Value,
    /// The number of the next collection.
    pub next: u32,
    pub collections: Vec<Kept>,
    /// A folder that is being renamed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<Moving>,
}

/// A collection that is kept in step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// The number of its ledger.
    pub number: u32,
    /// Its folder.
    pub entry: String,
    pub info: CollectionInfo,
}

/// A folder that is being renamed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Moving {
    pub number: u32,
    pub to: String,
}

impl State {
    /// That of a mirror that has nothing yet.
    pub fn new() -> State {
        State {
            rewound: "mirror".into(),
            format: FORMAT,
            memory: Value::Null,
            next: 0,
            collections: Vec::new(),
            moving: None,
        }
    }

    /// What is in this file; none if there is no file.
    pub fn read(path: &Path) -> Result<Option<State>> {
        let text = match fs::read(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| Error::io(format!("reading {}", path.display()), e))?,
        };
        let damaged = |e| Error::corrupt(format!("{} is damaged", path.display())).caused_by(e);
        let value: Value = serde_json::from_slice(&text).map_err(damaged)?;
        if value.get("format").and_then(Value::as_u64) != Some(u64::from(FORMAT)) {
            return Err(Error::unsupported(format!("{} was written by another version of Rewound", path.display()))
                .hint("use a newer version of Rewound, or mirror into an empty folder"));
        }
        serde_json::from_value(value).map(Some).map_err(damaged)
    }

    /// Writes the file, durable when this returns.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::bug("the state of a mirror cannot be written as JSON").caused_by(e))?;
        text.push(b'\n');
        let new = path.with_extension("new");
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, path)?;
            writer::sync_folder(path.parent().unwrap_or(Path::new(".")))
        };
        write().map_err(|e| write_error(path, e))
    }
}
