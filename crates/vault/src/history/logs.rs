//! All log objects of a vault as their names tell, in little memory: a million of them are no
//! reason to hold a million paths.

use crate::name::LogName;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::ops::Range;

/// One log object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogEntry {
    source: u32,
    run: u32,
    endings: u32,
    /// The first of the flushes that it holds, by its number in the chain.
    pub first: u32,
    /// The last of them.
    pub last: u32,
    /// The time before its first change, milliseconds since 1970 UTC.
    pub from: i64,
    /// All changes up to this time are in it or before it.
    pub to: i64,
    /// Stored bytes.
    pub size: u64,
    /// blake3 of the stored bytes.
    pub stored: [u8; 32],
    /// The number of an object of the same chain that holds all of it too.
    covering: Option<u32>,
}

impl LogEntry {
    /// Whether another object of the same chain holds all of it too: readers pass over it.
    pub fn is_superseded(&self) -> bool {
        self.covering.is_some()
    }
}

/// Log objects by source, chain and number.
#[derive(Debug, Default)]
pub(crate) struct LogTable {
    words: Vec<String>,
    known: HashMap<String, u32>,
    objects: Vec<LogEntry>,
    sources: HashMap<u32, Range<usize>>,
}

impl LogTable {
    /// Adds an object. Nothing can be asked before [`LogTable::finish`].
    pub fn push(&mut self, name: &LogName, size: u64) {
        let object = LogEntry {
            source: self.word(&name.source),
            run: self.word(&name.run),
            endings: self.word(&name.endings),
            first: name.first,
            last: name.last,
            from: name.from as i64,
            to: name.to as i64,
            size,
            stored: name.stored,
            covering: None,
        };
        self.objects.push(object);
    }

    fn word(&mut self, text: &str) -> u32 {
        if let Some(number) = self.known.get(text) {
            return *number;
        }
        let number = self.words.len() as u32;
        self.words.push(text.to_owned());
        self.known.insert(text.to_owned(), number);
        number
    }

    /// Puts what was added in order, and finds out what is superseded.
    pub fn finish(mut self) -> Self {
        self.objects.shrink_to_fit();
        self.objects.sort_unstable_by_key(|o| (o.source, o.run, o.first, Reverse(o.last), o.stored));
        let mut covering: Option<(usize, LogEntry)> = None;
        for (i, object) in self.objects.iter_mut().enumerate() {
            match covering {
                Some((number, c)) if Self::same_chain(&c, object) && c.last >= object.last => {
                    // Twins hold the same flushes: neither stands for the other.
                    let twins = (c.first, c.last) == (object.first, object.last);
                    object.covering = (!twins).then_some(number as u32);
                }
                _ => covering = Some((i, *object)),
            }
            let range = self.sources.entry(object.source).or_insert(i..i);
            range.end = i + 1;
        }
        self
    }

    /// The tags of all sources that have a log.
    pub fn sources(&self) -> impl Iterator<Item = &str> {
        self.sources.keys().map(|s| self.words[*s as usize].as_str())
    }

    /// Numbers of the objects of a source, chain by chain, each in order.
    pub fn of(&self, source: &str) -> Range<usize> {
        self.known.get(source).and_then(|s| self.sources.get(s)).cloned().unwrap_or(0..0)
    }

    /// An object by its number.
    pub fn get(&self, number: usize) -> &LogEntry {
        &self.objects[number]
    }

    /// The tag of an object's source.
    pub fn source(&self, object: &LogEntry) -> &str {
        &self.words[object.source as usize]
    }

    /// All objects.
    pub fn iter(&self) -> impl Iterator<Item = &LogEntry> {
        self.objects.iter()
    }

    /// The run that wrote an object.
    pub fn run(&self, object: &LogEntry) -> &str {
        &self.words[object.run as usize]
    }

    /// Whether two objects are of the same chain.
    pub fn same_chain(a: &LogEntry, b: &LogEntry) -> bool {
        (a.source, a.run) == (b.source, b.run)
    }

    /// The name of an object.
    pub fn name(&self, object: &LogEntry) -> LogName {
        LogName {
            source: self.words[object.source as usize].clone(),
            run: self.words[object.run as usize].clone(),
            first: object.first,
            last: object.last,
            from: object.from as u64,
            to: object.to as u64,
            stored: object.stored,
            endings: self.words[object.endings as usize].clone(),
        }
    }

    /// The object that holds all of a superseded one.
    pub fn covering(&self, object: &LogEntry) -> Option<&LogEntry> {
        object.covering.map(|number| &self.objects[number as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn name(run: u64, first: u32, last: u32, from: u64, to: u64) -> LogName {
        LogName {
            source: format!("{:016x}", run >> 32),
            run: format!("{run:016x}"),
            first,
            last,
            from,
            to,
            stored: [(first + last) as u8; 32],
            endings: "json.zst".into(),
        }
    }

    #[test]
    fn what_a_rolled_object_holds_is_superseded() {
        let mut table = LogTable::default();
        let names = [
            name(1, 0, 0, 10, 11),
            name(1, 1, 1, 11, 12),
            name(1, 0, 1, 10, 12),
            name(1, 2, 2, 12, 13),
            name(2, 0, 0, 10, 11),
            name(1 << 32, 1, 1, 0, 5),
            name(1 << 32, 0, 3, 0, 9),
            name(1 << 32, 2, 3, 5, 9),
        ];
        names.iter().for_each(|n| table.push(n, 7));
        let table = table.finish();
        let found = |source: u64| {
            let of = table.of(&format!("{source:016x}")).map(|i| table.get(i));
            of.map(|o| (table.run(o).to_owned(), o.first, o.last, o.is_superseded())).collect::<Vec<_>>()
        };
        let (one, two) = (format!("{:016x}", 1), format!("{:016x}", 2));
        let expected =
            [(&one, 0, 1, false), (&one, 0, 0, true), (&one, 1, 1, true), (&one, 2, 2, false), (&two, 0, 0, false)];
        assert_eq!(found(0), expected.map(|(r, f, l, s)| (r.clone(), f, l, s)));
        assert_eq!(found(1).iter().map(|f| f.3).collect::<Vec<_>>(), [false, true, true]);
        assert!(table.of("elsewhere").is_empty());
        for object in table.iter() {
            assert!(names.contains(&table.name(object)));
            assert_eq!(table.covering(object).is_some(), object.is_superseded());
        }
    }
}
