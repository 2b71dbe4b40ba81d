//! What a live backup tells while it goes on: the library's stream of events.

use model::{ChangeBatch, CollectionId, Engine, EngineTime, Gap};
use serde::Serialize;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// Something that happened in a live backup.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum LiveEvent {
    /// Changes of one collection are stored, durably.
    Write(WriteEvent),
    /// How far the vaults are behind the source, told about once a second.
    Lag(Lag),
    /// Nothing has changed for a while; that is known and stored.
    Heartbeat {
        /// The vault.
        vault: String,
        /// The object that says so.
        object: String,
        /// The engine time up to which nothing has changed.
        time: String,
    },
    /// A point was made.
    Point {
        /// The vault.
        vault: String,
        /// The point's id.
        point: String,
        /// The time that it restores, RFC 3339 in UTC.
        time: String,
    },
    /// A vault takes nothing at the moment; it is tried again.
    Away {
        /// The vault.
        vault: String,
        /// Why.
        why: String,
    },
    /// A vault takes changes again, and has all that it missed or is going to read it again.
    Back {
        /// The vault.
        vault: String,
    },
    /// History was lost: everything is scanned anew.
    Gap {
        /// From when to when.
        #[serde(flatten)]
        gap: Gap,
    },
}

/// Changes of one collection that were stored with one flush.
#[derive(Debug, Clone, Serialize)]
pub struct WriteEvent {
    /// The vault.
    pub vault: String,
    /// The collection's name.
    pub collection: String,
    /// The keys of the documents, as people write them.
    pub ids: Vec<String>,
    /// Whether they were deleted; else they were written or changed.
    pub deleted: bool,
    /// The object of the vault that holds the changes.
    pub object: String,
    /// The engine time of the last of them, RFC 3339 in UTC.
    pub time: String,
}

/// How a live backup is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Lag {
    /// Seconds since the moment whose changes are all stored, in the vault that is farthest behind
    /// of those that can be written to.
    pub seconds: f64,
    /// Changes stored since the backup began.
    pub changes: u64,
    /// Bytes of these changes.
    pub bytes: u64,
}

/// Takes events as they happen. Called from the work itself: must be quick.
pub type Listener = Arc<dyn Fn(LiveEvent) + Send + Sync>;

/// Events as a stream: what is sent to the listener comes out of it. A reader that is slower than
/// the backup makes the stream longer, never the backup slower.
pub fn stream() -> (Listener, futures::stream::BoxStream<'static, LiveEvent>) {
    let (sender, events) = tokio::sync::mpsc::unbounded_channel();
    let listener: Listener = Arc::new(move |event| drop(sender.send(event)));
    let events = futures::stream::unfold(events, |mut events| async { events.recv().await.map(|e| (e, events)) });
    (listener, Box::pin(events))
}

/// Who listens, and what keys look like.
#[derive(Clone)]
pub(crate) struct Teller {
    listener: Option<Listener>,
    engine: Engine,
}

impl fmt::Debug for Teller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Teller").field("engine", &self.engine).finish_non_exhaustive()
    }
}

impl Teller {
    pub fn new(listener: Option<Listener>, engine: Engine) -> Self {
        Teller { listener, engine }
    }

    pub fn tell(&self, event: impl FnOnce() -> LiveEvent) {
        if let Some(listener) = &self.listener {
            listener(event());
        }
    }

    /// Tells what one flush has stored.
    pub fn wrote(&self, vault: &str, object: &str, changes: &[ChangeBatch], names: &HashMap<CollectionId, String>) {
        for change in changes.iter().filter(|_| self.listener.is_some()) {
            let batch = &change.batch;
            let name = names.get(&batch.collection).cloned().unwrap_or_else(|| batch.collection.to_string());
            let time = change.times.iter().max().copied().unwrap_or(EngineTime::ZERO);
            self.tell(|| {
                LiveEvent::Write(WriteEvent {
                    vault: vault.to_owned(),
                    collection: name,
                    ids: (0..batch.len()).map(|i| crate::registry::key_text(&self.engine, batch.key_of(i))).collect(),
                    deleted: batch.kind.is_tombstone(),
                    object: object.to_owned(),
                    time: time.to_string(),
                })
            });
        }
    }
}
