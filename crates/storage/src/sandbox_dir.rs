//! One sandbox's directory: its files, its locks, its commits.
//!
//! # Invariants
//! Whoever commits holds the sandbox's transition lock, which is not here: one task owns one sandbox. A memory image
//! counts only while the manifest on disk is cold and names it by its checksum.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use types::{ContentId, SandboxId, StorageLayout};

use crate::clone::{CloneReport, clone_file};
use crate::devices::{self, Packed, content_of};
use crate::durable::{self, Staged, StagedDir};
use crate::error::{Error, ErrorKind, Result};
use crate::fsck::qcow2::Qcow2;
use crate::image::ImageRecord;
use crate::layout::{self, MANIFEST, MEM_SNAP, VM_SNAP};
use crate::lock;
use crate::manifest::{Manifest, MemoryRecord, RunState};
use crate::memory::{self, MemoryHeader, MemoryImage, PageSource, StagedMemory};
use crate::sparse;
use crate::store::Store;
use crate::template::TemplateRecord;

/// A sandbox being created; removed when dropped.
#[derive(Debug)]
pub struct StagedSandbox {
    pub(crate) store: Store,
    pub(crate) staged: StagedDir,
    pub(crate) id: SandboxId,
}

impl StagedSandbox {
    /// Its staging directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.staged.path()
    }

    /// Where the config drive must be built.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.dir().join(layout::CONFIG_DRIVE)
    }

    /// Where the root disk is, once cloned.
    #[must_use]
    pub fn root_disk_path(&self, layout: StorageLayout) -> PathBuf {
        self.dir().join(layout::root_disk(layout))
    }

    /// The lock for a VMM that is started here before the sandbox has its name. It lies on the directory and so goes
    /// with it; who made the directory and the VMM hold it together.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn lock_machine(&self) -> Result<File> {
        self.staged.lock()
    }

    /// Clones the template's root disk.
    ///
    /// # Errors
    /// `NoSpace`, or what the system says.
    pub fn clone_root_from_template(&self, template: &TemplateRecord) -> Result<CloneReport> {
        let from = self.store.templates().dir(&template.key).join(template.root_disk());
        clone_file(&from, &self.root_disk_path(template.spec.layout))
    }

    /// Clones an image as a raw root disk (layout reflink, cold boot).
    ///
    /// # Errors
    /// `NoSpace`, or what the system says.
    pub fn clone_root_from_image(&self, image: &ImageRecord) -> Result<CloneReport> {
        clone_file(&self.store.images().object_path(&image.id), &self.root_disk_path(StorageLayout::Reflink))
    }

    /// Makes it last: files, manifest, then the name.
    ///
    /// # Errors
    /// `Invalid` when the manifest is another sandbox's or a file is missing, `Exists`, `NoSpace`.
    pub fn commit(self, manifest: &Manifest) -> Result<SandboxDir> {
        let Self { store, staged, id } = self;
        let invalid =
            |what: &str| Error::new(ErrorKind::Invalid, "commit sandbox", staged.path()).because(what);
        if manifest.id != id {
            return Err(invalid("the manifest is another sandbox's"));
        }
        let path = staged.path().join(MANIFEST);
        manifest.check(&path)?;
        if manifest.memory.is_some() {
            return Err(invalid("a new sandbox has no memory image yet"));
        }
        let mut files = Vec::new();
        for name in [layout::root_disk(manifest.layout), layout::CONFIG_DRIVE] {
            let path = staged.path().join(name);
            let file = File::open(&path)
                .map_err(|error| invalid("its root disk or config drive is missing").caused_by(error))?;
            durable::set_mode(&file, &path, 0o600)?;
            files.push(file);
        }
        files.push(durable::new_file(&path, &manifest.encode(), 0o600)?);
        staged.commit(&files.iter().collect::<Vec<_>>(), &store.layout().sandbox(&id))?;
        Ok(store.sandbox(&id))
    }
}

/// A sandbox's directory.
#[derive(Debug, Clone)]
pub struct SandboxDir {
    pub(crate) id: SandboxId,
    pub(crate) path: PathBuf,
}

impl SandboxDir {
    /// The sandbox.
    #[must_use]
    pub fn id(&self) -> &SandboxId {
        &self.id
    }

    /// The directory: the working directory of its VMM.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The manifest as it is on disk.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `TooNew`.
    pub fn manifest(&self) -> Result<Manifest> {
        self.manifest_bytes().map(|(manifest, _)| manifest)
    }

    pub(crate) fn manifest_bytes(&self) -> Result<(Manifest, Vec<u8>)> {
        let path = self.path.join(MANIFEST);
        let named = |error: Error| match error.kind() {
            ErrorKind::Corrupt => error
                .because(format!("the manifest of sandbox {} is damaged", self.id))
                .hint_to("restore the file, or move the sandbox into quarantine with `bhatti fsck --repair`"),
            _ => error,
        };
        let bytes = fs::read(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::new(ErrorKind::NotFound, "open sandbox", self.id.as_str())
                .because("there is no manifest of it"),
            _ => Error::io("read", &path, error),
        })?;
        let manifest = Manifest::decode(&bytes, &path).map_err(named)?;
        if manifest.id != self.id {
            return Err(named(Error::new(ErrorKind::Corrupt, "read", &path)));
        }
        Ok((manifest, bytes))
    }

    /// Replaces the manifest, durably. When the last step fails the old one is put back.
    ///
    /// # Errors
    /// `Invalid` when it is another sandbox's, contradicts itself, goes back in generation or turns cold, which only
    /// `commit_cold` may; `Undecided`; `NoSpace`.
    pub fn commit(&self, manifest: &Manifest) -> Result<()> {
        let (before, bytes) = self.manifest_bytes()?;
        self.check_successor(&before, manifest)?;
        if manifest.memory != before.memory && manifest.memory.is_some() {
            return Err(self.invalid("only the commit of a stop may name a memory image"));
        }
        let staged = self.stage_manifest(manifest)?;
        durable::sync(staged.file(), staged.path())?;
        self.put_manifest(staged, &bytes)
    }

    fn invalid(&self, what: &str) -> Error {
        Error::new(ErrorKind::Invalid, "commit manifest of", self.id.as_str()).because(what)
    }

    fn check_successor(&self, before: &Manifest, manifest: &Manifest) -> Result<()> {
        manifest.check(&self.path.join(MANIFEST))?;
        if manifest.id != self.id {
            return Err(self.invalid("it is another sandbox's"));
        }
        if manifest.generation < before.generation {
            return Err(self.invalid(&format!(
                "generation {} is older than the committed {}",
                manifest.generation, before.generation
            )));
        }
        Ok(())
    }

    pub(crate) fn stage_manifest(&self, manifest: &Manifest) -> Result<Staged> {
        let staged = Staged::create(self.path.join(layout::MANIFEST_NEW), 0o600)?;
        durable::write_at(staged.file(), staged.path(), 0, &manifest.encode())?;
        Ok(staged)
    }

    /// The commit point of every transition. If it cannot be confirmed, `before` is put back, so that what a crash
    /// would find and what the caller is told are the same; if that fails too, nobody knows.
    fn put_manifest(&self, staged: Staged, before: &[u8]) -> Result<()> {
        let target = self.path.join(MANIFEST);
        staged.rename(&target)?;
        let Err(error) = durable::sync_dir(&self.path) else { return Ok(()) };
        match durable::replace(&target, before, 0o600) {
            Ok(()) => Err(error),
            Err(_) => Err(error
                .of_kind(ErrorKind::Undecided)
                .because("the manifest could be neither committed nor taken back")
                .hint_to("look at the disk's health; the sandbox stays paused")),
        }
    }

    /// The root disk's file.
    #[must_use]
    pub fn root_disk_path(&self, layout: StorageLayout) -> PathBuf {
        self.path.join(layout::root_disk(layout))
    }

    /// Makes durable what the guest has written to its root disk so far.
    ///
    /// # Errors
    /// What the system says.
    pub fn sync_root(&self, manifest: &Manifest) -> Result<()> {
        let path = self.root_disk_path(manifest.layout);
        let file = File::open(&path).map_err(|error| Error::io("open", &path, error))?;
        durable::sync(&file, &path)
    }

    /// Locks the sandbox for a VMM, which inherits the file and so holds the lock itself.
    ///
    /// # Errors
    /// `Busy` when a VMM has it, `NotFound`.
    pub fn lock_machine(&self) -> Result<File> {
        let lock = lock::directory(&self.path).map_err(|error| match error.kind() {
            ErrorKind::Busy => self.busy(),
            _ => error,
        })?;
        // A VMM that was started by an earlier release holds its root disk instead.
        if self.root_disk_is_locked()? { Err(self.busy()) } else { Ok(lock) }
    }

    fn busy(&self) -> Error {
        Error::new(ErrorKind::Busy, "lock", &self.path)
            .because("a virtual machine has its disk open")
            .hint_to("stop that machine first; `bhatti doctor` lists those left over")
    }

    fn root_disk_is_locked(&self) -> Result<bool> {
        for layout in [StorageLayout::Overlay, StorageLayout::Reflink] {
            if lock::is_held(&self.path.join(layout::root_disk(layout)))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether some process has the machine's lock.
    ///
    /// # Errors
    /// When the directory cannot be opened.
    pub fn is_locked(&self) -> Result<bool> {
        Ok(lock::is_held(&self.path)? || self.root_disk_is_locked()?)
    }

    /// Removes the sockets and the room that an earlier VMM left.
    ///
    /// # Errors
    /// What the system says.
    pub fn clear_sockets(&self) -> Result<()> {
        for name in [layout::QMP_SOCKET, layout::AGENT_SOCKET] {
            durable::remove_if_there(&self.path.join(name))?;
        }
        durable::remove_any(&self.path.join(layout::VMM_ROOM))
    }

    /// The last bytes that the VMM wrote to its log, at most `max`; empty when there is none.
    #[must_use]
    pub fn vmm_log_tail(&self, max: usize) -> String {
        let read = || -> std::io::Result<Vec<u8>> {
            let file = File::open(self.path.join(layout::VMM_LOG))?;
            let len = file.metadata()?.len();
            let kept = usize::try_from(len).map_or(max, |len| len.min(max));
            let mut tail = vec![0; kept];
            file.read_exact_at(&mut tail, len - sparse::bytes(kept))?;
            Ok(tail)
        };
        read().map(|tail| String::from_utf8_lossy(&tail).into_owned()).unwrap_or_default()
    }

    /// Writes the private pages of a paused guest under a staging name. Nothing is synced yet.
    ///
    /// # Errors
    /// `NoSpace`, or what the source or the system says.
    pub fn stage_memory(
        &self,
        source: &dyn PageSource,
        header: MemoryHeader,
        level: i32,
    ) -> Result<StagedMemory> {
        memory::write(Staged::create(self.path.join(layout::MEM_SNAP_NEW), 0o600)?, source, header, level)
    }

    /// Where the VMM must write its device state; an earlier attempt's is removed.
    ///
    /// # Errors
    /// What the system says.
    pub fn stage_devices(&self) -> Result<PathBuf> {
        let path = self.path.join(layout::VM_SNAP_NEW);
        durable::remove_if_there(&path)?;
        // Made here so that it is private from its first byte; the VMM truncates it.
        durable::new_file(&path, &[], 0o600)?;
        Ok(path)
    }

    /// Removes a device state that nothing is going to take.
    ///
    /// # Errors
    /// What the system says.
    pub fn drop_devices(&self) -> Result<()> {
        durable::remove_if_there(&self.path.join(layout::VM_SNAP_NEW)).map(drop)
    }

    /// The commit of a stop: memory and device state become part of the manifest's generation. `manifest` is the one to
    /// be committed but for `state` and `memory`, which are set here. Returns it as committed.
    ///
    /// # Errors
    /// `Invalid` when the parts do not belong together, `NoSpace`. Whatever the kind but `Undecided`, the sandbox is as
    /// before and the guest may resume.
    pub fn commit_cold(&self, memory: StagedMemory, manifest: Manifest, detached: bool) -> Result<Manifest> {
        let vm = devices::pack(&self.path.join(layout::VM_SNAP_NEW))?;
        let record = memory_record(&memory, &manifest, &vm, detached)?;
        // The VMM has flushed it and stands still, and nobody else may write it.
        let root_tables_blake3 = match manifest.layout {
            StorageLayout::Overlay => tables_of(&self.root_disk_path(manifest.layout))?,
            StorageLayout::Reflink => None,
        };
        let record = MemoryRecord { root_tables_blake3, ..record };
        let mut vm = vm.staged;
        let manifest = Manifest { state: RunState::Cold, memory: Some(record), ..manifest };
        let (before, before_bytes) = self.manifest_bytes()?;
        self.check_successor(&before, &manifest)?;

        if before.state == RunState::Cold {
            return Err(self.invalid("it sleeps already, and its memory image still counts"));
        }

        let new_manifest = self.stage_manifest(&manifest)?;
        let mut mem = memory.staged;
        mem.name_uncounted(&self.path.join(MEM_SNAP))?;
        vm.name_uncounted(&self.path.join(VM_SNAP))?;
        durable::sync_with_dir(&[mem.file(), vm.file(), new_manifest.file()], &self.path)?;
        let put = self.put_manifest(new_manifest, &before_bytes);
        // When nobody knows which manifest counts, the files that one of them names must stay.
        if put.as_ref().map_or_else(|error| error.kind() == ErrorKind::Undecided, |()| true) {
            mem.keep();
            vm.keep();
        }
        put.map(|()| manifest)
    }

    fn remove_memory(&self) -> Result<()> {
        durable::remove_if_there(&self.path.join(MEM_SNAP))?;
        durable::remove_if_there(&self.path.join(VM_SNAP)).map(drop)
    }

    fn cold_record<'a>(&self, manifest: &'a Manifest) -> Result<&'a MemoryRecord> {
        manifest.memory.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Invalid, "wake", self.id.as_str())
                .because("its manifest names no memory image")
        })
    }

    /// The memory image of a cold manifest, its header verified.
    ///
    /// # Errors
    /// `Corrupt` when it is not the one that the manifest names, with the way out.
    pub fn open_memory(&self, manifest: &Manifest) -> Result<MemoryImage> {
        let record = self.cold_record(manifest)?;
        open_memory_of(&self.path, manifest, record, named(manifest))
    }

    /// The device state of a cold manifest, verified, to be handed to a VMM.
    ///
    /// # Errors
    /// `Corrupt` when it is not the one that the manifest names, with the way out.
    pub fn open_devices(&self, manifest: &Manifest) -> Result<File> {
        open_devices_of(&self.path, self.cold_record(manifest)?, &named(manifest))
    }

    /// Whether the root disk has the header and the tables with which it fell asleep: memory over blocks that lie
    /// elsewhere would be memory over another disk.
    ///
    /// # Errors
    /// `Corrupt` when it has not.
    pub fn check_root(&self, manifest: &Manifest) -> Result<()> {
        let Some(known) = self.cold_record(manifest)?.root_tables_blake3.as_ref() else { return Ok(()) };
        let path = self.root_disk_path(manifest.layout);
        match tables_of(&path)? {
            Some(now) if now == *known => Ok(()),
            _ => Err(Error::new(ErrorKind::Corrupt, "read", &path)
                .because(format!(
                    "the root disk of sandbox {} is damaged: its header or tables are not those with which it fell asleep",
                    manifest.name
                ))
                .hint_to("restore the file from a backup")),
        }
    }

    /// Gives up the memory image: commits the next generation as off, then removes the files.
    ///
    /// # Errors
    /// What the system says; the memory image is then still valid.
    pub fn discard_memory(&self, manifest: Manifest) -> Result<Manifest> {
        let manifest = manifest.into_off();
        self.commit(&manifest)?;
        // What is left of them is what `reconcile` removes.
        let _ = self.remove_memory();
        Ok(manifest)
    }

    /// Removes memory files that a committed manifest has consumed.
    ///
    /// # Errors
    /// `Invalid` while the manifest on disk is cold.
    pub fn drop_consumed_memory(&self) -> Result<()> {
        if self.manifest()?.state == RunState::Cold {
            return Err(Error::new(ErrorKind::Invalid, "remove memory of", self.id.as_str())
                .because("it is what the sandbox will wake from"));
        }
        self.remove_memory()
    }

    /// Takes the sandbox's name away, durably, whether or not a VMM has it: it is destroyed from here on, and whoever dies
    /// before the rest is gone leaves what the next start ends and removes.
    ///
    /// # Errors
    /// `NotFound`, or what the system says; the sandbox is then as before.
    pub fn take_away(&self) -> Result<DepartedSandbox> {
        let path = durable::take_away_lasting(&self.path)?;
        Ok(DepartedSandbox(Self { id: self.id.clone(), path }))
    }

    /// Takes a sandbox without a VMM away for good.
    ///
    /// # Errors
    /// `Busy` while a VMM has its disk, `NotFound`.
    pub fn destroy(self) -> Result<()> {
        let _lock = match self.lock_machine() {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            lock => Some(lock?),
        };
        durable::remove_named_dir(&self.path)
    }
}

/// What is left of a sandbox that was destroyed.
#[derive(Debug)]
#[must_use = "it occupies the disk until it is removed"]
pub struct DepartedSandbox(SandboxDir);

impl DepartedSandbox {
    /// Removes it.
    ///
    /// # Errors
    /// `Busy` while a VMM has its disk, or what the system says. The next start removes what stays.
    pub fn remove(self) -> Result<()> {
        let _lock = self.0.lock_machine()?;
        durable::remove_tree(&self.0.path)
    }
}

/// The checksum of an overlay's header and tables; `None` of a file that is no whole overlay, which no VMM opens either.
pub(crate) fn tables_of(path: &Path) -> Result<Option<ContentId>> {
    let fail = |error| Error::io("read", path, error);
    let file = File::open(path).map_err(fail)?;
    let Ok(header) = Qcow2::read(&file).map_err(fail)? else { return Ok(None) };
    let hash = header.tables_blake3(&file).map_err(fail)?.ok();
    Ok(hash.map(|hash| ContentId::from_hash(hash.as_bytes())))
}

/// What a manifest says of a memory image and a device state that were just written; both are read again.
pub(crate) fn memory_record(
    memory: &StagedMemory,
    manifest: &Manifest,
    devices: &Packed,
    detached: bool,
) -> Result<MemoryRecord> {
    let path = memory.staged.path();
    let invalid = |what: &str| Error::new(ErrorKind::Invalid, "commit memory", path).because(what);
    if memory.header.generation != manifest.generation || memory.header.base != manifest.ram_base.id() {
        return Err(invalid("the memory image is of another generation or over another base"));
    }
    let (vm_blake3, vm_bytes) = content_of(devices.staged.file(), devices.staged.path())?;
    let written = MemoryImage::open(path, None)?;
    if *written.header_blake3() != memory.header_blake3 || written.memory() != manifest.memory_mib.bytes() {
        return Err(invalid("the memory image is not the one that was written for it"));
    }
    Ok(MemoryRecord {
        mem_header_blake3: memory.header_blake3.clone(),
        mem_content_bytes: memory.content,
        vm_blake3,
        vm_bytes,
        vm_unpacked_bytes: Some(devices.unpacked),
        root_tables_blake3: None,
        detached,
    })
}

/// Whose memory it is, and the way out when it is damaged.
type Named = (String, String);

pub(crate) fn open_memory_of(
    dir: &Path,
    manifest: &Manifest,
    record: &MemoryRecord,
    owner: Named,
) -> Result<MemoryImage> {
    let path = dir.join(MEM_SNAP);
    let image = MemoryImage::open(&path, Some(owner.clone()))?;
    let same = *image.header_blake3() == record.mem_header_blake3
        && image.generation() == manifest.generation
        && image.base() == manifest.ram_base.id()
        && image.memory() == manifest.memory_mib.bytes();
    match same {
        true => Ok(image),
        false => Err(damaged(&path, &owner, "it belongs to another generation or another sandbox")),
    }
}

pub(crate) fn open_devices_of(dir: &Path, record: &MemoryRecord, owner: &Named) -> Result<File> {
    let path = dir.join(VM_SNAP);
    let file = File::open(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => damaged(&path, owner, "it is missing"),
        _ => Error::io("open", &path, error),
    })?;
    if content_of(&file, &path)? != (record.vm_blake3.clone(), record.vm_bytes) {
        return Err(damaged(&path, owner, "its checksum does not match"));
    }
    match record.vm_unpacked_bytes {
        // An error of the disk is no damage: it may be gone at the next try.
        Some(unpacked) => devices::unpack(file, unpacked).map_err(|error| match error.raw_os_error() {
            Some(_) => Error::io("read", &path, error),
            None => damaged(&path, owner, "it cannot be unpacked").caused_by(error),
        }),
        // Stored before device state was packed.
        None => Ok(file),
    }
}

fn named(manifest: &Manifest) -> Named {
    (
        format!("sandbox {}", manifest.name),
        format!("`bhatti start {} --discard-memory` boots it from its disk", manifest.name),
    )
}

fn damaged(path: &Path, (name, way_out): &Named, what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, "read", path)
        .because(format!("the memory image of {name} is damaged: {what}"))
        .hint_to(way_out.clone())
}
