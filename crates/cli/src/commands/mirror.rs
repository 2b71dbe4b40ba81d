//! `rewound copy --live`

use crate::context::{Context, Failed, OrUsage, Outcome};
use crate::ui::Ui;
use crate::ui::format::several;
use model::{Error, Selection};
use rewound::exit::Exit;
use rewound::mirror::{MirrorEvent, MirrorOptions, mirror};
use rewound::registry;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Files of one batch up to which each is named.
const NAMED: usize = 3;

/// Keeps a folder in step until the user stops it.
pub async fn run(
    context: &Context,
    (source, target): (&str, &str),
    selection: Selection,
    every: &str,
    limit: Option<String>,
) -> Outcome {
    let Some(folder) = target.strip_prefix("folder:") else {
        return Err(Failed::Usage(
            Error::input(format!("--live keeps a folder in step, and {} is none", registry::without_secret(target)))
                .hint("write the TARGET as folder:PATH, or use `rewound backup --live`"),
        ));
    };
    let options = MirrorOptions { selection, every: duration(every).or_usage()? };
    let source = registry::source(source, &context.reach).or_usage()?;
    let source = super::backup::paced(source, limit.as_deref())?;
    let ui = context.ui.clone();
    let listener = Arc::new(move |event: MirrorEvent| show(&ui, &event));
    let report = mirror(&context.job, source, Path::new(folder), &options, listener).await?;
    let ui = &context.ui;
    ui.finish();
    ui.line(format!(
        "{} {} written, {} deleted, in {folder}; the same command goes on from here",
        ui.style().good("Stopped:"),
        several(report.written, "file"),
        report.deleted
    ));
    ui.json(
        "summary",
        json!({
            "command": "copy", "live": true, "exit": Exit::Done.code(), "source": report.source, "target": target,
            "scans": report.scans, "written": report.written, "deleted": report.deleted,
            "time": report.time.map(|t| t.to_string()),
        }),
    );
    Ok(Exit::Done)
}

fn show(ui: &Ui, event: &MirrorEvent) {
    match event {
        MirrorEvent::Write(files) => {
            let what = if files.deleted { "deleted" } else { "wrote" };
            let mut named: Vec<&str> = files.files.iter().take(NAMED).map(String::as_str).collect();
            let more = format!("{} more", files.files.len().saturating_sub(NAMED));
            if files.files.len() > NAMED {
                named.push(&more);
            }
            ui.detail(format!("{what} {}", named.join(", ")));
        }
        MirrorEvent::InStep { documents, follows, .. } => ui.line(format!(
            "{} with {}{}",
            ui.style().good("In step"),
            several(*documents, "document"),
            if *follows { "; following changes" } else { "" }
        )),
        MirrorEvent::Back => ui.note("the source is back"),
        // Told as notes by the library, too.
        MirrorEvent::Away { .. } | MirrorEvent::Gap { .. } => {}
    }
    if let Ok(Value::Object(mut members)) = serde_json::to_value(event)
        && let Some(Value::String(kind)) = members.shift_remove("type")
    {
        ui.json(&kind, members);
    }
}

/// A time span as people write it.
fn duration(text: &str) -> model::Result<Duration> {
    let span: Option<jiff::SignedDuration> = text.trim().parse().ok();
    let span = span.and_then(|span| Duration::try_from(span).ok()).filter(|span| *span >= Duration::from_millis(10));
    span.ok_or_else(|| Error::input(format!("--every {text}: no time span")).hint("write it as 30s, 1m or 2h"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn time_spans() {
        for (text, millis) in [("1m", 60_000), ("500ms", 500), ("1h 30m", 5_400_000), ("30 s", 30_000)] {
            assert_eq!(duration(text).unwrap().as_millis(), millis, "{text}");
        }
        for text in ["", "0s", "soon", "-1m", "5"] {
            assert!(duration(text).unwrap_err().hint_text().is_some(), "{text}");
        }
    }
}
