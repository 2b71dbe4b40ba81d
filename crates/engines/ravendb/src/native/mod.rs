//! RavenDB's own backups in a vault: files as the server made them, which only RavenDB opens.

mod entry;
mod folder;
mod on_top;
mod operation;
mod sink;
mod source;

use crate::catalog;
use crate::changes::Place;
use crate::server::{Build, Stats};
use entry::{Counts, Standing};
use model::{Batch, BatchBuilder, CollectionId, CollectionInfo, Encoding, Error, Kind, Position, Result};
pub use sink::NativeSink;
pub use source::NativeSource;
use std::path::PathBuf;

/// The collection of such files. Without changes on top of them it is the only one of its point.
const COLLECTION: &str = "@native";
/// The first build that makes backups without a task.
const ONE_TIME: u64 = 42_000;

/// How the server's own backups come into a vault and back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Native {
    /// A folder that we and the server see under the same name.
    pub folder: PathBuf,
    /// Which backups the server is asked for.
    pub kind: NativeKind,
}

/// The types of RavenDB's own backups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NativeKind {
    /// The storage files of the database; servers ask for a license that allows it.
    #[default]
    Snapshot,
    /// A dump with everything in it.
    Backup,
}

impl NativeKind {
    /// As the server calls it.
    fn word(self) -> &'static str {
        match self {
            NativeKind::Snapshot => "Snapshot",
            NativeKind::Backup => "Backup",
        }
    }
}

/// Whether a collection is made of files that only RavenDB opens.
pub fn is_native(info: &CollectionInfo) -> bool {
    is_of_native(&info.id)
}

fn is_of_native(id: &CollectionId) -> bool {
    id.as_str() == COLLECTION
}

/// Whether changes from a position on go on top of files that only RavenDB opens.
pub fn is_on_native(position: &Position) -> bool {
    Place::of(position).is_ok_and(|place| place.is_on_native())
}

/// The kind of the numbers of a database, and their key.
const COUNTS: (&str, &[u8]) = ("Counts", b"counts");

/// What the change log says of the database as a whole: its numbers, and whether they are those of the changes.
pub(crate) fn counts(stats: &Stats, steady: bool) -> Result<Batch> {
    let standing = Standing { held: Counts::of(stats), steady };
    let body = serde_json::to_vec(&standing).map_err(|e| Error::bug("the numbers of a database").caused_by(e))?;
    let id = catalog::info(COLLECTION).id;
    let mut batch = BatchBuilder::new(id, Kind::Meta(COUNTS.0.into()), Encoding::Json);
    batch.push(COUNTS.1, &body);
    Ok(batch.take())
}

/// Refuses what only RavenDB itself can restore.
pub(crate) fn refuse(collections: &[CollectionInfo]) -> Result<()> {
    match collections.iter().any(is_native) {
        false => Ok(()),
        true => Err(Error::unsupported("this point is a backup that RavenDB made itself, and only RavenDB opens it")
            .hint(
                "restore it into a new database: --into ravendb+http://HOST/NAME --native-dir DIR; --into folder:OUT \
                 writes its files out, and `rewound copy ravendbdump:FILE` reads one of the type Backup",
            )),
    }
}

/// Refuses servers that make backups only by a task.
fn check(build: &Build) -> Result<()> {
    match build.build < ONE_TIME {
        false => Ok(()),
        true => Err(Error::unsupported(format!("RavenDB {} makes no backups without a task", build.full)).hint(
            "leave --native-dir out: Rewound then reads the database itself; or make a backup task in RavenDB Studio, \
             and back up its folder as ravendbdump:FOLDER",
        )),
    }
}
