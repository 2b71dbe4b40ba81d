//! `rewound quickstart`: the whole of Rewound on a sample, with the commands a person would type.
//!
//! Each `rewound` command that is shown is parsed and run just as it stands there. `rm` and `diff`
//! are done here instead, so that the tour needs no other programs.

mod decode;
mod library;
mod tree;

use crate::args::Cli;
use crate::context::{Context, Failed, Outcome};
use crate::ui::Ui;
use crate::ui::format::{bytes, count, duration};
use clap::Parser;
use model::{Error, Result};
use rewound::exit::Exit;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// How.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Do it in this new folder, and keep it
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

/// Gives the tour.
pub async fn run(args: Args, context: &Context) -> Outcome {
    let began = Instant::now();
    let (folder, _remove) = match &args.keep {
        Some(folder) => (new_folder(folder)?, None),
        None => {
            let made = tempfile::Builder::new().prefix("rewound-quickstart-").tempdir();
            let made = made.map_err(|e| Error::io("making a temporary folder", e))?;
            (made.path().to_owned(), Some(made))
        }
    };
    // Commands are shown, and run, with paths in this folder.
    let home = std::env::current_dir().ok();
    std::env::set_current_dir(&folder).map_err(|e| Error::io(format!("entering {}", folder.display()), e))?;
    let mut tour = Tour { context, inner: Arc::new(context.ui.nested()), folder: folder.clone(), step: 0 };
    let result = tour.give(args.keep.is_some()).await;
    if let Some(home) = home {
        // The folder cannot go while we are in it, on some systems.
        let _ = std::env::set_current_dir(home);
    }
    let (equal, added) = result?;
    let ui = &context.ui;
    let took = began.elapsed();
    ui.line(format!("\nAll of this took {}.", duration(took)));
    match &args.keep {
        Some(_) => ui.line(format!(
            "Everything is in {}; to go on there:\n  cd {} && export REWOUND_CONFIG=config REWOUND_IDENTITY=key.txt",
            folder.display(),
            folder.display()
        )),
        None => ui.line("The folder is removed now; --keep DIR keeps it."),
    }
    ui.line("\nYour own first backup:");
    for line in [
        "rewound keygen ~/rewound-key.txt        # then put a copy of it in a safe place",
        "rewound init /path/to/vault --recipient age1…",
        "rewound backup folder:/path/to/data --to /path/to/vault",
        "rewound restore /path/to/vault --into folder:/path/to/new --identity ~/rewound-key.txt",
    ] {
        ui.line(format!("  $ {line}"));
    }
    let exit = if equal { Exit::Done } else { Exit::CheckFailed };
    ui.json(
        "summary",
        json!({
            "command": "quickstart", "exit": exit.code(), "equal": equal, "second_backup_added": added,
            "seconds": took.as_secs_f64(), "folder": args.keep.is_some().then_some(&folder),
        }),
    );
    Ok(exit)
}

fn new_folder(path: &Path) -> Result<PathBuf> {
    let used = fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some());
    if used {
        return Err(Error::input(format!("{} is not empty", path.display())).hint("choose a new folder for --keep"));
    }
    fs::create_dir_all(path).map_err(|e| Error::io(format!("making {}", path.display()), e))?;
    fs::canonicalize(path).map_err(|e| Error::io(format!("finding {}", path.display()), e))
}

struct Tour<'a> {
    context: &'a Context,
    inner: Arc<Ui>,
    folder: PathBuf,
    step: u32,
}

impl Tour<'_> {
    /// Gives the tour; tells whether everything came back, and what the second backup added.
    async fn give(&mut self, keep: bool) -> Result<(bool, u64), Failed> {
        let ui = self.context.ui.clone();
        ui.line(ui.style().strong("Rewound, from the first backup to the proof"));
        let fate = if keep { "" } else { ", a temporary folder" };
        ui.line(format!("Everything happens in {}{fate}. Nothing else is touched.", self.folder.display()));

        self.step("A library: books in files, members as lines, loans in one array, and attachments");
        library::make(Path::new("library"))?;
        let size = tree::copy(Path::new("library"), Path::new("copies/1"))?;
        self.say(format!("{} files, {}; for example:", count(size.files), bytes(size.bytes)));
        let book = fs::read_to_string("library/books/b0042.json").unwrap_or_default();
        let head: Vec<&str> = book.lines().take(6).collect();
        self.quote(&format!("library/books/b0042.json:\n{}\n  …", head.join("\n")));

        self.step("A key that stays with you, and a vault that only this key can read");
        self.command(&["keygen", "key.txt"]).await?;
        let key = fs::read_to_string("key.txt").map_err(|e| Error::io("reading key.txt", e))?;
        let recipient = key.lines().find_map(|l| l.strip_prefix("# public key: ")).unwrap_or_default().to_owned();
        self.command(&["init", "vault", "--recipient", &recipient]).await?;

        self.step("The first backup. It needs no key: this host can write, and cannot read");
        self.command(&["backup", "folder:library", "--to", "vault"]).await?;

        self.step("A day passes: one document in a hundred changes, three go, a review comes");
        library::change(Path::new("library"))?;
        tree::copy(Path::new("library"), Path::new("copies/2"))?;
        self.command(&["backup", "folder:library", "--to", "vault"]).await?;
        self.command(&["points", "vault"]).await?;
        let added = self.added().await?;
        self.say(format!("The second point is complete in itself; it added {} to the vault.", bytes(added)));

        self.step("The library is lost");
        self.shown("rm -rf library");
        fs::remove_dir_all("library").map_err(|e| Error::io("removing the library", e))?;

        self.step("It comes back, and is read back to prove that it is exact");
        self.command(&["restore", "vault", "--into", "folder:library", "--identity", "key.txt"]).await?;
        let newest = self.compare("copies/2", "library")?;

        self.step("So does the day before");
        let first = self.first_point().await?;
        let restore = ["restore", "vault", "--into", "folder:before", "--point", &first[..8], "--identity", "key.txt"];
        self.command(&restore).await?;
        let before = self.compare("copies/1", "before")?;

        self.step("One document through time");
        self.command(&["find", "vault", "books", "b0042", "--identity", "key.txt"]).await?;

        self.step("Is the vault sound? Every byte, every document, every digest");
        self.command(&["verify", "vault", "--identity", "key.txt"]).await?;

        self.step("And without Rewound, in twenty years");
        self.decode()?;
        Ok((newest && before, added))
    }

    /// Reads a segment with plain tools, if they are there.
    fn decode(&self) -> Result<()> {
        let segment = decode::a_segment(Path::new("vault"))
            .ok_or_else(|| Error::missing("the vault of the tour holds no segment of documents"))?;
        let line = format!("age -d -i key.txt {} | zstd -dc | sed -n 2,9p", segment.display());
        let missing = decode::missing(&["age", "zstd", "sed"]);
        if !missing.is_empty() {
            self.say(format!("{} is not installed here, so this is only told, not shown:", missing.join(" and ")));
            self.shown(&line);
            self.say("prints a document: age decrypts the segment, zstd unpacks it, and what is in it is JSON.");
            return Ok(());
        }
        self.shown(&line);
        match decode::shell(&line).filter(|text| !text.is_empty()) {
            Some(text) => {
                self.quote(text.trim_end());
                self.say(
                    "age decrypts the segment, zstd unpacks it, and what is in it is the documents, as they were.",
                );
            }
            None => return Err(Error::corrupt("age and zstd could not read a segment of the vault")),
        }
        Ok(())
    }

    /// Runs a command, as it is shown.
    async fn command(&self, words: &[&str]) -> Result<(), Failed> {
        self.shown(&format!("rewound {}", words.join(" ")));
        let cli = Cli::try_parse_from(std::iter::once(&"rewound").chain(words))
            .map_err(|e| Error::bug(format!("the tour has a wrong command: {e}")))?;
        let context = Context {
            ui: self.inner.clone(),
            job: self.context.job.clone(),
            // An identity that the user has set belongs to other vaults.
            identity: words.contains(&"--identity").then_some(cli.global.identity).flatten(),
            reach: Default::default(),
            config: Some(self.folder.join("config")),
        };
        match Box::pin(super::run(cli.command, &context)).await? {
            Exit::Done => Ok(()),
            other => {
                let text = format!("`rewound {}` ended with code {}", words.join(" "), other.code());
                Err(Error::corrupt(text).hint("please report this").into())
            }
        }
    }

    async fn points(&self) -> Result<rewound::points::PointsView> {
        let context = Context {
            ui: self.inner.clone(),
            job: self.context.job.clone(),
            identity: None,
            reach: Default::default(),
            config: Some(self.folder.join("config")),
        };
        rewound::points::list(&context.vault("vault").await?, None).await
    }

    /// What the newest point added.
    async fn added(&self) -> Result<u64> {
        self.points().await?.points.last().map(|p| p.stored).ok_or_else(|| Error::missing("the tour made no point"))
    }

    async fn first_point(&self) -> Result<String> {
        let points = self.points().await?.points;
        points.first().map(|p| p.id.clone()).ok_or_else(|| Error::missing("the tour made no point"))
    }

    /// Compares what came back with what was kept aside, byte by byte.
    fn compare(&self, kept: &str, restored: &str) -> Result<bool> {
        self.shown(&format!("diff -r -x rewound.json {kept} {restored}"));
        let (ui, style) = (&self.context.ui, self.context.ui.style());
        match tree::compare(Path::new(kept), Path::new(restored))? {
            Ok(size) => {
                let text = format!("{} files, {}", count(size.files), bytes(size.bytes));
                self.quote(&format!("{} {text}, byte for byte the same as before", style.good("Equal:")));
                ui.json("compared", json!({ "equal": true, "files": size.files, "bytes": size.bytes }));
                Ok(true)
            }
            Err(difference) => {
                self.quote(&format!("{} {difference}", style.bad("NOT EQUAL:")));
                ui.json("compared", json!({ "equal": false, "difference": difference }));
                Ok(false)
            }
        }
    }

    fn step(&mut self, title: &str) {
        self.step += 1;
        let ui = &self.context.ui;
        ui.line(format!("\n{}", ui.style().strong(&format!("{}. {title}", self.step))));
        ui.json("step", json!({ "number": self.step, "title": title }));
    }

    fn shown(&self, command: &str) {
        let ui = &self.context.ui;
        ui.line(format!("  {} {}", ui.style().faint("$"), ui.style().strong(command)));
        ui.json("command", json!({ "command": command }));
    }

    fn say(&self, text: impl AsRef<str>) {
        self.context.ui.line(format!("  {}", text.as_ref()));
    }

    fn quote(&self, text: &str) {
        self.inner.line(text);
    }
}
