//! Remembering in a vault what checks have found.

use crate::progress::Job;
use vault::{Check, Vault};

/// Records a check. The check stands even if that fails: then the user is told.
pub(crate) async fn record(job: &Job, vault: &Vault, check: &Check) {
    if let Err(e) = vault.record_check(check).await {
        job.note(format!("the result could not be recorded in the vault, `rewound status` will not show it: {e}"));
    }
}
