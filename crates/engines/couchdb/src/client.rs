//! Speaking to the server: logging in, trying again, and telling what went wrong.

use crate::place::{Login, Place};
use crate::tokens::Tokens;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use model::{Error, ErrorKind, Result, SystemClock};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;

/// How often one request is tried.
const TRIES: u32 = 6;
/// The first pause between tries; each is twice as long as the one before.
const PAUSE: Duration = Duration::from_millis(200);
/// The longest pause, whatever the server asks for.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// The same for a server that refuses requests because there were too many in a second, as Cloudant does: it
/// is well, and others may be asking it, too.
const TRIES_TOO_MANY: u32 = 24;
const PAUSE_TOO_MANY: Duration = Duration::from_secs(5);
/// A server that says nothing for so long is given up; its heartbeats come more often.
const SILENCE: Duration = Duration::from_secs(90);
/// What stays as it is in a path; `+` must not, as some servers take it for a space.
const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'~').remove(b'.');

/// A request that can be sent again.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub method: Method,
    pub path: String,
    pub body: Option<Bytes>,
    pub accept: Option<&'static str>,
    pub gzip: bool,
    /// Bytes that the answer may have: room for so much is made at once.
    pub expects: usize,
}

impl Request {
    pub fn new(method: Method, path: impl Into<String>) -> Request {
        Request { method, path: path.into(), body: None, accept: None, gzip: false, expects: 0 }
    }

    pub fn get(path: impl Into<String>) -> Request {
        Request::new(Method::GET, path)
    }

    pub fn post(path: impl Into<String>, body: impl Into<Bytes>) -> Request {
        Request { body: Some(body.into()), ..Request::new(Method::POST, path) }
    }

    pub fn put(path: impl Into<String>, body: impl Into<Bytes>) -> Request {
        Request { body: Some(body.into()), ..Request::new(Method::PUT, path) }
    }
}

/// A name as one piece of a path.
pub(crate) fn segment(name: &str) -> String {
    utf8_percent_encode(name, KEPT).to_string()
}

/// The path of a document; `None` for ids that a URL cannot hold.
pub(crate) fn document_path(database: &str, id: &str) -> Option<String> {
    let database = segment(database);
    match id.split_once('/') {
        Some((special @ ("_design" | "_local"), rest)) => Some(format!("{database}/{special}/{}", segment(rest))),
        _ if id == "." || id == ".." => None,
        _ => Some(format!("{database}/{}", segment(id))),
    }
}

/// A server that can be asked.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    place: Arc<Place>,
    login: SentLogin,
}

/// What is sent with each request.
#[derive(Debug, Clone)]
enum SentLogin {
    Nothing,
    Always(HeaderValue),
    Tokens(Arc<Tokens>),
}

impl Client {
    pub fn new(place: Place) -> Result<Client> {
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(SILENCE)
            .tcp_nodelay(true)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|e| Error::new(ErrorKind::Retry, "HTTPS cannot be set up").caused_by(e))?;
        let login = match &place.login {
            Login::Nobody => SentLogin::Nothing,
            Login::User(name, password) => {
                use base64::Engine;
                let text = base64::engine::general_purpose::STANDARD.encode(format!("{name}:{password}"));
                let mut value = HeaderValue::from_str(&format!("Basic {text}"))
                    .map_err(|_| Error::input("user and password cannot be sent"))?;
                value.set_sensitive(true);
                SentLogin::Always(value)
            }
            Login::Key(key) => {
                SentLogin::Tokens(Arc::new(Tokens::new(http.clone(), key.clone(), Arc::new(SystemClock))))
            }
        };
        Ok(Client { http, place: Arc::new(place), login })
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    /// A request that is not sent yet.
    pub async fn build(&self, request: &Request) -> Result<reqwest::RequestBuilder, Failure> {
        let url = self.place.base.join(&request.path).map_err(|e| Error::bug("a path is no URL").caused_by(e))?;
        let mut built = self.http.request(request.method.clone(), url);
        built = match &self.login {
            SentLogin::Nothing => built,
            SentLogin::Always(login) => built.header(AUTHORIZATION, login.clone()),
            SentLogin::Tokens(tokens) => built.header(AUTHORIZATION, tokens.login().await?),
        };
        if let Some(body) = &request.body {
            built = built.header(CONTENT_TYPE, "application/json").body(body.clone());
        }
        if request.gzip {
            built = built.header(reqwest::header::ACCEPT_ENCODING, "gzip");
        }
        Ok(built.header(ACCEPT, request.accept.unwrap_or("application/json")))
    }

    /// Sends a request once.
    pub async fn once(&self, built: reqwest::RequestBuilder) -> Result<Response, Failure> {
        let request = built.build().map_err(|e| Error::bug("a request cannot be made").caused_by(e))?;
        let login = request.headers().get(AUTHORIZATION).cloned();
        let response = self.http.execute(request).await.map_err(|e| Failure::passing(self.transport(&e), None))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let after = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.trim().parse().ok());
        let path = response.url().path().to_owned();
        // What is cut off may have said anything.
        let text = response.bytes().await.map_err(|e| Failure::passing(self.transport(&e), Some(status)))?;
        let mut error = refusal(status, &path, &text);
        let mut passes = matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504);
        if let (StatusCode::UNAUTHORIZED, SentLogin::Tokens(tokens), Some(login)) = (status, &self.login, login) {
            tokens.forget(&login).await;
            error = error.hint("give the API key's service id a role in this Cloudant instance");
            passes = true;
        }
        Err(Failure { error, status: Some(status), passes, after: after.map(Duration::from_secs) })
    }

    /// Sends a request, again if its trouble may pass, and gives the answer to be streamed.
    pub async fn open(&self, request: &Request) -> Result<Response> {
        self.with_retries(|| async { self.once(self.build(request).await?).await }).await
    }

    /// Sends a request and gives the whole answer, at most `limit` bytes of it; one that is cut off is
    /// asked for again.
    pub async fn bytes(&self, request: &Request, limit: usize) -> Result<Bytes> {
        self.with_retries(|| async {
            let response = self.once(self.build(request).await?).await?;
            self.collect(response, request.expects, limit).await
        })
        .await
    }

    async fn collect(&self, response: Response, expects: usize, limit: usize) -> Result<Bytes, Failure> {
        let mut stream = response.bytes_stream();
        let mut all = BytesMut::with_capacity(expects.min(EXPECTS_MAX).min(limit));
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|e| Failure::passing(self.transport(&e), None))?;
            if all.len() + piece.len() > limit {
                return Err(too_large(limit).into());
            }
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    }

    /// Sends a request and understands the answer; one that is no whole JSON is asked for again.
    pub async fn json<T>(
        &self,
        request: &Request,
        limit: usize,
        read: impl Fn(&Bytes) -> serde_json::Result<T>,
    ) -> Result<T> {
        self.with_retries(|| async {
            let response = self.once(self.build(request).await?).await?;
            let bytes = self.collect(response, request.expects, limit).await?;
            read(&bytes).map_err(|e| Failure::passing(garbled(&request.path, &e), None))
        })
        .await
    }

    /// The answer as a value; `None` if there is no such thing.
    pub async fn find<T: for<'a> Deserialize<'a>>(&self, request: &Request) -> Result<Option<T>> {
        match self.json(request, ANSWER_MAX, |bytes| serde_json::from_slice(bytes)).await {
            Err(e) if e.kind() == ErrorKind::Missing => Ok(None),
            other => other.map(Some),
        }
    }

    /// Tries again what may pass.
    pub async fn with_retries<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        mut what: impl FnMut() -> F,
    ) -> Result<T> {
        let mut pause = PAUSE;
        for number in 1.. {
            let failure = match what().await {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            // A server that fails is asked once more, and one that did not like a token; one that is busy or away
            // several times.
            let (tries, longest) = match failure.status {
                Some(StatusCode::UNAUTHORIZED) => (2, Duration::ZERO),
                Some(StatusCode::INTERNAL_SERVER_ERROR) => (2, PAUSE_MAX),
                Some(StatusCode::TOO_MANY_REQUESTS) => (TRIES_TOO_MANY, PAUSE_TOO_MANY),
                _ => (TRIES, PAUSE_MAX),
            };
            if !failure.passes || number >= tries {
                return Err(failure.error);
            }
            tracing::debug!("{}; trying again", failure.error);
            tokio::time::sleep(failure.after.unwrap_or(pause.min(longest)).min(PAUSE_MAX)).await;
            pause *= 2;
        }
        Err(Error::bug("trying again ended without a result"))
    }

    /// Trouble on the way. The URL's password is not in it, as it was taken out.
    pub fn transport(&self, e: &reqwest::Error) -> Error {
        transport(&self.place.base, e)
    }
}

/// Trouble on the way to a server.
pub(crate) fn transport(server: &Url, e: &reqwest::Error) -> Error {
    let mut why = e.to_string();
    let mut cause = std::error::Error::source(e);
    while let Some(inner) = cause {
        why = inner.to_string();
        cause = inner.source();
    }
    let place = format!("{}://{}", server.scheme(), server.authority());
    let text = match () {
        () if e.is_connect() => format!("{place} cannot be reached: {why}"),
        () if e.is_timeout() => format!("{place} does not answer"),
        () => format!("the connection to {place} broke: {why}"),
    };
    Error::new(ErrorKind::Retry, text).hint(what_to_check(&why))
}

/// What may help where the server was not reached.
fn what_to_check(why: &str) -> &'static str {
    match why.contains("certificate") {
        true => {
            "if the host does not know the authority of the server's certificate, name a file with it in SSL_CERT_FILE"
        }
        false => "check that the server runs and can be reached from here",
    }
}

/// The largest answer that is held in memory as a whole, unless told otherwise.
pub(crate) const ANSWER_MAX: usize = 64 << 20;

/// The room that is made for an answer before it comes, at most.
const EXPECTS_MAX: usize = 2 << 20;

/// A try that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub error: Error,
    pub status: Option<StatusCode>,
    passes: bool,
    after: Option<Duration>,
}

impl Failure {
    pub fn passing(error: Error, status: Option<StatusCode>) -> Failure {
        Failure { error, status, passes: true, after: None }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure { error, status: None, passes: false, after: None }
    }
}

pub(crate) fn too_large(limit: usize) -> Error {
    Error::input(format!("an answer of the server is larger than {limit} bytes"))
}

/// An answer that is no whole JSON.
fn garbled(path: &str, e: &serde_json::Error) -> Error {
    Error::new(ErrorKind::Retry, format!("the server's answer to {path} is cut off or garbled: {e}"))
        .hint("run the command again; if it stays so, look for a proxy between here and the server")
}

#[derive(Deserialize)]
struct Reason {
    error: Option<String>,
    reason: Option<String>,
}

fn refusal(status: StatusCode, path: &str, text: &[u8]) -> Error {
    let said = serde_json::from_slice::<Reason>(text).ok();
    let is_couchdb = said.as_ref().is_some_and(|reason| reason.error.is_some());
    let said = said.map(|r| [r.error, r.reason].into_iter().flatten().collect::<Vec<_>>().join(": "));
    let said = said.unwrap_or_else(|| status.canonical_reason().unwrap_or("no reason given").to_owned());
    let message = format!("the server answers {} to {path}: {said}", status.as_u16());
    match status.as_u16() {
        401 => Error::credentials(message)
            .hint("put the user into the URL as USER@HOST and give the password with --password-file"),
        403 => Error::credentials(message).hint("use a user who is an administrator of the server"),
        404 if is_couchdb => Error::missing(message),
        // Whoever takes a proxy's word for it takes databases and documents for deleted.
        404 => Error::new(ErrorKind::Retry, message).hint(
            "that is not how CouchDB says it: check host, port and path of the URL, and look for a proxy in between",
        ),
        408 | 429 | 500 | 502 | 503 | 504 => {
            Error::new(ErrorKind::Retry, message).hint("wait until the server is less busy, then run the command again")
        }
        507 => Error::new(ErrorKind::Full, message),
        _ => Error::input(message),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn paths_hold_any_id() {
        assert_eq!(document_path("a/b", "x+y z/ü").unwrap(), "a%2Fb/x%2By%20z%2F%C3%BC");
        assert_eq!(document_path("d", "_design/a/b").unwrap(), "d/_design/a%2Fb");
        assert_eq!(document_path("d", "_local/x+").unwrap(), "d/_local/x%2B");
        assert_eq!(document_path("d", ".."), None);
    }

    /// As Cloudant's documentation says, not as a server was seen to do: requests above what is paid for are
    /// refused until the second is over, without a word on when that is.
    #[tokio::test(start_paused = true)]
    async fn too_many_requests_are_waited_out_as_cloudant_documents_it() {
        let client = Client::new(Place::parse("couchdb+http://127.0.0.1:1/", None).unwrap()).unwrap();
        let refused = |status| Failure::passing(Error::input("no"), Some(status));
        let began = tokio::time::Instant::now();
        let mut asked = 0;
        let found = client.with_retries(|| {
            asked += 1;
            std::future::ready(if asked < 20 { Err(refused(StatusCode::TOO_MANY_REQUESTS)) } else { Ok(asked) })
        });
        assert_eq!(found.await.unwrap(), 20);
        let waited = began.elapsed();
        assert!(waited > Duration::from_secs(60) && waited < Duration::from_secs(100), "{waited:?}");
        // Not for ever; and a server that is away is given up sooner.
        for (status, tries) in [(StatusCode::TOO_MANY_REQUESTS, TRIES_TOO_MANY), (StatusCode::BAD_GATEWAY, TRIES)] {
            let mut asked = 0;
            let found = client.with_retries(|| {
                asked += 1;
                std::future::ready(Err::<(), _>(refused(status)))
            });
            found.await.unwrap_err();
            assert_eq!(asked, tries);
        }
    }

    #[test]
    fn unknown_authorities_can_be_named() {
        assert!(what_to_check("invalid peer certificate: UnknownIssuer").contains("SSL_CERT_FILE"));
        assert!(what_to_check("Connection refused").contains("check that the server runs"));
    }

    #[test]
    fn refusals_say_what_to_do() {
        let of = |code: u16| refusal(StatusCode::from_u16(code).unwrap(), "/d", br#"{"error":"e","reason":"r"}"#);
        assert_eq!(of(401).kind(), ErrorKind::Credentials);
        assert_eq!(of(404).kind(), ErrorKind::Missing);
        assert_eq!(of(503).kind(), ErrorKind::Retry);
        assert_eq!(refusal(StatusCode::NOT_FOUND, "/d", b"<h1>Not Found</h1>").kind(), ErrorKind::Retry);
        assert_eq!(of(412).to_string(), "the server answers 412 to /d: e: r");
    }
}
