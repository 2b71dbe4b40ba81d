//! Applying changes to the folder.

use super::Worker;
use super::fold::{self, Base, Folded, Step};
use crate::translate;
use folder::mirror::{Change, Found, Mirror};
use model::{
    ChangeBatch, ChangeItem, CollectionId, CollectionInfo, Encoding, EngineTime, Error, Kind, Patcher, Result,
};
use mongo::extjson::{self, Style};
use std::sync::Arc;

/// What is to be done with one document.
enum Todo {
    /// This.
    Do(Change),
    /// Nothing: it is done already.
    Nothing,
    /// The document must be read from the source: its key, and the one that the folder has for it.
    ReadAnew(Vec<u8>, Vec<u8>),
}

/// The attachments that a document still has.
#[derive(serde::Deserialize)]
struct Left {
    document: String,
    keep: Vec<String>,
}

impl Worker<'_> {
    /// Applies what came between two commits.
    pub(super) async fn apply(&mut self, items: Vec<ChangeItem>) -> Result<()> {
        let (steps, batches) = fold::steps(items)?;
        for step in steps {
            match step {
                Step::Documents(id, all) => self.apply_documents(&id, all, self.encoding(&batches, &id)).await?,
                Step::Attachment(number, i) => self.apply_attachment(&batches[number], i).await?,
                Step::Catalog(id, info, time) => self.apply_catalog(id, info, time).await?,
            }
        }
        for change in &batches {
            self.spool.release(&change.batch.attachments);
        }
        Ok(())
    }

    async fn apply_catalog(&mut self, id: CollectionId, info: Option<CollectionInfo>, time: EngineTime) -> Result<()> {
        match info {
            Some(info) => {
                // A crash may have been after later changes: what is not yet known is made again.
                self.keep(&info).await?;
                match self.memory.collections.iter_mut().find(|c| c.id == id) {
                    Some(known) => *known = info,
                    None => self.memory.collections.push(info),
                }
            }
            None => {
                let known = self.info(&id).cloned();
                if let Some(info) = known {
                    self.drop_collection(&info, Some(time.order)).await?;
                    self.memory.collections.retain(|c| c.id != id);
                }
            }
        }
        self.unsaved = true;
        Ok(())
    }

    /// The collection, which the folder has afterwards.
    async fn known(&self, id: &CollectionId) -> Result<CollectionInfo> {
        let info = self.info(id).cloned();
        let info = info.ok_or_else(|| Error::bug(format!("changes came for an unknown collection {id}")))?;
        if !self.mirror.collections().iter().any(|c| c.id == *id) {
            // Dropped by changes that come later, before a crash.
            self.keep(&info).await?;
        }
        Ok(info)
    }

    async fn apply_documents(&mut self, id: &CollectionId, all: Vec<Folded>, encoding: Encoding) -> Result<()> {
        let info = self.known(id).await?;
        let (of, patcher) = (id.clone(), self.patcher.clone());
        let work = move |mirror: &Mirror| {
            let todo = |folded| decide(mirror, &of, folded, encoding, patcher.as_ref());
            all.into_iter().map(todo).collect::<Result<Vec<_>>>()
        };
        let (mut changes, mut anew) = (Vec::new(), Vec::new());
        for todo in self.on_disk(work).await? {
            match todo {
                Todo::Do(change) => changes.push(change),
                Todo::Nothing => {}
                Todo::ReadAnew(key, name) => anew.push((key, name)),
            }
        }
        if !anew.is_empty() {
            changes.extend(self.read_anew(&info, &anew).await?);
        }
        self.job.advance(changes.len() as u64, 0);
        let of = id.clone();
        let touched = self.on_disk(move |mirror| mirror.write(&of, &changes)).await?;
        self.touched(&info.name, touched);
        Ok(())
    }

    /// How the documents of a collection are encoded; batches that only tell keys need not say it.
    fn encoding(&self, batches: &[ChangeBatch], id: &CollectionId) -> Encoding {
        let is_bson = |c: &ChangeBatch| c.batch.collection == *id && c.batch.encoding == Encoding::Bson;
        match self.engine.0 == "mongodb" || batches.iter().any(is_bson) {
            true => Encoding::Bson,
            false => Encoding::Json,
        }
    }

    async fn apply_attachment(&mut self, change: &ChangeBatch, i: usize) -> Result<()> {
        let batch = &change.batch;
        let info = self.known(&batch.collection).await?;
        let touched = match &batch.kind {
            Kind::Attachment => {
                let (what, content) = ((batch.key_of(i), batch.body_of(i)), &batch.attachments[i]);
                let time = change.times[i].order;
                self.mirror.attach(&info.id, what, content, &*self.spool, time).await?.into_iter().collect()
            }
            // Some tell what is left of a document's attachments.
            _ if !batch.body_of(i).is_empty() => {
                let left: Left = serde_json::from_slice(batch.body_of(i))
                    .map_err(|e| Error::bug("what is left of attachments is no JSON").caused_by(e))?;
                let id = info.id.clone();
                let work = move |mirror: &Mirror| mirror.detach_others(&id, left.document.as_bytes(), &left.keep);
                self.on_disk(work).await?
            }
            _ => {
                let (id, key) = (info.id.clone(), batch.key_of(i).to_vec());
                self.on_disk(move |mirror| mirror.detach(&id, &key)).await?.into_iter().collect()
            }
        };
        self.touched(&info.name, touched);
        Ok(())
    }
}

fn decide(
    mirror: &Mirror,
    id: &CollectionId,
    folded: Folded,
    encoding: Encoding,
    patcher: Option<&Arc<dyn Patcher>>,
) -> Result<Todo> {
    let name = match encoding {
        Encoding::Bson => mongo::keys::text(&folded.key).into_bytes(),
        _ => folded.key.clone(),
    };
    let found = mirror.read(id, &name)?;
    // It may have been read later than this happened, or be done already before a crash.
    if matches!(&found, Found::Same(_, time) if *time >= folded.time) {
        return Ok(Todo::Nothing);
    }
    let Folded { key, base, patches, time } = folded;
    let (body, patches) = match (base, found) {
        (Base::Gone, _) if patches.is_empty() => return Ok(Todo::Do(Change { key: name, body: None, time })),
        (Base::Put(body), _) => (body, patches),
        (Base::Before, Found::Same(text, at)) if at > 0 => {
            let Some(body) = native(&name, text, encoding) else { return Ok(Todo::ReadAnew(key, name)) };
            (body, patches.into_iter().filter(|(time, _)| *time > at).collect())
        }
        _ => return Ok(Todo::ReadAnew(key, name)),
    };
    let mut body = body;
    for (_, patch) in &patches {
        match patcher.map(|p| p.applied(&body, patch)) {
            Some(Ok(patched)) => body = patched,
            // Reading the document is always right.
            Some(Err(e)) => {
                tracing::debug!("a patch is not applied: {e}");
                return Ok(Todo::ReadAnew(key, name));
            }
            None => return Ok(Todo::ReadAnew(key, name)),
        }
    }
    let text = match encoding {
        Encoding::Bson => {
            let mut text = Vec::new();
            extjson::write(&body, Style::Canonical, &mut text);
            text
        }
        _ => body,
    };
    Ok(Todo::Do(Change { key: name, body: Some(text), time }))
}

/// The engine's own bytes of what a file holds.
fn native(name: &[u8], text: Vec<u8>, encoding: Encoding) -> Option<Vec<u8>> {
    if encoding != Encoding::Bson {
        return Some(text);
    }
    let mut document = Vec::new();
    translate::document_of(name, &text, &mut document).ok()?;
    Some(document)
}
