//! The folder that files pass through, from the server to us or back.

use model::{Error, Result};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// How often what a server may still be writing to is removed, and how long is waited in between.
const REMOVED: (u32, Duration) = (20, Duration::from_millis(100));

/// A new folder in one that the server sees too. It goes with everything in it, and with nothing else.
pub(super) struct Passage {
    folder: PathBuf,
    /// The folder that it is in.
    outer: PathBuf,
    /// Whether it has been removed, or what is left of it told.
    done: bool,
}

impl Passage {
    /// Makes it. Whoever may write into the outer folder may write into this one: the server may run as
    /// another user.
    pub fn new(outer: &Path) -> Result<Passage> {
        let outer = absolute(outer)?;
        let failed = |e| Error::io(format!("making a folder in {}", outer.display()), e);
        let folder = tempfile::Builder::new().prefix("rewound-").tempdir_in(&outer).map_err(failed)?;
        open_up(&outer, folder.path())?;
        Ok(Passage { folder: folder.keep(), outer, done: false })
    }

    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// All files in it, with their paths inside it.
    pub fn files(&self) -> Result<Vec<(String, PathBuf)>> {
        let mut found = Vec::new();
        let mut folders = vec![self.path().to_owned()];
        while let Some(folder) = folders.pop() {
            let failed = |e| Error::io(format!("listing {}", folder.display()), e);
            for entry in std::fs::read_dir(&folder).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                match entry.file_type().map_err(failed)?.is_dir() {
                    true => folders.push(entry.path()),
                    false => found.push((self.inside(&entry.path())?, entry.path())),
                }
            }
        }
        found.sort();
        Ok(found)
    }

    fn inside(&self, path: &Path) -> Result<String> {
        let inside = path.strip_prefix(self.path()).ok().and_then(Path::to_str);
        let inside = inside.ok_or_else(|| Error::unsupported(format!("{} is no name in UTF-8", path.display())))?;
        Ok(inside.replace(std::path::MAIN_SEPARATOR, "/"))
    }

    /// Where a file with this path inside it goes, the folders made.
    pub fn place(&self, inside: &str) -> Result<PathBuf> {
        let path = Path::new(inside);
        if inside.is_empty() || !path.components().all(|c| matches!(c, Component::Normal(_))) {
            return Err(Error::corrupt(format!("{inside:?} is no path of a backup's file"))
                .hint("nothing was restored; `rewound verify` says what is damaged"));
        }
        let path = self.path().join(path);
        let mut missing: Vec<&Path> = path.ancestors().skip(1).take_while(|p| !p.exists()).collect();
        while let Some(folder) = missing.pop() {
            std::fs::create_dir(folder).map_err(|e| Error::io(format!("making {}", folder.display()), e))?;
            open_up(&self.outer, folder)?;
        }
        Ok(path)
    }

    /// Removes it with everything in it; what cannot be removed is named.
    pub fn remove(mut self) -> std::result::Result<(), String> {
        self.done = true;
        remove(&self.folder)
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        // A server that was interrupted may make something once more.
        for _ in 0..REMOVED.0 / 4 {
            if self.done {
                return;
            }
            if let Err(left) = remove(&self.folder) {
                return tracing::warn!("left behind: {left}");
            }
            std::thread::sleep(REMOVED.1);
            self.done = !self.folder.exists();
        }
    }
}

/// Removes a folder with everything in it, also with what comes meanwhile.
fn remove(folder: &Path) -> std::result::Result<(), String> {
    let mut tries = 0;
    loop {
        tries += 1;
        match std::fs::remove_dir_all(folder) {
            Err(e) if e.kind() == std::io::ErrorKind::DirectoryNotEmpty && tries < REMOVED.0 => {
                std::thread::sleep(REMOVED.1);
            }
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(format!("{}, which could not be removed: {e}", folder.display()));
            }
            _ => return Ok(()),
        }
    }
}

/// A folder as the server understands it, which must be there.
pub(super) fn absolute(folder: &Path) -> Result<PathBuf> {
    let failed = |e| Error::io(format!("looking at {}", folder.display()), e);
    match std::path::absolute(folder).map_err(failed)? {
        there if there.is_dir() => Ok(there),
        other => Err(Error::missing(format!("{} is no folder", other.display()))
            .hint("--native-dir names a folder that this host and the RavenDB server see under the same name")),
    }
}

/// Gives a folder the permissions of another one.
fn open_up(like: &Path, folder: &Path) -> Result<()> {
    let failed = |e| Error::io(format!("setting the permissions of {}", folder.display()), e);
    let permissions = std::fs::metadata(like).map_err(failed)?.permissions();
    std::fs::set_permissions(folder, permissions).map_err(failed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_what_is_inside_comes_and_goes() {
        let outer = tempfile::tempdir().unwrap();
        std::fs::write(outer.path().join("other"), "stays").unwrap();
        let passage = Passage::new(outer.path()).unwrap();
        std::fs::write(passage.place("a b/c/file").unwrap(), "x").unwrap();
        std::fs::write(passage.place("z").unwrap(), "y").unwrap();
        let names: Vec<String> = passage.files().unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a b/c/file", "z"]);
        for bad in ["", "../x", "/x", "a/../../x"] {
            assert!(passage.place(bad).is_err(), "{bad}");
        }
        passage.remove().unwrap();
        let left: Vec<_> = std::fs::read_dir(outer.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["other"]);
        assert!(Passage::new(&outer.path().join("nowhere")).is_err());
    }
}
