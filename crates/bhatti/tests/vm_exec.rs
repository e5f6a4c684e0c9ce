//! Commands in real guests: what goes in, what comes out, and how they end.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;

use serde_json::json;
use testkit::TestHost;

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");

fn host_with(name: &str) -> TestHost {
    let host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", name, "--env", "FROM_CREATE=yes"]);
    host
}

#[test]
fn a_command_ends_here_as_it_ended_there() {
    let host = host_with("ends");
    let code = |script: &str| host.run(&["exec", "ends", "--", "sh", "-c", script]).code;
    assert_eq!(code("exit 0"), 0);
    assert_eq!(code("exit 7"), 7);
    assert_eq!(code("kill -9 $$"), 137);
    assert_eq!(code("kill -15 $$"), 143);
    let missing = host.run(&["exec", "ends", "--", "no-such-command"]);
    assert_eq!(missing.code, 127, "{}", missing.stderr);
    assert!(missing.stderr.contains("no-such-command"), "{}", missing.stderr);
    assert_eq!(host.run(&["exec", "ends", "--", "/etc/passwd"]).code, 126);
    assert_eq!(host.run(&["exec", "ends", "--", "/tmp"]).code, 126);
    assert_eq!(host.run(&["exec", "ends"]).code, 2, "no command is wrong usage");
}

#[test]
fn streams_are_apart_and_every_byte_arrives() {
    let host = host_with("bytes");
    let split = host.run(&["exec", "bytes", "--", "sh", "-c", "echo out; echo err >&2"]);
    assert_eq!((split.text().as_str(), split.stderr.as_str()), ("out\n", "err\n"));
    // All byte values, out and back in.
    let all: Vec<u8> = (0..=255u8).cycle().take(3_000_000).collect();
    let echoed = host.run_with_input(&["exec", "bytes", "--stdin", "--", "cat"], &all);
    assert_eq!(echoed.code, 0, "{}", echoed.stderr);
    assert!(echoed.stdout == all, "{} of {} bytes", echoed.stdout.len(), all.len());
    // Without --stdin there is none, and a reader of it ends at once.
    assert_eq!(host.run(&["exec", "bytes", "--", "cat"]).stdout, b"");
    let (status, reply) =
        host.post("/sandboxes/bytes/exec", &json!({ "cmd": ["wc", "-c"], "stdin_base64": "AAECAw==" }));
    assert_eq!((status, reply["stdout"].as_str().unwrap().trim()), (200, "4"), "{reply}");
    let (_, reply) = host.post("/sandboxes/bytes/exec", &json!({ "cmd": ["printf", "\\377\\376"] }));
    assert_eq!(reply["stdout_base64"], "//4=", "what is no UTF-8 is given exactly: {reply}");
}

#[test]
fn output_streams_live_and_is_cut_at_the_cap_when_buffered() {
    let host = host_with("live");
    let mut child = host
        .command(&["exec", "live", "--", "sh", "-c", "echo first; read never < /dev/zero; sleep 3600"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "first\n", "seen while the command still runs");
    child.kill().unwrap();
    child.wait().unwrap();
    let (_, reply) =
        host.post("/sandboxes/live/exec", &json!({ "cmd": ["head", "-c", "12000000", "/dev/zero"] }));
    assert_eq!(reply["truncated"], true);
    assert_eq!(reply["exit_code"], 0);
    let text = reply["stdout"].as_str().unwrap();
    assert!(
        text.len() >= 10 << 20
            && text.len() < (10 << 20) + 200
            && text.ends_with("[bhatti: output cut at 10 MiB]\n"),
        "{}",
        text.len()
    );
}

#[test]
fn a_vanished_client_or_a_passed_timeout_kills_the_whole_group() {
    let host = host_with("kill");
    // The client vanishes: sh and its child sleep are both gone.
    let mut child = host
        .command(&["exec", "kill", "--", "sh", "-c", "echo $$; sleep 7001; echo unreachable"])
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let gone = "until ! ps -eo args= | grep -q '^sleep 7001'; do sleep 0.05; done; echo gone";
    assert_eq!(host.sh("kill", gone), "gone");
    // The timeout passes: 124 as timeout(1) has it, at about its time.
    let began = std::time::Instant::now();
    let timed = host.run(&["exec", "kill", "--timeout", "1", "--", "sh", "-c", "sleep 7002 & sleep 7003"]);
    assert_eq!(timed.code, 124, "{}{}", timed.text(), timed.stderr);
    assert!(began.elapsed().as_secs() < 30, "{:?}", began.elapsed());
    assert_eq!(host.sh("kill", &gone.replace("7001", "700[23]")), "gone");
    // 50 of those leave every slot free.
    for _ in 0..50 {
        let (_, reply) =
            host.post("/sandboxes/kill/exec", &json!({ "cmd": ["sleep", "7004"], "timeout_sec": 0.05 }));
        assert_eq!(reply["timed_out"], true, "{reply}");
    }
    assert_eq!(host.sh("kill", "echo free"), "free");
}

#[test]
fn a_child_that_keeps_the_output_open_does_not_hold_the_status_back() {
    let host = host_with("held");
    let began = std::time::Instant::now();
    let held = host.run(&["exec", "held", "--", "sh", "-c", "sleep 600 & echo started"]);
    assert_eq!((held.code, held.text().as_str()), (0, "started\n"));
    assert!(began.elapsed().as_secs() < 60, "{:?}", began.elapsed());
}

#[test]
fn who_where_and_with_what_a_command_runs() {
    let host = host_with("who");
    assert_eq!(
        host.sh("who", "id -u; echo $HOME; pwd; echo $FROM_CREATE; echo $USER"),
        "1000\n/home/user\n/home/user\nyes\nuser"
    );
    let out = host.ok(&[
        "exec",
        "who",
        "--user",
        "root",
        "--cwd",
        "/etc",
        "--env",
        "X=1 2",
        "--",
        "sh",
        "-c",
        "id -u; pwd; echo \"$X\"; echo $FROM_CREATE",
    ]);
    assert_eq!(out, "0\n/etc\n1 2\nyes\n");
    assert_eq!(host.sh("who", "sudo id -u"), "0");
    let nobody = host.run(&["exec", "who", "--user", "nosuchuser", "--", "true"]);
    assert_eq!(nobody.code, 1);
    assert!(nobody.stderr.contains("nosuchuser"), "{}", nobody.stderr);
    let nowhere = host.run(&["exec", "who", "--cwd", "/nowhere", "--", "true"]);
    assert_ne!(nowhere.code, 0);
    assert!(nowhere.stderr.contains("/nowhere"), "{}", nowhere.stderr);
}

#[test]
fn detached_commands_and_init_are_sessions() {
    let host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "sess", "--init", "echo init-was-here; exec sleep 9000"]);
    let detached = host.json(&["exec", "sess", "--detach", "--", "sleep", "9001"]);
    assert!(detached["session"].is_string(), "{detached}");
    let sessions = host.json(&["ps", "sess"]);
    let kinds: Vec<&str> = sessions.as_array().unwrap().iter().filter_map(|s| s["kind"].as_str()).collect();
    assert!(kinds.contains(&"init") && kinds.contains(&"exec"), "{sessions}");
    assert_eq!(host.sh("sess", "ps -eo args= | grep -c '^sleep 900[01]'"), "2");
}

#[test]
fn stopping_under_a_running_command_ends_its_stream_with_an_error() {
    let host = host_with("under");
    let mut child =
        host.command(&["exec", "under", "--", "sh", "-c", "echo go; sleep 7005"]).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    host.ok(&["stop", "under"]);
    let status = child.wait().unwrap();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(status.code(), Some(1), "a stream that broke off is 1: {stderr}");
    assert!(stderr.starts_with("error: "), "{stderr}");
    let gone = "until ! ps -eo args= | grep -q '^sleep 7005'; do sleep 0.05; done; echo gone";
    assert_eq!(host.sh("under", gone), "gone", "and its group does not come back with the guest");
}
