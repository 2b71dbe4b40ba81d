//! A dump as a sink: a `.ravendbdump` that any RavenDB Studio imports.

use crate::choice::{Choice, KINDS};
use crate::dump::{Compressor, files};
use crate::maker::{Maker, Output};
use crate::native;
use crate::proof;
use crate::server::Build;
use crate::sink::planned;
use async_trait::async_trait;
use bytes::Bytes;
use model::{
    AttachmentStore, Batch, CollectionInfo, Description, Encoding, Error, IfExists, Kind, Leftovers, RestoreOptions,
    RestorePlan, RestoreReport, Result, Sink, SinkSession,
};
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tokio::sync::Mutex;

/// The build that dumps are of, where it is not known: 5.4, which every later server takes.
const BUILD: u64 = 54_106;

/// A `.ravendbdump` file that is made, compressed with gzip, which servers of every version take.
#[derive(Debug)]
pub struct DumpSink {
    path: PathBuf,
    build: std::sync::Mutex<Option<u64>>,
    choice: std::sync::Mutex<Choice>,
}

impl DumpSink {
    /// The file at a path; nothing is opened yet.
    pub fn new(path: impl Into<PathBuf>) -> DumpSink {
        DumpSink { path: path.into(), build: std::sync::Mutex::new(None), choice: std::sync::Mutex::default() }
    }

    /// What it is called until it is complete.
    fn unfinished(&self) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.path.with_file_name(format!("{name}.in-progress"))
    }
}

#[async_trait]
impl Sink for DumpSink {
    async fn prepare(&self, what: &Description, options: &RestoreOptions) -> Result<RestorePlan> {
        native::refuse(&what.collections)?;
        let shown = self.path.display();
        if self.path.is_dir() {
            return Err(Error::input(format!("{shown} is a folder")).hint("name the file that is to be made"));
        }
        if self.path.exists() && options.if_exists != IfExists::Replace {
            return Err(Error::input(format!("{shown} is there already"))
                .hint("choose another name, or pass --if-exists replace"));
        }
        let collections = planned(what, options)?;
        *self.choice.lock().unwrap_or_else(|e| e.into_inner()) = Choice::of(options);
        *self.build.lock().unwrap_or_else(|e| e.into_inner()) = Build::of(&what.version);
        let phases =
            vec![format!("write {}", self.unfinished().display()), format!("make it durable and rename it to {shown}")];
        Ok(RestorePlan { phases, collections, losses: Vec::new() })
    }

    fn kinds(&self) -> &'static [&'static str] {
        KINDS
    }

    fn leaves_out(&self, batch: &Batch) -> bool {
        self.choice.lock().unwrap_or_else(|e| e.into_inner()).leaves_out(batch)
    }

    fn provable<'a>(&self, batch: &'a Batch) -> Option<Cow<'a, Batch>> {
        let choice = self.choice.lock().unwrap_or_else(|e| e.into_inner());
        match choice.is_rewriting() && batch.kind != Kind::Attachment {
            true => proof::provable(batch, true, true),
            false => Some(choice.part_of(batch)),
        }
    }

    fn takes(&self, encoding: Encoding) -> bool {
        encoding == Encoding::Json
    }

    async fn begin(&self, _: RestorePlan, store: Arc<dyn AttachmentStore>) -> Result<Box<dyn SinkSession>> {
        let target = Target::create(self.unfinished()).await?;
        let build = self.build.lock().unwrap_or_else(|e| e.into_inner()).unwrap_or(BUILD);
        let mut maker = Maker::new(target, Compressor::gzip(), build, store)?;
        maker.once = true;
        maker.choice = self.choice.lock().unwrap_or_else(|e| e.into_inner()).clone();
        Ok(Box::new(Session { path: self.path.clone(), maker: Mutex::new(maker) }))
    }
}

/// A file that is written.
pub(crate) struct Target {
    file: tokio::fs::File,
    pub path: PathBuf,
}

impl Target {
    /// Makes the file.
    pub async fn create(path: PathBuf) -> Result<Target> {
        let doing = format!("making {}", path.display());
        let file = tokio::fs::File::create(&path).await.map_err(|e| Error::io(doing, e))?;
        Ok(Target { file, path })
    }

    /// Makes it durable.
    pub async fn sync(&mut self) -> Result<()> {
        let shown = self.path.display().to_string();
        self.file.flush().await.map_err(|e| Error::io(format!("writing {shown}"), e))?;
        self.file.sync_all().await.map_err(|e| Error::io(format!("making {shown} durable"), e))
    }
}

#[async_trait]
impl Output for Target {
    async fn send(&mut self, bytes: Bytes) -> Result<()> {
        files::of_file(self.file.write_all(&bytes).await.map_err(|e| Error::io("writing", e)), &self.path)
    }
}

struct Session {
    path: PathBuf,
    maker: Mutex<Maker<Target>>,
}

#[async_trait]
impl SinkSession for Session {
    async fn catalog(&self, _: &CollectionInfo) -> Result<()> {
        Ok(())
    }

    async fn write(&self, batch: Batch) -> Result<()> {
        self.maker.lock().await.write(&batch).await
    }

    async fn finish(self: Box<Self>) -> Result<RestoreReport> {
        let (mut target, report) = self.maker.into_inner().finish(true).await?;
        target.sync().await?;
        let doing = format!("renaming {} to {}", target.path.display(), self.path.display());
        tokio::fs::rename(&target.path, &self.path).await.map_err(|e| Error::io(doing, e))?;
        sync_folder(&self.path)?;
        Ok(report)
    }

    async fn abort(self: Box<Self>) -> Leftovers {
        let path = self.maker.into_inner().out.path;
        match tokio::fs::remove_file(&path).await {
            Ok(()) => Leftovers::default(),
            Err(_) => Leftovers { what: vec![path.display().to_string()] },
        }
    }
}

/// Makes a new name durable.
fn sync_folder(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = std::fs::File::open(folder).and_then(|f| f.sync_all());
    synced.map_err(|e| Error::io(format!("making {} durable", folder.display()), e))
}
