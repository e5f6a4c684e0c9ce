//! What lies in the data root and belongs to nothing: leftovers of crashes, files of others, objects nobody names.

use std::path::PathBuf;

use types::{ContentId, LayerId, Owner, SnapshotName};

use super::repair::{Guard, Step};
use super::{Check, Finding, Subject};
use crate::durable;
use crate::error::Result;
use crate::gc::{self, GcKind};
use crate::layout::{self, GONE, NEW};
use crate::reconcile::{Leftover, LeftoverKind};
use crate::volume::is_volume_name;

/// Whether bhatti makes files of this name in a directory.
type IsKnown = fn(&str) -> bool;

impl Check<'_> {
    /// What was there at the beginning, belonged to no living process, and is there still.
    pub(super) fn leftovers(&mut self, before: &[Leftover]) -> Result<()> {
        let now = self.store.reconcile_plan()?;
        for leftover in before.iter().filter(|leftover| leftover.will_be_removed() && now.contains(leftover))
        {
            let in_sandbox = gc::belongs_to_owner(self.store, leftover);
            if !self.company.alone && (in_sandbox || gc::is_young(&leftover.path)) {
                // A sandbox's owner tidies its directory.
                continue;
            }
            let subject = Subject::Stray(gc::below_root(self.store, &leftover.path));
            let (what, repair) = match &leftover.kind {
                LeftoverKind::HalfFrozen(id) => {
                    ("its root disk was being frozen when a crash came", Step::FinishFreeze(id.clone()))
                }
                LeftoverKind::StaleSocket(_) => {
                    ("nobody listens on this socket", Step::Leftover(leftover.clone()))
                }
                _ => ("a crash left it, and nothing needs it", Step::Leftover(leftover.clone())),
            };
            self.findings.push(Finding::warning(subject, &leftover.path, what).repair(repair));
        }
        Ok(())
    }

    /// Names that bhatti never makes.
    pub(super) fn foreign(&mut self) -> Result<()> {
        let layout = self.store.layout();
        let mut found: Vec<PathBuf> = Vec::new();
        let known: [(PathBuf, IsKnown); 8] = [
            (layout.images(), |name| matches!(name, "objects" | "blobs") || name.starts_with("rootfs-")),
            (layout.blobs(), crate::blob::is_blob_name),
            (layout.objects(), |name| gc::id_of(name, ".ext4").is_some()),
            (layout.kernel(), |name| name.ends_with(".json") || name.parse::<ContentId>().is_ok()),
            (layout.templates(), |name| name == "zero" || name.parse::<ContentId>().is_ok()),
            (layout.sandboxes(), |name| name.parse::<types::SandboxId>().is_ok()),
            (layout.layers(), |name| {
                let seal = name.strip_suffix(".json").is_some_and(|id| id.parse::<LayerId>().is_ok());
                seal || gc::layer_of(name).is_some()
            }),
            (layout.bases(), |name| gc::id_of(name, ".ram").is_some()),
        ];
        for (dir, is_known) in known {
            let names = self.store.names_in(&dir)?;
            found.extend(
                names.iter().filter(|name| !is_known(name) && !is_staging(name)).map(|name| dir.join(name)),
            );
        }
        for owner in self.store.names_in(&layout.snapshots())? {
            let dir = layout.snapshots().join(&owner);
            if is_staging(&owner) {
                continue;
            }
            if owner.parse::<Owner>().is_err() || !durable::is_dir_itself(&dir) {
                found.push(dir);
                continue;
            }
            let names = self.store.names_in(&dir)?;
            let strange = |name: &&String| name.parse::<SnapshotName>().is_err() && !is_staging(name);
            found.extend(names.iter().filter(strange).map(|name| dir.join(name)));
        }
        for owner in self.store.names_in(&layout.volumes())? {
            let dir = layout.volumes().join(&owner);
            if is_staging(&owner) {
                continue;
            }
            if owner.parse::<Owner>().is_err() || !durable::is_dir_itself(&dir) {
                found.push(dir);
                continue;
            }
            let names = self.store.names_in(&dir)?;
            let strange = |name: &&String| !is_volume_name(name) && !is_staging(name);
            found.extend(names.iter().filter(strange).map(|name| dir.join(name)));
        }
        for path in found.into_iter().filter(|path| !path.ends_with("lost+found")) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let subject = Subject::Stray(gc::below_root(self.store, &path));
            let repair = Step::Quarantine {
                what: format!("foreign-{name}"),
                path: path.clone(),
                guard: Guard::Unused,
            };
            let finding =
                Finding::warning(subject, &path, "bhatti makes nothing of this name").repair(repair);
            self.findings.push(finding.way_out("keep your own files elsewhere"));
        }
        self.in_sandboxes()
    }

    /// Files in sandboxes' directories that bhatti does not make are told and left alone.
    fn in_sandboxes(&mut self) -> Result<()> {
        const KNOWN: [&str; 10] = [
            layout::MANIFEST,
            layout::CONFIG_DRIVE,
            layout::MEM_SNAP,
            layout::VM_SNAP,
            layout::VMM_LOG,
            layout::VMM_ROOM,
            layout::NET_LOG,
            layout::WAKE_SET,
            layout::QMP_SOCKET,
            layout::AGENT_SOCKET,
        ];
        for (id, manifest) in self.store.sandboxes()? {
            let Ok(manifest) = manifest else { continue };
            let dir = self.store.sandbox(&id);
            let Ok(names) = self.store.names_in(dir.path()) else { continue };
            let known =
                |name: &str| KNOWN.contains(&name) || name.starts_with("rootfs") || name.ends_with(".new");
            for name in names.iter().filter(|name| !known(name)) {
                let subject = Subject::Sandbox(id.clone(), Some(manifest.name.clone()));
                let finding =
                    Finding::note(subject, dir.path().join(name), "bhatti makes nothing of this name");
                self.findings
                    .push(finding.way_out("it goes with the sandbox; keep your own files elsewhere"));
            }
        }
        Ok(())
    }

    /// What `gc` would remove.
    pub(super) fn unnamed(&mut self) -> Result<()> {
        let plan = self.store.gc_plan(self.company)?;
        let goes = plan.items.into_iter().map(|item| (item, "`bhatti gc` removes it"));
        let stays = plan.kept.into_iter().map(|item| (item, ""));
        for (item, way_out) in
            goes.chain(stays).filter(|(item, _)| !matches!(item.kind, GcKind::Leftover | GcKind::Blob))
        {
            let subject = match item.kind {
                GcKind::Layer => Subject::Layer(item.name),
                GcKind::RamBase => Subject::RamBase(item.name),
                GcKind::Image => Subject::Image(item.name),
                GcKind::Kernel => Subject::Kernel(item.name),
                GcKind::Template | GcKind::Blob | GcKind::Leftover => match item.name.parse() {
                    Ok(key) => Subject::Template(key),
                    Err(_) => Subject::Stray(item.name),
                },
            };
            // One that is damaged besides was told already.
            if self.findings.iter().any(|finding| finding.subject == subject) {
                continue;
            }
            let what = format!("nobody needs it: {}", item.why);
            self.findings.push(Finding::note(subject, item.path, what).way_out(way_out));
        }
        Ok(())
    }
}

fn is_staging(name: &str) -> bool {
    name.starts_with(NEW) || name.starts_with(GONE) || name.ends_with(".new")
}
