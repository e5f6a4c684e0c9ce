//! The terminal: raw while a guest's terminal is shown in it, as it was on every way out.

use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// How the terminal was, while it is raw. One for the process, so that a panic on any thread and every `exit` find it.
static COOKED: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal is raw for as long as this lives.
#[derive(Debug)]
pub struct Raw(());

impl Raw {
    /// Makes stdin raw; `None` when it is no terminal.
    pub fn enter() -> Option<Self> {
        let stdin = rustix::stdio::stdin();
        let cooked = tcgetattr(stdin).ok()?;
        let mut raw = cooked.clone();
        raw.make_raw();
        // Remembered first: a signal between the two finds what to restore.
        *COOKED.lock().unwrap_or_else(PoisonError::into_inner) = Some(cooked);
        if tcsetattr(stdin, OptionalActions::Drain, &raw).is_err() {
            restore();
            return None;
        }
        Some(Self(()))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back as it was, if it is raw.
pub fn restore() {
    let cooked = COOKED.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(cooked) = cooked {
        let _gone = tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &cooked);
    }
}

/// Restores the terminal before a panic prints its message.
pub fn restore_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        print(panic);
    }));
}

/// Lines and columns, as far as any of the standard streams is a terminal.
pub fn size() -> Option<(u16, u16)> {
    let streams = [rustix::stdio::stdout(), rustix::stdio::stdin(), rustix::stdio::stderr()];
    let size = streams.into_iter().find_map(|stream| tcgetwinsize(stream).ok())?;
    Some((size.ws_row, size.ws_col))
}

/// Whether a person can be asked.
pub fn can_ask() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Whether progress may be drawn.
pub fn can_draw() -> bool {
    std::io::stderr().is_terminal()
}
