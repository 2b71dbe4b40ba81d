//! One server, replica set or cluster, and what it says of itself.

use crate::error;
use bson::{Document, doc};
use model::{EngineTime, Error, ErrorKind, Result};
use mongodb::Client;
use mongodb::options::{ClientOptions, Credential, ReadPreference, SelectionCriteria};
use std::time::Duration;
use tokio::sync::OnceCell;

/// A connection to MongoDB, made on first use; its clones share it.
#[derive(Debug)]
pub struct Server {
    url: String,
    password: Option<String>,
    opened: OnceCell<Opened>,
}

#[derive(Debug)]
struct Opened {
    client: Client,
    database: Option<String>,
    is_direct: bool,
}

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerInfo {
    /// Its version: `6.0.27`.
    pub version: String,
    /// The name of its replica set; none on a standalone or a router.
    pub set: Option<String>,
    /// Whether it is the router of a sharded cluster.
    pub is_router: bool,
    /// Host and port of the member that answered, as it calls itself.
    pub me: String,
    /// All members of the set, sorted; empty on a standalone.
    pub members: Vec<String>,
}

impl ServerInfo {
    /// The first two numbers of the version, to compare.
    pub fn release(&self) -> (u32, u32) {
        let mut numbers = self.version.split('.').map(|n| n.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }
}

impl Server {
    /// The server at a URL (`mongodb://` or `mongodb+srv://`); nothing is opened yet. A password
    /// given here goes with the user that the URL names.
    pub fn new(url: impl Into<String>, password: Option<String>) -> Server {
        Server { url: url.into(), password, opened: OnceCell::new() }
    }

    /// The driver's client.
    pub async fn client(&self) -> Result<Client> {
        Ok(self.opened().await?.client.clone())
    }

    /// The database that the URL's path names.
    pub async fn database(&self) -> Result<Option<String>> {
        Ok(self.opened().await?.database.clone())
    }

    async fn opened(&self) -> Result<&Opened> {
        self.opened.get_or_try_init(|| open(&self.url, self.password.as_deref())).await
    }

    /// Whether all reads go to the same member: the primary, or the only one that is spoken to.
    pub async fn is_one_member(&self) -> Result<bool> {
        let opened = self.opened().await?;
        Ok(opened.is_direct
            || match opened.client.selection_criteria() {
                None => true,
                Some(SelectionCriteria::ReadPreference(preference)) => *preference == ReadPreference::Primary,
                Some(_) => false,
            })
    }

    /// Whether the member that answers takes writes.
    pub async fn is_primary(&self) -> Result<bool> {
        Ok(self.admin(doc! { "hello": 1 }).await?.get_bool("isWritablePrimary").unwrap_or(false))
    }

    /// What the server says of itself.
    pub async fn info(&self) -> Result<ServerInfo> {
        let hello = self.admin(doc! { "hello": 1 }).await?;
        let build = self.admin(doc! { "buildInfo": 1 }).await?;
        let mut members: Vec<String> = hello
            .get_array("hosts")
            .map(|hosts| hosts.iter().filter_map(|h| h.as_str()).map(str::to_owned).collect())
            .unwrap_or_default();
        members.sort();
        let text = |name| hello.get_str(name).map(str::to_owned).ok();
        if hello.get_bool("isreplicaset").is_ok_and(|is| is) {
            let what = format!("{} has not read the configuration of its replica set yet", self.host());
            return Err(Error::new(ErrorKind::Retry, what)
                .hint("try again when it has started, or initiate the replica set if nobody has"));
        }
        Ok(ServerInfo {
            version: build.get_str("version").unwrap_or("unknown").to_owned(),
            set: text("setName"),
            is_router: hello.get_str("msg").is_ok_and(|m| m == "isdbgrid"),
            me: text("me").unwrap_or_else(|| self.host()),
            members,
        })
    }

    /// Runs a command on the database `admin`.
    pub async fn admin(&self, command: Document) -> Result<Document> {
        self.run("admin", command).await
    }

    /// Runs a command; an error names it.
    pub async fn run(&self, database: &str, command: Document) -> Result<Document> {
        let name = command.keys().next().cloned().unwrap_or_default();
        let client = self.client().await?;
        client
            .database(database)
            .run_command(command)
            .await
            .map_err(|e| error::driver(format!("{name} on the database {database} of {}", self.host()), e))
    }

    /// The cluster's time now; none where there is none (a standalone).
    pub async fn cluster_time(&self) -> Result<Option<EngineTime>> {
        let answer = self.admin(doc! { "hello": 1 }).await?;
        Ok(answer.get_timestamp("operationTime").ok().map(engine_time))
    }

    /// Where the server is, for people: the URL's hosts, without user, password and options.
    pub fn host(&self) -> String {
        let rest = self.url.split_once("://").map_or(self.url.as_str(), |(_, rest)| rest);
        let authority = &rest[..rest.find(['/', '?']).unwrap_or(rest.len())];
        authority.rsplit_once('@').map_or(authority, |(_, hosts)| hosts).to_owned()
    }
}

async fn open(url: &str, password: Option<&str>) -> Result<Opened> {
    let wrong = |e: mongodb::error::Error| {
        Error::input(format!("the MongoDB URL cannot be used: {e}"))
            .hint("write it as mongodb://[USER@]HOST[:PORT][/DATABASE][?OPTION=VALUE&…]")
    };
    let mut options = ClientOptions::parse(url).await.map_err(wrong)?;
    options.app_name.get_or_insert_with(|| "rewound".into());
    // A wrong name should not take half a minute; what can be waited for is tried again anyway.
    options.server_selection_timeout.get_or_insert(Duration::from_secs(10));
    if let Some(password) = password {
        // A user without a password makes the driver's URL parser refuse or leave it empty.
        match &mut options.credential {
            Some(credential) if credential.password.is_none() => credential.password = Some(password.to_owned()),
            Some(_) => {}
            None => options.credential = Some(Credential::builder().password(password.to_owned()).build()),
        }
    }
    // The database in a URL's path also says where users are, unless authSource does.
    let database = options.default_database.clone();
    let is_direct = options.direct_connection == Some(true);
    let client = Client::with_options(options).map_err(wrong)?;
    Ok(Opened { client, database, is_direct })
}

/// A cluster time as an engine time: seconds in the upper 32 bits of the order.
pub(crate) fn engine_time(time: bson::Timestamp) -> EngineTime {
    EngineTime { order: u64::from(time.time) << 32 | u64::from(time.increment), millis: i64::from(time.time) * 1000 }
}

/// The cluster time that an engine time is.
pub(crate) fn timestamp(time: EngineTime) -> bson::Timestamp {
    bson::Timestamp { time: (time.order >> 32) as u32, increment: time.order as u32 }
}
