//! Ids as times: those of baskets and commands are UUIDv7, which sort by the time of their creation.

use chrono::{DateTime, Utc};
use uuid::{Builder, Uuid};

/// The smallest id of a millisecond.
pub fn first_id_at(time: DateTime<Utc>) -> Uuid {
    let milliseconds = u64::try_from(time.timestamp_millis()).unwrap_or(0);
    Builder::from_unix_timestamp_millis(milliseconds, &[0; 10]).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeDelta;

    #[test]
    fn the_first_id_of_a_millisecond_is_before_every_other_one() {
        let now = Utc::now();
        let (bound, id) = (first_id_at(now), Uuid::now_v7());
        assert!(bound < id && bound.get_version_num() == 7);
        assert!(first_id_at(now + TimeDelta::milliseconds(1)) > bound);
    }
}
