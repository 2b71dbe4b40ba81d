//! Running a simulation over many seeds, each on one thread with a clock of its own: the same seed
//! always runs the same way, but for what age encrypts with.
#![allow(clippy::print_stderr, clippy::unwrap_used)]

use std::sync::Arc;

/// A number below `sides` that a seed decides.
pub fn dice(seed: u64, what: u64, sides: u64) -> u64 {
    let hash = blake3::hash(&[seed.to_le_bytes(), what.to_le_bytes()].concat());
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().unwrap()) % sides
}

/// Runs `REWOUND_SEED`, or the first `REWOUND_SEEDS`, or `count`; a failing seed prints how to replay
/// it. Gives the sum of what the runs give, and how many there were.
pub fn for_all(test: &str, count: u64, run: impl AsyncFn(u64) -> usize + Sync) -> (usize, usize) {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let seeds: Vec<u64> = match number("REWOUND_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("REWOUND_SEEDS").unwrap_or(count)).collect(),
    };
    let seeds = Arc::new(seeds);
    let one = |seed: u64| {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run(seed))
        }));
        result.unwrap_or_else(|panic| {
            eprintln!("replay with: REWOUND_SEED={seed} cargo test -p rewound-vault --test {test}");
            std::panic::resume_unwind(panic);
        })
    };
    let found = std::thread::scope(|scope| {
        let part = |part: usize| {
            let (seeds, one) = (seeds.clone(), &one);
            scope.spawn(move || seeds.iter().skip(part).step_by(2).map(|seed| one(*seed)).sum::<usize>())
        };
        let threads = [part(0), part(1)];
        threads.map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).into_iter().sum()
    });
    (found, seeds.len())
}
