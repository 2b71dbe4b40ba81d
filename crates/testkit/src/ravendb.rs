//! Real RavenDB servers for tests, from packages of registries, which `./dev/test` gets.

mod native;
mod shop;

use crate::ports::free_port;
pub use native::Native;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// The one server of all tests of a program: it lives as long as one of them does.
static SERVER: Mutex<Weak<Raven>> = Mutex::new(Weak::new());
/// Numbers for names of databases.
static DATABASES: AtomicU32 = AtomicU32::new(0);

/// A server on a free port of 127.0.0.1, stopped when it is dropped.
#[derive(Debug)]
pub struct Raven {
    program: PathBuf,
    /// Whether it takes only clients with a certificate, by https.
    secured: bool,
    port: u16,
    folder: tempfile::TempDir,
    child: Mutex<Option<Child>>,
}

impl Raven {
    /// The shared server, started if there is none: of the version that `REWOUND_TEST_RAVENDB_SHARED` names,
    /// or of [`SHARED`], so that all tests can be run on another version than they are written for.
    pub fn shared() -> Arc<Raven> {
        let mut server = SERVER.lock().unwrap_or_else(|e| e.into_inner());
        server.upgrade().unwrap_or_else(|| {
            let started = Arc::new(Raven::start());
            *server = Arc::downgrade(&started);
            started
        })
    }

    /// A server of its own, like the shared one.
    pub fn start() -> Raven {
        Raven::started(program(None), false)
    }

    /// A server of its own, of a version: `"7.1"`.
    pub fn of(version: &str) -> Raven {
        Raven::started(program(Some(version)), false)
    }

    /// A server of its own that takes only clients with a certificate; [`Database::url`] names it.
    pub fn start_secured() -> Raven {
        Raven::started(program(None), true)
    }

    fn started(program: PathBuf, secured: bool) -> Raven {
        let folder = tempfile::tempdir().unwrap();
        let server = Raven { program, secured, port: free_port(), folder, child: Mutex::new(None) };
        server.run();
        server
    }

    /// Starts the process, after [`Raven::kill`] again with the same data.
    pub fn run(&self) {
        let mut command = Command::new(&self.program);
        let scheme = if self.secured { "https" } else { "http" };
        command.arg(format!("--ServerUrl={scheme}://127.0.0.1:{}", self.port));
        if self.secured {
            command.arg(format!("--Security.Certificate.Path={}", fixture("server.pfx")));
        }
        command.arg(format!("--ServerUrl.Tcp=tcp://127.0.0.1:{}", free_port()));
        command.arg(format!("--DataDir={}", self.folder.path().join("data").display()));
        command.arg(format!("--Logs.Path={}", self.folder.path().join("logs").display()));
        command.args(["--Setup.Mode=None", "--License.Eula.Accepted=true", "--non-interactive"]);
        // Without the pipes for debuggers, which a killed server leaves in the folder for temporary files.
        command.env("DOTNET_EnableDiagnostics", "0").env("COMPlus_EnableDiagnostics", "0");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log()).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        *self.child.lock().unwrap() = Some(command.spawn().unwrap());
        let start = Instant::now();
        while !self.is_up() {
            let ended = self.child.lock().unwrap().as_mut().and_then(|c| c.try_wait().unwrap());
            let said = || fs::read_to_string(self.log()).unwrap_or_default();
            assert!(ended.is_none(), "RavenDB ended: {}", said());
            assert!(start.elapsed() < Duration::from_secs(120), "RavenDB does not start: {}", said());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn is_up(&self) -> bool {
        let connects = TcpStream::connect(("127.0.0.1", self.port)).is_ok();
        if self.secured {
            return connects && fs::read_to_string(self.log()).unwrap_or_default().contains("Server started");
        }
        connects && self.try_request("GET", "/build/version", b"").is_ok()
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// Kills it at once, as `kill -9` does.
    pub fn kill(&self) {
        if let Some(mut child) = self.child.lock().unwrap_or_else(|e| e.into_inner()).take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Host and port.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A folder of the server's own, for its backups.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Makes a database that no other test has.
    pub fn database(self: &Arc<Self>) -> Database {
        let database = self.no_database();
        let made = format!(r#"{{"DatabaseName":"{}"}}"#, database.name);
        let path = format!("/admin/databases?name={}&replicationFactor=1", database.name);
        // A server that has just started answers before it can make one.
        let start = Instant::now();
        loop {
            let (status, answer) = self.request("PUT", &path, made.as_bytes());
            if (200..300).contains(&status) {
                return database;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "{status} {}", String::from_utf8_lossy(&answer));
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// A name that no other test has of a database that is not there.
    pub fn no_database(self: &Arc<Self>) -> Database {
        let name = format!("test{}_{}", std::process::id(), DATABASES.fetch_add(1, Ordering::Relaxed));
        let remover = Arc::new(Remover { server: self.clone(), name: name.clone() });
        Database { server: self.clone(), name, _remover: remover }
    }

    /// A request that must succeed.
    pub fn done(&self, method: &str, path: &str, body: &[u8]) -> Vec<u8> {
        let (status, answer) = self.request(method, path, body);
        assert!((200..300).contains(&status), "{method} {path}: {status} {}", String::from_utf8_lossy(&answer));
        answer
    }

    /// A request, without a library; gives status and body.
    pub fn request(&self, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        self.try_request(method, path, body).unwrap()
    }

    fn try_request(&self, method: &str, path: &str, body: &[u8]) -> std::io::Result<(u16, Vec<u8>)> {
        self.try_request_of(method, path, "application/json", body)
    }

    fn try_request_of(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> std::io::Result<(u16, Vec<u8>)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        // Version 1.0, so that the answer comes in one piece that ends with the connection.
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: {}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            self.host(),
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let bad = || std::io::Error::other("no answer of HTTP");
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").ok_or_else(bad)?;
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(bad)?;
        Ok((status, answer.split_off(end + 4)))
    }
}

impl Drop for Raven {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A database of one test.
#[derive(Debug, Clone)]
pub struct Database {
    server: Arc<Raven>,
    /// Its name.
    pub name: String,
    _remover: Arc<Remover>,
}

/// Removes a database when no test needs it any more: servers without a license take no more than some
/// subscriptions, and each database takes memory.
#[derive(Debug)]
struct Remover {
    server: Arc<Raven>,
    name: String,
}

impl Drop for Remover {
    fn drop(&mut self) {
        let is_up = self.server.child.lock().is_ok_and(|child| child.is_some());
        // What a failed test leaves is looked at, perhaps.
        if is_up && !self.server.secured && !std::thread::panicking() {
            let what = format!(r#"{{"DatabaseNames":["{}"],"HardDelete":true}}"#, self.name);
            let _ = self.server.try_request("DELETE", "/admin/databases", what.as_bytes());
        }
    }
}

impl Database {
    /// Its URL.
    pub fn url(&self) -> String {
        match self.server.secured {
            false => format!("ravendb+http://{}/{}", self.server.host(), self.name),
            true => {
                let (client, authority) = (fixture("client.pem"), fixture("authority.pem"));
                format!("ravendb+https://{}/{}?certificate={client}&ca={authority}", self.server.host(), self.name)
            }
        }
    }

    /// Its server.
    pub fn server(&self) -> &Arc<Raven> {
        &self.server
    }

    /// A request to it that must succeed.
    pub fn done(&self, method: &str, path: &str, body: &[u8]) -> Vec<u8> {
        self.server.done(method, &format!("/databases/{}{path}", self.name), body)
    }

    /// Writes a document; the body must hold its metadata.
    pub fn put(&self, id: &str, body: &str) {
        self.done("PUT", &format!("/docs?id={}", escaped(id)), body.as_bytes());
    }

    /// Writes documents of a collection `PREFIX/0`, `PREFIX/1`, …
    pub fn fill(&self, collection: &str, prefix: &str, count: usize) {
        let commands: Vec<String> = (0..count)
            .map(|n| {
                format!(
                    r#"{{"Type":"PUT","Id":"{prefix}/{n}","ChangeVector":null,"Document":{{"N":{n},"Text":"Ünï {n}","@metadata":{{"@collection":"{collection}"}}}}}}"#
                )
            })
            .collect();
        for some in commands.chunks(1000) {
            self.done("POST", "/bulk_docs", format!(r#"{{"Commands":[{}]}}"#, some.join(",")).as_bytes());
        }
    }

    /// Imports a dump in plain text, of these types of things.
    pub fn import(&self, dump: &str, types: &str) {
        let part =
            |name: &str, text: &str| format!("--part\r\nContent-Disposition: form-data; {name}\r\n\r\n{text}\r\n");
        let options = format!(r#"{{"OperateOnTypes":"{types}"}}"#);
        let file = r#"name="file"; filename="d.ravendbdump""#;
        let body = part(r#"name="importOptions""#, &options) + &part(file, dump) + "--part--\r\n";
        let path = format!("/databases/{}/smuggler/import", self.name);
        let (kind, server) = ("multipart/form-data; boundary=part", &self.server);
        let (status, answer) = server.try_request_of("POST", &path, kind, body.as_bytes()).unwrap();
        assert!((200..300).contains(&status), "{status} {}", String::from_utf8_lossy(&answer));
    }

    /// Deletes a document.
    pub fn delete(&self, id: &str) {
        self.done("DELETE", &format!("/docs?id={}", escaped(id)), b"");
    }

    /// Adds an attachment to a document.
    pub fn attach(&self, id: &str, name: &str, content: &[u8]) {
        let path = format!("/attachments?id={}&name={}&contentType=text%2Fplain", escaped(id), escaped(name));
        self.done("PUT", &path, content);
    }

    /// The number that its statistics give under a name.
    pub fn count(&self, name: &str) -> u64 {
        let stats: serde_json::Value = serde_json::from_slice(&self.done("GET", "/stats", b"")).unwrap();
        stats[name].as_u64().unwrap_or(0)
    }

    /// Makes the server clean tombstones at once, as it does every five minutes.
    pub fn clean_tombstones(&self) {
        self.done("POST", "/admin/tombstones/cleanup", b"");
    }
}

/// The path of a certificate for tests.
pub fn fixture(name: &str) -> String {
    format!("{}/fixtures/ravendb/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A text as a part of a query.
pub fn escaped(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}

/// The version of servers that tests use if they name none: it starts faster and takes less memory than
/// those after it.
pub const SHARED: &str = "5.4";
/// The oldest one.
pub const OLDEST: &str = "4.1";

/// The server of a version: `REWOUND_TEST_RAVENDB` lists programs, each in a folder with the version as its name.
fn program(version: Option<&str>) -> PathBuf {
    let shared = std::env::var("REWOUND_TEST_RAVENDB_SHARED").unwrap_or_else(|_| SHARED.into());
    let version = version.unwrap_or(&shared);
    let Some(listed) = std::env::var_os("REWOUND_TEST_RAVENDB") else {
        panic!("REWOUND_TEST_RAVENDB does not say how RavenDB is started: run ./dev/test, which gets it and sets it");
    };
    let is_it = |path: &PathBuf| path.parent().is_some_and(|folder| folder.ends_with(version));
    let found = std::env::split_paths(&listed).find(is_it);
    found.unwrap_or_else(|| panic!("REWOUND_TEST_RAVENDB lists no RavenDB {version}: run ./dev/test, which gets it"))
}
