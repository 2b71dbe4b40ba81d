//! Points that nobody can look into but the server of their engine: what was in them is not known.

use crate::registry;
use model::{Error, Result};
use vault::{Point, Points, Vault, Version};

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
        // They hold files, and no documents: most catalogs need not be read for that.
        let totals = &point.manifest.totals;
        if totals.documents == 0 && totals.attachments > 0 && is_opaque(vault, point).await? {
            found.push(point);
        }
    }
    Ok(found)
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
        // The first point that shows it, of those that show anything.
        let shows = |p: &&Point| p.manifest.time >= version.time && is_before_next(p) && !is_one(p);
        let shown = points.of(&version.tag).find(shows);
        let of_opaque = opaque.iter().any(|o| o.name.source == version.tag && o.manifest.time == version.time);
        if version.deleted && of_opaque && version.log.is_none() {
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
