//! Documents of one engine in the encoding of another place: BSON as Extended JSON for what holds
//! nothing but JSON, and back. Nothing is lost by it, so that both ways together give the same
//! bytes.

use crate::spool::Spool;
use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use model::{
    AttachmentStore, Batch, BatchBuilder, ChangeStream, Description, Encoding, Engine, Error, Following, Kind, Loss,
    Part, Plan, Position, Result, ScanItem, ScanStream, Selection, Sink, Source, SourceState, Until,
};
use mongo::extjson::{self, Style};
use std::sync::Arc;

/// Levels of nesting that wrappers add to those of documents.
const WRAPPED: usize = 8;

/// Whether documents in this encoding are translated on their way to a sink, and read back in it.
pub(crate) fn is_needed(sink: &dyn Sink, encoding: Encoding) -> bool {
    encoding == Encoding::Bson && !sink.takes(encoding) && sink.takes(Encoding::Json)
}

/// A batch as a sink takes it.
pub(crate) fn for_sink(sink: &dyn Sink, batch: Batch) -> Batch {
    if is_needed(sink, batch.encoding) { to_json(&batch) } else { batch }
}

/// BSON as canonical Extended JSON; keys become text.
pub(crate) fn to_json(batch: &Batch) -> Batch {
    let mut built = BatchBuilder::new(batch.collection.clone(), batch.kind.clone(), Encoding::Json);
    let mut text = Vec::new();
    for i in 0..batch.len() {
        text.clear();
        if !batch.kind.is_tombstone() {
            extjson::write(batch.body_of(i), Style::Canonical, &mut text);
        }
        built.push(mongo::keys::text(batch.key_of(i)).as_bytes(), &text);
    }
    Batch { attachments: batch.attachments.clone(), ..built.take() }
}

/// What [`to_json`] made of BSON, as BSON again. A document that somebody wrote without an `_id` gets
/// its key as one.
pub(crate) fn to_bson(batch: &Batch) -> Result<Batch> {
    let mut built = BatchBuilder::new(batch.collection.clone(), batch.kind.clone(), Encoding::Bson);
    let mut document = Vec::new();
    for i in 0..batch.len() {
        document.clear();
        document_of(batch.key_of(i), batch.body_of(i), &mut document).map_err(|why| {
            let key = String::from_utf8_lossy(batch.key_of(i)).into_owned();
            Error::input(format!("the document {key:.100} cannot become BSON: {why}"))
                .hint("correct it, or move it out of the folder")
        })?;
        let key = match mongo::raw::doc(&document, 0) {
            Some(at) => &document[at.key_start as usize..][..at.key_len as usize],
            None => &document[..],
        };
        built.push(key, &document);
    }
    Ok(built.take())
}

/// Appends the BSON of one text.
pub(crate) fn document_of(key: &[u8], text: &[u8], document: &mut Vec<u8>) -> Result<(), String> {
    extjson::read(text, extjson::DEEPEST + WRAPPED, document)?;
    let has_key = mongo::raw::id_element(document).is_some();
    match has_key || mongo::keys::is_whole(key) {
        true => Ok(()),
        false => mongo::keys::add_id(document, key),
    }
}

/// A source that gives what it holds of another engine as that engine would: where it is going to a
/// sink that takes this.
pub(crate) async fn as_origin(source: Arc<dyn Source>, sink: &dyn Sink) -> Result<Arc<dyn Source>> {
    Ok(match source.origin().await? {
        Some(origin) if origin.0 == "mongodb" => {
            Arc::new(AsOrigin { source, origin, to_bson: sink.takes(Encoding::Bson) })
        }
        _ => source,
    })
}

/// A source as a target takes it: with its origin's documents, or with documents for people.
pub(crate) async fn for_target(source: Arc<dyn Source>, sink: &dyn Sink) -> Result<Arc<dyn Source>> {
    let source = as_origin(source, sink).await?;
    let engine = source.describe().await?.engine;
    Ok(if is_plain(&engine, sink) { Arc::new(crate::plain::PlainSource::new(source)) } else { source })
}

/// Whether documents of an engine lose on their way what only that understands.
pub(crate) fn is_plain(engine: &Engine, sink: &dyn Sink) -> bool {
    engine.0 == "couchdb" && sink.is_for_people()
}

/// What they lose by that.
pub(crate) fn losses(engine: &Engine, sink: &dyn Sink) -> Vec<Loss> {
    if is_plain(engine, sink) { couch::plain::losses() } else { Vec::new() }
}

/// Makes documents of a vault such ones.
pub(crate) struct Plain {
    from: Arc<dyn AttachmentStore>,
    /// Where their attachments are.
    pub to: Arc<Spool>,
}

impl Plain {
    /// What is needed for that, if it is to be done.
    pub fn of_engine(engine: &Engine, sink: &dyn Sink, from: Arc<dyn AttachmentStore>) -> Option<Plain> {
        is_plain(engine, sink).then(|| Plain { from, to: Arc::default() })
    }

    /// What becomes of a batch.
    pub async fn of(&self, batch: &Batch) -> Result<Vec<Batch>> {
        let made = couch::plain::entries(batch, &self.from, &*self.to, false).await?;
        Ok(made.into_iter().map(|made| made.batch).collect())
    }
}

struct AsOrigin {
    source: Arc<dyn Source>,
    origin: Engine,
    to_bson: bool,
}

#[async_trait]
impl Source for AsOrigin {
    async fn describe(&self) -> Result<Description> {
        Ok(Description { engine: self.origin.clone(), ..self.source.describe().await? })
    }

    async fn plan(&self, selection: &Selection, last: Option<&SourceState>) -> Result<Plan> {
        let mut plan = self.source.plan(selection, last).await?;
        if let (Plan::Scan { parts, .. }, true) = (&mut plan, self.to_bson) {
            // What is expected is what the texts take.
            parts.iter_mut().for_each(|part| part.bytes = None);
        }
        Ok(plan)
    }

    fn side_by_side(&self) -> usize {
        self.source.side_by_side()
    }

    async fn read(&self, part: &Part, attachments: Arc<dyn AttachmentStore>) -> Result<ScanStream> {
        let items = self.source.read(part, attachments).await?;
        let to_bson = self.to_bson;
        let translated = move |item| match item {
            ScanItem::Batch(batch) if to_bson && batch.kind == Kind::Document => {
                self::to_bson(&batch).map(ScanItem::Batch)
            }
            other => Ok(other),
        };
        Ok(items.and_then(move |item| std::future::ready(translated(item))).boxed())
    }

    async fn changes(&self, from: &Following, until: Until, store: Arc<dyn AttachmentStore>) -> Result<ChangeStream> {
        self.source.changes(from, until, store).await
    }

    async fn durable(&self, upto: &Position) -> Result<()> {
        self.source.durable(upto).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use model::CollectionId;

    fn batch(documents: &[&[u8]]) -> Batch {
        let mut built = BatchBuilder::new(CollectionId::new("c"), Kind::Document, Encoding::Bson);
        for document in documents {
            let at = mongo::raw::doc(document, 0).unwrap();
            built.push(&document[at.key_start as usize..][..at.key_len as usize], document);
        }
        built.take()
    }

    #[test]
    fn both_ways_give_the_same_bytes() {
        let documents: [&[u8]; 4] = [
            b"\x17\0\0\0\x02_id\0\x02\0\0\0a\0\x10b\0\x01\0\0\0\0",
            b"\x0e\0\0\0\x10_id\0\x01\0\0\0\0",
            // `_id` behind, and none at all.
            b"\x15\0\0\0\x10b\0\x01\0\0\0\x10_id\0\x02\0\0\0\0",
            b"\x0c\0\0\0\x10b\0\x01\0\0\0\0",
        ];
        let sent = batch(&documents[..]);
        let json = to_json(&sent);
        assert_eq!(json.body_of(0), br#"{"_id":"a","b":{"$numberInt":"1"}}"#);
        assert_eq!([json.key_of(0), json.key_of(1)], [&b"a"[..], b"1"]);
        let back = to_bson(&json).unwrap();
        for (i, document) in documents.iter().enumerate() {
            assert_eq!((back.key_of(i), back.body_of(i)), (sent.key_of(i), *document));
        }
    }

    #[test]
    fn what_people_add_gets_an_id() {
        let mut built = BatchBuilder::new(CollectionId::new("c"), Kind::Document, Encoding::Json);
        built.push(b"mine", b"{ \"a\": 1 }");
        let bson = to_bson(&built.take()).unwrap();
        assert_eq!(bson.key_of(0), b"\x02_id\0\x05\0\0\0mine\0");
        let mut built = BatchBuilder::new(CollectionId::new("c"), Kind::Document, Encoding::Json);
        built.push(b"mine", b"[1]");
        assert!(to_bson(&built.take()).unwrap_err().to_string().contains("mine"));
    }
}
