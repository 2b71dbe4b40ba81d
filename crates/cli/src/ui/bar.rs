//! Progress: a bar on a terminal, a line now and then elsewhere.

use super::format::{bytes, count, duration};
use super::json_line;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rewound::{Doing, Progress};
use serde_json::json;
use std::io::Write;
use std::time::{Duration, Instant};

/// How often a bar is drawn.
const DRAW: Duration = Duration::from_millis(100);
/// How often a line is written where there is no terminal.
const LINE: Duration = Duration::from_secs(30);
/// How often programs are told.
const JSON: Duration = Duration::from_secs(1);

/// Shows progress on stderr.
pub struct Bar {
    form: Form,
    bar: Option<ProgressBar>,
    phase: Progress,
    since: Instant,
    last: Instant,
}

#[derive(PartialEq)]
enum Form {
    None,
    Bar,
    Lines,
    Json,
}

impl Bar {
    /// The form of progress that fits.
    pub fn new(json: bool, quiet: bool, terminal: bool) -> Self {
        let form = match (quiet, json, terminal) {
            (true, ..) => Form::None,
            (_, true, _) => Form::Json,
            (.., true) => Form::Bar,
            _ => Form::Lines,
        };
        let now = Instant::now();
        Bar { form, bar: None, phase: Progress::default(), since: now, last: now }
    }

    /// Something else is being done.
    pub fn phase(&mut self, progress: Progress) {
        self.finish();
        self.phase = progress;
        self.since = Instant::now();
        if self.form == Form::Json {
            self.last = self.since;
            self.say(progress);
        }
    }

    /// It goes on.
    pub fn progress(&mut self, progress: Progress) {
        let every = match self.form {
            Form::None => return,
            Form::Bar => DRAW,
            Form::Lines => LINE,
            Form::Json => JSON,
        };
        if self.last.elapsed() < every {
            return;
        }
        self.last = Instant::now();
        match self.form {
            Form::Bar => self.draw(progress),
            _ => self.say(progress),
        }
    }

    /// Shows a line in the place of the bar, where there is one; says whether there is.
    pub fn status(&mut self, text: &str) -> bool {
        if self.form != Form::Bar {
            return self.form == Form::None;
        }
        let bar = self.bar.get_or_insert_with(|| ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()));
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        bar.set_message(text.to_owned());
        bar.tick();
        true
    }

    /// Writes something else, with the bar out of the way.
    pub fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// Takes the bar away.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn draw(&mut self, progress: Progress) {
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(progress.total_bytes, ProgressDrawTarget::hidden());
            let template = match progress.total_bytes {
                Some(_) => "{prefix} [{bar:24}] {percent:>3}%  {msg}",
                None => "{prefix} {spinner}  {msg}",
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar
        });
        bar.set_prefix(word(progress.doing));
        bar.set_position(progress.bytes);
        bar.set_message(numbers(&progress, self.since.elapsed()));
        if bar.is_hidden() {
            // Not before there is something to show.
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        bar.tick();
    }

    fn say(&self, progress: Progress) {
        let elapsed = self.since.elapsed();
        let line = match self.form {
            Form::Json => {
                let left = time_left(&progress, elapsed).map(|d| d.as_secs());
                let mut value = json!({ "seconds": elapsed.as_secs(), "seconds_left": left });
                if let (Some(all), Ok(serde_json::Value::Object(more))) =
                    (value.as_object_mut(), serde_json::to_value(progress))
                {
                    all.extend(more);
                }
                json_line("progress", value)
            }
            _ => format!("{}  {}\n", word(progress.doing), numbers(&progress, elapsed)),
        };
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

fn word(doing: Doing) -> &'static str {
    match doing {
        Doing::Checking => "checking",
        Doing::Reading => "reading",
        Doing::Following => "following",
        Doing::Committing => "completing",
        Doing::Writing => "writing",
        Doing::Proving => "proving",
        Doing::Verifying => "verifying",
    }
}

fn numbers(progress: &Progress, elapsed: Duration) -> String {
    let unit = match progress.doing {
        Doing::Verifying => "objects",
        Doing::Following => "changes",
        _ => "documents",
    };
    let mut text = format!("{} {unit}, {}", count(progress.documents), bytes(progress.bytes));
    if let Some(total) = progress.total_bytes {
        text.push_str(&format!(" of {}", bytes(total)));
    }
    if elapsed.as_millis() > 500 {
        let rate = progress.bytes as f64 / elapsed.as_secs_f64();
        text.push_str(&format!(", {}/s", bytes(rate as u64)));
    }
    if let Some(left) = time_left(progress, elapsed) {
        text.push_str(&format!(", {} left", duration(left)));
    }
    text
}

/// At the rate so far; not in the first two seconds, in which a rate says nothing.
fn time_left(progress: &Progress, elapsed: Duration) -> Option<Duration> {
    let total = progress.total_bytes?;
    if elapsed.as_secs() < 2 || progress.bytes == 0 {
        return None;
    }
    let left = total.saturating_sub(progress.bytes) as f64 / (progress.bytes as f64 / elapsed.as_secs_f64());
    Some(Duration::from_secs(left as u64))
}
