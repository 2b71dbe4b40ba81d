//! Opening files without following links, and telling whether one has changed.

use bytes::BytesMut;
use model::{Error, ErrorKind, Result};
use std::fs::{File, Metadata, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::path::Path;
use std::time::UNIX_EPOCH;

/// Opens a file for reading; a link is an error, as it may lead out of the folder.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        options.custom_flags(flags.bits() as i32);
    }
    options.open(path)
}

/// What tells that a file has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Stamp {
    /// Bytes.
    pub length: u64,
    /// Nanoseconds since 1970.
    modified: i128,
}

impl Stamp {
    /// The stamp in a file's metadata.
    pub fn of(found: &Metadata) -> Stamp {
        let modified = match found.modified() {
            Ok(time) => match time.duration_since(UNIX_EPOCH) {
                Ok(after) => after.as_nanos() as i128,
                Err(before) => -(before.duration().as_nanos() as i128),
            },
            Err(_) => 0,
        };
        Stamp { length: found.len(), modified }
    }

    /// A number for this stamp of the file with this name. The numbers of many files are added up,
    /// so that the order in which they are met does not count.
    pub fn fingerprint(&self, name: &[u8]) -> u64 {
        let mut hasher = DefaultHasher::new();
        (name, self).hash(&mut hasher);
        hasher.finish()
    }
}

/// Appends a whole file of known length to `into`; false if it has another length by now.
pub(crate) fn append(file: &mut File, length: usize, into: &mut BytesMut) -> io::Result<bool> {
    let start = into.len();
    // One byte more than expected: a file that has grown shows at once.
    into.resize(start + length + 1, 0);
    let mut got = 0;
    while got <= length {
        match file.read(&mut into[start + got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        // A short read of a plain file is its end; asking again would cost as much as the read.
        if got == length {
            break;
        }
    }
    into.truncate(start + got.min(length));
    Ok(got == length)
}

/// What was planned is not what is there now.
pub(crate) fn changed(what: &str) -> Error {
    Error::new(ErrorKind::Retry, format!("{what} changed while it was being read"))
        .hint("run the command again, when nothing writes to the folder")
}

/// An error of reading a file that the plan has seen: that it is gone means that it changed.
pub(crate) fn read_error(shown: &str, e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::NotFound => changed(shown),
        _ => Error::io(format!("reading {shown}"), e),
    }
}

/// Runs blocking work off the asynchronous threads.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Error::bug("a worker of the folder engine stopped").caused_by(e)),
    }
}
