//! A folder as a source.

use crate::check::{self, BadPlaces};
use crate::files::blocking;
use crate::layout::Layout;
use crate::marker::Marker;
use crate::read::{self, Token};
use crate::walk;
use async_trait::async_trait;
use futures::StreamExt;
use model::{
    AttachmentStore, Consistency, Description, Engine, Error, FeedKind, Loss, Part, Plan, Result, ScanStream,
    Selection, Skipped, Source, SourceState,
};
use std::path::PathBuf;
use std::sync::Arc;

/// Bad places that one error lists.
const SHOWN: usize = 20;
/// Hidden entries that a description names.
const HIDDEN_SHOWN: usize = 5;
/// Items that may wait for whoever reads.
const WAITING: usize = 2;

/// A folder of JSON documents:
///
/// - `<collection>/<key>.json`: one document a file,
/// - `<collection>.jsonl` or `.ndjson`: one document a line,
/// - `<collection>.json`: one array of documents,
/// - `<collection>/<key>.attachments/<name>`: attachments of a document, wherever the document is.
///
/// Attachments of documents that lie in one file are in a folder beside it that has the
/// collection's name and holds nothing else.
///
/// Hidden entries (names that begin with a dot) are left out. Those at the top are named in the
/// description; those inside collections are not, as a description does not list collections.
/// Anything else is refused, or left out with [`Selection::skip_bad`].
#[derive(Debug, Clone)]
pub struct FolderSource {
    path: PathBuf,
}

impl FolderSource {
    /// The folder at this path; nothing is opened yet.
    pub fn new(path: impl Into<PathBuf>) -> FolderSource {
        FolderSource { path: path.into() }
    }
}

#[async_trait]
impl Source for FolderSource {
    async fn describe(&self) -> Result<Description> {
        let path = self.path.clone();
        blocking(move || {
            let root = walk::root(&path)?;
            let top = walk::top(&root)?;
            let name = root.file_name().map_or_else(|| "folder".into(), |name| name.to_string_lossy().into_owned());
            Ok(Description {
                engine: Engine::new("folder"),
                identity: format!("folder:{}", root.display()),
                name,
                version: "1".into(),
                feed: FeedKind::LatestState,
                collections: top.places.iter().filter(|p| !p.beside).map(walk::Place::info).collect(),
                losses: hidden(&top.hidden),
            })
        })
        .await
    }

    async fn origin(&self) -> Result<Option<Engine>> {
        let path = self.path.clone();
        blocking(move || {
            let root = walk::root(&path)?;
            let Ok(Some(marker)) = Marker::read(&root) else { return Ok(None) };
            // Among collections that somebody added, those of the engine are no longer all.
            let all = walk::top(&root)?.places.iter().all(|place| place.encoded);
            Ok(Some(marker.engine).filter(|engine| all && engine.0 != "folder"))
        })
        .await
    }

    async fn plan(&self, selection: &Selection, _: Option<&SourceState>) -> Result<Plan> {
        let (path, selection) = (self.path.clone(), selection.clone());
        blocking(move || plan(&walk::root(&path)?, selection)).await
    }

    async fn read(&self, part: &Part, attachments: Arc<dyn AttachmentStore>) -> Result<ScanStream> {
        let token: Token = serde_json::from_str(&part.token)
            .map_err(|e| Error::bug("a part of another source was read from a folder").caused_by(e))?;
        let path = self.path.clone();
        let root = blocking(move || walk::root(&path)).await?;
        let (out, items) = tokio::sync::mpsc::channel(WAITING);
        tokio::spawn(async move {
            if let Err(e) = read::read_all(root, token, attachments, out.clone()).await {
                // If nobody listens any more, nobody wants to know.
                let _ = out.send(Err(e)).await;
            }
        });
        Ok(futures::stream::unfold(items, |mut items| async { items.recv().await.map(|item| (item, items)) }).boxed())
    }
}

fn plan(root: &std::path::Path, selection: Selection) -> Result<Plan> {
    let top = walk::top(root)?;
    let wanted = |place: &walk::Place| selection.takes(&place.name) && !(place.beside && selection.no_attachments);
    let places: Vec<_> = top.places.into_iter().filter(wanted).collect();
    let mut bad = BadPlaces::default();
    for stray in top.strays.into_iter().filter(|stray| selection.takes(&stray.what)) {
        bad.push(stray.what, stray.why);
    }
    let mut parts: Vec<Part> = Vec::with_capacity(places.len());
    let mut beside = Vec::new();
    let mut skipped = Vec::new();
    for (place, checked) in places.iter().zip(check::check_all(root, &places, &selection)?) {
        bad.append(checked.bad);
        skipped.extend(checked.normalised);
        if checked.unreadable {
            continue;
        }
        let key = match Layout::from_options(&checked.info.options) {
            Some(Layout::Lines(spacing) | Layout::Array(spacing)) if place.form.is_some() => spacing.key,
            _ => Default::default(),
        };
        let token = Token { place: place.clone(), key, fingerprint: checked.fingerprint, selection: selection.clone() };
        let list = if place.beside { &mut beside } else { &mut parts };
        list.push(Part {
            collection: checked.info,
            token: serde_json::to_string(&token).map_err(|e| Error::bug("a plan is no JSON").caused_by(e))?,
            documents: checked.documents,
            bytes: Some(checked.bytes),
        });
    }
    if !selection.skip_bad && !bad.listed.is_empty() {
        return Err(refusal(&bad));
    }
    if bad.more > 0 {
        let what = format!("{} more bad places", bad.more);
        bad.listed.push(Skipped { what, why: "they are too many to be listed one by one".into() });
    }
    skipped.extend(bad.listed);
    parts.sort_by_key(|part| std::cmp::Reverse(part.bytes));
    // Attachments beside a file come after its documents, as part of the same collection.
    for mut part in beside {
        if let Some(file) = parts.iter().find(|p| p.collection.id == part.collection.id) {
            part.collection = file.collection.clone();
        }
        parts.push(part);
    }
    Ok(Plan::Scan { start: None, parts, at: None, consistency: Consistency::PerDocument, skipped })
}

/// Says that hidden entries are left out, naming the first few.
fn hidden(names: &[String]) -> Vec<Loss> {
    if names.is_empty() {
        return Vec::new();
    }
    let mut what = names[..names.len().min(HIDDEN_SHOWN)].join(", ");
    if names.len() > HIDDEN_SHOWN {
        what.push_str(&format!(", and {} more", names.len() - HIDDEN_SHOWN));
    }
    vec![Loss { what, why: "hidden entries are left out".into() }]
}

fn refusal(bad: &BadPlaces) -> Error {
    let line = |bad: &Skipped| format!("{}: {}", bad.what, bad.why);
    let hint = "fix or move away what is named, or pass --skip-bad to leave it out";
    if let ([only], 0) = (&bad.listed[..], bad.more) {
        return Error::input(line(only)).hint(hint);
    }
    let count = bad.listed.len() as u64 + bad.more;
    let mut text = format!("{count} places in the folder are bad:");
    for bad in bad.listed.iter().take(SHOWN) {
        text.push_str("\n  ");
        text.push_str(&line(bad));
    }
    if count > SHOWN as u64 {
        text.push_str(&format!("\n  and {} more", count - SHOWN as u64));
    }
    Error::input(text).hint(hint)
}
