//! How much the disks of a machine may read and write, as one.

use std::sync::PoisonError;

use serde_json::json;
use types::Rate;

use crate::error::Result;
use crate::machine::{Inner, Machine};
use crate::nodes::ROOT_NODE;
use crate::qmp::Command;
use crate::volumes::volume_serial;

/// The group whose members share one allowance.
const GROUP: &str = "disks";

impl Machine {
    /// Holds the root disk and the volumes in `ports` to `rate` together, in place of what held before; and each volume that is
    /// plugged in later.
    ///
    /// # Errors
    /// The VMM refused or is gone.
    pub async fn throttle_disks(&self, rate: Rate, ports: &[u8]) -> Result<()> {
        *self.inner.disk_rate.lock().unwrap_or_else(PoisonError::into_inner) = rate;
        let volumes = ports.iter().map(|&port| throttle(&volume_serial(port), rate));
        let commands = [throttle(ROOT_NODE, rate)].into_iter().chain(volumes).collect();
        self.inner.call_all("throttling the disks", commands).await.map(drop)
    }
}

impl Inner {
    /// What holds a volume that is being plugged in to the rate of the others, if there is one.
    pub(crate) fn throttle_of_new(&self, port: u8) -> Option<Command<'static>> {
        let rate = *self.disk_rate.lock().unwrap_or_else(PoisonError::into_inner);
        (!rate.is_unlimited()).then(|| throttle(&volume_serial(port), rate))
    }
}

fn throttle(device: &str, rate: Rate) -> Command<'static> {
    // A disk on a PCI card is a device within that.
    let id = format!("/machine/peripheral/{device}/virtio-backend");
    Command::with(
        "block_set_io_throttle",
        json!({
            "id": id, "group": GROUP,
            "bps": rate.bytes().unwrap_or(0), "bps_rd": 0, "bps_wr": 0,
            "iops": rate.operations().unwrap_or(0), "iops_rd": 0, "iops_wr": 0,
        }),
    )
}
