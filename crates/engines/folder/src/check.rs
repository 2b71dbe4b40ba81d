//! The complete look at a folder before anything is written anywhere: every document is read and
//! checked, on all cores.

use crate::files::{self, Stamp, read_error};
use crate::json::validate_json;
use crate::keys::{Choice, KeyChooser};
use crate::layout::{KeyScheme, SpacingBuilder};
use crate::names::{self, ATTACHMENTS, os_name, show, with_ending};
use crate::split::{Failure, Form, Splitter};
use crate::walk::{self, Keys, Listing, Place, Stray};
use bytes::BytesMut;
use model::{CollectionInfo, Error, Result, Selection, Skipped, limits};
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Documents of one folder that one thread takes at a time.
const SHARE: usize = 1024;
/// Bad places of one collection that are listed one by one.
const LISTED: usize = 10_000;
/// Files of documents from this size on are looked at one after the other, as the keys of each
/// may take up to 128 MiB while they are compared.
const LARGE: u64 = 64 << 20;

/// What was found in one collection.
pub(crate) struct Checked {
    /// The collection as it can be read.
    pub info: CollectionInfo,
    /// Documents that will be read, where that is known.
    pub documents: Option<u64>,
    /// Bytes that will be read.
    pub bytes: u64,
    /// Tells that nothing has changed when it is read.
    pub fingerprint: u64,
    /// Whether nothing of it can be read.
    pub unreadable: bool,
    /// What is bad.
    pub bad: BadPlaces,
    /// What will not come back as it is.
    pub normalised: Option<Skipped>,
}

/// Bad places, the first of them listed.
#[derive(Default)]
pub(crate) struct BadPlaces {
    /// The first ones.
    pub listed: Vec<Skipped>,
    /// How many more there are.
    pub more: u64,
}

impl BadPlaces {
    /// One more.
    pub fn push(&mut self, what: String, why: impl Into<String>) {
        match self.listed.len() < LISTED {
            true => self.listed.push(Skipped { what, why: why.into() }),
            false => self.more += 1,
        }
    }

    fn strays(&mut self, strays: Vec<Stray>) {
        strays.into_iter().for_each(|stray| self.push(stray.what, stray.why));
    }

    /// All of both.
    pub fn append(&mut self, other: BadPlaces) {
        self.listed.extend(other.listed);
        self.more += other.more;
    }
}

/// The path of a document's file.
pub(crate) fn document_path(folder: &Path, stem: &[u8]) -> Result<PathBuf> {
    with_ending(stem, ".json").map(|name| folder.join(name)).ok_or_else(|| no_name(stem))
}

/// The path of a document's attachments.
pub(crate) fn attachments_path(folder: &Path, stem: &[u8]) -> Result<PathBuf> {
    with_ending(stem, ATTACHMENTS).map(|name| folder.join(name)).ok_or_else(|| no_name(stem))
}

/// The path of an attachment in its folder.
pub(crate) fn inside(folder: &Path, name: &[u8]) -> Result<PathBuf> {
    os_name(name).map(|name| folder.join(name)).ok_or_else(|| no_name(name))
}

fn no_name(name: &[u8]) -> Error {
    Error::unsupported(format!("this system cannot have a file called {}", show(name)))
}

/// What an attachment counts as in a fingerprint.
pub(crate) fn attachment_mark(stem: &[u8], name: &[u8]) -> Vec<u8> {
    [stem, b"/", name].concat()
}

/// Checks these collections on all cores; results in the same order.
pub(crate) fn check_all(root: &Path, places: &[Place], selection: &Selection) -> Result<Vec<Checked>> {
    let large = Mutex::new(());
    on_all_cores(places.len(), |i| match places[i].form {
        None => check_folder(root, &places[i], selection),
        Some(form) => check_file(root, &places[i], form, selection, &large),
    })
}

/// Does `work` for the numbers below `count` on all cores; the first error ends it.
fn on_all_cores<T: Send>(count: usize, work: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(count);
    if threads < 2 {
        return (0..count).map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let one_core = || {
        let mut done = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= count {
                return Ok(done);
            }
            match work(i) {
                Ok(result) => done.push((i, result)),
                Err(e) => {
                    next.store(count, Ordering::Relaxed);
                    return Err(e);
                }
            }
        }
    };
    let all: Result<Vec<_>> = std::thread::scope(|scope| {
        let cores: Vec<_> = (0..threads).map(|_| scope.spawn(one_core)).collect();
        let gone = |_| Error::bug("a thread of the folder engine stopped");
        cores.into_iter().map(|core| core.join().map_err(gone)?).collect()
    });
    let mut all: Vec<(usize, T)> = all?.into_iter().flatten().collect();
    all.sort_unstable_by_key(|(i, _)| *i);
    Ok(all.into_iter().map(|(_, result)| result).collect())
}

/// What was found in some documents of a folder.
#[derive(Default)]
struct Share {
    documents: u64,
    bytes: u64,
    fingerprint: u64,
    bad: BadPlaces,
}

fn check_folder(root: &Path, place: &Place, selection: &Selection) -> Result<Checked> {
    let folder = root.join(&place.entry);
    let listing = walk::listing(root, place)?;
    let keys = place.keys(&folder)?;
    let of_documents = listing.documents.len().div_ceil(SHARE);
    let attached = if selection.no_attachments { 0 } else { listing.attached.len() };
    let shares = on_all_cores(of_documents + attached.div_ceil(SHARE), |i| match i.checked_sub(of_documents) {
        None => check_documents(&folder, place, &listing, &keys, selection, i),
        Some(i) => check_attachments(&folder, place, &listing, &keys, selection, i),
    })?;
    let mut all = Share::default();
    all.bad.strays(listing.strays);
    for share in shares {
        all.documents += share.documents;
        all.bytes += share.bytes;
        all.fingerprint = all.fingerprint.wrapping_add(share.fingerprint);
        all.bad.append(share.bad);
    }
    Ok(Checked {
        info: place.info(),
        documents: Some(all.documents),
        bytes: all.bytes,
        fingerprint: all.fingerprint,
        unreadable: false,
        bad: all.bad,
        normalised: None,
    })
}

fn check_documents(
    folder: &Path,
    place: &Place,
    listing: &Listing,
    keys: &Keys,
    selection: &Selection,
    share: usize,
) -> Result<Share> {
    let mut found = Share::default();
    let mut text = BytesMut::new();
    for i in share * SHARE..listing.documents.len().min((share + 1) * SHARE) {
        let stem = listing.documents.get(i);
        let key = keys.key(stem);
        if !selection.takes_key(&place.name, &key) {
            continue;
        }
        let shown = || format!("{}/{}.json", place.entry, show(stem));
        let fail = |e| read_error(&shown(), e);
        let mut file = files::open(&document_path(folder, stem)?).map_err(fail)?;
        let stamp = Stamp::of(&file.metadata().map_err(fail)?);
        found.fingerprint = found.fingerprint.wrapping_add(stamp.fingerprint(stem));
        if stamp.length > limits::DOCUMENT_MAX as u64 {
            found.bad.push(shown(), "the document is larger than 48 MiB");
            continue;
        }
        text.clear();
        if !files::append(&mut file, stamp.length as usize, &mut text).map_err(fail)? {
            return Err(files::changed(&shown()));
        }
        if let Err(bad) = validate_json(&text) {
            found.bad.push(format!("{} line {}", shown(), bad.line), bad.what);
        } else if keys.by_the_rules(stem).is_none() && listing.documents.contains(names::encode(stem).as_bytes()) {
            found.bad.push(shown(), format!("{}.json means the same document", names::encode(stem)));
        } else {
            found.documents += 1;
            found.bytes += stamp.length;
        }
    }
    Ok(found)
}

fn check_attachments(
    folder: &Path,
    place: &Place,
    listing: &Listing,
    keys: &Keys,
    selection: &Selection,
    share: usize,
) -> Result<Share> {
    let mut found = Share::default();
    for i in share * SHARE..listing.attached.len().min((share + 1) * SHARE) {
        let stem = listing.attached.get(i);
        if !selection.takes_key(&place.name, &keys.key(stem)) {
            continue;
        }
        let path = attachments_path(folder, stem)?;
        let shown = format!("{}/{}{ATTACHMENTS}", place.entry, show(stem));
        let (names, strays) = walk::attachments(&path, &shown)?;
        found.bad.strays(strays);
        for name in names {
            let fail = |e| read_error(&format!("{shown}/{}", show(&name)), e);
            let stamp = Stamp::of(&fs::symlink_metadata(inside(&path, &name)?).map_err(fail)?);
            found.bytes += stamp.length;
            found.fingerprint = found.fingerprint.wrapping_add(stamp.fingerprint(&attachment_mark(stem, &name)));
        }
    }
    Ok(found)
}

fn check_file(root: &Path, place: &Place, form: Form, selection: &Selection, large: &Mutex<()>) -> Result<Checked> {
    let path = root.join(&place.entry);
    let length = fs::symlink_metadata(&path).map_err(|e| read_error(&place.entry, e))?.len();
    let _alone = (length > LARGE).then(|| large.lock().unwrap_or_else(|e| e.into_inner()));
    let (checked, choice) = pass_file(&path, place, form, selection, KeyChooser::default())?;
    match choice {
        Choice::Scheme(_) => Ok(checked),
        Choice::TryId => Ok(pass_file(&path, place, form, selection, KeyChooser::only(KeyScheme::Id))?.0),
    }
}

/// Reads a file of documents to its end.
fn pass_file(
    path: &Path,
    place: &Place,
    form: Form,
    selection: &Selection,
    mut chooser: KeyChooser,
) -> Result<(Checked, Choice)> {
    let fail = |e| read_error(&place.entry, e);
    let file = files::open(path).map_err(fail)?;
    let stamp = Stamp::of(&file.metadata().map_err(fail)?);
    let mut splitter = Splitter::new(file, form);
    let mut spacing = SpacingBuilder::default();
    let mut bad = BadPlaces::default();
    let mut documents = 0;
    let mut unreadable = false;
    let mut rest = bytes::Bytes::new();
    // The gap before documents that are left out sets apart those on both sides of them.
    let mut gap_before_bad: Option<Vec<u8>> = None;
    loop {
        let chunk = match splitter.next_chunk() {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            Err(Failure::Io(e)) => return Err(fail(e)),
            Err(Failure::Bad(found)) => {
                bad.push(format!("{} line {}", place.entry, found.line), found.what);
                unreadable = true;
                break;
            }
        };
        if chunk.items.is_empty() {
            rest = chunk.bytes.clone();
        }
        for item in &chunk.items {
            let gap = &chunk.bytes[item.gap..item.start];
            if let Some(found) = &item.bad {
                bad.push(format!("{} line {}", place.entry, found.line), found.what);
                gap_before_bad.get_or_insert_with(|| gap.to_vec());
                continue;
            }
            match gap_before_bad.take() {
                Some(before) => spacing.gap(&before),
                None => spacing.gap(gap),
            }
            chooser.document(&chunk.bytes, item);
            documents += 1;
        }
    }
    if Stamp::of(&splitter.reader().metadata().map_err(fail)?) != stamp {
        return Err(files::changed(&place.entry));
    }
    let choice = chooser.finish();
    let key = match choice {
        Choice::Scheme(key) => key,
        Choice::TryId => KeyScheme::Ordinal,
    };
    let (mut spacing, exact) = spacing.finish(form, "", &rest);
    spacing.key = key;
    let whole = selection.takes_all_of(&place.name);
    if !whole {
        // What lies between some of the documents is not what lies between all of them.
        (spacing.runs, spacing.separators) = (Vec::new(), Vec::new());
    }
    let normalised = (!exact && !unreadable).then(|| Skipped {
        what: format!("{}: spacing between documents", place.entry),
        why: "it is too irregular to be kept, so it is normalised; the documents themselves are exact".into(),
    });
    let checked = Checked {
        info: place.info_with(place.layout(spacing).to_options()),
        documents: whole.then_some(documents),
        bytes: stamp.length,
        fingerprint: stamp.fingerprint(place.entry.as_bytes()),
        unreadable,
        bad,
        normalised,
    };
    Ok((checked, choice))
}
