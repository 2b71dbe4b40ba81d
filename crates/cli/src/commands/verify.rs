//! `rewound verify`

use crate::context::{Context, OrUsage, Outcome};
use crate::ui::format::{bytes, several, time};
use rewound::exit::Exit;
use rewound::verify::{How, Share, Verification, verify};
use serde_json::json;
use vault::{Hit, Sample, VerifyReport};

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
    /// Check N of M parts only, going on where the last check ended: everything in M/N runs
    #[arg(long, value_name = "N/M")]
    sample: Option<String>,
    /// Begin --sample with this part, from 1, instead
    #[arg(long, value_name = "PART", requires = "sample")]
    part: Option<u32>,
    /// Make anew what can be made from other objects; removes nothing
    #[arg(long)]
    repair: bool,
}

impl Args {
    fn how(&self) -> model::Result<How> {
        let share = self.sample.as_deref().map(Share::parse).transpose()?;
        let share = match (share, self.part) {
            (Some(share), Some(part)) => Some(share.from_part(part)?),
            (share, _) => share,
        };
        Ok(How { quick: self.quick, share, repair: self.repair })
    }
}

/// Checks a vault.
pub async fn run(args: Args, context: &Context) -> Outcome {
    let how = args.how().or_usage()?;
    let vault = context.vault(&args.vault).await?;
    let Verification { report, sample } = verify(&context.job, &vault, how).await?;
    let ui = &context.ui;
    ui.finish();
    for damage in &report.damages {
        ui.line(format!("{} {}: {}", ui.style().bad("DAMAGED"), damage.object, damage.problem));
        damage.hits.iter().for_each(|hit| ui.line(describe(hit)));
        damage.advice.iter().for_each(|advice| ui.line(format!("  hits nothing: {advice}")));
        ui.json("damage", damage);
    }
    for healed in &report.healed {
        let how = if healed.repaired { "REPAIRED" } else { "HEALED" };
        ui.line(format!("{} {}: {}", ui.style().good(how), healed.object, healed.problem));
        ui.line(format!("  hits nothing: {} has the same content", healed.by));
        ui.json("healed", healed);
    }
    for note in &report.notes {
        ui.note(note);
    }
    let exit = if report.damages.is_empty() { Exit::Done } else { Exit::CheckFailed };
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
    ui.detail(checked(&report, sample));
    if report.leftovers > 0 {
        ui.detail(format!(
            "{} ({}) left by interrupted backups: the next backup uses them, `rewound prune` removes them.",
            several(report.leftovers, "object"),
            bytes(report.leftover_bytes)
        ));
    }
    if report.damages.iter().any(|d| d.loses()) {
        ui.note("points that are not named can be restored; the next backup stores anew what is damaged and still there at the source");
    }
    ui.json(
        "summary",
        json!({
            "command": "verify", "exit": exit.code(), "vault": vault.location(), "objects": report.objects,
            "bytes": report.bytes, "total_objects": report.total_objects, "total_bytes": report.total_bytes,
            "share": share(&report), "sample": sample, "points": report.points,
            "checked_content": report.checked_content, "checked_references": report.checked_references,
            "damages": report.damages.len(), "healed": report.healed.len(), "leftovers": report.leftovers,
            "leftover_bytes": report.leftover_bytes, "notes": report.notes,
        }),
    );
    Ok(exit)
}

/// The share of all stored bytes that was looked at.
fn share(report: &VerifyReport) -> f64 {
    if report.total_bytes == 0 { 1.0 } else { report.bytes as f64 / report.total_bytes as f64 }
}

/// What was checked, for people.
fn checked(report: &VerifyReport, sample: Option<Sample>) -> String {
    let Some(Sample { first, count, of }) = sample else {
        return format!(
            "Checked {}.",
            match (report.checked_content, report.checked_references) {
                (true, _) => "every stored byte, every document and every digest",
                (false, true) => "every stored byte, and that nothing is missing",
                (false, false) => "every stored byte; not whether something is missing, which needs an identity",
            }
        );
    };
    let parts = match count {
        1 => format!("part {} of {of}", first + 1),
        n => format!("parts {} to {} of {of}", first + 1, (first + n - 1) % of + 1),
    };
    let missing = match report.checked_references {
        true => ", and of everything that it is there",
        false => "; not whether something is missing, which needs an identity",
    };
    format!("Checked {parts}: {:.1} % of all bytes{missing}.", share(report) * 100.0)
}

fn describe(hit: &Hit) -> String {
    let mut what = Vec::new();
    match hit.points.len() {
        0 => {}
        1..=3 => what.push(format!("points {}", hit.points.join(", "))),
        n => what.push(format!("{n} points, the first is {}", hit.points[0])),
    }
    what.extend(hit.times.iter().map(|t| format!("all times from {} to {}", time(t.from), time(t.to))));
    let what = what.join(", and ");
    let Some(collection) = &hit.collection else { return format!("  hits all of {} in {what}", hit.source) };
    let mut text = format!("  hits {collection} of {} in {what}", hit.source);
    if hit.document_count > 0 {
        text.push_str(&format!(": at most {}", several(hit.document_count, "document")));
    }
    let named = &hit.documents[..hit.documents.len().min(NAMED)];
    if !named.is_empty() {
        text.push_str(&format!(", such as {}", named.join(", ")));
    }
    text
}
