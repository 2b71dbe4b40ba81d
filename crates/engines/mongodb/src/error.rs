//! What the driver's errors mean to a caller.

use model::{Error, ErrorKind};
use mongodb::error::ErrorKind as Driver;

/// The server's code of an error, where the server answered at all (MongoDB `error_codes.yml`).
pub(crate) fn code(error: &mongodb::error::Error) -> Option<i32> {
    match &*error.kind {
        Driver::Command(command) => Some(command.code),
        _ => None,
    }
}

/// The server refuses because of who asks: Unauthorized.
pub(crate) const UNAUTHORIZED: i32 = 13;
/// The password is wrong: AuthenticationFailed.
pub(crate) const AUTHENTICATION_FAILED: i32 = 18;
/// No such collection or database: NamespaceNotFound.
pub(crate) const NAMESPACE_NOT_FOUND: i32 = 26;
/// A capped collection has overtaken its reader: CappedPositionLost.
pub(crate) const CAPPED_POSITION_LOST: i32 = 136;
/// The cursor is gone: CursorNotFound.
pub(crate) const CURSOR_NOT_FOUND: i32 = 43;
/// The collection that a query reads was dropped or renamed: QueryPlanKilled.
pub(crate) const QUERY_PLAN_KILLED: i32 = 175;
/// A cursor that was killed: CursorKilled.
pub(crate) const CURSOR_KILLED: i32 = 237;
/// The snapshot's time is no longer kept: SnapshotTooOld.
pub(crate) const SNAPSHOT_TOO_OLD: i32 = 239;
/// The collection cannot be read at the snapshot's time: SnapshotUnavailable.
pub(crate) const SNAPSHOT_UNAVAILABLE: i32 = 246;
/// The record to go on from is gone: KeyNotFound.
pub(crate) const KEY_NOT_FOUND: i32 = 211;
/// Somebody stopped the operation: Interrupted.
pub(crate) const INTERRUPTED: i32 = 11601;
/// A key is there already: DuplicateKey.
pub(crate) const DUPLICATE_KEY: i32 = 11000;

/// Whether the server may answer otherwise on another try: elections, shutdowns, stale members
/// and such that have not started yet (MongoDB's "retryable reads" specification).
pub(crate) fn is_passing_code(code: i32) -> bool {
    [6, 7, 63, 89, 91, 94, 134, 150, 189, 262, 9001, 10107, 11600, 11602, 13388, 13435, 13436].contains(&code)
}

/// Whether the same command may succeed on another try: the network, an election, a shutdown.
pub(crate) fn is_passing(error: &mongodb::error::Error) -> bool {
    let labelled = ["RetryableWriteError", "RetryableError", "TransientTransactionError"];
    match &*error.kind {
        Driver::Io(_) | Driver::ConnectionPoolCleared { .. } | Driver::ServerSelection { .. } => true,
        Driver::Command(command) => {
            is_passing_code(command.code) || labelled.iter().any(|label| error.contains_label(label))
        }
        _ => labelled.iter().any(|label| error.contains_label(label)),
    }
}

/// The error of the driver as ours; `what` says what was being done, to what.
pub(crate) fn driver(what: impl Into<String>, error: mongodb::error::Error) -> Error {
    let kind = kind_of(&error);
    let told = match &*error.kind {
        Driver::Command(command) => format!("{} ({}, {})", command.message, command.code_name, command.code),
        Driver::Authentication { message, .. } => message.clone(),
        Driver::ServerSelection { message, .. } => message.clone(),
        _ => error.to_string(),
    };
    let error = Error::new(kind, format!("{}: {told}", what.into()));
    match kind {
        ErrorKind::Credentials => {
            error.hint("check user, password and authSource in the URL, and that the user may do this: docs/mongodb.md lists the roles")
        }
        ErrorKind::Retry => error.hint("check that the server is up and can be reached, then run the command again"),
        _ => error,
    }
}

fn kind_of(error: &mongodb::error::Error) -> ErrorKind {
    match &*error.kind {
        Driver::Authentication { .. } => ErrorKind::Credentials,
        Driver::InvalidArgument { .. } | Driver::DnsResolve { .. } | Driver::InvalidTlsConfig { .. } => {
            ErrorKind::Input
        }
        Driver::Command(command) => match command.code {
            UNAUTHORIZED | AUTHENTICATION_FAILED => ErrorKind::Credentials,
            NAMESPACE_NOT_FOUND => ErrorKind::Missing,
            14031 => ErrorKind::Full,
            _ if is_passing(error) => ErrorKind::Retry,
            _ => ErrorKind::Unsupported,
        },
        _ if is_passing(error) => ErrorKind::Retry,
        _ => ErrorKind::Unsupported,
    }
}
