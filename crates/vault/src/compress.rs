//! Compressing bytes as one zstd frame, or storing them as one (RFC 8878).

use model::{Error, Result};
use zstd::zstd_safe::{CParameter, compress_bound};

/// The level that stores bytes as they are, in frames that every zstd reads.
pub(crate) const NONE: i32 = 0;
/// The largest block of a zstd frame, in bytes.
const BLOCK: usize = 128 << 10;

/// Makes frames of one level.
pub(crate) struct Compressor(Option<zstd::bulk::Compressor<'static>>);

impl Compressor {
    /// A compressor of level 1 to 19, or [`NONE`].
    pub fn new(level: i32) -> Result<Compressor> {
        if level == NONE {
            return Ok(Compressor(None));
        }
        let mut compressor = zstd::bulk::Compressor::new(level).map_err(failed)?;
        compressor.set_parameter(CParameter::ChecksumFlag(true)).map_err(failed)?;
        Ok(Compressor(Some(compressor)))
    }

    /// Puts one frame into `out`, in the place of what is there. A frame names its size; compressed
    /// ones carry a checksum.
    pub fn frame(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<()> {
        out.clear();
        match &mut self.0 {
            Some(compressor) => {
                out.reserve(compress_bound(plain.len()));
                compressor.compress_to_buffer(plain, out).map_err(failed)?;
            }
            None => store(plain, out)?,
        }
        Ok(())
    }
}

/// A frame of raw blocks: magic number, a header of one segment with its size in 4 bytes, blocks
/// with 3 bytes before each.
fn store(plain: &[u8], out: &mut Vec<u8>) -> Result<()> {
    let size = u32::try_from(plain.len()).map_err(|_| Error::bug("a frame of more than 4 GiB"))?;
    out.reserve(plain.len() + plain.len() / BLOCK * 3 + 12);
    out.extend_from_slice(&0xFD2F_B528u32.to_le_bytes());
    out.push(0b1010_0000);
    out.extend_from_slice(&size.to_le_bytes());
    if plain.is_empty() {
        out.extend_from_slice(&[1, 0, 0]);
    }
    let blocks = plain.len().div_ceil(BLOCK);
    for (i, block) in plain.chunks(BLOCK).enumerate() {
        let head = (block.len() as u32) << 3 | u32::from(i + 1 == blocks);
        out.extend_from_slice(&head.to_le_bytes()[..3]);
        out.extend_from_slice(block);
    }
    Ok(())
}

fn failed(e: std::io::Error) -> Error {
    Error::bug(format!("compressing failed: {e}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn zstd_reads_what_is_stored() {
        for size in [0, 1, 255, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 1_000_003] {
            let plain: Vec<u8> = (0..size).map(|i| ((i * 31) >> 3) as u8).collect();
            for level in [NONE, 1] {
                let mut frame = vec![9; 5];
                Compressor::new(level).unwrap().frame(&plain, &mut frame).unwrap();
                assert_eq!(zstd::bulk::decompress(&frame, size).unwrap(), plain);
                assert_eq!(zstd::zstd_safe::find_frame_compressed_size(&frame).unwrap(), frame.len());
                assert_eq!(zstd::zstd_safe::get_frame_content_size(&frame).unwrap(), Some(size as u64));
            }
        }
    }
}
