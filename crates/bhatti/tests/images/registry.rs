//! Debian's docker-registry on loopback, filled by skopeo.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::make::{Image, run};

/// A registry of a test's own; dropped, it is gone.
pub struct Registry {
    child: Child,
    pub address: String,
    credentials: Option<&'static str>,
    dir: TempDir,
}

impl Registry {
    pub fn start() -> Self {
        Self::with(None)
    }

    /// Lets in who knows this `USER:PASSWORD`.
    pub fn locked(credentials: &'static str) -> Self {
        Self::with(Some(credentials))
    }

    fn with(credentials: Option<&'static str>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // The registry takes no port 0 that it would tell: a free one is looked for.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let auth = credentials.map_or(String::new(), |credentials| {
            let (user, password) = credentials.split_once(':').unwrap();
            let file = dir.path().join("htpasswd");
            std::fs::write(&file, run("htpasswd", &["-Bbn", user, password]).trim()).unwrap();
            format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", file.display())
        });
        let storage = dir.path().join("storage");
        let config = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n{auth}",
            storage.display()
        );
        let file = dir.path().join("config.yml");
        std::fs::write(&file, config).unwrap();
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry; scripts/host-deps.sh --tests");
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let listens = lines.any(|line| line.is_ok_and(|line| line.contains("listening on")));
        assert!(listens, "the registry ended");
        // Read on, so that it never waits for somebody to hear it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address, credentials, dir }
    }

    /// Puts an image there; gives its name.
    pub fn put(&self, image: &Image, name: &str, more: &[&str]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("archive.tar");
        image.docker_save(&archive);
        let (from, reference) =
            (format!("docker-archive:{}", archive.display()), format!("{}/{name}", self.address));
        let to = format!("docker://{reference}");
        let mut args = vec!["--insecure-policy", "copy", "-q", "--dest-tls-verify=false"];
        if let Some(credentials) = self.credentials {
            args.extend(["--dest-creds", credentials]);
        }
        args.extend(more);
        args.extend([from.as_str(), to.as_str()]);
        run("skopeo", &args);
        reference
    }

    /// Where it keeps its blobs.
    pub fn storage(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
