//! Asking work to stop, cleanly.

use model::{Error, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Notify;

/// A request to stop that all parts of a job share. Clones are the same request.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    asked: AtomicBool,
    wake: Notify,
}

impl Stop {
    /// A request that nobody has made yet.
    pub fn new() -> Self {
        Stop::default()
    }

    /// Asks to stop.
    pub fn ask(&self) {
        self.inner.asked.store(true, Ordering::SeqCst);
        self.inner.wake.notify_waiters();
    }

    /// Whether somebody asked.
    pub fn is_asked(&self) -> bool {
        self.inner.asked.load(Ordering::SeqCst)
    }

    /// Returns once somebody asks.
    pub async fn asked(&self) {
        // Listen first, then look: a request in between is seen by one of the two.
        let mut wake = std::pin::pin!(self.inner.wake.notified());
        wake.as_mut().enable();
        if !self.is_asked() {
            wake.await;
        }
    }

    /// The result of `work`, unless somebody asks first; then work is dropped where it stands.
    pub async fn or<T>(&self, work: impl Future<Output = model::Result<T>>) -> model::Result<T> {
        tokio::select! {
            biased;
            () = self.asked() => Err(interrupted()),
            result = work => result,
        }
    }
}

/// The error of work that was asked to stop.
pub(crate) fn interrupted() -> Error {
    Error::new(ErrorKind::Interrupted, "interrupted").hint("run the same command again")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn waiting_work_is_interrupted() {
        let stop = Stop::new();
        assert_eq!(stop.or(async { Ok(1) }).await.unwrap(), 1);
        let other = stop.clone();
        let waiting = tokio::spawn(async move { other.or(std::future::pending::<model::Result<()>>()).await });
        tokio::task::yield_now().await;
        stop.ask();
        assert_eq!(waiting.await.unwrap().unwrap_err().kind(), ErrorKind::Interrupted);
        assert_eq!(stop.or(async { Ok(1) }).await.unwrap_err().kind(), ErrorKind::Interrupted);
    }
}
