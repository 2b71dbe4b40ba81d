//! A writer that does everything to a database that a database can be asked, and remembers what the
//! database held after each step.

use bson::{Bson, DateTime, Document, RawDocumentBuf, doc};
use futures::TryStreamExt;
use model::EngineTime;
use mongodb::{Client, ClientSession, Database};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The documents of a collection, as stored, by no order.
pub type Documents = Arc<Vec<Vec<u8>>>;
/// Everything that a database holds: name of the collection (of a time series: the users' one), documents.
pub type Held = BTreeMap<String, Documents>;

/// What a database held from a time on.
#[derive(Debug, Clone)]
pub struct Moment {
    /// A time at which it held this: at or after the last step, before the next.
    pub time: EngineTime,
    /// What was done, for people.
    pub step: String,
    /// What it held.
    pub held: Held,
}

/// Writes into one database, alone.
pub struct Writer {
    client: Client,
    database: Database,
    session: ClientSession,
    seed: u64,
    held: Held,
    /// Names of plain collections that are there.
    plain: Vec<String>,
    made: u32,
    /// All that has been, oldest first.
    pub moments: Vec<Moment>,
}

/// The name of the time series.
const SERIES: &str = "series";
const CAPPED: &str = "capped";

impl Writer {
    /// Makes a first few collections.
    pub async fn new(url: &str, database: &str, seed: u64) -> Writer {
        let client = Client::with_uri_str(url).await.unwrap();
        let session = client.start_session().await.unwrap();
        let database = client.database(database);
        let (held, plain, moments) = (Held::new(), Vec::new(), Vec::new());
        let mut writer = Writer { client, database, session, seed, held, plain, made: 0, moments };
        writer.run(doc! { "create": SERIES, "timeseries": { "timeField": "t", "metaField": "m" } }).await;
        writer.run(doc! { "create": CAPPED, "capped": true, "size": 8192, "max": 20 }).await;
        for _ in 0..3 {
            writer.create().await;
        }
        for _ in 0..10 {
            writer.insert().await;
        }
        writer.remember("made", &[SERIES, CAPPED]).await;
        writer
    }

    /// The next random number below `below`.
    pub fn number(&mut self, below: u64) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) % below.max(1)
    }

    async fn run(&self, command: Document) -> Document {
        let shown = command.to_string();
        let answer = self.database.run_command(command).await.unwrap_or_else(|e| panic!("{shown}: {e}"));
        assert!(!answer.contains_key("writeErrors"), "{shown}: {answer}");
        answer
    }

    /// Does one thing, and remembers what the database holds then.
    pub async fn step(&mut self) {
        let kind = self.number(100);
        let (step, touched) = match kind {
            0..=24 => ("insert", vec![self.insert().await]),
            25..=54 => ("update", vec![self.update().await]),
            55..=62 => ("delete", vec![self.delete().await]),
            63..=66 => ("reinsert", vec![self.reinsert().await]),
            67..=70 => ("replace", vec![self.replace().await]),
            71..=80 => ("transaction", self.transaction().await),
            81..=85 => ("measure", vec![self.measure().await]),
            86..=89 => ("capped", vec![self.fill().await]),
            90..=91 => ("create", vec![self.create().await]),
            92 => ("drop", vec![self.drop_one().await]),
            93..=94 => ("rename", self.rename().await),
            95..=96 => ("index", vec![self.index().await]),
            97 => ("collMod", vec![self.modify().await]),
            98 => ("anew", vec![self.anew().await]),
            _ => ("many", vec![self.many().await]),
        };
        let touched: Vec<&str> = touched.iter().map(String::as_str).collect();
        self.remember(step, &touched).await;
    }

    /// Reads what was touched, byte for byte.
    async fn remember(&mut self, step: &str, touched: &[&str]) {
        for name in touched {
            let there = *name == SERIES || *name == CAPPED || self.plain.iter().any(|p| p == name);
            if !there {
                self.held.remove(*name);
                continue;
            }
            let stored = if *name == SERIES { format!("system.buckets.{SERIES}") } else { (*name).to_owned() };
            let found = self.database.collection::<RawDocumentBuf>(&stored).find(doc! {}).await.unwrap();
            let documents: Vec<RawDocumentBuf> = found.try_collect().await.unwrap();
            let mut documents: Vec<Vec<u8>> = documents.into_iter().map(RawDocumentBuf::into_bytes).collect();
            documents.sort();
            self.held.insert((*name).to_owned(), Arc::new(documents));
        }
        let answer = self.run(doc! { "ping": 1 }).await;
        let at = answer.get_timestamp("operationTime").unwrap();
        let order = u64::from(at.time) << 32 | u64::from(at.increment);
        let time = EngineTime { order, millis: i64::from(at.time) * 1000 };
        self.moments.push(Moment { time, step: format!("{step} {touched:?}"), held: self.held.clone() });
    }

    fn some_collection(&mut self) -> String {
        let i = self.number(self.plain.len() as u64) as usize;
        self.plain[i].clone()
    }

    fn key(&mut self) -> Bson {
        match self.number(12) {
            0 => Bson::String(format!("k{}", self.number(5))),
            1 => doc! { "b": self.number(3) as i32, "a": 1 }.into(),
            n => Bson::Int32((self.number(30) + n) as i32),
        }
    }

    fn value(&mut self, depth: u32) -> Bson {
        match self.number(if depth < 3 { 12 } else { 8 }) {
            0 => Bson::Int32(self.number(100) as i32),
            1 => Bson::Int64(self.number(1 << 33) as i64),
            2 => Bson::Double(self.number(1000) as f64 / 8.0),
            3 => Bson::String("ü".repeat(self.number(20) as usize)),
            4 => Bson::Null,
            5 => DateTime::from_millis(self.number(1 << 33) as i64).into(),
            6 => Bson::Boolean(true),
            7 => Bson::Timestamp(bson::Timestamp { time: self.number(9) as u32 + 1, increment: 0 }),
            8 | 9 => (0..self.number(6)).map(|_| self.value(depth + 1)).collect::<Vec<_>>().into(),
            _ => self.fields(depth + 1).into(),
        }
    }

    fn fields(&mut self, depth: u32) -> Document {
        let mut fields = Document::new();
        for _ in 0..self.number(6) {
            let name = self.field();
            let value = self.value(depth);
            fields.insert(name, value);
        }
        fields
    }

    fn field(&mut self) -> String {
        let names = ["a", "b", "c", "list", "deep", "n", "0", "ünï", "x.y"];
        names[self.number(8) as usize].to_owned()
    }

    fn document(&mut self, key: Bson) -> Document {
        let mut document = doc! { "_id": key, "n": self.number(100) as i32, "list": [1, 2, { "a": 3 }] };
        document.extend(self.fields(0));
        document
    }

    async fn insert(&mut self) -> String {
        let name = self.some_collection();
        let mut documents: BTreeMap<String, Document> = BTreeMap::new();
        for _ in 0..=self.number(4) {
            let key = self.key();
            documents.insert(key.to_string(), self.document(key));
        }
        // What is there already is left alone.
        let documents: Vec<Document> = documents.into_values().collect();
        let command = doc! { "insert": &name, "documents": documents, "ordered": false };
        self.database.run_command(command).await.unwrap();
        name
    }

    fn change(&mut self) -> Bson {
        let field = self.field();
        let other = self.field();
        let deep = format!("{field}.{other}");
        let value = self.value(1);
        let n = self.number(9) as i32 - 4;
        match self.number(20) {
            0 => doc! { "$set": { field: value } }.into(),
            1 => doc! { "$set": { deep: value } }.into(),
            2 => doc! { "$unset": { field: "" } }.into(),
            3 => doc! { "$unset": { deep: "" } }.into(),
            4 => doc! { "$inc": { "n": n } }.into(),
            5 => doc! { "$mul": { "n": 1.5 } }.into(),
            6 => doc! { "$min": { "n": n }, "$max": { "m": n } }.into(),
            7 => doc! { "$rename": { field: "renamed" } }.into(),
            8 => doc! { "$push": { "list": value } }.into(),
            9 => doc! { "$push": { "list": { "$each": [value, 1], "$position": 1, "$slice": 8 } } }.into(),
            10 => doc! { "$pull": { "list": { "$gte": n } } }.into(),
            11 => doc! { "$addToSet": { "list": value } }.into(),
            12 => doc! { "$pop": { "list": if n > 0 { 1 } else { -1 } } }.into(),
            13 => doc! { "$currentDate": { "now": true, "ts": { "$type": "timestamp" } } }.into(),
            14 => doc! { "$bit": { "bits": { "xor": 5 } } }.into(),
            15 => doc! { "$set": { "list.2.a": value, "list.0": n } }.into(),
            16 => vec![doc! { "$set": { "computed": { "$add": [{ "$ifNull": ["$k", 0] }, n] }, "deep.new": "$a" } }]
                .into(),
            17 => vec![doc! { "$unset": ["a", "deep.b"] }, doc! { "$set": { "a": { "again": n } } }].into(),
            18 => doc! { "$set": { "list.$[].x": n } }.into(),
            _ => doc! { "$setOnInsert": { "born": n }, "$set": { "b": value, "c.d.e": n } }.into(),
        }
    }

    /// Updates, most of which fit the document that they meet; what does not fit changes nothing.
    async fn update(&mut self) -> String {
        let name = self.some_collection();
        for _ in 0..=self.number(3) {
            let key = self.key();
            let change = self.change();
            let upsert = self.number(10) == 0;
            let updates = vec![doc! { "q": { "_id": key }, "u": change, "upsert": upsert }];
            self.database.run_command(doc! { "update": &name, "updates": updates }).await.unwrap();
        }
        name
    }

    async fn many(&mut self) -> String {
        let name = self.some_collection();
        let updates = vec![doc! { "q": { "n": { "$gte": 0 } }, "u": { "$inc": { "n": 1 } }, "multi": true }];
        self.database.run_command(doc! { "update": &name, "updates": updates }).await.unwrap();
        name
    }

    async fn replace(&mut self) -> String {
        let (name, key) = (self.some_collection(), self.key());
        let document = self.document(key.clone());
        let updates = vec![doc! { "q": { "_id": key }, "u": document, "upsert": true }];
        self.run(doc! { "update": &name, "updates": updates }).await;
        name
    }

    async fn delete(&mut self) -> String {
        let (name, key) = (self.some_collection(), self.key());
        self.run(doc! { "delete": &name, "deletes": [{ "q": { "_id": key }, "limit": 1 }] }).await;
        name
    }

    async fn reinsert(&mut self) -> String {
        let (name, key) = (self.some_collection(), self.key());
        self.run(doc! { "delete": &name, "deletes": [{ "q": { "_id": key.clone() }, "limit": 1 }] }).await;
        let document = self.document(key);
        self.run(doc! { "insert": &name, "documents": [document] }).await;
        name
    }

    /// Several changes to two collections at one time; now and then taken back.
    async fn transaction(&mut self) -> Vec<String> {
        let names = [self.some_collection(), self.some_collection()];
        self.session.start_transaction().await.unwrap();
        let mut failed = false;
        for _ in 0..=self.number(5) {
            let name = &names[self.number(2) as usize];
            let key = self.key();
            let command = match self.number(4) {
                0 => doc! { "delete": name, "deletes": [{ "q": { "_id": key }, "limit": 1 }] },
                1 => {
                    let document = self.document(key.clone());
                    doc! { "update": name, "updates": [{ "q": { "_id": key }, "u": document, "upsert": true }] }
                }
                _ => {
                    doc! { "update": name, "updates": [{ "q": { "_id": key }, "u": { "$inc": { "n": 1 }, "$push": { "tx": 1 } } }] }
                }
            };
            let answer = self.database.run_command(command).session(&mut self.session).await;
            failed |= !matches!(answer, Ok(a) if !a.contains_key("writeErrors"));
            if failed {
                break;
            }
        }
        if failed || self.number(6) == 0 {
            self.session.abort_transaction().await.unwrap();
        } else {
            self.session.commit_transaction().await.unwrap();
        }
        names.to_vec()
    }

    async fn measure(&mut self) -> String {
        let measures: Vec<Document> = (0..=self.number(4))
            .map(|_| doc! { "t": DateTime::from_millis(self.number(5_000_000) as i64), "m": self.number(3) as i32, "v": self.number(9) as i32 })
            .collect();
        self.run(doc! { "insert": SERIES, "documents": measures }).await;
        SERIES.into()
    }

    async fn fill(&mut self) -> String {
        let documents: Vec<Document> = (0..=self.number(5)).map(|_| doc! { "v": self.number(1000) as i32 }).collect();
        self.run(doc! { "insert": CAPPED, "documents": documents }).await;
        CAPPED.into()
    }

    async fn create(&mut self) -> String {
        self.made += 1;
        let name = format!("c{}", self.made);
        self.run(doc! { "create": &name }).await;
        self.plain.push(name.clone());
        name
    }

    async fn drop_one(&mut self) -> String {
        if self.plain.len() < 3 {
            return self.create().await;
        }
        let i = self.number(self.plain.len() as u64) as usize;
        let name = self.plain.remove(i);
        self.run(doc! { "drop": &name }).await;
        name
    }

    /// Dropped and made again under the same name.
    async fn anew(&mut self) -> String {
        let name = self.some_collection();
        self.run(doc! { "drop": &name }).await;
        self.run(doc! { "create": &name }).await;
        let key = self.key();
        let document = self.document(key);
        self.run(doc! { "insert": &name, "documents": [document] }).await;
        name
    }

    /// To a new name, or over another collection.
    async fn rename(&mut self) -> Vec<String> {
        let i = self.number(self.plain.len() as u64) as usize;
        let from = self.plain.remove(i);
        let over = self.number(3) == 0 && self.plain.len() > 2;
        let to = if over { self.some_collection() } else { format!("{from}r") };
        if !over {
            self.plain.push(to.clone());
        }
        let full = |name: &str| format!("{}.{name}", self.database.name());
        let command = doc! { "renameCollection": full(&from), "to": full(&to), "dropTarget": over };
        self.client.database("admin").run_command(command).await.unwrap();
        vec![from, to]
    }

    async fn index(&mut self) -> String {
        let name = self.some_collection();
        if self.number(3) == 0 {
            self.run(doc! { "dropIndexes": &name, "index": "*" }).await;
        } else {
            let field = self.field();
            let index = doc! { "key": { &field: 1 }, "name": format!("by {field}"), "sparse": true };
            self.run(doc! { "createIndexes": &name, "indexes": [index] }).await;
        }
        name
    }

    async fn modify(&mut self) -> String {
        let name = self.some_collection();
        let level = if self.number(2) == 0 { "off" } else { "moderate" };
        self.run(doc! { "collMod": &name, "validator": { "never": { "$ne": 1 } }, "validationLevel": level }).await;
        name
    }
}
