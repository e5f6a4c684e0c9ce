//! From what the verbs tell to the JSON of `api`.

use std::collections::BTreeMap;
use std::time::Duration;

use sandbox::wire;
use types::Timestamp;

use crate::publish::Site;

pub(crate) fn sandbox(view: sandbox::SandboxView) -> api::Sandbox {
    let error = match &view.status {
        sandbox::Status::Error(line) => Some(line.clone()),
        sandbox::Status::Running | sandbox::Status::Stopped => None,
    };
    let net = view.net;
    api::Sandbox {
        id: view.id.into(),
        name: view.name.into(),
        owner: view.owner.into(),
        image: view.image.into(),
        cpus: view.cpus,
        memory_mb: view.memory.0,
        disk_size_mb: view.disk_size.0,
        status: view.status.as_str().to_owned(),
        thermal: view.thermal.to_string(),
        keep_hot: view.keep_hot,
        warm_after_sec: view.times.warm_after.as_seconds(),
        cold_after_sec: view.times.cold_after.as_seconds(),
        sleep_busy: view.times.sleep_busy,
        last_decision: view.last_decision.map(decision),
        labels: view.labels,
        volumes: view.volumes.into_iter().map(volume_spec).collect(),
        secrets: view.secrets.into_iter().map(String::from).collect(),
        net: net.as_ref().map_or(types::NetMode::None, |net| net.mode).to_string(),
        egress: net.as_ref().map_or_else(|| vec![types::Egress::NONE.to_owned()], |net| net.egress.words()),
        net_rate: view.net_rate.to_string(),
        disk_rate: view.disk_rate.to_string(),
        ip: net.map(|net| net.ip.to_string()),
        created_at: view.created_at.to_string(),
        last_active_at: view.last_active_at.to_string(),
        generation: view.generation,
        boot: view.boot.to_string(),
        clone: view.clone.to_string(),
        accel: view.accel.to_string(),
        error,
        last_transition: view.last_transition.map(transition),
    }
}

fn decision(decision: sandbox::DecisionView) -> api::LastDecision {
    let sandbox::DecisionView { action, reason, at } = decision;
    api::LastDecision { action: action.to_owned(), reason, at: at.to_string() }
}

fn volume_spec(volume: types::VolumeMount) -> api::VolumeSpec {
    let types::VolumeMount { name, mount, read_only } = volume;
    api::VolumeSpec { name: name.into(), mount: mount.into(), read_only }
}

pub(crate) fn secret(view: sandbox::SecretView) -> api::Secret {
    api::Secret {
        name: view.name.into(),
        owner: view.owner.into(),
        created_at: view.created_at.to_string(),
        updated_at: view.updated_at.to_string(),
        used_by: view.used_by.into_iter().map(String::from).collect(),
    }
}

pub(crate) fn port(listener: wire::Listener) -> api::Port {
    let wire::Listener { port, address, pid, process } = listener;
    let protocol = if address.is_ipv4() { "tcp" } else { "tcp6" };
    api::Port { port, address: address.to_string(), protocol: protocol.to_owned(), pid, process }
}

pub(crate) fn publication(view: sandbox::Publication, site: Option<&Site>) -> api::Publication {
    let sandbox::Publication { alias, owner, sandbox_id, sandbox_name, port, created_at } = view;
    api::Publication {
        url: site.map(|site| site.url(alias.as_str())),
        alias: alias.into(),
        owner: owner.into(),
        sandbox: sandbox_name.into(),
        sandbox_id: sandbox_id.into(),
        port,
        created_at: created_at.to_string(),
    }
}

pub(crate) fn volume(view: sandbox::VolumeView) -> api::Volume {
    api::Volume {
        name: view.name.into(),
        owner: view.owner.into(),
        size_mb: view.size.floor_mib().0,
        allocated_bytes: view.allocated.0,
        created_at: view.created_at.to_string(),
        attached_to: view.users.into_iter().map(attachment).collect(),
        made_for: view.made_for.map(String::from),
        schedule: view.schedule.map(|schedule| api::Schedule {
            cron: schedule.cron,
            keep: schedule.keep,
            next_at: view.next_backup.map(|next| next.to_string()),
            last_error: schedule.last_error,
        }),
    }
}

fn attachment(user: sandbox::VolumeUser) -> api::VolumeAttachment {
    let sandbox::VolumeUser { id, name, volume } = user;
    api::VolumeAttachment {
        sandbox: name.into(),
        id: id.into(),
        mount: volume.mount.into(),
        read_only: volume.read_only,
    }
}

pub(crate) fn volume_report(report: sandbox::VolumeReport) -> api::VolumeReply {
    api::VolumeReply {
        timings_ms: if report.changed { timings(&report.timings) } else { BTreeMap::new() },
        volume: volume(report.view),
        changed: report.changed,
        clone: report.clone.map(|method| method.to_string()),
        stall_ms: report.stall.map(milliseconds),
        warnings: report.warnings,
    }
}

fn transition(transition: sandbox::Transition) -> api::LastTransition {
    api::LastTransition {
        verb: transition.verb.to_owned(),
        at: transition.at.to_string(),
        timings_ms: timings(&transition.timings),
        bytes: transition.bytes.into_iter().map(|(name, bytes)| (name.to_owned(), bytes.0)).collect(),
    }
}

pub(crate) fn report(report: sandbox::Report) -> api::SandboxReply {
    let mut timings_ms = if report.changed { timings(&report.timings) } else { BTreeMap::new() };
    if let Some(pause) = report.pause {
        timings_ms.insert("pause".to_owned(), milliseconds(pause));
    }
    api::SandboxReply {
        timings_ms,
        sandbox: sandbox(report.view),
        changed: report.changed,
        warnings: report.warnings,
    }
}

pub(crate) fn snapshot(view: sandbox::SnapshotView) -> api::Snapshot {
    api::Snapshot {
        name: view.name.into(),
        owner: view.owner.into(),
        source_id: view.source_id.into(),
        source_name: view.source_name.into(),
        created_at: view.created_at.to_string(),
        disk_only: view.disk_only,
        image: view.image.into(),
        cpus: view.cpus,
        memory_mb: view.memory.0,
        disk_size_mb: view.disk_size.0,
        labels: view.labels,
        accel: view.accel.to_string(),
        pause_ms: milliseconds(view.pause),
        private_bytes: view.private.0,
        stored_bytes: view.stored.0,
    }
}

pub(crate) fn snapshot_report(report: sandbox::SnapshotReport) -> api::SnapshotReply {
    let mut timings_ms = timings(&report.timings);
    // Also where nothing stood still, so that who reads it need not know which phases there were.
    timings_ms.entry("pause".to_owned()).or_insert_with(|| milliseconds(report.view.pause));
    api::SnapshotReply { snapshot: snapshot(report.view), timings_ms, warnings: report.warnings }
}

pub(crate) fn timings(timings: &sandbox::Timings) -> BTreeMap<String, f64> {
    let mut all: BTreeMap<String, f64> = BTreeMap::new();
    for (phase, time) in &timings.phases {
        *all.entry((*phase).to_owned()).or_default() += milliseconds(*time);
    }
    all.insert("total".to_owned(), milliseconds(timings.total));
    all
}

/// Milliseconds with three digits after the point.
pub(crate) fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn instant(unix_ms: u64) -> String {
    Timestamp(i64::try_from(unix_ms).unwrap_or(i64::MAX)).to_string()
}

pub(crate) fn session(info: wire::SessionInfo) -> api::Session {
    api::Session {
        id: info.id,
        kind: match info.kind {
            wire::SessionKind::Init => "init",
            wire::SessionKind::Exec => "exec",
            wire::SessionKind::Shell => "shell",
        }
        .to_owned(),
        command: info.argv,
        pid: info.pid,
        started_at: instant(info.started_unix_ms),
        attached: info.attached,
        exit_code: info.exit.map(|exit| exit_code(&exit)),
    }
}

/// Exit status of a command that was killed because its time was over, as `timeout(1)` gives it.
const TIMED_OUT: i32 = 124;

/// The status that a shell would give.
pub(crate) fn exit_code(exit: &wire::ExitStatus) -> i32 {
    if exit.timed_out { TIMED_OUT } else { exit.shell_code() }
}

pub(crate) fn file_stat(stat: &wire::FileStat) -> api::FileStat {
    api::FileStat {
        kind: match stat.kind {
            wire::FileKind::File => "file",
            wire::FileKind::Directory => "directory",
            wire::FileKind::Symlink => "symlink",
            wire::FileKind::Other => "other",
        }
        .to_owned(),
        size_bytes: stat.size_bytes,
        mode: octal(stat.mode),
        uid: stat.uid,
        gid: stat.gid,
        modified_at: instant(stat.modified_unix_ms),
        target: stat.target.clone(),
    }
}

pub(crate) fn file_entry(stat: &wire::FileStat) -> api::FileEntry {
    api::FileEntry { name: stat.name.clone(), stat: file_stat(stat) }
}

/// Permission bits as people write them.
pub(crate) fn octal(mode: u32) -> String {
    format!("{:04o}", mode & 0o7777)
}

pub(crate) fn event(event: sandbox::EventView) -> api::Event {
    let (sandbox, name) = event.sandbox.unzip();
    api::Event {
        seq: event.seq,
        at: event.at.to_string(),
        owner: event.owner.into(),
        kind: event.kind,
        sandbox: sandbox.map(String::from),
        name,
        detail: event.detail,
    }
}

pub(crate) fn image(image: sandbox::ImageRecord) -> api::ImageObject {
    api::ImageObject {
        name: image.name.into(),
        owner: image.owner.map(String::from),
        arch: image.arch.to_string(),
        id: image.id.to_string(),
        size_bytes: image.size.0,
        allocated_bytes: image.allocated.0,
        created_at: image.created_at.to_string(),
        source: image.source,
        config: image.config.map(|config| api::ImageConfig {
            env: config.env,
            working_dir: config.working_dir,
            user: config.user,
            entrypoint: config.entrypoint,
            cmd: config.cmd,
        }),
    }
}

pub(crate) fn task(task: sandbox::TaskRecord) -> api::Task {
    let sandbox::TaskProgress { what, done_bytes, total_bytes } = task.progress;
    api::Task {
        id: task.id.into(),
        owner: task.owner.into(),
        kind: task.kind,
        subject: task.subject,
        status: task.status.as_str().to_owned(),
        progress: api::TaskProgress { what, done_bytes, total_bytes },
        error: task.error.map(|error| api::ErrorDetail {
            code: error.code,
            message: error.message,
            hint: error.hint,
        }),
        result: task.result,
        created_at: task.created_at.to_string(),
        finished_at: task.finished_at.map(|at| at.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_of_the_same_name_add_up_and_the_total_is_there() {
        let told = timings(&sandbox::Timings {
            phases: vec![("clone", Duration::from_micros(1500)), ("clone", Duration::from_micros(500))],
            total: Duration::from_millis(3),
        });
        assert_eq!(told["clone"], 2.0);
        assert_eq!(told["total"], 3.0);
    }

    #[test]
    fn exit_status_is_what_a_shell_would_give() {
        let killed = wire::ExitStatus { signal: Some(9), ..Default::default() };
        assert_eq!(exit_code(&killed), 137);
        assert_eq!(exit_code(&wire::ExitStatus { timed_out: true, ..killed }), 124);
        assert_eq!(exit_code(&wire::ExitStatus { code: Some(3), ..Default::default() }), 3);
    }
}
