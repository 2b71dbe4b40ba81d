//! Documents that look like those of an application: ids, names, words, numbers, dates. Each is
//! made from its number and version alone, so any of them can be made again.

use bytes::{Bytes, BytesMut};
use model::limits::{BATCH, BATCH_DOCUMENTS};
use model::{Batch, CollectionId, Doc, Encoding, Kind};

/// What kind of documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// JSON of about 1 KB.
    Json,
    /// The same in BSON.
    Bson,
    /// JSON of about 100 bytes.
    Small,
}

impl Form {
    /// The form of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "json" => Form::Json,
            "bson" => Form::Bson,
            "small" => Form::Small,
            _ => return None,
        })
    }

    fn encoding(self) -> Encoding {
        if self == Form::Bson { Encoding::Bson } else { Encoding::Json }
    }
}

/// The name of the one collection.
pub const COLLECTION: &str = "people";
/// Hexadecimal digits of a key.
const KEY: usize = 24;

/// The key of a document: as random as a UUID, so keys come in no order.
pub fn key(number: u64) -> String {
    let mut dice = Dice::new(number, 0);
    format!("{:016x}{:08x}", dice.roll(), number as u32)
}

/// Documents of some numbers in batches, as sources give them: folders with keys beside the
/// documents, databases that speak BSON with keys inside.
pub fn batches(
    form: Form,
    numbers: impl IntoIterator<Item = u64>,
    version: impl Fn(u64) -> u64,
) -> impl Iterator<Item = Batch> {
    let mut numbers = numbers.into_iter().peekable();
    let words = Words::new();
    std::iter::from_fn(move || {
        numbers.peek()?;
        let mut body = BytesMut::with_capacity(BATCH + 4096);
        let mut docs = Vec::new();
        let mut keys = BytesMut::new();
        while body.len() < BATCH && docs.len() < BATCH_DOCUMENTS {
            let Some(next) = numbers.next() else { break };
            let start = body.len() as u32;
            let mut out = Vec::new();
            let key_at = write(&mut out, form, &words, next, version(next)) as u32;
            body.extend_from_slice(&out);
            let end = body.len() as u32;
            let mut doc = Doc { start, end, key_start: start + key_at, key_len: KEY as u32 };
            if form != Form::Bson {
                doc.key_start = keys.len() as u32;
                keys.extend_from_slice(&out[key_at as usize..][..KEY]);
                body.extend_from_slice(b"\n");
            }
            docs.push(doc);
        }
        let keys = (form != Form::Bson).then(|| keys.freeze());
        Some(batch(form, body.freeze(), keys, docs))
    })
}

fn batch(form: Form, body: Bytes, keys: Option<Bytes>, docs: Vec<Doc>) -> Batch {
    Batch {
        collection: CollectionId::new(COLLECTION),
        kind: Kind::Document,
        encoding: form.encoding(),
        body,
        keys,
        docs,
        attachments: Vec::new(),
    }
}

/// Writes one document; gives where its key begins.
fn write(out: &mut Vec<u8>, form: Form, words: &Words, number: u64, version: u64) -> usize {
    let mut dice = Dice::new(number, version);
    let key = key(number);
    match form {
        Form::Small => {
            let mut doc = Json::new(out);
            doc.text("_id", &key);
            doc.number("count", dice.below(100_000) as i64);
            doc.text("name", &words.some(&mut dice, 4));
        }
        Form::Json => person(&mut Json::new(out), &mut dice, words, &key, version),
        Form::Bson => person(&mut Bson::new(out), &mut dice, words, &key, version),
    }
    match form {
        Form::Bson => {
            let length = (out.len() as u32 + 1).to_le_bytes();
            out[..4].copy_from_slice(&length);
            out.push(0);
            // Length, type, name, length of the text.
            4 + 1 + 4 + 4
        }
        Form::Json | Form::Small => {
            out.push(b'}');
            "{\"_id\":\"".len()
        }
    }
}

/// One document of about 1 KB that zstd makes three times smaller.
fn person(doc: &mut dyn Fields, dice: &mut Dice, words: &Words, key: &str, version: u64) {
    let (first, last) = (words.one(dice).to_owned(), words.one(dice).to_owned());
    doc.text("_id", key);
    doc.number("version", version as i64);
    doc.text("firstName", &first);
    doc.text("lastName", &last);
    doc.text("email", &format!("{first}.{last}{}@example.org", dice.below(1000)));
    doc.text("phone", &format!("+{} {} {}", dice.below(99), dice.below(9999), dice.below(9_999_999)));
    doc.text("created", &date(dice));
    doc.text("modified", &date(dice));
    doc.number("balance", dice.below(10_000_000) as i64 - 5_000_000);
    doc.number("visits", dice.below(5000) as i64);
    doc.text("status", ["active", "active", "active", "invited", "blocked"][dice.below(5) as usize]);
    doc.text("city", words.one(dice));
    doc.text("street", &format!("{} street {}", words.one(dice), dice.below(300)));
    doc.text("session", &format!("{:016x}{:016x}", dice.roll(), dice.roll()));
    doc.text("checksum", &format!("{:016x}{:016x}", dice.roll(), dice.roll()));
    doc.text("tags", &words.some(dice, 5));
    doc.text("note", &words.some(dice, 62));
}

fn date(dice: &mut Dice) -> String {
    let mut part = |from: u64, count: u64| from + dice.below(count);
    let (y, m, d) = (part(2015, 10), part(1, 12), part(1, 28));
    format!("{y}-{m:02}-{d:02}T{:02}:{:02}:{:02}.{:03}Z", part(0, 24), part(0, 60), part(0, 60), part(0, 1000))
}

trait Fields {
    fn text(&mut self, name: &str, value: &str);
    fn number(&mut self, name: &str, value: i64);
}

struct Json<'a>(&'a mut Vec<u8>);

impl<'a> Json<'a> {
    fn new(out: &'a mut Vec<u8>) -> Self {
        Json(out)
    }

    fn name(&mut self, name: &str) {
        self.0.push(if self.0.is_empty() { b'{' } else { b',' });
        self.0.push(b'"');
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
    }
}

impl Fields for Json<'_> {
    fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        self.0.push(b'"');
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(b'"');
    }

    fn number(&mut self, name: &str, value: i64) {
        self.name(name);
        self.0.extend_from_slice(value.to_string().as_bytes());
    }
}

/// BSON (specification 1.1); the document's length is set at its end.
struct Bson<'a>(&'a mut Vec<u8>);

impl<'a> Bson<'a> {
    fn new(out: &'a mut Vec<u8>) -> Self {
        out.extend_from_slice(&[0; 4]);
        Bson(out)
    }

    fn name(&mut self, kind: u8, name: &str) {
        self.0.push(kind);
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(0);
    }
}

impl Fields for Bson<'_> {
    fn text(&mut self, name: &str, value: &str) {
        self.name(0x02, name);
        self.0.extend_from_slice(&(value.len() as u32 + 1).to_le_bytes());
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(0);
    }

    fn number(&mut self, name: &str, value: i64) {
        self.name(0x12, name);
        self.0.extend_from_slice(&value.to_le_bytes());
    }
}

/// A vocabulary; some words come much more often than others, as in any language.
struct Words(Vec<String>);

impl Words {
    fn new() -> Self {
        let mut dice = Dice::new(7, 7);
        let syllables =
            ["ba", "ne", "ri", "to", "lu", "mar", "sen", "vik", "ol", "an", "der", "is", "qua", "th", "e", "un"];
        let word = |dice: &mut Dice| {
            let count = 1 + dice.below(3);
            (0..=count).map(|_| syllables[dice.below(16) as usize]).collect()
        };
        Words((0..4096).map(|_| word(&mut dice)).collect())
    }

    fn one(&self, dice: &mut Dice) -> &str {
        // The product of two dice prefers small numbers.
        &self.0[(dice.below(64) * dice.below(64)) as usize]
    }

    fn some(&self, dice: &mut Dice, count: usize) -> String {
        let mut text = String::with_capacity(count * 8);
        for i in 0..count {
            if i > 0 {
                text.push(' ');
            }
            text.push_str(self.one(dice));
        }
        text
    }
}

/// Randomness that repeats: splitmix64.
pub struct Dice(u64);

impl Dice {
    /// The sequence for a document.
    pub fn new(number: u64, version: u64) -> Self {
        Dice(number.wrapping_mul(0xA076_1D64_78BD_642F) ^ version.wrapping_mul(0xE703_7ED1_A0B4_28DB))
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number from 0 to before `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }
}
