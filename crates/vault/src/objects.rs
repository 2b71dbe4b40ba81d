//! Reading and writing single objects: naming, finding duplicates, checking, encrypting.

use crate::buffers::Buffers;
use crate::compress::Compressor;
use crate::content;
use crate::crypto::{Audience, Cipher};
use crate::filter::Encoded;
use crate::hash::HashKeys;
use crate::manifest::{FilterRef, Layer};
use crate::name::{ObjectKind, ObjectName, stored_hash};
use crate::segment::{self, Press, SegmentEntry};
use crate::storage::{Created, Storage};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures::TryStreamExt;
use model::{Error, Result, ResultExt};
use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Reads the objects of one vault.
#[derive(Debug, Clone)]
pub(crate) struct Objects {
    pub storage: Arc<dyn Storage>,
    pub keys: HashKeys,
    pub cipher: Cipher,
    /// Where the memory of what is decrypted goes around.
    pub buffers: Buffers,
}

impl Objects {
    /// Reads an object, checks its stored bytes against its name and decrypts it. In the place of one
    /// that is lost or damaged any other will do that has the same content: a backup or a repair may
    /// have stored it anew.
    pub async fn read(&self, path: &str) -> Result<Bytes> {
        match self.read_exactly(path).await {
            Err(e) if is_damage(&e) => match self.read_twin(path).await? {
                Some(plain) => Ok(plain),
                None => Err(e),
            },
            other => other,
        }
    }

    /// The content of a sound object that has the same content as this one.
    async fn read_twin(&self, path: &str) -> Result<Option<Bytes>> {
        for twin in self.twins(path).await? {
            match self.read_checked(&twin).await {
                Ok(plain) => return Ok(Some(plain)),
                Err(e) if is_damage(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }

    /// Other objects with the same content, whether they are sound or not.
    pub async fn twins(&self, path: &str) -> Result<Vec<String>> {
        let Ok(name) = ObjectName::parse(path) else { return Ok(Vec::new()) };
        let prefix = ObjectName::content_prefix(name.kind, &name.content);
        let mut found: Vec<_> = self.storage.list(&prefix).await?.map_ok(|e| e.name).try_collect().await?;
        found.retain(|other| other != path && ObjectName::parse(other).is_ok());
        found.sort();
        Ok(found)
    }

    /// Reads an object that nothing signed names: its content must have the id in its name.
    async fn read_checked(&self, path: &str) -> Result<Bytes> {
        let plain = self.read_exactly(path).await?;
        let (objects, name) = (self.clone(), ObjectName::parse(path)?);
        blocking(move || content::check(&objects, &name, &plain).map(|()| plain)).await
    }

    /// Reads just this object.
    pub async fn read_exactly(&self, path: &str) -> Result<Bytes> {
        let (expected, _) = stored_hash(path)?;
        let stored = self.storage.read(path).await.map_err(|e| self.missing(path, e))?;
        self.check(path, &stored, &expected)?;
        self.decrypt(stored).await.context(|| format!("reading {path}"))
    }

    /// An error about an object that a point names, so that its reader knows what it means.
    fn missing(&self, path: &str, error: Error) -> Error {
        if error.kind() == model::ErrorKind::Missing {
            Error::missing(format!("the vault's object {path} is missing"))
                .hint("run `rewound verify` to see which points are hit")
        } else {
            error
        }
    }

    /// Compares stored bytes with the hash in their name.
    pub fn check(&self, path: &str, stored: &[u8], expected: &[u8; 32]) -> Result<()> {
        if blake3::hash(stored).as_bytes() == expected {
            return Ok(());
        }
        Err(Error::corrupt(format!("the vault's object {path} is damaged: its bytes do not have the hash in its name"))
            .hint("run `rewound verify` to see which points are hit"))
    }

    /// Decrypts stored bytes, off the asynchronous threads where they are many.
    pub async fn decrypt(&self, stored: Bytes) -> Result<Bytes> {
        if self.cipher.is_plain() {
            return Ok(stored);
        }
        let (cipher, buffers) = (self.cipher.clone(), self.buffers.clone());
        blocking(move || cipher.open_into(stored, &buffers)).await
    }

    /// Reads an object that is one zstd frame of JSON.
    pub async fn read_json<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T> {
        let plain = self.read(path).await?;
        parse_json(&plain).context(|| format!("reading {path}"))
    }

    /// Reads a layer.
    pub async fn layer(&self, path: &str) -> Result<Layer> {
        self.read_json(path).await
    }

    /// Reads a whole segment and splits it into frames.
    pub async fn segment(&self, path: &str) -> Result<Vec<(Bytes, u32)>> {
        let plain = self.read(path).await?;
        segment::split(&plain).context(|| format!("reading {path}"))
    }

    /// Reads some plain bytes from the middle of an object.
    pub async fn read_range(&self, path: &str, size: u64, head: &[u8], plain: std::ops::Range<u64>) -> Result<Bytes> {
        let at = self.cipher.stored_range(head.len() as u64, size, plain.clone());
        let fetched = self.storage.read_range(path, at).await.map_err(|e| self.missing(path, e))?;
        let (cipher, buffers, head) = (self.cipher.clone(), self.buffers.clone(), head.to_vec());
        let open = move || {
            let buffer = buffers.take((plain.end - plain.start) as usize);
            cipher.open_range_into(&head, &fetched, plain, buffer).map(|opened| buffers.lend(opened))
        };
        blocking(open).await.context(|| format!("reading {path}"))
    }
}

/// Whether an error means that an object is lost or damaged.
pub(crate) fn is_damage(error: &Error) -> bool {
    matches!(error.kind(), model::ErrorKind::Corrupt | model::ErrorKind::Missing)
}

/// Decompresses one zstd frame of JSON and reads it.
pub(crate) fn parse_json<T: serde::de::DeserializeOwned>(compressed: &[u8]) -> Result<T> {
    let bad = |e: &dyn std::fmt::Display| Error::corrupt(format!("it cannot be read: {e}"));
    let decoder = zstd::stream::read::Decoder::new(compressed).map_err(|e| bad(&e))?;
    let decoder = std::io::Read::take(decoder, 1 << 30);
    serde_json::from_reader(std::io::BufReader::new(decoder)).map_err(|e| bad(&e))
}

/// Compresses a value as one zstd frame of one line of JSON.
pub(crate) fn compress_json<T: serde::Serialize>(value: &T) -> Result<Vec<u8>> {
    let json = serde_json::to_vec(value).map_err(|e| Error::bug(format!("writing JSON failed: {e}")))?;
    compress(&json, 3)
}

/// Compresses bytes as one zstd frame with its size and checksum.
pub(crate) fn compress(plain: &[u8], level: i32) -> Result<Vec<u8>> {
    let mut frame = Vec::new();
    Compressor::new(level)?.frame(plain, &mut frame)?;
    Ok(frame)
}

/// Runs work that computes, off the asynchronous threads.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Error::bug(format!("a worker stopped: {e}"))),
    }
}

/// An object that is in the vault now.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub path: String,
    pub size: u64,
    pub head: String,
}

/// Writes the objects of one run.
#[derive(Debug)]
pub(crate) struct ObjectWriter {
    pub objects: Objects,
    /// Objects that older points name: known to be sound as far as the vault is.
    trusted: HashSet<String>,
    /// Objects that a prune means to remove: treated as absent.
    doomed: HashSet<String>,
    random: Arc<dyn model::Random>,
    stored: AtomicU64,
    /// Where the bodies of frames go around.
    pub buffers: Buffers,
    /// What is free to compress and encrypt the next segment, by level.
    presses: Mutex<Vec<(i32, Press)>>,
}

impl ObjectWriter {
    pub fn new(
        objects: Objects,
        trusted: HashSet<String>,
        doomed: HashSet<String>,
        random: Arc<dyn model::Random>,
    ) -> Self {
        ObjectWriter {
            objects,
            trusted,
            doomed,
            random,
            stored: AtomicU64::new(0),
            buffers: Buffers::of_frames(),
            presses: Mutex::default(),
        }
    }

    /// Bytes this run has added.
    pub fn stored(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }

    /// Whether an object may be referred to without storing it anew.
    pub fn may_reuse(&self, path: &str) -> bool {
        !self.doomed.contains(path)
    }

    /// An object with this content that is there already and sound.
    pub async fn existing(&self, kind: ObjectKind, content: &[u8; 32]) -> Result<Option<Stored>> {
        let storage = &self.objects.storage;
        let mut found: Vec<_> = storage.list(&ObjectName::content_prefix(kind, content)).await?.try_collect().await?;
        found.sort_by(|a, b| a.name.cmp(&b.name));
        for entry in found {
            if self.doomed.contains(&entry.name) || ObjectName::parse(&entry.name).is_err() {
                continue;
            }
            if !self.trusted.contains(&entry.name) {
                let Some(stored) = self.sound_bytes(&entry.name).await? else { continue };
                // Left by a run that died: perhaps before it was durable. Creating what exists
                // changes nothing but puts it under the next sync.
                if storage.is_local() {
                    storage.create(&entry.name, stored).await?;
                }
            }
            // A prune may take it away between listing and reading, if it takes this run for dead.
            let head = match self.read_head(&entry.name).await {
                Err(e) if e.kind() == model::ErrorKind::Missing => continue,
                head => head?,
            };
            return Ok(Some(Stored { path: entry.name, size: entry.size, head }));
        }
        Ok(None)
    }

    /// The bytes of an object that a run left behind, if they are what its name says.
    async fn sound_bytes(&self, path: &str) -> Result<Option<Bytes>> {
        let name = ObjectName::parse(path)?;
        match self.objects.storage.read(path).await {
            Ok(stored) => Ok((*blake3::hash(&stored).as_bytes() == name.stored).then_some(stored)),
            Err(e) if e.kind() == model::ErrorKind::Missing => Ok(None),
            Err(e) => Err(e),
        }
    }

    async fn read_head(&self, path: &str) -> Result<String> {
        if self.objects.cipher.is_plain() {
            return Ok(String::new());
        }
        // A head takes about 200 bytes and 100 for each recipient.
        let start = self.objects.storage.read_range(path, 0..16 << 10).await?;
        let length = crate::crypto::head_length(&start)
            .ok_or_else(|| Error::corrupt(format!("the vault's object {path} has no readable age header")))?;
        Ok(BASE64.encode(&start[..length]))
    }

    /// Stores sealed bytes under the name that their content gives.
    pub async fn put(
        &self,
        kind: ObjectKind,
        content: [u8; 32],
        endings: &str,
        sealed: Bytes,
        head: usize,
    ) -> Result<Stored> {
        let endings = if self.objects.cipher.is_plain() { endings.to_owned() } else { format!("{endings}.age") };
        let name = ObjectName { kind, content, stored: *blake3::hash(&sealed).as_bytes(), endings };
        let (path, size) = (name.to_string(), sealed.len() as u64);
        let head = BASE64.encode(&sealed[..head]);
        let created = self.objects.storage.create(&path, sealed.clone()).await?;
        if created == Created::Existed && self.sound_bytes(&path).await?.is_none() {
            // A power loss tore what a run had left under this name.
            self.objects.storage.replace(&path, sealed).await?;
        }
        self.stored.fetch_add(size, Ordering::Relaxed);
        Ok(Stored { path, size, head })
    }

    /// Whether an object with these bytes must not be used, because a prune means to remove the
    /// one of that name: in plain vaults equal content gives equal names.
    pub fn is_doomed(&self, kind: ObjectKind, content: &[u8; 32], endings: &str, sealed: &[u8]) -> bool {
        let name =
            ObjectName { kind, content: *content, stored: *blake3::hash(sealed).as_bytes(), endings: endings.into() };
        self.doomed.contains(&name.to_string())
    }

    pub fn salt(&self) -> [u8; 16] {
        let mut salt = [0; 16];
        self.random.fill(&mut salt);
        salt
    }

    /// Stores a JSON value, or finds it there already.
    pub async fn put_json<T: serde::Serialize>(
        &self,
        kind: ObjectKind,
        audience: Audience,
        value: &T,
    ) -> Result<Stored> {
        let compressed = compress_json(value)?;
        let content = self.objects.keys.content_id(&compressed);
        if let Some(found) = self.existing(kind, &content).await? {
            return Ok(found);
        }
        self.put_compressed(kind, audience, content, "json.zst", compressed).await
    }

    /// Encrypts and stores bytes that are zstd frames already.
    pub async fn put_compressed(
        &self,
        kind: ObjectKind,
        audience: Audience,
        content: [u8; 32],
        endings: &str,
        mut compressed: Vec<u8>,
    ) -> Result<Stored> {
        if self.objects.cipher.is_plain() && self.is_doomed(kind, &content, endings, &compressed) {
            segment::append_salt(&mut compressed, self.salt());
        }
        let cipher = self.objects.cipher.clone();
        let (sealed, head) = blocking(move || cipher.seal(audience, compressed)).await?;
        self.put(kind, content, endings, sealed.into(), head).await
    }

    /// Compresses, encrypts and stores a draft, or finds its content there already. `known` are
    /// the entries of older layers by path.
    pub async fn put_segment(
        self: &Arc<Self>,
        kind: ObjectKind,
        audience: Audience,
        level: i32,
        draft: segment::Draft,
        known: &std::collections::HashMap<String, SegmentEntry>,
    ) -> Result<SegmentEntry> {
        let keys = self.objects.keys.clone();
        let (draft, content) = blocking(move || {
            let content = draft.content_id(&keys);
            Ok((draft, content))
        })
        .await?;
        let raw = draft.frames.iter().map(|f| f.raw() as u64).sum();
        if let Some(found) = self.existing(kind, &content).await? {
            let counts = draft.frames.iter().map(|f| f.count).collect();
            draft.frames.into_iter().for_each(|f| self.buffers.give(f.body));
            if let Some(entry) = known.get(&found.path) {
                return Ok(entry.clone());
            }
            return Ok(SegmentEntry {
                object: found.path,
                size: found.size,
                head: found.head,
                frames: Vec::new(),
                raw,
                counts,
            });
        }
        let endings = format!("{}.zst", draft.ending());
        let writer = self.clone();
        let (sealed, press, endings) = blocking(move || {
            let mut press = writer.press(level)?;
            let Objects { keys, cipher, .. } = &writer.objects;
            let mut sealed = press.seal(draft, keys, cipher, audience)?;
            if cipher.is_plain() && writer.is_doomed(kind, &content, &endings, &sealed.stored) {
                sealed.add_salt(writer.salt());
            }
            Ok((sealed, press, endings))
        })
        .await?;
        let (bytes, frames) = (Bytes::from(sealed.stored), sealed.frames);
        let stored = self.put(kind, content, &endings, bytes.clone(), sealed.head).await?;
        self.free(level, press, bytes);
        Ok(SegmentEntry { object: stored.path, size: stored.size, head: stored.head, frames, raw, counts: Vec::new() })
    }

    /// Encrypts and stores a key filter, or finds it there already.
    pub async fn put_filter(self: &Arc<Self>, level: i32, filter: Encoded) -> Result<FilterRef> {
        let Encoded { mut bytes, shard, bits, slot } = filter;
        let content = self.objects.keys.content_id(&bytes);
        let stored = match self.existing(ObjectKind::Filter, &content).await? {
            Some(found) => found,
            None => {
                let writer = self.clone();
                let (sealed, head, press) = blocking(move || {
                    if writer.is_doomed(ObjectKind::Filter, &content, "bin", &bytes) {
                        bytes.extend_from_slice(&writer.salt());
                    }
                    let mut press = writer.press(level)?;
                    let (sealed, head) = press.seal_bytes(&bytes, &writer.objects.cipher, Audience::Readers)?;
                    Ok((Bytes::from(sealed), head, press))
                })
                .await?;
                let stored = self.put(ObjectKind::Filter, content, "bin", sealed.clone(), head).await?;
                self.free(level, press, sealed);
                stored
            }
        };
        Ok(FilterRef { object: stored.path, size: stored.size, head: stored.head, shard, bits, slot })
    }

    /// A press that is free, or a new one.
    fn press(&self, level: i32) -> Result<Press> {
        let mut presses = self.presses();
        match presses.iter().position(|(l, _)| *l == level) {
            Some(free) => Ok(presses.swap_remove(free).1),
            None => Press::new(level, self.buffers.clone()),
        }
    }

    /// A press has done its work, and what it made is stored.
    fn free(&self, level: i32, mut press: Press, stored: Bytes) {
        press.take_back(stored);
        self.presses().push((level, press));
    }

    fn presses(&self) -> MutexGuard<'_, Vec<(i32, Press)>> {
        self.presses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
