//! A vault on the local disk, with its identity beside it.

use crate::documents::{COLLECTION, Form};
use model::{
    Batch, CollectionId, CollectionInfo, Consistency, Description, Engine, EngineTime, Error, FeedKind, Result, Seams,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vault::storage::{LocalStorage, Storage};
use vault::{Access, BackupOptions, Identity, Manifest, PointDetails, Protection, Run, Vault, WriteOutcome};

/// A folder with a vault and its identity.
pub struct Place(PathBuf);

impl Place {
    /// The folder; the vault in it may not be there yet.
    pub fn new(folder: &str) -> Self {
        Place(PathBuf::from(folder))
    }

    fn identity_file(&self) -> PathBuf {
        self.0.join("identity.txt")
    }

    /// The folder of the vault itself.
    pub fn vault_folder(&self) -> PathBuf {
        self.0.join("vault")
    }

    /// What a reader brings.
    pub fn access(&self) -> Result<Access> {
        let text = std::fs::read_to_string(self.identity_file()).map_err(|e| Error::io("reading the identity", e))?;
        Ok(Access { identities: Identity::parse_file(&text)?, config: None, seams: Seams::system() })
    }

    /// Keeps a new identity.
    pub fn make_identity(&self) -> Result<Identity> {
        let identity = Identity::generate();
        std::fs::create_dir_all(&self.0).map_err(|e| Error::io("making the folder", e))?;
        std::fs::write(self.identity_file(), identity.secret_text())
            .map_err(|e| Error::io("keeping the identity", e))?;
        Ok(identity)
    }

    /// A new, encrypted vault.
    pub async fn make(&self) -> Result<Vault> {
        let identity = self.make_identity()?;
        Vault::init(self.storage()?, Protection::Recipients(vec![identity.recipient()]), self.access()?).await
    }

    /// The vault that is there.
    pub async fn open(&self) -> Result<Vault> {
        Vault::open(self.storage()?, self.access()?).await
    }

    /// The vault's storage.
    pub fn storage(&self) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(LocalStorage::open(self.vault_folder())?))
    }

    /// Stored bytes.
    pub fn bytes(&self) -> u64 {
        bytes_in(&self.vault_folder())
    }
}

fn bytes_in(folder: &Path) -> u64 {
    let Ok(children) = std::fs::read_dir(folder) else { return 0 };
    children
        .flatten()
        .map(|c| match c.file_type() {
            Ok(kind) if kind.is_dir() => bytes_in(&c.path()),
            _ => c.metadata().map_or(0, |m| m.len()),
        })
        .sum()
}

/// The collection that all documents are in.
pub fn collection() -> CollectionInfo {
    CollectionInfo {
        id: CollectionId::new(COLLECTION),
        name: COLLECTION.into(),
        options: serde_json::Value::Null,
        ordered: false,
    }
}

/// A source with these collections.
pub fn source(name: &str, collections: Vec<CollectionInfo>) -> Description {
    Description {
        engine: Engine::new("bench"),
        identity: name.into(),
        name: name.into(),
        version: "1".into(),
        feed: FeedKind::LatestState,
        collections,
        losses: Vec::new(),
    }
}

/// The options that the bars are measured with.
pub fn options(compare: bool) -> BackupOptions {
    BackupOptions { level: 1, workers: 2, compare, ..BackupOptions::default() }
}

/// Backs documents up and commits.
pub async fn backup(vault: &Vault, batches: impl Iterator<Item = Batch>, compare: bool) -> Result<Manifest> {
    let info = collection();
    let run = vault.start_run(&source("bench", vec![info.clone()]), options(compare)).await?;
    run.begin(&info).await?;
    for batch in batches {
        if run.write(batch).await? == WriteOutcome::ReadAgain {
            return Err(Error::bug("a collection without an order was out of order"));
        }
    }
    run.end(&info.id).await?;
    commit(run, model::Clock::now_millis(&model::SystemClock)).await
}

/// Commits a run.
pub async fn commit(run: Run, millis: i64) -> Result<Manifest> {
    let details = PointDetails {
        time: EngineTime::wall(millis),
        consistency: Consistency::OneTime,
        position: None,
        gap: None,
        skipped: Vec::new(),
    };
    run.commit(details).await.map(|(_, manifest)| manifest)
}

/// How many documents of a form make about `bytes`.
pub fn documents_in(form: Form, bytes: u64) -> u64 {
    let sample: u64 = crate::documents::batches(form, 0..1000, |_| 0).map(|b| b.body.len() as u64).sum();
    bytes * 1000 / sample
}
