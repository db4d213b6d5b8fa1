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

    /// Microseconds since 1970-01-01T00:00:00Z; saturates at the end of time.
    pub const fn unix_micros(self) -> i64 {
        self.0.saturating_add(EPOCH_OFFSET_SECONDS as i64 * 1_000_000)
    }

    /// This machine's present time.
    pub fn now() -> Self {
        // A clock before 1970 is a broken clock; the server only echoes this value in its views.
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
