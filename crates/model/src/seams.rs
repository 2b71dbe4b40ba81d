//! Clock and randomness, replaceable so that tests can seed them.

use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

/// Tells the time.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Milliseconds since 1970 UTC.
    fn now_millis(&self) -> i64;
}

/// Gives random bytes.
pub trait Random: Send + Sync + fmt::Debug {
    /// Fills the whole buffer.
    fn fill(&self, buffer: &mut [u8]);
}

/// The clock and the randomness that a piece of work uses.
#[derive(Debug, Clone)]
pub struct Seams {
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The randomness.
    pub random: Arc<dyn Random>,
}

impl Seams {
    /// The machine's clock and randomness.
    pub fn system() -> Self {
        Seams { clock: Arc::new(SystemClock), random: Arc::new(OsRandom) }
    }

    /// A clock that starts at a fixed time and stands still unless advanced, and randomness from
    /// `seed`: for tests.
    pub fn seeded(seed: u64) -> Self {
        Seams { clock: Arc::new(FixedClock::at(1_760_000_000_000)), random: Arc::new(SeededRandom::new(seed)) }
    }

    /// `N` random bytes.
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.random.fill(&mut bytes);
        bytes
    }
}

/// The machine's clock.
#[derive(Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_millis(&self) -> i64 {
        jiff::Timestamp::now().as_millisecond()
    }
}

/// A clock that stands still unless advanced.
#[derive(Debug)]
pub struct FixedClock(AtomicI64);

impl FixedClock {
    /// A clock that shows `millis`.
    pub fn at(millis: i64) -> Self {
        FixedClock(AtomicI64::new(millis))
    }

    /// Moves the clock forward by `millis`.
    pub fn advance(&self, millis: i64) {
        self.0.fetch_add(millis, Ordering::SeqCst);
    }
}

impl Clock for FixedClock {
    fn now_millis(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// The operating system's randomness.
#[derive(Debug)]
pub struct OsRandom;

impl Random for OsRandom {
    fn fill(&self, buffer: &mut [u8]) {
        // Without randomness no key can be made; there is nothing sensible to go on with.
        getrandom::fill(buffer).expect("the operating system gives random bytes");
    }
}

/// Randomness that repeats for a seed. Not for keys outside tests.
#[derive(Debug)]
pub struct SeededRandom(Mutex<(u64, blake3::OutputReader)>);

impl SeededRandom {
    /// The sequence for `seed`.
    pub fn new(seed: u64) -> Self {
        let reader = blake3::Hasher::new_derive_key("rewound seeded randomness for tests")
            .update(&seed.to_le_bytes())
            .finalize_xof();
        SeededRandom(Mutex::new((seed, reader)))
    }
}

impl Random for SeededRandom {
    fn fill(&self, buffer: &mut [u8]) {
        let mut state = self.0.lock().unwrap_or_else(|e| e.into_inner());
        state.1.fill(buffer);
    }
}
