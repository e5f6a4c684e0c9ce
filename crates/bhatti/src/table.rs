//! Aligned columns, and sizes and times as people say them.

use types::Bytes;
use types::Timestamp;

/// Lines of a table: a header, then rows of as many cells. The last column is not padded.
pub fn render(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let header: Vec<String> = header.iter().map(|cell| (*cell).to_owned()).collect();
    for row in std::iter::once(&header).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            if !line.is_empty() {
                line.push_str("  ");
            }
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count()));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// How long ago a moment was, such as `5m`; what cannot be read is shown as it is.
pub fn age(at: &str, now: Timestamp) -> String {
    let Ok(then) = Timestamp::try_from(at.to_owned()) else { return at.to_owned() };
    let seconds = now.0.saturating_sub(then.0).max(0) / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

/// Mebibytes such as `512M`, `4G`.
pub fn mebibytes(mib: u64) -> String {
    if mib >= 1024 && mib.is_multiple_of(1024) { format!("{}G", mib / 1024) } else { format!("{mib}M") }
}

/// Bytes such as `1.5 MiB`.
pub fn bytes(bytes: u64) -> String {
    Bytes(bytes).to_string()
}

/// Milliseconds such as `3.2 ms`, `231 ms`, `2.7 s`.
pub fn milliseconds(ms: f64) -> String {
    match ms {
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms if ms < 10_000.0 => format!("{ms:.0} ms"),
        ms => format!("{:.1} s", ms / 1000.0),
    }
}

/// `k=v,k=v`, or a dash.
pub fn labels(labels: &types::Labels) -> String {
    if labels.is_empty() {
        return "-".to_owned();
    }
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![vec!["longer".to_owned(), "1".to_owned()], vec!["ä".to_owned(), "22".to_owned()]];
        assert_eq!(render(&["NAME", "N"], &rows), "NAME    N\nlonger  1\nä       22\n");
    }

    #[test]
    fn ages_and_sizes_are_short() {
        let then = Timestamp(1_700_000_000_000).to_string();
        let after = |seconds: i64| age(&then, Timestamp(1_700_000_000_000 + seconds * 1000));
        assert_eq!(
            [after(-5), after(59), after(60), after(7200), after(200_000)],
            ["0s", "59s", "1m", "2h", "2d"]
        );
        assert_eq!(age("?", Timestamp(0)), "?");
        assert_eq!([mebibytes(512), mebibytes(2048), mebibytes(1500)], ["512M", "2G", "1500M"]);
        assert_eq!(
            [milliseconds(3.21), milliseconds(231.4), milliseconds(27_000.0)],
            ["3.2 ms", "231 ms", "27.0 s"]
        );
    }
}
