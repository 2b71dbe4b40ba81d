//! What a server does in its own time.

use crate::server::Server;
use model::{Error, ErrorKind, Result};
use reqwest::{Method, RequestBuilder};
use serde::Deserialize;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often the server is asked how far it is, at first and later on.
const ASKED: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How often the user is told.
const TOLD: Duration = Duration::from_secs(10);
/// How long the end of an operation that is given up is waited for.
const ENDING: Duration = Duration::from_secs(10);

/// An operation under way; one that is dropped before its end is killed.
pub(super) struct Operation {
    server: Arc<Server>,
    id: u64,
    /// The database that it is about; none: it is the server's own.
    database: Option<String>,
    over: bool,
}

#[derive(Deserialize)]
struct State {
    #[serde(rename = "Status")]
    status: String,
    #[serde(rename = "Progress")]
    progress: Option<serde_json::Value>,
    #[serde(rename = "Result")]
    result: Option<serde_json::Value>,
}

impl Operation {
    /// Sends the request that begins it, of a database or of the server.
    pub async fn begin(
        server: &Arc<Server>,
        request: RequestBuilder,
        database: Option<String>,
        doing: &str,
    ) -> Result<Operation> {
        #[derive(Deserialize)]
        struct Begun {
            #[serde(rename = "OperationId")]
            id: u64,
        }
        let (server, doing) = (server.clone(), doing.to_owned());
        let (over, waiting) = tokio::sync::oneshot::channel::<()>();
        let asking = std::thread::spawn(move || {
            let begun = alone(server.json::<Begun>(request, &doing));
            drop(over);
            Ok(Operation { id: begun?.id, server, database, over: false })
        });
        let mut asking = Asking(Some(asking));
        // It ends when the other side is dropped.
        let _ = waiting.await;
        match asking.0.take().map(JoinHandle::join) {
            Some(Ok(begun)) => begun,
            _ => Err(Error::bug("nobody asked the server to begin")),
        }
    }

    async fn state(&self, doing: &str) -> Result<State> {
        let path = match &self.database {
            Some(database) => vec!["databases", database, "operations", "state"],
            None => vec!["operations", "state"],
        };
        let request = self.server.request(Method::GET, &path, &[("id", &self.id.to_string())])?;
        self.server.json(request, doing).await
    }

    fn kill(&self) -> Result<RequestBuilder> {
        let path = match &self.database {
            Some(database) => vec!["databases", database, "operations", "kill"],
            None => vec!["admin", "operations", "kill"],
        };
        self.server.request(Method::POST, &path, &[("id", &self.id.to_string())])
    }

    /// Waits for its end, and tells how far it is now and then.
    pub async fn wait(mut self, doing: &str) -> Result<()> {
        let (mut pause, longest) = ASKED;
        let mut told = Instant::now();
        loop {
            let State { status, progress, result } = self.state(doing).await?;
            match status.as_str() {
                "Completed" => {
                    self.over = true;
                    return Ok(());
                }
                "Faulted" | "Canceled" => {
                    self.over = true;
                    return Err(failed(doing, &status, &result.unwrap_or_default()));
                }
                _ => {}
            }
            if told.elapsed() >= TOLD {
                told = Instant::now();
                let documents = progress.as_ref().and_then(|p| p["Documents"]["ReadCount"].as_u64());
                let far = documents.map_or_else(|| "it goes on".to_owned(), |n| format!("{n} documents so far"));
                tracing::warn!("{doing}: {far}");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }
}

/// A request that begins an operation. Given up, its answer is waited for all the same: whose number nobody knows,
/// nobody can stop.
struct Asking(Option<JoinHandle<Result<Operation>>>);

impl Drop for Asking {
    fn drop(&mut self) {
        drop(self.0.take().map(JoinHandle::join));
    }
}

/// Does something where no one else can stop it.
fn alone<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| Error::io("starting a runtime", e))?.block_on(work)
}

/// Why an operation has failed, in the server's words.
fn failed(doing: &str, status: &str, result: &serde_json::Value) -> Error {
    let first = result["Message"].as_str().and_then(|m| m.lines().next()).unwrap_or(status);
    Error::new(ErrorKind::Unsupported, format!("{doing}: the server says: {first}")).hint("the server's log says more")
}

impl Drop for Operation {
    /// The server would go on for nobody, into a folder that is about to be removed.
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let stopping = || -> Result<()> {
            let (kill, doing) = (self.kill()?, "stopping the server's operation");
            alone(async {
                let stopped = async {
                    self.server.send(kill, doing).await?;
                    while self.state(doing).await?.status == "InProgress" {
                        tokio::time::sleep(ASKED.0).await;
                    }
                    Ok(())
                };
                tokio::time::timeout(ENDING, stopped).await.unwrap_or(Ok(()))
            })
        };
        // A thread of its own, as this one may belong to a runtime.
        std::thread::scope(|scope| {
            if let Ok(Err(e)) = scope.spawn(stopping).join() {
                tracing::warn!("the server's operation {} could not be stopped: {e}", self.id);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_in_the_servers_words() {
        let result = serde_json::json!({"Type": "System.IO.IOException", "Message": "No room.\nat X"});
        assert_eq!(failed("backing up", "Faulted", &result).message(), "backing up: the server says: No room.");
        let none = serde_json::Value::Null;
        assert_eq!(failed("backing up", "Canceled", &none).message(), "backing up: the server says: Canceled");
    }
}
