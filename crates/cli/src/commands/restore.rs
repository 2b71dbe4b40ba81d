//! `rewound restore`

use super::written;
use crate::args::WriteArgs;
use crate::context::{Context, OrUsage, Outcome};
use crate::ui::format::time;
use model::{IfExists, RestoreOptions};
use rewound::choose::PointChoice;
use rewound::exit::Exit;
use rewound::registry::{self, Native, NativeKind, Reach};
use rewound::restore::{Consent, Restore};
use rewound::time::At;
use serde_json::json;
use std::path::PathBuf;

/// From where, where to, which point, and how.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The vault
    vault: String,
    /// Where to: folder:PATH, mongodb://HOST[/DATABASE], couchdb+http://HOST[/DATABASE],
    /// ravendb+http://HOST/DATABASE
    #[arg(long, value_name = "TARGET", required_unless_present = "jobflow")]
    into: Option<String>,
    /// Into the queue of this project of jobflow-remote: as --into jobflow:PROJECT.yaml
    #[arg(long, value_name = "PROJECT.yaml", conflicts_with = "into")]
    jobflow: Option<String>,
    /// The state at this time: '2026-11-20 09:03', 'friday 09:03', '2h ago', RFC 3339, ts:SECONDS,INCREMENT
    /// (of a source that does not tell every change: the last point at or before it)
    #[arg(long, value_name = "TIME", conflicts_with = "point")]
    at: Option<String>,
    /// This point: the beginning of its id is enough
    #[arg(long, value_name = "ID")]
    point: Option<String>,
    /// The source, where the vault holds several
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Rewind a database that clients replicate with (CouchDB): what documents were becomes new revisions
    /// over what they are, what was not there is deleted
    #[arg(long, conflicts_with = "if_exists")]
    as_new_revisions: bool,
    /// RavenDB: of a point of backup --native-dir, the folder by which the server gets its files back: this host
    /// and the server see it under the same name
    #[arg(long, value_name = "DIR")]
    native_dir: Option<PathBuf>,
    #[command(flatten)]
    write: WriteArgs,
}

/// Restores.
pub async fn run(args: Args, context: &Context) -> Outcome {
    let into = args.into.or(args.jobflow.map(|path| format!("jobflow:{path}"))).unwrap_or_default();
    let mut reach = args.write.reach(&context.reach);
    reach.native = args.native_dir.map(|folder| Native { folder, kind: NativeKind::default() });
    registry::target(&into, &reach).or_usage()?;
    let at = args.at.as_deref().map(|text| At::parse(text, &jiff::Zoned::now())).transpose().or_usage()?;
    if let Some(at) = &at {
        context.ui.note(format!("--at means {}", at.in_full()));
    }
    let choice = PointChoice { source: args.source, point: args.point, at };
    let mut options = args.write.options(false).or_usage()?;
    if args.as_new_revisions {
        (options.as_new_revisions, options.if_exists) = (true, IfExists::Merge);
    }
    let way = Way {
        into: &into,
        reach: &reach,
        dry_run: args.write.dry_run,
        consent: args.write.consent(),
        memory: args.write.memory(),
    };
    restore(context, "restore", &args.vault, &choice, options, way).await
}

/// Where to, and whether really.
pub struct Way<'a> {
    /// The target.
    pub into: &'a str,
    /// How to reach it.
    pub reach: &'a Reach,
    /// Only show what would be done.
    pub dry_run: bool,
    /// What the user accepts.
    pub consent: Consent,
    /// Bytes of changes to hold in memory, if told.
    pub memory: Option<usize>,
}

/// Restores from a vault, for whichever command.
pub async fn restore(
    context: &Context,
    command: &str,
    vault: &str,
    choice: &PointChoice,
    options: RestoreOptions,
    way: Way<'_>,
) -> Outcome {
    let target = registry::target(way.into, way.reach).or_usage()?;
    let vault = context.vault(vault).await?;
    let mut restore = Restore::prepare(&context.job, &vault, target, choice, options, way.memory).await?;
    let (ui, point) = (&context.ui, restore.point.clone());
    let moment = &restore.moment.clone();
    match moment.is_point {
        true => ui.line(format!("Point {} of {} ({})", point.id, time(point.millis), point.source)),
        false => ui.line(format!(
            "The state of {} ({}), exactly {}: made of the scan of point {} and the changes since",
            time(moment.millis),
            point.source,
            moment.at,
            point.id
        )),
    }
    ui.json("point", &point);
    ui.json("state", moment);
    if way.dry_run {
        restore.rehearse(&context.job).await?;
        ui.finish();
        written::show_plan(ui, &restore.plan, &restore.collections, &restore.not_in_backup);
        ui.json(
            "summary",
            json!({
                "command": command, "exit": 0, "target": registry::without_secret(way.into), "dry_run": true, "point": point.id, "at": moment.at,
                "collections": restore.collections.len(), "losses": restore.plan.losses.len(),
            }),
        );
        return Ok(Exit::Done);
    }
    let report = restore.run(&context.job, way.consent).await?;
    ui.finish();
    Ok(written::show(
        ui,
        command,
        way.into,
        &report.written,
        json!({ "point": report.point.id, "at": report.moment.at, "time": report.moment.time }),
        Exit::Done,
    ))
}
