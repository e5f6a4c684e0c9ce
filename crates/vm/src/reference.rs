//! What QEMU does by itself, for measurements: its own migration of a whole guest into a file, and its snapshots inside a
//! disk.

use std::fs::File;

use serde_json::json;

use crate::error::{Error, ErrorKind, Result};
use crate::machine::{Machine, is_over};
use crate::qmp::Command;

/// More than any disk gives, in bytes a second; 0 would be no limit in newer releases only.
const UNCAPPED: u64 = 1 << 40;
/// QEMU's own default (`MAX_THROTTLE` of migration/options.c).
const DEFAULT: u64 = 128 << 20;

/// The only snapshot that a reference's disk has.
const TAG: &str = "reference";

impl Machine {
    /// Has QEMU put RAM and devices of the paused guest into its top disk, which is qcow2 (`savevm`). Measured against,
    /// never used by a sandbox.
    ///
    /// # Errors
    /// The VMM refused, could not write, or is gone.
    pub async fn save_into_disk(&self) -> Result<()> {
        self.monitor("saving into the disk", &format!("savevm {TAG}")).await
    }

    /// Has QEMU load what [`Machine::save_into_disk`] put there (`loadvm`), whatever the guest does.
    ///
    /// # Errors
    /// The VMM refused, could not read, or is gone.
    pub async fn load_from_disk(&self) -> Result<()> {
        self.monitor("loading from the disk", &format!("loadvm {TAG}")).await
    }

    /// A command for people, which answers with words where it fails.
    async fn monitor(&self, op: &'static str, line: &str) -> Result<()> {
        let arguments = json!({ "command-line": line });
        let said = self.inner.qmp.call(op, Command::with("human-monitor-command", arguments)).await?;
        match said.as_str().map(str::trim) {
            None | Some("") => Ok(()),
            Some(words) => Err(Error::new(ErrorKind::Refused, op, words)),
        }
    }

    /// Has QEMU migrate the paused guest, RAM and devices, into `file`; [`Machine::load_devices`] of a machine over an
    /// all-hole base loads it. Measured against, never used by a sandbox.
    ///
    /// # Errors
    /// The VMM refused, could not write, or is gone.
    pub async fn migrate_to_file(&self, file: File, uncapped: bool) -> Result<()> {
        const OP: &str = "migrating to a file";
        let qmp = &self.inner.qmp;
        let mut facts = qmp.facts();
        let events = json!({"capabilities": [{"capability": "events", "state": true}]});
        let limit = if uncapped { UNCAPPED } else { DEFAULT };
        qmp.call_all(
            OP,
            vec![
                Command::with("migrate-set-capabilities", events),
                Command::with("migrate-set-parameters", json!({"max-bandwidth": limit})),
                Command { name: "getfd", arguments: json!({"fdname": "reference"}), file: Some(&file) },
            ],
        )
        .await?;
        // An earlier migration's end is not this one's.
        facts.borrow_and_update();
        qmp.call(OP, Command::with("migrate", json!({"uri": "fd:reference"}))).await?;
        loop {
            let closed = || Error::new(ErrorKind::Closed, OP, "");
            facts.changed().await.map_err(|_ended| closed())?;
            let now = facts.borrow_and_update().clone();
            match now.migration.as_deref() {
                _ if now.closed => return Err(closed()),
                Some("completed") => return Ok(()),
                Some(word) if is_over(Some(word)) => return Err(Error::new(ErrorKind::Refused, OP, word)),
                _ => {}
            }
        }
    }
}
