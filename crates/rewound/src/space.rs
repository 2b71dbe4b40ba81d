//! Whether there is room for what is going to be written.

use model::{Error, ErrorKind, Result};
use std::path::Path;

/// How much smaller a first backup can be expected to become at best.
const BEST_COMPRESSION: u64 = 5;

/// What can be said of the room in a vault before a backup.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// It will do.
    Enough,
    /// It may not do.
    Doubtful(String),
}

/// Compares the bytes to be read with the bytes that are free. Refuses only what cannot work: a
/// first backup that would not fit even if it compressed very well.
pub(crate) fn room_for_backup(location: &str, free: u64, to_read: u64, is_first: bool) -> Result<Room> {
    if is_first && free < to_read / BEST_COMPRESSION {
        return Err(Error::new(
            ErrorKind::Full,
            format!("{location} has {} free, too little for {} of data", bytes(free), bytes(to_read)),
        )
        .hint(format!("make room for at least {}, or choose another place", bytes(to_read / BEST_COMPRESSION))));
    }
    if (is_first && free < to_read) || free < to_read / (4 * BEST_COMPRESSION) {
        return Ok(Room::Doubtful(format!(
            "{location} has {} free; {} are going to be read and compressed, which may not fit",
            bytes(free),
            bytes(to_read)
        )));
    }
    Ok(Room::Enough)
}

/// Refuses a restore into a folder with too little room. A restore writes documents as they are,
/// so that this can be known.
pub(crate) fn room_for_restore(folder: &Path, to_write: u64) -> Result<()> {
    match free(folder) {
        Some(free) if free < to_write => Err(Error::new(
            ErrorKind::Full,
            format!("{} has {} free, but {} are to be written", folder.display(), bytes(free), bytes(to_write)),
        )
        .hint("make room, choose another target, or restore less with --only")),
        _ => Ok(()),
    }
}

/// Bytes free in the file system of a folder that may not exist yet, where that can be told.
#[cfg(unix)]
fn free(folder: &Path) -> Option<u64> {
    let path = std::path::absolute(folder).ok()?;
    let there = path.ancestors().find(|p| p.exists())?;
    let found = rustix::fs::statvfs(there).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Bytes free in the file system of a folder, where that can be told.
#[cfg(not(unix))]
fn free(_: &Path) -> Option<u64> {
    None
}

/// Bytes for people: three digits and a unit, in powers of 1000.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if n < 1000 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.digits$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_the_impossible_is_refused() {
        assert_eq!(room_for_backup("v", 1000, 500, true).unwrap(), Room::Enough);
        assert!(matches!(room_for_backup("v", 300, 500, true).unwrap(), Room::Doubtful(_)));
        assert_eq!(room_for_backup("v", 99, 500, true).unwrap_err().kind(), ErrorKind::Full);
        assert_eq!(room_for_backup("v", 99, 500, false).unwrap(), Room::Enough);
        assert!(matches!(room_for_backup("v", 10, 500, false).unwrap(), Room::Doubtful(_)));
    }

    #[test]
    fn bytes_have_three_digits() {
        for (n, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (12_345, "12.3 kB"),
            (999_499, "999 kB"),
            (999_500, "1.00 MB"),
            (3_000_000_000, "3.00 GB"),
        ] {
            assert_eq!(bytes(n), text);
        }
    }

    #[test]
    fn a_folder_that_is_not_there_yet_has_the_room_of_its_parent() {
        let folder = tempfile::tempdir().unwrap();
        assert!(room_for_restore(&folder.path().join("a/b"), 1).is_ok());
        assert_eq!(room_for_restore(&folder.path().join("a"), u64::MAX).unwrap_err().kind(), ErrorKind::Full);
    }
}
