//! The content of attachments, as stored, proven by the server's digests.

use crate::client::{Client, Request, document_path, segment};
use crate::document::Content;
use crate::leaf::Leaf;
use base64::Engine;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use md5::{Digest, Md5};
use model::{AttachmentStream, Error, ErrorKind, Result};
use reqwest::header::CONTENT_ENCODING;

/// How often one attachment is opened.
const OPENED: u32 = 5;

/// Where one piece of content is.
#[derive(Debug, Clone)]
struct Wanted {
    content: Content,
    document: String,
    name: String,
    path: Option<String>,
}

/// The contents of a document's attachments, one after the other.
pub(crate) fn stream_of(
    client: &Client,
    database: &str,
    leaves: &[Leaf<'_>],
    contents: Vec<Content>,
) -> AttachmentStream {
    let wanted = contents.into_iter().filter_map(|content| {
        let found = leaves.iter().find_map(|leaf| {
            let is_it = |digest: &str, bytes: u64| digest == content.digest && bytes == content.bytes;
            leaf.attachments.iter().find(|a| is_it(&a.digest, a.stored)).map(|a| (leaf, a))
        });
        let (leaf, attached) = found?;
        let path = document_path(database, &leaf.id)
            .map(|path| format!("{path}/{}?rev={}", segment(&attached.name), segment(&leaf.rev)))
            .filter(|_| attached.name != "." && attached.name != "..");
        Some(Wanted { content, document: leaf.id.to_string(), name: attached.name.to_string(), path })
    });
    let client = client.clone();
    let wanted: Vec<Wanted> = wanted.collect();
    stream::iter(wanted).flat_map(move |one| one_stream(client.clone(), one)).boxed()
}

struct Reading {
    client: Client,
    wanted: Wanted,
    open: Option<BoxStream<'static, reqwest::Result<Bytes>>>,
    tries: u32,
    /// Bytes that were given.
    given: u64,
    /// Bytes of an attachment that was opened again that were given already.
    skip: u64,
    hash: Md5,
}

fn one_stream(client: Client, wanted: Wanted) -> AttachmentStream {
    let reading = Reading { client, wanted, open: None, tries: 0, given: 0, skip: 0, hash: Md5::new() };
    stream::try_unfold(reading, |mut reading| async move { Ok(reading.next().await?.map(|piece| (piece, reading))) })
        .boxed()
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let Some(open) = &mut self.open else {
                self.open().await?;
                continue;
            };
            match open.next().await {
                Some(Ok(mut piece)) => {
                    let skip = self.skip.min(piece.len() as u64);
                    self.skip -= skip;
                    piece = piece.slice(skip as usize..);
                    if piece.is_empty() {
                        continue;
                    }
                    self.given += piece.len() as u64;
                    self.hash.update(&piece);
                    if self.given > self.wanted.content.bytes {
                        return Err(self.wrong());
                    }
                    return Ok(Some(piece));
                }
                Some(Err(e)) => {
                    let error = self.client.transport(&e);
                    self.again(error)?;
                }
                None if self.given < self.wanted.content.bytes => {
                    let error = Error::new(ErrorKind::Retry, format!("{} is cut off", self.what()));
                    self.again(error)?;
                }
                None => return self.prove().map(|()| None),
            }
        }
    }

    fn again(&mut self, error: Error) -> Result<()> {
        if self.tries >= OPENED {
            return Err(error);
        }
        self.open = None;
        Ok(())
    }

    async fn open(&mut self) -> Result<()> {
        self.tries += 1;
        let path = self.wanted.path.as_deref().ok_or_else(|| {
            Error::unsupported(format!("{} cannot be asked for: its name is a step in a path", self.what()))
                .hint("leave the document out with --exclude, or back up with --no-attachments")
        })?;
        let encoded = self.wanted.content.encoding.is_some();
        let request = Request { accept: Some("*/*"), gzip: encoded, ..Request::get(path) };
        let response = self.client.open(&request).await?;
        let encoding =
            response.headers().get(CONTENT_ENCODING).and_then(|v| v.to_str().ok()).filter(|e| *e != "identity");
        if encoding != self.wanted.content.encoding.as_deref() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{} does not come as it is stored: something on the way unpacks or packs it", self.what()),
            )
            .hint("connect to the server directly, without the proxy"));
        }
        self.open = Some(response.bytes_stream().boxed());
        self.skip = self.given;
        Ok(())
    }

    fn prove(&self) -> Result<()> {
        let Some(expected) = self.wanted.content.digest.strip_prefix("md5-") else { return Ok(()) };
        let found = base64::engine::general_purpose::STANDARD.encode(self.hash.clone().finalize());
        if found == expected { Ok(()) } else { Err(self.wrong()) }
    }

    fn wrong(&self) -> Error {
        Error::corrupt(format!("{} does not have its digest {}", self.what(), self.wanted.content.digest))
            .hint("fetch it with a browser: if that fails as well, the server has lost it")
    }

    fn what(&self) -> String {
        format!("attachment {} of document {}", self.wanted.name, self.wanted.document)
    }
}
