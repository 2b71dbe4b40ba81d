//! `rewound keygen`

use crate::context::{Context, Outcome};
use rewound::exit::Exit;
use rewound::identity;
use serde_json::json;
use std::path::PathBuf;
use vault::Identity;

/// Where to.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The identity file to make; without it the identity goes to stdout
    file: Option<PathBuf>,
}

/// Makes an identity.
pub fn run(args: Args, context: &Context) -> Outcome {
    let identity = Identity::generate();
    let created = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let ui = &context.ui;
    match &args.file {
        None => {
            ui.bytes(
                match ui.is_json() {
                    true => Vec::new(),
                    false => identity::file_text(&identity, &created).into_bytes(),
                }
                .as_slice(),
            );
            ui.json("identity", json!({ "public_key": identity.recipient(), "secret_key": identity.secret_text() }));
        }
        Some(file) => {
            identity::write_new(file, &identity, &created)?;
            ui.line(format!("Public key: {}", identity.recipient()));
            ui.detail(format!(
                "The secret key is in {}. Keep a copy of it in a safe place that is not the vault: nobody can read\nyour backups without it, and nobody can make it again.",
                file.display()
            ));
        }
    }
    ui.json(
        "summary",
        json!({ "command": "keygen", "exit": 0, "public_key": identity.recipient(), "file": args.file }),
    );
    Ok(Exit::Done)
}
