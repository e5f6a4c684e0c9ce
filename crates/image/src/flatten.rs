//! From layers to a root filesystem: unpacked into a directory, then made into an ext4 by `mke2fs -d`.
//!
//! The directory lies in the build's own, which nobody else can enter; see `tree` for what keeps a layer inside it.
//! Nothing is mounted.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use types::{Bytes, ImageConfig};

use crate::layer::{self, Compression, Limits, Share, Unpacked};
use crate::oci::OciConfig;
use crate::run::Tool;
use crate::tree::{RootAttributes, Tree};
use crate::tree_path::TreePath;
use crate::{Build, Error, Result};

const OP: &str = "make the filesystem";
const JOURNAL_MIB: u64 = 4;
/// Free room in the image beyond what is in it. It costs nothing until it is used.
const ROOM: u64 = 1 << 30;
const STEP: u64 = 256 << 20;
/// Fixed, as every image is the only one of its guest.
const UUID: &str = "b4a77100-0000-4000-8000-000000000002";
/// When mke2fs is told that it is: what it adds of its own is of no time.
const EPOCH: &str = "1";

/// What was made of layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlatImage {
    /// What the image wants of its guest.
    pub config: ImageConfig,
    /// Logical size of the filesystem.
    pub size: Bytes,
    /// What people should know.
    pub warnings: Vec<String>,
}

/// Layers on their way into a filesystem.
pub(crate) struct Flatten<'a> {
    build: &'a Build<'a>,
    limits: Limits,
    tree: Tree,
    done: Unpacked,
    total: u64,
    _scratch: tempfile::TempDir,
    commands: PathBuf,
}

impl<'a> Flatten<'a> {
    /// Begins with nothing. `total` is how many bytes all layers have, as far as that is known.
    pub(crate) fn begin(build: &'a Build<'a>, limits: Limits, total: u64) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::needs_root("unpack an image"));
        }
        let io = |error| Error::io(OP, build.work_dir, error);
        // tempfile makes it with mode 0700.
        let scratch = tempfile::Builder::new().prefix("layers-").tempdir_in(build.work_dir).map_err(io)?;
        let path = scratch.path().join("tree");
        fs::DirBuilder::new().mode(0o755).create(&path).map_err(io)?;
        let commands = scratch.path().join("root");
        let tree = Tree::new(&path)?;
        Ok(Self { build, limits, tree, done: Unpacked::default(), total, _scratch: scratch, commands })
    }

    /// Lays the next layer over those below and compares its digest with what the configuration says of it.
    pub(crate) fn layer(
        &mut self,
        config: &OciConfig,
        number: usize,
        from: impl Read,
        compression: Compression,
    ) -> Result<()> {
        let count = config.diff_ids.len();
        let what = format!("unpacking layer {} of {count}", number + 1);
        self.build.at(what.as_str(), self.done.read, self.total);
        let share = Share { what: &what, total: self.total };
        let found =
            layer::apply(self.build, &mut self.tree, from, compression, &self.limits, &mut self.done, share)?;
        match config.diff_ids.get(number) {
            Some(wanted) if *wanted == found => Ok(()),
            Some(wanted) => Err(Error::input(
                "use",
                Path::new("the image"),
                format!(
                    "layer {} is not what its configuration says: it is {found} and not {wanted}",
                    number + 1
                ),
            )),
            None => Err(Error::input(
                "use",
                Path::new("the image"),
                format!("it has more layers than the {count} of its configuration"),
            )),
        }
    }

    /// Makes the filesystem of what is there into the file `out`. Not synced.
    pub(crate) fn finish(mut self, config: &OciConfig, layers: usize, out: &Path) -> Result<FlatImage> {
        if layers != config.diff_ids.len() {
            let why = format!("it has {layers} layers, and its configuration has {}", config.diff_ids.len());
            return Err(Error::input("use", Path::new("the image"), why));
        }
        let config = config.config.clone();
        // The agent writes names there, and commands begin in the other.
        for dir in [Some("/etc"), config.working_dir.as_deref()].into_iter().flatten() {
            self.tree.ensure_directory(&TreePath::parse(dir.as_bytes())?)?;
        }
        let mut warnings = Vec::new();
        if !self.tree.has_program(Path::new("bin/sh")) {
            warnings.push(
                "it has no /bin/sh: `exec` runs programs by their path, `shell` and --init do not work"
                    .to_owned(),
            );
        }
        let root = self.tree.finish()?;
        self.build.at("making the filesystem", self.total, self.total);
        let size = self.make(root, out)?;
        Ok(FlatImage { config, size, warnings })
    }

    fn make(&self, root: RootAttributes, out: &Path) -> Result<Bytes> {
        let names = self.done.names + 64;
        let inodes = names + names / 4;
        let content = self.done.bytes + names * 4096 + (JOURNAL_MIB << 20);
        let size = (content + content / 20 + inodes * 256 + ROOM).next_multiple_of(STEP);
        let inodes = inodes.max(size >> 14);
        let io = |error| Error::io(OP, out, error);
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(out);
        file.and_then(|file| file.set_len(size)).map_err(io)?;
        Tool::new(OP, "mke2fs", "e2fsprogs")
            .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-L", "root"])
            .args(["-N", &inodes.to_string()])
            // As for the image `minimal`, which says why.
            .args(["-O", "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg"])
            .args(["-O", "sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"])
            .args(["-J", &format!("size={JOURNAL_MIB}"), "-U", UUID])
            .args([
                "-E",
                &format!("lazy_itable_init=0,lazy_journal_init=0,packed_meta_blocks=1,hash_seed={UUID}"),
            ])
            .arg("-d")
            .arg(self.tree.path())
            .arg(out)
            .env("MKE2FS_CONFIG", "/dev/null")
            .env("SOURCE_DATE_EPOCH", EPOCH)
            .env("E2FSPROGS_FAKE_TIME", EPOCH)
            .cancel(self.build.cancel)
            .run()?;
        // What `mke2fs -d` leaves as it likes of the root itself.
        let RootAttributes { mode, uid, gid, mtime_sec } = root;
        let time = mtime_sec.max(0);
        let commands = format!(
            "set_inode_field <2> mode 04{mode:04o}\nset_inode_field <2> uid {uid}\nset_inode_field <2> gid {gid}\n\
             set_inode_field <2> mtime @{time}\nset_inode_field <2> mtime_extra 0\n"
        );
        fs::write(&self.commands, commands).map_err(|error| Error::io(OP, &self.commands, error))?;
        Tool::new(OP, "debugfs", "e2fsprogs")
            .args(["-w", "-f"])
            .arg(&self.commands)
            .arg(out)
            .env("E2FSPROGS_FAKE_TIME", EPOCH)
            .cancel(self.build.cancel)
            .run()?;
        Ok(Bytes(size))
    }
}

/// A layer in a file.
#[derive(Debug, Clone)]
pub struct LayerFile {
    /// Where it is.
    pub path: PathBuf,
    /// How it is compressed.
    pub compression: Compression,
    /// How long it is.
    pub size: u64,
}

/// Makes an image of layers, lowest first, into the file `out`, which may exist. Not synced.
///
/// # Errors
/// As [`import_archive`](crate::import_archive).
pub fn flatten(
    build: &Build<'_>,
    config: &OciConfig,
    layers: &[LayerFile],
    limits: Limits,
    out: &Path,
) -> Result<FlatImage> {
    let mut flat = Flatten::begin(build, limits, layers.iter().map(|layer| layer.size).sum())?;
    for (number, layer) in layers.iter().enumerate() {
        let file = fs::File::open(&layer.path).map_err(|error| Error::io("read", &layer.path, error))?;
        flat.layer(config, number, file, layer.compression)?;
    }
    flat.finish(config, layers.len(), out)
}
