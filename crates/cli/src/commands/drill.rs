//! `rewound drill`

use crate::context::{Context, OrUsage, Outcome};
use crate::ui::format::{count, duration, time};
use rewound::drill::{DrillReport, drill};
use rewound::exit::Exit;
use serde_json::json;
use std::time::Duration;

/// Of which vault, and where.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The vault
    vault: String,
    /// Only this source
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Restore into this empty folder or database, and clear it away again; else into a temporary folder
    #[arg(long, value_name = "SCRATCH")]
    into: Option<String>,
}

/// Restores the newest point of each source, and compares.
pub async fn run(args: Args, context: &Context) -> Outcome {
    if let Some(into) = &args.into {
        rewound::registry::target(into, &context.reach).or_usage()?;
    }
    let vault = context.vault(&args.vault).await?;
    let ui = &context.ui;
    let reports = drill(&context.job, &vault, args.source.as_deref(), args.into.as_deref(), &context.reach).await?;
    ui.finish();
    let mut exit = Exit::Done;
    for report in &reports {
        ui.line(describe(report, context));
        report.problems.iter().for_each(|p| ui.line(format!("  {p}")));
        report.unproven.iter().for_each(|u| ui.line(format!("  not compared: {u}")));
        ui.json("drill", report);
        if !report.is_good() {
            exit = exit.and(Exit::CheckFailed);
        }
    }
    if exit == Exit::CheckFailed {
        ui.note("run `rewound verify` to see what is damaged, and back up again");
    }
    let failed = reports.iter().filter(|r| !r.is_good()).count();
    ui.json(
        "summary",
        json!({ "command": "drill", "exit": exit.code(), "vault": vault.location(),
                "sources": reports.len(), "failed": failed }),
    );
    Ok(exit)
}

fn describe(report: &DrillReport, context: &Context) -> String {
    let style = context.ui.style();
    let took = duration(Duration::from_secs_f64(report.seconds.max(0.0)));
    let point = match &report.point {
        Some(point) => format!("point {} of {}", point.id, time(point.millis)),
        None => "its newest point".to_owned(),
    };
    match report.is_good() {
        true => format!(
            "{}: {}, {point}: {} documents and attachments came back as they were, into {}, in {took}",
            style.good("Good"),
            report.source,
            count(report.documents),
            report.target
        ),
        false => format!("{}: {}, {point}, into {}", style.bad("FAILED"), report.source, report.target),
    }
}
