//! What is being measured, told before it begins; and the place where a wish to stop is noticed.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// Told to the caller, step by step.
#[derive(Clone, Copy)]
pub(crate) struct Progress<'a> {
    pub(crate) tell: &'a (dyn Fn(&str) + Sync),
    pub(crate) cancel: &'a AtomicBool,
}

impl Progress<'_> {
    /// Tells what comes next, unless somebody wants the end: then it must not begin.
    pub(crate) fn step(&self, what: &str) -> Result<()> {
        self.go_on()?;
        (self.tell)(what);
        Ok(())
    }

    /// Within a step.
    pub(crate) fn go_on(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) { Err(Error::interrupted()) } else { Ok(()) }
    }
}
