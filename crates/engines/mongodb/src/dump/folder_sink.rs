//! The folder of a dump as a sink.

use super::files::blocking;
use super::session::Session;
use super::target::{self, Files, Found};
use async_trait::async_trait;
use model::{
    AttachmentStore, Description, Error, IfExists, PlannedCollection, RestoreOptions, RestorePlan, Result, Sink,
    SinkSession,
};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// A folder that a dump is written to, as mongodump would write it: `DIR/<db>/<collection>.bson` and
/// `.metadata.json`, and `DIR/prelude.json`. mongorestore (with `--gzip` if it is compressed) and
/// `jf backup restore DIR/<db>` read it.
///
/// Everything is written to a hidden folder and comes into its place when all is there.
#[derive(Debug)]
pub struct DumpSink {
    path: PathBuf,
    gzip: bool,
    /// What the last `prepare` was told; a plan has no room for it.
    prepared: Mutex<Option<Prepared>>,
}

/// What `begin` must know beyond the plan.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    pub if_exists: IfExists,
    pub server_version: String,
}

impl DumpSink {
    /// The folder at this path; it need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> DumpSink {
        DumpSink { path: path.into(), gzip: false, prepared: Mutex::new(None) }
    }

    /// Compresses every file, as `mongodump --gzip` does.
    pub fn gzip(mut self, yes: bool) -> DumpSink {
        self.gzip = yes;
        self
    }
}

#[async_trait]
impl Sink for DumpSink {
    async fn prepare(&self, what: &Description, options: &RestoreOptions) -> Result<RestorePlan> {
        if what.engine.0 != "mongodb" {
            return Err(Error::unsupported(format!(
                "collections of {} cannot be written as a dump of mongodump, which holds BSON documents only",
                what.engine
            ))
            .hint("write them to folder:PATH, or into a database with mongodb://HOST/DATABASE"));
        }
        let prepared = Prepared { if_exists: options.if_exists, server_version: what.version.clone() };
        let (path, gzip, description, options) = (self.path.clone(), self.gzip, what.clone(), options.clone());
        let plan = blocking(move || plan(&path, gzip, &description, &options)).await?;
        *self.prepared.lock().unwrap_or_else(|e| e.into_inner()) = Some(prepared);
        Ok(plan)
    }

    async fn begin(&self, plan: RestorePlan, _: Arc<dyn AttachmentStore>) -> Result<Box<dyn SinkSession>> {
        let prepared = self.prepared.lock().unwrap_or_else(|e| e.into_inner()).clone();
        let prepared = prepared.ok_or_else(|| Error::bug("a dump began to be written before it was prepared"))?;
        let (path, gzip) = (self.path.clone(), self.gzip);
        Ok(Box::new(blocking(move || Session::begin(path, gzip, plan, prepared)).await?))
    }
}

fn plan(path: &Path, gzip: bool, what: &Description, options: &RestoreOptions) -> Result<RestorePlan> {
    let found = target::look(path, options.if_exists)?;
    let (mut collections, mut places) = (Vec::new(), Vec::new());
    for info in what.collections.iter().filter(|info| options.selection.takes(&info.name)) {
        let target = options.target_name(&info.name).to_owned();
        places.push((Files::of(info, &target, gzip)?, info.name.as_str()));
        collections.push(PlannedCollection { info: info.clone(), target });
    }
    target::refuse_collisions(&places)?;
    let shown = path.display();
    let how = if gzip { ", compressed" } else { "" };
    let count = match collections.len() {
        1 => "1 collection".to_owned(),
        n => format!("{n} collections"),
    };
    let mut phases = Vec::new();
    match found {
        Found::Absent => phases.push(format!("write {count} as a dump{how} to a hidden folder beside {shown}")),
        Found::Empty | Found::Full => {
            phases.push(format!("write {count} as a dump{how} to a hidden folder in {shown}"))
        }
    }
    if found == Found::Full {
        let files: Vec<Files> = places.into_iter().map(|(files, _)| files).collect();
        let old = target::replaced(path, &files, gzip, None)?;
        phases.push(format!("put them in the place of {} files that are there, then remove the old ones", old.len()));
    } else {
        phases.push(format!("make everything durable, then move it to {shown}"));
    }
    Ok(RestorePlan { phases, collections, losses: Vec::new() })
}
