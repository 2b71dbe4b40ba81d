//! What prunes have removed, as far as it still matters: points that others name as the one before
//! them, so that they are not taken for lost; and gaps that removed points told of, so that nothing
//! is ever bridged across them.

use crate::crypto::Audience;
use crate::hash::{hex, unhex32};
use crate::name::is_hex;
use crate::objects::{blocking, compress};
use crate::signed;
use crate::vault::Inner;
use futures::TryStreamExt;
use model::limits::GRACE;
use model::{Error, ErrorKind, Gap, Result, ResultExt};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::io::Read;

/// Where the records are: `removed/<time>-<stored>.json.zst[.age]`.
pub(crate) const REMOVED: &str = "removed/";
const CONTEXT: &str = "rewound format 1 removed points";

/// What is remembered.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Removed {
    rewound: String,
    format: u32,
    /// Points by their paths: when they were removed, milliseconds since 1970 UTC.
    pub points: BTreeMap<String, i64>,
    /// What removed points told of gaps, by source.
    pub gaps: BTreeMap<String, Vec<Gap>>,
    /// The records that this was read from.
    #[serde(skip)]
    records: Vec<String>,
}

impl Removed {
    /// Gaps of a source.
    pub fn gaps_of(&self, tag: &str) -> Vec<Gap> {
        self.gaps.get(tag).cloned().unwrap_or_default()
    }

    fn merge(&mut self, other: Removed) {
        self.points.extend(other.points);
        for (tag, gaps) in other.gaps {
            let known = self.gaps.entry(tag).or_default();
            gaps.into_iter().for_each(|gap| remember(known, gap));
        }
    }

    /// Remembers a gap of a source.
    pub fn add_gap(&mut self, tag: &str, gap: Gap) {
        remember(self.gaps.entry(tag.to_owned()).or_default(), gap);
    }

    /// Forgets points that no point names and that were removed long ago, and gaps that lie before
    /// all that `oldest` says there is of their source.
    pub fn forget(&mut self, named: &HashSet<&str>, oldest: &BTreeMap<&str, i64>, now: i64) {
        // A run that began before the prune may still name one, and the host that wrote it may look
        // for it when it comes back.
        let late = 90 * GRACE.as_millis() as i64;
        self.points.retain(|path, at| named.contains(path.as_str()) || now - *at < late);
        for (tag, gaps) in &mut self.gaps {
            let oldest = oldest.get(tag.as_str());
            gaps.retain(|gap| oldest.is_some_and(|oldest| gap.to.is_none_or(|to| *oldest <= to.millis)));
        }
        self.gaps.retain(|_, gaps| !gaps.is_empty());
    }
}

fn remember(gaps: &mut Vec<Gap>, gap: Gap) {
    if !gaps.contains(&gap) {
        gaps.push(gap);
    }
}

/// All that is remembered.
pub(crate) async fn read_all(vault: &Inner) -> Result<Removed> {
    let mut paths: Vec<String> = vault.storage.list(REMOVED).await?.map_ok(|e| e.name).try_collect().await?;
    paths.sort();
    let mut all = Removed::default();
    for path in paths {
        match read(vault, &path).await {
            Ok(record) => {
                all.merge(record);
                all.records.push(path);
            }
            // A prune has just replaced it.
            Err(e) if e.kind() == ErrorKind::Missing => {}
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                tracing::warn!("a record of removed points is left out: {e}");
            }
            Err(e) => return Err(e),
        }
    }
    Ok(all)
}

/// Stores what is remembered from now on, durably, in the place of the records it was read from.
pub(super) async fn store(vault: &Inner, removed: &mut Removed, now: i64) -> Result<()> {
    let record = Removed { rewound: "removed".into(), format: crate::vault_file::FORMAT, ..removed.clone() };
    let compressed = compress(&signed::write(vault.signing()?, CONTEXT, &record)?, 3)?;
    let cipher = vault.objects()?.cipher;
    let age = if cipher.is_plain() { "" } else { ".age" };
    let (sealed, _) = blocking(move || cipher.seal(Audience::Writers, compressed)).await?;
    let path = format!("{REMOVED}{:012x}-{}.json.zst{age}", now.max(0), hex(blake3::hash(&sealed).as_bytes()));
    // Replacing is what never leaves half an object behind, and no other record has this content.
    vault.storage.replace(&path, sealed.into()).await?;
    vault.storage.sync().await?;
    let old = std::mem::replace(&mut removed.records, vec![path.clone()]);
    for record in old.iter().filter(|old| **old != path) {
        vault.storage.delete(record).await?;
    }
    Ok(())
}

/// Checks a record's hash, and with `open` also its signature.
pub(crate) async fn check(vault: &Inner, path: &str, open: bool) -> Result<()> {
    if open {
        return read(vault, path).await.map(drop);
    }
    let expected = stored_hash(path)?;
    match *blake3::hash(&vault.storage.read(path).await?).as_bytes() == expected {
        true => Ok(()),
        false => Err(Error::corrupt("its bytes do not have the hash in its name")),
    }
}

/// Reads one record and checks its hash and its signature.
async fn read(vault: &Inner, path: &str) -> Result<Removed> {
    let (objects, key) = (vault.objects()?, vault.file.writer_key()?);
    let expected = stored_hash(path)?;
    let stored = vault.storage.read(path).await?;
    let wanted = path.to_owned();
    blocking(move || {
        objects.check(&wanted, &stored, &expected)?;
        let plain = objects.cipher.open(stored.into())?;
        let failed = |e: std::io::Error| Error::corrupt(format!("it cannot be decompressed: {e}"));
        let mut bytes = Vec::new();
        let decoder = zstd::stream::read::Decoder::new(&plain[..]).map_err(failed)?;
        decoder.take(1 << 28).read_to_end(&mut bytes).map_err(failed)?;
        signed::read(&key, CONTEXT, &bytes)
    })
    .await
    .context(|| format!("reading {path}"))
}

/// The hash that the name of a record tells.
fn stored_hash(path: &str) -> Result<[u8; 32]> {
    let parse = || {
        let (name, endings) = path.strip_prefix(REMOVED)?.split_once('.')?;
        let (time, stored) = name.split_once('-')?;
        (matches!(endings, "json.zst" | "json.zst.age") && is_hex(time, 12)).then(|| unhex32(stored))?
    };
    parse().ok_or_else(|| Error::corrupt(format!("{path} is not the name of a record of removed points")))
}
