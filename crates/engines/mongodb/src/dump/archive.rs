//! Reading archives of mongodump (mongo-tools, `common/archive/spec.md`).
//!
//! An archive is a magic number, a block with a header and the metadata of all collections, then
//! blocks of documents, each of one collection, mixed as they came. A block is a document that says
//! whose it is, documents, and four bytes 0xFF. The last block of each collection has no documents,
//! but the CRC-64 of all of them.

use super::crc::Crc64;
use super::window::{Flaw, Next, Stop, Window};
use bson::{RawBsonRef, RawDocument};
use std::collections::HashMap;
use std::io::{self, Read};

const MAGIC: [u8; 4] = 0x8199_E26D_u32.to_le_bytes();
/// The only version of the format that there is.
const VERSION: &str = "0.1";
/// The bucket collection of a time series.
const BUCKETS: &str = "system.buckets.";

/// Database and collection.
pub type Namespace = (String, String);

/// How an archive begins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prelude {
    /// The version of the server that was dumped.
    pub server_version: String,
    /// The collections.
    pub collections: Vec<Listed>,
}

/// A collection, as the prelude has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Database and collection.
    pub namespace: Namespace,
    /// What a metadata file would hold; empty where there is none.
    pub metadata: String,
    /// Whether it is a time series.
    pub is_series: bool,
}

/// What an archive holds of one collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Where its documents stand in the archive's content: from and to.
    pub ranges: Vec<(u64, u64)>,
    /// How many there are.
    pub documents: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What is wrong with it.
    pub flaw: Option<String>,
    crc: Crc64,
    has_ended: bool,
}

/// A whole archive, checked.
#[derive(Debug, Default)]
pub struct Index {
    /// How it begins.
    pub prelude: Prelude,
    /// What it holds, by the names in the prelude.
    pub stored: HashMap<Namespace, Stored>,
    /// Where it is damaged: nothing behind that was read.
    pub flaw: Option<Flaw>,
}

impl Index {
    /// What there is of a collection of the prelude.
    pub fn of(&self, listed: &Listed) -> Option<&Stored> {
        self.stored.get(&listed.namespace)
    }
}

/// Reads the beginning.
pub fn prelude(reader: impl Read) -> Result<Prelude, Stop> {
    read_prelude(&mut Window::new(reader))
}

/// Reads a whole archive and checks all of it: framing, structure of documents, checksums, that each
/// collection is complete. Damage is told in the index; an error means that reading failed.
pub fn index(reader: impl Read) -> io::Result<Index> {
    let mut window = Window::new(reader);
    let mut index = Index::default();
    match read_all(&mut window, &mut index) {
        Ok(()) => {}
        Err(Stop::Flaw(flaw)) => index.flaw = Some(flaw),
        Err(Stop::Io(e)) => return Err(e),
    }
    for stored in index.stored.values_mut().filter(|stored| !stored.has_ended) {
        stored.flaw.get_or_insert_with(|| "its end is missing in the archive".into());
    }
    Ok(index)
}

fn read_all<R: Read>(window: &mut Window<R>, index: &mut Index) -> Result<(), Stop> {
    index.prelude = read_prelude(window)?;
    // Where the documents of a time series are is known only when they come: servers from 8.3 on
    // keep them under its own name.
    let mut known: HashMap<Namespace, Namespace> = HashMap::new();
    for listed in &index.prelude.collections {
        let (database, name) = &listed.namespace;
        known.insert(listed.namespace.clone(), listed.namespace.clone());
        if listed.is_series {
            known.insert((database.clone(), format!("{BUCKETS}{name}")), listed.namespace.clone());
        }
        let empty =
            Stored { ranges: Vec::new(), documents: 0, bytes: 0, flaw: None, crc: Crc64::new(), has_ended: false };
        index.stored.insert(listed.namespace.clone(), empty);
    }
    loop {
        let at = window.position();
        let header = match window.next()? {
            Next::End => return Ok(()),
            Next::Document(document) => header(document),
            Next::Terminator => Err("a block begins with its end".into()),
        };
        let flaw = |why: String| Stop::Flaw(Flaw { at, why });
        let header = header.map_err(flaw)?;
        let shown = format!("{}.{}", header.namespace.0, header.namespace.1);
        let stored = known.get(&header.namespace).and_then(|name| index.stored.get_mut(name));
        let stored = stored.ok_or_else(|| flaw(format!("{shown} is not in the list of collections")))?;
        if stored.has_ended {
            return Err(flaw(format!("{shown} goes on behind its end")));
        }
        let documents = block(window, stored)?;
        if header.is_end {
            if documents > 0 {
                return Err(flaw(format!("there are documents in the end of {shown}")));
            }
            stored.has_ended = true;
            if stored.crc.sum() != header.crc {
                stored.flaw = Some("its documents do not have the checksum that the archive gives".into());
            }
        }
    }
}

/// Reads the documents of a block to its end.
fn block<R: Read>(window: &mut Window<R>, stored: &mut Stored) -> Result<u64, Stop> {
    let mut documents = 0;
    loop {
        let from = window.position();
        match window.next()? {
            Next::Document(document) => {
                stored.crc.update(document);
                let length = document.len() as u64;
                match stored.ranges.last_mut().filter(|(_, end)| *end == from) {
                    Some((_, end)) => *end += length,
                    None => stored.ranges.push((from, from + length)),
                }
                stored.documents += 1;
                stored.bytes += length;
                documents += 1;
            }
            Next::Terminator => return Ok(documents),
            Next::End => return Err(window.flaw(0, "it ends in the middle of a block".into())),
        }
    }
}

fn read_prelude<R: Read>(window: &mut Window<R>) -> Result<Prelude, Stop> {
    let magic = window.bytes(4)?.map(<[u8]>::to_vec);
    if magic.as_deref() != Some(&MAGIC[..]) {
        return Err(window.flaw(0, "it does not begin as an archive of mongodump does".into()));
    }
    let mut prelude = Prelude::default();
    let mut is_first = true;
    loop {
        let at = window.position();
        let flaw = |why: String| Stop::Flaw(Flaw { at, why });
        match window.next()? {
            Next::Document(document) if is_first => {
                let fields = Fields::of(document).map_err(flaw)?;
                let version = fields.text("version").map_err(flaw)?;
                if version != VERSION {
                    return Err(flaw(format!("this is version {version} of the format, and only {VERSION} is known")));
                }
                prelude.server_version = fields.text("server_version").map_err(flaw)?.to_owned();
                is_first = false;
            }
            Next::Document(document) => {
                let fields = Fields::of(document).map_err(flaw)?;
                let text = |name| fields.text(name).map(str::to_owned).map_err(flaw);
                prelude.collections.push(Listed {
                    namespace: (text("db")?, text("collection")?),
                    metadata: text("metadata")?,
                    is_series: text("type")? == "timeseries",
                });
            }
            Next::Terminator if !is_first => return Ok(prelude),
            _ => return Err(flaw("the list of collections is cut off".into())),
        }
    }
}

/// Whose documents follow, or have ended.
struct Header {
    namespace: Namespace,
    is_end: bool,
    crc: u64,
}

fn header(document: &[u8]) -> Result<Header, String> {
    let fields = Fields::of(document)?;
    let namespace = (fields.text("db")?.to_owned(), fields.text("collection")?.to_owned());
    match (fields.0.get("EOF"), fields.0.get("CRC")) {
        // Only the end of a collection has a checksum.
        (Ok(Some(RawBsonRef::Boolean(is_end))), Ok(Some(RawBsonRef::Int64(crc)))) if is_end || crc == 0 => {
            Ok(Header { namespace, is_end, crc: crc as u64 })
        }
        _ => Err("this is no header of a block".into()),
    }
}

struct Fields<'a>(&'a RawDocument);

impl Fields<'_> {
    fn of(document: &[u8]) -> Result<Fields<'_>, String> {
        RawDocument::from_bytes(document).map(Fields).map_err(|e| format!("this is no BSON ({e})"))
    }

    fn text(&self, name: &str) -> Result<&str, String> {
        self.0.get_str(name).map_err(|_| format!("a header has no {name}"))
    }
}
