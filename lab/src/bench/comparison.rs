//! Readers side by side: what each of them reached in all rounds, and how many times the first one's that is.

use serde::{Deserialize, Serialize};

use super::statistics::{Spread, ratio};

/// One of the figures of a measurement, if it has that.
pub type Figure<T> = fn(&T) -> Option<f64>;

/// One figure of all readers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// What it is, with its unit.
    pub measure: String,
    /// Of each reader that has it.
    pub cells: Vec<Cell>,
}

/// One figure of one reader.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The reader.
    pub reader: String,
    /// Over all rounds.
    #[serde(flatten)]
    pub spread: Spread,
    /// How many times the median of the first reader it is.
    pub to_first: Option<f64>,
}

/// Compares what was measured; a figure that nothing has is left out. `reader` is the reader of a measurement.
pub fn compare<T>(
    readers: &[String],
    measured: &[&T],
    reader: fn(&T) -> &str,
    measures: &[(&str, Figure<T>)],
) -> Vec<Measured> {
    let row = |(measure, figure): &(&str, Figure<T>)| {
        let of = |name: &String| {
            Spread::of(measured.iter().copied().filter(|one| reader(one) == name).filter_map(figure))
        };
        let first = readers.first().and_then(of);
        let cell = |name: &String| {
            let spread = of(name)?;
            Some(Cell { reader: name.clone(), spread, to_first: ratio(Some(spread), first) })
        };
        Measured { measure: (*measure).to_owned(), cells: readers.iter().filter_map(cell).collect() }
    };
    measures.iter().map(row).filter(|row| !row.cells.is_empty()).collect()
}

/// A line for each figure and a column for each reader: median, smallest and largest, and the ratio.
pub fn table(readers: &[String], rows: &[Measured]) -> String {
    let cells = |row: &Measured| -> Vec<String> {
        let text =
            |name: &String| row.cells.iter().find(|cell| cell.reader == *name).map(text).unwrap_or_default();
        readers.iter().map(text).collect()
    };
    let mut lines: Vec<(String, Vec<String>)> = vec![(String::new(), readers.to_vec())];
    lines.extend(rows.iter().map(|row| (row.measure.clone(), cells(row))));
    let longest = |texts: Vec<&String>| texts.iter().map(|text| text.chars().count()).max().unwrap_or(0);
    let name_width = longest(lines.iter().map(|(name, _)| name).collect());
    let widths: Vec<usize> = (0..readers.len())
        .map(|column| longest(lines.iter().filter_map(|(_, cells)| cells.get(column)).collect()))
        .collect();
    let mut table = String::new();
    for (name, cells) in lines {
        table.push_str(&format!("  {name:<name_width$}"));
        for (cell, width) in cells.iter().zip(&widths) {
            table.push_str(&format!("   {cell:>width$}"));
        }
        table.push('\n');
    }
    table
}

fn text(cell: &Cell) -> String {
    let Spread { min, median, max } = cell.spread;
    let places = if median.abs() < 100.0 { 1 } else { 0 };
    let to_first = cell.to_first.map_or_else(String::new, |times| format!(" x{times:.2}"));
    format!("{median:.places$} ({min:.places$} to {max:.places$}){to_first}")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Round(&'static str, f64);

    const MEASURES: [(&str, Figure<Round>); 3] = [
        ("time, ms", |round| Some(round.1)),
        ("rate", |round| Some(2000.0 / round.1)),
        ("not measured", |_| None),
    ];

    fn rows() -> (Vec<String>, Vec<Measured>) {
        let readers = ["ours", "theirs", "absent"].map(str::to_owned).to_vec();
        let rounds = [
            Round("theirs", 50.0),
            Round("ours", 10.0),
            Round("ours", 30.0),
            Round("theirs", 50.0),
            Round("ours", 20.0),
        ];
        let rounds: Vec<&Round> = rounds.iter().collect();
        let rows = compare(&readers, &rounds, |round| round.0, &MEASURES);
        (readers, rows)
    }

    #[test]
    fn readers_are_compared_by_the_median_of_their_rounds() {
        let (_, rows) = rows();
        let time = rows.first().unwrap();
        assert_eq!(time.measure, "time, ms");
        let found: Vec<_> =
            time.cells.iter().map(|cell| (cell.reader.as_str(), cell.spread, cell.to_first)).collect();
        let ours = Spread { min: 10.0, median: 20.0, max: 30.0 };
        let theirs = Spread { min: 50.0, median: 50.0, max: 50.0 };
        assert_eq!(found, [("ours", ours, Some(1.0)), ("theirs", theirs, Some(2.5))]);
    }

    #[test]
    fn the_table_has_a_line_for_each_figure_and_a_column_for_each_reader() {
        let (readers, rows) = rows();
        let table = table(&readers, &rows);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| line.chars().count() == lines[0].chars().count()), "{table}");
        assert!(lines[1].contains("20.0 (10.0 to 30.0) x1.00") && lines[1].contains("x2.50"), "{table}");
        assert!(
            lines[2].contains("100 (67 to 200) x1.00") && lines[2].contains("40.0 (40.0 to 40.0) x0.40"),
            "{table}"
        );
    }

    #[test]
    fn a_comparison_is_read_back_as_it_was_kept() {
        let (_, rows) = rows();
        let kept = serde_json::to_string(&rows).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Measured>>(&kept).unwrap(), rows);
    }
}
