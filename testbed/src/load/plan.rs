//! What one transaction will do, decided before it begins.

use super::LoadOptions;
use super::dice::Dice;

/// Rows inserted by one statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Number of the key all its rows have.
    pub(super) key: usize,
    /// How many rows.
    pub(super) rows: usize,
    /// Whether it stands alone or inside a savepoint.
    pub(super) savepoint: Savepoint,
}

/// What surrounds a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Savepoint {
    None,
    Released,
    RolledBack,
}

/// One transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// In ascending order of their keys: all writers lock in the same order, so they never deadlock.
    pub(super) segments: Vec<Segment>,
    /// Whether the whole is rolled back at the end.
    pub(super) rollback: bool,
}

impl Plan {
    pub(super) fn draw(options: &LoadOptions, dice: &mut Dice) -> Plan {
        let (fewest, most) = (*options.rows.start(), *options.rows.end());
        let mut left = (fewest + dice.below(most.saturating_sub(fewest) + 1)).max(1);
        let savepoints = dice.percent(options.savepoint_percent);
        let mut segments = Vec::new();
        while left > 0 {
            let rows = 1 + dice.below(left);
            let savepoint = match (savepoints, dice.percent(50)) {
                (false, _) => Savepoint::None,
                (true, true) => Savepoint::Released,
                (true, false) => Savepoint::RolledBack,
            };
            segments.push(Segment { key: dice.below(options.keys), rows, savepoint });
            left -= rows;
        }
        segments.sort_by_key(|segment| segment.key);
        Plan { segments, rollback: dice.percent(options.rollback_percent) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_keep_to_the_row_range_and_lock_in_order() {
        let options = LoadOptions { rows: 3..=40, keys: 9, ..LoadOptions::default() };
        let mut dice = Dice::new(7);
        for _ in 0..500 {
            let plan = Plan::draw(&options, &mut dice);
            let rows: usize = plan.segments.iter().map(|segment| segment.rows).sum();
            assert!(options.rows.contains(&rows), "{plan:?}");
            assert!(plan.segments.is_sorted_by_key(|segment| segment.key), "{plan:?}");
            assert!(plan.segments.iter().all(|segment| segment.rows > 0 && segment.key < 9), "{plan:?}");
        }
    }

    #[test]
    fn the_same_seed_draws_the_same_plans() {
        let options = LoadOptions::default();
        let draw = |seed| {
            let mut dice = Dice::new(seed);
            (0..50).map(|_| Plan::draw(&options, &mut dice)).collect::<Vec<_>>()
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
    }

    #[test]
    fn without_percentages_every_row_is_meant_to_stay() {
        let options = LoadOptions { rollback_percent: 0, savepoint_percent: 0, ..LoadOptions::default() };
        let mut dice = Dice::new(1);
        for _ in 0..100 {
            let plan = Plan::draw(&options, &mut dice);
            assert!(
                !plan.rollback && plan.segments.iter().all(|segment| segment.savepoint == Savepoint::None)
            );
        }
    }
}
