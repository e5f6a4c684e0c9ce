//! A daemon of the bench's own and its API.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::Options;
use crate::error::{During as _, Error, Result};
use crate::progress::Progress;

/// A running daemon; it, its machines and its data directory go when this is dropped.
pub(crate) struct Daemon {
    child: Child,
    agent: ureq::Agent,
    url: String,
    key: String,
    dir: TempDir,
    /// Whether its sandboxes are destroyed one by one when it ends.
    clears: bool,
}

impl Daemon {
    /// Starts one in `dir`, a data directory that was set up.
    pub(crate) fn start(options: &Options, dir: TempDir, progress: Progress<'_>) -> Result<Self> {
        Self::start_with(options, dir, &[], progress)
    }

    /// The same, and tells it more.
    pub(crate) fn start_with(
        options: &Options,
        dir: TempDir,
        more: &[&str],
        progress: Progress<'_>,
    ) -> Result<Self> {
        progress.step("starting a daemon over what was set up")?;
        let log = File::create(dir.path().join("serve.log")).during("making a log")?;
        let mut child = Command::new(&options.program)
            .args(["serve", "--listen", "127.0.0.1:0"])
            .args(more)
            .env("BHATTI_DATA_DIR", dir.path())
            // Ctrl-C is for the bench, which still needs its daemon to clean up.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .during("starting `bhatti serve`")?;
        let stdout =
            child.stdout.take().ok_or_else(|| Error::new("starting `bhatti serve`", "it has no output"))?;
        let ready = BufReader::new(stdout)
            .lines()
            .map_while(|line| line.ok())
            .find(|line| line.contains("ready on "));
        let url = ready
            .as_deref()
            .and_then(|line| line.split_whitespace().find(|word| word.starts_with("http://")));
        let Some(url) = url.map(str::to_owned) else {
            child.wait().during("waiting for `bhatti serve`")?;
            let log = fs::read_to_string(dir.path().join("serve.log")).unwrap_or_default();
            return Err(Error::new("starting `bhatti serve`", log));
        };
        let key = fs::read_to_string(dir.path().join("admin.key")).during("reading the admin key")?;
        let config = ureq::Agent::config_builder().http_status_as_error(false).build();
        let daemon = Self { child, agent: config.into(), url, key: key.trim().to_owned(), dir, clears: true };
        // The template and the accelerator's proof are there before anything is timed.
        daemon.post("/sandboxes", &json!({ "name": "first" }))?;
        daemon.delete("first")?;
        Ok(daemon)
    }

    /// When it ends its sandboxes go with their files alone: none of them may run.
    pub(crate) const fn leave_sandboxes(&mut self) {
        self.clears = false;
    }

    pub(crate) fn data_dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let reply = self
            .agent
            .post(format!("{}{path}", self.url))
            .header("Authorization", self.bearer())
            .send_json(body);
        self.read(path, reply)
    }

    pub(crate) fn get(&self, path: &str) -> Result<Value> {
        let reply =
            self.agent.get(format!("{}{path}", self.url)).header("Authorization", self.bearer()).call();
        self.read(path, reply)
    }

    /// Waits until there is a VMM that was started ahead; the daemon makes it by itself, once it has been left alone.
    pub(crate) fn until_spare(&self) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(60);
        const LOOK: Duration = Duration::from_millis(50);
        let began = Instant::now();
        loop {
            let url = format!("{}/metrics", self.url);
            let reply = self
                .agent
                .get(url)
                .header("Authorization", self.bearer())
                .header("Accept", "application/json")
                .call();
            let metrics = self.read("/metrics", reply)?;
            let mut families = metrics["families"].as_array().into_iter().flatten();
            let spare = families.find(|family| family["name"] == "bhatti_spare_vmms");
            if spare
                .and_then(|family| family["samples"][0]["value"].as_f64())
                .is_some_and(|ready| ready > 0.0)
            {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                return Err(Error::new("waiting for a VMM that is started ahead", "it takes too long"));
            }
            std::thread::sleep(LOOK);
        }
    }

    pub(crate) fn delete(&self, sandbox: &str) -> Result<()> {
        self.remove(&format!("/sandboxes/{sandbox}"))
    }

    /// Destroys every sandbox and every snapshot, of all users.
    pub(crate) fn clear(&self) -> Result<()> {
        for (what, key) in [("/sandboxes", "id"), ("/snapshots", "name")] {
            let all = self.get(what)?;
            for one in all.as_array().into_iter().flatten() {
                let Some(name) = one[key].as_str() else { continue };
                let owner = one["owner"].as_str().map(|owner| format!("?owner={owner}"));
                self.remove(&format!("{what}/{name}{}", owner.unwrap_or_default()))?;
            }
        }
        Ok(())
    }

    /// Removes what has this path.
    pub(crate) fn remove(&self, path: &str) -> Result<()> {
        let url = format!("{}{path}", self.url);
        let reply =
            self.agent.delete(url).header("Authorization", self.bearer()).call().during("destroying")?;
        if reply.status().is_success() {
            Ok(())
        } else {
            Err(Error::new(format!("destroying {path}"), reply.status()))
        }
    }

    /// A command's exit status, which must be 0, and the time from request to answer.
    pub(crate) fn exec(&self, sandbox: &str, cmd: &[&str]) -> Result<(Duration, String)> {
        let began = Instant::now();
        let reply = self.post(&format!("/sandboxes/{sandbox}/exec"), &json!({ "cmd": cmd }))?;
        let took = began.elapsed();
        if reply["exit_code"] != 0 {
            return Err(Error::new(format!("{cmd:?}"), reply));
        }
        Ok((took, reply["stdout"].as_str().unwrap_or_default().to_owned()))
    }

    /// Events from the first one on, as they happen.
    pub(crate) fn follow_events(&self) -> Result<Events> {
        const PATH: &str = "/events?since=0";
        let url = format!("{}{PATH}", self.url);
        let reply = self.agent.get(url).header("Authorization", self.bearer()).call().during(PATH)?;
        if !reply.status().is_success() {
            return Err(Error::new(PATH, reply.status()));
        }
        Ok(Events { lines: BufReader::new(Box::new(reply.into_body().into_reader())) })
    }

    /// What a shell script, run by root, prints.
    pub(crate) fn root_script(&self, sandbox: &str, script: &str) -> Result<String> {
        let cmd = ["sh", "-ec", script];
        let reply =
            self.post(&format!("/sandboxes/{sandbox}/exec"), &json!({ "cmd": cmd, "user": "root" }))?;
        if reply["exit_code"] != 0 {
            return Err(Error::new(script, reply["stderr"].as_str().unwrap_or_default()));
        }
        Ok(reply["stdout"].as_str().unwrap_or_default().to_owned())
    }

    /// The directory of a sandbox.
    pub(crate) fn sandbox_dir(&self, name: &str) -> Result<PathBuf> {
        let view = self.get(&format!("/sandboxes/{name}"))?;
        let id = view["id"].as_str().ok_or_else(|| Error::new("inspecting", &view))?;
        Ok(self.dir.path().join("sandboxes").join(id))
    }

    pub(crate) fn describe(&self) -> Result<Vec<(String, String)>> {
        let version = self.get("/version")?;
        let word = |key: &str| version[key].as_str().unwrap_or_default().to_owned();
        let kernel =
            fs::read_to_string("/proc/sys/kernel/osrelease").during("reading the kernel's release")?;
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        let store = storage::Store::open(self.dir.path()).during("opening the data directory")?;
        let filesystem = store.probe().during("probing the filesystem")?;
        Ok(vec![
            ("bhatti".to_owned(), word("version")),
            (
                "host".to_owned(),
                format!("{} x {}", vm::host_cpus(), cpu.trim_start_matches([' ', '\t', ':'])),
            ),
            ("kernel".to_owned(), kernel.trim().to_owned()),
            ("vmm".to_owned(), format!("{}, {}", word("vmm"), word("accel"))),
            ("filesystem".to_owned(), filesystem.fs_type),
            ("when".to_owned(), types::Timestamp::now().to_string()),
        ])
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.key)
    }

    fn read(
        &self,
        path: &str,
        reply: std::result::Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<Value> {
        let mut reply = reply.during(path)?;
        let status = reply.status();
        let body: Value = reply.body_mut().with_config().limit(64 << 20).read_json().during(path)?;
        if status.is_success() { Ok(body) } else { Err(Error::new(path, body["error"]["message"].clone())) }
    }
}

/// What a daemon tells of what happens.
pub(crate) struct Events {
    lines: BufReader<Box<dyn Read>>,
}

impl Events {
    /// Reads on until the next event of this kind.
    pub(crate) fn wait_for(&mut self, kind: &str) -> Result<()> {
        let during = format!("waiting for {kind}");
        let mut line = String::new();
        while self.lines.read_line(&mut line).during(&during)? > 0 {
            let event = line.strip_prefix("data:").and_then(|json| serde_json::from_str::<Value>(json).ok());
            if event.is_some_and(|event| event["kind"] == kind) {
                return Ok(());
            }
            line.clear();
        }
        Err(Error::new(during, "the events ended"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Destroyed by the daemon, so that no VMM is left; what fails here fails on the way out and has nobody to tell.
        if self.clears {
            let _gone = self.clear();
        }
        // SIGTERM and not a kill: a daemon that ends in order ends the machines that stand by, too.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _told = kill_process(pid, Signal::TERM);
        }
        let _reaped = self.child.wait();
    }
}
