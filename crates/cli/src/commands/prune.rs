//! `rewound prune`

use crate::context::{Context, OrUsage, Outcome};
use crate::ui::Ui;
use crate::ui::format::{bytes, count, several, table, time};
use model::{EngineTime, Result};
use rewound::choose;
use rewound::exit::Exit;
use serde_json::json;
use vault::{History, Policy, PruneOptions, PruneReport, Reason, Vault, parse_duration};

/// Which vault, and what to keep.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without a rule no point is removed, only what killed backups have left. The newest point of each\n\
    source is always kept. Durations: 36h, 14d, 2w, 6mo, 1y. docs/keeping.md says more."
)]
pub struct Args {
    /// The vault
    vault: String,
    /// The newest N points
    #[arg(long, value_name = "N", help_heading = "What to keep")]
    keep_last: Option<u32>,
    /// The newest point of each of the last N hours that have one
    #[arg(long, value_name = "N", help_heading = "What to keep")]
    keep_hourly: Option<u32>,
    /// The newest point of each of the last N days that have one
    #[arg(long, value_name = "N", help_heading = "What to keep")]
    keep_daily: Option<u32>,
    /// The newest point of each of the last N weeks that have one
    #[arg(long, value_name = "N", help_heading = "What to keep")]
    keep_weekly: Option<u32>,
    /// The newest point of each of the last N months that have one
    #[arg(long, value_name = "N", help_heading = "What to keep")]
    keep_monthly: Option<u32>,
    /// The newest point of each of the last N years that have one
    #[arg(long, value_name = "N", help_heading = "What to keep")]
    keep_yearly: Option<u32>,
    /// All points of this time before the newest one
    #[arg(long, value_name = "DURATION", help_heading = "What to keep")]
    keep_within: Option<String>,
    /// All changes of this time: any second of it stays restorable
    #[arg(long, value_name = "DURATION", help_heading = "What to keep")]
    keep_any_second_within: Option<String>,
    /// Apply the rules to this source alone
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Show what would be removed and what would remain, touch nothing
    #[arg(long)]
    dry_run: bool,
}

impl Args {
    fn policy(&self) -> Result<Policy> {
        let duration = |option: &str, text: &Option<String>| {
            let parsed = text.as_deref().map(parse_duration).transpose();
            parsed.map_err(|e| e.context(option))
        };
        let policy = Policy {
            last: self.keep_last,
            hourly: self.keep_hourly,
            daily: self.keep_daily,
            weekly: self.keep_weekly,
            monthly: self.keep_monthly,
            yearly: self.keep_yearly,
            within: duration("--keep-within", &self.keep_within)?,
            any_second_within: duration("--keep-any-second-within", &self.keep_any_second_within)?,
        };
        policy.check().map(|()| policy)
    }
}

/// Removes what the rules do not keep, and what nothing needs.
pub async fn run(args: Args, context: &Context) -> Outcome {
    let policy = args.policy().or_usage()?;
    let vault = context.vault(&args.vault).await?;
    let source = match &args.source {
        Some(name) => Some(choose::source(&context.job.stop.or(vault.points()).await?, Some(name))?),
        None => None,
    };
    let options = PruneOptions { policy, source, dry_run: args.dry_run, ..PruneOptions::default() };
    let report = context.job.stop.or(vault.prune_by(&options)).await?;
    for point in &report.points {
        let line = json!({
            "id": point.id, "time": point.time.to_string(), "millis": point.time.millis, "source": point.source,
            "tag": point.tag, "why": point.kept,
        });
        context.ui.json(if point.kept.is_empty() { "removed" } else { "kept" }, line);
    }
    report.remaining.iter().for_each(|history| context.ui.json("remains", remains(history)));
    say(&context.ui, &report);
    summary(&context.ui, &vault, &report);
    Ok(Exit::Done)
}

/// What is done, for people.
fn say(ui: &Ui, report: &PruneReport) {
    let removed: Vec<_> = report.removed_points().collect();
    if !report.points.is_empty() && (report.dry_run || !removed.is_empty()) {
        let rows: Vec<Vec<String>> = report
            .points
            .iter()
            .map(|p| {
                let why: Vec<&str> = p.kept.iter().map(|reason| word(*reason)).collect();
                let why = if why.is_empty() { "removed".to_owned() } else { why.join(", ") };
                vec![p.id.clone(), time(p.time.millis), p.source.clone(), why]
            })
            .collect();
        ui.line(table(&["point", "time", "source", "kept as"], &[], &rows));
    }
    let verb = if report.dry_run { "Would remove" } else { "Removed" };
    let points = match removed.len() {
        0 => String::new(),
        n => format!("{} and ", several(n as u64, "point")),
    };
    let folders = report.by_folder.iter().map(|(folder, amount)| {
        format!("{} of {}", count(amount.objects), if folder == "log" { "the change log" } else { folder })
    });
    let folders: Vec<String> = folders.collect();
    let folders = if folders.is_empty() { String::new() } else { format!(" ({})", folders.join(", ")) };
    ui.line(format!("{verb} {points}{}, {}{folders}.", several(report.removed, "object"), bytes(report.bytes)));
    for history in report.remaining.iter().filter(|h| !h.points.is_empty()) {
        let name = history.name.as_deref().unwrap_or(&history.source);
        let can = if report.dry_run { "could still be restored" } else { "can be restored" };
        ui.line(format!("Of {name} {can}: {}.", several(history.points.len() as u64, "point")));
        for interval in &history.intervals {
            ui.line(format!("  any second from {} to {}", time(interval.from), time(interval.to)));
        }
    }
    if report.pending > 0 {
        ui.line(format!(
            "{} more can go once {} ended or been silent for a day: run prune again then.",
            several(report.pending, "object"),
            match report.waits_for.len() {
                1 => "what reads or writes now has".to_owned(),
                n => format!("{n} that read or write now have"),
            }
        ));
    }
}

/// A reason, for people.
fn word(reason: Reason) -> &'static str {
    match reason {
        Reason::Newest => "newest",
        Reason::Last => "last",
        Reason::Hourly => "hourly",
        Reason::Daily => "daily",
        Reason::Weekly => "weekly",
        Reason::Monthly => "monthly",
        Reason::Yearly => "yearly",
        Reason::Within => "within",
        Reason::AnySecond => "any second",
        Reason::Unsettled => "being written",
    }
}

/// What remains of a source, as JSON.
fn remains(history: &History) -> serde_json::Value {
    let text = |millis: i64| EngineTime { order: 0, millis }.to_string();
    let intervals: Vec<_> = history
        .intervals
        .iter()
        .map(|i| json!({"from": text(i.from), "to": text(i.to), "from_millis": i.from, "to_millis": i.to}))
        .collect();
    json!({
        "source": history.name, "tag": history.source, "points": history.points.len(), "intervals": intervals,
        "gaps": history.gaps,
    })
}

fn summary(ui: &Ui, vault: &Vault, report: &PruneReport) {
    ui.json(
        "summary",
        json!({
            "command": "prune", "exit": 0, "vault": vault.location(), "dry_run": report.dry_run,
            "removed_points": report.removed_points().count(), "removed": report.removed, "bytes": report.bytes,
            "by_folder": report.by_folder, "pending": report.pending, "waits_for": report.waits_for,
        }),
    );
}
