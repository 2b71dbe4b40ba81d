//! Members of JSON objects, as text: what is left is left byte for byte.

use crate::dump::parse;
use serde_json::value::RawValue;
use std::collections::HashMap;

/// An object without some of its members.
pub(crate) fn without(object: &[u8], names: &[&str]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(object.len());
    out.push(b'{');
    for (name, value) in pairs(object)? {
        if names.contains(&name.as_str()) {
            continue;
        }
        if out.len() > 1 {
            out.push(b',');
        }
        serde_json::to_writer(&mut out, &name).ok()?;
        out.push(b':');
        out.extend_from_slice(value.get().as_bytes());
    }
    out.push(b'}');
    Some(out)
}

/// An object with one member made anew.
pub(crate) fn with(object: &[u8], name: &str, make: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(object.len());
    out.push(b'{');
    for (n, value) in pairs(object)? {
        if out.len() > 1 {
            out.push(b',');
        }
        serde_json::to_writer(&mut out, &n).ok()?;
        out.push(b':');
        match n == name {
            true => out.extend_from_slice(&make(value.get().as_bytes())?),
            false => out.extend_from_slice(value.get().as_bytes()),
        }
    }
    out.push(b'}');
    Some(out)
}

/// One member of an object.
pub(crate) fn of<'a>(object: &'a [u8], name: &str) -> Option<&'a str> {
    let mut all: HashMap<String, &'a RawValue> = parse(object, "an object").ok()?;
    all.remove(name).map(RawValue::get)
}

/// The members in their order.
fn pairs(object: &[u8]) -> Option<Vec<(String, &RawValue)>> {
    struct Pairs<'a>(Vec<(String, &'a RawValue)>);
    impl<'de> serde::Deserialize<'de> for Pairs<'de> {
        fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            struct Visitor;
            impl<'de> serde::de::Visitor<'de> for Visitor {
                type Value = Pairs<'de>;

                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("an object")
                }

                fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                    let mut all = Vec::new();
                    while let Some(pair) = map.next_entry()? {
                        all.push(pair);
                    }
                    Ok(Pairs(all))
                }
            }
            from.deserialize_map(Visitor)
        }
    }
    parse::<Pairs<'_>>(object, "an object").ok().map(|p| p.0)
}

/// Escaped surrogate pairs as the characters that they mean: RavenDB destroys them, and takes the
/// characters themselves. None if there is none.
pub(crate) fn without_surrogates(text: &[u8]) -> Option<Vec<u8>> {
    let mut out: Option<Vec<u8>> = None;
    let (mut at, mut copied) = (0, 0);
    while let Some(n) = memchr::memchr(b'\\', &text[at..]) {
        at += n;
        let pair = unit(&text[at..]).filter(|u| (0xD800..0xDC00).contains(u));
        let low = text.get(at + 6..).and_then(unit).filter(|u| (0xDC00..0xE000).contains(u));
        let (Some(high), Some(low)) = (pair, low) else {
            at = (at + 2).min(text.len());
            continue;
        };
        let code = 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
        let out = out.get_or_insert_with(Vec::new);
        out.extend_from_slice(&text[copied..at]);
        out.extend_from_slice(char::from_u32(code).unwrap_or('\u{fffd}').encode_utf8(&mut [0; 4]).as_bytes());
        at += 12;
        copied = at;
    }
    let mut out = out?;
    out.extend_from_slice(&text[copied..]);
    Some(out)
}

/// The UTF-16 unit of an escape `\uXXXX`.
fn unit(text: &[u8]) -> Option<u32> {
    let digits = text.strip_prefix(b"\\u")?.get(..4)?;
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_rest_stays_as_it_is() {
        let object = br#"{"N":12345678901234567890123,"a":{"b": 1.0},"c":"\u00e4"}"#;
        let left = without(object, &["a"]).unwrap();
        assert_eq!(left, br#"{"N":12345678901234567890123,"c":"\u00e4"}"#);
        let made = with(object, "a", |v| without(v, &["b"])).unwrap();
        assert_eq!(made, br#"{"N":12345678901234567890123,"a":{},"c":"\u00e4"}"#);
        assert_eq!(of(object, "a"), Some(r#"{"b": 1.0}"#));
    }

    #[test]
    fn surrogates_become_characters() {
        let text = br#"{"a":"\ud83d\ude00x\\ud83d\\ude00\u00e4\uD83D\uDE00\ud83d"}"#;
        let made = without_surrogates(text).unwrap();
        assert_eq!(String::from_utf8(made).unwrap(), r#"{"a":"😀x\\ud83d\\ude00\u00e4😀\ud83d"}"#);
        assert!(without_surrogates(br#"{"a":"\u00e4\n"}"#).is_none());
    }
}
