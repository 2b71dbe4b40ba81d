//! A vault in S3, through the binary, on a real S3 server.
#![allow(clippy::unwrap_used)]

mod common;

use common::Host;
use testkit::moto::Moto;

#[test]
fn a_vault_in_s3_from_the_first_backup_to_the_restore() {
    let moto = Moto::shared();
    moto.make_bucket("vaults");
    let host = Host::new();
    host.sample("lib");
    host.run(&["keygen", "key.txt"]).ends(0);
    let recipient = host.recipient("key.txt");
    let vault = format!("s3://vaults/of/ours?endpoint={}&region=us-east-1&path_style=true", moto.endpoint());
    let run = |args: &[&str]| {
        let mut command = host.command(args);
        command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
        common::ran(command.output().unwrap())
    };
    run(&["init", &vault, "--recipient", &recipient]).ends(0);
    run(&["backup", "folder:lib", "--to", &vault]).ends(0);
    host.write("lib/books/new.json", "{}");
    run(&["backup", "folder:lib", "--to", &vault]).ends(0);
    run(&["restore", &vault, "--into", "folder:back", "--identity", "key.txt"]).ends(0);
    assert_eq!(host.tree("lib"), host.tree("back"));
    run(&["verify", &vault, "--identity", "key.txt"]).ends(0);
    assert_eq!(run(&["points", &vault, "--json"]).of("point").len(), 2);
    run(&["init", &vault, "--recipient", &recipient]).fails(1, "there is a vault");
    run(&["backup", "folder:lib", "--to", "s3://nowhere/x?endpoint=http://127.0.0.1:1"]).ends(1);
}
