//! The main job, through the binary, on data that nobody here wrote: npm's `world-countries` and
//! `@mdn/browser-compat-data`, which `./dev/test` gets. Backed up encrypted, changed, backed up,
//! restored elsewhere, byte for byte.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn data() -> PathBuf {
    let folder = std::env::var_os("REWOUND_TEST_DATA").expect("REWOUND_TEST_DATA is not set: run ./dev/test");
    PathBuf::from(folder)
}

/// A library of files, an array, lines and one very large document, with attachments.
fn lay_out(library: &Path) {
    let countries = data().join("world-countries");
    fs::create_dir_all(library).unwrap();
    fs::copy(countries.join("countries.json"), library.join("countries.json")).unwrap();
    for entry in fs::read_dir(countries.join("data")).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_str().unwrap().to_owned();
        let (code, rest) = file.split_once('.').unwrap();
        let target = match rest {
            "geo.json" => library.join("borders").join(format!("{code}.json")),
            "svg" => library.join("countries").join(format!("{}.attachments/flag.svg", code.to_uppercase())),
            _ => library.join("borders").join(format!("{code}.attachments")).join(rest),
        };
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&path, target).unwrap();
    }
    let compat = data().join("@mdn/browser-compat-data/data.json");
    fs::create_dir_all(library.join("whole")).unwrap();
    fs::copy(&compat, library.join("whole/data.json")).unwrap();
    let text = fs::read_to_string(&compat).unwrap();
    let parts: BTreeMap<String, &RawValue> = serde_json::from_str(&text).unwrap();
    fs::create_dir_all(library.join("compat")).unwrap();
    for (name, value) in &parts {
        fs::write(library.join("compat").join(format!("{name}.json")), value.get()).unwrap();
    }
    let interfaces: BTreeMap<String, &RawValue> = serde_json::from_str(parts["api"].get()).unwrap();
    let lines: String =
        interfaces.iter().map(|(name, value)| format!("{{\"_id\":{name:?},\"of\":{}}}\n", value.get())).collect();
    fs::write(library.join("interfaces.jsonl"), lines).unwrap();
}

fn change(library: &Path) {
    // One line of 1,000 or so, an element of the array, some files, an attachment.
    let lines = fs::read_to_string(library.join("interfaces.jsonl")).unwrap();
    let changed: Vec<String> =
        lines
            .lines()
            .enumerate()
            .filter(|(i, _)| i % 211 != 5)
            .map(|(i, line)| {
                if i % 97 == 0 { line.replacen("{\"_id\"", "{ \"changed\": 1.0, \"_id\"", 1) } else { line.to_owned() }
            })
            .collect();
    fs::write(library.join("interfaces.jsonl"), changed.join("\n")).unwrap();
    let array = fs::read_to_string(library.join("countries.json")).unwrap();
    fs::write(library.join("countries.json"), array.replacen("\"Aruba\"", "\"ARUBA \\u0000\"", 1)).unwrap();
    fs::remove_file(library.join("borders/che.json")).unwrap();
    fs::write(
        library.join("borders/atlantis.json"),
        "{\"type\": \"FeatureCollection\", \"n\": 12345678901234567890123}",
    )
    .unwrap();
    fs::write(library.join("countries/FRA.attachments/flag.svg"), "<svg/>").unwrap();
    fs::remove_file(library.join("countries/DEU.attachments/flag.svg")).unwrap();
    fs::remove_dir(library.join("countries/DEU.attachments")).unwrap();
}

/// All files below a folder but the marker that a restore leaves.
fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(at) = open.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
            if name != "rewound.json" {
                files.insert(name, fs::read(path).unwrap());
            }
        }
    }
    files
}

fn assert_same(a: &Path, b: &Path) {
    let (a, b) = (tree(a), tree(b));
    let names = |t: &BTreeMap<String, Vec<u8>>| t.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&a), names(&b));
    for (name, bytes) in &a {
        assert!(bytes == &b[name], "{name} differs");
    }
}

struct Host {
    home: tempfile::TempDir,
}

impl Host {
    /// Runs the binary; gives the lines of `--json`.
    fn run(&self, args: &[&str]) -> Vec<Value> {
        let output = Command::new(env!("CARGO_BIN_EXE_rewound"))
            .args(args)
            .arg("--json")
            .env("REWOUND_CONFIG", self.home.path().join("config"))
            .env_remove("REWOUND_IDENTITY")
            .output()
            .unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "rewound {args:?}\n{out}\n{err}");
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn path(&self, name: &str) -> String {
        self.home.path().join(name).to_str().unwrap().to_owned()
    }
}

#[test]
fn two_points_of_real_data_come_back_byte_for_byte() {
    let host = Host { home: tempfile::tempdir().unwrap() };
    let (library, first, vault, key) =
        (host.path("library"), host.path("first"), host.path("vault"), host.path("key.txt"));
    lay_out(Path::new(&library));
    lay_out(Path::new(&first));
    host.run(&["keygen", &key]);
    let text = fs::read_to_string(&key).unwrap();
    let recipient = text.lines().find_map(|l| l.strip_prefix("# public key: ")).unwrap();
    host.run(&["init", &vault, "--recipient", recipient]);
    let source = format!("folder:{library}");
    host.run(&["backup", &source, "--to", &vault]);
    let stored = |vault: &str| tree(Path::new(vault)).values().map(Vec::len).sum::<usize>();
    let after_first = stored(&vault);
    change(Path::new(&library));
    host.run(&["backup", &source, "--to", &vault]);
    let added = stored(&vault) - after_first;
    assert!(added * 10 < after_first, "the second backup added {added} to {after_first}");

    let points = host.run(&["points", &vault, "--identity", &key]);
    let ids: Vec<String> =
        points.iter().filter(|p| p["type"] == "point").map(|p| p["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids.len(), 2, "{points:?}");
    let old = ids.iter().find(|id| {
        let target = host.path(&format!("restored-{id}"));
        host.run(&["restore", &vault, "--into", &format!("folder:{target}"), "--point", id, "--identity", &key]);
        tree(Path::new(&target)).contains_key("borders/che.json")
    });
    let old = old.expect("one point is from before the change").clone();
    let new = ids.iter().find(|id| **id != old).unwrap();
    let target = host.path("newest");
    host.run(&["restore", &vault, "--into", &format!("folder:{target}"), "--identity", &key]);
    assert_same(Path::new(&first), Path::new(&host.path(&format!("restored-{old}"))));
    assert_same(Path::new(&library), Path::new(&target));
    assert_ne!(new, &old);

    let report = host.run(&["verify", &vault, "--identity", &key]);
    assert_eq!(report.last().unwrap()["type"], "summary");
    let found = host.run(&["find", &vault, "borders", "che", "--identity", &key]);
    assert_eq!(found.iter().filter(|v| v["type"] == "version").count(), 2, "{found:?}");
}
