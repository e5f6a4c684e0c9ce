//! Volumes of a running machine: plugged into one of its ports and out again, made larger, and copied as of one moment.
//!
//! ```text
//!  plug_volume ─► (guest mounts) ─► resize_volume ─► (guest unmounts) ─► unplug_volume
//!
//!  watch_volume ─► caller copies the file ─► aim_copy ─► [guest still] start_copy [goes on] ─► finish_copy
//! ```
//! A copy is of the moment of `start_copy`, whatever the size: what was written since `watch_volume` is noted by the VMM,
//! and from `start_copy` on each such block is copied before it is written over. Only these blocks are copied here, so
//! holes stay holes and the job is short.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use types::Bytes;

use crate::argv::HOTPLUG_PORTS;
use crate::error::{Error, ErrorKind, Result};
use crate::machine::{Inner, Machine};
use crate::nodes::{self, file_of, text};
use crate::qmp::{Command, Job};
use crate::room::Whose;
use crate::spec::VolumeDisk;

/// How long a guest's kernel may take to let go of a disk that nobody uses any more.
const UNPLUG_LIMIT: Duration = Duration::from_secs(30);
/// How long a copy job may take to end once it was told to.
const CANCEL_LIMIT: Duration = Duration::from_secs(60);
/// How the names of copy jobs and of their targets begin; the port's number follows.
pub(crate) const COPY_PREFIX: &str = "copy";
/// The VMM's note of the blocks that were written.
const WRITTEN: &str = "written";

/// The name of a volume's device and node, and the serial number by which the guest finds its disk.
#[must_use]
pub fn volume_serial(port: u8) -> String {
    format!("volume{port}")
}

fn copy_job(port: u8) -> String {
    format!("{COPY_PREFIX}{port}")
}

/// The device of a volume, the same on the command line and over QMP.
pub(crate) fn device(port: u8) -> Value {
    let name = volume_serial(port);
    json!({
        "driver": "virtio-blk-pci", "id": name, "bus": format!("port{port}"), "drive": name, "serial": name,
        "disable-legacy": "on", "num-queues": 1,
    })
}

/// A volume's nodes. The VMM locks the file by itself, so that a volume is written by one or read by many.
///
/// # Errors
/// `Refused`: a path that is not UTF-8, or a port that there is not.
pub(crate) fn nodes(volume: &VolumeDisk) -> Result<[Value; 2]> {
    if volume.port >= HOTPLUG_PORTS {
        let text = format!("there is no port {}", volume.port);
        return Err(Error::new(ErrorKind::Refused, "plugging a volume in", text));
    }
    let name = volume_serial(volume.port);
    let mut file = json!({
        "driver": "file", "node-name": file_of(&name), "filename": text(&volume.path)?, "locking": "on",
    });
    let mut node = json!({"driver": "raw", "node-name": name, "file": file_of(&name)});
    let (key, value) =
        if volume.read_only { ("read-only", json!(true)) } else { ("discard", json!("unmap")) };
    file[key] = value.clone();
    node[key] = value;
    if !volume.read_only {
        node["detect-zeroes"] = json!("unmap");
    }
    Ok([file, node])
}

impl Machine {
    /// Plugs a volume in while the guest runs or stands still.
    ///
    /// # Errors
    /// `Refused`: the port is taken, or another process uses the file. The machine is as it was.
    pub async fn plug_volume(&self, volume: &VolumeDisk) -> Result<()> {
        const OP: &str = "plugging a volume in";
        let whose = if volume.read_only { Whose::All } else { Whose::Its };
        let (path, _lent) = self.inner.lend(OP, &volume.path, whose)?;
        let mut commands: Vec<_> = nodes(&VolumeDisk { path, ..volume.clone() })?
            .into_iter()
            .map(|node| Command::with("blockdev-add", node))
            .collect();
        commands.push(Command::with("device_add", device(volume.port)));
        commands.extend(self.inner.throttle_of_new(volume.port));
        let plugged = self.inner.call_all(OP, commands).await.map(drop);
        if plugged.as_ref().is_err_and(|error| error.kind() == ErrorKind::Refused) {
            // Those of its nodes that there are; a device that has one keeps it.
            let _ = self.inner.close_nodes(OP, &[&volume_serial(volume.port)]).await;
        }
        plugged
    }

    /// Plugs a volume out that the guest does not use any more, and waits until it is gone. One that is gone already is
    /// as good.
    ///
    /// # Errors
    /// `Timeout`: the guest's kernel does not let go of it; the VMM refused or is gone.
    pub async fn unplug_volume(&self, port: u8) -> Result<()> {
        const OP: &str = "plugging a volume out";
        let (inner, name) = (&self.inner, volume_serial(port));
        let mut facts = inner.qmp.facts();
        let seen = |facts: &crate::qmp::Facts| facts.unplugged.get(&name).copied().unwrap_or_default();
        let before = seen(&facts.borrow());
        if inner.has_device(OP, &name).await? {
            let asked = inner.call(OP, Command::with("device_del", json!({"id": name}))).await;
            match asked {
                // Asked for by an earlier call that gave up waiting.
                Err(error)
                    if error.kind() == ErrorKind::Refused && error.detail().contains("in the process") => {}
                other => drop(other?),
            }
            let gone = facts.wait_for(|facts| facts.closed || seen(facts) > before);
            match tokio::time::timeout(UNPLUG_LIMIT, gone).await {
                Ok(Ok(facts)) if !facts.closed => {}
                Ok(_) => return Err(inner.told(Error::new(ErrorKind::Closed, OP, ""))),
                Err(_elapsed) => {
                    let text = format!(
                        "the guest's kernel did not let go of the disk within {} s",
                        UNPLUG_LIMIT.as_secs()
                    );
                    return Err(Error::new(ErrorKind::Timeout, OP, text));
                }
            }
        }
        let nodes = inner.named_nodes(OP).await?;
        if nodes.iter().any(|(node, _)| *node == name) {
            inner.close_nodes(OP, &[&name]).await?;
        }
        Ok(())
    }

    /// The ports into which volumes are plugged.
    ///
    /// # Errors
    /// The VMM is gone.
    pub async fn volume_ports(&self) -> Result<Vec<u8>> {
        let there = self.inner.devices("looking for volumes").await?;
        Ok((0..HOTPLUG_PORTS).filter(|port| there.contains(&volume_serial(*port))).collect())
    }

    /// Makes a volume larger, its file and for the guest.
    ///
    /// # Errors
    /// The VMM refused or is gone.
    pub async fn resize_volume(&self, port: u8, size: Bytes) -> Result<()> {
        let arguments = json!({"node-name": volume_serial(port), "size": size.0});
        self.inner.call("resizing a volume", Command::with("block_resize", arguments)).await.map(drop)
    }

    /// From now on the VMM notes which blocks of the volume are written; what an earlier copy left is cleared away.
    ///
    /// # Errors
    /// The VMM refused or is gone.
    pub async fn watch_volume(&self, port: u8) -> Result<()> {
        self.abandon_copy(port).await?;
        let arguments = json!({"node": volume_serial(port), "name": WRITTEN});
        self.inner
            .call("watching a volume", Command::with("block-dirty-bitmap-add", arguments))
            .await
            .map(drop)
    }

    /// Opens the file that is to become the copy: a raw copy of the volume, made since `watch_volume`.
    ///
    /// # Errors
    /// The VMM cannot open it, or is gone.
    pub async fn aim_copy(&self, port: u8, copy: &Path) -> Result<()> {
        const OP: &str = "opening the copy of a volume";
        let name = copy_job(port);
        let (told, _lent) = self.inner.lend(OP, copy, Whose::Its)?;
        let nodes = nodes::writable(&name, &crate::DiskFile::raw(told), None)?;
        let commands = nodes.into_iter().map(|node| Command::with("blockdev-add", node)).collect();
        self.inner.call_all(OP, commands).await.map(drop)
    }

    /// The copy becomes one of this moment. The guest may run, or stand still for its own sake.
    ///
    /// # Errors
    /// The VMM refused or is gone.
    pub async fn start_copy(&self, port: u8) -> Result<()> {
        let job = copy_job(port);
        let arguments = json!({
            "job-id": job, "device": volume_serial(port), "target": job, "sync": "bitmap", "bitmap": WRITTEN,
            "bitmap-mode": "never", "on-source-error": "report", "on-target-error": "report",
        });
        self.inner.call("copying a volume", Command::with("blockdev-backup", arguments)).await.map(drop)
    }

    /// Waits until the copy is whole, and closes it. Nothing is synced.
    ///
    /// # Errors
    /// The VMM could not read or write (no space), or is gone.
    pub async fn finish_copy(&self, port: u8) -> Result<()> {
        const OP: &str = "copying a volume";
        let (inner, name) = (&self.inner, copy_job(port));
        let mut facts = inner.qmp.facts();
        let gone =
            |facts: &crate::qmp::Facts| facts.closed || facts.copies.get(&name).is_some_and(|job| job.gone);
        let job = match facts.wait_for(gone).await {
            Ok(facts) if !facts.closed => facts.copies.get(&name).cloned().unwrap_or_default(),
            _ => return Err(inner.told(Error::new(ErrorKind::Closed, OP, ""))),
        };
        self.abandon_copy(port).await?;
        match job {
            Job { error: Some(said), .. } => Err(Error::new(ErrorKind::Refused, OP, said)),
            Job { cancelled: true, .. } => Err(Error::new(ErrorKind::Refused, OP, "it was called off")),
            Job { .. } => Ok(()),
        }
    }

    /// Calls a copy off, in whatever state it is; also right when there is none.
    ///
    /// # Errors
    /// The VMM is gone.
    pub async fn abandon_copy(&self, port: u8) -> Result<()> {
        const OP: &str = "calling off the copy of a volume";
        let (inner, name) = (&self.inner, copy_job(port));
        let jobs = inner.call(OP, Command::plain("query-jobs")).await?;
        if jobs.as_array().is_some_and(|jobs| jobs.iter().any(|job| job["id"] == name.as_str())) {
            let mut facts = inner.qmp.facts();
            let arguments = json!({"id": name});
            // Refused: it has ended, or is just about to.
            match inner.call(OP, Command::with("job-cancel", arguments)).await {
                Err(error) if error.kind() != ErrorKind::Refused => return Err(error),
                _ => {}
            }
            let gone =
                facts.wait_for(|facts| facts.closed || facts.copies.get(&name).is_some_and(|job| job.gone));
            if tokio::time::timeout(CANCEL_LIMIT, gone).await.is_err() {
                return Err(Error::new(ErrorKind::Timeout, OP, "the job does not end"));
            }
        }
        let nodes = inner.named_nodes(OP).await?;
        let has = |wanted: &str| nodes.iter().find(|(node, _)| node == wanted).map(|(_, node)| node);
        for node in [name.clone(), file_of(&name)] {
            if has(&node).is_some() {
                inner.call(OP, Command::with("blockdev-del", json!({"node-name": node}))).await?;
            }
        }
        let serial = volume_serial(port);
        let bitmaps = has(&serial).and_then(|node| node["dirty-bitmaps"].as_array());
        if bitmaps.is_some_and(|all| all.iter().any(|bitmap| bitmap["name"] == WRITTEN)) {
            let arguments = json!({"node": serial, "name": WRITTEN});
            inner.call(OP, Command::with("block-dirty-bitmap-remove", arguments)).await?;
        }
        Ok(())
    }
}

impl Inner {
    async fn has_device(&self, op: &'static str, name: &str) -> Result<bool> {
        Ok(self.devices(op).await?.iter().any(|device| device == name))
    }

    /// The names of the devices that have one.
    async fn devices(&self, op: &'static str) -> Result<Vec<String>> {
        let told = self.call(op, Command::with("qom-list", json!({"path": "/machine/peripheral"}))).await?;
        let names = told.as_array().into_iter().flatten().filter_map(|device| device["name"].as_str());
        Ok(names.map(str::to_owned).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_that_is_only_read_is_read_only_all_the_way_down() {
        let disk = |read_only| VolumeDisk { port: 2, path: "../../volumes/admin/v.ext4".into(), read_only };
        for node in nodes(&disk(true)).unwrap() {
            assert_eq!(node["read-only"], true, "{node}");
            assert!(node.get("discard").is_none(), "{node}");
        }
        let [file, node] = nodes(&disk(false)).unwrap();
        assert!(file.get("read-only").is_none() && node.get("read-only").is_none());
        assert_eq!(
            (&file["discard"], &node["discard"], &file["locking"]),
            (&json!("unmap"), &json!("unmap"), &json!("on"))
        );
        assert_eq!((&node["detect-zeroes"], file.get("detect-zeroes")), (&json!("unmap"), None));
        assert_eq!(device(2)["bus"], "port2");
        assert!(nodes(&VolumeDisk { port: HOTPLUG_PORTS, ..disk(true) }).is_err());
    }
}
