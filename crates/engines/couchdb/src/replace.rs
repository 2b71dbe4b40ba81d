//! Putting a database in the place of another one, which is deleted only when everything has been
//! written to a scratch database and read back from it.

use crate::error::unheard;
use crate::extras;
use crate::fetch::Pace;
use crate::read::Reader;
use crate::server::Server;
use crate::session::{Target, create, delete, entry};
use crate::writer::Writer;
use model::{AttachmentStore, Batch, Error, HashingStore, Kind, Result, ScanItem, Selection};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinHandle;

/// The name of a database to write to before another one is replaced.
pub(crate) fn scratch_name(target: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    format!("{target}-rewound-{now}")
}

/// Deletes the old database and writes it anew.
pub(crate) async fn put_in_place(
    server: &Arc<Server>,
    target: &Target,
    store: &Arc<dyn AttachmentStore>,
    settings: bool,
) -> Result<()> {
    let (scratch, name) = (&target.writer.database, &target.planned.target);
    let keep = |e: Error, more: &str| e.also(format!("everything is in the database {scratch}{more}"));
    let expected = target.written().sum;
    let untouched = format!("; {name} was not touched");
    check(server, scratch, expected, settings).await.map_err(|e| keep(e, &untouched))?;
    let doing = write_anew(server, target, store, expected, settings);
    doing.await.map_err(|e| keep(e, &format!("; {name} is not complete")))?;
    delete(server, scratch).await
}

async fn write_anew(
    server: &Arc<Server>,
    target: &Target,
    store: &Arc<dyn AttachmentStore>,
    expected: u128,
    settings: bool,
) -> Result<()> {
    let (scratch, name) = (&target.writer.database, &target.planned.target);
    delete(server, name).await?;
    let copies = create(server, name, &target.info()).await?;
    let writer = Writer::new(server.clone(), name, copies).await?;
    let mut back = Back::read(server, scratch, settings).await?;
    while let Some(mut batch) = back.next().await? {
        if writer.hold(&batch) {
            continue;
        }
        if batch.kind == Kind::Document {
            writer.documents(&batch).await?;
            continue;
        }
        for content in &mut batch.attachments {
            let known = target.written().contents.get(&content.digest).cloned();
            *content = known.ok_or_else(|| Error::bug("content came from nowhere"))?;
        }
        let numbers = writer.hold_design_entries(&batch);
        writer.attached(&batch, &numbers, store).await?;
    }
    for batch in writer.complete().await? {
        writer.attached(&batch, &(0..batch.len()).collect::<Vec<_>>(), store).await?;
    }
    writer.settle().await?;
    match back.sum == expected {
        true => check(server, name, expected, settings).await,
        false => Err(changed(scratch)),
    }
}

fn changed(name: &str) -> Error {
    Error::corrupt(format!("database {name}, read back, is not what was written"))
}

/// Reads a database back and compares.
async fn check(server: &Arc<Server>, name: &str, expected: u128, settings: bool) -> Result<()> {
    let mut back = Back::read(server, name, settings).await?;
    while back.next().await?.is_some() {}
    if back.sum == expected { Ok(()) } else { Err(changed(name)) }
}

/// A database that is read back.
struct Back {
    items: Receiver<Result<ScanItem>>,
    reading: JoinHandle<Result<()>>,
    /// Stands for all entries so far.
    sum: u128,
    /// Whether settings are part of what was written.
    settings: bool,
}

impl Back {
    async fn read(server: &Arc<Server>, name: &str, settings: bool) -> Result<Back> {
        let found = server.database(name).await?.ok_or_else(|| Error::missing(format!("database {name} is gone")))?;
        let reader = Reader {
            server: server.clone(),
            database: name.to_owned(),
            collection: found.id(),
            store: Arc::new(HashingStore),
            pace: Arc::new(Pace::default()),
            selection: Arc::new(Selection::default()),
            since: "0".into(),
            concurrency: 4,
            turns: Arc::new(Semaphore::new(4)),
        };
        let (out, items) = tokio::sync::mpsc::channel(4);
        let reading = tokio::spawn(async move { reader.scan(&out).await });
        Ok(Back { items, reading, sum: 0, settings })
    }

    async fn next(&mut self) -> Result<Option<Batch>> {
        loop {
            match self.items.recv().await.transpose()? {
                Some(ScanItem::Batch(batch)) => {
                    if batch.kind == extras::settings() && !self.settings {
                        continue;
                    }
                    if batch.kind != extras::checkpoints() {
                        (0..batch.len()).for_each(|i| self.sum = self.sum.wrapping_add(entry(&batch, i)));
                    }
                    return Ok(Some(batch));
                }
                Some(_) => {}
                None => return (&mut self.reading).await.map_err(|_| unheard())?.map(|()| None),
            }
        }
    }
}
