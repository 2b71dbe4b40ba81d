//! The vault: one open, incremental, encrypted, deduplicated repository of backups.

pub mod storage;
