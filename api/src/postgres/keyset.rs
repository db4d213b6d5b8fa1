//! Pages of a list, newest first, as an index has them.

use sqlx::{Postgres, QueryBuilder};
use uuid::Uuid;

/// What a list selects: these values in these columns, and a range of ids. An index of the columns and the id, all in one
/// direction, has to exist.
///
/// Columns and id are compared, and ordered by, as one row. With equalities the order would be that of the id alone, which
/// the primary key has, too: the planner takes rows that match to be evenly spread, and would walk it past a million rows
/// where all that match are old. Both bounds include their values: of a comparison that excludes the value, and with it the
/// id, the planner expects no row if the value is the first of its column.
pub struct Keyset<'a> {
    columns: Vec<(&'static str, &'a str)>,
    first: Uuid,
    last: Uuid,
}

impl<'a> Keyset<'a> {
    /// Every id, of the rows that have the values that are given.
    pub fn new(filters: impl IntoIterator<Item = (&'static str, Option<&'a str>)>) -> Keyset<'a> {
        let columns = filters.into_iter().filter_map(|(column, value)| Some((column, value?))).collect();
        Keyset { columns, first: Uuid::nil(), last: Uuid::max() }
    }

    /// Only ids from this one on.
    pub fn not_before(&mut self, id: Uuid) {
        self.first = self.first.max(id);
    }

    /// Only ids before this one.
    pub fn before(&mut self, id: Uuid) {
        self.last = self.last.min(Uuid::from_u128(id.as_u128().saturating_sub(1)));
    }

    /// Appends the conditions, the order, and the limit to a statement that has a `WHERE`.
    pub fn push(&self, statement: &mut QueryBuilder<Postgres>, limit: i64) {
        for (comparison, id) in [(">=", self.first), ("<=", self.last)] {
            statement.push(" AND (");
            self.columns.iter().for_each(|(column, _)| {
                statement.push(column).push(", ");
            });
            statement.push("id) ").push(comparison).push(" (");
            self.columns.iter().for_each(|(_, value)| {
                statement.push_bind(*value).push(", ");
            });
            statement.push_bind(id).push(")");
        }
        statement.push(" ORDER BY ");
        self.columns.iter().for_each(|(column, _)| {
            statement.push(column).push(" DESC, ");
        });
        statement.push("id DESC LIMIT ").push_bind(limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sql(filters: &[(&'static str, Option<&str>)]) -> String {
        let mut statement = QueryBuilder::new("SELECT FROM t WHERE true");
        Keyset::new(filters.iter().copied()).push(&mut statement, 3);
        statement.sql().as_str().to_owned()
    }

    #[test]
    fn filters_that_are_given_are_compared_and_ordered_with_the_id() {
        assert_eq!(
            sql(&[("owner", Some("ann")), ("buyer_id", None), ("status", Some("open"))]),
            "SELECT FROM t WHERE true AND (owner, status, id) >= ($1, $2, $3) AND (owner, status, id) <= ($4, $5, $6) \
             ORDER BY owner DESC, status DESC, id DESC LIMIT $7"
        );
        assert_eq!(
            sql(&[("principal", None)]),
            "SELECT FROM t WHERE true AND (id) >= ($1) AND (id) <= ($2) ORDER BY id DESC LIMIT $3"
        );
    }

    #[test]
    fn bounds_only_narrow() {
        let mut keyset = Keyset::new([]);
        let [low, middle, high] = [1, 2, 3].map(Uuid::from_u128);
        keyset.before(high);
        keyset.before(middle);
        keyset.before(high);
        keyset.not_before(middle);
        keyset.not_before(low);
        assert_eq!((keyset.first, keyset.last), (middle, low));
    }
}
