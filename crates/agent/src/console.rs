//! What people see of the agent: lines on the guest's console, which the host keeps for error messages.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;
use rustix::system::RebootCommand;

/// Prints a line. Nothing that goes wrong here may matter.
pub fn say(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "bhatti-agent: {line}");
}

/// Makes the console the process's standard streams, now that devtmpfs has it. Without its controlling terminal,
/// which would let a key pressed there signal this process.
pub fn adopt() {
    let flags = OFlags::NOCTTY.bits().cast_signed();
    if let Ok(console) = OpenOptions::new().read(true).write(true).custom_flags(flags).open("/dev/console") {
        let _ = rustix::stdio::dup2_stdin(&console);
        let _ = rustix::stdio::dup2_stdout(&console);
        let _ = rustix::stdio::dup2_stderr(&console);
    }
}

/// The end: a guest that cannot be what it should be says why and powers off.
pub fn fatal(reason: impl Display) -> ! {
    say(format_args!("fatal: {reason}"));
    power_off()
}

/// Powers the guest off.
pub fn power_off() -> ! {
    rustix::fs::sync();
    loop {
        let _ = rustix::system::reboot(RebootCommand::PowerOff);
        // Only reached without the right to do so, which PID 1 has.
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}
