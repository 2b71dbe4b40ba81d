//! Following a replica set by its oplog: every change, in order, transactions whole.

mod ddl;
mod entry;
mod feed;
mod gather;
mod indexes;
mod known;
mod oplog;
mod options;
mod position;
mod transactions;

pub(crate) use feed::{follow, prove};
pub(crate) use oplog::place;
