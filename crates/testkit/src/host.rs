//! The test's host and its command line.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::cut::CutFs;
use crate::daemon::Daemon;
use crate::small::{SmallFs, copy_prepared, fill, run};

/// What a command line did.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Its exit status; 128+n for a signal.
    pub code: i32,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error, as text.
    pub stderr: String,
}

impl Outcome {
    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// A host with a data directory of its own.
#[derive(Debug)]
pub struct TestHost {
    program: PathBuf,
    daemon: Option<Daemon>,
    serve_args: Vec<String>,
    // Last, so that the directory goes after everything in it, and what it is mounted from after the directory.
    dir: TempDir,
    small: Option<SmallFs>,
    cut: Option<CutFs>,
}

/// Where tests keep their data directories: on the filesystem under test.
fn test_root() -> PathBuf {
    std::env::var_os("BHATTI_TEST_ROOT").map_or_else(std::env::temp_dir, PathBuf::from)
}

/// Hard-links a tree of files that nobody writes again.
fn link_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory for links");
    for entry in fs::read_dir(from).expect("the prepared data directory") {
        let entry = entry.expect("an entry of it");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("its type").is_dir() {
            link_tree(&entry.path(), &target);
        } else {
            fs::hard_link(entry.path(), &target)
                .expect("a hard link, for BHATTI_TEST_DATA is on the same filesystem");
        }
    }
}

impl TestHost {
    /// A host without kernel and image, and without a daemon.
    #[must_use]
    pub fn bare(program: &str) -> Self {
        let dir =
            tempfile::Builder::new().prefix("bhatti-test-").tempdir_in(test_root()).expect("a directory");
        Self {
            program: PathBuf::from(program),
            daemon: None,
            serve_args: Vec::new(),
            dir,
            small: None,
            cut: None,
        }
    }

    /// A host that was set up, with a daemon that answers.
    #[must_use]
    pub fn start(program: &str) -> Self {
        Self::start_with(program, &[])
    }

    /// As [`TestHost::start`], with more arguments for `serve`. `BHATTI_TEST_LAYOUT` chooses the storage layout.
    #[must_use]
    pub fn start_with(program: &str, serve_args: &[&str]) -> Self {
        let mut host = Self::prepared(program);
        host.serve_args = serve_args.iter().map(|arg| (*arg).to_owned()).collect();
        if let Ok(layout) = std::env::var("BHATTI_TEST_LAYOUT")
            && !serve_args.contains(&"--storage-layout")
        {
            host.serve_args.extend(["--storage-layout".to_owned(), layout]);
        }
        host.start_daemon();
        host
    }

    /// A host that was set up, without a daemon.
    #[must_use]
    pub fn prepared(program: &str) -> Self {
        let base = std::env::var_os("BHATTI_TEST_DATA")
            .map(PathBuf::from)
            .expect("BHATTI_TEST_DATA names a data directory that was set up; `make test` prepares it");
        let host = Self::bare(program);
        for part in ["kernel", "images", "templates"] {
            link_tree(&base.join(part), &host.dir.path().join(part));
        }
        // The proof of the accelerator is in the index, which is written in place: a copy.
        fs::copy(base.join("bhatti.db"), host.dir.path().join("bhatti.db")).expect("a copy of the index");
        host
    }

    /// A host that was set up, on a filesystem of its own with `mib` MiB, with a daemon that answers. Needs root.
    #[must_use]
    pub fn on_small_filesystem(program: &str, mib: u64) -> Self {
        let base = std::env::var_os("BHATTI_TEST_DATA").map(PathBuf::from).expect("BHATTI_TEST_DATA");
        let small = SmallFs::on(&test_root(), mib);
        let dir =
            tempfile::Builder::new().prefix("bhatti-test-").tempdir_in(small.path()).expect("a directory");
        copy_prepared(&base, dir.path());
        let mut host = Self {
            program: PathBuf::from(program),
            daemon: None,
            serve_args: Vec::new(),
            dir,
            small: Some(small),
            cut: None,
        };
        host.start_daemon();
        host
    }

    /// A host that was set up, on a disk whose power can be cut, with a daemon that answers: of the `kind` of filesystem
    /// (`ext4`, `btrfs`, `xfs`) that is said, else of the one the test's directory is on. Needs root.
    #[must_use]
    pub fn on_cuttable_disk(program: &str, kind: Option<&str>) -> Self {
        let base = std::env::var_os("BHATTI_TEST_DATA").map(PathBuf::from).expect("BHATTI_TEST_DATA");
        let cut = CutFs::below(&test_root(), kind);
        let dir =
            tempfile::Builder::new().prefix("bhatti-test-").tempdir_in(cut.path()).expect("a directory");
        copy_prepared(&base, dir.path());
        // Whoever set that up was told that it is there.
        run("sync", &[Path::new("--file-system"), cut.path()]);
        let program = PathBuf::from(program);
        let mut host =
            Self { program, daemon: None, serve_args: Vec::new(), dir, small: None, cut: Some(cut) };
        host.start_daemon();
        host
    }

    fn cut(&self) -> &CutFs {
        self.cut.as_ref().expect("a host on a disk whose power can be cut")
    }

    /// The filesystem on the disk whose power can be cut.
    #[must_use]
    pub fn cut_kind(&self) -> &str {
        self.cut().kind()
    }

    /// The instant of a power cut: the disk is kept as it is now. What is written until [`TestHost::cut_power`] is lost.
    pub fn keep_disk(&self) {
        self.cut().keep();
    }

    /// Ends everything and goes on, without a daemon, with the disk as it was kept.
    pub fn cut_power(&mut self) {
        self.kill_daemon();
        self.cut().go_back();
    }

    /// Fills the small filesystem but for `leave` bytes.
    pub fn fill(&self, leave: u64) {
        fill(&self.ballast(), leave);
    }

    /// Gives the room back that `fill` took.
    pub fn unfill(&self) {
        fs::remove_file(self.ballast()).expect("the ballast goes");
    }

    fn ballast(&self) -> PathBuf {
        let small = self.small.as_ref().expect("a host on a small filesystem");
        small.path().join("ballast")
    }

    /// The data directory.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        self.dir.path()
    }

    /// The daemon.
    #[must_use]
    pub fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("a daemon runs")
    }

    /// Whether a daemon was started and not ended.
    #[must_use]
    pub fn has_daemon(&self) -> bool {
        self.daemon.is_some()
    }

    /// Starts the daemon and waits until it says that it is ready.
    pub fn start_daemon(&mut self) {
        let args: Vec<&str> = self.serve_args.iter().map(String::as_str).collect();
        self.daemon = Some(Daemon::start(&self.program, self.dir.path(), &args));
    }

    /// Other arguments for the next `serve`.
    pub fn serve_with(&mut self, args: &[&str]) {
        self.serve_args = args.iter().map(|arg| (*arg).to_owned()).collect();
    }

    /// Ends the daemon as SIGKILL does: at once. Machines go on running.
    pub fn kill_daemon(&mut self) {
        self.daemon.take().expect("a daemon runs").kill();
    }

    /// Sends SIGKILL to the daemon while others use it; [`TestHost::kill_daemon`] is still to be called.
    pub fn strike_daemon(&self) {
        self.daemon().strike();
    }

    /// Ends the daemon as SIGTERM does, and waits for it.
    pub fn end_daemon(&mut self) {
        let status = self.daemon.take().expect("a daemon runs").terminate();
        assert!(status.success(), "serve ended with {status}");
    }

    /// The command line, ready to be given more.
    #[must_use]
    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = self.command_of(&self.program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Another program, in the surroundings of this host.
    pub(crate) fn command_of(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("BHATTI_DATA_DIR", self.dir.path()).env_remove("BHATTI_URL").env_remove("BHATTI_TOKEN");
        command
    }

    /// Runs the command line to its end.
    #[must_use]
    pub fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Outcome {
        outcome(self.command(args).output().expect("bhatti runs"))
    }

    /// Runs the command line with something on its standard input.
    #[must_use]
    pub fn run_with_input<S: AsRef<OsStr>>(&self, args: &[S], input: &[u8]) -> Outcome {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().expect("bhatti runs");
        let mut stdin = child.stdin.take().expect("its standard input");
        let input = input.to_vec();
        let writer = std::thread::spawn(move || {
            // A command that does not want more input closes it.
            let _written = stdin.write_all(&input);
        });
        let outcome = outcome(child.wait_with_output().expect("bhatti ends"));
        writer.join().expect("the writer ends");
        outcome
    }

    /// Runs the command line, which must succeed, and gives its standard output.
    pub fn ok<S: AsRef<OsStr> + std::fmt::Debug>(&self, args: &[S]) -> String {
        let outcome = self.run(args);
        assert!(outcome.code == 0, "{args:?} gave {}: {}{}", outcome.code, outcome.text(), outcome.stderr);
        outcome.text()
    }

    /// Runs the command line, which must be refused with this status and one line that has all of `parts`.
    pub fn refused<S: AsRef<OsStr> + std::fmt::Debug>(&self, args: &[S], code: i32, parts: &[&str]) {
        let outcome = self.run(args);
        assert_eq!(outcome.code, code, "{args:?}: {}{}", outcome.text(), outcome.stderr);
        for part in parts {
            assert!(outcome.stderr.contains(part), "{args:?}: no {part:?} in {:?}", outcome.stderr);
        }
        if code == 1 {
            let lines: Vec<&str> = outcome.stderr.lines().collect();
            assert!(
                lines.len() == 1 && lines[0].starts_with("error: "),
                "{args:?}: not one line: {:?}",
                outcome.stderr
            );
        }
    }

    /// Runs the command line with `--json`, which must succeed, and reads what it prints.
    #[must_use]
    pub fn json<S: AsRef<OsStr> + std::fmt::Debug>(&self, args: &[S]) -> Value {
        let mut all: Vec<&OsStr> = vec![OsStr::new("--json")];
        all.extend(args.iter().map(AsRef::as_ref));
        serde_json::from_str(&self.ok(&all)).expect("one JSON document")
    }

    /// Runs `sh -c SCRIPT` in the sandbox, which must succeed, and gives its output without the last newline.
    pub fn sh(&self, sandbox: &str, script: &str) -> String {
        self.ok(&["exec", sandbox, "--", "sh", "-c", script]).trim_end_matches('\n').to_owned()
    }

    /// The directory of the sandbox of that name.
    #[must_use]
    pub fn sandbox_dir(&self, name: &str) -> PathBuf {
        let id = self.json(&["inspect", name])["id"].as_str().expect("an id").to_owned();
        self.dir.path().join("sandboxes").join(id)
    }

    /// The process ids of the VMMs that run in this data directory.
    #[must_use]
    pub fn vmm_pids(&self) -> Vec<i32> {
        let root = fs::canonicalize(self.dir.path()).expect("the data directory");
        let mut pids = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            // A process may end while it is looked at.
            if fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(&root)) {
                pids.push(pid);
            }
        }
        pids
    }

    /// Ends every VMM at once.
    pub fn kill_vmms(&self) {
        for pid in self.vmm_pids() {
            crate::daemon::kill(pid);
        }
    }
}

fn outcome(output: Output) -> Outcome {
    use std::os::unix::process::ExitStatusExt as _;
    let code = output.status.code().or_else(|| output.status.signal().map(|signal| 128 + signal));
    Outcome {
        code: code.expect("an exit status"),
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.path().join("serve.log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("--- the daemon's last lines ---");
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
        if let Some(daemon) = self.daemon.take() {
            daemon.kill();
        }
        self.kill_vmms();
        // A daemon that was killed cannot. Where there is no right to make groups there are none.
        if let Ok(groups) = vm::Cgroups::find() {
            groups.leave().expect("empty control groups are removed");
        }
    }
}
