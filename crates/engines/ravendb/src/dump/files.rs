//! The files of a dump: one, or the chain of a native backup folder.

use crate::dump::Input;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use model::{Error, Result, ResultExt};
use std::path::{Path, PathBuf};
use tokio::io::AsyncReadExt;

/// What full backups end with, and incremental ones.
const FULL: &str = "ravendb-full-backup";
const INCREMENTAL: &str = "ravendb-incremental-backup";
/// The storage files of a database in a zip: nothing that can be read without RavenDB.
const SNAPSHOTS: &[&str] = &["ravendb-snapshot", "ravendb-encrypted-snapshot", "ravendb-encrypted-full-backup"];
/// Bytes read at once.
const PIECE: usize = 256 << 10;

/// The files that make up the state that a path means, oldest first. A file of a native backup folder
/// means the state after it: the full backup and all incremental ones up to it.
pub(crate) fn chain(path: &Path) -> Result<Vec<PathBuf>> {
    let meta = std::fs::metadata(path).map_err(|e| Error::io(format!("looking at {}", path.display()), e))?;
    let extension = |p: &Path| p.extension().map(|e| e.to_string_lossy().into_owned()).unwrap_or_default();
    let (folder, upto) = match meta.is_dir() {
        true => (path.to_owned(), None),
        false if extension(path) == INCREMENTAL => {
            (path.parent().unwrap_or(Path::new("")).to_owned(), path.file_name())
        }
        false => return Ok(vec![path.to_owned()]),
    };
    let folder = if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder };
    let mut files = Vec::new();
    let entries = std::fs::read_dir(&folder).map_err(|e| Error::io(format!("listing {}", folder.display()), e))?;
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(format!("listing {}", folder.display()), e))?.path();
        let kind = extension(&entry);
        if SNAPSHOTS.contains(&kind.as_str()) {
            return Err(Error::unsupported(format!("{} cannot be read without RavenDB", entry.display()))
                .hint("restore it with RavenDB, then back that database up"));
        }
        if (kind == FULL || kind == INCREMENTAL) && upto.is_none_or(|upto| entry.file_name() <= Some(upto)) {
            files.push(entry);
        }
    }
    // Their names begin with their times.
    files.sort();
    match files.first().map(|f| extension(f)) {
        Some(first) if first == FULL => {
            let last = files.iter().rposition(|f| extension(f) == FULL).unwrap_or(0);
            Ok(files.split_off(last))
        }
        Some(_) => Err(Error::missing(format!("{} holds no full backup", folder.display()))
            .hint("incremental backups say nothing without the full one before them")),
        None => Err(Error::missing(format!("{} holds no backup of RavenDB", folder.display()))
            .hint("name a .ravendbdump file, or a folder with a .ravendb-full-backup")),
    }
}

/// The bytes of a file.
pub(crate) async fn open(path: &Path) -> Result<Input> {
    let shown = path.display().to_string();
    let file = tokio::fs::File::open(path).await.map_err(|e| Error::io(format!("opening {shown}"), e))?;
    Ok(futures::stream::try_unfold((file, shown), |(mut file, shown)| async move {
        let mut piece = BytesMut::with_capacity(PIECE);
        let n = file.read_buf(&mut piece).await.map_err(|e| Error::io(format!("reading {shown}"), e))?;
        Ok((n > 0).then(|| (Bytes::from(piece), (file, shown))))
    })
    .boxed())
}

/// Says which file an error is about.
pub(crate) fn of_file<T>(result: Result<T>, path: &Path) -> Result<T> {
    result.context(|| path.display().to_string())
}
