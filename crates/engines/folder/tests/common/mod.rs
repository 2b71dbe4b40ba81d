//! What the tests of this crate share.
#![allow(dead_code, clippy::unwrap_used)]

use folder::{FolderSink, FolderSource};
use futures::StreamExt;
use model::{
    Description, Plan, RestoreOptions, RestoreReport, Result, ScanItem, Selection, Sink, SinkSession, Skipped, Source,
};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use testkit::source::MemoryAttachments;

/// Writes files, making their folders; a path that ends with a slash is a folder.
pub fn write(root: &Path, files: &[(&str, &[u8])]) {
    for (path, content) in files {
        let path = root.join(path);
        if path.to_string_lossy().ends_with('/') {
            fs::create_dir_all(path).unwrap();
            continue;
        }
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

/// All files and folders under a path, with their contents.
pub fn tree(root: &Path) -> BTreeMap<String, Option<Vec<u8>>> {
    let mut all = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                all.insert(name, None);
                open.push(path);
            } else {
                all.insert(name, Some(fs::read(path).unwrap()));
            }
        }
    }
    all
}

/// The tree without the marker.
pub fn restored(root: &Path) -> BTreeMap<String, Option<Vec<u8>>> {
    let mut all = tree(root);
    assert!(all.remove("rewound.json").is_some(), "a complete restore leaves its marker");
    all
}

/// Reads all that is selected and hands it to an open restore.
pub async fn pump(
    from: &Path,
    selection: &Selection,
    to: &dyn SinkSession,
    store: &Arc<MemoryAttachments>,
) -> Result<()> {
    let source = FolderSource::new(from);
    let Plan::Scan { parts, .. } = source.plan(selection, None).await? else { panic!("a folder is scanned") };
    for part in parts {
        to.catalog(&part.collection).await?;
        let mut items = source.read(&part, store.clone()).await?;
        while let Some(item) = items.next().await {
            if let ScanItem::Batch(batch) = item? {
                to.write(batch).await?;
            }
        }
    }
    Ok(())
}

/// What a backup of a folder says of it: the description, with the collections of the plan.
pub async fn described(from: &Path, selection: &Selection) -> Result<(Description, Vec<Skipped>)> {
    let source = FolderSource::new(from);
    let mut description = source.describe().await?;
    let Plan::Scan { parts, skipped, .. } = source.plan(selection, None).await? else { panic!("a folder is scanned") };
    description.collections = parts.into_iter().map(|part| part.collection).collect();
    // Attachments beside a file are a part of their own.
    let mut seen = std::collections::HashSet::new();
    description.collections.retain(|collection| seen.insert(collection.id.clone()));
    Ok((description, skipped))
}

/// Copies a folder.
pub async fn copy_with(
    from: &Path,
    to: &FolderSink,
    selection: &Selection,
    options: &RestoreOptions,
) -> Result<RestoreReport> {
    let (description, _) = described(from, selection).await?;
    let plan = to.prepare(&description, options).await?;
    let store = Arc::new(MemoryAttachments::default());
    let session = to.begin(plan, store.clone()).await?;
    match pump(from, selection, &*session, &store).await {
        Ok(()) => session.finish().await,
        Err(e) => {
            session.abort().await;
            Err(e)
        }
    }
}

/// Copies a whole folder.
pub async fn copy(from: &Path, to: &Path) -> Result<RestoreReport> {
    copy_with(from, &FolderSink::new(to), &Selection::default(), &RestoreOptions::default()).await
}
