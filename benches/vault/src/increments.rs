//! What backups after the first one add.

use crate::Arguments;
use crate::documents::{Dice, batches};
use crate::machine::{Watch, peak};
use crate::place::{Place, backup, documents_in};
use model::Result;
use serde_json::{Value, json};

/// A first backup, then one of the same documents, one with 1 % appended, one with 1 % of them
/// changed at random.
pub async fn run(arguments: &Arguments) -> Result<Value> {
    let form = arguments.form()?;
    let place = Place::new(arguments.get("dir")?);
    let vault = place.make().await?;
    let documents = documents_in(form, arguments.number("bytes")?);
    let more = documents + documents / 100;
    let changed = |number: u64| u64::from(Dice::new(number, 99).below(100) == 0);
    let mut steps = Vec::new();
    let mut before = place.bytes();
    for step in ["first", "unchanged", "appended", "changed"] {
        let watch = Watch::start();
        let manifest = match step {
            "first" | "unchanged" => backup(&vault, batches(form, 0..documents, |_| 0), true).await?,
            "appended" => backup(&vault, batches(form, 0..more, |_| 0), true).await?,
            _ => backup(&vault, batches(form, 0..more, changed), true).await?,
        };
        let after = place.bytes();
        steps.push(json!({
            "step": step,
            "bytes": after - before,
            "changed": manifest.totals.changed,
            "documents": manifest.totals.documents,
            "layers": manifest.layers.len(),
            "cpu": watch.cpu(),
        }));
        before = after;
    }
    Ok(json!({"steps": steps, "peak": peak()}))
}
