//! Many of a kind, of which only that they are there is of use.

use std::ops::Range;
use std::sync::Mutex;

use crate::error::{Error, Result};

/// At the same time: what waits for a guest need not wait alone.
const AT_ONCE: usize = 3;

/// Does it for each number, in order as they begin; the first error ends it.
///
/// # Errors
/// Those of `work`.
pub(crate) fn each(numbers: Range<usize>, work: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    let left = Mutex::new(numbers);
    // A number that was taken is taken, whatever became of who took it.
    let next = || left.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
    let stop = || *left.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = 0..0;
    let one = || std::iter::from_fn(next).try_for_each(|number| work(number).inspect_err(|_| stop()));
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(one)).collect();
        // The others are waited for by the scope.
        all.into_iter()
            .try_for_each(|one| one.join().map_err(|_| Error::new("making many", "a thread panicked"))?)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn each_is_done_once_and_an_error_ends_it() {
        let done = Mutex::new(Vec::new());
        each(3..40, |number| {
            done.lock().unwrap().push(number);
            Ok(())
        })
        .unwrap();
        let mut done = done.into_inner().unwrap();
        done.sort_unstable();
        assert_eq!(done, (3..40).collect::<Vec<_>>());

        let begun = AtomicUsize::new(0);
        let failed = each(0..1000, |_| {
            begun.fetch_add(1, Ordering::Relaxed);
            Err(Error::new("trying", "it fails"))
        });
        assert!(failed.is_err() && begun.into_inner() <= AT_ONCE);
    }
}
