//! A source that is read no faster than the user wants.

use async_trait::async_trait;
use futures::StreamExt;
use model::{
    AttachmentStore, ChangeStream, Description, Engine, Error, Following, Part, Plan, Position, Result, ScanItem,
    ScanStream, Selection, Source, SourceState, Until,
};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

/// Reads another source at most at a rate, all of its parts together. Attachments are not counted.
pub struct Paced {
    inner: Arc<dyn Source>,
    pace: Arc<Pace>,
}

/// When the next bytes may come.
struct Pace {
    bytes_per_second: u64,
    next: Mutex<Instant>,
}

impl Paced {
    /// At most so many bytes of documents a second.
    pub fn new(inner: Arc<dyn Source>, bytes_per_second: u64) -> Paced {
        let pace = Pace { bytes_per_second: bytes_per_second.max(1), next: Mutex::new(Instant::now()) };
        Paced { inner, pace: Arc::new(pace) }
    }

    fn paced(&self, items: ScanStream) -> ScanStream {
        let pace = self.pace.clone();
        items
            .then(move |item| {
                let pace = pace.clone();
                async move {
                    if let Ok(ScanItem::Batch(batch)) = &item {
                        pace.wait_for(batch.raw_bytes()).await;
                    }
                    item
                }
            })
            .boxed()
    }
}

impl Pace {
    /// Waits until what came before has had its time, then takes the time of these bytes.
    async fn wait_for(&self, bytes: u64) {
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let at = {
            let mut next = self.next.lock().unwrap_or_else(|e| e.into_inner());
            // What was not used before is not made up for.
            let at = (*next).max(Instant::now());
            *next = at + takes;
            at
        };
        tokio::time::sleep_until(at).await;
    }
}

#[async_trait]
impl Source for Paced {
    async fn describe(&self) -> Result<Description> {
        self.inner.describe().await
    }

    async fn origin(&self) -> Result<Option<Engine>> {
        self.inner.origin().await
    }

    async fn plan(&self, selection: &Selection, last: Option<&SourceState>) -> Result<Plan> {
        self.inner.plan(selection, last).await
    }

    fn side_by_side(&self) -> usize {
        self.inner.side_by_side()
    }

    async fn read(&self, part: &Part, attachments: Arc<dyn AttachmentStore>) -> Result<ScanStream> {
        Ok(self.paced(self.inner.read(part, attachments).await?))
    }

    async fn read_together(&self, parts: &[Part], attachments: Arc<dyn AttachmentStore>) -> Result<Option<ScanStream>> {
        Ok(self.inner.read_together(parts, attachments).await?.map(|items| self.paced(items)))
    }

    async fn changes(&self, from: &Following, until: Until, store: Arc<dyn AttachmentStore>) -> Result<ChangeStream> {
        self.inner.changes(from, until, store).await
    }

    async fn durable(&self, upto: &Position) -> Result<()> {
        self.inner.durable(upto).await
    }
}

/// Bytes a second as people write them: `500kB`, `20MB`, `1.5 GB`, or a plain number of bytes.
pub fn parse_rate(text: &str) -> Result<u64> {
    let wrong =
        || Error::input(format!("--limit {text}: not a rate")).hint("write bytes a second as 500kB, 20MB or 1.5GB");
    let text = text.trim().trim_end_matches("/s");
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..end].parse().map_err(|_| wrong())?;
    let unit = match text[end..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        _ => return Err(wrong()),
    };
    let rate = number * unit;
    if (1.0..1e15).contains(&rate) { Ok(rate as u64) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_take_their_time_together() {
        let pace = Pace { bytes_per_second: 1000, next: Mutex::new(Instant::now()) };
        let began = Instant::now();
        for _ in 0..5 {
            pace.wait_for(500).await;
        }
        assert_eq!(began.elapsed().as_millis() / 10, 200, "the last 500 bytes come after 2 seconds");
        tokio::time::sleep(Duration::from_secs(60)).await;
        let later = Instant::now();
        pace.wait_for(1000).await;
        pace.wait_for(1000).await;
        assert_eq!(later.elapsed().as_millis() / 10, 100, "a pause is not made up for");
    }

    #[test]
    fn rates() {
        for (text, rate) in [("500", 500), ("1.5kB", 1500), ("20 MB/s", 20_000_000), ("1g", 1_000_000_000)] {
            assert_eq!(parse_rate(text).unwrap(), rate);
        }
        for text in ["", "fast", "0", "10 parsecs", "-1MB"] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
    }
}
