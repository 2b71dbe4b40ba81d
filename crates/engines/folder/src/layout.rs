//! How the documents of a collection lie in files, as it is kept in the collection's options.

use crate::json::is_space;
use crate::split::Form;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::HashMap;

/// Bytes of options that the spacing of one file may take; what is more irregular is normalised,
/// and named.
const SPACING_MAX: usize = 1 << 20;

/// How the documents of a collection lie in files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "layout", rename_all = "lowercase")]
pub(crate) enum Layout {
    /// One file a document.
    Files,
    /// One line a document.
    Lines(Spacing),
    /// One array element a document.
    Array(Spacing),
}

/// Where the keys of documents in one file come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub(crate) enum KeyScheme {
    #[serde(rename = "_id")]
    UnderscoreId,
    #[serde(rename = "id")]
    Id,
    #[default]
    #[serde(rename = "ordinal")]
    Ordinal,
}

/// The bytes around the documents of one file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Spacing {
    /// The file's extension.
    pub extension: String,
    /// Where its keys come from.
    pub key: KeyScheme,
    /// Before the first document.
    pub prefix: String,
    /// Between documents, where `runs` say nothing else.
    pub separator: String,
    /// After the last document.
    pub suffix: String,
    /// All separators that occur, if there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub separators: Vec<String>,
    /// (how many, which of `separators`), from the first to the last.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<(u64, u32)>,
}

impl Layout {
    /// The layout in a collection's options, if these are a folder's.
    pub fn from_options(options: &Value) -> Option<Layout> {
        options.get("layout")?;
        Layout::deserialize(options).ok()
    }

    /// The options that say this.
    pub fn to_options(&self) -> Value {
        serde_json::to_value(self).unwrap_or(Value::Null)
    }

    /// Its name.
    pub fn word(&self) -> &'static str {
        match self {
            Layout::Files => "files",
            Layout::Lines(_) => "lines",
            Layout::Array(_) => "array",
        }
    }

    /// The name of a collection's file or folder.
    pub fn entry_name(&self, collection: &str) -> String {
        match self {
            Layout::Files => collection.to_owned(),
            Layout::Lines(spacing) if spacing.extension == "ndjson" => format!("{collection}.ndjson"),
            Layout::Lines(_) => format!("{collection}.jsonl"),
            Layout::Array(_) => format!("{collection}.json"),
        }
    }
}

impl Spacing {
    /// The usual spacing of a form.
    pub fn usual(form: Form) -> Spacing {
        let (extension, prefix, separator, suffix) = match form {
            Form::Lines => ("jsonl", "", "\n", "\n"),
            Form::Array => ("json", "[\n", ",\n", "\n]\n"),
        };
        Spacing {
            extension: extension.into(),
            prefix: prefix.into(),
            separator: separator.into(),
            suffix: suffix.into(),
            ..Spacing::default()
        }
    }

    /// Whether documents set apart by these bytes come back as the same documents. Options come
    /// out of a backup, and what is written must be readable whatever they say.
    pub fn is_sound(&self, form: Form) -> bool {
        let separators = || self.separators.iter().chain([&self.separator]);
        let known = self.runs.iter().all(|(_, which)| (*which as usize) < self.separators.len());
        known
            && match form {
                Form::Lines => {
                    [&self.prefix, &self.suffix].into_iter().all(|s| is_blank(s))
                        && separators().all(|s| is_blank(s) && s.contains('\n'))
                }
                Form::Array => {
                    is_around(&self.prefix, '[')
                        && is_around(&self.suffix, ']')
                        && separators().all(|s| is_around(s, ','))
                }
            }
    }

    /// The next separator; `run` says which run has come, and how many of it are used, and begins
    /// with zeros. After the known ones comes the usual one.
    pub fn next_separator(&self, run: &mut (usize, u64)) -> &str {
        while let Some((count, which)) = self.runs.get(run.0) {
            if run.1 < *count {
                run.1 += 1;
                return self.separators.get(*which as usize).unwrap_or(&self.separator);
            }
            *run = (run.0 + 1, 0);
        }
        &self.separator
    }
}

fn is_blank(text: &str) -> bool {
    text.bytes().all(is_space)
}

/// Whether a text is this one character with white space around it.
fn is_around(text: &str, mark: char) -> bool {
    text.trim_matches([' ', '\t', '\n', '\r']) == mark.encode_utf8(&mut [0; 4])
}

/// Learns the spacing of a file from the gaps between its documents.
#[derive(Default)]
pub(crate) struct SpacingBuilder {
    prefix: Option<String>,
    numbers: HashMap<Vec<u8>, u32>,
    counts: Vec<u64>,
    runs: Vec<(u64, u32)>,
    bytes: usize,
    irregular: bool,
}

impl SpacingBuilder {
    /// The bytes before the next document.
    pub fn gap(&mut self, gap: &[u8]) {
        if self.prefix.is_none() {
            self.prefix = Some(self.bounded(gap));
            return;
        }
        if let Some((count, which)) = self.runs.last_mut()
            && self.numbers.get(gap) == Some(which)
        {
            *count += 1;
            self.counts[*which as usize] += 1;
            return;
        }
        let which = match self.numbers.get(gap) {
            Some(which) => *which,
            None if self.bytes > SPACING_MAX => {
                self.irregular = true;
                return;
            }
            None => {
                self.bytes += gap.len() + 8;
                self.counts.push(0);
                self.numbers.insert(gap.to_vec(), self.counts.len() as u32 - 1);
                self.counts.len() as u32 - 1
            }
        };
        self.counts[which as usize] += 1;
        self.bytes += 8;
        if self.bytes <= SPACING_MAX {
            self.runs.push((1, which));
        } else {
            self.irregular = true;
        }
    }

    fn bounded(&mut self, text: &[u8]) -> String {
        self.bytes += text.len();
        if self.bytes > SPACING_MAX {
            self.irregular = true;
            return String::new();
        }
        String::from_utf8_lossy(text).into_owned()
    }

    /// The spacing, given what follows the last document, and whether it is exact.
    pub fn finish(mut self, form: Form, extension: &str, rest: &[u8]) -> (Spacing, bool) {
        let usual = Spacing::usual(form);
        let suffix = self.bounded(rest);
        let (mut prefix, mut suffix) = match self.prefix.take() {
            Some(prefix) => (prefix, suffix),
            // Without documents, all of the file is what follows them.
            None => match (form, suffix.find(']')) {
                (Form::Array, Some(bracket)) => (suffix[..bracket].to_owned(), suffix[bracket..].to_owned()),
                _ => (suffix, String::new()),
            },
        };
        let most = (0..self.counts.len()).max_by_key(|i| (self.counts[*i], usize::MAX - i));
        let mut separators = vec![String::new(); self.counts.len()];
        for (text, which) in &self.numbers {
            separators[*which as usize] = String::from_utf8_lossy(text).into_owned();
        }
        let separator = most.map_or(usual.separator, |i| separators[i].clone());
        if self.irregular || separators.len() < 2 {
            (separators, self.runs) = (Vec::new(), Vec::new());
        }
        if self.irregular {
            (prefix, suffix) = (usual.prefix, usual.suffix);
        }
        let extension = extension.to_owned();
        let spacing =
            Spacing { extension, key: KeyScheme::Ordinal, prefix, separator, suffix, separators, runs: self.runs };
        (spacing, !self.irregular)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn learn(form: Form, gaps: &[&str], rest: &str) -> (Spacing, bool) {
        let mut builder = SpacingBuilder::default();
        gaps.iter().for_each(|gap| builder.gap(gap.as_bytes()));
        builder.finish(form, "jsonl", rest.as_bytes())
    }

    fn replay(spacing: &Spacing, documents: usize) -> Vec<&str> {
        let mut run = (0, 0);
        let mut out = vec![spacing.prefix.as_str()];
        out.extend((1..documents).map(|_| spacing.next_separator(&mut run)));
        out
    }

    #[test]
    fn what_is_learned_is_replayed() {
        let gaps = ["", "\n", "\n", "\r\n", "\n", "\n\n", "\r\n"];
        let (spacing, exact) = learn(Form::Lines, &gaps, "\n");
        assert!(exact && spacing.is_sound(Form::Lines));
        assert_eq!(replay(&spacing, gaps.len()), gaps);
        assert_eq!((spacing.separator.as_str(), spacing.suffix.as_str()), ("\n", "\n"));
        let options = Layout::Lines(spacing.clone()).to_options();
        assert_eq!(Layout::from_options(&options), Some(Layout::Lines(spacing)));
    }

    #[test]
    fn regular_files_need_no_runs() {
        let (spacing, _) = learn(Form::Array, &["[\n  ", ",\n  ", ",\n  "], "\n]");
        assert!(spacing.runs.is_empty() && spacing.separators.is_empty() && spacing.is_sound(Form::Array));
        assert_eq!(spacing.separator, ",\n  ");
        let (empty, _) = learn(Form::Array, &[], " [ \n] ");
        assert_eq!((empty.prefix.as_str(), empty.suffix.as_str()), (" [ \n", "] "));
        assert!(empty.is_sound(Form::Array));
    }

    #[test]
    fn too_irregular_is_normalised_with_the_commonest() {
        let mut builder = SpacingBuilder::default();
        for i in 0..200_000usize {
            builder.gap(if i % 3 == 0 { b"\n" } else { b"\r\n" });
        }
        let (spacing, exact) = builder.finish(Form::Lines, "jsonl", b"");
        assert!(!exact && spacing.runs.is_empty());
        assert_eq!(spacing.separator, "\r\n");
        let mut builder = SpacingBuilder::default();
        (0..2000usize).for_each(|i| builder.gap(" ".repeat(i).as_bytes()));
        let (_, exact) = builder.finish(Form::Lines, "jsonl", b"");
        assert!(!exact);
    }

    #[test]
    fn forged_spacing_is_found() {
        let sound = Spacing::usual(Form::Array);
        for forged in [
            Spacing { prefix: "{[".into(), ..sound.clone() },
            Spacing { separator: "\n".into(), ..sound.clone() },
            Spacing { separator: ",,".into(), ..sound.clone() },
            Spacing { suffix: "".into(), ..sound.clone() },
            Spacing { runs: vec![(1, 0)], ..sound.clone() },
            Spacing { separators: vec!["x".into()], ..sound.clone() },
        ] {
            assert!(!forged.is_sound(Form::Array), "{forged:?}");
        }
        assert!(!Spacing { separator: " ".into(), ..Spacing::usual(Form::Lines) }.is_sound(Form::Lines));
        assert!(sound.is_sound(Form::Array) && Spacing::usual(Form::Lines).is_sound(Form::Lines));
    }
}
