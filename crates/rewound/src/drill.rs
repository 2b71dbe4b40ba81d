//! Drills: restoring for real, only to prove that it works.

use crate::checks;
use crate::choose::{self, PointChoice};
use crate::opaque;
use crate::points::PointView;
use crate::progress::Job;
use crate::registry::{self, Reach, Target};
use crate::restore::{Consent, Restore};
use model::{Engine, Error, ErrorKind, Result, Selection};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vault::{Check, CheckKind, Drilled, Vault};

/// What a drill did with one source.
#[derive(Debug, Clone, Serialize)]
pub struct DrillReport {
    /// The source's name.
    pub source: String,
    /// Its tag.
    pub tag: String,
    /// The point that was restored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub point: Option<PointView>,
    /// Where to, without secrets.
    pub target: String,
    /// Documents and attachments that were read back and compared.
    pub documents: u64,
    /// What could not be compared, and why.
    pub unproven: Vec<String>,
    /// What was not as it must be; empty if all was.
    pub problems: Vec<String>,
    /// How long it took, in seconds.
    pub seconds: f64,
}

impl DrillReport {
    /// Whether everything came back as it was.
    pub fn is_good(&self) -> bool {
        self.problems.is_empty()
    }
}

/// Restores the newest point of each source, or of one, into scratch, compares it and takes away
/// what it made. Each result is recorded in the vault. Scratch is a temporary folder, or `into`:
/// a folder or database that must hold nothing. An error means that the drill could not be done;
/// what is wrong with the backup is in the reports.
pub async fn drill(
    job: &Job,
    vault: &Vault,
    source: Option<&str>,
    into: Option<&str>,
    reach: &Reach,
) -> Result<Vec<DrillReport>> {
    let points = job.stop.or(vault.points()).await?;
    let wanted = source.map(|s| choose::source(&points, Some(s))).transpose()?;
    // The newest point has the last say on name and engine.
    let mut sources: BTreeMap<String, (String, Engine)> = BTreeMap::new();
    for point in &points.points {
        let source = &point.manifest.source;
        sources.insert(point.name.source.clone(), (source.name.clone(), source.engine.clone()));
    }
    sources.retain(|tag, _| wanted.as_ref().is_none_or(|w| w == tag));
    if sources.is_empty() {
        // Says in which way there is nothing.
        choose::source(&points, None)?;
    }
    let mut reports = Vec::new();
    for (tag, (name, engine)) in sources {
        let began = job.seams.clock.now_millis();
        let newest = points.of(&tag).max_by_key(|p| p.manifest.time);
        let holds_files = match newest {
            Some(newest) if registry::has_opaque(&engine) => job.stop.or(opaque::is_opaque(vault, newest)).await?,
            _ => false,
        };
        let scratch = Scratch::open(into, &engine, holds_files, &reach.clone(), job).await?;
        let done = restore(job, vault, &tag, &scratch).await;
        let cleared = scratch.clear().await;
        let ended = job.seams.clock.now_millis();
        let mut report = DrillReport {
            source: name,
            tag: tag.clone(),
            point: None,
            target: scratch.shown,
            documents: 0,
            unproven: Vec::new(),
            problems: Vec::new(),
            seconds: (ended - began) as f64 / 1000.0,
        };
        match done {
            Ok(done) => {
                report.documents = done.documents;
                report.unproven = done.unproven;
                report.problems = done.problems;
                report.point = Some(done.point);
            }
            // What the vault holds is not what it must be: that is what a drill is to find.
            Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Missing) => {
                report.problems.push(e.to_string());
            }
            Err(e) => {
                if let Err(left) = cleared {
                    job.note(format!("left behind in {}: {left}", report.target));
                }
                return Err(e);
            }
        }
        if let Err(left) = cleared {
            job.note(format!("left behind in {}: {left}", report.target));
        }
        let mut check = Check::new(CheckKind::Drill, began, ended, report.problems.first().cloned());
        check.drilled = newest.map(|p| Drilled {
            source: tag.clone(),
            point: report.point.as_ref().map_or_else(|| p.name.id(), |p| p.id.clone()),
            time: p.manifest.time,
            target: report.target.clone(),
            documents: report.documents,
        });
        checks::record(job, vault, &check).await;
        reports.push(report);
    }
    Ok(reports)
}

struct Done {
    point: PointView,
    documents: u64,
    unproven: Vec<String>,
    problems: Vec<String>,
}

async fn restore(job: &Job, vault: &Vault, tag: &str, scratch: &Scratch) -> Result<Done> {
    let choice = PointChoice { source: Some(tag.to_owned()), ..PointChoice::default() };
    let mut options = model::RestoreOptions { only_proves: true, ..model::RestoreOptions::default() };
    if let Home::Databases(databases) = &scratch.home {
        options.selection = Selection { exclude: vec!["admin.*".into()], ..Selection::default() };
        let points = job.stop.or(vault.points()).await?;
        let point = choose::point(&points, &choice)?.point;
        let catalog = vault.catalog(&point.manifest).await?;
        let names = catalog.collections.iter().map(|c| c.info.name.as_str());
        options.rename = databases.renamed(names.filter(|n| options.selection.takes(n)))?;
    }
    let mut target = scratch.target.clone();
    if scratch.holds_files {
        target.sink = Arc::new(opaque::FilesOnly::new(target.sink));
    }
    let restore = Restore::prepare(job, vault, target, &choice, options, None).await?;
    let mut unproven: Vec<String> = restore.plan.losses.iter().map(|l| format!("{}: {}", l.what, l.why)).collect();
    // Nothing is at stake in scratch: what it cannot hold is said, and the rest is proven.
    let report = restore.run(job, Consent { allow_loss: true, verify: true }).await?;
    let proof = report.written.proof.unwrap_or_default();
    unproven.extend(proof.unproven);
    Ok(Done {
        point: report.point,
        documents: proof.documents,
        unproven,
        problems: proof.mismatches.into_iter().map(|m| format!("{}: {}", m.collection, m.problem)).collect(),
    })
}

/// A place that holds nothing but what the drill writes.
struct Scratch {
    target: Target,
    /// For people.
    shown: String,
    home: Home,
    /// Whether what it gets are files that the engine's server made.
    holds_files: bool,
}

enum Home {
    /// A folder of our own, which goes with it.
    Temporary(tempfile::TempDir),
    /// A folder of the user's, which was empty; whether the drill made it.
    Folder { path: PathBuf, made: bool },
    /// Databases that only this drill has.
    Databases(Databases),
}

impl Scratch {
    async fn open(into: Option<&str>, engine: &Engine, holds_files: bool, reach: &Reach, job: &Job) -> Result<Scratch> {
        let Some(url) = into else {
            let folder = tempfile::Builder::new().prefix("rewound-drill-").tempdir();
            let folder = folder.map_err(|e| Error::io("making a temporary folder", e))?;
            // In the engine's own format, so that every byte can be compared.
            let scheme = match engine.0.as_str() {
                "mongodb" => "mongodump",
                "ravendb" if !holds_files => "ravendbdump",
                _ => "folder",
            };
            let path = folder.path().join("scratch");
            let target = registry::target(&format!("{scheme}:{}", path.display()), reach)?;
            let shown = "a temporary folder".into();
            return Ok(Scratch { target, shown, home: Home::Temporary(folder), holds_files });
        };
        let shown = registry::without_secret(url);
        let target = registry::target(url, reach)?;
        let home = match (&target.folder, url.split_once(':').map(|(scheme, _)| scheme)) {
            (Some(path), _) => Home::Folder { path: path.clone(), made: !refuse_used(path)? },
            (None, Some("mongodb" | "mongodb+srv")) => {
                let server = mongo::Server::new(url, reach.password.clone());
                Home::Databases(Databases::on(server, job).await?)
            }
            _ => {
                return Err(Error::unsupported(format!("a drill cannot clear {shown} away again")).hint(
                    "let it restore into --into folder:PATH, mongodump:DIR or mongodb://HOST, or leave --into out",
                ));
            }
        };
        Ok(Scratch { target, shown, home, holds_files })
    }

    /// Takes away what the drill made, and nothing else.
    async fn clear(&self) -> Result<()> {
        match &self.home {
            Home::Temporary(folder) => clear_folder(folder.path(), false),
            Home::Folder { path, made } => clear_folder(path, *made),
            Home::Databases(databases) => databases.clear().await,
        }
    }
}

/// Whether the folder exists; an error if it holds something.
fn refuse_used(path: &Path) -> Result<bool> {
    let failed = |e| Error::io(format!("looking into {}", path.display()), e);
    match std::fs::read_dir(path) {
        Ok(mut entries) => match entries.next() {
            None => Ok(true),
            Some(_) => Err(Error::input(format!("{} is not empty", path.display()))
                .hint("a drill clears away what it wrote: give it a folder that is empty, or that does not exist")),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(failed(e)),
    }
}

/// Removes what is in a folder that was empty before, and the folder if it was not there.
fn clear_folder(path: &Path, made: bool) -> Result<()> {
    let failed = |path: &Path, e| Error::io(format!("removing {}", path.display()), e);
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(path, e)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| failed(path, e))?;
        let kind = entry.file_type().map_err(|e| failed(&entry.path(), e))?;
        let removed =
            if kind.is_dir() { std::fs::remove_dir_all(entry.path()) } else { std::fs::remove_file(entry.path()) };
        removed.map_err(|e| failed(&entry.path(), e))?;
    }
    match made {
        true => std::fs::remove_dir(path).map_err(|e| failed(path, e)),
        false => Ok(()),
    }
}

/// Databases of a MongoDB server that only this drill has.
struct Databases {
    server: Arc<mongo::Server>,
    /// The database that the URL names, which was empty; else each gets a name of the drill's.
    given: Option<String>,
    run: String,
    made: std::sync::Mutex<Vec<String>>,
}

impl Databases {
    async fn on(server: mongo::Server, job: &Job) -> Result<Databases> {
        let given = job.stop.or(server.database()).await?;
        if let Some(database) = &given
            && !job.stop.or(mongo::scratch::is_empty(&server, database)).await?
        {
            return Err(Error::input(format!("the database {database} of {} is not empty", server.host())).hint(
                "a drill drops the database afterwards: name one that does not exist, or none, for names of its own",
            ));
        }
        let run: String = job.seams.bytes::<4>().iter().map(|b| format!("{b:02x}")).collect();
        Ok(Databases { server: Arc::new(server), given, run, made: std::sync::Mutex::default() })
    }

    /// New names of these collections, in databases of the drill's own.
    fn renamed<'a>(&self, names: impl Iterator<Item = &'a str>) -> Result<Vec<(String, String)>> {
        let mut scratch: BTreeMap<&str, String> = BTreeMap::new();
        let mut renamed = Vec::new();
        for name in names {
            let (database, collection) = name.split_once('.').unwrap_or((name, name));
            let number = scratch.len();
            let own = scratch.entry(database).or_insert_with(|| match &self.given {
                Some(given) => given.clone(),
                None => format!("rewound_drill_{}_{number}", self.run),
            });
            renamed.push((name.to_owned(), format!("{own}.{collection}")));
        }
        if self.given.is_some() && scratch.len() > 1 {
            return Err(Error::input(format!("the point holds {} databases, --into names one", scratch.len()))
                .hint("leave the database out of the URL: the drill then makes databases of its own"));
        }
        *self.made.lock().unwrap_or_else(|e| e.into_inner()) = scratch.into_values().collect();
        Ok(renamed)
    }

    async fn clear(&self) -> Result<()> {
        let made = std::mem::take(&mut *self.made.lock().unwrap_or_else(|e| e.into_inner()));
        for database in made {
            mongo::scratch::drop_database(&self.server, &database).await?;
        }
        Ok(())
    }
}
