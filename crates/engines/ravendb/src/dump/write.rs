//! Writing the dump format.

use bytes::Bytes;
use flate2::write::GzEncoder;
use model::{Error, Result};
use std::io::Write;

/// Bytes that are gathered before they are handed on.
const PIECE: usize = 128 << 10;

/// Compresses what is written, or not.
pub(crate) enum Compressor {
    None(Vec<u8>),
    Gzip(Box<GzEncoder<Vec<u8>>>),
}

impl Compressor {
    pub fn none() -> Compressor {
        Compressor::None(Vec::new())
    }

    pub fn gzip() -> Compressor {
        Compressor::Gzip(Box::new(GzEncoder::new(Vec::new(), flate2::Compression::fast())))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Compressor::None(out) => out.write_all(bytes),
            Compressor::Gzip(gzip) => gzip.write_all(bytes),
        }
        .map_err(failed)
    }

    fn out(&mut self) -> &mut Vec<u8> {
        match self {
            Compressor::None(out) => out,
            Compressor::Gzip(gzip) => gzip.get_mut(),
        }
    }

    fn finish(self) -> Result<Vec<u8>> {
        match self {
            Compressor::None(out) => Ok(out),
            Compressor::Gzip(gzip) => gzip.finish().map_err(failed),
        }
    }
}

fn failed(e: std::io::Error) -> Error {
    Error::io("compressing a dump", e)
}

/// Writes a dump, section by section.
pub(crate) struct Writer {
    out: Compressor,
    section: Option<String>,
    /// Whether the section has an item already.
    has_items: bool,
}

impl Writer {
    /// A dump as a server of this build would write it.
    pub fn new(mut out: Compressor, build: u64) -> Result<Writer> {
        out.write(format!("{{\"BuildVersion\":{build}").as_bytes())?;
        Ok(Writer { out, section: None, has_items: false })
    }

    /// A section that is one value.
    pub fn value(&mut self, section: &str, body: &[u8]) -> Result<()> {
        self.close()?;
        self.name(section)?;
        self.out.write(body)
    }

    /// An element of a section, which is opened, again, if it is not open.
    pub fn item(&mut self, section: &str, body: &[u8]) -> Result<()> {
        if self.section.as_deref() != Some(section) {
            self.close()?;
            self.name(section)?;
            self.out.write(b"[")?;
            self.section = Some(section.to_owned());
            self.has_items = false;
        }
        if self.has_items {
            self.out.write(b",")?;
        }
        self.has_items = true;
        self.out.write(body)
    }

    /// Raw bytes after the last item.
    pub fn blob(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write(bytes)
    }

    /// What is ready to be handed on.
    pub fn take(&mut self) -> Option<Bytes> {
        let out = self.out.out();
        (out.len() >= PIECE).then(|| Bytes::from(std::mem::take(out)))
    }

    /// Ends the dump; gives its last bytes.
    pub fn finish(mut self) -> Result<Bytes> {
        self.close()?;
        self.out.write(b"}")?;
        self.out.finish().map(Bytes::from)
    }

    fn name(&mut self, section: &str) -> Result<()> {
        let name = serde_json::to_string(section).map_err(|e| Error::bug("a section's name").caused_by(e))?;
        self.out.write(format!(",{name}:").as_bytes())
    }

    fn close(&mut self) -> Result<()> {
        match self.section.take() {
            Some(_) => self.out.write(b"]"),
            None => Ok(()),
        }
    }
}

/// What stands before the content of an attachment.
pub(crate) fn attachment_head(hash: &str, size: u64, tag: &str) -> Result<String> {
    #[derive(serde::Serialize)]
    struct Head<'a> {
        #[serde(rename = "@metadata")]
        metadata: Export,
        #[serde(rename = "Hash")]
        hash: &'a str,
        #[serde(rename = "Size")]
        size: u64,
        #[serde(rename = "Tag")]
        tag: &'a str,
    }
    #[derive(serde::Serialize)]
    struct Export {
        #[serde(rename = "@export-type")]
        kind: &'static str,
    }
    let head = Head { metadata: Export { kind: "Attachment" }, hash, size, tag };
    serde_json::to_string(&head).map_err(|e| Error::bug("the head of an attachment").caused_by(e))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::dump::decode::decode_all;
    use crate::dump::parser::{Event, Parser};

    #[test]
    fn what_is_written_can_be_read() {
        for compressor in [Compressor::none(), Compressor::gzip()] {
            let mut writer = Writer::new(compressor, 54106).unwrap();
            writer.item("Docs", &br#"{"@metadata":{"@id":"a"}}"#[..]).unwrap();
            writer.item("Docs", attachment_head("h", 2, "t").unwrap().as_bytes()).unwrap();
            writer.blob(b"]}").unwrap();
            writer.item("Indexes", b"{}").unwrap();
            writer.item("Docs", b"{}").unwrap();
            writer.value("DatabaseRecord", b"{}").unwrap();
            let mut parser = Parser::default();
            parser.push(&decode_all(&writer.finish().unwrap()).unwrap());
            let mut all = Vec::new();
            while let Some(event) = parser.event().unwrap() {
                all.push(event);
            }
            parser.finish().unwrap();
            assert_eq!(all.len(), 8, "{all:?}");
            assert_eq!(all[3], Event::Blob(Bytes::from_static(b"]}")));
        }
    }
}
