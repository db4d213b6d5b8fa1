//! PostgreSQL's clock: microseconds since its own epoch.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds from the Unix epoch to 2000-01-01T00:00:00Z, PostgreSQL's.
const EPOCH_OFFSET_SECONDS: u64 = 946_684_800;

/// A point in time as PostgreSQL sends it: microseconds since 2000-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PgTime(i64);

impl PgTime {
    /// A time of `micros` microseconds since 2000-01-01T00:00:00Z.
    pub const fn from_micros(micros: i64) -> Self {
        PgTime(micros)
    }

    /// Microseconds since 2000-01-01T00:00:00Z.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Microseconds since 1970-01-01T00:00:00Z; saturates at the limits of the type.
    pub const fn unix_micros(self) -> i64 {
        self.0.saturating_add(EPOCH_OFFSET_SECONDS as i64 * 1_000_000)
    }

    /// This machine's present time.
    pub fn now() -> Self {
        // A clock before 1970 is wrong; the server only shows this value in its views.
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let micros = i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX);
        PgTime(micros.saturating_sub(EPOCH_OFFSET_SECONDS as i64 * 1_000_000))
    }

    /// The same time for the standard library; `None` when it cannot express it.
    pub fn to_system_time(self) -> Option<SystemTime> {
        let epoch = UNIX_EPOCH.checked_add(Duration::from_secs(EPOCH_OFFSET_SECONDS))?;
        let distance = Duration::from_micros(self.0.unsigned_abs());
        if self.0 < 0 { epoch.checked_sub(distance) } else { epoch.checked_add(distance) }
    }
}

/// Days from 1970-01-01 to a date of the Gregorian calendar (Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms").
pub(crate) fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Year, month and day of so many days after 1970-01-01: the inverse.
pub(crate) fn civil_date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day_of_year - (153 * month_from_march + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epoch_is_the_year_2000() {
        assert_eq!(PgTime::from_micros(0).unix_micros(), 946_684_800_000_000);
        let epoch = UNIX_EPOCH + Duration::from_secs(946_684_800);
        assert_eq!(PgTime::from_micros(0).to_system_time(), Some(epoch));
        assert_eq!(PgTime::from_micros(-1).to_system_time(), Some(epoch - Duration::from_micros(1)));
    }

    #[test]
    fn now_is_now() {
        let gap = SystemTime::now().duration_since(PgTime::now().to_system_time().unwrap());
        assert!(gap.unwrap_or_default() < Duration::from_secs(60));
    }

    #[test]
    fn no_value_panics() {
        for micros in [i64::MIN, -1, 0, 1, i64::MAX] {
            let time = PgTime::from_micros(micros);
            let _ = (time.unix_micros(), time.to_system_time());
        }
    }
}
