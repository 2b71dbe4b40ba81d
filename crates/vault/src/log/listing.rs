//! What the names of log objects tell, from one listing.

use crate::name::{HISTORY, LogName};
use crate::storage::Entry;
use crate::vault::Inner;
use futures::TryStreamExt;
use model::Result;

/// A log object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub name: LogName,
    /// Stored bytes.
    pub size: u64,
    /// When it was written, by the storage's clock.
    pub modified: i64,
}

/// The log object that a listing's entry is, if it is one.
pub(crate) fn listed(entry: &Entry) -> Option<Listed> {
    let name = LogName::parse(&entry.name)?;
    Some(Listed { name, size: entry.size, modified: entry.modified })
}

/// All log objects of a source, those that were rolled up too, in no particular order.
pub(crate) async fn list(vault: &Inner, source: &str) -> Result<Vec<Listed>> {
    let mut entries = vault.storage.list(&format!("{HISTORY}{source}/log/")).await?;
    let mut all = Vec::new();
    while let Some(entry) = entries.try_next().await? {
        all.extend(listed(&entry));
    }
    Ok(all)
}

/// The objects that no other one of their chain supersedes, by run and number.
pub(crate) fn current(mut all: Vec<Listed>) -> Vec<Listed> {
    all.sort_unstable_by(|a, b| {
        let key = |l: &Listed| (l.name.first, std::cmp::Reverse(l.name.last));
        (&a.name.source, &a.name.run, key(a), &a.name.stored).cmp(&(
            &b.name.source,
            &b.name.run,
            key(b),
            &b.name.stored,
        ))
    });
    let mut current: Vec<Listed> = Vec::with_capacity(all.len());
    for listed in all {
        // The last one that counts reaches farthest, as those before it began earlier.
        match current.last() {
            Some(last) if listed.name.is_superseded_by(&last.name) => {}
            _ => current.push(listed),
        }
    }
    current
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(run: u8, first: u32, last: u32) -> Listed {
        let name = LogName {
            source: "0".repeat(16),
            run: format!("{run:016x}"),
            first,
            last,
            from: 0,
            to: 0,
            stored: [0; 32],
            endings: "json.zst".into(),
        };
        Listed { name, size: 1, modified: 0 }
    }

    #[test]
    fn rolled_objects_supersede_what_they_hold() {
        let all = vec![
            listed(1, 0, 0),
            listed(1, 1, 1),
            listed(1, 0, 1),
            listed(1, 2, 2),
            listed(1, 3, 3),
            listed(1, 3, 3),
            listed(1, 4, 9),
            listed(1, 9, 9),
            listed(2, 0, 0),
            listed(2, 1, 1),
        ];
        let kept: Vec<_> = current(all).into_iter().map(|l| (l.name.run, l.name.first, l.name.last)).collect();
        let run = |r: u8| format!("{r:016x}");
        let expected = [(1, 0, 1), (1, 2, 2), (1, 3, 3), (1, 3, 3), (1, 4, 9), (2, 0, 0), (2, 1, 1)]
            .map(|(r, f, l)| (run(r), f, l));
        assert_eq!(kept, expected);
    }
}
