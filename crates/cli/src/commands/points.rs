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
    /// List all points, however many there are
    #[arg(long)]
    all: bool,
}

/// Points that are listed for people at the beginning and at the end, if there are more.
const FIRST: usize = 3;
const LAST: usize = 20;

/// A number that is only known where nothing has changed since the last scan.
fn known(counted: bool, text: String) -> String {
    if counted { text } else { "-".into() }
}

/// Lists the points.
pub async fn run(args: Args, context: &Context) -> Outcome {
    let vault = context.vault(&args.vault).await?;
    let view = context.job.stop.or(points::list(&vault, args.source.as_deref())).await?;
    let ui = &context.ui;
    let mut rows: Vec<Vec<String>> = view
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
                known(p.counted, count(p.documents)),
                known(p.counted, count(p.attachments)),
                known(p.counted, bytes(p.bytes)),
                bytes(p.stored),
                remarks.join("; "),
            ]
        })
        .collect();
    if !args.all && rows.len() > FIRST + LAST + 1 {
        let more = rows.len() - FIRST - LAST;
        let line = vec!["…".to_owned(), format!("{} more: --all", count(more as u64))];
        rows.splice(FIRST..FIRST + more, [[line, vec![String::new(); 6]].concat()]);
    }
    if rows.is_empty() {
        ui.line("There is no point yet.");
    } else {
        let head = ["point", "time", "source", "documents", "attachments", "size", "added", ""];
        ui.line(table(&head, &[3, 4, 5, 6], &rows));
    }
    view.points.iter().for_each(|p| ui.json("point", p));
    for history in &view.histories {
        let of = if view.histories.len() > 1 { format!(" of {}", history.source) } else { String::new() };
        if !history.intervals.is_empty() {
            ui.line(format!("Any second{of} can be restored (--at):"));
        }
        for i in &history.intervals {
            ui.line(format!("  {} … {}", time(i.from_millis), time(i.to_millis)));
        }
        for gap in &history.gaps {
            let to = gap.to.map_or_else(|| "now".to_owned(), |to| time(to.millis));
            let gap = format!("{} … {to}: {}", time(gap.from.millis), gap.why);
            ui.line(format!("{} {gap}{of}", ui.style().bad("gap:")));
        }
        ui.json("history", history);
    }
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
            "points": view.points.len(),
            "intervals": view.histories.iter().map(|h| h.intervals.len()).sum::<usize>(),
            "gaps": view.histories.iter().map(|h| h.gaps.len()).sum::<usize>(), "broken": view.broken.len(),
        }),
    );
    Ok(exit)
}
