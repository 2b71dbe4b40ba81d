//! Documents that a target will delete by itself as soon as they are back.

use crate::progress::Job;
use crate::stop::interrupted;
use futures::TryStreamExt;
use model::{Kind, Result, Sink};
use vault::State;

/// Counts them, reading only collections that have such documents at all; one line for each.
pub(crate) async fn count(job: &Job, state: &State, sink: &dyn Sink) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for entry in state.collections() {
        let Some(expired) = sink.expired(&entry.info, job.seams.clock.now_millis()) else { continue };
        let (mut batches, mut count) = (state.read(entry), 0);
        while let Some(batch) = batches.try_next().await? {
            if job.stop.is_asked() {
                return Err(interrupted());
            }
            if batch.kind == Kind::Document {
                count += (0..batch.len()).filter(|i| expired(&batch, *i)).count();
            }
        }
        if count > 0 {
            let name = &entry.info.name;
            lines.push(format!("the server then deletes up to {count} documents of {name}: their time has passed"));
        }
    }
    Ok(lines)
}
