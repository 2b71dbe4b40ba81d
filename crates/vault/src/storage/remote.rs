//! A vault in object storage, through opendal.

use super::names::{check_name, check_prefix};
use super::{Created, Entry, Storage};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use model::{Error, ErrorKind, Result};
use opendal::layers::{ConcurrentLimitLayer, RetryEvent, RetryLayer, TimeoutLayer};
use opendal::{EntryMode, Metadata, Operator};
use std::ops::Range;
use std::time::Duration;

/// Requests at a time. More gain little and make servers throttle.
const REQUESTS: usize = 16;

/// The longest time one object of about 24 MiB may take, at 1 Mbit/s.
const TRANSFER: Duration = Duration::from_secs(200);

/// The longest time for an answer without content.
const ANSWER: Duration = Duration::from_secs(30);

/// Object storage. Its writes are durable once they are answered.
#[derive(Debug, Clone)]
pub struct OpendalStorage {
    operator: Operator,
    /// Without the limit on requests: a listing holds its place until it is read to the end, and
    /// whoever reads it may want to make requests meanwhile.
    lister: Operator,
    location: String,
}

impl OpendalStorage {
    /// The storage that this operator reaches. Timeouts, retries and a limit on requests are
    /// added here. `location` is for people and must hold no secrets.
    pub fn new(operator: Operator, location: impl Into<String>) -> Self {
        // In this order each try has its own time limit, and waiting for one's turn has none.
        let lister =
            operator.layer(TimeoutLayer::new().with_timeout(ANSWER).with_io_timeout(TRANSFER)).layer(retries());
        let operator = lister.clone().layer(ConcurrentLimitLayer::new(REQUESTS));
        OpendalStorage { operator, lister, location: location.into() }
    }

    fn error(&self, doing: &str, name: &str, cause: opendal::Error) -> Error {
        error(format!("{doing} {name} in {}", self.location), cause)
    }

    /// Reads a range with one request. opendal takes it as damage when a range ends beyond the
    /// object, so no more is asked of its stream than the object has.
    async fn read_part(&self, name: &str, range: Range<u64>) -> opendal::Result<Bytes> {
        let mut chunks = self.operator.reader(name).await?.into_stream(range.clone()).await?;
        let size = chunks.metadata().await?.content_length();
        let expected = range.end.min(size).saturating_sub(range.start) as usize;
        let mut bytes = BytesMut::with_capacity(expected);
        while bytes.len() < expected
            && let Some(chunk) = chunks.try_next().await?
        {
            bytes.extend(chunk);
        }
        Ok(bytes.freeze())
    }
}

fn retries() -> RetryLayer<fn(RetryEvent<'_>)> {
    let tell: fn(RetryEvent<'_>) = |event| {
        let (operation, wait) = (event.op, event.retry_after.as_secs_f32());
        tracing::warn!("storage: {operation} failed ({}), trying again in {wait:.1} s", event.err.message());
    };
    // A quarter of a minute in all, and more where the tries themselves take their time. Callers
    // that can wait longer try again.
    RetryLayer::new()
        .with_jitter()
        .with_min_delay(Duration::from_millis(500))
        .with_factor(2.0)
        .with_max_times(5)
        .with_notify(tell)
}

#[async_trait]
impl Storage for OpendalStorage {
    fn location(&self) -> String {
        self.location.clone()
    }

    fn is_local(&self) -> bool {
        false
    }

    async fn create(&self, name: &str, bytes: Bytes) -> Result<Created> {
        check_name(name)?;
        if !self.operator.info().capability().write_with_if_not_exists {
            if self.stat(name).await?.is_some() {
                return Ok(Created::Existed);
            }
            return self.replace(name, bytes).await.map(|()| Created::New);
        }
        match self.operator.write_with(name, bytes).if_not_exists(true).await {
            Ok(_) => Ok(Created::New),
            Err(e) if e.kind() == opendal::ErrorKind::ConditionNotMatch => Ok(Created::Existed),
            Err(e) => Err(self.error("writing", name, e)),
        }
    }

    async fn replace(&self, name: &str, bytes: Bytes) -> Result<()> {
        check_name(name)?;
        self.operator.write(name, bytes).await.map_err(|e| self.error("writing", name, e))?;
        Ok(())
    }

    async fn sync(&self) -> Result<()> {
        Ok(())
    }

    async fn read(&self, name: &str) -> Result<Bytes> {
        check_name(name)?;
        Ok(self.operator.read(name).await.map_err(|e| self.error("reading", name, e))?.to_bytes())
    }

    async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Bytes> {
        check_name(name)?;
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        match self.read_part(name, range.start..range.end.min(i64::MAX as u64)).await {
            Ok(bytes) => Ok(bytes),
            // It begins at or after the end of the object.
            Err(e) if e.kind() == opendal::ErrorKind::RangeNotSatisfied => Ok(Bytes::new()),
            Err(e) => Err(self.error("reading", name, e)),
        }
    }

    async fn stat(&self, name: &str) -> Result<Option<Entry>> {
        check_name(name)?;
        match self.operator.stat(name).await {
            Ok(found) => Ok(Some(entry(name, &found))),
            Err(e) if e.kind() == opendal::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.error("looking at", name, e)),
        }
    }

    async fn list(&self, prefix: &str) -> Result<BoxStream<'static, Result<Entry>>> {
        check_prefix(prefix)?;
        let doing = format!("listing {prefix} in {}", self.location);
        let wanted = prefix.to_owned();
        let found = self.lister.lister_with(prefix).recursive(true).await.map_err(|e| error(doing.clone(), e))?;
        Ok(found
            .map_err(move |e| error(doing.clone(), e))
            .try_filter_map(move |found| {
                let is_object = found.metadata().mode() != EntryMode::DIR
                    && found.path().starts_with(&wanted)
                    && check_name(found.path()).is_ok();
                std::future::ready(Ok(is_object.then(|| entry(found.path(), found.metadata()))))
            })
            .boxed())
    }

    async fn delete(&self, name: &str) -> Result<()> {
        check_name(name)?;
        self.operator.delete(name).await.map_err(|e| self.error("deleting", name, e))
    }

    async fn free_space(&self) -> Result<Option<u64>> {
        Ok(None)
    }
}

fn entry(name: &str, found: &Metadata) -> Entry {
    let modified = found.last_modified().map_or(0, |t| t.into_inner().as_millisecond());
    Entry { name: name.to_owned(), size: found.content_length(), modified }
}

/// What the storage's answer means for the caller.
pub(super) fn error(doing: String, cause: opendal::Error) -> Error {
    use opendal::ErrorKind as Kind;
    let said = said(&cause);
    let is = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let (kind, hint) = if is(&["ExpiredToken", "TokenRefreshRequired", "token included in the request is expired"]) {
        (ErrorKind::Credentials, "the session has expired: get new credentials and run the command again")
    } else if is(&["RequestTimeTooSkewed"]) {
        (ErrorKind::Credentials, "this machine's clock is wrong: set it")
    } else if is(&["NoSuchBucket"]) {
        (ErrorKind::Input, "there is no such bucket: check its name, region and endpoint, or create it")
    } else if is(&["InvalidObjectState"]) {
        (ErrorKind::Unsupported, "the object is in an archive class: restore it to a readable class first")
    } else if is(&["StorageFull", "QuotaExceeded", "InsufficientStorage"]) {
        (ErrorKind::Full, "free some space or choose another target, then run the command again")
    } else if is(&["credential"]) && !is(&["S3Error"]) {
        // Nothing was sent: the words are those of the signing library.
        (ErrorKind::Credentials, NO_KEYS)
    } else {
        match cause.kind() {
            Kind::NotFound => return Error::missing(format!("{doing}: there is no such object")),
            Kind::PermissionDenied => {
                (ErrorKind::Credentials, "check the keys, and that they may list, read, write and delete there")
            }
            Kind::ConfigInvalid => (ErrorKind::Input, "check the URL and the AWS_… variables"),
            Kind::Unsupported => (ErrorKind::Unsupported, "choose another storage"),
            Kind::RateLimited | Kind::Conflict => (ErrorKind::Retry, "run the command again later"),
            // A refusal that says why, and not that it will pass.
            Kind::Unexpected if is(&["S3Error"]) && !is(&PASSING) => {
                (ErrorKind::Input, "check the URL, and what the server's log says")
            }
            _ => (ErrorKind::Retry, "check that the endpoint is right and can be reached"),
        }
    };
    Error::new(kind, format!("{doing}: {said}")).hint(hint).caused_by(cause)
}

/// S3's words for its own troubles. opendal knows them too, but no longer tells once it has given
/// up retrying.
const PASSING: [&str; 5] = ["InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown", "code: \"\""];

const NO_KEYS: &str = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE with ~/.aws/credentials";

/// The message with those of its causes, innermost last: opendal's own says only what it did.
fn said(cause: &opendal::Error) -> String {
    let mut said = cause.message().to_owned();
    let mut next = std::error::Error::source(cause);
    while let Some(inner) = next {
        let text = inner.to_string();
        if !said.contains(&text) {
            said = format!("{said}: {text}");
        }
        next = inner.source();
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind_of(cause: opendal::Error) -> ErrorKind {
        error("reading x".to_owned(), cause).kind()
    }

    fn answer(kind: opendal::ErrorKind, code: &str) -> opendal::Error {
        opendal::Error::new(kind, format!("S3Error {{ code: \"{code}\", message: \"…\" }}"))
    }

    #[test]
    fn answers_tell_the_caller_what_to_do() {
        use opendal::ErrorKind as Kind;
        assert_eq!(kind_of(answer(Kind::NotFound, "NoSuchKey")), ErrorKind::Missing);
        assert_eq!(kind_of(answer(Kind::ConfigInvalid, "NoSuchBucket")), ErrorKind::Input);
        assert_eq!(kind_of(answer(Kind::PermissionDenied, "AccessDenied")), ErrorKind::Credentials);
        assert_eq!(kind_of(answer(Kind::Unexpected, "ExpiredToken")), ErrorKind::Credentials);
        assert_eq!(kind_of(answer(Kind::PermissionDenied, "InvalidObjectState")), ErrorKind::Unsupported);
        assert_eq!(kind_of(answer(Kind::Unexpected, "XMinioStorageFull")), ErrorKind::Full);
        assert_eq!(kind_of(answer(Kind::RateLimited, "SlowDown").set_temporary()), ErrorKind::Retry);
        assert_eq!(kind_of(answer(Kind::Unexpected, "InternalError").set_persistent()), ErrorKind::Retry);
        assert_eq!(kind_of(answer(Kind::PermissionDenied, "AccessDenied").set_persistent()), ErrorKind::Credentials);
        assert_eq!(kind_of(answer(Kind::Unexpected, "InvalidRequest").set_persistent()), ErrorKind::Input);
        assert_eq!(kind_of(opendal::Error::new(Kind::Unexpected, "send http request")), ErrorKind::Retry);
        assert_eq!(kind_of(answer(Kind::Unsupported, "")), ErrorKind::Unsupported);
    }

    #[test]
    fn errors_say_what_and_what_next() {
        let error =
            error("writing a in s3://b".to_owned(), answer(opendal::ErrorKind::PermissionDenied, "AccessDenied"));
        assert!(error.to_string().starts_with("writing a in s3://b: "), "{error}");
        assert!(error.to_string().contains("AccessDenied"), "{error}");
        assert!(error.hint_text().is_some());
    }
}
