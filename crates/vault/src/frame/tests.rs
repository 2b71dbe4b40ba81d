//! Frames read back as they were, and those that lie are refused.
#![allow(clippy::unwrap_used)]
use super::*;
use model::BatchBuilder;
use proptest::prelude::*;

fn round_trip(batch: &Batch) -> Frame {
    let mut open = OpenFrame::like(batch);
    (0..batch.len()).for_each(|i| open.push(batch, i, i as u64, None));
    let closed = open.close().unwrap();
    let plain: Vec<u8> = [closed.header, closed.body].concat();
    parse(batch.encoding, plain.into()).unwrap()
}

proptest! {
    #[test]
    fn frames_read_back(
        docs in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..20), proptest::collection::vec(any::<u8>(), 0..50)), 1..30),
        encoding in prop_oneof![Just(Encoding::Json), Just(Encoding::Bson), Just(Encoding::Bin)],
    ) {
        let mut builder = BatchBuilder::new(CollectionId::new("c\"é"), Kind::Meta("x".into()), encoding);
        docs.iter().for_each(|(k, b)| builder.push(k, b));
        let frame = round_trip(&builder.take());
        prop_assert_eq!(frame.batch.len(), docs.len());
        for (i, (key, body)) in docs.iter().enumerate() {
            prop_assert_eq!(frame.batch.key_of(i), &key[..]);
            prop_assert_eq!(frame.batch.body_of(i), &body[..]);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for encoding in [Encoding::Json, Encoding::Bson, Encoding::Bin] {
            let _ = parse(encoding, bytes.clone().into());
        }
    }
}

#[test]
fn a_header_tells_of_documents_without_their_bodies() {
    for encoding in [Encoding::Json, Encoding::Bson, Encoding::Bin] {
        for each in [false, true] {
            let mut builder = BatchBuilder::new(CollectionId::new("c"), Kind::Document, encoding);
            (0..5000u32)
                .for_each(|i| builder.push(&i.to_le_bytes(), &vec![b'x'; if each { 3 } else { i as usize % 300 }]));
            let batch = builder.take();
            let mut open = OpenFrame::like(&batch);
            (0..batch.len()).for_each(|i| open.push(&batch, i, 0, Some(EngineTime { order: i as u64, millis: 1 })));
            let closed = open.close().unwrap();
            let plain = [closed.header, closed.body].concat();
            let (stored, raw) = (crate::objects::compress(&plain, 1).unwrap(), plain.len() as u32);
            let frame = crate::segment::read_header(encoding, &stored, raw).unwrap().unwrap();
            assert_eq!((frame.batch.len(), frame.times.len()), (5000, 5000));
            assert!((0..5000u32).all(|i| frame.batch.key_of(i as usize) == i.to_le_bytes()));
            assert!((0..5000).all(|i| frame.batch.body_of(i).is_empty() && frame.times[i].order == i as u64));
            for wrong in [&stored[..stored.len() / 4], b"", &plain[..]] {
                assert!(crate::segment::read_header(encoding, wrong, raw).is_err());
            }
            assert!(crate::segment::read_header(encoding, &stored, 100).is_err());
        }
    }
}

#[test]
fn times_that_are_alike_stand_there_once() {
    let mut builder = BatchBuilder::new(CollectionId::new("c"), Kind::Tombstone, Encoding::Json);
    (0..6u8).for_each(|i| builder.push(&[b'a' + i], b""));
    let (batch, orders) = (builder.take(), [7, 7, 7, 8, 7, 7]);
    let mut open = OpenFrame::like(&batch);
    (0..6).for_each(|i| open.push(&batch, i, 0, Some(EngineTime { order: orders[i], millis: -1 })));
    let closed = open.close().unwrap();
    let header = String::from_utf8(closed.header.clone()).unwrap();
    assert!(header.contains(r#""times":[[7,-1,3],[8,-1],[7,-1,2]]"#), "{header}");
    let read = |header: &str| parse(Encoding::Json, [header.as_bytes(), &closed.body].concat().into());
    assert!(read(&header).unwrap().times.iter().map(|t| t.order).eq(orders));
    // As earlier versions wrote them.
    let each = "[7,-1],[7,-1],[7,-1],[8,-1],[7,-1],[7,-1]";
    let other = header.replace("[7,-1,3],[8,-1],[7,-1,2]", each);
    assert!(read(&other).unwrap().times.iter().map(|t| t.order).eq(orders));
    for wrong in
        ["[7,-1,3],[8,-1],[7,-1]", "[7,-1,4294967295],[8,-1,4294967295]", "[7,-1,6,1]", "[7]", "7", "[7,-1,-1]"]
    {
        let other = header.replace("[7,-1,3],[8,-1],[7,-1,2]", wrong);
        assert!(read(&other).is_err(), "{wrong}");
    }
}

#[test]
fn keys_inside_bodies_stay_there() {
    let body = Bytes::from_static(b"{\"_id\":\"a\"}{\"_id\":\"b\"}");
    let doc = |start: u32| Doc { start, end: start + 11, key_start: start + 8, key_len: 1 };
    let batch = Batch {
        collection: CollectionId::new("c"),
        kind: Kind::Document,
        encoding: Encoding::Json,
        body,
        keys: None,
        docs: vec![doc(0), doc(11)],
        attachments: Vec::new(),
    };
    let frame = round_trip(&batch);
    let mut open = OpenFrame::like(&batch);
    open.push(&batch, 0, 0, None);
    let header = open.close().unwrap().header;
    assert!(parse_header(Encoding::Json, &header, 100).unwrap().is_none());
    assert!(frame.batch.keys.is_none());
    assert_eq!(frame.batch.key_of(1), b"b");
}

#[test]
fn headers_that_lie_are_refused() {
    for header in [
        r#"{"rewound":{"collection":"c","kind":"document","lengths":[99],"keys":["a"]}}"#,
        r#"{"rewound":{"collection":"c","kind":"document","lengths":[1],"keys":["a","b"]}}"#,
        r#"{"rewound":{"collection":"c","kind":"document","lengths":{"each":0,"count":4000000000},"keys":[]}}"#,
        r#"{"rewound":{"collection":"c","kind":"document","lengths":[1],"key_span":[1,1]}}"#,
        r#"{"rewound":{"collection":"c","kind":"attachment","lengths":[1],"keys":["a"]}}"#,
    ] {
        let plain = format!("{header}\n1\n");
        assert!(parse(Encoding::Json, plain.into()).is_err(), "{header}");
    }
    let good = "{\"rewound\":{\"collection\":\"c\",\"kind\":\"document\",\"lengths\":[1],\"keys\":[\"a\"]}}\n1\n";
    assert!(parse(Encoding::Json, good.into()).is_ok());
}
