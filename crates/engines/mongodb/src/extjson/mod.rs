//! Documents as canonical Extended JSON (version 2), and back, byte for byte.
//!
//! Extended JSON cannot carry everything that BSON can hold: text that is no UTF-8, an array whose
//! keys are not 0, 1, 2…, a document that looks like one of its own ways of writing a value
//! (`{"$oid": …}`), a NaN with a payload. Such a value is written as what it is in BSON,
//! `{"$bson": {"type": "02", "base64": "…"}}`: its type and its bytes. So nothing is ever lost.
//!
//! Read is more than is written: plain JSON, too. Numbers become int32, int64 or double, whole
//! numbers beyond these decimal128. Members keep their order, also those that come twice.

mod read;
mod wrap;
mod write;

pub use read::read;
pub use write::{Style, write, write_value};

/// Values that are nested deeper are written as BSON; a server stores fewer.
pub const DEEPEST: usize = 200;

/// The members by which a value is recognised that JSON has no way of writing for. A document that
/// begins with one of them is written as BSON, so that it is never taken for that value.
const WRAPPERS: [&str; 17] = [
    BSON,
    "$oid",
    "$numberInt",
    "$numberLong",
    "$numberDouble",
    "$numberDecimal",
    "$date",
    "$binary",
    "$uuid",
    "$timestamp",
    "$regularExpression",
    "$dbPointer",
    "$code",
    "$symbol",
    "$minKey",
    "$maxKey",
    "$undefined",
];

/// The wrapper of what is written as BSON.
const BSON: &str = "$bson";

/// Whether a value could be meant by a document that begins with this member.
fn is_wrapper(name: &[u8]) -> bool {
    name.first() == Some(&b'$') && WRAPPERS.iter().any(|w| w.as_bytes() == name)
}

#[cfg(test)]
mod tests;
