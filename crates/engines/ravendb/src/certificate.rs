//! Client certificates: PEM as they are, PFX (PKCS#12) by way of the host's `openssl`, as no small library
//! reads those with old encryption, which many tools still write.

use model::{Error, ErrorKind, Result};
use reqwest::Identity;
use std::fmt;
use std::process::{Command, Output, Stdio};

/// How the program is told the password: not where other users see it.
const PASSWORD: &str = "REWOUND_PFX_PASSWORD";

/// A password, which is never shown.
#[derive(Clone, Default)]
pub(crate) struct Password(pub Option<String>);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "***" } else { "none" })
    }
}

/// The bytes of a file that a URL names.
pub(crate) fn read(path: &str) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::io(format!("reading {path}"), e))
}

/// The client certificate in a file, with its key.
pub(crate) fn identity(path: &str, password: &Password) -> Result<Identity> {
    let content = read(path)?;
    let is_pem = content.windows(11).any(|some| some == b"-----BEGIN ");
    let pem = if is_pem { content } else { pem_of(path, password)? };
    Identity::from_pem(&pem).map_err(|e| {
        Error::credentials(format!("the client certificate {path} cannot be used: {e}"))
            .caused_by(e)
            .hint("it must be PEM or PFX, and hold certificate and key")
    })
}

/// What is in a PFX, as PEM.
fn pem_of(path: &str, password: &Password) -> Result<Vec<u8>> {
    let run = |more: &[&str]| {
        Command::new("openssl")
            .args(["pkcs12", "-nodes", "-passin", &format!("env:{PASSWORD}"), "-in", path])
            .args(more)
            .env(PASSWORD, password.0.as_deref().unwrap_or_default())
            .stdin(Stdio::null())
            .output()
    };
    let no_program = |e: std::io::Error| {
        Error::new(
            ErrorKind::Unsupported,
            format!("the client certificate {path} is no PEM, and openssl, which reads PFX, does not run: {e}"),
        )
        .caused_by(e)
        .hint("install openssl, or make a PEM where it is: openssl pkcs12 -in FILE.pfx -out FILE.pem -nodes")
    };
    let mut ran = run(&[]).map_err(no_program)?;
    if !ran.status.success() && !said(&ran).contains("password") {
        // OpenSSL 3 leaves what is old to this option, which others do not know.
        let old = run(&["-legacy"]).map_err(no_program)?;
        ran = if old.status.success() { old } else { ran };
    }
    if ran.status.success() {
        return Ok(ran.stdout);
    }
    let text = said(&ran);
    let first = text.lines().next().unwrap_or("no reason given");
    Err(Error::credentials(format!("the client certificate {path} cannot be read: openssl says: {first}"))
        .hint("it must be PEM or PFX, and hold certificate and key; the password of a PFX comes by --password-file or REWOUND_PASSWORD"))
}

fn said(ran: &Output) -> String {
    String::from_utf8_lossy(&ran.stderr).into_owned()
}
