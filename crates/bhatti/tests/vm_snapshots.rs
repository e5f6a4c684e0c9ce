//! Named snapshots of real guests: what was in memory is in each sandbox made from one, which is nobody's twin.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{Value, json};
use testkit::TestHost;

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");

/// Puts a secret into guest RAM twice: in a file that is no disk's, and in a variable of a shell that goes on running.
fn keep_in_ram(host: &TestHost, sandbox: &str, secret: &str) {
    host.sh(sandbox, &format!("echo {secret} > /dev/shm/nonce"));
    let script = format!("held={secret}; while :; do echo $held > /dev/shm/held; sleep 0.02; done");
    host.ok(&["exec", sandbox, "--detach", "--", "sh", "-c", &script]);
}

/// What [`keep_in_ram`] put there, as the file has it and as the running shell says it now.
fn ram(host: &TestHost, sandbox: &str) -> (String, String) {
    let file = host.sh(sandbox, "cat /dev/shm/nonce");
    let held = host.sh(
        sandbox,
        // The shell empties the file before it writes it: what counts is what one read gave.
        "rm -f /dev/shm/held; until held=$(cat /dev/shm/held 2>/dev/null) && [ -n \"$held\" ]; \
         do sleep 0.02; done; echo $held",
    );
    (file, held)
}

fn both(secret: &str) -> (String, String) {
    (secret.to_owned(), secret.to_owned())
}

/// Machine-id, and what is drawn at random: three ways. None of it is the same in two sandboxes.
fn facts(host: &TestHost, sandbox: &str) -> Vec<String> {
    assert_eq!(host.sh(sandbox, "hostname; cat /etc/hostname"), format!("{sandbox}\n{sandbox}"));
    assert_eq!(
        host.sh(sandbox, "grep -c '^127.0.1.1' /etc/hosts; getent hosts 127.0.1.1 | awk '{print $2}'"),
        format!("1\n{sandbox}")
    );
    let facts = host.sh(
        sandbox,
        "cat /etc/machine-id; cat /proc/sys/kernel/random/uuid; head -c 32 /dev/urandom | base64; \
         cat /proc/sys/kernel/random/uuid",
    );
    facts.lines().map(str::to_owned).collect()
}

fn nobodys_twins(host: &TestHost, sandboxes: &[&str]) {
    let all: Vec<Vec<String>> = sandboxes.iter().map(|sandbox| facts(host, sandbox)).collect();
    let distinct: BTreeSet<&String> = all.iter().flatten().collect();
    assert_eq!(distinct.len(), 4 * sandboxes.len(), "something repeats: {all:#?}");
}

fn boot_of(host: &TestHost, sandbox: &str) -> String {
    host.json(&["inspect", sandbox])["boot"].as_str().unwrap().to_owned()
}

/// Ends what other threads do meanwhile, also when this one fails.
struct Enough<'a>(&'a AtomicBool);

impl Drop for Enough<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Ends the VMM of one sandbox as a crash would.
fn crash(host: &TestHost, sandbox: &str) {
    let dir = fs::canonicalize(host.sandbox_dir(sandbox)).unwrap();
    for pid in host.vmm_pids() {
        if fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&dir)) {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
    }
}

#[test]
fn two_sandboxes_of_one_snapshot_and_their_source_share_the_past_and_nothing_else() {
    let host = TestHost::start(BHATTI);
    let placed = host.data_dir().join("placed");
    fs::write(&placed, "as placed\n").unwrap();
    host.ok(&[
        "create",
        "--name",
        "source",
        "--env",
        "FROM_CREATE=yes",
        "--label",
        "tier=a",
        "--label",
        "kept=yes",
        "--init",
        "echo begun >> /dev/shm/begun",
        "--file",
        &format!("{}:/etc/placed", placed.display()),
    ]);
    host.sh("source", "until [ -s /dev/shm/begun ]; do sleep 0.02; done");
    host.sh("source", "sudo sh -c 'echo changed > /etc/placed'; echo before > ~/disk");
    keep_in_ram(&host, "source", "one-and-only");

    let (status, made) = host.post("/sandboxes/source/snapshots", &json!({ "name": "past" }));
    assert_eq!(status, 201, "{made}");
    assert!(made["timings_ms"]["pause"].as_f64().unwrap() > 0.0, "{made}");
    assert!(
        made["pause_ms"].as_f64().unwrap() > 0.0 && made["private_bytes"].as_u64().unwrap() > 0,
        "{made}"
    );
    let shown = host.json(&["snapshot", "inspect", "past"]);
    for (field, value) in [
        ("name", json!("past")),
        ("source_name", json!("source")),
        ("source_id", host.json(&["inspect", "source"])["id"].clone()),
        ("disk_only", json!(false)),
        ("image", json!("minimal")),
        ("memory_mb", json!(512)),
        ("labels", json!({ "tier": "a", "kept": "yes" })),
    ] {
        assert_eq!((&made[field], &shown[field]), (&value, &value), "{field}");
    }
    assert_eq!(host.json(&["snapshot", "list"]).as_array().unwrap().len(), 1);

    host.sh("source", "echo after > ~/disk; echo after > ~/new; echo after > /dev/shm/nonce");
    // Both at the same time.
    thread::scope(|scope| {
        for name in ["left", "right"] {
            let host = &host;
            scope.spawn(move || {
                let (status, reply) = host.post(
                    "/snapshots/past/resume",
                    &json!({ "name": name, "labels": { "tier": name }, "keep_hot": true }),
                );
                assert_eq!(status, 201, "{reply}");
                assert_eq!((&reply["boot"], &reply["thermal"]), (&json!("resume"), &json!("hot")), "{reply}");
                assert_eq!(reply["labels"], json!({ "tier": name, "kept": "yes" }), "{reply}");
                assert_eq!(reply["keep_hot"], true, "{reply}");
            });
        }
    });
    for copy in ["left", "right"] {
        assert_eq!(ram(&host, copy), both("one-and-only"), "{copy}");
        assert_eq!(host.sh(copy, "cat ~/disk; ls ~/new 2>/dev/null; true"), "before", "{copy}");
        assert_eq!(
            host.sh(copy, "cat /etc/placed; echo $FROM_CREATE; cat /dev/shm/begun"),
            "changed\nyes\nbegun"
        );
        let guest: i64 = host.sh(copy, "date +%s").parse().unwrap();
        let here = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        assert!((guest - i64::try_from(here).unwrap()).abs() <= 2, "{copy}: {guest}, host {here}");
    }
    nobodys_twins(&host, &["source", "left", "right"]);
    // Each has a disk of its own, and memory of its own.
    host.sh("left", "echo left > ~/disk; echo left > /dev/shm/nonce; sync");
    host.sh("right", "rm ~/disk; sync");
    assert_eq!(host.sh("left", "cat ~/disk /dev/shm/nonce"), "left\nleft");
    assert_eq!(host.sh("right", "ls ~/disk 2>/dev/null; cat /dev/shm/nonce"), "one-and-only");
    assert_eq!(host.sh("source", "cat ~/disk /dev/shm/nonce"), "after\nafter");
    // And so has whatever is made of it later.
    host.ok(&["snapshot", "resume", "past", "--name", "later"]);
    assert_eq!(ram(&host, "later"), both("one-and-only"));
    assert_eq!(host.sh("later", "cat ~/disk"), "before");
}

#[test]
fn streams_under_way_notice_nothing_and_end_in_the_copy() {
    let host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "busy"]);
    let count = "n=0; until [ -e /dev/shm/enough ]; do n=$((n+1)); echo line $n; done; echo end $n";
    let mut counting = host.command(&["exec", "busy", "--", "sh", "-c", count]).spawn().unwrap();
    let mut lines = BufReader::new(counting.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "line 1");
    let counted = thread::spawn(move || lines.map(|line| line.unwrap()).collect::<Vec<_>>());
    let mut sleeping =
        host.command(&["exec", "busy", "--", "sh", "-c", "echo go; sleep 7100"]).spawn().unwrap();
    let mut go = String::new();
    BufReader::new(sleeping.stdout.as_mut().unwrap()).read_line(&mut go).unwrap();
    host.ok(&["exec", "busy", "--detach", "--", "sleep", "7101"]);

    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        // Both directions of a stream, all the while.
        let (done, host) = (&done, &host);
        let echo = scope.spawn(move || {
            let sent: Vec<u8> = (0..=255u8).cycle().take(1_000_003).collect();
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) || rounds == 0 {
                let echoed = host.run_with_input(&["exec", "busy", "--stdin", "--", "cat"], &sent);
                assert_eq!(echoed.code, 0, "{}", echoed.stderr);
                assert!(echoed.stdout == sent, "{} of {} bytes", echoed.stdout.len(), sent.len());
                rounds += 1;
            }
        });
        let enough = Enough(done);
        for round in 1..=5 {
            host.ok(&["snapshot", "create", "busy", "--name", &format!("busy-{round}")]);
        }
        drop(enough);
        echo.join().unwrap();
    });
    for round in [1, 5] {
        let copy = format!("copy-{round}");
        host.ok(&["snapshot", "resume", &format!("busy-{round}"), "--name", &copy]);
        let gone = "until ! ps -eo args= | grep -q '^sleep 7100'; do sleep 0.05; done; echo gone";
        assert_eq!(host.sh(&copy, gone), "gone", "whoever waited for it is not there");
        assert_eq!(host.sh(&copy, "ps -eo args= | grep -c '^sleep 7101'"), "1", "nobody had to");
        assert_eq!(host.sh(&copy, "ps -eo args= | grep -c '[/]dev/shm/enough' || true"), "0");
        assert_eq!(host.json(&["ps", &copy]).as_array().unwrap().len(), 1);
    }
    assert_eq!(host.sh("busy", "ps -eo args= | grep -c '^sleep 7100'"), "1", "the source's own goes on");
    host.sh("busy", "touch /dev/shm/enough");
    let counted = counted.join().unwrap();
    let (end, lines) = counted.split_last().unwrap();
    assert_eq!(*end, format!("end {}", lines.len() + 1), "no line is missing at the end");
    for (line, number) in lines.iter().zip(2..) {
        assert_eq!(*line, format!("line {number}"));
    }
    assert!(counting.wait().unwrap().success());
    sleeping.kill().unwrap();
    sleeping.wait().unwrap();
}

#[test]
fn a_shell_goes_on_in_each_copy_and_nothing_is_typed_that_nobody_typed() {
    let host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "typist"]);
    let mut shell = host.command(&["shell", "typist", "--new"]).stdin(Stdio::piped()).spawn().unwrap();
    let (mut keys, mut screen) = (shell.stdin.take().unwrap(), shell.stdout.take().unwrap());
    keys.write_all(b"mark=in-the-shell; stty -echo -icanon; cat > /dev/shm/typed\n").unwrap();
    let shown = thread::spawn(move || {
        let mut all = Vec::new();
        screen.read_to_end(&mut all).unwrap();
    });
    host.sh("typist", "until [ -e /dev/shm/typed ]; do sleep 0.02; done");
    let done = AtomicBool::new(false);
    let typed = thread::scope(|scope| {
        let (done, keys) = (&done, &mut keys);
        let typing = scope.spawn(move || {
            let (line, mut typed) = ("a line that somebody types and then types again\n".repeat(400), 0usize);
            while !done.load(Ordering::Relaxed) {
                keys.write_all(line.as_bytes()).unwrap();
                typed += line.len();
            }
            typed
        });
        let enough = Enough(done);
        for round in 1..=4 {
            host.ok(&["snapshot", "create", "typist", "--name", &format!("typist-{round}")]);
        }
        drop(enough);
        typing.join().unwrap()
    });
    for round in 1..=4 {
        let copy = format!("copy-{round}");
        host.ok(&["snapshot", "resume", &format!("typist-{round}"), "--name", &copy]);
        // What is still on its way through the copy's own terminal may arrive late; what is there is what was typed.
        let odd = "sort /dev/shm/typed | uniq | head -n 3";
        let lines = host.sh(&copy, odd);
        for line in lines.lines() {
            assert!("a line that somebody types and then types again".starts_with(line), "{copy}: {line:?}");
        }
        assert_eq!(host.sh(&copy, "tr -dc '\\000' < /dev/shm/typed | wc -c"), "0", "{copy}");
        assert_eq!(host.json(&["ps", &copy])[0]["kind"], "shell");
        host.ok(&["destroy", &copy]);
    }
    // The source has every byte, and its shell is the same.
    let all = format!(
        "until [ $(stat -c %s /dev/shm/typed) -ge {typed} ]; do sleep 0.05; done; stat -c %s /dev/shm/typed"
    );
    assert_eq!(host.sh("typist", &all), typed.to_string());
    host.sh("typist", "pkill -x cat");
    keys.write_all(b"stty sane; echo $mark > /dev/shm/mark; exit\n").unwrap();
    assert_eq!(shell.wait().unwrap().code(), Some(0));
    shown.join().unwrap();
    assert_eq!(host.sh("typist", "cat /dev/shm/mark"), "in-the-shell");
}

#[test]
fn a_copy_sleeps_wakes_and_boots_like_any_other_even_when_nothing_it_came_from_is_left() {
    let mut host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "first", "--env", "FROM_CREATE=yes", "--init", "echo run >> ~/runs; sync"]);
    host.sh("first", "until [ -s ~/runs ]; do sleep 0.02; done; echo one > ~/one; sync");
    keep_in_ram(&host, "first", "deep");
    host.ok(&["snapshot", "create", "first", "--name", "s-one"]);
    host.ok(&["snapshot", "resume", "s-one", "--name", "second"]);
    host.sh("second", "echo two > ~/two; sync");
    host.ok(&["snapshot", "create", "second", "--name", "s-two"]);
    host.ok(&["destroy", "first"]);
    host.kill_daemon();
    host.start_daemon();
    // The snapshot of a copy, after its source's source is gone and the daemon is another.
    host.ok(&["snapshot", "resume", "s-two", "--name", "third"]);
    host.ok(&["snapshot", "delete", "s-one", "-y"]);
    host.ok(&["destroy", "second"]);
    assert_eq!(ram(&host, "third"), both("deep"));
    assert_eq!(host.sh("third", "cat ~/one ~/two; echo $FROM_CREATE"), "one\ntwo\nyes");
    host.ok(&["snapshot", "delete", "s-two", "-y"]);
    assert_eq!(host.json(&["snapshot", "list"]), json!([]));
    let before = facts(&host, "third");

    for round in 1..=2 {
        host.sh("third", &format!("echo {round} > ~/round; echo {round} > /dev/shm/round"));
        host.ok(&["stop", "third"]);
        assert!(host.vmm_pids().is_empty());
        host.end_daemon();
        host.start_daemon();
        assert_eq!(ram(&host, "third"), both("deep"), "round {round}");
        assert_eq!(boot_of(&host, "third"), "resume");
        assert_eq!(host.sh("third", "cat ~/round /dev/shm/round"), format!("{round}\n{round}"));
    }
    // The daemon dies while it runs: taken over as itself.
    host.kill_daemon();
    host.start_daemon();
    assert_eq!(facts(&host, "third")[0], before[0], "the same machine");
    assert_eq!(host.sh("third", "cat ~/runs | wc -l"), "1", "its init ran once");
    // Its VMM dies: it boots from its own disk, with its own name, and what its source was created with.
    host.sh("third", "sync");
    let mut events = host.follow_events();
    crash(&host, "third");
    events.wait_for("sandbox.died");
    assert_eq!(host.sh("third", "cat ~/one ~/two ~/round; echo $FROM_CREATE"), "one\ntwo\n2\nyes");
    assert_eq!(boot_of(&host, "third"), "cold_boot");
    assert_eq!(facts(&host, "third")[0], before[0], "the same machine");
    assert_eq!(host.sh("third", "until [ $(wc -l < ~/runs) = 2 ]; do sleep 0.02; done; echo 2"), "2");
    host.ok(&["destroy", "third"]);
    assert!(host.vmm_pids().is_empty());
    assert_eq!(fs::read_dir(host.data_dir().join("sandboxes")).unwrap().count(), 0, "nothing is left");
}

#[test]
fn a_sleeping_sandbox_is_kept_without_being_woken() {
    let host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "asleep"]);
    keep_in_ram(&host, "asleep", "dreaming");
    host.sh("asleep", "echo disk > ~/disk");
    host.ok(&["stop", "asleep"]);
    for name in ["still", "again"] {
        let made = host.json(&["snapshot", "create", "asleep", "--name", name]);
        assert_eq!((&made["pause_ms"], &made["disk_only"]), (&json!(0.0), &json!(false)), "{made}");
    }
    assert!(host.vmm_pids().is_empty());
    assert_eq!(host.json(&["inspect", "asleep"])["thermal"], "cold");
    host.ok(&["snapshot", "resume", "still", "--name", "awake"]);
    assert_eq!(ram(&host, "awake"), both("dreaming"));
    assert_eq!(boot_of(&host, "awake"), "resume");
    host.sh("awake", "echo copy > ~/disk; echo copy > /dev/shm/nonce");
    // The source wakes to its own memory on its own disk, though that is a layer of others now.
    assert_eq!(ram(&host, "asleep"), both("dreaming"));
    assert_eq!(boot_of(&host, "asleep"), "resume");
    assert_eq!(host.sh("asleep", "cat ~/disk; echo source > ~/disk; sync; cat ~/disk"), "disk\nsource");
    host.ok(&["snapshot", "resume", "again", "--name", "also"]);
    assert_eq!(host.sh("also", "cat ~/disk /dev/shm/nonce"), "disk\ndreaming");
    nobodys_twins(&host, &["asleep", "awake", "also"]);
}

#[test]
fn a_snapshot_of_the_disk_alone_boots_fresh() {
    let host = TestHost::start(BHATTI);
    let placed = host.data_dir().join("placed");
    fs::write(&placed, "as placed\n").unwrap();
    host.ok(&[
        "create",
        "--name",
        "disk",
        "--env",
        "FROM_CREATE=yes",
        "--file",
        &format!("{}:/etc/placed", placed.display()),
    ]);
    keep_in_ram(&host, "disk", "volatile");
    // Not synced: that is the snapshot's part.
    host.sh("disk", "echo kept > ~/kept; sudo sh -c 'echo changed > /etc/placed'");
    let made = host.json(&["snapshot", "create", "disk", "--name", "only-disk", "--disk-only"]);
    assert_eq!((&made["disk_only"], &made["stored_bytes"]), (&json!(true), &json!(0)), "{made}");
    host.sh("disk", "echo later > ~/kept; sync");
    assert_eq!(ram(&host, "disk"), both("volatile"), "the source goes on");
    host.refused(
        &["snapshot", "resume", "only-disk", "--name", "fresh", "--strict"],
        1,
        &["boot", "--strict"],
    );
    let reply = host.json(&["snapshot", "resume", "only-disk", "--name", "fresh"]);
    assert_eq!(reply["boot"], "cold_boot", "{reply}");
    assert_eq!(
        host.sh("fresh", "cat ~/kept /etc/placed; echo $FROM_CREATE; ls /dev/shm"),
        "kept\nchanged\nyes"
    );
    nobodys_twins(&host, &["disk", "fresh"]);
    host.sh("fresh", "echo mine > /dev/shm/nonce");
    host.ok(&["stop", "fresh"]);
    assert_eq!(host.sh("fresh", "cat /dev/shm/nonce ~/kept"), "mine\nkept");
    // Of a sandbox without memory there is nothing else to keep.
    crash(&host, "disk");
    host.follow_events().wait_for("sandbox.died");
    let made = host.json(&["snapshot", "create", "disk", "--name", "of-crashed"]);
    assert_eq!(made["disk_only"], true, "{made}");
    assert_eq!(host.json(&["snapshot", "resume", "of-crashed", "--name", "after"])["boot"], "cold_boot");
    assert_eq!(host.sh("after", "cat ~/kept"), "later");
}

#[test]
fn many_snapshots_in_a_row_each_have_their_own_moment() {
    const ROUNDS: usize = 14;
    let host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "long"]);
    let state = |round: usize| format!("disk {round}\nram {round}\n{round}");
    let look = "cat ~/now /dev/shm/now; ls ~/each | wc -l";
    host.sh("long", "mkdir ~/each");
    for round in 1..=ROUNDS {
        host.sh(
            "long",
            &format!(
                "echo disk {round} > ~/now; echo ram {round} > /dev/shm/now; head -c 100000 /dev/urandom > ~/each/{round}; \
                 md5sum ~/each/{round} > ~/sum-{round}; head -c 300000 /dev/urandom > ~/churn; {}",
                // Some of it is on the disk, some only in the guest's page cache.
                if round % 2 == 0 { "sync" } else { "true" }
            ),
        );
        host.ok(&["snapshot", "create", "long", "--name", &format!("at-{round}")]);
    }
    assert_eq!(host.sh("long", look), state(ROUNDS));
    let check = "md5sum --quiet -c ~/sum-* && echo sound";
    for round in (1..=ROUNDS).rev() {
        let (snapshot, copy) = (format!("at-{round}"), format!("copy-{round}"));
        host.ok(&["snapshot", "resume", &snapshot, "--name", &copy]);
        assert_eq!(host.sh(&copy, look), state(round), "{snapshot}");
        assert_eq!(host.sh(&copy, check), "sound", "{snapshot}");
        // Every third also from its disk, which the memory is not there to correct.
        if round % 3 == 0 {
            host.sh(&copy, "sync; sudo sh -c 'echo 3 > /proc/sys/vm/drop_caches'");
            assert_eq!(host.sh(&copy, check), "sound", "{snapshot} from its disk");
        }
        host.ok(&["destroy", &copy]);
    }
    // The middle ones go first; what is left keeps what it stands on.
    for round in (2..ROUNDS).step_by(2) {
        host.ok(&["snapshot", "delete", &format!("at-{round}"), "-y"]);
    }
    host.ok(&["stop", "long"]);
    assert_eq!(host.sh("long", look), state(ROUNDS));
    host.sh("long", "sync; sudo sh -c 'echo 3 > /proc/sys/vm/drop_caches'");
    assert_eq!(host.sh("long", check), "sound");
    for round in [1, ROUNDS - 1] {
        let (snapshot, copy) = (format!("at-{round}"), format!("last-{round}"));
        host.ok(&["snapshot", "resume", &snapshot, "--name", &copy]);
        host.sh(&copy, "sync; sudo sh -c 'echo 3 > /proc/sys/vm/drop_caches'");
        assert_eq!(host.sh(&copy, check), "sound", "{snapshot}");
    }
}

#[test]
fn much_memory_of_its_own_comes_back_bit_by_bit() {
    let host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "big", "--memory", "384"]);
    let fill = "head -c 100000000 /dev/urandom > /dev/shm/noise; md5sum < /dev/shm/noise";
    let sum = host.sh("big", fill);
    let made = host.json(&["snapshot", "create", "big", "--name", "heavy"]);
    assert!(made["private_bytes"].as_u64().unwrap() > 100_000_000, "{made}");
    let look = "md5sum < /dev/shm/noise";
    for copy in ["heavy-a", "heavy-b"] {
        host.ok(&["snapshot", "resume", "heavy", "--name", copy]);
        assert_eq!(host.sh(copy, look), sum, "{copy}");
    }
    let other = host.sh("heavy-a", "head -c 1000000 /dev/urandom | dd of=/dev/shm/noise conv=notrunc status=none; md5sum < /dev/shm/noise");
    host.ok(&["stop", "heavy-a"]);
    host.ok(&["snapshot", "delete", "heavy", "-y"]);
    host.ok(&["destroy", "big", "-y"]);
    assert_eq!(host.sh("heavy-a", look), other);
    assert_eq!(host.sh("heavy-b", look), sum);
    host.ok(&["stop", "heavy-b"]);
    assert_eq!(host.sh("heavy-b", look), sum);
}

#[test]
fn what_cannot_be_kept_or_made_is_refused_and_leaves_everything_as_it_was() {
    let host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "one"]);
    host.sh("one", "echo kept > /dev/shm/nonce");
    host.ok(&["snapshot", "create", "one", "--name", "taken"]);
    host.sh("one", "echo later > /dev/shm/nonce");
    host.refused(&["snapshot", "create", "one", "--name", "taken"], 1, &["taken", "already"]);
    host.refused(&["snapshot", "create", "nobody", "--name", "new"], 1, &["no sandbox", "nobody"]);
    host.refused(&["snapshot", "create", "one", "--name", "../x"], 2, &["../x", "a-z"]);
    host.refused(&["snapshot", "inspect", "nosuch"], 1, &["nosuch", "bhatti snapshot list"]);
    host.refused(&["snapshot", "resume", "nosuch"], 1, &["nosuch", "bhatti snapshot list"]);
    host.refused(&["snapshot", "delete", "nosuch", "-y"], 1, &["nosuch", "bhatti snapshot list"]);
    host.refused(&["snapshot", "resume", "taken", "--name", "one"], 1, &["one", "already"]);
    host.refused(
        &["snapshot", "resume", "taken", "--name", "x", "--disk-size", "10"],
        1,
        &["smaller", "only grow"],
    );
    host.refused(
        &["snapshot", "resume", "taken", "--name", "x", "--disk-size", "99999999"],
        1,
        &["disk size"],
    );
    let list: Vec<Value> = serde_json::from_value(host.json(&["list"])).unwrap();
    assert_eq!((list.len(), host.vmm_pids().len()), (1, 1), "{list:?}");
    assert_eq!(host.json(&["snapshot", "list"]).as_array().unwrap().len(), 1);
    // The first of the name is still what it was.
    host.ok(&["snapshot", "resume", "taken", "--name", "two"]);
    assert_eq!(host.sh("two", "cat /dev/shm/nonce"), "kept");
    host.ok(&["snapshot", "delete", "taken", "-y"]);
    host.refused(&["snapshot", "resume", "taken"], 1, &["taken"]);
    host.ok(&["snapshot", "create", "one", "--name", "taken"]);
    host.ok(&["snapshot", "resume", "taken", "--name", "three"]);
    assert_eq!(host.sh("three", "cat /dev/shm/nonce"), "later", "the name is free again");
}

#[test]
fn a_larger_disk_is_one_in_the_guest() {
    let host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "small"]);
    host.sh("small", "echo kept > ~/kept; echo ram > /dev/shm/nonce");
    host.ok(&["snapshot", "create", "small", "--name", "s"]);
    host.ok(&["snapshot", "create", "small", "--name", "d", "--disk-only"]);
    let size = "df -BM --output=size / | tail -n 1 | tr -dc 0-9; echo; cat ~/kept";
    for (from, copy, more) in [("s", "grown", "2048"), ("d", "grown-boot", "3072")] {
        let reply = host.json(&["snapshot", "resume", from, "--name", copy, "--disk-size", more]);
        assert_eq!(reply["disk_size_mb"].to_string(), more, "{reply}");
        let seen = host.sh(copy, size);
        let (mb, kept) = seen.split_once('\n').unwrap();
        let (mb, more): (u64, u64) = (mb.parse().unwrap(), more.parse().unwrap());
        assert!(mb > more * 9 / 10 && mb <= more, "{copy}: {mb} of {more}");
        assert_eq!(kept, "kept");
        host.ok(&["stop", copy]);
        assert_eq!(host.sh(copy, "cat ~/kept"), "kept");
    }
    assert_eq!(host.sh("grown", "cat /dev/shm/nonce"), "ram");
}
