//! Where identities come from, and new ones.

use model::{Error, ErrorKind, Result, ResultExt};
use std::path::Path;
use vault::Identity;

/// What every age secret key begins with.
const SECRET: &str = "AGE-SECRET-KEY-1";

/// The identities that a setting means: the path of an identity file, or the text of a key itself.
/// None if there is no setting.
pub fn load(setting: Option<&str>) -> Result<Vec<Identity>> {
    let Some(setting) = setting.map(str::trim).filter(|s| !s.is_empty()) else { return Ok(Vec::new()) };
    if setting.starts_with(SECRET) {
        return Identity::parse_file(setting);
    }
    let text = std::fs::read_to_string(setting).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::missing(format!("there is no identity file {setting}"))
            .hint("check the path; `rewound keygen FILE` makes a new identity, which cannot read existing vaults"),
        std::io::ErrorKind::InvalidData => Error::credentials(format!("{setting} is not an identity file"))
            .hint("an identity file is text with a line AGE-SECRET-KEY-1…"),
        _ => Error::io(format!("reading the identity file {setting}"), e),
    })?;
    Identity::parse_file(&text).context(|| format!("reading the identity file {setting}"))
}

/// The text of an identity file, as `age-keygen` writes it. `created` is RFC 3339.
pub fn file_text(identity: &Identity, created: &str) -> String {
    format!("# created: {created}\n# public key: {}\n{}\n", identity.recipient(), identity.secret_text())
}

/// Writes a new identity file that only the user can read. Never overwrites one.
pub fn write_new(path: &Path, identity: &Identity, created: &str) -> Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => Error::new(ErrorKind::Input, format!("{} exists already", path.display()))
            .hint("choose another file: overwriting an identity would make its vaults unreadable"),
        _ => Error::io(format!("making {}", path.display()), e),
    })?;
    std::io::Write::write_all(&mut file, file_text(identity, created).as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(|e| Error::io(format!("writing {}", path.display()), e))
}

/// The recipients in the text of a recipients file: one a line; empty lines and `#` do not count.
pub fn recipients(text: &str) -> Result<Vec<String>> {
    let all: Vec<String> =
        text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_owned).collect();
    all.iter().try_for_each(|r| vault::check_recipient(r))?;
    if all.is_empty() {
        return Err(Error::input("the recipients file names no recipient").hint("write one age1… a line"));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn identities_come_from_files_and_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let identity = Identity::generate();
        write_new(&path, &identity, "2026-01-01T00:00:00Z").unwrap();
        let again = write_new(&path, &identity, "").unwrap_err();
        assert!(again.to_string().contains("exists already"));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let loaded = load(path.to_str()).unwrap();
        assert_eq!(loaded[0].recipient(), identity.recipient());
        assert_eq!(load(Some(&identity.secret_text())).unwrap()[0].recipient(), identity.recipient());
        assert!(load(None).unwrap().is_empty());
        assert!(load(Some(" ")).unwrap().is_empty());
        assert_eq!(load(Some("/no/such/file")).unwrap_err().kind(), ErrorKind::Missing);
        std::fs::write(&path, "nothing here").unwrap();
        let error = load(path.to_str()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Credentials);
        assert!(error.to_string().contains("key"));
    }

    #[test]
    fn recipients_are_checked() {
        let one = Identity::generate().recipient();
        assert_eq!(recipients(&format!("# me\n\n {one} \n")).unwrap(), [one]);
        assert!(recipients("# nobody").is_err());
        assert!(recipients("age1nonsense").is_err());
    }
}
