//! Generators of hard documents and keys.

use proptest::prelude::*;

/// JSON texts that careless programs change: each one must come back byte for byte.
pub fn hard_documents() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = [
        "0",
        "1",
        "{}",
        "[]",
        "\"\"",
        "null",
        "true",
        " \t{ } ",
        "-0",
        "-0.0",
        "1.0",
        "1.10",
        "1e400",
        "-1E-400",
        "12345678901234567890",
        "123456789012345678901234567890.000000000000000000001",
        "9007199254740993",
        "0.1000000000000000055511151231257827021181583404541015625",
        r#"{"a":1,"a":2,"b":{"a":3,"a":4}}"#,
        r#"{"z":1,"a":2,"m":3,"10":4,"9":5}"#,
        r#"{"":{"":[""]}}"#,
        r#"{ "a" : 1 , "b" : [ 1 , 2 ,3 ] }"#,
        r#"{"escapes":"\u0000\u001f\b\f\n\r\t\/\\\"\u00E9\u00e9"}"#,
        r#"{"lone":"\ud800","reversed":"\udc00\ud800","pair":"\ud83d\ude00"}"#,
        "{\"emoji\":\"😀👩‍👩‍👧‍👦\",\"nfc\":\"é\",\"nfd\":\"e\u{301}\",\"bom\":\"\u{feff}\",\"ls\":\"\u{2028}\u{2029}\"}",
        "{\"delete\":\"\u{7f}\u{85}\u{a0}\"}",
        r#"{"__proto__":{"constructor":1},"$oid":"x","$date":"y","_id":{"$oid":"0"}}"#,
        r#"[[],{},[[]],[{}],"",0,null,false]"#,
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect();
    all.push(["[".repeat(100), "1".into(), "]".repeat(100)].concat().into_bytes());
    all.push(["{\"a\":".repeat(100), "1".into(), "}".repeat(100)].concat().into_bytes());
    all.push(format!("\"{}\"", "long ".repeat(100_000)).into_bytes());
    all.push(format!("{{\"{}\":{}}}", "k".repeat(70_000), "9".repeat(70_000)).into_bytes());
    all
}

/// Keys that careless programs lose, mix up or turn into paths.
pub fn hard_keys() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = [
        "",
        " ",
        "  ",
        "a",
        "A",
        "a ",
        " a",
        "a.",
        ".a",
        "..",
        ".",
        "a/b",
        "a\\b",
        "../../x",
        "/etc/passwd",
        "a\0b",
        "\0",
        "con",
        "CON",
        "nul.txt",
        "COM1",
        "lpt9.json",
        "a:b",
        "a*b?",
        "<>|\"",
        "%",
        "%41",
        "a%",
        "~",
        "a~0123456789abcdef",
        "A~0123456789abcdef",
        "_design/x",
        "_id",
        "1",
        "01",
        "1.0",
        "1e0",
        "true",
        "null",
        "rewound.json",
        "rewound",
        "x.attachments",
        "x.json",
        "é",
        "e\u{301}",
        "É",
        "ß",
        "SS",
        "ſ",
        "K",
        "ı",
        "İ",
        "😀",
        "\u{202e}abc",
        "\u{feff}",
        "line\nbreak",
        "tab\t",
        "\u{7f}",
        "-rf",
        "$(x)",
        "`x`",
        "a'b",
        "a=b&c",
        "key with spaces",
        ".rewound-names.jsonl",
        ".git",
        "a,b;c+d@e",
    ]
    .iter()
    .map(|key| key.as_bytes().to_vec())
    .collect();
    all.push("x".repeat(300).into_bytes());
    all.push(["x".repeat(299), "y".into()].concat().into_bytes());
    all.push("X".repeat(200).into_bytes());
    all.push("/".repeat(1000).into_bytes());
    all.push("ü".repeat(200).into_bytes());
    all.push(b"\xff\xfe".to_vec());
    all.push(b"\xed\xa0\x80".to_vec());
    all
}

/// `count` different objects with a unique string `_id` each, the same for the same `seed`, as
/// (key, text) pairs: mostly ordinary, some of them hard, about 200 bytes each.
pub fn generate(seed: u64, count: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let hard: Vec<_> = hard_documents().into_iter().filter(|text| text.len() < 10_000).collect();
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..count)
        .map(|i| {
            let key = format!("doc-{i:08}");
            let odd = match next() % 10 {
                0 => String::from_utf8_lossy(&hard[next() as usize % hard.len()]).into_owned(),
                _ => format!("\"{:x}{:x}{:x}\"", next(), next(), next()),
            };
            let text = format!(
                r#"{{"_id":"{key}","title":"The {} of {}","price":{}.{:02},"odd":{odd},"tags":["a","b",{}]}}"#,
                next() % 1000,
                next() % 1000,
                next() % 100,
                next() % 100,
                next()
            );
            (key.into_bytes(), text.into_bytes())
        })
        .collect()
}

/// Any JSON value as some program might write it: white space, escapes and odd numbers included,
/// no line breaks outside of what JSON allows between tokens.
pub fn json_text() -> impl Strategy<Value = Vec<u8>> {
    json_text_with(r"[ \t\r\n]{0,2}")
}

/// Any JSON value on one line.
pub fn json_line() -> impl Strategy<Value = Vec<u8>> {
    json_text_with(r"[ \t]{0,2}")
}

fn json_text_with(space: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("false".to_owned()),
        r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,4})?",
        json_string(),
    ];
    leaf.prop_recursive(6, 40, 6, move |inner| {
        let member = (space, json_string(), space, space, inner.clone(), space)
            .prop_map(|(a, name, b, c, value, d)| format!("{a}{name}{b}:{c}{value}{d}"));
        let element = (space, inner, space).prop_map(|(a, value, b)| format!("{a}{value}{b}"));
        prop_oneof![
            prop::collection::vec(element, 1..6).prop_map(|all| format!("[{}]", all.join(","))),
            prop::collection::vec(member, 1..6).prop_map(|all| format!("{{{}}}", all.join(","))),
            space.prop_map(|s| format!("[{s}]")),
            space.prop_map(|s| format!("{{{s}}}")),
        ]
    })
    .prop_map(String::into_bytes)
}

fn json_string() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => r"[a-zA-Z_$ ]{0,12}",
        1 => "(_id|id)",
        1 => "[à-ÿΑ-ω一-龠😀-😎\u{2028}\u{feff}\u{7f}]{1,4}",
        1 => r#"(\\["\\/bfnrt]|\\u[0-9a-fA-F]{4}){1,3}"#,
    ];
    prop::collection::vec(piece, 0..4).prop_map(|pieces| format!("\"{}\"", pieces.concat()))
}

/// Any key: text of all kinds, paths, and bytes that are no text.
pub fn key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => "[a-zA-Z0-9 ._@+=,~%/-]{0,12}".prop_map(String::into_bytes),
        2 => prop::sample::select(hard_keys()),
        1 => any::<String>().prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 0..300),
    ]
}
