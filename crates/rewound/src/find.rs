//! One document through time.

use crate::choose;
use model::{Engine, Error, Result};
use vault::{Vault, Version};

/// Every version of one document, newest first; of one source if its name or tag is given.
pub async fn find(vault: &Vault, collection: &str, key: &str, source: Option<&str>) -> Result<Vec<Version>> {
    let tag = match source {
        Some(_) => Some(choose::source(&vault.points().await?, source)?),
        None => None,
    };
    let keys = |engine: &Engine| crate::registry::keys_of(engine, key);
    let versions = vault.find_any(collection, &keys, tag.as_deref()).await?;
    if versions.is_empty() {
        return Err(Error::missing(format!("no point has a document {key} in a collection {collection}"))
            .hint("check the names of collection and key: for a folder, the name of the file without .json; for MongoDB, DATABASE.COLLECTION and the _id, as Extended JSON if it is no plain text"));
    }
    Ok(versions)
}

/// The version that was there at a time: the newest one not after it, of versions newest first.
pub fn version_at<'a>(versions: &'a [Version], at: &crate::time::At) -> Result<&'a Version> {
    for version in versions {
        if at.covers(version.time, model::FeedKind::LatestState)? {
            return Ok(version);
        }
    }
    Err(Error::missing(format!("the document was not there at {}", at.in_full()))
        .hint("`rewound find` without --at lists all versions with their times"))
}
