//! Tables: aligned columns, which fit a terminal as long as that is possible.

use anstyle::Style;
use unicode_width::UnicodeWidthStr;

use crate::output::{ACCENT, DIM, fold, styled};
use crate::printable;

/// How a column's texts stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Short texts.
    Left,
    /// Numbers.
    Right,
    /// Texts that may be folded between words where there is little room.
    Fold,
}

/// Aligned columns under dim headings.
#[derive(Debug)]
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
    dispensable: Option<&'static str>,
}

/// Between two columns.
const GAP: &str = "  ";
/// A column is not folded to less.
const FOLD_WIDTH_MIN: usize = 12;
/// What has no room beside the others stands below, indented by this.
const BELOW_INDENT: usize = 4;

#[derive(Debug, Clone, Copy)]
struct Column {
    place: usize,
    title: &'static str,
    align: Align,
    width: usize,
}

impl Column {
    fn width_min(&self) -> usize {
        if self.align == Align::Fold {
            self.width.min(FOLD_WIDTH_MIN.max(self.title.width()))
        } else {
            self.width
        }
    }
}

/// How a table is laid out.
struct Layout {
    columns: Vec<Column>,
    /// The column whose texts stand below the rows.
    below: Option<usize>,
}

fn total(columns: &[Column], width: impl Fn(&Column) -> usize) -> usize {
    columns.iter().map(width).sum::<usize>() + GAP.len() * columns.len().saturating_sub(1)
}

impl Table {
    /// A table without rows.
    pub fn new(columns: &[(&'static str, Align)]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
            dispensable: None,
        }
    }

    /// The column that is left out first where there is little room.
    #[must_use]
    pub fn dispensable(mut self, title: &'static str) -> Self {
        self.dispensable = Some(title);
        self
    }

    /// Adds a row, a text for each column. The first column is the accent's.
    pub fn row(&mut self, cells: Vec<String>) {
        let shown = cells.iter().map(|cell| printable::one_line(cell).into_owned());
        self.rows.push(shown.collect());
    }

    /// The lines. Columns in which no row has anything are left out. Without a width, each row is one line.
    pub fn lines(&self, width: Option<usize>) -> Vec<String> {
        let layout = self.layout(width);
        let heading: Vec<String> = layout
            .columns
            .iter()
            .map(|column| column.title.to_owned())
            .collect();
        let mut lines = line(&layout.columns, &heading, &|_| DIM);
        for row in &self.rows {
            let cell = |column: &Column| row.get(column.place).cloned().unwrap_or_default();
            let cells: Vec<String> = layout.columns.iter().map(cell).collect();
            let style = |column: &Column| if column.place == 0 { ACCENT } else { Style::new() };
            lines.extend(line(&layout.columns, &cells, &style));
            let below = layout
                .below
                .and_then(|place| row.get(place))
                .filter(|text| !text.is_empty());
            if let Some(text) = below {
                let text = format!("{}{text}", " ".repeat(BELOW_INDENT));
                lines.extend(fold(&text, width, BELOW_INDENT));
            }
        }
        lines
    }

    fn filled_columns(&self) -> Vec<Column> {
        let columns = self.columns.iter().enumerate();
        columns
            .filter_map(|(place, (title, align))| {
                let cells = self.rows.iter().filter_map(|row| row.get(place));
                let width = cells.map(|cell| cell.width()).max().filter(|width| *width > 0)?;
                Some(Column {
                    place,
                    title,
                    align: *align,
                    width: width.max(title.width()),
                })
            })
            .collect()
    }

    /// Folding comes first, then the last text goes below its row, then a column is left out. What is still too wide
    /// stays so.
    fn layout(&self, width: Option<usize>) -> Layout {
        let columns = self.filled_columns();
        let whole = |columns| Layout { columns, below: None };
        let Some(width) = width else {
            return whole(columns);
        };
        let with_below = |mut columns: Vec<Column>| {
            let last = columns
                .pop_if(|column| column.align == Align::Fold)
                .map(|column| column.place);
            Layout { columns, below: last }
        };
        let fewer: Vec<Column> = columns
            .iter()
            .copied()
            .filter(|column| Some(column.title) != self.dispensable)
            .collect();
        let layouts = [
            whole(columns.clone()),
            with_below(columns.clone()),
            with_below(fewer),
        ];
        let fitting = layouts
            .into_iter()
            .find(|layout| total(&layout.columns, Column::width_min) <= width);
        let mut layout = fitting.unwrap_or_else(|| whole(columns));
        // The widest text gives way first.
        while total(&layout.columns, |column| column.width) > width {
            let foldable = layout
                .columns
                .iter_mut()
                .filter(|column| column.width > column.width_min());
            match foldable.max_by_key(|column| column.width) {
                Some(column) => column.width -= 1,
                None => break,
            }
        }
        layout
    }
}

/// A row, on as many lines as its folded texts need.
fn line(columns: &[Column], cells: &[String], style: &dyn Fn(&Column) -> Style) -> Vec<String> {
    let folded: Vec<Vec<String>> = columns
        .iter()
        .zip(cells)
        .map(|(column, cell)| fold(cell, Some(column.width), 0))
        .collect();
    let height = folded.iter().map(Vec::len).max().unwrap_or(0);
    let text = |number: usize| {
        let mut text = String::new();
        for (index, (column, lines)) in columns.iter().zip(&folded).enumerate() {
            let cell = lines.get(number).map(String::as_str).unwrap_or_default();
            let pad = " ".repeat(column.width.saturating_sub(cell.width()));
            let cell = if cell.is_empty() {
                String::new()
            } else {
                styled(style(column), cell)
            };
            if index > 0 {
                text.push_str(GAP);
            }
            match column.align {
                Align::Right => text.extend([pad, cell]),
                Align::Left | Align::Fold => text.extend([cell, pad]),
            }
        }
        text.trim_end().to_owned()
    };
    (0..height).map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(table: &Table, width: Option<usize>) -> Vec<String> {
        let lines = table.lines(width);
        lines
            .iter()
            .map(|line| anstream::adapter::strip_str(line).to_string())
            .collect()
    }

    #[test]
    fn columns_are_aligned_by_what_is_seen_and_empty_ones_left_out() {
        let mut table = Table::new(&[
            ("NAME", Align::Left),
            ("ROWS", Align::Right),
            ("NOTE", Align::Left),
        ]);
        table.row(vec!["größe".to_owned(), "12".to_owned(), String::new()]);
        table.row(vec!["日本".to_owned(), "1,234,567".to_owned(), String::new()]);
        assert_eq!(
            lines(&table, None),
            ["NAME        ROWS", "größe         12", "日本   1,234,567"]
        );
    }

    #[test]
    fn a_name_with_control_characters_stays_in_its_cell() {
        let mut table = Table::new(&[("NAME", Align::Left), ("ROWS", Align::Right)]);
        table.row(vec!["a\n\u{1b}[2J\tb".to_owned(), "1".to_owned()]);
        assert_eq!(
            lines(&table, None),
            ["NAME           ROWS", "a\\n\\x1b[2J\\tb     1"]
        );
        assert!(!table.lines(None)[1].contains("\u{1b}[2J"));
    }

    fn backups() -> Table {
        let columns = [
            ("ID", Align::Left),
            ("DATABASES", Align::Fold),
            ("SIZE", Align::Right),
            ("NOTE", Align::Fold),
        ];
        let mut table = Table::new(&columns).dispensable("SIZE");
        let row = [
            "d1",
            "postgres, app, dagster",
            "1.0 GiB",
            "pinned: before the big migration",
        ];
        table.row(row.map(str::to_owned).to_vec());
        table.row(["d2", "app", "9 B", ""].map(str::to_owned).to_vec());
        table
    }

    #[test]
    fn a_table_fits_its_terminal() {
        assert_eq!(
            lines(&backups(), None),
            [
                "ID  DATABASES                  SIZE  NOTE",
                "d1  postgres, app, dagster  1.0 GiB  pinned: before the big migration",
                "d2  app                         9 B",
            ]
        );
        assert_eq!(lines(&backups(), Some(80)), lines(&backups(), None));
        assert_eq!(
            lines(&backups(), Some(50)),
            [
                "ID  DATABASES              SIZE  NOTE",
                "d1  postgres, app,      1.0 GiB  pinned: before",
                "    dagster                      the big migration",
                "d2  app                     9 B",
            ]
        );
        assert_eq!(
            lines(&backups(), Some(30)),
            [
                "ID  DATABASES             SIZE",
                "d1  postgres, app,     1.0 GiB",
                "    dagster",
                "    pinned: before the big",
                "    migration",
                "d2  app                    9 B",
            ]
        );
        assert_eq!(
            lines(&backups(), Some(20))[..3],
            ["ID  DATABASES", "d1  postgres, app,", "    dagster"]
        );
    }
}
