//! `rewound backup`

use crate::args::SelectionArgs;
use crate::context::{Context, Failed, OrUsage, Outcome};
use crate::ui::format::{bytes, count, duration, several, time};
use crate::ui::{Ui, error_value};
use model::Source;
use rewound::backup::{BackupReport, Destination, VaultOutcome, backup};
use rewound::exit::Exit;
use rewound::paced::{Paced, parse_rate};
use rewound::registry;
use serde_json::json;
use std::sync::Arc;
use vault::BackupOptions;

/// What, where to, and how.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to back up: folder:PATH, mongodb://HOST[/DATABASE]
    #[arg(required_unless_present = "jobflow")]
    source: Option<String>,
    /// The queue of this project of jobflow-remote, instead of a SOURCE: as jobflow:PROJECT.yaml
    #[arg(long, value_name = "PROJECT.yaml", conflicts_with = "source")]
    jobflow: Option<String>,
    /// Where to; several vaults get the same read
    #[arg(long = "to", value_name = "VAULT", required = true)]
    to: Vec<String>,
    #[command(flatten)]
    selection: SelectionArgs,
    /// Leave bad input out and list it (exit 3), instead of refusing everything
    #[arg(long)]
    skip_bad: bool,
    /// Read at most so many bytes of documents a second: 500kB, 20MB
    #[arg(long, value_name = "RATE")]
    limit: Option<String>,
    /// Store everything, also what has not changed
    #[arg(long)]
    full: bool,
    /// zstd level: 1 is fast, 19 is small, none does not compress
    #[arg(long, value_name = "1..19|none", default_value = "3", value_parser = level)]
    level: i32,
    /// The name of the source in the vault; the same name continues the same history
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
}

/// The source, at the rate that the user wants.
pub fn paced(source: Arc<dyn Source>, limit: Option<&str>) -> Result<Arc<dyn Source>, Failed> {
    Ok(match limit.map(parse_rate).transpose().or_usage()? {
        Some(rate) => Arc::new(Paced::new(source, rate)),
        None => source,
    })
}

/// A level as the library takes it.
fn level(text: &str) -> Result<i32, String> {
    match text.parse() {
        Ok(level @ 1..=19) => Ok(level),
        _ if text == "none" => Ok(0),
        _ => Err("write a number from 1 to 19, or none".into()),
    }
}

/// Collections up to which each one is listed for people, with what was read of it.
const LISTED: usize = 12;

/// Backs up.
pub async fn run(args: Args, context: &Context) -> Outcome {
    let url = args.source.or(args.jobflow.map(|path| format!("jobflow:{path}"))).unwrap_or_default();
    let source = registry::source(&url, &context.reach).or_usage()?;
    let source = paced(source, args.limit.as_deref())?;
    let access = context.access()?;
    let mut destinations = Vec::new();
    for url in &args.to {
        destinations.push(Destination::open(url, access.clone()).await);
    }
    let options = BackupOptions { level: args.level, full: args.full, name: args.name, ..BackupOptions::default() };
    let selection = args.selection.selection(args.skip_bad);
    let report = backup(&context.job, &*source, destinations, &selection, &options).await?;
    context.ui.finish();
    Ok(show(&report, &context.ui))
}

fn show(report: &BackupReport, ui: &Ui) -> Exit {
    let mut exit = Exit::Done;
    for loss in &report.losses {
        ui.note(format!("not in the backup: {}: {}", loss.what, loss.why));
        ui.json("loss", loss);
    }
    for skipped in &report.skipped {
        exit = exit.and(Exit::Part);
        ui.line(format!("left out: {}: {}", skipped.what, skipped.why));
        ui.json("skipped", skipped);
    }
    if let Some(gap) = &report.gap {
        exit = exit.and(Exit::Gap);
        ui.line(format!("gap: history since {} is lost: {}", time(gap.from.millis), gap.why));
        ui.json("gap", gap);
    }
    if report.collections.len() <= LISTED {
        for one in &report.collections {
            ui.line(format!("{} collection: {}", one.name, several(one.documents, "document")));
        }
    }
    report.collections.iter().for_each(|one| ui.json("collection", one));
    for outcome in &report.vaults {
        exit = exit.and(show_vault(outcome, ui));
    }
    let failed = report.vaults.iter().filter(|v| v.point.is_err()).count();
    ui.detail(format!(
        "Read {}, {} in {}.",
        several(report.documents, "document"),
        bytes(report.bytes),
        duration(report.took)
    ));
    ui.json(
        "summary",
        json!({
            "command": "backup", "exit": exit.code(), "source": report.source, "documents": report.documents,
            "bytes": report.bytes, "seconds": report.took.as_secs_f64(), "vaults": report.vaults.len(),
            "failed": failed, "skipped": report.skipped.len(),
        }),
    );
    exit
}

fn show_vault(outcome: &VaultOutcome, ui: &Ui) -> Exit {
    match &outcome.point {
        Ok(point) => {
            ui.line(format!(
                "{} of {} in {}",
                ui.style().good(&format!("Point {}", point.id)),
                time(point.millis),
                outcome.url
            ));
            ui.line(format!(
                "  {} and {}, {} in all; {} new or changed, {} deleted; {} added to the vault",
                several(point.documents, "document"),
                several(point.attachments, "attachment"),
                bytes(point.bytes),
                count(point.changed),
                count(point.deleted),
                bytes(point.stored)
            ));
            ui.json("vault", json!({ "vault": outcome.url, "point": point }));
            Exit::Done
        }
        Err(error) => {
            if ui.is_json() {
                ui.json("vault", json!({ "vault": outcome.url, "error": error_value(error) }));
            } else {
                ui.error(&model::Error::new(error.kind(), format!("{}: {error}", outcome.url)).hint(
                    error.hint_text().unwrap_or("the other vaults have the point; run the backup again for this one"),
                ));
            }
            Exit::Part
        }
    }
}
