//! Text to BSON, in one pass.

use super::wrap;
use bson::Decimal128;

/// The digits that a decimal128 keeps.
const DECIMAL_DIGITS: usize = 34;

/// Why a text cannot become BSON.
type Read<T> = Result<T, String>;

/// Appends the BSON of a document to `out`; says why not if that cannot be. `deepest` is how deep
/// documents and arrays may be nested.
pub fn read(text: &[u8], deepest: usize, out: &mut Vec<u8>) -> Result<(), String> {
    let start = out.len();
    let mut reader = Reader { text: std::str::from_utf8(text).map_err(no_json)?.as_bytes(), at: 0, deepest, out };
    let done = reader.whole(start);
    if done.is_err() {
        out.truncate(start);
    }
    done
}

fn no_json(why: impl std::fmt::Display) -> String {
    format!("it is no JSON ({why})")
}

struct Reader<'a> {
    /// UTF-8.
    text: &'a [u8],
    at: usize,
    deepest: usize,
    out: &'a mut Vec<u8>,
}

impl Reader<'_> {
    fn whole(&mut self, start: usize) -> Read<()> {
        self.space();
        if self.next() != Some(b'{') {
            return Err("it is no object in JSON".into());
        }
        self.document(0)?;
        self.space();
        if self.at != self.text.len() {
            return Err(self.unexpected());
        }
        // Other wrappers at the top are documents: a value alone is none.
        wrap::unwrap_document(self.out, start);
        Ok(())
    }

    fn next(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.next(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn unexpected(&self) -> String {
        match self.next() {
            Some(_) => no_json(format!("unexpected text at byte {}", self.at)),
            None => no_json("its end is missing"),
        }
    }

    fn expect(&mut self, byte: u8) -> Read<()> {
        if self.next() != Some(byte) {
            return Err(self.unexpected());
        }
        self.at += 1;
        Ok(())
    }

    /// Begins a document or array.
    fn begin(&mut self, depth: usize) -> Read<usize> {
        if depth > self.deepest {
            return Err(format!("it is nested more than {} deep", self.deepest));
        }
        self.at += 1;
        self.space();
        let start = self.out.len();
        self.out.extend_from_slice(&[0; 4]);
        Ok(start)
    }

    /// Ends it.
    fn end(&mut self, start: usize) -> Read<()> {
        self.at += 1;
        self.out.push(0);
        let length = u32::try_from(self.out.len() - start).map_err(|_| "it is too large")?;
        self.out[start..start + 4].copy_from_slice(&length.to_le_bytes());
        Ok(())
    }

    fn document(&mut self, depth: usize) -> Read<()> {
        let start = self.begin(depth)?;
        while self.next() != Some(b'}') {
            let kind = self.out.len();
            self.out.push(0);
            self.string()?;
            if self.out[kind + 1..].contains(&0) {
                return Err("a name in it holds a zero byte".into());
            }
            self.out.push(0);
            self.space();
            self.expect(b':')?;
            self.space();
            self.out[kind] = self.value(depth + 1)?;
            self.after_member(b'}')?;
        }
        self.end(start)
    }

    fn array(&mut self, depth: usize) -> Read<()> {
        let start = self.begin(depth)?;
        let mut place = 0u32;
        while self.next() != Some(b']') {
            let kind = self.out.len();
            self.out.push(0);
            // Memory takes everything.
            let _ = std::io::Write::write_fmt(self.out, format_args!("{place}\0"));
            self.out[kind] = self.value(depth + 1)?;
            self.after_member(b']')?;
            place += 1;
        }
        self.end(start)
    }

    /// Goes to the next member, or to the end.
    fn after_member(&mut self, end: u8) -> Read<()> {
        self.space();
        if self.next() == Some(end) {
            return Ok(());
        }
        self.expect(b',')?;
        self.space();
        // No end after a comma.
        if self.next() == Some(end) { Err(self.unexpected()) } else { Ok(()) }
    }

    /// Any value; its type.
    fn value(&mut self, depth: usize) -> Read<u8> {
        Ok(match self.next() {
            Some(b'{') => {
                let start = self.out.len();
                self.document(depth)?;
                wrap::unwrap(self.out, start).unwrap_or(0x03)
            }
            Some(b'[') => {
                self.array(depth)?;
                0x04
            }
            Some(b'"') => {
                let start = self.out.len();
                self.out.extend_from_slice(&[0; 4]);
                self.string()?;
                self.out.push(0);
                let length = u32::try_from(self.out.len() - start - 4).map_err(|_| "it is too large")?;
                self.out[start..start + 4].copy_from_slice(&length.to_le_bytes());
                0x02
            }
            Some(b't') => self.word("true", 0x08, &[1])?,
            Some(b'f') => self.word("false", 0x08, &[0])?,
            Some(b'n') => self.word("null", 0x0A, &[])?,
            Some(b'-' | b'0'..=b'9') => self.number()?,
            _ => return Err(self.unexpected()),
        })
    }

    fn word(&mut self, word: &str, kind: u8, value: &[u8]) -> Read<u8> {
        if !self.text[self.at..].starts_with(word.as_bytes()) {
            return Err(self.unexpected());
        }
        self.at += word.len();
        self.out.extend_from_slice(value);
        Ok(kind)
    }

    /// Appends the text of a string.
    fn string(&mut self) -> Read<()> {
        self.expect(b'"')?;
        let mut from = self.at;
        loop {
            match self.next() {
                Some(b'"') => break,
                Some(b'\\') => {
                    self.out.extend_from_slice(&self.text[from..self.at]);
                    self.escape()?;
                    from = self.at;
                }
                Some(0x20..) => self.at += 1,
                _ => return Err(self.unexpected()),
            }
        }
        self.out.extend_from_slice(&self.text[from..self.at]);
        self.at += 1;
        Ok(())
    }

    fn escape(&mut self) -> Read<()> {
        let byte = match self.text.get(self.at + 1) {
            Some(b'u') => {
                let char = self.unicode()?;
                self.out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            Some(byte @ (b'"' | b'\\' | b'/')) => *byte,
            Some(b'b') => 0x08,
            Some(b'f') => 0x0C,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            _ => return Err(no_json(format!("an unknown escape at byte {}", self.at))),
        };
        self.out.push(byte);
        self.at += 2;
        Ok(())
    }

    /// `\uXXXX`, or two of them.
    fn unicode(&mut self) -> Read<char> {
        let first = self.unit()?;
        let half = || "a text in it holds half a character (\\ud800 to \\udfff)".to_owned();
        if !(0xD800..0xDC00).contains(&first) || !self.text[self.at..].starts_with(b"\\u") {
            return char::from_u32(first).ok_or_else(half);
        }
        let second = self.unit()?;
        match (0xDC00..0xE000).contains(&second) {
            true => char::from_u32(0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00)).ok_or_else(half),
            false => Err(half()),
        }
    }

    fn unit(&mut self) -> Read<u32> {
        let digits = self.text.get(self.at + 2..self.at + 6).and_then(|d| std::str::from_utf8(d).ok());
        let digits = digits.filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
        let unit = digits.and_then(|d| u32::from_str_radix(d, 16).ok()).ok_or_else(|| self.unexpected())?;
        self.at += 6;
        Ok(unit)
    }

    fn number(&mut self) -> Read<u8> {
        let from = self.at;
        if self.next() == Some(b'-') {
            self.at += 1;
        }
        let whole = self.digits()?;
        if whole > 1 && self.text[self.at - whole] == b'0' {
            return Err(no_json("a number begins with 0"));
        }
        let mut is_whole = true;
        if self.next() == Some(b'.') {
            (is_whole, self.at) = (false, self.at + 1);
            self.digits()?;
        }
        if matches!(self.next(), Some(b'e' | b'E')) {
            (is_whole, self.at) = (false, self.at + 1);
            if matches!(self.next(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        let text = std::str::from_utf8(&self.text[from..self.at]).unwrap_or_default();
        let none = || format!("no type of number holds {text:.100}");
        if !is_whole || text == "-0" {
            let number: f64 = text.parse().ok().filter(|n: &f64| n.is_finite()).ok_or_else(none)?;
            self.out.extend_from_slice(&number.to_le_bytes());
            return Ok(0x01);
        }
        if let Ok(number) = text.parse::<i64>() {
            return Ok(match i32::try_from(number) {
                Ok(number) => {
                    self.out.extend_from_slice(&number.to_le_bytes());
                    0x10
                }
                Err(_) => {
                    self.out.extend_from_slice(&number.to_le_bytes());
                    0x12
                }
            });
        }
        let digits = text.trim_start_matches('-').trim_end_matches('0').len();
        match text.parse::<Decimal128>() {
            Ok(number) if digits <= DECIMAL_DIGITS && text.len() <= DECIMAL_DIGITS => {
                self.out.extend_from_slice(&number.bytes());
                Ok(0x13)
            }
            _ => Err(none()),
        }
    }

    fn digits(&mut self) -> Read<usize> {
        let from = self.at;
        while matches!(self.next(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at == from { Err(self.unexpected()) } else { Ok(self.at - from) }
    }
}
