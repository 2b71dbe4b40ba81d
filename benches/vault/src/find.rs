//! Finds single documents among many small ones.

use crate::Arguments;
use crate::documents::{COLLECTION, Dice, Form, batches, key};
use crate::machine::{Watch, peak};
use crate::place::{Place, backup};
use model::{Error, Result};
use serde_json::{Value, json};
use testkit::faulty::CountingStorage;
use vault::Vault;

/// Backs `documents` small documents up, then finds some of them, opening the vault each time.
pub async fn run(arguments: &Arguments) -> Result<Value> {
    let place = Place::new(arguments.get("dir")?);
    let documents = arguments.number("documents")?;
    let watch = Watch::start();
    backup(&place.make().await?, batches(Form::Small, 0..documents, |_| 0), arguments.flag("compare")).await?;
    let (write_cpu, write_peak) = (watch.cpu(), peak());
    let storage = CountingStorage::new(place.storage()?);
    let mut dice = Dice::new(documents, 1);
    let mut finds = Vec::new();
    for turn in 0..arguments.number("finds")? {
        // The last turn looks for a key that is not there.
        let absent = turn + 1 == arguments.number("finds")?;
        let wanted = if absent { "nobody".to_owned() } else { key(dice.below(documents)) };
        storage.reset();
        let watch = Watch::start();
        let vault = Vault::open(storage.clone(), place.access()?).await?;
        let found = vault.find(COLLECTION, wanted.as_bytes(), None).await?;
        let (wall, cpu) = (watch.wall(), watch.cpu());
        if found.len() != usize::from(!absent) {
            return Err(Error::bug(format!("{} versions of {wanted} were found", found.len())));
        }
        let asked = storage.operations();
        finds.push(json!({
            "wall": wall,
            "cpu": cpu,
            "requests": asked.reads + asked.lists + asked.stats,
            "bytes": asked.bytes_read,
            "absent": absent,
        }));
    }
    Ok(json!({"finds": finds, "write_cpu": write_cpu, "write_peak": write_peak, "stored": place.bytes()}))
}
