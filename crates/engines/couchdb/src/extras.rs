//! What a database has beside documents: `_security`, `_revs_limit`, `_local` documents.
//!
//! Each kind is one entry under a key that is always the same, so that a new state takes the place of
//! the old one without anything having to be known of that.

use crate::client::{ANSWER_MAX, Request, segment};
use crate::members::{Members, quoted};
use crate::server::Server;
use model::{Error, ErrorKind, Kind, Result, limits};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Key of the security object.
pub(crate) const SECURITY: &str = "_security";
/// Key of the limit of revisions.
pub(crate) const REVS_LIMIT: &str = "_revs_limit";
/// Key of the `_local` documents.
pub(crate) const LOCAL: &str = "_local";

/// Settings.
pub(crate) fn settings() -> Kind {
    Kind::Meta("settings".into())
}

/// `_local` documents that replications and indexes keep: where they would be right again is not known.
pub(crate) fn checkpoints() -> Kind {
    Kind::Meta("checkpoints".into())
}

/// One thing beside documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Extra {
    pub kind: Kind,
    pub key: &'static str,
    /// None: there is none.
    pub body: Option<Vec<u8>>,
}

/// Everything beside documents, as it is now.
pub(crate) async fn read(server: &Server, database: &str) -> Result<Vec<Extra>> {
    let (security, limit, local) =
        futures::try_join!(server.security(database), server.revs_limit(database), local(server, database))?;
    let [local, checkpoints_body] = local;
    Ok(vec![
        Extra { kind: settings(), key: SECURITY, body: security.map(|raw| raw.get().as_bytes().to_vec()) },
        Extra { kind: settings(), key: REVS_LIMIT, body: limit.map(|n| n.to_string().into_bytes()) },
        Extra { kind: Kind::Local, key: LOCAL, body: local },
        Extra { kind: checkpoints(), key: LOCAL, body: checkpoints_body },
    ])
}

/// 64 bits that stand for all of them.
pub(crate) fn fingerprint(extras: &[Extra]) -> String {
    let mut hasher = blake3::Hasher::new();
    for extra in extras {
        let body = extra.body.as_deref().unwrap_or_default();
        hasher.update(&(body.len() as u64).to_le_bytes());
        hasher.update(body);
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

#[derive(Deserialize)]
struct Rows<'a> {
    #[serde(borrow)]
    rows: Vec<LocalRow<'a>>,
}

#[derive(Deserialize)]
struct LocalRow<'a> {
    #[serde(borrow)]
    doc: &'a RawValue,
}

/// The `_local` documents, apart from those that only mark how far something has come, and these.
async fn local(server: &Server, database: &str) -> Result<[Option<Vec<u8>>; 2]> {
    let path = format!("{}/_local_docs?include_docs=true", segment(database));
    let sorted = server.client.json(&Request::get(path), ANSWER_MAX, |bytes| sorted(bytes)).await;
    let sorted = match sorted {
        Err(e) if matches!(e.kind(), ErrorKind::Missing | ErrorKind::Input) => return Ok([None, None]),
        other => other?,
    };
    let mut lists = [Vec::new(), Vec::new()];
    for (_, is_checkpoint, text) in sorted {
        let list = &mut lists[usize::from(is_checkpoint)];
        list.push(if list.is_empty() { b'[' } else { b',' });
        list.extend_from_slice(&text);
    }
    let mut closed = lists.into_iter().map(|mut list| {
        if list.len() > limits::DOCUMENT_MAX {
            return Err(Error::unsupported(format!(
                "the _local documents of {database} have more than {} bytes",
                limits::DOCUMENT_MAX
            ))
            .hint("remove checkpoints of replications that are no more"));
        }
        if !list.is_empty() {
            list.push(b']');
        }
        Ok(Some(list).filter(|l| !l.is_empty()))
    });
    let mut next = || closed.next().unwrap_or(Ok(None));
    Ok([next()?, next()?])
}

/// Each `_local` document without its revision, which counts how often it was written, sorted by id.
fn sorted(bytes: &[u8]) -> serde_json::Result<Vec<(String, bool, Vec<u8>)>> {
    let rows: Rows<'_> = serde_json::from_slice(bytes)?;
    let mut all = Vec::with_capacity(rows.rows.len());
    for row in rows.rows {
        let members: Members<'_> = serde_json::from_str(row.doc.get())?;
        let id = members.text("_id").map(|id| id.into_owned()).unwrap_or_default();
        let mut text = Vec::with_capacity(row.doc.get().len());
        for (name, value) in members.0.iter().filter(|(name, _)| name != "_rev") {
            text.push(if text.is_empty() { b'{' } else { b',' });
            quoted(name, &mut text);
            text.push(b':');
            text.extend_from_slice(value.get().as_bytes());
        }
        text.push(b'}');
        all.push((id.clone(), is_checkpoint(&id, &members), text));
    }
    all.sort();
    Ok(all)
}

/// Whether a `_local` document says how far a replication or an index of the server has come.
fn is_checkpoint(id: &str, members: &Members<'_>) -> bool {
    let has = |name: &str| members.get(name).is_some();
    ["_local/purge-", "_local/shard-sync-"].iter().any(|start| id.starts_with(start))
        || (has("session_id") && has("history"))
        || (has("last_seq") && has("replicator"))
}

/// The documents of a list that [`read`] gave.
pub(crate) fn listed(body: &[u8]) -> Result<Vec<&RawValue>> {
    serde_json::from_slice(body).map_err(|e| Error::corrupt("the list of _local documents is no JSON").caused_by(e))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn checkpoints_are_told_from_other_local_documents() {
        let rows = r#"{"rows":[
            {"id":"_local/x","doc":{"_id":"_local/x","_rev":"0-7","n":12345678901234567890}},
            {"id":"_local/a","doc":{"_id":"_local/a","_rev":"0-1","session_id":"s","source_last_seq":1,"history":[]}},
            {"id":"_local/p","doc":{"_id":"_local/p","_rev":"0-1","last_seq":1,"replicator":"pouchdb"}},
            {"id":"_local/h","doc":{"_id":"_local/h","_rev":"0-1","history":"mine"}}]}"#;
        let all = sorted(rows.as_bytes()).unwrap();
        let found: Vec<_> = all.iter().map(|(id, is, text)| (&**id, *is, std::str::from_utf8(text).unwrap())).collect();
        assert_eq!(found[1], ("_local/h", false, r#"{"_id":"_local/h","history":"mine"}"#));
        assert_eq!(found[3], ("_local/x", false, r#"{"_id":"_local/x","n":12345678901234567890}"#));
        assert!(found[0].1 && found[2].1);
    }
}
