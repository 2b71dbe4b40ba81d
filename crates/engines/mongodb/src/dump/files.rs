//! Files of a dump, plain or compressed.

use flate2::read::MultiGzDecoder;
use model::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

/// Bytes that a decompressor is asked for at once.
const STEP: usize = 128 << 10;
/// The largest file of metadata that is read.
const SMALL_MAX: u64 = 64 << 20;
/// How gzip files begin (RFC 1952).
const GZIP: [u8; 2] = [0x1F, 0x8B];

/// What tells that a file has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    /// Bytes.
    pub length: u64,
    /// Nanoseconds since 1970.
    modified: u64,
}

impl Stamp {
    pub fn of(found: &Metadata) -> Stamp {
        let time = found.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Stamp { length: found.len(), modified: time.map_or(0, |t| t.as_nanos() as u64) }
    }
}

/// The content of a file: decompressed, if it is compressed.
pub(crate) fn content(file: File, gzip: bool) -> Box<dyn Read + Send> {
    if gzip { Box::new(Steady::new(MultiGzDecoder::new(file))) } else { Box::new(file) }
}

/// Asks a decompressor for the same pieces whoever reads: what comes before damage depends on them.
struct Steady<R> {
    reader: R,
    buffer: Box<[u8]>,
    at: usize,
    end: usize,
}

impl<R: Read> Steady<R> {
    fn new(reader: R) -> Steady<R> {
        Steady { reader, buffer: vec![0; STEP].into(), at: 0, end: 0 }
    }
}

impl<R: Read> Read for Steady<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.at == self.end {
            (self.at, self.end) = (0, 0);
            self.end = self.reader.read(&mut self.buffer)?;
        }
        let count = into.len().min(self.end - self.at);
        into[..count].copy_from_slice(&self.buffer[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// Whether the file is compressed, by how it begins.
pub(crate) fn is_gzip(path: &Path) -> io::Result<bool> {
    let mut first = Vec::with_capacity(2);
    File::open(path)?.take(2).read_to_end(&mut first)?;
    Ok(first == GZIP)
}

/// A small file, whole. An inner error says what is wrong with it.
pub(crate) fn small(path: &Path, gzip: bool) -> Result<Result<Vec<u8>, String>> {
    let fail = |e| Error::io(format!("reading {}", path.display()), e);
    let mut text = Vec::new();
    let content = content(File::open(path).map_err(fail)?, gzip);
    match content.take(SMALL_MAX + 1).read_to_end(&mut text) {
        Ok(_) if text.len() as u64 > SMALL_MAX => Ok(Err(format!("it has more than {SMALL_MAX} bytes"))),
        Ok(_) => Ok(Ok(text)),
        Err(e) if gzip => Ok(Err(format!("the compressed file is damaged ({e})"))),
        Err(e) => Err(fail(e)),
    }
}

/// Reads pieces of a file that is shared, without a cursor.
pub(crate) struct Ranges {
    file: Arc<File>,
    /// From and to, in bytes; the next one last.
    ranges: Vec<(u64, u64)>,
}

impl Ranges {
    /// These pieces, one after the other.
    pub fn new(file: Arc<File>, mut ranges: Vec<(u64, u64)>) -> Ranges {
        ranges.reverse();
        Ranges { file, ranges }
    }
}

impl Read for Ranges {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while let Some((from, to)) = self.ranges.last_mut() {
            let left = to.saturating_sub(*from);
            if left == 0 {
                self.ranges.pop();
                continue;
            }
            let count = usize::try_from(left).map_or(into.len(), |left| left.min(into.len()));
            let got = read_at(&self.file, &mut into[..count], *from)?;
            *from += got as u64;
            return Ok(got);
        }
        Ok(0)
    }
}

#[cfg(unix)]
fn read_at(file: &File, into: &mut [u8], at: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, into, at)
}

#[cfg(windows)]
fn read_at(file: &File, into: &mut [u8], at: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, into, at)
}

/// What was planned is not what is there now.
pub(crate) fn changed(shown: &str) -> Error {
    Error::new(ErrorKind::Retry, format!("{shown} changed while it was being read"))
        .hint("run the command again, when nothing writes to the dump")
}

/// Runs blocking work off the asynchronous threads.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Error::bug("a worker that reads or writes a dump stopped").caused_by(e)),
    }
}
