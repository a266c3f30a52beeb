//! Tables, medians and the list of faults.

use std::time::Duration;

/// Faults of a whole run: all are counted, the first few of each part are kept with their text.
#[derive(Default)]
pub(crate) struct Faults {
    count: u64,
    messages: Vec<String>,
}

impl Faults {
    /// Adds `count` faults of one part of the run, of which some have a text.
    pub(crate) fn add(&mut self, part: &str, count: u64, messages: &[String]) {
        self.count += count;
        for message in messages {
            self.messages.push(format!("{part}: {message}"));
        }
    }

    /// Adds the one fault that ended a part of the run.
    pub(crate) fn add_error(&mut self, part: &str, error: &anyhow::Error) {
        self.add(part, 1, &[format!("{error:#}")]);
    }

    /// Prints what was found wrong. `true`: nothing.
    #[expect(clippy::print_stdout, reason = "the report is what this program is for")]
    pub(crate) fn print(&self) -> bool {
        if self.count == 0 {
            return true;
        }
        println!("\nERRORS: {}. Some of them:", self.count);
        for message in &self.messages {
            println!("- {message}");
        }
        false
    }
}

/// A table in aligned Markdown, every column to the right.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub(crate) fn new(columns: &[&str]) -> Self {
        let head = columns.iter().map(|&name| name.to_owned()).collect();
        Self { rows: vec![head] }
    }

    /// The table with one more column.
    pub(crate) fn with_column(mut self, name: &str, cells: Vec<String>) -> Self {
        let cells = std::iter::once(name.to_owned()).chain(cells);
        for (row, cell) in self.rows.iter_mut().zip(cells) {
            row.push(cell);
        }
        self
    }

    /// Adds a row with one cell for each column.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.rows[0].len(), "a cell for each column");
        self.rows.push(cells);
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = |column: usize| {
            let lengths = self.rows.iter().map(|row| row[column].chars().count());
            lengths.max().unwrap_or(0).max(2)
        };
        let widths: Vec<usize> = (0..self.rows[0].len()).map(width).collect();
        for (index, row) in self.rows.iter().enumerate() {
            for (cell, &width) in row.iter().zip(&widths) {
                write!(f, "| {cell:>width$} ")?;
            }
            writeln!(f, "|")?;
            if index == 0 {
                for &width in &widths {
                    write!(f, "| {:->width$}: ", "", width = width - 1)?;
                }
                writeln!(f, "|")?;
            }
        }
        Ok(())
    }
}

/// The figures of all rounds at one point.
pub(crate) struct Spread(Vec<f64>);

impl Spread {
    /// Of at least one figure.
    pub(crate) fn of(figures: impl Iterator<Item = f64>) -> Self {
        let mut figures: Vec<f64> = figures.collect();
        figures.sort_unstable_by(f64::total_cmp);
        Self(figures)
    }

    /// The middle one, or the mean of the two in the middle.
    pub(crate) fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        if self.0.len() % 2 == 1 { self.0[middle] } else { f64::midpoint(self.0[middle - 1], self.0[middle]) }
    }

    /// The smallest and the largest, as whole numbers.
    pub(crate) fn range(&self) -> String {
        format!("{:.0}–{:.0}", self.0[0], self.0[self.0.len() - 1])
    }

    /// The same for figures around 1.
    pub(crate) fn range_to_hundredths(&self) -> String {
        format!("{:.2}–{:.2}", self.0[0], self.0[self.0.len() - 1])
    }
}

/// Milliseconds with three digits that tell something.
pub(crate) fn millis(time: Duration) -> String {
    millis_of(time.as_secs_f64())
}

/// The same for a time given in seconds.
pub(crate) fn millis_of(seconds: f64) -> String {
    let millis = seconds * 1e3;
    let digits = match millis {
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    // The figures of one connection are tenths of a millisecond.
    let digits = if millis < 1.0 { 3 } else { digits };
    format!("{millis:.digits$}")
}

/// `total` for each of `count`, in microseconds.
pub(crate) fn micros_each(total: Duration, count: u64) -> f64 {
    total.as_secs_f64() * 1e6 / count.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_markdown() {
        let mut table = Table::new(&["c", "req/s"]);
        table.row(vec!["512".into(), "7".into()]);
        assert_eq!(table.to_string(), "|   c | req/s |\n| --: | ----: |\n| 512 |     7 |\n");
    }

    #[test]
    fn medians_and_ranges() {
        let odd = Spread::of([3.0, 1.0, 2.0].into_iter());
        assert_eq!((odd.median(), odd.range().as_str()), (2.0, "1–3"));
        let even = Spread::of([4.0, 1.0, 2.0, 3.0].into_iter());
        assert_eq!(even.median(), 2.5);
    }

    #[test]
    fn times_are_short_to_read() {
        let shown = |micros| millis(Duration::from_micros(micros));
        assert_eq!([shown(123), shown(4567), shown(45678), shown(456_789)], ["0.123", "4.57", "45.7", "457"]);
    }
}
