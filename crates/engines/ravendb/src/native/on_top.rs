//! What has changed since the server made its backup, for the server's restore: as files like those of its
//! own incremental backups, beside its own. The first says what was deleted, the second what there is.

use super::entry::Standing;
use super::folder::Passage;
use super::{COUNTS, is_of_native};
use crate::dump::{Compressor, Reader, Target};
use crate::gather::Tombstone;
use crate::keys;
use crate::maker::Maker;
use crate::marks;
use crate::proof;
use crate::server::{Build, Server};
use model::{AttachmentStore, Batch, BatchBuilder, Error, Kind, RestoreReport, Result};
use reqwest::Method;
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// What the names of the server's files have in common, after their time.
const NAMED: &str = ".ravendb-";
/// What the names of files with changes end with: those with deletions come first.
const DELETIONS: &str = ".ravendb-incremental-backup";
const THERE: &str = "-01.ravendb-incremental-backup";
/// Entries of the database that nothing else takes away: the server's restore adds them up.
const EXCHANGE: &str = "CompareExchange";

/// Changes that go on top of a backup that the server made.
pub(super) struct OnTop {
    deletions: Maker<Target>,
    there: Maker<Target>,
    /// Keys of compare-exchange values; none if none of what belongs to the database has changed.
    exchange: Option<HashSet<String>>,
    told: Arc<Told>,
    pub standing: Option<Standing>,
}

impl OnTop {
    /// The files are begun in the passage; `build` is what both sides understand.
    pub async fn new(passage: &Passage, build: u64, store: Arc<dyn AttachmentStore>, told: Arc<Told>) -> Result<OnTop> {
        let begin = async |name: &str| {
            let target = Target::create(passage.place(name)?).await?;
            let mut maker = Maker::new(target, Compressor::none(), build, store.clone())?;
            (maker.once, maker.refuses_unknown) = (true, true);
            Ok::<_, Error>(maker)
        };
        let (deletions, there) = (begin("deletions").await?, begin("there").await?);
        Ok(OnTop { deletions, there, exchange: None, told, standing: None })
    }

    /// Takes what the log says.
    pub async fn write(&mut self, batch: &Batch) -> Result<()> {
        self.told.add(batch)?;
        match &batch.kind {
            Kind::Meta(name) if is_of_native(&batch.collection) && name == COUNTS.0 => {
                let body = if batch.is_empty() { &b""[..] } else { batch.body_of(batch.len() - 1) };
                let standing = serde_json::from_slice(body)
                    .map_err(|e| Error::corrupt(format!("the numbers of the database cannot be read: {e}")))?;
                self.standing = Some(standing);
                Ok(())
            }
            kind if *kind == marks::kind() => self.deletions.write(batch).await,
            Kind::Document => {
                let mut gone = BatchBuilder::new(batch.collection.clone(), marks::kind(), batch.encoding);
                for i in 0..batch.len() {
                    if let Some(tombstone) = marks::tombstone(batch.body_of(i)) {
                        gone.push(batch.key_of(i), tombstone);
                    }
                }
                if gone.is_empty() {
                    return self.there.write(batch).await;
                }
                self.deletions.write(&gone.take()).await?;
                self.there.write(&part(batch, |i| !marks::is_deletion(batch.body_of(i)))).await
            }
            Kind::Meta(section) => {
                let exchange = self.exchange.get_or_insert_default();
                if section == EXCHANGE {
                    exchange.extend((0..batch.len()).map(|i| String::from_utf8_lossy(batch.key_of(i)).into_owned()));
                }
                self.there.write(batch).await
            }
            _ => self.there.write(batch).await,
        }
    }

    /// Puts the files beside the server's own.
    pub async fn finish(self, base: &Path) -> Result<Finished> {
        let named = base.file_name().and_then(|name| name.to_str()?.split_once(NAMED));
        let (time, _) = named.ok_or_else(|| {
            Error::corrupt(format!("{} is no name of a file of RavenDB's own backup", base.display()))
        })?;
        let (deletions, gone) = self.deletions.finish(true).await?;
        let (there, report) = self.there.finish(true).await?;
        for (mut file, name) in [(deletions, DELETIONS), (there, THERE)] {
            file.sync().await?;
            let to = base.with_file_name(format!("{time}{name}"));
            let moved = tokio::fs::rename(&file.path, &to).await;
            moved.map_err(|e| Error::io(format!("renaming {} to {}", file.path.display(), to.display()), e))?;
        }
        Ok(Finished { standing: self.standing, exchange: self.exchange, gone: gone.documents, there: report })
    }
}

/// Changes that the server has been given.
pub(super) struct Finished {
    pub standing: Option<Standing>,
    exchange: Option<HashSet<String>>,
    /// How many deletions, and what there is.
    pub gone: u64,
    pub there: RestoreReport,
}

impl Finished {
    /// Removes compare-exchange values that are no longer there: the server's restore leaves them.
    pub async fn tidy(&self, server: &Server, build: &Build) -> Result<()> {
        #[derive(Deserialize)]
        struct Found {
            #[serde(rename = "Results", default)]
            results: Vec<Value>,
        }
        #[derive(Deserialize)]
        struct Value {
            #[serde(rename = "Index")]
            index: u64,
        }
        let Some(kept) = &self.exchange else { return Ok(()) };
        let mut reader = Reader::new(server.export(build, &[EXCHANGE], None, None).await?);
        let mut old = Vec::new();
        while let Some(event) = reader.next().await? {
            if let crate::dump::Event::Item(item) = event {
                old.push(keys::of_item(&item.body)?);
            }
        }
        for key in old.into_iter().filter(|key| !kept.contains(key)) {
            let doing = format!("removing the compare-exchange value {key}, which was gone by then");
            let asked = server.of_database(Method::GET, &["cmpxchg"], &[("key", &key)])?;
            let Some(Value { index }) = server.json::<Found>(asked, &doing).await?.results.pop() else { continue };
            let query = [("key", &key[..]), ("index", &index.to_string())];
            server.send(server.of_database(Method::DELETE, &["cmpxchg"], &query)?, &doing).await?;
        }
        Ok(())
    }
}

/// What the log tells of: nothing else can be compared when the database is read back.
#[derive(Debug, Default)]
pub(super) struct Told {
    keys: Mutex<HashSet<u128>>,
    /// Whether the database has been restored: what comes is what it holds.
    pub is_back: AtomicBool,
}

impl Told {
    fn add(&self, batch: &Batch) -> Result<()> {
        let mut keys = self.keys.lock().unwrap_or_else(|e| e.into_inner());
        for i in 0..batch.len() {
            let space = match batch.kind == marks::kind() {
                true => Tombstone::of(batch.body_of(i))?.space(),
                false => batch.kind.space(),
            };
            keys.insert(hash(space, batch.key_of(i)));
        }
        Ok(())
    }

    /// What of a batch is compared. Documents that were deleted are not expected, and if they are there all the
    /// same, they are found. The server may cut time series into other segments.
    pub fn provable<'a>(&self, batch: &'a Batch, same_version: bool) -> Option<Cow<'a, Batch>> {
        if is_of_native(&batch.collection) || batch.kind == marks::kind() || batch.kind == Kind::TimeSeries {
            return None;
        }
        let batch = match self.is_back.load(Ordering::Acquire) {
            true => {
                let keys = self.keys.lock().unwrap_or_else(|e| e.into_inner());
                part(batch, |i| keys.contains(&hash(batch.kind.space(), batch.key_of(i))))
            }
            false => part(batch, |i| batch.kind != Kind::Document || !marks::is_deletion(batch.body_of(i))),
        };
        Some(Cow::Owned(proof::provable(&batch, same_version, true)?.into_owned()))
    }
}

fn hash(space: &str, key: &[u8]) -> u128 {
    let mut half = [0; 16];
    let mut hasher = blake3::Hasher::new();
    hasher.update(space.as_bytes()).update(&[0]).update(key);
    half.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    u128::from_le_bytes(half)
}

/// Some documents of a batch.
fn part(batch: &Batch, is_in: impl Fn(usize) -> bool) -> Batch {
    let kept: Vec<usize> = (0..batch.len()).filter(|i| is_in(*i)).collect();
    Batch {
        docs: kept.iter().map(|i| batch.docs[*i]).collect(),
        attachments: kept.iter().filter_map(|i| batch.attachments.get(*i).cloned()).collect(),
        ..batch.clone()
    }
}
