//! Volumes: whether each has its record, and whether those that manifests name are there.

use types::Owner;

use super::machines::{Machine, Use};
use super::repair::{Repair, Step};
use super::{Check, Finding, Severity, Subject};
use crate::error::{ErrorKind, Result};
use crate::volume::snapshot_volume;

impl Check<'_> {
    /// Every volume. What is in it is its guest's business.
    pub(super) fn volumes(&mut self) -> Result<()> {
        for (owner, name, volume) in self.store.volumes().all()? {
            let Err(error) = volume else { continue };
            // It was deleted while it was looked at.
            if !self.store.volumes().exists(&owner, &name) {
                continue;
            }
            let called = if owner == Owner::admin() { name.to_string() } else { format!("{owner}/{name}") };
            let mut finding = Finding::told(Severity::Error, Subject::Volume(called), &error);
            finding.path = self.store.layout().volume_record(&owner, &name);
            if error.kind() == ErrorKind::Corrupt {
                finding.repair = Some(Repair(Step::RestoreVolumeRecord { owner, name }));
            }
            self.findings.push(finding);
        }
        Ok(())
    }

    /// The volumes of a sandbox, or their clones in a snapshot.
    pub(super) fn volumes_of(&self, machine: &Machine<'_>, found: &mut Vec<Finding>) {
        let manifest = machine.manifest;
        for volume in &manifest.volumes {
            let (path, kept) = match machine.use_of {
                Use::Kept if !volume.read_only => (machine.dir.join(snapshot_volume(&volume.name)), true),
                // Whoever makes a sandbox of it is told then.
                Use::Kept => continue,
                Use::Runs | Use::Rests => (self.store.layout().volume(&manifest.owner, &volume.name), false),
            };
            if path.exists() {
                continue;
            }
            let what = format!("its volume {} is missing", volume.name);
            let way_out = match kept {
                true => "restore the file from a backup".to_owned(),
                false => format!(
                    "restore the file from a backup, or `bhatti volume detach {} {}`",
                    volume.name, manifest.name
                ),
            };
            found.push(Finding::error(machine.subject.clone(), &path, what).way_out(way_out));
        }
    }
}
