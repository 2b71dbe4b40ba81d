//! Errors that several files need.

use model::{Error, ErrorKind};

/// Nobody reads any more: the work ends, and nobody hears of it.
pub(crate) fn unheard() -> Error {
    Error::new(ErrorKind::Interrupted, "reading was given up")
}
