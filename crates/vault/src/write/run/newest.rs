//! What a new run finds of its source.

use crate::log::Listed;
use crate::manifest::{Layer, Manifest};
use crate::name::PointName;
use crate::points;
use crate::vault::Inner;
use crate::write::known::OldLayer;
use model::{ErrorKind, Result};
use std::sync::Arc;

/// The newest point of a source, and what there is beside it.
pub(super) struct Newest {
    /// All points of the vault, oldest first.
    pub history: Vec<PointName>,
    /// The objects of the source's log.
    pub log: Vec<Listed>,
    /// The point, with its layers.
    pub point: Option<(PointName, Manifest, Vec<OldLayer>)>,
}

impl Newest {
    /// Finds it. A point that is no longer there when it is read is not the newest one any more: a prune removes
    /// a point only after there is a newer one, and a run takes its point back before it ends.
    pub async fn find(vault: &Arc<Inner>, tag: &str) -> Result<Newest> {
        loop {
            let mut log = Vec::new();
            let of_source = |listed: Listed| log.extend((listed.name.source == tag).then_some(listed));
            let history = points::list_with_log(vault, of_source).await?;
            let Some(name) = points::newest_of(&history, tag).cloned() else {
                return Ok(Newest { history, log, point: None });
            };
            match read(vault, &name).await {
                Ok((manifest, layers)) => return Ok(Newest { history, log, point: Some((name, manifest, layers)) }),
                Err(e) if e.kind() == ErrorKind::Missing => {
                    if vault.storage.stat(&name.to_string()).await?.is_some() {
                        return Err(e);
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }
}

async fn read(vault: &Arc<Inner>, name: &PointName) -> Result<(Manifest, Vec<OldLayer>)> {
    let manifest = points::read(vault, name).await?;
    let mut layers = Vec::with_capacity(manifest.layers.len());
    for reference in &manifest.layers {
        let layer: Layer = vault.objects()?.layer(&reference.object).await?;
        layers.push(OldLayer { reference: reference.clone(), layer: Arc::new(layer) });
    }
    Ok((manifest, layers))
}
