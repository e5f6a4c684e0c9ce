//! From what is asked (the JSON of `api`) to what is meant (validated orders for the verbs).

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sandbox::wire;
use types::{GuestFile, Labels, Mebibytes, Owner, SandboxName, SandboxSpec};

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
        files,
        volumes,
        init,
        keep_hot,
        labels,
        from,
        strict,
    } = request;
    let later =
        [("secrets", !secrets.is_empty()), ("volumes", !volumes.is_empty()), ("from", from.is_some())];
    if let Some((field, _)) = later.into_iter().find(|(_, given)| *given) {
        return Err(Refusal::not_supported(field));
    }
    Ok(SandboxSpec {
        name,
        owner,
        image: image.parse()?,
        cpus,
        memory: Mebibytes(memory_mb),
        disk_size: disk_size_mb.map(Mebibytes),
        env,
        files: files.into_iter().map(guest_file).collect::<Result<_, _>>()?,
        init: init.filter(|command| !command.trim().is_empty()),
        labels,
        keep_hot,
        strict,
    })
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
    let api::EditRequest { name, keep_hot, labels } = request;
    Ok(sandbox::Edit { name: name.map(|name| name.parse()).transpose()?, keep_hot, labels })
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
    fn fields_of_later_releases_are_refused_by_name() {
        let name: SandboxName = "a".parse().unwrap();
        let cases = [
            ("secrets", api::CreateRequest { secrets: vec!["s".into()], ..Default::default() }),
            ("from", api::CreateRequest { from: Some("b".into()), ..Default::default() }),
            (
                "volumes",
                api::CreateRequest {
                    volumes: vec![api::VolumeSpec { name: "v".into(), mount: "/v".into(), read_only: false }],
                    ..Default::default()
                },
            ),
        ];
        for (field, request) in cases {
            let refusal = create(request, name.clone(), Owner::admin()).unwrap_err();
            assert_eq!(refusal.detail().code, "not_supported");
            assert!(refusal.detail().message.contains(field));
        }
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
