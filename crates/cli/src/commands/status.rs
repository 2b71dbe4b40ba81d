//! `rewound status`

use crate::context::{Context, OrUsage, Outcome};
use crate::ui::format::{several, table, time};
use crate::ui::{Ui, error_value};
use model::ErrorKind;
use rewound::exit::Exit;
use rewound::status::{SourceStatus, VaultStatus, parse_age, status};
use serde_json::json;
use std::time::Duration;
use vault::Check;

/// Of which vaults, and how old their points may be.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The vaults
    #[arg(value_name = "VAULT", required = true)]
    vaults: Vec<String>,
    /// Only this source
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// End with exit code 4 if what can be restored is older: 90s, 15m, 26h, 2d, 1w
    #[arg(long, value_name = "AGE")]
    max_age: Option<String>,
}

/// Shows how well everything is backed up.
pub async fn run(args: Args, context: &Context) -> Outcome {
    let max_age = args.max_age.as_deref().map(parse_age).transpose().or_usage()?;
    let ui = &context.ui;
    let now = context.job.seams.clock.now_millis();
    let mut exit = Exit::Done;
    let mut failed = 0;
    for url in &args.vaults {
        let looking = async {
            let vault = context.vault(url).await.map_err(|e| (e, url))?;
            let found = context.job.stop.or(status(&vault, args.source.as_deref(), max_age, now)).await;
            found.map_err(|e| (e, url))
        };
        match looking.await {
            Ok(found) => exit = exit.and(show(&found, args.vaults.len() > 1, ui)),
            // Nothing could be looked at: that is a failure, not a status.
            Err((e, _)) if e.kind() == ErrorKind::Interrupted || failed + 1 == args.vaults.len() => {
                return Err(e.into());
            }
            Err((e, url)) => {
                failed += 1;
                let url = rewound::registry::without_secret(url);
                ui.line(format!("{} {url}: {e}", ui.style().bad("cannot be looked at:")));
                e.hint_text().iter().for_each(|hint| ui.note(hint));
                ui.json("vault", json!({ "vault": url, "error": error_value(&e) }));
            }
        }
    }
    if failed > 0 {
        exit = exit.and(Exit::Part);
    }
    ui.json(
        "summary",
        json!({ "command": "status", "exit": exit.code(), "vaults": args.vaults.len(), "failed": failed }),
    );
    Ok(exit)
}

fn show(found: &VaultStatus, several_vaults: bool, ui: &Ui) -> Exit {
    if several_vaults {
        ui.line(format!("{}:", found.vault));
    }
    if found.sources.is_empty() {
        ui.line("There is no point yet.");
    } else {
        let rows: Vec<Vec<String>> = found.sources.iter().map(|s| row(s, ui)).collect();
        let head = ["source", "restorable up to", "age", "points", "last drill", ""];
        ui.line(table(&head, &[2, 3], &rows));
    }
    for source in &found.sources {
        for gap in &source.gaps {
            let to = gap.to.map_or_else(|| "now".to_owned(), |to| time(to.millis));
            ui.line(format!("gap in {}: {} to {to}: {}", source.source, time(gap.from.millis), gap.why));
        }
    }
    ui.line(match &found.verify {
        None => "Never verified.".to_owned(),
        Some(check) => format!("Last verify: {}", verified(check, ui)),
    });
    found.broken.iter().for_each(|b| ui.line(format!("{} {b}", ui.style().bad("cannot be read:"))));
    ui.json("vault", found);
    for source in &found.sources {
        let mut value = serde_json::to_value(source).unwrap_or_default();
        if let Some(all) = value.as_object_mut() {
            all.insert("vault".into(), json!(found.vault));
        }
        ui.json("source", value);
    }
    let mut exit = Exit::Done;
    if found.is_stale() {
        exit = exit.and(Exit::Stale);
        ui.note("something is older than --max-age allows: look at the backups' last runs");
    }
    if found.has_failed_checks() {
        exit = exit.and(Exit::CheckFailed);
        ui.note("a check has failed: run `rewound verify`");
    }
    exit
}

fn row(source: &SourceStatus, ui: &Ui) -> Vec<String> {
    let mut remarks = Vec::new();
    if source.live {
        remarks.push("live".to_owned());
    }
    if source.stale {
        remarks.push(ui.style().bad("STALE"));
    }
    if source.broken > 0 {
        remarks.push(format!("{} cannot be read", several(source.broken, "point")));
    }
    let drill = match &source.drill {
        None => "never".to_owned(),
        Some(check) => format!("{}, {}", time(check.ended), if check.good { "good" } else { "FAILED" }),
    };
    let age = ago(Duration::from_secs(source.age));
    vec![source.source.clone(), time(source.millis), age, source.points.to_string(), drill, remarks.join(", ")]
}

fn verified(check: &Check, ui: &Ui) -> String {
    let mut text = time(check.ended);
    if let Some(verified) = &check.verified {
        text.push_str(if verified.quick { ", stored bytes" } else { ", contents" });
        if let Some(sample) = verified.sample {
            text.push_str(&format!(" of {}/{}", sample.count, sample.of));
        }
    }
    match (check.good, &check.problem) {
        (true, _) => format!("{text}: {}", ui.style().good("good")),
        (false, problem) => {
            format!("{text}: {} {}", ui.style().bad("damaged:"), problem.as_deref().unwrap_or_default())
        }
    }
}

/// An age in its largest unit, as a person would say it.
fn ago(age: Duration) -> String {
    match age.as_secs() {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s @ 7200..172_800 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86_400),
    }
}
