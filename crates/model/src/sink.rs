//! Where documents go to.

use crate::{
    AttachmentStore, Batch, CollectionInfo, Description, Encoding, Leftovers, RestoreOptions, RestorePlan,
    RestoreReport, Result,
};
use async_trait::async_trait;
use futures::future::BoxFuture;
use std::borrow::Cow;
use std::sync::Arc;

/// Tells of document `i` of a batch whether the target deletes it by itself as soon as it may.
pub type Expired = Box<dyn Fn(&Batch, usize) -> bool + Send + Sync>;

/// A database, a dump or a folder that documents can be written to.
#[async_trait]
pub trait Sink: Send + Sync {
    /// What a restore of `what` would do here, without side effects: phases, names, losses. Refuses
    /// what cannot work, and a target that holds data if the options say so, naming that data.
    async fn prepare(&self, what: &Description, options: &RestoreOptions) -> Result<RestorePlan>;

    /// The words for kinds of things that can be restored without others; none if there are no such.
    fn kinds(&self) -> &'static [&'static str] {
        &[]
    }

    /// Whether it takes bodies in this encoding. What it does not take is translated before, where
    /// nothing is lost by that.
    fn takes(&self, encoding: Encoding) -> bool {
        let _ = encoding;
        true
    }

    /// Which documents of a collection the target would delete by itself once they are there, because
    /// their time has passed by `now_millis` (milliseconds since 1970 UTC); none if it keeps them all.
    fn expired(&self, info: &CollectionInfo, now_millis: i64) -> Option<Expired> {
        let _ = (info, now_millis);
        None
    }

    /// Whether a batch does not belong into this target: it is neither sent nor expected there.
    fn leaves_out(&self, batch: &Batch) -> bool {
        let _ = batch;
        false
    }

    /// What of a batch can be proven by reading it back: without what the target makes anew of each
    /// document, such as its own version numbers. None if that is nothing of it.
    fn provable<'a>(&self, batch: &'a Batch) -> Option<Cow<'a, Batch>> {
        Some(Cow::Borrowed(batch))
    }

    /// Whether it holds documents for people and for other programs: without what only their engine
    /// understands, such as histories of revisions.
    fn is_for_people(&self) -> bool {
        false
    }

    /// Whether it gives what only the engine's own server can look into back to that server.
    fn takes_opaque(&self) -> bool {
        false
    }

    /// Whether it can do what [`RestoreOptions::as_new_revisions`] asks for.
    fn writes_new_revisions(&self) -> bool {
        false
    }

    /// What looks at everything that a plan would write, and tells more than the plan can. None if
    /// there is nothing to be told that needs that.
    async fn rehearse(&self, plan: &RestorePlan) -> Result<Option<Box<dyn Rehearsal>>> {
        let _ = plan;
        Ok(None)
    }

    /// Whether the content of a batch's attachments may still be asked for once the batch has been written:
    /// until the end, then. Otherwise whoever sends it forgets it.
    fn asks_again(&self, batch: &Batch) -> bool {
        let _ = batch;
        false
    }

    /// Starts writing. Content of attachments is taken from `attachments`.
    async fn begin(&self, plan: RestorePlan, attachments: Arc<dyn AttachmentStore>) -> Result<Box<dyn SinkSession>>;
}

/// A restore that writes nothing.
#[async_trait]
pub trait Rehearsal: Send + Sync {
    /// Whether entries of this kind space ([`Kind::space`](crate::Kind::space)) are to be shown at all.
    fn looks_at(&self, space: &str) -> bool;

    /// Looks at what would be written.
    async fn see(&self, batch: &Batch) -> Result<()>;

    /// What would be done, one line for each thing, for people.
    async fn lines(self: Box<Self>) -> Result<Vec<String>>;
}

/// A restore under way.
#[async_trait]
pub trait SinkSession: Send + Sync {
    /// Makes or updates a collection. Comes before its first batch.
    async fn catalog(&self, collection: &CollectionInfo) -> Result<()>;

    /// Writes documents; writing the same batch twice has the effect of writing it once. Batches of
    /// an ordered collection come in order, others in any order and side by side.
    async fn write(&self, batch: Batch) -> Result<()>;

    /// What must wait until what was written has been read back, as it changes that: telling a server
    /// to delete documents whose time has passed. Asked for before `finish`, done after the proof.
    fn last_step(&self) -> Option<BoxFuture<'static, Result<()>>> {
        None
    }

    /// Completes everything and makes it durable, but for the last step.
    async fn finish(self: Box<Self>) -> Result<RestoreReport>;

    /// Gives up, taking back what can be taken back.
    async fn abort(self: Box<Self>) -> Leftovers;
}
