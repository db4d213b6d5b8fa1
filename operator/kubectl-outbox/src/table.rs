//! Tables as kubectl prints them.

use std::io::{Write, stdout};

/// Blanks between columns.
const GAP: usize = 3;

/// Prints a table with aligned columns.
pub fn print<const COLUMNS: usize>(heads: &[&str; COLUMNS], rows: &[[String; COLUMNS]]) {
    // The reader may have closed the pipe (`| head`).
    let _ = stdout().lock().write_all(aligned(heads, rows).as_bytes());
}

fn aligned<const COLUMNS: usize>(heads: &[&str; COLUMNS], rows: &[[String; COLUMNS]]) -> String {
    let heads = heads.map(str::to_owned);
    let rows: Vec<&[String; COLUMNS]> = std::iter::once(&heads).chain(rows).collect();
    let mut widths = [0; COLUMNS];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row.iter()) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &&[String; COLUMNS]| {
        let cells =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}", width = width + GAP));
        format!("{}\n", cells.collect::<String>().trim_end())
    };
    rows.iter().map(line).collect()
}

/// A duration, as precise as it matters.
pub fn seconds(seconds: f64) -> String {
    if seconds < 10.0 { format!("{seconds:.3}s") } else { format!("{seconds:.0}s") }
}

/// A size in the largest unit that leaves at least 1.
pub fn bytes(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let scaled = |power: usize| bytes >> (10 * power);
    match (1..=units.len()).rev().find(|power| scaled(*power) > 0) {
        Some(power) => format!("{}{}", scaled(power), units.get(power - 1).unwrap_or(&"")),
        None => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_blanks_at_their_end() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned);
        let text = aligned(&["NAME", "LAG"], &[row(["a-long-name", "0.012s"]), row(["b", "-"])]);
        assert_eq!(text, "NAME          LAG\na-long-name   0.012s\nb             -\n");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([seconds(0.0124), seconds(75.4)], ["0.012s", "75s"]);
        assert_eq!([bytes(0), bytes(1023), bytes(1024), bytes(5 << 30)], ["0B", "1023B", "1KiB", "5GiB"]);
    }
}
