//! Where results, progress and errors go: text or JSON lines.

mod bar;
pub mod format;
pub mod log;
mod style;

use crate::args::Global;
use bar::Bar;
use model::Error;
use rewound::{Event, Observer};
use serde::Serialize;
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
pub use style::Style;

/// Writes results to stdout, everything else to stderr.
pub struct Ui {
    json: bool,
    quiet: bool,
    /// Put before each line of a result: the quickstart indents what commands say.
    indent: &'static str,
    style: Style,
    bar: Arc<Mutex<Bar>>,
    /// Nobody reads stdout any more.
    closed: AtomicBool,
}

impl Ui {
    /// As the user asked for.
    pub fn new(global: &Global) -> Self {
        Ui {
            json: global.json,
            quiet: global.quiet,
            indent: "",
            style: Style::for_stdout(),
            bar: Arc::new(Mutex::new(Bar::new(global.json, global.quiet, std::io::stderr().is_terminal()))),
            closed: AtomicBool::new(false),
        }
    }

    /// The same for a command inside another: indented.
    pub fn nested(&self) -> Self {
        Ui {
            json: self.json,
            quiet: self.quiet,
            indent: if self.json { "" } else { "    " },
            style: self.style,
            bar: self.bar.clone(),
            closed: AtomicBool::new(false),
        }
    }

    /// Whether results are JSON lines.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// How text is set off.
    pub fn style(&self) -> Style {
        self.style
    }

    /// A line of a result, for people.
    pub fn line(&self, text: impl AsRef<str>) {
        if !self.json {
            let mut all = String::new();
            for line in text.as_ref().split('\n') {
                if !line.is_empty() {
                    all.push_str(self.indent);
                }
                all.push_str(line);
                all.push('\n');
            }
            self.bytes(all.as_bytes());
        }
    }

    /// A line of a result that `--quiet` leaves out.
    pub fn detail(&self, text: impl AsRef<str>) {
        if !self.quiet {
            self.line(text);
        }
    }

    /// A line of a result, for programs: the members of `value`, and its type.
    pub fn json(&self, kind: &str, value: impl Serialize) {
        if self.json {
            self.bytes(json_line(kind, value).as_bytes());
        }
    }

    /// Bytes to stdout as they are.
    pub fn bytes(&self, bytes: &[u8]) {
        if self.closed.load(Ordering::Relaxed) {
            return;
        }
        let write = || {
            let mut out = std::io::stdout().lock();
            out.write_all(bytes).and_then(|()| out.flush())
        };
        // A reader that has seen enough (`| head`) is no reason to leave work undone.
        if self.bar.lock().unwrap_or_else(|e| e.into_inner()).aside(write).is_err() {
            self.closed.store(true, Ordering::Relaxed);
        }
    }

    /// Something the user should know.
    pub fn note(&self, text: impl AsRef<str>) {
        if self.quiet {
            return;
        }
        let line = match self.json {
            true => json_line("note", json!({ "message": text.as_ref() })),
            false => format!("note: {}\n", text.as_ref()),
        };
        self.aside(&line);
    }

    /// How something that goes on for ever is doing; only on a terminal, which this says.
    pub fn status(&self, text: &str) -> bool {
        self.bar.lock().unwrap_or_else(|e| e.into_inner()).status(text)
    }

    /// Something went wrong. In JSON the line goes to stdout, as the last one, in place of a summary.
    pub fn error(&self, error: &Error) {
        self.finish();
        if self.json {
            self.bytes(error_line(error).as_bytes());
            return;
        }
        let style = Style::for_stderr();
        let mut text = format!("{} {error}\n", style.bad("error:"));
        if let Some(hint) = error.hint_text() {
            text.push_str(&format!("{} {hint}\n", style.strong("hint:")));
        }
        self.aside(&text);
    }

    /// An error before there is anything else.
    pub fn json_error(error: &Error) {
        let _ = std::io::stdout().write_all(error_line(error).as_bytes());
    }

    /// Takes the progress bar away.
    pub fn finish(&self) {
        self.bar.lock().unwrap_or_else(|e| e.into_inner()).finish();
    }

    fn aside(&self, line: &str) {
        let write = || std::io::stderr().write_all(line.as_bytes());
        let _ = self.bar.lock().unwrap_or_else(|e| e.into_inner()).aside(write);
    }
}

impl Observer for Ui {
    fn on(&self, event: Event) {
        match event {
            Event::Phase(progress) => self.bar.lock().unwrap_or_else(|e| e.into_inner()).phase(progress),
            Event::Progress(progress) => self.bar.lock().unwrap_or_else(|e| e.into_inner()).progress(progress),
            Event::Note(text) => self.note(text),
        }
    }
}

/// An error as JSON.
pub fn error_value(error: &Error) -> Value {
    json!({ "kind": error.kind().word(), "message": error.to_string(), "hint": error.hint_text() })
}

fn error_line(error: &Error) -> String {
    json_line("error", error_value(error))
}

/// One line: the type first, then what `value` holds.
pub fn json_line(kind: &str, value: impl Serialize) -> String {
    let mut line = format!("{{\"type\":{}", Value::from(kind));
    if let Ok(Value::Object(members)) = serde_json::to_value(value) {
        for (name, value) in members {
            line.push_str(&format!(",{}:{value}", Value::from(name)));
        }
    }
    line.push_str("}\n");
    line
}
