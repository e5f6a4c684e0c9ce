//! Starting a command as a user: environment, directory, streams, and what a shell would say if it cannot.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;
use rustix::pty::{OpenptFlags, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use sys::guest_process::{CHDIR_REFUSED, Persona, Program, spawn};
use wire::{ErrorCode, Failure, Tty};

use crate::failure::{failure, failure_io};
use crate::users::{self, User};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const LANG: &str = "C.UTF-8";
/// The group to which terminals belong, everywhere.
const TTY_GROUP: u32 = 5;

/// What to start.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// Program and arguments; `None` for the user's login shell.
    pub argv: Option<&'a [String]>,
    /// Laid over everything else.
    pub env: &'a BTreeMap<String, String>,
    /// The sandbox's own environment, and what is laid over it.
    pub sandbox_env: [&'a BTreeMap<String, String>; 2],
    /// Working directory; the user's home if not given.
    pub cwd: Option<&'a str>,
    /// Name or number; the default user if not given.
    pub user: Option<&'a str>,
    /// What the sandbox's image wants where nothing is given.
    pub defaults: &'a wire::CommandDefaults,
    /// How it is connected.
    pub wiring: Wiring<'a>,
}

/// How a command is connected.
#[derive(Debug, Clone, Copy)]
pub enum Wiring<'a> {
    /// Stdout and stderr apart; stdin a pipe or /dev/null.
    Apart {
        /// Whether stdin is a pipe.
        stdin: bool,
    },
    /// Stdout and stderr in one pipe, stdin /dev/null.
    Together,
    /// All three a terminal.
    Terminal(&'a Tty),
}

/// What was started. All descriptors are non-blocking.
#[derive(Debug)]
pub struct Started {
    /// The process, leader of a session and a process group.
    pub pid: Pid,
    /// What it runs.
    pub argv: Vec<String>,
    /// Its stdin's writing end, or the terminal.
    pub feed: Option<OwnedFd>,
    /// The reading end of its stdout, or the terminal.
    pub stdout: OwnedFd,
    /// The reading end of its stderr, if that is apart.
    pub stderr: Option<OwnedFd>,
}

/// Starts it.
pub fn start(launch: &Launch<'_>) -> Result<Started, Failure> {
    let wanted = launch.user.or(launch.defaults.user.as_deref());
    let user = users::find(wanted).ok_or_else(|| {
        failure(ErrorCode::NoSuchUser, wanted.unwrap_or_default(), "no such user in this guest")
    })?;
    let argv = match launch.argv {
        Some(argv) => argv.to_vec(),
        None => vec![user.shell.clone(), "-l".to_string()],
    };
    let Some(program) = argv.first().filter(|program| !program.is_empty()) else {
        return Err(failure(ErrorCode::BadRequest, "command", "is empty"));
    };
    let has_nul = |text: &String| text.contains('\0');
    if argv.iter().any(has_nul) || launch.env.iter().any(|(name, value)| !is_variable(name) || has_nul(value))
    {
        return Err(failure(
            ErrorCode::BadRequest,
            program,
            "arguments or environment hold a NUL or a bad name",
        ));
    }
    let wanted_cwd = launch.cwd.or(launch.defaults.cwd.as_deref());
    let cwd = working_directory(wanted_cwd, &user)?;
    let io_failure = |error: io::Error| failure_io(program, &error);
    let environment = environment(launch, &user);
    let (ends, streams) = connect(launch.wiring, user.uid).map_err(io_failure)?;
    let command = Program::new(&argv, &environment, streams).map_err(io_failure)?;
    let terminal = matches!(launch.wiring, Wiring::Terminal(_));
    let persona = Persona { uid: user.uid, gid: user.gid, groups: user.groups, cwd, terminal };
    let spawned = spawn(&command, &persona);
    drop(command); // and with it this process's copies of the other ends
    let pid = spawned.map_err(|error| exec_failure(program, wanted_cwd.unwrap_or(&user.home), &error))?;
    Ok(Started { pid, argv, feed: ends.feed, stdout: ends.stdout, stderr: ends.stderr })
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

/// The user's, then the sandbox's, then the request's: each wins over the one before.
fn environment(launch: &Launch<'_>, user: &User) -> BTreeMap<String, String> {
    let own = [
        ("PATH", PATH),
        ("LANG", LANG),
        ("HOME", &user.home),
        ("USER", &user.name),
        ("LOGNAME", &user.name),
        ("SHELL", &user.shell),
    ];
    let mut environment: BTreeMap<String, String> =
        own.iter().map(|(name, value)| ((*name).to_string(), (*value).to_string())).collect();
    if let Wiring::Terminal(tty) = launch.wiring {
        environment.insert("TERM".to_string(), tty.term.clone());
    }
    let given =
        launch.sandbox_env.into_iter().flatten().chain(launch.env).filter(|(name, _)| is_variable(name));
    environment.extend(given.map(|(name, value)| (name.clone(), value.clone())));
    environment
}

fn working_directory(wanted: Option<&str>, user: &User) -> Result<CString, Failure> {
    let directory = match wanted {
        Some(directory) => directory,
        None if fs::metadata(&user.home).is_ok_and(|home| home.is_dir()) => &user.home,
        None => "/",
    };
    CString::new(directory).map_err(|_| failure(ErrorCode::BadRequest, "working directory", "holds a NUL"))
}

fn exec_failure(program: &str, cwd: &str, error: &io::Error) -> Failure {
    let code_and_words = match Errno::from_io_error(error) {
        Some(CHDIR_REFUSED) => {
            return match fs::metadata(cwd) {
                Ok(metadata) if !metadata.is_dir() => {
                    failure(ErrorCode::NotDirectory, cwd, "not a directory")
                }
                Ok(_) => failure(ErrorCode::Permission, cwd, "working directory: permission denied"),
                Err(error) => failure_io(cwd, &error),
            };
        }
        Some(Errno::NOENT | Errno::NOTDIR) if program.contains('/') => {
            (ErrorCode::CommandNotFound, "no such file or directory")
        }
        Some(Errno::NOENT | Errno::NOTDIR) => (ErrorCode::CommandNotFound, "command not found"),
        Some(Errno::ACCESS | Errno::PERM) => (ErrorCode::NotExecutable, "permission denied"),
        Some(Errno::NOEXEC) => (ErrorCode::NotExecutable, "is not a program for this machine"),
        Some(Errno::TOOBIG) => (ErrorCode::NotExecutable, "argument list too long"),
        Some(Errno::TXTBSY) => (ErrorCode::NotExecutable, "is open for writing"),
        Some(Errno::AGAIN | Errno::NOMEM) => {
            (ErrorCode::TooMany, "the guest has no room for another process")
        }
        _ => return failure_io(program, error),
    };
    failure(code_and_words.0, program, code_and_words.1)
}

struct Ends {
    feed: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: Option<OwnedFd>,
}

/// This process's ends of a command's streams, and the command's.
fn connect(wiring: Wiring<'_>, uid: u32) -> io::Result<(Ends, [OwnedFd; 3])> {
    match wiring {
        Wiring::Apart { stdin } => {
            let (feed, input) = if stdin {
                let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
                (Some(non_blocking(writer)?), reader)
            } else {
                (None, nothing()?)
            };
            let (stdout, output) = pipe_with(PipeFlags::CLOEXEC)?;
            let (stderr, errors) = pipe_with(PipeFlags::CLOEXEC)?;
            let ends = Ends { feed, stdout: non_blocking(stdout)?, stderr: Some(non_blocking(stderr)?) };
            Ok((ends, [input, output, errors]))
        }
        Wiring::Together => {
            let (stdout, writer) = pipe_with(PipeFlags::CLOEXEC)?;
            let ends = Ends { feed: None, stdout: non_blocking(stdout)?, stderr: None };
            Ok((ends, [nothing()?, writer.try_clone()?, writer]))
        }
        Wiring::Terminal(tty) => {
            let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
            unlockpt(&master)?;
            tcsetwinsize(&master, window(tty.rows, tty.cols))?;
            let name = ptsname(&master, Vec::new())?;
            let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
            let slave = rustix::fs::open(&name, flags, Mode::empty())?;
            let (owner, group) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(TTY_GROUP));
            rustix::fs::fchown(&slave, Some(owner), Some(group))?;
            let master = non_blocking(master)?;
            let ends = Ends { feed: Some(master.try_clone()?), stdout: master, stderr: None };
            Ok((ends, [slave.try_clone()?, slave.try_clone()?, slave]))
        }
    }
}

fn nothing() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// A terminal's shape as the kernel takes it.
pub fn window(rows: u16, cols: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 }
}

/// Makes this end of a pipe non-blocking; the other end has flags of its own.
pub fn non_blocking(fd: OwnedFd) -> io::Result<OwnedFd> {
    let flags = rustix::fs::fcntl_getfl(fd.as_fd())?;
    rustix::fs::fcntl_setfl(fd.as_fd(), flags | OFlags::NONBLOCK)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment_with(sandbox: &[(&str, &str)], request: &[(&str, &str)]) -> BTreeMap<String, String> {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| ((*name).to_string(), (*value).to_string())).collect()
        };
        let user = User {
            name: "user".to_string(),
            uid: 1000,
            gid: 1000,
            groups: vec![],
            home: "/home/user".to_string(),
            shell: "/bin/bash".to_string(),
        };
        let (env, sandbox_env) = (map(request), map(sandbox));
        let defaults = wire::CommandDefaults::default();
        let wiring = Wiring::Apart { stdin: false };
        let launch = Launch {
            argv: None,
            env: &env,
            sandbox_env: [&sandbox_env, &BTreeMap::new()],
            cwd: None,
            user: None,
            defaults: &defaults,
            wiring,
        };
        environment(&launch, &user)
    }

    #[test]
    fn the_request_wins_over_the_sandbox_and_the_sandbox_over_the_default() {
        let environment =
            environment_with(&[("PATH", "/sandbox"), ("A", "sandbox"), ("", "no name")], &[("A", "request")]);
        assert_eq!(environment["PATH"], "/sandbox");
        assert_eq!(environment["A"], "request");
        assert_eq!(environment["HOME"], "/home/user");
        assert!(!environment.contains_key("TERM") && !environment.contains_key(""));
    }

    #[test]
    fn failures_of_an_exec_are_those_of_a_shell() {
        let code = |errno: Errno| exec_failure("x", "/", &io::Error::from(errno)).code.shell_code();
        assert_eq!(code(Errno::NOENT), Some(127));
        assert_eq!(code(Errno::ACCESS), Some(126));
        assert_eq!(code(Errno::NOEXEC), Some(126));
        let gone = exec_failure("x", "/no/such/place", &io::Error::from(CHDIR_REFUSED));
        assert_eq!(
            (gone.code, gone.message.as_str()),
            (ErrorCode::NotFound, "/no/such/place: no such file or directory")
        );
    }
}
