//! `rewound completions`

use crate::args::Cli;
use crate::context::{Context, Outcome};
use clap::CommandFactory;
use rewound::exit::Exit;

/// The shell.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// Writes the completions to stdout.
pub fn run(args: Args, context: &Context) -> Outcome {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "rewound", &mut text);
    context.ui.bytes(&text);
    Ok(Exit::Done)
}
