//! What a restore into a folder would meet, and where each collection would go.

use crate::layout::{Layout, Spacing};
use crate::leftovers;
use crate::marker::{Marker, Naming};
use crate::names::{self, MARKER, bytes_of, show};
use crate::split::Form;
use model::{CollectionInfo, Engine, Error, ErrorKind, IfExists, Result};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Entries of a folder in the way that one error lists.
const SHOWN: usize = 20;

/// What is at the place that is to be written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing; this is the first folder that must be made.
    Absent(PathBuf),
    /// An empty folder.
    Empty,
    /// A folder with something in it.
    Full,
}

/// Looks at the target without changing it. A target that holds something is an error, unless the
/// user said what to do with it.
pub(crate) fn look(path: &Path, if_exists: IfExists) -> Result<Found> {
    let shown = path.display();
    let found = match fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            let entries = list(path)?;
            leftovers::refuse_replaced(path, &entries)?;
            match entries.is_empty() {
                true => Found::Empty,
                false if if_exists == IfExists::Fail => {
                    return Err(leftovers::nothing_else(path, &entries).unwrap_or_else(|| not_empty(path, entries)));
                }
                false => Found::Full,
            }
        }
        Ok(_) => {
            return Err(Error::input(format!("{shown} is not a folder")).hint("choose another target"));
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            if fs::symlink_metadata(path).is_ok() {
                return Err(Error::input(format!("{shown} is a link that leads nowhere")).hint("choose another target"));
            }
            Found::Absent(first_missing(path)?)
        }
        Err(e) => return Err(Error::io(format!("looking at {shown}"), e)),
    };
    let writable = match &found {
        Found::Absent(first) => parent(first),
        _ => path.to_owned(),
    };
    check_writable(&writable)?;
    Ok(found)
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn first_missing(path: &Path) -> Result<PathBuf> {
    let mut first = path.to_owned();
    loop {
        let above = parent(&first);
        match fs::metadata(&above) {
            Ok(found) if found.is_dir() => return Ok(first),
            Ok(_) => {
                let text = format!("{} cannot be made: {} is not a folder", path.display(), above.display());
                return Err(Error::input(text).hint("choose another target"));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && above != first => first = above,
            Err(e) => return Err(Error::io(format!("looking at {}", above.display()), e)),
        }
    }
}

#[cfg(unix)]
fn check_writable(folder: &Path) -> Result<()> {
    use rustix::fs::{Access, access};
    access(folder, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|e| Error::io(format!("{} cannot be written to", folder.display()), e.into()))
}

#[cfg(not(unix))]
fn check_writable(folder: &Path) -> Result<()> {
    match fs::metadata(folder) {
        Ok(found) if found.permissions().readonly() => {
            Err(Error::input(format!("{} is read-only", folder.display())).hint("choose another target"))
        }
        _ => Ok(()),
    }
}

fn list(folder: &Path) -> Result<Vec<String>> {
    let fail = |e| Error::io(format!("listing {}", folder.display()), e);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(fail)? {
        names.push(show(bytes_of(&entry.map_err(fail)?.file_name())));
    }
    names.sort();
    Ok(names)
}

fn not_empty(path: &Path, entries: Vec<String>) -> Error {
    let mut text =
        format!("{} is not empty; there is: {}", path.display(), entries[..entries.len().min(SHOWN)].join(", "));
    if entries.len() > SHOWN {
        text.push_str(&format!(", and {} more", entries.len() - SHOWN));
    }
    Error::input(text).hint("choose an empty or a new folder, or pass --if-exists merge or --if-exists replace")
}

/// Where a collection goes.
#[derive(Debug, Clone)]
pub(crate) struct Placement {
    /// The name of its file or folder.
    pub entry: String,
    pub layout: Layout,
    pub naming: Naming,
}

impl Placement {
    /// The place of a collection that is to be called `target`. Names are checked here, as they
    /// come out of a backup that somebody may have forged.
    pub fn of(engine: &Engine, info: &CollectionInfo, target: &str) -> Result<Placement> {
        let layout = Layout::from_options(&info.options).filter(|_| engine.0 == "folder");
        let Some(layout) = layout else {
            let entry = names::encode(target.as_bytes());
            return Ok(Placement { entry, layout: Layout::Files, naming: Naming::Encoded });
        };
        let entry = layout.entry_name(target);
        let refuse = |why: &str| {
            Error::input(format!("the collection {} cannot be written: {why}", show(target.as_bytes())))
                .hint("give it another name with --rename OLD=NEW")
        };
        names::check_verbatim(target.as_bytes(), entry.len() - target.len()).map_err(refuse)?;
        if entry.eq_ignore_ascii_case(MARKER) {
            return Err(refuse("this name is kept for what Rewound says of a folder"));
        }
        let sound = |spacing: &Spacing, form| {
            // Only what the plan of a folder said is complete; a description has no spacing yet.
            let told = spacing.separator.is_empty() && spacing.prefix.is_empty() && spacing.suffix.is_empty();
            told || spacing.is_sound(form)
        };
        let sound = match &layout {
            Layout::Files => true,
            Layout::Lines(spacing) => sound(spacing, Form::Lines),
            Layout::Array(spacing) => sound(spacing, Form::Array),
        };
        match sound {
            true => Ok(Placement { entry, layout, naming: Naming::Verbatim }),
            false => Err(Error::corrupt(format!("the options of the collection {} are damaged", info.name))),
        }
    }

    /// The folder beside the collection's file that holds its attachments; none if the collection
    /// is a folder itself.
    pub fn beside(&self) -> Option<String> {
        let of_file = || self.entry.rsplit_once('.').map(|(name, _)| name.to_owned());
        if self.layout == Layout::Files { None } else { of_file() }
    }

    /// The other places in a folder where the same collection lies. A file that only has the name
    /// of the collection's folder is another collection, as is a folder with the name of its file.
    pub fn others_in(&self, root: &Path, target: &str) -> Vec<String> {
        let mut all = self.others(target);
        all.retain(|other| {
            let there = fs::symlink_metadata(root.join(other));
            there.is_ok_and(|found| if other == target { !found.is_file() } else { !found.is_dir() })
        });
        all
    }

    /// The other places where the same collection could lie.
    pub fn others(&self, target: &str) -> Vec<String> {
        let mut all = vec![target.to_owned()];
        all.extend(["jsonl", "ndjson", "json"].map(|ending| format!("{target}.{ending}")));
        all.retain(|other| *other != self.entry && !other.eq_ignore_ascii_case(MARKER));
        if self.naming == Naming::Encoded && self.entry != target {
            all.clear();
        }
        all
    }

    /// Fits the place into a folder that has something already.
    pub fn merge(&mut self, root: &Path, target: &str, marker: Option<&Marker>) -> Result<()> {
        let refuse = |text: String| {
            Err(Error::unsupported(text)
                .hint("restore into an empty folder, give it another name with --rename, or pass --if-exists replace"))
        };
        let found = fs::symlink_metadata(root.join(&self.entry));
        if self.layout != Layout::Files && found.is_ok() {
            return refuse(format!("documents cannot be merged into the file {}", self.entry));
        }
        if let Some(other) = self.others_in(root, target).first() {
            return refuse(format!("the collection {target} would be there twice: as {} and as {other}", self.entry));
        }
        match found {
            Err(_) => Ok(()),
            Ok(found) if found.is_dir() => {
                if let Some(written) = marker.and_then(|marker| marker.written.get(&self.entry)) {
                    self.naming = written.names;
                }
                Ok(())
            }
            Ok(_) => refuse(format!("{} is not a folder", self.entry)),
        }
    }
}

/// Refuses two collections in one place; gives which collection has which place.
pub(crate) fn refuse_collisions<'a>(
    places: impl Iterator<Item = (&'a str, &'a str)>,
    ignore_case: bool,
) -> Result<HashMap<String, &'a str>> {
    let mut seen: HashMap<String, &str> = HashMap::new();
    for (entry, collection) in places {
        let folded = if ignore_case { entry.to_lowercase() } else { entry.to_owned() };
        if let Some(other) = seen.insert(folded, collection) {
            let text = format!("the collections {other} and {collection} would both be written to {entry}");
            return Err(Error::new(ErrorKind::Input, text).hint("give one of them another name with --rename OLD=NEW"));
        }
    }
    Ok(seen)
}
