//! Names in the target, and names of scratch collections.

use crate::catalog::split_namespace;
use model::{CollectionInfo, Engine, Error, RestoreOptions, Result};

/// The longest `database.collection`, in bytes (MongoDB 4.4 and later).
const NAMESPACE_MAX: usize = 255;
/// Between a collection's name and the run, in the name of a scratch collection.
const SCRATCH: &str = ".rewound-";
/// The digits of a run.
const RUN: usize = 8;

/// Whether this is one of the two collections that hold users and roles.
pub(crate) fn is_of_users(namespace: &str) -> bool {
    matches!(namespace, "admin.system.users" | "admin.system.roles")
}

/// The name in the target, as `database.collection`, of a collection; `home` is the database that
/// the target's URL names.
pub(crate) fn target(
    engine: &Engine,
    info: &CollectionInfo,
    options: &RestoreOptions,
    home: Option<&str>,
) -> Result<String> {
    let name = options.target_name(&info.name);
    let is_renamed = name != info.name;
    let is_ours = engine.0 == "mongodb";
    let target = match (home, is_ours) {
        _ if is_ours && is_of_users(name) => name.to_owned(),
        (None, false) if !is_renamed => {
            return Err(Error::input(format!("collection {name} needs a database in the target"))
                .hint("name one in the target's URL: mongodb://HOST/DATABASE"));
        }
        (None, _) => name.to_owned(),
        (Some(home), _) if name.strip_prefix(home).is_some_and(|rest| rest.starts_with('.')) => name.to_owned(),
        // Into another database than the one that it came from.
        (Some(home), true) if !is_renamed => format!("{home}.{}", split_namespace(name)?.1),
        (Some(home), true) if name.contains('.') => {
            return Err(Error::input(format!("{name} is not in the database {home}, which the target's URL names"))
                .hint(format!("rename to {home}.NAME, or leave the database out of the URL")));
        }
        (Some(home), _) => format!("{home}.{name}"),
    };
    check(&target)?;
    Ok(target)
}

/// Refuses what no server takes as a name.
fn check(target: &str) -> Result<()> {
    let (database, name) = split_namespace(target)?;
    let is_system = name.starts_with("system.") && name != "system.js" && !is_of_users(target);
    let why = match () {
        _ if name.contains(['$', '\0']) => "a name of a collection cannot hold $ or a zero byte",
        _ if name.starts_with('.') => "a name of a collection cannot begin with a dot",
        _ if is_system => "names that begin with system. belong to the server",
        _ if target.len() > NAMESPACE_MAX => "database and collection together can have 255 bytes",
        _ if database.contains(['/', '\\', ' ', '"', '$', '\0']) => "a name of a database cannot hold such a character",
        _ => return Ok(()),
    };
    Err(Error::input(format!("{target} cannot be a name in MongoDB: {why}"))
        .hint("give it another one with --rename OLD=DATABASE.COLLECTION"))
}

/// The name of the collection beside this one that a run writes to.
pub(crate) fn scratch(database: &str, name: &str, run: &str) -> String {
    let fits = database.len() + 1 + name.len() + SCRATCH.len() + RUN <= NAMESPACE_MAX;
    // The server makes no collections of its own kind of names.
    match fits && !name.starts_with("system.") {
        true => format!("{name}{SCRATCH}{run}"),
        false => format!("rewound-{run}-{:016x}", hash(name)),
    }
}

/// Whether this is the name of a scratch collection that some run made for the collection `name`.
pub(crate) fn is_scratch_of(candidate: &str, database: &str, name: &str) -> bool {
    let run = match candidate.strip_prefix("rewound-") {
        Some(rest) => rest.get(..RUN),
        None => candidate.len().checked_sub(RUN).and_then(|at| candidate.get(at..)),
    };
    let is_run = |run: &&str| run.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    run.filter(is_run).is_some_and(|run| scratch(database, name, run) == candidate)
}

/// Whether this is the name of a scratch collection of whatever collection.
pub(crate) fn is_scratch(candidate: &str) -> bool {
    let is_hex = |text: &str, length| {
        text.len() == length && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let by_run = candidate.rsplit_once(SCRATCH).is_some_and(|(_, run)| is_hex(run, RUN));
    let hashed = candidate.strip_prefix("rewound-").and_then(|rest| rest.split_once('-'));
    by_run || hashed.is_some_and(|(run, hash)| is_hex(run, RUN) && is_hex(hash, 16))
}

/// FNV-1a: the same in every version of Rewound.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use model::CollectionId;

    fn to(engine: &str, name: &str, home: Option<&str>, rename: Option<&str>) -> Result<String> {
        let info = CollectionInfo {
            id: CollectionId::new("x"),
            name: name.into(),
            options: serde_json::Value::Null,
            ordered: false,
        };
        let mut options = RestoreOptions::default();
        if let Some(new) = rename {
            options.rename.push((name.into(), new.into()));
        }
        target(&Engine::new(engine), &info, &options, home)
    }

    #[test]
    fn every_scratch_name_is_known_as_one() {
        for name in ["a", "a.b", &"l".repeat(250), "system.js"] {
            let scratch = scratch("db", name, "0123abcd");
            assert!(is_scratch(&scratch) && is_scratch_of(&scratch, "db", name), "{scratch}");
        }
        for name in ["a", "rewound-x", "a.rewound-2024", "rewound-0123abcd"] {
            assert!(!is_scratch(name), "{name}");
        }
    }

    #[test]
    fn targets() {
        let db = Some("db");
        for (engine, name, home, rename, expected) in [
            ("mongodb", "a.b.c", None, None, "a.b.c"),
            ("mongodb", "a.b.c", db, None, "db.b.c"),
            ("mongodb", "db.b", db, None, "db.b"),
            ("mongodb", "a.b", None, Some("c.d"), "c.d"),
            ("mongodb", "a.b", db, Some("db.d"), "db.d"),
            ("mongodb", "a.b", db, Some("d"), "db.d"),
            ("mongodb", "admin.system.users", db, None, "admin.system.users"),
            ("mongodb", "a.system.js", None, None, "a.system.js"),
            ("mongodb", "a.b/c d..e", None, None, "a.b/c d..e"),
            ("folder", "books", db, None, "db.books"),
            ("folder", "my.books", db, None, "db.my.books"),
            ("folder", "books", None, Some("x.y"), "x.y"),
        ] {
            assert_eq!(to(engine, name, home, rename).unwrap(), expected, "{engine} {name}");
        }
        for (engine, name, home, rename) in [
            ("mongodb", "a.b", db, Some("c.d")),
            ("folder", "books", None, None),
            ("folder", "a$b", db, None),
            ("folder", "system.users", db, None),
            ("mongodb", "a.b", None, Some("plain")),
        ] {
            let error = to(engine, name, home, rename).unwrap_err();
            assert!(error.hint_text().is_some(), "{error}");
        }
    }

    #[test]
    fn scratch_names_are_known_again() {
        for name in ["books", "a.b/c", "system.js", "x.rewound-01234567", &"l".repeat(250), "ü"] {
            let made = scratch("db", name, "0123abcd");
            assert!(made.len() + 3 <= NAMESPACE_MAX, "{made}");
            assert!(!made.starts_with("system."), "{made}");
            assert!(is_scratch_of(&made, "db", name), "{made}");
            assert!(!is_scratch_of(&made, "db", "other"));
            assert!(!is_scratch_of(name, "db", name));
        }
        for foreign in ["books.rewound-0123abcx", "books.rewound-0123abc", "books.rewound-0123ABCD", "rewound-", "ü"] {
            assert!(!is_scratch_of(foreign, "db", "books"), "{foreign}");
        }
    }
}
