//! What goes wrong between us and the server, as errors that say what to do.

use model::{Error, ErrorKind};
use reqwest::StatusCode;
use serde::Deserialize;

/// Characters of an error message that are shown.
const SHOWN: usize = 300;

/// Trouble on the way to the server or back.
pub(crate) fn network(doing: &str, e: reqwest::Error) -> Error {
    let mut why = e.to_string();
    let mut cause = std::error::Error::source(&e);
    while let Some(inner) = cause {
        why = format!("{why}: {inner}");
        cause = inner.source();
    }
    Error::new(ErrorKind::Retry, format!("{doing}: {why}"))
        .caused_by(e)
        .hint("check that the server runs and is reached")
}

/// What the server's refusal means.
pub(crate) fn refused(doing: &str, status: StatusCode, body: &str) -> Error {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(rename = "Type", default)]
        kind: String,
        #[serde(rename = "Message", default)]
        message: String,
        #[serde(rename = "Error", default)]
        error: String,
    }
    let answer = serde_json::from_str::<Answer>(body).ok();
    let message = answer.as_ref().map_or(body, |a| a.message.as_str());
    let first: String = message.lines().next().unwrap_or_default().chars().take(SHOWN).collect();
    let mut text = format!("{doing}: the server says {status}: {first}");
    let kind = answer.as_ref().map_or("", |a| a.kind.as_str());
    // A server that never had a database says that it is passive.
    if kind.contains("DatabaseDoesNotExist")
        || message.contains("the node is passive")
        || status == StatusCode::NOT_FOUND
    {
        return Error::missing(text);
    }
    if let Some(answer) = answer.as_ref().filter(|_| kind.contains("DatabaseLoadFailure")) {
        return not_opened(&text, &answer.error);
    }
    if status == StatusCode::INTERNAL_SERVER_ERROR
        && let Some(why) = answer.as_ref().and_then(|a| innermost(&a.error))
        && !message.contains(&why)
    {
        text = format!("{text}: {why}");
    }
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::credentials(text)
            .hint("give a client certificate that may read the database: ?certificate=FILE.pem in the URL"),
        StatusCode::PAYMENT_REQUIRED => Error::unsupported(text).hint(
            "the server's license does not allow it; a restore can leave things out, for example with \
             --without-kinds settings or --without-kinds subscriptions",
        ),
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => {
            Error::new(ErrorKind::Retry, text)
        }
        _ => Error::new(ErrorKind::Unsupported, text).hint("the server's log says more"),
    }
}

/// The first line of the innermost of the exceptions that an answer lists, if one is inside another.
fn innermost(exceptions: &str) -> Option<String> {
    let (_, inner) = exceptions.rsplit_once("---> ")?;
    Some(inner.lines().next().unwrap_or_default().trim().chars().take(SHOWN).collect())
}

/// The server could not open the database; why is in the innermost of the exceptions it lists.
fn not_opened(text: &str, exceptions: &str) -> Error {
    let why = innermost(exceptions).unwrap_or_default();
    let text = format!("{text}: {why}");
    // Seen with 5.4.115: a server that is killed while it makes a database leaves one that it never opens again.
    if why.contains("VoronUnrecoverableError") {
        return Error::corrupt(text).hint(
            "the server cannot read its own files of this database, as after a crash while it was made; \
             if nothing in it is needed, delete it in RavenDB Studio and run this again",
        );
    }
    Error::new(ErrorKind::Retry, text).hint("the server's log says more")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn refusals_say_what_can_be_done() {
        let body = r#"{"Type":"Raven.Client.Exceptions.Database.DatabaseDoesNotExistException","Message":"no\nmore"}"#;
        let error = refused("asking", StatusCode::SERVICE_UNAVAILABLE, body);
        assert_eq!(
            (error.kind(), error.message()),
            (ErrorKind::Missing, "asking: the server says 503 Service Unavailable: no")
        );
        let body = r#"{"Message":"Can't perform actions on the database 'x' while the node is passive."}"#;
        assert_eq!(refused("x", StatusCode::SERVICE_UNAVAILABLE, body).kind(), ErrorKind::Missing);
        let body = r#"{"Message":"Failed to update it.","Error":"A: Failed to update it.\r\n ---> B: no.\r\n ---> C: A task has this name.\r\n   at X"}"#;
        let error = refused("x", StatusCode::INTERNAL_SERVER_ERROR, body);
        assert!(error.message().ends_with("Failed to update it.: C: A task has this name."), "{error}");
        assert_eq!(refused("x", StatusCode::FORBIDDEN, "").kind(), ErrorKind::Credentials);
        assert_eq!(refused("x", StatusCode::SERVICE_UNAVAILABLE, "").kind(), ErrorKind::Retry);
    }

    #[test]
    fn a_database_that_does_not_open_is_told_with_the_reason() {
        let body = |inner: &str| {
            serde_json::json!({
                "Type": "Raven.Client.Exceptions.Database.DatabaseLoadFailureException",
                "Message": "Failed to start database x\nAt /data/Databases/x",
                "Error": format!(
                    "Raven.Client.Exceptions.Database.DatabaseLoadFailureException: Failed to start database x\n\
                     At /data/Databases/x\n ---> {inner}\n @ /data/Databases/x\n   at Voron.Impl"
                ),
            })
            .to_string()
        };
        let inner = "Voron.Exceptions.VoronUnrecoverableErrorException: First transaction is corrupted.";
        let error = refused("asking", StatusCode::SERVICE_UNAVAILABLE, &body(inner));
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(
            error.message().contains("Failed to start database x: Voron") && error.message().ends_with("corrupted.")
        );
        assert!(error.hint_text().unwrap().contains("delete it"));
        let error = refused("asking", StatusCode::SERVICE_UNAVAILABLE, &body("System.TimeoutException: locked"));
        assert_eq!(error.kind(), ErrorKind::Retry);
        assert!(error.message().ends_with("System.TimeoutException: locked"));
    }
}
