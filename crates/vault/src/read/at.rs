//! Which layers and which changes make the state of a point, or of a time between points.

use crate::log::{self, Cover, Piece, contents};
use crate::manifest::Catalog;
use crate::objects::is_damage;
use crate::points::{self, Point, Points};
use crate::read::State;
use crate::vault::{Inner, Vault};
use futures::StreamExt;
use model::{EngineTime, Error, ErrorKind, FeedKind, Gap, Kind, Patcher, Result, Selection};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// What the change log adds to layers.
pub(crate) struct Changes {
    /// Where the changes are.
    pub index: log::LogIndex,
    /// The time that is resolved: later changes do not count.
    pub until: EngineTime,
    /// Applies the engine's patches.
    pub patcher: Option<Arc<dyn Patcher>>,
    vault: Arc<Inner>,
    /// The last flush of each chain that is read.
    chains: HashMap<String, u32>,
}

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Changes").field("index", &self.index).field("until", &self.until).finish_non_exhaustive()
    }
}

impl Vault {
    /// The state that a point restores, of the collections that the selection means. Needs a
    /// recipient's identity, or a plain vault. `patcher` applies the engine's patches; without one a
    /// change log that holds patches is refused when it is read.
    pub async fn resolve(
        &self,
        point: &Point,
        selection: &Selection,
        patcher: Option<Arc<dyn Patcher>>,
    ) -> Result<State> {
        let vault = &self.inner;
        if point.manifest.log.is_none() {
            let catalog = points::catalog(vault, &point.manifest).await?;
            return state(vault, point, catalog, selection, None).await;
        }
        let until = point.manifest.time;
        let (after, earliest) = point.manifest.scanned();
        let mut cover = log::cover(vault, &point.name.source, after, until).await?;
        if cover.complete.order < until.order {
            // What a point was committed with must be there.
            cover.torn = true;
            let before = Some(cover.complete).filter(|c| c.order >= earliest.order);
            return Err(hole(cover, until, &Nearest { before, after: None })
                .context(format!("resolving the point {}", point.name.id())));
        }
        with_changes(vault, point, &cover, until, selection, patcher).await
    }

    /// The state of a source at a time: the layers that were read last before it, and what the change
    /// log says since. Of a source that does not tell every change, the last state up to that time
    /// that was read; [`State::time`] says of which time it is.
    pub async fn resolve_at(
        &self,
        source: &str,
        at: EngineTime,
        selection: &Selection,
        patcher: Option<Arc<dyn Patcher>>,
    ) -> Result<State> {
        let vault = &self.inner;
        let points = self.points().await?;
        let Some(point) = base(&points, source, at) else { return Err(before_all(&points, source, at)) };
        let (after, earliest) = point.manifest.scanned();
        let every_change = point.manifest.source.feed == FeedKind::EveryChange;
        if at.order == earliest.order && after == earliest {
            return scanned_state(vault, point, selection).await;
        }
        let mut cover = log::cover(vault, source, after, at).await?;
        if !every_change {
            cover.end_at_flush(after, at);
            if cover.complete.order <= earliest.order {
                return scanned_state(vault, point, selection).await;
            }
        }
        let until = if every_change { at } else { cover.complete };
        let restorable = Some(cover.complete).filter(|c| c.order >= earliest.order);
        if let Some(gap) = gap_between(vault, &points, source, after, until).await? {
            // A point is right by itself.
            if let Some(exact) = points.of(source).find(|p| p.manifest.time == at) {
                return Box::pin(self.resolve(exact, selection, patcher)).await;
            }
            let before = restorable.map(|c| if c.order < gap.from.order { c } else { gap.from });
            let nearest = Nearest::of(&points, source, at, before, Some(gap.from));
            return Err(Error::new(ErrorKind::HistoryLost, format!("{at} is in a gap of the history: {}", gap.why))
                .hint(nearest.hint()));
        }
        if cover.complete.order < until.order {
            let logs = points.of(source).filter_map(|p| p.manifest.log.as_ref());
            cover.torn |= { logs }.any(|l| l.from.order <= cover.complete.order && cover.complete.order < l.to.order);
            return Err(hole(cover, at, &Nearest::of(&points, source, at, restorable, None)));
        }
        with_changes(vault, point, &cover, until, selection, patcher).await
    }
}

/// The point whose layers were read last, up to a time: of several with the same layers the newest one
/// up to that time.
fn base<'a>(points: &'a Points, source: &'a str, at: EngineTime) -> Option<&'a Point> {
    let usable = points.of(source).filter(|p| p.manifest.scanned().1.order <= at.order);
    usable.max_by_key(|p| {
        let time = p.manifest.time.order;
        (p.manifest.scanned().1.order, if time <= at.order { (true, time) } else { (false, u64::MAX - time) })
    })
}

fn before_all(points: &Points, source: &str, at: EngineTime) -> Error {
    let problem = match points.of(source).map(|p| p.manifest.scanned().1).min() {
        Some(first) => format!("{at} is before {first}, the first time that can be restored"),
        None => "the vault has no point of this source".to_owned(),
    };
    Error::input(problem).hint("`rewound points VAULT` shows which times can be restored")
}

/// A gap that lies between two times, or reaches into what is between them; also one that only points told of
/// that were removed.
async fn gap_between(
    vault: &Inner,
    points: &Points,
    source: &str,
    after: EngineTime,
    until: EngineTime,
) -> Result<Option<Gap>> {
    let told = points.of(source).filter_map(|p| {
        let gap = p.manifest.gap.as_ref()?;
        // One that is not closed yet is by the scan that found it.
        let healed = p.manifest.scanned().0;
        let to = gap.to.unwrap_or(if healed.order > gap.from.order { healed } else { p.manifest.time });
        Some(Gap { to: Some(to), ..gap.clone() })
    });
    let told: Vec<Gap> = told.chain(crate::prune::removed(vault).await?.gaps_of(source)).collect();
    let is_between = |gap: &Gap| until.order > gap.from.order && gap.to.is_none_or(|to| after.order < to.order);
    Ok(told.into_iter().find(is_between))
}

/// The times nearest to one that cannot be restored.
struct Nearest {
    before: Option<EngineTime>,
    after: Option<EngineTime>,
}

impl Nearest {
    /// `reached` is how far the log goes; what counts is up to `limit`.
    fn of(
        points: &Points,
        source: &str,
        at: EngineTime,
        reached: Option<EngineTime>,
        limit: Option<EngineTime>,
    ) -> Nearest {
        let limit = limit.unwrap_or(at);
        let own = points.of(source).map(|p| p.manifest.time).filter(|t| t.order <= limit.order && t.order < at.order);
        let scans = points.of(source).map(|p| p.manifest.scanned().1).filter(|t| t.order > at.order);
        Nearest { before: own.chain(reached).max(), after: scans.min() }
    }

    fn hint(&self) -> String {
        match (self.before, self.after) {
            (Some(before), Some(after)) => format!("the nearest times that can be restored are {before} and {after}"),
            (Some(before), None) => format!("the last time before it that can be restored is {before}"),
            (None, Some(after)) => format!("the first time after it that can be restored is {after}"),
            (None, None) => "run a backup: it scans anew, and heals the history".to_owned(),
        }
    }
}

/// What to say of a time that the log does not reach.
fn hole(cover: Cover, at: EngineTime, nearest: &Nearest) -> Error {
    let Cover { complete, torn, broken, .. } = cover;
    let corrupt = broken.iter().any(|e| e.kind() == ErrorKind::Corrupt);
    let (kind, what) = match torn {
        true if corrupt => (ErrorKind::Corrupt, "is damaged"),
        true => (ErrorKind::Missing, "has a hole"),
        false => (ErrorKind::HistoryLost, "ends"),
    };
    let error = Error::new(kind, format!("{at} cannot be restored: the change log {what} after {complete}"))
        .hint(nearest.hint());
    match broken.into_iter().next() {
        Some(cause) => error.caused_by(cause),
        None => error,
    }
}

/// The state of a point's last scan, without changes.
async fn scanned_state(vault: &Inner, point: &Point, selection: &Selection) -> Result<State> {
    let catalog = points::scanned_catalog(vault, &point.manifest).await?;
    state(vault, point, catalog, selection, None).await
}

/// The state of a point's last scan, with the changes since.
async fn with_changes(
    vault: &Arc<Inner>,
    point: &Point,
    cover: &Cover,
    until: EngineTime,
    selection: &Selection,
    patcher: Option<Arc<dyn Patcher>>,
) -> Result<State> {
    let index = log::index(&vault.need_reader()?, cover).await?;
    let mut catalog = points::scanned_catalog(vault, &point.manifest).await?;
    let touched = index.touched();
    log::apply(&mut catalog, &index.catalog, |id| touched.contains(id));
    let mut chains: HashMap<String, u32> = HashMap::new();
    for Piece { object, .. } in &cover.pieces {
        let last = chains.entry(object.name.run.clone()).or_default();
        *last = object.name.last.max(*last);
    }
    let changes = Changes { index, until, patcher, vault: vault.clone(), chains };
    state(vault, point, catalog, selection, Some(changes)).await
}

impl Changes {
    /// Paths of the objects with contents of attachments that the changes refer to, as far as is known.
    pub async fn contents(&self, source: &str) -> Result<HashSet<String>> {
        let mut all = HashSet::new();
        if !self.index.frames.iter().any(|frame| frame.space == Kind::Attachment.space()) {
            return Ok(all);
        }
        let mut names = contents::names(&self.vault, source).await?;
        names.retain(|name| self.chains.get(&name.run).is_some_and(|last| *last >= name.first));
        let mut reading = std::pin::pin!(contents::read_all(&self.vault, names));
        while let Some((_, list)) = reading.next().await {
            match list {
                Ok(list) => all.extend(list.objects().map(str::to_owned)),
                // Reading does without: changes name the objects themselves.
                Err(e) if is_damage(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(all)
    }
}

async fn state(
    vault: &Inner,
    point: &Point,
    catalog: Catalog,
    selection: &Selection,
    changes: Option<Changes>,
) -> Result<State> {
    let objects = vault.need_reader()?;
    let mut layers = Vec::with_capacity(point.manifest.layers.len());
    for reference in &point.manifest.layers {
        layers.push((reference.clone(), objects.layer(&reference.object).await?));
    }
    Ok(State::new(objects, point, catalog, selection, layers, changes))
}
