//! Shell sessions in real guests: they outlive the one who looks at them, the daemon, and the sleep.

use testkit::TestHost;

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");

#[test]
fn a_session_outlives_its_client_the_daemon_and_the_sleep() {
    let mut host = TestHost::start(BHATTI);
    let _ = host.ok(&["create", "--name", "sh"]);
    let first = host.run_with_input(&["shell", "sh"], b"mark=one-and-only\necho set-$mark\n\x1c");
    assert!(first.text().contains("set-one-and-only"), "{}{}", first.text(), first.stderr);
    // Looked at again: the scrollback shows what was, and it is the same shell.
    let second = host.run_with_input(&["shell", "sh"], b"echo again-$mark\n\x1c");
    assert!(second.text().contains("set-one-and-only") && second.text().contains("again-one-and-only"), "{}", second.text());
    host.kill_daemon();
    host.start_daemon();
    let third = host.run_with_input(&["shell", "sh"], b"echo restarted-$mark\n\x1c");
    assert!(third.text().contains("restarted-one-and-only"), "{}", third.text());
    let _ = host.ok(&["stop", "sh"]);
    let fourth = host.run_with_input(&["shell", "sh"], b"echo woken-$mark; tty; exit 5\n");
    assert!(fourth.text().contains("woken-one-and-only") && fourth.text().contains("/dev/pts/"), "{}", fourth.text());
    assert_eq!(fourth.code, 5, "the shell's own status");
    // That one has ended: the next is another.
    let fifth = host.run_with_input(&["shell", "sh"], b"echo new-$mark-end; exit\n");
    assert!(fifth.text().contains("new--end"), "{}", fifth.text());
}

#[test]
fn a_new_session_is_another_one_and_both_are_listed() {
    let host = TestHost::start(BHATTI);
    let _ = host.ok(&["create", "--name", "two"]);
    for n in 0..2 {
        let out = host.run_with_input(&["shell", "two", "--new"], format!("echo shell-$(({n}+10))\n\x1c").as_bytes());
        assert!(out.text().contains(&format!("shell-{}", n + 10)), "{}", out.text());
    }
    let sessions = host.json(&["ps", "two"]);
    let shells = sessions.as_array().unwrap().iter().filter(|s| s["kind"] == "shell").count();
    assert_eq!(shells, 2, "{sessions}");
}

#[test]
fn only_the_last_64_kib_are_shown_again() {
    let host = TestHost::start(BHATTI);
    let _ = host.ok(&["create", "--name", "long"]);
    let noise = host.run_with_input(&["shell", "long"], b"echo early-$((1+1)); head -c 200000 /dev/zero | tr '\\0' x; echo; echo late-$((2+2))\n\x1c");
    assert!(noise.text().contains("late-4"));
    let back = host.run_with_input(&["shell", "long"], b"\x1c");
    assert!(back.text().contains("late-4") && !back.text().contains("early-2"), "{} bytes", back.stdout.len());
    assert!(back.stdout.len() < (64 << 10) + 4096, "{}", back.stdout.len());
}
