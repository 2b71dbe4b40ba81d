//! Keeping tombstones: the server cleans them within minutes, unless a backup task still needs them.
//! A disabled task that never ran needs all of them.

use crate::server::Server;
use model::Result;
use reqwest::Method;
use serde::Deserialize;

/// The name of the task, by which users find it.
pub(crate) const NAME: &str = "rewound holds tombstones";

#[derive(Deserialize)]
struct Tasks {
    // From 6.0 on it has another name than before. An answer without either is none.
    #[serde(rename = "OngoingTasks", alias = "OngoingTasksList")]
    tasks: Vec<Task>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Task {
    task_id: u64,
    #[serde(default)]
    task_name: Option<String>,
    #[serde(default)]
    task_state: String,
    #[serde(default)]
    last_full_backup: Option<serde_json::Value>,
}

/// The task that holds tombstones, by its number; none if there is none that does.
pub(crate) async fn task(server: &Server) -> Result<Option<u64>> {
    let request = server.of_database(Method::GET, &["tasks"], &[])?;
    let all: Tasks = server.json(request, "asking for the database's tasks").await?;
    let holds =
        |t: &&Task| t.task_name.as_deref() == Some(NAME) && t.task_state == "Disabled" && t.last_full_backup.is_none();
    Ok(all.tasks.iter().find(holds).map(|t| t.task_id))
}

/// Makes the task, where the user asked for it and there is none.
pub(crate) async fn begin(server: &Server) -> Result<u64> {
    if let Some(task) = task(server).await? {
        return Ok(task);
    }
    #[derive(Deserialize)]
    struct Made {
        #[serde(rename = "TaskId")]
        task: u64,
    }
    let task = serde_json::json!({
        "Name": NAME,
        "Disabled": true,
        "BackupType": "Backup",
        "IncrementalBackupFrequency": "0 0 1 1 *",
        "LocalSettings": { "Disabled": true, "FolderPath": "" },
    });
    let request = server.of_database(Method::POST, &["admin", "periodic-backup"], &[])?.body(task.to_string());
    let made: Made = server.json(request, "making the task that holds tombstones").await?;
    Ok(made.task)
}

/// Removes the task, if there is one; the server forgets deletions again.
pub(crate) async fn end(server: &Server) -> Result<()> {
    while let Some(task) = task(server).await? {
        let task = task.to_string();
        let request = server.of_database(Method::DELETE, &["admin", "tasks"], &[("id", &task), ("type", "Backup")])?;
        server.send(request, "removing the task that holds tombstones").await?;
    }
    Ok(())
}
