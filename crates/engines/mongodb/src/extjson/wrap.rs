//! Values that JSON has no way of writing for: documents of one or two members that stand for them.

use super::{BSON, is_wrapper};
use crate::raw::{self, Element};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bson::{DateTime, Decimal128};
use std::ops::Range;

/// The bytes of a value, without an allocation where they are few or there already.
enum Value {
    Few([u8; 16], usize),
    /// In the document, counted from its beginning.
    There(Range<usize>),
    Made(Vec<u8>),
}

/// Puts the value in the place of the document from `start` to the end that stands for it; its type.
/// None, with nothing changed, if it is a document like any other.
pub fn unwrap(out: &mut Vec<u8>, start: usize) -> Option<u8> {
    let (kind, value) = value_of(&out[start..])?;
    match value {
        Value::Few(bytes, length) => {
            out.truncate(start);
            out.extend_from_slice(&bytes[..length]);
        }
        Value::There(range) => {
            out.copy_within(start + range.start..start + range.end, start);
            out.truncate(start + range.len());
        }
        Value::Made(bytes) => {
            out.truncate(start);
            out.extend_from_slice(&bytes);
        }
    }
    Some(kind)
}

/// The same for a whole document, which can only be there as its bytes.
pub fn unwrap_document(out: &mut Vec<u8>, start: usize) {
    let document = &out[start..];
    let first = raw::element(document, 4);
    if first.is_some_and(|e| &document[e.name..e.value - 1] == BSON.as_bytes())
        && let Some((0x03, Value::Made(bytes))) = value_of(document)
    {
        out.truncate(start);
        out.extend_from_slice(&bytes);
    }
}

fn few(bytes: &[u8]) -> Value {
    let mut all = [0; 16];
    all[..bytes.len()].copy_from_slice(bytes);
    Value::Few(all, bytes.len())
}

fn value_of(document: &[u8]) -> Option<(u8, Value)> {
    let first = raw::element(document, 4)?;
    let name = &document[first.name..first.value - 1];
    if !is_wrapper(name) {
        return None;
    }
    let end = document.len() - 1;
    if name == b"$code" {
        return code(document, &first, end);
    }
    if first.end != end {
        return None;
    }
    let there = || Value::There(first.value..first.end);
    let text = || text(document, &first);
    Some(match name {
        b"$oid" => (0x07, few(&object_id(text()?)?)),
        b"$numberInt" => (0x10, few(&text()?.parse::<i32>().ok()?.to_le_bytes())),
        b"$numberLong" => (0x12, few(&text()?.parse::<i64>().ok()?.to_le_bytes())),
        b"$numberDouble" => (0x01, few(&double(text()?)?.to_le_bytes())),
        b"$numberDecimal" => (0x13, few(&text()?.parse::<Decimal128>().ok()?.bytes())),
        b"$date" => match first.kind {
            0x12 => (0x09, there()),
            _ => (0x09, few(&DateTime::parse_rfc3339_str(text()?).ok()?.timestamp_millis().to_le_bytes())),
        },
        b"$symbol" => {
            text()?;
            (0x0E, there())
        }
        b"$minKey" | b"$maxKey" => {
            let is_one = first.kind == 0x10 && document[first.value..first.end] == 1i32.to_le_bytes();
            is_one.then_some((if name == b"$minKey" { 0xFF } else { 0x7F }, few(&[])))?
        }
        b"$undefined" => (first.kind == 0x08 && document[first.value] == 1).then_some((0x06, few(&[])))?,
        b"$uuid" => (0x05, Value::Made(binary(4, &uuid(text()?)?))),
        b"$binary" => {
            let [content, subtype] = members(document, &first, ["base64", "subType"])?;
            let subtype = u8::from_str_radix(content_of(&subtype)?, 16).ok()?;
            let content = STANDARD.decode(content_of(&content)?).ok()?;
            (0x05, Value::Made(binary(subtype, &content)))
        }
        b"$timestamp" => {
            let [time, increment] = members(document, &first, ["t", "i"])?;
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&unsigned(&increment)?.to_le_bytes());
            bytes[4..].copy_from_slice(&unsigned(&time)?.to_le_bytes());
            (0x11, few(&bytes))
        }
        b"$regularExpression" => {
            let [pattern, options] = members(document, &first, ["pattern", "options"])?;
            let (pattern, options) = (content_of(&pattern)?, content_of(&options)?);
            if pattern.contains('\0') || options.contains('\0') {
                return None;
            }
            (0x0B, Value::Made([pattern.as_bytes(), b"\0", options.as_bytes(), b"\0"].concat()))
        }
        b"$dbPointer" => {
            let [namespace, id] = members(document, &first, ["$ref", "$id"])?;
            content_of(&namespace)?;
            (0x0C, Value::Made([namespace.1, Some(id.1).filter(|_| id.0 == 0x07)?].concat()))
        }
        _ => {
            let [kind, bytes] = members(document, &first, ["type", "base64"])?;
            let kind = u8::from_str_radix(content_of(&kind)?, 16).ok()?;
            let bytes = STANDARD.decode(content_of(&bytes)?).ok()?;
            // What is around it must still be a document.
            let is_whole = match kind {
                0x03 | 0x04 => raw::document_len(&bytes) == Some(bytes.len()),
                _ => raw::value_len(kind, &bytes) == Some(bytes.len()),
            };
            (kind, Value::Made(Some(bytes).filter(|_| is_whole)?))
        }
    })
}

fn code(document: &[u8], first: &Element, end: usize) -> Option<(u8, Value)> {
    text(document, first)?;
    if first.end == end {
        return Some((0x0D, Value::There(first.value..first.end)));
    }
    let scope = raw::element(document, first.end)?;
    if scope.end != end || scope.kind != 0x03 || &document[scope.name..scope.value - 1] != b"$scope" {
        return None;
    }
    let parts = [&document[first.value..first.end], &document[scope.value..scope.end]];
    let length = parts.iter().map(|p| p.len()).sum::<usize>() + 4;
    Some((0x0F, Value::Made([&(length as u32).to_le_bytes(), parts[0], parts[1]].concat())))
}

/// The text of an element that is a string.
fn text<'a>(document: &'a [u8], element: &Element) -> Option<&'a str> {
    content_of(&(element.kind, &document[element.value..element.end]))
}

/// The text of a value that is a string.
fn content_of<'a>(value: &(u8, &'a [u8])) -> Option<&'a str> {
    let bytes = Some(value.1).filter(|_| value.0 == 0x02)?;
    std::str::from_utf8(bytes.get(4..bytes.len().checked_sub(1)?)?).ok()
}

/// The types and values of the two members of the document that an element is, in this order.
fn members<'a>(document: &'a [u8], element: &Element, names: [&str; 2]) -> Option<[(u8, &'a [u8]); 2]> {
    let inner = Some(&document[element.value..element.end]).filter(|_| element.kind == 0x03)?;
    let one = raw::element(inner, 4)?;
    let other = raw::element(inner, one.end)?;
    let name = |e: &Element| &inner[e.name..e.value - 1];
    let value = |e: &Element| (e.kind, &inner[e.value..e.end]);
    if other.end != inner.len() - 1 {
        return None;
    }
    match () {
        () if name(&one) == names[0].as_bytes() && name(&other) == names[1].as_bytes() => {
            Some([value(&one), value(&other)])
        }
        () if name(&one) == names[1].as_bytes() && name(&other) == names[0].as_bytes() => {
            Some([value(&other), value(&one)])
        }
        () => None,
    }
}

fn object_id(text: &str) -> Option<[u8; 12]> {
    bson::oid::ObjectId::parse_str(text).ok().map(|id| id.bytes())
}

fn uuid(text: &str) -> Option<[u8; 16]> {
    bson::Uuid::parse_str(text).ok().map(|id| id.bytes())
}

fn double(text: &str) -> Option<f64> {
    match text {
        "Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        "NaN" => Some(f64::NAN),
        _ => text.parse().ok().filter(|n: &f64| n.is_finite()),
    }
}

fn unsigned(value: &(u8, &[u8])) -> Option<u32> {
    match value.0 {
        0x10 => i32::from_le_bytes(value.1.try_into().ok()?).try_into().ok(),
        0x12 => i64::from_le_bytes(value.1.try_into().ok()?).try_into().ok(),
        _ => None,
    }
}

fn binary(subtype: u8, content: &[u8]) -> Vec<u8> {
    let inner = if subtype == 2 { 4 } else { 0 };
    let mut bytes = Vec::with_capacity(content.len() + inner + 5);
    bytes.extend_from_slice(&((content.len() + inner) as u32).to_le_bytes());
    bytes.push(subtype);
    if subtype == 2 {
        bytes.extend_from_slice(&(content.len() as u32).to_le_bytes());
    }
    bytes.extend_from_slice(content);
    bytes
}
