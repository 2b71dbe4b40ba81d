//! `rewound find`

use super::written;
use crate::args::IfExistsArg;
use crate::context::{Context, Failed, OrUsage, Outcome};
use crate::ui::format::{bytes, table, time};
use model::Error;
use rewound::exit::Exit;
use rewound::find;
use rewound::time::{At, exactly};
use serde_json::json;
use std::io::IsTerminal;
use vault::Version;

/// Which document, and what to do with it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The vault
    vault: String,
    /// The collection
    #[arg(value_name = "NS")]
    collection: String,
    /// The document's key; for a folder, the name of its file without .json; for MongoDB the _id, as
    /// Extended JSON if it is no plain text
    key: String,
    /// The source, where the vault holds several
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Write the document to stdout as it is (BSON as Extended JSON), instead of listing versions
    #[arg(long, conflicts_with = "restore")]
    show: bool,
    /// Restore just this document, with its attachments
    #[arg(long, requires = "into")]
    restore: bool,
    /// Where --restore writes to
    #[arg(long, value_name = "TARGET", requires = "restore")]
    into: Option<String>,
    /// The version that was there at this time
    #[arg(long, value_name = "TIME", conflicts_with = "version")]
    at: Option<String>,
    /// The version with this number in the list; 1 is the newest
    #[arg(long, value_name = "N")]
    version: Option<usize>,
    /// What --restore does when the target has another version: merge and replace overwrite it
    #[arg(long, value_enum, default_value = "fail")]
    if_exists: IfExistsArg,
}

/// Finds one document.
pub async fn run(args: Args, context: &Context) -> Outcome {
    if let Some(target) = &args.into {
        rewound::registry::target(target, &context.reach).or_usage()?;
    }
    let at = args.at.as_deref().map(|text| At::parse(text, &jiff::Zoned::now())).transpose().or_usage()?;
    let vault = context.vault(&args.vault).await?;
    let finding = find::find(&vault, &args.collection, &args.key, args.source.as_deref());
    let versions = context.job.stop.or(finding).await?;
    let name = format!("{}/{}", args.collection, args.key);
    if !args.show && !args.restore && at.is_none() && args.version.is_none() {
        return Ok(list(context, &name, &versions));
    }
    let (number, version) = chosen(&versions, at.as_ref(), args.version)?;
    // Some engines keep something of a deleted document, which can be shown.
    if version.deleted && (args.restore || version.body.is_empty()) {
        let error = Error::missing(format!("{name} was deleted at {}", time(version.time.millis)));
        return Err(error.hint(format!("choose an older version, such as --version {}", number + 1)).into());
    }
    let Some(into) = &args.into else { return Ok(show(context, &name, version)) };
    let target = rewound::registry::target(into, &context.reach).or_usage()?;
    let back = find::bring_back(&context.job, &vault, target, version, &args.key, args.if_exists.into()).await?;
    context.ui.finish();
    let more = json!({ "document": name, "time": version.time.to_string(), "version": number });
    Ok(written::show(&context.ui, "find", into, &back, more, Exit::Done))
}

/// The version that is meant, with its number; by default the newest.
fn chosen<'a>(versions: &'a [Version], at: Option<&At>, number: Option<usize>) -> Result<(usize, &'a Version), Failed> {
    if let Some(at) = at {
        let version = find::version_at(versions, at)?;
        let number = versions.iter().position(|v| std::ptr::eq(v, version)).unwrap_or_default() + 1;
        return Ok((number, version));
    }
    let number = number.unwrap_or(1);
    let version = number.checked_sub(1).and_then(|i| versions.get(i));
    let missing =
        || Error::input(format!("--version {number}: there are {} versions", versions.len())).hint("1 is the newest");
    version.map(|v| (number, v)).ok_or_else(missing).or_usage()
}

fn list(context: &Context, name: &str, versions: &[Version]) -> Exit {
    let ui = &context.ui;
    // The newest one stands last, next to the prompt.
    let numbered = || versions.iter().enumerate().rev();
    let rows: Vec<Vec<String>> = numbered()
        .map(|(i, v)| {
            vec![
                (i + 1).to_string(),
                time(v.time.millis),
                v.point.clone().unwrap_or_else(|| "in the log".into()),
                if v.deleted { "deleted".into() } else { bytes(v.body.len() as u64) },
                v.source.clone(),
            ]
        })
        .collect();
    ui.line(table(&["version", "time", "point", "size", "source"], &[0, 3], &rows));
    for (i, v) in numbered() {
        ui.json(
            "version",
            json!({
                "number": i + 1, "time": v.time.to_string(), "millis": v.time.millis,
                "at": exactly(v.time, v.feed), "point": v.point,
                "log": v.log, "key": rewound::registry::key_text(&v.engine, &v.key), "source": v.source, "deleted": v.deleted, "bytes": v.body.len(),
            }),
        );
    }
    ui.json("summary", json!({ "command": "find", "exit": 0, "document": name, "versions": versions.len() }));
    Exit::Done
}

fn show(context: &Context, name: &str, version: &Version) -> Exit {
    let ui = &context.ui;
    let readable = rewound::registry::readable(version.encoding, &version.body);
    if ui.is_json() {
        let body = String::from_utf8_lossy(&readable);
        ui.json("document", json!({ "document": name, "time": version.time.to_string(), "body": body }));
        ui.json("summary", json!({ "command": "find", "exit": 0, "document": name, "versions": 1 }));
        return Exit::Done;
    }
    ui.bytes(&readable);
    // To a file or a pipe goes exactly the document; on a terminal the prompt gets its own line.
    if std::io::stdout().is_terminal() {
        ui.bytes(b"\n");
    }
    Exit::Done
}
