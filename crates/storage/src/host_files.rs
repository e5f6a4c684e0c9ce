//! Files of the host as a whole: scratch space for builds, and another data root over the same immutable files.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use types::Nonce;

use crate::durable::{self, StagedDir};
use crate::error::{Error, ErrorKind, Result};
use crate::layout;
use crate::store::Store;

/// A certificate that nobody but its own key vouches for; both as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnCertificate {
    /// Shown to everybody. What stands before its first line of dashes is its maker's business.
    pub cert: String,
    /// Shown to nobody.
    pub key: String,
}

/// A directory for a build's scratch files; removed when dropped, and after a crash by the next `reconcile`.
#[derive(Debug)]
pub struct Scratch(StagedDir);

impl Scratch {
    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// A file of a build's scratch directory that is written as it comes in.
#[derive(Debug)]
pub struct Spool {
    scratch: Scratch,
    path: PathBuf,
    file: fs::File,
}

impl Spool {
    /// Adds what came in.
    ///
    /// # Errors
    /// `NoSpace`, or what the system says.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| Error::io("write", &self.path, error))
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory that it is in, for the build.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.scratch.path()
    }
}

impl Store {
    /// A file for what comes in, in a scratch directory of its own.
    ///
    /// # Errors
    /// `NoSpace`, or what the system says.
    pub fn spool(&self) -> Result<Spool> {
        let scratch = self.scratch()?;
        let path = scratch.path().join("spool");
        let file = durable::new_file(&path, b"", 0o600)?;
        Ok(Spool { scratch, path, file })
    }

    /// The admin key: what its file says, or `fresh`, which is then written there (mode 0600).
    ///
    /// # Errors
    /// When the file can be neither read nor written.
    pub fn admin_key(&self, fresh: &str) -> Result<String> {
        self.key_or(&self.admin_key_path(), fresh)
    }

    /// The key that secrets are sealed to: what its file says, or `fresh`, which is then written there (mode 0600).
    ///
    /// # Errors
    /// When the file can be neither read nor written.
    pub fn secrets_key(&self, fresh: &str) -> Result<String> {
        self.key_or(&self.secrets_key_path(), fresh)
    }

    /// The certificate of this host's own making, and its key (PEM; `tls/cert.pem`, and `tls/key.pem` with mode 0600): what is kept,
    /// if it `fits`, else what `make` gives, which is kept then.
    ///
    /// # Errors
    /// What `make` says; when the files can be neither read nor written.
    pub fn own_certificate(
        &self,
        fits: impl FnOnce(&str) -> bool,
        make: impl FnOnce() -> std::io::Result<OwnCertificate>,
    ) -> Result<[PathBuf; 2]> {
        let dir = self.root().join("tls");
        let [cert, key] = ["cert.pem", "key.pem"].map(|name| dir.join(name));
        if key.exists() && fs::read_to_string(&cert).is_ok_and(|kept| fits(&kept)) {
            return Ok([cert, key]);
        }
        let made = make().map_err(|error| Error::io("make", &cert, error))?;
        match durable::make_dir(&dir) {
            Err(error) if error.kind() == ErrorKind::Exists => {}
            done => done?,
        }
        // A certificate that is there has its key, whenever a crash comes.
        durable::remove_if_there(&cert)?;
        durable::replace(&key, made.key.as_bytes(), 0o600)?;
        durable::replace(&cert, made.cert.as_bytes(), 0o644)?;
        Ok([cert, key])
    }

    fn key_or(&self, path: &Path, fresh: &str) -> Result<String> {
        match fs::read_to_string(path) {
            Ok(key) if !key.trim().is_empty() => Ok(key.trim().to_owned()),
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("read", path, error)),
            Ok(_) | Err(_) => {
                self.write_private(path, format!("{fresh}\n").as_bytes())?;
                Ok(fresh.to_owned())
            }
        }
    }

    /// A scratch directory on the data root's filesystem.
    ///
    /// # Errors
    /// `NoSpace`, or what the system says.
    pub fn scratch(&self) -> Result<Scratch> {
        let path = self.layout().images().join(format!("{}scratch-{}", layout::NEW, Nonce::random()));
        StagedDir::create(path).map(Scratch)
    }

    /// Makes `root`, on the same filesystem, a data root with this one's images, kernels and templates, by hard links:
    /// none of those files is ever written again. The index, which knows the accelerator, is copied.
    ///
    /// # Errors
    /// When a link cannot be made.
    pub fn link_into(&self, root: &Path) -> Result<()> {
        for part in ["images", "kernel", "templates"] {
            link_tree(&self.root().join(part), &root.join(part))?;
        }
        let index = self.db_path();
        if index.exists() {
            let copy = root.join("bhatti.db");
            fs::copy(&index, &copy).map_err(|error| Error::io("copy the index to", copy, error))?;
        }
        Ok(())
    }
}

fn link_tree(from: &Path, to: &Path) -> Result<()> {
    let fail = |error| Error::io("link", to, error);
    fs::create_dir_all(to).map_err(fail)?;
    for entry in fs::read_dir(from).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if entry.file_name().to_string_lossy().starts_with(layout::NEW) {
            continue;
        }
        let target = to.join(entry.file_name());
        if entry.file_type().map_err(fail)?.is_dir() {
            link_tree(&entry.path(), &target)?;
        } else {
            fs::hard_link(entry.path(), &target).map_err(|error| Error::io("link", target, error))?;
        }
    }
    Ok(())
}
