//! What Rewound keeps for a user: writers' secrets, and which writer each vault had when it was
//! first seen.

use crate::vault_file::WriterSecrets;
use model::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The user's config folder: `REWOUND_CONFIG`, else `$XDG_CONFIG_HOME/rewound`, else
/// `~/.config/rewound`.
#[derive(Debug, Clone)]
pub struct Config {
    folder: PathBuf,
}

/// What is kept for one vault.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct VaultState {
    /// Public key of the vault's writer, pinned at first sight.
    writer: String,
    /// The writer's secrets, as JSON text; empty on a host that only reads.
    #[serde(default)]
    secrets: String,
    /// The newest point this host wrote, by source tag: shows when a vault has lost its newest.
    #[serde(default)]
    newest: BTreeMap<String, String>,
}

impl Config {
    /// The user's folder.
    pub fn for_user() -> Result<Self> {
        let from = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let folder = from("REWOUND_CONFIG")
            .or_else(|| from("XDG_CONFIG_HOME").map(|p| p.join("rewound")))
            .or_else(|| from("HOME").map(|p| p.join(".config/rewound")))
            .ok_or_else(|| {
                Error::input("no config folder: neither REWOUND_CONFIG nor HOME is set").hint("set REWOUND_CONFIG")
            })?;
        Ok(Config { folder })
    }

    /// A folder of the caller's.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Config { folder: folder.into() }
    }

    /// The file that holds what is kept for a vault.
    pub fn file_of(&self, vault: &str) -> PathBuf {
        self.folder.join("vaults").join(format!("{vault}.json"))
    }

    fn load(&self, vault: &str) -> Result<Option<VaultState>> {
        let path = self.file_of(vault);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(format!("reading {}", path.display()), e)),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|e| {
            Error::corrupt(format!("{} cannot be read: {e}", path.display()))
                .hint("remove the file; the next backup with --identity writes it anew from the vault's escrow")
        })
    }

    fn save(&self, vault: &str, state: &VaultState) -> Result<()> {
        let path = self.file_of(vault);
        let json = serde_json::to_vec_pretty(state).map_err(|e| Error::bug(e.to_string()))?;
        write_private(&path, &json)
    }

    /// Compares a vault's writer with the one pinned at first sight; pins it if there is none.
    pub(crate) fn pin(&self, vault: &str, writer: &str) -> Result<()> {
        match self.load(vault)? {
            Some(state) if state.writer == writer => Ok(()),
            Some(state) => Err(Error::corrupt(format!(
                "the vault's writer key is {writer}, but it was {} when this host first saw the vault",
                state.writer
            ))
            .hint(format!(
                "somebody may have put another vault in its place; if you know why the key changed, remove {}",
                self.file_of(vault).display()
            ))),
            // A host without a writable config folder can still read.
            None => {
                let state = VaultState { writer: writer.to_owned(), ..VaultState::default() };
                if let Err(e) = self.save(vault, &state) {
                    tracing::warn!("the vault's writer key could not be remembered: {e}");
                }
                Ok(())
            }
        }
    }

    /// The writer's secrets kept for a vault.
    pub(crate) fn secrets(&self, vault: &str) -> Result<Option<WriterSecrets>> {
        match self.load(vault)? {
            Some(state) if !state.secrets.is_empty() => WriterSecrets::from_json(state.secrets.as_bytes()).map(Some),
            _ => Ok(None),
        }
    }

    /// Keeps the writer's secrets for a vault.
    pub(crate) fn keep_secrets(&self, vault: &str, writer: &str, secrets: &WriterSecrets) -> Result<()> {
        let mut state = self.load(vault)?.unwrap_or_default();
        state.writer = writer.to_owned();
        state.secrets = secrets.to_json();
        self.save(vault, &state)
    }

    /// The newest point of a source that this host wrote.
    pub(crate) fn newest(&self, vault: &str, source: &str) -> Result<Option<String>> {
        Ok(self.load(vault)?.and_then(|s| s.newest.get(source).cloned()))
    }

    /// Remembers the newest point of a source.
    pub(crate) fn keep_newest(&self, vault: &str, writer: &str, source: &str, point: &str) -> Result<()> {
        let mut state = self.load(vault)?.unwrap_or_default();
        state.writer = writer.to_owned();
        state.newest.insert(source.to_owned(), point.to_owned());
        self.save(vault, &state)
    }
}

/// Writes a file only the user can read, atomically.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let what = |doing: &str| format!("{doing} {}", path.display());
    std::fs::create_dir_all(folder).map_err(|e| Error::io(format!("making {}", folder.display()), e))?;
    // A temporary file is private from the start.
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(|e| Error::io(what("writing"), e))?;
    std::io::Write::write_all(&mut file, bytes).map_err(|e| Error::io(what("writing"), e))?;
    file.as_file().sync_all().map_err(|e| Error::io(what("writing"), e))?;
    file.persist(path).map_err(|e| Error::io(what("writing"), e.error))?;
    Ok(())
}
