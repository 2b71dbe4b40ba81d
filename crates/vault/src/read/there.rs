//! Whether all that a state needs is in the vault.

use super::State;
use crate::manifest::{Layer, LayerCollection};
use crate::name::{ObjectKind, ObjectName};
use futures::TryStreamExt;
use model::{Error, Result};
use std::collections::{BTreeMap, BTreeSet, HashSet};

impl State {
    /// Lists the vault and fails with `Corrupt` if an object with documents or attachments of the
    /// selected collections is missing; gives the number of objects. What is in them is not looked
    /// at: reading them does that. Those of the change log were looked for when the time was chosen.
    pub async fn check_there(&self) -> Result<usize> {
        let mut needed = self.needed();
        if let Some(changes) = self.changes.as_ref().filter(|_| !self.selection.no_attachments) {
            let contents = changes.contents(&self.point().name.source).await?;
            contents.iter().for_each(|path| need(&mut needed, path));
        }
        let mut lost: Vec<&str> = Vec::new();
        for (kind, objects) in &needed {
            let (mut names, mut contents) = (HashSet::new(), HashSet::new());
            let mut entries = self.objects().storage.list(&format!("{}/", kind.folder())).await?;
            while let Some(entry) = entries.try_next().await? {
                if let Ok(name) = ObjectName::parse(&entry.name) {
                    // Another object with the same content is read in the place of one that is lost.
                    contents.insert(name.content);
                    names.insert(entry.name);
                }
            }
            let is_there = |path: &str| {
                names.contains(path) || ObjectName::parse(path).is_ok_and(|n| contents.contains(&n.content))
            };
            lost.extend(objects.iter().filter(|path| !is_there(path)).map(String::as_str));
        }
        let Some(first) = lost.first() else { return Ok(needed.values().map(BTreeSet::len).sum()) };
        let more = if lost.len() > 1 { format!(" and {} more objects", lost.len() - 1) } else { String::new() };
        Err(Error::corrupt(format!("{first}{more} that this restore needs are not in the vault"))
            .hint("run `rewound verify VAULT`: it tells what is hit; --only restores what is not"))
    }

    /// Paths of all objects with documents or attachments of the selected collections, by kind.
    fn needed(&self) -> BTreeMap<ObjectKind, BTreeSet<String>> {
        let mut needed: BTreeMap<ObjectKind, BTreeSet<String>> = BTreeMap::new();
        let mut need = |path: &str| need(&mut needed, path);
        let mut with_attachments = false;
        for loaded in self.layers.iter() {
            for collection in self.collections() {
                let of_collection = Layer::of(&loaded.layer.collections, &collection.info.id);
                with_attachments |= of_collection.iter().any(|c| c.space == "attachment");
                let places = of_collection.iter().filter(|c| self.takes_space(c)).flat_map(LayerCollection::places);
                let segments: BTreeSet<u32> = places.map(|(segment, _)| segment).collect();
                let paths = segments.iter().filter_map(|s| loaded.layer.segments.get(*s as usize));
                paths.for_each(|segment| need(&segment.object));
            }
        }
        if with_attachments && !self.selection.no_attachments {
            for contents in self.layers.iter().map(|l| &l.layer.contents) {
                contents.packs.iter().for_each(|p| need(&p.segment.object));
                contents.borrowed.iter().for_each(|b| need(&b.object));
                contents.parts.iter().for_each(|p| need(&p.object));
            }
        }
        needed
    }

    fn takes_space(&self, collection: &LayerCollection) -> bool {
        collection.space != "attachment" || !self.selection.no_attachments
    }
}

fn need(needed: &mut BTreeMap<ObjectKind, BTreeSet<String>>, path: &str) {
    if let Ok(name) = ObjectName::parse(path) {
        needed.entry(name.kind).or_default().insert(path.to_owned());
    }
}
