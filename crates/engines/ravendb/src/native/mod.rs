//! RavenDB's own backups in a vault: files as the server made them, which only RavenDB opens.

mod entry;
mod folder;
mod operation;
mod sink;
mod source;

use crate::server::Build;
use model::{CollectionInfo, Error, Result};
pub use sink::NativeSink;
pub use source::NativeSource;
use std::path::PathBuf;

/// The collection of such files; it is the only one of its point.
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
    info.id.as_str() == COLLECTION
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
