//! What restore, copy and `find --restore` have in common: showing a plan, and what was written.

use crate::ui::Ui;
use crate::ui::format::{bytes, count, duration, several, table};
use model::{Loss, RestorePlan};
use rewound::exit::Exit;
use rewound::registry::without_secret;
use rewound::transfer::{CollectionReport, Written};
use serde_json::{Value, json};

/// Shows what would be done.
pub fn show_plan(ui: &Ui, plan: &RestorePlan, collections: &[CollectionReport], not_there: &[Loss]) {
    ui.line("This would be done:");
    plan.phases.iter().for_each(|phase| ui.line(format!("  - {phase}")));
    ui.json("plan", json!({ "phases": plan.phases }));
    show_collections(ui, collections);
    for loss in &plan.losses {
        ui.line(format!("lost in this target: {}: {}", loss.what, loss.why));
        ui.json("loss", json!({ "what": loss.what, "why": loss.why, "where": "target" }));
    }
    for loss in not_there {
        ui.line(format!("not in the source: {}: {}", loss.what, loss.why));
        ui.json("loss", json!({ "what": loss.what, "why": loss.why, "where": "source" }));
    }
    ui.line("Nothing was touched.");
}

/// Shows what was written and proven; `more` goes into the summary, `before` is how it went so far.
pub fn show(ui: &Ui, command: &str, target: &str, written: &Written, more: Value, before: Exit) -> Exit {
    let target = without_secret(target);
    let sum = |of: fn(&CollectionReport) -> u64| written.collections.iter().map(of).sum::<u64>();
    show_collections(ui, &written.collections);
    ui.line(format!(
        "{} {} and {}, {} in {}, to {target}",
        ui.style().good("Wrote"),
        several(sum(|c| c.documents), "document"),
        several(sum(|c| c.attachments), "attachment"),
        bytes(sum(|c| c.bytes)),
        duration(written.took)
    ));
    for note in &written.notes {
        ui.line(note);
        ui.json("note", json!({ "message": note }));
    }
    let mut exit = before;
    match &written.proof {
        Some(proof) => {
            for mismatch in &proof.mismatches {
                ui.line(format!("{} {}: {}", ui.style().bad("NOT EXACT:"), mismatch.collection, mismatch.problem));
                ui.json("mismatch", mismatch);
            }
            for unproven in &proof.unproven {
                ui.line(format!("not proven: {unproven}"));
                ui.json("unproven", json!({ "what": unproven }));
            }
            match proof.holds() {
                true if proof.documents > 0 || proof.unproven.is_empty() => ui.line(format!(
                    "{} {} documents and attachments, read back in {}, are what was sent: same number, same digest",
                    ui.style().good("Proven:"),
                    count(proof.documents),
                    duration(proof.took)
                )),
                true => {}
                false => {
                    exit = exit.and(Exit::CheckFailed);
                    ui.note("what stands in the target is not what was sent; do not rely on it, and restore once more");
                }
            }
        }
        None => ui.detail("Not proven: the target was not read back (--no-verify)."),
    }
    let proof = written.proof.as_ref().map(|p| {
        json!({ "holds": p.holds(), "documents": p.documents, "seconds": p.took.as_secs_f64(),
                "mismatches": p.mismatches.len(), "unproven": p.unproven.len() })
    });
    let mut summary = json!({
        "command": command, "exit": exit.code(), "target": target, "dry_run": false,
        "collections": written.collections.len(), "documents": sum(|c| c.documents),
        "attachments": sum(|c| c.attachments), "bytes": sum(|c| c.bytes),
        "seconds": written.took.as_secs_f64(), "proof": proof,
    });
    if let (Some(all), Value::Object(more)) = (summary.as_object_mut(), more) {
        all.extend(more);
    }
    ui.json("summary", summary);
    exit
}

fn show_collections(ui: &Ui, collections: &[CollectionReport]) {
    collections.iter().for_each(|c| ui.json("collection", c));
    let rows: Vec<Vec<String>> = collections
        .iter()
        .map(|c| {
            let name = if c.name == c.target { c.name.clone() } else { format!("{} as {}", c.name, c.target) };
            vec![format!("  {name}"), count(c.documents), count(c.attachments), bytes(c.bytes)]
        })
        .collect();
    ui.detail(table(&["  collection", "documents", "attachments", "size"], &[1, 2, 3], &rows));
}
