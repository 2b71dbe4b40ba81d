//! Documents for people and for other programs: what wins of each, without its history, and its
//! attachments one by one.

use crate::attach::{self, Source, placed};
use crate::document;
use crate::inline;
use crate::leaf::Leaf;
use crate::revise;
use flate2::write::MultiGzDecoder;
use futures::{StreamExt, TryStreamExt};
use model::{
    AttachmentStore, AttachmentStream, Batch, BatchBuilder, CollectionId, Encoding, Error, Kind, Loss, Result,
};
use serde_json::json;
use std::io::Write;
use std::sync::Arc;

/// Packed bytes that are unpacked at a time: what comes out is at most some thousand times that.
const UNPACKED: usize = 4 << 10;

/// What documents lose by it.
pub fn losses() -> Vec<Loss> {
    let loss = |what: &str, why: &str| Loss { what: what.into(), why: why.into() };
    vec![
        loss("conflicts, deletions and histories", "a folder has what wins of each document, with its _rev"),
        loss("_security, settings and _local documents", "a folder has no place for them"),
    ]
}

/// Entries made of others: with each, the number of the one that it was made of.
#[derive(Debug)]
pub struct Made {
    /// The entries.
    pub batch: Batch,
    /// Numbers of the entries that these were made of.
    pub of: Vec<usize>,
}

struct Making {
    batch: BatchBuilder,
    of: Vec<usize>,
}

impl Making {
    fn new(collection: &CollectionId, kind: Kind) -> Making {
        Making { batch: BatchBuilder::new(collection.clone(), kind, Encoding::Json), of: Vec::new() }
    }

    fn push(&mut self, i: usize, key: &[u8], body: &[u8]) {
        self.batch.push(key, body);
        self.of.push(i);
    }

    fn done(mut self) -> Option<Made> {
        (!self.of.is_empty()).then(|| Made { batch: self.batch.take(), of: self.of })
    }
}

/// What a batch of documents, attachments or deletions is for people; nothing if there is no place for it.
///
/// Content comes from one store and goes to the other. With `deletions`, what is gone is told: documents,
/// and which attachments of a document are left, as `{"document":…,"keep":[…]}`.
pub async fn entries(
    batch: &Batch,
    from: &Arc<dyn AttachmentStore>,
    to: &dyn AttachmentStore,
    deletions: bool,
) -> Result<Vec<Made>> {
    let id = &batch.collection;
    let mut documents = Making::new(id, Kind::Document);
    let mut gone = Making::new(id, Kind::Tombstone);
    let mut attachments = Making::new(id, Kind::Attachment);
    let mut left = Making::new(id, Kind::tombstone_of(Kind::Attachment.space()));
    for i in 0..batch.len() {
        let key = batch.key_of(i);
        match &batch.kind {
            Kind::Document => match revise::winner(document::leaves(batch.body_of(i))?) {
                Some(leaf) if !leaf.deleted => documents.push(i, key, revise::plain(&leaf.text)?.as_bytes()),
                _ => gone.push(i, key, b""),
            },
            Kind::Tombstone => gone.push(i, key, b""),
            Kind::TombstoneOf(space) if space == inline::kind().space() => left.push(i, key, &keep(key, &[])),
            kind if *kind == Kind::Attachment || *kind == inline::kind() => {
                let about = attach::about(batch.body_of(i))?;
                let winner = revise::winner(document::leaves(about.body.get().as_bytes())?);
                let Some(leaf) = winner.filter(|leaf| !leaf.deleted) else {
                    left.push(i, key, &keep(key, &[]));
                    continue;
                };
                let source = Source::of(batch, i, from)?;
                for one in placed(&leaf, &about.contents)? {
                    let content = source.part(one.from, one.attached.stored).await?;
                    let content = match one.attached.encoding.as_deref() {
                        Some("gzip") => unpacked(content, &one.attached.name),
                        _ => content,
                    };
                    let content = to.put(content).await?;
                    let said = json!({
                        "document": leaf.id, "name": one.attached.name, "length": content.length,
                        "content_type": one.attached.content_type(),
                    });
                    let name = [key, b"/", one.attached.name.as_bytes()].concat();
                    attachments.batch.push_attachment(&name, said.to_string().as_bytes(), content);
                    attachments.of.push(i);
                }
                left.push(i, key, &keep(key, &names(&leaf)));
            }
            _ => {}
        }
    }
    if !deletions {
        (gone.of, left.of) = (Vec::new(), Vec::new());
    }
    Ok([documents, gone, attachments, left].into_iter().filter_map(Making::done).collect())
}

fn names<'a>(leaf: &'a Leaf<'_>) -> Vec<&'a str> {
    leaf.attachments.iter().map(|one| &*one.name).collect()
}

fn keep(document: &[u8], names: &[&str]) -> Vec<u8> {
    json!({ "document": String::from_utf8_lossy(document), "keep": names }).to_string().into_bytes()
}

/// Content as it was before it was packed.
fn unpacked(content: AttachmentStream, name: &str) -> AttachmentStream {
    let name = name.to_owned();
    let small = content.map_ok(|piece| {
        let cuts = (0..piece.len()).step_by(UNPACKED);
        let cuts: Vec<_> = cuts.map(|at| Ok(piece.slice(at..(at + UNPACKED).min(piece.len())))).collect();
        futures::stream::iter(cuts)
    });
    let small = small.try_flatten().map(Some).chain(futures::stream::iter([None]));
    let decoder = MultiGzDecoder::new(Vec::new());
    small
        .scan((decoder, false), move |(decoder, failed), piece| {
            if *failed {
                return futures::future::ready(None);
            }
            let step = match piece {
                Some(Ok(piece)) => decoder.write_all(&piece),
                Some(Err(e)) => {
                    *failed = true;
                    return futures::future::ready(Some(Err(e)));
                }
                None => decoder.try_finish(),
            };
            let out = match step {
                Ok(()) => Ok(std::mem::take(decoder.get_mut()).into()),
                Err(e) => Err(Error::corrupt(format!("attachment {name} is no gzip")).caused_by(e)),
            };
            *failed = out.is_err();
            futures::future::ready(Some(out))
        })
        .boxed()
}
