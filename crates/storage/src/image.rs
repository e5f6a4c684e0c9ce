//! Base images: immutable, named by their content, found by a name.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use types::{Arch, Bytes, ContentId, ImageConfig, ImageName, Owner, Timestamp};

use crate::durable::{self, Staged};
use crate::error::{Error, ErrorKind, Result};
use crate::layout;
use crate::record::{self, Format};
use crate::references::Shared;
use crate::settle;
use crate::sparse;
use crate::store::Store;

/// Version 1 had no `config`, version 2 no `owner`.
const FORMAT: Format = Format { name: "bhatti-image", version: 3 };

/// A named base image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRecord {
    /// Its name, unique among its owner's, or among those for all.
    pub name: ImageName,
    /// Whose alone it is; none for one that all may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
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
    /// What it wants of its guests; none for images that were built here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<ImageConfig>,
}

/// What came of taking an image's name away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameRemoval {
    /// It is gone; its content goes with the next collection, unless it has another name.
    Gone(Box<ImageRecord>),
    /// Nothing was changed: these were made from it.
    InUse(Vec<String>),
}

impl ImageRecord {
    /// Whether sandboxes of `owner` may be made from it.
    #[must_use]
    pub fn is_for(&self, owner: &Owner) -> bool {
        self.owner.as_ref().is_none_or(|own| own == owner)
    }

    /// The object as a VMM sees it whose working directory is a sandbox's or a template's (or its staging) directory.
    #[must_use]
    pub fn path_from_machine_dir(&self) -> PathBuf {
        object_from_machine_dir(&self.id)
    }
}

/// An image's object as a VMM sees it whose working directory is a sandbox's or a template's.
#[must_use]
pub fn object_from_machine_dir(id: &ContentId) -> PathBuf {
    layout::from_machine_dir(&layout::object_below_root(id))
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
    pub(crate) owner: Option<Owner>,
}

impl Images<'_> {
    /// All named images, by name and architecture.
    ///
    /// # Errors
    /// When the directory or a record cannot be read.
    pub fn list(&self) -> Result<Vec<ImageRecord>> {
        let mut found = Vec::new();
        for name in self.store.names_in(&self.store.layout().images())? {
            if name.starts_with("rootfs-") && name.ends_with(".json") {
                found.push(record::read(FORMAT, &self.store.layout().images().join(name))?);
            }
        }
        found.sort_by(|a: &ImageRecord, b: &ImageRecord| {
            (&a.name, a.arch, &a.owner).cmp(&(&b.name, b.arch, &b.owner))
        });
        Ok(found)
    }

    /// Every record by its path, or why it cannot be read.
    pub(crate) fn records(&self) -> Result<Vec<(PathBuf, Result<ImageRecord>)>> {
        let dir = self.store.layout().images();
        let names = self.store.names_in(&dir)?;
        let records = names.into_iter().filter(|name| name.starts_with("rootfs-") && name.ends_with(".json"));
        let read = |path: PathBuf| (path.clone(), record::read(FORMAT, &path));
        Ok(records.map(|name| read(dir.join(name))).collect())
    }

    /// Makes the name for people a second one of the record's content.
    pub(crate) fn relink(&self, record: &ImageRecord) -> Result<()> {
        let layout = self.store.layout();
        let object = layout.object(&record.id);
        let relative = Path::new("objects").join(object.file_name().unwrap_or_default());
        durable::link(
            &object,
            &relative,
            &layout.image_link(record.owner.as_ref(), &record.name, record.arch),
        )
    }

    /// Makes a record again for content that has only its name for people.
    pub(crate) fn restore_record(
        &self,
        owner: Option<&Owner>,
        name: &ImageName,
        arch: Arch,
        id: &ContentId,
    ) -> Result<()> {
        let layout = self.store.layout();
        let object = layout.object(id);
        let file = File::open(&object).map_err(|error| Error::io("open", &object, error))?;
        let size = file.metadata().map_err(|error| Error::io("stat", &object, error))?.len();
        let record = ImageRecord {
            name: name.clone(),
            owner: owner.cloned(),
            arch,
            id: id.clone(),
            size: Bytes(size),
            allocated: sparse::allocated(&file, &object)?,
            created_at: Timestamp::now(),
            source: "restored from its name by fsck".to_owned(),
            config: None,
        };
        durable::replace(&layout.image_record(owner, name, arch), &record::encode(FORMAT, &record), 0o600)
    }

    /// The image of that name that is for all.
    ///
    /// # Errors
    /// `NotFound` when there is none, `Corrupt` when its record or its object is damaged.
    pub fn resolve(&self, name: &ImageName, arch: Arch) -> Result<ImageRecord> {
        self.resolve_of(None, name, arch)
    }

    /// What `owner` calls by that name: an image of its own before one that is for all.
    ///
    /// # Errors
    /// As [`Images::resolve`].
    pub fn resolve_for(&self, owner: &Owner, name: &ImageName, arch: Arch) -> Result<ImageRecord> {
        match self.resolve_of(Some(owner), name, arch) {
            Err(error) if error.kind() == ErrorKind::NotFound => self.resolve(name, arch),
            found => found,
        }
    }

    /// The image of that name that is `owner`'s alone, or that is for all.
    pub(crate) fn resolve_of(
        &self,
        owner: Option<&Owner>,
        name: &ImageName,
        arch: Arch,
    ) -> Result<ImageRecord> {
        let layout = self.store.layout();
        let path = layout.image_record(owner, name, arch);
        let record: ImageRecord = record::read(FORMAT, &path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::new(ErrorKind::NotFound, "use image", name.as_str())
                .because(format!("there is no image {name:?} for {arch}", name = name.as_str()))
                .hint_to("`bhatti image list` shows what there is, `bhatti setup` makes `minimal`"),
            _ => error,
        })?;
        let object = layout.object(&record.id);
        match std::fs::metadata(&object).map(|meta| meta.len()) {
            Ok(len) if len == record.size.0 => Ok(record),
            found => {
                let error = Error::new(ErrorKind::Corrupt, "use image", object)
                    .because(format!(
                        "the content of image {:?} is missing or of another size",
                        name.as_str()
                    ))
                    .hint_to("build or pull the image again");
                Err(match found {
                    Ok(_) => error,
                    Err(source) => error.caused_by(source),
                })
            }
        }
    }

    /// Takes the name of an image that is `owner`'s alone, or for all, away, unless sandboxes or snapshots were made from it, or something is just being made.
    ///
    /// # Errors
    /// `NotFound` when there is none of that name, `Corrupt` when a manifest cannot be read, which may name it.
    pub fn remove_name(&self, owner: Option<&Owner>, name: &ImageName, arch: Arch) -> Result<NameRemoval> {
        let layout = self.store.layout();
        let path = layout.image_record(owner, name, arch);
        let held = self.store.pins().held();
        let record: ImageRecord = record::read(FORMAT, &path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::new(ErrorKind::NotFound, "delete image", name.as_str())
                .because(format!("there is no image {:?} for {arch}", name.as_str()))
                .hint_to("`bhatti image list` shows what there is"),
            _ => error,
        })?;
        let mut references = self.store.references()?;
        let made_from_it = |manifest: &crate::manifest::Manifest| {
            manifest.image.id == record.id
                && manifest.image.name == *name
                && owner.is_none_or(|owner| manifest.owner == *owner)
        };
        let users: Vec<String> = references
            .manifests
            .iter()
            .filter(|(_, manifest)| made_from_it(manifest))
            .map(|(namer, _)| namer.to_string())
            .collect();
        if !users.is_empty() {
            return Ok(NameRemoval::InUse(users));
        }
        if let Some(error) = references.unreadable.pop() {
            return Err(error);
        }
        if held.contains_key(&Shared::Image(record.id.clone())) {
            return Ok(NameRemoval::InUse(vec!["something that is being made".to_owned()]));
        }
        // The record is what counts: without it the link is a leftover that would keep the content.
        durable::remove_if_there(&layout.image_link(owner, name, arch))?;
        durable::remove_if_there(&path)?;
        durable::sync_parent(&path)?;
        Ok(NameRemoval::Gone(Box::new(record)))
    }

    /// The object's path for the host's own reading.
    #[must_use]
    pub fn object_path(&self, id: &ContentId) -> PathBuf {
        self.store.layout().object(id)
    }

    /// Writes the image's object anew if it lies on the disk in a way that makes clones dear (it may have been copied
    /// here with the whole data directory). Tells whether it did. Machines that have the old file open keep it.
    ///
    /// # Errors
    /// `Corrupt` when its content is not what its name says, `NoSpace`, or what the system says.
    pub fn settle(&self, record: &ImageRecord) -> Result<bool> {
        let layout = self.store.layout();
        let object = layout.object(&record.id);
        let file = File::open(&object).map_err(|error| Error::io("open", &object, error))?;
        let path = layout.objects().join(layout::staging_name());
        let Some(staged) = settle::settled(&file, &object, &path)? else { return Ok(false) };
        if sparse::content_id(staged.file(), &path)? != record.id {
            return Err(Error::new(ErrorKind::Corrupt, "use image", object)
                .because(format!("the content of image {:?} is not what it was", record.name.as_str()))
                .hint_to("build or pull the image again"));
        }
        durable::set_mode(staged.file(), &path, 0o444)?;
        staged.commit(&object)?;
        let relative = Path::new("objects").join(object.file_name().unwrap_or_default());
        let link = layout.image_link(record.owner.as_ref(), &record.name, record.arch);
        durable::link(&object, &relative, &link)?;
        durable::sync_parent(&link)?;
        Ok(true)
    }

    /// An empty staging file for a new image.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn stage(&self) -> Result<StagedImage> {
        let path = self.store.layout().objects().join(layout::staging_name());
        let staged = Staged::create(path, 0o600)?;
        settle::store_plainly(staged.file());
        Ok(StagedImage { store: self.store.clone(), staged, owner: None })
    }
}

impl StagedImage {
    /// The same, to be one owner's alone; of none it is for all.
    #[must_use]
    pub fn owned_by(self, owner: Option<Owner>) -> Self {
        Self { owner, ..self }
    }

    /// The file to build into. It must stay this file: its lock tells others that it is in use.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.staged.path()
    }

    /// Names the content and makes it last. A name that exists is moved to the new content; the old object stays. What
    /// lies on the disk in a way that makes clones dear, or is full of zeros, is written anew before.
    ///
    /// # Errors
    /// `Invalid` for an empty image, `NoSpace`, or what the system says.
    pub fn commit(self, name: &ImageName, arch: Arch, source: &str) -> Result<ImageRecord> {
        self.commit_with(name, arch, source, None)
    }

    /// As [`StagedImage::commit`], with what the image wants of its guests.
    ///
    /// # Errors
    /// As for [`StagedImage::commit`].
    pub fn commit_with(
        self,
        name: &ImageName,
        arch: Arch,
        source: &str,
        config: Option<ImageConfig>,
    ) -> Result<ImageRecord> {
        let Self { store, staged, owner } = self;
        let path = staged.path().to_owned();
        // Opened anew: a tool may have replaced the file in spite of what `path` asks for.
        let file = File::open(&path).map_err(|error| Error::io("open", &path, error))?;
        let size = file.metadata().map_err(|error| Error::io("stat", &path, error))?.len();
        if size == 0 || !size.is_multiple_of(512) {
            return Err(Error::new(ErrorKind::Invalid, "commit image", name.as_str())
                .because(format!("a disk of {size} bytes is none: it is empty or ends within a sector")));
        }
        durable::sync(&file, &path)?;
        let settled = settle::settled(&file, &path, &path.with_file_name(layout::staging_name()))?;
        let staged = settled.unwrap_or(staged);
        let path = staged.path().to_owned();
        let file = File::open(&path).map_err(|error| Error::io("open", &path, error))?;
        durable::set_mode(&file, &path, 0o444)?;
        durable::sync(&file, &path)?;
        let record = ImageRecord {
            name: name.clone(),
            owner,
            arch,
            id: sparse::content_id(&file, &path)?,
            size: Bytes(size),
            allocated: sparse::allocated(&file, &path)?,
            created_at: Timestamp::now(),
            source: source.to_owned(),
            config,
        };
        let layout = store.layout();
        let object = layout.object(&record.id);
        // No record names it yet.
        let _pin = store.pin_objects(vec![Shared::Image(record.id.clone())]);
        staged.rename_if_new(&object)?;
        durable::sync_parent(&object)?;
        // The record is what counts; the link is for people and is corrected by the next commit of that name.
        store.images().relink(&record)?;
        let path = layout.image_record(record.owner.as_ref(), name, arch);
        durable::replace(&path, &record::encode(FORMAT, &record), 0o600)?;
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELEASED: [&str; 3] = [
        include_str!("../tests/golden/image-1.json"),
        include_str!("../tests/golden/image-2.json"),
        include_str!("../tests/golden/image-3.json"),
    ];

    #[test]
    fn records_of_every_released_version_are_read() {
        let read = |text: &str| record::decode::<ImageRecord>(FORMAT, text.as_bytes(), Path::new("golden"));
        let records: Vec<ImageRecord> = RELEASED.iter().map(|text| read(text).unwrap()).collect();
        assert_eq!(records[0].config, None);
        assert_eq!(records[1].config.as_ref().unwrap().env["PATH"], "/bin");
        assert_eq!(records[0].id, records[1].id);
        assert_eq!((&records[1].owner, &records[1].config), (&None, &records[2].config));
        assert_eq!(records[2].owner, Some("alice".parse().unwrap()));
        let written = String::from_utf8(record::encode(FORMAT, &records[2])).unwrap();
        assert_eq!(written, RELEASED[2], "the present version is written as it was");
    }

    #[test]
    fn the_name_of_a_file_tells_whose_image_it_is() {
        let read = |stem: &str| {
            layout::image_of_stem(stem)
                .map(|(owner, name, arch)| (owner.map(String::from), String::from(name), arch))
        };
        let minimal =
            |owner: Option<&str>| Some((owner.map(str::to_owned), "my-own".to_owned(), Arch::Arm64));
        assert_eq!(read("rootfs-my-own-arm64"), minimal(None));
        assert_eq!(read("rootfs-al-ice.my-own-arm64"), minimal(Some("al-ice")));
        for none in ["rootfs-a.b.c-arm64", "rootfs-.a-arm64", "rootfs-a.-arm64", "rootfs-a-mips", "a-arm64"] {
            assert_eq!(read(none), None, "{none}");
        }
    }
}
