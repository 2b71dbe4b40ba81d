//! RavenDB's own backups, by a task of a database.

use super::Database;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A task that makes backups of a database into a folder, whenever it is asked to.
#[derive(Debug)]
pub struct Native {
    db: Database,
    folder: PathBuf,
    task: u64,
}

impl Database {
    /// Makes a task for backups.
    pub fn native(&self) -> Native {
        let folder = self.server().folder().join("backups").join(&self.name);
        fs::create_dir_all(&folder).unwrap();
        let task = serde_json::json!({
            "Name": "b",
            "BackupType": "Backup",
            "FullBackupFrequency": "0 0 1 1 *",
            "IncrementalBackupFrequency": "0 0 1 1 *",
            "LocalSettings": { "FolderPath": folder },
        });
        let made = self.done("POST", "/admin/periodic-backup", task.to_string().as_bytes());
        let made: serde_json::Value = serde_json::from_slice(&made).unwrap();
        Native { db: self.clone(), folder, task: made["TaskId"].as_u64().unwrap() }
    }
}

impl Native {
    /// The files that were made, in their order.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut all: Vec<_> = fs::read_dir(&self.folder)
            .unwrap()
            .flat_map(|f| fs::read_dir(f.unwrap().path()).unwrap())
            .map(|f| f.unwrap().path())
            .filter(|f| !f.to_string_lossy().ends_with("in-progress"))
            .collect();
        all.sort();
        all
    }

    /// Makes one more file.
    pub fn run(&self, full: bool) {
        let path = format!("/admin/backup/database?taskId={}&isFullBackup={full}", self.task);
        let (start, before) = (Instant::now(), self.files().len());
        while self.files().len() == before {
            // One that is asked for while the last one ends is not made.
            self.db.done("POST", &path, b"");
            assert!(start.elapsed() < Duration::from_secs(120), "the server makes no backup: {:?}", self.files());
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}
