//! Removing objects that nothing needs: marking them, waiting, and looking again.

use super::census::{Item, Key, Object, Objects, Survey, log_key};
use super::marks::{self, Mark, Signs};
use super::plan::{Changes, Needs};
use super::{Prune, SIDE_BY_SIDE};
use crate::history::LogEntry;
use crate::name::{ContentsName, LogName, ObjectName};
use futures::{StreamExt, TryStreamExt};
use model::limits::GRACE;
use model::{ErrorKind, Result};
use std::collections::{HashMap, HashSet};

impl Prune<'_> {
    /// Says what is not needed and not marked yet.
    pub(super) fn would_go(&mut self, objects: &Objects, survey: &Survey, needs: &Needs, doomed: &marks::Doomed) {
        let twins = Twins::of(objects, needs);
        for object in objects.iter().filter(|o| !needs.needs_object(o.kind(), o.item())) {
            let path = objects.name(object).to_string();
            if !twins.is_all_there_is(object) && !doomed.objects.contains(&path) {
                self.report.count(&path, object.size);
            }
        }
        for object in survey.log.iter().filter(|o| o.is_superseded() || !needs.needs_changes(&survey.log, o)) {
            self.report.count("history/", object.size);
        }
        for list in survey.contents.iter().filter(|list| !needs.needs_list(&list.name)) {
            self.report.count("history/", list.size);
        }
    }

    /// Marks what is not needed.
    pub(super) async fn mark(
        &mut self,
        objects: &Objects,
        survey: &Survey,
        needs: &Needs,
        doomed: &marks::Doomed,
    ) -> Result<()> {
        let twins = Twins::of(objects, needs);
        let mut marked: Vec<String> = Vec::new();
        for object in objects.iter().filter(|o| !needs.needs_object(o.kind(), o.item())) {
            let path = objects.name(object).to_string();
            if !doomed.objects.contains(&path) && !self.stands_in(objects, &twins, object).await? {
                marked.push(path);
                self.mark_if_full(&mut marked, marks::MARKED).await?;
            }
        }
        for object in survey.log.iter().filter(|o| o.is_superseded() || !needs.needs_changes(&survey.log, o)) {
            if !doomed.changes.contains(&log_key(&object.stored)) {
                marked.push(survey.log.name(object).to_string());
                self.mark_if_full(&mut marked, marks::MARKED).await?;
            }
        }
        for list in survey.contents.iter().filter(|list| !needs.needs_list(&list.name)) {
            let path = list.name.to_string();
            if !doomed.objects.contains(&path) {
                marked.push(path);
            }
        }
        self.mark_if_full(&mut marked, 1).await
    }

    /// Whether an object that no point names has the content of a needed one that is lost or damaged:
    /// then it is read in its place.
    async fn stands_in(&self, objects: &Objects, twins: &Twins<'_>, object: &Object) -> Result<bool> {
        let Some(needed) = twins.needed.get(&object.item().content) else { return Ok(false) };
        for twin in needed {
            let name = objects.name(twin);
            if self.is_sound(&name.to_string(), &name.stored).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn mark_if_full(&self, marked: &mut Vec<String>, full: usize) -> Result<()> {
        match marked.len() >= full {
            true => marks::make(self.vault, std::mem::take(marked)).await,
            false => Ok(()),
        }
    }

    /// Removes what marks name, where nobody can need it any more.
    pub(super) async fn finish_marks(&mut self) -> Result<()> {
        let storage = &self.vault.storage;
        self.report.waits_for.clear();
        self.report.pending = 0;
        let mut ready = Vec::new();
        for entry in marks::list(storage).await? {
            let Some(mut mark) = marks::read(storage, &entry.name).await? else { continue };
            let signs = Signs::read(self.vault).await?;
            if mark.done {
                if signs.now - entry.modified > GRACE.as_millis() as i64 {
                    storage.delete(&entry.name).await?;
                }
                continue;
            }
            let active = signs.active();
            let waits: Vec<String> = match &mark.waits_for {
                Some(runs) => runs.iter().filter(|r| active.contains(r)).cloned().collect(),
                // The prune died before it looked: whoever is active now may have been then.
                None => {
                    mark.waits_for = Some(active.clone());
                    marks::write(storage, &entry.name, &mark).await?;
                    active
                }
            };
            if waits.is_empty() {
                ready.push(entry.name);
                continue;
            }
            self.report.pending += mark.objects.len() as u64;
            let new = waits.into_iter().filter(|w| !self.report.waits_for.contains(w)).collect::<Vec<_>>();
            self.report.waits_for.extend(new);
        }
        if ready.is_empty() {
            return Ok(());
        }
        // Only now: points that were committed since the marks were made count.
        let survey = self.census.read(self.vault).await?;
        let needs = Needs::of(&self.census, &survey, |_| true, |tag| self.changes_still_to_keep(&survey, tag));
        for path in ready {
            if let Some(mark) = marks::read(storage, &path).await? {
                self.finish(&path, mark, &survey, &needs).await?;
            }
        }
        Ok(())
    }

    /// Which changes a mark may not take: by the rules of this call, if it has any. The mark was made
    /// by rules of its own.
    fn changes_still_to_keep(&self, survey: &Survey, tag: &str) -> Changes {
        match self.changes_to_keep(survey, tag) {
            Changes::All => Changes::Newest,
            other => other,
        }
    }

    async fn finish(&mut self, path: &str, mark: Mark, survey: &Survey, needs: &Needs) -> Result<()> {
        let storage = &self.vault.storage;
        let mut goes: Vec<String> = Vec::new();
        let mut changes: HashSet<Key> = HashSet::new();
        let mut lists: Vec<String> = Vec::new();
        for name in mark.objects {
            if let Some(log) = LogName::parse(&name) {
                changes.insert(log_key(&log.stored));
            } else if let Some(list) = ContentsName::parse(&name) {
                lists.extend((!needs.needs_list(&list)).then_some(name));
            } else if let Ok(object) = ObjectName::parse(&name)
                && !needs.needs_object(object.kind, Item::of(&object))
            {
                goes.push(name);
            }
        }
        let objects = goes.clone();
        goes.append(&mut lists);
        let mut sound: HashMap<Key, bool> = HashMap::new();
        for object in survey.log.iter().filter(|o| changes.contains(&log_key(&o.stored))) {
            if !needs.needs_changes(&survey.log, object) || self.is_covered(survey, object, &mut sound).await? {
                goes.push(survey.log.name(object).to_string());
            }
        }
        if !sound.is_empty() {
            storage.sync().await?;
        }
        let deleting = futures::stream::iter(goes).map(|path| async move {
            let found = storage.stat(&path).await?;
            if found.is_some() {
                storage.delete(&path).await?;
            }
            Ok::<_, model::Error>((path, found))
        });
        let mut deleting = deleting.buffer_unordered(SIDE_BY_SIDE);
        while let Some((path, found)) = deleting.try_next().await? {
            if let Some(found) = found {
                self.report.count(&path, found.size);
            }
        }
        drop(deleting);
        let mark = Mark { objects, done: true, logs: mark.logs, waits_for: mark.waits_for };
        marks::write(storage, path, &mark).await
    }

    /// Whether all that an object of the log holds is in another one too, that is sound and durable.
    async fn is_covered(&self, survey: &Survey, object: &LogEntry, known: &mut HashMap<Key, bool>) -> Result<bool> {
        let Some(covering) = survey.log.covering(object) else { return Ok(false) };
        if let Some(sound) = known.get(&log_key(&covering.stored)) {
            return Ok(*sound);
        }
        let path = survey.log.name(covering).to_string();
        let sound = self.is_sound(&path, &covering.stored).await?;
        known.insert(log_key(&covering.stored), sound);
        Ok(sound)
    }

    /// Whether an object has the bytes that its name tells; then it is under the next sync, too.
    async fn is_sound(&self, path: &str, stored: &[u8; 32]) -> Result<bool> {
        let storage = &self.vault.storage;
        let bytes = match storage.read(path).await {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == ErrorKind::Missing => return Ok(false),
            Err(e) => return Err(e),
        };
        let sound = blake3::hash(&bytes).as_bytes() == stored;
        if sound && storage.is_local() {
            storage.create(path, bytes).await?;
        }
        Ok(sound)
    }
}

/// Needed objects of whose content there are others, by that content.
struct Twins<'a> {
    needed: HashMap<Key, Vec<&'a Object>>,
}

impl<'a> Twins<'a> {
    fn of(objects: &'a Objects, needs: &Needs) -> Self {
        let is_needed = |o: &&Object| needs.objects.contains(&o.item());
        let contents: HashSet<Key> = needs.objects.iter().map(|i| i.content).collect();
        let others = objects.iter().filter(|o| !is_needed(o)).map(|o| o.item().content);
        let mut needed: HashMap<Key, Vec<&Object>> =
            others.filter(|c| contents.contains(c)).map(|c| (c, Vec::new())).collect();
        for object in objects.iter().filter(is_needed) {
            if let Some(list) = needed.get_mut(&object.item().content) {
                list.push(object);
            }
        }
        Twins { needed }
    }

    /// Whether an object has the content of needed ones that are all lost.
    fn is_all_there_is(&self, object: &Object) -> bool {
        self.needed.get(&object.item().content).is_some_and(Vec::is_empty)
    }
}
