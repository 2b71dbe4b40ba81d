//! Logging in with an API key, as Cloudant wants it, through the binary: a token server that counts, and a server that
//! takes nothing without a current token in front of a real one.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Host, Ran};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use testkit::pouchdb::CouchServer;
use testkit::web::{Answer, Web, forward};

const KEY: &str = "K3y-that+nobody/sees";
const GRANT: &str = "grant_type=urn%3Aibm%3Aparams%3Aoauth%3Agrant-type%3Aapikey&apikey=K3y%2Dthat%2Bnobody%2Fsees";

/// Tokens `t1`, `t2`, …, of which those that are withdrawn are good for nothing.
#[derive(Default)]
struct Tokens {
    given: AtomicUsize,
    withdrawn: AtomicUsize,
    /// Requests with a good token until it is withdrawn; 0: it stays.
    left: AtomicUsize,
}

impl Tokens {
    fn server(self: &Arc<Self>) -> Web {
        let tokens = self.clone();
        Web::start(move |asked| {
            let is_form = asked.header("content-type") == Some("application/x-www-form-urlencoded");
            if asked.method != "POST" || asked.path != "/identity/token" || !is_form || asked.body != GRANT.as_bytes() {
                let text = r#"{"errorCode":"BXNIM0415E","errorMessage":"Provided API key could not be found."}"#;
                return Answer { status: 400, ..Answer::json(text) };
            }
            let number = tokens.given.fetch_add(1, Ordering::SeqCst) + 1;
            Answer::json(format!(r#"{{"access_token":"t{number}","token_type":"Bearer","expires_in":3600}}"#))
        })
    }

    /// In front of a server.
    fn guard(self: &Arc<Self>, couch: &CouchServer) -> Web {
        let (tokens, server) = (self.clone(), couch.host.clone());
        Web::start(move |asked| {
            let token = asked.header("authorization").and_then(|login| login.strip_prefix("Bearer t"));
            let number = token.and_then(|number| number.parse::<usize>().ok()).unwrap_or(0);
            let (given, withdrawn) = (tokens.given.load(Ordering::SeqCst), tokens.withdrawn.load(Ordering::SeqCst));
            if number <= withdrawn || number > given {
                return Answer::status(401, "unauthorized");
            }
            if tokens.left.load(Ordering::SeqCst) > 0 && tokens.left.fetch_sub(1, Ordering::SeqCst) == 1 {
                tokens.withdrawn.store(number, Ordering::SeqCst);
            }
            forward(&server, asked)
        })
    }
}

fn run(host: &Host, args: &[&str], key: &str, tokens: &str) -> Ran {
    let mut command = host.command(args);
    command.env("REWOUND_IDENTITY", host.path("key.txt"));
    let ran = common::ran(command.env("REWOUND_PASSWORD", key).env("REWOUND_IAM_URL", tokens).output().unwrap());
    assert!(!format!("{ran:?}").contains(key), "{ran:?}");
    ran
}

#[test]
fn an_api_key_is_exchanged_for_tokens() {
    let (couch, host) = (CouchServer::shared(), Host::ready());
    let (db, tokens) = (couch.database(), Arc::new(Tokens::default()));
    let (server, guard) = (tokens.server(), tokens.guard(&couch));
    let exchange = format!("http://{}", server.host);
    let data = "QUFB".repeat(3000);
    for i in 0..20 {
        let attached = format!(r#"{{"_attachments":{{"x":{{"content_type":"t/t","data":"{data}"}}}}}}"#);
        couch.done("PUT", &format!("/{db}/d{i}"), if i < 3 { &attached } else { "{}" });
    }
    let url = |name: &str| format!("couchdb+iam+http://{}/{name}", guard.host);
    let given = || tokens.given.swap(0, Ordering::SeqCst) - tokens.withdrawn.swap(0, Ordering::SeqCst);
    // Withdrawn while documents are read, and between attachments: another one is got, once.
    for left in [0, 1, 5, 8] {
        tokens.left.store(left, Ordering::SeqCst);
        let vault = format!("v{left}");
        host.run(&["init", &vault, "--plain"]).ends(0);
        run(&host, &["backup", &url(&db), "--to", &vault, "--json", "-v"], KEY, &exchange).ends(0);
        assert_eq!(given(), 1, "{left}");
    }
    let to = couch.database_name();
    tokens.left.store(4, Ordering::SeqCst);
    let ran = run(&host, &["restore", "v8", "--into", &url(&to), "--json"], KEY, &exchange).ends(0);
    assert_eq!(ran.summary()["proof"]["holds"], true, "{ran:?}");
    assert_eq!(given(), 1);
    assert_eq!(couch.done("GET", &format!("/{to}"), "")["doc_count"], 20);
    // What says no.
    let backup = ["backup", &url(&db), "--to", "v0"];
    run(&host, &backup, "another key", &exchange).fails(1, "the API key is refused");
    assert_eq!(given(), 0);
    tokens.withdrawn.store(usize::MAX, Ordering::SeqCst);
    run(&host, &backup, KEY, &exchange).fails(1, "role in this Cloudant instance");
    assert_eq!(tokens.given.load(Ordering::SeqCst), 2, "a new token is tried once");
    run(&host, &backup, KEY, "http://iam.example.com").fails(2, "is not https");
    run(&host, &backup, KEY, "http://127.0.0.1:1").fails(1, "cannot be reached");
}
