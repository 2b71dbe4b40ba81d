//! The binary killed with -9 at random instants, while it backs up and while it restores.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

struct Host {
    home: tempfile::TempDir,
}

impl Host {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rewound"));
        command
            .args(args)
            .env("REWOUND_CONFIG", self.home.path().join("config"))
            .env("REWOUND_IDENTITY", self.home.path().join("key.txt"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "rewound {args:?}\n{out}\n{err}");
        out.into_owned()
    }

    /// Starts the program, kills it after a while, and says whether it had finished by itself.
    fn run_and_kill(&self, args: &[&str], after: Duration) -> bool {
        let mut child = self.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(after);
        let finished = child.try_wait().unwrap().is_some_and(|s| s.success());
        child.kill().unwrap();
        child.wait().unwrap();
        finished
    }

    fn path(&self, name: &str) -> String {
        self.home.path().join(name).to_str().unwrap().to_owned()
    }
}

fn host(documents: usize) -> Host {
    let host = Host { home: tempfile::tempdir().unwrap() };
    let library = host.path("library");
    fs::create_dir_all(format!("{library}/files/5.attachments")).unwrap();
    let random = |i: usize| blake3::hash(&i.to_le_bytes()).to_hex();
    for i in 0..300 {
        fs::write(format!("{library}/files/{i}.json"), format!("{{\"i\":{i},\"r\":\"{}\"}}", random(i))).unwrap();
    }
    let blob: Vec<u8> = (0..100_000).flat_map(|i: usize| *blake3::hash(&i.to_le_bytes()).as_bytes()).collect();
    fs::write(format!("{library}/files/5.attachments/blob"), &blob).unwrap();
    let lines: String = (0..documents).map(|i| format!("{{\"_id\":{i},\"r\":\"{}\"}}\n", random(i))).collect();
    fs::write(format!("{library}/lines.jsonl"), lines).unwrap();
    host.run(&["keygen", &host.path("key.txt")]);
    let key = fs::read_to_string(host.path("key.txt")).unwrap();
    let recipient = key.lines().find_map(|l| l.strip_prefix("# public key: ")).unwrap().to_owned();
    host.run(&["init", &host.path("vault"), "--recipient", &recipient]);
    host
}

fn same_tree(a: &Path, b: &Path) -> bool {
    let output = Command::new("diff").args(["-r", "-q", "-x", "rewound.json"]).arg(a).arg(b).output().unwrap();
    output.status.success()
}

/// Instants spread over a little more than the time the work takes, in an order of their own.
fn instants(longest: Duration, count: u32) -> impl Iterator<Item = Duration> {
    (0..count).map(move |i| longest.mul_f64(f64::from(i * 37 % count) / f64::from(count) * 1.05))
}

#[test]
fn backups_killed_at_fifty_instants() {
    let host = host(60_000);
    let (source, vault) = (format!("folder:{}", host.path("library")), host.path("vault"));
    let began = Instant::now();
    host.run(&["backup", &source, "--to", &vault]);
    let took = began.elapsed();
    let (mut killed, mut finished) = (0, 1);
    for (i, instant) in instants(took, 50).enumerate() {
        // Something new each time, so that there is something to write.
        fs::write(host.path(&format!("library/files/new-{i}.json")), format!("{{\"new\":{i}}}")).unwrap();
        match host.run_and_kill(&["backup", &source, "--to", &vault, "--full"], instant) {
            true => finished += 1,
            false => killed += 1,
        }
        if i % 10 == 9 {
            host.run(&["verify", &vault]);
        }
    }
    assert!(killed >= 20, "only {killed} of 50 were killed in time");
    host.run(&["verify", &vault]);
    let points = host.run(&["points", &vault, "--json"]);
    // One that was killed in its last moment may have committed.
    let there = points.lines().filter(|l| l.contains("\"type\":\"point\"")).count();
    assert!((finished..=finished + killed).contains(&there), "{there} points, {finished} finished");
    host.run(&["backup", &source, "--to", &vault]);
    host.run(&["restore", &vault, "--into", &format!("folder:{}", host.path("restored"))]);
    assert!(same_tree(Path::new(&host.path("library")), Path::new(&host.path("restored"))));
}

#[test]
fn restores_killed_at_random_instants() {
    let host = host(20_000);
    let (source, vault) = (format!("folder:{}", host.path("library")), host.path("vault"));
    host.run(&["backup", &source, "--to", &vault]);
    let began = Instant::now();
    host.run(&["restore", &vault, "--into", &format!("folder:{}", host.path("whole"))]);
    let took = began.elapsed();
    let mut killed = 0;
    for (i, instant) in instants(took, 12).enumerate() {
        let target = host.path(&format!("target-{i}"));
        let into = format!("folder:{target}");
        if host.run_and_kill(&["restore", &vault, "--into", &into], instant) {
            continue;
        }
        killed += 1;
        // What is there is never taken for a finished restore: the same command is refused or
        // starts anew, and replacing gives the whole.
        let again = host.command(&["restore", &vault, "--into", &into]).output().unwrap();
        if !again.status.success() {
            let said = String::from_utf8_lossy(&again.stderr).into_owned();
            assert!(said.contains("hint:"), "{said}");
            host.run(&["restore", &vault, "--into", &into, "--if-exists", "replace"]);
        }
        assert!(same_tree(Path::new(&host.path("library")), Path::new(&target)), "after {instant:?}");
    }
    assert!(killed >= 4, "only {killed} were killed in time");
    host.run(&["verify", &vault]);
}
