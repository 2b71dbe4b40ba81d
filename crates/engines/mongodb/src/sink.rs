//! MongoDB as a sink: what a restore is going to do.

use crate::catalog::{CollectionKind, Options};
use crate::connect::Server;
use crate::expiry::Expiry;
use crate::indexes;
use crate::names;
use crate::place::{self, Place, Way};
use crate::session::Session;
use async_trait::async_trait;
use model::{
    AttachmentStore, CollectionInfo, Description, Engine, Error, Expired, IfExists, Loss, PlannedCollection,
    RestoreOptions, RestorePlan, Result, Sink, SinkSession,
};
use std::sync::{Arc, Mutex};

/// A MongoDB server, replica set or cluster that documents are written to; all of it, or the
/// database that its URL names.
///
/// Everything is written beside what is there, into scratch collections named
/// `COLLECTION.rewound-RUN`, and put in place by renaming when all is written. A restore that was
/// killed leaves scratch collections behind; the next one of the same collections removes them.
#[derive(Debug)]
pub struct MongoSink {
    server: Arc<Server>,
    concurrency: usize,
    /// What the last `prepare` was told; a plan has no room for it.
    prepared: Mutex<Option<Prepared>>,
}

/// What `begin` must know beyond the plan.
#[derive(Debug, Clone)]
struct Prepared {
    if_exists: IfExists,
    engine: Engine,
}

impl MongoSink {
    /// The server as a target; nothing is opened yet.
    pub fn new(server: Arc<Server>) -> MongoSink {
        MongoSink { server, concurrency: 4, prepared: Mutex::new(None) }
    }

    /// How many commands write side by side; 4 unless told.
    pub fn concurrency(mut self, commands: usize) -> MongoSink {
        self.concurrency = commands.clamp(1, 64);
        self
    }
}

#[async_trait]
impl Sink for MongoSink {
    async fn prepare(&self, what: &Description, options: &RestoreOptions) -> Result<RestorePlan> {
        let home = self.server.database().await?;
        let mut collections = Vec::new();
        for info in what.collections.iter().filter(|info| options.selection.takes(&info.name)) {
            let target = names::target(&what.engine, info, options, home.as_deref())?;
            collections.push(PlannedCollection { info: info.clone(), target });
        }
        let places = place::find(&self.server, collections.clone(), options.if_exists).await?;
        let losses = places.iter().flat_map(|place| losses(place, &what.engine)).collect();
        let phases = phases(&places, options.if_exists);
        *self.prepared.lock().unwrap_or_else(|e| e.into_inner()) =
            Some(Prepared { if_exists: options.if_exists, engine: what.engine.clone() });
        Ok(RestorePlan { phases, collections, losses })
    }

    fn expired(&self, info: &CollectionInfo, now_millis: i64) -> Option<Expired> {
        let expiry = Expiry::of(&Options::from_json(&info.options).ok()?, now_millis)?;
        Some(Box::new(move |batch, i| expiry.has_passed(batch.body_of(i))))
    }

    async fn begin(&self, plan: RestorePlan, _: Arc<dyn AttachmentStore>) -> Result<Box<dyn SinkSession>> {
        let prepared = self.prepared.lock().unwrap_or_else(|e| e.into_inner()).clone();
        let prepared = prepared.ok_or_else(|| Error::bug("a restore into MongoDB began before it was prepared"))?;
        // Time has passed since the plan: what it found may no longer be so.
        let places = place::find(&self.server, plan.collections, prepared.if_exists).await?;
        Ok(Box::new(Session::begin(self.server.clone(), places, prepared.engine, self.concurrency).await?))
    }
}

fn losses(place: &Place, engine: &Engine) -> Vec<Loss> {
    let mut losses = Vec::new();
    let mut lose = |what: &str, why: &str| {
        losses.push(Loss { what: format!("{what} of {}", place.planned.info.name), why: why.to_owned() });
    };
    if engine.0 != "mongodb" {
        lose(
            "the text of the documents",
            "they become BSON: _id is added, from the key, to those without one; whole numbers above 64 bits become decimal128; spaces are not kept",
        );
        if place.planned.info.ordered {
            lose("order of the documents", "a collection of MongoDB promises none");
        }
    }
    if place.options.options.get_bool("autoIndexId").is_ok_and(|yes| !yes) {
        lose("the option autoIndexId: false", "servers no longer take it; the collection gets an index on _id");
    }
    losses
}

/// The steps, for people.
fn phases(places: &[Place], if_exists: IfExists) -> Vec<String> {
    let of = |way: Way| places.iter().filter(|p| p.way == way).collect::<Vec<_>>();
    let list = |places: &[&Place]| {
        let names: Vec<&str> = places.iter().take(10).map(|p| p.shown()).collect();
        let more = if places.len() > 10 { format!(" and {} more", places.len() - 10) } else { String::new() };
        names.join(", ") + &more
    };
    let mut phases = Vec::new();
    let leftovers: Vec<String> =
        places.iter().flat_map(|p| p.leftovers.iter().map(|name| format!("{}.{name}", p.database))).collect();
    if !leftovers.is_empty() {
        phases.push(format!("remove what an interrupted restore left: {}", leftovers.join(", ")));
    }
    let partial: Vec<&Place> = places.iter().filter(|p| p.is_partial && !p.leftovers.is_empty()).collect();
    if !partial.is_empty() {
        phases.push(format!("drop time series that an interrupted restore left incomplete: {}", list(&partial)));
    }
    let beside = of(Way::Beside);
    if !beside.is_empty() {
        let count = collections(beside.len());
        phases.push(format!(
            "write {count} with their options under other names (NAME.rewound-…), documents unvalidated"
        ));
    }
    for (way, doing) in [
        (Way::Marked, "write into new time series"),
        (Way::Copied, "write under other names, to be copied, as they cannot be renamed"),
        (Way::Into, "write into what is there, replacing documents with the same _id; options stay as they are"),
    ] {
        let places = of(way);
        if !places.is_empty() {
            phases.push(format!("{doing}: {}", list(&places)));
        }
    }
    let count = |expires: bool| {
        let built = places.iter().flat_map(|p| {
            indexes::to_build(
                &p.options,
                Some(p).filter(|p| p.way == Way::Into).and_then(|p| p.existing.as_ref()).map(|e| &e.options),
            )
        });
        built.filter(|i| indexes::expires(i) == expires).count()
    };
    match count(false) {
        0 => {}
        1 => phases.push("build 1 index".into()),
        n => phases.push(format!("build {n} indexes")),
    }
    if !beside.is_empty() {
        let over: Vec<&Place> = beside.iter().filter(|p| p.existing.is_some()).copied().collect();
        phases.push(match over.is_empty() {
            true => format!("rename {} to their names", collections(beside.len())),
            false => format!(
                "rename {} to their names, each in the place of the one that is there: {}",
                collections(beside.len()),
                list(&over)
            ),
        });
    }
    let copied = of(Way::Copied);
    if !copied.is_empty() {
        let old = if if_exists == IfExists::Replace { "drop the old and " } else { "" };
        phases.push(format!("{old}copy to their names: {}", list(&copied)));
    }
    match of(Way::View).len() {
        0 => {}
        1 => phases.push("make 1 view".into()),
        n => phases.push(format!("make {n} views, each after those that it reads")),
    }
    let expiring = count(true);
    let expires =
        |p: &&Place| p.options.kind != CollectionKind::View && p.options.options.contains_key("expireAfterSeconds");
    let expiring = expiring + places.iter().filter(expires).count();
    if expiring > 0 {
        phases.push(format!(
            "last, set the expiry of documents (TTL) {}: from then on the server deletes those whose time has passed",
            if expiring == 1 { "in 1 place".to_owned() } else { format!("in {expiring} places") }
        ));
    }
    let users = of(Way::Users);
    if !users.is_empty() {
        phases.push(format!("add users and roles, or update those that are there: {}", list(&users)));
    }
    phases
}

fn collections(count: usize) -> String {
    if count == 1 { "1 collection".to_owned() } else { format!("{count} collections") }
}
