//! Storage with faults: a disk in memory that can lose what was not synced, handles of processes
//! that die, time out, run full or read short, and a decorator that counts requests. Everything
//! is decided by seeds, so a failure can be repeated.

mod counting;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use model::{Clock, Error, ErrorKind, FixedClock, Random, Result, SeededRandom};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use vault::storage::{Created, Entry, Storage};

use counting::Counter;
pub use counting::{CountingStorage, OpCounts};

/// What a power loss does to a new object that was not synced, if it does not vanish or stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unsynced {
    /// Nothing else: objects are flushed before they get their names.
    WholeOrGone,
    /// It may be cut off anywhere, or empty, as file systems do that write data late.
    #[default]
    Truncated,
    /// It may also keep its length and have zeros in place of its end.
    Garbage,
}

/// A disk in memory. Clones are the same disk; [`SimDisk::fork`] copies it.
#[derive(Debug, Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    clock: Arc<dyn Clock>,
    unsynced: Unsynced,
}

#[derive(Debug, Clone, Default)]
struct State {
    /// What everybody sees.
    visible: BTreeMap<String, Object>,
    /// What a power loss leaves for certain.
    durable: BTreeMap<String, Object>,
    /// Names that were written by replacing: whole or not there at all after a power loss.
    whole: BTreeSet<String>,
    /// How many crashes there were: handles from before the last one are dead.
    crashes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Object {
    bytes: Bytes,
    modified: i64,
}

/// What a crash did to what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Crashed {
    /// Writes and deletions that were kept.
    pub kept: u64,
    /// Writes and deletions that are undone.
    pub lost: u64,
    /// Objects that are damaged.
    pub torn: u64,
}

impl Default for SimDisk {
    fn default() -> Self {
        SimDisk::new(Arc::new(FixedClock::at(1_760_000_000_000)))
    }
}

impl SimDisk {
    /// An empty disk; objects get their times from `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        SimDisk { state: Arc::default(), clock, unsynced: Unsynced::default() }
    }

    /// The same disk, on which a power loss does this.
    pub fn with_unsynced(mut self, unsynced: Unsynced) -> Self {
        self.unsynced = unsynced;
        self
    }

    /// A handle without faults.
    pub fn storage(&self) -> Arc<dyn Storage> {
        self.faulty(Faults::default())
    }

    /// A handle of a process that meets these faults.
    pub fn faulty(&self, faults: Faults) -> Arc<FaultyStorage> {
        Arc::new(FaultyStorage {
            disk: self.clone(),
            dice: Dice::new(faults.seed),
            crashes: self.lock().crashes,
            counts: Counter::default(),
            handle: Mutex::default(),
            faults,
        })
    }

    /// A disk of its own with the same content, durable and not.
    pub fn fork(&self) -> SimDisk {
        let state = self.lock().clone();
        SimDisk { state: Arc::new(Mutex::new(state)), ..self.clone() }
    }

    /// Cuts the power: what is not durable stays, vanishes or is torn, as `seed` has it, and every
    /// handle from before is dead.
    pub fn crash(&self, seed: u64) -> Crashed {
        let dice = Dice::new(seed);
        let mut state = self.lock();
        let State { visible, durable, whole, crashes } = &mut *state;
        *crashes += 1;
        let names: BTreeSet<String> = visible.keys().chain(durable.keys()).cloned().collect();
        let mut crashed = Crashed::default();
        for name in names {
            let (now, before) = (visible.get(&name), durable.get(&name));
            if now == before {
                continue;
            }
            // A replacement or deletion happens or does not: file systems do these two whole.
            let can_tear = before.is_none() && !whole.contains(&name) && self.unsynced != Unsynced::WholeOrGone;
            match (dice.below(if can_tear { 4 } else { 2 }), now.cloned()) {
                (0, _) => crashed.lost += 1,
                (1, now) => {
                    crashed.kept += 1;
                    set(durable, &name, now);
                }
                (_, now) => {
                    crashed.torn += 1;
                    set(durable, &name, now.map(|o| Object { bytes: tear(&o.bytes, self.unsynced, &dice), ..o }));
                }
            }
        }
        *visible = durable.clone();
        crashed
    }

    /// Ends every process without a power loss: what was written stays, synced or not.
    pub fn kill_all(&self) {
        self.lock().crashes += 1;
    }

    /// The names of all objects that begin so.
    pub fn names(&self, prefix: &str) -> Vec<String> {
        self.lock().visible.keys().filter(|n| n.starts_with(prefix)).cloned().collect()
    }

    /// The bytes of an object.
    pub fn get(&self, name: &str) -> Option<Bytes> {
        self.lock().visible.get(name).map(|o| o.bytes.clone())
    }

    /// Puts an object there, durably, whatever was there.
    pub fn put(&self, name: &str, bytes: impl Into<Bytes>) {
        let object = Object { bytes: bytes.into(), modified: self.clock.now_millis() };
        let mut state = self.lock();
        state.durable.insert(name.to_owned(), object.clone());
        state.visible.insert(name.to_owned(), object);
    }

    /// Takes an object away, durably.
    pub fn remove(&self, name: &str) -> Option<Bytes> {
        let mut state = self.lock();
        state.durable.remove(name);
        state.visible.remove(name).map(|o| o.bytes)
    }

    /// Flips one bit of an object, which must have that many bits.
    pub fn flip(&self, name: &str, bit: u64) {
        self.change(name, |bytes| bytes[(bit / 8) as usize] ^= 1 << (bit % 8));
    }

    /// Cuts an object off.
    pub fn truncate(&self, name: &str, length: usize) {
        self.change(name, |bytes| bytes.truncate(length));
    }

    /// Gives each of two objects the bytes of the other.
    pub fn swap(&self, a: &str, b: &str) {
        let (of_a, of_b) = (self.get(a).expect("the object is there"), self.get(b).expect("the object is there"));
        self.put(a, of_b);
        self.put(b, of_a);
    }

    /// Changes the bytes of an object that is there.
    pub fn change(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.get(name).unwrap_or_else(|| panic!("{name} is there")).to_vec();
        change(&mut bytes);
        self.put(name, bytes);
    }

    /// Bytes of all objects.
    pub fn size(&self) -> u64 {
        self.lock().visible.values().map(|o| o.bytes.len() as u64).sum()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

fn set(objects: &mut BTreeMap<String, Object>, name: &str, object: Option<Object>) {
    match object {
        Some(object) => drop(objects.insert(name.to_owned(), object)),
        None => drop(objects.remove(name)),
    }
}

fn tear(bytes: &Bytes, unsynced: Unsynced, dice: &Dice) -> Bytes {
    let length = bytes.len() as u64;
    let cut = dice.below(length.max(1)) as usize;
    match dice.below(if unsynced == Unsynced::Garbage { 4 } else { 3 }) {
        0 => Bytes::new(),
        1 => bytes.slice(..cut),
        2 => bytes.slice(..cut / 4096 * 4096),
        _ => {
            let mut torn = bytes.to_vec();
            torn[cut..].fill(0);
            torn.into()
        }
    }
}

/// What goes wrong for one handle. Operations are counted from 0, of every type.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Decides all that is left to chance.
    pub seed: u64,
    /// At this operation the process dies: it may or may not have its effect, and neither it nor
    /// any later one succeeds.
    pub stop_at: Option<u64>,
    /// How often (0 to 1) an operation fails without effect, as one that may be repeated.
    pub error_rate: f64,
    /// How often (0 to 1) a write takes place and is answered with an error all the same.
    pub timeouts_after_effect: f64,
    /// How often (0 to 1) a read returns less than there is.
    pub short_reads: f64,
    /// After that many written bytes there is no room left.
    pub full_after_bytes: Option<u64>,
    /// From this operation on the credentials are refused.
    pub expired_credentials_at: Option<u64>,
}

/// A handle of one process on a [`SimDisk`], with its faults.
#[derive(Debug)]
pub struct FaultyStorage {
    disk: SimDisk,
    faults: Faults,
    dice: Dice,
    crashes: u64,
    counts: Counter,
    handle: Mutex<Handle>,
}

#[derive(Debug, Default)]
struct Handle {
    operations: u64,
    written: u64,
    /// Names that this handle wrote, deleted or found when it meant to write.
    unsynced: BTreeSet<String>,
}

/// How an operation goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Good,
    /// It takes place, and an error is answered.
    Unheard,
    /// The process dies in the middle.
    Dies,
}

impl FaultyStorage {
    /// What was asked so far.
    pub fn operations(&self) -> OpCounts {
        self.counts.get()
    }

    /// How many operations there were, for choosing `stop_at`.
    pub fn operation_count(&self) -> u64 {
        self.handle().operations
    }

    fn handle(&self) -> MutexGuard<'_, Handle> {
        self.handle.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Counts an operation and decides what becomes of it.
    fn begin(&self, writes: bool) -> Result<Fate> {
        let now = {
            let mut handle = self.handle();
            handle.operations += 1;
            handle.operations - 1
        };
        let faults = &self.faults;
        if self.crashes != self.disk.lock().crashes || faults.stop_at.is_some_and(|at| now > at) {
            return Err(died());
        }
        if faults.stop_at == Some(now) {
            return if self.dice.below(2) == 0 { Err(died()) } else { Ok(Fate::Dies) };
        }
        if faults.expired_credentials_at.is_some_and(|at| now >= at) {
            return Err(Error::credentials("the simulated credentials have expired").hint("renew them"));
        }
        if self.dice.chance(faults.error_rate) {
            return Err(timed_out());
        }
        Ok(if writes && self.dice.chance(faults.timeouts_after_effect) { Fate::Unheard } else { Fate::Good })
    }

    fn end<T>(fate: Fate, value: T) -> Result<T> {
        match fate {
            Fate::Good => Ok(value),
            Fate::Unheard => Err(timed_out()),
            Fate::Dies => Err(died()),
        }
    }

    fn take_room(&self, bytes: u64) -> Result<()> {
        let mut handle = self.handle();
        if self.faults.full_after_bytes.is_some_and(|room| handle.written + bytes > room) {
            return Err(Error::new(ErrorKind::Full, "the simulated disk is full").hint("free some space"));
        }
        handle.written += bytes;
        Ok(())
    }

    fn shorten(&self, bytes: Bytes) -> Bytes {
        match self.dice.chance(self.faults.short_reads) && !bytes.is_empty() {
            true => bytes.slice(..self.dice.below(bytes.len() as u64) as usize),
            false => bytes,
        }
    }

    fn write(&self, name: &str, bytes: Bytes, replaces: bool) -> Result<Created> {
        let fate = self.begin(true)?;
        self.take_room(bytes.len() as u64)?;
        self.handle().unsynced.insert(name.to_owned());
        let object = Object { bytes, modified: self.disk.clock.now_millis() };
        let mut state = self.disk.lock();
        let created = if state.visible.contains_key(name) { Created::Existed } else { Created::New };
        if replaces {
            state.whole.insert(name.to_owned());
        }
        if replaces || created == Created::New {
            state.visible.insert(name.to_owned(), object);
        }
        Self::end(fate, created)
    }

    fn get(&self, name: &str) -> Result<Bytes> {
        self.disk.get(name).ok_or_else(|| Error::missing(format!("there is no {name} on the simulated disk")))
    }
}

#[async_trait]
impl Storage for FaultyStorage {
    fn location(&self) -> String {
        "simulated disk".to_owned()
    }

    fn is_local(&self) -> bool {
        true
    }

    async fn create(&self, name: &str, bytes: Bytes) -> Result<Created> {
        check_name(name)?;
        self.dice.let_others_go_first().await;
        self.counts.add(|c| (c.creates, c.bytes_written) = (c.creates + 1, c.bytes_written + bytes.len() as u64));
        self.write(name, bytes, false)
    }

    async fn replace(&self, name: &str, bytes: Bytes) -> Result<()> {
        check_name(name)?;
        self.dice.let_others_go_first().await;
        self.counts.add(|c| (c.replaces, c.bytes_written) = (c.replaces + 1, c.bytes_written + bytes.len() as u64));
        self.write(name, bytes, true).map(drop)
    }

    async fn sync(&self) -> Result<()> {
        self.dice.let_others_go_first().await;
        self.counts.add(|c| c.syncs += 1);
        let fate = self.begin(true)?;
        let unsynced = std::mem::take(&mut self.handle().unsynced);
        let mut state = self.disk.lock();
        for name in unsynced {
            if fate == Fate::Good || self.dice.below(2) == 0 {
                let now = state.visible.get(&name).cloned();
                set(&mut state.durable, &name, now);
            } else {
                self.handle().unsynced.insert(name);
            }
        }
        Self::end(fate, ())
    }

    async fn read(&self, name: &str) -> Result<Bytes> {
        check_name(name)?;
        self.dice.let_others_go_first().await;
        self.counts.add(|c| c.reads += 1);
        let fate = self.begin(false)?;
        let bytes = self.shorten(self.get(name)?);
        self.counts.add(|c| c.bytes_read += bytes.len() as u64);
        Self::end(fate, bytes)
    }

    async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Bytes> {
        check_name(name)?;
        self.dice.let_others_go_first().await;
        self.counts.add(|c| c.reads += 1);
        let fate = self.begin(false)?;
        let bytes = self.get(name)?;
        let at = |n: u64| n.min(bytes.len() as u64) as usize;
        let bytes = self.shorten(bytes.slice(at(range.start)..at(range.end).max(at(range.start))));
        self.counts.add(|c| c.bytes_read += bytes.len() as u64);
        Self::end(fate, bytes)
    }

    async fn stat(&self, name: &str) -> Result<Option<Entry>> {
        check_name(name)?;
        self.dice.let_others_go_first().await;
        self.counts.add(|c| c.stats += 1);
        let fate = self.begin(false)?;
        let found = self.disk.lock().visible.get(name).map(|o| entry(name, o));
        Self::end(fate, found)
    }

    async fn list(&self, prefix: &str) -> Result<BoxStream<'static, Result<Entry>>> {
        if prefix.split('/').any(|part| matches!(part, "." | "..")) {
            return Err(Error::bug(format!("{prefix:?} is no beginning of a name")));
        }
        self.dice.let_others_go_first().await;
        self.counts.add(|c| c.lists += 1);
        let fate = self.begin(false)?;
        let state = self.disk.lock();
        let found = state.visible.range(prefix.to_owned()..).take_while(|(name, _)| name.starts_with(prefix));
        let found: Vec<_> = found.map(|(name, object)| Ok(entry(name, object))).collect();
        Self::end(fate, stream::iter(found).boxed())
    }

    async fn delete(&self, name: &str) -> Result<()> {
        check_name(name)?;
        self.dice.let_others_go_first().await;
        self.counts.add(|c| c.deletes += 1);
        let fate = self.begin(true)?;
        self.handle().unsynced.insert(name.to_owned());
        self.disk.lock().visible.remove(name);
        Self::end(fate, ())
    }

    async fn free_space(&self) -> Result<Option<u64>> {
        Ok(self.faults.full_after_bytes.map(|room| room.saturating_sub(self.handle().written)))
    }
}

fn entry(name: &str, object: &Object) -> Entry {
    Entry { name: name.to_owned(), size: object.bytes.len() as u64, modified: object.modified }
}

fn check_name(name: &str) -> Result<()> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let is_good = |part: &str| !matches!(part, "" | "." | "..") && part.bytes().all(allowed);
    match name.split('/').all(is_good) && name.split('/').next() != Some("tmp") {
        true => Ok(()),
        false => Err(Error::bug(format!("{name:?} is not a name an object may have"))),
    }
}

fn died() -> Error {
    Error::new(ErrorKind::Interrupted, "the simulated process has died")
}

fn timed_out() -> Error {
    Error::new(ErrorKind::Retry, "the simulated storage did not answer in time")
}

/// Chance from a seed.
#[derive(Debug)]
struct Dice(SeededRandom);

impl Dice {
    fn new(seed: u64) -> Self {
        Dice(SeededRandom::new(seed))
    }

    fn roll(&self) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// A number from 0 to before `end`.
    fn below(&self, end: u64) -> u64 {
        self.roll() % end
    }

    fn chance(&self, rate: f64) -> bool {
        rate > 0.0 && (self.roll() as f64) < rate * u64::MAX as f64
    }

    /// Mixes the order in which tasks go on.
    async fn let_others_go_first(&self) {
        for _ in 0..self.below(3) {
            tokio::task::yield_now().await;
        }
    }
}
