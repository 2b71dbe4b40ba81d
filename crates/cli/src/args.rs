//! The command line: what all commands share. Each command's own arguments are with the command.

use crate::commands::Command;
use clap::{Args, Parser, ValueEnum};
use model::{IfExists, Indexes, RestoreOptions, Selection};
use rewound::registry::Reach;

/// Any document database, back at any second.
#[derive(Debug, Parser)]
#[command(name = "rewound", version, max_term_width = 100)]
#[command(
    after_help = "A SOURCE or TARGET is folder:PATH or mongodb://HOST[/DATABASE]. A VAULT is a path or s3://BUCKET/PREFIX.\n\
    New here? `rewound quickstart` shows everything on a sample, in a temporary folder.\n\n\
    Exit codes: 0 done, 1 failed, 2 usage, 3 done in part, 4 stale, 5 gap, 6 check failed, 130 interrupted."
)]
pub struct Cli {
    /// What holds for all commands.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// What holds for all commands.
#[derive(Debug, Clone, Default, Args)]
pub struct Global {
    /// Write results as one JSON object per line
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
    /// Identity file that can read the vault (or the text AGE-SECRET-KEY-1… in the variable)
    #[arg(long, global = true, value_name = "FILE", env = "REWOUND_IDENTITY", hide_env_values = true)]
    #[arg(help_heading = "Global options")]
    pub identity: Option<String>,
    /// File with the password of the user, or of the PFX file, in a database's URL, or with an API key (or the
    /// password itself in REWOUND_PASSWORD)
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub password_file: Option<std::path::PathBuf>,
    /// Read or write this many pieces of a database side by side
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    #[arg(help_heading = "Global options")]
    pub concurrency: Option<u16>,
    /// Say nothing but results and errors
    #[arg(long, short, global = true, conflicts_with = "verbose", help_heading = "Global options")]
    pub quiet: bool,
    /// Say more
    #[arg(long, short, global = true, help_heading = "Global options")]
    pub verbose: bool,
}

/// Which collections and documents are meant.
#[derive(Debug, Clone, Default, Args)]
pub struct SelectionArgs {
    /// Only these collections (`*` and `?` match any characters), or NS/KEY for one document
    #[arg(long, value_name = "NS[/KEY]")]
    pub only: Vec<String>,
    /// All but these collections
    #[arg(long, value_name = "NS")]
    pub exclude: Vec<String>,
    /// Leave attachments out
    #[arg(long)]
    pub no_attachments: bool,
    /// Users and roles too (MongoDB)
    #[arg(long)]
    pub users: bool,
}

impl SelectionArgs {
    /// As the library takes it.
    pub fn selection(self, skip_bad: bool) -> Selection {
        Selection {
            only: self.only,
            exclude: self.exclude,
            no_attachments: self.no_attachments,
            skip_bad,
            users: self.users,
            ..Selection::default()
        }
    }
}

/// What to do when the target holds data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum IfExistsArg {
    /// Refuse, naming what is there
    #[default]
    Fail,
    /// Put the restored collections in the place of those that are there
    Replace,
    /// Write into what is there; documents with the same key are overwritten
    Merge,
}

impl From<IfExistsArg> for IfExists {
    fn from(arg: IfExistsArg) -> Self {
        match arg {
            IfExistsArg::Fail => IfExists::Fail,
            IfExistsArg::Replace => IfExists::Replace,
            IfExistsArg::Merge => IfExists::Merge,
        }
    }
}

/// What becomes of restored indexes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum IndexesArg {
    /// The target builds them
    #[default]
    Built,
    /// They stand still until indexing is started
    Stopped,
    /// They are disabled until each is enabled
    Disabled,
}

impl From<IndexesArg> for Indexes {
    fn from(arg: IndexesArg) -> Self {
        match arg {
            IndexesArg::Built => Indexes::Built,
            IndexesArg::Stopped => Indexes::Stopped,
            IndexesArg::Disabled => Indexes::Disabled,
        }
    }
}

/// How to write to a target.
#[derive(Debug, Clone, Default, Args)]
pub struct WriteArgs {
    #[command(flatten)]
    pub selection: SelectionArgs,
    /// Give a collection another name in the target
    #[arg(long, value_name = "OLD=NEW")]
    pub rename: Vec<String>,
    /// What to do when the target holds data
    #[arg(long, value_enum, default_value = "fail")]
    pub if_exists: IfExistsArg,
    /// RavenDB: only these kinds of things: documents, revisions, counters, time-series, conflicts, indexes,
    /// identities, compare-exchange, subscriptions, settings, unknown
    #[arg(long, value_name = "KIND,…", value_delimiter = ',')]
    pub kinds: Vec<String>,
    /// RavenDB: all but these kinds of things
    #[arg(long, value_name = "KIND,…", value_delimiter = ',')]
    pub without_kinds: Vec<String>,
    /// RavenDB: what becomes of restored indexes
    #[arg(long, value_enum, default_value = "built")]
    pub indexes: IndexesArg,
    /// Show what would be done, touch nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Go on although the target cannot hold everything exactly
    #[arg(long)]
    pub allow_loss: bool,
    /// Compress each file of a dump (mongodump:DIR)
    #[arg(long)]
    pub gzip: bool,
    /// Write the checkpoints of replications, too (CouchDB): clients go on where they were then, and never
    /// see what they have missed
    #[arg(long)]
    pub with_checkpoints: bool,
    /// Do not read the target back to prove that it is exact
    #[arg(long)]
    pub no_verify: bool,
    /// Of a vault: hold so many megabytes of changes in memory; what is more goes to an encrypted
    /// temporary file [default: 128]
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub memory: Option<u32>,
}

impl WriteArgs {
    /// As the library takes it.
    pub fn options(&self, skip_bad: bool) -> model::Result<RestoreOptions> {
        let mut options = RestoreOptions {
            selection: self.selection.clone().selection(skip_bad),
            if_exists: self.if_exists.into(),
            kinds: self.kinds.clone(),
            without_kinds: self.without_kinds.clone(),
            indexes: self.indexes.into(),
            ..RestoreOptions::default()
        };
        self.rename.iter().try_for_each(|r| options.add_rename(r))?;
        Ok(options)
    }

    /// How to reach the target.
    pub fn reach(&self, reach: &Reach) -> Reach {
        Reach { gzip: self.gzip, with_checkpoints: self.with_checkpoints, ..reach.clone() }
    }

    /// Bytes of changes to hold in memory.
    pub fn memory(&self) -> Option<usize> {
        self.memory.map(|megabytes| (megabytes as usize) << 20)
    }

    /// Whether and how to go on.
    pub fn consent(&self) -> rewound::restore::Consent {
        rewound::restore::Consent { allow_loss: self.allow_loss, verify: !self.no_verify }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
