//! Every command through the real binary, when all goes well.
#![allow(clippy::unwrap_used)]

mod common;

use common::Host;
use std::fs;
use std::time::Duration;

#[test]
fn each_of_two_points_comes_back_by_id_and_by_time() {
    let host = Host::ready();
    let before = host.tree("lib");
    let first = host.backup();
    // Times of points are milliseconds apart at least, as a person's are.
    std::thread::sleep(Duration::from_millis(20));
    host.write("lib/books/b1.json", "{\"changed\": 1e400}");
    fs::remove_file(host.path("lib/books/b2.json")).unwrap();
    host.write("lib/books/b9.attachments/late.txt", "late");
    let after = host.tree("lib");
    let second = host.backup();
    assert_eq!((second["changed"].as_u64(), second["deleted"].as_u64()), (Some(2), Some(1)));
    assert!(second["stored"].as_u64() < Some(20_000), "only what changed is stored: {second}");

    let listed = host.run(&["points", "v", "--json"]).ends(0);
    assert_eq!(listed.summary()["points"], 2);
    assert_eq!(listed.of("point")[0]["id"], first["id"]);
    let text = host.run(&["points", "v"]).ends(0).out;
    let times: Vec<String> =
        text.lines().skip(1).map(|l| l.split_whitespace().skip(1).take(2).collect::<Vec<_>>().join(" ")).collect();

    let id = |point: &serde_json::Value| point["id"].as_str().unwrap()[..10].to_owned();
    let ways = [
        (vec!["--point".to_owned(), id(&first)], &before),
        (vec!["--point".to_owned(), id(&second)], &after),
        // The times that `points` shows mean the points they stand beside.
        (vec!["--at".to_owned(), times[0].clone()], &before),
        (vec!["--at".to_owned(), times[1].clone()], &after),
        (vec!["--at".to_owned(), first["time"].as_str().unwrap().to_owned()], &before),
        (vec!["--at".to_owned(), "now".to_owned()], &after),
        (vec![], &after),
    ];
    for (i, (way, expected)) in ways.iter().enumerate() {
        let into = format!("folder:out{i}");
        let mut args = vec!["restore", "v", "--into", &into, "--json"];
        args.extend(way.iter().map(String::as_str));
        let ran = host.read(&args).ends(0);
        let summary = ran.summary();
        assert_eq!(summary["proof"]["holds"], true, "{way:?}");
        assert!(host.tree(&format!("out{i}")) == **expected, "{way:?}");
    }
    let two = host.read(&["restore", "v", "--into", "folder:never", "--point", ""]);
    assert!(two.fails(1, "is the beginning of 2 points").err.contains(first["id"].as_str().unwrap()));
    host.read(&["restore", "v", "--into", "folder:never", "--point", "xyz"]).fails(1, "there is no point xyz");
    let early = host.read(&["restore", "v", "--into", "folder:never", "--at", "3d ago"]);
    assert!(early.fails(1, "no point at or before").err.contains("--at means"));
    assert!(!host.path("never").exists());
}

#[test]
fn one_document_is_listed_shown_and_restored() {
    let host = Host::ready();
    host.backup();
    host.write("lib/books/b3.json", "{\"second\":  1.10}");
    host.backup();
    fs::remove_file(host.path("lib/books/b3.json")).unwrap();
    fs::remove_dir_all(host.path("lib/books/b3.attachments")).unwrap();
    host.backup();

    let listed = host.read(&["find", "v", "books", "b3", "--json"]).ends(0);
    assert_eq!(listed.summary()["versions"], 3);
    let deleted: Vec<_> = listed.of("version").iter().map(|v| v["deleted"].as_bool().unwrap()).collect();
    assert_eq!(deleted, [false, false, true], "the newest comes last");
    let numbers: Vec<_> = listed.of("version").iter().map(|v| v["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [3, 2, 1]);

    host.read(&["find", "v", "books", "b3", "--show"]).fails(1, "was deleted");
    let show = |number: &str| host.read(&["find", "v", "books", "b3", "--show", "--version", number]);
    assert_eq!(show("2").ends(0).out, "{\"second\":  1.10}");
    assert_eq!(show("3").ends(0).out, "{ \"i\": 3.0, \"i\":3 }");
    show("4").fails(2, "there are 3 versions");
    let time = listed.of("version")[1]["time"].as_str().unwrap().to_owned();
    let at = host.read(&["find", "v", "books", "b3", "--show", "--at", &time]).ends(0);
    assert_eq!(at.out, "{\"second\":  1.10}");

    // Back into the folder that lost it: the others stay as they are.
    let restore = ["find", "v", "books", "b3", "--restore", "--into", "folder:lib", "--version", "2", "--json"];
    let summary = host.read(&restore).ends(0).summary();
    assert_eq!((summary["documents"].as_u64(), summary["attachments"].as_u64()), (Some(1), Some(2)));
    assert_eq!(summary["proof"]["holds"], true);
    assert_eq!(fs::read_to_string(host.path("lib/books/b3.json")).unwrap(), "{\"second\":  1.10}");
    assert_eq!(fs::read(host.path("lib/books/b3.attachments/scan.bin")).unwrap().len(), 2 << 20);
    assert_eq!(fs::read_dir(host.path("lib/books")).unwrap().count(), 21);

    host.read(&["find", "v", "books", "nobody"]).fails(1, "no point has a document nobody");
}

#[test]
fn parts_of_a_point_and_other_names() {
    let host = Host::ready();
    host.backup();
    let restore = |into: &str, more: &[&str]| {
        let mut args = vec!["restore", "v", "--into", into, "--json"];
        args.extend(more);
        host.read(&args)
    };
    restore("folder:only", &["--only", "b*", "--no-attachments"]).ends(0).summary();
    assert_eq!(host.tree("only").len(), 20);
    restore("folder:rest", &["--exclude", "books"]).ends(0);
    assert_eq!(host.tree("rest").keys().collect::<Vec<_>>(), ["loans.json", "members.jsonl"]);
    let renamed = restore("folder:named", &["--rename", "books=titles", "--rename", "loans=given"]).ends(0);
    assert_eq!(renamed.summary()["proof"]["holds"], true);
    let named = host.tree("named");
    assert_eq!(named["titles/b1.json"], host.tree("lib")["books/b1.json"]);
    assert_eq!(named["given.json"], host.tree("lib")["loans.json"]);
    restore("folder:one", &["--only", "members/2"]).ends(0);
    assert_eq!(host.tree("one")["members.jsonl"], b"{\"_id\":2}\n");

    let unknown = restore("folder:x", &["--only", "nobody"]).ends(1);
    assert!(unknown.of("error")[0]["hint"].as_str().unwrap().contains("books"), "{unknown:?}");
    restore("folder:x", &["--only", "books/nobody"]).ends(1);
    restore("folder:x", &["--rename", "nobody=x"]).ends(1);
    restore("folder:x", &["--rename", "nonsense"]).ends(2);
    assert!(!host.path("x").exists());
}

#[test]
fn a_dry_run_touches_nothing() {
    let host = Host::ready();
    host.backup();
    let ran = host.read(&["restore", "v", "--into", "folder:out", "--dry-run", "--json"]).ends(0);
    assert_eq!(ran.summary()["dry_run"], true);
    assert_eq!(ran.of("collection").len(), 3);
    assert!(!host.path("out").exists());
    let text = host.read(&["restore", "v", "--into", "folder:out", "--dry-run"]).ends(0).out;
    assert!(text.contains("make the folder") && text.contains("Nothing was touched"), "{text}");
    host.run(&["copy", "folder:lib", "folder:out", "--dry-run"]).ends(0);
    assert!(!host.path("out").exists());
}

#[test]
fn replace_and_merge() {
    let host = Host::ready();
    host.backup();
    host.write("out/books/own.json", "\"own\"");
    host.write("out/books/b1.json", "\"old\"");
    let restore = |how: &str| {
        host.read(&["restore", "v", "--into", "folder:out", "--only", "books", "--if-exists", how, "--json"])
    };
    assert_eq!(restore("merge").ends(0).summary()["proof"]["holds"], true);
    let merged = host.tree("out");
    assert_eq!(merged["books/own.json"], b"\"own\"");
    assert_eq!(merged["books/b1.json"], host.tree("lib")["books/b1.json"]);
    assert_eq!(restore("replace").ends(0).summary()["proof"]["holds"], true);
    assert!(!host.tree("out").contains_key("books/own.json"));
}

#[test]
fn copies_from_folders_and_vaults() {
    let host = Host::ready();
    host.backup();
    let copied = host.run(&["copy", "folder:lib", "folder:out", "--json"]).ends(0);
    assert_eq!(copied.summary()["proof"]["holds"], true);
    assert!(host.tree("out") == host.tree("lib"));
    host.read(&["copy", "v", "folder:out2"]).ends(0);
    assert!(host.tree("out2") == host.tree("lib"));
    host.run(&["copy", "folder:lib", "v"]).fails(2, "is a vault");
    host.run(&["copy", "folder:lib", "folder:lib"]).fails(1, "is not empty");
}

#[test]
fn several_vaults_get_one_read_and_a_broken_one_harms_nobody() {
    let host = Host::ready();
    host.run(&["init", "w", "--plain"]).ends(0);
    // The second vault is ahead: what it holds already is not stored twice.
    host.run(&["backup", "folder:lib", "--to", "w"]).ends(0);
    host.write("lib/books/b1.attachments/new.bin", vec![9; 3 << 20]);
    let args = ["backup", "folder:lib", "--to", "v", "--to", "w", "--to", "nowhere", "--json"];
    let ran = host.run(&args).ends(3);
    assert_eq!(ran.summary()["failed"], 1);
    let vaults = ran.of("vault");
    assert_eq!(vaults[0]["point"]["changed"], 28);
    assert_eq!(vaults[1]["point"]["changed"], 1);
    assert_eq!(vaults[2]["error"]["kind"], "missing");
    for (vault, into) in [("v", "out-v"), ("w", "out-w")] {
        let args = ["restore", vault, "--into", &format!("folder:{into}")];
        match vault {
            "v" => host.read(&args).ends(0),
            _ => host.run(&args).ends(0),
        };
        assert!(host.tree(into) == host.tree("lib"), "{vault}");
    }
    let text =
        host.run(&["backup", "folder:lib", "--to", "v", "--to", "nowhere"]).fails(3, "nowhere: there is no vault");
    assert!(text.out.contains("Point "));
    host.run(&["backup", "folder:lib", "--to", "nowhere"]).fails(1, "there is no vault");
}

#[test]
fn several_sources_are_told_apart() {
    let host = Host::ready();
    host.backup();
    host.sample("other");
    host.run(&["backup", "folder:other", "--to", "v", "--as", "branch", "--exclude", "books"]).ends(0);
    let ran = host.read(&["restore", "v", "--into", "folder:out"]).fails(1, "the vault holds 2 sources");
    assert!(ran.err.contains("lib (") && ran.err.contains("branch ("));
    host.read(&["restore", "v", "--into", "folder:out", "--source", "branch"]).ends(0);
    assert_eq!(host.tree("out").len(), 2);
    host.read(&["restore", "v", "--into", "folder:out2", "--source", "nobody"]).fails(1, "no source nobody");
    let only = host.run(&["points", "v", "--source", "branch", "--json"]).ends(0);
    assert_eq!(only.of("point").len(), 1);
}

#[test]
fn a_new_host_writes_after_it_has_had_an_identity_once() {
    let host = Host::ready();
    host.backup();
    fs::remove_dir_all(host.path("config")).unwrap();
    host.run(&["backup", "folder:lib", "--to", "v"]).fails(1, "neither read nor write");
    host.read(&["backup", "folder:lib", "--to", "v"]).ends(0);
    host.run(&["backup", "folder:lib", "--to", "v", "--full", "--level", "1"]).ends(0);
    assert_eq!(host.read(&["points", "v", "--json"]).ends(0).summary()["points"], 3);
}

#[test]
fn levels_keys_and_completions() {
    let host = Host::ready();
    host.run(&["backup", "folder:lib", "--to", "v", "--level", "0"]).ends(2);
    host.run(&["backup", "folder:lib", "--to", "v", "--level", "19", "--quiet"]).ends(0);
    let key = host.run(&["keygen"]).ends(0).out;
    assert!(key.contains("\n# public key: age1") && key.contains("\nAGE-SECRET-KEY-1"), "{key}");
    let json = host.run(&["keygen", "--json", "second.txt"]).ends(0);
    assert_eq!(json.summary()["public_key"], host.recipient("second.txt"));
    host.run(&["keygen", "key.txt"]).fails(1, "exists already");
    // The text of a key does where its file does.
    let key = fs::read_to_string(host.path("key.txt")).unwrap();
    let secret = key.lines().last().unwrap();
    let mut command = host.command(&["verify", "v"]);
    common::ran(command.env("REWOUND_IDENTITY", secret).output().unwrap()).ends(0);
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(host.run(&["completions", shell]).ends(0).out.contains("quickstart"), "{shell}");
    }
    host.write("recipients", format!("# two\n{}\n{}\n", host.recipient("key.txt"), host.recipient("second.txt")));
    let made = host.run(&["init", "w", "--recipients-file", "recipients", "--json"]).ends(0).summary();
    assert_eq!(made["recipients"].as_array().unwrap().len(), 2);
    assert!(fs::metadata(made["config"].as_str().unwrap()).is_ok());
}

#[test]
fn the_quickstart_proves_what_it_shows() {
    let host = Host::new();
    let ran = host.run(&["quickstart", "--json", "--keep", "tour"]).ends(0);
    let summary = ran.summary();
    assert_eq!(summary["equal"], true);
    assert!(summary["second_backup_added"].as_u64() < Some(100_000), "{summary}");
    let compared = ran.of("compared");
    assert!(compared.len() == 2 && compared.iter().all(|c| c["equal"] == true && c["files"].as_u64() > Some(600)));
    // The kept vault is a real one, and the tour used its own config folder.
    host.run(&["verify", "tour/vault", "--identity", "tour/key.txt"]).ends(0);
    assert!(host.path("tour/config").is_dir());
    host.run(&["quickstart", "--keep", "tour"]).fails(1, "is not empty");

    let temporary = host.path("tmp");
    fs::create_dir(&temporary).unwrap();
    let mut command = host.command(&["quickstart"]);
    // A key that the user has for other vaults is not in the way.
    command.env("TMPDIR", &temporary).env("REWOUND_IDENTITY", "/no/such/key");
    let text = common::ran(command.output().unwrap()).ends(0).out;
    assert!(text.contains("$ rewound backup folder:library --to vault") && text.contains("byte for byte the same"));
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0, "nothing is left");
}
