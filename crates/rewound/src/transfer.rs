//! Writing collections to a target, with the digest of what is sent, and the proof afterwards.

use crate::metered::Metered;
use crate::progress::{Doing, Job};
use crate::proof::{self, Proof, Seen};
use crate::registry::Target;
use crate::stop::{Stop, interrupted};
use crate::translate;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use model::{
    AttachmentRef, AttachmentStore, Batch, CollectionInfo, Encoding, Error, ErrorKind, Kind, RestorePlan, Result,
    ResultExt, SinkSession,
};
use serde::Serialize;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vault::{Digest, HashKeys};

/// Collections that are written side by side.
const SIDE_BY_SIDE: usize = 3;

/// A piece of what is written.
pub(crate) enum Piece {
    /// What the collection is now.
    Catalog(CollectionInfo),
    /// Documents.
    Batch(Batch),
}

/// One collection that is to be written.
pub(crate) struct Load {
    /// What it is.
    pub info: CollectionInfo,
    /// Documents, where known.
    pub documents: Option<u64>,
    /// Bytes, attachments included, where known.
    pub bytes: Option<u64>,
    /// What the digest must be.
    pub expected: Option<Digest>,
    /// Whether only some of its documents are meant: then there must be at least one.
    pub by_key: bool,
    /// Its content, in order; nothing happens before it is polled.
    pub pieces: BoxStream<'static, Result<Piece>>,
}

/// One collection that was written.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CollectionReport {
    /// Its name at the source.
    pub name: String,
    /// Its name in the target.
    pub target: String,
    /// Documents.
    pub documents: u64,
    /// Attachments.
    pub attachments: u64,
    /// Bytes, attachments included.
    pub bytes: u64,
}

/// A collection that was sent, with what proves it.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    pub report: CollectionReport,
    pub digest: Digest,
    /// The same of what the source gave, if the target leaves some of it out.
    pub left_out: Digest,
    /// The digest of what reading back can prove of that.
    pub provable: Digest,
    /// When documents were there before: which ones were sent.
    pub seen: Option<Seen>,
    /// How its documents are encoded.
    pub encoding: Option<Encoding>,
}

/// What a restore or copy wrote.
#[derive(Debug, Default)]
pub struct Written {
    /// The collections.
    pub collections: Vec<CollectionReport>,
    /// How long the writing took.
    pub took: Duration,
    /// What reading back showed; none if it was not asked for.
    pub proof: Option<Proof>,
}

/// How to write.
pub(crate) struct Way<'a> {
    pub job: &'a Job,
    pub target: &'a Target,
    pub keys: &'a HashKeys,
    /// Whether the target may hold documents already that stay.
    pub merge: bool,
    /// Whether to read back.
    pub verify: bool,
    /// Told of attachments that have been written.
    pub release: &'a (dyn Fn(&[AttachmentRef]) + Sync),
}

impl Way<'_> {
    /// Writes everything and proves it. On any error the target is given up, with what can be taken
    /// back taken back.
    pub async fn write(
        &self,
        plan: RestorePlan,
        loads: Vec<Load>,
        attachments: Arc<dyn AttachmentStore>,
    ) -> Result<Written> {
        let began = Instant::now();
        let sum = |of: fn(&Load) -> Option<u64>| loads.iter().map(of).sum::<Option<u64>>();
        self.job.phase(Doing::Writing, sum(|l| l.documents), sum(|l| l.bytes));
        let names: Vec<_> = plan.collections.iter().map(|p| (p.info.id.clone(), p.target.clone())).collect();
        let attachments = Metered::in_front_of(attachments, self.job);
        // Not cut short: what a half-begun session made, nobody could take back.
        let session = self.target.sink.begin(plan, attachments).await?;
        let sent = match self.send_all(&*session, loads, &names).await {
            Ok(sent) => sent,
            Err(error) => return Err(self.give_up(session, error).await),
        };
        let last_step = session.last_step();
        session.finish().await?;
        let took = began.elapsed();
        let proof = self.prove(&sent).await;
        // Whatever the proof says: what was written stays, and must become what it was.
        if let Some(step) = last_step {
            step.await?;
        }
        Ok(Written { collections: sent.into_iter().map(|s| s.report).collect(), took, proof: proof? })
    }

    async fn prove(&self, sent: &[Sent]) -> Result<Option<Proof>> {
        if !self.verify {
            return Ok(None);
        }
        let proof = proof::prove(self.job, self.target, sent, self.keys).await;
        proof.map(Some).map_err(|e| match e.kind() {
            ErrorKind::Interrupted => {
                Error::new(ErrorKind::Interrupted, "interrupted: everything is written, but not proven")
                    .hint("restore once more to have it proven, or compare it yourself")
            }
            _ => e,
        })
    }

    async fn give_up(&self, session: Box<dyn SinkSession>, error: Error) -> Error {
        let left = session.abort().await.what;
        if error.kind() != ErrorKind::Interrupted {
            left.into_iter().for_each(|line| self.job.note(format!("left behind in the target: {line}")));
            return error;
        }
        let text = match left.is_empty() {
            true => "interrupted; what was written to the target has been taken back".to_owned(),
            false => format!("interrupted; left behind in the target: {}", left.join(", ")),
        };
        Error::new(ErrorKind::Interrupted, text).hint("run the same command again to start over")
    }

    /// Sends all collections, some side by side. After an error nothing new is sent, and what is
    /// being written is completed first: the target is never left in the middle of a write.
    async fn send_all(
        &self,
        session: &dyn SinkSession,
        loads: Vec<Load>,
        names: &[(model::CollectionId, String)],
    ) -> Result<Vec<Sent>> {
        let halt = Stop::new();
        let sending = loads.into_iter().map(|load| {
            let target = names.iter().find(|(id, _)| *id == load.info.id).map(|(_, name)| name.clone());
            let halt = halt.clone();
            async move {
                if halt.is_asked() {
                    return Err(interrupted());
                }
                let target = target.ok_or_else(|| Error::bug(format!("{} is not in the plan", load.info.name)))?;
                let name = load.info.name.clone();
                let result = self.send(session, load, target, &halt).await;
                if result.is_err() {
                    halt.ask();
                }
                match result {
                    Err(e) if e.kind() != ErrorKind::Interrupted => {
                        Err(e.context(format!("writing collection {name}")))
                    }
                    other => other,
                }
            }
        });
        let results: Vec<Result<Sent>> = stream::iter(sending).buffered(SIDE_BY_SIDE).collect().await;
        // The error that came first is the one that is not an interruption by it.
        let (mut sent, mut interruption) = (Vec::with_capacity(results.len()), None);
        for result in results {
            match result {
                Ok(one) => sent.push(one),
                Err(e) if e.kind() == ErrorKind::Interrupted => interruption = Some(e),
                Err(e) => return Err(e),
            }
        }
        interruption.map_or(Ok(sent), Err)
    }

    async fn send(&self, session: &dyn SinkSession, load: Load, target: String, halt: &Stop) -> Result<Sent> {
        let mut sent = Sent {
            report: CollectionReport { name: load.info.name.clone(), target, ..CollectionReport::default() },
            seen: self.merge.then(Seen::default),
            ..Sent::default()
        };
        session.catalog(&load.info).await?;
        let mut pieces = load.pieces;
        loop {
            let next = async { halt.or(async { pieces.next().await.transpose() }).await };
            match self.job.stop.or(next).await? {
                None => break,
                Some(Piece::Catalog(info)) => session.catalog(&info).await?,
                Some(Piece::Batch(batch)) if self.target.sink.leaves_out(&batch) => {
                    (0..batch.len()).for_each(|i| sent.left_out.add(self.keys.document(&batch, i)));
                }
                Some(Piece::Batch(batch)) => {
                    self.account(&mut sent, &batch);
                    let attachments = batch.attachments.clone();
                    session.write(translate::for_sink(&*self.target.sink, batch)).await?;
                    (self.release)(&attachments);
                }
            }
        }
        let mut given = sent.digest;
        given.merge(&sent.left_out);
        if let Some(expected) = load.expected
            && expected != given
        {
            return Err(Error::corrupt(format!(
                "the vault gave {} documents with digest {}, but the point says {} with {}",
                given.count,
                given.hex(),
                expected.count,
                expected.hex()
            ))
            .hint("nothing was restored; `rewound verify` says what is damaged, another point may be whole"));
        }
        if load.by_key && sent.digest.count == 0 {
            return Err(Error::missing("there is no document with this key at this time")
                .hint("`rewound find VAULT COLLECTION KEY` lists its versions"));
        }
        Ok(sent)
    }

    fn account(&self, sent: &mut Sent, batch: &Batch) {
        self.job.count(batch);
        sent.encoding = Some(batch.encoding);
        let provable = self.target.sink.provable(batch);
        let is_all = matches!(&provable, Some(Cow::Borrowed(_)));
        for i in 0..batch.len() {
            let document = self.keys.document(batch, i);
            sent.digest.add(document);
            if is_all {
                sent.provable.add(document);
            }
        }
        if let Some(Cow::Owned(provable)) = &provable {
            (0..provable.len()).for_each(|i| sent.provable.add(self.keys.document(provable, i)));
        }
        if let (Some(provable), Some(seen)) = (&provable, &mut sent.seen) {
            seen.add(provable);
        }
        if batch.kind == Kind::Attachment {
            sent.report.attachments += batch.len() as u64;
            sent.report.bytes += batch.attachments.iter().map(|a| a.length).sum::<u64>();
        } else {
            sent.report.documents += batch.len() as u64;
            sent.report.bytes += batch.raw_bytes();
        }
    }
}

/// Refuses losses that the user has not accepted.
pub(crate) fn check_losses(plan: &RestorePlan, allowed: bool) -> Result<()> {
    if allowed || plan.losses.is_empty() {
        return Ok(());
    }
    let lines: Vec<_> = plan.losses.iter().map(|l| format!("\n  {}: {}", l.what, l.why)).collect();
    Err(Error::input(format!("not everything can come back in this target:{}", lines.concat()))
        .hint("pass --allow-loss if that is acceptable, or restore into the engine that the data came from"))
}

/// Refuses kinds that the target has no words for.
pub(crate) fn check_kinds(options: &model::RestoreOptions, sink: &dyn model::Sink) -> Result<()> {
    let words = sink.kinds();
    if words.is_empty() && options.indexes != model::Indexes::Built {
        return Err(Error::input("--indexes: the target has none that it builds by itself")
            .hint("leave it out; it is for RavenDB"));
    }
    match options.kinds.iter().chain(&options.without_kinds).find(|word| !words.contains(&word.as_str())) {
        None => Ok(()),
        Some(word) => {
            Err(Error::input(format!("{word} is no kind of thing that the target knows")).hint(match words {
                [] => "leave --kinds and --without-kinds out; they are for RavenDB".to_owned(),
                words => format!("what it knows: {}", words.join(", ")),
            }))
        }
    }
}

/// Refuses names of collections that are not there.
pub(crate) fn check_names<'a>(
    options: &model::RestoreOptions,
    there: impl Iterator<Item = &'a str> + Clone,
    chosen: usize,
) -> Result<()> {
    let list = || {
        let names: Vec<&str> = there.clone().take(20).collect();
        match names.is_empty() {
            true => "there is none".to_owned(),
            false => format!("there are: {}", names.join(", ")),
        }
    };
    if chosen == 0 && !options.selection.only.is_empty() {
        return Err(Error::missing(format!("no collection matches {}", options.selection.only.join(", "))).hint(list()));
    }
    match options.rename.iter().find(|(from, _)| !there.clone().any(|name| name == from)) {
        Some((from, to)) => {
            Err(Error::missing(format!("--rename {from}={to}: there is no collection {from}")).hint(list()))
        }
        None => Ok(()),
    }
}

/// Adds what is being done to an error, except to interruptions.
pub(crate) fn while_doing<T>(result: Result<T>, doing: &str) -> Result<T> {
    match result {
        Err(e) if e.kind() == ErrorKind::Interrupted => Err(e),
        other => other.context(|| doing.to_owned()),
    }
}
