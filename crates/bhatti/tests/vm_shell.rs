//! Shell sessions in real guests: they outlive the one who looks at them, the daemon, and the sleep.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use testkit::TestHost;

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");
const DETACH: &str = "\x1c";

/// Types a line into the session, waits for what it shows, and leaves it running.
fn look(host: &TestHost, args: &[&str], line: &str, shows: &str) -> String {
    let mut terminal = host.on_terminal(args);
    terminal.send(line);
    terminal.wait_for(shows);
    terminal.send(DETACH);
    let (code, seen) = terminal.end();
    assert_eq!(code, 0, "{seen}");
    seen
}

#[test]
fn a_session_outlives_its_client_the_daemon_and_the_sleep() {
    let mut host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "sh"]);
    let shell = ["shell", "sh"];
    look(&host, &shell, "mark=one-and-only; echo set-$mark\n", "set-one-and-only");
    // Looked at again: the scrollback shows what was, and it is the same shell.
    let again = look(&host, &shell, "echo again-$mark\n", "again-one-and-only");
    assert!(again.contains("set-one-and-only"), "{again}");
    host.kill_daemon();
    host.start_daemon();
    look(&host, &shell, "echo restarted-$mark\n", "restarted-one-and-only");
    host.ok(&["stop", "sh"]);
    let mut terminal = host.on_terminal(&shell);
    terminal.send("echo woken-$mark; tty; exit 5\n");
    let (code, seen) = terminal.end();
    assert!(seen.contains("woken-one-and-only") && seen.contains("/dev/pts/"), "{seen}");
    assert_eq!(code, 5, "the shell's own status: {seen}");
    // That one has ended: the next is another.
    look(&host, &shell, "echo new-$mark-end\n", "new--end");
}

#[test]
fn a_new_session_is_another_one_and_both_are_listed() {
    let host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "two"]);
    for n in [10, 20] {
        look(
            &host,
            &["shell", "two", "--new"],
            &format!("echo shell-$(({n}+1))\n"),
            &format!("shell-{}", n + 1),
        );
    }
    let sessions = host.json(&["ps", "two"]);
    let shells = sessions.as_array().unwrap().iter().filter(|s| s["kind"] == "shell").count();
    assert_eq!(shells, 2, "{sessions}");
}

#[test]
fn the_size_of_the_terminal_arrives_and_only_the_last_64_kib_are_shown_again() {
    let host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "long"]);
    let noise =
        "stty size; echo early-$((1+1)); head -c 200000 /dev/zero | tr '\\0' x; echo; echo late-$((2+2))\n";
    look(&host, &["shell", "long"], noise, "late-4");
    let back = look(&host, &["shell", "long"], "echo more-$((3+3))\n", "more-6");
    assert!(back.contains("late-4") && !back.contains("early-2"), "{} bytes", back.len());
    assert!(back.len() < (64 << 10) + 4096, "{}", back.len());
}
