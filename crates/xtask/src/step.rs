//! Steps: a line when one begins, a line with its time when it ends, and at the end what failed.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// How often a child and the wish to stop are looked at.
const TICK: Duration = Duration::from_millis(50);
/// What a child gets to clean up after SIGTERM.
const GRACE: Duration = Duration::from_secs(30);

/// One run of steps.
pub struct Steps {
    root: PathBuf,
    stop: Arc<AtomicBool>,
    failed: RefCell<Vec<String>>,
    started: Instant,
}

impl Steps {
    /// From now on signals only ask for an end, so that what was mounted is unmounted.
    pub fn new(root: &Path) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&stop)).context("register for signals")?;
        }
        Ok(Self { root: root.to_owned(), stop, failed: RefCell::new(Vec::new()), started: Instant::now() })
    }

    /// The workspace's root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether somebody pressed Ctrl-C.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Runs `step` and says how it went; after a wish to stop, only that it was not run. True when it went well.
    pub fn run(&self, name: &str, step: impl FnOnce() -> Result<String>) -> bool {
        if self.stopped() {
            self.fail(name, "not run: stopped");
            return false;
        }
        self.always(name, step)
    }

    /// Like [`Steps::run`], also after a wish to stop: for putting things back.
    pub fn always(&self, name: &str, step: impl FnOnce() -> Result<String>) -> bool {
        println!("--> {name}");
        let started = Instant::now();
        let result = step();
        let seconds = started.elapsed().as_secs_f32();
        match result {
            Ok(note) if note.is_empty() => println!("ok  {name} ({seconds:.1} s)"),
            Ok(note) => println!("ok  {name}: {note} ({seconds:.1} s)"),
            Err(error) => {
                self.fail(name, &format!("{error:#} ({seconds:.1} s)"));
                return false;
            }
        }
        true
    }

    /// Records a failure without a step of its own.
    pub fn fail(&self, name: &str, why: &str) {
        println!("FAILED  {name}: {why}");
        self.failed.borrow_mut().push(name.to_owned());
    }

    /// Runs a program in the workspace, its output on the terminal, and ends it when asked to stop.
    pub fn program<S: AsRef<OsStr>>(
        &self,
        program: &str,
        args: &[S],
        env: &[(&str, &OsStr)],
    ) -> Result<String> {
        let mut command = Command::new(program);
        command.current_dir(&self.root).args(args).envs(env.iter().copied());
        let child = command.spawn().with_context(|| format!("start {program}"))?;
        let status = self.wait(child).with_context(|| format!("wait for {program}"))?;
        if status.success() { Ok(String::new()) } else { bail!("{program}: {status}") }
    }

    /// Runs cargo.
    pub fn cargo(&self, args: &[&str], env: &[(&str, &OsStr)]) -> Result<String> {
        self.program(&cargo(), args, env)
    }

    fn wait(&self, mut child: Child) -> Result<ExitStatus> {
        let mut kill_at = None;
        loop {
            if let Some(status) = child.try_wait()? {
                return if self.stopped() { Err(anyhow!("stopped")) } else { Ok(status) };
            }
            match kill_at {
                // On Ctrl-C the terminal has told the child too; a second signal does no harm.
                None if self.stopped() => {
                    let _ = kill_process(Pid::from_child(&child), Signal::TERM);
                    kill_at = Some(Instant::now() + GRACE);
                }
                Some(at) if Instant::now() > at => {
                    let _ = child.kill();
                }
                _ => {}
            }
            sleep(TICK);
        }
    }

    /// The last line, and the exit status.
    pub fn finish(self) -> ExitCode {
        let minutes = self.started.elapsed().as_secs_f32() / 60.0;
        let failed = self.failed.into_inner();
        if failed.is_empty() {
            println!("all well ({minutes:.1} min)");
            return ExitCode::SUCCESS;
        }
        println!("{} failed ({minutes:.1} min):", failed.len());
        for name in failed {
            println!("  {name}");
        }
        ExitCode::FAILURE
    }
}

/// The cargo that runs this, or the one in PATH.
pub fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}

/// Runs a program for its stdout.
pub fn output(root: &Path, program: &str, args: &[&str]) -> Result<String> {
    let out = Command::new(program)
        .current_dir(root)
        .args(args)
        .output()
        .with_context(|| format!("start {program}"))?;
    if !out.status.success() {
        bail!(
            "{program} {}: {}: {}",
            args.join(" "),
            out.status,
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
