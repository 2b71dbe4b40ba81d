//! Records of checks: when the vault was verified, and when a source was last restored for real.
//!
//! A record is a small signed object of its own. Nothing that is restored depends on it; a backup
//! reads from it which objects are damaged, so that it stores them anew.

use crate::crypto::Audience;
use crate::hash::{hex, unhex32};
use crate::name::is_hex;
use crate::objects::{Objects, blocking, compress};
use crate::signed;
use crate::vault::{Inner, Vault};
use futures::{StreamExt, TryStreamExt};
use model::{EngineTime, Error, Result, ResultExt};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io::Read;
use std::sync::Arc;

/// Where the records are.
pub(crate) const CHECKS: &str = "checks/";
const CONTEXT: &str = "rewound format 1 check";
/// Records that are kept of each kind and source: a new one takes older ones away.
const KEPT: usize = 100;
/// Damaged objects that one record names.
const NAMED: usize = 10_000;
/// The source of records that are about the whole vault.
const WHOLE: &str = "0000000000000000";

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckKind {
    /// The stored objects were checked.
    Verify,
    /// A point was restored into scratch and compared.
    Drill,
}

impl CheckKind {
    fn word(self) -> &'static str {
        match self {
            CheckKind::Verify => "verify",
            CheckKind::Drill => "drill",
        }
    }
}

/// The name of a record: `checks/<time>-<kind>-<good|bad>-<source>-<stored>.json.zst[.age]`, with
/// 16 zeros in the place of a source's tag if it is about the whole vault.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CheckName {
    /// When the check ended: milliseconds since 1970 UTC.
    pub time: u64,
    /// What was done.
    pub kind: CheckKind,
    /// Whether nothing at all was found; also damage that harms nothing makes it bad.
    pub good: bool,
    /// Tag of the source; none: the whole vault.
    pub source: Option<String>,
    /// blake3 of the stored bytes.
    pub stored: [u8; 32],
    /// Whether it is encrypted.
    pub encrypted: bool,
}

impl CheckName {
    /// Reads the path of a record.
    pub fn parse(path: &str) -> Option<Self> {
        let (name, endings) = path.strip_prefix(CHECKS)?.split_once('.')?;
        let mut parts = name.split('-');
        let (time, kind, good) = (parts.next()?, parts.next()?, parts.next()?);
        let (source, stored) = (parts.next()?, parts.next()?);
        if parts.next().is_some() || !is_hex(time, 12) || !is_hex(source, 16) {
            return None;
        }
        Some(CheckName {
            time: u64::from_str_radix(time, 16).ok()?,
            kind: [CheckKind::Verify, CheckKind::Drill].into_iter().find(|k| k.word() == kind)?,
            good: match good {
                "good" => true,
                "bad" => false,
                _ => return None,
            },
            source: (source != WHOLE).then(|| source.to_owned()),
            stored: unhex32(stored)?,
            encrypted: match endings {
                "json.zst.age" => true,
                "json.zst" => false,
                _ => return None,
            },
        })
    }
}

impl fmt::Display for CheckName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CheckName { time, kind, good, source, stored, encrypted } = self;
        let (kind, good) = (kind.word(), if *good { "good" } else { "bad" });
        let source = source.as_deref().unwrap_or(WHOLE);
        let age = if *encrypted { ".age" } else { "" };
        write!(f, "{CHECKS}{time:012x}-{kind}-{good}-{source}-{}.json.zst{age}", hex(stored))
    }
}

/// A part of all objects, by their names: `count` of `of` parts, from part `first` on (counted from
/// 0, going on at 0 after the last).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// The first part.
    pub first: u32,
    /// How many parts.
    pub count: u32,
    /// How many parts there are.
    pub of: u32,
}

impl Sample {
    /// Whether something with this name belongs to the sample.
    pub fn takes(&self, name: &str) -> bool {
        let of = u64::from(self.of.max(1));
        let mut head = [0; 8];
        head.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..8]);
        let part = u64::from_le_bytes(head) % of;
        (part + of - u64::from(self.first) % of) % of < u64::from(self.count)
    }

    /// The sample after this one.
    #[must_use]
    pub fn next(self) -> Sample {
        let first = (u64::from(self.first) + u64::from(self.count)) % u64::from(self.of.max(1));
        Sample { first: first as u32, ..self }
    }
}

/// What a check found: the content of a record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Always `check`.
    pub rewound: String,
    /// Version of the format.
    pub format: u32,
    /// What was done.
    pub kind: CheckKind,
    /// When it began, milliseconds since 1970 UTC, by the clock of the host.
    pub began: i64,
    /// When it ended.
    pub ended: i64,
    /// Whether everything can be restored, or was.
    pub good: bool,
    /// What was wrong, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// For a verify: how much was checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<Verified>,
    /// For a drill: what was restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drilled: Option<Drilled>,
}

/// What a verify looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Whether only stored bytes were looked at.
    pub quick: bool,
    /// Which part of the objects, if not all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<Sample>,
    /// Objects checked.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of all objects.
    pub total_bytes: u64,
    /// Paths of what is damaged or missing, at most 10,000.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<String>,
}

/// What a drill restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drilled {
    /// Tag of the source.
    pub source: String,
    /// The point's id.
    pub point: String,
    /// The engine time that was restored.
    pub time: EngineTime,
    /// Where it was restored to, without secrets.
    pub target: String,
    /// Documents and attachments that were read back and compared.
    pub documents: u64,
}

impl Check {
    /// What a check found that began and ended at these times.
    pub fn new(kind: CheckKind, began: i64, ended: i64, problem: Option<String>) -> Self {
        Check {
            rewound: "check".into(),
            format: crate::vault_file::FORMAT,
            kind,
            began,
            ended,
            good: problem.is_none(),
            problem,
            verified: None,
            drilled: None,
        }
    }

    fn is_clean(&self) -> bool {
        self.good && self.verified.as_ref().is_none_or(|v| v.damaged.is_empty())
    }
}

/// The last checks of a vault.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LastChecks {
    /// The last verify.
    pub verify: Option<Check>,
    /// The last drill of each source, by tag.
    pub drills: BTreeMap<String, Check>,
    /// Records that cannot be read: what is wrong.
    pub broken: Vec<String>,
}

impl Vault {
    /// Records a check. Needs the vault's secrets, as it is signed.
    pub async fn record_check(&self, check: &Check) -> Result<CheckName> {
        let mut check = check.clone();
        if let Some(verified) = &mut check.verified {
            verified.damaged.truncate(NAMED);
        }
        let vault = &self.inner;
        let compressed = compress(&signed::write(vault.signing()?, CONTEXT, &check)?, 3)?;
        let cipher = vault.objects()?.cipher;
        let encrypted = !cipher.is_plain();
        let (sealed, _) = blocking(move || cipher.seal(Audience::Writers, compressed)).await?;
        let name = CheckName {
            time: check.ended.max(0) as u64,
            kind: check.kind,
            good: check.is_clean(),
            source: check.drilled.map(|d| d.source),
            stored: *blake3::hash(&sealed).as_bytes(),
            encrypted,
        };
        vault.storage.create(&name.to_string(), sealed.into()).await?;
        vault.storage.sync().await?;
        self.forget_old(&name).await;
        Ok(name)
    }

    /// Takes away records of the same kind and source that are long past. That it fails (a storage
    /// that forbids deletion) harms nothing.
    async fn forget_old(&self, new: &CheckName) {
        let Ok(mut names) = list(&self.inner).await else { return };
        names.retain(|n| n.kind == new.kind && n.source == new.source);
        let old = names.len().saturating_sub(KEPT);
        for name in &names[..old] {
            if let Err(e) = self.inner.storage.delete(&name.to_string()).await {
                tracing::debug!("an old record of a check stays: {e}");
                return;
            }
        }
    }

    /// The last verify, and the last drill of each source.
    pub async fn last_checks(&self) -> Result<LastChecks> {
        let mut newest: BTreeMap<Option<String>, CheckName> = BTreeMap::new();
        for name in list(&self.inner).await? {
            newest.insert(name.source.clone(), name);
        }
        let mut last = LastChecks::default();
        for (source, name) in newest {
            match (read(&self.inner, &name).await, source) {
                (Ok(check), Some(source)) => drop(last.drills.insert(source, check)),
                (Ok(check), None) => last.verify = Some(check),
                (Err(e), _) if e.kind() == model::ErrorKind::Corrupt => last.broken.push(e.to_string()),
                // Another check has just taken it away, with a newer one in its place.
                (Err(e), _) if e.kind() == model::ErrorKind::Missing => {}
                (Err(e), _) => return Err(e),
            }
        }
        Ok(last)
    }

    /// The last verify of a sample of so many parts, whose successor is due.
    pub async fn last_sample(&self, of: u32) -> Result<Option<Sample>> {
        let mut names = list(&self.inner).await?;
        names.retain(|n| n.kind == CheckKind::Verify);
        for name in names.iter().rev() {
            let sample = read(&self.inner, name).await.ok().and_then(|c| c.verified).and_then(|v| v.sample);
            if let Some(sample) = sample.filter(|s| s.of == of) {
                return Ok(Some(sample));
            }
        }
        Ok(None)
    }
}

/// The names of all records, oldest first.
async fn list(vault: &Inner) -> Result<Vec<CheckName>> {
    let entries: Vec<_> = vault.storage.list(CHECKS).await?.try_collect().await?;
    let mut names: Vec<CheckName> = entries.iter().filter_map(|e| CheckName::parse(&e.name)).collect();
    names.sort();
    Ok(names)
}

/// Reads one record and checks its hash, its signature, and that it is what its name says.
pub(crate) async fn read(vault: &Inner, name: &CheckName) -> Result<Check> {
    let (path, objects, key) = (name.to_string(), vault.objects()?, vault.file.writer_key()?);
    let stored = vault.storage.read(&path).await?;
    let wanted = name.clone();
    blocking(move || {
        objects.check(&wanted.to_string(), &stored, &wanted.stored)?;
        let plain = objects.cipher.open(stored.into())?;
        let failed = |e: std::io::Error| Error::corrupt(format!("it cannot be decompressed: {e}"));
        let mut bytes = Vec::new();
        let decoder = zstd::stream::read::Decoder::new(&plain[..]).map_err(failed)?;
        decoder.take(1 << 24).read_to_end(&mut bytes).map_err(failed)?;
        let check: Check = signed::read(&key, CONTEXT, &bytes)?;
        let source = check.drilled.as_ref().map(|d| &d.source);
        let says = (check.kind, check.is_clean(), check.ended.max(0) as u64, source);
        if says != (wanted.kind, wanted.good, wanted.time, wanted.source.as_ref()) {
            return Err(Error::corrupt("it is another record's content under this name"));
        }
        Ok(check)
    })
    .await
    .context(|| format!("reading {path}"))
}

/// Objects that checks have found damaged or missing: a backup does not build on them, and stores
/// their content anew.
pub(crate) async fn damaged(vault: &Arc<Inner>) -> Result<HashSet<String>> {
    let mut names = list(vault).await?;
    names.retain(|n| n.kind == CheckKind::Verify && !n.good);
    let mut reading = futures::stream::iter(names)
        .map(|name| {
            let vault = vault.clone();
            async move { read(&vault, &name).await }
        })
        .buffer_unordered(8);
    let mut all = HashSet::new();
    while let Some(check) = reading.next().await {
        match check {
            Ok(check) => all.extend(check.verified.into_iter().flat_map(|v| v.damaged)),
            // What a broken record says nobody knows; the next verify says it again.
            Err(e) => tracing::warn!("a record of a check is left out: {e}"),
        }
    }
    Ok(all)
}

/// Checks one record as [`read`] does, where there are keys; else its bytes only.
pub(crate) async fn check(vault: &Inner, open: Option<&Objects>, name: &CheckName) -> Result<()> {
    match open {
        Some(_) => read(vault, name).await.map(drop),
        None => {
            let stored = vault.storage.read(&name.to_string()).await?;
            match *blake3::hash(&stored).as_bytes() == name.stored {
                true => Ok(()),
                false => Err(Error::corrupt("its bytes do not have the hash in its name")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_read_back() {
        for (source, good, encrypted) in [(None, true, false), (Some("0123456789abcdef".to_owned()), false, true)] {
            let kind = if source.is_some() { CheckKind::Drill } else { CheckKind::Verify };
            let name = CheckName { time: 1_760_000_000_123, kind, good, source, stored: [7; 32], encrypted };
            assert_eq!(CheckName::parse(&name.to_string()).unwrap(), name);
            assert!(CheckName::parse(&name.to_string().replace("good", "fine").replace("bad", "fine")).is_none());
            assert!(CheckName::parse(&format!("{name}/x")).is_none());
        }
    }

    #[test]
    fn samples_cover_everything_once() {
        let names: Vec<String> = (0..500).map(|i| format!("segments/{i}")).collect();
        for (count, of) in [(1, 1), (1, 7), (3, 7), (7, 7), (9, 7), (2, 30)] {
            let mut sample = Sample { first: 5 % of, count, of };
            let mut seen = vec![0; names.len()];
            for _ in 0..of.div_ceil(count) {
                names.iter().zip(&mut seen).for_each(|(name, seen)| *seen += u32::from(sample.takes(name)));
                sample = sample.next();
            }
            assert!(seen.iter().all(|n| *n >= 1 && *n <= 2), "{count}/{of}");
            if of % count == 0 {
                assert!(seen.iter().all(|n| *n == 1), "{count}/{of}");
            }
        }
    }
}
