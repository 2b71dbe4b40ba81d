//! What the libraries log, as notes.

use super::Ui;
use std::fmt::{Debug, Write};
use std::sync::Arc;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// Shows warnings of our libraries as notes, with `verbose` everything but their traces.
pub fn listen(ui: &Arc<Ui>, verbose: bool) {
    let most = if verbose { Level::DEBUG } else { Level::WARN };
    let subscriber = tracing_subscriber::registry().with(Notes { ui: ui.clone(), most });
    // Fails only if somebody listens already.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

struct Notes {
    ui: Arc<Ui>,
    most: Level,
}

impl<S: Subscriber> Layer<S> for Notes {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let about = event.metadata();
        let ours =
            ["vault", "rewound", "folder", "model", "raven"].contains(&about.target().split(':').next().unwrap_or(""));
        if !ours || *about.level() > self.most {
            return;
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        self.ui.note(text.0);
    }
}

/// The message of an event, and its fields.
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
