//! Reading one collection into batches.

use crate::check::{attachment_mark, attachments_path, document_path, inside};
use crate::files::{self, Stamp, blocking, changed, read_error};
use crate::json::validate_json;
use crate::keys::key_of;
use crate::layout::KeyScheme;
use crate::names::{ATTACHMENTS, show};
use crate::split::{Chunk, Failure, Form, Splitter};
use crate::walk::{self, Keys, Listing, Place};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use model::{
    AttachmentStore, AttachmentStream, Batch, BatchBuilder, CollectionId, Doc, Encoding, Error, Kind, Result, ScanItem,
    Selection, limits,
};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::mpsc::Sender;

/// What a plan tells the reading of one collection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Token {
    pub place: Place,
    pub key: KeyScheme,
    pub fingerprint: u64,
    pub selection: Selection,
}

/// The way to whoever reads.
pub(crate) type Out = Sender<Result<ScanItem>>;

/// Nobody reads any more: the work ends, and nobody hears of it.
fn unheard() -> Error {
    Error::new(model::ErrorKind::Interrupted, "reading was given up")
}

/// Reads a collection to its end.
pub(crate) async fn read_all(root: PathBuf, token: Token, store: Arc<dyn AttachmentStore>, out: Out) -> Result<()> {
    let token = Arc::new(token);
    let (blocking_token, blocking_out) = (token.clone(), out.clone());
    if let Some(form) = token.place.form {
        return blocking(move || read_file(&root, form, &blocking_token, &blocking_out)).await;
    }
    let blocking_root = root.clone();
    let (listing, mut fingerprint) = blocking(move || {
        let listing = walk::listing(&blocking_root, &blocking_token.place)?;
        let fingerprint = read_documents(&blocking_root, &blocking_token, &listing, &blocking_out)?;
        Ok((Arc::new(listing), fingerprint))
    })
    .await?;
    if !token.selection.no_attachments {
        let read = read_attachments(&root, &token, listing, store, &out).await?;
        fingerprint = fingerprint.wrapping_add(read);
    }
    match fingerprint == token.fingerprint {
        true => Ok(()),
        false => Err(changed(&token.place.entry)),
    }
}

/// A batch of documents that are read straight into it.
struct Filling {
    collection: CollectionId,
    body: BytesMut,
    keys: Vec<u8>,
    docs: Vec<Doc>,
}

impl Filling {
    fn take(&mut self) -> Batch {
        Batch {
            collection: self.collection.clone(),
            kind: Kind::Document,
            encoding: Encoding::Json,
            body: self.body.split().freeze(),
            keys: Some(Bytes::from(std::mem::take(&mut self.keys))),
            docs: std::mem::take(&mut self.docs),
            attachments: Vec::new(),
        }
    }

    fn send(&mut self, out: &Out) -> Result<()> {
        if self.docs.is_empty() {
            return Ok(());
        }
        out.blocking_send(Ok(ScanItem::Batch(self.take()))).map_err(|_| unheard())
    }
}

fn read_documents(root: &Path, token: &Token, listing: &Listing, out: &Out) -> Result<u64> {
    let (place, selection) = (&token.place, &token.selection);
    let folder = root.join(&place.entry);
    let keys = place.keys(&folder)?;
    let collection = CollectionId::new(&place.name);
    let mut batch = Filling { collection, body: BytesMut::new(), keys: Vec::new(), docs: Vec::new() };
    let mut fingerprint = 0u64;
    for i in 0..listing.documents.len() {
        let stem = listing.documents.get(i);
        let key = keys.key(stem);
        if !selection.takes_key(&place.name, &key) {
            continue;
        }
        let shown = || format!("{}/{}.json", place.entry, show(stem));
        let fail = |e| read_error(&shown(), e);
        let mut file = files::open(&document_path(&folder, stem)?).map_err(fail)?;
        let stamp = Stamp::of(&file.metadata().map_err(fail)?);
        fingerprint = fingerprint.wrapping_add(stamp.fingerprint(stem));
        let length = stamp.length as usize;
        if stamp.length > limits::DOCUMENT_MAX as u64 {
            if selection.skip_bad {
                continue;
            }
            return Err(changed(&shown()));
        }
        if batch.body.len() + length > limits::BATCH || batch.docs.len() == limits::BATCH_DOCUMENTS {
            batch.send(out)?;
        }
        if batch.docs.is_empty() {
            batch.body.reserve(limits::BATCH.max(length + 1));
        }
        let start = batch.body.len();
        if !files::append(&mut file, length, &mut batch.body).map_err(fail)? {
            return Err(changed(&shown()));
        }
        let twice =
            keys.by_the_rules(stem).is_none() && listing.documents.contains(crate::names::encode(stem).as_bytes());
        if twice || validate_json(&batch.body[start..]).is_err() {
            if !selection.skip_bad {
                return Err(changed(&shown()));
            }
            batch.body.truncate(start);
            continue;
        }
        let key_start = batch.keys.len() as u32;
        batch.keys.extend_from_slice(&key);
        let end = batch.body.len() as u32;
        batch.docs.push(Doc { start: start as u32, end, key_start, key_len: key.len() as u32 });
    }
    batch.send(out)?;
    Ok(fingerprint)
}

fn read_file(root: &Path, form: Form, token: &Token, out: &Out) -> Result<()> {
    let place = &token.place;
    let fail = |e| read_error(&place.entry, e);
    let file = files::open(&root.join(&place.entry)).map_err(fail)?;
    let is_as_planned = |file: &File| -> Result<()> {
        let stamp = Stamp::of(&file.metadata().map_err(fail)?);
        match stamp.fingerprint(place.entry.as_bytes()) == token.fingerprint {
            true => Ok(()),
            false => Err(changed(&place.entry)),
        }
    };
    is_as_planned(&file)?;
    let mut splitter = Splitter::new(file, form);
    let mut ordinal = 0;
    loop {
        match splitter.next_chunk() {
            Ok(Some(chunk)) => {
                let batch = batch_of(chunk, token, &mut ordinal)?;
                if !batch.is_empty() {
                    out.blocking_send(Ok(ScanItem::Batch(batch))).map_err(|_| unheard())?;
                }
            }
            Ok(None) => break,
            Err(Failure::Io(e)) => return Err(fail(e)),
            Err(Failure::Bad(_)) => return Err(changed(&place.entry)),
        }
    }
    is_as_planned(splitter.reader())
}

/// The documents of a chunk, where they lie.
fn batch_of(chunk: Chunk, token: &Token, ordinal: &mut u64) -> Result<Batch> {
    let place = &token.place;
    let whole = token.selection.takes_all_of(&place.name);
    let mut keys = Vec::new();
    let mut docs = Vec::with_capacity(chunk.items.len());
    for item in &chunk.items {
        if item.bad.is_some() && token.selection.skip_bad {
            continue;
        }
        *ordinal += 1;
        let start = keys.len();
        if item.bad.is_some() || !key_of(token.key, &chunk.bytes, item, *ordinal, &mut keys) {
            return Err(changed(&place.entry));
        }
        if !whole && !token.selection.takes_key(&place.name, &keys[start..]) {
            keys.truncate(start);
            continue;
        }
        docs.push(Doc {
            start: item.start as u32,
            end: item.end as u32,
            key_start: start as u32,
            key_len: (keys.len() - start) as u32,
        });
    }
    Ok(Batch {
        collection: CollectionId::new(&place.name),
        kind: Kind::Document,
        encoding: Encoding::Json,
        body: chunk.bytes,
        keys: Some(Bytes::from(keys)),
        docs,
        attachments: Vec::new(),
    })
}

async fn read_attachments(
    root: &Path,
    token: &Arc<Token>,
    listing: Arc<Listing>,
    store: Arc<dyn AttachmentStore>,
    out: &Out,
) -> Result<u64> {
    let place = &token.place;
    let folder = root.join(&place.entry);
    let (at, of, encoded) = (folder.clone(), place.clone(), place.encoded);
    let keys = blocking(move || of.keys(&at)).await?;
    let mut batch = BatchBuilder::new(CollectionId::new(&place.name), Kind::Attachment, Encoding::Json);
    let mut fingerprint = 0u64;
    for i in 0..listing.attached.len() {
        let stem = listing.attached.get(i);
        let document = keys.key(stem);
        if !token.selection.takes_key(&place.name, &document) {
            continue;
        }
        let path = attachments_path(&folder, stem)?;
        let shown = format!("{}/{}{ATTACHMENTS}", place.entry, show(stem));
        let (at, what) = (path.clone(), shown.clone());
        let (names, inner) = blocking(move || Ok((walk::attachments(&at, &what)?.0, Keys::of(&at, encoded)?))).await?;
        for name in names {
            let shown = format!("{shown}/{}", show(&name));
            let (content, stamp) = open_attachment(inside(&path, &name)?, shown).await?;
            fingerprint = fingerprint.wrapping_add(stamp.fingerprint(&attachment_mark(stem, &name)));
            let content = store.put(content).await?;
            let kept = inner.kept(&name);
            let plain = inner.key(&name);
            let key = match kept {
                Some((key, _)) => key.to_vec(),
                None => [&document, &b"/"[..], &plain].concat(),
            };
            match kept {
                Some((_, Some(body))) => batch.push_attachment(&key, body, content),
                _ => {
                    let name = key.strip_prefix(&document[..]).and_then(|k| k.strip_prefix(b"/")).unwrap_or(&plain);
                    let body = walk::describe_attachment(&document, name, stamp.length);
                    batch.push_attachment(&key, &body, content);
                }
            }
            if batch.bytes() >= limits::BATCH || batch.len() == limits::BATCH_DOCUMENTS {
                out.send(Ok(ScanItem::Batch(batch.take()))).await.map_err(|_| unheard())?;
            }
        }
    }
    if !batch.is_empty() {
        out.send(Ok(ScanItem::Batch(batch.take()))).await.map_err(|_| unheard())?;
    }
    Ok(fingerprint)
}

/// One piece of a file, and the file for reading on if that was not all.
fn piece(mut file: File, shown: &str, stamp: Stamp, before: u64) -> Result<(Bytes, Option<File>)> {
    let fail = |e| read_error(shown, e);
    let left = stamp.length.saturating_sub(before);
    let want = left.min(limits::BATCH as u64) as usize;
    let mut bytes = vec![0; want];
    file.read_exact(&mut bytes).map_err(|e| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => changed(shown),
        _ => fail(e),
    })?;
    if (want as u64) < left {
        return Ok((bytes.into(), Some(file)));
    }
    match Stamp::of(&file.metadata().map_err(fail)?) == stamp {
        true => Ok((bytes.into(), None)),
        false => Err(changed(shown)),
    }
}

/// The content of an attachment, at most [`limits::BATCH`] bytes of it in memory.
async fn open_attachment(path: PathBuf, shown: String) -> Result<(AttachmentStream, Stamp)> {
    let shown = Arc::new(shown);
    let what = shown.clone();
    let (stamp, first, rest) = blocking(move || {
        let file = files::open(&path).map_err(|e| read_error(&what, e))?;
        let stamp = Stamp::of(&file.metadata().map_err(|e| read_error(&what, e))?);
        let (first, rest) = piece(file, &what, stamp, 0)?;
        Ok((stamp, first, rest))
    })
    .await?;
    let done = first.len() as u64;
    let more = futures::stream::try_unfold((rest, done), move |(rest, done)| {
        let what = shown.clone();
        async move {
            let Some(file) = rest else { return Ok(None) };
            let (bytes, rest) = blocking(move || piece(file, &what, stamp, done)).await?;
            let done = done + bytes.len() as u64;
            Ok(Some((bytes, (rest, done))))
        }
    });
    Ok((futures::stream::once(async { Ok(first) }).chain(more).boxed(), stamp))
}
