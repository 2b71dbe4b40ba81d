//! `rewound diff`

use crate::context::{Context, OrUsage, Outcome};
use crate::ui::format::{count, time};
use model::Selection;
use rewound::diff::{Counts, Diff, Moment};
use rewound::exit::Exit;
use rewound::registry::key_text;
use serde_json::json;
use vault::{Change, CollectionChange, Difference};

/// Of which vault, and between which times.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The vault
    vault: String,
    /// From here: a time as --at takes it ('friday 09:03', '2h ago'), or the beginning of a point's id
    #[arg(value_name = "A")]
    from: String,
    /// To here; else the newest point
    #[arg(value_name = "B", default_value = "newest")]
    to: String,
    /// The source, where the vault holds several
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Only these collections (`*` and `?` match any characters), or NS/KEY for one document
    #[arg(long, value_name = "NS[/KEY]")]
    only: Vec<String>,
    /// Hold so many megabytes in memory; what is more goes to an encrypted temporary file
    #[arg(long, value_name = "MB", default_value = "64", value_parser = clap::value_parser!(u32).range(1..=65536))]
    memory: u32,
}

/// Shows what changed.
pub async fn run(args: Args, context: &Context) -> Outcome {
    let now = jiff::Zoned::now();
    let (from, to) = (Moment::parse(&args.from, &now).or_usage()?, Moment::parse(&args.to, &now).or_usage()?);
    let vault = context.vault(&args.vault).await?;
    let selection = Selection { only: args.only, ..Selection::default() };
    let diff = Diff::prepare(&context.job, &vault, args.source.as_deref(), &from, &to, selection).await?;
    let ui = &context.ui;
    ui.finish();
    let [older, newer] = diff.times();
    ui.note(format!("{} from {} to {}", diff.source, time(older.millis), time(newer.millis)));
    let memory = args.memory as usize * 1_000_000;
    let counts = diff.run(&context.job, &vault, memory, |difference| show(difference, &diff, context)).await?;
    let Counts { added, changed, deleted, collections } = counts;
    ui.detail(format!("{} added, {} changed, {} deleted", count(added), count(changed), count(deleted)));
    ui.json(
        "summary",
        json!({
            "command": "diff", "exit": 0, "source": diff.source, "from": older.to_string(), "to": newer.to_string(),
            "added": added, "changed": changed, "deleted": deleted, "collections": collections,
        }),
    );
    Ok(Exit::Done)
}

fn show(difference: &Difference, diff: &Diff, context: &Context) {
    let ui = &context.ui;
    match difference {
        Difference::Document { collection, space, key, change } => {
            let (sign, word) = match change {
                Change::Added => ("+", "added"),
                Change::Changed => ("~", "changed"),
                Change::Deleted => ("-", "deleted"),
            };
            let is_document = space == "document" || space == "revision";
            // Keys of other things than documents are the engine's own, and text.
            let key = if is_document { key_text(&diff.engine, key) } else { String::from_utf8_lossy(key).into() };
            let kind = if is_document { String::new() } else { format!(" ({space})") };
            ui.line(format!("{sign} {collection}/{key}{kind}"));
            ui.json("document", json!({ "collection": collection, "key": key, "kind": space, "change": word }));
        }
        Difference::Collection { name, change } => {
            let (sign, word, text) = match change {
                CollectionChange::Created => ("+", "created", "created".to_owned()),
                CollectionChange::Dropped => ("-", "dropped", "dropped".to_owned()),
                CollectionChange::Recreated => ("~", "recreated", "dropped and made anew".to_owned()),
                CollectionChange::Renamed(from) => ("~", "renamed", format!("renamed from {from}")),
                CollectionChange::Options => ("~", "options", "has other options or indexes".to_owned()),
            };
            let from = match change {
                CollectionChange::Renamed(from) => Some(from),
                _ => None,
            };
            ui.line(format!("{sign} collection {name} {text}"));
            ui.json("collection", json!({ "name": name, "change": word, "from": from }));
        }
    }
}
