//! Tables, for a terminal and for a page.

use std::fmt::Write;

/// Rows under a heading. All but the first column are aligned to the right where they hold numbers.
#[derive(Debug)]
pub struct Grid {
    heading: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Grid {
    /// An empty table with this heading.
    pub fn new(heading: &[&str]) -> Self {
        Self::of(heading.iter().map(ToString::to_string).collect())
    }

    /// An empty table with this heading.
    pub fn of(heading: Vec<String>) -> Self {
        Self { heading, rows: Vec::new() }
    }

    /// Adds a row, as long as the heading.
    pub fn push(&mut self, row: Vec<String>) {
        debug_assert_eq!(row.len(), self.heading.len());
        self.rows.push(row);
    }

    /// In columns of equal width. A comma in a heading becomes a second line.
    pub fn text(&self) -> String {
        let heads: Vec<_> =
            self.heading.iter().map(|h| h.split_once(", ").unwrap_or((h, ""))).collect();
        let upper = heads.iter().map(|head| head.0.to_owned()).collect();
        let lower: Vec<_> = heads.iter().map(|head| head.1.to_owned()).collect();
        let two_lines = lower.iter().any(|head| !head.is_empty());
        let heading = [Some(upper), two_lines.then_some(lower)];
        let lines: Vec<_> = heading.iter().flatten().chain(&self.rows).collect();
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
        let mut text = String::new();
        for line in &lines {
            let mut out = String::new();
            for (column, cell) in line.iter().enumerate() {
                let width = width(column).unwrap_or(0);
                if self.is_numeric(column) {
                    write!(out, "{cell:>width$}  ")
                } else {
                    write!(out, "{cell:width$}  ")
                }
                .expect("a string takes it all");
            }
            text += out.trim_end();
            text += "\n";
        }
        text
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        let rule = (0..self.heading.len())
            .map(|column| if self.is_numeric(column) { "--:" } else { "---" });
        let line = |cells: Vec<&str>| format!("| {} |\n", cells.join(" | "));
        let escaped = |row: &[String]| -> Vec<String> {
            row.iter().map(|cell| cell.replace('|', "\\|")).collect()
        };
        let cells = |row: &[String]| line(escaped(row).iter().map(String::as_str).collect());
        let body: String = self.rows.iter().map(|row| cells(row)).collect();
        cells(&self.heading) + &line(rule.collect()) + &body
    }

    fn is_numeric(&self, column: usize) -> bool {
        let mut cells = self.rows.iter().map(|row| &row[column]).filter(|cell| !cell.is_empty());
        self.rows.iter().any(|row| !row[column].is_empty())
            && cells.all(|cell| cell.parse::<f64>().is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::Grid;

    fn grid() -> Grid {
        let mut grid = Grid::new(&["case", "us, ours", "us, QEMU"]);
        grid.push(vec!["a|b".to_owned(), "12.5".to_owned(), String::new()]);
        grid.push(vec!["long name".to_owned(), "3".to_owned(), String::new()]);
        grid
    }

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let text = grid().text();
        let expected =
            ["case         us  us", "           ours  QEMU", "a|b        12.5", "long name     3"];
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn cells_do_not_break_a_row_of_markdown() {
        let expected = "| case | us, ours | us, QEMU |\n| --- | --: | --- |\n| a\\|b | 12.5 |  |\n| long name | 3 |  |\n";
        assert_eq!(grid().markdown(), expected);
    }
}
