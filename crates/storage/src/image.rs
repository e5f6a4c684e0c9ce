//! Base images: immutable, named by their content, found by a name.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use types::{Arch, Bytes, ContentId, ImageName, Timestamp};

use crate::durable::Staged;
use crate::error::Result;
use crate::layout;
use crate::store::Store;

/// A named base image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRecord {
    /// Its name.
    pub name: ImageName,
    /// The guests it is for.
    pub arch: Arch,
    /// BLAKE3 of its logical content.
    pub id: ContentId,
    /// Logical size, which is the root disk's least size.
    #[serde(rename = "size_bytes")]
    pub size: Bytes,
    /// What it occupied when it was committed.
    #[serde(rename = "allocated_bytes")]
    pub allocated: Bytes,
    /// When it was committed.
    pub created_at: Timestamp,
    /// Where it came from, in the words of who made it.
    pub source: String,
}

impl ImageRecord {
    /// The object as a VMM sees it whose working directory is a sandbox's or a template's (or its staging) directory.
    #[must_use]
    pub fn path_from_machine_dir(&self) -> PathBuf {
        layout::from_machine_dir(&layout::object_below_root(&self.id))
    }
}

/// The base images of a store.
#[derive(Debug, Clone, Copy)]
pub struct Images<'a> {
    pub(crate) store: &'a Store,
}

/// An image being built; removed when dropped.
#[derive(Debug)]
pub struct StagedImage {
    pub(crate) store: Store,
    pub(crate) staged: Staged,
}

impl Images<'_> {
    /// All named images, by name and architecture.
    ///
    /// # Errors
    /// When the directory or a record cannot be read.
    pub fn list(&self) -> Result<Vec<ImageRecord>> {
        unimplemented!()
    }

    /// The image of that name.
    ///
    /// # Errors
    /// `NotFound` when there is none, `Corrupt` when its record or its object is damaged.
    pub fn resolve(&self, _name: &ImageName, _arch: Arch) -> Result<ImageRecord> {
        unimplemented!()
    }

    /// The object's path for the host's own reading.
    #[must_use]
    pub fn object_path(&self, id: &ContentId) -> PathBuf {
        self.store.layout().object(id)
    }

    /// An empty staging file for a new image.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn stage(&self) -> Result<StagedImage> {
        unimplemented!()
    }
}

impl StagedImage {
    /// The file to build into; it may be replaced by another file of that name.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.staged.path
    }

    /// Names the content and makes it last. A name that exists is moved to the new content; the old object stays.
    ///
    /// # Errors
    /// `Invalid` for an empty image, `NoSpace`, or what the system says.
    pub fn commit(self, _name: &ImageName, _arch: Arch, _source: &str) -> Result<ImageRecord> {
        let _ = self.store;
        unimplemented!()
    }
}
