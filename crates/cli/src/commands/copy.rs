//! `rewound copy`

use super::restore::{Way, restore};
use super::written;
use crate::args::WriteArgs;
use crate::context::{Context, Failed, OrUsage, Outcome};
use model::Error;
use rewound::choose::PointChoice;
use rewound::copy::Copy;
use rewound::exit::Exit;
use rewound::registry;
use serde_json::json;

/// From where, where to, and how.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to copy: folder:PATH, or a vault (its newest point)
    source: String,
    /// Where to: folder:PATH, mongodb://HOST[/DATABASE]
    target: String,
    #[command(flatten)]
    write: WriteArgs,
    /// Leave bad input out and list it (exit 3), instead of refusing everything
    #[arg(long)]
    skip_bad: bool,
    /// Read at most so many bytes of documents a second: 500kB, 20MB
    #[arg(long, value_name = "RATE")]
    limit: Option<String>,
}

/// Copies.
pub async fn run(args: Args, context: &Context) -> Outcome {
    if registry::is_vault(&args.target) {
        return Err(Failed::Usage(
            Error::input(format!("{} is a vault", registry::without_secret(&args.target)))
                .hint("use `rewound backup SOURCE --to VAULT`"),
        ));
    }
    let target = registry::target(&args.target, &args.write.reach(&context.reach)).or_usage()?;
    let options = args.write.options(args.skip_bad).or_usage()?;
    if registry::is_vault(&args.source) {
        if args.limit.is_some() {
            return Err(Failed::Usage(
                Error::input("--limit spares databases while they are read")
                    .hint("leave it out: the source is a vault"),
            ));
        }
        let reach = args.write.reach(&context.reach);
        let way = Way { into: &args.target, reach: &reach, dry_run: args.write.dry_run, consent: args.write.consent() };
        return restore(context, "copy", &args.source, &PointChoice::default(), options, way).await;
    }
    let source = registry::source(&args.source, &context.reach).or_usage()?;
    let source = super::backup::paced(source, args.limit.as_deref())?;
    let copy = Copy::prepare(&context.job, source, target, options).await?;
    let ui = &context.ui;
    if args.write.dry_run {
        ui.finish();
        written::show_plan(ui, &copy.plan, &copy.collections, &copy.not_given);
        ui.json(
            "summary",
            json!({
                "command": "copy", "exit": 0, "target": args.target, "dry_run": true,
                "collections": copy.collections.len(), "losses": copy.plan.losses.len(),
            }),
        );
        return Ok(Exit::Done);
    }
    let report = copy.run(&context.job, args.write.consent()).await?;
    ui.finish();
    for skipped in &report.skipped {
        ui.line(format!("left out: {}: {}", skipped.what, skipped.why));
        ui.json("skipped", skipped);
    }
    let part = if report.skipped.is_empty() { Exit::Done } else { Exit::Part };
    let more = json!({ "source": report.source, "skipped": report.skipped.len() });
    Ok(written::show(ui, "copy", &args.target, &report.written, more, part))
}
