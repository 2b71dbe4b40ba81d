//! Trying again what failed for a passing reason: the network, an election, a restart.

use crate::connect::Server;
use crate::error;
use bson::Document;
use model::Result;
use std::time::{Duration, Instant};

/// How long the same thing is tried: an election or a restart takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Counts the tries of one thing.
pub(crate) struct Patience {
    began: Instant,
    wait: Duration,
}

impl Patience {
    pub fn new() -> Patience {
        Patience { began: Instant::now(), wait: FIRST_WAIT }
    }

    /// Waits before another try; false when it has been tried long enough.
    pub async fn again(&mut self) -> bool {
        if self.began.elapsed() + self.wait > PATIENCE {
            return false;
        }
        tokio::time::sleep(self.wait).await;
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
        true
    }

    /// Whether this is not the first try.
    pub fn has_tried(&self) -> bool {
        self.wait > FIRST_WAIT
    }
}

/// Runs a command that may be run twice. `is_fine` tells by the code of an error, and by whether it
/// has been tried before, that the command's effect is there nevertheless.
pub(crate) async fn run(
    server: &Server,
    database: &str,
    command: Document,
    doing: impl Fn() -> String,
    is_fine: impl Fn(i32, bool) -> bool,
) -> Result<Document> {
    let database = server.client().await?.database(database);
    let mut patience = Patience::new();
    loop {
        let error = match database.run_command(command.clone()).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if error::code(&error).is_some_and(|code| is_fine(code, patience.has_tried())) {
            return Ok(Document::new());
        }
        if !error::is_passing(&error) || !patience.again().await {
            return Err(error::driver(doing(), error));
        }
    }
}

/// Drops a collection or view; that there is none is fine.
pub(crate) async fn drop_collection(server: &Server, database: &str, name: &str) -> Result<()> {
    let doing = || format!("dropping {database}.{name}");
    let gone = |code, _| code == error::NAMESPACE_NOT_FOUND;
    run(server, database, bson::doc! { "drop": name }, doing, gone).await.map(drop)
}
