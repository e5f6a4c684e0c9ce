//! Sleep by itself on real guests: what is idle is paused and put to sleep, what works never is.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::thread;

use serde_json::{Value, json};
use testkit::TestHost;

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");

fn thermal(host: &TestHost, sandbox: &str) -> Value {
    host.json(&["inspect", sandbox])["thermal"].clone()
}

fn exec(host: &TestHost, sandbox: &str, script: &str) -> (u16, Value) {
    host.post(&format!("/sandboxes/{sandbox}/exec"), &json!({ "cmd": ["sh", "-c", script] }))
}

#[test]
fn what_is_idle_is_paused_then_put_to_sleep_and_looking_at_it_wakes_nothing() {
    let host =
        TestHost::start_with(BHATTI, &["--warm-after", "1", "--cold-after", "6", "--thermal-tick", "50"]);
    host.ok(&["create", "--name", "idle", "--warm-after", "default"]);
    host.ok(&["create", "--name", "kept", "--keep-hot"]);
    host.ok(&["create", "--name", "slow", "--cold-after", "never"]);
    host.sh("idle", "echo here > /dev/shm/nonce");
    host.follow_events().wait_for("sandbox.paused");
    // Whichever was first: the other one follows, for each has its own clock.
    host.follow_events().wait_for("sandbox.stopped");
    let idle = host.json(&["inspect", "idle"]);
    assert_eq!((&idle["thermal"], &idle["status"]), (&json!("cold"), &json!("stopped")), "{idle}");
    assert_eq!(idle["last_decision"]["action"], "sleep", "{idle}");
    assert!(idle["last_decision"]["reason"].as_str().unwrap().contains("nobody used it for 6 s"), "{idle}");
    // Warm, and asked by everything that only looks: it stays so.
    let slow = host.json(&["inspect", "slow"]);
    assert_eq!((&slow["thermal"], &slow["cold_after_sec"]), (&json!("warm"), &Value::Null), "{slow}");
    for look in [&["list"][..], &["ps", "slow"], &["du"], &["du", "slow"], &["inspect", "slow"]] {
        let _told = host.json(look);
        assert_eq!(thermal(&host, "slow"), "warm", "{look:?} woke it");
    }
    assert_eq!(thermal(&host, "kept"), "hot");
    assert!(
        host.json(&["inspect", "kept"])["last_decision"]["reason"].as_str().unwrap().contains("kept hot")
    );
    // The next request finds both as they were.
    assert_eq!(host.sh("slow", "echo awake"), "awake");
    assert_eq!(host.sh("idle", "cat /dev/shm/nonce"), "here");
}

#[test]
fn a_command_that_works_longer_than_the_time_limit_is_never_paused() {
    let host =
        TestHost::start_with(BHATTI, &["--warm-after", "1", "--cold-after", "600", "--thermal-tick", "20"]);
    host.ok(&["create", "--name", "long"]);
    // The guest's own clock would show a pause: it counts only while its processor runs.
    let script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1; done; echo done";
    assert_eq!(host.sh("long", script), "done");
    let kinds = host.json(&["events"]);
    let paused = kinds.as_array().unwrap().iter().any(|event| event["kind"] == "sandbox.paused");
    assert!(!paused, "paused while a request was in flight");
    // A detached command is work, too, unless it is told otherwise.
    host.ok(&["exec", "long", "--detach", "--", "sh", "-c", "sleep 7; exit 0"]);
    host.follow_events().wait_for("sandbox.paused");
    // Told by the event: the next look, 20 ms later, finds it paused and decides to leave it so.
    let events = host.json(&["events"]);
    let paused = events.as_array().unwrap().iter().find(|event| event["kind"] == "sandbox.paused").unwrap();
    assert!(paused["detail"]["why"].as_str().unwrap().contains("nobody used it for 1 s"), "{paused}");
    let sessions = host.json(&["ps", "long"]);
    assert_eq!(sessions[0]["exit_code"], 0, "it was paused only after the command's end: {sessions}");
    host.ok(&["edit", "long", "--sleep-busy", "--cold-after", "2"]);
    host.ok(&["exec", "long", "--detach", "--", "sleep", "600"]);
    host.follow_events().wait_for("sandbox.stopped");
    assert_ne!(thermal(&host, "long"), "hot");
}

#[test]
fn a_look_every_millisecond_under_twenty_clients_fails_no_request() {
    let args = ["--warm-after", "0", "--cold-after", "never", "--sleep-busy", "--thermal-tick", "1"];
    let host = TestHost::start_with(BHATTI, &args);
    host.ok(&["create", "--name", "busy"]);
    // Alone, so that it is paused after each.
    let mut events = host.follow_events();
    for round in 0..20 {
        let (status, reply) = exec(&host, "busy", "echo alone");
        assert_eq!((status, reply["stdout"].as_str()), (200, Some("alone\n")), "round {round}: {reply}");
        events.wait_for("sandbox.paused");
    }
    thread::scope(|scope| {
        for client in 0..20 {
            let host = &host;
            scope.spawn(move || {
                for round in 0..4 {
                    let (status, reply) = exec(host, "busy", "sleep 0.01; echo $((6*7))");
                    assert_eq!(
                        (status, reply["stdout"].as_str()),
                        (200, Some("42\n")),
                        "{client}/{round}: {reply}"
                    );
                }
            });
        }
    });
}

#[test]
fn what_is_to_stay_hot_is_woken_by_the_next_daemon() {
    let mut host = TestHost::start_with(BHATTI, &["--stop-all"]);
    host.ok(&["create", "--name", "kept", "--keep-hot"]);
    host.ok(&["create", "--name", "other"]);
    host.sh("kept", "echo here > /dev/shm/nonce");
    host.end_daemon();
    assert!(host.vmm_pids().is_empty());
    host.start_daemon();
    host.follow_events().wait_for("sandbox.woken");
    assert_eq!((thermal(&host, "kept"), thermal(&host, "other")), (json!("hot"), json!("cold")));
    assert_eq!(host.sh("kept", "cat /dev/shm/nonce"), "here");
}

#[test]
fn many_requests_on_sleeping_sandboxes_wake_each_once_and_wait_their_turn() {
    let host = TestHost::start_with(BHATTI, &["--wakes", "2", "--wake-wait", "120"]);
    let names: Vec<String> = (0..5).map(|n| format!("many-{n}")).collect();
    for name in &names {
        host.ok(&["create", "--name", name]);
        host.ok(&["stop", name]);
    }
    thread::scope(|scope| {
        for n in 0..25 {
            let (host, name) = (&host, &names[n % names.len()]);
            scope.spawn(move || {
                let (status, reply) = exec(host, name, "echo up");
                assert_eq!((status, reply["stdout"].as_str()), (200, Some("up\n")), "{name}: {reply}");
            });
        }
    });
    let events = host.json(&["events"]);
    let woken = events.as_array().unwrap().iter().filter(|event| event["kind"] == "sandbox.woken").count();
    assert_eq!(woken, names.len(), "each was woken once");
}

#[test]
fn what_a_guest_has_freed_is_not_kept_while_it_sleeps() {
    let host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "box"]);
    host.sh("box", "echo here > /dev/shm/nonce; head -c 150M /dev/urandom > /dev/shm/x; rm /dev/shm/x");
    host.ok(&["stop", "box"]);
    let bytes = host.json(&["inspect", "box"])["last_transition"]["bytes"].clone();
    let mib = |figure: &str| bytes[figure].as_u64().unwrap() >> 20;
    assert!(mib("private") >= 100, "the guest had written to that memory: {bytes}");
    assert!(mib("stored") < 8, "{bytes}");
    assert_eq!(host.sh("box", "cat /dev/shm/nonce"), "here");
    // What was given back is not the sandbox's any more when it is awake, either.
    host.ok(&["stop", "box"]);
    let again = host.json(&["inspect", "box"])["last_transition"]["bytes"].clone();
    assert!(again["private"].as_u64().unwrap() >> 20 < 32, "{again}");
    // What is in use stays.
    host.sh("box", "head -c 20M /dev/urandom > /dev/shm/kept; md5sum < /dev/shm/kept > /dev/shm/sum");
    host.ok(&["stop", "box"]);
    host.sh("box", "[ \"$(md5sum < /dev/shm/kept)\" = \"$(cat /dev/shm/sum)\" ]");
}

#[test]
fn times_that_make_no_sense_are_refused() {
    let host = TestHost::start(BHATTI);
    host.refused(&["serve", "--warm-after", "60", "--cold-after", "30"], 2, &["cold-after", "shorter"]);
    host.refused(&["serve", "--warm-after", "soon"], 2, &["never"]);
    host.refused(
        &["create", "--name", "x", "--warm-after", "never"],
        1,
        &["cold-after is shorter", "never or more"],
    );
    host.refused(&["create", "--name", "x", "--warm-after", "-1"], 2, &[]);
    let (status, reply) = host.post("/sandboxes", &json!({ "name": "x", "warm_after_sec": "sometimes" }));
    assert_eq!(status, 400, "{reply}");
    host.ok(&["create", "--name", "x", "--warm-after", "5", "--cold-after", "never", "--sleep-busy"]);
    host.refused(&["edit", "x", "--cold-after", "4"], 1, &["cold-after is shorter"]);
    let said =
        host.json(&["edit", "x", "--cold-after", "default", "--warm-after", "default", "--no-sleep-busy"]);
    assert_eq!(
        (&said["warm_after_sec"], &said["cold_after_sec"], &said["sleep_busy"]),
        (&json!(30), &json!(1800), &json!(false)),
        "{said}"
    );
}

#[test]
fn what_does_not_fit_into_memory_is_refused_unless_an_idle_one_can_make_room() {
    let host =
        TestHost::start_with(BHATTI, &["--max-memory", "1100", "--warm-after", "1", "--thermal-tick", "50"]);
    host.refused(&["create", "--name", "huge", "--memory", "1101"], 1, &["1101 MiB", "1100", "--max-memory"]);
    host.ok(&["create", "--name", "one", "--keep-hot"]);
    host.ok(&["create", "--name", "two", "--keep-hot"]);
    host.refused(
        &["create", "--name", "three"],
        1,
        &["do not fit", "1024 MiB of the 1100 MiB", "stop or destroy"],
    );
    let (status, reply) = host.post("/sandboxes", &json!({ "name": "three" }));
    assert_eq!((status, reply["error"]["code"].as_str()), (503, Some("no_memory")), "{reply}");
    assert_eq!(host.json(&["list"]).as_array().unwrap().len(), 2, "nothing is left of what was refused");
    // One that is paused gives up its memory for the new one, and takes it back when it is wanted and can be had.
    host.sh("two", "echo here > /dev/shm/nonce");
    host.ok(&["edit", "two", "--no-keep-hot"]);
    host.follow_events().wait_for("sandbox.paused");
    host.ok(&["create", "--name", "three", "--keep-hot"]);
    assert_eq!((thermal(&host, "one"), thermal(&host, "two")), (json!("hot"), json!("cold")));
    let two = host.json(&["inspect", "two"]);
    assert!(two["last_decision"]["reason"].as_str().unwrap().contains("short of memory"), "{two}");
    host.refused(&["exec", "two", "--", "true"], 1, &["do not fit"]);
    host.ok(&["destroy", "-y", "three"]);
    assert_eq!(host.sh("two", "cat /dev/shm/nonce"), "here");
}

#[test]
fn when_the_host_is_short_of_memory_the_paused_ones_go_first() {
    let proc = tempfile::tempdir().unwrap();
    let meminfo = |available: u64| {
        let text = format!("MemTotal: 16777216 kB\nMemAvailable: {available} kB\n");
        let staged = proc.path().join("meminfo.new");
        std::fs::write(&staged, text).unwrap();
        std::fs::rename(staged, proc.path().join("meminfo")).unwrap();
    };
    meminfo(12 << 20);
    let at = proc.path().to_str().unwrap();
    let host = TestHost::start_with(BHATTI, &["--proc", at, "--warm-after", "1", "--thermal-tick", "50"]);
    host.ok(&["create", "--name", "kept", "--keep-hot"]);
    host.ok(&["create", "--name", "idle"]);
    host.follow_events().wait_for("sandbox.paused");
    assert_eq!(thermal(&host, "idle"), "warm");
    meminfo(100 << 10);
    host.follow_events().wait_for("sandbox.stopped");
    assert_eq!((thermal(&host, "idle"), thermal(&host, "kept")), (json!("cold"), json!("hot")));
}

#[test]
fn a_machine_that_stands_by_becomes_a_sandbox_like_any_other_and_only_once() {
    let mut host = TestHost::start_with(BHATTI, &["--standby", "1"]);
    let first = host.json(&["create", "--name", "first"]);
    assert_eq!(first["boot"], "template", "{first}");
    let mut events = host.follow_events();
    events.wait_for("standby.ready");
    assert_eq!(host.vmm_pids().len(), 2);
    assert_eq!(host.json(&["list"]).as_array().unwrap().len(), 1, "it is nobody's yet");
    let note = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(note.path(), "from the host").unwrap();
    let file = format!("{}:/root/note", note.path().display());
    let args = ["create", "--name", "second", "--env", "WHO=me", "--file", &file, "--disk-size", "2048"];
    let second = host.json(&args);
    assert_eq!((&second["boot"], &second["thermal"]), (&json!("standby"), &json!("hot")), "{second}");
    let told = host.ok(&[
        "exec",
        "second",
        "--user",
        "root",
        "--",
        "sh",
        "-c",
        "hostname; echo $WHO; cat /root/note",
    ]);
    assert_eq!(told, "second\nme\nfrom the host");
    let who = "cat /etc/machine-id; head -c 16 /dev/urandom | od -An -tx1";
    assert_ne!(host.sh("first", who), host.sh("second", who));
    // The next one is made though somebody works all the time.
    thread::scope(|scope| {
        let working = scope.spawn(|| host.sh("second", "until [ -e /tmp/go ]; do sleep 0.1; done"));
        events.wait_for("standby.ready");
        assert!(!working.is_finished(), "it waits to be told");
        host.sh("second", "touch /tmp/go");
    });
    let third = host.json(&["create", "--name", "third"]);
    assert_eq!(third["boot"], "standby", "{third}");
    assert_ne!(host.sh("third", who), host.sh("second", who));
    host.ok(&["destroy", "-y", "third"]);
    // What comes after is as after any create: it sleeps, wakes, and boots from its own disk.
    host.sh("second", "echo here > /dev/shm/nonce; echo kept > ~/kept; sync");
    host.ok(&["stop", "second"]);
    assert_eq!(host.sh("second", "cat /dev/shm/nonce"), "here");
    // Many at once: each is a machine of its own, wherever it came from.
    thread::scope(|scope| {
        let host = &host;
        let made: Vec<_> = (0..3)
            .map(|n| scope.spawn(move || host.json(&["create", "--name", &format!("more-{n}")])))
            .collect();
        let mut ids: Vec<String> =
            made.into_iter().map(|one| one.join().unwrap()["id"].as_str().unwrap().to_owned()).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 3);
    });
    for n in 0..3 {
        let name = format!("more-{n}");
        assert_eq!(host.sh(&name, "hostname"), name);
    }
    // An orderly end leaves sandboxes running and nothing else.
    host.end_daemon();
    assert_eq!(host.vmm_pids().len(), 5);
}

#[test]
fn a_machine_that_stood_by_goes_with_its_daemon_and_before_any_sandbox() {
    let mut host = TestHost::start_with(BHATTI, &["--standby", "1", "--max-memory", "1024"]);
    host.ok(&["create", "--name", "one", "--keep-hot"]);
    host.follow_events().wait_for("standby.ready");
    assert_eq!(host.vmm_pids().len(), 2);
    host.kill_daemon();
    assert_eq!(host.vmm_pids().len(), 2, "machines outlive a daemon that is killed");
    host.start_daemon();
    assert_eq!(host.vmm_pids().len(), 1, "the next one ends what was nobody's");
    let staging = std::fs::read_dir(host.data_dir().join("sandboxes")).unwrap().count();
    assert_eq!(staging, 1, "and removes its files");
    assert_eq!(host.sh("one", "echo lives"), "lives");
    // Two machines fit: the one that stands by takes the room of none that is wanted.
    host.ok(&["create", "--name", "two", "--keep-hot"]);
    host.ok(&["destroy", "-y", "one"]);
    host.ok(&["create", "--name", "three", "--keep-hot"]);
    host.ok(&["destroy", "-y", "three"]);
    host.ok(&["create", "--name", "bigger", "--memory", "511"]);
    assert_eq!(host.sh("bigger", "hostname"), "bigger");
}
