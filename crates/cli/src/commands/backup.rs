//! `rewound backup`

use crate::args::SelectionArgs;
use crate::context::{Context, Failed, OrUsage, Outcome};
use crate::ui::format::{bytes, count, duration, several, time};
use crate::ui::{Ui, error_value};
use model::Source;
use model::limits::LIVE_COMPARE;
use rewound::backup::{BackupReport, Destination, VaultOutcome, backup};
use rewound::exit::Exit;
use rewound::live::LiveOptions;
use rewound::paced::{Paced, parse_rate};
use rewound::registry::{self, Native, NativeKind, Tombstones};
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use vault::BackupOptions;

/// What, where to, and how.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to back up: folder:PATH, mongodb://HOST[/DATABASE], couchdb+http://HOST[/DATABASE],
    /// ravendb+http://HOST/DATABASE
    #[arg(required_unless_present = "jobflow")]
    source: Option<String>,
    /// The queue of this project of jobflow-remote, instead of a SOURCE: as jobflow:PROJECT.yaml
    #[arg(long, value_name = "PROJECT.yaml", conflicts_with = "source")]
    jobflow: Option<String>,
    /// Where to; several vaults get the same read
    #[arg(long = "to", value_name = "VAULT", required = true)]
    to: Vec<String>,
    #[command(flatten)]
    selection: SelectionArgs,
    /// Leave bad input out and list it (exit 3), instead of refusing everything
    #[arg(long, visible_alias = "salvage")]
    skip_bad: bool,
    /// Read at most so many bytes of documents a second: 500kB, 20MB
    #[arg(long, value_name = "RATE")]
    limit: Option<String>,
    /// Read everything, not only changes, and store all of it; with an identity, compare it with what
    /// the changes say
    #[arg(long)]
    full: bool,
    /// zstd level: 1 is fast, 19 is small, none does not compress
    #[arg(long, value_name = "1..19|none", default_value = "3", value_parser = level)]
    level: i32,
    /// The name of the source in the vault; the same name continues the same history
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
    /// RavenDB: keep the server from forgetting deletions, so that only what changed need be read; makes a
    /// disabled backup task in the database
    #[arg(long, conflicts_with = "release_tombstones")]
    hold_tombstones: bool,
    /// RavenDB: remove the task of --hold-tombstones; later backups read everything and compare
    #[arg(long)]
    release_tombstones: bool,
    /// RavenDB: have the server make a backup of its own into this folder, which this host and the server see
    /// under the same name, and take its files as they are; what was made there is removed again
    #[arg(long, value_name = "DIR", conflicts_with = "live")]
    native_dir: Option<PathBuf>,
    /// RavenDB: the type of that backup; a snapshot needs a license that allows it
    #[arg(long, value_enum, default_value = "snapshot", requires = "native_dir")]
    native_type: NativeTypeArg,
    /// How much the backup gives way to the database and to all else that runs on this host: 0 not at all, 19
    /// wholly; does not hold for --live (Linux)
    #[arg(long, value_name = "0..19", env = "REWOUND_NICE", hide_env_values = true, default_value = "15")]
    #[arg(value_parser = clap::value_parser!(i32).range(0..=19))]
    nice: i32,
    /// Then follow the source for ever, until Ctrl-C or SIGTERM
    #[arg(long)]
    pub live: bool,
    #[command(flatten)]
    pace: PaceArgs,
}

impl Args {
    /// The niceness of the process; a backup that follows its source must keep up with it.
    pub fn niceness(&self) -> i32 {
        if self.live { 0 } else { self.nice }
    }
}

/// A type of RavenDB's own backups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum NativeTypeArg {
    /// The storage files
    #[default]
    Snapshot,
    /// A dump with everything in it
    Backup,
}

impl From<NativeTypeArg> for NativeKind {
    fn from(arg: NativeTypeArg) -> Self {
        match arg {
            NativeTypeArg::Snapshot => NativeKind::Snapshot,
            NativeTypeArg::Backup => NativeKind::Backup,
        }
    }
}

/// How a live backup goes on.
#[derive(Debug, Default, clap::Args)]
pub struct PaceArgs {
    /// Live: store changes at the latest after this long: 500ms, 5s (default: 1s local, 10s remote)
    #[arg(long, value_name = "TIME", value_parser = span)]
    flush: Option<Duration>,
    /// Live: how often a source that does not tell its changes is compared anew: 30s, 5m
    #[arg(long, value_name = "TIME", value_parser = span, default_value = "1m")]
    every: Option<Duration>,
}

/// A span of time: `500ms`, `5s`, `1m`, `2h`.
fn span(text: &str) -> Result<Duration, String> {
    let wrong = || "write a number and ms, s, m or h: 500ms, 5s, 1m".to_owned();
    let end = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let number: u64 = text[..end].parse().map_err(|_| wrong())?;
    let millis = match &text[end..] {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    match number.checked_mul(millis) {
        Some(1..=86_400_000) => Ok(Duration::from_millis(number * millis)),
        _ => Err("write a time from 1ms to 24h".into()),
    }
}

/// The source, at the rate that the user wants.
pub fn paced(source: Arc<dyn Source>, limit: Option<&str>) -> Result<Arc<dyn Source>, Failed> {
    Ok(match limit.map(parse_rate).transpose().or_usage()? {
        Some(rate) => Arc::new(Paced::new(source, rate)),
        None => source,
    })
}

/// A level as the library takes it.
fn level(text: &str) -> Result<i32, String> {
    match text.parse() {
        Ok(level @ 1..=19) => Ok(level),
        _ if text == "none" => Ok(0),
        _ => Err("write a number from 1 to 19, or none".into()),
    }
}

/// Collections up to which each one is listed for people, with what was read of it.
const LISTED: usize = 12;

/// Backs up.
pub async fn run(args: Args, context: &Context) -> Outcome {
    let url = args.source.or(args.jobflow.map(|path| format!("jobflow:{path}"))).unwrap_or_default();
    let mut reach = context.reach.clone();
    if args.hold_tombstones {
        reach.tombstones = Tombstones::Hold;
    } else if args.release_tombstones {
        reach.tombstones = Tombstones::Release;
    }
    reach.native = args.native_dir.map(|folder| Native { folder, kind: args.native_type.into() });
    let source = registry::source(&url, &reach).or_usage()?;
    match reach.tombstones {
        Tombstones::Hold => context.ui.note(
            "RavenDB is asked to keep its tombstones from now on, by a disabled backup task in the database named “rewound \
             holds tombstones”; --release-tombstones ends that",
        ),
        Tombstones::Release => context.ui.note("the task that holds tombstones is removed from the database"),
        Tombstones::AsBefore => {}
    }
    let source = paced(source, args.limit.as_deref())?;
    let access = context.access()?;
    let mut destinations = Vec::new();
    for url in &args.to {
        destinations.push(Destination::open(url, access.clone()).await);
    }
    let options = BackupOptions { level: args.level, full: args.full, name: args.name, ..BackupOptions::default() };
    let selection = args.selection.selection(args.skip_bad);
    if args.live {
        let how = LiveOptions {
            flush: args.pace.flush,
            every: args.pace.every.unwrap_or(LIVE_COMPARE),
            access: Some(access),
            ..LiveOptions::default()
        };
        return super::live::follow(context, &*source, destinations, &selection, &options, how).await;
    }
    let report = backup(&context.job, &*source, destinations, &selection, &options).await?;
    context.ui.finish();
    Ok(show(&report, &context.ui))
}

fn show(report: &BackupReport, ui: &Ui) -> Exit {
    let mut exit = Exit::Done;
    for loss in &report.losses {
        ui.note(format!("not in the backup: {}: {}", loss.what, loss.why));
        ui.json("loss", loss);
    }
    for skipped in &report.skipped {
        exit = exit.and(Exit::Part);
        ui.line(format!("left out: {}: {}", skipped.what, skipped.why));
        ui.json("skipped", skipped);
    }
    if let Some(gap) = &report.gap {
        exit = exit.and(Exit::Gap);
        ui.line(format!("gap: history since {} is lost: {}", time(gap.from.millis), gap.why));
        ui.json("gap", gap);
    }
    for (outcome, problem) in report.vaults.iter().flat_map(|v| v.compared.iter().flatten().map(move |p| (v, p))) {
        ui.line(format!("{} {problem} ({})", ui.style().bad("NOT WHAT THE CHANGES SAY:"), outcome.url));
        ui.json("mismatch", json!({ "vault": outcome.url, "problem": problem }));
    }
    if report.collections.len() <= LISTED {
        for one in &report.collections {
            ui.line(format!("{} collection: {}", one.name, several(one.documents, "document")));
        }
    }
    report.collections.iter().for_each(|one| ui.json("collection", one));
    for outcome in &report.vaults {
        exit = exit.and(show_vault(outcome, ui));
    }
    let failed = report.vaults.iter().filter(|v| v.point.is_err()).count();
    let read = match report.scanned {
        true => several(report.documents, "document"),
        false => several(report.documents, "change"),
    };
    ui.detail(format!("Read {read}, {} in {}.", bytes(report.bytes), duration(report.took)));
    if report.vaults.iter().any(|v| v.compared.as_ref().is_some_and(Vec::is_empty)) {
        ui.detail("What the changes say is what was scanned: every collection has the same digest.");
    }
    ui.json(
        "summary",
        json!({
            "command": "backup", "exit": exit.code(), "source": report.source,
            "mode": if report.scanned { "scan" } else { "changes" }, "documents": report.documents,
            "changes": report.changes, "bytes": report.bytes, "seconds": report.took.as_secs_f64(), "vaults": report.vaults.len(),
            "failed": failed, "skipped": report.skipped.len(),
        }),
    );
    exit
}

pub fn show_vault(outcome: &VaultOutcome, ui: &Ui) -> Exit {
    match &outcome.point {
        Ok(point) => {
            ui.line(format!(
                "{} of {} in {}",
                ui.style().good(&format!("Point {}", point.id)),
                time(point.millis),
                outcome.url
            ));
            let all = format!(
                "{} and {}, {} in all; ",
                several(point.documents, "document"),
                several(point.attachments, "attachment"),
                bytes(point.bytes)
            );
            ui.line(format!(
                "  {}{} new or changed, {} deleted; {} added to the vault",
                if point.counted { all.as_str() } else { "" },
                count(point.changed),
                count(point.deleted),
                bytes(point.stored)
            ));
            ui.json("vault", json!({ "vault": outcome.url, "point": point }));
            Exit::Done
        }
        Err(error) => {
            if ui.is_json() {
                ui.json("vault", json!({ "vault": outcome.url, "error": error_value(error) }));
            } else {
                ui.error(&model::Error::new(error.kind(), format!("{}: {error}", outcome.url)).hint(
                    error.hint_text().unwrap_or("the other vaults have the point; run the backup again for this one"),
                ));
            }
            Exit::Part
        }
    }
}
