//! Lists of the contents that a chain refers to: which objects a prune must keep for its flushes, and what
//! the next backup need not fetch again.
//!
//! A list is written before the first flush that refers to what is in it, and counts as long as an object of
//! its chain is kept that holds this flush or a later one: a content is listed once, but may be referred to
//! again. When flushes are rolled up, their lists are written as one, and no longer count.

use crate::crypto::Audience;
use crate::direct::Direct;
use crate::hash::{hex, unhex32};
use crate::name::{ContentsName, HISTORY};
use crate::objects::{blocking, compress};
use crate::signed;
use crate::vault::Inner;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::VerifyingKey;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use model::{AttachmentRef, ChangeBatch, CollectionId, ContentDigest, Error, Result, ResultExt};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::io::Read;

/// What the signature of a list is bound to.
const CONTEXT: &str = "rewound format 1 log contents";
/// Bytes of a list that are read at most, decompressed (1 GiB).
const LIST_MAX: u64 = 1 << 30;
/// Lists that are read side by side.
const SIDE_BY_SIDE: usize = 16;

/// Contents that flushes of a chain refer to, from one of them on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentList {
    /// Always `log contents`.
    rewound: String,
    /// Version of the format.
    format: u32,
    /// Tag of the source.
    source: String,
    /// The run whose chain it is.
    run: String,
    /// Number of the first flush that refers to any of them.
    first: u32,
    /// Number of the last flush that is the first one to refer to some of them.
    last: u32,
    /// The contents.
    pub(crate) contents: Vec<ListedContent>,
}

/// One content, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedContent {
    /// The collection of the attachment.
    pub(crate) collection: CollectionId,
    /// Its key, in base64.
    key: String,
    /// What the source calls this piece of its content; nothing, if it is the whole.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) name: String,
    /// blake3 of the content, in hex.
    digest: String,
    /// Bytes of the content.
    pub(crate) length: u64,
    /// Where it is.
    pub(crate) place: Direct,
}

/// Tells one mention of a content from others.
pub(super) type Mention = [u8; 32];

impl ContentList {
    /// Paths of the objects that hold the contents.
    pub(crate) fn objects(&self) -> impl Iterator<Item = &str> {
        self.contents.iter().flat_map(|content| content.place.objects())
    }
}

impl ListedContent {
    /// The key of the attachment.
    pub(crate) fn key(&self) -> Result<Vec<u8>> {
        BASE64.decode(&self.key).map_err(|_| Error::corrupt("a key in a list of contents is no base64"))
    }

    /// blake3 of the content.
    pub(crate) fn digest(&self) -> Result<ContentDigest> {
        unhex32(&self.digest).ok_or_else(|| Error::corrupt("a digest in a list of contents is no hash"))
    }

    fn of(collection: &CollectionId, key: &[u8], name: String, content: &AttachmentRef) -> Option<Result<Self>> {
        let place = Direct::read(&content.place)?;
        Some(place.map(|place| ListedContent {
            collection: collection.clone(),
            key: BASE64.encode(key),
            name,
            digest: hex(&content.digest),
            length: content.length,
            place,
        }))
    }

    fn mention(&self) -> Result<Mention> {
        let mut hasher = blake3::Hasher::new();
        for part in [self.collection.as_str(), &self.key, &self.name, &self.place.place()?] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        Ok(*hasher.finalize().as_bytes())
    }
}

/// The contents that changes refer to and that are objects of their own, but for those that were
/// mentioned before.
pub(super) fn new_in(changes: &[ChangeBatch], before: &HashSet<Mention>) -> Result<Vec<(Mention, ListedContent)>> {
    let mut new = Vec::new();
    let mut seen = HashSet::new();
    for batch in changes.iter().map(|change| &change.batch).filter(|batch| !batch.attachments.is_empty()) {
        for (i, content) in batch.attachments.iter().enumerate() {
            let pieces = match content.pieces() {
                Some(pieces) => pieces?.into_iter().map(|piece| (piece.name, piece.content)).collect(),
                None => vec![(String::new(), content.clone())],
            };
            for (name, content) in pieces {
                let Some(listed) = ListedContent::of(&batch.collection, batch.key_of(i), name, &content) else {
                    continue;
                };
                let listed = listed?;
                let mention = listed.mention()?;
                if !before.contains(&mention) && seen.insert(mention) {
                    new.push((mention, listed));
                }
            }
        }
    }
    Ok(new)
}

/// Writes the list of what some flushes, from one up to another, are the first ones to refer to: durably, and
/// with it all that was stored before.
pub(super) async fn store(
    vault: &Inner,
    (source, run): (&str, &str),
    (first, last): (u32, u32),
    contents: Vec<ListedContent>,
) -> Result<u64> {
    let list = ContentList {
        rewound: "log contents".into(),
        format: crate::vault_file::FORMAT,
        source: source.to_owned(),
        run: run.to_owned(),
        first,
        last,
        contents,
    };
    let signed = signed::write(vault.signing()?, CONTEXT, &list)?;
    let cipher = vault.objects()?.cipher;
    let encrypted = !cipher.is_plain();
    let sealed = blocking(move || Ok(cipher.seal(Audience::Writers, compress(&signed, 3)?)?.0)).await?;
    let stored = *blake3::hash(&sealed).as_bytes();
    let name = ContentsName { source: source.to_owned(), run: run.to_owned(), first, last, stored, encrypted };
    let bytes = sealed.len() as u64;
    vault.storage.create(&name.to_string(), sealed.into()).await?;
    vault.storage.sync().await?;
    Ok(bytes)
}

/// Reads a list.
pub(crate) async fn read(vault: &Inner, name: &ContentsName) -> Result<ContentList> {
    let path = name.to_string();
    let stored = vault.storage.read(&path).await?;
    let (objects, key, name) = (vault.objects()?, vault.file.writer_key()?, name.clone());
    let reading = blocking(move || {
        objects.check(&name.to_string(), &stored, &name.stored)?;
        parse(&objects.cipher.open_into(stored, &objects.buffers)?, &name, &key)
    });
    reading.await.context(|| format!("reading {path}"))
}

/// Reads the decrypted bytes of the list with a name.
pub(crate) fn parse(plain: &[u8], name: &ContentsName, key: &VerifyingKey) -> Result<ContentList> {
    let list = checked(plain, key)?;
    if (&list.source, &list.run, list.first, list.last) != (&name.source, &name.run, name.first, name.last) {
        return Err(Error::corrupt("it is another list's content under this name"));
    }
    Ok(list)
}

/// Reads the decrypted bytes of a list of contents: for tools and tests that have nothing but the bytes and the
/// writer's key, as `vault.json` shows it. Never panics, whatever the bytes.
pub fn read_contents(plain: &[u8], writer: &str) -> Result<ContentList> {
    checked(plain, &crate::vault_file::verifying_key(writer)?)
}

fn checked(plain: &[u8], key: &VerifyingKey) -> Result<ContentList> {
    let mut signed = Vec::new();
    let failed = |e: std::io::Error| Error::corrupt("it cannot be decompressed").caused_by(e);
    let decoder = zstd::stream::read::Decoder::new(plain).map_err(failed)?;
    decoder.take(LIST_MAX).read_to_end(&mut signed).map_err(failed)?;
    let list: ContentList = signed::read(key, CONTEXT, &signed)?;
    if list.format > crate::vault_file::FORMAT {
        return Err(Error::unsupported(format!("it has format {}", list.format)).hint("install a newer rewound"));
    }
    Ok(list)
}

/// The names of the lists of a source that count.
pub(crate) async fn names(vault: &Inner, source: &str) -> Result<Vec<ContentsName>> {
    let entries = vault.storage.list(&format!("{HISTORY}{source}/contents/")).await?;
    let names = entries.try_filter_map(|entry| std::future::ready(Ok(ContentsName::parse(&entry.name))));
    Ok(current(names.try_collect().await?))
}

/// Those of some lists that no other one covers, sorted by their chains and flushes.
pub(crate) fn current(mut names: Vec<ContentsName>) -> Vec<ContentsName> {
    names.sort_unstable_by(|a, b| (&a.source, &a.run, a.first, b.last).cmp(&(&b.source, &b.run, b.first, a.last)));
    let mut current: Vec<ContentsName> = Vec::with_capacity(names.len());
    for name in names {
        // Ranges are of flushes that stand one after the other: who covers it is the last one that was taken.
        if !current.last().is_some_and(|last| last.covers(&name)) {
            current.push(name);
        }
    }
    current
}

/// Reads lists, several side by side, and gives them in order.
pub(crate) fn read_all(
    vault: &Inner,
    names: Vec<ContentsName>,
) -> impl Stream<Item = (ContentsName, Result<ContentList>)> + '_ {
    stream::iter(names).map(move |name| async move { (name.clone(), read(vault, &name).await) }).buffered(SIDE_BY_SIDE)
}
