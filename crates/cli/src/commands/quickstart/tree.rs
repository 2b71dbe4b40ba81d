//! Copying and comparing folders, byte by byte.

use model::{Error, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// What Rewound writes beside the documents.
const MARKER: &str = "rewound.json";

/// What a folder holds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Copies a folder; gives what it holds.
pub fn copy(from: &Path, to: &Path) -> Result<Size> {
    let fail = |e| Error::io(format!("copying {}", from.display()), e);
    fs::create_dir_all(to).map_err(fail)?;
    let mut size = Size::default();
    for entry in fs::read_dir(from).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let target = to.join(entry.file_name());
        let more = match entry.file_type().map_err(fail)?.is_dir() {
            true => copy(&entry.path(), &target)?,
            false => Size { files: 1, bytes: fs::copy(entry.path(), target).map_err(fail)? },
        };
        size.files += more.files;
        size.bytes += more.bytes;
    }
    Ok(size)
}

/// Compares two folders byte by byte; gives what they hold, or the first difference.
pub fn compare(a: &Path, b: &Path) -> Result<std::result::Result<Size, String>> {
    let (names, others) = (names(a)?, names(b)?);
    if let Some(name) = names.symmetric_difference(&others).next() {
        let (there, not) = if names.contains(name) { (a, b) } else { (b, a) };
        return Ok(Err(format!("{} is not in {}", there.join(name).display(), not.display())));
    }
    let mut size = Size::default();
    for name in &names {
        let (one, other) = (a.join(name), b.join(name));
        if one.is_dir() != other.is_dir() {
            return Ok(Err(format!("{} and {} are not alike", one.display(), other.display())));
        }
        if one.is_dir() {
            match compare(&one, &other)? {
                Ok(more) => {
                    size.files += more.files;
                    size.bytes += more.bytes;
                }
                Err(difference) => return Ok(Err(difference)),
            }
            continue;
        }
        let read = |path: &Path| fs::read(path).map_err(|e| Error::io(format!("reading {}", path.display()), e));
        let content = read(&one)?;
        if content != read(&other)? {
            return Ok(Err(format!("{} and {} differ", one.display(), other.display())));
        }
        size.files += 1;
        size.bytes += content.len() as u64;
    }
    Ok(Ok(size))
}

fn names(folder: &Path) -> Result<BTreeSet<std::ffi::OsString>> {
    let fail = |e| Error::io(format!("listing {}", folder.display()), e);
    let entries = fs::read_dir(folder).map_err(fail)?;
    let all = entries.map(|e| e.map(|e| e.file_name()).map_err(fail)).collect::<Result<BTreeSet<_>>>()?;
    Ok(all.into_iter().filter(|name| name != MARKER).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_difference_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        fs::create_dir_all(a.join("x")).unwrap();
        fs::write(a.join("x/1"), "one").unwrap();
        let size = copy(&a, &b).unwrap();
        assert_eq!(size, Size { files: 1, bytes: 3 });
        assert_eq!(compare(&a, &b).unwrap(), Ok(size));
        fs::write(b.join(MARKER), "{}").unwrap();
        assert_eq!(compare(&a, &b).unwrap(), Ok(size));
        fs::write(b.join("x/1"), "onE").unwrap();
        assert!(compare(&a, &b).unwrap().unwrap_err().ends_with("differ"));
        fs::write(b.join("x/1"), "one").unwrap();
        fs::write(b.join("x/2"), "two").unwrap();
        assert!(compare(&a, &b).unwrap().unwrap_err().contains("is not in"));
    }
}
