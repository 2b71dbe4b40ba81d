//! The vault: one open, incremental, encrypted, deduplicated repository of backups.
//!
//! `docs/vault-format.md` says byte by byte what is stored; `docs/architecture.md` where to find
//! what here.

mod buffers;
mod checks;
mod compress;
mod config;
mod content;
mod crypto;
mod direct;
mod filter;
mod frame;
mod hash;
mod history;
mod log;
mod manifest;
mod name;
mod objects;
mod points;
mod prune;
mod read;
mod reading;
mod segment;
mod signed;
pub mod storage;
mod vault;
mod vault_file;
mod verify;
mod write;

pub use checks::{Check, CheckKind, CheckName, Drilled, LastChecks, Sample, Verified};
pub use config::{Config, write_private};
pub use crypto::{Audience, Identity, check_recipient};
pub use filter::look_in as look_in_filter;
pub use hash::{Digest, DocumentHash, HashKeys};
pub use history::{History, Interval, Moment};
pub use log::{Appended, ContentList, Flush, ListedContent, LogHeader, parse as read_log, read_contents};
pub use manifest::{Catalog, CatalogEntry, LayerRef, LogSpan, Manifest, ScanSpan, SourceInfo, Totals};
pub use name::{LogName, ObjectKind, ObjectName, PointName};
pub use points::{BrokenPoint, Point, Points, parse as read_point};
pub use prune::{Amount, PointFate, Policy, PruneOptions, PruneReport, Reason, parse_duration};
pub use read::{Change, CollectionChange, Difference, State, Version, Wanted};
pub use reading::Reading;
pub use segment::read_all as read_segment;
pub use vault::{Access, Protection, Vault};
pub use vault_file::{Encryption, FORMAT, VaultFile};
pub use verify::{Damage, Healed, Hit, VerifyOptions, VerifyProgress, VerifyReport};
pub use write::{BackupOptions, PointDetails, Run, WriteOutcome};
