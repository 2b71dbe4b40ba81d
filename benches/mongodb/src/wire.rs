//! OP_MSG on a plain connection, as little of it as possible.

use crate::Result;
use bson::Document;
use std::io::{Read, Write};
use std::net::TcpStream;

/// A connection to a server.
pub struct Connection {
    stream: TcpStream,
    reply: Vec<u8>,
}

impl Connection {
    /// Connects.
    pub fn open(host: &str) -> Result<Connection> {
        let stream = TcpStream::connect(host)?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, reply: Vec::new() })
    }

    /// Sends a command: `body` is a document, which gets the database's name.
    pub fn send(&mut self, database: &str, body: &[u8]) -> Result<()> {
        self.send_with(database, body, "", &[])
    }

    /// Sends a command with a sequence of documents of its own.
    fn send_with(&mut self, database: &str, body: &[u8], sequence: &str, documents: &[u8]) -> Result<()> {
        let mut named = body[4..body.len() - 1].to_vec();
        named.extend_from_slice(b"\x02$db\0");
        named.extend_from_slice(&(database.len() as u32 + 1).to_le_bytes());
        named.extend_from_slice(database.as_bytes());
        named.extend_from_slice(b"\0\0");
        let mut head = Vec::with_capacity(64 + named.len());
        let extra = if sequence.is_empty() { 0 } else { 1 + 4 + sequence.len() + 1 + documents.len() };
        for number in [16 + 4 + 1 + 4 + named.len() + extra, 1, 0, 2013, 0] {
            head.extend_from_slice(&(number as u32).to_le_bytes());
        }
        head.push(0);
        head.extend_from_slice(&(named.len() as u32 + 4).to_le_bytes());
        head.extend_from_slice(&named);
        if !sequence.is_empty() {
            head.push(1);
            head.extend_from_slice(&(extra as u32 - 1).to_le_bytes());
            head.extend_from_slice(sequence.as_bytes());
            head.push(0);
        }
        self.stream.write_all(&head)?;
        self.stream.write_all(documents)?;
        Ok(())
    }

    /// The document of the next reply.
    pub fn receive(&mut self) -> Result<&[u8]> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        self.reply.resize(u32::from_le_bytes(length) as usize - 4, 0);
        self.stream.read_exact(&mut self.reply)?;
        Ok(&self.reply[17..])
    }

    /// A small command and its answer.
    pub fn command(&mut self, database: &str, command: &Document) -> Result<Document> {
        self.send(database, &command.to_vec()?)?;
        let answer = Document::from_reader(self.receive()?)?;
        match answer.get_f64("ok") {
            Ok(1.0) if !answer.contains_key("writeErrors") => Ok(answer),
            _ => Err(format!("{command}: {answer}").into()),
        }
    }

    /// Inserts documents that follow each other.
    pub fn insert(&mut self, database: &str, collection: &str, documents: &[u8]) -> Result<()> {
        let body = bson::doc! { "insert": collection, "ordered": false, "bypassDocumentValidation": true };
        self.send_with(database, &body.to_vec()?, "documents", documents)?;
        let answer = Document::from_reader(self.receive()?)?;
        match answer.get_f64("ok") {
            Ok(1.0) if !answer.contains_key("writeErrors") => Ok(()),
            _ => Err(answer.to_string().into()),
        }
    }
}

fn number(bytes: &[u8], at: usize) -> usize {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, |b| u32::from_le_bytes(b) as usize)
}

/// Gives each document of a reply's batch to `take`, and the cursor.
pub fn batch(reply: &[u8], mut take: impl FnMut(&[u8]) -> std::io::Result<()>) -> Result<i64> {
    // {cursor: {firstBatch|nextBatch: [...], id, ns}, …}, in this order since 4.0.
    if reply.get(4..12) != Some(b"\x03cursor\0") {
        return Err(Document::from_reader(reply)?.to_string().into());
    }
    let cursor = 12;
    let name = reply[cursor + 5..].iter().position(|b| *b == 0).ok_or("no batch")?;
    let array = cursor + 5 + name + 1;
    let end = array + number(reply, array);
    let mut at = array + 4;
    while at < end - 1 {
        let key = reply[at + 1..].iter().position(|b| *b == 0).ok_or("no key")?;
        let document = at + 1 + key + 1;
        at = document + number(reply, document);
        take(&reply[document..at])?;
    }
    let rest = Document::from_reader(reply_of(&reply[end..cursor + number(reply, cursor)]).as_slice())?;
    Ok(rest.get_i64("id")?)
}

/// Elements as a document.
fn reply_of(elements: &[u8]) -> Vec<u8> {
    let mut document = (elements.len() as u32 + 4).to_le_bytes().to_vec();
    document.extend_from_slice(elements);
    document
}

/// Documents that a server takes in one insert.
pub const MANY: usize = 100_000;

/// How many bytes of whole documents there are, of as many as a server takes.
pub fn whole(bytes: &[u8]) -> usize {
    let (mut at, mut documents) = (0, 0);
    while documents < MANY && at + 4 <= bytes.len() && number(bytes, at) >= 5 && at + number(bytes, at) <= bytes.len() {
        at += number(bytes, at);
        documents += 1;
    }
    at
}
