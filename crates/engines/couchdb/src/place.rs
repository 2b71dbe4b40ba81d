//! What a URL names: a server, how to log in, and which databases.

use crate::tokens::{self, ApiKey};
use model::{Error, Result};
use percent_encoding::percent_decode_str;
use reqwest::Url;
use std::fmt;

/// How a URL is written that logs in with an API key.
const WITH_KEY: &str = "couchdb+iam+https://HOST/DATABASE";
/// Where the key comes from: a URL is seen by others.
const KEY_COMES: &str = "give the key with --password-file or in REWOUND_PASSWORD";

/// A CouchDB server as a URL names it, with the databases that are meant.
///
/// `couchdb+https://USER@HOST:PORT/DATABASE`, or `couchdb+iam+https://HOST/DATABASE` to log in with an API key of IBM
/// Cloud: no database means all, `*` and `?` stand for any
/// characters; a slash in a database's name is written `%2F`; what stands before the last slash is
/// where a proxy has the server.
#[derive(Clone)]
pub struct Place {
    /// Where the server is, ending with a slash.
    pub(crate) base: Url,
    pub(crate) login: Login,
    pub(crate) database: Option<String>,
}

/// How to log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Login {
    Nobody,
    User(String, String),
    Key(ApiKey),
}

impl Place {
    /// The same with another server that exchanges an API key for tokens than IBM Cloud's own; for places without
    /// an API key nothing is different.
    pub fn tokens_from(mut self, address: &str) -> Result<Place> {
        if let Login::Key(key) = &mut self.login {
            key.server = tokens::server(address)?;
        }
        Ok(self)
    }

    /// Understands a URL; the password may be given apart from it, and an API key must be.
    pub fn parse(url: &str, password: Option<&str>) -> Result<Place> {
        let bad = |why: &str| {
            Error::input(format!("the URL of the CouchDB server {why}"))
                .hint("write it as couchdb+https://USER@HOST:PORT/DATABASE, or without DATABASE for all databases")
        };
        let plain =
            url.strip_prefix("couchdb+").ok_or_else(|| bad("does not begin with couchdb+http or couchdb+https"))?;
        let (plain, with_key) = plain.strip_prefix("iam+").map_or((plain, false), |plain| (plain, true));
        let mut base = Url::parse(plain).map_err(|e| bad(&format!("is wrong: {e}")))?;
        if base.host_str().is_none_or(str::is_empty) || !matches!(base.scheme(), "http" | "https") {
            return Err(bad("names no host"));
        }
        if base.query().is_some() || base.fragment().is_some() {
            return Err(bad("has a ? or #, which is not for databases (write %3F, %23)"));
        }
        let text = |s: &str| percent_decode_str(s).decode_utf8().map(|s| s.into_owned());
        let (name, in_url) = (text(base.username()), base.password().map(text).transpose());
        let (Ok(name), Ok(in_url)) = (name, in_url) else { return Err(bad("has a user or password that is no text")) };
        let login = match (with_key, password) {
            (true, _) if !name.is_empty() || in_url.is_some() => {
                return Err(Error::input("the URL of the CouchDB server has a user or a password beside an API key")
                    .hint(format!("write {WITH_KEY}, and {KEY_COMES}")));
            }
            (true, Some(key)) if !key.is_empty() => {
                Login::Key(ApiKey { key: key.to_owned(), server: tokens::server(tokens::IBM_CLOUD)? })
            }
            (true, _) => return Err(Error::credentials(format!("{WITH_KEY} needs an API key")).hint(KEY_COMES)),
            (false, _) if name.is_empty() => Login::Nobody,
            (false, given) => Login::User(name, given.map(str::to_owned).or(in_url).unwrap_or_default()),
        };
        let path = base.path().to_owned();
        let (above, last) = path.rsplit_once('/').unwrap_or(("", ""));
        let database = text(last).map_err(|_| bad("names a database that is no text"))?;
        base.set_path(&format!("{above}/"));
        let _ = (base.set_username(""), base.set_password(None));
        Ok(Place { base, login, database: Some(database).filter(|d| !d.is_empty()) })
    }

    /// The only database that is meant, if it is one.
    pub(crate) fn only(&self) -> Option<&str> {
        self.database.as_deref().filter(|d| !d.contains(['*', '?']))
    }

    /// Whether a database is meant. Those of the server itself only by their own names.
    pub(crate) fn takes(&self, name: &str) -> bool {
        match &self.database {
            None => !name.starts_with('_'),
            Some(pattern) => pattern == name || (!name.starts_with('_') && model::glob_matches(pattern, name)),
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.base, self.database.as_deref().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn urls_name_server_user_and_databases() {
        let place = Place::parse("couchdb+http://me:p%40ss@h:5984/a%2Fb", None).unwrap();
        assert_eq!(place.base.as_str(), "http://h:5984/");
        assert_eq!(place.login, Login::User("me".into(), "p@ss".into()));
        assert_eq!(place.only(), Some("a/b"));
        let place = Place::parse("couchdb+https://me@h/proxy/fs_*", Some("other")).unwrap();
        assert_eq!((place.base.as_str(), place.only()), ("https://h/proxy/", None));
        assert_eq!(place.login, Login::User("me".into(), "other".into()));
        assert!(place.takes("fs_a") && !place.takes("f") && !place.takes("_users"));
        let all = Place::parse("couchdb+http://h", None).unwrap();
        assert!(all.takes("x") && !all.takes("_users") && all.login == Login::Nobody);
        assert!(Place::parse("couchdb+http://h/_users", None).unwrap().takes("_users"));
        assert!(!format!("{:?}", Place::parse("couchdb+http://u:secret@h/d", None).unwrap()).contains("secret"));
        for bad in ["http://h/d", "couchdb+ftp://h/d", "couchdb+http://", "couchdb+http://h/d?x=1"] {
            assert!(Place::parse(bad, None).unwrap_err().hint_text().is_some(), "{bad}");
        }
    }

    #[test]
    fn api_keys_come_apart_from_the_url() {
        let place = Place::parse("couchdb+iam+https://h/d", Some("the key")).unwrap();
        assert_eq!((place.base.as_str(), place.only()), ("https://h/", Some("d")));
        assert!(!format!("{place:?} {:?}", place.login).contains("the key"));
        let Login::Key(ApiKey { key, server }) = &place.login else { panic!("{:?}", place.login) };
        assert_eq!((&**key, server.as_str()), ("the key", "https://iam.cloud.ibm.com/identity/token"));
        let other = place.tokens_from("https://private/").unwrap();
        assert!(format!("{:?}", other.login).contains("https://private/identity/token"), "{:?}", other.login);
        for (bad, key) in [("h", None), ("h", Some("")), ("me@h", Some("k")), (":k@h", Some("k"))] {
            let error = Place::parse(&format!("couchdb+iam+https://{bad}/d"), key).unwrap_err();
            assert!(error.hint_text().unwrap().contains("--password-file"), "{bad}");
        }
    }
}
