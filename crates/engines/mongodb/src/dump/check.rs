//! Checking every file of documents, side by side, before anything is read.

use super::contents::Place;
use super::files::{self, Stamp};
use super::window::{Flaw, Next, Stop, Window};
use model::{Error, Result};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a check found.
#[derive(Debug)]
pub(crate) struct Checked {
    pub documents: u64,
    /// How many bytes of documents are sound, from the first on.
    pub bytes: u64,
    pub flaw: Option<Flaw>,
    pub stamp: Stamp,
}

/// The path of a file in a dump.
pub(crate) fn path_of(root: &Path, path: &[String]) -> PathBuf {
    path.iter().fold(root.to_owned(), |to, part| to.join(part))
}

/// Checks the files at these places, in their order; a place without a file gives none.
pub(crate) fn all(root: &Path, places: &[&Place]) -> Result<Vec<Option<Checked>>> {
    let results: Vec<Mutex<Option<Result<Option<Checked>>>>> = places.iter().map(|_| Mutex::new(None)).collect();
    let next = AtomicUsize::new(0);
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(places.len());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(place) = places.get(i) else { break };
                    let checked = match place {
                        Place::File { path, gzip, .. } => file(&path_of(root, path), *gzip).map(Some),
                        _ => Ok(None),
                    };
                    *results[i].lock().unwrap_or_else(|e| e.into_inner()) = Some(checked);
                }
            });
        }
    });
    let missing = || Err(Error::bug("a file of a dump was not checked"));
    results.into_iter().map(|one| one.into_inner().ok().flatten().unwrap_or_else(missing)).collect()
}

fn file(path: &Path, gzip: bool) -> Result<Checked> {
    let fail = |e| Error::io(format!("reading {}", path.display()), e);
    let file = File::open(path).map_err(fail)?;
    let stamp = Stamp::of(&file.metadata().map_err(fail)?);
    let mut window = Window::new(files::content(file, gzip));
    let mut checked = Checked { documents: 0, bytes: 0, flaw: None, stamp };
    loop {
        match window.next() {
            Ok(Next::Document(_)) => checked.documents += 1,
            Ok(Next::End) => return Ok(checked),
            Ok(Next::Terminator) => {
                checked.flaw = Some(Flaw { at: checked.bytes, why: "no document has -1 bytes".into() });
                return Ok(checked);
            }
            Err(Stop::Flaw(flaw)) => {
                checked.flaw = Some(flaw);
                return Ok(checked);
            }
            Err(Stop::Io(e)) => return Err(fail(e)),
        }
        checked.bytes = window.position();
    }
}
