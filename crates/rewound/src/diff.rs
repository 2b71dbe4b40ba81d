//! What changed between two times.

use crate::choose::{self, PointChoice};
use crate::opaque::Since;
use crate::progress::{Doing, Job};
use crate::registry;
use crate::time::At;
use futures::TryStreamExt;
use model::{Engine, EngineTime, Result, Selection};
use serde::Serialize;
use vault::{Change, Difference, Points, State, Vault};

/// A moment that the user means.
#[derive(Debug, Clone)]
pub enum Moment {
    /// A time.
    Time(At),
    /// A point, by the beginning of its id.
    Point(String),
    /// The newest point.
    Newest,
}

impl Moment {
    /// Reads a time as `--at` takes it, or the beginning of a point's id.
    pub fn parse(text: &str, now: &jiff::Zoned) -> Result<Moment> {
        let text = text.trim();
        if text.eq_ignore_ascii_case("now") || text.eq_ignore_ascii_case("newest") {
            return Ok(Moment::Newest);
        }
        match At::parse(text, now) {
            Ok(at) => Ok(Moment::Time(at)),
            Err(_) if !text.is_empty() && text.len() <= 16 && text.bytes().all(|b| b.is_ascii_hexdigit()) => {
                Ok(Moment::Point(text.to_owned()))
            }
            Err(e) => Err(e),
        }
    }
}

/// Two states of a source that are going to be compared.
#[derive(Debug)]
pub struct Diff {
    states: [State; 2],
    /// What is known of what has changed since the server made a backup itself, if both are on top of one.
    since: Option<Since>,
    /// The source's engine.
    pub engine: Engine,
    /// The source's name.
    pub source: String,
}

/// How many documents and collections differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Documents that were added.
    pub added: u64,
    /// Documents that were changed.
    pub changed: u64,
    /// Documents that were deleted.
    pub deleted: u64,
    /// Changes of collections.
    pub collections: u64,
}

impl Counts {
    fn add(&mut self, difference: &Difference) {
        let count = match difference {
            Difference::Collection { .. } => &mut self.collections,
            Difference::Document { change: Change::Added, .. } => &mut self.added,
            Difference::Document { change: Change::Changed, .. } => &mut self.changed,
            Difference::Document { change: Change::Deleted, .. } => &mut self.deleted,
        };
        *count += 1;
    }
}

impl Diff {
    /// Resolves both moments; nothing is compared yet.
    pub async fn prepare(
        job: &Job,
        vault: &Vault,
        source: Option<&str>,
        from: &Moment,
        to: &Moment,
        mut selection: Selection,
    ) -> Result<Diff> {
        job.phase(Doing::Checking, None, None);
        let points = job.stop.or(vault.points()).await?;
        // A point's id tells the source, too.
        let named = |m: &Moment| match m {
            Moment::Point(id) => {
                let choice = PointChoice { source: source.map(str::to_owned), point: Some(id.clone()), at: None };
                choose::point(&points, &choice).map(|c| Some(c.point.name.source))
            }
            _ => Ok(None),
        };
        let tag = match named(from)?.or(named(to)?) {
            Some(tag) => tag,
            None => choose::source(&points, source)?,
        };
        if let Some(newest) = points.of(&tag).next_back() {
            let engine = &newest.manifest.source.engine;
            selection.understand_keys(|text| registry::keys_of(engine, text));
        }
        let older = resolve(job, vault, &points, &tag, from, &selection).await?;
        let newer = resolve(job, vault, &points, &tag, to, &selection).await?;
        let states = [older, newer];
        let since = job.stop.or(Since::of(vault, &states)).await?;
        if since.is_some() {
            job.note(
                "both are on top of a backup that the database's server made itself, which cannot be looked into: this \
                 is what has changed since, and what is told to be added may have been there",
            );
        }
        let description = &states[1].point().manifest.source;
        let (engine, source) = (description.engine.clone(), description.name.clone());
        Ok(Diff { states, since, engine, source })
    }

    /// The two times that are compared.
    pub fn times(&self) -> [EngineTime; 2] {
        [self.states[0].time(), self.states[1].time()]
    }

    /// Tells each difference as it is found, and counts them. Holds about `memory` bytes at once.
    pub async fn run(
        &self,
        job: &Job,
        vault: &Vault,
        memory: usize,
        mut tell: impl FnMut(&Difference),
    ) -> Result<Counts> {
        let mut counts = Counts::default();
        let mut differences = vault.diff(&self.states[0], &self.states[1], memory);
        while let Some(difference) = job.stop.or(differences.try_next()).await? {
            let difference = match &self.since {
                Some(since) => since.told(&self.states[1], difference),
                None => Some(difference),
            };
            let Some(difference) = difference else { continue };
            counts.add(&difference);
            tell(&difference);
        }
        Ok(counts)
    }
}

async fn resolve(
    job: &Job,
    vault: &Vault,
    points: &Points,
    tag: &str,
    moment: &Moment,
    selection: &Selection,
) -> Result<State> {
    let mut choice = PointChoice { source: Some(tag.to_owned()), ..PointChoice::default() };
    match moment {
        Moment::Point(id) => choice.point = Some(id.clone()),
        Moment::Time(at) => choice.at = Some(at.clone()),
        Moment::Newest => {}
    }
    let (state, notes) = job.stop.or(choose::state(vault, points, &choice, selection)).await?;
    notes.into_iter().for_each(|note| job.note(note));
    Ok(state)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn moments_are_read() {
        let now = jiff::Zoned::now();
        assert!(matches!(Moment::parse("2h ago", &now), Ok(Moment::Time(_))));
        assert!(matches!(Moment::parse("2026-11-20 09:03", &now), Ok(Moment::Time(_))));
        assert!(matches!(Moment::parse("0a1b2c3d4e5f", &now), Ok(Moment::Point(id)) if id == "0a1b2c3d4e5f"));
        assert!(matches!(Moment::parse("now", &now), Ok(Moment::Newest)));
        for wrong in ["", "soon", "0123456789abcdef0", "friday"] {
            assert!(Moment::parse(wrong, &now).is_err(), "{wrong}");
        }
    }
}
