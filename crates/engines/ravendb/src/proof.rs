//! What of a document can be compared after a restore: all but what the server makes anew.

use crate::catalog::RANGES;
use crate::members::{of, with, without};
use model::{Batch, BatchBuilder, Kind};
use std::borrow::Cow;

/// What the server says of itself in a document.
const VOLATILE: &[&str] = &["@change-vector", "@flags", "@attachments"];
/// The same where it writes documents again to tell of their counters and time series.
const REWRITTEN: &[&str] = &["@change-vector", "@flags", "@attachments", "@last-modified", "@counters", "@timeseries"];
/// Sections that are settings of one database: its name, numbers of commands, times; or deletions.
const SETTINGS: &[&str] = &["DatabaseRecord", "Subscriptions", "Conflicts", "ReplicationHubCertificates", RANGES];

/// What of a batch is compared; none of it, if the server makes all of it anew. A server of another
/// version has other words for indexes.
/// Where documents lose their counters or time series on the way, they are `rewritten`, all of them.
pub(crate) fn provable(batch: &Batch, same_version: bool, rewritten: bool) -> Option<Cow<'_, Batch>> {
    let form: fn(&[u8]) -> Option<Vec<u8>> = match &batch.kind {
        Kind::Document | Kind::Revision if rewritten => |body| document(body, true),
        Kind::Document | Kind::Revision => |body| document(body, false),
        Kind::Counter => |body| without(body, &["ChangeVector"]),
        Kind::TimeSeries => |body| with(body, "@raven-data", |data| without(data, &["ChangeVector"])),
        Kind::Meta(section) if SETTINGS.contains(&section.as_str()) => return None,
        Kind::Meta(section) if section == "Indexes" && !same_version => return None,
        _ => return Some(Cow::Borrowed(batch)),
    };
    let mut built = BatchBuilder::new(batch.collection.clone(), batch.kind.clone(), batch.encoding);
    for i in 0..batch.len() {
        let made = form(batch.body_of(i));
        built.push(batch.key_of(i), made.as_deref().unwrap_or(batch.body_of(i)));
    }
    Some(Cow::Owned(built.take()))
}

fn document(body: &[u8], rewritten: bool) -> Option<Vec<u8>> {
    with(body, "@metadata", |metadata| {
        let is_rewritten = rewritten || of(metadata, "@counters").or(of(metadata, "@timeseries")).is_some();
        let left = without(metadata, if is_rewritten { REWRITTEN } else { VOLATILE })?;
        // Old servers leave the zone out: it is UTC.
        with(&left, "@last-modified", |time| {
            Some([time.strip_suffix(b"Z\"").unwrap_or(time.strip_suffix(b"\"")?), b"\""].concat())
        })
    })
    .map(|made| crate::members::without_surrogates(&made).unwrap_or(made))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_what_the_server_makes_is_left_out() {
        let body =
            br#"{"N":1.0,"@metadata":{"@collection":"U","@change-vector":"A:1","@id":"u","@last-modified":"tZ"}}"#;
        let form = br#"{"N":1.0,"@metadata":{"@collection":"U","@id":"u","@last-modified":"t"}}"#;
        assert_eq!(document(body, false).unwrap(), form);
        let counted = br#"{"@metadata":{"@counters":["L"],"@id":"u","@last-modified":"t"}}"#;
        assert_eq!(document(counted, false).unwrap(), br#"{"@metadata":{"@id":"u"}}"#);
    }
}
