//! Reading a vault without Rewound.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The largest segment of documents in a vault.
pub fn a_segment(vault: &Path) -> Option<PathBuf> {
    let mut largest: Option<(u64, PathBuf)> = None;
    for folder in std::fs::read_dir(vault.join("segments")).ok()?.flatten() {
        for file in std::fs::read_dir(folder.path()).ok()?.flatten() {
            let path = file.path();
            let size = file.metadata().ok()?.len();
            let is_json = path.to_string_lossy().ends_with(".json.zst.age");
            if is_json && largest.as_ref().is_none_or(|(most, _)| size > *most) {
                largest = Some((size, path));
            }
        }
    }
    largest.map(|(_, path)| path)
}

/// Those of the programs that are not installed.
pub fn missing<'a>(programs: &[&'a str]) -> Vec<&'a str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |program: &&&str| std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    programs.iter().filter(|p| !there(p)).copied().collect()
}

/// What a line for the shell writes to stdout, if it goes well.
pub fn shell(line: &str) -> Option<String> {
    let done = Command::new("sh").args(["-c", line]).stdin(Stdio::null()).output().ok()?;
    done.status.success().then(|| String::from_utf8_lossy(&done.stdout).into_owned())
}
