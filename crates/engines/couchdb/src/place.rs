//! What a URL names: a server, how to log in, and which databases.

use model::{Error, Result};
use percent_encoding::percent_decode_str;
use reqwest::Url;
use std::fmt;

/// A CouchDB server as a URL names it, with the databases that are meant.
///
/// `couchdb+https://USER@HOST:PORT/DATABASE`: no database means all, `*` and `?` stand for any
/// characters; a slash in a database's name is written `%2F`; what stands before the last slash is
/// where a proxy has the server.
#[derive(Clone)]
pub struct Place {
    /// Where the server is, ending with a slash.
    pub(crate) base: Url,
    pub(crate) user: Option<(String, String)>,
    pub(crate) database: Option<String>,
}

impl Place {
    /// Understands a URL; the password may be given apart from it.
    pub fn parse(url: &str, password: Option<&str>) -> Result<Place> {
        let bad = |why: &str| {
            Error::input(format!("the URL of the CouchDB server {why}"))
                .hint("write it as couchdb+https://USER@HOST:PORT/DATABASE, or without DATABASE for all databases")
        };
        let plain =
            url.strip_prefix("couchdb+").ok_or_else(|| bad("does not begin with couchdb+http or couchdb+https"))?;
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
        let user = (!name.is_empty()).then(|| (name, password.map(str::to_owned).or(in_url).unwrap_or_default()));
        let path = base.path().to_owned();
        let (above, last) = path.rsplit_once('/').unwrap_or(("", ""));
        let database = text(last).map_err(|_| bad("names a database that is no text"))?;
        base.set_path(&format!("{above}/"));
        let _ = (base.set_username(""), base.set_password(None));
        Ok(Place { base, user, database: Some(database).filter(|d| !d.is_empty()) })
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
        assert_eq!(place.user, Some(("me".into(), "p@ss".into())));
        assert_eq!(place.only(), Some("a/b"));
        let place = Place::parse("couchdb+https://me@h/proxy/fs_*", Some("other")).unwrap();
        assert_eq!((place.base.as_str(), place.only()), ("https://h/proxy/", None));
        assert_eq!(place.user, Some(("me".into(), "other".into())));
        assert!(place.takes("fs_a") && !place.takes("f") && !place.takes("_users"));
        let all = Place::parse("couchdb+http://h", None).unwrap();
        assert!(all.takes("x") && !all.takes("_users") && all.user.is_none());
        assert!(Place::parse("couchdb+http://h/_users", None).unwrap().takes("_users"));
        assert!(!format!("{:?}", Place::parse("couchdb+http://u:secret@h/d", None).unwrap()).contains("secret"));
        for bad in ["http://h/d", "couchdb+ftp://h/d", "couchdb+http://", "couchdb+http://h/d?x=1"] {
            assert!(Place::parse(bad, None).unwrap_err().hint_text().is_some(), "{bad}");
        }
    }
}
