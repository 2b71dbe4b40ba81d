//! Content of attachments on its way into a vault: small ones packed into segments, large ones in
//! parts, each content once.

use crate::crypto::Audience;
use crate::direct::{Direct, stands_alone};
use crate::frame::OpenFrame;
use crate::manifest::{Borrowed, ContentPart, Contents, Pack};
use crate::name::ObjectKind;
use crate::objects::{ObjectWriter, blocking, compress};
use crate::segment::{Draft, SegmentEntry};
use crate::write::pieces::KnownPieces;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use model::limits::{ATTACHMENT_PACKED, FRAME, PART, SEGMENT_TARGET};
use model::{
    AttachmentRef, AttachmentStore, AttachmentStream, Batch, BatchBuilder, ChangeBatch, CollectionId, ContentDigest,
    Encoding, Error, Kind, Result,
};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tokio::sync::Mutex;

/// Where content is that the vault has already.
#[derive(Debug, Clone)]
pub(crate) enum KnownPlace {
    /// In a pack of this run, by number.
    Own(u64),
    /// In a pack of an older run.
    Old(Borrowed),
    /// In parts of an older run.
    OldParts(Vec<ContentPart>),
}

/// Contents that are known by their digests (917,504: what a table has room for before it doubles): they take
/// about 80 MiB. Others are stored again, if they come again.
const KNOWN: usize = 7 << 17;

/// What older points have, and this run has stored.
#[derive(Debug, Default)]
pub(crate) struct KnownContents {
    places: HashMap<ContentDigest, KnownPlace>,
    objects: ObjectNames,
}

/// Names of objects, each once in memory.
#[derive(Debug, Default)]
pub(crate) struct ObjectNames(HashSet<Arc<str>>);

impl ObjectNames {
    /// The same name, as it was first seen.
    pub fn once(&mut self, name: Arc<str>) -> Arc<str> {
        match self.0.get(&name) {
            Some(seen) => seen.clone(),
            None => {
                self.0.insert(name.clone());
                name
            }
        }
    }
}

impl KnownContents {
    /// Adds the content of an entry, which a layer with these contents has.
    pub fn learn(&mut self, contents: &Contents, content: &AttachmentRef) -> Result<()> {
        let mut one = |content: &AttachmentRef| {
            if let Some(place) = KnownPlace::of(contents, &content.place) {
                self.insert(content.digest, place);
            }
        };
        match content.pieces() {
            Some(pieces) => pieces?.iter().for_each(|piece| one(&piece.content)),
            None => one(content),
        }
        Ok(())
    }

    fn insert(&mut self, digest: ContentDigest, mut place: KnownPlace) {
        if self.places.len() < KNOWN || self.places.contains_key(&digest) {
            if let KnownPlace::Old(Borrowed { object, .. }) = &mut place {
                *object = self.objects.once(object.clone());
            }
            self.places.insert(digest, place);
        }
    }
}

impl KnownPlace {
    /// The place that a reference of an older layer means; none if it means none.
    pub fn of(contents: &Contents, place: &str) -> Option<Self> {
        Self::at(contents, Place::parse(place)?)
    }

    /// The same of a place that was read.
    pub fn at(contents: &Contents, place: Place) -> Option<Self> {
        Some(match place {
            Place::Packed(n) => {
                let at = contents.packs.partition_point(|p| p.first <= n).checked_sub(1)?;
                let pack = &contents.packs[at];
                let Pack { first, segment: SegmentEntry { object, size, .. } } = pack;
                KnownPlace::Old(Borrowed { object: object.as_str().into(), size: *size, index: n - first })
            }
            Place::Borrowed(n, more) => KnownPlace::Old(contents.borrowed.get(usize::try_from(n).ok()?)?.after(more)?),
            Place::Parts(first, count) => {
                let (first, count) = (usize::try_from(first).ok()?, usize::try_from(count).ok()?);
                KnownPlace::OldParts(contents.parts.get(first..first.checked_add(count)?)?.to_vec())
            }
        })
    }

    /// The place that the change log names.
    pub fn of_direct(direct: Direct) -> Self {
        match direct {
            Direct::Parts(parts) => KnownPlace::OldParts(parts),
            Direct::Packed(at) => KnownPlace::Old(at),
        }
    }

    /// How the change log names it; none for what this run is packing.
    pub fn direct(self) -> Option<Direct> {
        match self {
            KnownPlace::Own(_) => None,
            KnownPlace::Old(at) => Some(Direct::Packed(at)),
            KnownPlace::OldParts(parts) => Some(Direct::Parts(parts)),
        }
    }

    /// Paths of the objects of older runs that hold it.
    pub fn objects(&self) -> impl Iterator<Item = &str> {
        let (parts, packed) = match self {
            KnownPlace::Own(_) => (&[][..], None),
            KnownPlace::Old(at) => (&[][..], Some(&*at.object)),
            KnownPlace::OldParts(parts) => (&parts[..], None),
        };
        parts.iter().map(|part| &*part.object).chain(packed)
    }
}

/// A place as documents name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Packed(u64),
    Borrowed(u64, u64),
    Parts(u64, u64),
}

impl Place {
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.get(1..)?;
        match text.as_bytes().first()? {
            b'n' => rest.parse().ok().map(Place::Packed),
            b'x' => {
                let (entry, more) = rest.split_once('+').unwrap_or((rest, "0"));
                Some(Place::Borrowed(entry.parse().ok()?, more.parse().ok()?))
            }
            b'p' => {
                let (first, count) = rest.split_once('+')?;
                Some(Place::Parts(first.parse().ok()?, count.parse().ok()?))
            }
            _ => None,
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Packed(n) => write!(f, "n{n}"),
            Place::Borrowed(n, more) => write!(f, "x{n}+{more}"),
            Place::Parts(first, count) => write!(f, "p{first}+{count}"),
        }
    }
}

/// Takes the contents of one run.
#[derive(Debug)]
pub(crate) struct RunContents {
    writer: Arc<ObjectWriter>,
    pieces: Arc<KnownPieces>,
    level: i32,
    /// Whether what could not be stored is stored later.
    tries_again: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    known: KnownContents,
    contents: Contents,
    /// Entries of the table of packs of older runs, by their objects.
    borrowed: HashMap<Arc<str>, u64>,
    open: Option<OpenFrame>,
    draft: Draft,
    first: u64,
    next: u64,
}

impl RunContents {
    pub fn new(writer: Arc<ObjectWriter>, pieces: Arc<KnownPieces>, level: i32) -> Self {
        let state = State {
            known: KnownContents::default(),
            contents: Contents::default(),
            borrowed: HashMap::new(),
            open: None,
            draft: Draft::new(Encoding::Bin),
            first: 0,
            next: 0,
        };
        RunContents { writer, pieces, level, tries_again: false, state: Mutex::new(state) }
    }

    /// The same for a vault that may be away for a while.
    pub fn trying_again(self) -> Self {
        RunContents { tries_again: true, ..self }
    }

    /// Adds contents that older points have. Those in objects that may not be reused are left out.
    pub async fn learn(&self, known: KnownContents) {
        let mut state = self.state.lock().await;
        for (digest, place) in known.places {
            if !state.known.places.contains_key(&digest) && place.objects().all(|path| self.writer.may_reuse(path)) {
                state.known.insert(digest, place);
            }
        }
    }

    /// Stores what is still open and gives the layer's table.
    pub async fn finish(&self) -> Result<Contents> {
        let mut state = self.state.lock().await;
        self.seal(&mut state).await?;
        Ok(std::mem::take(&mut state.contents))
    }

    fn known_place(state: &mut State, digest: &ContentDigest) -> Option<Place> {
        let known = state.known.places.get(digest)?.clone();
        Some(Self::place_of(state, known))
    }

    /// What this run's layer calls a content.
    fn place_of(state: &mut State, known: KnownPlace) -> Place {
        match known {
            KnownPlace::Own(n) => Place::Packed(n),
            KnownPlace::Old(Borrowed { object, size, index }) => {
                let next = state.contents.borrowed.len() as u64;
                let number = *state.borrowed.entry(object.clone()).or_insert(next);
                if number == next {
                    state.contents.borrowed.push(Borrowed { object, size, index: 0 });
                }
                Place::Borrowed(number, index)
            }
            KnownPlace::OldParts(parts) => add_parts(&mut state.contents, parts),
        }
    }

    /// Takes a content that is here, to be packed with others.
    pub async fn put_small(&self, content: Bytes) -> Result<AttachmentRef> {
        let digest = *blake3::hash(&content).as_bytes();
        let mut state = self.state.lock().await;
        let place = match Self::known_place(&mut state, &digest) {
            Some(place) => place,
            None => {
                let number = state.next;
                state.next += 1;
                let batch = content_batch(&digest, &content);
                let open = state.open.get_or_insert_with(|| OpenFrame::like(&batch));
                open.push(&batch, 0, 0, None);
                if open.body.len() >= FRAME {
                    close_frame(&mut state)?;
                }
                if state.draft.raw >= SEGMENT_TARGET {
                    self.seal(&mut state).await?;
                }
                state.known.insert(digest, KnownPlace::Own(number));
                Place::Packed(number)
            }
        };
        Ok(AttachmentRef { digest, length: content.len() as u64, place: place.to_string().into() })
    }

    async fn seal(&self, state: &mut State) -> Result<()> {
        close_frame(state)?;
        if state.draft.frames.is_empty() {
            return Ok(());
        }
        let draft = std::mem::replace(&mut state.draft, Draft::new(Encoding::Bin));
        let (none, kept) = (HashMap::new(), self.tries_again.then(|| draft.clone()));
        let storing = self.writer.put_segment(ObjectKind::Segment, Audience::Readers, self.level, draft, &none).await;
        let segment = match (storing, kept) {
            (Err(e), Some(draft)) => {
                state.draft = draft;
                return Err(e);
            }
            (storing, _) => storing?,
        };
        state.contents.packs.push(Pack { first: state.first, segment });
        state.first = state.next;
        Ok(())
    }

    async fn put_part(&self, raw: Bytes) -> Result<ContentPart> {
        let size = raw.len() as u64;
        let keys = self.writer.objects.keys.clone();
        let hashed = raw.clone();
        let content = blocking(move || Ok(keys.content_id(&hashed))).await?;
        if let Some(found) = self.writer.existing(ObjectKind::Part, &content).await? {
            return Ok(ContentPart { object: found.path, size: found.size, raw: size });
        }
        let level = self.level;
        let compressed = blocking(move || compress(&raw, level)).await?;
        let stored =
            self.writer.put_compressed(ObjectKind::Part, Audience::Readers, content, "bin.zst", compressed).await?;
        Ok(ContentPart { object: stored.path, size: stored.size, raw: size })
    }

    async fn put_large(&self, start: BytesMut, mut content: AttachmentStream) -> Result<AttachmentRef> {
        let mut hasher = blake3::Hasher::new();
        let mut parts = Vec::new();
        let mut length = 0;
        let mut buffer = start;
        hasher.update(&buffer);
        while let Some(piece) = content.next().await {
            let piece = piece?;
            hasher.update(&piece);
            buffer.extend_from_slice(&piece);
            while buffer.len() >= PART {
                let part = buffer.split_to(PART).freeze();
                length += part.len() as u64;
                parts.push(self.put_part(part).await?);
            }
        }
        if !buffer.is_empty() {
            length += buffer.len() as u64;
            parts.push(self.put_part(buffer.freeze()).await?);
        }
        let digest = *hasher.finalize().as_bytes();
        let place = add_parts(&mut self.state.lock().await.contents, parts);
        Ok(AttachmentRef { digest, length, place: place.to_string().into() })
    }

    /// Takes a content of which `start` has come already.
    pub async fn put_from(&self, mut start: BytesMut, mut content: AttachmentStream) -> Result<AttachmentRef> {
        while start.len() < ATTACHMENT_PACKED {
            match content.next().await {
                Some(piece) => start.extend_from_slice(&piece?),
                None => return self.put_small(start.freeze()).await,
            }
        }
        self.put_large(start, content).await
    }

    /// Stores what is still open, and puts places that mean something by themselves in the place of those
    /// that mean something here.
    pub async fn place_directly(&self, changes: &mut [ChangeBatch]) -> Result<()> {
        let mut state = self.state.lock().await;
        self.seal(&mut state).await?;
        let directly = |place: &str| match stands_alone(place) {
            true => Ok(place.into()),
            false => {
                let known = KnownPlace::of(&state.contents, place).and_then(KnownPlace::direct);
                let unknown = || Error::bug("a change refers to the content of an attachment that was not put");
                Ok(known.ok_or_else(unknown)?.place()?.into())
            }
        };
        for reference in changes.iter_mut().flat_map(|change| &mut change.batch.attachments) {
            *reference = reference.placed(directly)?;
        }
        Ok(())
    }
}

fn add_parts(contents: &mut Contents, parts: Vec<ContentPart>) -> Place {
    let count = parts.len() as u64;
    // The same parts may stand there already, for equal attachments.
    if let Some(first) = contents.parts.windows(parts.len().max(1)).rposition(|w| *w == parts[..]) {
        return Place::Parts(first as u64, count);
    }
    let first = contents.parts.len() as u64;
    contents.parts.extend(parts);
    Place::Parts(first, count)
}

fn close_frame(state: &mut State) -> Result<()> {
    if let Some(open) = state.open.take() {
        let frame = open.close()?;
        state.draft.push(frame);
    }
    Ok(())
}

/// One content as a document of a pack.
fn content_batch(digest: &ContentDigest, content: &Bytes) -> Batch {
    let mut builder = BatchBuilder::new(CollectionId::new(""), Kind::Meta("content".into()), Encoding::Bin);
    builder.push(crate::hash::hex(digest).as_bytes(), content);
    builder.take()
}

#[async_trait]
impl AttachmentStore for RunContents {
    async fn put(&self, content: AttachmentStream) -> Result<AttachmentRef> {
        self.put_from(BytesMut::new(), content).await
    }

    async fn known(&self, collection: &CollectionId, key: &[u8], name: &str) -> Result<Option<AttachmentRef>> {
        let Some(found) = self.pieces.find(collection, key, name).await? else { return Ok(None) };
        let place = Self::place_of(&mut *self.state.lock().await, found.place);
        Ok(Some(AttachmentRef { digest: found.digest, length: found.length, place: place.to_string().into() }))
    }

    async fn open(&self, _: &AttachmentRef) -> Result<AttachmentStream> {
        Err(Error::bug("a run that writes does not read contents back"))
    }
}
