//! A folder as a sink.

use crate::files::blocking;
use crate::layout::Layout;
use crate::leftovers;
use crate::marker::Marker;
use crate::session::Session;
use crate::target::{self, Found, Placement};
use async_trait::async_trait;
use model::{
    AttachmentStore, Description, Encoding, Engine, Error, ErrorKind, IfExists, Loss, PlannedCollection,
    RestoreOptions, RestorePlan, Result, Sink, SinkSession,
};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// A folder that documents are written to, in the layout that [`FolderSource`](crate::FolderSource)
/// reads.
///
/// Collections of a folder keep their layout and names. Those of other engines become a folder
/// each, with encoded names; `rewound.json` says so, and comes last: where it is, all is there.
#[derive(Debug)]
pub struct FolderSink {
    path: PathBuf,
    ignores_case: Option<bool>,
    /// What the last `prepare` was told; a plan has no room for it.
    prepared: Mutex<Option<Prepared>>,
}

/// What `begin` must know beyond the plan.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    pub if_exists: IfExists,
    pub engine: Engine,
}

impl FolderSink {
    /// The folder at this path; it need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> FolderSink {
        FolderSink { path: path.into(), ignores_case: None, prepared: Mutex::new(None) }
    }

    /// Takes it as given whether the file system ignores case, instead of trying.
    pub fn ignoring_case(mut self, yes: bool) -> FolderSink {
        self.ignores_case = Some(yes);
        self
    }
}

#[async_trait]
impl Sink for FolderSink {
    async fn prepare(&self, what: &Description, options: &RestoreOptions) -> Result<RestorePlan> {
        let (path, description, options) = (self.path.clone(), what.clone(), options.clone());
        let prepared = Prepared { if_exists: options.if_exists, engine: what.engine.clone() };
        let plan = blocking(move || plan(&path, &description, &options)).await?;
        *self.prepared.lock().unwrap_or_else(|e| e.into_inner()) = Some(prepared);
        Ok(plan)
    }

    fn takes(&self, encoding: Encoding) -> bool {
        encoding == Encoding::Json
    }

    fn is_for_people(&self) -> bool {
        true
    }

    async fn begin(&self, plan: RestorePlan, attachments: Arc<dyn AttachmentStore>) -> Result<Box<dyn SinkSession>> {
        let prepared = self.prepared.lock().unwrap_or_else(|e| e.into_inner()).clone();
        let prepared = prepared.ok_or_else(|| Error::bug("a restore into a folder began before it was prepared"))?;
        let (path, ignores_case) = (self.path.clone(), self.ignores_case);
        let session = blocking(move || Session::begin(path, plan, prepared, ignores_case, attachments)).await?;
        Ok(Box::new(session))
    }
}

/// The marker of a target that holds something; a file of that name that is none is in the way.
pub(crate) fn marker_of(path: &Path) -> Result<Option<Marker>> {
    Marker::read(path).map_err(|e| match e.kind() {
        ErrorKind::Input => e.hint("move it away, or choose another target"),
        _ => e,
    })
}

fn plan(path: &Path, what: &Description, options: &RestoreOptions) -> Result<RestorePlan> {
    let found = target::look(path, options.if_exists)?;
    let marker = if found == Found::Full { marker_of(path)? } else { None };
    let (mut collections, mut places, mut losses) = (Vec::new(), Vec::new(), Vec::new());
    for info in what.collections.iter().filter(|info| options.selection.takes(&info.name)) {
        let target = options.target_name(&info.name).to_owned();
        let mut place = Placement::of(&what.engine, info, &target)?;
        if found == Found::Full && options.if_exists == IfExists::Merge {
            place.merge(path, &target, marker.as_ref())?;
        }
        if info.ordered && place.layout == Layout::Files {
            let why = "files in a folder have no order; the documents themselves are exact".into();
            losses.push(Loss { what: format!("order of the documents of {}", info.name), why });
        }
        places.push((place.entry, info.name.as_str()));
        collections.push(PlannedCollection { info: info.clone(), target });
    }
    target::refuse_collisions(places.iter().map(|(entry, name)| (entry.as_str(), *name)), false)?;
    Ok(RestorePlan { phases: phases(path, &found, options.if_exists, collections.len()), collections, losses })
}

fn phases(path: &Path, found: &Found, if_exists: IfExists, count: usize) -> Vec<String> {
    let runs = leftovers::runs(path);
    let path = path.display();
    let collections = if count == 1 { "1 collection".to_owned() } else { format!("{count} collections") };
    let mut phases = Vec::new();
    match (found, if_exists) {
        (Found::Absent(_), _) => phases.push(format!("make the folder {path}")),
        (Found::Full, IfExists::Replace) => {
            phases.push(format!("write {collections} beside those in {path}"));
            phases.push("put each in the place of the one of the same name, then remove the old ones".into());
        }
        _ => {}
    }
    match (found, if_exists) {
        (Found::Full, IfExists::Replace) => {}
        (Found::Full, _) => phases.push(format!("write {collections} into what is in {path}")),
        _ => phases.push(format!("write {collections} to {path}")),
    }
    if !runs.is_empty() {
        phases
            .push(format!("leave alone what an interrupted restore left, to be removed by hand: {}", runs.join(", ")));
    }
    phases.push("make everything durable, then write rewound.json".into());
    phases
}
