//! Copying a range of bytes or of lines, with a cap, whatever the length of a line.

use std::io::{self, BufRead, Read, Write};

use wire::{LineRange, ReadSummary};

/// Copies up to `limit` bytes, stopping at `cap`.
pub fn copy_bytes(
    mut from: impl BufRead,
    to: &mut impl Write,
    limit: Option<u64>,
    cap: Option<u64>,
) -> io::Result<ReadSummary> {
    let limit = limit.unwrap_or(u64::MAX);
    let capped = cap.is_some_and(|cap| cap < limit);
    let sent_bytes = io::copy(&mut from.by_ref().take(limit.min(cap.unwrap_or(u64::MAX))), to)?;
    let truncated = capped && Some(sent_bytes) == cap && !from.fill_buf()?.is_empty();
    Ok(ReadSummary { sent_bytes, truncated })
}

/// Copies whole lines, stopping at `cap` bytes even inside one. The last line need not end in a newline.
pub fn copy_lines(
    mut from: impl BufRead,
    to: &mut impl Write,
    range: LineRange,
    cap: Option<u64>,
) -> io::Result<ReadSummary> {
    for _ in 0..range.offset {
        if from.skip_until(b'\n')? == 0 {
            break;
        }
    }
    let cap = cap.unwrap_or(u64::MAX);
    let mut summary = ReadSummary::default();
    let mut lines_left = range.limit.unwrap_or(u64::MAX);
    while lines_left > 0 {
        let available = from.fill_buf()?;
        if available.is_empty() {
            break;
        }
        let room = usize::try_from(cap - summary.sent_bytes).unwrap_or(usize::MAX);
        if room == 0 {
            summary.truncated = true;
            break;
        }
        let mut take = available.len().min(room);
        if let Some(newline) = available[..take].iter().position(|byte| *byte == b'\n') {
            take = newline + 1;
            lines_left -= 1;
        }
        to.write_all(&available[..take])?;
        from.consume(take);
        summary.sent_bytes += u64::try_from(take).unwrap_or(0);
    }
    Ok(summary)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufReader;

    fn lines(text: &str, offset: u64, limit: Option<u64>, cap: Option<u64>) -> (String, bool) {
        let mut out = Vec::new();
        // A buffer of three bytes makes lines cross it.
        let reader = BufReader::with_capacity(3, text.as_bytes());
        let summary = copy_lines(reader, &mut out, LineRange { offset, limit }, cap).expect("copies");
        assert_eq!(summary.sent_bytes, u64::try_from(out.len()).expect("small"));
        (String::from_utf8(out).expect("text"), summary.truncated)
    }

    #[test]
    fn lines_are_skipped_and_limited() {
        let text = "one\ntwo\n\nfour";
        assert_eq!(lines(text, 0, None, None), (text.to_string(), false));
        assert_eq!(lines(text, 1, Some(2), None), ("two\n\n".to_string(), false));
        assert_eq!(lines(text, 3, Some(9), None), ("four".to_string(), false));
        assert_eq!(lines(text, 4, None, None), (String::new(), false));
        assert_eq!(lines(text, 0, Some(0), None), (String::new(), false));
    }

    #[test]
    fn a_cap_cuts_a_line_and_says_so_only_if_something_was_left() {
        assert_eq!(lines("one\ntwo\n", 0, None, Some(5)), ("one\nt".to_string(), true));
        assert_eq!(lines("one\ntwo\n", 0, None, Some(8)), ("one\ntwo\n".to_string(), false));
        assert_eq!(lines("one\ntwo\n", 0, Some(1), Some(4)), ("one\n".to_string(), false));
    }

    #[test]
    fn a_limit_of_bytes_is_no_truncation_and_a_cap_is() {
        let copy = |limit, cap| {
            let mut out = Vec::new();
            let summary = copy_bytes(&b"0123456789"[..], &mut out, limit, cap).expect("copies");
            (out.len(), summary.truncated)
        };
        assert_eq!(copy(None, None), (10, false));
        assert_eq!(copy(Some(4), None), (4, false));
        assert_eq!(copy(Some(4), Some(4)), (4, false));
        assert_eq!(copy(Some(4), Some(3)), (3, true));
        assert_eq!(copy(None, Some(10)), (10, false));
        assert_eq!(copy(None, Some(9)), (9, true));
    }
}
