//! A database of mixed documents, the same each time.

use crate::Result;
use crate::wire::Connection;
use bson::oid::ObjectId;
use bson::{Bson, Document, doc};

/// Numbers that look random and are the same each time (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn words(&mut self, count: u64) -> String {
        const WORDS: [&str; 24] = [
            "river", "stone", "light", "under", "seven", "garden", "winter", "letter", "copper", "market", "silver",
            "window", "paper", "forest", "signal", "harbour", "engine", "morning", "number", "bridge", "island",
            "yellow", "metal", "story",
        ];
        let words: Vec<_> = (0..count).map(|_| WORDS[self.below(24) as usize]).collect();
        words.join(" ")
    }

    fn id(&mut self) -> ObjectId {
        let (a, b) = (self.next().to_le_bytes(), self.next().to_le_bytes());
        let mut id = [0; 12];
        id[..8].copy_from_slice(&a);
        id[8..].copy_from_slice(&b[..4]);
        ObjectId::from_bytes(id)
    }
}

type Maker = fn(&mut Numbers, i64) -> Document;

/// Collections: name, share of all bytes in percent, documents, fields with an index.
const COLLECTIONS: [(&str, usize, Maker, [&str; 2]); 4] = [
    ("events", 30, event, ["user", "at"]),
    ("orders", 35, order, ["customer", "state"]),
    ("pages", 25, page, ["title", "links"]),
    ("blobs", 10, blob, ["name", "size"]),
];

fn event(n: &mut Numbers, i: i64) -> Document {
    let at = bson::DateTime::from_millis(1_700_000_000_000 + i * 700);
    let kind = ["click", "view", "buy", "leave"][n.below(4) as usize];
    doc! { "_id": ObjectId::from_bytes([&(i as u64).to_be_bytes()[..], &[1; 4]].concat().try_into().unwrap_or_default()),
    "at": at, "user": n.below(100_000) as i64, "kind": kind, "x": n.below(1000) as i32, "y": n.below(1000) as i32, "ok": n.below(9) > 0,
    "path": n.words(6).replace(' ', "/"), "agent": n.words(9), "session": format!("{:016x}", n.next()) }
}

fn order(n: &mut Numbers, i: i64) -> Document {
    let lines: Vec<Bson> = (0..2 + n.below(6))
        .map(|_| doc! { "sku": format!("{:08x}", n.below(1 << 20)), "price": n.below(100_000) as f64 / 100.0, "n": n.below(9) as i32 }.into())
        .collect();
    doc! { "_id": i, "customer": n.below(50_000) as i64, "state": (["new", "paid", "sent"][n.below(3) as usize]),
    "address": { "street": n.words(2), "city": n.words(1), "zip": n.below(99_999) as i32 }, "lines": lines, "note": n.words(20) }
}

fn page(n: &mut Numbers, _: i64) -> Document {
    let links: Vec<Bson> = (0..n.below(20)).map(|_| n.id().into()).collect();
    doc! { "_id": n.id(), "title": n.words(5), "text": n.words(1200), "links": links }
}

fn blob(n: &mut Numbers, i: i64) -> Document {
    let bytes: Vec<u8> = (0..12_000).flat_map(|_| n.next().to_le_bytes()).collect();
    let size = bytes.len() as i64;
    doc! { "_id": format!("blob {i}"), "name": n.words(3), "size": size, "bytes": bson::Binary { subtype: bson::spec::BinarySubtype::Generic, bytes } }
}

/// Fills a database.
pub fn make(host: &str, database: &str, bytes: usize) -> Result<()> {
    let mut connection = Connection::open(host)?;
    for (name, share, maker, indexed) in COLLECTIONS {
        let mut numbers = Numbers(share as u64);
        let (mut made, mut batch, mut i, mut sent) = (0, Vec::new(), 0, 0);
        while made < bytes / 100 * share {
            let document = maker(&mut numbers, i).to_vec()?;
            made += document.len();
            i += 1;
            batch.extend_from_slice(&document);
            if batch.len() > crate::INSERT || i - sent == crate::wire::MANY as i64 {
                sent = i;
                connection.insert(database, name, &batch)?;
                batch.clear();
            }
        }
        if !batch.is_empty() {
            connection.insert(database, name, &batch)?;
        }
        let indexes: Vec<Document> =
            indexed.iter().map(|field| doc! { "key": { *field: 1 }, "name": format!("{field}_1") }).collect();
        connection.command(database, &doc! { "createIndexes": name, "indexes": indexes })?;
    }
    Ok(())
}
