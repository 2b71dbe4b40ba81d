//! Logging in with an API key, as Cloudant's IAM has it: the key is exchanged for a token, which is sent with each
//! request until it is about to expire.

use crate::client::{Failure, transport};
use model::{Clock, Error, ErrorKind, Result};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use std::fmt;
use std::sync::Arc;
use tokio::sync::Mutex;

/// Where IBM Cloud exchanges keys for tokens.
pub(crate) const IBM_CLOUD: &str = "https://iam.cloud.ibm.com";

/// A key, and whoever exchanges it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ApiKey {
    pub key: String,
    pub server: Url,
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a key for {}", self.server)
    }
}

/// The address of a server that exchanges keys for tokens. A key must not be read by others on its way.
pub(crate) fn server(address: &str) -> Result<Url> {
    let bad = |why: &str| {
        Error::input(format!("the address of the token server {why}"))
            .hint(format!("REWOUND_IAM_URL is an address as {IBM_CLOUD}"))
    };
    let mut url = Url::parse(address).map_err(|e| bad(&format!("is wrong: {e}")))?;
    let is_here = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    if url.scheme() != "https" && !(url.scheme() == "http" && is_here) {
        return Err(bad("is not https"));
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err(bad("has more than a host and a path"));
    }
    let path = format!("{}/identity/token", url.path().trim_end_matches('/'));
    url.set_path(&path);
    Ok(url)
}

/// The current token, and how to get the next one.
#[derive(Debug)]
pub(crate) struct Tokens {
    http: reqwest::Client,
    key: ApiKey,
    clock: Arc<dyn Clock>,
    current: Mutex<Option<Token>>,
}

#[derive(Debug)]
struct Token {
    login: HeaderValue,
    /// From then on it is renewed, while it is still good (milliseconds since 1970 UTC).
    renew: i64,
    /// From then on it is not.
    expires: i64,
}

#[derive(Deserialize)]
struct Given {
    access_token: String,
    /// In so many seconds.
    expires_in: Option<i64>,
    /// The same in seconds since 1970 UTC.
    expiration: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Refused {
    error_code: Option<String>,
    error_message: Option<String>,
}

impl Tokens {
    /// Gets tokens for a key.
    pub fn new(http: reqwest::Client, key: ApiKey, clock: Arc<dyn Clock>) -> Tokens {
        Tokens { http, key, clock, current: Mutex::default() }
    }

    /// What to send with a request. All that ask at the same time wait for the same token.
    pub async fn login(&self) -> Result<HeaderValue, Failure> {
        let mut current = self.current.lock().await;
        let now = self.clock.now_millis();
        if let Some(token) = current.as_ref().filter(|token| now < token.renew) {
            return Ok(token.login.clone());
        }
        match (self.exchange().await, current.as_ref().filter(|token| now < token.expires)) {
            (Ok(token), _) => Ok(current.insert(token).login.clone()),
            (Err(failure), Some(token)) => {
                tracing::debug!("{}; the token that is there is still good", failure.error);
                Ok(token.login.clone())
            }
            (Err(failure), None) => Err(failure),
        }
    }

    /// A server has refused this login: it is not used again.
    pub async fn forget(&self, login: &HeaderValue) {
        self.current.lock().await.take_if(|token| token.login == *login);
    }

    async fn exchange(&self) -> Result<Token, Failure> {
        let key = utf8_percent_encode(&self.key.key, NON_ALPHANUMERIC);
        let request = self
            .http
            .post(self.key.server.clone())
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json")
            .body(format!("grant_type=urn%3Aibm%3Aparams%3Aoauth%3Agrant-type%3Aapikey&apikey={key}"));
        let broken = |e: reqwest::Error| Failure::passing(transport(&self.key.server, &e), None);
        let response = request.send().await.map_err(broken)?;
        let status = response.status();
        let answer = response.bytes().await.map_err(broken)?;
        if !status.is_success() {
            return Err(self.refusal(status, &answer));
        }
        let place = &self.key.server;
        let given: Given = serde_json::from_slice(&answer).map_err(|_| {
            // Nothing of the answer is told: it may hold a token.
            let text = format!("the answer of {place} is no token");
            Failure::from(Error::new(ErrorKind::Retry, text).hint("check the address of the token server"))
        })?;
        let now = self.clock.now_millis();
        let life = given.expires_in.map(|seconds| seconds.saturating_mul(1000));
        let until = given.expiration.map(|at| at.saturating_mul(1000).saturating_sub(now));
        // Unknown: as if it were a short one.
        let life = life.or(until).unwrap_or(60_000).max(0);
        let mut login = HeaderValue::from_str(&format!("Bearer {}", given.access_token))
            .map_err(|_| Error::corrupt(format!("{place} gives a token that cannot be sent")))?;
        login.set_sensitive(true);
        // A fifth is left for requests that take long, and for a server that is away for a while.
        Ok(Token { login, renew: now.saturating_add(life / 5 * 4), expires: now.saturating_add(life) })
    }

    fn refusal(&self, status: StatusCode, answer: &[u8]) -> Failure {
        let said = serde_json::from_slice::<Refused>(answer).ok();
        let said = said.map(|r| [r.error_code, r.error_message].into_iter().flatten().collect::<Vec<_>>().join(": "));
        let said = said.filter(|said| !said.is_empty());
        let said = said.unwrap_or_else(|| status.canonical_reason().unwrap_or("no reason given").to_owned());
        // It has the key, and might show it.
        let said = said.replace(&self.key.key, "…");
        let message = format!("{} answers {}: {said}", self.key.server, status.as_u16());
        match status.as_u16() {
            400 | 401 | 403 => Error::credentials(format!("the API key is refused: {message}"))
                .hint("give an API key of IBM Cloud with --password-file or in REWOUND_PASSWORD")
                .into(),
            408 | 429 | 500..=599 => {
                let error = Error::new(ErrorKind::Retry, format!("no token can be had: {message}"));
                Failure::passing(error.hint("run the command again when the token server is back"), Some(status))
            }
            _ => Error::input(format!("no token can be had: {message}"))
                .hint("check the address of the token server")
                .into(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use model::FixedClock;
    use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
    use testkit::web::{Answer, Web};

    const KEY: &str = "a+key&of=mine";

    /// Gives token after token, each good for an hour, as long as its status is 200.
    struct Given {
        web: Web,
        status: Arc<AtomicU16>,
        count: Arc<AtomicUsize>,
    }

    fn given() -> Given {
        let (status, count) = (Arc::new(AtomicU16::new(200)), Arc::new(AtomicUsize::new(0)));
        let (of_web, counted) = (status.clone(), count.clone());
        let web = Web::start(move |asked| {
            let expected = "grant_type=urn%3Aibm%3Aparams%3Aoauth%3Agrant-type%3Aapikey&apikey=a%2Bkey%26of%3Dmine";
            assert_eq!((asked.method.as_str(), asked.path.as_str()), ("POST", "/identity/token"));
            assert_eq!((asked.header("accept"), &asked.body[..]), (Some("application/json"), expected.as_bytes()));
            match of_web.load(Ordering::SeqCst) {
                200 => {
                    let number = counted.fetch_add(1, Ordering::SeqCst) + 1;
                    Answer::json(format!(r#"{{"access_token":"t{number}","expires_in":3600,"token_type":"Bearer"}}"#))
                }
                status => {
                    let text = format!(r#"{{"errorCode":"BXNIM0415E","errorMessage":"{KEY} could not be found."}}"#);
                    Answer { status, ..Answer::json(text) }
                }
            }
        });
        Given { web, status, count }
    }

    fn tokens(given: &Given, clock: &Arc<FixedClock>) -> Tokens {
        let key = ApiKey { key: KEY.into(), server: server(&format!("http://{}", given.web.host)).unwrap() };
        Tokens::new(reqwest::Client::new(), key, clock.clone())
    }

    async fn now(tokens: &Tokens) -> String {
        tokens.login().await.unwrap().to_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn tokens_are_renewed_before_they_expire() {
        let (given, clock) = (given(), Arc::new(FixedClock::at(1_760_000_000_000)));
        let tokens = tokens(&given, &clock);
        let (a, b) = futures::join!(now(&tokens), now(&tokens));
        assert_eq!((&*a, &*b), ("Bearer t1", "Bearer t1"), "whoever asks at the same time shares it");
        clock.advance(2_879_999);
        assert_eq!(now(&tokens).await, "Bearer t1");
        clock.advance(1);
        assert_eq!(now(&tokens).await, "Bearer t2");
        // One that was refused is renewed; that another one was refused before does not matter.
        tokens.forget(&HeaderValue::from_static("Bearer t1")).await;
        assert_eq!(now(&tokens).await, "Bearer t2");
        tokens.forget(&HeaderValue::from_static("Bearer t2")).await;
        assert_eq!(now(&tokens).await, "Bearer t3");
        // Nobody exchanges the key: the last token is good until it expires.
        given.status.store(503, Ordering::SeqCst);
        clock.advance(3_599_999);
        assert_eq!(now(&tokens).await, "Bearer t3");
        clock.advance(1);
        assert_eq!(tokens.login().await.unwrap_err().error.kind(), ErrorKind::Retry);
        given.status.store(200, Ordering::SeqCst);
        assert_eq!(now(&tokens).await, "Bearer t4");
        assert_eq!(given.count.load(Ordering::SeqCst), 4);
    }

    #[tokio::test]
    async fn refusals_say_what_to_do_and_not_the_key() {
        let (given, clock) = (given(), Arc::new(FixedClock::at(0)));
        let tokens = tokens(&given, &clock);
        for (status, kind) in [
            (400, ErrorKind::Credentials),
            (401, ErrorKind::Credentials),
            (429, ErrorKind::Retry),
            (503, ErrorKind::Retry),
            (404, ErrorKind::Input),
        ] {
            given.status.store(status, Ordering::SeqCst);
            let error = tokens.login().await.unwrap_err().error;
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.hint_text().is_some() && error.to_string().contains("BXNIM0415E"), "{error}");
            assert!(!error.to_string().contains(KEY) && !format!("{error:?} {tokens:?}").contains(KEY), "{error:?}");
        }
        let nobody = ApiKey { key: KEY.into(), server: server("http://127.0.0.1:1").unwrap() };
        let tokens = Tokens::new(reqwest::Client::new(), nobody, clock);
        let error = tokens.login().await.unwrap_err().error;
        assert!(error.kind() == ErrorKind::Retry && !error.to_string().contains(KEY), "{error}");
    }

    #[test]
    fn keys_go_nowhere_unencrypted() {
        assert_eq!(server(IBM_CLOUD).unwrap().as_str(), "https://iam.cloud.ibm.com/identity/token");
        assert_eq!(server("https://h/a/").unwrap().as_str(), "https://h/a/identity/token");
        assert!(server("http://127.0.0.1:1").is_ok());
        for bad in ["http://iam.cloud.ibm.com", "ftp://h", "h", "https://u:p@h", "https://h?x"] {
            assert!(server(bad).unwrap_err().hint_text().is_some(), "{bad}");
        }
    }
}
