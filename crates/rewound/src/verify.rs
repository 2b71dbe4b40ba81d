//! Checking a vault, with progress.

use crate::checks;
use crate::progress::{Doing, Job, Progress};
use crate::registry;
use model::{Error, Result};
use vault::{Check, CheckKind, Sample, Vault, Verified, VerifyOptions, VerifyProgress, VerifyReport};

/// A day, in milliseconds.
const DAY: i64 = 24 * 60 * 60 * 1000;

/// How much is checked.
#[derive(Debug, Clone, Copy, Default)]
pub struct How {
    /// Only stored bytes and references: needs no identity.
    pub quick: bool,
    /// Only a share of everything.
    pub share: Option<Share>,
    /// Make anew what can be made from other objects.
    pub repair: bool,
}

/// A share of everything: `count` of `of` parts. The next check takes the next parts, so that
/// after `of / count` checks everything has been looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// How many parts.
    pub count: u32,
    /// How many there are.
    pub of: u32,
    /// The part to begin with, from 1; none: the one after those of the last check.
    pub part: Option<u32>,
}

impl Share {
    /// Reads `N/M`.
    pub fn parse(text: &str) -> Result<Share> {
        let wrong = || {
            Error::input(format!("--sample {text}: not a share"))
                .hint("write it as N/M: --sample 1/30 checks a thirtieth of everything, and all of it in 30 runs")
        };
        let (count, of) = text.split_once('/').ok_or_else(wrong)?;
        let number = |text: &str| text.trim().parse::<u32>().ok().filter(|n| (1..=100_000).contains(n));
        let (Some(count), Some(of)) = (number(count), number(of)) else { return Err(wrong()) };
        if count > of {
            return Err(wrong());
        }
        Ok(Share { count, of, part: None })
    }

    /// The same from this part on.
    pub fn from_part(self, part: u32) -> Result<Share> {
        if part == 0 || part > self.of {
            return Err(Error::input(format!("--part {part}: there are {} parts", self.of)).hint("the first one is 1"));
        }
        Ok(Share { part: Some(part), ..self })
    }
}

/// What a check found, and of what.
#[derive(Debug)]
pub struct Verification {
    /// What it found.
    pub report: VerifyReport,
    /// Which parts it looked at; none: everything.
    pub sample: Option<Sample>,
}

/// Checks a vault, and records the result there. What is damaged is in the report; an error means
/// that the check itself could not be done, or was interrupted.
pub async fn verify(job: &Job, vault: &Vault, how: How) -> Result<Verification> {
    job.phase(Doing::Verifying, None, None);
    let began = job.seams.clock.now_millis();
    let sample = match how.share {
        Some(share) => Some(job.stop.or(sample_of(vault, share, began)).await?),
        None => None,
    };
    let tell = |p: VerifyProgress| {
        job.set(Progress {
            doing: Doing::Verifying,
            documents: p.objects,
            total_documents: Some(p.total_objects),
            bytes: p.bytes,
            total_bytes: Some(p.total_bytes),
        });
    };
    let options = VerifyOptions { quick: how.quick, sample, repair: how.repair };
    let mut report = job.stop.or(vault.verify(&options, &tell)).await?;
    for hit in report.damages.iter_mut().flat_map(|d| &mut d.hits) {
        hit.documents = hit.keys.iter().map(|key| registry::key_text(&hit.engine, key)).collect();
    }
    let mut check = Check::new(CheckKind::Verify, began, job.seams.clock.now_millis(), problem(&report));
    let damaged = report.damages.iter().map(|d| &d.object).chain(report.healed.iter().map(|h| &h.object));
    check.verified = Some(Verified {
        quick: how.quick,
        sample,
        objects: report.objects,
        bytes: report.bytes,
        total_bytes: report.total_bytes,
        damaged: damaged.cloned().collect(),
    });
    checks::record(job, vault, &check).await;
    Ok(Verification { report, sample })
}

/// The parts that are due: those after the parts of the last check of such a share; where none is
/// known, those that the day gives.
async fn sample_of(vault: &Vault, share: Share, now: i64) -> Result<Sample> {
    let Share { count, of, part } = share;
    let last = match (part, vault.can_list()) {
        (None, true) => vault.last_sample(of).await?,
        _ => None,
    };
    let first = match (part, last) {
        (Some(part), _) => part - 1,
        (None, Some(last)) => last.next().first,
        (None, None) => ((now / DAY).max(0) as u64 * u64::from(count) % u64::from(of)) as u32,
    };
    Ok(Sample { first, count, of })
}

fn problem(report: &VerifyReport) -> Option<String> {
    let lost = report.damages.iter().filter(|d| d.loses());
    let first = lost.clone().next()?;
    Some(match lost.count() {
        1 => format!("{}: {}", first.object, first.problem),
        n => format!("{n} objects are damaged, the first is {}: {}", first.object, first.problem),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn shares_are_read() {
        assert_eq!(Share::parse("1/30").unwrap(), Share { count: 1, of: 30, part: None });
        assert_eq!(Share::parse("2/7").unwrap().from_part(7).unwrap().part, Some(7));
        for wrong in ["", "30", "0/3", "4/3", "1/0", "a/b", "-1/3", "1/3/5"] {
            let error = Share::parse(wrong).unwrap_err();
            assert!(error.to_string().contains(wrong) && error.hint_text().unwrap().contains("1/30"), "{error}");
        }
        assert!(Share::parse("1/3").unwrap().from_part(4).is_err());
        assert!(Share::parse("1/3").unwrap().from_part(0).is_err());
    }
}
