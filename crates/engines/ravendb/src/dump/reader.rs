//! Events of a dump whose bytes come as a stream.

use crate::dump::decode::Decoder;
use crate::dump::parser::{Event, Parser};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use model::{AttachmentRef, AttachmentStore, Error, Result};

/// The bytes of a dump, compressed or not.
pub(crate) type Input = BoxStream<'static, Result<Bytes>>;

/// Pieces of an attachment that wait to be stored.
const WAITING: usize = 4;

/// Reads a dump.
pub(crate) struct Reader {
    input: Input,
    decoder: Decoder,
    parser: Parser,
    at_end: bool,
}

impl Reader {
    pub fn new(input: Input) -> Reader {
        Reader { input, decoder: Decoder::default(), parser: Parser::default(), at_end: false }
    }

    /// The next event; none once the closing brace was read. A dump that ends before is an error.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.parser.event()? {
                return Ok(Some(event));
            }
            if self.at_end {
                self.parser.finish()?;
                return Ok(None);
            }
            let parser = &mut self.parser;
            match self.input.next().await.transpose()? {
                Some(bytes) => self.decoder.feed(&bytes, &mut |piece| parser.push(piece))?,
                None => {
                    self.decoder.finish(&mut |piece| parser.push(piece))?;
                    self.at_end = true;
                }
            }
        }
    }

    /// Takes the raw bytes that follow the last item into one buffer.
    pub async fn blob(&mut self, size: u64) -> Result<Vec<u8>> {
        let mut all = Vec::with_capacity(size.min(1 << 20) as usize);
        while let Some(piece) = self.piece().await? {
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }

    /// Passes the raw bytes that follow the last item by.
    pub async fn skip_blob(&mut self) -> Result<()> {
        while self.piece().await?.is_some() {}
        Ok(())
    }

    /// Streams the raw bytes that follow the last item into a store.
    pub async fn store_blob(&mut self, store: &dyn AttachmentStore) -> Result<AttachmentRef> {
        let (out, pieces) = tokio::sync::mpsc::channel(WAITING);
        let pieces = futures::stream::unfold(pieces, |mut pieces| async { pieces.recv().await.map(|p| (p, pieces)) });
        let feed = async {
            while let Some(piece) = self.piece().await? {
                // A store that stopped listening says itself why.
                if out.send(Ok(piece)).await.is_err() {
                    break;
                }
            }
            drop(out);
            Ok::<_, Error>(())
        };
        // An error of the feed drops the store's work, so that no half attachment is kept.
        let (reference, ()) = futures::try_join!(store.put(pieces.boxed()), feed)?;
        Ok(reference)
    }

    async fn piece(&mut self) -> Result<Option<Bytes>> {
        match self.next().await? {
            Some(Event::Blob(piece)) => Ok(Some(piece)),
            Some(Event::BlobEnd) | None => Ok(None),
            Some(_) => Err(Error::bug("an item of a dump came before the end of raw bytes")),
        }
    }
}
