//! What every command gets.

use crate::ui::Ui;
use model::{Error, Result, Seams};
use rewound::registry::Reach;
use rewound::{Job, identity, registry};
use std::path::PathBuf;
use std::sync::Arc;
use vault::{Access, Config, Vault};

/// What every command gets.
pub struct Context {
    /// Where results and progress go.
    pub ui: Arc<Ui>,
    /// Who listens, and who may stop it.
    pub job: Job,
    /// `--identity` or `REWOUND_IDENTITY`.
    pub identity: Option<String>,
    /// What the URLs of databases do not say.
    pub reach: Reach,
    /// The config folder, if it is not the user's.
    pub config: Option<PathBuf>,
}

impl Context {
    /// The user's config folder.
    pub fn config(&self) -> Result<Config> {
        match &self.config {
            Some(path) => Ok(Config::at(path)),
            None => Config::for_user(),
        }
    }

    /// What is brought to a vault.
    pub fn access(&self) -> Result<Access> {
        Ok(Access {
            identities: identity::load(self.identity.as_deref())?,
            config: Some(self.config()?),
            seams: Seams::system(),
        })
    }

    /// Opens a vault.
    pub async fn vault(&self, url: &str) -> Result<Vault> {
        self.job.stop.or(registry::open_vault(url, self.access()?)).await
    }
}

/// How a command fails.
pub enum Failed {
    /// The command line makes no sense: exit 2.
    Usage(Error),
    /// Anything else: exit 1, or 130 after an interruption.
    Error(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Failed::Error(error)
    }
}

/// How a command ends.
pub type Outcome = std::result::Result<rewound::exit::Exit, Failed>;

/// Makes errors errors of the command line.
pub trait OrUsage<T> {
    /// An error means that the command line makes no sense.
    fn or_usage(self) -> std::result::Result<T, Failed>;
}

impl<T> OrUsage<T> for Result<T> {
    fn or_usage(self) -> std::result::Result<T, Failed> {
        self.map_err(Failed::Usage)
    }
}
