//! Which positions belong to the server's timelines.
//!
//! After a promotion the same LSN stands for different commits on the old and the new timeline, and after a restore
//! even on the same one. A position counts only if it is part of the server's WAL history. Records at other positions
//! are *phantoms*: events in Kafka whose rows this server does not have.

use outbox::Position;
use pg_replication::{CommitLsn, EndLsn, Lsn, TimelineHistory};

/// The server's WAL history, up to the *horizon*: its flush LSN after the slot was acquired. No relay had received a commit
/// at or after it then, so none of those can be in Kafka.
#[derive(Clone, Debug)]
pub struct Lineage {
    timelines: TimelineHistory,
    horizon: EndLsn,
}

impl Lineage {
    pub fn new(timelines: TimelineHistory, horizon: EndLsn) -> Self {
        Lineage { timelines, horizon }
    }

    /// No earlier relay process can have sent a row committed at or after it.
    pub fn horizon(&self) -> EndLsn {
        self.horizon
    }

    /// The position of a row. Its timeline is the one on which the commit was written, not the current one.
    pub fn position(&self, commit: CommitLsn, index: u64) -> Position {
        let timeline = self.timelines.timeline_of(commit.lsn());
        Position { timeline, commit_lsn: commit.lsn().as_u64(), index }
    }

    /// Whether a position is on the server's timelines, even if it is beyond the horizon.
    pub fn is_on_line(&self, position: Position) -> bool {
        self.timelines.timeline_of(Lsn::from(position.commit_lsn)) == position.timeline
    }

    /// Whether a position is part of the server's WAL history, so that a row there may be in Kafka already.
    pub fn holds(&self, position: Position) -> bool {
        self.is_on_line(position) && self.horizon.covers(commit_lsn(position))
    }
}

pub fn commit_lsn(position: Position) -> CommitLsn {
    CommitLsn::new(Lsn::from(position.commit_lsn))
}

/// The LSN at which the server left `timeline`; `None` if it is the current one, an error if the server was never on
/// it.
pub fn left_at(timelines: &TimelineHistory, timeline: u32) -> Result<Option<Lsn>, UnknownTimeline> {
    if timeline == timelines.timeline() {
        return Ok(None);
    }
    let left = timelines.switch_points().iter().find(|(ancestor, _)| *ancestor == timeline);
    left.map(|(_, end)| Some(*end)).ok_or(UnknownTimeline)
}

/// The server was never on a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownTimeline;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{commit, end};
    use proptest::prelude::*;

    /// Timeline 1 up to 0x100, 2 up to 0x200, then 4, which ends at 0x300.
    fn lineage() -> Lineage {
        let timelines = TimelineHistory::parse(4, "1\t0/100\n2\t0/200\n").unwrap();
        Lineage::new(timelines, end(0x300))
    }

    #[test]
    fn a_position_has_the_timeline_its_commit_was_written_on() {
        let timelines = [0xff, 0x100, 0x1ff, 0x200].map(|lsn| lineage().position(commit(lsn), 0).timeline);
        assert_eq!(timelines, [1, 2, 2, 4]);
    }

    #[test]
    fn a_position_after_a_timeline_switch_or_beyond_the_horizon_is_not_held() {
        let at = |timeline, commit_lsn| Position { timeline, commit_lsn, index: 0 };
        let held = [at(1, 0xff), at(2, 0x100), at(4, 0x200), at(4, 0x2ff)];
        let phantoms = [at(1, 0x100), at(2, 0xff), at(2, 0x200), at(3, 0x1ff), at(4, 0x300), at(5, 0x2ff)];
        assert!(held.into_iter().all(|position| lineage().holds(position)));
        assert!(phantoms.into_iter().all(|position| !lineage().holds(position)));
        assert!(lineage().is_on_line(at(4, 0x300)), "it is on the timeline, but beyond the horizon");
    }

    #[test]
    fn a_timeline_was_left_once_or_never_entered() {
        let Lineage { timelines, .. } = lineage();
        assert_eq!(left_at(&timelines, 1), Ok(Some(Lsn::from(0x100))));
        assert_eq!(left_at(&timelines, 4), Ok(None));
        assert_eq!(left_at(&timelines, 3), Err(UnknownTimeline));
        assert_eq!(left_at(&timelines, 5), Err(UnknownTimeline));
    }

    proptest! {
        /// Within one history, positions are ordered like LSNs, across all timeline switches.
        #[test]
        fn positions_are_ordered_like_lsns(a in 0u64..0x300, b in 0u64..0x300) {
            let (one, other) = (lineage().position(commit(a), 0), lineage().position(commit(b), 0));
            prop_assert_eq!(one.cmp(&other), a.cmp(&b));
            prop_assert!(lineage().holds(one));
        }
    }
}
