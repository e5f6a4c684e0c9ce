//! The processes of a line: a relay for each running sandbox, and behind it passt of the distribution, which the relay
//! starts when it is needed. Both modes have them; in mode `bridge` the relay stands among those of its siblings.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use sys::host_socket::ProcFdPath;
use tokio::process::{Child, Command};
use types::NetMode;

use crate::address::{Address, DNS, GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6};
use crate::error::{Error, Result};
use crate::relay::Orders;

/// `nobody`, on every distribution that has passt; passt itself changes to it.
pub(crate) const NOBODY: u32 = 65_534;
/// How much of what passt said goes into a message.
const LOG_TAIL: u64 = 2048;
const MISSING: Error = Error::Missing { program: "passt", package: "passt" };

/// The programs that it takes.
#[derive(Debug, Clone)]
pub struct User {
    passt: PathBuf,
    relay: Vec<String>,
    as_root: bool,
}

impl User {
    /// Looks for passt in `PATH`. `relay` is the command that runs [`crate::relay`] with its orders as arguments.
    ///
    /// # Errors
    /// `Missing`.
    pub fn find(relay: Vec<String>) -> Result<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let passt = std::env::split_paths(&path).map(|dir| dir.join("passt")).find(|file| runs(file));
        let passt = passt.ok_or(MISSING)?;
        Ok(Self { passt, relay, as_root: rustix::process::geteuid().is_root() })
    }

    /// Where passt is.
    #[must_use]
    pub fn passt(&self) -> &Path {
        &self.passt
    }

    /// Starts the relay at the far end of a line; `among` is the directory of the siblings where the orders say that there
    /// are any. What it and passt have to say goes to `log`.
    ///
    /// # Errors
    /// `Missing`, `Spawn`, `Io`.
    pub fn connect(
        &self,
        far: FarEnd,
        orders: &Orders,
        among: Option<&ProcFdPath>,
        log: &Path,
    ) -> Result<Line> {
        // The relay finds out when a guest waits for it, which is late.
        if !runs(&self.passt) {
            return Err(MISSING);
        }
        let words = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(log);
        let words = words.map_err(|source| Error::Io { op: "opening the log of the network", source })?;
        let (program, first) = self.relay.split_first().map_or(("", &[][..]), |(a, b)| (a.as_str(), b));
        let mut command = Command::new(program);
        // By its descriptor: whom the relay runs as could not go there by a path.
        let dir = among.map_or_else(|| PathBuf::from("/"), |dir| dir.path_of("."));
        command.args(first).arg(&self.passt).args(orders.words()).current_dir(dir).process_group(0);
        command.stdin(Stdio::from(far.0)).stdout(Stdio::null()).stderr(Stdio::from(words));
        command.env_clear();
        if self.as_root {
            command.uid(NOBODY).gid(NOBODY);
        }
        let relay = command.spawn().map_err(|source| Error::Spawn { program: program.into(), source })?;
        Ok(Line { relay, log: log.to_owned() })
    }
}

fn runs(file: &Path) -> bool {
    file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Starts passt at the end of a line, as whoever this process is, with its standard error. It ends with the line.
///
/// # Errors
/// `Spawn`.
pub(crate) fn start_passt(
    program: &Path,
    line: UnixStream,
    own: &Address,
    v6: bool,
) -> Result<std::process::Child> {
    let mut command = std::process::Command::new(program);
    command.args(arguments(own, v6)).current_dir("/");
    command.stdin(Stdio::from(OwnedFd::from(line))).stdout(Stdio::null()).env_clear();
    command.spawn().map_err(|source| Error::Spawn { program: program.to_owned(), source })
}

/// Standard input is the line; nothing is handed out (the agent is told all there is to know), nothing is listened on,
/// and the gateway stands for nobody but the resolver.
fn arguments(address: &Address, v6: bool) -> Vec<String> {
    let [a, b, c, d, e, f] = GATEWAY_MAC;
    let mut arguments: Vec<String> =
        ["--foreground", "--quiet", "--fd", "0", "--no-map-gw", "--no-dhcp", "--no-dhcpv6", "--no-ra"]
            .map(str::to_owned)
            .into();
    let mut pair = |flag: &str, value: String| arguments.extend([flag.to_owned(), value]);
    pair("--tcp-ports", "none".to_owned());
    pair("--udp-ports", "none".to_owned());
    pair("--mac-addr", format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"));
    pair("--address", address.v4.to_string());
    pair("--netmask", "32".to_owned());
    pair("--gateway", GATEWAY_V4.to_string());
    pair("--dns-forward", DNS.to_string());
    if v6 {
        pair("--address", address.v6.to_string());
        pair("--gateway", GATEWAY_V6.to_string());
    } else {
        arguments.push("--ipv4-only".to_owned());
    }
    arguments
}

/// The mode of sandboxes on a host that does not say: siblings are there for each other where the daemon is the host's.
#[must_use]
pub fn default_mode() -> NetMode {
    if rustix::process::geteuid().is_root() { NetMode::Bridge } else { NetMode::User }
}

/// Whether this host leads anywhere by IPv6: a default route that is not the kernel's own refusal (on `lo`).
#[must_use]
pub fn host_has_v6() -> bool {
    let table = std::fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let everything = fields.first().is_some_and(|to| to.bytes().all(|digit| digit == b'0'));
        everything && fields.get(1) == Some(&"00") && fields.last().is_some_and(|link| *link != "lo")
    })
}

/// The end of a line that is not the VMM's. When it is dropped, the VMM's network card has nobody to speak to.
#[derive(Debug)]
pub struct FarEnd(OwnedFd);

/// A line: the VMM's end, and the other one.
///
/// # Errors
/// `Io`: no descriptor is free.
pub fn line() -> Result<(OwnedFd, FarEnd)> {
    // Closed on exec, both of them: no other child of the daemon keeps a line alive.
    let (vmm, far) = UnixStream::pair().map_err(|source| Error::Io { op: "making a socket pair", source })?;
    Ok((vmm.into(), FarEnd(far.into())))
}

/// Who is at the far end of a line. Dropping it leaves the relay, which ends with the VMM.
#[derive(Debug)]
pub struct Line {
    relay: Child,
    log: PathBuf,
}

impl Line {
    /// Why there is no network after all, if the relay has ended.
    pub fn trouble(&mut self) -> Option<String> {
        let status = self.relay.try_wait().ok()??;
        let said = last_words(&self.log);
        let said = if said.is_empty() { format!("it ended with {status}") } else { said };
        Some(format!("the relay does not run: {said}"))
    }
}

/// The last line of a log that is not passt's complaint of having no syslog in its sandbox.
fn last_words(log: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut log = File::open(log)?;
        let end = log.seek(SeekFrom::End(0))?;
        log.seek(SeekFrom::Start(end.saturating_sub(LOG_TAIL)))?;
        let mut bytes = Vec::new();
        log.take(LOG_TAIL).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
    let mut lines =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.contains("to syslog"));
    lines.next_back().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passt_is_told_to_serve_this_line_alone_and_to_map_nothing_to_the_host() {
        let address = Address::of(&[7; 32]);
        let with = arguments(&address, true).join(" ");
        for part in ["--fd 0", "--no-map-gw", "--tcp-ports none", "--udp-ports none", "--address 198.19.7.7"]
        {
            assert!(with.contains(part), "{with}");
        }
        assert!(with.contains("--address fd62:") && !with.contains("--ipv4-only"));
        let without = arguments(&address, false).join(" ");
        assert!(!without.contains("fd62:") && without.contains("--ipv4-only"));
    }

    #[tokio::test]
    async fn a_relay_that_ends_at_once_is_told_with_its_last_words_and_a_line_ends_with_the_vmm() {
        let dir = tempfile::tempdir().unwrap();
        let script = |text: &str| vec!["/bin/sh".to_owned(), "-c".to_owned(), text.to_owned()];
        let orders = Orders {
            rate: types::Rate::UNLIMITED,
            own: Address::of(&[1; 32]),
            v6: false,
            among: false,
            egress: types::Egress::public(),
        };
        let log = dir.path().join("net.log");
        // `cat` stands in for the relay: it ends when its input does.
        let user = User { passt: "/bin/true".into(), relay: script("exec cat"), as_root: false };
        let (vmm, far) = line().unwrap();
        let mut line = user.connect(far, &orders, None, &log).unwrap();
        assert_eq!(line.trouble(), None);
        drop(vmm);
        line.relay.wait().await.unwrap();
        let failing = User { relay: script("echo no way >&2; exit 3"), ..user };
        let (_vmm, far) = super::line().unwrap();
        let mut line = failing.connect(far, &orders, None, &log).unwrap();
        line.relay.wait().await.unwrap();
        assert!(line.trouble().unwrap().contains("no way"));
        let nowhere = User { relay: vec!["/no/such".to_owned()], ..failing };
        let (_vmm, far) = super::line().unwrap();
        let error = nowhere.connect(far, &orders, None, &log).unwrap_err();
        assert!(error.to_string().contains("/no/such"));
        let (_vmm, far) = super::line().unwrap();
        let gone = User { passt: "/no/such".into(), ..nowhere };
        assert!(matches!(gone.connect(far, &orders, None, &log), Err(Error::Missing { .. })));
    }
}
