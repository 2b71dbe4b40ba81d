//! The commands, one file each.

mod backup;
mod completions;
mod copy;
mod diff;
mod drill;
mod find;
mod init;
mod keygen;
mod live;
mod mirror;
mod points;
mod prune;
mod quickstart;
mod restore;
mod status;
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
    /// Back a source up, then follow it: every second can be restored
    Live(live::Args),
    /// Show what can be restored
    Points(points::Args),
    /// Bring a point or a time back, and prove that it is exact
    Restore(restore::Args),
    /// Copy a source, or a state of a vault, to a target
    Copy(copy::Args),
    /// Show every version of one document
    Find(find::Args),
    /// Show what changed between two times
    Diff(diff::Args),
    /// Check every byte of a vault
    Verify(verify::Args),
    /// Restore into scratch, only to prove that it works
    Drill(drill::Args),
    /// Show how well everything is backed up
    Status(status::Args),
    /// Remove points that are not to be kept, and what interrupted backups left
    Prune(prune::Args),
    /// Write the completions of a shell
    Completions(completions::Args),
}

impl Command {
    /// How far the process is to give way to all others.
    pub fn niceness(&self) -> i32 {
        match self {
            Command::Backup(args) => args.niceness(),
            _ => 0,
        }
    }
}

/// Does what was asked for.
pub async fn run(command: Command, context: &Context) -> Outcome {
    match command {
        Command::Quickstart(args) => quickstart::run(args, context).await,
        Command::Init(args) => init::run(args, context).await,
        Command::Keygen(args) => keygen::run(args, context),
        Command::Backup(args) => backup::run(args, context).await,
        Command::Live(args) => live::run(args, context).await,
        Command::Points(args) => points::run(args, context).await,
        Command::Restore(args) => restore::run(args, context).await,
        Command::Copy(args) => copy::run(args, context).await,
        Command::Find(args) => find::run(args, context).await,
        Command::Diff(args) => diff::run(args, context).await,
        Command::Verify(args) => verify::run(args, context).await,
        Command::Drill(args) => drill::run(args, context).await,
        Command::Status(args) => status::run(args, context).await,
        Command::Prune(args) => prune::run(args, context).await,
        Command::Completions(args) => completions::run(args, context),
    }
}
