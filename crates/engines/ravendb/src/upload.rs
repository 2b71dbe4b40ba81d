//! An import under way: a request whose body is made while it is sent.

use crate::catalog;
use crate::dump::{Compressor, Writer};
use crate::maker::Output;
use crate::server::{Build, Server};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use model::{Error, ErrorKind, Result};
use reqwest::{Body, Method};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Pieces that wait to be sent.
const WAITING: usize = 4;
/// How long the end of an import that was given up is waited for.
const ENDING: Duration = Duration::from_secs(30);
/// Parts the pieces of the request; no dump holds it at a place where it would count.
const BOUNDARY: &str = "----rewound-7f1b2c9a4e5d4f0c8a6b3d2e1f0a9b8c";

/// The body of a request, as it is sent.
type Pieces = mpsc::Sender<Result<Bytes, std::io::Error>>;

/// An import.
pub(crate) struct Upload {
    pieces: Option<Pieces>,
    answer: Option<JoinHandle<Result<()>>>,
}

impl Upload {
    /// Starts the request.
    pub fn begin(server: &std::sync::Arc<Server>, build: &Build) -> Result<Upload> {
        let types = [catalog::of_collection(build), catalog::of_database(build)].concat().join(",");
        let options = serde_json::json!({ "OperateOnTypes": types });
        let head = format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"importOptions\"\r\n\r\n{options}\r\n\
             --{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"rewound.ravendbdump\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        let (pieces, waiting) = mpsc::channel(WAITING);
        let body = futures::stream::unfold(waiting, |mut waiting| async { waiting.recv().await.map(|p| (p, waiting)) });
        let head = futures::stream::iter([Ok(Bytes::from(head))]);
        let request = server
            .of_database(Method::POST, &["smuggler", "import"], &[])?
            // The server does not read to the end of the request.
            .header("Connection", "close")
            .header("Content-Type", format!("multipart/form-data; boundary={BOUNDARY}"))
            .body(Body::wrap_stream(head.chain(body)));
        let server = server.clone();
        let answer = tokio::spawn(async move {
            let answer = server.send(request, "importing").await?;
            let body = answer.bytes().await.map_err(|e| crate::refusal::network("importing", e))?;
            judge(&body)
        });
        Ok(Upload { pieces: Some(pieces), answer: Some(answer) })
    }

    /// Sends a piece of a dump.
    pub async fn push(&mut self, bytes: Bytes) -> Result<()> {
        self.send(bytes).await
    }

    /// Ends the request and waits for the server to have taken everything.
    pub async fn finish(mut self) -> Result<()> {
        self.send(Bytes::from(format!("\r\n--{BOUNDARY}--\r\n"))).await?;
        self.pieces = None;
        self.answer().await
    }

    /// Breaks the request off.
    pub async fn abort(mut self) {
        if let Some(pieces) = self.pieces.take() {
            let _ = pieces.send(Err(std::io::Error::other("the restore was given up"))).await;
        }
        let _ = tokio::time::timeout(ENDING, self.answer()).await;
    }

    async fn answer(&mut self) -> Result<()> {
        match self.answer.take() {
            Some(answer) => answer.await.map_err(|e| Error::bug(format!("an import stopped: {e}")))?,
            None => Err(Error::new(ErrorKind::Retry, "the import has ended already")),
        }
    }
}

#[async_trait]
impl Output for Upload {
    async fn send(&mut self, bytes: Bytes) -> Result<()> {
        let Some(pieces) = &self.pieces else { return Err(Error::bug("an import goes on after its end")) };
        if pieces.send(Ok(bytes)).await.is_ok() {
            return Ok(());
        }
        // The server has answered before it had everything: it says why.
        self.pieces = None;
        match self.answer().await {
            Err(error) => Err(error),
            Ok(()) => Err(Error::new(ErrorKind::Retry, "the server ended the import before it had everything")),
        }
    }
}

/// Imports settings alone.
pub(crate) async fn settings(server: &std::sync::Arc<Server>, build: &Build, record: &[u8]) -> Result<()> {
    let compressor = if build.is_old() { Compressor::gzip() } else { Compressor::none() };
    let mut writer = Writer::new(compressor, build.build)?;
    writer.value("DatabaseRecord", record)?;
    let mut upload = Upload::begin(server, build)?;
    upload.send(writer.finish()?).await?;
    upload.finish().await
}

/// An import that went wrong in part is answered like one that went well, but for its numbers.
fn judge(answer: &[u8]) -> Result<()> {
    let Ok(answer) = serde_json::from_slice::<serde_json::Value>(answer) else {
        return Err(Error::corrupt("the server's answer to the import cannot be read"));
    };
    let mut bad = Vec::new();
    errors(&answer, "", &mut bad);
    if bad.is_empty() {
        return Ok(());
    }
    let messages = answer.get("Messages").and_then(|m| m.as_array()).into_iter().flatten().filter_map(|m| m.as_str());
    let said: Vec<&str> = messages.filter(|m| m.contains("ERROR")).take(3).collect();
    Err(Error::corrupt(format!("the server could not take everything: {}", bad.join(", ")))
        .hint(format!("it says: {}", said.join("; "))))
}

fn errors(value: &serde_json::Value, name: &str, bad: &mut Vec<String>) {
    let Some(object) = value.as_object() else { return };
    if let Some(n) = object.get("ErroredCount").and_then(|n| n.as_u64()).filter(|n| *n > 0) {
        bad.push(format!("{n} of {name}"));
    }
    for (name, inner) in object {
        errors(inner, name, bad);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_not_taken_is_an_error() {
        assert!(judge(br#"{"Documents":{"ReadCount":3,"ErroredCount":0,"Attachments":{"ErroredCount":0}}}"#).is_ok());
        let bad = br#"{"Messages":["[x ERROR] no","[INFO] y"],"Counters":{"ReadCount":1,"ErroredCount":1}}"#;
        let error = judge(bad).unwrap_err();
        assert!(error.to_string().contains("1 of Counters"), "{error}");
        assert!(error.hint_text().unwrap().contains("[x ERROR] no"));
    }
}
