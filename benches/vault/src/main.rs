//! Measures what the vault costs. `benches/vault/run` calls each command in a process of its own
//! and writes `results.md`; every command prints one line of JSON.
//!
//! rewound-bench-vault COMMAND [name=value]…
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod documents;
mod find;
mod increments;
mod machine;
mod many;
mod place;
mod stream;
mod time;

use documents::Form;
use model::limits::IDLE_THREAD;
use model::{Error, Result};
use serde_json::Value;
use std::collections::HashMap;
use std::process::ExitCode;

/// The `name=value` arguments.
pub struct Arguments(HashMap<String, String>);

impl Arguments {
    fn get(&self, name: &str) -> Result<&str> {
        self.0.get(name).map(String::as_str).ok_or_else(|| Error::input(format!("{name}=… is missing")))
    }

    fn number(&self, name: &str) -> Result<u64> {
        self.get(name)?.parse().map_err(|_| Error::input(format!("{name} is not a number")))
    }

    fn flag(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|v| v == "yes")
    }

    fn form(&self) -> Result<Form> {
        Form::parse(self.get("form")?).ok_or_else(|| Error::input("form is json, bson or small"))
    }
}

fn main() -> ExitCode {
    // As the program has it.
    match tokio::runtime::Builder::new_multi_thread().enable_all().thread_keep_alive(IDLE_THREAD).build() {
        Ok(runtime) => runtime.block_on(begin()),
        Err(e) => {
            eprintln!("starting: {e}");
            ExitCode::FAILURE
        }
    }
}

async fn begin() -> ExitCode {
    let mut given = std::env::args().skip(1);
    let command = given.next().unwrap_or_default();
    let pairs = given.filter_map(|a| a.split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned())));
    match run(&command, Arguments(pairs.collect())).await {
        Ok(result) => {
            println!("{result}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("{command}: {e}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: &str, arguments: Arguments) -> Result<Value> {
    match command {
        "file" => stream::file(&arguments),
        "compress" => stream::compress(&arguments),
        "write" => stream::write(&arguments).await,
        "read" => stream::read(&arguments).await,
        "increments" => increments::run(&arguments).await,
        "find" => find::run(&arguments).await,
        "time-make" => time::make(&arguments).await,
        "time-read" => time::read(&arguments).await,
        "time-make-flushes" => time::make_flushes(&arguments).await,
        "time-find" => time::find(&arguments).await,
        "many-make" => many::make(&arguments).await,
        "many-points" => many::points(&arguments).await,
        "many-verify" => many::verify(&arguments).await,
        _ => Err(Error::input(
            "commands: file, compress, write, read, increments, find, time-make, time-read, time-make-flushes, \
             time-find, many-make, many-points, many-verify",
        )),
    }
}
