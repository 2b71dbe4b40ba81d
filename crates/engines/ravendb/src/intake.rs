//! Taking in an export as fast as the server sends it.
//!
//! A server that waits for its client falls behind, and what it sends comes in thousands of small pieces: were
//! each handed from the task that reads the connection to the one that works with it, threads would wake each
//! other for every few kilobytes. So a thread of its own reads each export, alone with its connection, and
//! puts large pieces into a queue.

use crate::dump::Input;
use crate::refusal::network;
use crate::server::{PAUSE, send};
use bytes::Bytes;
use futures::StreamExt;
use model::{Error, ErrorKind, Result};
use reqwest::{RequestBuilder, Response};
use tokio::sync::{mpsc, oneshot};

/// Bytes of a piece, as they were sent: usually compressed.
const PIECE: usize = 256 << 10;
/// Pieces that wait, 16 MiB: what a server sends while a segment is compressed.
const WAITING: usize = 64;

/// Sends the request for an export: what is answered, once it has begun.
pub(crate) async fn take_in(request: RequestBuilder) -> Result<Input> {
    let (begun, beginning) = oneshot::channel();
    let (out, pieces) = mpsc::channel(WAITING);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Error::io("starting to read an export", e))?;
    let work = move || runtime.block_on(read(request, begun, out));
    let thread = std::thread::Builder::new().name("export".into()).spawn(work);
    thread.map_err(|e| Error::io("starting to read an export", e))?;
    beginning.await.map_err(|_| Error::bug("an export was given up before it began"))??;
    Ok(futures::stream::unfold(pieces, |mut pieces| async { pieces.recv().await.map(|p| (p, pieces)) }).boxed())
}

/// Reads all of an export, or until nobody takes it any more.
async fn read(request: RequestBuilder, mut begun: oneshot::Sender<Result<()>>, out: mpsc::Sender<Result<Bytes>>) {
    let answer = tokio::select! {
        answer = send(request, "starting the export") => answer,
        () = begun.closed() => return,
    };
    let (answer, said) = match answer {
        Ok(answer) => (Some(answer), Ok(())),
        Err(e) => (None, Err(e)),
    };
    if let (Ok(()), Some(answer)) = (begun.send(said), answer) {
        let gone = out.clone();
        tokio::select! {
            () = pass_on(answer, &out) => {}
            () = gone.closed() => {}
        }
    }
}

/// Passes everything on in large pieces: what came before an error, too.
async fn pass_on(mut answer: Response, out: &mpsc::Sender<Result<Bytes>>) {
    let mut piece = Vec::with_capacity(PIECE);
    let end = loop {
        let bytes = match next(&mut answer).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => break None,
            Err(e) => break Some(Err(e)),
        };
        if piece.len() + bytes.len() > PIECE {
            let full = std::mem::replace(&mut piece, Vec::with_capacity(PIECE));
            if out.send(Ok(full.into())).await.is_err() {
                return;
            }
        }
        piece.extend_from_slice(&bytes);
    };
    let last = (!piece.is_empty()).then(|| Ok(piece.into()));
    for item in last.into_iter().chain(end) {
        if out.send(item).await.is_err() {
            return;
        }
    }
}

/// What came next. An export that stands still for too long never goes on.
async fn next(answer: &mut Response) -> Result<Option<Bytes>> {
    match tokio::time::timeout(PAUSE, answer.chunk()).await {
        Ok(next) => next.map_err(|e| network("reading the export", e)),
        Err(_) => {
            let text = format!("the server sent nothing for {} s in the middle of an export", PAUSE.as_secs());
            Err(Error::new(ErrorKind::Retry, text))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::{BufRead, BufReader, ErrorKind as Io, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;
    use testkit::web::{Answer, Web};

    fn request(host: &str) -> RequestBuilder {
        reqwest::Client::new().post(format!("http://{host}/export")).body("{}")
    }

    /// More than what waits.
    fn body() -> Vec<u8> {
        (0..(WAITING + 9) * PIECE / 4).flat_map(|n| (n as u32).to_le_bytes()).collect()
    }

    #[tokio::test]
    async fn everything_comes_in_order_and_in_large_pieces() {
        let web = Web::start(|_| Answer::json(body()));
        let mut input = take_in(request(&web.host)).await.unwrap();
        let (mut all, mut count) = (Vec::new(), 0);
        while let Some(piece) = input.next().await {
            all.extend_from_slice(&piece.unwrap());
            count += 1;
        }
        assert!(all == body());
        // Each piece and the next make more than one.
        assert!(count <= 2 * all.len() / PIECE + 1, "{count}");
    }

    #[tokio::test]
    async fn what_came_before_an_error_comes_before_it() {
        let cut = 5 * PIECE + 77;
        let web = Web::start(move |_| Answer { cut: Some(cut), ..Answer::json(body()) });
        let mut input = take_in(request(&web.host)).await.unwrap();
        let mut all = Vec::new();
        let error = loop {
            match input.next().await.unwrap() {
                Ok(piece) => all.extend_from_slice(&piece),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::Retry);
        assert!(all == body()[..cut]);
        assert!(input.next().await.is_none());
    }

    #[tokio::test]
    async fn a_refusal_is_said_at_once() {
        let web = Web::start(|_| Answer::status(403, "no"));
        let error = take_in(request(&web.host)).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Credentials);
    }

    /// Answers with bytes without an end, until nobody takes them for a second; what ended it.
    fn endless(stream: &mut TcpStream, most: usize) -> (usize, Option<Io>) {
        let piece = vec![b'x'; 1 << 20];
        let mut sent = 0;
        while sent < most {
            match stream.write(&piece) {
                Ok(n) => sent += n,
                Err(e) => return (sent, Some(e.kind())),
            }
        }
        (sent, None)
    }

    #[tokio::test]
    async fn a_server_is_held_up_by_who_does_not_take_and_left_by_who_is_gone() {
        let most = 512 << 20;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (held, is_held) = oneshot::channel();
        let server = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            while reader.read_line(&mut line).unwrap() > 2 {
                line.clear();
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n").unwrap();
            stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
            held.send(endless(&mut stream, most)).unwrap();
            stream.set_write_timeout(None).unwrap();
            endless(&mut stream, most)
        });
        let input = take_in(request(&host)).await.unwrap();
        let (sent, why) = is_held.await.unwrap();
        assert_eq!(why, Some(Io::WouldBlock), "{sent} bytes were taken");
        drop(input);
        let (_, why) = server.join().unwrap();
        assert!(matches!(why, Some(Io::BrokenPipe | Io::ConnectionReset)), "{why:?}");
    }
}
