//! The collections that are followed, as they are at the place that the reading has come to.

use super::entry::Uuid;
use super::options::BUCKETS;
use crate::catalog::{INTERNAL, Listed, Options, split_namespace};
use crate::names;
use model::{CollectionId, CollectionInfo, Result, Selection};
use std::collections::{BTreeMap, HashMap};

/// What of the server is followed.
#[derive(Debug, Clone)]
pub(crate) struct Scope {
    /// The only database, if it is one.
    pub database: Option<String>,
    pub selection: Selection,
}

impl Scope {
    /// Whether anything in this database may be followed.
    pub fn has_database(&self, database: &str) -> bool {
        match &self.database {
            Some(only) => only == database,
            None => !INTERNAL.contains(&database),
        }
    }

    /// Whether a collection that has this name now is followed. `stored` is the name under which its
    /// documents are stored.
    pub fn takes(&self, database: &str, stored: &str, is_temporary: bool) -> bool {
        if self.database.is_none() && database == "admin" && matches!(stored, "system.users" | "system.roles") {
            return self.selection.users && self.selection.takes(&format!("admin.{stored}"));
        }
        if !self.has_database(database) {
            return false;
        }
        let name = stored.strip_prefix(BUCKETS).unwrap_or(stored);
        if name.starts_with("system.") && name != "system.js" {
            return false;
        }
        // What will get the name of another collection in a moment: when it does, its documents must
        // be known.
        let is_passing = is_temporary || is_passing(name) || names::is_scratch(name);
        is_passing && self.may_take_in(database) || self.selection.takes(&format!("{database}.{name}"))
    }

    /// Whether a name in this database may be meant.
    fn may_take_in(&self, database: &str) -> bool {
        let all = self.selection.only.is_empty();
        all || self.selection.only.iter().any(|p| match p.split_once('.') {
            Some((pattern, _)) => model::glob_matches(pattern, database) || pattern.contains(['*', '?']),
            None => true,
        })
    }
}

/// Whether a server has made this name for a collection that it is going to rename.
fn is_passing(name: &str) -> bool {
    let tail = name.strip_prefix("tmp");
    tail.is_some_and(|t| t.starts_with(".agg_out.") || t.get(5..).is_some_and(|t| t.starts_with(".renameCollection")))
}

/// One collection that is followed.
#[derive(Debug, Clone)]
pub(crate) struct Followed {
    pub listed: Listed,
    pub id: CollectionId,
    /// Its number here.
    pub number: u32,
    /// Whether only some of its documents are followed.
    pub is_part: bool,
}

/// The collections that are followed.
#[derive(Debug)]
pub(crate) struct Known {
    pub scope: Scope,
    collections: HashMap<Uuid, Followed>,
    /// By `database.view`.
    views: BTreeMap<String, Followed>,
    next: u32,
}

impl Known {
    /// Those of a scan or of a point.
    pub fn new(scope: Scope, collections: &[CollectionInfo]) -> Result<Known> {
        let mut known = Known { scope, collections: HashMap::new(), views: BTreeMap::new(), next: 0 };
        for info in collections {
            let (database, name) = split_namespace(&info.name)?;
            let options = Options::from_json(&info.options)?;
            let uuid = uuid_of(&info.id);
            let listed = Listed { database: database.to_owned(), name: name.to_owned(), options, uuid };
            let is_temporary = listed.options.options.get_bool("temp").unwrap_or(false);
            if known.scope.takes(database, name, is_temporary) {
                known.set(listed);
            }
        }
        Ok(known)
    }

    /// The collection with this identity.
    pub fn get(&self, uuid: &Uuid) -> Option<&Followed> {
        self.collections.get(uuid)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, uuid: &Uuid) -> Option<&mut Followed> {
        self.collections.get_mut(uuid)
    }

    /// Gives a collection another name; what it is then, if it is still followed.
    pub fn rename(&mut self, uuid: &Uuid, database: &str, name: &str, stay_temporary: bool) -> Option<CollectionInfo> {
        let mut listed = self.collections.get(uuid)?.listed.clone();
        database.clone_into(&mut listed.database);
        name.clone_into(&mut listed.name);
        if !stay_temporary {
            listed.options.options.remove("temp");
        }
        let is_temporary = listed.options.options.get_bool("temp").unwrap_or(false);
        match self.scope.takes(database, name, is_temporary) {
            true => Some(self.set(listed)),
            false => None,
        }
    }

    /// Adds a collection or view, in the place of the one with its identity; gives what it is now.
    pub fn set(&mut self, listed: Listed) -> CollectionInfo {
        let info = listed.info();
        let selection = &self.scope.selection;
        let is_part = selection.takes(&info.name) && !selection.takes_all_of(&info.name);
        let followed = Followed { id: info.id.clone(), number: self.next, is_part, listed };
        self.next += 1;
        match followed.listed.uuid {
            Some(uuid) => drop(self.collections.insert(uuid.bytes(), followed)),
            None => drop(self.views.insert(info.name.clone(), followed)),
        }
        info
    }

    /// Removes a collection.
    pub fn remove(&mut self, uuid: &Uuid) -> Option<CollectionId> {
        self.collections.remove(uuid).map(|f| f.id)
    }

    /// Removes a view.
    pub fn remove_view(&mut self, name: &str) -> Option<CollectionId> {
        self.views.remove(name).map(|f| f.id)
    }

    /// The identities of views of a database.
    pub fn views_of(&self, database: &str) -> Vec<String> {
        let is_in = |name: &str| name.strip_prefix(database).is_some_and(|rest| rest.starts_with('.'));
        self.views.keys().filter(|name| is_in(name)).cloned().collect()
    }

    /// The identities of collections of a database.
    pub fn collections_of(&self, database: &str) -> Vec<Uuid> {
        self.collections.iter().filter(|(_, f)| f.listed.database == database).map(|(uuid, _)| *uuid).collect()
    }
}

/// The server's identity of a collection, from ours.
fn uuid_of(id: &CollectionId) -> Option<bson::Uuid> {
    let text = id.as_str();
    let byte = |i: usize| u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok();
    let mut bytes = [0; 16];
    for (i, b) in bytes.iter_mut().enumerate() {
        *b = byte(i).filter(|_| text.len() == 32)?;
    }
    Some(bson::Uuid::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn scope(database: Option<&str>, only: &[&str], users: bool) -> Scope {
        let only = only.iter().map(|s| (*s).to_owned()).collect();
        let selection = Selection { only, users, ..Selection::default() };
        Scope { database: database.map(str::to_owned), selection }
    }

    #[test]
    fn what_is_followed() {
        let all = scope(None, &[], false);
        for (database, name, yes) in [
            ("db", "a", true),
            ("db", "system.buckets.a", true),
            ("db", "system.js", true),
            ("db", "system.profile", false),
            ("db", "system.views", false),
            ("admin", "system.users", false),
            ("config", "x", false),
            ("local", "x", false),
        ] {
            assert_eq!(all.takes(database, name, false), yes, "{database}.{name}");
        }
        assert!(scope(None, &[], true).takes("admin", "system.users", false));
        assert!(!scope(Some("db"), &[], true).takes("admin", "system.users", false));
        assert!(!scope(Some("db"), &[], false).takes("other", "a", false));
        let some = scope(None, &["db.a", "db.b/1"], false);
        assert!(some.takes("db", "a", false) && some.takes("db", "b", false) && !some.takes("db", "c", false));
        assert!(some.takes("db", "c", true) && !some.takes("other", "c", true));
        for name in ["tmp.agg_out.1", "tmpAb1cD.renameCollection", "a.rewound-0123abcd"] {
            assert!(some.takes("db", name, false) && !some.takes("other", name, false), "{name}");
        }
    }

    #[test]
    fn identities_are_read_back() {
        let uuid = bson::Uuid::from_bytes([0xAB; 16]);
        assert_eq!(uuid_of(&CollectionId::new("ab".repeat(16))), Some(uuid));
        for wrong in ["", "view:db.a", &"ab".repeat(17), &"xy".repeat(16)] {
            assert_eq!(uuid_of(&CollectionId::new(wrong)), None, "{wrong}");
        }
    }
}
