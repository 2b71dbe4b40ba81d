//! Which kinds of things are restored, in the words of users.

use crate::catalog::is_known;
use crate::contents::owner;
use crate::members::{with, without};
use model::{Batch, Kind, RestoreOptions};
use std::borrow::Cow;

/// The words, and what of a backup each means.
const WORDS: &[(&str, &[&str])] = &[
    ("documents", &["document"]),
    ("revisions", &["revision"]),
    ("counters", &["counter", "Counters"]),
    ("time-series", &["time-series"]),
    ("conflicts", &["Conflicts"]),
    ("indexes", &["Indexes"]),
    ("identities", &["Identities"]),
    ("compare-exchange", &["CompareExchange"]),
    ("subscriptions", &["Subscriptions"]),
    ("settings", &["DatabaseRecord", "ReplicationHubCertificates"]),
    ("unknown", &[]),
];

/// All words, for the command line.
pub(crate) const KINDS: &[&str] = &[
    "documents",
    "revisions",
    "counters",
    "time-series",
    "conflicts",
    "indexes",
    "identities",
    "compare-exchange",
    "subscriptions",
    "settings",
    "unknown",
];

/// What is left out.
#[derive(Debug, Clone, Default)]
pub(crate) struct Choice {
    out: Vec<&'static str>,
    /// Whether sections that nobody knows are left out.
    without_unknown: bool,
}

impl Choice {
    pub fn of(options: &RestoreOptions) -> Choice {
        let named = |list: &[String], word: &str| list.iter().any(|w| w == word);
        let is_out = |word: &str| {
            named(&options.without_kinds, word) || !(options.kinds.is_empty() || named(&options.kinds, word))
        };
        let out = WORDS.iter().filter(|(word, _)| is_out(word)).flat_map(|(_, spaces)| *spaces);
        Choice { out: out.copied().collect(), without_unknown: is_out("unknown") }
    }

    /// Whether everything is meant.
    pub fn is_all(&self) -> bool {
        self.out.is_empty() && !self.without_unknown
    }

    fn leaves_out_space(&self, space: &str) -> bool {
        self.out.contains(&space)
    }

    /// Whether a batch is left out, all of it.
    pub fn leaves_out(&self, batch: &Batch) -> bool {
        match &batch.kind {
            Kind::Attachment => self.leaves_out_space("document") && self.leaves_out_space("revision"),
            Kind::Meta(section) if self.without_unknown && !is_known(section) => true,
            _ => self.leaves_out_space(batch.kind.space()),
        }
    }

    /// Whether the attachment with this key is left out: with its document, or with its revision.
    pub fn leaves_out_attachment(&self, key: &[u8]) -> bool {
        let of_revision = std::str::from_utf8(key).ok().and_then(owner).is_some_and(|(_, revision)| revision.is_some());
        self.leaves_out_space(if of_revision { "revision" } else { "document" })
    }

    /// What of a batch is meant.
    pub fn part_of<'a>(&self, batch: &'a Batch) -> Cow<'a, Batch> {
        let out = |i: &usize| self.leaves_out_attachment(batch.key_of(*i));
        if batch.kind != Kind::Attachment || self.is_all() || !(0..batch.len()).any(|i| out(&i)) {
            return Cow::Borrowed(batch);
        }
        let kept: Vec<usize> = (0..batch.len()).filter(|i| !out(i)).collect();
        Cow::Owned(Batch {
            docs: kept.iter().map(|i| batch.docs[*i]).collect(),
            attachments: kept.iter().filter_map(|i| batch.attachments.get(*i).cloned()).collect(),
            ..batch.clone()
        })
    }

    /// Whether documents no longer say what they said of their counters and time series.
    pub fn is_rewriting(&self) -> bool {
        self.leaves_out_space("counter") || self.leaves_out_space("time-series")
    }

    /// A document without the mention of what does not come with it; none if it has none.
    pub fn stripped(&self, body: &[u8]) -> Option<Vec<u8>> {
        let members: Vec<&str> = [("counter", "@counters"), ("time-series", "@timeseries")]
            .into_iter()
            .filter(|(space, member)| {
                self.leaves_out_space(space) && memchr::memmem::find(body, member.as_bytes()).is_some()
            })
            .map(|(_, member)| member)
            .collect();
        if members.is_empty() {
            return None;
        }
        with(body, "@metadata", |metadata| without(metadata, &members))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use model::{BatchBuilder, CollectionId, Encoding};

    fn left_out(kinds: &[&str], without: &[&str]) -> Vec<&'static str> {
        let list = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect();
        let options = RestoreOptions { kinds: list(kinds), without_kinds: list(without), ..RestoreOptions::default() };
        let choice = Choice::of(&options);
        let batch = |kind| BatchBuilder::new(CollectionId::new("c"), kind, Encoding::Json).take();
        let all = [
            ("document", Kind::Document),
            ("attachment", Kind::Attachment),
            ("revision", Kind::Revision),
            ("counter", Kind::Counter),
            ("index", Kind::Meta("Indexes".into())),
            ("settings", Kind::Meta("DatabaseRecord".into())),
            ("unknown", Kind::Meta("Novelties".into())),
        ];
        all.into_iter().filter(|(_, kind)| choice.leaves_out(&batch(kind.clone()))).map(|(name, _)| name).collect()
    }

    #[test]
    fn words_mean_kinds() {
        assert!(left_out(&[], &[]).is_empty());
        assert_eq!(left_out(&[], &["revisions", "settings"]), ["revision", "settings"]);
        assert_eq!(left_out(&["documents"], &[]), ["revision", "counter", "index", "settings", "unknown"]);
        assert_eq!(
            left_out(&["indexes"], &[]),
            ["document", "attachment", "revision", "counter", "settings", "unknown"]
        );
        assert_eq!(KINDS.to_vec(), WORDS.iter().map(|(word, _)| *word).collect::<Vec<_>>());
    }

    #[test]
    fn documents_do_not_name_what_does_not_come() {
        let options = RestoreOptions { without_kinds: vec!["counters".into()], ..RestoreOptions::default() };
        let body = br#"{"N":1.0,"@metadata":{"@counters":["a"],"@timeseries":["b"],"@id":"x"}}"#;
        let left = br#"{"N":1.0,"@metadata":{"@timeseries":["b"],"@id":"x"}}"#;
        assert_eq!(Choice::of(&options).stripped(body).unwrap(), left);
        assert!(Choice::of(&options).stripped(br#"{"@metadata":{"@id":"x"}}"#).is_none());
    }
}
