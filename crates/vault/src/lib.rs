//! The vault: one open, incremental, encrypted, deduplicated repository of backups.
//!
//! `docs/vault-format.md` says byte by byte what is stored; `docs/architecture.md` where to find
//! what here.

mod buffers;
mod compress;
mod config;
mod crypto;
mod filter;
mod frame;
mod hash;
mod log;
mod manifest;
mod name;
mod objects;
mod points;
mod prune;
mod read;
mod segment;
mod signed;
pub mod storage;
mod vault;
mod vault_file;
mod verify;
mod write;

pub use config::{Config, write_private};
pub use crypto::{Audience, Identity, check_recipient};
pub use filter::look_in as look_in_filter;
pub use hash::{Digest, DocumentHash, HashKeys};
pub use log::{Flush, LogHeader, LogWriter, parse as read_log};
pub use manifest::{Catalog, CatalogEntry, LayerRef, Manifest, SourceInfo, Totals};
pub use name::{LogName, ObjectKind, ObjectName, PointName};
pub use points::{BrokenPoint, Point, Points, parse as read_point};
pub use prune::PruneReport;
pub use read::{State, Version};
pub use segment::read_all as read_segment;
pub use vault::{Access, Protection, Vault};
pub use vault_file::{Encryption, FORMAT, VaultFile};
pub use verify::{Damage, Hit, VerifyOptions, VerifyProgress, VerifyReport};
pub use write::{BackupOptions, PointDetails, Run, WriteOutcome};
