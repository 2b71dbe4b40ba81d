//! One error type for all libraries: what kind it is (what the caller can do), what happened, to
//! what, and what to do next.

use std::error::Error as StdError;
use std::fmt;

/// The result of everything in Rewound that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Passing trouble (network, timeout, throttling): the same call may succeed later.
    Retry,
    /// The input is wrong (an argument, a file, a name): fix it and call again.
    Input,
    /// A key, password or permission is missing or wrong.
    Credentials,
    /// The engine no longer has the history that was asked for: a new scan is needed.
    HistoryLost,
    /// Stored or received bytes are not what they must be.
    Corrupt,
    /// Something that must exist does not.
    Missing,
    /// The target has no room left.
    Full,
    /// This engine, version or target cannot do what was asked.
    Unsupported,
    /// The user or the system asked to stop.
    Interrupted,
    /// A mistake in Rewound itself: please report it.
    Bug,
}

impl ErrorKind {
    /// The kind as one lower-case word, as it appears in `--json` output.
    pub fn word(self) -> &'static str {
        match self {
            ErrorKind::Retry => "retry",
            ErrorKind::Input => "input",
            ErrorKind::Credentials => "credentials",
            ErrorKind::HistoryLost => "history-lost",
            ErrorKind::Corrupt => "corrupt",
            ErrorKind::Missing => "missing",
            ErrorKind::Full => "full",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::Interrupted => "interrupted",
            ErrorKind::Bug => "bug",
        }
    }
}

/// An error with its kind, its context (outermost first), a hint and, where there is one, a cause.
pub struct Error {
    inner: Box<Inner>,
}

struct Inner {
    kind: ErrorKind,
    message: String,
    context: Vec<String>,
    hint: Option<String>,
    cause: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of this kind; `message` says what happened, to what.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error { inner: Box::new(Inner { kind, message: message.into(), context: Vec::new(), hint: None, cause: None }) }
    }

    /// Wrong input; see [`ErrorKind::Input`].
    pub fn input(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Input, message)
    }

    /// Damaged data; see [`ErrorKind::Corrupt`].
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    /// Something that must exist does not; see [`ErrorKind::Missing`].
    pub fn missing(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Missing, message)
    }

    /// Keys or permissions; see [`ErrorKind::Credentials`].
    pub fn credentials(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Credentials, message)
    }

    /// Not possible here; see [`ErrorKind::Unsupported`].
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// A mistake in Rewound; see [`ErrorKind::Bug`].
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Bug, message)
    }

    /// An operating-system error about `what` (a path, an action), with the kind that fits it.
    pub fn io(what: impl Into<String>, cause: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let (kind, hint) = match cause.kind() {
            Io::NotFound => (ErrorKind::Missing, None),
            Io::PermissionDenied => (ErrorKind::Credentials, Some("check the permissions of the file or folder")),
            Io::StorageFull | Io::QuotaExceeded => {
                (ErrorKind::Full, Some("free some space or choose another target, then run the command again"))
            }
            Io::ReadOnlyFilesystem => (ErrorKind::Input, Some("the file system is read-only; choose another target")),
            Io::InvalidInput | Io::InvalidFilename | Io::NotADirectory | Io::IsADirectory | Io::AlreadyExists => {
                (ErrorKind::Input, None)
            }
            Io::Interrupted | Io::TimedOut | Io::ConnectionReset | Io::ConnectionAborted | Io::ConnectionRefused => {
                (ErrorKind::Retry, None)
            }
            _ => (ErrorKind::Retry, None),
        };
        let error = Error::new(kind, format!("{}: {cause}", what.into())).caused_by(cause);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }

    /// The same error with a hint: what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.inner.hint = Some(hint.into());
        self
    }

    /// The same error with one more hint, after those that it has.
    pub fn also(self, hint: impl Into<String>) -> Self {
        let more = hint.into();
        let hint = self.hint_text().map_or(more.clone(), |before| format!("{before}; {more}"));
        self.hint(hint)
    }

    /// The same error with the work it interrupted, for example `reading collection books`.
    pub fn context(mut self, doing: impl Into<String>) -> Self {
        self.inner.context.insert(0, doing.into());
        self
    }

    /// The same error with the error that caused it.
    pub fn caused_by(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.inner.cause = Some(cause.into());
        self
    }

    /// What the caller can do.
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// What to do next, where that is known.
    pub fn hint_text(&self) -> Option<&str> {
        self.inner.hint.as_deref()
    }

    /// What happened, without context and hint.
    pub fn message(&self) -> &str {
        &self.inner.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for doing in &self.inner.context {
            write!(f, "{doing}: ")?;
        }
        f.write_str(&self.inner.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.inner.kind)?;
        if let Some(hint) = &self.inner.hint {
            write!(f, " (hint: {hint})")?;
        }
        if let Some(cause) = &self.inner.cause {
            write!(f, " (cause: {cause:?})")?;
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.inner.cause.as_deref().map(|c| c as &(dyn StdError + 'static))
    }
}

/// Adds context to the error of a result.
pub trait ResultExt<T> {
    /// The same result; an error says that it happened while `doing`.
    fn context(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T> ResultExt<T> for Result<T> {
    fn context(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| e.context(doing()))
    }
}
