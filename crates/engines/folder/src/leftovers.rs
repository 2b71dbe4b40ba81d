//! What restores that were killed left in a folder: files that were not complete
//! (`.rewound-tmp-*`), and the folders of replacing restores (`.rewound-<run>`), where old
//! collections may be. The latter are never deleted here: they may be the only copy.

use crate::names::{bytes_of, show};
use model::{Error, Result};
use std::fs;
use std::path::Path;
use std::time::SystemTime;

/// How the name of a file begins that is being written.
pub(crate) const TEMPORARY: &str = ".rewound-tmp-";
/// How the name of the folder begins in which a restore works that replaces.
pub(crate) const RUN: &str = ".rewound-";
/// Where that restore puts old collections.
pub(crate) const REPLACED: &str = "replaced";

/// Whether this is the folder of a replacing restore.
pub(crate) fn is_run(name: &str) -> bool {
    let hex = |run: &str| run.len() == 12 && run.bytes().all(|b| b.is_ascii_hexdigit());
    name.strip_prefix(RUN).is_some_and(hex)
}

/// Refuses a folder in which old collections may be missing, as a restore was killed while it
/// replaced them.
pub(crate) fn refuse_replaced(folder: &Path, entries: &[String]) -> Result<()> {
    for run in entries.iter().filter(|name| is_run(name)) {
        let Ok(old) = fs::read_dir(folder.join(run).join(REPLACED)) else { continue };
        let mut old: Vec<_> = old.flatten().map(|entry| show(bytes_of(&entry.file_name()))).collect();
        old.sort();
        let what = match old.is_empty() {
            // It was killed at the first of them; that one may lie beside `replaced`.
            true => String::new(),
            false => format!("; in {run}/{REPLACED} there are the old {}", old.join(", ")),
        };
        let text = format!("a restore was interrupted while it replaced collections of {}{what}", folder.display());
        return Err(Error::input(text).hint(format!(
            "move back from {run} what is missing, or what you want to keep, then remove {run} and run this again"
        )));
    }
    Ok(())
}

/// The error for a folder that holds nothing but leftovers; none if there is more.
pub(crate) fn nothing_else(folder: &Path, entries: &[String]) -> Option<Error> {
    let all = entries.iter().all(|name| name.starts_with(TEMPORARY) || is_run(name));
    all.then(|| {
        let (folder, first) = (folder.display(), entries.first().map_or("", String::as_str));
        let more = if entries.len() > 1 { format!(" and {} more", entries.len() - 1) } else { String::new() };
        Error::input(format!("{folder} holds nothing but what an interrupted restore left: {first}{more}"))
            .hint(format!("remove every {RUN}* in it and run this again"))
    })
}

/// The folders of replacing restores in this one.
pub(crate) fn runs(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut runs: Vec<_> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    runs.retain(|name| is_run(name));
    runs.sort();
    runs
}

/// Removes files in a folder that were not complete, and not touched since `before`: newer ones
/// may belong to a restore that still works.
pub(crate) fn remove_temporary(folder: &Path, before: SystemTime) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten().filter(|entry| bytes_of(&entry.file_name()).starts_with(TEMPORARY.as_bytes())) {
        let stale = |found: &fs::Metadata| found.is_file() && found.modified().is_ok_and(|time| time < before);
        if entry.metadata().is_ok_and(|found| stale(&found)) {
            // What cannot be removed is in nobody's way.
            let _ = fs::remove_file(entry.path());
        }
    }
}
