//! Setting text off on a terminal.

use std::io::IsTerminal;

/// Whether, and how, text is set off.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    on: bool,
}

impl Style {
    /// For stdout: only on a terminal, and not against the user's will.
    pub fn for_stdout() -> Self {
        Style { on: std::io::stdout().is_terminal() && wanted() }
    }

    /// For stderr, likewise.
    pub fn for_stderr() -> Self {
        Style { on: std::io::stderr().is_terminal() && wanted() }
    }

    /// A heading or a command.
    pub fn strong(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// What can be skipped when reading.
    pub fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }

    /// Good news.
    pub fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// Bad news.
    pub fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}
