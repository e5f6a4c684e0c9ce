//! Sleep and wake on real guests: what was in memory is there again, and nothing else ever is.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs::File;
use std::process::Command;
use std::thread;

use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};
use testkit::{Faults, TestHost};

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");

/// The nonce that was put into guest RAM only; a rebooted guest has none.
fn nonce(host: &TestHost, sandbox: &str) -> String {
    host.sh(sandbox, "cat /dev/shm/nonce")
}

#[test]
fn everything_in_the_guest_survives_five_rounds_of_sleep() {
    let host = TestHost::start(BHATTI);
    let created = host.json(&["create", "--name", "five"]);
    assert_eq!(created["boot"], "template", "{created}");
    assert_eq!(created["thermal"], "hot");

    host.sh("five", "echo secret-in-ram > /dev/shm/nonce; echo on-disk > ~/kept; echo tmp > /tmp/kept");
    let detached = host.json(&[
        "exec",
        "five",
        "--detach",
        "--",
        "sh",
        "-c",
        "n=0; while :; do n=$((n+1)); echo $n > /dev/shm/counter; sleep 0.05; done",
    ]);
    let counter_pid = detached["pid"].as_u64().expect("a pid");
    // A shell session with a variable that only its own memory has.
    let mut shell = host.on_terminal(&["shell", "five", "--new"]);
    shell.send("marker=in-the-shell; echo ready-$marker\n");
    shell.wait_for("ready-in-the-shell");
    shell.send("\x1c");
    assert_eq!(shell.end().0, 0);

    let mut last = 0u64;
    for round in 1..=5 {
        let stopped = host.json(&["stop", "five"]);
        assert_eq!(
            (&stopped["thermal"], &stopped["status"]),
            (&json!("cold"), &json!("stopped")),
            "{stopped}"
        );
        assert!(host.vmm_pids().is_empty(), "the VMM is gone in round {round}");
        let dir = host.sandbox_dir("five");
        assert_eq!(std::fs::metadata(dir.join("mem.snap")).unwrap().len(), 512 << 20, "the logical size");
        assert!(dir.join("vm.snap").exists());

        assert_eq!(nonce(&host, "five"), "secret-in-ram", "round {round}");
        let woken = host.json(&["inspect", "five"]);
        assert_eq!(woken["boot"], "resume", "{woken}");
        assert!(!dir.join("mem.snap").exists() || woken["thermal"] == "hot");
        assert_eq!(host.sh("five", "cat ~/kept /tmp/kept"), "on-disk\ntmp");
        assert_eq!(host.sh("five", &format!("test -d /proc/{counter_pid} && echo lives")), "lives");
        let count = || host.sh("five", "cat /dev/shm/counter").parse::<u64>().unwrap_or(0);
        let now = count();
        assert!(now >= last, "the counter went back from {last} to {now}");
        // It goes on counting: asked until it has, for as long as the test may take.
        last = (0..1000).map(|_| count()).find(|&next| next > now).expect("the counter counts");
    }
    let mut shell = host.on_terminal(&["shell", "five"]);
    shell.send("echo still-$marker; exit\n");
    let (code, seen) = shell.end();
    assert!(code == 0 && seen.contains("still-in-the-shell"), "{code}: {seen}");
}

#[test]
fn stop_and_start_are_no_ops_where_there_is_nothing_to_do() {
    let host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "idem"]);
    assert_eq!(host.json(&["start", "idem"])["changed"], false);
    assert_eq!(host.json(&["stop", "idem"])["changed"], true);
    assert_eq!(host.json(&["stop", "idem"])["changed"], false);
    assert_eq!(host.json(&["start", "idem"])["changed"], true);
    let again = host.json(&["create", "--name", "idem"]);
    assert_eq!(again["changed"], false, "{again}");
    host.refused(&["create", "--name", "idem", "--memory", "640"], 1, &["idem", "512 MiB"]);
    host.ok(&["destroy", "idem"]);
    host.refused(&["exec", "idem", "--", "true"], 1, &["no sandbox", "idem"]);
    assert!(host.vmm_pids().is_empty());
    assert_eq!(std::fs::read_dir(host.data_dir().join("sandboxes")).unwrap().count(), 0, "nothing is left");
}

#[test]
fn clones_of_one_template_are_nobodys_twins() {
    let host = TestHost::start(BHATTI);
    let mut seen: Vec<Vec<String>> = Vec::new();
    for name in ["twin-a", "twin-b", "twin-c"] {
        host.ok(&["create", "--name", name]);
        let facts = host.sh(name, "cat /etc/machine-id; head -c 32 /dev/urandom | base64; cat /proc/sys/kernel/random/uuid; hostname; date +%s");
        let facts: Vec<String> = facts.lines().map(str::to_owned).collect();
        assert_eq!(facts[3], name, "the host name");
        assert_eq!(facts[0].len(), 32, "the machine id: {facts:?}");
        let guest: i64 = facts[4].parse().unwrap();
        let here = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        assert!((guest - i64::try_from(here).unwrap()).abs() <= 2, "guest {guest}, host {here}");
        seen.push(facts[..4].to_vec());
    }
    for column in 0..4 {
        let distinct: BTreeSet<&String> = seen.iter().map(|facts| &facts[column]).collect();
        assert_eq!(distinct.len(), seen.len(), "column {column} repeats: {seen:?}");
    }
    // The clock is right after a sleep, too, and the machine id stays.
    host.ok(&["stop", "twin-a"]);
    let woken = host.sh("twin-a", "cat /etc/machine-id; date +%s");
    let (id, time) = woken.split_once('\n').unwrap();
    assert_eq!(id, seen[0][0]);
    let here = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!((time.parse::<i64>().unwrap() - i64::try_from(here).unwrap()).abs() <= 2);
}

#[test]
fn a_second_in_the_guest_is_a_second_before_and_after_a_sleep() {
    let host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "clock"]);
    for _ in 0..2 {
        // A busy host only makes this longer: a clock that runs fast is what makes it shorter.
        let began = std::time::Instant::now();
        let guest =
            host.sh("clock", "a=$(date +%s%N); sleep 4; b=$(date +%s%N); echo $(( (b - a) / 1000000 ))");
        let (guest, here) = (guest.parse::<u128>().unwrap(), began.elapsed().as_millis());
        assert!(guest >= 3990 && guest <= here + 100, "{guest} ms in the guest, {here} ms here");
        host.ok(&["stop", "clock"]);
    }
}

#[test]
fn fifty_execs_at_once_on_a_cold_sandbox_wake_it_once() {
    let host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "crowd"]);
    host.ok(&["stop", "crowd"]);
    let before = host.json(&["inspect", "crowd"])["generation"].as_u64().unwrap();
    thread::scope(|scope| {
        let execs: Vec<_> = (0..50)
            .map(|n| {
                let host = &host;
                scope.spawn(move || {
                    let reply =
                        host.post("/sandboxes/crowd/exec", &json!({ "cmd": ["echo", n.to_string()] }));
                    (n, reply)
                })
            })
            .collect();
        for exec in execs {
            let (n, (status, reply)) = exec.join().unwrap();
            assert_eq!(status, 200, "{reply}");
            assert_eq!((&reply["exit_code"], &reply["stdout"]), (&json!(0), &json!(format!("{n}\n"))));
        }
    });
    assert_eq!(host.vmm_pids().len(), 1);
    let after = host.json(&["inspect", "crowd"])["generation"].as_u64().unwrap();
    assert_eq!(after, before + 1, "one wake");
}

#[test]
fn ten_thousand_commands_all_end_with_zero() {
    let host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "many"]);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..2500 {
                    let (status, reply) = host.post("/sandboxes/many/exec", &json!({ "cmd": ["true"] }));
                    assert_eq!((status, &reply["exit_code"]), (200, &json!(0)), "{reply}");
                }
            });
        }
    });
    // None left a zombie or a slot behind.
    assert_eq!(host.sh("many", "ps -eo stat= | grep -c '^Z' || true"), "0");
}

#[test]
fn a_killed_vmm_means_a_boot_from_the_disk_that_says_so() {
    let host = TestHost::start(BHATTI);
    host.ok(&[
        "create",
        "--name",
        "crash",
        "--file",
        &format!("{}:/etc/placed", file!().replace("crates/bhatti/", "")),
    ]);
    host.sh("crash", "echo kept > ~/synced; sync; echo gone > /dev/shm/nonce; sudo sh -c 'echo changed > /etc/placed'; sync");
    let id = host.sh("crash", "cat /etc/machine-id");
    host.kill_vmms();
    let started = host.run(&["start", "crash"]);
    assert_eq!(started.code, 0, "{}", started.stderr);
    assert!(started.stderr.contains("booted from its disk"), "it is said: {:?}", started.stderr);
    let view = host.json(&["inspect", "crash"]);
    assert_eq!(view["boot"], "cold_boot", "{view}");
    assert_eq!(
        host.sh("crash", "cat ~/synced /etc/placed; ls /dev/shm/nonce 2>&1 | head -1"),
        "kept\nchanged\nls: cannot access '/dev/shm/nonce': No such file or directory"
    );
    assert_eq!(host.sh("crash", "cat /etc/machine-id"), id, "the same machine");
    assert_eq!(host.sh("crash", "hostname"), "crash");
    // And it sleeps and wakes like any other, though it has no template under it.
    host.sh("crash", "echo again > /dev/shm/nonce");
    host.ok(&["stop", "crash"]);
    assert_eq!(nonce(&host, "crash"), "again");
    let events = host.json(&["events"]);
    let kinds: Vec<&str> = events.as_array().unwrap().iter().filter_map(|e| e["kind"].as_str()).collect();
    for kind in ["sandbox.created", "sandbox.died", "sandbox.cold_boot", "sandbox.stopped", "sandbox.woken"] {
        assert!(kinds.contains(&kind), "no {kind} in {kinds:?}");
    }
}

#[test]
fn a_restarted_daemon_takes_over_what_runs_and_what_sleeps() {
    let mut host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "alive", "--label", "tier=a", "--keep-hot"]);
    host.ok(&["create", "--name", "asleep"]);
    host.sh("alive", "echo here > /dev/shm/nonce");
    host.sh("asleep", "echo there > /dev/shm/nonce");
    host.ok(&["stop", "asleep"]);
    let vmm = host
        .vmm_pids()
        .into_iter()
        .filter(|&pid| u32::try_from(pid).unwrap() != host.daemon().pid())
        .collect::<Vec<_>>();
    let directory = File::open(host.sandbox_dir("asleep")).unwrap();
    host.kill_daemon();
    // What a VMM is in its first moments, and stays when its daemon dies then: nobody can speak to it yet.
    flock(&directory, FlockOperation::NonBlockingLockExclusive).unwrap();
    let mut starting = Command::new("sleep").arg("600").stdin(directory).spawn().unwrap();
    host.start_daemon();
    let ended = starting.try_wait().unwrap();
    starting.kill().and_then(|()| starting.wait()).unwrap();
    assert!(ended.is_some(), "it was let live, with the sandbox's lock");
    let list: Vec<Value> = serde_json::from_value(host.json(&["list"])).unwrap();
    assert_eq!(list.len(), 2);
    assert_eq!(host.json(&["inspect", "alive"])["thermal"], "hot");
    assert_eq!(host.json(&["inspect", "alive"])["keep_hot"], true);
    assert_eq!(host.json(&["inspect", "asleep"])["thermal"], "cold");
    assert_eq!(nonce(&host, "alive"), "here");
    assert_eq!(host.vmm_pids().len(), vmm.len(), "no second VMM");
    assert_eq!(nonce(&host, "asleep"), "there");
    // An orderly end leaves machines running, too; --stop-all puts them to sleep.
    host.serve_with(&["--stop-all"]);
    host.end_daemon();
    host.start_daemon();
    assert_eq!(nonce(&host, "alive"), "here");
    host.end_daemon();
    assert!(host.vmm_pids().is_empty(), "--stop-all put them to sleep");
    host.start_daemon();
    assert_eq!(nonce(&host, "alive"), "here");
    assert_eq!(host.json(&["inspect", "alive"])["boot"], "resume");
}

#[test]
fn a_guest_that_powers_off_is_stopped_and_boots_again() {
    let host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "off"]);
    host.sh("off", "echo kept > ~/kept");
    let mut events = host.follow_events();
    let _ = host.run(&[
        "exec",
        "off",
        "--user",
        "root",
        "--",
        "sh",
        "-c",
        "sync; echo o > /proc/sysrq-trigger; sleep 60",
    ]);
    events.wait_for("sandbox.powered_off");
    assert_eq!(host.json(&["inspect", "off"])["status"], "stopped");
    assert_eq!(host.sh("off", "cat ~/kept"), "kept");
    assert_eq!(host.json(&["inspect", "off"])["boot"], "cold_boot");
}

#[test]
fn a_destroy_that_the_disk_refuses_leaves_the_sandbox_running() {
    let host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "stays"]);
    host.sh("stays", "echo here > /dev/shm/nonce");
    let dir = host.sandbox_dir("stays");
    for (call, path) in [("rename", &*dir), ("fsync", dir.parent().unwrap())] {
        let faults = Faults::inject(host.daemon().pid(), call, Some(path));
        let refused = host.run(&["destroy", "stays"]);
        assert!(faults.failed() > 0, "{call} was asked for");
        assert_eq!(refused.code, 1, "{call}: {}", refused.stderr);
        assert_eq!(nonce(&host, "stays"), "here", "{call}");
        assert_eq!(host.json(&["inspect", "stays"])["boot"], "template");
    }
    host.ok(&["destroy", "stays"]);
    assert!(host.vmm_pids().is_empty());
}

#[test]
fn a_machine_whose_sandbox_was_being_destroyed_is_ended_at_the_next_start() {
    let mut host = TestHost::start(BHATTI);
    host.ok(&["volume", "create", "data", "--size", "64"]);
    host.ok(&["create", "--name", "leaving", "--volume", "data:/data"]);
    host.sh("leaving", "echo kept | sudo tee /data/kept; sync");
    let dir = host.sandbox_dir("leaving");
    host.kill_daemon();
    // What a daemon leaves that dies when the name is gone and the machine is not.
    let gone = dir.with_file_name(format!(".gone-{}", dir.file_name().unwrap().to_str().unwrap()));
    std::fs::rename(&dir, &gone).unwrap();
    host.start_daemon();
    assert!(host.vmm_pids().is_empty(), "its machine is ended");
    assert!(!gone.exists(), "its files are gone");
    assert_eq!(host.json(&["list"]), json!([]));
    host.ok(&["create", "--name", "leaving", "--volume", "data:/data"]);
    assert_eq!(host.sh("leaving", "cat /data/kept"), "kept");
}

#[test]
fn what_the_disk_refuses_to_keep_the_name_of_is_not_there_after_a_restart_either() {
    let mut host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "a"]);
    host.ok(&["snapshot", "create", "a", "--name", "first"]);
    host.ok(&["snapshot", "delete", "first", "-y"]);
    let (sandboxes, snapshots) = ("sandboxes", "snapshots/admin");
    let data_dir = std::fs::canonicalize(host.data_dir()).unwrap();
    for (verb, dir) in [
        (&["create", "--name", "b"][..], sandboxes),
        (&["fork", "a", "--name", "b"], sandboxes),
        (&["snapshot", "create", "a", "--name", "s"], snapshots),
    ] {
        let faults = Faults::inject(host.daemon().pid(), "fsync", Some(&data_dir.join(dir)));
        let refused = host.run(verb);
        assert!(faults.failed() > 0, "{verb:?} syncs {dir}");
        assert_eq!(refused.code, 1, "{verb:?}: {}", refused.stderr);
    }
    let there = |host: &TestHost| {
        let names = |args: &[&str]| -> Vec<String> {
            let list = host.json(args);
            list.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
        };
        (names(&["list"]), names(&["snapshot", "list"]))
    };
    let only_a = (vec!["a".to_owned()], Vec::new());
    assert_eq!(there(&host), only_a);
    host.end_daemon();
    host.start_daemon();
    assert_eq!(there(&host), only_a, "after a restart");
}
