//! What a job tells while it works.

use crate::Stop;
use model::{Batch, Kind, Seams};
use serde::Serialize;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// What is being done right now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Doing {
    /// Looking at the source or the target before anything is written.
    #[default]
    Checking,
    /// Reading the source into vaults.
    Reading,
    /// Reading what has changed.
    Following,
    /// Completing a point.
    Committing,
    /// Writing to a target.
    Writing,
    /// Reading a target back and comparing it.
    Proving,
    /// Checking a vault.
    Verifying,
}

/// How far the job has come with what it is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// What is being done.
    pub doing: Doing,
    /// Documents (when verifying: objects) so far, attachments not counted.
    pub documents: u64,
    /// Documents expected, where known.
    pub total_documents: Option<u64>,
    /// Bytes so far, attachments included.
    pub bytes: u64,
    /// Bytes expected, where known.
    pub total_bytes: Option<u64>,
}

/// Something that a job tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Something else is being done from now on.
    Phase(Progress),
    /// It goes on.
    Progress(Progress),
    /// Something the user should know; the work goes on.
    Note(String),
}

/// Listens to a job. Called often: must be quick.
pub trait Observer: Send + Sync {
    /// Something happened.
    fn on(&self, event: Event);
}

/// Listens to nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoObserver;

impl Observer for NoObserver {
    fn on(&self, _: Event) {}
}

/// What every piece of work shares: who listens, who may stop it, clock and randomness.
#[derive(Clone)]
pub struct Job {
    /// Asks the work to stop.
    pub stop: Stop,
    /// Clock and randomness.
    pub seams: Seams,
    observer: Arc<dyn Observer>,
    meter: Arc<Meter>,
}

#[derive(Debug, Default)]
struct Meter {
    /// What is being done, with the totals.
    phase: Mutex<Progress>,
    documents: AtomicU64,
    bytes: AtomicU64,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("stop", &self.stop).field("meter", &self.meter).finish_non_exhaustive()
    }
}

impl Job {
    /// A job with the machine's clock and randomness.
    pub fn new(observer: Arc<dyn Observer>, stop: Stop) -> Self {
        Job { stop, seams: Seams::system(), observer, meter: Arc::default() }
    }

    /// Tells the user something.
    pub fn note(&self, text: impl Into<String>) {
        self.observer.on(Event::Note(text.into()));
    }

    /// Starts another phase, with counters at zero.
    pub(crate) fn phase(&self, doing: Doing, total_documents: Option<u64>, total_bytes: Option<u64>) {
        let progress = Progress { doing, documents: 0, total_documents, bytes: 0, total_bytes };
        *self.meter.phase.lock().unwrap_or_else(|e| e.into_inner()) = progress;
        self.meter.documents.store(0, Ordering::Relaxed);
        self.meter.bytes.store(0, Ordering::Relaxed);
        self.observer.on(Event::Phase(progress));
    }

    /// Counts a batch. The content of attachments is counted as it flows.
    pub(crate) fn count(&self, batch: &Batch) {
        let documents = if batch.kind == Kind::Attachment { 0 } else { batch.len() as u64 };
        let bytes = if batch.kind == Kind::Attachment { 0 } else { batch.raw_bytes() };
        self.advance(documents, bytes);
    }

    /// Counts documents and bytes.
    pub(crate) fn advance(&self, documents: u64, bytes: u64) {
        self.meter.documents.fetch_add(documents, Ordering::Relaxed);
        self.meter.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.observer.on(Event::Progress(self.progress()));
    }

    /// Where the counters stand.
    pub(crate) fn progress(&self) -> Progress {
        let phase = *self.meter.phase.lock().unwrap_or_else(|e| e.into_inner());
        let documents = self.meter.documents.load(Ordering::Relaxed);
        let bytes = self.meter.bytes.load(Ordering::Relaxed);
        Progress { documents, bytes, ..phase }
    }

    /// Puts the counters back to where they stood: something is going to be read again.
    pub(crate) fn rewind(&self, to: Progress) {
        self.meter.documents.store(to.documents, Ordering::Relaxed);
        self.meter.bytes.store(to.bytes, Ordering::Relaxed);
    }

    /// Sets the counters.
    pub(crate) fn set(&self, progress: Progress) {
        *self.meter.phase.lock().unwrap_or_else(|e| e.into_inner()) = progress;
        self.rewind(progress);
        self.observer.on(Event::Progress(progress));
    }
}
