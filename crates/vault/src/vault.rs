//! A vault, made or opened.

use crate::buffers::Buffers;
use crate::config::Config;
use crate::crypto::{Cipher, Identity};
use crate::hash::HashKeys;
use crate::manifest::{Catalog, Manifest};
use crate::name::PointName;
use crate::objects::Objects;
use crate::points;
use crate::storage::{Created, Storage};
use crate::vault_file::{Encryption, VAULT_FILE, VaultFile, WriterSecrets};
use crate::write::{BackupOptions, Run};
use ed25519_dalek::SigningKey;
use model::{Description, Error, ErrorKind, Result, Seams};
use std::sync::Arc;

/// How a new vault protects what it holds.
#[derive(Debug, Clone)]
pub enum Protection {
    /// Encrypted to these age recipients (`age1…`), at least one.
    Recipients(Vec<String>),
    /// Not encrypted: whoever can read the storage can read everything.
    Plain,
}

/// What a caller brings to a vault.
#[derive(Debug, Clone)]
pub struct Access {
    /// Identities of recipients; none on a host that only writes.
    pub identities: Vec<Identity>,
    /// Where writers' secrets and pinned keys are kept; none keeps nothing.
    pub config: Option<Config>,
    /// Clock and randomness.
    pub seams: Seams,
}

/// A repository of backups at one storage.
#[derive(Debug, Clone)]
pub struct Vault {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub storage: Arc<dyn Storage>,
    pub file: VaultFile,
    pub seams: Seams,
    secrets: Option<WriterSecrets>,
    objects: Option<Objects>,
    config: Option<Config>,
    can_read: bool,
}

impl Vault {
    /// Makes a vault in an empty storage. The writer's secrets are kept in the user's config folder
    /// and escrowed in the vault.
    pub async fn init(storage: Arc<dyn Storage>, protection: Protection, access: Access) -> Result<Vault> {
        refuse_used(&storage).await?;
        let (recipients, identity) = match protection {
            Protection::Recipients(recipients) if recipients.is_empty() => {
                return Err(Error::input("an encrypted vault needs at least one recipient")
                    .hint("make an identity with `rewound keygen`, then pass --recipient age1…; or choose --plain"));
            }
            Protection::Recipients(recipients) => {
                recipients.iter().try_for_each(|r| crate::crypto::check_recipient(r))?;
                (recipients, Some(Identity::generate()))
            }
            Protection::Plain => (Vec::new(), None),
        };
        let seams = access.seams.clone();
        let secrets =
            WriterSecrets { naming: seams.bytes(), signing: SigningKey::from_bytes(&seams.bytes()), identity };
        let created = model::EngineTime::wall(seams.clock.now_millis()).to_string();
        let file = VaultFile::new(crate::hash::hex(&seams.bytes::<16>()), created, recipients, &secrets)?;
        if let Some(config) = &access.config {
            config.keep_secrets(&file.id, &file.writer, &secrets)?;
        }
        let bytes = file.to_bytes(&secrets.signing)?;
        if storage.create(VAULT_FILE, bytes.into()).await? == Created::Existed {
            return Err(is_a_vault(&storage));
        }
        storage.sync().await?;
        Self::open(storage, access).await
    }

    /// Opens a vault.
    pub async fn open(storage: Arc<dyn Storage>, access: Access) -> Result<Vault> {
        let bytes = storage.read(VAULT_FILE).await.map_err(|e| match e.kind() {
            ErrorKind::Missing => Error::missing(format!("there is no vault at {}", storage.location()))
                .hint("check the path, or make a vault there with `rewound init`"),
            _ => e,
        })?;
        let file = VaultFile::parse(&bytes)?;
        if let Some(config) = &access.config {
            config.pin(&file.id, &file.writer)?;
        }
        let plain = file.encryption == Encryption::None;
        let is_recipient = |i: &Identity| file.recipients.contains(&i.recipient());
        let can_read = plain || access.identities.iter().any(is_recipient);
        if !access.identities.is_empty() && !can_read {
            return Err(Error::credentials("the given identity is not one of the vault's recipients")
                .hint(format!("its recipients are {}; pass the identity of one of them", file.recipients.join(", "))));
        }
        let kept = match &access.config {
            Some(config) => config.secrets(&file.id)?,
            None => None,
        };
        let secrets = match kept {
            Some(secrets) => Some(secrets),
            None if can_read => Some(file.open_escrow(&access.identities)?),
            None => None,
        };
        let objects = match &secrets {
            Some(secrets) => Some(Objects {
                storage: storage.clone(),
                keys: HashKeys::derive(&secrets.naming),
                buffers: Buffers::of_segments(),
                cipher: if plain {
                    Cipher::plain()
                } else {
                    let mut identities = access.identities.clone();
                    identities.extend(secrets.identity.clone());
                    Cipher::age(&file.recipients, &file.writer_recipient, identities)?
                },
            }),
            None => None,
        };
        let inner = Inner { storage, file, seams: access.seams, secrets, objects, config: access.config, can_read };
        Ok(Vault { inner: Arc::new(inner) })
    }

    /// What `vault.json` says.
    pub fn file(&self) -> &VaultFile {
        &self.inner.file
    }

    /// Where it is, for people.
    pub fn location(&self) -> String {
        self.inner.storage.location()
    }

    /// The storage it is kept in.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.inner.storage
    }

    /// Whether documents can be read: the vault is plain, or a recipient's identity was given.
    pub fn can_read(&self) -> bool {
        self.inner.can_read
    }

    /// Whether points can be listed: as [`Vault::can_read`], or on a host that writes.
    pub fn can_list(&self) -> bool {
        self.inner.objects.is_some()
    }

    /// The vault's hash keys.
    pub fn hash_keys(&self) -> Result<&HashKeys> {
        self.inner.objects.as_ref().map(|o| &o.keys).ok_or_else(no_secrets)
    }

    /// Starts a backup of a source. If this host has no writer's secrets yet but an identity was
    /// given, they are taken from the escrow and kept.
    pub async fn start_run(&self, source: &Description, options: BackupOptions) -> Result<Run> {
        if let (Some(config), Some(secrets)) = (&self.inner.config, &self.inner.secrets)
            && self.inner.file.encryption == Encryption::Age
            && config.secrets(&self.inner.file.id)?.is_none()
        {
            config.keep_secrets(&self.inner.file.id, &self.inner.file.writer, secrets)?;
        }
        let started = self.inner.seams.clock.now_millis();
        Run::start(self.inner.clone(), source, started, options).await
    }

    /// All points, oldest first, with what is wrong with those that cannot be read.
    pub async fn points(&self) -> Result<points::Points> {
        points::read_all(&self.inner).await
    }

    /// The collections of a point.
    pub async fn catalog(&self, manifest: &Manifest) -> Result<Catalog> {
        points::catalog(&self.inner, manifest).await
    }
}

async fn refuse_used(storage: &Arc<dyn Storage>) -> Result<()> {
    use futures::StreamExt;
    if storage.stat(VAULT_FILE).await?.is_some() {
        return Err(is_a_vault(storage));
    }
    if let Some(entry) = storage.list("").await?.next().await {
        return Err(Error::input(format!("{} is not empty: it holds {}", storage.location(), entry?.name))
            .hint("choose an empty folder or prefix for the vault"));
    }
    Ok(())
}

fn is_a_vault(storage: &Arc<dyn Storage>) -> Error {
    Error::input(format!("there is a vault at {} already", storage.location()))
        .hint("back up into it with `rewound backup SOURCE --to VAULT`, or choose another place")
}

fn no_secrets() -> Error {
    Error::credentials("this host can neither read nor write this vault: it has no identity and no writer's secrets")
        .hint("pass the identity of a recipient: --identity FILE or REWOUND_IDENTITY (a backup then keeps the writer's secrets for next time)")
}

impl Inner {
    pub fn objects(&self) -> Result<Objects> {
        self.objects.clone().ok_or_else(no_secrets)
    }

    pub fn signing(&self) -> Result<&SigningKey> {
        self.secrets.as_ref().map(|s| &s.signing).ok_or_else(no_secrets)
    }

    /// Fails where documents cannot be read.
    pub fn need_reader(&self) -> Result<Objects> {
        if self.can_read {
            return self.objects();
        }
        Err(Error::credentials("reading documents of this vault needs an identity").hint(format!(
            "pass one of a recipient ({}): --identity FILE or REWOUND_IDENTITY",
            self.file.recipients.join(", ")
        )))
    }

    /// Remembers the newest point this host wrote. The point stands even if that fails.
    pub fn keep_newest(&self, tag: &str, name: &PointName) {
        if let Some(config) = &self.config
            && let Err(e) = config.keep_newest(&self.file.id, &self.file.writer, tag, &name.to_string())
        {
            tracing::warn!("the newest point could not be remembered: {e}");
        }
    }

    /// The newest point that this host wrote, if the vault no longer has it.
    pub async fn lost_newest(&self, tag: &str, history: &[PointName]) -> Result<Option<String>> {
        let Some(config) = &self.config else { return Ok(None) };
        let newest = config.newest(&self.file.id, tag)?;
        let Some(path) = newest.filter(|path| !history.iter().any(|n| n.to_string() == *path)) else {
            return Ok(None);
        };
        let removed = crate::prune::removed(self).await?;
        Ok((!removed.points.contains_key(&path)).then_some(path))
    }

    /// Says so if the vault has lost its newest point.
    pub async fn check_newest(&self, tag: &str, history: &[PointName]) -> Result<()> {
        if let Some(path) = self.lost_newest(tag, history).await? {
            tracing::warn!("the vault has lost the newest point that this host wrote: {path}; run `rewound verify`");
        }
        Ok(())
    }
}
