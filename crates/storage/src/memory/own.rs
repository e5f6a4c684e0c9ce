//! A RAM base of a sandbox's own: what lay under its memory, with what it changed on top, for ever.
//!
//! A memory image of a few MiB is quicker read at a wake than mapped; one of hundreds is not. So a guest that changed
//! much gets a base that its next wake maps lazily, and the next memory image is small again.

use std::fs::File;
use std::path::Path;

use types::{Bytes, ContentId, Mebibytes, PAGE_SIZE, RamOffset, RamRun};

use super::PageSource;
use super::base::{RamBaseReport, hash_base};
use super::write::{PAGE, private_runs};
use crate::clone::clone_file;
use crate::durable::{self, Staged};
use crate::error::{Error, ErrorKind, Result};
use crate::hole::make_hole;
use crate::layout;
use crate::manifest::RamBase;
use crate::references::{Pin, Shared};
use crate::sparse;
use crate::store::Store;

/// Private memory above which a sleeping guest gets a base of its own. Below, reading and writing the pages at a wake
/// is cheaper than it would be to keep them uncompressed: about 1 ms a MiB.
pub const OWN_BASE_ABOVE: Bytes = Bytes(64 << 20);

/// Read at once: 4 MiB.
const PIECE: u64 = 1024 * PAGE_SIZE;

impl Store {
    /// Writes the RAM of a paused guest that lies over `under` as a base of its own, durably. The pin keeps it until a
    /// manifest names it.
    ///
    /// # Errors
    /// `NoSpace`, `Corrupt` for what lies under it, or what the source or the system says; nothing is left then.
    pub fn write_own_base(
        &self,
        under: &RamBase,
        memory: Mebibytes,
        source: &dyn PageSource,
    ) -> Result<(RamBase, RamBaseReport, Pin)> {
        let path = self.layout().bases().join(layout::staging_name());
        if source.len() != memory.bytes() {
            return Err(Error::new(ErrorKind::Invalid, "write", path).because("the memory has another size"));
        }
        let staged = match self.ram_base_file(under)? {
            Some(under) => {
                clone_file(&under, &path)?;
                Staged::adopt(path)?
            }
            None => Staged::create(path, 0o600)?,
        };
        let (file, path) = (staged.file(), staged.path());
        file.set_len(memory.bytes().0).map_err(|error| Error::io("write", path, error))?;
        lay_over(file, path, source)?;
        let report = hash_base(file, path)?;
        durable::set_mode(file, path, 0o444)?;
        durable::sync(file, path)?;
        let target = self.layout().base(&report.id);
        // Before it has its name, or finds that there is one: from then on it can be taken for one that nobody wants.
        let pin = self.pin_objects(vec![Shared::Base(report.id.clone())]);
        staged.rename_if_new(&target)?;
        durable::sync_parent(&target)?;
        Ok((RamBase::Own { ram: report.id.clone() }, report, pin))
    }

    /// The file of a base for the host's own reading; none for the zero base.
    pub(crate) fn ram_base_file(&self, base: &RamBase) -> Result<Option<std::path::PathBuf>> {
        match base {
            RamBase::Zero => Ok(None),
            RamBase::Own { ram } => Ok(Some(self.layout().base(ram))),
            RamBase::Template { key, ram } => match self.templates().get(key)? {
                Some(record) if record.ram_base_id == *ram => {
                    Ok(Some(self.layout().template(key).join(layout::RAM_BASE)))
                }
                _ => Err(Error::new(ErrorKind::Corrupt, "use template", self.layout().template(key))
                    .because("its RAM base is not the one that the memory lies over")),
            },
        }
    }

    pub(crate) fn own_base(&self, ram: &ContentId, memory: Mebibytes) -> Result<std::path::PathBuf> {
        let path = self.layout().base(ram);
        match std::fs::metadata(&path) {
            Ok(meta) if meta.len() == memory.bytes().0 => {
                Ok(layout::from_machine_dir(&layout::base_below_root(ram)))
            }
            Ok(_) => Err(Error::new(ErrorKind::Corrupt, "use RAM base", path)
                .because("it has another size than the memory that lies over it")),
            Err(error) => Err(Error::new(ErrorKind::Corrupt, "use RAM base", path)
                .because("it is missing")
                .caused_by(error)),
        }
    }
}

/// Writes the private pages over the base; pages of zeros become holes.
fn lay_over(file: &File, path: &Path, source: &dyn PageSource) -> Result<()> {
    let mut buffer = Vec::new();
    for run in private_runs(source, path)? {
        let (mut at, end) = (run.start.0, run.start.0 + run.len.0);
        while at < end {
            let len = (end - at).min(PIECE);
            buffer.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
            source
                .read_runs(&[RamRun { start: RamOffset(at), len: Bytes(len) }], &mut buffer)
                .map_err(|error| Error::io("read guest memory for", path, error))?;
            let mut written = 0;
            for (from, pages) in sparse::stretches(&buffer, PAGE) {
                let from = sparse::bytes(from);
                make_hole(file, path, at + written, from - written)?;
                durable::write_at(file, path, at + from, pages)?;
                written = from + sparse::bytes(pages.len());
            }
            make_hole(file, path, at + written, len - written)?;
            at += len;
        }
    }
    Ok(())
}

/// Memory that is its base, page for page.
#[derive(Debug, Clone, Copy)]
pub struct Unchanged(pub Bytes);

impl PageSource for Unchanged {
    fn len(&self) -> Bytes {
        self.0
    }

    fn private_runs(&self) -> std::io::Result<Vec<RamRun>> {
        Ok(Vec::new())
    }

    fn read(&self, _at: RamOffset, _buf: &mut [u8]) -> std::io::Result<()> {
        Err(std::io::ErrorKind::InvalidInput.into())
    }
}
