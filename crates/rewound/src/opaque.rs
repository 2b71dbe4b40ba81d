//! Points that nobody can look into but the server of their engine: what was in them is not known. What has
//! changed since the server made them is, where the change log goes on top of them.

use crate::registry;
use async_trait::async_trait;
use futures::TryStreamExt;
use model::{
    AttachmentStore, Batch, CollectionId, Description, Encoding, Error, Kind, Loss, RestoreOptions, RestorePlan,
    Result, Sink, SinkSession,
};
use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use vault::{Change, Difference, Point, Points, State, Vault, Version};

/// Whether a point is one.
pub(crate) async fn is_opaque(vault: &Vault, point: &Point) -> Result<bool> {
    let catalog = vault.catalog(&point.manifest).await?;
    Ok(catalog.collections.iter().any(|entry| registry::is_opaque(&point.manifest.source.engine, &entry.info)))
}

/// Those of some of a vault's sources, by their tags.
pub(crate) async fn among<'a>(
    vault: &Vault,
    points: &'a Points,
    is_asked: impl Fn(&str) -> bool,
) -> Result<Vec<&'a Point>> {
    let mut found = Vec::new();
    let may_be = |p: &&Point| registry::has_opaque(&p.manifest.source.engine) && is_asked(&p.name.source);
    for point in points.points.iter().filter(may_be) {
        // They hold files, and no documents but those of changes on top of them: most catalogs need not be
        // read for that.
        let manifest = &point.manifest;
        let holds_files = manifest.totals.documents == 0 && manifest.totals.attachments > 0;
        let is_on_files =
            manifest.position.as_ref().is_some_and(|p| registry::is_on_opaque(&manifest.source.engine, p));
        if (holds_files || is_on_files) && is_opaque(vault, point).await? {
            found.push(point);
        }
    }
    Ok(found)
}

/// Refuses to write changes anywhere but where they meet what they change.
pub(crate) fn check(what: &Description, sink: &dyn Sink, options: &RestoreOptions) -> Result<()> {
    let opaque = what.collections.iter().filter(|info| registry::is_opaque(&what.engine, info)).count();
    if opaque == 0 || opaque == what.collections.len() || sink.takes_opaque() || options.only_proves {
        return Ok(());
    }
    Err(Error::unsupported(
        "this point is a backup that the database's server made itself, and what has changed since: only the server \
         can put the two together",
    )
    .hint("restore it with --native-dir into a new database; what you need can be copied from there"))
}

/// A target that takes the files which the server made, and not what has changed since: only the server can put
/// the two together, so that a drill reads it all, and writes the files.
pub(crate) struct FilesOnly {
    sink: Arc<dyn Sink>,
    files: Mutex<HashSet<CollectionId>>,
}

impl FilesOnly {
    pub fn new(sink: Arc<dyn Sink>) -> FilesOnly {
        FilesOnly { sink, files: Mutex::default() }
    }
}

#[async_trait]
impl Sink for FilesOnly {
    async fn prepare(&self, what: &Description, options: &RestoreOptions) -> Result<RestorePlan> {
        let files = what.collections.iter().filter(|info| registry::is_opaque(&what.engine, info));
        let files: HashSet<CollectionId> = files.map(|info| info.id.clone()).collect();
        let mut plan = self.sink.prepare(what, options).await?;
        if files.len() < what.collections.len() {
            plan.losses.push(Loss {
                what: "what has changed since the database's server made its backup".into(),
                why: "it was read, but only the server can put the two together".into(),
            });
        }
        *self.files.lock().unwrap_or_else(|e| e.into_inner()) = files;
        Ok(plan)
    }

    fn takes(&self, encoding: Encoding) -> bool {
        self.sink.takes(encoding)
    }

    fn leaves_out(&self, batch: &Batch) -> bool {
        let files = self.files.lock().unwrap_or_else(|e| e.into_inner());
        batch.kind != Kind::Attachment || !files.contains(&batch.collection) || self.sink.leaves_out(batch)
    }

    fn provable<'a>(&self, batch: &'a Batch) -> Option<Cow<'a, Batch>> {
        self.sink.provable(batch)
    }

    async fn begin(&self, plan: RestorePlan, attachments: Arc<dyn AttachmentStore>) -> Result<Box<dyn SinkSession>> {
        self.sink.begin(plan, attachments).await
    }
}

/// Two states of which the server has made the first part, the same of both: what has changed since can be
/// compared.
#[derive(Debug)]
pub(crate) struct Since {
    /// The documents that are deleted in each, by collection and key.
    deleted: [HashSet<(String, Vec<u8>)>; 2],
}

impl Since {
    /// None, if both can be looked into as a whole.
    pub async fn of(vault: &Vault, states: &[State; 2]) -> Result<Option<Since>> {
        let mut is_one = [false; 2];
        for (state, is_one) in states.iter().zip(&mut is_one) {
            *is_one = is_opaque(vault, state.point()).await?;
        }
        let engine = &states[1].point().manifest.source.engine;
        let has_changes =
            states.iter().flat_map(|s| s.collections()).any(|entry| !registry::is_opaque(engine, &entry.info));
        let layers = |state: &State| {
            let all = state.point().manifest.layers.iter();
            all.map(|layer| layer.object.clone()).collect::<Vec<_>>()
        };
        match is_one {
            [false, false] => return Ok(None),
            [true, true] if has_changes && layers(&states[0]) == layers(&states[1]) => {}
            _ => {
                let of = if is_one[0] { &states[0] } else { &states[1] };
                return Err(error(format!(
                    "the point {} is a backup that the database's server made itself: nobody else can look into it, \
                     so that it can be compared only with what has changed since",
                    of.point().name.id()
                )));
            }
        }
        let mut deleted = [HashSet::new(), HashSet::new()];
        for (state, deleted) in states.iter().zip(&mut deleted) {
            for entry in state.collections() {
                let mut batches = state.read_spaces(entry, |space| space == Kind::Document.space());
                while let Some(batch) = batches.try_next().await? {
                    let gone = |batch: &Batch, i: &usize| registry::is_deletion(engine, batch.body_of(*i));
                    let all = (0..batch.len()).filter(|i| gone(&batch, i));
                    deleted.extend(all.map(|i| (entry.info.name.clone(), batch.key_of(i).to_vec())));
                }
            }
        }
        Ok(Some(Since { deleted }))
    }

    /// What a difference of the two says; none if it is none.
    pub fn told(&self, state: &State, difference: Difference) -> Option<Difference> {
        let source = &state.point().manifest.source;
        let Difference::Document { collection, space, key, change } = difference else { return Some(difference) };
        let is_files =
            |c: &&vault::CatalogEntry| c.info.name == collection && registry::is_opaque(&source.engine, &c.info);
        if state.collections().iter().any(|c| is_files(&c)) {
            return None;
        }
        if let Some(space) = registry::space_of_deletion(&source.engine, &space, &key) {
            let (space, change) = (space.to_owned(), Change::Deleted);
            return Some(Difference::Document { collection, space, key, change });
        }
        let place = (collection, key);
        let change = match self.deleted.each_ref().map(|d| space == Kind::Document.space() && d.contains(&place)) {
            [true, true] => return None,
            [false, true] => Change::Deleted,
            [true, false] => Change::Added,
            [false, false] => change,
        };
        let (collection, key) = place;
        Some(Difference::Document { collection, space, key, change })
    }
}

/// What only a restore can show.
pub(crate) fn error(text: String) -> Error {
    Error::unsupported(text).hint(
        "restore the point with --native-dir into a new database and look there; `rewound points` lists all points",
    )
}

/// What is left of the versions of a document, newest first, if nobody knows what it was in those points: that they
/// do not show it is no deletion.
pub(crate) fn unseen(versions: Vec<Version>, points: &Points, opaque: &[&Point]) -> Vec<Version> {
    if opaque.is_empty() {
        return versions;
    }
    let is_one = |point: &Point| opaque.iter().any(|o| o.name == point.name);
    // Oldest first from here on.
    let mut kept: Vec<Version> = Vec::with_capacity(versions.len());
    let mut rest = versions.into_iter().rev().peekable();
    while let Some(mut version) = rest.next() {
        let same = |v: &Version| v.tag == version.tag && v.key == version.key;
        let until = rest.clone().find(same).map(|next| next.time);
        let is_before_next = |p: &&Point| until.is_none_or(|next| p.manifest.time < next);
        let is_since = |p: &&Point| p.manifest.time >= version.time;
        // The first point that shows it, of those that show anything: what has changed is in the log.
        let is_told = version.log.is_some() && !version.deleted;
        let shows = |p: &&Point| is_since(p) && is_before_next(p) && (is_told || !is_one(p));
        let shown = points.of(&version.tag).find(shows);
        if version.deleted && points.of(&version.tag).find(is_since).is_some_and(is_one) {
            let Some(shown) = shown else { continue };
            version.time = shown.manifest.time;
        }
        version.point = shown.map(|p| p.name.id());
        let last = kept.iter().rev().find(|k| k.tag == version.tag && k.key == version.key);
        if last.is_none_or(|l| l.deleted != version.deleted || l.body != version.body) {
            kept.push(version);
        }
    }
    kept.reverse();
    kept.sort_by_key(|v| std::cmp::Reverse(v.time));
    kept
}
