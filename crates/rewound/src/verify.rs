//! Checking a vault, with progress.

use crate::progress::{Doing, Job, Progress};
use model::Result;
use vault::{Vault, VerifyOptions, VerifyProgress, VerifyReport};

/// Checks a vault. What is damaged is in the report; an error means that the check itself could not
/// be done, or was interrupted.
pub async fn verify(job: &Job, vault: &Vault, options: &VerifyOptions) -> Result<VerifyReport> {
    job.phase(Doing::Verifying, None, None);
    let tell = |p: VerifyProgress| {
        job.set(Progress {
            doing: Doing::Verifying,
            documents: p.objects,
            total_documents: Some(p.total_objects),
            bytes: p.bytes,
            total_bytes: Some(p.total_bytes),
        });
    };
    job.stop.or(vault.verify(options, &tell)).await
}
