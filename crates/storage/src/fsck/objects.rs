//! What is shared: images, kernels, templates, layers and bases, each against the checksum in its name or its record.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use types::{Bytes, ContentId, LayerId, Mebibytes, StorageLayout, Timestamp};

use super::qcow2::Qcow2;
use super::repair::{Guard, Step};
use super::{Check, Finding, Repair, Severity, Subject};
use crate::error::{Error, ErrorKind, Result};
use crate::image::ImageRecord;
use crate::layout::{self, INITRAMFS, RAM_BASE, VM_SNAP, VMLINUZ};
use crate::manifest::{LayerFormat, LayerRef, RunState};
use crate::references::Shared;
use crate::template::TemplateRecord;

const RESTORE: &str = "restore the file from a backup";

impl Check<'_> {
    /// Images: records, names and contents.
    pub(super) fn images(&mut self) -> Result<()> {
        let images = self.store.layout().images();
        let mut contents: BTreeSet<ContentId> = self.named(|object| match object {
            Shared::Image(id) => Some(id.clone()),
            _ => None,
        });
        for (path, record) in self.store.images().records()? {
            match record {
                Ok(record) => {
                    contents.insert(record.id.clone());
                    self.image_name(&record);
                }
                Err(_) if !path.exists() => {}
                Err(error) => {
                    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                    let mut finding = Finding::told(Severity::Error, Subject::Image(name), &error);
                    finding.way_out = "`bhatti setup --force` makes `minimal` anew".to_owned();
                    finding.repair = self.record_from_link(&path, error.kind());
                    self.findings.push(finding);
                }
            }
        }
        for name in self.store.names_in(&images)? {
            let record = images.join(&name).with_extension("json");
            if name.starts_with("rootfs-") && name.ends_with(".ext4") && !record.exists() {
                let what = "this name of an image has no record, so no sandbox can be made of it";
                let subject = Subject::Image(name.trim_end_matches(".ext4").to_owned());
                let mut finding = Finding::warning(subject, images.join(&name), what);
                finding.repair = self.record_from_link(&record, ErrorKind::NotFound);
                finding.way_out = "build or pull the image again, or remove the name".to_owned();
                self.findings.push(finding);
            }
        }
        for id in contents {
            self.checked.images += 1;
            self.image(&id)?;
        }
        Ok(())
    }

    fn image(&mut self, id: &ContentId) -> Result<()> {
        let path = self.store.layout().object(id);
        let object = Shared::Image(id.clone());
        let subject = Subject::Image(id.to_string());
        let needed_by = self.needed_by(&object);
        self.watch.begin(format!("image {}", id.short()))?;
        let what = match self.watch.content(&path) {
            Ok((found, _)) if found == *id => {
                self.read_only(&subject, &path);
                return Ok(());
            }
            Ok(_) => "its content is not what its name says".to_owned(),
            Err(error) => unreadable(error)?,
        };
        let mut finding = Finding::error(subject, &path, what).needed_by(needed_by);
        finding.way_out = format!("restore the file from a backup (`b3sum` must print {id})");
        if finding.needed_by.is_empty() && path.exists() {
            // It would be taken for good when the image is built again.
            finding.way_out =
                "`bhatti setup --force` makes `minimal` anew, once the file is out of the way".to_owned();
            finding.repair = Some(Repair(Step::Quarantine {
                what: format!("image-{}", id.short()),
                path: path.clone(),
                guard: Guard::Object(object.clone()),
            }));
        }
        self.about(&object, finding)
    }

    /// The name for people is a second one of the content.
    fn image_name(&mut self, record: &ImageRecord) {
        let link = self.store.layout().image_link(record.owner.as_ref(), &record.name, record.arch);
        let object = self.store.layout().object(&record.id);
        let inode = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
        let Some(content) = inode(&object) else { return };
        if inode(&link) == Some(content) || same_record(self, record).is_none() {
            return;
        }
        let what = if link.symlink_metadata().is_ok() {
            "this name shows another content than its record says"
        } else {
            "the name for people is missing"
        };
        let called = match &record.owner {
            Some(owner) => format!("{owner}/{}", record.name),
            None => record.name.to_string(),
        };
        let repair = Step::Relink(Box::new(record.clone()));
        self.findings.push(Finding::warning(Subject::Image(called), link, what).repair(repair));
    }

    /// A damaged or missing record can be made again from the name that lies beside it.
    fn record_from_link(&self, record: &Path, kind: ErrorKind) -> Option<Repair> {
        let (owner, name, arch) = crate::layout::image_of_stem(record.file_stem()?.to_str()?)?;
        if !matches!(kind, ErrorKind::Corrupt | ErrorKind::NotFound) {
            return None;
        }
        let link = fs::metadata(self.store.layout().image_link(owner.as_ref(), &name, arch)).ok()?;
        let objects = self.store.layout().objects();
        let same = |id: &ContentId| {
            fs::metadata(self.store.layout().object(id))
                .is_ok_and(|meta| (meta.dev(), meta.ino()) == (link.dev(), link.ino()))
        };
        let names = self.store.names_in(&objects).ok()?;
        let id = names.iter().filter_map(|name| crate::gc::id_of(name, ".ext4")).find(same)?;
        Some(Repair(Step::RestoreRecord { record: record.to_owned(), owner, name, arch, id }))
    }

    /// Kernels that are current, or that something boots.
    pub(super) fn kernels(&mut self) -> Result<()> {
        let mut ids: BTreeSet<ContentId> = self.named(|object| match object {
            Shared::Kernel(id) => Some(id.clone()),
            _ => None,
        });
        let mut current = BTreeSet::new();
        for (path, record) in self.store.kernel().current()? {
            match record {
                Ok(record) => drop(current.insert(record.id)),
                Err(_) if !path.exists() => {}
                Err(error) => {
                    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                    let finding = Finding::told(Severity::Error, Subject::Kernel(name), &error);
                    self.findings.push(finding.way_out("`bhatti setup` makes it anew"));
                }
            }
        }
        ids.extend(current.iter().cloned());
        for id in ids {
            self.checked.kernels += 1;
            self.kernel(&id, current.contains(&id))?;
        }
        Ok(())
    }

    fn kernel(&mut self, id: &ContentId, current: bool) -> Result<()> {
        let dir = self.store.layout().kernel_dir(id);
        let object = Shared::Kernel(id.clone());
        let subject = Subject::Kernel(id.to_string());
        let needed_by = self.needed_by(&object);
        self.watch.begin(format!("kernel {}", id.short()))?;
        let (path, what) = match self.kernel_content(id, &dir) {
            Ok(None) => return Ok(()),
            Ok(Some(found)) => found,
            Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
            Err(error) => (error.path().to_owned(), error.why()),
        };
        // What is off boots today's kernel when its own is gone.
        let awake =
            |manifest: &crate::manifest::Manifest| manifest.kernel == *id && manifest.state != RunState::Off;
        let in_use = current || self.references.manifests.iter().any(|(_, manifest)| awake(manifest));
        if !in_use && !dir.exists() {
            return Ok(());
        }
        let severity = if in_use { Severity::Error } else { Severity::Warning };
        let mut finding = Finding::new(severity, subject, path, what).needed_by(needed_by);
        finding.way_out = "`bhatti setup --force` makes today's kernel anew; what sleeps over another needs its file from a backup".to_owned();
        if finding.needed_by.is_empty() && dir.exists() {
            finding.repair = Some(Repair(Step::Quarantine {
                what: format!("kernel-{}", id.short()),
                path: dir,
                guard: Guard::Object(object.clone()),
            }));
        }
        self.about(&object, finding)
    }

    /// What is wrong with a kernel, and with which file.
    fn kernel_content(&self, id: &ContentId, dir: &Path) -> Result<Option<(PathBuf, String)>> {
        let record = self.store.kernel().by_id(id)?;
        let mut hasher = blake3::Hasher::new();
        for name in [VMLINUZ, INITRAMFS] {
            let (content, len) = self.watch.content(&dir.join(name))?;
            hasher.update(&len.0.to_le_bytes());
            hasher.update(content.as_str().as_bytes());
        }
        let found = ContentId::from_hash(hasher.finalize().as_bytes());
        let damaged = found != *id || record.id != *id;
        Ok(damaged.then(|| (dir.to_owned(), "kernel or initramfs is not what its name says".to_owned())))
    }

    /// Templates: record, RAM base, device state, and what their root disks lie on.
    pub(super) fn templates(&mut self) -> Result<()> {
        for (key, record) in self.store.templates().list()? {
            self.checked.templates += 1;
            let dir = self.store.templates().dir(&key);
            self.watch.begin(format!("template {}", key.short()))?;
            let problem = match record {
                Ok(record) => self.template(&record, &dir)?,
                Err(error) => Some((error.kind(), error.path().to_owned(), error.why())),
            };
            if let Some((kind, path, what)) = problem {
                self.damaged_template(&key, kind, path, what)?;
            }
        }
        self.missing_templates()?;
        self.zero_bases()
    }

    fn damaged_template(
        &mut self,
        key: &ContentId,
        kind: ErrorKind,
        path: PathBuf,
        what: String,
    ) -> Result<()> {
        let object = Shared::Template(key.clone());
        let dir = self.store.templates().dir(key);
        let mut finding =
            Finding::error(Subject::Template(key.clone()), path, what).needed_by(self.needed_by(&object));
        if !finding.needed_by.is_empty() {
            finding.way_out =
                "restore it from a backup; a sandbox that sleeps over it boots with `bhatti start NAME --discard-memory`"
                    .to_owned();
        } else if kind != ErrorKind::TooNew && dir.exists() {
            finding.way_out = "the next create makes it anew, once it is out of the way".to_owned();
            finding.repair = Some(Repair(Step::Quarantine {
                what: format!("template-{}", key.short()),
                path: dir,
                guard: Guard::Object(object.clone()),
            }));
        }
        self.about(&object, finding)
    }

    /// What is wrong with a template, and with which file.
    fn template(&self, record: &TemplateRecord, dir: &Path) -> Result<Option<(ErrorKind, PathBuf, String)>> {
        let wrong = |path: PathBuf, what: &str| Ok(Some((ErrorKind::Corrupt, path, what.to_owned())));
        let ram = dir.join(RAM_BASE);
        match self.watch.base(&ram) {
            Ok((id, _)) if id == record.ram_base_id => {}
            Ok(_) => return wrong(ram, "its RAM base is not what was committed"),
            Err(error) => return Ok(Some((ErrorKind::Corrupt, ram, unreadable(error)?))),
        }
        let devices = dir.join(VM_SNAP);
        match self.watch.content(&devices) {
            Ok((id, _)) if id == record.vm_blake3 => {}
            Ok(_) => return wrong(devices, "its device state is not what was committed"),
            Err(error) => return Ok(Some((ErrorKind::Corrupt, devices, unreadable(error)?))),
        }
        let image = self.store.layout().object(&record.spec.image.id);
        let image_damaged = self.findings.iter().any(|finding| finding.path == image);
        if image_damaged || !image.exists() {
            return wrong(dir.to_owned(), "the image that it was made of is damaged or missing");
        }
        let root = dir.join(record.root_disk());
        let fail = |error| Error::io("read", &root, error);
        let file = File::open(&root).map_err(fail)?;
        let damage = if record.spec.layout == StorageLayout::Reflink {
            let len = |file: &Path| fs::metadata(file).map_or(0, |meta| meta.len());
            (len(&root) < len(&image)).then_some("its root disk is cut short")
        } else {
            match Qcow2::read(&file).map_err(fail)? {
                Err(what) => Some(what),
                Ok(header) => {
                    let below = layout::from_machine_dir(&layout::object_below_root(&record.spec.image.id));
                    if header.backing.as_deref().map(Path::new) == Some(&below) {
                        header.damage(&file).map_err(fail)?
                    } else {
                        Some("its root disk does not lie on its image")
                    }
                }
            }
        };
        match damage {
            Some(what) => wrong(root, what),
            None => Ok(None),
        }
    }

    /// Templates that something sleeps over and that are not there.
    fn missing_templates(&mut self) -> Result<()> {
        let named = self.named(|object| match object {
            Shared::Template(key) => Some(key.clone()),
            _ => None,
        });
        for key in named.into_iter().filter(|key| !self.store.templates().dir(key).exists()) {
            let object = Shared::Template(key.clone());
            let severity = self.severity_without(&object);
            let mut finding = Finding::new(
                severity,
                Subject::Template(key.clone()),
                self.store.templates().dir(&key),
                "it is missing",
            );
            finding.needed_by = self.needed_by(&object);
            finding.way_out = "restore it from a backup; a sandbox that sleeps over it boots with `bhatti start NAME --discard-memory`".to_owned();
            self.about(&object, finding)?;
        }
        Ok(())
    }

    fn zero_bases(&mut self) -> Result<()> {
        let dir = self.store.layout().zero();
        for name in self.store.names_in(&dir)? {
            let size = name.strip_suffix(".ram").and_then(|size| size.parse::<u64>().ok()).map(Mebibytes);
            let Some(size) = size.and_then(Mebibytes::checked_bytes) else { continue };
            let path = dir.join(&name);
            let len = fs::metadata(&path).map_or(0, |meta| meta.len());
            let zeros = match self.watch.base(&path) {
                Ok((_, data)) => data == Bytes(0),
                Err(error) => unreadable(error).map(|_| false)?,
            };
            if len != size.0 || !zeros {
                let what = "it is not zeros of the size in its name, and machines boot over it";
                let repair = Step::Quarantine {
                    what: format!("zero-{name}"),
                    path: path.clone(),
                    guard: Guard::Unused,
                };
                let finding = Finding::error(Subject::RamBase(name), path, what).repair(repair);
                self.findings.push(finding.way_out("it is made again, once it is out of the way"));
            }
        }
        Ok(())
    }

    /// Layers that something lies on, against their seals.
    pub(super) fn layers(&mut self) -> Result<()> {
        let named: BTreeSet<(LayerId, &str)> = self.named(|object| match object {
            Shared::Layer(layer) => Some((layer.id.clone(), extension(layer))),
            _ => None,
        });
        for (id, format) in named {
            let format = if format == "raw" { LayerFormat::Raw } else { LayerFormat::Qcow2 };
            let layer = LayerRef { id, format };
            // One that waits for its top is named before it is sure to be a layer.
            if self.needed_by(&Shared::Layer(layer.clone())).is_empty() {
                continue;
            }
            self.checked.layers += 1;
            self.watch.begin(format!("layer {}", layer.id))?;
            self.layer(&layer)?;
        }
        Ok(())
    }

    fn layer(&mut self, layer: &LayerRef) -> Result<()> {
        let path = self.store.layers().path(layer);
        let object = Shared::Layer(layer.clone());
        let subject = Subject::Layer(layer.id.to_string());
        let needed_by = self.needed_by(&object);
        let broken = |what: String| {
            Finding::error(subject.clone(), &path, what).needed_by(needed_by.clone()).way_out(RESTORE)
        };
        let (content, len) = match self.watch.content(&path) {
            Ok(found) => found,
            Err(error) => {
                let what = unreadable(error)?;
                return self.about(&object, broken(what));
            }
        };
        let seal = match self.store.layers().seal_of(layer) {
            Ok(seal) => seal,
            Err(error) => {
                let mut finding = Finding::told(Severity::Error, subject.clone(), &error);
                finding.needed_by.clone_from(&needed_by);
                finding.way_out = "without a seal it can be used, but not checked".to_owned();
                if error.kind() == ErrorKind::Corrupt {
                    finding.repair = Some(Repair(Step::Reseal(layer.clone())));
                }
                return self.about(&object, finding);
            }
        };
        match seal {
            Some(seal) if seal.blake3 == content && seal.len_bytes == len => {
                // It gets its mode in the moment after its name is committed, and its seal after that.
                self.read_only(&subject, &path);
                Ok(())
            }
            Some(_) => self.about(&object, broken("it is not what it was when it was sealed".to_owned())),
            None => match structure(layer, &path).or_else(|error| unreadable(error).map(Some))? {
                Some(what) => self.about(&object, broken(what)),
                // Whoever froze it reads it just now, when nobody waits.
                None if !self.company.alone && changed_lately(&path) => Ok(()),
                None => {
                    let what = "it has no checksum yet: it was frozen just before a crash";
                    let finding = Finding::warning(subject.clone(), &path, what).needed_by(needed_by.clone());
                    self.about(&object, finding.repair(Step::Seal(layer.clone())))
                }
            },
        }
    }

    /// RAM bases of sandboxes' own that memory lies over.
    pub(super) fn bases(&mut self) -> Result<()> {
        let named = self.named(|object| match object {
            Shared::Base(ram) => Some(ram.clone()),
            _ => None,
        });
        for ram in named {
            self.checked.bases += 1;
            let path = self.store.layout().base(&ram);
            let object = Shared::Base(ram.clone());
            let subject = Subject::RamBase(ram.to_string());
            self.watch.begin(format!("base {}", ram.short()))?;
            let what = match self.watch.base(&path) {
                Ok((found, _)) if found == ram => {
                    self.read_only(&subject, &path);
                    continue;
                }
                Ok(_) => "its content is not what its name says".to_owned(),
                Err(error) => unreadable(error)?,
            };
            let mut finding = Finding::new(self.severity_without(&object), subject, path, what);
            finding.needed_by = self.needed_by(&object);
            finding.way_out = "restore the file from a backup; a sandbox that sleeps over it boots with `bhatti start NAME --discard-memory`".to_owned();
            self.about(&object, finding)?;
        }
        Ok(())
    }

    /// How bad it is when a base is not there: nothing is lost with one over which nothing sleeps.
    fn severity_without(&self, object: &Shared) -> Severity {
        let manifests = self.references.manifests.iter();
        let mut namers = manifests.filter(|(_, manifest)| Shared::of(manifest).any(|named| named == *object));
        match namers.any(|(_, manifest)| manifest.state != RunState::Off) {
            true => Severity::Error,
            false => Severity::Warning,
        }
    }

    /// Shared files are not to be written by anybody.
    fn read_only(&mut self, subject: &Subject, path: &Path) {
        let mode = fs::metadata(path).map_or(0o444, |meta| meta.permissions().mode());
        if mode & 0o222 != 0 {
            let what = "it can be written, and is never to be written again";
            let finding = Finding::warning(subject.clone(), path, what);
            self.findings.push(finding.repair(Step::ReadOnly(path.to_owned())));
        }
    }

    fn named<T: Ord>(&self, of: impl Fn(&Shared) -> Option<T>) -> BTreeSet<T> {
        self.references.objects().iter().filter_map(of).collect()
    }
}

/// The record as it is now, if it is still the one that was read.
fn same_record(check: &Check<'_>, record: &ImageRecord) -> Option<ImageRecord> {
    let now = check.store.images().resolve_of(record.owner.as_ref(), &record.name, record.arch).ok()?;
    (now == *record).then_some(now)
}

const fn extension(layer: &LayerRef) -> &'static str {
    match layer.format {
        LayerFormat::Raw => "raw",
        LayerFormat::Qcow2 => "qcow2",
    }
}

/// Whether a file got its name or its mode a short while ago.
fn changed_lately(path: &Path) -> bool {
    const LATELY: i64 = 600_000;
    let changed = fs::metadata(path).map_or(0, |meta| meta.ctime().saturating_mul(1000));
    Timestamp::now().0.saturating_sub(changed) < LATELY
}

/// What is wrong with a layer that has no checksum.
fn structure(layer: &LayerRef, path: &Path) -> Result<Option<String>> {
    if layer.format == LayerFormat::Raw {
        return Ok(None);
    }
    let fail = |error| Error::io("read", path, error);
    let file = File::open(path).map_err(fail)?;
    match Qcow2::read(&file).map_err(fail)? {
        Ok(header) => header.damage(&file).map(|damage| damage.map(str::to_owned)).map_err(fail),
        Err(what) => Ok(Some(what.to_owned())),
    }
}

/// Why a file cannot be read, in words; being called off is no reason.
fn unreadable(error: Error) -> Result<String> {
    match error.kind() {
        ErrorKind::Cancelled => Err(error),
        ErrorKind::NotFound => Ok("it is missing".to_owned()),
        _ => Ok(error.why()),
    }
}
