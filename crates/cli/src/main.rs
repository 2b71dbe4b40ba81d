//! `rewound`: any document database, back at any second.

mod args;
mod commands;
mod context;
mod ui;

use args::Cli;
use clap::Parser;
use context::{Context, Failed};
use model::limits::IDLE_THREAD;
use rewound::exit::Exit;
use rewound::registry::Reach;
use rewound::{Job, Stop};
use std::process::ExitCode;
use std::sync::Arc;
use ui::Ui;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let ui = Arc::new(Ui::new(&cli.global));
    ui::log::listen(&ui, cli.global.verbose);
    give_way(cli.command.niceness());
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().thread_keep_alive(IDLE_THREAD).build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            ui.error(&model::Error::io("starting", error));
            return ExitCode::FAILURE;
        }
    };
    let exit = runtime.block_on(run(cli, ui));
    // Work that was given up may still be in a system call; nothing depends on it.
    runtime.shutdown_background();
    ExitCode::from(exit.code())
}

/// Gives way to all that is less nice. Threads take it from the one that starts them, so this comes before there are
/// others. Nothing depends on it: a process that may not is no worse than before.
fn give_way(niceness: i32) {
    #[cfg(target_os = "linux")]
    if niceness > 0 && rustix::process::getpriority_process(None).is_ok_and(|now| now < niceness) {
        let _ = rustix::process::setpriority_process(None, niceness);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = niceness;
}

async fn run(cli: Cli, ui: Arc<Ui>) -> Exit {
    let stop = Stop::new();
    tokio::spawn(listen_for_signals(stop.clone(), ui.clone()));
    let job = Job::new(ui.clone(), stop);
    let result = match reach(&cli.global) {
        Ok(reach) => {
            let context = Context { ui: ui.clone(), job, identity: cli.global.identity, reach, config: None };
            commands::run(cli.command, &context).await
        }
        Err(error) => Err(Failed::Usage(error)),
    };
    ui.finish();
    match result {
        Ok(exit) => exit,
        Err(Failed::Usage(error)) => {
            ui.error(&error);
            Exit::Usage
        }
        Err(Failed::Error(error)) => {
            ui.error(&error);
            Exit::of(&error)
        }
    }
}

/// What the URLs of databases do not say: the file goes before the variable.
fn reach(global: &args::Global) -> model::Result<Reach> {
    let password = match &global.password_file {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|e| model::Error::io(format!("reading the password file {}", path.display()), e))?;
            // Editors end files with a line end; passwords hold none.
            Some(text.trim_end_matches(['\r', '\n']).to_owned())
        }
        None => std::env::var("REWOUND_PASSWORD").ok().filter(|p| !p.is_empty()),
    };
    let tokens_from = std::env::var("REWOUND_IAM_URL").ok().filter(|url| !url.is_empty());
    Ok(Reach { password, tokens_from, concurrency: global.concurrency.map(usize::from), ..Reach::default() })
}

/// The first Ctrl-C or SIGTERM asks to stop, the second one ends the process.
async fn listen_for_signals(stop: Stop, ui: Arc<Ui>) {
    let mut asked = false;
    loop {
        signal().await;
        if asked {
            std::process::exit(i32::from(Exit::Interrupted.code()));
        }
        asked = true;
        stop.ask();
        ui.note("stopping cleanly; once more to stop at once");
    }
}

#[cfg(unix)]
async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
        }
        Err(_) => drop(tokio::signal::ctrl_c().await),
    }
}

#[cfg(not(unix))]
async fn signal() {
    let _ = tokio::signal::ctrl_c().await;
}

/// Help and version go to stdout; anything else that clap says is a wrong command line.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if std::env::args_os().any(|a| a == "--json") {
        let text = error.render().to_string();
        let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        Ui::json_error(&model::Error::input(first).hint("`rewound help` shows what can be written"));
    } else {
        let _ = error.print();
    }
    ExitCode::from(Exit::Usage.code())
}
