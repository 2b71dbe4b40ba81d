//! `vault.json`: what a vault is, in the clear.

use crate::crypto::{self, Identity};
use crate::hash::{hex, unhex32};
use crate::signed;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{SigningKey, VerifyingKey};
use model::{Error, Result};
use serde::{Deserialize, Serialize};

/// Its name.
pub(crate) const VAULT_FILE: &str = "vault.json";
/// The newest format this program writes and reads.
pub const FORMAT: u32 = 1;
/// Features of a vault that this program knows. A vault may name others; then it is refused.
const KNOWN_FEATURES: [&str; 0] = [];
const CONTEXT: &str = "rewound format 1 vault file";

/// The content of `vault.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VaultFile {
    /// Always `vault`.
    pub rewound: String,
    /// Version of the format.
    pub format: u32,
    /// Features a program must know to use this vault.
    pub features: Vec<String>,
    /// The vault's identity: 32 hex digits.
    pub id: String,
    /// When it was made, RFC 3339.
    pub created: String,
    /// `age`, or `none` in a plain vault.
    pub encryption: Encryption,
    /// Who can read it (`age1…`).
    pub recipients: Vec<String>,
    /// Public key of the writer's signatures: 64 hex digits.
    pub writer: String,
    /// The writer's own recipient (`age1…`); empty in a plain vault.
    pub writer_recipient: String,
    /// The writer's secrets: encrypted to the recipients (an age file in base64), in a plain vault
    /// readable (JSON in base64), as there nothing is secret.
    pub escrow: String,
}

/// Whether a vault is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encryption {
    /// Objects are age files.
    Age,
    /// Objects are readable by everybody who can read the storage.
    None,
}

/// What a writer knows: enough to write and to find out what has changed, not enough to read
/// documents.
#[derive(Clone)]
pub struct WriterSecrets {
    /// Keys of all hashes derive from it.
    pub(crate) naming: [u8; 32],
    /// Signs points.
    pub(crate) signing: SigningKey,
    /// Reads points, layers and hash lists. None in a plain vault.
    pub(crate) identity: Option<Identity>,
}

impl std::fmt::Debug for WriterSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WriterSecrets")
    }
}

/// The writer's secrets as JSON.
#[derive(Serialize, Deserialize)]
struct SecretsFile {
    naming: String,
    signing: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity: Option<String>,
}

impl WriterSecrets {
    pub(crate) fn to_json(&self) -> String {
        let file = SecretsFile {
            naming: hex(&self.naming),
            signing: hex(self.signing.as_bytes()),
            identity: self.identity.as_ref().map(Identity::secret_text),
        };
        serde_json::to_string(&file).unwrap_or_default()
    }

    pub(crate) fn from_json(text: &[u8]) -> Result<Self> {
        let bad = || Error::corrupt("the writer's secrets cannot be read");
        let file: SecretsFile = serde_json::from_slice(text).map_err(|_| bad())?;
        Ok(WriterSecrets {
            naming: unhex32(&file.naming).ok_or_else(bad)?,
            signing: SigningKey::from_bytes(&unhex32(&file.signing).ok_or_else(bad)?),
            identity: file.identity.as_deref().map(Identity::parse).transpose()?,
        })
    }
}

impl VaultFile {
    pub(crate) fn new(id: String, created: String, recipients: Vec<String>, secrets: &WriterSecrets) -> Result<Self> {
        let json = secrets.to_json();
        let (encryption, escrow) = match secrets.identity {
            Some(_) => (Encryption::Age, crypto::encrypt_to(&recipients, json.as_bytes())?),
            None => (Encryption::None, json.into_bytes()),
        };
        Ok(VaultFile {
            rewound: "vault".into(),
            format: FORMAT,
            features: Vec::new(),
            id,
            created,
            encryption,
            recipients,
            writer: hex(secrets.signing.verifying_key().as_bytes()),
            writer_recipient: secrets.identity.as_ref().map(Identity::recipient).unwrap_or_default(),
            escrow: BASE64.encode(escrow),
        })
    }

    pub(crate) fn to_bytes(&self, key: &SigningKey) -> Result<Vec<u8>> {
        signed::write(key, CONTEXT, self)
    }

    /// Reads `vault.json`. A newer format or unknown features are refused in plain words; that
    /// check comes first, as a newer format may sign differently. Never panics, whatever the bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            rewound: String,
            format: u32,
            #[serde(default)]
            features: Vec<String>,
        }
        let damaged = |why: &dyn std::fmt::Display| {
            Error::corrupt(format!("{VAULT_FILE} is damaged: {why}"))
                .hint("restore this one file from a copy of the vault; without it nothing can be read")
        };
        let first = bytes.split(|b| *b == b'\n').next().unwrap_or_default();
        let version: Version = serde_json::from_slice(first).map_err(|e| damaged(&e))?;
        if version.rewound != "vault" {
            return Err(damaged(&"it is not a vault's"));
        }
        let unknown: Vec<_> =
            version.features.iter().filter(|f| !KNOWN_FEATURES.contains(&f.as_str())).cloned().collect();
        if version.format > FORMAT || !unknown.is_empty() {
            let what = if unknown.is_empty() {
                format!("has format {}, this program knows formats up to {FORMAT}", version.format)
            } else {
                format!("uses features this program does not know: {}", unknown.join(", "))
            };
            return Err(Error::unsupported(format!("the vault was written by a newer rewound: it {what}"))
                .hint("install a newer rewound; nothing was changed"));
        }
        let (json, signature) = signed::split(bytes).map_err(|e| damaged(&e))?;
        let file: VaultFile = serde_json::from_slice(json).map_err(|e| damaged(&e))?;
        if !crypto::is_signed(&file.writer_key()?, CONTEXT, json, &signature) {
            return Err(damaged(&"its signature is not its writer's"));
        }
        Ok(file)
    }

    pub(crate) fn writer_key(&self) -> Result<VerifyingKey> {
        verifying_key(&self.writer)
    }

    /// The writer's secrets, from the escrow.
    pub(crate) fn open_escrow(&self, identities: &[Identity]) -> Result<WriterSecrets> {
        let escrow = BASE64
            .decode(&self.escrow)
            .map_err(|_| Error::corrupt(format!("the escrow in {VAULT_FILE} cannot be read")))?;
        let json = match self.encryption {
            Encryption::Age => crypto::decrypt(identities, &escrow)?,
            Encryption::None => escrow,
        };
        WriterSecrets::from_json(&json)
    }
}

/// A writer's public key from its 64 hex digits.
pub(crate) fn verifying_key(hex: &str) -> Result<VerifyingKey> {
    unhex32(hex)
        .and_then(|b| VerifyingKey::from_bytes(&b).ok())
        .ok_or_else(|| Error::corrupt(format!("{VAULT_FILE} holds no usable writer key")))
}
