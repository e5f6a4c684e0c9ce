//! Sleep by itself over minutes on real guests: `cargo xtask test --long`. Short versions of each are in `vm_thermal` and
//! `vm_traffic`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::TestHost;

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");
const SERVICE: &[u8] = include_bytes!("guest/traffic.pl");

fn exec(host: &TestHost, sandbox: &str, script: &str) -> (u16, Value) {
    host.post(&format!("/sandboxes/{sandbox}/exec"), &json!({ "cmd": ["sh", "-c", script] }))
}

fn count(host: &TestHost, kind: &str) -> usize {
    host.json(&["events"]).as_array().unwrap().iter().filter(|event| event["kind"] == kind).count()
}

#[test]
fn an_exec_of_ninety_seconds_is_never_paused() {
    let host = TestHost::start_with(BHATTI, &["--warm-after", "2", "--cold-after", "4"]);
    host.ok(&["create", "--name", "long"]);
    let (status, reply) = exec(&host, "long", "sleep 90; echo done");
    assert_eq!((status, reply["stdout"].as_str()), (200, Some("done\n")), "{reply}");
    assert_eq!((count(&host, "sandbox.paused"), count(&host, "sandbox.stopped")), (0, 0));
    // It was no accident: now that nobody works it goes the usual way.
    host.follow_events().wait_for("sandbox.stopped");
}

#[test]
fn a_response_of_three_minutes_with_an_event_a_second_is_never_paused() {
    let args = ["--warm-after", "0", "--cold-after", "1", "--sleep-busy", "--thermal-tick", "20"];
    let host = TestHost::start_with(BHATTI, &args);
    host.ok(&["create", "--name", "web", "--keep-hot"]);
    let placed = host.run_with_input(&["file", "write", "web", "/tmp/service.pl"], SERVICE);
    assert_eq!(placed.code, 0, "{}", placed.stderr);
    host.ok(&["exec", "web", "--detach", "--", "perl", "/tmp/service.pl", "8000"]);
    let listens = "until : < /dev/tcp/127.0.0.1/8000; do sleep 0.05; done 2> /dev/null";
    host.ok(&["exec", "web", "--", "bash", "-c", listens]);

    let mut stream = TcpStream::connect(host.daemon().url.strip_prefix("http://").unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let head = format!(
        "GET /sandboxes/web/proxy/8000/sse/180 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\
         Connection: close\r\n\r\n",
        host.key()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    assert!(lines.any(|line| line == "data: 1"));
    // From here on the response alone keeps it hot.
    host.ok(&["edit", "web", "--no-keep-hot"]);
    let began = Instant::now();
    let seen: Vec<String> = lines.filter(|line| line.starts_with("data: ")).collect();
    assert_eq!(seen.len(), 179);
    assert_eq!(seen.last().map(String::as_str), Some("data: 180"));
    assert!(began.elapsed() > Duration::from_secs(170), "it took {:?}", began.elapsed());
    assert_eq!(count(&host, "sandbox.paused"), 0, "paused while a response was in flight");
    host.follow_events().wait_for("sandbox.stopped");
}

#[test]
fn a_look_every_millisecond_under_twenty_clients_for_a_minute_fails_no_request() {
    let args = ["--warm-after", "0", "--cold-after", "never", "--sleep-busy", "--thermal-tick", "1"];
    let host = TestHost::start_with(BHATTI, &args);
    host.ok(&["create", "--name", "busy"]);
    let until = Instant::now() + Duration::from_secs(60);
    let rounds: usize = thread::scope(|scope| {
        let clients: Vec<_> = (0..20)
            .map(|client| {
                let host = &host;
                scope.spawn(move || {
                    let mut round = 0;
                    while Instant::now() < until {
                        let (status, reply) = exec(host, "busy", "echo $((6*7))");
                        assert_eq!(
                            (status, reply["stdout"].as_str()),
                            (200, Some("42\n")),
                            "{client}/{round}: {reply}"
                        );
                        round += 1;
                    }
                    round
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    println!("{rounds} requests, {} pauses", count(&host, "sandbox.paused"));
    assert!(rounds >= 200, "{rounds} requests in a minute");
}

#[test]
fn a_hundred_requests_at_once_on_twenty_sleeping_sandboxes_wake_each_once() {
    let host = TestHost::start_with(BHATTI, &["--wakes", "4", "--wake-wait", "300"]);
    let names: Vec<String> = (0..20).map(|n| format!("many-{n}")).collect();
    for name in &names {
        host.ok(&["create", "--name", name, "--memory", "256"]);
        host.sh(name, &format!("echo {name} > /dev/shm/nonce"));
        host.ok(&["stop", name]);
    }
    thread::scope(|scope| {
        for n in 0..100 {
            let (host, name) = (&host, &names[n % names.len()]);
            scope.spawn(move || {
                let (status, reply) = exec(host, name, "cat /dev/shm/nonce");
                let expected = format!("{name}\n");
                assert_eq!((status, reply["stdout"].as_str()), (200, Some(&*expected)), "{reply}");
            });
        }
    });
    assert_eq!(count(&host, "sandbox.woken"), names.len());
}

#[test]
fn what_is_kept_hot_is_hot_again_after_every_restart_of_the_daemon() {
    let mut host = TestHost::start_with(BHATTI, &["--stop-all"]);
    host.ok(&["create", "--name", "kept", "--keep-hot"]);
    host.sh("kept", "echo here > /dev/shm/nonce");
    for round in 0..5 {
        host.end_daemon();
        assert!(host.vmm_pids().is_empty(), "round {round}");
        host.start_daemon();
        let woken = count(&host, "sandbox.woken");
        let mut events = host.follow_events();
        for _ in 0..=round {
            events.wait_for("sandbox.woken");
        }
        assert!(woken <= round + 1);
        assert_eq!(host.json(&["inspect", "kept"])["thermal"], "hot", "round {round}");
        // One that was killed leaves it running, and the next one takes it over.
        host.kill_daemon();
        host.start_daemon();
        assert_eq!(host.json(&["inspect", "kept"])["thermal"], "hot", "round {round}");
        assert_eq!(host.sh("kept", "cat /dev/shm/nonce"), "here", "round {round}");
    }
}
