//! Answers of CouchDB about many documents: what is understood byte by byte is what a reader of JSON finds.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    // Few inputs would ever begin so by themselves.
    let leaf = format!(r#"{{"results":[{{"id":"a","docs":[{{"ok":{text}}}]}}]}}"#);
    let value = format!(
        r#"{{"results":[{{"id":"a","docs":[{{"ok":{{"_id":"a","_rev":"1-x","v":{text},"_revisions":{{"start":1,"ids":["x"]}}}}}}]}}]}}"#
    );
    for answer in [text, &leaf, &value] {
        let (quick, any) = couch::leaves_in_answer(answer, &["a", "b"]);
        if let Some(quick) = quick {
            assert_eq!(Some(quick), any, "{answer}");
            serde_json::from_str::<&serde_json::value::RawValue>(answer).expect("what is understood is JSON");
        }
    }
});
