//! What a restore into the folder of a dump would meet, and where each collection would go.

use super::contents::{BUCKETS, Place};
use super::folder_source::{self, PRELUDE, RUN};
use super::names;
use crate::catalog::{CollectionKind, Options, split_namespace};
use model::{CollectionInfo, Error, IfExists, Result};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// Entries of a folder in the way that one error lists.
const SHOWN: usize = 20;

/// What is at the place that is to be written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing.
    Absent,
    /// An empty folder.
    Empty,
    /// A folder with something in it.
    Full,
}

/// Looks at the target without changing it. A target that holds something is an error, unless the
/// user said that it is to be replaced.
pub(crate) fn look(path: &Path, if_exists: IfExists) -> Result<Found> {
    let shown = path.display();
    if if_exists == IfExists::Merge {
        return Err(Error::unsupported("documents cannot be merged into a dump: its files have no index")
            .hint("write a dump into a new folder, or pass --if-exists replace"));
    }
    let mut entries = Vec::new();
    match fs::read_dir(path) {
        Ok(found) => {
            for entry in found {
                let entry = entry.map_err(|e| Error::io(format!("listing {shown}"), e))?;
                entries.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Absent),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => {
            return Err(Error::input(format!("{shown} is not a folder")).hint("choose another target"));
        }
        Err(e) => return Err(Error::io(format!("looking at {shown}"), e)),
    }
    entries.sort();
    if let Some(run) = entries.iter().find(|name| name.starts_with(RUN)) {
        let text = format!("a restore into {shown} is under way, or was interrupted and left {run}");
        return Err(Error::input(text).hint(format!(
            "if none is under way: move back from {run}/replaced what is missing, if it is there, then remove {run} and run this again"
        )));
    }
    if entries.is_empty() {
        return Ok(Found::Empty);
    }
    if if_exists == IfExists::Replace {
        return Ok(Found::Full);
    }
    let more = entries.len().saturating_sub(SHOWN);
    let mut text = format!("{shown} is not empty; there is: {}", entries[..entries.len() - more].join(", "));
    if more > 0 {
        text.push_str(&format!(", and {more} more"));
    }
    Err(Error::input(text).hint("choose an empty or a new folder, or pass --if-exists replace"))
}

/// The files of a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Files {
    pub database: String,
    /// The collection's name, as its metadata has it.
    pub name: String,
    /// Of documents; none for a view.
    pub documents: Option<String>,
    pub metadata: String,
}

impl Files {
    /// Names are checked here, as they come out of a backup that somebody may have forged.
    pub fn of(info: &CollectionInfo, target: &str, gzip: bool) -> Result<Files> {
        let options = Options::from_json(&info.options).map_err(|e| e.context(format!("collection {}", info.name)))?;
        let (database, name) = split_namespace(target)?;
        let flaw = names::database_flaw(database).or(name.contains('\0').then_some("a name cannot hold a zero byte"));
        if let Some(why) = flaw {
            return Err(Error::input(format!("{target} cannot be written: {why}"))
                .hint("give it another name with --rename OLD=DATABASE.COLLECTION"));
        }
        let gz = if gzip { ".gz" } else { "" };
        let stem = names::file_stem(name);
        let documents = match options.kind {
            CollectionKind::View => None,
            CollectionKind::TimeSeries => Some(names::file_stem(&format!("{BUCKETS}{name}"))),
            CollectionKind::Collection => Some(stem.clone()),
        };
        Ok(Files {
            database: database.to_owned(),
            name: name.to_owned(),
            documents: documents.map(|stem| format!("{stem}.bson{gz}")),
            metadata: format!("{stem}.metadata.json{gz}"),
        })
    }

    /// `database.collection`.
    pub fn namespace(&self) -> String {
        format!("{}.{}", self.database, self.name)
    }
}

/// Refuses two collections in one place.
pub(crate) fn refuse_collisions(all: &[(Files, &str)]) -> Result<()> {
    let mut seen: HashMap<(&str, &str), &str> = HashMap::new();
    for (files, name) in all {
        for file in files.documents.iter().chain([&files.metadata]) {
            if let Some(other) = seen.insert((&files.database, file), name) {
                let text =
                    format!("the collections {other} and {name} would both be written to {}/{file}", files.database);
                return Err(Error::input(text).hint("give one of them another name with --rename OLD=NEW"));
            }
        }
    }
    Ok(())
}

/// Files of a dump that go when others come, as paths in it.
pub(crate) type Old = BTreeSet<PathBuf>;

/// What there is of the collections that are written, under whatever names, and a prelude. `own` is
/// the hidden folder of the restore that asks, if it has one already.
pub(crate) fn replaced(root: &Path, all: &[Files], gzip: bool, own: Option<&Path>) -> Result<Old> {
    let there =
        folder_source::list_beside(root, true, own).map_err(|e| e.context("looking at what is to be replaced"))?;
    let mut stems: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for files in all {
        let of = stems.entry(files.database.clone()).or_default();
        of.extend([names::file_stem(&files.name), names::file_stem(&format!("{BUCKETS}{}", files.name))]);
    }
    for entry in &there.entries {
        let Place::File { path, .. } = &entry.data else { continue };
        let [database, file] = &path[..] else {
            return Err(Error::input(format!("{} is the folder of one database", root.display()))
                .hint("name the folder above it, or a new one"));
        };
        let stem = file.strip_suffix(".gz").unwrap_or(file).strip_suffix(".bson");
        if all.iter().any(|files| files.namespace() == entry.info.name) {
            stems.entry(database.clone()).or_default().extend(stem.map(str::to_owned));
        } else if file.ends_with(".gz") != gzip
            && !stem.is_some_and(|s| stems.get(database).is_some_and(|of| of.contains(s)))
        {
            let (is, will) = if gzip { ("not compressed", "compressed") } else { ("compressed", "plain") };
            return Err(Error::input(format!(
                "{} is {is}, and the new files would be {will}: mongorestore reads only one kind at a time",
                root.join(database).join(file).display()
            ))
            .hint("write the dump into a new folder"));
        }
    }
    let mut old = Old::new();
    let mut add = |path: PathBuf| {
        if fs::symlink_metadata(root.join(&path)).is_ok() {
            old.insert(path);
        }
    };
    for (database, stems) in &stems {
        for stem in stems {
            for end in [".bson", ".bson.gz", ".metadata.json", ".metadata.json.gz"] {
                add(Path::new(database).join(format!("{stem}{end}")));
            }
        }
    }
    for name in [PRELUDE.to_owned(), format!("{PRELUDE}.gz")] {
        add(PathBuf::from(name));
    }
    Ok(old)
}
