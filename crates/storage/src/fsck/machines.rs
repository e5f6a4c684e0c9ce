//! Sandboxes and snapshots: their own files, and whether what they name is what lies below.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use types::{Bytes, SandboxId, StorageLayout};

use super::qcow2::Qcow2;
use super::repair::{Guard, Step};
use super::{Check, Finding, Repair, Severity, Subject};
use crate::error::{Error, ErrorKind, Result};
use crate::layout::{self, CONFIG_DRIVE, MANIFEST, MEM_SNAP};
use crate::manifest::{LayerFormat, LayerRef, Manifest, RamBase, RunState};
use crate::memory::MemoryImage;
use crate::references::{References, Shared};
use crate::sandbox_dir::SandboxDir;
use crate::store::Store;

/// Looks at a sandbox until nothing happens between two of them; more than this and it is left for another time.
const LOOKS: usize = 6;

/// A machine's directory, as it was at one moment.
pub(super) struct Machine<'a> {
    pub(super) subject: Subject,
    pub(super) dir: &'a Path,
    pub(super) manifest: &'a Manifest,
    pub(super) use_of: Use,
}

/// Who works with the files of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// A VMM has them open.
    Runs,
    /// Nobody, and somebody may at any time.
    Rests,
    /// Nobody ever writes them.
    Kept,
}

impl Store {
    /// About how much a check reads.
    pub(super) fn to_be_read(&self, references: &References) -> Result<Bytes> {
        let layout = self.layout();
        let occupied = |path: PathBuf| fs::metadata(path).map_or(0, |meta| meta.blocks().saturating_mul(512));
        let mut total = 0;
        for object in references.objects() {
            total += match object {
                Shared::Layer(layer) => occupied(layout.layer(&layer)),
                Shared::Base(ram) => occupied(layout.base(&ram)),
                Shared::Image(id) => occupied(layout.object(&id)),
                Shared::Kernel(_) | Shared::Template(_) => 0,
            };
        }
        for name in self.names_in(&layout.templates())? {
            total += occupied(layout.templates().join(name).join(layout::RAM_BASE));
        }
        for (namer, manifest) in &references.manifests {
            if manifest.state == RunState::Cold {
                let dir = match namer {
                    crate::references::Namer::Sandbox(id, _) => layout.sandbox(id),
                    crate::references::Namer::Snapshot(owner, name) => layout.snapshot(owner, name),
                };
                total += occupied(dir.join(MEM_SNAP));
            }
        }
        Ok(Bytes(total))
    }
}

impl Check<'_> {
    /// Every sandbox, and whether two have one name.
    pub(super) fn sandboxes(&mut self) -> Result<()> {
        let mut named: Vec<(String, SandboxId)> = Vec::new();
        for (id, _) in self.store.sandboxes()? {
            self.checked.sandboxes += 1;
            let dir = self.store.sandbox(&id);
            let findings = self.settled(&dir)?;
            self.findings.extend(findings);
            let Ok(manifest) = dir.manifest() else { continue };
            let name = format!("{}/{}", manifest.owner, manifest.name);
            if let Some((_, other)) = named.iter().find(|(taken, _)| *taken == name) {
                let what = format!("sandbox {other} of the same owner has this name, too");
                let way_out = format!("give one of them another: `bhatti edit {id} --name NAME`");
                let subject = Subject::Sandbox(id.clone(), Some(manifest.name.clone()));
                let path = dir.path().join(MANIFEST);
                self.findings.push(Finding::warning(subject, path, what).way_out(way_out));
            }
            named.push((name, id));
        }
        Ok(())
    }

    /// What two looks in a row found, between which nothing happened.
    fn settled(&mut self, dir: &SandboxDir) -> Result<Vec<Finding>> {
        let manifest = dir.path().join(MANIFEST);
        let bytes = || fs::read(&manifest).ok();
        let mut before = None;
        for _ in 0..LOOKS {
            let (seen, runs) = (bytes(), dir.is_locked().unwrap_or(false));
            let found = self.sandbox(dir, runs)?;
            let as_before = before.as_ref() == Some(&found);
            if found.is_empty() || !dir.path().exists() {
                return Ok(Vec::new());
            }
            let at_rest = self.company.alone && !runs;
            let harmless = found.iter().all(|finding| finding.severity == Severity::Note);
            if seen == bytes() && (as_before || at_rest || harmless) {
                return Ok(found);
            }
            before = Some(found);
        }
        let name = dir.manifest().ok().map(|manifest| manifest.name);
        let what = "it changes while it is looked at";
        let finding = Finding::note(Subject::Sandbox(dir.id().clone(), name), dir.path(), what);
        Ok(vec![finding.way_out("check again when it rests")])
    }

    fn sandbox(&self, dir: &SandboxDir, runs: bool) -> Result<Vec<Finding>> {
        let id = dir.id();
        let manifest = match dir.manifest() {
            Ok(manifest) => manifest,
            Err(error) => {
                let subject = Subject::Sandbox(id.clone(), None);
                let path = dir.path().join(MANIFEST);
                let mut finding = Finding::error(subject, &path, error.why());
                finding.way_out = error.hint().unwrap_or_default().to_owned();
                let unreadable =
                    matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Invalid | ErrorKind::NotFound);
                if runs {
                    finding.way_out = "its VMM runs: save what is in the guest first".to_owned();
                } else if (self.options.is_known)(id) {
                    finding.way_out = "the daemon still knows it: save what is in it now".to_owned();
                } else if unreadable {
                    finding.repair = Some(Repair(Step::Quarantine {
                        what: format!("sandbox-{id}"),
                        path: dir.path().to_owned(),
                        guard: Guard::Sandbox(id.clone()),
                    }));
                }
                return Ok(vec![finding]);
            }
        };
        let use_of = if runs { Use::Runs } else { Use::Rests };
        let subject = Subject::Sandbox(id.clone(), Some(manifest.name.clone()));
        let machine = Machine { subject, dir: dir.path(), manifest: &manifest, use_of };
        let mut found = self.machine(&machine)?;
        if manifest.state == RunState::Cold && !runs {
            let discard = format!("`bhatti start {} --discard-memory` boots it from its disk", manifest.name);
            self.memory(
                &machine,
                &discard,
                dir.open_memory(&manifest),
                dir.open_devices(&manifest).err(),
                &mut found,
            )?;
            if let Err(error) = dir.check_root(&manifest)
                && error.kind() == ErrorKind::Corrupt
            {
                found.push(Finding::told(Severity::Error, machine.subject.clone(), &error));
            }
        }
        found.extend(self.second_name(id, &machine));
        Ok(found)
    }

    /// Every snapshot.
    pub(super) fn snapshots(&mut self) -> Result<()> {
        for (owner, name, record) in self.store.snapshots().all()? {
            self.checked.snapshots += 1;
            let dir = self.store.layout().snapshot(&owner, &name);
            let called =
                if owner == types::Owner::admin() { name.to_string() } else { format!("{owner}/{name}") };
            let subject = Subject::Snapshot(called);
            let found = match record.and_then(|_| self.store.snapshots().open(&owner, &name)) {
                Ok(snapshot) => {
                    let manifest = &snapshot.record().sandbox;
                    let machine = Machine { subject, dir: &dir, manifest, use_of: Use::Kept };
                    let mut found = self.machine(&machine)?;
                    if manifest.memory.is_some() {
                        let delete =
                            format!("`bhatti snapshot delete {name}`; what was made from it is not touched");
                        let image = snapshot.open_memory().and_then(|image| {
                            image.ok_or_else(|| Error::new(ErrorKind::NotFound, "open", dir.join(MEM_SNAP)))
                        });
                        self.memory(&machine, &delete, image, snapshot.open_devices().err(), &mut found)?;
                    }
                    found
                }
                Err(error) => {
                    let mut finding = Finding::told(Severity::Error, subject, &error);
                    finding.path = dir.join(MANIFEST);
                    if error.kind() != ErrorKind::TooNew {
                        finding.repair = Some(Repair(Step::Quarantine {
                            what: format!("snapshot-{owner}-{name}"),
                            path: dir.clone(),
                            guard: Guard::Snapshot,
                        }));
                    }
                    vec![finding]
                }
            };
            // It was deleted while it was looked at.
            if dir.exists() {
                self.findings.extend(found);
            }
        }
        Ok(())
    }

    /// What sandboxes and snapshots have in common.
    fn machine(&self, machine: &Machine<'_>) -> Result<Vec<Finding>> {
        self.watch.begin(machine.subject.to_string())?;
        let mut found = Vec::new();
        config_drive(machine, &mut found);
        self.root_disk(machine, &mut found);
        self.chain(machine, &mut found);
        self.ram_base(machine, &mut found);
        self.kernel_of(machine, &mut found);
        self.volumes_of(machine, &mut found);
        Ok(found)
    }

    fn root_disk(&self, machine: &Machine<'_>, found: &mut Vec<Finding>) {
        let manifest = machine.manifest;
        let layout = manifest.layout;
        let named = machine.dir.join(layout::root_disk(layout));
        // A disk whose freezing was cut short has its name still to come.
        let waiting = manifest.layers.first().map(|layer| machine.dir.join(layout::next_top(&layer.id)));
        let path = waiting.filter(|waiting| waiting.exists()).unwrap_or(named);
        let broken = |what: String| {
            let way_out = "restore the file from a backup";
            Finding::error(machine.subject.clone(), &path, what).way_out(way_out)
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) => return found.push(broken(missing_or("its root disk", &error))),
        };
        let unreadable = |error: std::io::Error| broken(format!("its root disk cannot be read: {error}"));
        let (size, empty) = if layout == StorageLayout::Reflink {
            match file.metadata() {
                Ok(meta) => (meta.len(), false),
                Err(error) => return found.push(unreadable(error)),
            }
        } else {
            let header = match Qcow2::read(&file) {
                Ok(Ok(header)) => header,
                Ok(Err(what)) => return found.push(broken(format!("its root disk is damaged: {what}"))),
                Err(error) => return found.push(unreadable(error)),
            };
            if let Some(finding) = wrong_backing(machine, &path, &header, backing(manifest, 0)) {
                found.push(finding);
            }
            let mut empty = false;
            if machine.use_of != Use::Runs {
                match header.damage(&file).and_then(|damage| Ok((damage, header.is_empty(&file)?))) {
                    Ok((Some(what), _)) => {
                        found.push(broken(format!("its root disk is damaged: {what}")));
                        return;
                    }
                    Ok((None, is_empty)) => empty = is_empty,
                    Err(error) => return found.push(unreadable(error)),
                }
            }
            (header.size, empty)
        };
        let kept_in_layers = machine.use_of == Use::Kept && layout == StorageLayout::Overlay;
        if kept_in_layers && !empty {
            found.push(broken("somebody wrote to its root disk, which is kept".to_owned()));
        }
        self.root_size(machine, &path, size, found);
        if machine.use_of == Use::Rests
            && layout == StorageLayout::Overlay
            && !empty
            && let Some(check) = self.options.check_overlay
            && let Some(what) = check(&path)
        {
            found.push(broken(format!("its root disk is damaged: {what}")));
        }
    }

    fn root_size(&self, machine: &Machine<'_>, path: &Path, size: u64, found: &mut Vec<Finding>) {
        let manifest = machine.manifest;
        let wanted = manifest.disk_size_mib.bytes().0;
        let image = fs::metadata(self.store.layout().object(&manifest.image.id)).map_or(0, |meta| meta.len());
        // A VMM may be growing it just now; one that boots is grown at its next start.
        let may_grow = machine.use_of == Use::Runs || manifest.state != RunState::Cold;
        if size < image || (size < wanted && !may_grow) {
            let what = format!("its root disk has {} and should have {}", Bytes(size), Bytes(wanted));
            let finding = Finding::error(machine.subject.clone(), path, what);
            found.push(finding.way_out("restore the file from a backup"));
        }
    }

    /// Whether each layer lies on the one that the manifest says.
    fn chain(&self, machine: &Machine<'_>, found: &mut Vec<Finding>) {
        for (at, layer) in machine.manifest.layers.iter().enumerate() {
            if layer.format == LayerFormat::Raw {
                continue;
            }
            let path = self.store.layout().layer(layer);
            // That it is missing or no disk at all is told of the layer itself.
            let Ok(file) = File::open(&path) else { continue };
            if let Ok(Ok(header)) = Qcow2::read(&file) {
                found.extend(wrong_backing(machine, &path, &header, backing(machine.manifest, at + 1)));
            }
        }
    }

    fn ram_base(&self, machine: &Machine<'_>, found: &mut Vec<Finding>) {
        let manifest = machine.manifest;
        let Err(error) = self.store.ram_base(&manifest.ram_base, manifest.memory_mib) else { return };
        // A zero base is told of itself; a base that is gone, as a whole, of the object.
        let mismatch = match &manifest.ram_base {
            RamBase::Zero => false,
            RamBase::Own { ram } => self.store.layout().base(ram).exists(),
            RamBase::Template { key, .. } => matches!(self.store.templates().get(key), Ok(Some(_))),
        };
        if mismatch {
            let severity = if needs_memory(machine) { Severity::Error } else { Severity::Warning };
            let finding = Finding::told(severity, machine.subject.clone(), &error);
            found.push(finding.way_out(memory_is_lost(manifest)));
        }
    }

    fn kernel_of(&self, machine: &Machine<'_>, found: &mut Vec<Finding>) {
        let Err(error) = self.store.kernel().by_id(&machine.manifest.kernel) else { return };
        if error.kind() == ErrorKind::NotFound && !needs_memory(machine) {
            let what = "the kernel it was created with is gone; it boots today's";
            found.push(Finding::note(machine.subject.clone(), error.path(), what));
        }
    }

    /// The memory image and the device state of a machine that sleeps.
    fn memory(
        &self,
        machine: &Machine<'_>,
        way_out: &str,
        image: Result<MemoryImage>,
        devices: Option<Error>,
        found: &mut Vec<Finding>,
    ) -> Result<()> {
        let mut damaged = |error: &Error| {
            let finding = Finding::told(Severity::Error, machine.subject.clone(), error);
            found.push(finding.way_out(way_out));
        };
        match image {
            Ok(image) => match self.watch.memory(&image) {
                Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
                Err(error) => damaged(&error),
                Ok(()) => {}
            },
            Err(error) => damaged(&error),
        }
        if let Some(error) = devices {
            damaged(&error);
        }
        Ok(())
    }

    /// A raw root disk that was frozen and kept its old name, too: the freeze was cut short at its very end.
    fn second_name(&self, id: &SandboxId, machine: &Machine<'_>) -> Option<Finding> {
        let manifest = machine.manifest;
        let path = machine.dir.join(layout::root_disk(StorageLayout::Reflink));
        if manifest.layout == StorageLayout::Reflink || !path.exists() {
            return None;
        }
        let same = |layer: &LayerRef| {
            let inode = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
            inode(&self.store.layout().layer(layer)) == inode(&path)
        };
        let finding = if manifest.layers.iter().any(same) {
            let what = "its root disk is a layer by now, and this is a second name of it";
            let mut finding = Finding::warning(machine.subject.clone(), &path, what);
            if self.company.alone {
                finding = finding.repair(Step::SecondName { sandbox: id.clone(), path: path.clone() });
            }
            finding
        } else {
            Finding::note(
                machine.subject.clone(),
                &path,
                "its root disk is another file; nobody reads this one",
            )
        };
        Some(finding)
    }
}

/// What the file `at` steps below the top must name: 0 asks for the top itself.
fn backing(manifest: &Manifest, at: usize) -> PathBuf {
    let below = match manifest.layers.get(at) {
        Some(layer) => layout::layer_below_root(layer),
        None => layout::object_below_root(&manifest.image.id),
    };
    layout::from_machine_dir(&below)
}

fn wrong_backing(machine: &Machine<'_>, path: &Path, header: &Qcow2, wanted: PathBuf) -> Option<Finding> {
    if header.backing.as_deref().map(Path::new) == Some(&wanted) {
        return None;
    }
    let named = header.backing.as_deref().unwrap_or("nothing");
    let what = format!("it lies on {named}, and the manifest says {}", wanted.display());
    let way_out = "restore the file or the manifest from a backup: they are of different moments";
    Some(Finding::error(machine.subject.clone(), path, what).way_out(way_out))
}

fn config_drive(machine: &Machine<'_>, found: &mut Vec<Finding>) {
    const SUPERBLOCK: u64 = 1024;
    let path = machine.dir.join(CONFIG_DRIVE);
    // `s_blocks_count_lo`, `s_log_block_size` and `s_magic` (Documentation/filesystems/ext4 of Linux, super.rst).
    let mut block = [0; 64];
    let read = File::open(&path).and_then(|file| {
        file.read_exact_at(&mut block, SUPERBLOCK)?;
        file.metadata()
    });
    let number = |at: usize| block[at..at + 4].iter().rev().fold(0, |all, &byte| all << 8 | u64::from(byte));
    let what = match read {
        Ok(_) if block[56..58] != [0x53, 0xef] => "its config drive is no ext4 filesystem".to_owned(),
        Ok(meta) if meta.len() < number(4) << (10 + number(24).min(6)) => {
            "its config drive is cut short".to_owned()
        }
        Ok(_) => return,
        Err(error) => missing_or("its config drive", &error),
    };
    let way_out = "its environment, secrets and init are lost with it; restore the file from a backup";
    found.push(Finding::error(machine.subject.clone(), &path, what).way_out(way_out));
}

fn missing_or(what: &str, error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => format!("{what} is missing"),
        std::io::ErrorKind::UnexpectedEof => format!("{what} is cut short"),
        _ => format!("{what} cannot be read: {error}"),
    }
}

/// Whether it goes on from its memory, and does not boot.
fn needs_memory(machine: &Machine<'_>) -> bool {
    machine.use_of == Use::Runs || machine.manifest.state == RunState::Cold
}

fn memory_is_lost(manifest: &Manifest) -> String {
    format!(
        "restore it from a backup; `bhatti start {} --discard-memory` boots it from its disk",
        manifest.name
    )
}
