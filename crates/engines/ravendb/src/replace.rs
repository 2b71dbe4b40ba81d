//! Putting a database in the place of another one, which is deleted only when everything has been
//! written to a scratch database and read back from it. RavenDB cannot rename databases: so it is then
//! written anew, out of the scratch database, and read back once more.

use crate::catalog;
use crate::proof;
use crate::server::{Build, Server};
use crate::source::RavenSource;
use crate::upload::Upload;
use futures::StreamExt;
use model::{Batch, Clock, Error, HashingStore, Plan, Result, ScanItem, Selection, Source, SystemClock};
use std::sync::Arc;

/// The database to write to before another one is replaced.
pub(crate) fn scratch(server: &Server) -> Result<Server> {
    Ok(server.named(format!("{}-rewound-{}", server.database()?, SystemClock.now_millis())))
}

/// What stands for everything that was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sum(u128);

impl Sum {
    /// Adds what can be proven of a batch.
    pub fn add(&mut self, batch: &Batch, same_version: bool) {
        let Some(batch) = proof::provable(batch, same_version, false) else { return };
        if batch.kind.is_tombstone() {
            return;
        }
        for i in 0..batch.len() {
            let mut hasher = blake3::Hasher::new();
            let content = batch.attachments.get(i).map(|a| &a.digest[..]).unwrap_or_default();
            for part in [batch.kind.space().as_bytes(), batch.key_of(i), batch.body_of(i), content] {
                hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
            }
            let mut half = [0; 16];
            half.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
            self.0 = self.0.wrapping_add(u128::from_le_bytes(half));
        }
    }
}

/// Deletes the old database and writes it anew out of the scratch database.
pub(crate) async fn put_in_place(
    server: &Arc<Server>,
    scratch: &Arc<Server>,
    build: &Build,
    (expected, same_version): (Sum, bool),
    stops: bool,
) -> Result<()> {
    let (name, kept) = (server.database()?, scratch.database()?);
    let keep = |e: Error, more: &str| e.also(format!("everything is in the database {kept}; {more}"));
    let checked = check(scratch, expected, same_version).await;
    checked.map_err(|e| keep(e, &format!("{name} was not touched")))?;
    let anew = async {
        server.delete().await?;
        server.create().await?;
        if stops {
            server.stop_indexing().await?;
        }
        send(server, scratch, build).await?;
        check(server, expected, same_version).await
    };
    anew.await.map_err(|e| keep(e, &format!("{name} is not complete")))?;
    scratch.delete().await
}

/// Sends what one database exports to another one.
async fn send(to: &Arc<Server>, from: &Server, build: &Build) -> Result<()> {
    let mut types = [catalog::of_collection(build), catalog::of_database(build)].concat();
    // Settings come last, after the proof; but old servers take no revisions without them.
    types.retain(|t| build.is_old() || *t != "DatabaseRecord");
    let mut export = from.export(build, &types, None, None).await?;
    let mut upload = Upload::begin(to, build)?;
    while let Some(piece) = export.next().await {
        match piece {
            Ok(piece) => upload.push(piece).await?,
            Err(e) => {
                upload.abort().await;
                return Err(e);
            }
        }
    }
    upload.finish().await
}

/// Reads a database back and compares.
async fn check(server: &Arc<Server>, expected: Sum, same_version: bool) -> Result<()> {
    let source = RavenSource::new(server.clone());
    let Plan::Scan { parts, .. } = source.plan(&Selection::default(), None).await? else {
        return Err(Error::bug("a database that was never read is not read whole"));
    };
    let mut sum = Sum::default();
    for part in &parts {
        let mut items = source.read(part, Arc::new(HashingStore)).await?;
        while let Some(item) = items.next().await.transpose()? {
            if let ScanItem::Batch(batch) = item {
                sum.add(&batch, same_version);
            }
        }
    }
    match sum == expected {
        true => Ok(()),
        false => Err(Error::corrupt(format!("database {}, read back, is not what was written", server.database()?))),
    }
}
