//! Taking away databases that a drill has made.

use crate::connect::Server;
use bson::doc;
use model::{Error, Result};

/// Whether a database has no collection at all.
pub async fn is_empty(server: &Server, database: &str) -> Result<bool> {
    let command = doc! { "listCollections": 1, "nameOnly": true, "cursor": { "batchSize": 1 } };
    let answer = server.run(database, command).await?;
    let first = answer.get_document("cursor").and_then(|c| c.get_array("firstBatch"));
    first.map(|list| list.is_empty()).map_err(|e| Error::corrupt(format!("the server's list of collections: {e}")))
}

/// Drops a database with everything in it.
pub async fn drop_database(server: &Server, database: &str) -> Result<()> {
    server.run(database, doc! { "dropDatabase": 1 }).await.map(drop)
}
