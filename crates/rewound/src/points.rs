//! Points as people see them.

use model::{Consistency, EngineTime, Gap, Result, Skipped};
use serde::Serialize;
use vault::{BrokenPoint, History, Interval, Point, PointName, Points, Vault};

/// A point, for people and for JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PointView {
    /// Its id; a unique beginning of it will do wherever one is asked for.
    pub id: String,
    /// The time that a restore gives, RFC 3339 in UTC.
    pub time: String,
    /// The same in milliseconds since 1970 UTC.
    pub millis: i64,
    /// The source's name.
    pub source: String,
    /// The source's engine.
    pub engine: String,
    /// The source's tag in the vault: tells apart sources of the same name.
    pub tag: String,
    /// Whether documents, attachments and bytes are those of the state; else those of its last scan,
    /// which the change log has changed since.
    pub counted: bool,
    /// Documents.
    pub documents: u64,
    /// Attachments.
    pub attachments: u64,
    /// Bytes of documents and attachments, as they are at the source.
    pub bytes: u64,
    /// Documents and attachments that were new or changed.
    pub changed: u64,
    /// Documents and attachments that were deleted.
    pub deleted: u64,
    /// Bytes that the point added to the vault.
    pub stored: u64,
    /// What can be said of the state.
    pub consistency: Consistency,
    /// A hole in the history before this point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap: Option<Gap>,
    /// What was left out on request.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<Skipped>,
}

impl PointView {
    /// The view of a point.
    pub fn of(name: &PointName, manifest: &vault::Manifest) -> Self {
        let totals = &manifest.totals;
        PointView {
            id: name.id(),
            time: manifest.time.to_string(),
            millis: manifest.time.millis,
            source: manifest.source.name.clone(),
            engine: manifest.source.engine.0.clone(),
            tag: name.source.clone(),
            counted: totals.counted,
            documents: totals.documents,
            attachments: totals.attachments,
            bytes: totals.document_bytes + totals.attachment_bytes,
            changed: totals.changed,
            deleted: totals.deleted,
            stored: totals.stored,
            consistency: manifest.consistency,
            gap: manifest.gap.clone(),
            skipped: manifest.skipped.clone(),
        }
    }
}

impl From<&Point> for PointView {
    fn from(point: &Point) -> Self {
        PointView::of(&point.name, &point.manifest)
    }
}

/// A point that cannot be read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BrokenView {
    /// Its id, if its name can be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Its object in the vault.
    pub object: String,
    /// What is wrong.
    pub problem: String,
}

impl From<&BrokenPoint> for BrokenView {
    fn from(broken: &BrokenPoint) -> Self {
        BrokenView {
            id: PointName::parse(&broken.path).map(|n| n.id()),
            object: broken.path.clone(),
            problem: broken.error.to_string(),
        }
    }
}

/// All points of a vault.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct PointsView {
    /// Those that can be restored, oldest first.
    pub points: Vec<PointView>,
    /// The others.
    pub broken: Vec<BrokenView>,
    /// What can be restored between points, and what cannot, by source.
    pub histories: Vec<HistoryView>,
}

/// Times of one source that can be restored, and what was lost.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct HistoryView {
    /// The source's name.
    pub source: String,
    /// Its tag.
    pub tag: String,
    /// Any second within these can be restored, oldest first.
    pub intervals: Vec<IntervalView>,
    /// Where history was lost, oldest first.
    pub gaps: Vec<Gap>,
}

/// Times without a hole between them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IntervalView {
    /// The first time, RFC 3339 in UTC.
    pub from: String,
    /// The last.
    pub to: String,
    /// The first in milliseconds since 1970 UTC.
    pub from_millis: i64,
    /// The last.
    pub to_millis: i64,
}

impl From<History> for HistoryView {
    fn from(history: History) -> Self {
        let text = |millis: i64| EngineTime { order: 0, millis }.to_string();
        let interval =
            |i: &Interval| IntervalView { from: text(i.from), to: text(i.to), from_millis: i.from, to_millis: i.to };
        HistoryView {
            source: history.name.unwrap_or_else(|| history.source.clone()),
            tag: history.source,
            intervals: history.intervals.iter().map(interval).collect(),
            gaps: history.gaps,
        }
    }
}

impl From<&Points> for PointsView {
    fn from(points: &Points) -> Self {
        PointsView {
            points: points.points.iter().map(PointView::from).collect(),
            broken: points.broken.iter().map(BrokenView::from).collect(),
            histories: Vec::new(),
        }
    }
}

/// All points of a vault, and what can be restored between them; of one source if its name or tag is given.
pub async fn list(vault: &Vault, source: Option<&str>) -> Result<PointsView> {
    let mut points = vault.points().await?;
    let mut tag = None;
    if let Some(wanted) = source {
        let tag = tag.insert(crate::choose::source(&points, Some(wanted))?);
        points.points.retain(|p| p.name.source == *tag);
        points.broken.retain(|b| PointName::parse(&b.path).is_none_or(|n| n.source == *tag));
    }
    let mut histories = vault.histories(&points).await?;
    if let Some(tag) = tag {
        histories.retain(|h| h.source == tag);
    }
    Ok(PointsView { histories: histories.into_iter().map(HistoryView::from).collect(), ..PointsView::from(&points) })
}
