//! The parser of RavenDB's dumps: it ends well whatever comes, pieces of any size give the same, and a
//! dump is complete only with its last brace.
#![no_main]

use libfuzzer_sys::fuzz_target;
use model::Result;
use raven::dump::decode::Decoder;
use raven::dump::parser::{Event, Parser};

/// Bytes that a small input may become.
const DECODED_MAX: usize = 16 << 20;

fuzz_target!(|input: &[u8]| {
    let Some((first, rest)) = input.split_first() else { return };
    let whole = parse(rest, rest.len().max(1));
    let pieces = parse(rest, 1 + usize::from(*first % 32));
    match (&whole, &pieces) {
        (Ok(whole), Ok(pieces)) => assert_eq!(whole, pieces),
        (Err(a), Err(b)) => assert_eq!(a.kind(), b.kind()),
        _ => panic!("pieces change the outcome: {whole:?} {pieces:?}"),
    }
    if let Ok(events) = &whole {
        for event in events {
            if let Event::Item(item) = event {
                assert!(item.metadata.is_none_or(|at| at < item.body.len()));
            }
        }
        // Without its last brace it is not complete.
        let end = rest.iter().rposition(|b| *b == b'}').expect("a dump ends with a brace");
        assert!(parse(&rest[..end], 7).is_err());
    }
    let mut decoder = Decoder::default();
    let mut length = 0;
    for piece in rest.chunks(1 + usize::from(*first)) {
        if decoder.feed(piece, &mut |out| length += out.len()).is_err() || length > DECODED_MAX {
            return;
        }
    }
    let _ = decoder.finish(&mut |_| {});
});

/// The events, with raw bytes in one piece.
fn parse(dump: &[u8], piece: usize) -> Result<Vec<Event>> {
    let mut parser = Parser::default();
    let mut all: Vec<Event> = Vec::new();
    for piece in dump.chunks(piece) {
        parser.push(piece);
        while let Some(event) = parser.event()? {
            match (all.last_mut(), event) {
                (Some(Event::Blob(a)), Event::Blob(b)) => *a = [&a[..], &b[..]].concat().into(),
                (_, event) => all.push(event),
            }
        }
    }
    parser.finish()?;
    Ok(all)
}
