//! Storage in S3, against a server that speaks its protocol.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use bytes::Bytes;
use model::ErrorKind;
use opendal::Operator;
use opendal::services::S3;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::sync::{Arc, Mutex};
use testkit::moto::Moto;
use testkit::storage::conformance;
use vault::storage::{Created, OpendalStorage, Storage, open};

/// A URL that a process with an environment of its own opens.
const OPEN: &str = "REWOUND_TEST_OPEN";

/// A storage in a new bucket.
fn new_storage(moto: &Moto, bucket: &str) -> OpendalStorage {
    moto.make_bucket(bucket);
    storage_at(&moto.endpoint(), bucket)
}

fn storage_at(endpoint: &str, bucket: &str) -> OpendalStorage {
    opendal::install_default();
    let builder = S3::default()
        .bucket(bucket)
        .root("/some/prefix")
        .endpoint(endpoint)
        .region("us-east-1")
        .access_key_id("test")
        .secret_access_key("test")
        .disable_config_load()
        .disable_ec2_metadata();
    OpendalStorage::new(Operator::new(builder).unwrap(), format!("s3://{bucket}/some/prefix"))
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_conforms() {
    let moto = Moto::shared();
    conformance(Arc::new(new_storage(&moto, "conformance"))).await;
}

#[tokio::test]
async fn s3_tells_what_is_there_already() {
    let moto = Moto::shared();
    let storage = new_storage(&moto, "existing");
    assert_eq!(storage.create("a", Bytes::from_static(b"one")).await.unwrap(), Created::New);
    assert_eq!(storage.create("a", Bytes::from_static(b"two")).await.unwrap(), Created::Existed);
    assert_eq!(storage.read("a").await.unwrap(), "one");
}

#[tokio::test]
async fn each_call_is_one_request() {
    let moto = Moto::shared();
    let storage = new_storage(&moto, "counted");
    storage.create("written", Bytes::from(vec![1; 24 << 20])).await.unwrap();
    assert_eq!(moto.requests("counted/some/prefix/written").len(), 1, "{:?}", moto.requests("written"));
    storage.create("read", Bytes::from(vec![1; 1000])).await.unwrap();
    storage.read("read").await.unwrap();
    storage.read_range("read", 10..20).await.unwrap();
    storage.read_range("read", 990..2000).await.unwrap();
    storage.stat("read").await.unwrap();
    assert_eq!(moto.requests("counted/some/prefix/read").len(), 5, "{:?}", moto.requests("read"));
}

#[tokio::test]
async fn a_bucket_that_is_not_there_is_named() {
    let moto = Moto::shared();
    let storage = storage_at(&moto.endpoint(), "no-such-bucket");
    let error = storage.create("a", Bytes::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Input, "{error:?}");
    assert!(error.to_string().contains("s3://no-such-bucket/some/prefix"), "{error}");
    assert!(error.hint_text().unwrap().contains("bucket"));
}

/// A server that answers each request with the next of these, the last one for ever.
fn answering(answers: &'static [&'static str]) -> (String, Arc<Mutex<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let count = Arc::new(Mutex::new(0));
    let counted = count.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut length = 0;
            loop {
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                if line.trim().is_empty() {
                    break;
                }
            }
            stream.read_exact(&mut vec![0; length]).unwrap();
            let mut count = counted.lock().unwrap();
            let (status, body) = answers[(*count).min(answers.len() - 1)].split_once('|').unwrap();
            *count += 1;
            let answer =
                format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
            stream.get_mut().write_all(answer.as_bytes()).unwrap();
        }
    });
    (endpoint, count)
}

#[tokio::test]
async fn passing_trouble_is_tried_again() {
    let (endpoint, count) = answering(&[
        "503 Service Unavailable|<Error><Code>SlowDown</Code><Message>slow down</Message></Error>",
        "500 Internal Server Error|oh",
        "200 OK|",
    ]);
    let storage = storage_at(&endpoint, "b");
    assert_eq!(storage.create("a", Bytes::from_static(b"x")).await.unwrap(), Created::New);
    assert_eq!(*count.lock().unwrap(), 3);
}

#[tokio::test]
async fn refusals_are_not_tried_again() {
    let (endpoint, count) =
        answering(&["400 Bad Request|<Error><Code>ExpiredToken</Code><Message>it has expired</Message></Error>"]);
    let error = storage_at(&endpoint, "b").read("a").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Credentials, "{error:?}");
    assert!(error.hint_text().unwrap().contains("expired"));
    assert_eq!(*count.lock().unwrap(), 1);

    let (endpoint, count) = answering(&["403 Forbidden|<Error><Code>AccessDenied</Code><Message>no</Message></Error>"]);
    let error = storage_at(&endpoint, "b").create("a", Bytes::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Credentials, "{error:?}");
    assert_eq!(*count.lock().unwrap(), 1);
}

/// Runs this test again with an environment of its own, where it opens the URL.
fn open_elsewhere(test: &str, url: &str, variables: &[(&str, &str)]) -> (bool, String) {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join(".aws")).unwrap();
    let keys = "[work]\naws_access_key_id = AKPROFILE\naws_secret_access_key = SECRETPROFILE\n";
    fs::write(home.path().join(".aws/credentials"), keys).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env_clear()
        .env("HOME", home.path())
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env(OPEN, url)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said)
}

async fn opened(url: &str) {
    let storage = open(url).await.unwrap();
    storage.create("from/url", Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(storage.read("from/url").await.unwrap(), "x");
    println!("opened {}", storage.location());
}

#[tokio::test]
async fn keys_come_from_the_environment() {
    if let Ok(url) = std::env::var(OPEN) {
        return opened(&url).await;
    }
    let moto = Moto::shared();
    moto.make_bucket("by-url");
    let test = "keys_come_from_the_environment";
    let url = |prefix: &str| format!("s3://by-url/{prefix}?endpoint={}", moto.endpoint());

    let keys = [("AWS_ACCESS_KEY_ID", "AKSOME"), ("AWS_SECRET_ACCESS_KEY", "SECRETSOME")];
    let (good, said) = open_elsewhere(test, &url("a/b"), &keys);
    assert!(good && said.contains("opened s3://by-url/a/b"), "{said}");
    assert!(!said.contains("SECRET"), "{said}");
    assert!(!moto.requests("PUT /by-url/a/b/from/url").is_empty(), "{:?}", moto.requests("by-url"));

    let endpoint = moto.endpoint();
    let keys = [("AWS_PROFILE", "work"), ("AWS_ENDPOINT_URL", endpoint.as_str()), ("AWS_REGION", "us-east-1")];
    let (good, said) = open_elsewhere(test, "s3://by-url/profile", &keys);
    assert!(good, "{said}");

    let (good, said) = open_elsewhere(test, &url("none"), &[]);
    assert!(!good && said.contains("Credentials") && said.contains("AWS_ACCESS_KEY_ID"), "{said}");
    let (good, said) = open_elsewhere(test, &url("none"), &[("AWS_PROFILE", "unknown")]);
    assert!(!good && said.contains("Credentials"), "{said}");
}
