//! `rewound points`

use crate::context::{Context, Outcome};
use crate::ui::format::{bytes, count, several, table, time};
use rewound::exit::Exit;
use rewound::points;
use serde_json::json;

/// Of which vault.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The vault
    vault: String,
    /// Only the points of this source
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
}

/// Lists the points.
pub async fn run(args: Args, context: &Context) -> Outcome {
    let vault = context.vault(&args.vault).await?;
    let view = context.job.stop.or(points::list(&vault, args.source.as_deref())).await?;
    let ui = &context.ui;
    let rows: Vec<Vec<String>> = view
        .points
        .iter()
        .map(|p| {
            let mut remarks = Vec::new();
            remarks.extend(p.gap.as_ref().map(|g| format!("gap before it: {}", g.why)));
            remarks.extend((!p.skipped.is_empty()).then(|| format!("{} left out", p.skipped.len())));
            vec![
                p.id.clone(),
                time(p.millis),
                p.source.clone(),
                count(p.documents),
                count(p.attachments),
                bytes(p.bytes),
                bytes(p.stored),
                remarks.join("; "),
            ]
        })
        .collect();
    if rows.is_empty() {
        ui.line("There is no point yet.");
    } else {
        let head = ["point", "time", "source", "documents", "attachments", "size", "added", ""];
        ui.line(table(&head, &[3, 4, 5, 6], &rows));
    }
    view.points.iter().for_each(|p| ui.json("point", p));
    for broken in &view.broken {
        ui.line(format!("{} {}", ui.style().bad("cannot be read:"), broken.problem));
        ui.json("broken", broken);
    }
    if !view.broken.is_empty() {
        ui.note(format!("{} cannot be read; `rewound verify` says more", several(view.broken.len() as u64, "point")));
    }
    let exit = if view.broken.is_empty() { Exit::Done } else { Exit::CheckFailed };
    ui.json(
        "summary",
        json!({
            "command": "points", "exit": exit.code(), "vault": vault.location(),
            "points": view.points.len(), "broken": view.broken.len(),
        }),
    );
    Ok(exit)
}
