//! `rewound verify`

use crate::context::{Context, Outcome};
use crate::ui::format::{bytes, count, several};
use rewound::exit::Exit;
use rewound::verify::verify;
use serde_json::json;
use vault::{Hit, VerifyOptions};

/// Documents that are named for one hit.
const NAMED: usize = 5;

/// Which vault, and how much of it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The vault
    vault: String,
    /// Check stored bytes only: every bit is looked at, nothing is decrypted, no identity is needed
    #[arg(long)]
    quick: bool,
}

/// Checks a vault.
pub async fn run(args: Args, context: &Context) -> Outcome {
    let vault = context.vault(&args.vault).await?;
    let report = verify(&context.job, &vault, &VerifyOptions { quick: args.quick }).await?;
    let ui = &context.ui;
    ui.finish();
    for damage in &report.damages {
        ui.line(format!("{} {}: {}", ui.style().bad("DAMAGED"), damage.object, damage.problem));
        damage.hits.iter().for_each(|hit| ui.line(describe(hit)));
        ui.json("damage", damage);
    }
    for note in &report.notes {
        ui.note(note);
    }
    let exit = if report.damages.is_empty() { Exit::Done } else { Exit::CheckFailed };
    let checked = match (report.checked_content, report.checked_references) {
        (true, _) => "every stored byte, every document and every digest",
        (false, true) => "every stored byte, and that nothing is missing",
        (false, false) => "every stored byte; not whether something is missing, which needs an identity",
    };
    ui.line(format!(
        "{}: {}, {}, {}",
        match exit {
            Exit::Done => ui.style().good("Good"),
            _ => ui.style().bad(&format!("{} damaged", several(report.damages.len() as u64, "object"))),
        },
        several(report.points, "point"),
        several(report.objects, "object"),
        bytes(report.bytes)
    ));
    ui.detail(format!("Checked {checked}."));
    if report.leftovers > 0 {
        ui.detail(format!(
            "{} ({}) left by interrupted backups: the next backup uses them, `rewound prune` removes them.",
            several(report.leftovers, "object"),
            bytes(report.leftover_bytes)
        ));
    }
    if exit == Exit::CheckFailed {
        ui.note("points that are not named can be restored; back up again with --full to store everything anew");
    }
    ui.json(
        "summary",
        json!({
            "command": "verify", "exit": exit.code(), "vault": vault.location(), "objects": report.objects,
            "bytes": report.bytes, "points": report.points, "checked_content": report.checked_content,
            "checked_references": report.checked_references, "damages": report.damages.len(),
            "leftovers": report.leftovers, "leftover_bytes": report.leftover_bytes, "notes": report.notes,
        }),
    );
    Ok(exit)
}

fn describe(hit: &Hit) -> String {
    let points = match hit.points.len() {
        0..=3 => format!("points {}", hit.points.join(", ")),
        n => format!("{n} points, the first is {}", hit.points[0]),
    };
    let Some(collection) = &hit.collection else { return format!("  hits all of {} in {points}", hit.source) };
    let mut text = format!("  hits {collection} of {} in {points}", hit.source);
    if hit.document_count > 0 {
        text.push_str(&format!(": at most {} documents", count(hit.document_count)));
    }
    let named = &hit.documents[..hit.documents.len().min(NAMED)];
    if !named.is_empty() {
        text.push_str(&format!(", such as {}", named.join(", ")));
    }
    text
}
