//! A network that fails: a proxy on 127.0.0.1 that cuts, holds up and refuses connections, and garbles
//! what they carry.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A proxy in front of a server. It ends with the test.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    connections: Mutex<Vec<TcpStream>>,
    refuses: AtomicBool,
    holds: AtomicBool,
    over: AtomicBool,
    /// Bytes from the server until the connection that carries them is cut; 0: not at all.
    cut_after: AtomicU64,
    /// Bytes from the server until one of them is garbled; 0: none.
    garble_after: AtomicU64,
    /// Bytes from the server so far.
    answered: AtomicU64,
}

impl Proxy {
    /// In front of the server at `HOST:PORT`.
    pub fn start(server: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, server) = (listener.local_addr().unwrap(), server.to_owned());
        let shared = Arc::new(Shared::default());
        let of_thread = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if of_thread.over.load(Ordering::SeqCst) {
                    return;
                }
                if of_thread.refuses.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(behind) = TcpStream::connect(&server) else { continue };
                let copies = (client.try_clone(), behind.try_clone());
                let (Ok(client2), Ok(behind2)) = copies else { continue };
                of_thread.connections.lock().unwrap().extend([client.try_clone().unwrap()]);
                let (up, down) = (of_thread.clone(), of_thread.clone());
                std::thread::spawn(move || pump(client, behind, &up, false));
                std::thread::spawn(move || pump(behind2, client2, &down, true));
            }
        });
        Proxy { address, shared }
    }

    /// Host and port.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Cuts all connections, wherever they are.
    pub fn cut(&self) {
        for connection in self.shared.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Cuts the connection that carries the server's answers after so many more bytes of them.
    pub fn cut_after(&self, bytes: u64) {
        self.shared.cut_after.store(bytes.max(1), Ordering::SeqCst);
    }

    /// Garbles one byte of the server's answers, after so many more bytes of them: what was a letter of
    /// ASCII is no text any more.
    pub fn garble_after(&self, bytes: u64) {
        self.shared.garble_after.store(bytes.max(1), Ordering::SeqCst);
    }

    /// Bytes that the server has answered so far.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::SeqCst)
    }

    /// From now on no connection gets through, or any does again.
    pub fn refuse(&self, yes: bool) {
        self.shared.refuses.store(yes, Ordering::SeqCst);
        if yes {
            self.cut();
        }
    }

    /// From now on nothing goes on, without anybody being told, or everything goes on again.
    pub fn hold(&self, yes: bool) {
        self.shared.holds.store(yes, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        self.cut();
        // So that the thread that waits for connections ends.
        let _ = TcpStream::connect(self.address);
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, shared: &Shared, answers: bool) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(read) = from.read(&mut buffer) {
        while shared.holds.load(Ordering::SeqCst) && !shared.over.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let left = shared.cut_after.load(Ordering::SeqCst);
        let is_cut = answers && left > 0 && left <= read as u64;
        if answers && left > 0 {
            shared.cut_after.store(left.saturating_sub(read as u64), Ordering::SeqCst);
        }
        if answers {
            shared.answered.fetch_add(read as u64, Ordering::SeqCst);
            let left = shared.garble_after.load(Ordering::SeqCst);
            shared.garble_after.store(left.saturating_sub(read as u64), Ordering::SeqCst);
            if let Some(byte) = (left as usize).checked_sub(1).and_then(|at| buffer[..read].get_mut(at)) {
                *byte ^= 0x80;
            }
        }
        let send = if is_cut { left as usize - 1 } else { read };
        if read == 0 || to.write_all(&buffer[..send]).is_err() || is_cut {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
