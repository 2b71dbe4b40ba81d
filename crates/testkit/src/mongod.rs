//! Real MongoDB servers for tests, from packages of PyPI, which `./dev/test` gets.

use crate::ports::free_port;
use bson::{Document, doc};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// The one server of all tests of a program: it lives as long as one of them does.
static SERVER: Mutex<Weak<Mongod>> = Mutex::new(Weak::new());
/// Numbers for names of databases.
static DATABASES: AtomicU32 = AtomicU32::new(0);

/// How a server is started.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// A replica set of one member, instead of a standalone.
    pub replica_set: bool,
    /// With users and passwords.
    pub auth: bool,
    /// The newest server that there is, instead of the oldest.
    pub newest: bool,
    /// More arguments, for example `["--setParameter", "minSnapshotHistoryWindowInSeconds=1"]`.
    pub arguments: Vec<String>,
}

impl Options {
    /// A replica set of one member.
    pub fn replica_set() -> Options {
        Options { replica_set: true, ..Options::default() }
    }
}

/// A server on a free port of 127.0.0.1, stopped when it is dropped.
#[derive(Debug)]
pub struct Mongod {
    options: Options,
    port: u16,
    folder: tempfile::TempDir,
    child: Mutex<Option<Child>>,
}

impl Mongod {
    /// The shared server: a replica set, started if there is none.
    pub fn shared() -> Arc<Mongod> {
        let mut server = SERVER.lock().unwrap_or_else(|e| e.into_inner());
        server.upgrade().unwrap_or_else(|| {
            let started = Arc::new(Mongod::start(Options::replica_set()));
            *server = Arc::downgrade(&started);
            started
        })
    }

    /// A server of its own.
    pub fn start(options: Options) -> Mongod {
        let port = free_port();
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("data")).unwrap();
        let server = Mongod { options, port, folder, child: Mutex::new(None) };
        server.run();
        if server.options.replica_set {
            let members = vec![doc! { "_id": 0, "host": server.host() }];
            let answer = server.command(doc! { "replSetInitiate": { "_id": "rs", "members": members } });
            assert_eq!(answer.get_f64("ok").ok(), Some(1.0), "{answer}");
            server.await_primary();
        }
        server
    }

    /// Starts the process, after [`Mongod::kill`] or [`Mongod::stop`] again with the same data.
    pub fn run(&self) {
        let key = self.folder.path().join("key");
        let mut command = Command::new(program(self.options.newest));
        command.args(["--bind_ip", "127.0.0.1", "--port", &self.port.to_string(), "--nounixsocket", "--quiet"]);
        command.arg("--dbpath").arg(self.folder.path().join("data"));
        command.args(["--wiredTigerCacheSizeGB", "0.25"]);
        if self.options.replica_set {
            command.args(["--replSet", "rs"]);
        }
        if self.options.auth {
            command.arg("--auth");
            if self.options.replica_set {
                write_key(&key);
                command.arg("--keyFile").arg(&key);
            }
        }
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log()).unwrap();
        command.args(&self.options.arguments).stdout(log).stderr(Stdio::null());
        *self.child.lock().unwrap() = Some(command.spawn().unwrap());
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let ended = self.child.lock().unwrap().as_mut().and_then(|c| c.try_wait().unwrap());
            assert!(ended.is_none(), "mongod ended: {}", fs::read_to_string(self.log()).unwrap_or_default());
            assert!(start.elapsed() < Duration::from_secs(180), "mongod does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// Waits until it takes writes.
    pub fn await_primary(&self) {
        let start = Instant::now();
        while !self.command(doc! { "hello": 1 }).get_bool("isWritablePrimary").is_ok_and(|yes| yes) {
            assert!(start.elapsed() < Duration::from_secs(180), "mongod does not become primary");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills it at once, as `kill -9` does.
    pub fn kill(&self) {
        if let Some(mut child) = self.child.lock().unwrap_or_else(|e| e.into_inner()).take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Its URL. Users, a database and more options can be put in by whoever needs them.
    pub fn url(&self) -> String {
        format!("mongodb://{}/?directConnection=true", self.host())
    }

    /// Its URL with a database in the path.
    pub fn url_of(&self, database: &str) -> String {
        format!("mongodb://{}/{database}?directConnection=true", self.host())
    }

    /// Host and port.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A name of a database that no other test has.
    pub fn database_name(&self) -> String {
        format!("test{}_{}", std::process::id(), DATABASES.fetch_add(1, Ordering::Relaxed))
    }

    /// Runs a command on the database `admin`, without a driver and without a user.
    pub fn command(&self, command: Document) -> Document {
        self.run_on("admin", command)
    }

    /// Runs a command that must succeed on a database, without a driver and without a user.
    pub fn done(&self, database: &str, command: Document) -> Document {
        let answer = self.run_on(database, command);
        let is_well = answer.get_f64("ok").is_ok_and(|ok| ok == 1.0) && !answer.contains_key("writeErrors");
        assert!(is_well, "{answer}");
        answer
    }

    /// The documents of a collection, at most as many as fit into one answer, as bytes.
    pub fn documents(&self, database: &str, collection: &str) -> Vec<Vec<u8>> {
        let find = doc! { "find": collection, "batchSize": 1_000_000 };
        let answer = self.done(database, find);
        let batch = answer.get_document("cursor").unwrap().get_array("firstBatch").unwrap();
        batch.iter().map(|d| d.as_document().unwrap().to_vec().unwrap()).collect()
    }

    fn run_on(&self, database: &str, mut command: Document) -> Document {
        command.insert("$db", database);
        let body = command.to_vec().unwrap();
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        // OP_MSG: length, request, response to, opcode 2013, flags, a section of kind 0.
        let mut message = Vec::new();
        for number in [21 + body.len() as i32, 1, 0, 2013, 0] {
            message.extend_from_slice(&number.to_le_bytes());
        }
        message.push(0);
        message.extend_from_slice(&body);
        stream.write_all(&message).unwrap();
        let mut head = [0; 21];
        stream.read_exact(&mut head).unwrap();
        let length = i32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let mut answer = vec![0; length - 21];
        stream.read_exact(&mut answer).unwrap();
        Document::from_reader(&answer[..]).unwrap()
    }
}

impl Drop for Mongod {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The server to run: `REWOUND_TEST_MONGOD` lists programs, the oldest first.
fn program(newest: bool) -> PathBuf {
    let Some(listed) = std::env::var_os("REWOUND_TEST_MONGOD") else {
        panic!("REWOUND_TEST_MONGOD does not say where mongod is: run ./dev/test, which gets it and sets it");
    };
    let mut programs = std::env::split_paths(&listed);
    let program = if newest { programs.last() } else { programs.next() };
    program.expect("REWOUND_TEST_MONGOD names a program")
}

/// A key file that a replica set with users needs.
fn write_key(path: &std::path::Path) {
    if path.exists() {
        return;
    }
    fs::write(path, "rewoundtestsrewoundtests").unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }
}
