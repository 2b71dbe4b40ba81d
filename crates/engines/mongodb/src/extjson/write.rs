//! BSON to text, from its raw bytes.

use super::{BSON, DEEPEST, is_wrapper};
use crate::raw::{self, Element};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bson::{DateTime, Decimal128};
use model::limits;
use std::io::Write;

/// How numbers and times are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Every one with its type: canonical Extended JSON.
    Canonical,
    /// As plain JSON where the type is that which reading it gives; times as dates.
    Short,
}

/// Appends a document as JSON, whatever its bytes.
pub fn write(document: &[u8], style: Style, out: &mut Vec<u8>) {
    let start = out.len();
    let mut writer = Writer { out, style };
    if raw::flaw(document, &mut Vec::new()).is_none() {
        let is_escape = raw::element(document, 4).is_some_and(|e| name(document, &e) == BSON.as_bytes());
        if !is_escape && writer.members(document, 0).is_some() && writer.out.len() - start <= limits::DOCUMENT_MAX {
            return;
        }
    }
    writer.out.truncate(start);
    writer.as_bson(0x03, document);
}

/// Appends one value as JSON: its type, and its bytes without anything around them.
pub fn write_value(kind: u8, value: &[u8], style: Style, out: &mut Vec<u8>) {
    let mut writer = Writer { out, style };
    // A value is sound if a document that holds nothing else is.
    let mut document = vec![0; 4];
    document.push(kind);
    document.push(0);
    document.extend_from_slice(value);
    document.push(0);
    let length = document.len() as u32;
    document[..4].copy_from_slice(&length.to_le_bytes());
    match raw::flaw(&document, &mut Vec::new()) {
        None => writer.value(kind, value, 0),
        Some(_) => writer.as_bson(kind, value),
    }
}

fn name<'a>(document: &'a [u8], element: &Element) -> &'a [u8] {
    &document[element.name..element.value - 1]
}

/// Writes documents whose structure has been checked.
struct Writer<'a> {
    out: &'a mut Vec<u8>,
    style: Style,
}

impl Writer<'_> {
    /// A document; none, with its beginning written, if it has a name that is no text.
    fn members(&mut self, document: &[u8], depth: usize) -> Option<()> {
        self.out.push(b'{');
        let mut at = 4;
        while let Some(element) = raw::element(document, at) {
            if at > 4 {
                self.out.push(b',');
            }
            self.text(std::str::from_utf8(name(document, &element)).ok()?);
            self.out.push(b':');
            self.value(element.kind, &document[element.value..element.end], depth + 1);
            at = element.end;
        }
        self.out.push(b'}');
        Some(())
    }

    /// An array; none, with its beginning written, if its keys are not its places.
    fn elements(&mut self, array: &[u8], depth: usize) -> Option<()> {
        self.out.push(b'[');
        let (mut at, mut place) = (4, 0u32);
        while let Some(element) = raw::element(array, at) {
            if !is_number(name(array, &element), place) {
                return None;
            }
            if at > 4 {
                self.out.push(b',');
            }
            self.value(element.kind, &array[element.value..element.end], depth + 1);
            (at, place) = (element.end, place + 1);
        }
        self.out.push(b']');
        Some(())
    }

    /// Any value.
    fn value(&mut self, kind: u8, bytes: &[u8], depth: usize) {
        let start = self.out.len();
        if depth > DEEPEST || self.try_value(kind, bytes, depth).is_none() {
            self.out.truncate(start);
            self.as_bson(kind, bytes);
        }
    }

    /// A value; none if Extended JSON cannot carry it.
    fn try_value(&mut self, kind: u8, bytes: &[u8], depth: usize) -> Option<()> {
        match kind {
            0x01 => self.double(f64::from_le_bytes(bytes.try_into().ok()?))?,
            0x02 => self.text(text_of(bytes)?),
            0x03 => {
                let first = raw::element(bytes, 4);
                if first.is_some_and(|e| is_wrapper(name(bytes, &e))) {
                    return None;
                }
                self.members(bytes, depth)?;
            }
            0x04 => self.elements(bytes, depth)?,
            0x05 => self.binary(bytes)?,
            0x06 => self.put(r#"{"$undefined":true}"#),
            0x07 => {
                self.put(r#"{"$oid":""#);
                self.hex(bytes);
                self.put(r#""}"#);
            }
            0x08 => self.put(if bytes == [1] { "true" } else { "false" }),
            0x09 => self.date(i64::from_le_bytes(bytes.try_into().ok()?)),
            0x0A => self.put("null"),
            0x0B => {
                let mut parts = bytes.split(|b| *b == 0).map(std::str::from_utf8);
                let (pattern, options) = (parts.next()?.ok()?, parts.next()?.ok()?);
                self.put(r#"{"$regularExpression":{"pattern":"#);
                self.text(pattern);
                self.put(r#","options":"#);
                self.text(options);
                self.put("}}");
            }
            0x0C => {
                let (namespace, id) = bytes.split_at_checked(bytes.len().checked_sub(12)?)?;
                self.put(r#"{"$dbPointer":{"$ref":"#);
                self.text(text_of(namespace)?);
                self.put(r#","$id":{"$oid":""#);
                self.hex(id);
                self.put(r#""}}}"#);
            }
            0x0D => {
                self.put(r#"{"$code":"#);
                self.text(text_of(bytes)?);
                self.put("}");
            }
            0x0E => {
                self.put(r#"{"$symbol":"#);
                self.text(text_of(bytes)?);
                self.put("}");
            }
            0x0F => {
                let length = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?) as usize;
                let (code, scope) = bytes.get(4..)?.split_at_checked(4 + length)?;
                self.put(r#"{"$code":"#);
                self.text(text_of(code)?);
                self.put(r#","$scope":"#);
                self.value(0x03, scope, depth + 1);
                self.put("}");
            }
            0x10 => self.int32(i32::from_le_bytes(bytes.try_into().ok()?)),
            0x11 => {
                let (increment, time) = bytes.split_at_checked(4)?;
                let number = |bytes: &[u8]| Some(u32::from_le_bytes(bytes.try_into().ok()?));
                let (time, increment) = (number(time)?, number(increment)?);
                self.show(format_args!(r#"{{"$timestamp":{{"t":{time},"i":{increment}}}}}"#));
            }
            0x12 => self.int64(i64::from_le_bytes(bytes.try_into().ok()?)),
            0x13 => {
                let bytes: [u8; 16] = bytes.try_into().ok()?;
                let text = Decimal128::from_bytes(bytes).to_string();
                // Not every 128 bits are those that a number's text stands for.
                if text.parse::<Decimal128>().ok()?.bytes() != bytes {
                    return None;
                }
                self.show(format_args!(r#"{{"$numberDecimal":"{text}"}}"#));
            }
            0x7F => self.put(r#"{"$maxKey":1}"#),
            0xFF => self.put(r#"{"$minKey":1}"#),
            _ => return None,
        }
        Some(())
    }

    fn double(&mut self, number: f64) -> Option<()> {
        if number.is_finite() {
            match self.style {
                Style::Canonical => self.show(format_args!(r#"{{"$numberDouble":"{number:?}"}}"#)),
                Style::Short => self.show(format_args!("{number:?}")),
            }
            return Some(());
        }
        let word = match number {
            f64::INFINITY => "Infinity",
            f64::NEG_INFINITY => "-Infinity",
            // Other bits that are no number have no name.
            _ if number.to_bits() == f64::NAN.to_bits() => "NaN",
            _ => return None,
        };
        self.show(format_args!(r#"{{"$numberDouble":"{word}"}}"#));
        Some(())
    }

    fn int32(&mut self, number: i32) {
        match self.style {
            Style::Canonical => self.show(format_args!(r#"{{"$numberInt":"{number}"}}"#)),
            Style::Short => self.show(format_args!("{number}")),
        }
    }

    fn int64(&mut self, number: i64) {
        match self.style {
            Style::Short if i32::try_from(number).is_err() => self.show(format_args!("{number}")),
            _ => self.show(format_args!(r#"{{"$numberLong":"{number}"}}"#)),
        }
    }

    fn date(&mut self, millis: i64) {
        // Dates with four digits for the year, as the text of others is no standard.
        if self.style == Style::Short
            && (0..253_402_300_800_000).contains(&millis)
            && let Ok(date) = DateTime::from_millis(millis).try_to_rfc3339_string()
        {
            return self.show(format_args!(r#"{{"$date":"{date}"}}"#));
        }
        self.show(format_args!(r#"{{"$date":{{"$numberLong":"{millis}"}}}}"#));
    }

    fn binary(&mut self, bytes: &[u8]) -> Option<()> {
        let (subtype, mut content) = (*bytes.get(4)?, bytes.get(5..)?);
        if subtype == 2 {
            // The old kind says its length twice; Extended JSON leaves the second one out.
            let (length, inner) = content.split_at_checked(4)?;
            if u32::from_le_bytes(length.try_into().ok()?) as usize != inner.len() {
                return None;
            }
            content = inner;
        }
        self.put(r#"{"$binary":{"base64":""#);
        self.base64(content);
        self.show(format_args!(r#"","subType":"{subtype:02x}"}}}}"#));
        Some(())
    }

    /// A value as its bytes.
    fn as_bson(&mut self, kind: u8, bytes: &[u8]) {
        self.show(format_args!(r#"{{"{BSON}":{{"type":"{kind:02x}","base64":""#));
        self.base64(bytes);
        self.put(r#""}}"#);
    }

    fn put(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    fn show(&mut self, text: std::fmt::Arguments<'_>) {
        // Memory takes everything.
        let _ = self.out.write_fmt(text);
    }

    fn hex(&mut self, bytes: &[u8]) {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        self.out.extend(bytes.iter().flat_map(|b| [HEX[usize::from(b >> 4)], HEX[usize::from(b & 15)]]));
    }

    fn base64(&mut self, bytes: &[u8]) {
        let start = self.out.len();
        self.out.resize(start + bytes.len().div_ceil(3) * 4, b'=');
        // There is room, which is all that it can miss.
        let _ = STANDARD.encode_slice(bytes, &mut self.out[start..]);
    }

    fn text(&mut self, text: &str) {
        let bytes = text.as_bytes();
        self.out.push(b'"');
        let mut from = 0;
        for (i, byte) in bytes.iter().enumerate() {
            let short = match byte {
                b'"' => b'"',
                b'\\' => b'\\',
                b'\n' => b'n',
                b'\r' => b'r',
                b'\t' => b't',
                0..=0x1F => b'u',
                _ => continue,
            };
            self.out.extend_from_slice(&bytes[from..i]);
            self.out.extend_from_slice(&[b'\\', short]);
            if short == b'u' {
                self.out.extend_from_slice(b"00");
                self.hex(&[*byte]);
            }
            from = i + 1;
        }
        self.out.extend_from_slice(&bytes[from..]);
        self.out.push(b'"');
    }
}

/// The text of a string: after its length, before the 0 at its end.
fn text_of(string: &[u8]) -> Option<&str> {
    std::str::from_utf8(string.get(4..string.len().checked_sub(1)?)?).ok()
}

/// Whether these digits are this number, as array keys are written.
fn is_number(digits: &[u8], mut number: u32) -> bool {
    if digits.len() > 1 && digits[0] == b'0' || digits.is_empty() {
        return false;
    }
    for digit in digits.iter().rev() {
        if *digit != b'0' + (number % 10) as u8 {
            return false;
        }
        number /= 10;
    }
    number == 0
}
