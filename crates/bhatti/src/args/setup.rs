//! `setup`: what can be typed to make a host ready.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use types::Bytes;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Storage {
    /// The data directory as it is; tells if a btrfs would serve better
    Auto,
    /// The data directory as it is
    Here,
    /// A btrfs in a file beside the data directory, mounted on it; what is there is moved into it
    BtrfsLoop,
}

#[derive(Debug, Args)]
pub struct Setup {
    /// How data is to be kept: `auto` and `here` use the data directory as it is, `btrfs-loop` puts it into a btrfs in a file beside it
    #[arg(long, value_enum, default_value_t = Storage::Auto)]
    pub storage: Storage,
    /// How large that btrfs may become, such as 20G or 20480M; given again, it grows [default: 20G, or what
    /// the filesystem under it has]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, conflicts_with = "undo")]
    pub size: Option<Size>,
    /// Move the data back from the btrfs into a plain directory, and remove the btrfs
    #[arg(long)]
    pub undo: bool,
    /// Only print what --storage would do
    #[arg(long)]
    pub dry_run: bool,
    /// Do only what --storage asks for
    #[arg(long)]
    pub only_storage: bool,
    /// Guest kernel to use instead of the distribution's
    #[arg(long, value_name = "PATH", requires = "modules")]
    pub kernel: Option<PathBuf>,
    /// Directory lib/modules/VERSION that belongs to --kernel
    #[arg(long, value_name = "PATH", requires = "kernel")]
    pub modules: Option<PathBuf>,
    /// VMM to use [default: qemu-system-x86_64 or qemu-system-aarch64 in PATH]
    #[arg(long, value_name = "PATH")]
    pub qemu: Option<PathBuf>,
    /// Make everything anew
    #[arg(long)]
    pub force: bool,
}

/// A size with its unit: `20G`, `20GiB`, `20480M`, `1T`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub Bytes);

impl FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "use a whole number of M, G or T (of 1024), such as 20G, 20GiB or 20480M".to_owned();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let shift = match unit {
            "M" | "MiB" | "m" => 20,
            "G" | "GiB" | "g" => 30,
            "T" | "TiB" | "t" => 40,
            _ => return Err(wrong()),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        match number.checked_mul(1 << shift) {
            Some(0) => Err("a size of nothing holds nothing; use such as 20G".to_owned()),
            Some(bytes) => Ok(Self(Bytes(bytes))),
            None => Err("is more than any disk has".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_numbers_with_a_unit() {
        let read = |text: &str| text.parse::<Size>().map(|size| size.0.0);
        for text in ["20G", "20GiB", "20g", "20480M", "20480MiB"] {
            assert_eq!(read(text), Ok(20 << 30), "{text}");
        }
        assert_eq!(read("1T"), Ok(1 << 40));
        for text in
            ["", "G", "20", "-5G", "1.5G", "20GB", "20 G", "20K", "0x10G", "+1G", "99999999999999999999G"]
        {
            assert!(read(text).unwrap_err().contains("such as 20G"), "{text}");
        }
        assert!(read("0G").unwrap_err().contains("nothing"));
        assert!(read("18014398509481984M").unwrap_err().contains("more than any disk"));
    }
}
