//! `rewound prune`

use crate::context::{Context, Outcome};
use crate::ui::format::{bytes, several};
use rewound::exit::Exit;
use serde_json::json;

/// Which vault.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The vault
    vault: String,
}

/// Removes leftovers. Removes no point.
pub async fn run(args: Args, context: &Context) -> Outcome {
    let vault = context.vault(&args.vault).await?;
    let report = context.job.stop.or(vault.prune()).await?;
    let ui = &context.ui;
    ui.line(format!("Removed {}, {}, that no point needs.", several(report.removed, "object"), bytes(report.bytes)));
    if report.pending > 0 {
        ui.line(format!(
            "{} more can go once {} has ended or been silent for a day: run prune again then.",
            several(report.pending, "object"),
            several(report.waits_for.len() as u64, "running backup")
        ));
    }
    ui.json(
        "summary",
        json!({
            "command": "prune", "exit": 0, "vault": vault.location(), "removed": report.removed, "bytes": report.bytes,
            "pending": report.pending, "waits_for": report.waits_for,
        }),
    );
    Ok(Exit::Done)
}
