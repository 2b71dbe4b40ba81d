//! Being woken by the server when something has changed: by the continuous feeds of a few databases, or
//! by the one that tells of all. It is a hint alone: what has changed is asked for by sequence, and asked
//! for now and then without it.

use crate::client::{Request, segment};
use crate::server::Server;
use futures::StreamExt;
use model::{Error, ErrorKind, Result};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

/// Databases that have a feed each, with a connection each; if there are more, one feed tells of all.
const FEEDS: usize = 5;
/// How often the server says that it is there.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// A feed that says nothing for so long has ended, even if its connection has not.
const SILENT: Duration = Duration::from_secs(10);
/// How long after a feed that ended the next one is tried; each time twice as long, if they do not last.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(120);
/// A feed that lasted so long works.
const LASTS: Duration = Duration::from_secs(60);
/// How long changes gather after those that were read, so that each write is not read alone.
const REST: Duration = Duration::from_millis(100);
/// How often all databases are asked where they stand: where the server does not wake us, and where it does.
const ASK: Duration = Duration::from_millis(700);
const ASK_WOKEN: Duration = Duration::from_secs(5);
/// A change that was found by asking is told within this, or the feeds do not tell all; then they are
/// left alone for a while.
const OWED: Duration = Duration::from_secs(10);
const LEFT_ALONE: Duration = Duration::from_secs(600);
/// Bytes of a line of a feed at most.
const LINE: usize = 1 << 20;

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// All databases are to be asked where they stand.
    All,
    /// These have changed.
    Some(BTreeSet<String>),
    /// Nothing has changed, as far as the server says.
    Nothing,
}

/// Waits for changes of databases; ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Wake {
    server: Arc<Server>,
    told: Arc<Told>,
    /// By database; the one that tells of all is that of none.
    feeds: BTreeMap<Option<String>, Feed>,
    /// When all were asked last, and the time before.
    asked: (Instant, Instant),
    /// Up to when the server has said that nothing has changed.
    quiet: Instant,
    left_alone_until: Instant,
}

#[derive(Debug)]
struct Feed {
    heard: Arc<Mutex<Heard>>,
    listening: JoinHandle<()>,
}

/// When a feed that is open was heard first and last.
#[derive(Debug, Clone, Copy, Default)]
struct Heard(Option<(Instant, Instant)>);

impl Heard {
    /// Takes note of it; gives whether it is the first time.
    fn hear(&mut self) -> bool {
        let now = Instant::now();
        let before = self.0;
        self.0 = Some((before.map_or(now, |(first, _)| first), now));
        before.is_none()
    }
}

/// What feeds have told.
#[derive(Debug, Default)]
struct Told {
    changed: Notify,
    noted: Mutex<Noted>,
}

#[derive(Debug, Default)]
struct Noted {
    /// Databases that are followed.
    followed: BTreeSet<String>,
    /// Those that have changed.
    names: BTreeSet<String>,
    /// Whether anything may have happened.
    all: bool,
    /// One that was found to have changed, and of which nothing was told yet.
    owed: Option<(String, Instant)>,
}

impl Wake {
    /// Listens to nothing yet.
    pub fn new(server: Arc<Server>) -> Wake {
        let now = Instant::now();
        Wake {
            server,
            told: Arc::default(),
            feeds: BTreeMap::new(),
            asked: (now, now),
            quiet: now,
            left_alone_until: now,
        }
    }

    /// Listens for these databases from now on.
    pub fn follow<'a>(&mut self, names: impl Iterator<Item = &'a String>) {
        let names: BTreeSet<String> = names.cloned().collect();
        let wanted: BTreeSet<Option<String>> = match names.len() {
            _ if self.left_alone_until > Instant::now() => BTreeSet::new(),
            0 => BTreeSet::new(),
            1..=FEEDS => names.iter().cloned().map(Some).collect(),
            _ => BTreeSet::from([None]),
        };
        self.told.noted().followed = names;
        self.feeds.retain(|name, _| wanted.contains(name));
        for name in wanted {
            let (server, told) = (&self.server, &self.told);
            self.feeds.entry(name).or_insert_with_key(|name| Feed::new(server.clone(), name.clone(), told.clone()));
        }
    }

    /// Says which databases were found to have changed when all were asked.
    pub fn found<'a>(&mut self, mut names: impl Iterator<Item = &'a str>) {
        // What happened before a feed was open it need not tell.
        let is_settled = self.feeds.values().all(|feed| feed.heard().0.is_some_and(|(first, _)| first < self.asked.1));
        let mut noted = self.told.noted();
        let untold = names.find(|name| !noted.names.contains(*name));
        if let (true, Some(name), None) = (is_settled, untold, &noted.owed) {
            noted.owed = Some((name.to_owned(), Instant::now()));
        }
    }

    /// Up to when all feeds were heard; none if one is not.
    fn heard(&self) -> Option<Instant> {
        let heard = self.feeds.values().map(|feed| feed.heard().0.map(|(_, last)| last));
        heard.min().flatten()
    }

    /// Whether the feeds are there, and do not tell what they should.
    fn is_deaf(&self) -> bool {
        let mut noted = self.told.noted();
        let is_late = noted.owed.as_ref().is_some_and(|(_, since)| since.elapsed() > OWED);
        if is_late {
            noted.owed = None;
        }
        is_late
    }

    /// Waits until there is something to do.
    pub async fn next(&mut self) -> Next {
        tokio::time::sleep(REST).await;
        loop {
            if self.is_deaf() {
                tracing::debug!("the server's feeds do not tell of all changes: the databases are asked");
                self.feeds.clear();
                self.left_alone_until = Instant::now() + LEFT_ALONE;
            }
            let heard = self.heard();
            let (now, due) = (Instant::now(), self.asked.0 + if heard.is_some() { ASK_WOKEN } else { ASK });
            let (names, all) = self.told.take(now >= due);
            if all {
                self.asked = (now, self.asked.0);
                return Next::All;
            }
            if !names.is_empty() {
                return Next::Some(names);
            }
            if let Some(heard) = heard.filter(|heard| *heard > self.quiet + HEARTBEAT / 2) {
                self.quiet = heard;
                return Next::Nothing;
            }
            let longest = HEARTBEAT.min(due.saturating_duration_since(now));
            let _ = timeout(longest, self.told.changed.notified()).await;
        }
    }
}

impl Told {
    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// What was told since, or that it is time to ask all. What was told of single ones stays then: it may
    /// be newer than what they answer.
    fn take(&self, is_due: bool) -> (BTreeSet<String>, bool) {
        let mut noted = self.noted();
        if std::mem::take(&mut noted.all) || is_due {
            return (BTreeSet::new(), true);
        }
        (std::mem::take(&mut noted.names), false)
    }

    fn anything(&self) {
        let mut noted = self.noted();
        (noted.all, noted.owed) = (true, None);
        self.changed.notify_one();
    }

    fn one(&self, name: &str) {
        let mut noted = self.noted();
        if noted.owed.as_ref().is_some_and(|(owed, _)| owed == name) {
            noted.owed = None;
        }
        if noted.followed.contains(name) && noted.names.insert(name.to_owned()) {
            self.changed.notify_one();
        }
    }
}

/// A line of the feed that tells of all databases.
#[derive(Deserialize)]
struct Update {
    db_name: String,
    #[serde(rename = "type")]
    what: String,
}

impl Feed {
    fn new(server: Arc<Server>, name: Option<String>, told: Arc<Told>) -> Feed {
        let heard = Arc::new(Mutex::new(Heard::default()));
        let hears = heard.clone();
        let listening = tokio::spawn(async move {
            let mut pause = AGAIN;
            loop {
                let began = Instant::now();
                let ended = listen(&server, name.as_deref(), &told, &hears).await;
                if let Err(e) = ended {
                    tracing::debug!("the server does not wake us: {e}");
                }
                if hears.lock().unwrap_or_else(|e| e.into_inner()).0.take().is_some() {
                    told.anything();
                }
                if began.elapsed() >= LASTS {
                    pause = AGAIN;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(AGAIN_MAX);
            }
        });
        Feed { heard, listening }
    }

    fn heard(&self) -> Heard {
        *self.heard.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Tells of changes until the feed ends.
async fn listen(server: &Server, name: Option<&str>, told: &Told, heard: &Mutex<Heard>) -> Result<()> {
    let of = name.map_or("_db_updates".to_owned(), |name| format!("{}/_changes", segment(name)));
    let path = format!("{of}?feed=continuous&since=now&heartbeat={}", HEARTBEAT.as_millis());
    let client = &server.client;
    let silent = |_| Error::new(ErrorKind::Retry, format!("{of} says nothing for {} s", SILENT.as_secs()));
    let request = Request::get(path);
    let asking = async { client.once(client.build(&request).await?).await };
    let mut feed = timeout(SILENT, asking).await.map_err(silent)?.map_err(|failure| failure.error)?.bytes_stream();
    let mut line = Vec::new();
    while let Some(piece) = timeout(SILENT, feed.next()).await.map_err(silent)? {
        let piece = piece.map_err(|e| client.transport(&e))?;
        if heard.lock().unwrap_or_else(|e| e.into_inner()).hear() {
            // Something may have happened before.
            told.anything();
        }
        match name {
            // Which document it is will be seen.
            Some(name) if piece.iter().any(|b| *b != b'\n') => told.one(name),
            Some(_) => {}
            None => updates(server, &mut line, &piece, told)?,
        }
    }
    Ok(())
}

/// Understands what has come of the feed that tells of all databases.
fn updates(server: &Server, line: &mut Vec<u8>, piece: &[u8], told: &Told) -> Result<()> {
    line.extend_from_slice(piece);
    let end = memchr::memrchr(b'\n', line).map_or(0, |at| at + 1);
    for text in line[..end].split(|b| *b == b'\n').filter(|text| !text.is_empty()) {
        match serde_json::from_slice::<Update>(text) {
            Ok(update) if update.what == "updated" => told.one(&update.db_name),
            Ok(update) if server.place().takes(&update.db_name) => told.anything(),
            Ok(_) => {}
            // Its last one, or one that is garbled.
            Err(_) => told.anything(),
        }
    }
    line.drain(..end);
    if line.len() > LINE {
        return Err(Error::corrupt("a line of _db_updates is too long"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::place::Place;
    use std::io::{BufRead, Write};
    use testkit::pouchdb::CouchServer;
    use testkit::proxy::Proxy;

    const PATIENCE: Duration = Duration::from_secs(120);

    fn wake(url: &str) -> Wake {
        Wake::new(Arc::new(Server::new(Place::parse(url, None).unwrap()).unwrap()))
    }

    /// Goes on until something is so.
    async fn until(wake: &mut Wake, what: &str, mut is_so: impl FnMut(&Wake, Option<Next>) -> bool) {
        let going_on = async {
            let mut next = None;
            while !is_so(wake, next) {
                next = Some(wake.next().await);
            }
        };
        timeout(PATIENCE, going_on).await.unwrap_or_else(|_| panic!("{what}"));
    }

    async fn until_heard(wake: &mut Wake) {
        until(wake, "the feeds are there", |wake, _| wake.heard().is_some()).await;
        until(wake, "nothing more is told", |_, next| next == Some(Next::Nothing)).await;
    }

    async fn until_told(wake: &mut Wake, couch: &CouchServer, db: &str, id: &str) {
        couch.done("PUT", &format!("/{db}/{id}"), "{}");
        let told = Next::Some(BTreeSet::from([db.to_owned()]));
        until(wake, "a change is told", |_, next| next.as_ref() == Some(&told)).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_change_wakes_for_its_database() {
        let couch = CouchServer::shared();
        let names = [couch.database(), couch.database(), couch.database()];
        let mut wake = wake(&couch.url(""));
        wake.follow(names.iter());
        until_heard(&mut wake).await;
        for (i, db) in names.iter().chain(&names).enumerate() {
            until_told(&mut wake, &couch, db, &i.to_string()).await;
        }
        wake.follow(names[..1].iter());
        assert_eq!(wake.feeds.len(), 1, "what is not followed is not listened for");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_feed_that_is_cut_is_opened_again() {
        let couch = CouchServer::shared();
        let proxy = Proxy::start(&couch.host);
        let db = couch.database();
        let mut wake = wake(&couch.url(&db).replace(&couch.host, &proxy.host()));
        wake.follow([db.clone()].iter());
        for round in 0..3 {
            until_heard(&mut wake).await;
            until_told(&mut wake, &couch, &db, &format!("d{round}")).await;
            proxy.cut();
            until(&mut wake, "it is noticed", |_, next| next == Some(Next::All)).await;
        }
    }

    /// A proxy that lets nothing through any more, and does not say so.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_feed_without_heartbeats_has_ended() {
        let couch = CouchServer::shared();
        let proxy = Proxy::start(&couch.host);
        let db = couch.database();
        let mut wake = wake(&couch.url(&db).replace(&couch.host, &proxy.host()));
        wake.follow([db.clone()].iter());
        until_heard(&mut wake).await;
        proxy.hold(true);
        until(&mut wake, "its silence is noticed", |wake, _| wake.heard().is_none()).await;
        let began = Instant::now();
        let mut rounds = 0;
        until(&mut wake, "it is asked instead", |_, next| {
            rounds += usize::from(next == Some(Next::All));
            rounds == 4
        })
        .await;
        assert!(began.elapsed() >= ASK * 2, "not all the time");
        proxy.hold(false);
        until_heard(&mut wake).await;
        until_told(&mut wake, &couch, &db, "a").await;
    }

    /// Many databases have one feed, where the server has it; pouchdb-server has not.
    #[tokio::test(flavor = "multi_thread")]
    async fn one_feed_tells_of_many() {
        let couch = CouchServer::shared();
        let names: Vec<String> = (0..=FEEDS).map(|_| couch.database()).collect();
        let mut wake = wake(&couch.url(""));
        wake.follow(names.iter());
        assert_eq!(wake.feeds.len(), 1);
        if couch.ask("GET", "/_db_updates?limit=1", "").0 == 200 {
            until_heard(&mut wake).await;
            until_told(&mut wake, &couch, &names[1], "a").await;
            couch.database();
            until(&mut wake, "a new one is told", |_, next| next == Some(Next::All)).await;
            return;
        }
        let mut rounds = 0;
        until(&mut wake, "it is asked instead", |wake, next| {
            rounds += usize::from(next == Some(Next::All));
            rounds == 5 && wake.heard().is_none()
        })
        .await;
    }

    /// A server that says that it is there, and nothing else.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_feed_that_tells_nothing_is_left_alone() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("couchdb+http://{}/x", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            // Nobody is answered before they have asked.
            let asked = std::io::BufReader::new(client.try_clone().unwrap());
            asked.lines().map_while(Result::ok).find(String::is_empty);
            client.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
            while client.write_all(b"1\r\n\n\r\n").is_ok() {
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        let mut wake = wake(&url);
        wake.follow(["x".to_owned()].iter());
        until_heard(&mut wake).await;
        // What has changed before the feed was open is not owed.
        wake.found(["x"].into_iter());
        assert!(wake.told.noted().owed.is_none());
        let mut rounds = 0;
        until(&mut wake, "rounds", |_, next| {
            rounds += usize::from(next == Some(Next::All));
            rounds == 2
        })
        .await;
        wake.found(["x"].into_iter());
        assert!(wake.told.noted().owed.is_some());
        until(&mut wake, "it is left alone", |wake, _| wake.feeds.is_empty()).await;
        wake.follow(["x".to_owned()].iter());
        assert!(wake.feeds.is_empty() && wake.heard().is_none());
    }

    #[test]
    fn updates_are_understood_in_any_pieces() {
        let server = Server::new(Place::parse("couchdb+http://127.0.0.1:1/a*", None).unwrap()).unwrap();
        let lines = "\n{\"db_name\":\"a1\",\"type\":\"updated\",\"seq\":\"1\"}\n\n{\"db_name\":\"b\",\"type\":\"created\",\"seq\":\"1\"}\n{\"db_name\":\"a3\",\"type\":\"updated\",\"seq\":\"1\"}\n{\"db_";
        for size in 1..lines.len() {
            let told = Told::default();
            told.noted().followed = BTreeSet::from(["a1".to_owned(), "a2".to_owned()]);
            let mut line = Vec::new();
            for piece in lines.as_bytes().chunks(size) {
                updates(&server, &mut line, piece, &told).unwrap();
            }
            // Neither those that are not followed, nor what became of those that are not meant.
            assert_eq!(told.take(false), (BTreeSet::from(["a1".to_owned()]), false));
            updates(&server, &mut line, b"name\":\"a2\",\"type\":\"deleted\"}\n", &told).unwrap();
            assert_eq!(told.take(false), (BTreeSet::new(), true));
        }
        assert!(updates(&server, &mut Vec::new(), &[b'x'; LINE + 1], &Told::default()).is_err());
    }
}
