//! What can be typed after `serve`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use types::{After, Rate};

use super::{Accelerator, Layout};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Net {
    /// `bridge` for root and `user` for others where passt is installed, else `none`
    Auto,
    /// Through passt, a process for each that runs; needs no root
    User,
    /// So, and to the owner's other sandboxes by their names
    Bridge,
    /// Not at all, whatever they ask for
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReadAhead {
    /// What the wake before touched
    Auto,
    /// Nothing
    Off,
    /// Every file that the wake before touched, whole
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Groups {
    /// By the version (2, else 1) that the host has; said where that is not possible
    Auto,
    /// Not at all
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Confine {
    /// As far as kernel and rights allow; `doctor` says how far
    Auto,
    /// Not at all beyond QEMU's own seccomp filter
    Off,
}

#[derive(Debug, Args)]
pub struct Serve {
    /// Address for TCP, or `none` for the unix socket only
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR:PORT")]
    pub listen: Listen,
    /// Certificate chain for the TCP listeners (PEM); with --tls-key
    #[arg(long, value_name = "FILE", requires = "tls_key", conflicts_with = "tls_self_signed")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Speak TLS on the TCP listeners with a certificate of this host's own making, kept in tls/ in the data directory
    #[arg(long)]
    pub tls_self_signed: bool,
    /// A further host name or address that the certificate of --tls-self-signed is for
    #[arg(long, value_name = "NAME", requires = "tls_self_signed")]
    pub tls_name: Vec<String>,
    /// Listen without TLS where others can listen in, too
    #[arg(long, conflicts_with_all = ["tls_cert", "tls_self_signed"])]
    pub insecure: bool,
    /// Seconds without work after which a sandbox is paused, or `never`
    #[arg(long, default_value = "30", value_name = "SECONDS")]
    pub warm_after: After,
    /// Seconds without work after which a sandbox is put to sleep, or `never`
    #[arg(long, default_value = "1800", value_name = "SECONDS")]
    pub cold_after: After,
    /// Do so also while a guest is busy by itself or a detached command runs
    #[arg(long)]
    pub sleep_busy: bool,
    /// Sandboxes that may wake or boot side by side; the others wait their turn
    #[arg(long, default_value_t = 8, value_name = "SANDBOXES", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub wakes: u16,
    /// Seconds that a request waits for its turn to wake a sandbox before it is refused
    #[arg(long, default_value_t = 30, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub wake_wait: u32,
    /// The most memory that all machines together may have [default: no limit]
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_memory: Option<u64>,
    /// Where the kernel tells of the host's memory
    #[arg(long, value_name = "DIR", default_value = "/proc", hide = true)]
    pub proc: PathBuf,
    /// Milliseconds between two looks at a sandbox
    #[arg(long, default_value_t = 1000, value_name = "MS", hide = true, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub thermal_tick: u32,
    /// Machines of each shape in use that are kept ready for the next create; they count as running ones do
    #[arg(long, default_value_t = 0, value_name = "SANDBOXES", value_parser = clap::value_parser!(u32).range(0..=1024))]
    pub standby: u32,
    /// VMMs that are started ahead, so that a wake need not wait for one; each takes some 20 MiB, and goes when nothing
    /// starts for ten minutes
    #[arg(long, default_value_t = 0, value_name = "VMMS", value_parser = clap::value_parser!(u8).range(0..=64))]
    pub spare_vmms: u8,
    /// What is read from the disk ahead of a wake
    #[arg(long, value_enum, default_value_t = ReadAhead::Off)]
    pub prefetch: ReadAhead,
    /// How new sandboxes keep their root disks
    #[arg(long, value_enum, default_value_t = Layout::Auto)]
    pub storage_layout: Layout,
    /// What executes guests
    #[arg(long, value_enum, default_value_t = Accelerator::Auto)]
    pub accel: Accelerator,
    /// How sandboxes reach the world
    #[arg(long, value_enum, default_value_t = Net::Auto)]
    pub net: Net,
    /// What the network of a sandbox may carry in a second each way, where it does not say: bytes, and perhaps packets
    #[arg(long, default_value = "unlimited", value_name = "RATE")]
    pub net_rate: Rate,
    /// What the disks of a sandbox may read and write together in a second, where it does not say: bytes, and perhaps
    /// operations
    #[arg(long, default_value = "unlimited", value_name = "RATE")]
    pub disk_rate: Rate,
    /// Whether each VMM is held to its processors and memory by a control group, where this user can make one
    #[arg(long, value_enum, default_value_t = Groups::Auto)]
    pub cgroups: Groups,
    /// Whether each VMM gives up privileges, files but its own, connections and signals before it begins
    #[arg(long, value_enum, default_value_t = Confine::Auto)]
    pub confine: Confine,
    /// Seconds that a guest may take to boot
    #[arg(long, default_value_t = 120, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub boot_timeout: u64,
    /// VMM to use [default: qemu-system-x86_64 or qemu-system-aarch64 in PATH]
    #[arg(long, value_name = "PATH")]
    pub qemu: Option<PathBuf>,
    /// Requests a second of one user, in the long run and with bursts of twice as many; 0 is no limit. The admin has none
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub user_rate: u32,
    /// Requests a second of one user that make, change or end something, with bursts of five times as many; 0 is no limit
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub user_changes: u32,
    /// Connections of one user at a time
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub user_connections: u16,
    /// Address on which what is published is served without a key, or `none`
    #[arg(long, default_value = "none", value_name = "ADDR:PORT")]
    pub publish_listen: Listen,
    /// Domain that aliases are put before: `<alias>.<domain>`
    #[arg(long, default_value = "localhost", value_name = "DOMAIN", value_parser = domain)]
    pub publish_domain: String,
    /// Requests a second for one alias, in the long run and with bursts of twice as many; 0 is no limit
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub publish_rate: u32,
    /// Sandboxes that are woken through aliases at the same time; who comes then is told to try again
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub publish_wakes: u16,
    /// Where backups of volumes go: file:///directory or s3://bucket/prefix, with AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID,
    /// AWS_SECRET_ACCESS_KEY and AWS_REGION from the environment [default: backups/ in the data directory]
    #[arg(long, value_name = "URL", env = "BHATTI_BACKUP_TO")]
    pub backup_to: Option<String>,
    /// Put all sandboxes to sleep when the daemon ends; they are left running otherwise
    #[arg(long)]
    pub stop_all: bool,
}

/// A domain: labels with dots between them.
fn domain(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.len() <= 190 && text.split('.').all(label) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("use a domain such as apps.example.org".to_owned())
    }
}

/// Where the daemon listens on TCP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// Nowhere: the unix socket only.
    None,
    /// Here.
    At(std::net::SocketAddr),
}

impl FromStr for Listen {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::None);
        }
        let text =
            text.strip_prefix("localhost:").map_or_else(|| text.to_owned(), |p| format!("127.0.0.1:{p}"));
        text.parse()
            .map(Self::At)
            .map_err(|_| "use ADDRESS:PORT, such as 127.0.0.1:8080, or `none`".to_owned())
    }
}
