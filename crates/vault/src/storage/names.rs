//! Which names objects may have.

use model::{Error, Result};

/// The folder of a local vault in which objects are written before they get their names. Other
/// storages keep it free, so that a vault can be copied from one to the other.
pub(super) const TEMPORARY: &str = "tmp";

/// Checks the name of an object: components of `[a-zA-Z0-9._-]`, none empty, `.` or `..`. Names
/// are made by the vault itself, never from data, so a bad one is a mistake in the program.
pub(super) fn check_name(name: &str) -> Result<()> {
    let is_temporary = name.split('/').next() == Some(TEMPORARY);
    match name.split('/').all(is_component) && !is_temporary {
        true => Ok(()),
        false => Err(Error::bug(format!("{name:?} is not a name an object may have"))),
    }
}

/// Checks the beginning of names: like a name, but the last component may be a part of one, or
/// empty.
pub(super) fn check_prefix(prefix: &str) -> Result<()> {
    let (folder, rest) = split_prefix(prefix);
    let folder_is_good = rest.len() == prefix.len() || folder.split('/').all(is_component);
    match folder_is_good && rest.bytes().all(is_allowed) {
        true => Ok(()),
        false => Err(Error::bug(format!("{prefix:?} is not the beginning of a name an object may have"))),
    }
}

/// The folder that all names with this prefix are in, and the rest of the prefix.
pub(super) fn split_prefix(prefix: &str) -> (&str, &str) {
    prefix.rsplit_once('/').unwrap_or(("", prefix))
}

/// Whether this may stand between two slashes.
pub(super) fn is_component(part: &str) -> bool {
    !matches!(part, "" | "." | "..") && part.bytes().all(is_allowed)
}

fn is_allowed(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::ErrorKind;

    #[test]
    fn names_stay_inside() {
        for name in ["a", "vault.json", "segments/ab/0-1.bson.zst.age", "..a", "a..", "-_.", "tmpx/a", "a/tmp"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        let bad =
            ["", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a/.", "a b", "a\\b", "é", "a\0", "tmp", "tmp/a"];
        for name in bad {
            assert!(check_name(name).is_err_and(|e| e.kind() == ErrorKind::Bug), "{name}");
        }
    }

    #[test]
    fn prefixes_stay_inside() {
        for prefix in ["", "a", "a/", "a/b", "a/b/", "a/.", "..", "a/.."] {
            assert!(check_prefix(prefix).is_ok(), "{prefix}");
        }
        for prefix in ["/", "/a", "a//", "../a", "a/../b", "a b", "a/%"] {
            assert!(check_prefix(prefix).is_err(), "{prefix}");
        }
    }
}
