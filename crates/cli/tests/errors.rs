//! What goes wrong, said in plain words, with a hint and the right code.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Host, ran};
use std::fs;
use std::path::{Path, PathBuf};

fn objects(vault: &Path, folder: &str) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for two in fs::read_dir(vault.join(folder)).unwrap() {
        for file in fs::read_dir(two.unwrap().path()).unwrap() {
            all.push(file.unwrap().path());
        }
    }
    all
}

fn flip_a_bit(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_wrong_command_line_ends_with_2() {
    let host = Host::ready();
    host.run(&[]).ends(2);
    host.run(&["nonsense"]).ends(2);
    host.run(&["backup", "folder:lib"]).ends(2);
    host.run(&["backup", "lib", "--to", "v"]).fails(2, "does not say what it is");
    host.run(&["backup", "rxdb+http://host/db", "--to", "v"]).fails(2, "not supported by this version");
    host.run(&["restore", "v", "--into", "out"]).fails(2, "does not say what it is");
    host.run(&["restore", "v", "--into", "folder:out", "--at", "soon"]).fails(2, "not a time");
    assert!(host.run(&["init", "w"]).fails(2, "--recipient or --plain").err.contains("keygen"));
    host.run(&["init", "w", "--recipient", "age1nonsense"]).ends(2);
    host.run(&["init", "w", "--plain", "--recipient", &host.recipient("key.txt")]).ends(2);
    assert!(!host.path("w").exists());
    let json = host.run(&["nonsense", "--json"]).ends(2);
    assert_eq!(json.of("error")[0]["kind"], "input");
    host.run(&["--help"]).ends(0);
    host.run(&["--version"]).ends(0);
}

#[test]
fn without_an_identity_a_host_writes_and_checks_bytes_but_reads_nothing() {
    let host = Host::ready();
    host.backup();
    host.run(&["points", "v"]).ends(0);
    host.run(&["verify", "v", "--quick"]).ends(0);
    for args in [
        &["restore", "v", "--into", "folder:out"][..],
        &["verify", "v"],
        &["find", "v", "books", "b1"],
        &["copy", "v", "folder:out"],
    ] {
        host.run(args).fails(1, "identity");
    }
    assert!(!host.path("out").exists());
    // Not even the writer's secrets are needed to check stored bytes.
    fs::remove_dir_all(host.path("config")).unwrap();
    host.run(&["verify", "v", "--quick"]).ends(0);

    host.run(&["keygen", "wrong.txt"]).ends(0);
    let wrong = host.run(&["restore", "v", "--into", "folder:out", "--identity", "wrong.txt"]);
    wrong.fails(1, "not one of the vault's recipients");
    host.run(&["points", "v", "--identity", "absent.txt"]).fails(1, "no identity file absent.txt");
    host.write("empty.txt", "nothing\n");
    host.run(&["points", "v", "--identity", "empty.txt"]).fails(1, "empty.txt");
    let json = host.run(&["points", "v", "--identity", "absent.txt", "--json"]).ends(1);
    let error = &json.of("error")[0];
    assert!(error["kind"] == "missing" && error["message"].is_string() && error["hint"].is_string());
}

#[test]
fn no_vault_or_a_newer_one() {
    let host = Host::ready();
    host.run(&["points", "nowhere"]).fails(1, "there is no vault at");
    host.run(&["init", "v", "--plain"]).fails(1, "there is a vault at");
    host.run(&["init", "lib", "--plain"]).fails(1, "is not empty");
    let file = host.path("v/vault.json");
    let text = fs::read_to_string(&file).unwrap();
    let newer = text.replacen("\"format\": 1", "\"format\": 2", 1).replacen("\"format\":1", "\"format\":2", 1);
    assert_ne!(newer, text);
    fs::write(&file, newer).unwrap();
    for args in [&["points", "v"][..], &["backup", "folder:lib", "--to", "v"], &["verify", "v", "--quick"]] {
        host.run(args).fails(1, "newer rewound");
    }
}

#[test]
fn a_target_that_cannot_be_written_is_refused_before_anything_is() {
    let host = Host::ready();
    host.backup();
    host.write("full/a", "");
    host.write("full/b", "");
    let restore = |into: &str| host.read(&["restore", "v", "--into", into]);
    let refused = restore("folder:full").fails(1, "is not empty; there is: a, b");
    assert!(refused.err.contains("--if-exists"));
    restore("folder:lib/loans.json").fails(1, "is not a folder");
    assert_eq!(fs::read_dir(host.path("full")).unwrap().count(), 2);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let locked = host.path("locked");
        fs::create_dir(&locked).unwrap();
        fs::set_permissions(&locked, fs::Permissions::from_mode(0o555)).unwrap();
        // Root may write everywhere: then there is nothing to see.
        if fs::write(locked.join("probe"), "").is_err() {
            restore("folder:locked/out").fails(1, "cannot be written to");
        }
        // A file system that is read-only for root too.
        if Path::new("/proc/self").is_dir() {
            assert_eq!(restore("folder:/proc/rewound").code, 1);
        }
    }
}

#[test]
fn bad_input_is_refused_or_left_out_and_listed() {
    let host = Host::ready();
    host.write("lib/books/bad.json", "{\"a\":\n}");
    host.write("lib/members.jsonl", "{\"_id\":1}\nnot json\n{\"_id\":3}\n");
    let refused = host.run(&["backup", "folder:lib", "--to", "v"]).fails(1, "2 places in the folder are bad");
    assert!(refused.err.contains("bad.json") && refused.err.contains("members.jsonl"), "{}", refused.err);
    assert!(refused.err.contains("--skip-bad"));
    assert_eq!(host.run(&["points", "v", "--json"]).ends(0).summary()["points"], 0);
    let ran = host.run(&["backup", "folder:lib", "--to", "v", "--skip-bad", "--json"]).ends(3);
    assert_eq!(ran.summary()["skipped"].as_u64(), Some(ran.of("skipped").len() as u64));
    let listed: Vec<String> = ran.of("skipped").iter().map(|s| s["what"].as_str().unwrap().to_owned()).collect();
    assert!(listed.iter().any(|w| w.contains("bad.json")) && listed.iter().any(|w| w.contains("members.jsonl")));
    let text = host.run(&["backup", "folder:lib", "--to", "v", "--skip-bad"]).ends(3).out;
    assert!(text.contains("left out: books/bad.json"), "{text}");
    assert!(host.run(&["points", "v"]).ends(0).out.contains("left out"));
    host.read(&["restore", "v", "--into", "folder:out"]).ends(0);
    assert_eq!(host.tree("out")["members.jsonl"], b"{\"_id\":1}\n{\"_id\":3}\n");
    host.run(&["copy", "folder:lib", "folder:out2"]).fails(1, "2 places");
    host.run(&["copy", "folder:lib", "folder:out2", "--skip-bad"]).ends(3);
}

#[test]
fn damage_ends_with_6_and_is_never_restored() {
    let host = Host::ready();
    host.backup();
    let segment = objects(&host.path("v"), "segments").into_iter().max_by_key(|p| p.metadata().unwrap().len()).unwrap();
    let whole = fs::read(&segment).unwrap();
    flip_a_bit(&segment);
    for quick in [true, false] {
        let mut args = vec!["verify", "v", "--json"];
        args.extend(quick.then_some("--quick"));
        let found = host.read(&args).ends(6);
        assert_eq!(found.summary()["damages"], 1);
        let object = found.of("damage")[0]["object"].as_str().unwrap().to_owned();
        assert!(segment.ends_with(&object), "{object}");
    }
    let text = host.read(&["verify", "v"]).ends(6).out;
    assert!(text.contains("DAMAGED") && text.contains("hits"), "{text}");
    host.read(&["restore", "v", "--into", "folder:out"]).ends(1);
    assert!(!host.path("out").exists(), "what was written is taken back");
    fs::write(&segment, whole).unwrap();
    host.read(&["verify", "v"]).ends(0);

    // A point that cannot be read is listed, and the one before it still comes back.
    let first = host.backup();
    let before = host.tree("lib");
    host.write("lib/books/b1.json", "2");
    host.backup();
    let points = host.path("v/history");
    let source = fs::read_dir(&points).unwrap().next().unwrap().unwrap().path().join("points");
    let newest = fs::read_dir(&source).unwrap().map(|e| e.unwrap().path()).max().unwrap();
    flip_a_bit(&newest);
    let listed = host.run(&["points", "v", "--json"]).ends(6);
    assert_eq!(listed.summary()["broken"], 1);
    let older = host.read(&["restore", "v", "--into", "folder:old", "--json"]).ends(0);
    assert_eq!(older.summary()["point"], first["id"]);
    assert!(older.err.contains("a newer point cannot be read"), "{}", older.err);
    assert!(host.tree("old") == before);
}

#[test]
fn a_reader_that_goes_away_does_no_harm() {
    let host = Host::ready();
    host.backup();
    let mut child = host.command(&["points", "v"]).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(ran(child.wait_with_output().unwrap()).ends(0).err, "");
}

#[test]
fn interrupted_runs_leave_what_prune_removes() {
    let host = Host::ready();
    host.backup();
    host.run(&["prune", "v"]).ends(0);
    let kept = objects(&host.path("v"), "segments")[0].clone();
    // What a killed run would have left: a segment that no point needs.
    let name = kept.file_name().unwrap().to_str().unwrap().to_owned();
    let (content, rest) = name.split_once('-').unwrap();
    let other: String = content.chars().rev().collect();
    let leftover = host.path(&format!("v/segments/{}/{other}-{rest}", &other[..2]));
    fs::create_dir_all(leftover.parent().unwrap()).unwrap();
    fs::copy(&kept, &leftover).unwrap();
    let report = host.run(&["prune", "v", "--json"]).ends(0).summary();
    assert_eq!(report["removed"], 1);
    assert!(!leftover.exists() && kept.exists());
    host.read(&["restore", "v", "--into", "folder:out"]).ends(0);
}
