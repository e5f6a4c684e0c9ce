//! From what is asked (the JSON of `api`) to what is meant (validated orders for the verbs).

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sandbox::wire;
use types::{
    After, Egress, GuestFile, Labels, Mebibytes, Owner, SandboxName, SandboxSpec, SecretName, ThermalRule,
    VolumeMount,
};

use crate::refusal::Refusal;

/// Mode of a file that was given without one.
const DEFAULT_MODE: u32 = 0o644;
/// The longest time limit of a command that makes sense: 30 days.
const MAX_TIMEOUT_SEC: f64 = 30.0 * 24.0 * 3600.0;
/// What a terminal is taken for when its client does not say.
const DEFAULT_TERM: &str = "xterm-256color";

/// An order for a sandbox named `name`; whether the numbers are possible here is checked by the verb.
pub(crate) fn create(
    request: api::CreateRequest,
    name: SandboxName,
    owner: Owner,
) -> Result<SandboxSpec, Refusal> {
    let api::CreateRequest {
        name: _,
        image,
        cpus,
        memory_mb,
        disk_size_mb,
        env,
        secrets,
        net,
        egress,
        net_rate,
        disk_rate,
        files,
        volumes,
        init,
        keep_hot,
        warm_after_sec,
        cold_after_sec,
        sleep_busy,
        labels,
        from: _,
        strict,
    } = request;
    Ok(SandboxSpec {
        name,
        owner,
        image: image.parse()?,
        cpus,
        memory: Mebibytes(memory_mb),
        disk_size: disk_size_mb.map(Mebibytes),
        env,
        secrets: secret_names(&secrets)?,
        net: net.map(|mode| mode.parse()).transpose()?,
        egress: egress.map(|words| Egress::from_words(&words)).transpose()?,
        net_rate: net_rate.map(|rate| rate.parse()).transpose()?,
        disk_rate: disk_rate.map(|rate| rate.parse()).transpose()?,
        files: files.into_iter().map(guest_file).collect::<Result<_, _>>()?,
        volumes: volumes.into_iter().map(volume).collect::<Result<_, _>>()?,
        init: init.filter(|command| !command.trim().is_empty()),
        labels,
        keep_hot,
        thermal: ThermalRule {
            warm_after: warm_after_sec.and_then(after),
            cold_after: cold_after_sec.and_then(after),
            sleep_busy,
        },
        strict,
    })
}

/// Each of them once, in the order they were given.
fn secret_names(texts: &[String]) -> Result<Vec<SecretName>, Refusal> {
    let mut names = Vec::with_capacity(texts.len());
    for text in texts {
        let name = text.parse()?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

/// Seconds, or never; `None` is as the host says.
fn after(after: api::After) -> Option<After> {
    match after {
        api::After::Seconds(seconds) => Some(After::seconds(seconds)),
        api::After::Word(api::AfterWord::Never) => Some(After::NEVER),
        api::After::Word(api::AfterWord::Default) => None,
    }
}

/// A volume, and where it is wanted.
pub(crate) fn volume(volume: api::VolumeSpec) -> Result<VolumeMount, Refusal> {
    let api::VolumeSpec { name, mount, read_only } = volume;
    Ok(VolumeMount { name: name.parse()?, mount: mount.parse()?, read_only })
}

/// Refuses, of a create with `from`, what only a fresh sandbox can be given.
pub(crate) fn only_what_a_copy_takes(request: &api::CreateRequest) -> Result<(), Refusal> {
    let fresh = api::CreateRequest::default();
    let given = [
        ("image", request.image != fresh.image),
        ("cpus", request.cpus != fresh.cpus),
        ("memory_mb", request.memory_mb != fresh.memory_mb),
        ("env", !request.env.is_empty()),
        ("secrets", !request.secrets.is_empty()),
        ("net", request.net.is_some()),
        ("egress", request.egress.is_some()),
        ("net_rate", request.net_rate.is_some()),
        ("disk_rate", request.disk_rate.is_some()),
        ("files", !request.files.is_empty()),
        ("volumes", !request.volumes.is_empty()),
        ("init", request.init.is_some()),
        ("warm_after_sec", request.warm_after_sec.is_some()),
        ("cold_after_sec", request.cold_after_sec.is_some()),
        ("sleep_busy", request.sleep_busy.is_some()),
    ];
    match given.into_iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((field, _)) => Err(Refusal::bad_request(format!(
            "`{field}` cannot be given together with `from`, where it comes from"
        ))
        .hint(format!("leave `{field}` out, or create a sandbox without `from`"))),
    }
}

/// What may be said of a copy, whatever it is a copy of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Copy {
    pub(crate) labels: Labels,
    pub(crate) keep_hot: bool,
    pub(crate) disk_size: Option<Mebibytes>,
    pub(crate) strict: bool,
}

impl Copy {
    /// Checked, as far as that is possible without knowing of what.
    pub(crate) fn new(
        labels: Labels,
        keep_hot: bool,
        disk_size_mb: Option<u64>,
        strict: bool,
    ) -> Result<Self, Refusal> {
        let disk_size = disk_size_mb.map(Mebibytes);
        SandboxSpec::check_disk_size(disk_size)?;
        SandboxSpec::check_labels(&labels)?;
        Ok(Self { labels, keep_hot, disk_size, strict })
    }

    pub(crate) fn resume(self, name: SandboxName) -> sandbox::Resume {
        let Self { labels, keep_hot, disk_size, strict } = self;
        sandbox::Resume { name, labels, keep_hot, disk_size, strict }
    }

    pub(crate) fn fork(self, names: Vec<SandboxName>) -> sandbox::Fork {
        let Self { labels, keep_hot, disk_size, strict } = self;
        sandbox::Fork { names, labels, keep_hot, disk_size, strict }
    }
}

/// The most copies that one request makes.
pub(crate) const MAX_COPIES: u32 = 64;

/// Checks how many copies are wanted.
pub(crate) fn copies(count: u32) -> Result<u32, Refusal> {
    if (1..=MAX_COPIES).contains(&count) {
        return Ok(count);
    }
    Err(Refusal::bad_request(format!("a count of {count} is not possible"))
        .hint(format!("use 1 to {MAX_COPIES}, and fork again for more")))
}

/// The names of so many copies: the name itself for one, numbered from 1 for several.
pub(crate) fn copy_names(base: &str, count: u32) -> Result<Vec<SandboxName>, Refusal> {
    if count == 1 {
        return Ok(vec![base.parse()?]);
    }
    // The base must be a name by itself: "x-" would give names that are.
    let _: SandboxName = base.parse()?;
    Ok((1..=count).map(|number| format!("{base}-{number}").parse()).collect::<Result<_, _>>()?)
}

/// What a snapshot is to be.
pub(crate) fn snapshot(request: api::SnapshotRequest) -> Result<sandbox::SnapshotWish, Refusal> {
    let api::SnapshotRequest { name, disk_only } = request;
    Ok(sandbox::SnapshotWish { name: name.parse()?, disk_only })
}

fn guest_file(file: api::FileSpec) -> Result<GuestFile, Refusal> {
    let api::FileSpec { path, content_base64, mode } = file;
    let content = BASE64.decode(&content_base64).map_err(|error| {
        Refusal::bad_request(format!("file {path:?}: `content_base64` is not base64: {error}"))
    })?;
    let mode = mode.as_deref().map_or(Ok(DEFAULT_MODE), octal_mode)?;
    Ok(GuestFile { path, content, mode })
}

/// Permission bits as people write them: `644`, `0644`.
pub(crate) fn octal_mode(text: &str) -> Result<u32, Refusal> {
    u32::from_str_radix(text.strip_prefix("0o").unwrap_or(text), 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| {
            Refusal::bad_request(format!("mode {text:?} is not octal permission bits")).hint("use e.g. 0644")
        })
}

/// `key=value` filters, all of which must match.
pub(crate) fn label_filters(filters: Vec<String>) -> Result<Labels, Refusal> {
    let mut labels = Labels::new();
    for filter in filters {
        let (key, value) = filter
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .ok_or_else(|| Refusal::bad_request(format!("label {filter:?} is not KEY=VALUE")))?;
        labels.insert(key.to_owned(), value.to_owned());
    }
    Ok(labels)
}

/// A change of a sandbox's description.
pub(crate) fn edit(request: api::EditRequest) -> Result<sandbox::Edit, Refusal> {
    let api::EditRequest {
        name,
        keep_hot,
        warm_after_sec,
        cold_after_sec,
        sleep_busy,
        net_rate,
        disk_rate,
        labels,
    } = request;
    Ok(sandbox::Edit {
        name: name.map(|name| name.parse()).transpose()?,
        keep_hot,
        warm_after: warm_after_sec.map(after),
        cold_after: cold_after_sec.map(after),
        sleep_busy,
        net_rate: net_rate.map(|rate| rate_or_default(&rate)).transpose()?,
        disk_rate: disk_rate.map(|rate| rate_or_default(&rate)).transpose()?,
        labels,
    })
}

/// A rate; `None` is as the host says.
fn rate_or_default(text: &str) -> Result<Option<types::Rate>, Refusal> {
    Ok(if text == "default" { None } else { Some(text.parse()?) })
}

/// A command, and the bytes for its standard input.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) exec: wire::Exec,
    pub(crate) stdin: Option<Vec<u8>>,
}

/// A command of `POST .../exec`.
pub(crate) fn exec(request: api::ExecRequest) -> Result<Command, Refusal> {
    if request.tty.is_some() || request.stdin {
        return Err(Refusal::bad_request("`tty` and `stdin` need the WebSocket at GET /sandboxes/{id}/exec")
            .hint("give the whole input as `stdin_base64`"));
    }
    if request.detach && !request.stdin_base64.is_empty() {
        return Err(Refusal::bad_request("a detached command has no standard input")
            .hint("leave `stdin_base64` or `detach` out"));
    }
    command(request)
}

/// A command of the exec WebSocket, whose standard input arrives as messages.
pub(crate) fn live_exec(request: api::ExecRequest) -> Result<wire::Exec, Refusal> {
    if !request.stdin_base64.is_empty() || request.detach {
        return Err(Refusal::bad_request("`stdin_base64` and `detach` belong to POST /sandboxes/{id}/exec"));
    }
    let live = request.stdin;
    let Command { mut exec, .. } = command(request)?;
    exec.stdin = live;
    Ok(exec)
}

fn command(request: api::ExecRequest) -> Result<Command, Refusal> {
    let api::ExecRequest { cmd, timeout_sec, env, cwd, user, stdin_base64, detach, stdin: _, tty } = request;
    if cmd.first().is_none_or(String::is_empty) {
        return Err(Refusal::bad_request("`cmd` names no program").hint("use e.g. [\"echo\",\"hi\"]"));
    }
    let nul = cmd.iter().chain(env.keys()).chain(env.values()).chain([&cwd, &user]);
    if nul.into_iter().any(|text| text.contains('\0')) {
        return Err(Refusal::bad_request("the command has a NUL byte"));
    }
    check_env(&env)?;
    let stdin = if stdin_base64.is_empty() {
        None
    } else {
        let bytes = BASE64
            .decode(&stdin_base64)
            .map_err(|error| Refusal::bad_request(format!("`stdin_base64` is not base64: {error}")))?;
        Some(bytes)
    };
    Ok(Command {
        exec: wire::Exec {
            argv: cmd,
            env,
            cwd: Some(cwd).filter(|cwd| !cwd.is_empty()),
            user: Some(user).filter(|user| !user.is_empty()),
            timeout_ms: timeout_sec.map(timeout_ms).transpose()?,
            stdin: stdin.is_some(),
            tty: tty.map(|tty| terminal(tty.rows, tty.cols, tty.term)),
            detach,
        },
        stdin,
    })
}

fn check_env(env: &BTreeMap<String, String>) -> Result<(), Refusal> {
    match env.keys().find(|key| key.is_empty() || key.contains('=')) {
        None => Ok(()),
        Some(key) => Err(Refusal::bad_request(format!("environment name {key:?} is not possible"))),
    }
}

fn timeout_ms(seconds: f64) -> Result<u64, Refusal> {
    std::time::Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|_| seconds > 0.0 && seconds <= MAX_TIMEOUT_SEC)
        .and_then(|time| u64::try_from(time.as_millis()).ok())
        .map(|ms| ms.max(1))
        .ok_or_else(|| {
            Refusal::bad_request(format!("`timeout_sec` of {seconds} is not possible"))
                .hint("use more than 0 and at most 2592000 seconds")
        })
}

/// A terminal's shape; a client without one gets the classic 24 by 80.
pub(crate) fn terminal(rows: u16, cols: u16, term: Option<String>) -> wire::Tty {
    wire::Tty {
        rows: if rows == 0 { 24 } else { rows },
        cols: if cols == 0 { 80 } else { cols },
        term: term.unwrap_or_else(|| DEFAULT_TERM.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_named_once_and_as_a_variable() {
        let create = |secrets: &[&str]| {
            let secrets = secrets.iter().map(|name| (*name).to_owned()).collect();
            let request = api::CreateRequest { secrets, ..Default::default() };
            create(request, "a".parse().unwrap(), Owner::admin())
        };
        let names: Vec<SecretName> = vec!["B".parse().unwrap(), "A".parse().unwrap()];
        assert_eq!(create(&["B", "A", "B"]).unwrap().secrets, names);
        assert!(create(&["a-b"]).unwrap_err().detail().message.contains("a-b"));
    }

    #[test]
    fn volumes_of_a_create_are_checked_by_name_and_path() {
        let name: SandboxName = "a".parse().unwrap();
        let with = |volume: &str, mount: &str| api::CreateRequest {
            volumes: vec![api::VolumeSpec { name: volume.into(), mount: mount.into(), read_only: true }],
            ..Default::default()
        };
        let spec = create(with("v", "/data/"), name.clone(), Owner::admin()).unwrap();
        assert_eq!((spec.volumes[0].mount.as_str(), spec.volumes[0].read_only), ("/data", true));
        for (volume, mount) in [("V", "/data"), ("", "/data"), ("v", "data"), ("v", "/etc"), ("v", "/a/../b")]
        {
            let refusal = create(with(volume, mount), name.clone(), Owner::admin()).unwrap_err();
            assert_eq!(refusal.detail().code, "bad_request", "{volume} {mount}");
        }
    }

    #[test]
    fn what_comes_from_the_source_cannot_be_given_beside_it() {
        let from = || api::CreateRequest { from: Some("b".into()), ..Default::default() };
        let file = api::FileSpec { path: "/a".into(), content_base64: String::new(), mode: None };
        let volume = api::VolumeSpec { name: "v".into(), mount: "/v".into(), read_only: false };
        let some = || BTreeMap::from([("A".to_owned(), "b".to_owned())]);
        for (field, request) in [
            ("image", api::CreateRequest { image: "other".into(), ..from() }),
            ("cpus", api::CreateRequest { cpus: 2, ..from() }),
            ("memory_mb", api::CreateRequest { memory_mb: 1024, ..from() }),
            ("env", api::CreateRequest { env: some(), ..from() }),
            ("secrets", api::CreateRequest { secrets: vec!["s".into()], ..from() }),
            ("files", api::CreateRequest { files: vec![file], ..from() }),
            ("volumes", api::CreateRequest { volumes: vec![volume], ..from() }),
            ("init", api::CreateRequest { init: Some("true".into()), ..from() }),
        ] {
            let refusal = only_what_a_copy_takes(&request).unwrap_err().detail();
            assert!(
                refusal.code == "bad_request" && refusal.message.contains(&format!("`{field}`")),
                "{field}"
            );
            assert!(refusal.hint.contains("leave"), "{field}");
        }
        let allowed = api::CreateRequest {
            name: Some("a".into()),
            labels: some(),
            keep_hot: true,
            disk_size_mb: Some(4096),
            strict: true,
            ..from()
        };
        assert!(only_what_a_copy_takes(&allowed).is_ok());
    }

    #[test]
    fn copies_are_counted_and_named() {
        for count in [0, 65, 1_000_000_000, u32::MAX] {
            assert!(copies(count).unwrap_err().detail().hint.contains("1 to 64"), "{count}");
        }
        assert!(copies(1).is_ok() && copies(64).is_ok());
        let names = |base: &str, count| {
            copy_names(base, count).map(|names| names.into_iter().map(String::from).collect::<Vec<_>>())
        };
        assert_eq!(names("a", 1).unwrap(), ["a"]);
        assert_eq!(names("a", 3).unwrap(), ["a-1", "a-2", "a-3"]);
        let long = "x".repeat(62);
        assert!(names(&long, 1).is_ok());
        for (base, count) in [(long.as_str(), 2), ("", 1), ("", 2), ("a-", 2), ("..", 1), ("a/b", 3)] {
            assert_eq!(names(base, count).unwrap_err().detail().code, "bad_request", "{base}");
        }
    }

    #[test]
    fn labels_and_sizes_of_copies_are_checked_before_anything_is_made() {
        let label = |key: &str| BTreeMap::from([(key.to_owned(), String::new())]);
        assert!(Copy::new(label(""), false, None, false).is_err());
        assert!(Copy::new(label("a=b"), false, None, false).is_err());
        assert!(Copy::new(label("a"), false, Some(0), false).is_err());
        assert!(Copy::new(label("a"), false, Some(u64::MAX), false).is_err());
        assert!(Copy::new(label("a"), true, Some(4096), true).is_ok());
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!(octal_mode("0755").unwrap(), 0o755);
        assert_eq!(octal_mode("600").unwrap(), 0o600);
        for bad in ["", "9", "0o99", "17777", "-1", "rwx"] {
            assert!(octal_mode(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_command_without_a_program_or_with_a_senseless_limit_is_refused() {
        assert!(exec(api::ExecRequest::default()).is_err());
        for seconds in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e12] {
            let request = api::ExecRequest {
                cmd: vec!["true".into()],
                timeout_sec: Some(seconds),
                ..Default::default()
            };
            assert!(exec(request).is_err(), "{seconds}");
        }
        let request = api::ExecRequest {
            cmd: vec!["cat".into()],
            timeout_sec: Some(0.25),
            stdin_base64: "aGk=".into(),
            ..Default::default()
        };
        let command = exec(request).unwrap();
        assert_eq!(command.exec.timeout_ms, Some(250));
        assert_eq!(command.stdin.as_deref(), Some(&b"hi"[..]));
    }
}
