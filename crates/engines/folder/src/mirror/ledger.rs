//! Which files a mirror wrote into one collection's folder: what is in them, and as of when.
//!
//! One line a change, appended: `<hash of the content> <time> <name>`, a dash for what is gone. A
//! file is in here, durably, before it is in its folder; so whatever else is there is somebody
//! else's.

use crate::names::bytes_of;
use crate::writer::write_error;
use model::{Error, Result};
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Lines beyond two for each file from which on the ledger is written anew.
const SPARE: usize = 10_000;

/// What was written into one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Hash of its content.
    pub hash: u64,
    /// The engine time that it is true at; 0 if that is not known.
    pub time: u64,
    /// The scan that met it last.
    pub scan: u32,
}

/// The files of one collection, by hashes of their names: about 40 bytes each in memory.
pub(crate) struct Ledger {
    path: PathBuf,
    file: File,
    entries: HashMap<u64, Entry>,
    /// Lines that are not in the file yet.
    pending: Vec<u8>,
}

/// The hash of a name or a content.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(bytes).as_bytes()[..8]);
    u64::from_le_bytes(first)
}

fn line(entry: Option<&Entry>, name: &[u8], out: &mut Vec<u8>) {
    // Memory takes everything.
    let _ = match entry {
        Some(entry) => write!(out, "{:016x} {} ", entry.hash, entry.time),
        None => write!(out, "- 0 "),
    };
    out.extend_from_slice(name);
    out.push(b'\n');
}

fn parse(line: &[u8]) -> Option<(Option<Entry>, &[u8])> {
    let mut parts = line.splitn(3, |b| *b == b' ');
    let mut text = || std::str::from_utf8(parts.next()?).ok();
    let (content, time) = (text()?, text()?.parse().ok()?);
    let entry = match content {
        "-" => None,
        content => Some(Entry { hash: u64::from_str_radix(content, 16).ok()?, time, scan: 0 }),
    };
    Some((entry, parts.next()?))
}

impl Ledger {
    /// The ledger in this file, empty if there is none. What was cut off at its end is cut away.
    pub fn open(path: PathBuf) -> Result<Ledger> {
        let fail = |e| write_error(&path, e);
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).open(&path).map_err(fail)?;
        let mut entries = HashMap::new();
        let (mut whole, mut lines) = (0, 0);
        each_line(&file, &path, |text| {
            whole += text.len() as u64 + 1;
            lines += 1;
            let (entry, name) = parse(text).ok_or_else(|| {
                Error::corrupt(format!("{} is damaged", path.display()))
                    .hint("mirror into an empty folder, and compare what you changed here by hand")
            })?;
            match entry {
                Some(entry) => drop(entries.insert(hash(name), entry)),
                None => drop(entries.remove(&hash(name))),
            }
            Ok(())
        })?;
        file.set_len(whole).map_err(fail)?;
        let mut ledger = Ledger { path, file, entries, pending: Vec::new() };
        if lines > 2 * ledger.entries.len() + SPARE {
            ledger.rewrite()?;
        }
        Ok(ledger)
    }

    /// Leaves out the lines that later ones have replaced.
    fn rewrite(&mut self) -> Result<()> {
        let new = self.path.with_extension("new");
        let fail = |e| write_error(&new, e);
        let mut out = BufWriter::new(File::create(&new).map_err(fail)?);
        let mut last: HashMap<u64, Entry> = self.entries.clone();
        let mut text = Vec::new();
        each_line(&self.file, &self.path, |found| {
            if let Some((Some(entry), name)) = parse(found)
                && last.get(&hash(name)) == Some(&entry)
            {
                last.remove(&hash(name));
                text.clear();
                line(Some(&entry), name, &mut text);
                out.write_all(&text).map_err(fail)?;
            }
            Ok(())
        })?;
        let out = out.into_inner().map_err(|e| fail(e.into_error()))?;
        out.sync_all().map_err(fail)?;
        fs::rename(&new, &self.path).map_err(fail)?;
        self.file = OpenOptions::new().read(true).append(true).open(&self.path).map_err(fail)?;
        Ok(())
    }

    /// What was written to the file of this name.
    pub fn get(&self, name: &[u8]) -> Option<&Entry> {
        self.entries.get(&hash(name))
    }

    /// How many files there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// A scan met this file as it is.
    pub fn met(&mut self, name: &[u8], scan: u32) {
        if let Some(entry) = self.entries.get_mut(&hash(name)) {
            entry.scan = scan;
        }
    }

    /// This is going to be written.
    pub fn intend(&mut self, name: &[u8], entry: Entry) {
        line(Some(&entry), name, &mut self.pending);
        self.entries.insert(hash(name), entry);
    }

    /// This has been deleted.
    pub fn forget(&mut self, name: &[u8]) {
        line(None, name, &mut self.pending);
        self.entries.remove(&hash(name));
    }

    /// Forgets all but these, without a line: the files are gone for others to see.
    pub fn retain(&mut self, keep: impl Fn(&Entry) -> bool) {
        self.entries.retain(|_, entry| keep(entry));
    }

    /// Makes what was told durable.
    pub fn settle(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let pending = std::mem::take(&mut self.pending);
        self.file.write_all(&pending).and_then(|()| self.file.sync_data()).map_err(|e| write_error(&self.path, e))
    }

    /// Removes the ledger itself.
    pub fn remove(self) -> Result<()> {
        fs::remove_file(&self.path).map_err(|e| write_error(&self.path, e))
    }
}

/// Calls `each` with every whole line.
fn each_line(file: &File, path: &Path, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let fail = |e| Error::io(format!("reading {}", path.display()), e);
    let mut reader = BufReader::with_capacity(256 << 10, file.try_clone().map_err(fail)?);
    std::io::Seek::rewind(&mut reader).map_err(fail)?;
    let mut text = Vec::new();
    loop {
        text.clear();
        reader.read_until(b'\n', &mut text).map_err(fail)?;
        match text.strip_suffix(b"\n") {
            Some(text) => each(text)?,
            None => return Ok(()),
        }
    }
}

/// Calls `each` with the names, as the ledger has them, of all files in a collection's folder and in
/// its folders of attachments.
pub(crate) fn each_file(folder: &Path, mut each: impl FnMut(&[u8], &Path) -> Result<()>) -> Result<()> {
    let fail = |path: &Path, e| Error::io(format!("listing {}", path.display()), e);
    let mut open = vec![(Vec::new(), folder.to_owned())];
    while let Some((inside, path)) = open.pop() {
        let entries = match fs::read_dir(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.map_err(|e| fail(&path, e))?,
        };
        for entry in entries {
            let entry = entry.map_err(|e| fail(&path, e))?;
            let name = [&inside[..], bytes_of(&entry.file_name())].concat();
            match entry.file_type().map_err(|e| fail(&path, e))?.is_dir() {
                true => open.push(([&name[..], b"/"].concat(), entry.path())),
                false => each(&name, &entry.path())?,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn entry(n: u64) -> Entry {
        Entry { hash: n, time: n * 10, scan: 0 }
    }

    #[test]
    fn what_is_settled_is_known_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("files");
        let mut ledger = Ledger::open(path.clone()).unwrap();
        ledger.intend(b"a b.json", entry(1));
        ledger.intend(b"gone.json", entry(2));
        ledger.intend(b"a b.json", entry(3));
        ledger.forget(b"gone.json");
        ledger.settle().unwrap();
        ledger.intend(b"never settled", entry(4));
        drop(ledger);
        // Cut off in the middle of a line.
        let mut text = fs::read(&path).unwrap();
        text.extend_from_slice(b"00000000000000ff 7 half");
        fs::write(&path, text).unwrap();
        let ledger = Ledger::open(path.clone()).unwrap();
        assert_eq!((ledger.len(), ledger.get(b"a b.json")), (1, Some(&entry(3))));
        assert!(!fs::read_to_string(&path).unwrap().contains("half"));
        fs::write(&path, "nonsense\n").unwrap();
        assert!(Ledger::open(path).map(drop).unwrap_err().hint_text().is_some());
    }

    #[test]
    fn a_long_ledger_is_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("files");
        let mut ledger = Ledger::open(path.clone()).unwrap();
        for i in 0..SPARE as u64 + 10 {
            ledger.intend(format!("{}.json", i % 3).as_bytes(), entry(i));
        }
        ledger.settle().unwrap();
        let before = fs::metadata(&path).unwrap().len();
        let ledger = Ledger::open(path.clone()).unwrap();
        assert!(fs::metadata(&path).unwrap().len() < before / 1000);
        let all: Vec<_> = (0..3).map(|i| *ledger.get(format!("{i}.json").as_bytes()).unwrap()).collect();
        drop(ledger);
        let again = Ledger::open(path).unwrap();
        assert_eq!(all, (0..3).map(|i| *again.get(format!("{i}.json").as_bytes()).unwrap()).collect::<Vec<_>>());
    }
}
