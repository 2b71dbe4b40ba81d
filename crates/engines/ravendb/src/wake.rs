//! Being woken by the server when something has changed. It is a hint alone: what has changed is asked
//! for by etag, and asked for now and then without it.

use crate::server::Server;
use futures::{SinkExt, StreamExt};
use model::{Error, ErrorKind, Result};
use reqwest::Method;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};

/// How long after a connection that ended the next one is tried.
const AGAIN: Duration = Duration::from_secs(5);
/// Bytes of a message at most; those that come are of a few hundred.
const MESSAGE: usize = 1 << 20;

/// Waits for changes of a database; ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Wake {
    changed: Arc<Notify>,
    listening: JoinHandle<()>,
}

impl Wake {
    /// Begins to listen.
    pub fn new(server: Arc<Server>) -> Wake {
        let changed = Arc::new(Notify::new());
        let tell = changed.clone();
        let listening = tokio::spawn(async move {
            loop {
                if let Err(e) = listen(&server, &tell).await {
                    tracing::debug!("the server does not wake us: {e}");
                }
                tokio::time::sleep(AGAIN).await;
            }
        });
        Wake { changed, listening }
    }

    /// Waits until something has changed, and no longer than this.
    pub async fn wait(&self, longest: Duration) {
        let _ = tokio::time::timeout(longest, self.changed.notified()).await;
    }
}

impl Drop for Wake {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Tells of changes until the connection ends.
async fn listen(server: &Server, changed: &Notify) -> Result<()> {
    let key = generate_key();
    let request = server
        .of_database(Method::GET, &["changes"], &[])?
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", &key);
    let doing = "listening for changes";
    let answer = request.send().await.map_err(|e| crate::refusal::network(doing, e))?;
    let accepted = answer.headers().get("Sec-WebSocket-Accept").map(|v| v.as_bytes().to_vec());
    if answer.status().as_u16() != 101 || accepted != Some(derive_accept_key(key.as_bytes()).into_bytes()) {
        return Err(Error::unsupported(format!("{doing}: the server says {}", answer.status())));
    }
    let stream = answer.upgrade().await.map_err(|e| crate::refusal::network(doing, e))?;
    let config = WebSocketConfig::default().max_message_size(Some(MESSAGE)).max_frame_size(Some(MESSAGE));
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Client, Some(config)).await;
    let gone = |e| Error::new(ErrorKind::Retry, format!("{doing}: {e}"));
    // Attachments, and the first of a document's counters and time series, change documents too. A server
    // ends the connection if it does not know a command.
    let known = if server.build().await?.is_old() { 1 } else { 3 };
    for (number, command) in ["watch-docs", "watch-counters", "watch-all-timeseries"][..known].iter().enumerate() {
        let command = serde_json::json!({ "CommandId": number + 1, "Command": command, "Param": null });
        socket.send(Message::text(command.to_string())).await.map_err(gone)?;
    }
    // Something may have happened before.
    changed.notify_one();
    while let Some(message) = socket.next().await {
        if let Message::Text(text) = message.map_err(gone)?
            && text.contains("\"Value\"")
        {
            changed.notify_one();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Instant;
    use testkit::ravendb::{OLDEST, Raven};

    /// On real servers, as all tests that need one (`./dev/test` gets them).
    #[tokio::test(flavor = "multi_thread")]
    async fn a_change_wakes_and_a_server_that_was_away_too() {
        for server in [Raven::start(), Raven::of(OLDEST)] {
            let server = Arc::new(server);
            let db = server.database();
            let wake = Wake::new(Arc::new(Server::new(db.url())));
            // The connection itself wakes once.
            let began = Instant::now();
            wake.wait(Duration::from_secs(60)).await;
            assert!(began.elapsed() < Duration::from_secs(30), "the connection");
            wake.wait(Duration::from_millis(300)).await;
            for again in [false, true] {
                if again {
                    server.kill();
                    server.run();
                    wake.wait(Duration::from_secs(60)).await;
                }
                let putting = tokio::task::spawn_blocking({
                    let db = db.clone();
                    move || db.put("orders/1", r#"{"N":1,"@metadata":{"@collection":"Orders"}}"#)
                });
                let began = Instant::now();
                wake.wait(Duration::from_secs(60)).await;
                assert!(began.elapsed() < Duration::from_secs(30), "{} {again}", db.url());
                putting.await.unwrap();
            }
        }
    }
}
