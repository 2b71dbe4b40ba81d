//! Which source and which point the user means.

use crate::registry;
use crate::time::At;
use model::{EngineTime, Error, FeedKind, Result, Selection};
use std::collections::BTreeMap;
use vault::{Point, PointName, Points, State, Vault};

/// Which point is meant; without anything the newest.
#[derive(Debug, Clone, Default)]
pub struct PointChoice {
    /// The name or tag of the source; needed only where there are several.
    pub source: Option<String>,
    /// A unique beginning of the point's id.
    pub point: Option<String>,
    /// This time; of a source that does not tell every change the last point at or before it.
    pub at: Option<At>,
}

/// The point that is meant, and what the user should know about the choice.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// The point.
    pub point: Point,
    /// For people; empty as a rule.
    pub notes: Vec<String>,
}

/// The tag of the source that is meant.
pub fn source(points: &Points, wanted: Option<&str>) -> Result<String> {
    // The newest point has the last say on the name.
    let sources: BTreeMap<&str, &str> =
        points.points.iter().map(|p| (p.name.source.as_str(), p.manifest.source.name.as_str())).collect();
    let list = |tags: &[&str]| {
        let lines: Vec<_> = tags.iter().map(|tag| format!("{} ({tag})", sources[tag])).collect();
        lines.join(", ")
    };
    let all: Vec<&str> = sources.keys().copied().collect();
    if all.is_empty() {
        return Err(no_points(points));
    }
    let Some(wanted) = wanted else {
        return match all[..] {
            [one] => Ok(one.to_owned()),
            _ => Err(Error::input(format!("the vault holds {} sources: {}", all.len(), list(&all)))
                .hint("say which one with --source NAME")),
        };
    };
    let found: Vec<&str> = match sources.contains_key(wanted) {
        true => vec![wanted],
        false => sources.iter().filter(|(_, name)| **name == wanted).map(|(tag, _)| *tag).collect(),
    };
    match found[..] {
        [one] => Ok(one.to_owned()),
        [] => {
            Err(Error::missing(format!("the vault holds no source {wanted}")).hint(format!("it holds {}", list(&all))))
        }
        _ => Err(Error::input(format!("{wanted} is the name of {} sources: {}", found.len(), list(&found)))
            .hint("name the one you mean by what stands in brackets: --source TAG")),
    }
}

/// The point that is meant.
pub fn point(points: &Points, choice: &PointChoice) -> Result<Chosen> {
    if let Some(id) = &choice.point {
        return by_id(points, id, choice.source.as_deref());
    }
    let tag = source(points, choice.source.as_deref())?;
    let mut chosen: Option<&Point> = None;
    let mut later: Option<&Point> = None;
    for point in points.of(&tag) {
        let covered = match &choice.at {
            Some(at) => at.covers(point.manifest.time, point.manifest.source.feed)?,
            None => true,
        };
        // Oldest first; of two with the same time the one committed later is the better one.
        if covered && chosen.is_none_or(|c| c.manifest.time <= point.manifest.time) {
            chosen = Some(point);
        }
        if !covered && later.is_none() {
            later = Some(point);
        }
    }
    let Some(point) = chosen else {
        let at = choice.at.as_ref().map(At::in_full).unwrap_or_default();
        let first = later.map(|p| p.manifest.time.to_string()).unwrap_or_default();
        return Err(Error::missing(format!("there is no point at or before {at}"))
            .hint(format!("the first point is of {first}; `rewound points` lists all")));
    };
    Ok(Chosen { notes: lost_between(points, point, later), point: point.clone() })
}

/// Says so if a point that cannot be read would have been the better choice.
fn lost_between(points: &Points, chosen: &Point, later: Option<&Point>) -> Vec<String> {
    let between = |name: &PointName| {
        name.source == chosen.name.source
            && name.committed > chosen.name.committed
            && later.is_none_or(|l| name.committed < l.name.committed)
    };
    let lost = points.broken.iter().filter(|b| PointName::parse(&b.path).is_some_and(|n| between(&n)));
    lost.map(|b| format!("a newer point cannot be read, so an older one is taken: {}", b.error)).collect()
}

fn by_id(points: &Points, id: &str, wanted: Option<&str>) -> Result<Chosen> {
    let tag = wanted.map(|w| source(points, Some(w))).transpose()?;
    let wanted = |source: &str| tag.as_deref().is_none_or(|tag| tag == source);
    let id = id.to_ascii_lowercase();
    let found: Vec<&Point> =
        points.points.iter().filter(|p| wanted(&p.name.source) && p.name.run.starts_with(&id)).collect();
    match found[..] {
        [point] => Ok(Chosen { point: point.clone(), notes: Vec::new() }),
        [] => {
            let broken =
                points.broken.iter().find(|b| PointName::parse(&b.path).is_some_and(|n| n.run.starts_with(&id)));
            match broken {
                Some(b) => Err(Error::new(b.error.kind(), format!("the point {id} cannot be read: {}", b.error))
                    .hint("choose another point; `rewound points` lists them, `rewound verify` says what is damaged")),
                None if points.points.is_empty() => Err(no_points(points)),
                None => {
                    Err(Error::missing(format!("there is no point {id}")).hint("`rewound points` lists all points"))
                }
            }
        }
        _ => {
            let ids: Vec<_> = found.iter().map(|p| p.name.id()).collect();
            Err(Error::input(format!("{id} is the beginning of {} points: {}", found.len(), ids.join(", ")))
                .hint("write more of the id"))
        }
    }
}

/// The state that is meant: of a point, or of any time if the source tells every change. With what
/// the user should know about the choice.
pub async fn state(
    vault: &Vault,
    points: &Points,
    choice: &PointChoice,
    selection: &Selection,
) -> Result<(State, Vec<String>)> {
    if let (Some(at), None) = (&choice.at, &choice.point) {
        let tag = source(points, choice.source.as_deref())?;
        let feed = points.of(&tag).next_back().map(|p| (p.manifest.source.feed, &p.manifest.source.engine));
        if let Some((FeedKind::EveryChange, engine)) = feed {
            let wanted = at.engine_time(FeedKind::EveryChange)?;
            let patcher = || registry::patcher(engine);
            let error = match vault.resolve_at(&tag, wanted, selection, patcher()).await {
                Ok(state) => return Ok((state, Vec::new())),
                Err(error) => error,
            };
            // A time of day means its whole second, of which the vault may know the beginning only.
            let Some(known) = within_second(vault, points, &tag, at, wanted).await? else { return Err(error) };
            let state = vault.resolve_at(&tag, known, selection, patcher()).await.map_err(|_| error)?;
            return Ok((state, vec!["the vault does not know all of that second: this is the last of it".into()]));
        }
    }
    let chosen = point(points, choice)?;
    let patcher = registry::patcher(&chosen.point.manifest.source.engine);
    Ok((vault.resolve(&chosen.point, selection, patcher).await?, chosen.notes))
}

/// The last time within a second that the vault knows, if its history ends there.
async fn within_second(
    vault: &Vault,
    points: &Points,
    tag: &str,
    at: &At,
    wanted: EngineTime,
) -> Result<Option<EngineTime>> {
    if !matches!(at, At::Wall(_)) {
        return Ok(None);
    }
    let of_point = points.of(tag).map(|p| p.manifest.time).filter(|t| t.millis == wanted.millis).max();
    let history = vault.history(tag).await?;
    let ends = history.intervals.iter().any(|i| i.to == wanted.millis);
    // Of a log that no point ends, names tell the second only: all before it is known.
    let before = (wanted.order >> 32).saturating_sub(1) << 32 | u64::from(u32::MAX);
    let before = EngineTime { order: before, millis: wanted.millis - 1000 };
    Ok(of_point.or(ends.then_some(before)))
}

fn no_points(points: &Points) -> Error {
    match points.broken.len() {
        0 => Error::missing("the vault holds no point").hint("make one with `rewound backup SOURCE --to VAULT`"),
        n => Error::corrupt(format!("none of the vault's points can be read; {n} are damaged or missing"))
            .hint("`rewound verify` says what is damaged"),
    }
}
