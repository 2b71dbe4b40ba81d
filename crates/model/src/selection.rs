//! Which part of a source or vault is meant.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Which collections and documents are meant. Patterns are names of collections, with `*` for
/// any number of any characters and `?` for one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// Only these collections; empty means all. `NS/KEY` means one document.
    pub only: Vec<String>,
    /// All but these collections.
    pub exclude: Vec<String>,
    /// Whether attachments are left out.
    pub no_attachments: bool,
    /// Leave bad input out and list it, instead of refusing everything.
    pub skip_bad: bool,
    /// Whether users and roles are meant too, where the engine has some.
    #[serde(default)]
    pub users: bool,
    /// What the texts of keys in `only` mean to the engine, where keys are not text: see
    /// [`Selection::understand_keys`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub keys: BTreeMap<String, Vec<Vec<u8>>>,
}

impl Selection {
    /// Whether everything is meant.
    pub fn is_all(&self) -> bool {
        self.only.is_empty() && self.exclude.is_empty() && !self.no_attachments
    }

    /// Whether a collection with this name is meant, whole or in part.
    pub fn takes(&self, collection: &str) -> bool {
        let only = self.only.is_empty()
            || self.only.iter().any(|p| glob_matches(p, collection) || split_key(p, collection).is_some());
        only && !self.exclude.iter().any(|p| glob_matches(p, collection))
    }

    /// Whether the document with this key, of a collection that is meant, is meant too.
    pub fn takes_key(&self, collection: &str, key: &[u8]) -> bool {
        self.only.is_empty()
            || self
                .only
                .iter()
                .any(|p| glob_matches(p, collection) || split_key(p, collection).is_some_and(|k| self.is_key(k, key)))
    }

    fn is_key(&self, text: &str, key: &[u8]) -> bool {
        match self.keys.get(text) {
            Some(keys) => keys.iter().any(|k| k == key),
            None => text.as_bytes() == key,
        }
    }

    /// Finds out what each text of a key in `only` means, for an engine whose keys are not text.
    pub fn understand_keys(&mut self, keys_of: impl Fn(&str) -> Vec<Vec<u8>>) {
        for pattern in &self.only {
            // A name of a collection may hold a slash, too.
            for (at, _) in pattern.match_indices('/') {
                let text = &pattern[at + 1..];
                self.keys.insert(text.to_owned(), keys_of(text));
            }
        }
    }

    /// Whether all documents of a collection that is meant are meant.
    pub fn takes_all_of(&self, collection: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|p| glob_matches(p, collection))
    }
}

/// The key of `NS/KEY` if NS is this collection.
fn split_key<'a>(pattern: &'a str, collection: &str) -> Option<&'a str> {
    pattern.strip_prefix(collection)?.strip_prefix('/')
}

/// Whether a name matches a pattern with `*` and `?`.
pub fn glob_matches(pattern: &str, name: &str) -> bool {
    let (p, n): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut pi, mut ni) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while ni < n.len() {
        if pi < p.len() && p[pi] == '*' {
            star = Some((pi, ni));
            pi += 1;
        } else if pi < p.len() && (p[pi] == '?' || p[pi] == n[ni]) {
            pi += 1;
            ni += 1;
        } else if let Some((sp, sn)) = star {
            star = Some((sp, sn + 1));
            pi = sp + 1;
            ni = sn + 1;
        } else {
            return false;
        }
    }
    p[pi..].iter().all(|c| *c == '*')
}

/// What to do when the target already holds data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IfExists {
    /// Refuse, naming what is there.
    #[default]
    Fail,
    /// Put the restored collections in the place of those that are there.
    Replace,
    /// Write into what is there; documents with the same key are overwritten.
    Merge,
}

/// How to restore.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreOptions {
    /// What to restore.
    pub selection: Selection,
    /// New names for collections: (name in the vault, name in the target).
    pub rename: Vec<(String, String)>,
    /// What to do when the target holds data.
    pub if_exists: IfExists,
    /// Write into what is there as whoever uses it would, on top of what it has: each document that
    /// differs gets a new revision, so that those who replicate with the target take it. Only for sinks
    /// that [`Sink::writes_new_revisions`](crate::Sink::writes_new_revisions).
    pub as_new_revisions: bool,
    /// With that: documents that the source does not have stay, as it may not have all that there were.
    pub keep_others: bool,
    /// Only these kinds of things, in the words of the target ([`Sink::kinds`](crate::Sink::kinds)); empty
    /// means all.
    pub kinds: Vec<String>,
    /// All but these kinds of things.
    pub without_kinds: Vec<String>,
    /// What becomes of indexes that the target would build at once.
    pub indexes: Indexes,
    /// Whether it is done only to prove that everything is there: nobody is going to use what is written.
    pub only_proves: bool,
}

/// What becomes of restored indexes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Indexes {
    /// The target builds them.
    #[default]
    Built,
    /// They stand still until indexing is started.
    Stopped,
    /// They are disabled until each is enabled.
    Disabled,
}

impl RestoreOptions {
    /// The name in the target of a collection.
    pub fn target_name<'a>(&'a self, collection: &'a str) -> &'a str {
        self.rename.iter().find(|(from, _)| from == collection).map_or(collection, |(_, to)| to)
    }

    /// Adds a renaming written as `A=B`.
    pub fn add_rename(&mut self, text: &str) -> Result<()> {
        match text.split_once('=') {
            Some((from, to)) if !from.is_empty() && !to.is_empty() => {
                self.rename.push((from.to_owned(), to.to_owned()));
                Ok(())
            }
            _ => Err(Error::input(format!("--rename {text}: write it as OLD=NEW"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (p, n, yes) in [
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abbd", false),
            ("a?c", "abc", true),
            ("**x", "yx", true),
            ("", "x", false),
            ("ü*", "über", true),
        ] {
            assert_eq!(glob_matches(p, n), yes, "{p} on {n}");
        }
    }

    #[test]
    fn one_document() {
        let s = Selection { only: vec!["books/a/b".into()], ..Selection::default() };
        assert!(s.takes("books"));
        assert!(!s.takes("book"));
        assert!(s.takes_key("books", b"a/b"));
        assert!(!s.takes_key("books", b"a"));
        assert!(!s.takes_all_of("books"));
    }

    #[test]
    fn keys_that_are_not_text() {
        let mut s = Selection { only: vec!["db.a/b/7".into()], ..Selection::default() };
        s.understand_keys(|text| text.parse::<i32>().map(|n| n.to_le_bytes().to_vec()).into_iter().collect());
        assert!(s.takes_key("db.a/b", &7i32.to_le_bytes()));
        assert!(!s.takes_key("db.a/b", b"7"));
        assert!(!s.takes_key("db.a", b"b/7"));
    }
}
