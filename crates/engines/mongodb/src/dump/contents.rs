//! What a dump holds, be it a folder or an archive.

use super::files::Stamp;
use super::metadata::Metadata;
use super::names;
use crate::catalog::{CollectionKind, INTERNAL, Listed};
use crate::names::is_of_users;
use model::{CollectionId, CollectionInfo, Error, ErrorKind, Loss, Selection, Skipped};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// Bad places that one error lists.
const SHOWN: usize = 20;
/// Things that one loss lists.
const LISTED: usize = 10;
/// The bucket collection of a time series.
pub(crate) const BUCKETS: &str = "system.buckets.";

/// What a dump holds.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// The server's version, if the dump tells it.
    pub version: Option<String>,
    pub entries: Vec<Entry>,
    pub losses: Vec<Loss>,
    pub bad: Vec<Bad>,
}

/// A collection of a dump.
#[derive(Debug)]
pub(crate) struct Entry {
    pub info: CollectionInfo,
    /// How many documents it has, once they are counted.
    pub documents: u64,
    /// Where its documents are.
    pub data: Place,
}

/// Where documents are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Place {
    /// Nowhere: a view.
    Nowhere,
    /// In a file of their own.
    File {
        /// Its path in the dump, as parts.
        path: Vec<String>,
        gzip: bool,
        /// How much of its content is read; all of it where that is not known yet.
        until: u64,
        stamp: Option<Stamp>,
    },
    /// In blocks of an archive.
    Blocks {
        /// Which namespace of the archive, before they are known.
        namespace: (String, String),
        ranges: Vec<(u64, u64)>,
        stamp: Option<Stamp>,
    },
}

/// Something in a dump that cannot be used.
#[derive(Debug, Clone)]
pub(crate) struct Bad {
    /// The collection that it belongs to, if that is known.
    pub namespace: Option<String>,
    pub kind: ErrorKind,
    pub what: String,
    pub why: String,
}

/// A collection as a dump names it, before its parts are put together.
#[derive(Debug)]
pub(crate) struct Raw {
    pub database: String,
    /// The name that its file or its place in the archive has.
    pub name: Option<String>,
    /// What it is called in messages.
    pub shown: String,
    pub metadata: Option<Metadata>,
    pub data: Option<Place>,
}

impl Contents {
    /// Puts together what belongs together, and leaves out what belongs to the server. With `users`
    /// the collections of users and roles are not left out.
    pub fn gather(&mut self, raws: Vec<Raw>, users: bool) {
        let mut left_out = Vec::new();
        let mut bare = Vec::new();
        let mut buckets: HashMap<(String, String), Raw> = HashMap::new();
        let mut named: BTreeMap<(String, String), Raw> = BTreeMap::new();
        for raw in raws {
            let Some(name) = raw.metadata.as_ref().and_then(|m| m.name.clone()).or(raw.name.clone()) else {
                let why = "its name is cut, and only its metadata would tell the whole".to_owned();
                self.bad.push(Bad { namespace: None, kind: ErrorKind::Corrupt, what: raw.shown, why });
                continue;
            };
            let namespace = format!("{}.{name}", raw.database);
            if let Some(of) = name.strip_prefix(BUCKETS).filter(|_| raw.data.is_some()) {
                buckets.insert((raw.database.clone(), of.to_owned()), raw);
            } else if is_of_server(&raw.database, &name) && !(users && is_of_users(&namespace)) {
                left_out.push(namespace);
            } else if let Some(why) = namespace_flaw(&raw.database, &name) {
                let bad = Bad { namespace: Some(namespace), kind: ErrorKind::Input, what: raw.shown, why: why.into() };
                self.bad.push(bad);
            } else if let Some(other) = named.get(&(raw.database.clone(), name.clone())) {
                let why = format!("{} is the collection {namespace}, too", other.shown);
                self.bad.push(Bad { namespace: Some(namespace), kind: ErrorKind::Input, what: raw.shown, why });
            } else {
                named.insert((raw.database.clone(), name), raw);
            }
        }
        let mut uuids: HashMap<bson::Uuid, u32> = HashMap::new();
        for uuid in named.values().filter_map(|raw| raw.metadata.as_ref()?.uuid) {
            *uuids.entry(uuid).or_default() += 1;
        }
        for ((database, name), mut raw) in named {
            let namespace = format!("{database}.{name}");
            let metadata = raw.metadata.take().unwrap_or_else(|| {
                bare.push(namespace.clone());
                Metadata::none()
            });
            let kind = metadata.options.kind;
            let own = buckets.remove(&(database.clone(), name.clone()));
            let data = match (kind, raw.data.take(), own) {
                (CollectionKind::View, _, _) => Some(Place::Nowhere),
                (CollectionKind::TimeSeries, None, Some(of)) => of.data,
                // Servers from 8.3 on keep the buckets under the name itself.
                (_, data, None) => data,
                (_, _, Some(of)) => {
                    let why = format!("there are documents of {namespace} in {}, too", of.shown);
                    self.bad.push(Bad { namespace: Some(namespace), kind: ErrorKind::Input, what: raw.shown, why });
                    continue;
                }
            };
            let Some(data) = data else {
                let why = "there is metadata, and no file of documents".to_owned();
                self.bad.push(Bad { namespace: Some(namespace), kind: ErrorKind::Corrupt, what: raw.shown, why });
                continue;
            };
            let uuid = metadata.uuid.filter(|uuid| uuids[uuid] == 1 && kind != CollectionKind::View);
            let mut info = Listed { database, name, options: metadata.options, uuid }.info();
            if uuid.is_none() && kind != CollectionKind::View {
                info.id = CollectionId::new(format!("dump:{namespace}"));
            }
            self.entries.push(Entry { info, documents: 0, data });
        }
        for ((database, name), raw) in buckets {
            let why = "these are the documents of a time series whose metadata is missing".to_owned();
            let namespace = Some(format!("{database}.{name}"));
            self.bad.push(Bad { namespace, kind: ErrorKind::Corrupt, what: raw.shown, why });
        }
        self.lose(left_out, "it belongs to the server, or to one database's users");
        self.lose(
            bare,
            "it has no metadata file: its options and indexes are missing; make the indexes again after a restore \
             (for jobflow-remote: jf admin index rebuild)",
        );
    }

    /// Adds a loss of several things, naming the first few.
    pub fn lose(&mut self, mut names: Vec<String>, why: &str) {
        if names.is_empty() {
            return;
        }
        names.sort();
        let more = names.len().saturating_sub(LISTED);
        let mut what = names[..names.len() - more].join(", ");
        if more > 0 {
            what.push_str(&format!(", and {more} more"));
        }
        self.losses.push(Loss { what, why: why.to_owned() });
    }
}

/// Whether a collection belongs to the server, and a restore could not write it.
fn is_of_server(database: &str, name: &str) -> bool {
    let is_special = name.starts_with("system.") && name != "system.js" || name.starts_with('$');
    is_special || INTERNAL.contains(&database) && database != "admin" || database.is_empty()
}

fn namespace_flaw(database: &str, name: &str) -> Option<&'static str> {
    match name.is_empty() || name.contains('\0') {
        true => Some("this is no name of a collection"),
        false => names::database_flaw(database),
    }
}

/// What is bad in the selected part: an error, unless it is to be left out.
pub(crate) fn refuse_or_skip(bad: Vec<Bad>, selection: &Selection) -> Result<Vec<Skipped>, Error> {
    let selected = |bad: &Bad| bad.namespace.as_ref().is_none_or(|namespace| selection.takes(namespace));
    let bad: Vec<Bad> = bad.into_iter().filter(selected).collect();
    let Some(first) = bad.first() else { return Ok(Vec::new()) };
    if selection.skip_bad {
        return Ok(bad.into_iter().map(|bad| Skipped { what: bad.what, why: bad.why }).collect());
    }
    let line = |bad: &Bad| format!("{}: {}", bad.what, bad.why);
    let text = if bad.len() == 1 {
        line(first)
    } else {
        let mut text = format!("{} places in the dump are bad:", bad.len());
        bad.iter().take(SHOWN).for_each(|bad| text.push_str(&format!("\n  {}", line(bad))));
        if bad.len() > SHOWN {
            text.push_str(&format!("\n  and {} more", bad.len() - SHOWN));
        }
        text
    };
    Err(Error::new(first.kind, text).hint(match first.kind {
        ErrorKind::Corrupt => "take another copy of the dump, or pass --skip-bad to leave out what is damaged",
        _ => "move away what does not belong there, or pass --skip-bad to leave out what is named",
    }))
}
