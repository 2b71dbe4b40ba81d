//! What this process has used.

use rustix::time::{ClockId, clock_gettime};
use std::time::Instant;

/// CPU seconds of this process so far, all threads, user and system.
pub fn cpu() -> f64 {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// The most memory this process has held so far, in MiB (Linux: VmHWM); 0 where it cannot be told.
pub fn peak() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<f64>().ok()).unwrap_or_default() / 1024.0
}

/// CPU and wall time from now on.
pub struct Watch {
    cpu: f64,
    wall: Instant,
}

impl Watch {
    /// Starts.
    pub fn start() -> Self {
        Watch { cpu: cpu(), wall: Instant::now() }
    }

    /// CPU seconds.
    pub fn cpu(&self) -> f64 {
        cpu() - self.cpu
    }

    /// Seconds.
    pub fn wall(&self) -> f64 {
        self.wall.elapsed().as_secs_f64()
    }
}
