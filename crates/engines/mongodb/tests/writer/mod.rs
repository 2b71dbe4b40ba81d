//! Writes everything that can be written, at random but the same for a seed.
#![allow(dead_code, clippy::unwrap_used)]

use crate::common::Place;
use bson::{Bson, Document, doc};
use mongo::Server;
use mongodb::{Client, ClientSession, Database};

/// Writes to the collections of a database.
pub struct Writer {
    seed: u64,
    database: Database,
    admin: Server,
    session: ClientSession,
    count: i64,
}

const COLLECTIONS: [&str; 4] = ["a", "b", "c", "clustered"];

impl Writer {
    pub async fn new(place: &Place, seed: u64) -> Writer {
        let client = Client::with_uri_str(place.mongod.url()).await.unwrap();
        let database = client.database(&place.name);
        let session = client.start_session().await.unwrap();
        let admin = Server::new(place.mongod.url(), None);
        let writer = Writer { seed, database, admin, session, count: 0 };
        for command in [
            doc! { "create": "a" },
            doc! { "create": "b", "validator": { "never": { "$exists": false } } },
            doc! { "create": "clustered", "clusteredIndex": { "key": { "_id": 1 }, "unique": true } },
            doc! { "create": "capped", "capped": true, "size": 20_000, "max": 30 },
            doc! { "create": "series", "timeseries": { "timeField": "t", "metaField": "m" } },
            doc! { "createIndexes": "expiring", "indexes": [{ "key": { "at": 1 }, "name": "ttl", "expireAfterSeconds": 1 }] },
            doc! { "create": "view", "viewOn": "a" },
        ] {
            writer.database.run_command(command).await.unwrap();
        }
        writer
    }

    fn number(&mut self, below: u64) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) % below
    }

    fn collection(&mut self) -> &'static str {
        COLLECTIONS[self.number(COLLECTIONS.len() as u64) as usize]
    }

    fn id(&mut self) -> Bson {
        let n = self.number(40) as i32;
        match self.number(3) {
            0 => Bson::Int32(n),
            1 => Bson::String(format!("k{n}")),
            _ => Bson::Document(doc! { "z": n, "a": "x" }),
        }
    }

    fn value(&mut self) -> Bson {
        let n = self.number(1000) as i32;
        match self.number(7) {
            0 => Bson::Int32(n),
            1 => Bson::Int64(i64::from(n) << 33),
            2 => Bson::Double(f64::from(n) / 7.0),
            3 => Bson::String("text ü ".repeat(n as usize % 20)),
            4 => doc! { "x": n, "deep": { "er": [n, "y", { "z": n }] } }.into(),
            5 => Bson::Array((0..n % 12).map(|i| Bson::Int32(i * n)).collect()),
            _ => Bson::Null,
        }
    }

    fn document(&mut self) -> Document {
        self.count += 1;
        let mut document = doc! {
            "_id": self.id(), "n": self.count, "list": [1, 2, { "x": 1 }, 4], "sub": { "a": 1, "b": { "c": 2 } },
        };
        for name in ["f", "g", "h"] {
            document.insert(name, self.value());
        }
        document
    }

    /// One of all update operators.
    fn update(&mut self) -> Bson {
        let (value, n) = (self.value(), self.number(9) as i32);
        let fields = ["f", "g", "sub.a", "sub.b.c", "sub.new", "list.2", "list.2.x", "made.up.path", "list.9"];
        let field = fields[self.number(fields.len() as u64) as usize];
        let update = match self.number(20) {
            0..3 => doc! { "$set": { field: value } },
            3 => doc! { "$unset": { field: "" } },
            4 => doc! { "$inc": { "n": n, "sub.count": 1.5 } },
            5 => doc! { "$mul": { "n": 3 } },
            6 => doc! { "$min": { "n": n }, "$max": { "sub.b.c": n } },
            7 => doc! { "$rename": { "f": format!("renamed{n}") } },
            8 => doc! { "$push": { "list": { "$each": [value, n], "$position": n % 4, "$slice": -30 } } },
            9 => doc! { "$push": { "list": { "$each": [], "$sort": -1 } } },
            10 => doc! { "$pop": { "list": if n % 2 == 0 { 1 } else { -1 } } },
            11 => doc! { "$pull": { "list": { "$gt": n } } },
            12 => doc! { "$addToSet": { "list": value } },
            13 => doc! { "$currentDate": { "date": true, "ts": { "$type": "timestamp" } } },
            14 => doc! { "$bit": { "n": { "xor": i64::from(n) } } },
            15 => doc! { "n": n, "replaced": value },
            16 => {
                let computed = doc! { "$set": { "computed": { "$concat": ["a", "b"] }, "at": "$$NOW" } };
                return Bson::Array(vec![computed.into(), doc! { "$unset": ["g"] }.into()]);
            }
            17 => doc! { "$set": { "list": [1, 2, 3, 4, 5, { "x": n }] }, "$unset": { "h": "" } },
            18 => doc! { "$setOnInsert": { "born": true }, "$set": { "h": value } },
            _ => doc! { "$set": { "f": value, "zz": n, "sub.z": n }, "$unset": { "g": "" } },
        };
        update.into()
    }

    /// Writes something. That the server refuses some of it does not matter: it is random.
    pub async fn write(&mut self) {
        let collection = self.collection();
        match self.number(100) {
            0..25 => {
                let document = self.document();
                let _ = self.database.collection(collection).insert_one(document).await;
            }
            25..60 => {
                let (id, update, upsert) = (self.id(), self.update(), self.number(4) == 0);
                let one = doc! { "q": { "_id": id }, "u": update, "upsert": upsert };
                let _ = self.database.run_command(doc! { "update": collection, "updates": [one] }).await;
            }
            60..64 => {
                let rest = self.number(5) as i32;
                let one = doc! { "q": { "n": { "$mod": [5, rest] } }, "u": { "$inc": { "n": 1 } }, "multi": true };
                let _ = self.database.run_command(doc! { "update": collection, "updates": [one] }).await;
            }
            64..72 => {
                let id = self.id();
                let _ = self.database.collection::<Document>(collection).delete_one(doc! { "_id": id }).await;
            }
            72..80 => self.transaction().await,
            80..85 => {
                self.count += 1;
                let document = doc! { "n": self.count, "fill": "x".repeat(500) };
                self.database.collection("capped").insert_one(document).await.unwrap();
            }
            85..90 => {
                let measured: Vec<Document> = (0..3)
                    .map(|i| doc! { "t": bson::DateTime::now(), "m": { "s": i % 2 }, "v": self.count + i })
                    .collect();
                self.database.collection("series").insert_many(measured).await.unwrap();
            }
            90..93 => {
                let document = doc! { "at": bson::DateTime::now(), "v": self.value() };
                self.database.collection("expiring").insert_one(document).await.unwrap();
            }
            93..95 => {
                let id = self.id();
                let found = self.database.collection::<Document>(collection);
                let _ = found.find_one_and_update(doc! { "_id": id }, doc! { "$inc": { "n": 1 } }).await;
            }
            _ => self.change_catalog().await,
        }
    }

    async fn transaction(&mut self) {
        self.session.start_transaction().await.unwrap();
        let mut is_well = true;
        for _ in 0..self.number(6) + 1 {
            let (collection, id, document, what) = (self.collection(), self.id(), self.document(), self.number(4));
            let update = match self.update() {
                Bson::Document(update) if update.keys().all(|k| k.starts_with('$')) => update,
                _ => doc! { "$set": { "x": 1 } },
            };
            let collection = self.database.collection::<Document>(collection);
            let session = &mut self.session;
            is_well = match what {
                0 => collection.update_one(doc! { "_id": id }, update).session(session).await.is_ok(),
                1 => collection.delete_one(doc! { "_id": id }).session(session).await.is_ok(),
                2 => {
                    let deleted = collection.delete_one(doc! { "_id": id.clone() }).session(&mut *session).await;
                    let again = doc! { "_id": id, "again": true };
                    deleted.is_ok() && collection.insert_one(again).session(session).await.is_ok()
                }
                _ => collection.insert_one(document).session(session).await.is_ok(),
            };
            if !is_well {
                break;
            }
        }
        let _ = match is_well {
            true => self.session.commit_transaction().await,
            false => self.session.abort_transaction().await,
        };
    }

    async fn change_catalog(&mut self) {
        let database = self.database.name().to_owned();
        let full = |name: &str| format!("{database}.{name}");
        let (n, field) = (self.number(9) as i32, ["n", "f", "sub.a"][self.number(3) as usize]);
        let name = format!("i{}", n % 3);
        let command = match self.number(12) {
            0 => doc! { "drop": "c" },
            1 => doc! { "create": "c", "collation": { "locale": "de" } },
            2 => {
                let id = self.id();
                let _ = self.admin.admin(doc! { "renameCollection": full("a"), "to": full("spare") }).await;
                let _ = self.database.collection("spare").insert_one(doc! { "_id": id }).await;
                let back = doc! { "renameCollection": full("spare"), "to": full("a"), "dropTarget": true };
                return drop(self.admin.admin(back).await);
            }
            3..5 => doc! { "createIndexes": "b", "indexes": [{ "key": { field: 1 }, "name": name }] },
            5 => doc! { "dropIndexes": "b", "index": name },
            6 => doc! { "collMod": "b", "index": { "name": name, "hidden": n % 2 == 0 } },
            7 => doc! { "collMod": "b", "validator": { "never": { "$exists": false }, "no": { "$ne": n } } },
            8 => doc! { "collMod": "view", "viewOn": "b", "pipeline": [{ "$match": { "n": n } }] },
            9 => {
                let out = vec![doc! { "$match": { "_id": { "$type": "int" } } }, doc! { "$out": "c" }];
                doc! { "aggregate": "a", "pipeline": out, "cursor": {} }
            }
            10 => doc! { "createIndexes": "series", "indexes": [{ "key": { "m.s": 1, "t": -1 }, "name": "st" }] },
            _ => doc! { "dropIndexes": "series", "index": "st" },
        };
        let _ = self.database.run_command(command).await;
    }
}
