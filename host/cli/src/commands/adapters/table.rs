//! Tables and numbers for the terminal.

/// Columns that line up: the first to the left, the others to the right, with two blanks between
/// them.
///
/// Widths are counted in characters. Cells of a row beyond those of `head` are dropped.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded: Vec<String> = cells
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(at, (cell, &width))| match at {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            })
            .collect();
        padded.join("  ").trim_end().to_owned()
    };
    let rows = rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
    std::iter::once(line(head.to_vec())).chain(rows).collect::<Vec<_>>().join("\n")
}

/// Four digits after the point; numbers below 0.001 or from 100,000 on have an exponent.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        1e-3..1e5 => format!("{value:.4}"),
        _ => format!("{value:.2e}"),
    }
}

/// Bytes in the unit that fits, B, KiB or MiB, cut to a whole number; B and KiB go up to 10,239.
pub(super) fn bytes(bytes: usize) -> String {
    match bytes {
        0..10_240 => format!("{bytes} B"),
        10_240..10_485_760 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows =
            [vec!["a".to_owned(), "1000".to_owned()], vec!["long".to_owned(), "1".to_owned()]];
        assert_eq!(table(&["x", "n"], &rows), "x        n\na     1000\nlong     1");
    }

    #[test]
    fn numbers_are_short() {
        let found = [0.0, 0.25, 1e-7, -2e9, 1234.5].map(number);
        assert_eq!(found, ["0", "0.2500", "1.00e-7", "-2.00e9", "1234.5000"]);
        assert_eq!([9, 20_480, 1 << 30].map(bytes), ["9 B", "20 KiB", "1024 MiB"]);
    }
}
