//! Checking one object by itself.

use crate::checks::{self, CHECKS, CheckName};
use crate::content;
use crate::log::{self, contents};
use crate::name::{ContentsName, HISTORY, LogName, ObjectName, PointName};
use crate::objects::{Objects, blocking};
use crate::prune::{self, REMOVED};
use crate::vault::Inner;
use crate::vault_file::VAULT_FILE;
use model::{Error, Result};
use std::sync::Arc;

/// Checks one object: its name, its bytes, and with `open` its content.
pub(super) async fn check(vault: &Arc<Inner>, open: Option<Objects>, path: &str) -> Result<()> {
    if path == VAULT_FILE || path.starts_with("active/") || path.starts_with("prune/") {
        return Ok(());
    }
    if path.starts_with(CHECKS) {
        let name = CheckName::parse(path).ok_or_else(|| foreign(path))?;
        return checks::check(vault, open.as_ref(), &name).await;
    }
    if path.starts_with(REMOVED) {
        return prune::check_removed(vault, path, open.is_some()).await;
    }
    if let Some(name) = LogName::parse(path) {
        let (stored, key) = (vault.storage.read(path).await?, vault.file.writer_key()?);
        return blocking(move || {
            has_hash(&stored, &name.stored)?;
            match open {
                Some(objects) => log::check(&name, &objects.cipher.open_into(stored, &objects.buffers)?, &key),
                None => Ok(()),
            }
        })
        .await;
    }
    if let Some(name) = ContentsName::parse(path) {
        let (stored, key) = (vault.storage.read(path).await?, vault.file.writer_key()?);
        return blocking(move || {
            has_hash(&stored, &name.stored)?;
            match open {
                Some(objects) => {
                    let plain = objects.cipher.open_into(stored, &objects.buffers)?;
                    contents::parse(&plain, &name, &key).map(drop)
                }
                None => Ok(()),
            }
        })
        .await;
    }
    if path.starts_with(HISTORY) {
        let name = PointName::parse(path).ok_or_else(|| foreign(path))?;
        let stored = vault.storage.read(path).await?;
        return blocking(move || has_hash(&stored, &name.stored)).await;
    }
    let name = ObjectName::parse(path).map_err(|_| foreign(path))?;
    let stored = vault.storage.read(path).await?;
    blocking(move || {
        has_hash(&stored, &name.stored)?;
        match open {
            Some(objects) => {
                let plain = objects.cipher.open_into(stored, &objects.buffers)?;
                content::check(&objects, &name, &plain)
            }
            None => Ok(()),
        }
    })
    .await
}

fn has_hash(stored: &[u8], expected: &[u8; 32]) -> Result<()> {
    match blake3::hash(stored).as_bytes() == expected {
        true => Ok(()),
        false => Err(Error::corrupt("its bytes do not have the hash in its name")),
    }
}

fn foreign(path: &str) -> Error {
    Error::corrupt(format!("{path} does not belong into a vault"))
}
