//! Commands in the oplog that make, change, rename and drop collections, indexes and views.

use super::entry::{Entry, Uuid, field};
use super::indexes;
use super::known::Known;
use super::options::{self, BUCKETS};
use crate::catalog::{CollectionKind, Listed};
use bson::{Bson, Document, Timestamp};
use model::{CollectionId, CollectionInfo, Result};

/// What became of a collection: what it is now, or nothing any more.
pub(crate) type Told = (CollectionId, Option<CollectionInfo>);

/// What a command means for what is followed.
#[derive(Debug, PartialEq)]
pub(crate) enum Meaning {
    /// This, in this order.
    Told(Vec<Told>),
    /// It changes a collection that should be followed by its name, but is not known.
    Stranger {
        /// The collection.
        uuid: Uuid,
        /// Its stored name, without the database.
        name: String,
    },
    /// A collection whose documents are not known gets a name that is followed.
    Joins {
        /// That name.
        name: String,
    },
}

const NOTHING: Meaning = Meaning::Told(Vec::new());

/// Does to what is known what a command did; `ts` is the time of the entry that it is part of.
pub(crate) fn apply(known: &mut Known, entry: &Entry, ts: Timestamp) -> Result<Meaning> {
    let broken = |why: &str| entry.unsupported(ts, why);
    let database = entry.database();
    let is_of_users = database == "admin" && known.scope.selection.users;
    if !known.scope.has_database(database) && !is_of_users {
        return Ok(NOTHING);
    }
    let command = entry.command().ok_or_else(|| broken("it is empty"))?;
    let name = command.text().unwrap_or_default();
    let document = || Document::from_reader(entry.o).map_err(|e| broken("it is no BSON").caused_by(e));
    match command.name {
        b"startIndexBuild" => Ok(NOTHING),
        b"create" => {
            if !known.scope.takes(database, name, field(entry.o, "temp").is_some_and(|f| f.is_true())) {
                return Ok(NOTHING);
            }
            let uuid = entry.ui.ok_or_else(|| broken("it does not say which collection"))?;
            let listed = options::created(database, &document()?, bson::Uuid::from_bytes(uuid))
                .filter(|l| !l.options.options.contains_key("viewOn"))
                .ok_or_else(|| broken("it makes no collection"))?;
            let info = known.set(listed);
            Ok(Meaning::Told(vec![(info.id.clone(), Some(info))]))
        }
        b"drop" if name == "system.views" => {
            let views = known.views_of(database);
            Ok(Meaning::Told(views.iter().filter_map(|v| known.remove_view(v)).map(|id| (id, None)).collect()))
        }
        b"drop" => {
            let gone = entry.ui.and_then(|uuid| known.remove(&uuid));
            Ok(Meaning::Told(gone.map(|id| (id, None)).into_iter().collect()))
        }
        b"dropDatabase" => {
            // Each collection has been dropped before, in an entry of its own.
            let views = known.views_of(database);
            let mut gone: Vec<_> = views.iter().filter_map(|v| known.remove_view(v)).collect();
            gone.extend(known.collections_of(database).iter().filter_map(|uuid| known.remove(uuid)));
            Ok(Meaning::Told(gone.into_iter().map(|id| (id, None)).collect()))
        }
        b"renameCollection" => rename(known, entry, ts, name),
        b"emptycapped" => change(known, entry, name, |_| Ok(())).map(|meaning| match meaning {
            Meaning::Told(told) => {
                Meaning::Told(told.into_iter().flat_map(|(id, info)| [(id.clone(), None), (id, info)]).collect())
            }
            other => other,
        }),
        b"createIndexes" => {
            let mut definition = document()?;
            definition.remove("createIndexes");
            change(known, entry, name, |listed| {
                add(listed, &definition);
                Ok(())
            })
        }
        b"commitIndexBuild" | b"abortIndexBuild" => {
            let built = command.name == b"commitIndexBuild";
            let document = document()?;
            let definitions = document.get_array("indexes").map_err(|_| broken("it has no indexes"))?;
            change(known, entry, name, |listed| {
                for definition in definitions.iter().filter_map(Bson::as_document) {
                    match built {
                        true => add(listed, definition),
                        // While it was built, it may have been listed.
                        false => {
                            indexes::remove(&mut listed.options.indexes, definition.get_str("name").unwrap_or_default())
                        }
                    }
                }
                Ok(())
            })
        }
        b"dropIndexes" | b"dropIndex" | b"deleteIndexes" | b"deleteIndex" => {
            let index = field(entry.o, "index").and_then(|f| f.text()).ok_or_else(|| broken("it names no index"))?;
            change(known, entry, name, |listed| {
                indexes::remove(&mut listed.options.indexes, index);
                Ok(())
            })
        }
        b"collMod" => {
            let document = document()?;
            change(known, entry, name, |listed| options::modify(listed, &document).map_err(|why| broken(&why)))
        }
        _ => Err(broken("it is not known to this version of Rewound")),
    }
}

/// Changes one collection.
fn change(
    known: &mut Known,
    entry: &Entry,
    stored: &str,
    change: impl FnOnce(&mut Listed) -> Result<()>,
) -> Result<Meaning> {
    let Some(uuid) = entry.ui else { return Ok(NOTHING) };
    if known.get(&uuid).is_none() && known.scope.takes(entry.database(), stored, false) {
        return Ok(Meaning::Stranger { uuid, name: stored.to_owned() });
    }
    let Some(followed) = known.get_mut(&uuid) else { return Ok(NOTHING) };
    change(&mut followed.listed)?;
    let info = followed.listed.info();
    Ok(Meaning::Told(vec![(info.id.clone(), Some(info))]))
}

fn add(listed: &mut Listed, definition: &Document) {
    let index = match listed.options.kind {
        CollectionKind::TimeSeries => {
            let series = listed.options.options.get_document("timeseries");
            series.ok().and_then(|series| indexes::of_series(series, definition))
        }
        _ => Some(indexes::listed(definition)),
    };
    if let Some(index) = index {
        indexes::add(&mut listed.options.indexes, index);
    }
}

fn rename(known: &mut Known, entry: &Entry, ts: Timestamp, from: &str) -> Result<Meaning> {
    let broken = |why: &str| entry.unsupported(ts, why);
    let to = field(entry.o, "to").and_then(|f| f.text()).ok_or_else(|| broken("it does not say to which name"))?;
    let split = |namespace: &str| namespace.split_once('.').map(|(d, c)| (d.to_owned(), c.to_owned()));
    let (database, name) = split(to).ok_or_else(|| broken("it has no name of a collection"))?;
    let (from_database, from_name) = split(from).ok_or_else(|| broken("it has no name of a collection"))?;
    let uuid = entry.ui.ok_or_else(|| broken("it does not say which collection"))?;
    let mut told = Vec::new();
    if let Some(target) = field(entry.o, "dropTarget") {
        if let Some(target) = target.uuid() {
            told.extend(known.remove(&target).map(|id| (id, None)));
        } else if target.is_true() {
            return Err(broken("it does not say which collection it drops"));
        }
    }
    if known.get(&uuid).is_none() {
        let joins = known.scope.takes(&database, &name, false);
        return Ok(match known.scope.takes(&from_database, &from_name, false) {
            true if joins && told.is_empty() => Meaning::Stranger { uuid, name: from_name },
            _ if joins => Meaning::Joins { name: to.to_owned() },
            _ => Meaning::Told(told),
        });
    }
    let stays_temporary = field(entry.o, "stayTemp").is_some_and(|f| f.is_true());
    match known.rename(&uuid, &database, name.strip_prefix(BUCKETS).unwrap_or(&name), stays_temporary) {
        Some(info) => told.push((info.id.clone(), Some(info))),
        None => told.extend(known.remove(&uuid).map(|id| (id, None))),
    }
    Ok(Meaning::Told(told))
}

/// What a write to `system.views` means.
pub(crate) fn view(known: &mut Known, entry: &Entry, ts: Timestamp) -> Result<Meaning> {
    let broken = |why: &str| entry.unsupported(ts, why);
    let document = Document::from_reader(entry.o).map_err(|e| broken("it is no BSON").caused_by(e))?;
    if document.keys().next().is_some_and(|k| k.starts_with('$')) {
        return Err(broken("it changes a view in part"));
    }
    if entry.op == "d" {
        let gone = document.get_str("_id").ok().and_then(|name| known.remove_view(name));
        return Ok(Meaning::Told(gone.map(|id| (id, None)).into_iter().collect()));
    }
    let view = options::view(&document).filter(|v| known.scope.takes(&v.database, &v.name, false));
    let info = view.map(|v| known.set(v));
    Ok(Meaning::Told(info.map(|info| (info.id.clone(), Some(info))).into_iter().collect()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::known::Scope;
    use super::*;
    use bson::doc;
    use model::Selection;

    const TS: Timestamp = Timestamp { time: 1, increment: 1 };

    fn known(only: &[&str]) -> Known {
        let only = only.iter().map(|s| (*s).to_owned()).collect();
        let selection = Selection { only, ..Selection::default() };
        Known::new(Scope { database: None, selection }, &[]).unwrap()
    }

    fn uuid(n: u8) -> bson::Uuid {
        bson::Uuid::from_bytes([n; 16])
    }

    fn run(known: &mut Known, n: u8, command: Document) -> Result<Meaning> {
        let entry = doc! { "op": "c", "ns": "db.$cmd", "ui": uuid(n), "o": command }.to_vec().unwrap();
        apply(known, &Entry::parse(&entry).unwrap(), TS)
    }

    /// Names after a command; `-` for what is gone.
    fn names(meaning: Meaning) -> Vec<String> {
        let Meaning::Told(told) = meaning else { panic!("{meaning:?}") };
        told.into_iter().map(|(_, info)| info.map_or("-".into(), |i| i.name)).collect()
    }

    #[test]
    fn renames_into_and_out_of_what_is_followed() {
        let mut known = known(&["db.a", "db.b"]);
        assert_eq!(names(run(&mut known, 1, doc! { "create": "a" }).unwrap()), ["db.a"]);
        assert_eq!(names(run(&mut known, 2, doc! { "create": "b" }).unwrap()), ["db.b"]);
        assert!(names(run(&mut known, 3, doc! { "create": "c" }).unwrap()).is_empty());
        let onto = doc! { "renameCollection": "db.a", "to": "db.b", "stayTemp": false, "dropTarget": uuid(2) };
        assert_eq!(names(run(&mut known, 1, onto).unwrap()), ["-", "db.b"]);
        let out = doc! { "renameCollection": "db.b", "to": "db.x" };
        assert_eq!(names(run(&mut known, 1, out).unwrap()), ["-"]);
        let join = doc! { "renameCollection": "db.c", "to": "db.a" };
        assert_eq!(run(&mut known, 3, join).unwrap(), Meaning::Joins { name: "db.a".into() });
        let stranger = doc! { "renameCollection": "db.b", "to": "db.a" };
        assert!(matches!(run(&mut known, 9, stranger).unwrap(), Meaning::Stranger { .. }));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let error = run(&mut known(&[]), 1, doc! { "importCollection": "a" }).unwrap_err();
        assert!(error.to_string().contains("importCollection in db.$cmd at ts:1,1"), "{error}");
        let elsewhere = doc! { "op": "c", "ns": "config.$cmd", "o": { "importCollection": "a" } }.to_vec().unwrap();
        assert_eq!(apply(&mut known(&[]), &Entry::parse(&elsewhere).unwrap(), TS).unwrap(), NOTHING);
    }

    #[test]
    fn dropped_with_everything() {
        let mut known = known(&[]);
        run(&mut known, 1, doc! { "create": "a" }).unwrap();
        let view = doc! { "op": "i", "ns": "db.system.views", "o": { "_id": "db.v", "viewOn": "a", "pipeline": [] } };
        let view = view.to_vec().unwrap();
        assert_eq!(names(super::view(&mut known, &Entry::parse(&view).unwrap(), TS).unwrap()), ["db.v"]);
        assert_eq!(names(run(&mut known, 1, doc! { "emptycapped": "a" }).unwrap()), ["-", "db.a"]);
        assert_eq!(names(run(&mut known, 7, doc! { "drop": "system.views" }).unwrap()), ["-"]);
        assert_eq!(names(run(&mut known, 7, doc! { "dropDatabase": 1 }).unwrap()), ["-"]);
        assert!(names(run(&mut known, 1, doc! { "drop": "a" }).unwrap()).is_empty());
    }
}
