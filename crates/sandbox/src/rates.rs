//! How much one sandbox may move in a second, so that its neighbours have something, too.
//!
//! Disks are throttled by the VMM, all of a sandbox as one; the network by its relay, each direction for itself. Neither
//! becomes part of a saved machine: both are said anew whenever one starts.

use storage::Manifest;
use types::Rate;
use vm::Machine;

use crate::error::Result;

/// For sandboxes that do not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// Of its network, in each direction.
    pub net: Rate,
    /// Of all its disks together.
    pub disk: Rate,
}

impl Default for Rates {
    fn default() -> Self {
        Self { net: Rate::UNLIMITED, disk: Rate::UNLIMITED }
    }
}

impl Rates {
    /// What a sandbox's network may carry.
    pub(crate) fn of_net(&self, manifest: &Manifest) -> Rate {
        manifest.net_rate.unwrap_or(self.net)
    }

    /// What a sandbox's disks may read and write.
    pub(crate) fn of_disk(&self, manifest: &Manifest) -> Rate {
        manifest.disk_rate.unwrap_or(self.disk)
    }

    /// Throttles the disks of a machine that was started just now.
    pub(crate) async fn hold(&self, machine: &Machine, manifest: &Manifest) -> Result<()> {
        if self.of_disk(manifest).is_unlimited() { Ok(()) } else { self.hold_anew(machine, manifest).await }
    }

    /// Throttles the disks of a machine that may be throttled already.
    pub(crate) async fn hold_anew(&self, machine: &Machine, manifest: &Manifest) -> Result<()> {
        let ports: Vec<u8> = manifest.volumes.iter().map(|volume| volume.port).collect();
        Ok(machine.throttle_disks(self.of_disk(manifest), &ports).await?)
    }
}
