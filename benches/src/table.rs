//! Prints results as a Markdown table that is readable as it stands.

/// Returns the table, its columns as wide as their widest cell: the first left, the others right.
pub(crate) fn markdown<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let widths: [usize; N] = std::array::from_fn(|column| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells
            .chain([head[column].chars().count(), 3])
            .max()
            .unwrap_or_default()
    });
    let line = |cells: [&str; N]| {
        let cells = cells.iter().zip(widths).enumerate();
        let padded = cells.map(|(column, (cell, width))| match column {
            0 => format!(" {cell:<width$} |"),
            _ => format!(" {cell:>width$} |"),
        });
        format!("|{}\n", padded.collect::<String>())
    };
    let rules = std::array::from_fn::<_, N, _>(|column| match column {
        0 => "-".repeat(widths[0]),
        _ => format!("{}:", "-".repeat(widths[column] - 1)),
    });
    let rows = rows
        .iter()
        .map(|row| line(row.each_ref().map(String::as_str)));
    line(head) + &line(rules.each_ref().map(String::as_str)) + &rows.collect::<String>()
}

/// A whole number with separators: 1,234,567; without a value, as after a division by nothing, "n/a".
pub(crate) fn whole(number: f64) -> String {
    if !number.is_finite() {
        return "n/a".to_owned();
    }
    assay::progress::thousands(number.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [
            ["short".to_owned(), whole(1_234_567.4)],
            ["much longer".to_owned(), whole(1.0 / 0.0)],
        ];
        let expected = "\
| case        | per second |
| ----------- | ---------: |
| short       |  1,234,567 |
| much longer |        n/a |
";
        assert_eq!(markdown(["case", "per second"], &rows), expected);
    }
}
