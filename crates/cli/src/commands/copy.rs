//! `rewound copy`

use super::restore::{Way, restore};
use super::{mirror, written};
use crate::args::WriteArgs;
use crate::context::{Context, Failed, OrUsage, Outcome};
use model::{Error, ErrorKind};
use rewound::choose::PointChoice;
use rewound::copy::Copy;
use rewound::exit::Exit;
use rewound::registry;
use rewound::time::At;
use serde_json::json;

/// From where, where to, and how.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to copy: folder:PATH, mongodb://HOST[/DATABASE], couchdb+http://HOST[/DATABASE],
    /// ravendb+http://HOST/DATABASE, a dump, a vault (its newest point), or VAULT@TIME
    source: String,
    /// Where to: folder:PATH, mongodb://HOST[/DATABASE], couchdb+http://HOST[/DATABASE],
    /// ravendb+http://HOST/DATABASE, a dump
    target: String,
    #[command(flatten)]
    write: WriteArgs,
    /// Leave bad input out and list it (exit 3), instead of refusing everything
    #[arg(long, visible_alias = "salvage")]
    skip_bad: bool,
    /// Read at most so many bytes of documents a second: 500kB, 20MB
    #[arg(long, value_name = "RATE")]
    limit: Option<String>,
    /// Keep the target, a folder, in step until stopped; it goes on where it was
    #[arg(long, conflicts_with_all = ["dry_run", "rename", "if_exists", "allow_loss", "no_verify", "gzip"])]
    live: bool,
    /// With --live: how often a source that tells no changes is compared: 30s, 1m, 2h
    #[arg(long, value_name = "TIME", requires = "live", default_value = "1m")]
    every: String,
}

/// The vault that a source means, if it means one, and the time after `@`. What is there as it is
/// written goes before what could be a time.
async fn vault(source: &str, context: &Context) -> Result<Option<(String, Option<At>)>, Failed> {
    let split = source.rsplit_once('@').filter(|(vault, _)| registry::is_vault(vault));
    let Some((vault, time)) = split else {
        return Ok(registry::is_vault(source).then(|| (source.to_owned(), None)));
    };
    let is_there = registry::is_vault(source)
        && match context.vault(source).await {
            Err(e) if e.kind() == ErrorKind::Missing => false,
            Err(e) if e.kind() == ErrorKind::Interrupted => return Err(e.into()),
            _ => true,
        };
    if is_there {
        return Ok(Some((source.to_owned(), None)));
    }
    let at = At::parse(time, &jiff::Zoned::now()).or_usage()?;
    context.ui.note(format!("@{time} means {}", at.in_full()));
    Ok(Some((vault.to_owned(), Some(at))))
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
    let vault = vault(&args.source, context).await?;
    if vault.is_some() && args.live {
        return Err(Failed::Usage(
            Error::input("--live follows a database or folder, and the source is a vault")
                .hint("name the database itself: rewound copy mongodb://HOST folder:DIR --live"),
        ));
    }
    if let Some((vault, at)) = vault {
        if args.limit.is_some() {
            return Err(Failed::Usage(
                Error::input("--limit spares databases while they are read")
                    .hint("leave it out: the source is a vault"),
            ));
        }
        let reach = args.write.reach(&context.reach);
        let way = Way {
            into: &args.target,
            reach: &reach,
            dry_run: args.write.dry_run,
            consent: args.write.consent(),
            memory: args.write.memory(),
        };
        let choice = PointChoice { at, ..PointChoice::default() };
        return restore(context, "copy", &vault, &choice, options, way).await;
    }
    if args.live {
        return mirror::run(context, (&args.source, &args.target), options.selection, &args.every, args.limit).await;
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
                "command": "copy", "exit": 0, "target": registry::without_secret(&args.target), "dry_run": true,
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
