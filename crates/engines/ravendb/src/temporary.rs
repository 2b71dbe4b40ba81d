//! What must wait for its turn in a restore: temporary files without a name, encrypted, as documents of an
//! encrypted vault must not reach a disk in the clear.

use chacha20poly1305::aead::{AeadInPlace, KeyInit, OsRng};
use chacha20poly1305::{ChaCha20Poly1305, Nonce, Tag};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

/// Bytes that are encrypted at once.
const CHUNK: usize = 64 << 10;
/// Bytes that authenticate a chunk.
const TAG: usize = 16;

/// A temporary file that is written.
pub(crate) struct Temporary {
    file: File,
    cipher: ChaCha20Poly1305,
    chunk: Vec<u8>,
    chunks: u64,
}

/// A temporary file that is read from its start.
pub(crate) struct Again {
    file: File,
    cipher: ChaCha20Poly1305,
    chunk: Vec<u8>,
    at: usize,
    number: u64,
    chunks: u64,
}

impl Temporary {
    /// An empty file, with a key that is nowhere but here.
    pub fn new() -> io::Result<Temporary> {
        let cipher = ChaCha20Poly1305::new(&ChaCha20Poly1305::generate_key(&mut OsRng));
        Ok(Temporary { file: tempfile::tempfile()?, cipher, chunk: Vec::with_capacity(CHUNK + TAG), chunks: 0 })
    }

    fn store(&mut self) -> io::Result<()> {
        let tag = self.cipher.encrypt_in_place_detached(&nonce(self.chunks), b"", &mut self.chunk);
        self.chunk.extend_from_slice(&tag.map_err(|_| io::Error::other("encrypting failed"))?);
        let length = (self.chunk.len() - TAG) as u32;
        self.file.write_all(&length.to_le_bytes())?;
        self.file.write_all(&self.chunk)?;
        self.chunk.clear();
        self.chunks += 1;
        Ok(())
    }

    /// What was written, from its start.
    pub fn again(mut self) -> io::Result<Again> {
        if !self.chunk.is_empty() {
            self.store()?;
        }
        self.file.seek(SeekFrom::Start(0))?;
        let Temporary { file, cipher, chunks, .. } = self;
        Ok(Again { file, cipher, chunk: Vec::new(), at: 0, number: 0, chunks })
    }
}

impl Write for Temporary {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        if self.chunk.len() == CHUNK {
            self.store()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Again {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.at == self.chunk.len() && self.number < self.chunks {
            let mut length = [0; 4];
            self.file.read_exact(&mut length)?;
            let length = (u32::from_le_bytes(length) as usize).min(CHUNK);
            self.chunk.resize(length + TAG, 0);
            self.file.read_exact(&mut self.chunk)?;
            let tag = Tag::clone_from_slice(&self.chunk[length..]);
            self.chunk.truncate(length);
            let opened = self.cipher.decrypt_in_place_detached(&nonce(self.number), b"", &mut self.chunk, &tag);
            opened.map_err(|_| io::Error::other("it does not hold what was written to it"))?;
            (self.at, self.number) = (0, self.number + 1);
        }
        let given = into.len().min(self.chunk.len() - self.at);
        into[..given].copy_from_slice(&self.chunk[self.at..self.at + given]);
        self.at += given;
        Ok(given)
    }
}

fn nonce(number: u64) -> Nonce {
    let mut nonce = Nonce::default();
    nonce[..8].copy_from_slice(&number.to_le_bytes());
    nonce
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_written_comes_back_and_the_disk_does_not_show_it() {
        for size in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK / 2] {
            let text: Vec<u8> = b"secret ".iter().cycle().take(size).copied().collect();
            let mut file = Temporary::new().unwrap();
            text.chunks(1000).for_each(|piece| file.write_all(piece).unwrap());
            let mut again = file.again().unwrap();
            let (mut stored, mut back) = (Vec::new(), Vec::new());
            again.file.read_to_end(&mut stored).unwrap();
            assert!(memchr::memmem::find(&stored, b"secret").is_none());
            again.file.seek(SeekFrom::Start(0)).unwrap();
            again.read_to_end(&mut back).unwrap();
            assert!(back == text, "{size}");
        }
    }

    #[test]
    fn a_flipped_bit_is_noticed() {
        let mut file = Temporary::new().unwrap();
        file.write_all(b"hello").unwrap();
        let mut again = file.again().unwrap();
        again.file.write_all(&5u32.to_le_bytes()).unwrap();
        again.file.write_all(b"x").unwrap();
        again.file.seek(SeekFrom::Start(0)).unwrap();
        assert!(again.read_to_end(&mut Vec::new()).is_err());
    }
}
