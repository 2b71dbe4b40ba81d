//! A real S3 server for tests: moto, from PyPI, which `./dev/test` gets.

use crate::ports::free_port;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// The one server of all tests of a program: it lives as long as one of them does.
static SERVER: Mutex<Weak<Moto>> = Mutex::new(Weak::new());

/// A server on a free port of 127.0.0.1, stopped when it is dropped. Takes any keys.
#[derive(Debug)]
pub struct Moto {
    child: Child,
    port: u16,
    log: PathBuf,
    _folder: tempfile::TempDir,
}

impl Moto {
    /// The shared server, started if there is none.
    pub fn shared() -> Arc<Moto> {
        let mut server = SERVER.lock().unwrap_or_else(|e| e.into_inner());
        server.upgrade().unwrap_or_else(|| {
            let started = Arc::new(Moto::start());
            *server = Arc::downgrade(&started);
            started
        })
    }

    /// A server of its own.
    pub fn start() -> Moto {
        let Some(program) = std::env::var_os("REWOUND_TEST_MOTO") else {
            panic!("REWOUND_TEST_MOTO does not say where moto_server is: run ./dev/test, which installs and sets it");
        };
        let port = free_port();
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let child = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let moto = Moto { child, port, log, _folder: folder };
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(start.elapsed() < Duration::from_secs(180), "moto_server does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        moto
    }

    /// Its URL.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Makes a bucket.
    pub fn make_bucket(&self, bucket: &str) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let host = format!("127.0.0.1:{}", self.port);
        let request =
            format!("PUT /{bucket} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// What was asked of objects whose name has this part.
    pub fn requests(&self, part: &str) -> Vec<String> {
        let log = fs::read_to_string(&self.log).unwrap();
        log.lines().filter(|l| l.contains(part)).map(str::to_owned).collect()
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
