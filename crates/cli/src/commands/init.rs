//! `rewound init`

use crate::context::{Context, Failed, OrUsage, Outcome};
use model::{Error, Seams};
use rewound::exit::Exit;
use rewound::{identity, registry};
use serde_json::json;
use std::path::PathBuf;
use vault::{Access, Protection};

/// Where, and for whom.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A path, or s3://BUCKET/PREFIX
    vault: String,
    /// Encrypt to this age recipient; may be given several times
    #[arg(long, value_name = "age1…")]
    recipient: Vec<String>,
    /// Encrypt to the recipients in this file, one a line
    #[arg(long, value_name = "FILE")]
    recipients_file: Option<PathBuf>,
    /// Do not encrypt: whoever can read the storage can read everything
    #[arg(long, conflicts_with_all = ["recipient", "recipients_file"])]
    plain: bool,
}

/// Makes a vault.
pub async fn run(args: Args, context: &Context) -> Outcome {
    let mut recipients = args.recipient;
    recipients.iter().try_for_each(|r| vault::check_recipient(r)).or_usage()?;
    if let Some(file) = &args.recipients_file {
        let text = std::fs::read_to_string(file)
            .map_err(|e| Error::io(format!("reading the recipients file {}", file.display()), e))?;
        recipients.extend(identity::recipients(&text)?);
    }
    let protection = match (args.plain, recipients.is_empty()) {
        (true, _) => Protection::Plain,
        (false, false) => Protection::Recipients(recipients),
        (false, true) => return Err(Failed::Usage(undecided())),
    };
    let config = context.config()?;
    // The identities that a user happens to have set need not be recipients of the new vault.
    let access = Access { identities: Vec::new(), config: Some(config.clone()), seams: Seams::system() };
    let made = context.job.stop.or(registry::init_vault(&args.vault, protection, access)).await?;
    let (ui, file) = (&context.ui, made.file());
    let encrypted = !file.recipients.is_empty();
    let kept = config.file_of(&file.id);
    ui.line(format!("Made {} vault at {}", if encrypted { "an encrypted" } else { "a PLAIN" }, made.location()));
    ui.detail(format!("  vault id      {}", file.id));
    ui.detail(format!("  writer's key  {}", file.writer));
    for recipient in &file.recipients {
        ui.detail(format!("  readable by   {recipient}"));
    }
    ui.detail(format!("  config file   {}", kept.display()));
    ui.detail(match encrypted {
        true => {
            "\nKeep safe: the identity (AGE-SECRET-KEY-1…) of at least one recipient, outside of the vault. Without it\n\
             nobody can ever read the backups. The config file lets this host write without an identity; if it is\n\
             lost, the next backup with --identity brings it back."
        }
        false => "\nWhoever can read the storage can read everything in it.",
    });
    ui.detail(format!("\nNext: rewound backup folder:PATH --to {}", args.vault));
    ui.json(
        "summary",
        json!({
            "command": "init", "exit": 0, "vault": made.location(), "id": file.id, "encrypted": encrypted,
            "recipients": file.recipients, "writer": file.writer, "config": kept,
        }),
    );
    Ok(Exit::Done)
}

fn undecided() -> Error {
    Error::input("say how the vault is to be protected: --recipient or --plain").hint(
        "encrypted (only the holder of an identity can read it): `rewound keygen FILE`, then --recipient age1…; \
         not encrypted (whoever can read the storage can read everything): --plain",
    )
}
