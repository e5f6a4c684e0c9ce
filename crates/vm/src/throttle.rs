//! How much the disks of a machine may read and write, as one.

use serde_json::json;
use types::Rate;

use crate::error::Result;
use crate::machine::Machine;
use crate::nodes::ROOT_NODE;
use crate::qmp::Command;
use crate::volumes::volume_serial;

/// The group whose members share one allowance.
const GROUP: &str = "disks";

impl Machine {
    /// Holds the root disk and the volumes in `ports` to `rate` together, in place of what held before.
    ///
    /// # Errors
    /// The VMM refused or is gone.
    pub async fn throttle_disks(&self, rate: Rate, ports: &[u8]) -> Result<()> {
        let limit = |device: &str| {
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
        };
        let volumes = ports.iter().map(|&port| limit(&volume_serial(port)));
        let commands = [limit(ROOT_NODE)].into_iter().chain(volumes).collect();
        self.inner.call_all("throttling the disks", commands).await.map(drop)
    }
}
