//! Decompression of dumps: plain, gzip, or zstd, told apart by their first bytes. RavenDB never ends
//! the zstd frames it writes, so that the end of the bytes is no error here: whether a dump is
//! complete, its last brace tells.

use bytes::BytesMut;
use flate2::write::MultiGzDecoder;
use model::{Error, Result};
use std::io::Write;
use zstd::stream::raw::{Decoder as ZstdDecoder, InBuffer, Operation, OutBuffer};

/// Compressed bytes that are decoded at once: bounds what comes of them.
const STEP: usize = 4 << 10;
/// Bytes of one piece of output.
const PIECE: usize = 128 << 10;

/// How a dump is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, of one or more members.
    Gzip,
    /// zstd.
    Zstd,
}

impl Compression {
    /// Told by the first four bytes.
    pub fn of(first: &[u8]) -> Compression {
        match first {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
            _ => Compression::None,
        }
    }
}

/// A decoder that bytes are fed to.
#[derive(Default)]
pub struct Decoder {
    /// The first bytes, until they tell what this is.
    first: Vec<u8>,
    way: Option<Way>,
}

enum Way {
    Plain,
    Gzip(Box<MultiGzDecoder<Vec<u8>>>),
    Zstd(Box<ZstdDecoder<'static>>, Vec<u8>),
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Decoder")
    }
}

impl Decoder {
    /// Decodes bytes, giving the output piece by piece to `take`.
    pub fn feed(&mut self, bytes: &[u8], take: &mut dyn FnMut(&[u8])) -> Result<()> {
        if self.way.is_some() {
            return self.decode(bytes, take);
        }
        self.first.extend_from_slice(bytes);
        match self.first.len() >= 4 {
            true => self.begin(take),
            false => Ok(()),
        }
    }

    /// Says that no more bytes come.
    pub fn finish(&mut self, take: &mut dyn FnMut(&[u8])) -> Result<()> {
        if self.way.is_none() {
            self.begin(take)?;
        }
        if let Some(Way::Gzip(gzip)) = &mut self.way {
            gzip.try_finish().map_err(damaged)?;
            take(gzip.get_ref());
            gzip.get_mut().clear();
        }
        Ok(())
    }

    fn begin(&mut self, take: &mut dyn FnMut(&[u8])) -> Result<()> {
        self.way = Some(match Compression::of(&self.first) {
            Compression::None => Way::Plain,
            Compression::Gzip => Way::Gzip(Box::new(MultiGzDecoder::new(Vec::new()))),
            Compression::Zstd => {
                let decoder = ZstdDecoder::new().map_err(|e| Error::io("starting to decode zstd", e))?;
                Way::Zstd(Box::new(decoder), vec![0; PIECE])
            }
        });
        let first = std::mem::take(&mut self.first);
        self.decode(&first, take)
    }

    fn decode(&mut self, bytes: &[u8], take: &mut dyn FnMut(&[u8])) -> Result<()> {
        match &mut self.way {
            None => Err(Error::bug("decoding before it is known what")),
            Some(Way::Plain) => {
                take(bytes);
                Ok(())
            }
            Some(Way::Gzip(gzip)) => {
                for step in bytes.chunks(STEP) {
                    gzip.write_all(step).map_err(damaged)?;
                    take(gzip.get_ref());
                    gzip.get_mut().clear();
                }
                Ok(())
            }
            Some(Way::Zstd(decoder, piece)) => {
                let mut input = InBuffer::around(bytes);
                loop {
                    let mut output = OutBuffer::around(&mut piece[..]);
                    decoder.run(&mut input, &mut output).map_err(damaged)?;
                    let (written, is_full) = (output.pos(), output.pos() == output.capacity());
                    take(&piece[..written]);
                    // A full buffer may have left something inside.
                    if input.pos() == bytes.len() && !is_full {
                        return Ok(());
                    }
                }
            }
        }
    }
}

fn damaged(e: std::io::Error) -> Error {
    Error::corrupt(format!("the dump cannot be decompressed: {e}"))
        .caused_by(e)
        .hint("it is damaged: take it from the server again")
}

/// Everything that comes of some bytes; for tests and small things.
pub fn decode_all(bytes: &[u8]) -> Result<BytesMut> {
    let mut out = BytesMut::new();
    let mut decoder = Decoder::default();
    decoder.feed(bytes, &mut |piece| out.extend_from_slice(piece))?;
    decoder.finish(&mut |piece| out.extend_from_slice(piece))?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use flate2::write::GzEncoder;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    /// A zstd frame that was flushed and never ended, as RavenDB leaves it.
    fn unterminated(text: &[u8]) -> Vec<u8> {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.write_all(text).unwrap();
        encoder.flush().unwrap();
        encoder.get_ref().clone()
    }

    #[test]
    fn all_that_servers_write_is_decoded() {
        let text = b"{\"Docs\":[]}".repeat(100_000);
        for stored in [text.clone(), gzip(&text), unterminated(&text), zstd::bulk::compress(&text, 1).unwrap()] {
            assert_eq!(decode_all(&stored).unwrap(), text);
            let mut out = Vec::new();
            let mut decoder = Decoder::default();
            for piece in stored.chunks(stored.len().min(3)) {
                decoder.feed(piece, &mut |p| out.extend_from_slice(p)).unwrap();
                if out.len() > 10_000 {
                    break;
                }
            }
            assert_eq!(out, text[..out.len()]);
        }
        assert_eq!(decode_all(&[gzip(b"a"), gzip(b"b")].concat()).unwrap(), "ab");
        assert_eq!(decode_all(b"{}").unwrap(), "{}");
        assert_eq!(decode_all(b"").unwrap(), "");
    }

    #[test]
    fn damage_is_an_error() {
        let mut stored = gzip(&b"abc".repeat(1000));
        let last = stored.len() - 6;
        stored[last] ^= 1;
        assert_eq!(decode_all(&stored).unwrap_err().kind(), model::ErrorKind::Corrupt);
        assert!(decode_all(&stored[..stored.len() - 9]).is_err());
        let mut stored = zstd::bulk::compress(&b"abc".repeat(1000), 1).unwrap();
        stored[5] ^= 0xff;
        assert!(decode_all(&stored).is_err());
    }
}
