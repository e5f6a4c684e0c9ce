//! The network of real guests on a host in a namespace: what they reach, what they do not, and what is left of it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod reach;

use std::path::Path;
use std::process::Command;

use reach::{LAN, NEVER, WORLD, reached};
use serde_json::json;
use testkit::{Lab, TestHost};

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");

fn reaches_the_world_alone(host: &TestHost, sandbox: &str, state: &str) {
    let all: Vec<&str> = WORLD.iter().chain(&NEVER).chain(&LAN).copied().collect();
    assert_eq!(reached(host, sandbox, &all), WORLD, "{sandbox}, {state}");
}

fn ip(host: &TestHost, sandbox: &str) -> String {
    host.json(&["inspect", sandbox])["ip"].as_str().unwrap().to_owned()
}

/// What the guest calls itself: hardware address and IPv4 address.
fn names(host: &TestHost, sandbox: &str) -> (String, String) {
    let script = "cat /sys/class/net/eth0/address; ip -4 -o address show dev eth0 | awk '{print $4}'";
    let text = host.sh(sandbox, script);
    let (mac, address) = text.split_once('\n').unwrap();
    (mac.to_owned(), address.to_owned())
}

#[test]
fn a_guest_reaches_the_world_and_nothing_nearer_whatever_becomes_of_it() {
    whatever_becomes_of_it("user");
}

#[test]
fn nor_does_one_with_siblings() {
    whatever_becomes_of_it("bridge");
}

fn whatever_becomes_of_it(mode: &str) {
    let lab = Lab::new(BHATTI);
    let mut host = TestHost::start_with(lab.program(), &["--net", mode]);
    let made = host.json(&["create", "--name", "a"]);
    assert_eq!((&made["net"], &made["egress"]), (&json!(mode), &json!(["public"])), "{made}");
    assert_eq!(made["warnings"], serde_json::Value::Null, "{made}");
    let own = names(&host, "a");
    assert_eq!(own.1, format!("{}/32", ip(&host, "a")));
    assert_eq!(lab.line_pids().len(), 1, "its relay; passt comes with the first packet for the world");
    assert_eq!(reached(&host, "a", &NEVER), [""; 0]);
    assert_eq!(lab.line_pids().len(), 1, "none of these was one");
    reaches_the_world_alone(&host, "a", "fresh");
    // One that ends is started again by the next packet, and is nobody's to bury.
    let both = lab.line_pids();
    let is_passt = |pid: &&i32| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.starts_with("passt")
    };
    let passt = *both.iter().find(is_passt).unwrap();
    assert!(Command::new("kill").args(["-KILL", &passt.to_string()]).status().unwrap().success());
    assert_eq!(reached(&host, "a", &[WORLD[0]]), [WORLD[0]]);
    let after = lab.line_pids();
    assert!(both.len() == 2 && after.len() == 2 && !after.contains(&passt), "{both:?}, then {after:?}");
    assert_eq!(host.sh("a", "curl -sg -m 20 http://web.example/"), "world");
    assert_eq!(host.sh("a", "getent hosts nowhere.example || echo none"), "none");

    // An address that the host gets later is the host's, too.
    lab.ip("address add 198.51.100.99/32 dev lo");
    assert_eq!(reached(&host, "a", &["198.51.100.99/8099", WORLD[0]]), [WORLD[0]]);

    // The first thing a woken guest does is to connect, and it is not kept waiting.
    let lines = lab.line_pids();
    host.ok(&["stop", "a"]);
    lab.wait_until_gone(&lines);
    assert_eq!(lab.line_pids(), [0; 0], "a sleeping sandbox has no processes");
    let connect = "s=$EPOCHREALTIME; exec 3<>/dev/tcp/198.51.100.10/80 && read -u 3 line && e=$EPOCHREALTIME && \
                   echo $(( (${e/./} - ${s/./}) / 1000 ))";
    let took: u64 = host.ok(&["exec", "a", "--", "bash", "-c", connect]).trim().parse().unwrap();
    assert!(took < 900, "{took} ms: a SYN was lost");
    reaches_the_world_alone(&host, "a", "woken");
    assert_eq!(names(&host, "a"), own, "it is who it was");

    // A copy is somebody else before its first command.
    host.ok(&["fork", "a", "--name", "b"]);
    let other = names(&host, "b");
    assert_ne!((&other.0, &other.1), (&own.0, &own.1));
    assert_eq!(other.1, format!("{}/32", ip(&host, "b")));
    reaches_the_world_alone(&host, "b", "forked");

    // Whatever it calls itself, it reaches no more for that.
    let disguise = "ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:07; ip link set eth0 up; \
                    ip address flush dev eth0; ip address add 203.0.113.2/24 dev eth0; \
                    ip address add 192.168.77.9/24 dev eth0; ip address add 169.254.169.1/16 dev eth0; \
                    ip route replace default via 203.0.113.1 dev eth0; ip -6 address add fd77::9/64 dev eth0; \
                    ip -6 route replace default via fe80::1 dev eth0";
    host.ok(&["exec", "b", "--user", "root", "--", "sh", "-c", disguise]);
    let near: Vec<&str> = NEVER.iter().chain(&LAN).copied().collect();
    assert_eq!(reached(&host, "b", &near), [""; 0]);

    // The daemon's end is none of the line's, and the VMM's end is.
    let lines = lab.line_pids();
    assert_eq!(lines.len(), 4, "two for each of two: {lines:?}");
    host.kill_daemon();
    host.start_daemon();
    assert_eq!(reached(&host, "a", &[WORLD[0]]), [WORLD[0]]);
    assert_eq!(lab.line_pids(), lines);
    host.kill_vmms();
    lab.wait_until_gone(&lines);
    assert_eq!(lab.line_pids(), [0; 0]);
    reaches_the_world_alone(&host, "a", "booted from its disk");
    let lines = lab.line_pids();
    host.ok(&["destroy", "a", "b", "-y"]);
    lab.wait_until_gone(&lines);
    assert_eq!(lab.line_pids(), [0; 0]);
}

/// A repository with one package, `from-afar`, which is installed as `/usr/bin/from-afar`.
fn repository(dir: &Path) {
    let run = |program: &str, args: &[&str]| {
        let done = Command::new(program).args(args).current_dir(dir).output().unwrap();
        assert!(done.status.success(), "{program}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    };
    let control = "Package: from-afar\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <nobody@example>\n\
                   Description: something from the world\n";
    for (path, text) in
        [("tree/DEBIAN/control", control), ("tree/usr/bin/from-afar", "#!/bin/sh\necho afar\n")]
    {
        let path = dir.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    run("chmod", &["0755", "tree/usr/bin/from-afar"]);
    run("dpkg-deb", &["--root-owner-group", "--build", "tree", "from-afar.deb"]);
    let sum = run("sha256sum", &["from-afar.deb"]);
    let (sum, size) = (&sum[..64], std::fs::metadata(dir.join("from-afar.deb")).unwrap().len());
    let packages = format!("{control}Filename: ./from-afar.deb\nSize: {size}\nSHA256: {sum}\n");
    std::fs::write(dir.join("Packages"), packages).unwrap();
}

#[test]
fn a_guest_installs_what_a_mirror_of_the_world_has() {
    let mut lab = Lab::new(BHATTI);
    let mirror = tempfile::tempdir().unwrap();
    repository(mirror.path());
    lab.serve_files(83, mirror.path());
    let host = TestHost::start_with(lab.program(), &["--net", "auto"]);
    host.ok(&["create", "--name", "x", "--egress", "web.example"]);
    let script = "echo 'deb [trusted=yes] http://web.example:83/ ./' > /tmp/afar.list && \
                  set -- -o Dir::Etc::sourcelist=/tmp/afar.list -o Dir::Etc::sourceparts=/dev/null && \
                  apt-get \"$@\" update && apt-get \"$@\" -y install from-afar && from-afar";
    let said = host.ok(&["exec", "x", "--user", "root", "--timeout", "120", "--", "sh", "-c", script]);
    assert_eq!(said.lines().last(), Some("afar"), "{said}");
}

/// The command that makes `x`, with these flags.
fn create<'a>(rest: &[&'a str]) -> Vec<&'a str> {
    [&["create", "--name", "x"], rest].concat()
}

#[test]
fn what_a_sandbox_may_reach_is_kept_and_what_is_no_rule_is_refused() {
    let lab = Lab::new(BHATTI);
    let mut host = TestHost::start_with(lab.program(), &["--net", "auto"]);
    host.refused(&create(&["--net", "bridged"]), 2, &["bridged"]);
    host.refused(&create(&["--egress", "publik"]), 1, &["publik", "pypi.org"]);
    host.refused(&create(&["--egress", "10.0.0.0/33"]), 1, &["10.0.0.0/33"]);
    host.refused(&create(&["--egress", "none", "public"]), 1, &["none"]);
    host.refused(&create(&["--net", "none", "--egress", "public"]), 1, &["network"]);
    assert!(host.vmm_pids().is_empty() && lab.line_pids().is_empty());

    host.ok(&["create", "--name", "names", "--egress", "web.example"]);
    host.refused(&["create", "--name", "names", "--egress", "public"], 1, &["another network"]);
    host.ok(&["create", "--name", "lan", "--egress", "192.168.77.0/24"]);
    host.ok(&["create", "--name", "off", "--net", "none"]);
    host.ok(&["create", "--name", "nothing", "--egress", "none"]);
    let all: Vec<&str> =
        WORLD.iter().chain(&NEVER).chain(&LAN).chain(&["198.51.100.11/80"]).copied().collect();
    assert_eq!(reached(&host, "off", &all), [""; 0]);
    assert_eq!(reached(&host, "nothing", &all), [""; 0]);
    assert_eq!(host.json(&["inspect", "off"])["net"], "none");
    assert_eq!(reached(&host, "lan", &all), ["192.168.77.1/80", "lan.example/80"]);
    // Over sleep, a copy, and a boot from the disk.
    let by_name =
        ["web.example/80", "198.51.100.10/80", "other.example/80", "198.51.100.11/80", "192.168.77.1/80"];
    let only = &by_name[..2];
    assert_eq!(reached(&host, "names", &by_name), only);
    host.ok(&["stop", "names"]);
    assert_eq!(reached(&host, "names", &by_name), only, "woken");
    host.ok(&["fork", "names", "--name", "copy"]);
    assert_eq!(reached(&host, "copy", &by_name), only, "forked");
    host.ok(&["snapshot", "create", "names", "--name", "kept"]);
    host.ok(&["snapshot", "resume", "kept", "--name", "again"]);
    assert_eq!(reached(&host, "again", &by_name), only, "resumed");
    host.kill_vmms();
    assert_eq!(reached(&host, "names", &by_name), only, "booted");

    // A daemon that gives none says so, wakes what is there, and gives nobody any.
    host.ok(&["stop", "names"]);
    host.end_daemon();
    host.serve_with(&["--net", "none"]);
    host.start_daemon();
    host.refused(&create(&["--net", "user"]), 1, &["no network", "--net none"]);
    let start = host.run(&["start", "names"]);
    assert_eq!(start.code, 0, "{}", start.stderr);
    assert!(start.stderr.contains("no network in this run"), "{}", start.stderr);
    let connect =
        ["exec", "names", "--timeout", "4", "--", "bash", "-c", "exec 3<>/dev/tcp/198.51.100.10/80"];
    assert_ne!(host.run(&connect).code, 0, "there is nobody at the other end of its line");
}

#[test]
fn a_network_carries_no_more_than_it_may_in_either_direction() {
    let lab = Lab::new(BHATTI);
    let host = TestHost::start_with(lab.program(), &["--net", "user", "--net-rate", "64M:20000"]);
    host.refused(&create(&["--net-rate", "fast"]), 2, &["fast", "no number"]);
    host.refused(&create(&["--net-rate", "1K"]), 2, &["65536"]);
    assert_eq!(host.json(&create(&["--net-rate", "1M"]))["net_rate"], "1M");
    // Milliseconds for 4 MiB; how fast the guest is at most does not matter.
    let took = |script: &str| -> u64 {
        let timed = format!(
            "s=$EPOCHREALTIME; {script}; e=$EPOCHREALTIME; echo $(( (${{e/./}} - ${{s/./}}) / 1000 ))"
        );
        host.ok(&["exec", "x", "--", "bash", "-ec", &timed]).trim().parse().unwrap()
    };
    let fetch = "exec 3<>/dev/tcp/198.51.100.10/81; [ $(wc -c <&3) = 4194304 ]";
    let send =
        "exec 3<>/dev/tcp/198.51.100.10/82; head -c 4194304 /dev/zero >&3; read -u 3 w; [ $w = taken ]";
    for script in [fetch, send] {
        let ms = took(script);
        assert!(ms > 3500, "4 MiB at 1 MiB a second took {ms} ms: {script}");
    }
    // Another rate is there from the next start on; `default` is the daemon's.
    assert_eq!(host.json(&["edit", "x", "--net-rate", "2M:1000"])["net_rate"], "2M:1000");
    host.ok(&["stop", "x"]);
    let ms = took(fetch);
    assert!(ms > 1700, "4 MiB at 2 MiB a second took {ms} ms");
    host.refused(&["edit", "x", "--net-rate", "2M:3"], 2, &["at least 20"]);
    assert_eq!(host.json(&["edit", "x", "--net-rate", "default"])["net_rate"], "64M:20000");
    host.ok(&["destroy", "x", "-y"]);
}
