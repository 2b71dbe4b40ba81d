//! Where each collection goes, and what is there already.

use crate::catalog::{self, CollectionKind, Listed, Options, split_namespace};
use crate::connect::Server;
use crate::error;
use crate::indexes;
use crate::names;
use bson::{Document, RawDocumentBuf, doc};
use futures::{StreamExt, TryStreamExt};
use model::{Error, IfExists, PlannedCollection, Result};
use std::collections::{BTreeMap, HashMap};

/// Collections that are looked at side by side.
const LOOKING: usize = 8;
/// Collections that are named one by one in an error.
const NAMED: usize = 20;

/// How documents get into a collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Into a scratch collection, which is renamed when all is written: the collection appears
    /// whole or not at all.
    Beside,
    /// Into a scratch collection, too, whose documents are copied in the end: what is there cannot
    /// be renamed over.
    Copied,
    /// Into a new collection of that name, which no other can be renamed to. An empty scratch
    /// collection beside it says that it is not complete.
    Marked,
    /// Into the collection that is there.
    Into,
    /// It has no documents, and is made when all collections are there.
    View,
    /// Users and roles: the server takes them over from a scratch collection.
    Users,
}

/// One collection with its place.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub planned: PlannedCollection,
    pub database: String,
    pub name: String,
    /// As the source has them.
    pub options: Options,
    pub way: Way,
    /// What is there.
    pub existing: Option<Listed>,
    /// What interrupted restores left beside it.
    pub leftovers: Vec<String>,
    /// What is there was left by an interrupted restore, too.
    pub is_partial: bool,
    /// It takes the place of whatever is there.
    pub replaces: bool,
}

impl Place {
    /// `database.collection`.
    pub fn shown(&self) -> &str {
        &self.planned.target
    }

    pub fn is_time_series(&self) -> bool {
        self.options.kind == CollectionKind::TimeSeries
    }
}

/// Finds out where collections go. Refuses what cannot be, naming all of it.
pub(crate) async fn find(
    server: &Server,
    collections: Vec<PlannedCollection>,
    if_exists: IfExists,
) -> Result<Vec<Place>> {
    refuse_collisions(&collections)?;
    let mut places = Vec::with_capacity(collections.len());
    for planned in collections {
        let (database, name) = split_namespace(&planned.target)?;
        let (database, name) = (database.to_owned(), name.to_owned());
        let options = match names::is_of_users(&planned.target) {
            true => Options::from_json(&serde_json::Value::Null)?,
            false => Options::from_json(&planned.info.options).or_else(|e| foreign(&planned, e))?,
        };
        places.push(Place {
            way: Way::Beside,
            planned,
            database,
            name,
            options,
            existing: None,
            leftovers: Vec::new(),
            is_partial: false,
            replaces: if_exists == IfExists::Replace,
        });
    }
    look(server, &mut places).await?;
    let documents = count(server, &places).await?;
    let mut refused = Refused::default();
    for (place, documents) in places.iter_mut().zip(documents) {
        place.decide(if_exists, documents, &mut refused);
    }
    refused.check()?;
    Ok(places)
}

/// Options of another engine mean nothing here.
fn foreign(planned: &PlannedCollection, error: Error) -> Result<Options> {
    match planned.info.options.get("indexes").is_some() && planned.info.options.get("type").is_some() {
        true => Err(error),
        false => Options::from_json(&serde_json::Value::Null),
    }
}

fn refuse_collisions(collections: &[PlannedCollection]) -> Result<()> {
    let mut taken: HashMap<&str, &str> = HashMap::new();
    for planned in collections {
        if let Some(other) = taken.insert(&planned.target, &planned.info.name) {
            return Err(Error::input(format!(
                "{other} and {} would both become {}",
                planned.info.name, planned.target
            ))
            .hint("give one of them another name with --rename OLD=NEW, or leave it out with --exclude"));
        }
    }
    Ok(())
}

/// Fills in what is there.
async fn look(server: &Server, places: &mut [Place]) -> Result<()> {
    let mut by_database: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (i, place) in places.iter().enumerate() {
        by_database.entry(place.database.clone()).or_default().push(i);
    }
    for (database, places_here) in by_database {
        let (listed, _) = catalog::collections(server, &database).await?;
        let mut there: HashMap<String, Listed> = listed.into_iter().map(|l| (l.name.clone(), l)).collect();
        let wanted: HashMap<String, usize> = places_here.iter().map(|i| (places[*i].name.clone(), *i)).collect();
        let mut existing: Vec<Listed> = wanted.keys().filter_map(|name| there.get(name).cloned()).collect();
        catalog::add_indexes(server, &mut existing).await?;
        for listed in existing {
            let place = &mut places[wanted[&listed.name]];
            there.remove(&listed.name);
            place.existing = Some(listed);
        }
        let scratch: Vec<&Listed> = there.values().filter(|l| l.name.contains("rewound-")).collect();
        if scratch.is_empty() {
            continue;
        }
        for i in places_here {
            let place = &mut places[i];
            let mine = scratch.iter().filter(|l| names::is_scratch_of(&l.name, &database, &place.name));
            for listed in mine {
                let is_there = place.existing.as_ref().is_some_and(|e| e.options.kind == CollectionKind::TimeSeries);
                place.is_partial |= is_there && listed.options == mark();
                place.leftovers.push(listed.name.clone());
            }
            place.leftovers.sort();
        }
    }
    Ok(())
}

/// The options of the empty collection beside a time series that says that it is not complete, and
/// was not there before.
pub(crate) fn mark() -> Options {
    Options {
        kind: CollectionKind::Collection,
        options: doc! { "validator": { "rewound": "the time series beside this collection is not complete" } },
        indexes: Vec::new(),
    }
}

/// The documents in each existing collection, about; 0 only if there is none.
async fn count(server: &Server, places: &[Place]) -> Result<Vec<u64>> {
    let mut counting = Vec::with_capacity(places.len());
    for place in places {
        counting.push(count_one(server, place));
    }
    futures::stream::iter(counting).buffered(LOOKING).try_collect().await
}

async fn count_one(server: &Server, place: &Place) -> Result<u64> {
    let Some(existing) = place.existing.as_ref().filter(|e| e.options.kind != CollectionKind::View) else {
        return Ok(0);
    };
    let shown = existing.namespace();
    let doing = || format!("looking whether {shown} holds documents");
    let database = server.client().await?.database(&place.database);
    // Raw: a text need not be one.
    let collection = database.collection::<RawDocumentBuf>(&place.name);
    let first = collection.find_one(doc! {}).projection(doc! { "_id": 1 }).await;
    if first.map_err(|e| error::driver(doing(), e))?.is_none() {
        return Ok(0);
    }
    let buckets = match existing.options.kind {
        CollectionKind::TimeSeries => format!("system.buckets.{}", place.name),
        _ => place.name.clone(),
    };
    let answer = server.run(&place.database, doc! { "count": buckets }).await?;
    let count = answer.get_i32("n").map(i64::from).or_else(|_| answer.get_i64("n")).unwrap_or(1);
    Ok(count.max(1) as u64)
}

/// What speaks against a restore.
#[derive(Default)]
struct Refused {
    full: Vec<String>,
    different: Vec<String>,
    indexes: Vec<String>,
    leftovers: bool,
}

impl Refused {
    fn check(self) -> Result<()> {
        let list = |lines: &[String]| {
            let more = lines.len().saturating_sub(NAMED);
            let mut text: String = lines.iter().take(NAMED).map(|l| format!("\n  {l}")).collect();
            if more > 0 {
                text.push_str(&format!("\n  and {more} more"));
            }
            text
        };
        if !self.full.is_empty() {
            let text = format!("the target holds documents already:{}", list(&self.full));
            let mut hint = "pass --if-exists replace to put the restored collections in their place, --if-exists merge to write into them, or restore under other names with --rename OLD=NEW".to_owned();
            if self.leftovers {
                hint.push_str(
                    "; a restore was interrupted here: what it completed is among these, and replace completes it",
                );
            }
            return Err(Error::input(text).hint(hint));
        }
        if !self.different.is_empty() {
            let text = format!("the target has something else of the same name:{}", list(&self.different));
            return Err(Error::input(text).hint(
                "pass --if-exists replace to put the restored ones in their place, or drop them, or restore under other names with --rename OLD=NEW",
            ));
        }
        if !self.indexes.is_empty() {
            let text = format!("the target has other indexes of the same name or key:{}", list(&self.indexes));
            return Err(Error::input(text).hint("drop them in the target, or pass --if-exists replace"));
        }
        Ok(())
    }
}

impl Place {
    fn decide(&mut self, if_exists: IfExists, documents: u64, refused: &mut Refused) {
        refused.leftovers |= !self.leftovers.is_empty();
        self.way = match self.options.kind {
            _ if names::is_of_users(self.shown()) => Way::Users,
            CollectionKind::View => Way::View,
            CollectionKind::TimeSeries => Way::Marked,
            CollectionKind::Collection if self.name.starts_with("system.") => Way::Copied,
            CollectionKind::Collection => Way::Beside,
        };
        let Some(existing) = self.existing.as_ref().filter(|_| !self.is_partial && self.way != Way::Users) else {
            return;
        };
        let shown = existing.namespace();
        let is_other_kind = existing.options.kind != self.options.kind;
        let is_same = !is_other_kind && existing.options.options == self.options.options;
        match if_exists {
            IfExists::Replace => {
                if self.way == Way::Marked {
                    self.way = Way::Copied;
                }
            }
            IfExists::Fail if documents > 0 => refused.full.push(match existing.options.kind {
                CollectionKind::TimeSeries => format!("{shown}: about {documents} buckets"),
                _ => format!("{shown}: about {documents} documents"),
            }),
            IfExists::Merge if !is_other_kind && self.way != Way::View => {
                self.way = Way::Into;
                let conflicts = indexes::conflicts(&existing.options, &self.options);
                refused.indexes.extend(conflicts.into_iter().map(|name| format!("{shown}: {name}")));
            }
            IfExists::Fail | IfExists::Merge if is_other_kind => refused.different.push(format!(
                "{shown}: a {} is there, and a {} would be restored",
                existing.options.kind.word(),
                self.options.kind.word()
            )),
            IfExists::Fail | IfExists::Merge if !is_same => {
                refused.different.push(format!("{shown}: it has other options"));
            }
            IfExists::Fail => {
                let mine = |i: &&Document| !self.options.indexes.iter().any(|o| indexes::is_same(i, o));
                let others: Vec<_> = existing.options.indexes.iter().filter(mine).map(indexes::name).collect();
                if !others.is_empty() {
                    refused.different.push(format!("{shown}: it has other indexes ({})", others.join(", ")));
                } else if self.way == Way::Marked {
                    // It is empty, and the same: as good as not there.
                    self.is_partial = true;
                }
            }
            IfExists::Merge => {}
        }
    }
}
