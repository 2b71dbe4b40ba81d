//! One attachment store in front of several: content is read once and stored in each.

use crate::stop::interrupted;
use async_trait::async_trait;
use futures::{FutureExt, StreamExt};
use model::{AttachmentRef, AttachmentStore, AttachmentStream, CollectionId, Error, Result};
use std::borrow::Cow;
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;

/// Pieces that may wait for the slowest store.
const WAITING: usize = 4;

/// Hands content to several stores. One that fails is left out from then on.
pub(crate) struct Tee {
    stores: Vec<Arc<dyn AttachmentStore>>,
    /// What made a store fail.
    failed: Mutex<Vec<Option<Error>>>,
    dead: Vec<std::sync::atomic::AtomicBool>,
}

impl Tee {
    /// In front of these stores.
    pub fn new(stores: Vec<Arc<dyn AttachmentStore>>) -> Self {
        let failed = Mutex::new(stores.iter().map(|_| None).collect());
        let dead = stores.iter().map(|_| false.into()).collect();
        Tee { stores, failed, dead }
    }

    /// Gives a store no more content.
    pub fn leave_out(&self, store: usize) {
        self.dead[store].store(true, std::sync::atomic::Ordering::SeqCst);
    }

    /// What made a store fail, once.
    pub fn take_failure(&self, store: usize) -> Option<Error> {
        self.failed.lock().unwrap_or_else(|e| e.into_inner())[store].take()
    }

    /// What one store calls the content of a reference that the tee made.
    pub fn of_store(reference: &AttachmentRef, store: usize) -> Result<AttachmentRef> {
        reference.placed(|place| {
            let places: Vec<Option<Cow<'_, str>>> = serde_json::from_str(place)
                .map_err(|e| Error::bug("a reference of another attachment store").caused_by(e))?;
            let place = places.into_iter().nth(store).flatten();
            let place = place.ok_or_else(|| Error::bug("content was not given to this vault"))?;
            Ok(Arc::from(place))
        })
    }

    fn fail(&self, store: usize, error: Error) {
        self.leave_out(store);
        self.failed.lock().unwrap_or_else(|e| e.into_inner())[store].get_or_insert(error);
    }

    fn is_dead(&self, store: usize) -> bool {
        self.dead[store].load(std::sync::atomic::Ordering::SeqCst)
    }
}

/// A reference with what each store calls the content.
fn of_all(reference: AttachmentRef, places: &[Option<Arc<str>>]) -> Result<AttachmentRef> {
    let places: Vec<Option<&str>> = places.iter().map(Option::as_deref).collect();
    let place = serde_json::to_string(&places).map_err(|e| Error::bug(e.to_string()))?;
    Ok(AttachmentRef { place: Arc::from(place), ..reference })
}

#[async_trait]
impl AttachmentStore for Tee {
    async fn put(&self, mut content: AttachmentStream) -> Result<AttachmentRef> {
        let mut pipes = Vec::new();
        let mut puts = Vec::new();
        for (i, store) in self.stores.iter().enumerate().filter(|(i, _)| !self.is_dead(*i)) {
            let (pipe, pieces) = mpsc::channel(WAITING);
            pipes.push(pipe);
            let pieces = futures::stream::unfold(pieces, |mut p| async { p.recv().await.map(|piece| (piece, p)) });
            puts.push(store.put(pieces.boxed()).map(move |result| (i, result)));
        }
        let feed = async move {
            while let Some(piece) = content.next().await {
                match piece {
                    Ok(piece) => {
                        for pipe in &pipes {
                            // A store that takes no more has failed: its own result says why.
                            let _ = pipe.send(Ok(piece.clone())).await;
                        }
                    }
                    Err(error) => {
                        // Without this the stores would take half of the content for all of it.
                        for pipe in &pipes {
                            let _ = pipe.send(Err(interrupted())).await;
                        }
                        return Err(error);
                    }
                }
            }
            Ok(())
        };
        let (fed, results) = futures::join!(feed, futures::future::join_all(puts));
        fed?;
        let mut places: Vec<Option<Arc<str>>> = vec![None; self.stores.len()];
        let mut stored: Option<AttachmentRef> = None;
        for (i, result) in results {
            match result {
                Ok(reference) => {
                    places[i] = Some(reference.place.clone());
                    stored = Some(reference);
                }
                Err(error) => self.fail(i, error),
            }
        }
        let stored = stored.ok_or_else(|| Error::bug("no vault is left that takes attachments"))?;
        of_all(stored, &places)
    }

    async fn known(&self, collection: &CollectionId, key: &[u8], name: &str) -> Result<Option<AttachmentRef>> {
        let mut places: Vec<Option<Arc<str>>> = vec![None; self.stores.len()];
        let mut known: Option<AttachmentRef> = None;
        for (i, store) in self.stores.iter().enumerate().filter(|(i, _)| !self.is_dead(*i)) {
            // Fetched once is fetched for all.
            let Some(reference) = store.known(collection, key, name).await? else { return Ok(None) };
            if known.as_ref().is_some_and(|other| other.digest != reference.digest) {
                return Ok(None);
            }
            places[i] = Some(reference.place.clone());
            known = Some(reference);
        }
        known.map(|known| of_all(known, &places)).transpose()
    }

    async fn open(&self, _: &AttachmentRef) -> Result<AttachmentStream> {
        Err(Error::bug("a backup does not read attachments back"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use bytes::Bytes;
    use model::HashingStore;

    struct Broken;

    #[async_trait]
    impl AttachmentStore for Broken {
        async fn put(&self, mut content: AttachmentStream) -> Result<AttachmentRef> {
            content.next().await;
            Err(Error::missing("the disk is gone"))
        }
        async fn open(&self, _: &AttachmentRef) -> Result<AttachmentStream> {
            Err(Error::bug("unused"))
        }
    }

    fn content() -> AttachmentStream {
        futures::stream::iter((0..100).map(|_| Ok(Bytes::from_static(&[7; 100])))).boxed()
    }

    #[tokio::test]
    async fn one_store_that_fails_does_not_fail_the_others() {
        let tee = Tee::new(vec![Arc::new(HashingStore), Arc::new(Broken), Arc::new(HashingStore)]);
        let stored = tee.put(content()).await.unwrap();
        assert_eq!(stored.length, 10_000);
        assert_eq!(stored.digest, *blake3::hash(&[7; 10_000]).as_bytes());
        assert!(tee.take_failure(0).is_none());
        assert!(tee.take_failure(1).unwrap().to_string().contains("gone"));
        // The second time the broken one is not even asked.
        tee.put(content()).await.unwrap();
        assert!(tee.take_failure(1).is_none());
        assert!(Tee::of_store(&stored, 1).is_err());
        assert_eq!(&*Tee::of_store(&stored, 2).unwrap().place, "");
    }

    #[tokio::test]
    async fn half_of_a_content_is_not_stored() {
        let tee = Tee::new(vec![Arc::new(HashingStore)]);
        let cut = content().take(3).chain(futures::stream::once(async { Err(Error::missing("the file is gone")) }));
        assert!(tee.put(cut.boxed()).await.unwrap_err().to_string().contains("file is gone"));
        assert!(tee.take_failure(0).is_none(), "the source failed, not the store");
    }
}
