//! What a folder that mongodump made holds.

use super::contents::{BUCKETS, Bad, Contents, Place, Raw};
use super::files;
use super::metadata::{Metadata, prelude_version};
use super::names;
use crate::catalog::CollectionKind;
use model::{Error, ErrorKind, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const BSON: &str = ".bson";
const METADATA: &str = ".metadata.json";
pub(crate) const PRELUDE: &str = "prelude.json";
const OPLOG: &str = "oplog";
/// How the name of a folder begins in which a restore works.
pub(crate) const RUN: &str = ".rewound-";

/// Lists the folder of a dump, or of one database of it, and reads its metadata.
pub(crate) fn list(root: &Path, users: bool) -> Result<Contents> {
    list_beside(root, users, None)
}

/// The same, for the restore that works in this hidden folder.
pub(crate) fn list_beside(root: &Path, users: bool, own: Option<&Path>) -> Result<Contents> {
    let mut top = entries(root)?;
    top.retain(|e| own.is_none_or(|own| root.join(&e.name) != own));
    let mut contents = Contents::default();
    if let Some(run) = top.iter().find(|e| e.name.starts_with(RUN)) {
        let what = format!("{}: a restore that is under way or was interrupted left {}", root.display(), run.name);
        return Err(Error::input(what).hint("what is there may be incomplete: write the dump again, to a new folder"));
    }
    prelude(root, &mut top, &mut contents)?;
    let (mut strays, mut oplogs) = (Vec::new(), Vec::new());
    top.retain(|entry| {
        let is_oplog = !entry.is_folder && entry.form().is_some_and(|(stem, end, _)| (stem, end) == (OPLOG, BSON));
        if is_oplog {
            oplogs.push(entry.name.clone());
        }
        !is_oplog
    });
    let mut raws = Vec::new();
    if top.iter().any(|e| !e.is_folder && e.form().is_some()) {
        for folder in top.iter().filter(|e| e.is_folder && !e.name.starts_with('.')) {
            if entries(&root.join(&folder.name))?.iter().any(|e| e.form().is_some()) {
                let text = format!(
                    "{} holds files of collections, as the folder of one database does, and the folder {} of another one",
                    root.display(),
                    folder.name
                );
                return Err(Error::input(text).hint("name one of them, or move the files away"));
            }
        }
        let database = root.file_name().unwrap_or_default().to_string_lossy().into_owned();
        strays.extend(top.iter().filter(|e| e.is_folder).map(|e| format!("{}/", e.name)));
        top.retain(|e| !e.is_folder);
        raws = collections(root, &database, &[], top, &mut strays, &mut contents)?;
    } else {
        for entry in top {
            if !entry.is_folder || entry.name.starts_with('.') || !entry.is_text {
                strays.push(entry.shown());
                continue;
            }
            let folder = root.join(&entry.name);
            let mut inside = entries(&folder)?;
            // Where the root has one already, the one of a single database says the same.
            prelude(&folder, &mut inside, &mut contents)?;
            let path = [entry.name.clone()];
            strays.extend(inside.iter().filter(|e| e.is_folder).map(|e| format!("{}/{}/", entry.name, e.name)));
            inside.retain(|e| !e.is_folder);
            if !inside.iter().any(|e| e.form().is_some()) {
                strays.push(entry.shown());
                continue;
            }
            raws.extend(collections(&folder, &entry.name, &path, inside, &mut strays, &mut contents)?);
        }
    }
    if raws.is_empty() && contents.bad.is_empty() && contents.version.is_none() {
        return Err(Error::input(format!("{} is no dump of mongodump: there is no collection in it", root.display()))
            .hint("name the folder that holds a folder for each database, or the folder of one database"));
    }
    contents.gather(raws, users);
    contents.lose(strays, "mongodump makes no such files: they are left out");
    contents.lose(
        oplogs,
        "the changes in it are not replayed: collections are as they were when each was dumped; for the state at the \
         end of a dump made with --oplog, restore it with mongorestore --oplogReplay",
    );
    Ok(contents)
}

/// Something in a folder.
struct Found {
    name: String,
    is_text: bool,
    is_folder: bool,
}

impl Found {
    /// The stem, the ending, and whether it is compressed; none if it is nothing of a collection.
    fn form(&self) -> Option<(&str, &'static str, bool)> {
        if !self.is_text {
            return None;
        }
        let (name, gzip) = match self.name.strip_suffix(".gz") {
            Some(name) => (name, true),
            None => (&self.name[..], false),
        };
        [METADATA, BSON].into_iter().find_map(|end| Some((name.strip_suffix(end)?, end, gzip)))
    }

    fn shown(&self) -> String {
        if self.is_folder { format!("{}/", self.name) } else { self.name.clone() }
    }
}

fn entries(folder: &Path) -> Result<Vec<Found>> {
    let fail = |e| Error::io(format!("listing {}", folder.display()), e);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name();
        // Links are followed, as mongorestore does.
        let is_folder = fs::metadata(entry.path()).is_ok_and(|m| m.is_dir());
        found.push(Found { name: name.to_string_lossy().into_owned(), is_text: name.to_str().is_some(), is_folder });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Reads the prelude, plain or compressed, and takes it off the list.
fn prelude(folder: &Path, found: &mut Vec<Found>, contents: &mut Contents) -> Result<()> {
    let is_prelude = |e: &Found| !e.is_folder && e.name.strip_suffix(".gz").unwrap_or(&e.name) == PRELUDE;
    for entry in found.extract_if(.., |e| is_prelude(e)) {
        let text = files::small(&folder.join(&entry.name), entry.name.ends_with(".gz"))?;
        match text.and_then(|text| prelude_version(&text)) {
            Ok(version) => _ = contents.version.get_or_insert(version),
            Err(why) => {
                let what = folder.join(&entry.name).display().to_string();
                contents.bad.push(Bad { namespace: None, kind: ErrorKind::Corrupt, what, why });
            }
        }
    }
    Ok(())
}

/// The files of one collection.
#[derive(Default)]
struct Files {
    /// Names, and whether each is compressed.
    metadata: Vec<(String, bool)>,
    documents: Vec<(String, bool)>,
}

fn collections(
    folder: &Path,
    database: &str,
    path: &[String],
    found: Vec<Found>,
    strays: &mut Vec<String>,
    contents: &mut Contents,
) -> Result<Vec<Raw>> {
    let in_dump = |name: &str| PathBuf::from_iter(path).join(name).display().to_string();
    let mut by_stem: BTreeMap<String, Files> = BTreeMap::new();
    for entry in found {
        let Some((stem, end, gzip)) = entry.form() else {
            strays.push(in_dump(&entry.name));
            continue;
        };
        let files = by_stem.entry(stem.to_owned()).or_default();
        let list = if end == METADATA { &mut files.metadata } else { &mut files.documents };
        list.push((entry.name.clone(), gzip));
    }
    let mut raws = Vec::with_capacity(by_stem.len());
    for (stem, files) in by_stem {
        let name = names::collection(&stem);
        let mut refuse = |kind: ErrorKind, what: String, why: String| {
            let namespace = name.as_ref().map(|name| format!("{database}.{name}"));
            contents.bad.push(Bad { namespace, kind, what, why });
        };
        if let Some(twice) = [&files.documents, &files.metadata].into_iter().find(|list| list.len() > 1) {
            let why = format!("{} is there, too: only one of them can be the collection", twice[1].0);
            refuse(ErrorKind::Input, in_dump(&twice[0].0), why);
            continue;
        }
        let shown = [&files.documents, &files.metadata].into_iter().flatten().next().map(|(name, _)| in_dump(name));
        let shown = shown.unwrap_or_default();
        let metadata = match files.metadata.first() {
            None => None,
            Some((file, gzip)) => match files::small(&folder.join(file), *gzip)?.and_then(|t| Metadata::parse(&t)) {
                Ok(metadata) => Some(metadata),
                Err(why) => {
                    refuse(ErrorKind::Corrupt, in_dump(file), why);
                    continue;
                }
            },
        };
        let told = metadata.as_ref().is_some_and(|m| m.name.is_some());
        if name.is_none() && !told && !names::is_cut(&stem) {
            refuse(ErrorKind::Input, shown, "its name is not one that mongodump makes".into());
            continue;
        }
        let data = files.documents.into_iter().next().map(|(file, gzip)| Place::File {
            path: path.iter().cloned().chain([file]).collect(),
            gzip,
            until: u64::MAX,
            stamp: None,
        });
        let name = name.filter(|_| !names::is_cut(&stem));
        raws.push((stem, Raw { database: database.to_owned(), name, shown, metadata, data }));
    }
    name_cut_buckets(&mut raws);
    Ok(raws.into_iter().map(|(_, raw)| raw).collect())
}

/// The buckets of a time series have no metadata of their own: where their name is cut, it is the
/// time series that tells the whole.
fn name_cut_buckets(raws: &mut [(String, Raw)]) {
    let mut stems = BTreeMap::new();
    for (_, raw) in raws.iter() {
        let series = raw.metadata.as_ref().filter(|m| m.options.kind == CollectionKind::TimeSeries);
        if let Some(name) = series.and_then(|m| m.name.as_ref()) {
            let buckets = format!("{BUCKETS}{name}");
            stems.insert(names::file_stem(&buckets), buckets);
        }
    }
    for (stem, raw) in raws {
        if raw.name.is_none() && raw.metadata.is_none() {
            raw.name = stems.get(stem).cloned();
        }
    }
}
