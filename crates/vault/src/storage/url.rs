//! Which storage a URL names.

use super::remote::error;
use super::{LocalStorage, OpendalStorage, Storage};
use model::{Error, Result};
use opendal::services::S3;
use opendal::{Operator, OperatorUri};
use std::sync::Arc;
use std::time::Duration;

const WORKS: &str = "a path, file:PATH, or s3://BUCKET/PREFIX?endpoint=URL&region=REGION";

/// The storage at a URL: a path, `file:PATH`, or
/// `s3://BUCKET/PREFIX?endpoint=URL&region=REGION&path_style=true|false`.
///
/// Keys for S3 come from where AWS's own tools look for them (`AWS_ACCESS_KEY_ID`, `AWS_PROFILE`,
/// `~/.aws/credentials`, the machine's role), and so do region and endpoint where the URL has
/// none; they are never part of a URL. Nothing is read or written yet: a folder need not exist.
pub async fn open(url: &str) -> Result<Arc<dyn Storage>> {
    match scheme(url) {
        None if url.is_empty() => {
            Err(Error::input("the place of the vault is empty").hint(format!("it can be {WORKS}")))
        }
        None => local(url),
        Some("file") => local(file_path(url)?),
        Some("s3") => Ok(Arc::new(s3(S3Place::parse(url, |name| std::env::var(name).ok())?).await?)),
        Some(other) => Err(Error::input(format!("no vault can be kept at {other}:…"))
            .hint(format!("a vault's place is {WORKS}; for a folder of that name write file:{other}:…"))),
    }
}

/// What stands before the first colon, if it can be a scheme. One letter is none.
fn scheme(url: &str) -> Option<&str> {
    let (scheme, _) = url.split_once(':')?;
    let mut bytes = scheme.bytes();
    let is_scheme = bytes.next().is_some_and(|b| b.is_ascii_alphabetic())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
    (is_scheme && scheme.len() > 1).then_some(scheme)
}

fn local(path: &str) -> Result<Arc<dyn Storage>> {
    Ok(Arc::new(LocalStorage::open(path)?))
}

/// The path of `file:PATH` or `file:///PATH`, as it stands, without percent-decoding.
fn file_path(url: &str) -> Result<&str> {
    let path = url.strip_prefix("file:").unwrap_or(url);
    let path = match path.strip_prefix("//") {
        Some(rest) => rest.strip_prefix("localhost").unwrap_or(rest),
        None => path,
    };
    let names_a_host = url.starts_with("file://") && !path.starts_with('/');
    match path.is_empty() || names_a_host {
        true => Err(Error::input(format!("{url} names no folder")).hint("write file:PATH or file:///PATH")),
        false => Ok(path),
    }
}

/// Where in S3 a vault is. It holds no keys.
#[derive(Debug, PartialEq, Eq)]
struct S3Place {
    bucket: String,
    prefix: String,
    endpoint: Option<String>,
    region: Option<String>,
    path_style: bool,
}

impl S3Place {
    // Parts of a URL may be secrets that stand in the wrong place: no error repeats them.
    fn parse(url: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let unreadable = || Error::input("the s3 URL cannot be read").hint(format!("a vault's place is {WORKS}"));
        if !url.starts_with("s3://") {
            return Err(unreadable());
        }
        let uri = OperatorUri::new(url, []).map_err(|_| unreadable())?;
        if uri.username().is_some() || uri.password().is_some() {
            return Err(Error::input("the s3 URL holds keys, which others can see in process lists and logs")
                .hint("take them out, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"));
        }
        let bucket = uri.authority().filter(|b| !b.contains(':')).ok_or_else(unreadable)?.to_owned();
        let known = ["endpoint", "region", "path_style"];
        if let Some(unknown) = uri.options().keys().find(|k| !known.contains(&k.as_str())) {
            return Err(Error::input(format!("the s3 URL has a parameter {unknown:?} that nobody knows"))
                .hint(format!("known parameters are {}", known.join(", "))));
        }
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let of_url = |name: &str| uri.option(name).map(str::to_owned);
        let endpoint = of_url("endpoint").or_else(|| set("AWS_ENDPOINT_URL_S3")).or_else(|| set("AWS_ENDPOINT_URL"));
        endpoint.as_deref().map_or(Ok(()), check_endpoint)?;
        let path_style = match uri.option("path_style") {
            Some("true") => true,
            Some("false") => false,
            Some(_) => return Err(Error::input("path_style in the s3 URL must be true or false")),
            // Other servers rarely have a host name for each bucket; a bucket with dots has none
            // that its certificate covers.
            None => endpoint.is_some() || bucket.contains('.'),
        };
        Ok(S3Place {
            prefix: uri.root().unwrap_or_default().to_owned(),
            region: of_url("region").or_else(|| set("AWS_REGION")).or_else(|| set("AWS_DEFAULT_REGION")),
            bucket,
            endpoint,
            path_style,
        })
    }

    fn location(&self) -> String {
        let Self { bucket, prefix, .. } = self;
        let slash = if prefix.is_empty() { "" } else { "/" };
        let endpoint = self.endpoint.as_ref().map(|e| format!("?endpoint={e}")).unwrap_or_default();
        format!("s3://{bucket}{slash}{prefix}{endpoint}")
    }
}

fn check_endpoint(endpoint: &str) -> Result<()> {
    let host = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
    match host {
        Some(host) if !host.is_empty() && !host.contains(['@', '?', '#']) => Ok(()),
        _ => Err(Error::input("the endpoint of S3 must look like https://HOST or http://HOST:PORT, without keys")
            .hint("it stands in the URL as endpoint=…, or in AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL")),
    }
}

async fn s3(place: S3Place) -> Result<OpendalStorage> {
    opendal::install_default();
    let region = match &place.region {
        Some(region) => region.clone(),
        // Other servers take any region, most of them are set to this one.
        None if place.endpoint.is_some() => "us-east-1".to_owned(),
        None => find_region(&place).await?,
    };
    let mut builder = S3::default().bucket(&place.bucket).root(&place.prefix).region(&region);
    if let Some(endpoint) = &place.endpoint {
        builder = builder.endpoint(endpoint);
    }
    if !place.path_style {
        builder = builder.enable_virtual_host_style();
    }
    let location = place.location();
    let operator = Operator::new(builder).map_err(|e| error(format!("opening {location}"), e))?;
    Ok(OpendalStorage::new(operator, location))
}

/// Asks Amazon, which tells everybody where a bucket is.
async fn find_region(place: &S3Place) -> Result<String> {
    let asked = S3::detect_region("https://s3.amazonaws.com", &place.bucket);
    let found = tokio::time::timeout(Duration::from_secs(10), asked).await.ok().flatten();
    found.ok_or_else(|| {
        Error::input(format!("the region of the bucket {} is not known", place.bucket))
            .hint("add region=… to the URL, or set AWS_REGION")
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use model::ErrorKind;

    fn parse(url: &str) -> Result<S3Place> {
        S3Place::parse(url, |_| None)
    }

    fn refused(error: Error) -> String {
        assert_eq!(error.kind(), ErrorKind::Input);
        assert!(error.hint_text().is_some(), "{error}");
        format!("{error:?}")
    }

    #[tokio::test]
    async fn paths_are_folders() {
        for (url, path) in [
            ("/a/b", "/a/b"),
            ("file:/a/b", "/a/b"),
            ("file:///a/b", "/a/b"),
            ("file://localhost/a/b", "/a/b"),
            ("/a/b:c", "/a/b:c"),
        ] {
            assert_eq!(open(url).await.unwrap().location(), path, "{url}");
        }
        let here = std::env::current_dir().unwrap();
        for url in ["some/vault", "file:some/vault", "./some/vault"] {
            assert_eq!(open(url).await.unwrap().location(), here.join("some/vault").display().to_string());
        }
        assert!(!here.join("some").exists(), "opening makes nothing");
    }

    #[tokio::test]
    async fn what_is_no_storage_is_refused() {
        for url in
            ["", "memory:", "memory:x", "folder:/a", "ftp://h/a", "https://h/a", "file:", "file://host/a", "s3:b"]
        {
            refused(open(url).await.unwrap_err());
        }
        let error = open("memory:x").await.unwrap_err();
        assert!(error.hint_text().unwrap().contains("s3://"), "it lists what works");
    }

    #[test]
    fn s3_urls_are_read() {
        let place = parse("s3://bucket/some/prefix/?endpoint=http%3A%2F%2Fh%3A9000&region=eu-1").unwrap();
        let expected = S3Place {
            bucket: "bucket".to_owned(),
            prefix: "some/prefix".to_owned(),
            endpoint: Some("http://h:9000".to_owned()),
            region: Some("eu-1".to_owned()),
            path_style: true,
        };
        assert_eq!(place, expected);
        assert_eq!(place.location(), "s3://bucket/some/prefix?endpoint=http://h:9000");
        assert_eq!(parse("s3://b?endpoint=http://h:1").unwrap().endpoint.unwrap(), "http://h:1");
        assert_eq!(parse("s3://b/").unwrap().location(), "s3://b");
        assert!(!parse("s3://bucket").unwrap().path_style);
        assert!(parse("s3://bu.cket").unwrap().path_style);
        assert!(parse("s3://bucket?path_style=true").unwrap().path_style);
        assert!(!parse("s3://bucket?path_style=false&endpoint=http://h").unwrap().path_style);
    }

    #[test]
    fn variables_fill_what_the_url_leaves_open() {
        let variable = |name: &str| match name {
            "AWS_ENDPOINT_URL" => Some("http://variable".to_owned()),
            "AWS_REGION" => Some(String::new()),
            "AWS_DEFAULT_REGION" => Some("variable".to_owned()),
            _ => None,
        };
        let place = S3Place::parse("s3://b", variable).unwrap();
        assert_eq!((place.endpoint.as_deref(), place.region.as_deref()), (Some("http://variable"), Some("variable")));
        let place = S3Place::parse("s3://b?endpoint=http://url&region=url", variable).unwrap();
        assert_eq!((place.endpoint.as_deref(), place.region.as_deref()), (Some("http://url"), Some("url")));
    }

    #[test]
    fn secrets_in_a_url_are_refused_and_not_repeated() {
        for url in [
            "s3://AKIA:HUSH@bucket/p",
            "s3://HUSH@bucket/p",
            "s3://bucket/p?secret_access_key=HUSH",
            "s3://bucket/p?endpoint=http://user:HUSH@host",
            "s3://bucket/p?endpoint=HUSH",
            "s3://bucket/p?path_style=HUSH&path_style=HUSH",
            "s3://bucket:HUSH/p",
        ] {
            let error = parse(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Input);
            assert!(!format!("{error:?} {:?}", error.hint_text()).contains("HUSH"), "{error:?}");
        }
        assert!(refused(parse("s3://b?colour=red").unwrap_err()).contains("colour"));
    }
}
