//! Random documents, random updates of them, and random patches, the same for a seed.
#![allow(dead_code, clippy::unwrap_used)]

use bson::oid::ObjectId;
use bson::{Binary, Bson, DateTime, Decimal128, Document, JavaScriptCodeWithScope, Regex, Timestamp, doc};
use bson::{bson, spec::BinarySubtype};

/// Numbers that repeat for a seed (splitmix64).
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

/// Names tell what a field holds, mostly, so that updates fit: numbers, arrays, documents, texts.
const NUMBERS: [&str; 4] = ["n", "m", "0", "k"];
const ARRAYS: [&str; 3] = ["r", "q", "1"];
const DOCUMENTS: [&str; 4] = ["o", "p", "s", "u"];
const ANY: [&str; 8] = ["v", "w", "i", "10", "9", "ü", "a-b", "longer name of a field"];
/// Names that no path of a modifier reaches.
const ODD: [&str; 6] = ["$x", "x.y", "", "$", ".", "o.n"];

pub fn name(rng: &mut Rng) -> &'static str {
    match rng.below(12) {
        0..3 => rng.pick(&NUMBERS),
        3..5 => rng.pick(&ARRAYS),
        5..8 => rng.pick(&DOCUMENTS),
        8..11 => rng.pick(&ANY),
        _ => rng.pick(&ODD),
    }
}

/// A value as this name promises, or another one now and then.
pub fn value_of(rng: &mut Rng, name: &str, depth: usize) -> Bson {
    if rng.one_in(12) {
        return any(rng, depth);
    }
    match name {
        name if NUMBERS.contains(&name) => number(rng),
        name if ARRAYS.contains(&name) => array(rng, depth).into(),
        name if DOCUMENTS.contains(&name) => object(rng, depth).into(),
        _ => any(rng, depth),
    }
}

pub fn number(rng: &mut Rng) -> Bson {
    match rng.below(5) {
        0 => Bson::Double(rng.below(1000) as f64 / 8.0 - 50.0),
        1 => Bson::Int64(rng.next() as i64 >> 20),
        2 => {
            Bson::Decimal128(rng.pick(&["1.5", "-0E+3", "0.10", "12345678901234567890"]).parse::<Decimal128>().unwrap())
        }
        _ => Bson::Int32(rng.below(200) as i32 - 100),
    }
}

/// A value of any type.
pub fn any(rng: &mut Rng, depth: usize) -> Bson {
    match rng.below(24) {
        0..3 => number(rng),
        3..6 => Bson::String("text ".repeat(rng.below(6))),
        6 => Bson::Boolean(rng.one_in(2)),
        7 => Bson::Null,
        8 => Bson::Undefined,
        9 => Bson::ObjectId(ObjectId::from_bytes([rng.below(256) as u8; 12])),
        10 => Bson::DateTime(DateTime::from_millis(rng.next() as i64 >> 16)),
        11 => Bson::Timestamp(Timestamp { time: rng.below(9) as u32, increment: 1 + rng.below(9) as u32 }),
        12 => Bson::RegularExpression(Regex { pattern: "a.*".try_into().unwrap(), options: "i".try_into().unwrap() }),
        13 => Bson::JavaScriptCode("f()".into()),
        14 => JavaScriptCodeWithScope { code: "g()".into(), scope: doc! { "x": 1 } }.into(),
        15 => Bson::Symbol("symbol".into()),
        16 => rng.pick(&[&Bson::MinKey, &Bson::MaxKey]).clone(),
        17 => {
            let subtype = [
                BinarySubtype::Generic,
                BinarySubtype::Uuid,
                BinarySubtype::BinaryOld,
                BinarySubtype::UserDefined(0x80),
            ];
            let subtype = subtype[rng.below(4)];
            let length = if subtype == BinarySubtype::Uuid { 16 } else { rng.below(30) };
            Bson::Binary(Binary { subtype, bytes: vec![rng.below(256) as u8; length] })
        }
        18 => Bson::Double([f64::NAN, f64::INFINITY, -0.0][rng.below(3)]),
        19..21 => array(rng, depth).into(),
        _ => object(rng, depth).into(),
    }
}

pub fn array(rng: &mut Rng, depth: usize) -> Vec<Bson> {
    if depth == 0 {
        return Vec::new();
    }
    match rng.below(60) {
        0 => (0..rng.below(1500)).map(|_| number(rng)).collect(),
        1..25 => (0..rng.below(8)).map(|_| Bson::Int32(rng.below(6) as i32)).collect(),
        25..45 => (0..rng.below(6)).map(|_| object(rng, depth - 1).into()).collect(),
        _ => (0..rng.below(13)).map(|_| any(rng, depth - 1)).collect(),
    }
}

pub fn object(rng: &mut Rng, depth: usize) -> Document {
    let mut document = Document::new();
    if depth > 0 {
        let most = if rng.one_in(10) { 40 } else { 7 };
        for _ in 0..rng.below(most) {
            let name = name(rng);
            document.insert(name, value_of(rng, name, depth - 1));
        }
    }
    document
}

/// A document to begin with.
pub fn document(rng: &mut Rng, id: Bson) -> Document {
    let mut document = doc! { "_id": id };
    for _ in 0..1 + rng.below(12) {
        let name = name(rng);
        document.insert(name, value_of(rng, name, 4));
    }
    document
}

/// A path to a field of one of these names, through documents and arrays.
fn path(rng: &mut Rng, names: &[&str]) -> String {
    let mut path = String::new();
    while rng.below(5) < 2 {
        if rng.one_in(2) {
            path += rng.pick(&DOCUMENTS);
        } else {
            path += &format!("{}.{}", rng.pick(&ARRAYS), rng.below(7));
        }
        path.push('.');
    }
    path + rng.pick(names)
}

fn path_of_any(rng: &mut Rng) -> (String, &'static str) {
    let names = [&NUMBERS[..], &ARRAYS, &DOCUMENTS, &ANY][rng.below(4)];
    let path = path(rng, names);
    (path, names[0])
}

/// What an update command takes as `u`, with other fields of the statement: `arrayFilters`, `upsert`.
pub fn update(rng: &mut Rng, id: &Bson, pipelines: bool) -> Document {
    match rng.below(20) {
        0 => {
            let mut replacement = document(rng, id.clone());
            match rng.below(3) {
                0 => drop(replacement.remove("_id")),
                1 => {
                    let id = replacement.remove("_id").unwrap();
                    replacement.insert("_id", id);
                }
                _ => {}
            }
            // A first name that begins with a dollar would be taken for a modifier.
            replacement.retain_names();
            doc! { "u": replacement }
        }
        1..7 if pipelines => doc! { "u": pipeline(rng) },
        7 => filtered(rng),
        _ => {
            let mut modifiers = Document::new();
            for _ in 0..1 + rng.below(3) {
                let (operator, path, argument) = modifier(rng);
                let fields = modifiers.entry(operator.to_owned()).or_insert_with(|| Document::new().into());
                fields.as_document_mut().unwrap().insert(path, argument);
            }
            doc! { "u": modifiers }
        }
    }
}

/// Leaves out what the server would take for an operator.
trait RetainNames {
    fn retain_names(&mut self);
}

impl RetainNames for Document {
    fn retain_names(&mut self) {
        *self = std::mem::take(self).into_iter().filter(|(name, _)| !name.starts_with('$')).collect();
    }
}

fn modifier(rng: &mut Rng) -> (&'static str, String, Bson) {
    let array_path = |rng: &mut Rng| path(rng, &ARRAYS);
    match rng.below(26) {
        0..6 => {
            let (path, name) = path_of_any(rng);
            ("$set", path, value_of(rng, name, 3))
        }
        6..9 => ("$unset", path_of_any(rng).0, true.into()),
        9 => ("$inc", path(rng, &NUMBERS), number(rng)),
        10 => ("$mul", path(rng, &NUMBERS), number(rng)),
        11 => ("$min", path(rng, &NUMBERS), number(rng)),
        12 => ("$max", path(rng, &NUMBERS), any(rng, 2)),
        13..15 => ("$rename", path(rng, &ANY), path(rng, &ANY).into()),
        15..18 => {
            let mut push = doc! { "$each": (0..rng.below(4)).map(|_| any(rng, 2)).collect::<Vec<_>>() };
            if rng.one_in(3) {
                push.insert("$position", rng.below(8) as i32 - 3);
            }
            if rng.one_in(3) {
                push.insert("$slice", rng.below(12) as i32 - 6);
            }
            if rng.one_in(3) {
                push.insert("$sort", if rng.one_in(2) { bson!(1) } else { bson!({ "n": -1 }) });
            }
            ("$push", array_path(rng), if rng.one_in(3) { any(rng, 2) } else { push.into() })
        }
        18 => (
            "$pull",
            array_path(rng),
            if rng.one_in(2) { bson!({ "$lt": 3 }) } else { rng.below(6).to_string().parse::<i32>().unwrap().into() },
        ),
        19 => ("$pullAll", array_path(rng), bson!([0, 1, { "n": 1 }])),
        20..22 => {
            ("$addToSet", array_path(rng), if rng.one_in(2) { any(rng, 2) } else { bson!({ "$each": [1, 2, 77] }) })
        }
        22 => ("$pop", array_path(rng), if rng.one_in(2) { 1 } else { -1 }.into()),
        23 => ("$bit", path(rng, &NUMBERS), bson!({ "xor": 5 })),
        24 => {
            ("$currentDate", path(rng, &ANY), if rng.one_in(2) { true.into() } else { bson!({ "$type": "timestamp" }) })
        }
        _ => ("$setOnInsert", path(rng, &ANY), any(rng, 2)),
    }
}

fn filtered(rng: &mut Rng) -> Document {
    let array = path(rng, &ARRAYS);
    let number = rng.pick(&NUMBERS);
    match rng.below(4) {
        0 => {
            let filter = doc! { format!("e.{number}"): { "$gt": 0 } };
            doc! { "u": { "$set": { format!("{array}.$[e].{number}"): any(rng, 2) } }, "arrayFilters": [filter] }
        }
        1 => doc! { "u": { "$inc": { format!("{array}.$[]"): 1 } } },
        2 => doc! { "u": { "$unset": { format!("{array}.$[e]"): 1 } }, "arrayFilters": [{ "e": { "$lt": 3 } }] },
        _ => {
            let fields = doc! { format!("{array}.$.{number}"): any(rng, 2) };
            doc! { "u": { "$set": fields }, "q": { format!("{array}.{number}"): { "$exists": true } } }
        }
    }
}

fn pipeline(rng: &mut Rng) -> Vec<Bson> {
    (0..1 + rng.below(2)).map(|_| stage(rng).into()).collect()
}

fn stage(rng: &mut Rng) -> Document {
    let literal = |value: Bson| doc! { "$literal": value };
    let reversed = |what: &str| doc! { "$arrayToObject": { "$reverseArray": { "$objectToArray": what } } };
    let if_type =
        |what: &str, is: &str, then: Document| doc! { "$cond": [{ "$eq": [{ "$type": what }, is] }, then, what] };
    let document = format!("${}", path(rng, &DOCUMENTS));
    let array = format!("${}", rng.pick(&ARRAYS));
    match rng.below(14) {
        0 | 1 => {
            let (path, name) = path_of_any(rng);
            let value = value_of(rng, name, 3);
            doc! { "$set": { path: literal(value) } }
        }
        2 => doc! { "$set": { path_of_any(rng).0: format!("${}", path_of_any(rng).0) } },
        3 => doc! { "$unset": [path_of_any(rng).0] },
        4 => doc! { "$set": { &document[1..]: if_type(&document, "object", reversed(&document)) } },
        5 => doc! { "$replaceWith": reversed("$$ROOT") },
        6 => {
            let more = literal(object(rng, 3).into());
            doc! { "$replaceWith": { "$mergeObjects": ["$$ROOT", more, { "_id": "$_id" }] } }
        }
        7 => {
            let field = literal(name(rng).into());
            doc! { "$replaceWith": { "$setField": { "field": field, "input": "$$ROOT", "value": literal(any(rng, 3)) } } }
        }
        8 => {
            let field = literal(name(rng).into());
            doc! { "$replaceWith": { "$unsetField": { "field": field, "input": "$$ROOT" } } }
        }
        9 => {
            let slice = doc! { "$slice": [&array, rng.below(9) as i32 - 4] };
            doc! { "$set": { &array[1..]: if_type(&array, "array", slice) } }
        }
        10 => {
            let more: Vec<Bson> = (0..rng.below(4)).map(|_| literal(any(rng, 2)).into()).collect();
            let concat = doc! { "$concatArrays": [&array, more] };
            doc! { "$set": { &array[1..]: if_type(&array, "array", concat) } }
        }
        11 => {
            let map = doc! { "$map": { "input": &array, "in": { "$cond": [{ "$lt": ["$$this", 3] }, "$$this", { "n": "$$this" }] } } };
            doc! { "$set": { &array[1..]: if_type(&array, "array", map) } }
        }
        12 => {
            let removed = rng.pick(&DOCUMENTS);
            let moved = doc! { "$mergeObjects": [{ "$unsetField": { "field": removed, "input": "$$ROOT" } }, { removed: format!("${removed}") }] };
            doc! { "$replaceWith": moved }
        }
        _ => doc! { "$replaceWith": { "n": 1, "_id": "$_id", "old": "$$ROOT" } },
    }
}

/// A patch of version 2 that fits many documents, and many not.
pub fn diff(rng: &mut Rng, depth: usize) -> Document {
    loop {
        let mut names: Vec<&str> = [&NUMBERS[..], &ARRAYS, &DOCUMENTS, &ANY, &ODD, &["dup", "bad", "duQ"]].concat();
        let mut take = |rng: &mut Rng| names.swap_remove(rng.below(names.len()));
        let mut diff = Document::new();
        for section in ["d", "u", "i"] {
            let fields: Document = (0..rng.below(4))
                .map(|_| (take(rng).to_owned(), if section == "d" { false.into() } else { any(rng, 2) }))
                .collect();
            if !fields.is_empty() {
                diff.insert(section, fields);
            }
        }
        for _ in 0..if depth == 0 { 0 } else { rng.below(4) } {
            let name = take(rng);
            let is_array = if rng.one_in(8) { rng.one_in(2) } else { ARRAYS.contains(&name) || name == "bad" };
            let inner = if is_array { array_diff(rng, depth - 1) } else { self::diff(rng, depth - 1) };
            diff.insert(format!("s{name}"), inner);
        }
        if !diff.is_empty() {
            return diff;
        }
    }
}

fn array_diff(rng: &mut Rng, depth: usize) -> Document {
    let mut diff = doc! { "a": true };
    let length = rng.one_in(3).then(|| rng.below(12));
    if let Some(length) = length {
        diff.insert("l", length as i32);
    }
    for index in 0..length.unwrap_or(10) {
        match rng.below(6) {
            0 => drop(diff.insert(format!("u{index}"), any(rng, 2))),
            1 if depth > 0 => drop(diff.insert(format!("s{index}"), self::diff(rng, depth - 1))),
            2 if depth > 0 && rng.one_in(4) => drop(diff.insert(format!("s{index}"), array_diff(rng, depth - 1))),
            _ => {}
        }
    }
    diff
}

/// A patch of version 1, its paths in the order in which a server writes them.
pub fn modifiers(rng: &mut Rng) -> Document {
    let names = [&NUMBERS[..], &ARRAYS, &DOCUMENTS, &["v", "w", "i", "ü", "a-b", "bad", "dup"]].concat();
    // Sorted by their parts; none is the beginning of another.
    let mut paths: Vec<Vec<String>> =
        (0..1 + rng.below(5)).map(|_| path(rng, &names).split('.').map(str::to_owned).collect()).collect();
    paths.sort();
    paths.dedup_by(|longer, shorter| longer.starts_with(shorter));
    let (mut set, mut unset) = (Document::new(), Document::new());
    for path in paths {
        if rng.one_in(3) {
            unset.insert(path.join("."), true);
        } else {
            set.insert(path.join("."), any(rng, 2));
        }
    }
    let mut patch = doc! { "$v": 1 };
    for (name, fields) in [("$unset", unset), ("$set", set)] {
        if !fields.is_empty() {
            patch.insert(name, fields);
        }
    }
    patch
}

/// The bytes of a document in which `duQ` becomes a second `dup`, and `bad` an array whose elements
/// have any names.
pub fn spoiled(document: &Document) -> Vec<u8> {
    let mut bytes = document.to_vec().unwrap();
    for (from, to) in [(&b"duQ\0"[..], &b"dup\0"[..]), (b"\x03bad\0", b"\x04bad\0")] {
        for at in 0..bytes.len() - from.len() {
            if bytes[at..].starts_with(from) {
                bytes[at..at + from.len()].copy_from_slice(to);
            }
        }
    }
    bytes
}

/// A document with keys twice, and arrays whose elements have any names, in it.
pub fn spoilable(rng: &mut Rng, id: Bson) -> Document {
    let mut document = document(rng, id);
    let more = |rng: &mut Rng| {
        doc! { "dup": any(rng, 2), "n": number(rng), "duQ": value_of(rng, "o", 2),
        "bad": { "5": any(rng, 2), "x": object(rng, 2), "0": array(rng, 2) } }
    };
    document.extend(more(rng));
    let mut inner = object(rng, 2);
    inner.extend(more(rng));
    document.insert("o", inner);
    document
}
