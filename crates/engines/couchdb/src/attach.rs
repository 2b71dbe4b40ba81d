//! Writing leaves that have attachments, with the content as it was stored.

use crate::client::{Failure, Request, document_path};
use crate::document::{self, About, Content};
use crate::inline;
use crate::leaf::{Attached, Leaf};
use crate::members::{Members, quoted};
use crate::revise;
use crate::writer::{Bulk, Writer};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::stream;
use futures::{StreamExt, TryStreamExt};
use model::{AttachmentRef, AttachmentStore, AttachmentStream, Batch, Error, Kind, Result, collect_attachment};
use reqwest::Method;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE};
use serde::Deserialize;
use std::io::Read;
use std::sync::Arc;
use std::time::SystemTime;

/// Bytes of one attachment that a server without multipart bodies is given: they are in memory as a
/// whole, twice.
const WHOLE_MAX: usize = 64 << 20;

/// Entries of one batch that are written side by side: the server waits for the disk after each, and does
/// that for all that come together at once.
const SIDE_BY_SIDE: usize = 4;

/// Where the content of an entry is.
#[derive(Clone)]
pub(crate) enum Source {
    Here(Bytes),
    Stored(Arc<dyn AttachmentStore>, AttachmentRef),
}

impl Source {
    /// Where the content of entry `i` of a batch is.
    pub fn of(batch: &Batch, i: usize, store: &Arc<dyn AttachmentStore>) -> Result<Source> {
        if batch.kind == Kind::Attachment {
            return Ok(Source::Stored(store.clone(), batch.attachments[i].clone()));
        }
        #[derive(Deserialize)]
        struct Data {
            data: String,
        }
        let data: Data = serde_json::from_slice(batch.body_of(i)).map_err(no_entry)?;
        Ok(Source::Here(inline::content(&data.data)?.into()))
    }

    async fn open(&self) -> Result<AttachmentStream> {
        match self {
            Source::Here(bytes) => Ok(stream::iter([Ok(bytes.clone())]).boxed()),
            Source::Stored(store, reference) => store.open(reference).await,
        }
    }

    /// Only the pieces that hold a part, and where it begins in these: the others need not be read.
    fn around(&self, from: u64, bytes: u64) -> Result<(Source, u64)> {
        let Source::Stored(store, reference) = self else { return Ok((self.clone(), from)) };
        let Some(pieces) = reference.pieces() else { return Ok((self.clone(), from)) };
        let (mut wanted, mut at, mut skip) = (Vec::new(), 0, 0);
        for piece in pieces? {
            let end = at + piece.content.length;
            if at < from + bytes && end > from {
                skip = if wanted.is_empty() { from - at } else { skip };
                wanted.push(piece);
            }
            at = end;
        }
        Ok((Source::Stored(store.clone(), AttachmentRef::of_pieces(&wanted)?), skip))
    }

    /// A part of the content.
    pub async fn part(&self, from: u64, bytes: u64) -> Result<AttachmentStream> {
        let (source, mut skip) = self.around(from, bytes)?;
        let mut left = bytes;
        let cut = source.open().await?.filter_map(move |piece| {
            let cut = piece.map(|mut piece| {
                let skipped = skip.min(piece.len() as u64);
                skip -= skipped;
                piece = piece.slice(skipped as usize..);
                piece.truncate(left.min(piece.len() as u64) as usize);
                left -= piece.len() as u64;
                piece
            });
            futures::future::ready(Some(cut).filter(|c| c.as_ref().map_or(true, |p| !p.is_empty())))
        });
        Ok(cut.boxed())
    }
}

/// What the entry of a document's attachments says.
pub(crate) fn about(entry: &[u8]) -> Result<About> {
    serde_json::from_slice(entry).map_err(no_entry)
}

fn no_entry(e: serde_json::Error) -> Error {
    Error::corrupt("the entry of a document's attachments is no JSON").caused_by(e)
}

/// One attachment with where its content is.
pub(crate) struct Placed<'a> {
    pub attached: Attached<'a>,
    pub from: u64,
}

impl Writer {
    /// Writes entries with attachments, those with these numbers.
    pub async fn attached(&self, batch: &Batch, numbers: &[usize], store: &Arc<dyn AttachmentStore>) -> Result<u64> {
        let writing = numbers.iter().map(|i| self.entry(batch, *i, store));
        let writing: Vec<_> = writing.collect();
        let together = if self.multipart { SIDE_BY_SIDE } else { 1 };
        stream::iter(writing).buffer_unordered(together).try_fold(0, |sum, bytes| async move { Ok(sum + bytes) }).await
    }

    /// Writes one entry with attachments; gives their bytes.
    async fn entry(&self, batch: &Batch, i: usize, store: &Arc<dyn AttachmentStore>) -> Result<u64> {
        let (about, source) = (about(batch.body_of(i))?, Source::of(batch, i, store)?);
        for leaf in document::leaves(about.body.get().as_bytes())? {
            if !leaf.attachments.is_empty() {
                self.leaf(&leaf, placed(&leaf, &about.contents)?, &source).await?;
            }
        }
        self.arrived(batch.key_of(i));
        Ok(about.contents.iter().map(|c| c.bytes).sum())
    }

    /// Writes a revision with its attachments as a new one on top of `parent`; gives whether somebody
    /// else was faster.
    pub async fn attached_anew(
        &self,
        leaf: &Leaf<'_>,
        contents: &[Content],
        source: &Source,
        parent: Option<&str>,
    ) -> Result<bool> {
        let all = placed(leaf, contents)?;
        if let Some(path) = document_path(&self.database, &leaf.id).filter(|_| self.multipart) {
            let json = revise::successor(&leaf.text, parent, follows(&all))?;
            return match self.multipart(&path, leaf, json, &all, source).await {
                Err(e) if e.to_string().contains(" 409 ") => Ok(true),
                other => other.map(|()| false),
            };
        }
        let mut list = Vec::with_capacity(all.len());
        for one in &all {
            let data = STANDARD.encode(content(one, source).await?);
            list.push((&*one.attached.name, format!("{{{},\"data\":\"{data}\"}}", one.attached.about)));
        }
        let mut bulk = Bulk::default();
        bulk.push(&revise::successor(&leaf.text, parent, list.into_iter())?);
        Ok(!self.bulk_new(bulk).await?.is_empty())
    }

    async fn leaf(&self, leaf: &Leaf<'_>, all: Vec<Placed<'_>>, source: &Source) -> Result<()> {
        match document_path(&self.database, &leaf.id) {
            Some(path) if self.multipart => {
                let json = with_attachments(&leaf.text, None, follows(&all))?;
                self.multipart(&format!("{path}?new_edits=false"), leaf, json, &all, source).await
            }
            _ => self.whole(leaf, &all, source).await,
        }
    }

    /// One request with the revision and all its content, as stored.
    async fn multipart(
        &self,
        path: &str,
        leaf: &Leaf<'_>,
        json: Vec<u8>,
        all: &[Placed<'_>],
        source: &Source,
    ) -> Result<()> {
        let boundary = boundary(&leaf.text);
        let mut heads: Vec<Bytes> = Vec::with_capacity(all.len());
        let mut before = format!("--{boundary}\r\nContent-Type: application/json\r\n\r\n").into_bytes();
        before.extend_from_slice(&json);
        for one in all {
            before.extend_from_slice(
                format!("\r\n--{boundary}\r\nContent-Length: {}\r\n", one.attached.stored).as_bytes(),
            );
            if let Some(encoding) = &one.attached.encoding {
                before.extend_from_slice(format!("Content-Encoding: {encoding}\r\n").as_bytes());
            }
            before.extend_from_slice(b"\r\n");
            heads.push(std::mem::take(&mut before).into());
        }
        let end = Bytes::from(format!("\r\n--{boundary}--"));
        let length = heads.iter().map(|h| h.len() as u64).sum::<u64>()
            + all.iter().map(|one| one.attached.stored).sum::<u64>()
            + end.len() as u64;
        let request = Request::new(Method::PUT, self.lasting(path));
        let client = &self.server.client;
        let sending = || async {
            let mut pieces: Vec<AttachmentStream> = Vec::with_capacity(2 * all.len() + 1);
            for (head, one) in heads.iter().zip(all) {
                pieces.push(stream::iter([Ok(head.clone())]).boxed());
                pieces.push(lazily(source.clone(), one.from, one.attached.stored));
            }
            pieces.push(stream::iter([Ok(end.clone())]).boxed());
            let built = client
                .build(&request)
                .await?
                .header(CONTENT_TYPE, format!("multipart/related; boundary=\"{boundary}\""))
                .header(CONTENT_LENGTH, length)
                .body(reqwest::Body::wrap_stream(stream::iter(pieces).flatten()));
            client.once(built).await.map(drop)
        };
        client
            .with_retries(|| async { sending().await.map_err(|e: Failure| e) })
            .await
            .map_err(|e| e.context(format!("writing the attachments of document {}", leaf.id)))
    }

    /// The revision with its content as text, for servers that take nothing else. They set `revpos` to
    /// the generation that content comes with: so content of older ones comes with these.
    async fn whole(&self, leaf: &Leaf<'_>, all: &[Placed<'_>], source: &Source) -> Result<()> {
        let (generation, ids) = Leaf::history(&leaf.text)?;
        let mut steps: Vec<u64> = all.iter().map(|one| one.attached.revpos.min(generation)).collect();
        let has_id = |step: u64| ((generation - step) as usize) < ids.len();
        steps.retain(|step| has_id(*step));
        steps.push(generation);
        steps.sort_unstable();
        steps.dedup();
        for (number, step) in steps.iter().enumerate() {
            let before = number.checked_sub(1).map_or(0, |n| steps[n]);
            let mut list = Vec::new();
            for one in all {
                let at = Some(one.attached.revpos.min(generation)).filter(|at| has_id(*at)).unwrap_or(generation);
                if at > *step {
                    continue;
                }
                let about = &one.attached.about;
                list.push((
                    &*one.attached.name,
                    match at > before {
                        true => format!("{{{about},\"data\":\"{}\"}}", STANDARD.encode(content(one, source).await?)),
                        false => format!("{{{about},\"stub\":true}}"),
                    },
                ));
            }
            let ancestor = (*step < generation).then(|| (*step, &ids[(generation - step) as usize..]));
            let mut bulk = Bulk::default();
            bulk.push(&with_attachments(&leaf.text, ancestor, list.into_iter())?);
            self.bulk(bulk.take(false)).await?;
        }
        Ok(())
    }
}

/// Where each attachment's content is, in the order of the content.
pub(crate) fn placed<'a>(leaf: &Leaf<'a>, contents: &[Content]) -> Result<Vec<Placed<'a>>> {
    let mut all = Vec::with_capacity(leaf.attachments.len());
    for attached in &leaf.attachments {
        let mut from = 0;
        let found = contents.iter().find(|c| {
            let is_it = c.digest == attached.digest && c.bytes == attached.stored;
            from += if is_it { 0 } else { c.bytes };
            is_it
        });
        if found.is_none() {
            return Err(Error::corrupt(format!(
                "the content of attachment {} of document {} is missing",
                attached.name, leaf.id
            )));
        }
        all.push(Placed { attached: attached.clone(), from });
    }
    all.sort_by_key(|one| one.from);
    Ok(all)
}

/// What a revision says of attachments whose content comes behind it.
fn follows<'a>(all: &'a [Placed<'_>]) -> impl Iterator<Item = (&'a str, String)> {
    all.iter().map(|one| (&*one.attached.name, format!("{{{},\"follows\":true}}", one.attached.about)))
}

/// The content of one attachment, opened when it is its turn.
fn lazily(source: Source, from: u64, bytes: u64) -> AttachmentStream {
    stream::once(async move { source.part(from, bytes).await }).try_flatten().boxed()
}

/// One attachment as users see it, whole.
async fn content(one: &Placed<'_>, source: &Source) -> Result<Vec<u8>> {
    let stored = collect_attachment(source.part(one.from, one.attached.stored).await?, WHOLE_MAX).await?;
    if one.attached.encoding.as_deref() != Some("gzip") {
        return Ok(stored.to_vec());
    }
    let mut plain = Vec::new();
    let read = flate2::read::GzDecoder::new(&stored[..]).take(WHOLE_MAX as u64).read_to_end(&mut plain);
    read.map_err(|e| Error::corrupt(format!("attachment {} is no gzip", one.attached.name)).caused_by(e))?;
    Ok(plain)
}

/// A revision with other words on its attachments; or an ancestor of it that has only these.
fn with_attachments<'a>(
    text: &str,
    ancestor: Option<(u64, &[String])>,
    list: impl Iterator<Item = (&'a str, String)>,
) -> Result<Vec<u8>> {
    let members: Members<'_> =
        serde_json::from_str(text).map_err(|e| Error::corrupt("a document is no JSON").caused_by(e))?;
    let mut out = Vec::with_capacity(text.len() + 256);
    let mut put = |name: &str, value: &[u8]| {
        out.push(if out.is_empty() { b'{' } else { b',' });
        quoted(name, &mut out);
        out.push(b':');
        out.extend_from_slice(value);
    };
    match ancestor {
        None => {
            for (name, value) in members.0.iter().filter(|(name, _)| name != "_attachments") {
                put(name, value.get().as_bytes());
            }
        }
        Some((generation, ids)) => {
            put("_id", members.get("_id").map_or("null", |v| v.get()).as_bytes());
            let first = ids.first().map_or("", |id| id);
            put("_rev", serde_json::json!(format!("{generation}-{first}")).to_string().as_bytes());
            put("_revisions", serde_json::json!({ "start": generation, "ids": ids }).to_string().as_bytes());
        }
    }
    let mut all = Vec::new();
    for (name, about) in list {
        all.push(if all.is_empty() { b'{' } else { b',' });
        quoted(name, &mut all);
        all.push(b':');
        all.extend_from_slice(about.as_bytes());
    }
    all.push(b'}');
    put("_attachments", &all);
    out.push(b'}');
    Ok(out)
}

/// What no content has in it but by a chance that there is not.
fn boundary(text: &str) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let mut hasher = blake3::Hasher::new();
    hasher.update(text.as_bytes()).update(&now.to_le_bytes());
    hasher.finalize().to_hex()[..40].to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use model::Piece;

    /// Gives what its places say.
    struct Places;

    #[async_trait::async_trait]
    impl AttachmentStore for Places {
        async fn put(&self, _: AttachmentStream) -> Result<AttachmentRef> {
            Err(Error::bug("unused"))
        }
        async fn open(&self, reference: &AttachmentRef) -> Result<AttachmentStream> {
            let all: Vec<_> = match reference.pieces() {
                Some(pieces) => pieces?.into_iter().map(|p| Ok(p.content.place.to_string().into())).collect(),
                None => vec![Ok(reference.place.to_string().into())],
            };
            assert!(all.iter().flatten().all(|piece: &Bytes| *piece != "unread"), "a piece that nobody wants");
            Ok(stream::iter(all).boxed())
        }
    }

    #[tokio::test]
    async fn parts_read_only_their_pieces() {
        let content = |text: &str| AttachmentRef { place: text.into(), digest: [0; 32], length: text.len() as u64 };
        let piece = |text: &str| Piece { name: text.into(), content: content(text) };
        let store: Arc<dyn AttachmentStore> = Arc::new(Places);
        let read = async |reference: AttachmentRef, from, bytes| {
            let part = Source::Stored(store.clone(), reference).part(from, bytes).await.unwrap();
            collect_attachment(part, 100).await.unwrap()
        };
        let pieces = ["unread", "one", "two", "unread"].map(piece);
        let all = AttachmentRef::of_pieces(&pieces).unwrap();
        for (from, bytes, expected) in [(6, 3, "one"), (9, 3, "two"), (6, 6, "onetwo"), (7, 4, "netw"), (8, 1, "e")] {
            assert_eq!(read(all.clone(), from, bytes).await, expected);
        }
        assert_eq!(read(all, 6, 0).await, "");
        assert_eq!(read(content("whole"), 1, 3).await, "hol");
    }
}
