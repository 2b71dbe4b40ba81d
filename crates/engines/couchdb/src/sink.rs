//! CouchDB as a sink: what a restore is going to do.

use crate::extras;
use crate::members::Members;
use crate::revise;
use crate::rewind::{self, Rewind, Whole};
use crate::server::{ASKING, Server};
use crate::session::{Goal, Session, Told};
use crate::writer::is_design;
use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use model::{
    AttachmentStore, Batch, Description, Encoding, Error, IfExists, Kind, Loss, PlannedCollection, Rehearsal,
    RestoreOptions, RestorePlan, Result, Selection, Sink, SinkSession,
};
use std::borrow::Cow;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

/// A CouchDB server, or one that speaks its protocol, that databases are written to.
///
/// A database that is there already is only replaced once everything has been written to another one
/// and read back from it.
#[derive(Debug)]
pub struct CouchSink {
    server: Arc<Server>,
    concurrency: usize,
    checkpoints: bool,
    /// What the last `prepare` was told; a plan has no room for it.
    prepared: Mutex<Option<Prepared>>,
    told: Mutex<Arc<Told>>,
}

/// What `begin` must know beyond the plan.
#[derive(Debug, Clone)]
struct Prepared {
    if_exists: IfExists,
    /// What is rewound with new revisions, if that is what is done.
    rewinds: Option<Rewinding>,
}

#[derive(Debug, Clone)]
struct Rewinding {
    selection: Selection,
    keep_others: bool,
    /// The databases that are known to be there as a whole: only then their settings are.
    whole: Whole,
}

impl CouchSink {
    /// The server as a target; nothing is asked yet.
    pub fn new(server: Arc<Server>) -> CouchSink {
        CouchSink { server, concurrency: 4, checkpoints: false, prepared: Mutex::new(None), told: Mutex::default() }
    }

    /// How many requests write side by side; 4 unless told.
    pub fn concurrency(mut self, requests: usize) -> CouchSink {
        self.concurrency = requests.clamp(1, 32);
        self
    }

    /// Whether the checkpoints of replications come back, too. With them, a client that replicates goes
    /// on where it was at the time of the backup, and never sees what it has missed.
    pub fn with_checkpoints(mut self, yes: bool) -> CouchSink {
        self.checkpoints = yes;
        self
    }

    fn target(&self, what: &Description, name: &str, options: &RestoreOptions) -> Result<String> {
        let renamed = options.target_name(name);
        let Some(only) = self.server.place().only() else { return Ok(renamed.to_owned()) };
        let meant = what.collections.iter().filter(|c| options.selection.takes(&c.name)).count();
        match meant > 1 || (renamed != name && renamed != only) {
            true => {
                Err(Error::input(format!("the target names the one database {only}, and {meant} are to be restored"))
                    .hint("leave the database out of the target's URL, or choose one with --only"))
            }
            false => Ok(only.to_owned()),
        }
    }
}

#[async_trait]
impl Sink for CouchSink {
    async fn prepare(&self, what: &Description, options: &RestoreOptions) -> Result<RestorePlan> {
        if what.engine.0 != "couchdb" {
            return Err(Error::unsupported(format!(
                "documents of {} have no revisions to be written to CouchDB with",
                what.engine
            ))
            .hint("restore into the engine that they came from"));
        }
        if options.selection.no_attachments {
            return Err(Error::unsupported("CouchDB takes no document that says it has attachments without them")
                .hint("restore without --no-attachments"));
        }
        let welcome = self.server.welcome().await?;
        let (mut collections, mut losses) = (Vec::new(), Vec::new());
        for info in what.collections.iter().filter(|info| options.selection.takes(&info.name)) {
            let target = self.target(what, &info.name, options)?;
            if welcome.is_couchdb && !is_name(&target) {
                return Err(Error::input(format!("CouchDB takes no database named {target}")).hint(
                    "a name begins with a small letter and has small letters, digits, _ $ ( ) + - and /: see --rename",
                ));
            }
            if !welcome.is_couchdb && info.options.get("partitioned").is_some() {
                losses.push(Loss { what: format!("partitions of {}", info.name), why: "the server has none".into() });
            }
            collections.push(PlannedCollection { info: info.clone(), target });
        }
        let names: Vec<_> = collections.iter().map(|c| c.target.clone()).collect();
        let asking: Vec<_> = names.iter().map(|name| self.server.info(name)).collect();
        let found: Vec<_> = stream::iter(asking).buffered(ASKING).try_collect().await?;
        let there: Vec<&str> =
            names.iter().zip(&found).filter(|(_, info)| info.is_some()).map(|(name, _)| &**name).collect();
        if !there.is_empty() && options.if_exists == IfExists::Fail {
            return Err(Error::input(format!("the target has already: {}", there.join(", ")))
                .hint("restore under another name with --rename, or pass --if-exists replace or merge"));
        }
        let rewinds = options.as_new_revisions.then(|| Rewinding {
            selection: options.selection.clone(),
            keep_others: options.keep_others,
            whole: Whole::default(),
        });
        if let (Some(_), Some(missing)) = (&rewinds, names.iter().find(|name| !there.contains(&name.as_str()))) {
            return Err(Error::missing(format!("the target has no database {missing} that could be rewound"))
                .hint("restore it without --as-new-revisions"));
        }
        let phases = match &rewinds {
            Some(_) => rewinding(names.len(), welcome.is_couchdb),
            None => self.phases(&there, names.len(), options.if_exists, welcome.is_couchdb),
        };
        *self.prepared.lock().unwrap_or_else(|e| e.into_inner()) =
            Some(Prepared { if_exists: options.if_exists, rewinds });
        Ok(RestorePlan { phases, collections, losses })
    }

    fn writes_new_revisions(&self) -> bool {
        true
    }

    async fn rehearse(&self, plan: &RestorePlan) -> Result<Option<Box<dyn Rehearsal>>> {
        if let Some(rewinds) = self.prepared().and_then(|p| p.rewinds) {
            let goals = rewind_goals(plan.collections.clone(), &rewinds);
            return Ok(Some(Box::new(Rewind::new(&self.server, goals, rewinds.whole, None).await?)));
        }
        Ok((!self.checkpoints).then(|| Box::new(Checkpoints::default()) as Box<dyn Rehearsal>))
    }

    fn provable<'a>(&self, batch: &'a Batch) -> Option<Cow<'a, Batch>> {
        match self.rewinds() {
            true => revise::provable(batch).map(Cow::Owned),
            false => Some(Cow::Borrowed(batch)),
        }
    }

    fn takes(&self, encoding: Encoding) -> bool {
        encoding == Encoding::Json
    }

    fn leaves_out(&self, batch: &Batch) -> bool {
        let told = self.told.lock().unwrap_or_else(|e| e.into_inner());
        let own = told.finished.load(Ordering::Relaxed) && !told.settings.load(Ordering::Relaxed);
        if let Some(rewinds) = self.prepared().and_then(|p| p.rewinds) {
            rewinds.whole.note(batch);
        }
        let beside = [extras::settings(), extras::checkpoints(), Kind::Local].contains(&batch.kind);
        (batch.kind == extras::checkpoints() && !self.checkpoints)
            || (batch.kind == extras::settings() && own)
            || (beside && self.rewinds())
    }

    fn asks_again(&self, batch: &Batch) -> bool {
        // Another database takes it from the scratch one; design documents wait for all others.
        let replaces = self.prepared().is_some_and(|prepared| prepared.if_exists == IfExists::Replace);
        batch.kind == Kind::Attachment && (replaces || (0..batch.len()).any(|i| is_design(batch.key_of(i))))
    }

    async fn begin(&self, plan: RestorePlan, store: Arc<dyn AttachmentStore>) -> Result<Box<dyn SinkSession>> {
        let prepared = self.prepared();
        let prepared = prepared.ok_or_else(|| Error::bug("a restore into CouchDB began before it was prepared"))?;
        let if_exists = prepared.if_exists;
        if let Some(rewinds) = prepared.rewinds {
            let goals = rewind_goals(plan.collections, &rewinds);
            return Ok(Box::new(Rewind::new(&self.server, goals, rewinds.whole, Some(store)).await?));
        }
        let mut goals = Vec::new();
        for planned in plan.collections {
            // Time has passed since the plan.
            let is_there = self.server.info(&planned.target).await?.is_some();
            if is_there && if_exists == IfExists::Fail {
                return Err(Error::input(format!("the target has a database {} by now", planned.target))
                    .hint("run the restore again"));
            }
            goals.push(Goal { planned, is_there, if_exists });
        }
        let told = Arc::new(Told::default());
        *self.told.lock().unwrap_or_else(|e| e.into_inner()) = told.clone();
        Ok(Box::new(Session::new(self.server.clone(), goals, store, self.concurrency, told)))
    }
}

impl CouchSink {
    fn prepared(&self) -> Option<Prepared> {
        self.prepared.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    fn rewinds(&self) -> bool {
        self.prepared.lock().unwrap_or_else(|e| e.into_inner()).as_ref().is_some_and(|p| p.rewinds.is_some())
    }

    fn phases(&self, there: &[&str], count: usize, if_exists: IfExists, is_couchdb: bool) -> Vec<String> {
        let databases = if count == 1 { "1 database".to_owned() } else { format!("{count} databases") };
        let mut phases = Vec::new();
        if !is_couchdb {
            phases.push("the server is no CouchDB itself: it may round large numbers, and the proof will tell".into());
        }
        phases.push(format!(
            "write {databases}: documents with their histories, then design documents, _local documents and _security"
        ));
        if !self.checkpoints {
            phases.push("leave out checkpoints of replications: clients would skip what they have missed".into());
        }
        if !there.is_empty() {
            let list = there.join(", ");
            phases.push(match if_exists {
                IfExists::Replace => format!("these are written to a scratch database first and read back; only then they are deleted and written anew: {list}"),
                _ => format!("these stay, and get revisions that they lack; newer revisions of theirs win: {list}"),
            });
        }
        phases
    }
}

fn rewind_goals(collections: Vec<PlannedCollection>, rewinds: &Rewinding) -> Vec<rewind::Goal> {
    let whole =
        |planned: &PlannedCollection| rewinds.selection.takes_all_of(&planned.info.name) && !rewinds.keep_others;
    collections.into_iter().map(|planned| rewind::Goal { whole: whole(&planned), planned }).collect()
}

/// The steps of a restore as new revisions.
fn rewinding(count: usize, is_couchdb: bool) -> Vec<String> {
    let databases = if count == 1 { "1 database".to_owned() } else { format!("{count} databases") };
    let mut phases = Vec::new();
    if !is_couchdb {
        phases.push("the server is no CouchDB itself: it may round large numbers, and the proof will tell".into());
    }
    phases.push(format!(
        "in {databases}, write what documents were as new revisions over what they are, where that differs; design documents last"
    ));
    phases.push(
        "delete documents that were not there then, with all their conflicts, by new revisions (not with NS/KEY)"
            .into(),
    );
    phases.push("of conflicts only what won then is written; conflicts that are there now and lose stay".into());
    phases.push("leave _security, settings and _local documents as they are".into());
    phases
}

/// Names the checkpoints that are left out.
#[derive(Debug, Default)]
struct Checkpoints(Mutex<Vec<String>>);

#[async_trait]
impl Rehearsal for Checkpoints {
    fn looks_at(&self, space: &str) -> bool {
        extras::checkpoints().space() == space
    }

    async fn see(&self, batch: &Batch) -> Result<()> {
        for i in (0..batch.len()).filter(|_| batch.kind == extras::checkpoints()) {
            for text in extras::listed(batch.body_of(i))? {
                let id = serde_json::from_str::<Members<'_>>(text.get()).ok().and_then(|m| m.text("_id"));
                let line = format!("left out: the checkpoint {} (see --with-checkpoints)", id.unwrap_or_default());
                self.0.lock().unwrap_or_else(|e| e.into_inner()).push(line);
            }
        }
        Ok(())
    }

    async fn lines(self: Box<Self>) -> Result<Vec<String>> {
        Ok(self.0.into_inner().unwrap_or_else(|e| e.into_inner()))
    }
}

/// Whether CouchDB takes this as the name of a database.
fn is_name(name: &str) -> bool {
    let system = ["_users", "_replicator", "_global_changes"].contains(&name);
    let is_small = |c: char| c.is_ascii_lowercase();
    system
        || (name.starts_with(is_small)
            && name.chars().all(|c| is_small(c) || c.is_ascii_digit() || "_$()+-/".contains(c)))
}
