//! What a backup of MongoDB is measured against: the least that a program can do that reads or
//! writes everything, on plain connections. `benches/mongodb/run` calls it.
//!
//! rewound-bench-mongodb initiate HOST:PORT
//! rewound-bench-mongodb drop HOST:PORT DATABASE
//! rewound-bench-mongodb make HOST:PORT DATABASE MEGABYTES
//! rewound-bench-mongodb read HOST:PORT DATABASE [FOLDER]    all documents to a .bson file each collection, or to stdout
//! rewound-bench-mongodb insert HOST:PORT DATABASE FOLDER CONNECTIONS
#![allow(clippy::print_stderr)]

mod make;
mod wire;

use bson::{Document, doc};
use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;
use std::sync::Mutex;
use wire::Connection;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Bytes of documents in one insert command.
const INSERT: usize = 12 << 20;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["make", host, database, megabytes] => make::make(host, database, megabytes.parse::<usize>()? * 1_000_000),
        ["initiate", host] => initiate(host),
        ["drop", host, database] => {
            Connection::open(host)?.command(database, &doc! { "dropDatabase": 1 })?;
            Ok(())
        }
        ["read", host, database] => read(host, database, None),
        ["read", host, database, folder] => read(host, database, Some(Path::new(folder))),
        ["insert", host, database, folder, connections] => {
            insert(host, database, Path::new(folder), connections.parse()?)
        }
        _ => {
            Err("make HOST DATABASE MEGABYTES | read HOST DATABASE [FOLDER] | insert HOST DATABASE FOLDER CONNECTIONS"
                .into())
        }
    }
}

/// Waits for a server that is starting, and makes it a replica set of one member.
fn initiate(host: &str) -> Result<()> {
    let mut connection = loop {
        match Connection::open(host) {
            Ok(connection) => break connection,
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(50)),
        }
    };
    let members = vec![doc! { "_id": 0, "host": host }];
    connection.command("admin", &doc! { "replSetInitiate": { "_id": "rs", "members": members } })?;
    while !connection.command("admin", &doc! { "hello": 1 })?.get_bool("isWritablePrimary").is_ok_and(|yes| yes) {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    Ok(())
}

/// The collections of a database.
fn collections(connection: &mut Connection, database: &str) -> Result<Vec<String>> {
    let answer = connection.command(database, &doc! { "listCollections": 1, "nameOnly": true })?;
    let batch = answer.get_document("cursor")?.get_array("firstBatch")?;
    let mut names: Vec<String> =
        batch.iter().filter_map(|c| c.as_document()?.get_str("name").ok().map(str::to_owned)).collect();
    names.sort();
    Ok(names)
}

fn read(host: &str, database: &str, folder: Option<&Path>) -> Result<()> {
    let mut connection = Connection::open(host)?;
    for name in collections(&mut connection, database)? {
        let mut out: Box<dyn Write> = match folder {
            Some(folder) => {
                let indexes = connection.command(database, &doc! { "listIndexes": &name })?;
                std::fs::write(folder.join(format!("{name}.indexes")), indexes.to_vec()?)?;
                Box::new(BufWriter::new(File::create(folder.join(format!("{name}.bson")))?))
            }
            None => Box::new(std::io::stdout().lock()),
        };
        let mut command = doc! { "find": &name, "batchSize": 1 << 20 };
        loop {
            connection.send(database, &command.to_vec()?)?;
            let reply = connection.receive()?;
            let cursor = wire::batch(reply, |document| out.write_all(document))?;
            if cursor == 0 {
                break;
            }
            command = doc! { "getMore": cursor, "collection": &name };
        }
        out.flush()?;
    }
    Ok(())
}

fn insert(host: &str, database: &str, folder: &Path, connections: usize) -> Result<()> {
    let mut names: Vec<String> = std::fs::read_dir(folder)?
        .filter_map(|e| e.ok()?.file_name().into_string().ok()?.strip_suffix(".bson").map(str::to_owned))
        .collect();
    names.sort();
    for name in &names {
        let mut input = File::open(folder.join(format!("{name}.bson")))?;
        // One thread reads at a time, all send side by side.
        let rest = Mutex::new((Vec::new(), &mut input));
        let work = || -> Result<()> {
            let mut connection = Connection::open(host)?;
            loop {
                let documents = {
                    let mut rest = rest.lock().map_err(|_| "a thread failed")?;
                    let (kept, input) = &mut *rest;
                    let missing = INSERT.saturating_sub(kept.len()) as u64;
                    (&mut **input).take(missing).read_to_end(kept)?;
                    let whole = wire::whole(kept);
                    let after = kept.split_off(whole);
                    std::mem::replace(kept, after)
                };
                if documents.is_empty() {
                    return Ok(());
                }
                connection.insert(database, name, &documents)?;
            }
        };
        std::thread::scope(|scope| -> Result<()> {
            let threads: Vec<_> = (0..connections).map(|_| scope.spawn(work)).collect();
            for thread in threads {
                thread.join().map_err(|_| "a thread panicked")??;
            }
            Ok(())
        })?;
    }
    let mut connection = Connection::open(host)?;
    for name in &names {
        let answer = Document::from_reader(&std::fs::read(folder.join(format!("{name}.indexes")))?[..])?;
        let indexes: Vec<_> = answer.get_document("cursor")?.get_array("firstBatch")?.iter().skip(1).cloned().collect();
        if !indexes.is_empty() {
            connection.command(database, &doc! { "createIndexes": name, "indexes": indexes })?;
        }
    }
    Ok(())
}
