//! A real server of the CouchDB protocol for tests: pouchdb-server, from npm, which `./dev/test` gets;
//! and a CouchDB itself, where `REWOUND_TEST_COUCHDB` names one.

use crate::ports::free_port;
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// The one server of all tests of a program: it lives as long as one of them does.
static SERVER: Mutex<Weak<CouchServer>> = Mutex::new(Weak::new());
/// Numbers for names of databases.
static DATABASES: AtomicU32 = AtomicU32::new(0);

/// A server that speaks CouchDB's protocol; if it was started here, it is stopped when it is dropped.
#[derive(Debug)]
pub struct CouchServer {
    /// Host and port.
    pub host: String,
    /// `Authorization`, if it is needed.
    login: Option<String>,
    user: String,
    started: Option<Started>,
    made: Mutex<Vec<String>>,
}

#[derive(Debug)]
struct Started {
    folder: tempfile::TempDir,
    child: Mutex<Option<Child>>,
}

impl CouchServer {
    /// The shared server: the CouchDB that `REWOUND_TEST_COUCHDB` names, or else a pouchdb-server.
    pub fn shared() -> Arc<CouchServer> {
        let mut server = SERVER.lock().unwrap_or_else(|e| e.into_inner());
        server.upgrade().unwrap_or_else(|| {
            let found = Arc::new(CouchServer::named().unwrap_or_else(CouchServer::start));
            *server = Arc::downgrade(&found);
            found
        })
    }

    /// The real CouchDB that `REWOUND_TEST_COUCHDB` names.
    pub fn named() -> Option<CouchServer> {
        let url = std::env::var("REWOUND_TEST_COUCHDB").ok()?;
        let rest = url.strip_prefix("http://").expect("REWOUND_TEST_COUCHDB is http://user:pass@host:port");
        let (user, host) = rest.trim_end_matches('/').rsplit_once('@').map_or(("", rest), |(u, h)| (u, h));
        use base64::Engine;
        let login = (!user.is_empty()).then(|| base64::engine::general_purpose::STANDARD.encode(user));
        let user = if user.is_empty() { String::new() } else { format!("{user}@") };
        let (host, made) = (host.to_owned(), Mutex::default());
        Some(CouchServer { host, login, user, started: None, made })
    }

    /// A pouchdb-server of its own, with its data on disk.
    pub fn start() -> CouchServer {
        let port = free_port();
        let started = Started { folder: tempfile::tempdir().unwrap(), child: Mutex::new(None) };
        let (host, login, user) = (format!("127.0.0.1:{port}"), None, String::new());
        let server = CouchServer { host, login, user, started: Some(started), made: Mutex::default() };
        server.run();
        server
    }

    /// Starts the process, after [`CouchServer::kill`] again with the same data.
    pub fn run(&self) {
        let started = self.started.as_ref().expect("it was started here");
        let port = self.host.rsplit(':').next().unwrap();
        let program = std::env::var_os("REWOUND_TEST_POUCHDB")
            .expect("REWOUND_TEST_POUCHDB says where pouchdb-server is: run ./dev/test, which gets it and sets it");
        let log = started.folder.path().join("log");
        let output = fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let mut command = Command::new(program);
        command.args(["--host", "127.0.0.1", "--port", port, "--in-memory", "-n"]);
        command.current_dir(started.folder.path()).env("NODE_OPTIONS", "--unhandled-rejections=warn");
        command.stdin(Stdio::null()).stderr(output.try_clone().unwrap()).stdout(output);
        *started.child.lock().unwrap() = Some(command.spawn().unwrap());
        let start = Instant::now();
        while TcpStream::connect(&self.host).is_err() {
            let ended = started.child.lock().unwrap().as_mut().and_then(|c| c.try_wait().unwrap());
            assert!(ended.is_none(), "pouchdb-server ended: {}", fs::read_to_string(&log).unwrap_or_default());
            assert!(start.elapsed() < Duration::from_secs(180), "pouchdb-server does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Kills it at once; what it held in memory is gone.
    pub fn kill(&self) {
        let Some(started) = &self.started else { return };
        if let Some(mut child) = started.child.lock().unwrap_or_else(|e| e.into_inner()).take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The URL of its databases, or of one, as the program takes it.
    pub fn url(&self, database: &str) -> String {
        format!("couchdb+http://{}{}/{database}", self.user, self.host)
    }

    /// A name of a database that no other test has; it is removed in the end.
    pub fn database_name(&self) -> String {
        let name = format!("test{}_{}", std::process::id(), DATABASES.fetch_add(1, Ordering::Relaxed));
        self.made.lock().unwrap().push(name.clone());
        name
    }

    /// Makes a database; gives its name.
    pub fn database(&self) -> String {
        let name = self.database_name();
        self.done("PUT", &format!("/{name}"), "");
        name
    }

    /// A request that must succeed.
    #[track_caller]
    pub fn done(&self, method: &str, path: &str, body: &str) -> Value {
        let (status, answer) = self.ask(method, path, body);
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        serde_json::from_str(&answer).unwrap_or(Value::String(answer))
    }

    /// Writes documents with their revisions; each must be taken, in a cluster by all nodes.
    #[track_caller]
    pub fn put_all(&self, database: &str, documents: &[String]) {
        let body = format!(r#"{{"new_edits":false,"docs":[{}]}}"#, documents.join(","));
        let answer = self.done("POST", &format!("/{database}/_bulk_docs?w=3"), &body);
        assert_eq!(answer, Value::Array(Vec::new()));
    }

    /// A request, without a library: status and body.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.host).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let login = self.login.as_ref().map(|l| format!("Authorization: Basic {l}\r\n")).unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: {}\r\n{login}Content-Type: application/json\r\nAccept: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.host,
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        (status, body.to_owned())
    }
}

impl Drop for CouchServer {
    fn drop(&mut self) {
        if self.started.is_none() {
            for name in self.made.lock().unwrap_or_else(|e| e.into_inner()).iter() {
                self.ask("DELETE", &format!("/{name}"), "");
            }
        }
        self.kill();
    }
}
