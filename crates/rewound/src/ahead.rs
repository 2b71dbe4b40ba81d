//! Parts of a plan, opened before they are needed, so that the source never waits for the vault.

use model::{AttachmentStore, Part, Result, ScanStream, Source};
use std::collections::VecDeque;
use std::sync::Arc;

/// Opens parts in their order, some of them ahead.
pub(crate) struct Ahead {
    waiting: VecDeque<Part>,
    open: VecDeque<Result<ScanStream>>,
    /// Parts that are open at a time.
    width: usize,
}

impl Ahead {
    /// Nothing is opened yet.
    pub fn new(parts: impl IntoIterator<Item = Part>, width: usize) -> Ahead {
        Ahead { waiting: parts.into_iter().collect(), open: VecDeque::new(), width: width.max(1) }
    }

    /// How many parts are best read side by side.
    pub fn width(&self) -> usize {
        self.width
    }

    /// What the next part holds; others after it are opened, too.
    pub async fn next(
        &mut self,
        source: &dyn Source,
        attachments: impl Fn() -> Result<Arc<dyn AttachmentStore>>,
    ) -> Result<Option<ScanStream>> {
        while self.open.len() < self.width
            && let Some(part) = self.waiting.pop_front()
        {
            let opened = source.read(&part, attachments()?).await;
            self.open.push_back(opened);
        }
        self.open.pop_front().transpose()
    }

    /// Leaves parts out that are not needed any more.
    pub fn skip(&mut self, parts: usize) {
        for _ in 0..parts {
            if self.open.pop_front().is_none() {
                self.waiting.pop_front();
            }
        }
    }
}
