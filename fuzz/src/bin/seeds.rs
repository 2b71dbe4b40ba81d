//! Writes inputs to begin with into `corpus/`, taken from a small vault.

use futures::TryStreamExt;
use model::{
    BatchBuilder, ChangeBatch, CollectionId, CollectionInfo, Consistency, Description, Encoding, Engine, EngineTime,
    FeedKind, Kind, Position, Result, Seams,
};
use rewound_fuzz::{BETWEEN, byte_of, writer_key};
use std::sync::Arc;
use vault::storage::{MemoryStorage, Storage};
use vault::{Access, BackupOptions, Flush, PointDetails, Protection, Vault};

#[tokio::main]
async fn main() -> Result<()> {
    let seams = Seams::seeded(1);
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(seams.clock.clone()));
    let access = Access { identities: Vec::new(), config: None, seams };
    let vault = Vault::init(storage.clone(), Protection::Plain, access).await?;
    for full in [true, false] {
        back_up(&vault, full).await?;
    }
    for encoding in [Encoding::Json, Encoding::Bson, Encoding::Bin] {
        append(&vault, encoding).await?;
    }
    let names: Vec<String> = storage.list("").await?.map_ok(|e| e.name).try_collect().await?;
    for (i, name) in names.iter().enumerate() {
        let bytes = storage.read(name).await?;
        let encoding = ["json", "bson", "bin"].iter().position(|e| name.contains(&format!(".{e}"))).unwrap_or(0) as u8;
        let folder = name.split('/').next().unwrap_or_default();
        match folder {
            "segments" | "hashes" => {
                keep("segment", i, &[&[encoding | 0x80], &bytes[..]]);
                keep("segment", i + 1000, &[&[encoding], &opened(&bytes)]);
            }
            "filters" => keep("filter", i, &[&[0], &[0; 8], &bytes[12..]]),
            "vault.json" => {
                keep("manifest", i, &[&[0], &bytes[..]]);
                keep("manifest", i + 1000, &[&[2], line(&with_our_key(&bytes))]);
            }
            "history" if name.contains("/log/") => {
                keep("log", i, &[&[encoding | 0x80], &bytes[..]]);
                keep("log", i + 1000, &[&[encoding], &log_input(encoding, &bytes)]);
            }
            "history" => {
                keep("manifest", i, &[&[1], &bytes[..]]);
                let signed = zstd::decode_all(&bytes[..]).unwrap_or_default();
                keep("manifest", i + 1000, &[&[3], line(&signed)]);
            }
            _ => {}
        }
    }
    let texts: [&[u8]; 8] = [
        br#"{"_id":"a","n":[1,-2.5e+3,true,null],"s":"\u00e9\n\"","o":{}}"#,
        b"[ {\"id\":1},\n {\"id\":2} , \"x\"]\n",
        b"{\"a\":1}\n\n 2 \r\nx\n\"3\"",
        b"\xEF\xBB\xBF[]",
        b"\xff\xfe{\0}\0",
        b"[[[[[[[[[[]]]]]]]]]]",
        "{\"\u{e9}\":\"\u{1F600}\"}".as_bytes(),
        b"[1,\n2 3]",
    ];
    texts.iter().enumerate().for_each(|(i, text)| keep("folder", i, &[&[i as u8], text]));
    let noted = format!("signed with {}", writer_key());
    println!("{} objects, {noted}", names.len());
    Ok(())
}

fn keep(target: &str, number: usize, parts: &[&[u8]]) {
    let folder = std::path::Path::new("corpus").join(target);
    std::fs::create_dir_all(&folder).expect("the folder can be made");
    std::fs::write(folder.join(format!("seed-{number}")), parts.concat()).expect("the seed can be written");
}

/// The frames of a segment as the targets take them.
fn opened(segment: &[u8]) -> Vec<u8> {
    frames_in(segment).join(BETWEEN)
}

fn frames_in(segment: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut rest = segment;
    while rest.starts_with(&[0x28, 0xB5, 0x2F, 0xFD]) {
        let Ok(length) = zstd::zstd_safe::find_frame_compressed_size(rest) else { break };
        frames.push(zstd::decode_all(&rest[..length]).unwrap_or_default());
        rest = &rest[length..];
    }
    frames
}

/// The JSON of a log object's header, then its other frames.
fn log_input(encoding: u8, segment: &[u8]) -> Vec<u8> {
    let mut frames = frames_in(segment);
    let head = &frames[0];
    let start = if encoding == 1 {
        let first = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        first + 4 + 1 + 8 + 4
    } else {
        head.iter().position(|b| *b == b'\n').map_or(0, |n| n + 1)
    };
    frames[0] = line(&head[start..]).to_vec();
    frames.join(BETWEEN)
}

fn line(signed: &[u8]) -> &[u8] {
    signed.split(|b| *b == b'\n').next().unwrap_or_default()
}

fn with_our_key(file: &[u8]) -> Vec<u8> {
    let mut json: serde_json::Value = serde_json::from_slice(line(file)).unwrap_or_default();
    json["writer"] = writer_key().into();
    serde_json::to_vec(&json).unwrap_or_default()
}

fn info(name: &str) -> CollectionInfo {
    CollectionInfo {
        id: CollectionId::new(name),
        name: name.into(),
        options: serde_json::json!({"o": 1}),
        ordered: false,
    }
}

async fn back_up(vault: &Vault, full: bool) -> Result<()> {
    let collections = vec![info("json"), info("bson"), info("bin")];
    let description = Description {
        engine: Engine::new("test"),
        identity: "one".into(),
        name: "one".into(),
        version: "1".into(),
        feed: FeedKind::LatestState,
        collections: collections.clone(),
        losses: Vec::new(),
    };
    let run = vault.start_run(&description, BackupOptions { full, ..BackupOptions::default() }).await?;
    let encodings = [Encoding::Json, Encoding::Bson, Encoding::Bin];
    for (info, encoding) in collections.iter().zip(encodings) {
        run.begin(info).await?;
        let mut documents = BatchBuilder::new(info.id.clone(), Kind::Document, encoding);
        let key: &[u8] = if encoding == Encoding::Bin { b"\xff\0" } else { b"k" };
        documents.push(key, b"{\"a\":1}");
        documents.push(b"other", if full { b"{\"a\":22}" } else { b"{\"a\":3}" });
        run.write(documents.take()).await?;
        let content = futures::stream::iter([Ok(bytes::Bytes::from_static(b"content"))]);
        let stored = run.attachments().put(Box::pin(content)).await?;
        let mut attachments = BatchBuilder::new(info.id.clone(), Kind::Attachment, Encoding::Json);
        attachments.push_attachment(b"k/a", b"{\"document\":\"k\"}", stored);
        run.write(attachments.take()).await?;
        run.end(&info.id).await?;
    }
    let details = PointDetails {
        time: EngineTime::wall(1_760_000_000_000),
        consistency: Consistency::OneTime,
        position: Some(Position("p".into())),
        gap: None,
        skipped: Vec::new(),
    };
    run.commit(details).await.map(drop)
}

/// A chain of two flushes that are rolled up, and a heartbeat, of a source that speaks this encoding.
async fn append(vault: &Vault, encoding: Encoding) -> Result<()> {
    let description = Description {
        engine: Engine::new("test"),
        identity: format!("log {}", byte_of(encoding)),
        name: "log".into(),
        version: "1".into(),
        feed: FeedKind::EveryChange,
        collections: Vec::new(),
        losses: Vec::new(),
    };
    let run = vault.start_run(&description, BackupOptions::default()).await?;
    run.follow_from(&Position("a".into()), EngineTime::wall(3)).await?;
    for time in [5, 6] {
        let time = EngineTime::wall(time);
        let changes = [Kind::Document, Kind::Tombstone, Kind::Patch].map(|kind| {
            let mut batch = BatchBuilder::new(CollectionId::new("c"), kind, encoding);
            batch.push(b"k", b"{}");
            ChangeBatch { batch: batch.take(), times: vec![time] }
        });
        let catalog = vec![(CollectionId::new("c"), Some(info("c")), time), (CollectionId::new("d"), None, time)];
        run.append(Flush { to: Position("b".into()), time, changes: changes.into(), catalog }).await?;
    }
    run.roll_up().await;
    let (to, time) = (Position("b".into()), EngineTime::wall(7));
    run.append(Flush { to, time, changes: Vec::new(), catalog: Vec::new() }).await?;
    run.abandon().await
}
