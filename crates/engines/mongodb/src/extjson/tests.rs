#![allow(clippy::unwrap_used)]
use super::*;
use crate::raw;
use bson::{Bson, Document, doc};
use proptest::prelude::*;

fn text_of(document: &[u8]) -> String {
    let mut text = Vec::new();
    write(document, Style::Canonical, &mut text);
    String::from_utf8(text).unwrap()
}

fn back(text: &str) -> Vec<u8> {
    let mut document = Vec::new();
    read(text.as_bytes(), DEEPEST + 8, &mut document).unwrap();
    document
}

/// A document from the bytes of its elements.
fn document(elements: &[&[u8]]) -> Vec<u8> {
    let inner = elements.concat();
    [&(inner.len() as u32 + 5).to_le_bytes()[..], &inner, b"\0"].concat()
}

#[track_caller]
fn comes_back(document: &[u8]) {
    let text = text_of(document);
    serde_json::from_str::<serde_json::Value>(&text).unwrap();
    assert_eq!(back(&text), document, "{text}");
}

#[test]
fn all_types_as_the_standard_writes_them() {
    let document = doc! {
        "_id": bson::oid::ObjectId::parse_str("0123456789abcdef01234567").unwrap(),
        "double": 1.0, "zero": -0.0, "big": 1e300, "string": "ü\0\"\\\u{1}\n", "document": { "a": [] }, "array": [1, "x"],
        "binary": bson::Binary { subtype: bson::spec::BinarySubtype::Uuid, bytes: vec![1; 16] },
        "undefined": Bson::Undefined, "true": true, "date": bson::DateTime::from_millis(-5), "null": null,
        "regex": bson::Regex { pattern: "a\"".try_into().unwrap(), options: "im".try_into().unwrap() },
        "code": Bson::JavaScriptCode("f()".into()), "symbol": Bson::Symbol("s".into()),
        "scope": bson::JavaScriptCodeWithScope { code: "g".into(), scope: doc! { "x": 1i64 } },
        "int": -7, "ts": bson::Timestamp { time: 4_000_000_000, increment: 2 }, "long": i64::MIN, "min": Bson::MinKey,
        "max": Bson::MaxKey, "decimal": "-1.50E+3".parse::<bson::Decimal128>().unwrap(),
    };
    let bytes = document.to_vec().unwrap();
    let expected = concat!(
        r#"{"_id":{"$oid":"0123456789abcdef01234567"},"double":{"$numberDouble":"1.0"},"zero":{"$numberDouble":"-0.0"},"#,
        r#""big":{"$numberDouble":"1e300"},"string":"ü\u0000\"\\\u0001\n","document":{"a":[]},"array":[{"$numberInt":"1"},"x"],"#,
        r#""binary":{"$binary":{"base64":"AQEBAQEBAQEBAQEBAQEBAQ==","subType":"04"}},"undefined":{"$undefined":true},"#,
        r#""true":true,"date":{"$date":{"$numberLong":"-5"}},"null":null,"#,
        r#""regex":{"$regularExpression":{"pattern":"a\"","options":"im"}},"code":{"$code":"f()"},"symbol":{"$symbol":"s"},"#,
        r#""scope":{"$code":"g","$scope":{"x":{"$numberLong":"1"}}},"int":{"$numberInt":"-7"},"#,
        r#""ts":{"$timestamp":{"t":4000000000,"i":2}},"long":{"$numberLong":"-9223372036854775808"},"min":{"$minKey":1},"#,
        r#""max":{"$maxKey":1},"decimal":{"$numberDecimal":"-1.50E+3"}}"#,
    );
    assert_eq!(text_of(&bytes), expected);
    comes_back(&bytes);
    // Others read it, too.
    let others = Bson::try_from(serde_json::from_str::<serde_json::Value>(expected).unwrap()).unwrap();
    assert_eq!(others, Bson::Document(document));
}

#[test]
fn what_the_standard_cannot_carry_comes_back() {
    let looks_like = doc! { "a": { "$oid": "0123456789abcdef01234567" }, "b": { "$date": 1 }, "c": { "$bson": 1 } };
    let odd_array = document(&[b"\x105\0\x01\0\0\0", b"\x10x\0\x02\0\0\0"]);
    for (document, shown) in [
        (looks_like.to_vec().unwrap(), r#"{"a":{"$bson":{"type":"03","base64":"#),
        (document(&[b"\x02a\0\x03\0\0\0\xff\xfe\0"]), r#"{"a":{"$bson":{"type":"02","base64":"AwAAAP/+AA=="}}}"#),
        (document(&[b"\x02\xff\0\x01\0\0\0\0"]), r#"{"$bson":{"type":"03","base64":"#),
        (document(&[b"\x10$bson\0\x01\0\0\0"]), r#"{"$bson":{"type":"03","base64":"#),
        (document(&[b"\x02$oid\0\x02\0\0\0x\0"]), r#"{"$oid":"x"}"#),
        (document(&[b"\x04a\0", &odd_array]), r#"{"a":{"$bson":{"type":"04","base64":"#),
        (document(&[b"\x01a\0\x01\0\0\0\0\0\xf8\x7f"]), r#"{"a":{"$bson":{"type":"01","base64":"#),
        (document(&[b"\x01a\0\0\0\0\0\0\0\xf8\xff"]), r#"{"a":{"$bson":{"type":"01","base64":"#),
        // Binary of the old kind whose second length is not the first.
        (document(&[b"\x05a\0\x05\0\0\0\x02\x09\0\0\0x"]), r#"{"a":{"$bson":{"type":"05","base64":"#),
        (document(&[b"\x05a\0\x02\0\0\0\x02xy"]), r#"{"a":{"$bson":{"type":"05","base64":"#),
        // A decimal with more digits than there are.
        (document(&[b"\x13a\0", &[0xff; 14], b"\x01\x30"]), r#"{"a":{"$bson":{"type":"13","base64":"#),
        (document(&[b"\x0Ba\0\xff\0\0"]), r#"{"a":{"$bson":{"type":"0b","base64":"#),
    ] {
        assert!(text_of(&document).starts_with(shown), "{}", text_of(&document));
        comes_back(&document);
    }
    // The same name twice, names with dots and dollars, an empty name, times of a scope.
    comes_back(&document(&[b"\x10a\0\x01\0\0\0", b"\x02a\0\x02\0\0\0x\0", b"\x0A\0", b"\x0A$set\0", b"\x0Ax.y\0"]));
    let scope = doc! { "c": bson::JavaScriptCodeWithScope { code: "g".into(), scope: doc! { "$oid": 1 } } };
    comes_back(&scope.to_vec().unwrap());
    let control = doc! { "a": "\u{1}".repeat(10 << 20) };
    assert!(text_of(&control.to_vec().unwrap()).len() < 16 << 20, "large texts do not become six times as large");
    comes_back(&control.to_vec().unwrap());
}

#[test]
fn deep_documents_come_back() {
    for depth in [1, 100, 199, 200, 201, 202, 1000] {
        let mut bytes = document(&[]);
        for i in 0..depth {
            let kind = if i % 3 == 0 { b"\x040\0" } else { b"\x03a\0" };
            bytes = document(&[kind, &bytes]);
        }
        comes_back(&bytes);
    }
}

#[test]
fn plain_json_is_read() {
    let text = r#" { "a" : 1 , "b":[ ],"c":-0,"d":1.5e1,"e":3000000000, "f":{"$oid":"no"},"g":{"$numberInt":1},
        "h":{"$date":"2020-01-01T00:00:00Z"},"i":"\ud83d\ude00\/\u00fc","j":{"$code":"x","y":1},"k":{} } "#;
    let expected = doc! {
        "a": 1, "b": [], "c": -0.0, "d": 15.0, "e": 3_000_000_000i64, "f": { "$oid": "no" }, "g": { "$numberInt": 1 },
        "h": bson::DateTime::parse_rfc3339_str("2020-01-01T00:00:00Z").unwrap(), "i": "😀/ü",
        "j": { "$code": "x", "y": 1 }, "k": {},
    };
    assert_eq!(Document::from_reader(&back(text)[..]).unwrap(), expected);
}

#[test]
fn what_is_no_json_is_refused() {
    for text in [
        "",
        "[]",
        "{",
        "{}x",
        r#"{"a"}"#,
        r#"{"a":}"#,
        r#"{"a":1,}"#,
        r#"{"a":[1,]}"#,
        r#"{,}"#,
        r#"{"a":01}"#,
        r#"{"a":1.}"#,
        r#"{"a":+1}"#,
        r#"{"a":"\x"}"#,
        r#"{"a":"\ud800"}"#,
        r#"{"a":"\ud800\u0041"}"#,
        r#"{"a":"\udc00"}"#,
        "{\"a\":\"\n\"}",
        r#"{"a\u0000":1}"#,
        r#"{"a":tru}"#,
        r#"{"a":1e999}"#,
        r#"{"a":"x}"#,
        r#"{"a":-}"#,
        r#"{a:1}"#,
        "{\"a\":\"\u{7f}\" 1}",
    ] {
        let mut out = vec![7];
        assert!(read(text.as_bytes(), DEEPEST, &mut out).is_err(), "{text}");
        assert_eq!(out, [7], "nothing is left of {text}");
    }
    assert!(read(b"{\"a\":\"\xff\"}", DEEPEST, &mut Vec::new()).is_err());
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
    assert!(read(deep.as_bytes(), DEEPEST, &mut Vec::new()).is_err());
}

/// A value of any type, as its type and its bytes.
fn value() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let bytes = |n| proptest::collection::vec(any::<u8>(), n..=n);
    let string = |text: Vec<u8>| [&(text.len() as u32 + 1).to_le_bytes()[..], &text, b"\0"].concat();
    let text = prop_oneof![
        3 => "[a-z$\"\\\\\n\0ü{}]{0,8}".prop_map(String::into_bytes),
        1 => proptest::collection::vec(any::<u8>(), 0..6)
    ];
    let cstring =
        prop_oneof![3 => "[a-z$.ü]{0,5}".prop_map(String::into_bytes), 1 => proptest::collection::vec(1u8.., 0..4)];
    let special = prop_oneof![
        Just(f64::NAN),
        Just(-f64::NAN),
        Just(f64::INFINITY),
        Just(f64::NEG_INFINITY),
        Just(-0.0),
        Just(f64::MIN_POSITIVE)
    ];
    let leaf = prop_oneof![
        any::<f64>().prop_map(|n| (0x01, n.to_le_bytes().to_vec())),
        special.prop_map(|n| (0x01, n.to_le_bytes().to_vec())),
        bytes(8).prop_map(|b| (0x01, b)),
        text.clone().prop_map(move |t| (0x02, string(t))),
        text.clone().prop_map(move |t| (0x0D, string(t))),
        text.clone().prop_map(move |t| (0x0E, string(t))),
        (any::<u8>(), proptest::collection::vec(any::<u8>(), 0..12))
            .prop_map(|(sub, b)| (0x05, [&(b.len() as u32).to_le_bytes()[..], &[sub], &b].concat())),
        proptest::collection::vec(any::<u8>(), 0..12).prop_map(|b| {
            let (outer, inner) = (b.len() as u32 + 4, b.len() as u32);
            (0x05, [&outer.to_le_bytes()[..], &[2], &inner.to_le_bytes(), &b].concat())
        }),
        prop_oneof![Just(0x06u8), Just(0x0A), Just(0x7F), Just(0xFF)].prop_map(|kind| (kind, Vec::new())),
        bytes(12).prop_map(|b| (0x07, b)),
        any::<bool>().prop_map(|b| (0x08, vec![u8::from(b)])),
        bytes(8).prop_map(|b| (0x09, b)),
        (cstring.clone(), cstring).prop_map(|(p, o)| (0x0B, [&p[..], b"\0", &o, b"\0"].concat())),
        (text, bytes(12)).prop_map(move |(t, id)| (0x0C, [string(t), id].concat())),
        bytes(4).prop_map(|b| (0x10, b)),
        bytes(8).prop_map(|b| (0x11, b)),
        bytes(8).prop_map(|b| (0x12, b)),
        bytes(16).prop_map(|b| (0x13, b)),
        (any::<u64>(), 0u8..4).prop_map(|(n, sign)| {
            let mut b = [0; 16];
            b[..8].copy_from_slice(&n.to_le_bytes());
            b[15] = 0x30 | sign << 6;
            (0x13, b.to_vec())
        }),
    ];
    let name = prop_oneof![
        4 => "[a-z$.ü]{0,4}".prop_map(String::into_bytes),
        1 => proptest::sample::select(&WRAPPERS[..]).prop_map(|w| w.as_bytes().to_vec()),
        1 => proptest::sample::select(&["$scope", "0", "base64", "_id"][..]).prop_map(|w| w.as_bytes().to_vec()),
        1 => proptest::collection::vec(1u8.., 0..3),
    ];
    leaf.prop_recursive(4, 40, 5, move |inner| {
        let members = proptest::collection::vec((name.clone(), inner.clone()), 0..5).prop_map(|members| {
            let members: Vec<Vec<u8>> =
                members.into_iter().map(|(name, (kind, b))| [&[kind], &name[..], b"\0", &b].concat()).collect();
            document(&members.iter().map(Vec::as_slice).collect::<Vec<_>>())
        });
        let array = proptest::collection::vec(inner, 0..12).prop_map(|values| {
            let values: Vec<Vec<u8>> = values
                .into_iter()
                .enumerate()
                .map(|(i, (kind, b))| [&[kind], i.to_string().as_bytes(), b"\0", &b].concat())
                .collect();
            document(&values.iter().map(Vec::as_slice).collect::<Vec<_>>())
        });
        let string = |text: Vec<u8>| [&(text.len() as u32 + 1).to_le_bytes()[..], &text, b"\0"].concat();
        let scope = (proptest::collection::vec(any::<u8>(), 0..4), members.clone()).prop_map(move |(code, scope)| {
            let inner = [string(code), scope].concat();
            [&(inner.len() as u32 + 4).to_le_bytes()[..], &inner].concat()
        });
        prop_oneof![
            3 => members.clone().prop_map(|b| (0x03, b)),
            2 => array.prop_map(|b| (0x04, b)),
            1 => members.prop_map(|b| (0x04, b)),
            1 => scope.prop_map(|b| (0x0F, b)),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn every_document_comes_back((kind, bytes) in value(), name in "[a-z$]{0,3}") {
        let whole = document(&[&[kind], name.as_bytes(), b"\0", &bytes]);
        prop_assert_eq!(raw::flaw(&whole, &mut Vec::new()), None);
        let text = text_of(&whole);
        prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{}", text);
        prop_assert_eq!(&back(&text), &whole, "{}", &text);
        let mut short = format!("{{{}:", serde_json::to_string(&name).unwrap()).into_bytes();
        write_value(kind, &bytes, Style::Short, &mut short);
        short.push(b'}');
        if name != "$bson" {
            prop_assert_eq!(back(&String::from_utf8(short).unwrap()), whole);
        }
    }

    #[test]
    fn any_bytes_are_written(bytes in proptest::collection::vec(any::<u8>(), 0..80), kind: u8) {
        serde_json::from_str::<serde_json::Value>(&text_of(&bytes)).unwrap();
        let mut text = Vec::new();
        write_value(kind, &bytes, Style::Short, &mut text);
        serde_json::from_slice::<serde_json::Value>(&text).unwrap();
    }

    #[test]
    fn agrees_with_serde_json(text in r#"\{("a":)?[\[\]{}",:0-9eE.+\-\\u truefalsn]{0,14}\}"#) {
        let theirs = serde_json::from_str::<serde_json::Value>(&text).is_ok();
        let ours = read(text.as_bytes(), DEEPEST, &mut Vec::new());
        // Numbers that no type holds are JSON for them at times, and names with zero bytes always.
        if ours.is_ok() || ours.as_ref().is_err_and(|e| e.starts_with("it is no JSON")) {
            prop_assert_eq!(ours.is_ok(), theirs, "{} {:?}", text, ours);
        }
    }
}
