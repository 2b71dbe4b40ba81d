//! `rewound live`, and `rewound backup --live`

use super::backup;
use crate::context::{Context, Outcome};
use crate::ui::Ui;
use crate::ui::format::{bytes, count, duration, several, time};
use model::{Selection, Source};
use rewound::backup::Destination;
use rewound::events::{Lag, LiveEvent};
use rewound::exit::Exit;
use rewound::live::{LiveOptions, LiveReport, live};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use vault::BackupOptions;

/// As of `rewound backup`.
#[derive(Debug, clap::Args)]
// Without a group of its own: it would have the name of the other's.
#[group(skip)]
pub struct Args {
    #[command(flatten)]
    backup: backup::Args,
}

/// Backs up, and follows.
pub async fn run(args: Args, context: &Context) -> Outcome {
    let mut backup = args.backup;
    backup.live = true;
    backup::run(backup, context).await
}

/// How often the lag is told where there is no terminal.
const LAG: Duration = Duration::from_secs(30);

/// Follows until somebody asks to stop.
pub async fn follow(
    context: &Context,
    source: &dyn Source,
    destinations: Vec<Destination>,
    selection: &Selection,
    options: &BackupOptions,
    mut how: LiveOptions,
) -> Outcome {
    let ui = context.ui.clone();
    let shown = Mutex::new(None);
    how.listener = Some(Arc::new({
        let ui = ui.clone();
        move |event| show_event(&ui, &event, &shown)
    }));
    let report = live(&context.job, source, destinations, selection, options, &how).await?;
    ui.finish();
    Ok(show(&report, &ui))
}

fn show_event(ui: &Ui, event: &LiveEvent, shown: &Mutex<Option<Instant>>) {
    if ui.is_json() {
        if let Ok(Value::Object(mut members)) = serde_json::to_value(event) {
            let kind = members.remove("type");
            ui.json(kind.as_ref().and_then(Value::as_str).unwrap_or("event"), members);
        }
        return;
    }
    match event {
        LiveEvent::Lag(lag) => {
            if ui.status(&lag_text(lag)) {
                return;
            }
            let mut shown = shown.lock().unwrap_or_else(|e| e.into_inner());
            if shown.is_none_or(|at| at.elapsed() >= LAG) {
                *shown = Some(Instant::now());
                ui.note(lag_text(lag));
            }
        }
        LiveEvent::Point { vault, point, .. } => {
            ui.detail(format!("{} in {vault}", ui.style().good(&format!("Point {point}"))))
        }
        // The library says so, too.
        LiveEvent::Away { .. } | LiveEvent::Back { .. } | LiveEvent::Gap { .. } => {}
        LiveEvent::Write(_) | LiveEvent::Heartbeat { .. } => {}
    }
}

fn lag_text(lag: &Lag) -> String {
    format!("live: {:.1} s behind; {} stored, {}", lag.seconds, several(lag.changes, "change"), bytes(lag.bytes))
}

fn show(report: &LiveReport, ui: &Ui) -> Exit {
    let mut exit = Exit::Done;
    for loss in &report.losses {
        ui.note(format!("not in the backup: {}: {}", loss.what, loss.why));
        ui.json("loss", loss);
    }
    for gap in &report.gaps {
        exit = exit.and(Exit::Gap);
        ui.line(format!(
            "gap: history since {} was lost, and healed by a new scan: {}",
            time(gap.from.millis),
            gap.why
        ));
    }
    if report.skipped > 0 {
        exit = exit.and(Exit::Part);
        ui.line(format!("{} left out; `rewound points` says with which point", count(report.skipped)));
    }
    for outcome in &report.vaults {
        exit = exit.and(backup::show_vault(outcome, ui));
    }
    ui.detail(format!(
        "Stopped after {}; everything up to the last point is kept: {} and {}.",
        duration(report.took),
        several(report.points, "point"),
        several(report.changes.unwrap_or_default(), "change")
    ));
    ui.json(
        "summary",
        json!({
            "command": "live", "exit": exit.code(), "source": report.source, "changes": report.changes,
            "points": report.points, "gaps": report.gaps.len(), "seconds": report.took.as_secs_f64(),
            "vaults": report.vaults.len(), "failed": report.vaults.iter().filter(|v| v.point.is_err()).count(),
        }),
    );
    exit
}
