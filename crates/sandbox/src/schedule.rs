//! When volumes are backed up by themselves: a pure question, asked again and again.

use chrono::{DateTime, Utc};
use croner::Cron;
use storage::BackupSchedule;
use types::Timestamp;

use crate::error::{Error, ErrorKind, Result};

/// At most this many backups of a volume are kept by a schedule.
const MOST_KEPT: u32 = 1000;

/// A schedule that holds together, from now on.
///
/// # Errors
/// `BadRequest` when it is none that ever comes, or keeps nothing.
pub(crate) fn schedule(cron: &str, keep: u32, now: Timestamp) -> Result<BackupSchedule> {
    if !(1..=MOST_KEPT).contains(&keep) {
        let text = format!("a schedule keeps 1 to {MOST_KEPT} backups, not {keep}");
        return Err(Error::new(ErrorKind::BadRequest, text).hint("give another number with --keep"));
    }
    let schedule = BackupSchedule { cron: cron.to_owned(), keep, since: now, last_error: None };
    match next(&schedule) {
        Some(_) => Ok(schedule),
        None => Err(Error::new(ErrorKind::BadRequest, format!("{cron:?} is no time that ever comes")).hint(
            "give minute, hour, day, month and day of the week (UTC), such as `30 3 * * *` or `@daily`",
        )),
    }
}

/// When the next backup is due; `None` for a schedule that somebody has damaged.
pub(crate) fn next(schedule: &BackupSchedule) -> Option<Timestamp> {
    let cron = Cron::new(&schedule.cron).parse().ok()?;
    let since: DateTime<Utc> = DateTime::from_timestamp_millis(schedule.since.0)?;
    let next = cron.find_next_occurrence(&since, false).ok()?;
    Some(Timestamp(next.timestamp_millis()))
}

/// Whether a backup is due. However many were missed while no daemon ran, one makes up for them.
pub(crate) fn due(schedule: &BackupSchedule, now: Timestamp) -> bool {
    next(schedule).is_some_and(|next| next <= now)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000;
    const HOUR: i64 = 60 * MINUTE;
    /// 2026-11-25T19:00:00Z, a Wednesday.
    const NOW: Timestamp = Timestamp(1_795_633_200_000);

    fn at(offset: i64) -> Timestamp {
        Timestamp(NOW.0 + offset)
    }

    #[test]
    fn a_backup_is_due_from_its_minute_on_and_missed_ones_are_made_up_for_once() {
        let mut nightly = schedule("30 3 * * *", 7, NOW).unwrap();
        assert_eq!(next(&nightly), Some(at(8 * HOUR + 30 * MINUTE)));
        for (offset, is_due) in
            [(0, false), (8 * HOUR, false), (8 * HOUR + 30 * MINUTE, true), (80 * HOUR, true)]
        {
            assert_eq!(due(&nightly, at(offset)), is_due, "{offset}");
        }
        nightly.since = at(80 * HOUR);
        assert!(!due(&nightly, at(80 * HOUR)));
        assert_eq!(next(&nightly), Some(at(80 * HOUR + 30 * MINUTE)));
    }

    #[test]
    fn days_of_the_week_and_names_mean_what_cron_says() {
        for (cron, offset) in [
            ("0 4 * * 1", 4 * 24 * HOUR + 9 * HOUR),
            ("@daily", 5 * HOUR),
            ("@hourly", HOUR),
            ("*/15 * * * *", 15 * MINUTE),
        ] {
            assert_eq!(next(&schedule(cron, 1, NOW).unwrap()), Some(at(offset)), "{cron}");
        }
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for bad in ["", "nightly", "* * *", "61 * * * *", "0 0 31 2 *", "0 25 * * *"] {
            let error = schedule(bad, 3, NOW).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BadRequest, "{bad:?}");
        }
        assert!(schedule("@daily", 0, NOW).is_err());
        assert!(schedule("@daily", 1001, NOW).is_err());
        let damaged = BackupSchedule { cron: "?".into(), keep: 1, since: NOW, last_error: None };
        assert!(!due(&damaged, at(1000 * HOUR)));
    }
}
