//! A small model of a source, for tests of the vault: states in memory, backed up and read back.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

pub mod feed;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use model::{
    BatchBuilder, CollectionId, CollectionInfo, Consistency, Description, Encoding, Engine, EngineTime, FeedKind,
    FixedClock, Kind, Result, Seams, SeededRandom, Selection,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use vault::storage::Storage;
use vault::{
    Access, BackupOptions, Config, Identity, Manifest, Point, PointDetails, PointName, Protection, Vault, WriteOutcome,
};

/// Documents of a collection in order, and attachments: (key, content).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Model {
    pub ordered: bool,
    pub documents: Vec<(Vec<u8>, Vec<u8>)>,
    pub attachments: BTreeMap<String, Vec<u8>>,
}

/// All collections by name.
pub type World = BTreeMap<String, Model>;

pub fn info(name: &str, ordered: bool) -> CollectionInfo {
    CollectionInfo { id: CollectionId::new(name), name: name.into(), options: serde_json::json!({"o": name}), ordered }
}

pub fn description(identity: &str, world: &World) -> Description {
    Description {
        engine: Engine::new("test"),
        identity: identity.into(),
        name: identity.into(),
        version: "1".into(),
        feed: FeedKind::LatestState,
        collections: world.iter().map(|(n, m)| info(n, m.ordered)).collect(),
        losses: Vec::new(),
    }
}

pub struct Keys {
    pub identity: Identity,
    pub config: Option<Config>,
    pub seams: Seams,
    pub clock: Arc<FixedClock>,
}

impl Keys {
    pub fn new(seed: u64) -> Self {
        let clock = Arc::new(FixedClock::at(1_760_000_000_000));
        let seams = Seams { clock: clock.clone(), random: Arc::new(SeededRandom::new(seed)) };
        Keys { identity: Identity::generate(), config: None, seams, clock }
    }

    pub fn reader(&self) -> Access {
        Access { identities: vec![self.identity.clone()], config: self.config.clone(), seams: self.seams.clone() }
    }
}

pub async fn init(storage: Arc<dyn Storage>, keys: &Keys, plain: bool) -> Result<Vault> {
    let protection = if plain { Protection::Plain } else { Protection::Recipients(vec![keys.identity.recipient()]) };
    Vault::init(storage, protection, keys.reader()).await
}

/// Backs a world up; small batches, so that batches and frames do not fall together.
pub async fn backup(
    vault: &Vault,
    source: &str,
    world: &World,
    time: u64,
    options: BackupOptions,
) -> Result<(PointName, Manifest)> {
    let description = description(source, world);
    let run = vault.start_run(&description, options).await?;
    for (name, model) in world {
        let info = info(name, model.ordered);
        run.begin(&info).await?;
        let mut tries = 0;
        'again: loop {
            tries += 1;
            assert!(tries < 3, "read again for ever");
            for chunk in model.documents.chunks(7) {
                let mut builder = BatchBuilder::new(info.id.clone(), Kind::Document, Encoding::Json);
                chunk.iter().for_each(|(k, b)| builder.push(k, b));
                if run.write(builder.take()).await? == WriteOutcome::ReadAgain {
                    continue 'again;
                }
            }
            break;
        }
        for (key, content) in &model.attachments {
            let pieces: Vec<_> = content.chunks(100_000).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
            let reference = run.attachments().put(stream::iter(pieces).boxed()).await?;
            let mut builder = BatchBuilder::new(info.id.clone(), Kind::Attachment, Encoding::Json);
            builder.push_attachment(key.as_bytes(), b"{\"document\":\"d\"}", reference);
            run.write(builder.take()).await?;
        }
        run.end(&info.id).await?;
    }
    run.commit(PointDetails {
        time: EngineTime::wall(time as i64),
        consistency: Consistency::OneTime,
        position: None,
        gap: None,
        skipped: Vec::new(),
    })
    .await
}

/// What a point restores, checked against its digests.
pub async fn restore(vault: &Vault, point: &Point) -> Result<World> {
    let state = vault.resolve(point, &Selection::default(), None).await?;
    let mut world = World::new();
    for collection in state.collections() {
        let mut model = Model { ordered: collection.info.ordered, ..Model::default() };
        let mut digest = vault::Digest::default();
        let mut batches = state.read(collection);
        while let Some(batch) = batches.try_next().await? {
            for i in 0..batch.len() {
                digest.add(vault.hash_keys()?.document(&batch, i));
                if batch.kind == Kind::Attachment {
                    let content = state.attachments().open(&batch.attachments[i]).await?;
                    let pieces: Vec<Bytes> = content.try_collect().await?;
                    let key = String::from_utf8(batch.key_of(i).to_vec()).unwrap();
                    assert!(model.attachments.insert(key, pieces.concat()).is_none(), "an attachment came twice");
                } else {
                    model.documents.push((batch.key_of(i).to_vec(), batch.body_of(i).to_vec()));
                }
            }
        }
        if digest != collection.digest {
            return Err(model::Error::corrupt(format!("digest of {} differs", collection.info.name)));
        }
        world.insert(collection.info.name.clone(), model);
    }
    Ok(world)
}

/// Worlds are equal if their documents are, in order where order counts.
pub fn same(a: &World, b: &World) -> bool {
    let normal = |w: &World| {
        let mut w = w.clone();
        w.values_mut().filter(|m| !m.ordered).for_each(|m| m.documents.sort());
        w
    };
    normal(a) == normal(b)
}

pub async fn point(vault: &Vault, name: &PointName) -> Point {
    let points = vault.points().await.unwrap();
    points.points.into_iter().find(|p| p.name == *name).expect("the point is listed")
}
