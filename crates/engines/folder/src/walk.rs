//! What is in a folder: collections, documents, attachments, and what is none of these.

use crate::layout::{Layout, Spacing};
use crate::marker::{self, LongNames, Marker, Naming};
use crate::names::{self, ATTACHMENTS, MARKER, bytes_of, os_name, show};
use crate::split::Form;
use model::{CollectionId, CollectionInfo, Error, Result};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fs::{self, FileType};
use std::path::{Path, PathBuf};

/// Something that is neither a collection nor a document nor an attachment.
#[derive(Debug)]
pub(crate) struct Stray {
    /// Its path in the folder, for people.
    pub what: String,
    /// Why it is none.
    pub why: &'static str,
}

const LINK: &str = "a symbolic link is not followed";
const SPECIAL: &str = "it is neither a file nor a folder";

/// A collection and where it lies.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Place {
    /// The name of its file or folder.
    pub entry: String,
    /// Its name.
    pub name: String,
    /// How its one file is laid out; none for a folder of files.
    pub form: Option<Form>,
    /// Whether Rewound encoded the names in it.
    pub encoded: bool,
    /// Whether it is a folder that holds nothing but attachments of a collection that lies in one
    /// file beside it.
    #[serde(default)]
    pub beside: bool,
    /// The options it had in the engine it came from, if it is encoded.
    #[serde(skip)]
    options: serde_json::Value,
}

impl Place {
    /// What can be said of the collection without reading it.
    pub fn info(&self) -> CollectionInfo {
        match self.encoded {
            true => self.info_with(self.options.clone()),
            false => self.info_with(self.layout(Spacing::default()).to_options()),
        }
    }

    /// The collection with these options.
    pub fn info_with(&self, options: serde_json::Value) -> CollectionInfo {
        CollectionInfo {
            id: CollectionId::new(&self.name),
            name: self.name.clone(),
            options,
            ordered: self.form.is_some(),
        }
    }

    /// What tells keys from names in its folder.
    pub fn keys(&self, folder: &Path) -> Result<Keys> {
        if self.beside { Keys::beside(folder) } else { Keys::of(folder, self.encoded) }
    }

    /// The layout with this spacing, if it is one of one file.
    pub fn layout(&self, spacing: Spacing) -> Layout {
        let extension = self.entry.rsplit('.').next().unwrap_or_default().to_owned();
        let spacing = Spacing { extension, ..spacing };
        match self.form {
            None => Layout::Files,
            Some(Form::Lines) => Layout::Lines(spacing),
            Some(Form::Array) => Layout::Array(spacing),
        }
    }
}

/// What lies at the top of a folder.
pub(crate) struct Top {
    /// The collections, by name.
    pub places: Vec<Place>,
    /// What is none.
    pub strays: Vec<Stray>,
    /// Hidden entries that are not Rewound's own.
    pub hidden: Vec<String>,
}

/// The folder's real path, if it is one.
pub(crate) fn root(path: &Path) -> Result<PathBuf> {
    let missing = || Error::missing(format!("there is no folder {}", path.display())).hint("check the path");
    let real = fs::canonicalize(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => missing(),
        _ => Error::io(format!("opening {}", path.display()), e),
    })?;
    match real.is_dir() {
        true => Ok(real),
        false => Err(Error::input(format!("{} is not a folder", path.display()))
            .hint("name the folder that holds the collections")),
    }
}

/// Calls `each` with the name and type of every entry of a folder that is not hidden.
fn entries(folder: &Path, each: impl FnMut(&[u8], FileType)) -> Result<()> {
    entries_and_hidden(folder, each, |_| ())
}

/// The same, and calls `hidden` with the names of those that are.
fn entries_and_hidden(
    folder: &Path,
    mut each: impl FnMut(&[u8], FileType),
    mut hidden: impl FnMut(&[u8]),
) -> Result<()> {
    let fail = |e| Error::io(format!("listing {}", folder.display()), e);
    for entry in fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name();
        match bytes_of(&name)[0] {
            b'.' => hidden(bytes_of(&name)),
            _ => each(bytes_of(&name), entry.file_type().map_err(fail)?),
        }
    }
    Ok(())
}

/// Lists the top of a folder. Two places of one collection are an error, whatever the user says.
pub(crate) fn top(root: &Path) -> Result<Top> {
    let marker = match Marker::read(root) {
        Ok(marker) => marker,
        Err(e) if e.kind() == model::ErrorKind::Input => None,
        Err(e) => return Err(e),
    };
    let (mut places, mut strays, mut hidden) = (Vec::new(), Vec::new(), Vec::new());
    let is_ours = |name: &[u8]| name.starts_with(b".rewound-");
    let each = |name: &[u8], kind| {
        if marker.is_some() && name == MARKER.as_bytes() {
            return;
        }
        match place(name, kind, marker.as_ref()) {
            Ok(place) => places.push(place),
            Err(why) => strays.push(Stray { what: show(name), why }),
        }
    };
    entries_and_hidden(root, each, |name| {
        if !is_ours(name) {
            hidden.push(show(name));
        }
    })?;
    hidden.sort();
    places.sort_by(|a, b| a.name.cmp(&b.name).then_with(|| a.entry.cmp(&b.entry)));
    strays.sort_by(|a, b| a.what.cmp(&b.what));
    for i in 1..places.len() {
        let (before, after) = places.split_at_mut(i);
        let (Some(one), Some(other)) = (before.last_mut(), after.first_mut()) else { continue };
        if one.name != other.name || one.form.is_some() == other.form.is_some() {
            continue;
        }
        let folder = if one.form.is_none() { one } else { other };
        let listing = listing(root, folder)?;
        folder.beside = listing.documents.len() == 0 && listing.attached.len() > 0;
    }
    let twice = |pair: &&[Place]| pair[0].name == pair[1].name && pair[0].beside == pair[1].beside;
    if let Some(pair) = places.windows(2).find(twice) {
        let (name, a, b) = (show(pair[0].name.as_bytes()), &pair[0].entry, &pair[1].entry);
        return Err(Error::input(format!("the collection {name} is there twice: as {a} and as {b}"))
            .hint("rename or move away one of the two; beside a file, a folder may hold only NAME.attachments"));
    }
    Ok(Top { places, strays, hidden })
}

fn place(entry: &[u8], kind: FileType, marker: Option<&Marker>) -> Result<Place, &'static str> {
    let Ok(entry) = std::str::from_utf8(entry) else {
        return Err("its name is not UTF-8");
    };
    if entry.eq_ignore_ascii_case(MARKER) {
        return Err("this name is kept for what Rewound says of a folder");
    }
    let (name, form) = if kind.is_dir() {
        (entry, None)
    } else if kind.is_symlink() {
        return Err(LINK);
    } else if !kind.is_file() {
        return Err(SPECIAL);
    } else if let Some(name) = entry.strip_suffix(".jsonl").or_else(|| entry.strip_suffix(".ndjson")) {
        (name, Some(Form::Lines))
    } else if let Some(name) = entry.strip_suffix(".json") {
        (name, Some(Form::Array))
    } else {
        return Err("it is not a collection (.json, .jsonl, .ndjson or a folder)");
    };
    let written = marker
        .and_then(|marker| marker.written.get(entry))
        .filter(|written| form.is_none() && written.names == Naming::Encoded);
    let name = written.map_or(name, |written| &written.collection).to_owned();
    let options = written.map(|written| written.options.clone()).unwrap_or_default();
    Ok(Place { entry: entry.to_owned(), name, form, encoded: written.is_some(), beside: false, options })
}

/// Many names in one buffer, as there can be millions.
#[derive(Default)]
pub(crate) struct Names {
    bytes: Vec<u8>,
    spans: Vec<(u32, u16)>,
}

impl Names {
    fn push(&mut self, name: &[u8]) -> Result<()> {
        let start = u32::try_from(self.bytes.len());
        let length = u16::try_from(name.len());
        let (Ok(start), Ok(length)) = (start, length) else {
            return Err(Error::unsupported("a folder has more than 4 GiB of file names")
                .hint("split the collection over several folders"));
        };
        self.bytes.extend_from_slice(name);
        self.spans.push((start, length));
        Ok(())
    }

    fn sort(&mut self) {
        let bytes = &self.bytes;
        let name = |span: &(u32, u16)| &bytes[span.0 as usize..][..usize::from(span.1)];
        self.spans.sort_unstable_by(|a, b| name(a).cmp(name(b)));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Name `i`, in the order of their bytes.
    pub fn get(&self, i: usize) -> &[u8] {
        let (start, length) = self.spans[i];
        &self.bytes[start as usize..][..usize::from(length)]
    }

    /// Whether this name is among them.
    pub fn contains(&self, name: &[u8]) -> bool {
        let find = |span: &(u32, u16)| self.bytes[span.0 as usize..][..usize::from(span.1)].cmp(name);
        self.spans.binary_search_by(find).is_ok()
    }
}

/// What a collection's folder holds.
pub(crate) struct Listing {
    /// Names of documents, without `.json`.
    pub documents: Names,
    /// Names of documents that have a folder of attachments.
    pub attached: Names,
    /// What is neither.
    pub strays: Vec<Stray>,
}

/// Lists a collection's folder.
pub(crate) fn listing(root: &Path, place: &Place) -> Result<Listing> {
    let mut all = Listing { documents: Names::default(), attached: Names::default(), strays: Vec::new() };
    let mut failed = Ok(());
    entries(&root.join(&place.entry), |name, kind| {
        let pushed = if let Some(stem) = name.strip_suffix(b".json").filter(|_| kind.is_file()) {
            all.documents.push(stem)
        } else if let Some(stem) = name.strip_suffix(ATTACHMENTS.as_bytes()).filter(|_| kind.is_dir()) {
            all.attached.push(stem)
        } else {
            let why = match (kind.is_symlink(), kind.is_dir(), kind.is_file()) {
                (true, ..) => LINK,
                (_, true, _) => "a folder inside a collection must be called NAME.attachments",
                (.., true) => "it is not a .json document",
                _ => SPECIAL,
            };
            all.strays.push(Stray { what: format!("{}/{}", place.entry, show(name)), why });
            Ok(())
        };
        if let Err(e) = pushed {
            failed = Err(e);
        }
    })?;
    failed?;
    all.documents.sort();
    all.attached.sort();
    all.strays.sort_by(|a, b| a.what.cmp(&b.what));
    Ok(all)
}

/// The names of attachments in a document's folder, with `/` for folders inside it, sorted.
pub(crate) fn attachments(folder: &Path, shown: &str) -> Result<(Vec<Vec<u8>>, Vec<Stray>)> {
    let (mut found, mut strays) = (Vec::new(), Vec::new());
    let mut open: Vec<Vec<u8>> = vec![Vec::new()];
    while let Some(inside) = open.pop() {
        let path = os_name(&inside).map(|inside| folder.join(inside)).unwrap_or_else(|| folder.to_owned());
        entries(&path, |name, kind| {
            let mut whole = inside.clone();
            if !whole.is_empty() {
                whole.push(b'/');
            }
            whole.extend_from_slice(name);
            if kind.is_file() {
                found.push(whole);
            } else if kind.is_dir() {
                open.push(whole);
            } else {
                let why = if kind.is_symlink() { LINK } else { SPECIAL };
                strays.push(Stray { what: format!("{shown}/{}", show(&whole)), why });
            }
        })?;
    }
    found.sort_unstable();
    strays.sort_by(|a, b| a.what.cmp(&b.what));
    Ok((found, strays))
}

/// Tells keys from names in one folder.
pub(crate) struct Keys {
    /// Whether Rewound encoded the names.
    encoded: bool,
    /// The keys that are kept beside the names; none where there can be none.
    long: Option<LongNames>,
}

impl Keys {
    /// For the names in `folder`; `encoded` says whether Rewound encoded them.
    pub fn of(folder: &Path, encoded: bool) -> Result<Keys> {
        let long = encoded.then(|| marker::read_long_names(&folder.join(names::NAMES_FILE))).transpose()?;
        Ok(Keys { encoded, long })
    }

    /// For the names of attachments beside a file: each is its own key, except where the key was
    /// no name and is kept.
    fn beside(folder: &Path) -> Result<Keys> {
        let mut long = marker::read_long_names(&folder.join(names::NAMES_FILE))?;
        // A line that Rewound did not write must not give two names one key.
        long.keys.retain(|name, key| names::encode(key) == *name && !has_attachments(folder, key));
        Ok(Keys { encoded: false, long: Some(long) })
    }

    /// The key of a name, if the name tells one by the rules; else the name itself is the key.
    pub fn by_the_rules<'a>(&'a self, name: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        match &self.long {
            None => Some(Cow::Borrowed(name)),
            Some(long) if self.encoded => names::decode(name, &long.keys),
            Some(long) => {
                let kept = std::str::from_utf8(name).ok().and_then(|name| long.keys.get(name));
                Some(Cow::Borrowed(kept.map_or(name, Vec::as_slice)))
            }
        }
    }

    /// The key of a name.
    pub fn key<'a>(&'a self, name: &'a [u8]) -> Cow<'a, [u8]> {
        self.by_the_rules(name).unwrap_or(Cow::Borrowed(name))
    }

    /// The key and the description of an attachment that are kept beside it.
    pub fn kept(&self, name: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
        let long = self.long.as_ref()?;
        let name = std::str::from_utf8(name).ok()?;
        Some((long.keys.get(name)?, long.bodies.get(name).map(Vec::as_slice)))
    }
}

/// Whether there are attachments under the key as it is.
fn has_attachments(folder: &Path, key: &[u8]) -> bool {
    names::check_verbatim(key, ATTACHMENTS.len()).is_ok()
        && names::with_ending(key, ATTACHMENTS).is_some_and(|name| fs::symlink_metadata(folder.join(name)).is_ok())
}

/// What this engine says of an attachment.
pub(crate) fn describe_attachment(document: &[u8], name: &[u8], length: u64) -> Vec<u8> {
    let text = |bytes: &[u8]| serde_json::Value::from(String::from_utf8_lossy(bytes));
    format!(r#"{{"document":{},"name":{},"length":{length}}}"#, text(document), text(name)).into_bytes()
}
