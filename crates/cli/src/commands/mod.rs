//! The commands, one file each.

mod backup;
mod completions;
mod copy;
mod find;
mod init;
mod keygen;
mod points;
mod prune;
mod quickstart;
mod restore;
mod verify;
mod written;

use crate::context::{Context, Outcome};
use clap::Subcommand;

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// A whole tour on a sample, in a temporary folder, in seconds
    Quickstart(quickstart::Args),
    /// Make a vault
    Init(init::Args),
    /// Make an age identity: the key that reads backups
    Keygen(keygen::Args),
    /// Back a source up into one or more vaults
    Backup(backup::Args),
    /// Show what can be restored
    Points(points::Args),
    /// Bring a point back, and prove that it is exact
    Restore(restore::Args),
    /// Copy a source, or the newest point of a vault, to a target
    Copy(copy::Args),
    /// Show every version of one document
    Find(find::Args),
    /// Check every byte of a vault
    Verify(verify::Args),
    /// Remove what interrupted backups left in a vault
    Prune(prune::Args),
    /// Write the completions of a shell
    Completions(completions::Args),
}

/// Does what was asked for.
pub async fn run(command: Command, context: &Context) -> Outcome {
    match command {
        Command::Quickstart(args) => quickstart::run(args, context).await,
        Command::Init(args) => init::run(args, context).await,
        Command::Keygen(args) => keygen::run(args, context),
        Command::Backup(args) => backup::run(args, context).await,
        Command::Points(args) => points::run(args, context).await,
        Command::Restore(args) => restore::run(args, context).await,
        Command::Copy(args) => copy::run(args, context).await,
        Command::Find(args) => find::run(args, context).await,
        Command::Verify(args) => verify::run(args, context).await,
        Command::Prune(args) => prune::run(args, context).await,
        Command::Completions(args) => completions::run(args, context),
    }
}
