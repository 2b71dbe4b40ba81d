//! Exit codes, and which of them wins.
//!
//! | code | means |
//! |---|---|
//! | 0 | done |
//! | 1 | failed: what was asked for was not done |
//! | 2 | usage: the command line cannot be understood |
//! | 3 | done in part: something was skipped, or one of several vaults failed |
//! | 4 | stale: the last good point is too old |
//! | 5 | gap: done, but some history was lost |
//! | 6 | a check failed: `verify` found damage, or a restore is not what it must be |
//! | 130 | interrupted |
//!
//! Where several apply, the one that tells most wins: 130, then 2 and 1, 6, 5, 3, 4, 0.

use model::{Error, ErrorKind};

/// How a command ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exit {
    // From the weakest to the strongest: the order is the precedence.
    /// Done.
    #[default]
    Done,
    /// The last good point is too old.
    Stale,
    /// Done in part.
    Part,
    /// Done, but history was lost.
    Gap,
    /// A check failed.
    CheckFailed,
    /// Not done.
    Failed,
    /// The command line cannot be understood.
    Usage,
    /// Interrupted by the user or the system.
    Interrupted,
}

impl Exit {
    /// The code of the process.
    pub fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Part => 3,
            Exit::Stale => 4,
            Exit::Gap => 5,
            Exit::CheckFailed => 6,
            Exit::Interrupted => 130,
        }
    }

    /// The one of the two that tells more.
    #[must_use]
    pub fn and(self, other: Exit) -> Exit {
        self.max(other)
    }

    /// How a command ends that fails with this error.
    pub fn of(error: &Error) -> Exit {
        match error.kind() {
            ErrorKind::Interrupted => Exit::Interrupted,
            _ => Exit::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strongest_wins() {
        let by_strength = [0, 4, 3, 5, 6, 1, 2, 130];
        let all = [
            Exit::Done,
            Exit::Stale,
            Exit::Part,
            Exit::Gap,
            Exit::CheckFailed,
            Exit::Failed,
            Exit::Usage,
            Exit::Interrupted,
        ];
        for (i, a) in all.into_iter().enumerate() {
            assert_eq!(i32::from(a.code()), by_strength[i]);
            for (j, b) in all.into_iter().enumerate() {
                assert_eq!(i32::from(a.and(b).code()), by_strength[i.max(j)]);
            }
        }
        assert_eq!(Exit::of(&Error::input("x")), Exit::Failed);
        assert_eq!(Exit::of(&Error::new(ErrorKind::Interrupted, "x")), Exit::Interrupted);
    }
}
