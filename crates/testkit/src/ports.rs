//! Ports for the servers that tests start.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

/// Below what systems give to outgoing connections: one of these could take the port of a server
/// that has not bound it yet, or of one that was killed and is to start again.
const PORTS: std::ops::Range<u32> = 10_000..32_000;

/// How many ports this program has tried.
static TRIED: AtomicU32 = AtomicU32::new(0);

/// A port of 127.0.0.1 that nobody listens on, given out once in this program.
pub fn free_port() -> u16 {
    // Programs that run at the same time begin at different places.
    let first = std::process::id().wrapping_mul(97);
    let mut all = std::iter::from_fn(|| {
        let n = first.wrapping_add(TRIED.fetch_add(1, Ordering::Relaxed)) % PORTS.len() as u32;
        u16::try_from(PORTS.start + n).ok()
    });
    all.by_ref().take(PORTS.len()).find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("a free port")
}
