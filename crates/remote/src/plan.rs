//! Which backups to keep, as a value that can be looked at before anything is removed.

use std::collections::BTreeSet;
use std::fmt;

use types::Timestamp;

use crate::{BackupId, Error, ErrorKind, Result};

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// A wish for what is kept. A backup stays when one of the three wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keep {
    /// The newest so many.
    pub last: u32,
    /// The newest of each of the newest so many days that have any (UTC).
    pub daily: u32,
    /// The newest of each of the newest so many weeks that have any (from Monday, UTC).
    pub weekly: u32,
}

/// What stays and what goes, each oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PrunePlan {
    /// These stay.
    pub keep: Vec<BackupId>,
    /// These go.
    pub remove: Vec<BackupId>,
}

/// Decides by the time of each backup alone. Nothing is removed yet.
///
/// # Errors
/// [`ErrorKind::Invalid`] when nothing at all is to be kept: that is asked for backup by backup.
pub fn plan_prune(backups: &[(BackupId, Timestamp)], keep: Keep) -> Result<PrunePlan> {
    if keep == Keep::default() {
        return Err(Error::new(ErrorKind::Invalid, "prune", "all backups")
            .because("nothing would be kept")
            .hint_to("keep at least one, or delete backups by their ids"));
    }
    let mut newest_first: Vec<_> = backups.iter().collect();
    newest_first.sort_by(|(one_id, one), (other_id, other)| (other, other_id).cmp(&(one, one_id)));
    let mut stays = BTreeSet::new();
    let count = |wanted: u32| usize::try_from(wanted).unwrap_or(usize::MAX);
    stays.extend(newest_first.iter().take(count(keep.last)).map(|(id, _)| id.clone()));
    // 1970-01-01 was a Thursday: three days later than its week's Monday.
    for (wanted, length, shift) in [(keep.daily, DAY_MS, 0), (keep.weekly, 7 * DAY_MS, 3 * DAY_MS)] {
        let mut seen = BTreeSet::new();
        for (id, at) in &newest_first {
            let period = at.0.saturating_add(shift).div_euclid(length);
            if seen.contains(&period) {
                continue;
            }
            if seen.len() >= count(wanted) {
                break;
            }
            seen.insert(period);
            stays.insert(id.clone());
        }
    }
    newest_first.reverse();
    let (keep, remove) =
        newest_first.into_iter().map(|(id, _)| id.clone()).partition(|id| stays.contains(id));
    Ok(PrunePlan { keep, remove })
}

impl fmt::Display for PrunePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for id in &self.keep {
            writeln!(f, "keep   {id}")?;
        }
        for id in &self.remove {
            writeln!(f, "remove {id}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR_MS: i64 = DAY_MS / 24;
    /// 2026-11-23, a Monday.
    const MONDAY: i64 = 1_795_392_000_000;

    fn backup(at: i64) -> (BackupId, Timestamp) {
        (BackupId::new(Timestamp(at)), Timestamp(at))
    }

    fn removed(backups: &[(BackupId, Timestamp)], keep: Keep) -> Vec<usize> {
        let plan = plan_prune(backups, keep).unwrap();
        (0..backups.len()).filter(|at| plan.remove.contains(&backups[*at].0)).collect()
    }

    #[test]
    fn the_last_the_days_and_the_weeks_are_kept() {
        let at = [-9 * 24, -8 * 24, -1, 0, 5, 30, 31].map(|hours| backup(MONDAY + hours * HOUR_MS));
        assert_eq!(removed(&at, Keep { last: 2, ..Keep::default() }), [0, 1, 2, 3, 4]);
        // Tuesday 07:00, Monday 05:00, Sunday 23:00.
        assert_eq!(removed(&at, Keep { daily: 3, ..Keep::default() }), [0, 1, 3, 5]);
        // This week's last, last week's last (Sunday), the week before's last.
        assert_eq!(removed(&at, Keep { weekly: 3, ..Keep::default() }), [0, 3, 4, 5]);
        assert_eq!(removed(&at, Keep { last: 1, daily: 2, weekly: 9 }), [0, 3, 5]);
        assert_eq!(removed(&[], Keep { last: 1, ..Keep::default() }), [0usize; 0]);
    }

    #[test]
    fn a_plan_that_keeps_nothing_is_refused() {
        let error = plan_prune(&[backup(MONDAY)], Keep::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }

    #[test]
    fn a_plan_can_be_read() {
        let plan = PrunePlan {
            keep: vec!["20261125t192352-1a2b3c4d".parse().unwrap()],
            remove: vec!["20261124t192352-1a2b3c4d".parse().unwrap()],
        };
        let text = "keep   20261125t192352-1a2b3c4d\nremove 20261124t192352-1a2b3c4d\n";
        assert_eq!(plan.to_string(), text);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_the_newest_always_stays(
            times in proptest::collection::vec(0i64..400 * DAY_MS, 1..40),
            last in 0u32..5, daily in 0u32..5, weekly in 0u32..5,
        ) {
            prop_assume!(last + daily + weekly > 0);
            let backups: Vec<_> = times.iter().copied().map(backup).collect();
            let plan = plan_prune(&backups, Keep { last, daily, weekly }).unwrap();
            prop_assert_eq!(plan.keep.len() + plan.remove.len(), backups.len());
            let newest = times.iter().max().copied().unwrap();
            prop_assert!(backups.iter().any(|(id, at)| at.0 == newest && plan.keep.contains(id)));
            let at_most = usize::try_from(last + daily + weekly).unwrap();
            prop_assert!(plan.keep.len() <= at_most);
            // What is planned again after it was done removes nothing more.
            let left: Vec<_> = backups.into_iter().filter(|(id, _)| plan.keep.contains(id)).collect();
            prop_assert_eq!(plan_prune(&left, Keep { last, daily, weekly }).unwrap().remove, vec![]);
        }
    }
}
