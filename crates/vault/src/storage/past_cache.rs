//! Writing large files past the page cache.
//!
//! What a backup writes is not read again for long. In the page cache it would push out what a database on the same
//! host keeps there, and fresh pages for it cost more than one more copy does here.

use std::fs::File;
use std::io::{self, Write};

/// Writes a new file of these bytes: most of a large one past the page cache, where the system can. It is durable only
/// when it has been flushed, as always.
pub(super) fn write(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    let written = direct(file, bytes)?;
    file.write_all(&bytes[written..])
}

#[cfg(not(target_os = "linux"))]
fn direct(_: &mut File, _: &[u8]) -> io::Result<usize> {
    Ok(0)
}

#[cfg(target_os = "linux")]
use linux::direct;

#[cfg(target_os = "linux")]
mod linux {
    use super::*;
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    use std::io::Seek;

    /// Bytes of a file from which on it is worth it (1 MiB).
    const LARGE: usize = 1 << 20;
    /// Bytes that are written at once (1 MiB).
    const ONCE: usize = 1 << 20;
    /// What addresses and lengths must be multiples of, on all disks there are (open(2), O_DIRECT).
    const BLOCK: usize = 4096;

    /// Writes the whole blocks of a large file; how many bytes that was: fewer if the file system refuses.
    pub(super) fn direct(file: &mut File, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() < LARGE || set_direct(file, true).is_err() {
            return Ok(0);
        }
        let written = write_blocks(file, &bytes[..bytes.len() / BLOCK * BLOCK]);
        set_direct(file, false)?;
        written
    }

    fn set_direct(file: &File, on: bool) -> io::Result<()> {
        let mut flags = fcntl_getfl(file)?;
        flags.set(OFlags::DIRECT, on);
        Ok(fcntl_setfl(file, flags)?)
    }

    /// Gives the number of bytes that were written when the file system refused, or of all.
    pub(super) fn write_blocks(file: &mut (impl Write + Seek), bytes: &[u8]) -> io::Result<usize> {
        let mut room = vec![0; ONCE + BLOCK];
        let start = room.as_ptr().align_offset(BLOCK).min(BLOCK);
        let begun = file.stream_position()?;
        for part in bytes.chunks(ONCE) {
            let blocks = &mut room[start..start + part.len()];
            blocks.copy_from_slice(part);
            match file.write_all(blocks) {
                // A part of it may have been written before.
                Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
                    return Ok((file.stream_position()? - begun) as usize);
                }
                done => done?,
            }
        }
        Ok(bytes.len())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::{Cursor, Read, Seek, SeekFrom};

    #[test]
    fn files_of_any_size_hold_what_was_written() {
        let bytes: Vec<u8> = (0..3_300_000u32).map(|n| (n ^ n >> 8) as u8).collect();
        for size in [0, 1, 4096, 1 << 20, (1 << 20) - 1, (1 << 20) + 1, (1 << 20) + 4096, 2 << 20, 3_300_000] {
            // From an odd place on: the bytes need not stand at a multiple of anything, nor the file's end.
            for (from, before) in [(0, 0), (3, 0), (0, 5)] {
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(&bytes[..before]).unwrap();
                let written = &bytes[from..size.max(from)];
                write(&mut file, written).unwrap();
                file.write_all(b"and more").unwrap();
                file.rewind().unwrap();
                let mut read = Vec::new();
                file.read_to_end(&mut read).unwrap();
                assert!(read == [&bytes[..before], written, b"and more"].concat(), "{size} {from} {before}");
            }
        }
    }

    /// A file system that writes so many bytes, some of them at once, and then refuses.
    struct Refuses(Cursor<Vec<u8>>, usize);

    impl Write for Refuses {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let left = self.1 - self.0.get_ref().len();
            match left.min(bytes.len()).min(300_000) {
                0 => Err(io::ErrorKind::InvalidInput.into()),
                some => self.0.write(&bytes[..some]),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Seek for Refuses {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.0.seek(to)
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_was_written_before_a_refusal_is_not_written_again() {
        let bytes: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
        for most in [0, 4096, 1 << 20, (1 << 20) + 4096, 3_000_000] {
            let mut file = Refuses(Cursor::default(), most);
            assert_eq!(linux::write_blocks(&mut file, &bytes).unwrap(), most);
            assert!(file.0.get_ref()[..] == bytes[..most]);
        }
    }

    #[test]
    fn a_disk_that_is_full_is_told() {
        let Ok(mut full) = File::options().write(true).open("/dev/full") else { return };
        assert!(write(&mut full, &[1; 3 << 20]).is_err());
    }
}
