//! What changes of collections make of a catalog.

use super::CatalogChange;
use crate::manifest::{Catalog, CatalogEntry};
use model::CollectionId;
use std::collections::HashMap;

/// Applies changes of collections, in order, and says of which the counts no longer hold: those that
/// were changed themselves, and those that `touched` names.
pub(crate) fn apply<'a>(
    catalog: &mut Catalog,
    changes: impl IntoIterator<Item = &'a CatalogChange>,
    touched: impl Fn(&CollectionId) -> bool,
) {
    let mut slots: Vec<Option<CatalogEntry>> = std::mem::take(&mut catalog.collections).into_iter().map(Some).collect();
    let mut places: HashMap<CollectionId, usize> =
        slots.iter().enumerate().filter_map(|(i, slot)| Some((slot.as_ref()?.info.id.clone(), i))).collect();
    for (id, info, _) in changes {
        match (places.get(id), info) {
            (Some(at), None) => slots[*at] = None,
            (Some(at), Some(info)) => match &mut slots[*at] {
                Some(entry) => entry.info = info.clone(),
                // One that was emptied keeps its place.
                none => *none = Some(uncounted(info)),
            },
            (None, Some(info)) => {
                places.insert(id.clone(), slots.len());
                slots.push(Some(uncounted(info)));
            }
            (None, None) => {}
        }
    }
    catalog.collections = slots.into_iter().flatten().collect();
    for entry in catalog.collections.iter_mut().filter(|e| touched(&e.info.id)) {
        entry.counted = false;
    }
}

fn uncounted(info: &model::CollectionInfo) -> CatalogEntry {
    CatalogEntry { counted: false, ..CatalogEntry::empty(info.clone()) }
}
