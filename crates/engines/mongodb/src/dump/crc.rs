//! CRC-64 with the polynomial of ECMA-182, reflected, as Go's `hash/crc64` has it (CRC-64/XZ).

const POLYNOMIAL: u64 = 0xC96C_5795_D787_0F42;

/// `TABLES[k][b]`: what the byte `b` does when `k` more bytes follow in the same step.
static TABLES: [[u64; 256]; 8] = tables();

const fn tables() -> [[u64; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte as u64;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { value >> 1 ^ POLYNOMIAL } else { value >> 1 };
            bit += 1;
        }
        tables[0][byte] = value;
        byte += 1;
    }
    let mut k = 1;
    while k < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[k - 1][byte];
            tables[k][byte] = tables[0][(before & 0xFF) as usize] ^ before >> 8;
            byte += 1;
        }
        k += 1;
    }
    tables
}

/// A checksum of bytes that come piece by piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Crc64(u64);

impl Crc64 {
    /// Of no bytes.
    pub fn new() -> Crc64 {
        Crc64(!0)
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        let mut crc = self.0;
        let (eights, rest) = bytes.as_chunks::<8>();
        for eight in eights {
            let x = (crc ^ u64::from_le_bytes(*eight)).to_le_bytes();
            crc = 0;
            for (k, byte) in x.iter().enumerate() {
                crc ^= TABLES[7 - k][usize::from(*byte)];
            }
        }
        for byte in rest {
            crc = TABLES[0][(crc as u8 ^ byte) as usize] ^ crc >> 8;
        }
        self.0 = crc;
    }

    /// The checksum of all bytes so far.
    pub fn sum(&self) -> u64 {
        !self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_sums() {
        let sum = |bytes: &[u8]| {
            let mut crc = Crc64::new();
            crc.update(bytes);
            crc.sum()
        };
        // The check value of CRC-64/XZ in the RevEng catalogue.
        assert_eq!(sum(b"123456789"), 0x995D_C9BB_DF19_39FA);
        assert_eq!(sum(b""), 0);
    }

    #[test]
    fn pieces_give_the_same() {
        let bytes: Vec<u8> = (0..1000u32).map(|i| (i * 7 % 251) as u8).collect();
        let mut whole = Crc64::new();
        whole.update(&bytes);
        for size in [1, 3, 8, 13, 999] {
            let mut crc = Crc64::new();
            bytes.chunks(size).for_each(|piece| crc.update(piece));
            assert_eq!(crc, whole, "{size}");
        }
    }
}
