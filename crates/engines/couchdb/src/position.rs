//! Where to go on following the databases of a server, and how to know that they are still the same.

use crate::copies;
use crate::rows::{self, Row};
use crate::server::{Database, Server};
use model::{Error, Position, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where each database stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Places {
    pub databases: BTreeMap<String, Stand>,
}

/// Where one database stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stand {
    /// Its lasting identity.
    pub id: String,
    /// All changes up to here are known.
    pub seq: String,
    /// All purges up to here are known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub purge: String,
    /// What stands for all that it has beside documents.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub extras: String,
    /// A revision that was there: a database that was made anew does not know it. Kept where when it was
    /// made does not tell, or not for sure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<(String, String)>,
}

impl Places {
    pub fn position(&self) -> Result<Position> {
        let text = serde_json::to_string(self).map_err(|e| Error::bug("a position is no JSON").caused_by(e))?;
        Ok(Position(text))
    }

    pub fn read(position: &Position) -> Result<Places> {
        serde_json::from_str(&position.0)
            .map_err(|e| Error::corrupt("the position of the last point is none of CouchDB").caused_by(e))
    }
}

impl Stand {
    /// Where a database stands now.
    pub async fn now(server: &Server, database: &Database) -> Result<Stand> {
        let seen = match database.is_settled() {
            true => None,
            false => rows::newest(&server.client, &database.name).await?,
        };
        Ok(Stand {
            id: database.id().as_str().to_owned(),
            seq: database.info.seq(),
            purge: database.info.purge_seq(),
            extras: String::new(),
            seen,
        })
    }

    /// Remembers the last of some rows, if that is needed to know the database again.
    pub fn saw(&mut self, database: &Database, rows: &[Row]) {
        if database.is_settled() {
            // With time, its history may no longer reach back to what was seen.
            self.seen = None;
        } else if let Some(row) = rows.last() {
            self.seen = row.revs.first().map(|rev| (row.id.clone(), rev.clone()));
        }
    }

    /// Why a database is not the one that stood here; none if it is.
    pub async fn lost(&self, server: &Server, now: &Database) -> Result<Option<String>> {
        let name = &now.name;
        if self.id != now.id().as_str() {
            return Ok(Some(format!("database {name} was deleted and made anew")));
        }
        let purges = (number(&self.purge), number(&now.info.purge_seq()));
        if now.instance.is_some() && (self.seq == now.info.seq() || purges.0 != purges.1) {
            // What was seen may have been purged: which was, the database tells.
            return Ok(None);
        }
        // A sequence that is a number grows.
        if let (Ok(then), Ok(seq)) = (self.seq.parse::<u64>(), now.info.seq().parse::<u64>())
            && seq < then
        {
            return Ok(Some(format!("database {name} has fewer changes than before: it was made anew, or taken back")));
        }
        if let Some((id, rev)) = &self.seen
            && !copies::know(server, now, id, rev).await?
        {
            return Ok(Some(format!("database {name} no longer knows what it had: it was made anew, or purged")));
        }
        Ok(None)
    }
}

/// The number that a sequence of CouchDB begins with.
pub(crate) fn number(seq: &str) -> Option<u64> {
    seq.split_once('-').map_or(seq, |(number, _)| number).parse().ok()
}
