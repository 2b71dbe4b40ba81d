//! What a URL means: the one table of engines, and how vaults are opened.

use couch::dump::Form;
use model::{CollectionInfo, Encoding, Engine, Error, ErrorKind, Patcher, Position, Result, Sink, Source};
use mongo::dump::{DumpSink, DumpSource};
use mongo::jobflow::{JobflowSink, JobflowSource, Project};
pub use raven::{Native, NativeKind, Tombstones};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vault::{Access, Protection, Vault};

/// An engine as the registry knows it.
struct Entry {
    /// What URLs begin with, up to the first `:`.
    scheme: &'static str,
    /// What such a URL looks like.
    example: &'static str,
    /// Makes the source from a URL and what follows its scheme.
    source: fn(&str, &str, &Reach) -> Result<Arc<dyn Source>>,
    /// Makes the target from a URL and what follows its scheme.
    target: fn(&str, &str, &Reach) -> Result<Target>,
}

/// What a URL does not say: how to reach the database that it names.
#[derive(Clone, Default)]
pub struct Reach {
    /// The password of the user in the URL, or of the client certificate that it names.
    pub password: Option<String>,
    /// Where API keys are exchanged for tokens; none leaves it to the engine.
    pub tokens_from: Option<String>,
    /// How many pieces are read or written side by side; none leaves it to the engine.
    pub concurrency: Option<usize>,
    /// Whether the files of a dump are compressed, each for itself.
    pub gzip: bool,
    /// Whether the checkpoints of replications come back, too (CouchDB).
    pub with_checkpoints: bool,
    /// What is to become of deletions in a RavenDB database.
    pub tombstones: Tombstones,
    /// Whether and how RavenDB's own backups are meant.
    pub native: Option<Native>,
}

impl fmt::Debug for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reach").field("concurrency", &self.concurrency).finish_non_exhaustive()
    }
}

/// All engines. To add one, add its line.
const ENGINES: &[Entry] = &[
    Entry {
        scheme: "folder",
        example: "folder:PATH",
        source: |_, path, _| Ok(Arc::new(folder::FolderSource::new(path))),
        target: |_, path, _| {
            Ok(Target {
                sink: Arc::new(folder::FolderSink::new(path)),
                source: Arc::new(folder::FolderSource::new(path)),
                folder: Some(PathBuf::from(path)),
            })
        },
    },
    Entry { scheme: "mongodb", example: "mongodb://HOST[/DATABASE]", source: mongodb_source, target: mongodb_target },
    Entry {
        scheme: "mongodb+srv",
        example: "mongodb+srv://HOST[/DATABASE]",
        source: mongodb_source,
        target: mongodb_target,
    },
    Entry {
        scheme: "couchdb+http",
        example: "couchdb+http://HOST:PORT[/DATABASE]",
        source: couchdb_source,
        target: couchdb_target,
    },
    Entry {
        scheme: "couchdb+https",
        example: "couchdb+https://HOST[/DATABASE]",
        source: couchdb_source,
        target: couchdb_target,
    },
    Entry {
        scheme: "couchdb+iam+https",
        example: "couchdb+iam+https://HOST[/DATABASE]",
        source: couchdb_source,
        target: couchdb_target,
    },
    Entry {
        scheme: "couchdb+iam+http",
        example: "couchdb+iam+http://HOST:PORT[/DATABASE]",
        source: couchdb_source,
        target: couchdb_target,
    },
    Entry {
        scheme: "couchdb-dump",
        example: "couchdb-dump:FILE",
        source: |_, path, _| Ok(Arc::new(couch::dump::DumpSource::new(path, Form::CouchdbDump))),
        target: |_, path, _| Ok(couch_dump(path, Form::CouchdbDump)),
    },
    Entry {
        scheme: "couchbackup",
        example: "couchbackup:FILE",
        source: |_, path, _| {
            let path = path.strip_suffix(SHALLOW).unwrap_or(path);
            Ok(Arc::new(couch::dump::DumpSource::new(path, Form::Couchbackup)))
        },
        target: |_, path, _| Ok(couch_dump(path, Form::Couchbackup)),
    },
    Entry {
        scheme: "mongodump",
        example: "mongodump:DIR",
        source: |_, path, _| Ok(Arc::new(DumpSource::new(path))),
        target: |_, path, reach| {
            let sink = Arc::new(DumpSink::new(path).gzip(reach.gzip));
            Ok(Target { sink, source: Arc::new(DumpSource::new(path)), folder: Some(PathBuf::from(path)) })
        },
    },
    Entry {
        scheme: "ravendb+http",
        example: "ravendb+http://HOST/DATABASE",
        source: ravendb_source,
        target: ravendb_target,
    },
    Entry {
        scheme: "ravendb+https",
        example: "ravendb+https://HOST/DATABASE",
        source: ravendb_source,
        target: ravendb_target,
    },
    Entry {
        scheme: "ravendbdump",
        example: "ravendbdump:FILE",
        source: |_, path, _| Ok(Arc::new(raven::DumpSource::new(path))),
        target: |_, path, _| {
            let folder = Path::new(path).parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            Ok(Target {
                sink: Arc::new(raven::DumpSink::new(path)),
                source: Arc::new(raven::DumpSource::new(path)),
                folder: Some(folder.to_owned()),
            })
        },
    },
    Entry {
        scheme: "jobflow",
        example: "jobflow:PROJECT.yaml",
        source: |_, path, _| Ok(Arc::new(JobflowSource::new(Project::read(Path::new(path))?))),
        target: |_, path, _| {
            let project = Project::read(Path::new(path))?;
            let source = mongo::MongoSource::new(project.server()).of_database(&project.database);
            Ok(Target { sink: Arc::new(JobflowSink::new(project)), source: Arc::new(source), folder: None })
        },
    },
];

/// Schemes that a path follows, not a host.
const PATHS: &[&str] = &["couchbackup", "couchdb-dump", "folder", "jobflow", "mongodump", "ravendbdump"];

fn ravendb_source(url: &str, _: &str, reach: &Reach) -> Result<Arc<dyn Source>> {
    let server = raven::Server::new(url).tombstones(reach.tombstones).password(reach.password.clone());
    let server = Arc::new(server);
    Ok(match reach.native.clone() {
        Some(native) => Arc::new(raven::NativeSource::new(server, native)),
        None => Arc::new(raven::RavenSource::new(server)),
    })
}

fn ravendb_target(url: &str, _: &str, reach: &Reach) -> Result<Target> {
    let server = Arc::new(raven::Server::new(url).password(reach.password.clone()));
    let source = Arc::new(raven::RavenSource::new(server.clone()));
    let sink: Arc<dyn Sink> = match reach.native.clone() {
        Some(native) => Arc::new(raven::NativeSink::new(server, native)),
        None => Arc::new(raven::RavenSink::new(server)),
    };
    Ok(Target { sink, source, folder: None })
}

fn mongodb_source(url: &str, _: &str, reach: &Reach) -> Result<Arc<dyn Source>> {
    let server = Arc::new(mongo::Server::new(url, reach.password.clone()));
    let source = mongo::MongoSource::new(server);
    Ok(Arc::new(match reach.concurrency {
        Some(ranges) => source.concurrency(ranges),
        None => source,
    }))
}

fn mongodb_target(url: &str, _: &str, reach: &Reach) -> Result<Target> {
    let server = Arc::new(mongo::Server::new(url, reach.password.clone()));
    let sink = mongo::MongoSink::new(server.clone());
    let sink = match reach.concurrency {
        Some(writers) => sink.concurrency(writers),
        None => sink,
    };
    Ok(Target { sink: Arc::new(sink), source: Arc::new(mongo::MongoSource::new(server)), folder: None })
}

fn couchdb_server(url: &str, reach: &Reach) -> Result<Arc<couch::Server>> {
    let place = couch::Place::parse(url, reach.password.as_deref())?;
    let place = match &reach.tokens_from {
        Some(address) => place.tokens_from(address)?,
        None => place,
    };
    Ok(Arc::new(couch::Server::new(place)?))
}

/// What follows the file of a couchbackup that is to have what wins only.
const SHALLOW: &str = "?shallow";

fn couch_dump(path: &str, form: Form) -> Target {
    let (path, shallow) = match path.strip_suffix(SHALLOW) {
        Some(path) if form == Form::Couchbackup => (path, true),
        _ => (path, false),
    };
    let sink = couch::dump::DumpSink::new(path, form).shallow(shallow);
    let source = couch::dump::DumpSource::new(path, form);
    Target { sink: Arc::new(sink), source: Arc::new(source), folder: None }
}

fn couchdb_source(url: &str, _: &str, reach: &Reach) -> Result<Arc<dyn Source>> {
    let source = couch::CouchSource::new(couchdb_server(url, reach)?);
    Ok(Arc::new(match reach.concurrency {
        Some(requests) => source.concurrency(requests),
        None => source,
    }))
}

fn couchdb_target(url: &str, _: &str, reach: &Reach) -> Result<Target> {
    let server = couchdb_server(url, reach)?;
    let sink = couch::CouchSink::new(server.clone()).with_checkpoints(reach.with_checkpoints);
    let sink = match reach.concurrency {
        Some(requests) => sink.concurrency(requests),
        None => sink,
    };
    Ok(Target { sink: Arc::new(sink), source: Arc::new(couch::CouchSource::new(server)), folder: None })
}

/// The keys, in an engine's own bytes, that a text may mean.
pub fn keys_of(engine: &Engine, text: &str) -> Vec<Vec<u8>> {
    match engine.0.as_str() {
        "mongodb" => mongo::keys::keys(text),
        "ravendb" => raven::keys::keys(text),
        _ => vec![text.as_bytes().to_vec()],
    }
}

/// What applies the patches of an engine's change log; none if its log holds none.
pub fn patcher(engine: &Engine) -> Option<Arc<dyn Patcher>> {
    match engine.0.as_str() {
        "mongodb" => Some(Arc::new(mongo::Patches)),
        _ => None,
    }
}

/// Whether a body is what an engine keeps of a deleted document.
pub fn is_deletion(engine: &Engine, body: &[u8]) -> bool {
    match engine.0.as_str() {
        "couchdb" => couch::is_deletion(body),
        "ravendb" => raven::is_deletion(body),
        _ => false,
    }
}

/// Whether an engine has collections that only its own server can look into.
pub fn has_opaque(engine: &Engine) -> bool {
    engine.0 == "ravendb"
}

/// Whether nobody can look into a collection but the engine's own server: it is made of files as that wrote
/// them.
pub fn is_opaque(engine: &Engine, info: &CollectionInfo) -> bool {
    has_opaque(engine) && raven::is_native(info)
}

/// Whether changes from a position on go on top of what only the engine's own server can look into.
pub fn is_on_opaque(engine: &Engine, position: &Position) -> bool {
    has_opaque(engine) && raven::is_on_native(position)
}

/// The kind space of what an entry says to be deleted from what only the engine's own server can look into; none if
/// it says nothing of that.
pub fn space_of_deletion(engine: &Engine, space: &str, key: &[u8]) -> Option<&'static str> {
    if has_opaque(engine) { raven::space_of_deletion(space, key) } else { None }
}

/// A key for people.
pub fn key_text(engine: &Engine, key: &[u8]) -> String {
    match engine.0.as_str() {
        "mongodb" => mongo::keys::text(key),
        "ravendb" => raven::keys::text(key),
        _ => String::from_utf8_lossy(key).into_owned(),
    }
}

/// A document for people: JSON for what is not text.
pub fn readable(encoding: Encoding, body: &[u8]) -> Vec<u8> {
    match encoding {
        Encoding::Bson => mongo::keys::json(body).map_or_else(|| body.to_vec(), |json| json.to_string().into_bytes()),
        _ => body.to_vec(),
    }
}

/// Schemes of vaults at a remote place; everything without a scheme is a path.
const VAULT_SCHEMES: &[&str] = &["s3"];

/// Engines that are planned: named, so that the error can say that they do not work yet.
const PLANNED: &[&str] = &["rethinkdb", "rxdb"];

/// Where a restore goes to.
#[derive(Clone)]
pub struct Target {
    /// What writes.
    pub sink: Arc<dyn Sink>,
    /// The same place as a source: reads back what was written.
    pub source: Arc<dyn Source>,
    /// The local folder that is written to, if it is one: its free space can be known.
    pub folder: Option<PathBuf>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// The source that a URL means.
pub fn source(url: &str, reach: &Reach) -> Result<Arc<dyn Source>> {
    let (entry, rest) = engine(url, "SOURCE")?;
    if reach.tombstones != Tombstones::AsBefore && !entry.scheme.starts_with("ravendb+") {
        return Err(Error::input(format!("{} has no tombstones to hold or release", without_secret(url))).hint(
            "--hold-tombstones and --release-tombstones are for RavenDB, which forgets deletions within minutes",
        ));
    }
    check_native(entry, url, reach)?;
    (entry.source)(url, rest, reach)
}

/// The target that a URL means.
pub fn target(url: &str, reach: &Reach) -> Result<Target> {
    let (entry, rest) = engine(url, "TARGET")?;
    check_native(entry, url, reach)?;
    (entry.target)(url, rest, reach)
}

/// Refuses backups that an engine does not make itself.
fn check_native(entry: &Entry, url: &str, reach: &Reach) -> Result<()> {
    match reach.native.is_some() && !entry.scheme.starts_with("ravendb+") {
        false => Ok(()),
        true => Err(Error::input(format!("{} makes no backups of its own that Rewound takes", without_secret(url)))
            .hint("--native-dir is for ravendb+http://HOST/DATABASE; leave it out")),
    }
}

/// Whether a URL or path means a vault: by its scheme, or because there is one.
pub fn is_vault(url: &str) -> bool {
    match scheme(url) {
        Some("file") => true,
        Some(scheme) => VAULT_SCHEMES.contains(&scheme),
        None => Path::new(url).join("vault.json").is_file(),
    }
}

/// Opens the vault at a path or URL.
pub async fn open_vault(url: &str, access: Access) -> Result<Vault> {
    Vault::open(storage(url).await?, access).await
}

/// Makes a vault at a path or URL.
pub async fn init_vault(url: &str, protection: Protection, access: Access) -> Result<Vault> {
    Vault::init(storage(url).await?, protection, access).await
}

async fn storage(url: &str) -> Result<Arc<dyn vault::storage::Storage>> {
    if let Some(scheme) = scheme(url)
        && (ENGINES.iter().any(|e| e.scheme == scheme) || PLANNED.contains(&bare(scheme)))
    {
        return Err(Error::input(format!("{} is a database or folder of documents, not a vault", without_secret(url)))
            .hint("a VAULT is a path, or s3://BUCKET/PREFIX"));
    }
    vault::storage::open(url).await
}

fn engine<'a>(url: &'a str, what: &str) -> Result<(&'static Entry, &'a str)> {
    let works = || ENGINES.iter().map(|e| e.example).collect::<Vec<_>>().join(", ");
    let shown = without_secret(url);
    let Some(scheme) = scheme(url) else {
        let error = Error::input(format!("{shown} does not say what it is"));
        return Err(error.hint(match url.is_empty() {
            true => format!("write the {what} as {}", works()),
            false => format!("write folder:{shown} if it is a folder of JSON documents; what works: {}", works()),
        }));
    };
    let rest = url[scheme.len() + 1..].trim_start_matches("//");
    let rest = if PATHS.contains(&scheme) { &url[scheme.len() + 1..] } else { rest };
    if let Some(entry) = ENGINES.iter().find(|e| e.scheme == scheme) {
        if rest.is_empty() {
            return Err(Error::input(format!("{shown} names no place")).hint(format!("write it as {}", entry.example)));
        }
        return Ok((entry, rest));
    }
    let planned = PLANNED.contains(&bare(scheme));
    let text = match planned {
        true => format!("{scheme} is not supported by this version of Rewound"),
        false => format!("{scheme} is no engine that Rewound knows"),
    };
    Err(Error::new(if planned { ErrorKind::Unsupported } else { ErrorKind::Input }, text)
        .hint(format!("what works as {what}: {}", works())))
}

/// `couchdb` of `couchdb+https`.
fn bare(scheme: &str) -> &str {
    scheme.strip_suffix("+https").or_else(|| scheme.strip_suffix("+http")).unwrap_or(scheme)
}

/// The scheme of a URL. One letter is a drive, not a scheme.
fn scheme(url: &str) -> Option<&str> {
    let (scheme, _) = url.split_once(':')?;
    let is_one = scheme.len() > 1
        && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    is_one.then_some(scheme)
}

/// A URL for people: the password between `user:` and `@` taken out.
pub fn without_secret(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find('/').unwrap_or(rest.len());
    let Some(at) = rest[..end].rfind('@') else { return url.to_owned() };
    match rest[..at].split_once(':') {
        Some((user, _)) => format!("{scheme}://{user}:***{}", &rest[at..]),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn urls_find_their_engine() {
        assert_eq!(engine("folder:/a/b", "SOURCE").unwrap().1, "/a/b");
        assert_eq!(engine("folder:a:b", "SOURCE").unwrap().1, "a:b");
        assert!(source("folder:x", &Reach::default()).is_ok());
        for (url, kind, text) in [
            ("/a/b", ErrorKind::Input, "does not say what it is"),
            ("folder:", ErrorKind::Input, "names no place"),
            ("mongodb://", ErrorKind::Input, "names no place"),
            ("rxdb+https://h/d", ErrorKind::Unsupported, "not supported by this version"),
            ("oracle://h", ErrorKind::Input, "no engine that Rewound knows"),
        ] {
            let error = source(url, &Reach::default()).map(drop).unwrap_err();
            assert_eq!(error.kind(), kind, "{url}");
            assert!(error.to_string().contains(text), "{url}: {error}");
            let example = if url.starts_with("mongodb") { "mongodb://HOST" } else { "folder:" };
            assert!(error.hint_text().unwrap().contains(example), "{url}");
        }
    }

    #[tokio::test]
    async fn a_database_is_no_vault() {
        assert!(storage("folder:x").await.unwrap_err().hint_text().unwrap().contains("s3://"));
        assert!(storage("mongodb://h").await.is_err());
        assert!(!is_vault("folder:x"));
        assert!(is_vault("s3://bucket/prefix"));
    }

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(without_secret("mongodb://u:secret@h:1/d"), "mongodb://u:***@h:1/d");
        assert_eq!(without_secret("mongodb://u:p@ss@h/d"), "mongodb://u:***@h/d");
        assert_eq!(without_secret("mongodb://u@h/d"), "mongodb://u@h/d");
        assert_eq!(without_secret("/a:b@c"), "/a:b@c");
        let error = source("oracle://u:secret@h", &Reach::default()).map(drop).unwrap_err();
        assert!(!format!("{error:?}").contains("secret"));
    }
}
