//! Writing files so that each is there whole or not at all.

use crate::layout::{Layout, Spacing};
use crate::leftovers::TEMPORARY;
use crate::split::Form;
use model::{Batch, Error, OsRandom, Random, Result};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Gives names to files that are being written, hidden and different from all others.
#[derive(Debug)]
pub(crate) struct Temporary {
    run: String,
    next: AtomicU64,
}

impl Temporary {
    /// Names for one restore.
    pub fn new() -> Temporary {
        let mut random = [0; 6];
        OsRandom.fill(&mut random);
        let run = random.iter().map(|b| format!("{b:02x}")).collect();
        Temporary { run, next: AtomicU64::new(0) }
    }

    /// What is different from other restores.
    pub fn run(&self) -> &str {
        &self.run
    }

    /// A name in this folder.
    pub fn path(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{TEMPORARY}{}-{}", self.run, self.next.fetch_add(1, Ordering::Relaxed)))
    }
}

/// An error of writing this file.
pub(crate) fn write_error(path: &Path, e: io::Error) -> Error {
    Error::io(format!("writing {}", path.display()), e)
}

/// Makes a file that must not be there yet.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path)
}

/// Writes a whole file, in the place of one that may be there.
pub(crate) fn write_file(temporary: &Path, path: &Path, content: &[&[u8]]) -> Result<()> {
    let write = || {
        let mut file = create(temporary)?;
        content.iter().try_for_each(|piece| file.write_all(piece))?;
        settle(&file)?;
        drop(file);
        fs::rename(temporary, path)
    };
    write().map_err(|e| {
        let _ = fs::remove_file(temporary);
        write_error(path, e)
    })
}

/// Where everything is made durable at once at the end, nothing is to be done for each file.
#[cfg(target_os = "linux")]
pub(crate) fn settle(_: &File) -> io::Result<()> {
    Ok(())
}

/// Makes one file durable.
#[cfg(not(target_os = "linux"))]
pub(crate) fn settle(file: &File) -> io::Result<()> {
    file.sync_all()
}

/// Makes everything in a folder durable that was written before.
pub(crate) fn sync_all(folder: &Path) -> Result<()> {
    let sync = || {
        #[cfg(target_os = "linux")]
        rustix::fs::syncfs(File::open(folder)?)?;
        sync_folder(folder)
    };
    sync().map_err(|e| write_error(folder, e))
}

/// Makes the names in a folder durable.
#[cfg(unix)]
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Makes the names in a folder durable; Windows does so by itself.
#[cfg(not(unix))]
pub(crate) fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Makes a folder in a folder, and refuses anything else that has its name: a link could lead
/// anywhere. Says whether it is new.
pub(crate) fn make_folder(path: &Path) -> Result<bool> {
    match fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => match fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => Ok(false),
            _ => Err(Error::input(format!("{} is in the way: it is not a folder", path.display()))
                .hint("move it away, or choose another target")),
        },
        Err(e) => Err(write_error(path, e)),
    }
}

/// One file of many documents, written from the first to the last.
#[derive(Debug)]
pub(crate) struct OneFile {
    temporary: PathBuf,
    path: PathBuf,
    file: BufWriter<File>,
    form: Form,
    spacing: Spacing,
    /// The run of separators, and how many of it are used.
    run: (usize, u64),
    documents: u64,
    last: Option<blake3::Hash>,
    broken: bool,
}

impl OneFile {
    /// Starts a file; none if the layout is not one of one file.
    pub fn start(temporary: &Temporary, root: &Path, path: &Path, layout: &Layout) -> Result<Option<OneFile>> {
        let path = path.to_owned();
        let (form, spacing) = match layout {
            Layout::Files => return Ok(None),
            Layout::Lines(spacing) => (Form::Lines, spacing.clone()),
            Layout::Array(spacing) => (Form::Array, spacing.clone()),
        };
        let spacing = if spacing.is_sound(form) { spacing } else { Spacing::usual(form) };
        let temporary = temporary.path(root);
        let file = create(&temporary).map_err(|e| write_error(&path, e))?;
        let mut file = BufWriter::with_capacity(256 << 10, file);
        file.write_all(spacing.prefix.as_bytes()).map_err(|e| write_error(&path, e))?;
        Ok(Some(OneFile { temporary, path, file, form, spacing, run: (0, 0), documents: 0, last: None, broken: false }))
    }

    /// Appends the documents of a batch; false if they were the last to be appended already.
    pub fn write(&mut self, batch: &Batch) -> Result<bool> {
        if self.broken {
            return Err(Error::input(format!("writing {} failed before", self.path.display())).hint("run it again"));
        }
        let digest = digest(batch);
        if self.last == Some(digest) {
            return Ok(false);
        }
        if self.form == Form::Lines && (0..batch.len()).any(|i| batch.body_of(i).contains(&b'\n')) {
            let text = format!("a document of {} has more than one line", self.path.display());
            return Err(Error::corrupt(text));
        }
        self.broken = true;
        for i in 0..batch.len() {
            let separator = if self.documents == 0 { "" } else { self.spacing.next_separator(&mut self.run) };
            self.file
                .write_all(separator.as_bytes())
                .and_then(|()| self.file.write_all(batch.body_of(i)))
                .map_err(|e| write_error(&self.path, e))?;
            self.documents += 1;
        }
        self.broken = false;
        self.last = Some(digest);
        Ok(true)
    }

    /// Completes the file and gives it its name.
    pub fn finish(mut self) -> Result<()> {
        if self.broken {
            return Err(Error::input(format!("writing {} failed before", self.path.display())).hint("run it again"));
        }
        let finish = |file: &mut BufWriter<File>| {
            file.write_all(self.spacing.suffix.as_bytes())?;
            file.flush()?;
            settle(file.get_ref())?;
            fs::rename(&self.temporary, &self.path)
        };
        finish(&mut self.file).map_err(|e| write_error(&self.path, e))
    }

    /// Removes what was written.
    pub fn give_up(self) {
        let _ = fs::remove_file(&self.temporary);
    }
}

fn digest(batch: &Batch) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for i in 0..batch.len() {
        for part in [batch.key_of(i), batch.body_of(i)] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    hasher.finalize()
}
