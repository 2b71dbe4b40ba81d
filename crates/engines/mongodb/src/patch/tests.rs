#![allow(clippy::unwrap_used)]

use super::*;
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, doc};
use model::ErrorKind;
use proptest::prelude::*;

fn apply(body: &Document, patch: &Document) -> Result<Document> {
    let after = Patches.applied(&body.to_vec().unwrap(), &patch.to_vec().unwrap())?;
    Ok(Document::from_reader(&after[..]).unwrap())
}

fn diff(diff: Document) -> Document {
    doc! { "$v": 2, "diff": diff }
}

/// What servers of version 6.0 made of these.
#[test]
fn patches_give_what_servers_give() {
    let body = doc! { "_id": 1, "a": 1, "s": { "x": 1, "y": 2 }, "r": [1, 2, { "q": 1 }] };
    for (patch, a, s, r, more) in [
        (diff(doc! { "u": { "a": 9, "new": 1 } }), 9.into(), None, None, doc! { "new": 1 }),
        (diff(doc! { "d": { "x": false } }), 1.into(), None, None, doc! {}),
        (diff(doc! { "ss": { "u": { "x": 7 } } }), 1.into(), Some(doc! { "x": 7, "y": 2 }.into()), None, doc! {}),
        (diff(doc! { "ss": { "i": { "x": 7 } } }), 1.into(), Some(doc! { "y": 2, "x": 7 }.into()), None, doc! {}),
        (diff(doc! { "ss": { "a": true, "u0": 1 } }), 1.into(), Some(Bson::Null), None, doc! {}),
        (diff(doc! { "sa": { "u": { "x": 1 } }, "sz": { "u": { "x": 1 } } }), Bson::Null, None, None, doc! {}),
        (diff(doc! { "sr": { "a": true, "l": 1 } }), 1.into(), None, Some(vec![1.into()]), doc! {}),
        (diff(doc! { "sr": { "a": true, "l": 0 } }), 1.into(), None, Some(vec![]), doc! {}),
        (
            diff(doc! { "sr": { "a": true, "l": 5, "u1": "x" } }),
            1.into(),
            None,
            Some(vec![1.into(), "x".into(), doc! { "q": 1 }.into(), Bson::Null, Bson::Null]),
            doc! {},
        ),
        (
            diff(
                doc! { "sr": { "a": true, "s1": { "u": { "x": 1 } }, "s2": { "u": { "q": 2 } }, "s3": { "d": { "x": 1 } }, "u5": 5 } },
            ),
            1.into(),
            None,
            Some(vec![1.into(), Bson::Null, doc! { "q": 2 }.into(), Bson::Null, Bson::Null, 5.into()]),
            doc! {},
        ),
        (
            doc! { "$v": 1, "$set": { "a": 5, "n.m.k": 1, "r.2.w": 5, "r.4.w": 1, "a.b": 1, "r.x": 1 }, "$unset": { "s.x": 1, "r.1": 1, "z.z": 1 } },
            5.into(),
            Some(doc! { "y": 2 }.into()),
            Some(vec![1.into(), Bson::Null, doc! { "q": 1, "w": 5 }.into(), Bson::Null, doc! { "w": 1 }.into()]),
            doc! { "n": { "m": { "k": 1 } } },
        ),
        (doc! { "$set": { "a": 2 } }, 2.into(), None, None, doc! {}),
    ] {
        let mut expected = body.clone();
        expected.insert("a", a);
        s.into_iter().for_each(|s| drop(expected.insert("s", s)));
        r.into_iter().for_each(|r| drop(expected.insert("r", r)));
        expected.extend(more);
        assert_eq!(apply(&body, &patch).unwrap(), expected, "{patch}");
    }
    let order = |patch| apply(&body, &patch).unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(order(diff(doc! { "i": { "a": 1, "_id": 1 } })), "_id s r a");
    assert_eq!(order(doc! { "x": 1, "_id": 1, "y": 2 }), "_id x y");
    assert_eq!(order(doc! { "$v": 1, "x": 1, "_id": 1, "$set": { "a": 2 } }), "_id $v x $set");
}

#[test]
fn names_of_elements_and_keys_twice_are_as_on_a_member() {
    let body = b"\x32\0\0\0\x10_id\0\x01\0\0\0\x10a\0\x01\0\0\0\x10a\0\x02\0\0\0\x04r\0\x13\0\0\0\x105\0\x01\0\0\0\x10x\0\x02\0\0\0\0\0";
    assert_eq!(body.len(), 0x32);
    let patched = |patch: Document| Patches.applied(body, &patch.to_vec().unwrap()).unwrap();
    let [first, second] =
        [b"\x10a\0\x01\0\0\0", b"\x10a\0\x02\0\0\0"].map(|a| body.windows(7).position(|w| w == a).unwrap());
    let mut expected = body.to_vec();
    [first, second].iter().for_each(|at| expected[at + 3] = 9);
    assert_eq!(patched(diff(doc! { "u": { "a": 9 } })), expected);
    // The array stays as it is unless something within changes.
    let mut expected = body.to_vec();
    let names = [b"\x105\0", b"\x10x\0"].map(|name| body.windows(3).position(|w| w == name).unwrap());
    (expected[names[0] + 1], expected[names[1] + 1], expected[names[1] + 3]) = (b'0', b'1', 7);
    assert_eq!(patched(diff(doc! { "sr": { "a": true, "u1": 7 } })), expected);
}

#[test]
fn binaries_change_from_an_offset_on() {
    let binary = |bytes: &[u8]| Binary { subtype: BinarySubtype::Column, bytes: bytes.to_vec() };
    let new = |bytes: &[u8]| Binary { subtype: BinarySubtype::Generic, bytes: bytes.to_vec() };
    let body = doc! { "_id": 1, "data": { "t": binary(b"abcdef"), "x": 1 } };
    let patch = |field: &str, offset: i32, bytes: &[u8]| {
        diff(doc! { "sdata": { "i": { "y": 1 }, "b": { field: { "o": offset, "d": new(bytes) } } } })
    };
    let expected = doc! { "_id": 1, "data": { "t": binary(b"abcdXYZ"), "x": 1, "y": 1 } };
    assert_eq!(apply(&body, &patch("t", 4, b"XYZ")).unwrap(), expected);
    let kind = |patch| apply(&body, &patch).unwrap_err().kind();
    assert_eq!(kind(patch("t", 7, b"")), ErrorKind::Corrupt);
    assert_eq!(kind(patch("x", 0, b"")), ErrorKind::Corrupt);
    assert_eq!(kind(patch("t", -1, b"")), ErrorKind::Corrupt);
    assert_eq!(kind(patch("t", 2, b"X")), ErrorKind::Unsupported);
}

#[test]
fn what_no_server_writes_is_refused() {
    let body = doc! { "_id": 1, "a": 1, "r": [1] };
    let refused = |patch: Document| apply(&body, &patch).unwrap_err();
    assert_eq!(refused(doc! { "$v": 3, "diff": {} }).kind(), ErrorKind::Unsupported);
    assert_eq!(refused(doc! { "$v": 1, "$inc": { "a": 1 } }).kind(), ErrorKind::Unsupported);
    for (patch, says) in [
        (doc! { "a": 1 }, "neither a version nor an _id"),
        (doc! { "$v": "2" }, "its version is no number"),
        (doc! { "$v": 2 }, "it has no diff"),
        (doc! { "$v": 2, "diff": 1 }, "diff is no document"),
        (diff(doc! {}), "a diff in it is empty"),
        (diff(doc! { "sr": {} }), "a diff in it is empty"),
        (diff(doc! { "x": {} }), "unknown section x"),
        (diff(doc! { "": {} }), "unknown section "),
        (diff(doc! { "u": { "a": 1 }, "sa": { "u": { "b": 1 } } }), "changes a field twice"),
        (diff(doc! { "sr": { "a": false, "u0": 1 } }), "does not begin with a: true"),
        (diff(doc! { "sr": { "a": true, "l": -1 } }), "is no length"),
        (diff(doc! { "sr": { "a": true, "u2": 1, "u1": 1 } }), "u1 out of its place"),
        (diff(doc! { "sr": { "a": true, "l": 2, "u2": 1 } }), "u2 out of its place"),
        (diff(doc! { "sr": { "a": true, "u-1": 1 } }), "unknown field u-1"),
        (diff(doc! { "sr": { "a": true, "l": i32::MAX } }), "larger than a server stores"),
        (diff(doc! { "sr": { "a": true, "u18446744073709551615": 1 } }), "larger than a server stores"),
        (doc! { "$v": 1, "$set": { "r.99999999999": 1 } }, "larger than a server stores"),
        (doc! { "$v": 1, "$set": { "a.".repeat(500): 1 } }, "too long"),
    ] {
        // The last one would begin in a number otherwise.
        let body = if says == "too long" {
            doc! { "_id": 1 }
        } else {
            body.clone()
        };
        let error = apply(&body, &patch).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.message().contains(says), "{error} is not: {says}");
    }
    let mut deep = doc! { "u": { "x": 1 } };
    let mut document = doc! { "s": 1 };
    for _ in 0..300 {
        deep = doc! { "ss": deep };
        document = doc! { "s": document };
    }
    assert!(apply(&document, &diff(deep)).unwrap_err().message().contains("too deep"));
    let cut = body.to_vec().unwrap();
    let error = Patches.applied(&cut[..cut.len() - 1], &diff(doc! { "u": { "a": 1 } }).to_vec().unwrap()).unwrap_err();
    assert!(error.message().contains("the document that an update changes is unsound"), "{error}");
}

proptest! {
    #[test]
    fn damaged_bytes_never_panic(in_patch: bool, which in 0usize..4, at: prop::sample::Index, to: u8) {
        let binary = Binary { subtype: BinarySubtype::Generic, bytes: vec![1, 2, 3] };
        let patches = [
            diff(doc! { "d": { "a": false }, "u": { "b": "x" }, "i": { "c": 1 }, "so": { "sr": { "a": true, "l": 4, "u1": 1, "s2": { "d": { "x": false } } } } }),
            diff(doc! { "b": { "bin": { "o": 1, "d": &binary } } }),
            doc! { "$v": 1, "$set": { "o.r.5": 1, "x.y.z": 2 }, "$unset": { "a": 1, "o.r.0": 1 } },
            doc! { "_id": 1, "x": 1 },
        ];
        let mut body = doc! { "_id": 1, "a": 1, "b": 2.5, "bin": binary, "o": { "r": [1, "two", { "x": 1 }] } }.to_vec().unwrap();
        let mut patch = patches[which].to_vec().unwrap();
        let damaged = if in_patch { &mut patch } else { &mut body };
        let at = at.index(damaged.len());
        damaged[at] = to;
        if let Ok(after) = Patches.applied(&body, &patch) {
            prop_assert_eq!(raw::document_len(&after), Some(after.len()));
        }
    }
}
