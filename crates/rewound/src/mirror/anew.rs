//! Reading single documents from the source again: where what the mirror has of them is not what it
//! wrote, or is true at no known time, so that a patch cannot be applied to it.

use super::Worker;
use super::scan::as_json;
use crate::parts::Scan;
use crate::registry;
use folder::mirror::Change;
use futures::StreamExt;
use model::{CollectionInfo, HashingStore, Kind, Result, ScanItem, Selection};
use std::collections::HashMap;
use std::sync::Arc;

/// Documents that are asked for at a time.
const AT_A_TIME: usize = 100;

impl Worker<'_> {
    /// What is to become of the files of these documents, which are given by the engine's own keys
    /// and by those that the folder has for them.
    pub(super) async fn read_anew(&self, info: &CollectionInfo, keys: &[(Vec<u8>, Vec<u8>)]) -> Result<Vec<Change>> {
        let mut changes = Vec::with_capacity(keys.len());
        for some in keys.chunks(AT_A_TIME) {
            let found = match self.look_up(&info.name, info, some).await? {
                Some(found) => Some(found),
                // It may have another name by now.
                None => match self.name_now(info).await? {
                    Some(name) if name != info.name => self.look_up(&name, info, some).await?,
                    _ => None,
                },
            };
            // A collection that is gone: that will be told in its turn.
            let Some((mut found, time)) = found else { continue };
            changes.extend(some.iter().map(|(_, key)| match found.remove(key) {
                Some((body, time)) => Change { key: key.clone(), body: Some(body), time },
                None => Change { key: key.clone(), body: None, time },
            }));
        }
        Ok(changes)
    }

    async fn name_now(&self, info: &CollectionInfo) -> Result<Option<String>> {
        let description = self.job.stop.or(self.source.describe()).await?;
        Ok(description.collections.into_iter().find(|c| c.id == info.id).map(|c| c.name))
    }

    /// The documents that are there, by the folder's keys, with the times that they are true at;
    /// none if there is no such collection.
    #[allow(clippy::type_complexity)]
    async fn look_up(
        &self,
        name: &str,
        info: &CollectionInfo,
        keys: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<Option<(HashMap<Vec<u8>, (Vec<u8>, u64)>, u64)>> {
        let mut selection = Selection { no_attachments: true, ..Selection::default() };
        for (key, _) in keys {
            let text = registry::key_text(&self.engine, key);
            selection.only.push(format!("{name}/{text}"));
            selection.keys.insert(text, vec![key.clone()]);
        }
        let Scan { parts, at, .. } = Scan::of(self.job.stop.or(self.source.plan(&selection, None)).await?)?;
        let (mut found, mut is_there) = (HashMap::new(), false);
        for part in parts.iter().filter(|part| part.collection.id == info.id) {
            is_there = true;
            let mut time = at;
            let mut items = self.job.stop.or(self.source.read(part, Arc::new(HashingStore))).await?;
            while let Some(item) = self.job.stop.or(async { items.next().await.transpose() }).await? {
                match item {
                    ScanItem::Progress { true_at } => time = Some(true_at),
                    ScanItem::Batch(batch) if batch.kind == Kind::Document => {
                        let json = as_json(&batch)?;
                        for i in 0..json.len() {
                            let at = time.map_or(0, |t| t.order);
                            found.insert(json.key_of(i).to_vec(), (json.body_of(i).to_vec(), at));
                        }
                    }
                    ScanItem::Gone | ScanItem::Again(_) => return Ok(None),
                    _ => {}
                }
            }
        }
        Ok(is_there.then(|| (found, at.map_or(0, |t| t.order))))
    }
}
