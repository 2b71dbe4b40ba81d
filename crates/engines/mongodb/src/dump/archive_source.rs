//! An archive as a source: what it holds, and where its content can be read.

use super::archive::{self, Index, Prelude, Stored};
use super::contents::{Bad, Contents, Place, Raw};
use super::files::{self, Stamp};
use super::metadata::Metadata;
use super::window::{Flaw, Stop};
use model::{Error, ErrorKind, Result};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

/// The content of an archive in a file: itself, or a temporary one where it is compressed.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    pub file: Arc<File>,
    /// Of the archive.
    pub stamp: Stamp,
}

/// Reads what the archive says of itself at its beginning.
pub(crate) fn list(path: &Path, users: bool) -> Result<Contents> {
    let gzip = files::is_gzip(path).map_err(|e| failed(path, e))?;
    let file = File::open(path).map_err(|e| failed(path, e))?;
    match archive::prelude(files::content(file, gzip)) {
        Ok(prelude) => Ok(contents(path, &prelude, users)),
        Err(Stop::Io(e)) => Err(failed(path, e)),
        Err(Stop::Flaw(flaw)) => Err(no_archive(path, &flaw)),
    }
}

/// Reads and checks all of it. What is compressed goes to a temporary file on the way, as the
/// documents of a collection are spread over the whole archive.
pub(crate) fn check(path: &Path, users: bool) -> Result<(Contents, Content)> {
    let fail = |e| failed(path, e);
    let file = File::open(path).map_err(fail)?;
    let stamp = Stamp::of(&file.metadata().map_err(fail)?);
    let (index, file) = if files::is_gzip(path).map_err(fail)? {
        let mut spool = spool()?;
        let tee = Tee { reader: files::content(file, true), copy: &mut spool, failed: None };
        (spooled(path, tee)?, spool)
    } else {
        (archive::index(&file).map_err(fail)?, file)
    };
    let contents = checked(path, &index, users, stamp)?;
    Ok((contents, Content { file: Arc::new(file), stamp }))
}

/// The content again, for a reader that has not planned.
pub(crate) fn open(path: &Path) -> Result<Content> {
    check(path, true).map(|(_, content)| content)
}

fn checked(path: &Path, index: &Index, users: bool, stamp: Stamp) -> Result<Contents> {
    if let (Some(flaw), true) = (&index.flaw, index.stored.is_empty()) {
        return Err(no_archive(path, flaw));
    }
    let mut contents = contents(path, &index.prelude, users);
    let shown = path.display();
    if let Some(flaw) = &index.flaw {
        let what = format!("{shown}, at byte {} of its content", flaw.at);
        let why = format!("{}; of what comes behind that nothing can be read", flaw.why);
        contents.bad.push(Bad { namespace: None, kind: ErrorKind::Corrupt, what, why });
    }
    for entry in &mut contents.entries {
        let Place::Blocks { namespace, ranges, stamp: planned } = &mut entry.data else { continue };
        let listed = index.prelude.collections.iter().find(|listed| listed.namespace == *namespace);
        let Some(stored) = listed.and_then(|listed| index.of(listed)) else { continue };
        ranges.clone_from(&stored.ranges);
        *planned = Some(stamp);
        entry.documents = stored.documents;
        if let Some(why) = &stored.flaw {
            contents.bad.push(flawed(path, &entry.info.name, stored, why));
        }
    }
    Ok(contents)
}

fn flawed(path: &Path, name: &str, stored: &Stored, why: &str) -> Bad {
    let first = stored.ranges.first().map_or(String::new(), |(at, _)| format!(" from byte {at} on"));
    Bad {
        namespace: Some(name.to_owned()),
        kind: ErrorKind::Corrupt,
        what: format!("{}, collection {name}{first}", path.display()),
        why: format!("{why}; {} documents are there, and any of them may be damaged", stored.documents),
    }
}

fn contents(path: &Path, prelude: &Prelude, users: bool) -> Contents {
    let mut contents = Contents { version: Some(prelude.server_version.clone()), ..Contents::default() };
    let mut raws = Vec::with_capacity(prelude.collections.len());
    let mut has_oplog = false;
    for listed in &prelude.collections {
        let (database, name) = &listed.namespace;
        if database.is_empty() {
            has_oplog |= name == "oplog";
            continue;
        }
        let shown = format!("{}, collection {database}.{name}", path.display());
        let metadata = match listed.metadata.is_empty() {
            true => None,
            false => match Metadata::parse(listed.metadata.as_bytes()) {
                Ok(metadata) => Some(metadata),
                Err(why) => {
                    let namespace = Some(format!("{database}.{name}"));
                    let why = format!("its metadata cannot be read: {why}");
                    contents.bad.push(Bad { namespace, kind: ErrorKind::Corrupt, what: shown, why });
                    continue;
                }
            },
        };
        let data = Place::Blocks { namespace: listed.namespace.clone(), ranges: Vec::new(), stamp: None };
        raws.push(Raw { database: database.clone(), name: Some(name.clone()), shown, metadata, data: Some(data) });
    }
    contents.gather(raws, users);
    if has_oplog {
        contents.lose(
            vec!["the oplog in the archive".into()],
            "its changes are not replayed: collections are as they were when each was dumped; for the state at the end \
             of a dump made with --oplog, restore it with mongorestore --oplogReplay",
        );
    }
    contents
}

/// Copies what is read.
struct Tee<'a, R> {
    reader: R,
    copy: &'a mut File,
    /// Why copying failed: no fault of the archive.
    failed: Option<io::Error>,
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(into)?;
        if let Err(e) = self.copy.write_all(&into[..count]) {
            self.failed = Some(e);
            return Err(io::Error::other("the temporary file cannot be written"));
        }
        Ok(count)
    }
}

fn spool() -> Result<File> {
    tempfile::tempfile().map_err(|e| Error::io("making a temporary file for the content of the archive", e))
}

fn spooled<R: Read>(path: &Path, mut tee: Tee<'_, R>) -> Result<Index> {
    let index = archive::index(&mut tee);
    match (index, tee.failed) {
        (_, Some(e)) => Err(Error::io("writing the content of the archive to a temporary file", e)
            .hint("set TMPDIR to a folder with room for it, or decompress the archive with gunzip and name that file")),
        (Ok(index), None) => Ok(index),
        (Err(e), None) => Err(failed(path, e)),
    }
}

fn no_archive(path: &Path, flaw: &Flaw) -> Error {
    Error::corrupt(format!("{} is no whole archive of mongodump: at byte {}: {}", path.display(), flaw.at, flaw.why))
        .hint("name a file that mongodump --archive made, or the folder of a dump")
}

fn failed(path: &Path, e: io::Error) -> Error {
    Error::io(format!("reading {}", path.display()), e)
}
