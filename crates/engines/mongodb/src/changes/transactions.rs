//! Transactions that fill more than one entry: the last entry points back to the ones before.
//!
//! Nothing is held until a transaction commits: its entries are read again then, from first to last.

use super::entry::{Entry, NO_TIME, field};
use super::feed::{Step, Stop};
use super::oplog;
use crate::connect::Server;
use crate::error;
use crate::reply::Answer;
use crate::retry::Patience;
use bson::{Document, Timestamp};
use model::{Error, Result};

/// How deep `applyOps` may lie in each other.
const DEPTH: usize = 8;

/// Whether an entry is a part of a transaction that is not decided yet.
pub(crate) fn is_open(entry: &Entry) -> bool {
    let is_set = |name| field(entry.o, name).is_some_and(|f| f.is_true());
    is_set("partialTxn") || is_set("prepare")
}

/// The times of the entries of a transaction before this one, its last; the first one first.
pub(crate) async fn before(server: &Server, last: &Entry<'_>) -> Step<Vec<Timestamp>> {
    let mut times = Vec::new();
    if last.number.is_none() || last.is_vectored {
        return Ok(times);
    }
    let fields = ["op", "ns", "ts", "t", "prevOpTime", "lsid", "txnNumber", "o.partialTxn", "o.prepare"];
    let fields: Document = fields.iter().map(|f| ((*f).to_owned(), 1.into())).collect();
    let mut prev = last.prev;
    while prev != NO_TIME {
        let answer = entry_at(server, prev, Some(&fields)).await?;
        let entry = Entry::parse(oplog::one(&answer))?;
        if entry.session != last.session || entry.number != last.number || !is_open(&entry) {
            return Err(last.unsupported(last.ts, "what it says to be the same transaction is not").into());
        }
        if (entry.prev.time, entry.prev.increment) >= (prev.time, prev.increment) {
            return Err(last.unsupported(last.ts, "its parts go in circles").into());
        }
        times.push(prev);
        prev = entry.prev;
    }
    times.reverse();
    Ok(times)
}

/// The entry with this time.
pub(crate) async fn entry_at(server: &Server, ts: Timestamp, fields: Option<&Document>) -> Step<Answer> {
    let find = oplog::at(ts, fields.cloned());
    let mut patience = Patience::new();
    loop {
        match oplog::first(server, &find).await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {
                return Err(Stop::Lost(format!(
                    "a part of a transaction, at ts:{},{}, is no longer in the oplog of {}",
                    ts.time,
                    ts.increment,
                    server.host()
                )));
            }
            Err(e) if error::is_passing(&e) && patience.again().await => {}
            Err(e) => return Err(error::driver("reading the parts of a transaction from the oplog", e).into()),
        }
    }
}

/// The operations of an entry, as bytes, in their order.
pub(crate) fn operations<'a>(entry: &Entry<'a>, ts: Timestamp) -> Result<Vec<&'a [u8]>> {
    let mut all = Vec::new();
    flatten(entry, ts, DEPTH, &mut all)?;
    Ok(all)
}

fn flatten<'a>(entry: &Entry<'a>, ts: Timestamp, depth: usize, all: &mut Vec<&'a [u8]>) -> Result<(), Error> {
    let broken = |why| entry.unsupported(ts, why);
    let operations = field(entry.o, "applyOps").and_then(|f| f.documents());
    for operation in operations.ok_or_else(|| broken("it has no operations"))? {
        // Only commands can hold others; what is written is not looked at twice.
        let is_command = field(operation, "op").and_then(|f| f.text()) == Some("c");
        let inner = is_command.then(|| Entry::parse(operation)).transpose()?;
        match inner {
            Some(inner) if inner.command().is_some_and(|c| c.name == b"applyOps") => {
                let depth = depth.checked_sub(1).ok_or_else(|| broken("it is nested too deeply"))?;
                flatten(&inner, ts, depth, all)?;
            }
            _ => all.push(operation),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use bson::doc;

    #[test]
    fn nested_operations_come_in_their_order() {
        let write = |n: i32| doc! { "op": "i", "ns": "db.a", "o": { "_id": n } };
        let nest = |inner: Vec<Document>| doc! { "op": "c", "ns": "admin.$cmd", "o": { "applyOps": inner } };
        let bytes = nest(vec![write(1), nest(vec![write(2), nest(vec![])]), write(3)]).to_vec().unwrap();
        let all = operations(&Entry::parse(&bytes).unwrap(), NO_TIME).unwrap();
        let ids: Vec<_> = all.iter().map(|o| Entry::parse(o).unwrap().o.to_vec()).collect();
        assert_eq!(ids, [1, 2, 3].map(|n| doc! { "_id": n }.to_vec().unwrap()));

        let mut deep = nest(vec![write(1)]);
        for _ in 0..DEPTH + 1 {
            deep = nest(vec![deep]);
        }
        let bytes = deep.to_vec().unwrap();
        assert!(operations(&Entry::parse(&bytes).unwrap(), NO_TIME).is_err());
        let bytes = doc! { "op": "c", "ns": "admin.$cmd", "o": { "applyOps": [1] } }.to_vec().unwrap();
        assert!(operations(&Entry::parse(&bytes).unwrap(), NO_TIME).is_err());
    }
}
