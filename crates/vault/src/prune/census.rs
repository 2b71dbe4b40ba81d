//! What is in a vault: all objects, and all points with what they need, in little memory.

use super::removed::{self, Removed};
use crate::history::{Facts, LogTable};
use crate::log::contents;
use crate::manifest::Manifest;
use crate::name::{ContentsName, HISTORY, LogName, ObjectKind, ObjectName, PointName};
use crate::objects::is_damage;
use crate::points;
use crate::vault::Inner;
use futures::{StreamExt, TryStreamExt};
use model::{Error, ErrorKind, Result};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// The first half of a hash: enough to tell objects apart, and two that it takes for one are both
/// kept.
pub(super) type Key = u128;

fn key(hash: &[u8; 32]) -> Key {
    let mut half = [0; 16];
    half.copy_from_slice(&hash[..16]);
    Key::from_le_bytes(half)
}

/// An object by its name: by its bytes, and by its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Item {
    pub stored: Key,
    pub content: Key,
}

impl Item {
    pub fn of(name: &ObjectName) -> Self {
        Item { stored: key(&name.stored), content: key(&name.content) }
    }

    pub fn read(path: &str) -> Option<Self> {
        ObjectName::parse(path).ok().map(|name| Item::of(&name))
    }
}

pub(super) fn log_key(stored: &[u8; 32]) -> Key {
    key(stored)
}

/// Objects that are there, but for points and the log.
#[derive(Debug, Default)]
pub(super) struct Objects {
    endings: Vec<String>,
    all: Vec<Object>,
    there: HashSet<Item>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Object {
    kind: ObjectKind,
    endings: u32,
    content: [u8; 32],
    stored: [u8; 32],
    pub size: u64,
}

impl Object {
    pub fn kind(&self) -> ObjectKind {
        self.kind
    }

    pub fn item(&self) -> Item {
        Item { stored: key(&self.stored), content: key(&self.content) }
    }
}

impl Objects {
    pub async fn list(vault: &Inner) -> Result<Self> {
        let mut all = Objects::default();
        for kind in ObjectKind::ALL {
            let mut entries = vault.storage.list(&format!("{}/", kind.folder())).await?;
            while let Some(entry) = entries.try_next().await? {
                // What is not ours is not touched.
                let Ok(name) = ObjectName::parse(&entry.name) else { continue };
                let known = all.endings.iter().position(|e| *e == name.endings);
                let endings = known.unwrap_or_else(|| {
                    all.endings.push(name.endings.clone());
                    all.endings.len() - 1
                });
                let ObjectName { kind, content, stored, .. } = name;
                all.there.insert(Item { stored: key(&stored), content: key(&content) });
                all.all.push(Object { kind, endings: endings as u32, content, stored, size: entry.size });
            }
        }
        Ok(all)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Object> {
        self.all.iter()
    }

    pub fn has(&self, item: Item) -> bool {
        self.there.contains(&item)
    }

    pub fn name(&self, object: &Object) -> ObjectName {
        let Object { kind, content, stored, .. } = *object;
        ObjectName { kind, content, stored, endings: self.endings[object.endings as usize].clone() }
    }
}

/// A point and what it needs.
#[derive(Debug)]
pub(super) struct Known {
    pub facts: Facts,
    /// The point before it, as it names it.
    pub previous: Option<String>,
    /// Objects that it names itself.
    own: Vec<Item>,
    /// Numbers of its layers in the census.
    layers: Vec<u32>,
}

/// A list of the contents that a chain refers to.
#[derive(Debug)]
pub(super) struct Contents {
    pub name: ContentsName,
    pub size: u64,
    /// The objects that hold them; none if the list is damaged.
    pub items: Option<Vec<Item>>,
}

/// All points at one moment, and the log.
#[derive(Debug)]
pub(super) struct Survey {
    /// Oldest first.
    pub points: Vec<Arc<Known>>,
    pub log: LogTable,
    /// What the log refers to.
    pub contents: Vec<Arc<Contents>>,
    /// What prunes have removed.
    pub removed: Removed,
}

/// Reads points, each only once: they never change.
#[derive(Debug, Default)]
pub(super) struct Census {
    points: HashMap<Key, Arc<Known>>,
    numbers: HashMap<Key, u32>,
    layers: Vec<Option<Vec<Item>>>,
    contents: HashMap<Key, Arc<Contents>>,
}

impl Census {
    /// Lists the history and reads the points that are new. Fails if a point cannot be read: what it
    /// needs is not known then, and nothing may be removed.
    pub async fn read(&mut self, vault: &Arc<Inner>) -> Result<Survey> {
        let mut names: Vec<PointName> = Vec::new();
        let mut log = LogTable::default();
        let mut lists: Vec<(ContentsName, u64)> = Vec::new();
        let mut entries = vault.storage.list(HISTORY).await?;
        while let Some(entry) = entries.try_next().await? {
            if let Some(name) = LogName::parse(&entry.name) {
                log.push(&name, entry.size);
            } else if let Some(name) = ContentsName::parse(&entry.name) {
                lists.push((name, entry.size));
            } else {
                names.extend(PointName::parse(&entry.name));
            }
        }
        drop(entries);
        names.sort_by(|a, b| (a.committed, &a.run).cmp(&(b.committed, &b.run)));
        let unread: Vec<PointName> =
            names.iter().filter(|n| !self.points.contains_key(&key(&n.stored))).cloned().collect();
        let mut reading = futures::stream::iter(unread)
            .map(|name| {
                let vault = vault.clone();
                async move { (points::read(&vault, &name).await, name) }
            })
            .buffered(16);
        let mut layers: Vec<(u32, String)> = Vec::new();
        while let Some((manifest, name)) = reading.next().await {
            match manifest {
                Ok(manifest) => self.add(name, &manifest, &mut layers),
                // Another prune has removed it, or its run has taken it back.
                Err(e) if e.kind() == ErrorKind::Missing => {}
                Err(e) if e.kind() == ErrorKind::Corrupt => {
                    return Err(Error::corrupt(format!("nothing was removed, as a point cannot be read: {e}"))
                        .hint("run `rewound verify`; what a damaged point needs cannot be known"));
                }
                Err(e) => return Err(e),
            }
        }
        drop(reading);
        self.read_layers(vault, layers).await?;
        let points = names.iter().filter_map(|n| self.points.get(&key(&n.stored)).cloned()).collect();
        let contents = self.read_contents(vault, lists).await?;
        Ok(Survey { points, log: log.finish(), contents, removed: removed::read_all(vault).await? })
    }

    async fn read_contents(
        &mut self,
        vault: &Arc<Inner>,
        lists: Vec<(ContentsName, u64)>,
    ) -> Result<Vec<Arc<Contents>>> {
        let sizes: HashMap<Key, u64> = lists.iter().map(|(name, size)| (key(&name.stored), *size)).collect();
        let unread = lists.iter().map(|(name, _)| name).filter(|n| !self.contents.contains_key(&key(&n.stored)));
        let unread: Vec<ContentsName> = unread.cloned().collect();
        let mut reading = std::pin::pin!(contents::read_all(vault, unread));
        while let Some((name, list)) = reading.next().await {
            let items = match list {
                Ok(list) => Some(list.objects().filter_map(Item::read).collect::<HashSet<_>>().into_iter().collect()),
                // Another prune has removed it.
                Err(e) if e.kind() == ErrorKind::Missing => continue,
                Err(e) if is_damage(&e) => None,
                Err(e) => return Err(e),
            };
            let stored = key(&name.stored);
            let size = sizes.get(&stored).copied().unwrap_or_default();
            self.contents.insert(stored, Arc::new(Contents { name, size, items }));
        }
        Ok(lists.iter().filter_map(|(name, _)| self.contents.get(&key(&name.stored)).cloned()).collect())
    }

    fn add(&mut self, name: PointName, manifest: &Manifest, unread: &mut Vec<(u32, String)>) {
        let mut own: Vec<Item> = manifest.catalog_objects().filter_map(|path| Item::read(path)).collect();
        let mut layers = Vec::with_capacity(manifest.layers.len());
        for layer in &manifest.layers {
            let Some(item) = Item::read(&layer.object) else { continue };
            own.push(item);
            let number = *self.numbers.entry(item.stored).or_insert_with(|| {
                self.layers.push(None);
                let number = self.layers.len() as u32 - 1;
                unread.push((number, layer.object.clone()));
                number
            });
            layers.push(number);
        }
        let stored = key(&name.stored);
        let known = Known { facts: Facts::of(name, manifest), previous: manifest.previous.clone(), own, layers };
        self.points.insert(stored, Arc::new(known));
    }

    async fn read_layers(&mut self, vault: &Arc<Inner>, unread: Vec<(u32, String)>) -> Result<()> {
        let objects = vault.objects()?;
        let mut reading = futures::stream::iter(unread)
            .map(|(number, path)| {
                let objects = objects.clone();
                async move { (number, objects.layer(&path).await) }
            })
            .buffer_unordered(8);
        while let Some((number, layer)) = reading.next().await {
            self.layers[number as usize] = match layer {
                Ok(layer) => Some(layer.objects().filter_map(Item::read).collect()),
                // Without its layer a point cannot be restored: it needs nothing else any more.
                Err(e) if e.kind() == ErrorKind::Missing => Some(Vec::new()),
                Err(e) => return Err(e),
            };
        }
        Ok(())
    }

    /// All objects that any of these points needs, each layer looked at once.
    pub fn needs_of_all<'a>(&self, points: impl Iterator<Item = &'a Arc<Known>>) -> HashSet<Item> {
        let mut seen: HashSet<u32> = HashSet::new();
        let mut all = HashSet::new();
        for point in points {
            all.extend(point.own.iter().copied());
            for number in point.layers.iter().filter(|n| seen.insert(**n)) {
                let items = self.layers[*number as usize].iter().flatten();
                all.extend(items.copied());
            }
        }
        all
    }

    /// Layers of which something is missing from the listed objects.
    pub fn broken_layers(&self, objects: &Objects, also: impl Fn(Item) -> bool) -> HashSet<u32> {
        let broken = |items: &Vec<Item>| items.iter().any(|i| !objects.has(*i) || also(*i));
        let numbered = self.layers.iter().enumerate();
        numbered.filter(|(_, items)| items.as_ref().is_none_or(broken)).map(|(number, _)| number as u32).collect()
    }
}

impl Known {
    /// Whether all that it needs is there, as far as its own objects and these layers tell.
    pub fn is_whole(&self, objects: &Objects, broken: &HashSet<u32>, also: impl Fn(Item) -> bool) -> bool {
        self.own.iter().all(|i| objects.has(*i) && !also(*i)) && !self.layers.iter().any(|l| broken.contains(l))
    }
}
