//! Siblings: sandboxes of one owner that reach each other by name, and nobody else's.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod reach;

use reach::{LAN, NEVER, WORLD, reached};
use testkit::{Lab, TestHost};

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");

/// A service on all addresses of the guest that greets whoever connects.
const SERVICE: &str = r#"
use Socket;
socket(S, PF_INET6, SOCK_STREAM, 0) or die;
setsockopt(S, SOL_SOCKET, SO_REUSEADDR, 1);
bind(S, pack_sockaddr_in6(7000, Socket::IN6ADDR_ANY)) or die;
listen(S, 16) or die;
$| = 1;
print "ready\n";
while (accept(C, S)) { syswrite C, "HTTP/1.0 200 OK\r\n\r\n"; close C }
"#;

/// Makes a sandbox that serves; its places are its addresses.
fn serve(host: &TestHost, user: &[&str], name: &str, net: &str) -> Vec<String> {
    let run = |args: &[&str]| host.ok(&[user, args].concat());
    run(&["create", "--name", name, "--net", net]);
    run(&["exec", name, "--", "mkfifo", "/tmp/ready"]);
    run(&["exec", name, "--detach", "--", "sh", "-c", "exec perl -e \"$0\" > /tmp/ready", SERVICE]);
    assert_eq!(run(&["exec", name, "--", "head", "-n", "1", "/tmp/ready"]), "ready\n");
    let script = "ip -o address show dev eth0 scope global | awk '{ sub(\"/.*\", \"\", $4); print $4 }'";
    let addresses = run(&["exec", name, "--", "sh", "-c", script]);
    let places: Vec<String> = addresses.lines().map(|address| format!("{address}/7000")).collect();
    assert_eq!(places.len(), 2, "{addresses}");
    places
}

/// All places that there are, in the order in which they are tried.
fn places<'a>(groups: &[&[&'a str]]) -> Vec<&'a str> {
    groups.concat()
}

#[test]
fn siblings_reach_each_other_by_name_and_strangers_nobody_whatever_becomes_of_them() {
    let lab = Lab::new(BHATTI);
    let mut host = TestHost::start_with(lab.program(), &["--net", "bridge", "--thermal-tick", "50"]);
    let eve = host.ok(&["user", "create", "eve"]).trim().to_owned();
    let eve: &[&str] = &["--token", &eve];
    let b = serve(&host, &[], "b", "bridge");
    let alone = serve(&host, &[], "alone", "user");
    let stranger = serve(&host, eve, "stranger", "bridge");
    host.ok(&["create", "--name", "a"]);

    let siblings = ["b/7000", "b.bhatti/7000", &b[0], &b[1]];
    let others: Vec<&str> = [&alone, &stranger].into_iter().flatten().map(String::as_str).collect();
    let names =
        ["alone/7000", "alone.bhatti/7000", "stranger/7000", "stranger.bhatti/7000", "nobody.bhatti/7000"];
    let all = places(&[&WORLD, &siblings, &others, &names, &NEVER, &LAN]);
    let wanted = places(&[&WORLD, &siblings]);
    assert_eq!(reached(&host, "a", &all), wanted, "fresh");
    // Nobody but a sibling reaches one, by whatever name.
    let foreign = ["a/7000", "b/7000", "b.bhatti/7000", &b[0], &b[1]];
    assert_eq!(reached(&host, "alone", &places(&[&WORLD, &foreign])), WORLD, "another mode");
    let script = "for place in \"$@\"; do (exec 3<>/dev/tcp/$place) 2>/dev/null && echo $place; done; true";
    let theirs =
        [eve, &["exec", "stranger", "--", "bash", "-c", script, "bash", WORLD[0]], &foreign].concat();
    assert_eq!(host.ok(&theirs), format!("{}\n", WORLD[0]), "another owner");

    // Without a network, nothing at all.
    host.ok(&["create", "--name", "none", "--net", "none"]);
    assert_eq!(reached(&host, "none", &all), [""; 0], "no network");
    host.ok(&["stop", "none"]);
    host.ok(&["fork", "none", "--name", "none-too"]);
    for name in ["none", "none-too"] {
        assert_eq!(reached(&host, name, &all), [""; 0], "no network, woken or forked");
    }
    host.ok(&["destroy", "none", "none-too", "-y"]);

    // Whoever sleeps is woken by the first packet, which is not lost.
    host.ok(&["stop", "a"]);
    assert_eq!(reached(&host, "a", &all), wanted, "woken");
    host.ok(&["stop", "b"]);
    assert_eq!(reached(&host, "a", &siblings[..1]), siblings[..1], "cold");
    host.ok(&["edit", "b", "--warm-after", "1", "--cold-after", "never"]);
    host.follow_events().wait_for("sandbox.paused");
    assert_eq!(reached(&host, "a", &siblings[..1]), siblings[..1], "warm");
    host.ok(&["edit", "b", "--warm-after", "3600"]);

    // A copy is a sibling, too, and what serves in it serves under its own name.
    host.ok(&["fork", "b", "--name", "copy"]);
    let by_name = ["copy/7000", "copy.bhatti/7000", "b/7000"];
    assert_eq!(reached(&host, "a", &by_name), by_name, "forked");
    let wanted_of_copy = places(&[&WORLD, &siblings[..2]]);
    assert_eq!(
        reached(&host, "copy", &places(&[&WORLD, &siblings[..2], &names, &NEVER, &LAN])),
        wanted_of_copy
    );

    // A daemon that comes again finds them as they are; while there is none, they go on.
    host.kill_daemon();
    host.start_daemon();
    assert_eq!(reached(&host, "a", &all), wanted, "taken over");
    host.ok(&["edit", "b", "--name", "c"]);
    assert_eq!(reached(&host, "a", &["b/7000", "c/7000", &b[0]]), ["c/7000", &b[0]], "renamed");
    host.kill_vmms();
    host.ok(&["exec", "c", "--detach", "--", "perl", "-e", SERVICE]);
    // One that was booted has forgotten its services, and is there under its name.
    assert_eq!(host.sh("a", "getent hosts c.bhatti | awk '{ print $2 }'"), "c.bhatti");

    // Rules are for the world.
    host.ok(&["create", "--name", "off", "--egress", "none"]);
    assert_eq!(
        reached(&host, "off", &places(&[&WORLD, &["copy/7000"], &NEVER, &LAN])),
        [""; 0],
        "nobody serves there any more"
    );
    assert_eq!(host.sh("off", "getent hosts copy | awk '{ print $2 }'"), "copy");

    // Who takes another's address, a sibling's or a stranger's, is heard by nobody.
    let owned = places(&[&NEVER, &LAN, &others]);
    for places in [&b, &stranger] {
        let [v4, v6] = [0, 1].map(|family: usize| places[family].strip_suffix("/7000").unwrap());
        let disguise = format!(
            "ip address flush dev eth0 scope global; ip address add {v4}/32 dev eth0; \
             ip -6 address add {v6}/128 dev eth0 nodad; ip route replace 198.18.0.1 dev eth0; \
             ip route replace default via 198.18.0.1 dev eth0; ip -6 route replace fe80::1 dev eth0; \
             ip -6 route replace default via fe80::1 dev eth0"
        );
        host.ok(&["exec", "copy", "--user", "root", "--", "sh", "-c", &disguise]);
        assert_eq!(reached(&host, "copy", &owned), [""; 0]);
    }

    host.ok(&["destroy", "c", "-y"]);
    assert_eq!(host.sh("a", "getent hosts c.bhatti || echo none"), "none");
    assert_eq!(reached(&host, "a", &[&b[0]]), [""; 0], "destroyed");
    let lines = lab.line_pids();
    host.ok(&["destroy", "a", "off", "copy", "alone", "-y"]);
    host.ok(&[eve, &["destroy", "stranger", "-y"]].concat());
    lab.wait_until_gone(&lines);
    let left: Vec<_> = std::fs::read_dir(host.data_dir().join("lanes")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}
