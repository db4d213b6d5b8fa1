//! A Grafana dashboard: its expressions, and where its panels are.

use std::collections::BTreeSet;

use serde_json::Value;

/// The columns of Grafana's grid.
const COLUMNS: u64 = 24;

/// The expressions of all panels, with an interval in place of Grafana's variable.
pub fn expressions(dashboard: &Value) -> Vec<String> {
    let targets = panels(dashboard).flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let expressions = targets.filter_map(|target| target["expr"].as_str());
    expressions.map(|expression| expression.replace("$__rate_interval", "5m")).collect()
}

/// The titles of panels that have another panel's number or place, or exceed the grid: Grafana would not show them all.
pub fn misplaced(dashboard: &Value) -> Vec<String> {
    let (mut numbers, mut cells) = (BTreeSet::new(), BTreeSet::new());
    let mut misplaced = Vec::new();
    for panel in panels(dashboard) {
        let grid = &panel["gridPos"];
        let place = |side: &str| grid[side].as_u64().unwrap_or_default();
        let (x, y) = (place("x"), place("y"));
        let mut fits = numbers.insert(panel["id"].as_u64()) && x + place("w") <= COLUMNS;
        for column in x..x + place("w") {
            for row in y..y + place("h") {
                fits &= cells.insert((column, row));
            }
        }
        if !fits {
            misplaced.push(panel["title"].to_string());
        }
    }
    misplaced
}

fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    dashboard["panels"].as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn panel(id: u64, x: u64, w: u64) -> Value {
        json!({"id": id, "title": id, "gridPos": {"x": x, "y": 0, "w": w, "h": 4}})
    }

    #[test]
    fn panels_on_others_and_outside_the_grid_are_misplaced() {
        let dashboard = |panels: &[Value]| json!({"panels": panels});
        let none: [&str; 0] = [];
        assert_eq!(misplaced(&dashboard(&[panel(1, 0, 12), panel(2, 12, 12)])), none);
        assert_eq!(misplaced(&dashboard(&[panel(1, 0, 12), panel(2, 11, 12)])), ["2"]);
        assert_eq!(misplaced(&dashboard(&[panel(1, 0, 12), panel(1, 12, 12)])), ["1"]);
        assert_eq!(misplaced(&dashboard(&[panel(3, 13, 12)])), ["3"]);
    }
}
