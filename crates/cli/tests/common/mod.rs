//! What the tests of the program share: a host with its own config folder, and the real binary.
#![allow(dead_code, clippy::unwrap_used)]

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A host: a folder with a config folder and whatever a test puts there.
pub struct Host {
    home: tempfile::TempDir,
}

/// What a run of the program gave.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// The lines of `--json`; each must be an object with a type.
    pub fn json(&self) -> Vec<Value> {
        let lines: Vec<Value> = self.out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert!(lines.iter().all(|l| l["type"].is_string()), "{self:?}");
        lines
    }

    /// The lines of this type.
    pub fn of(&self, kind: &str) -> Vec<Value> {
        self.json().into_iter().filter(|l| l["type"] == kind).collect()
    }

    /// The last line, which must be the summary, with the code the program ended with.
    pub fn summary(&self) -> Value {
        let last = self.json().pop().unwrap();
        assert_eq!(last["type"], "summary", "{self:?}");
        assert_eq!(last["exit"], self.code, "{self:?}");
        last
    }

    /// Must have ended with this code.
    #[track_caller]
    pub fn ends(self, code: i32) -> Ran {
        assert_eq!(self.code, code, "\n{}\n{}", self.out, self.err);
        self
    }

    /// Must have failed with this code, an error that says this, and a hint.
    #[track_caller]
    pub fn fails(self, code: i32, text: &str) -> Ran {
        let all = format!("\n{}\n{}", self.out, self.err);
        assert_eq!(self.code, code, "{all}");
        assert!(self.err.contains("error: ") && self.err.contains(text), "no {text:?} in {all}");
        assert!(self.err.contains("hint: "), "no hint in {all}");
        self
    }
}

impl Host {
    pub fn new() -> Host {
        Host { home: tempfile::tempdir().unwrap() }
    }

    /// A host with a key, an encrypted vault `v`, and the sample in `lib`.
    pub fn ready() -> Host {
        let host = Host::new();
        host.run(&["keygen", "key.txt"]).ends(0);
        let recipient = host.recipient("key.txt");
        host.run(&["init", "v", "--recipient", &recipient]).ends(0);
        host.sample("lib");
        host
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub fn recipient(&self, key: &str) -> String {
        let text = fs::read_to_string(self.path(key)).unwrap();
        text.lines().find_map(|l| l.strip_prefix("# public key: ")).unwrap().to_owned()
    }

    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// All layouts of collections, attachments small and large.
    pub fn sample(&self, folder: &str) {
        for i in 0..20 {
            self.write(&format!("{folder}/books/b{i}.json"), format!("{{ \"i\": {i}.0, \"i\":{i} }}"));
        }
        self.write(&format!("{folder}/books/b3.attachments/cover.svg"), "<svg/>");
        self.write(&format!("{folder}/books/b3.attachments/scan.bin"), vec![7; 2 << 20]);
        self.write(&format!("{folder}/members.jsonl"), "{\"_id\":1}\n{\"_id\":2}\n{\"_id\":3}\n");
        self.write(&format!("{folder}/loans.json"), "[\n  {\"id\":1},\n  {\"id\":2}\n]\n");
    }

    /// The program, in the host's folder.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rewound"));
        command
            .args(args)
            .current_dir(self.home.path())
            .env("REWOUND_CONFIG", self.path("config"))
            .env_remove("REWOUND_IDENTITY")
            // Tests run side by side: who gives way to all others would wait for long.
            .env("REWOUND_NICE", "0")
            .env("TZ", "UTC")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        ran(self.command(args).output().unwrap())
    }

    /// With the identity of the vault.
    pub fn read(&self, args: &[&str]) -> Ran {
        ran(self.command(args).env("REWOUND_IDENTITY", self.path("key.txt")).output().unwrap())
    }

    /// Backs up; gives the new point.
    pub fn backup(&self) -> Value {
        let ran = self.run(&["backup", "folder:lib", "--to", "v", "--json"]).ends(0);
        ran.summary();
        ran.of("vault")[0]["point"].clone()
    }

    /// All files in a folder, without the marker.
    pub fn tree(&self, folder: &str) -> BTreeMap<String, Vec<u8>> {
        let mut all = BTreeMap::new();
        walk(&self.path(folder), &self.path(folder), &mut all);
        all.remove("rewound.json");
        all
    }
}

pub fn ran(output: std::process::Output) -> Ran {
    Ran {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A folder that is kept in step may change meanwhile: what goes between being listed and being read is left out.
fn walk(root: &Path, folder: &Path, all: &mut BTreeMap<String, Vec<u8>>) {
    let Some(entries) = unless_gone(fs::read_dir(folder)) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(root, &path, all);
        } else if let Some(bytes) = unless_gone(fs::read(&path)) {
            all.insert(path.strip_prefix(root).unwrap().to_str().unwrap().into(), bytes);
        }
    }
}

fn unless_gone<T>(read: std::io::Result<T>) -> Option<T> {
    match read {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        read => Some(read.unwrap()),
    }
}
