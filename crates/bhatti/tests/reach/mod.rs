//! The places of a lab, and which of them answer a guest.

use testkit::TestHost;

/// What a guest may reach, by address or name and port.
pub const WORLD: [&str; 3] = ["198.51.100.10/80", "2001:db8:2::10/80", "web.example/80"];
/// The host, by whatever address, and those who know its secrets.
pub const NEVER: [&str; 9] = [
    "203.0.113.2/8099",
    "2001:db8:1::2/8099",
    "127.0.0.1/8099",
    "::ffff:127.0.0.1/8099",
    "198.18.0.1/8099",
    "fe80::1%eth0/8099",
    "169.254.169.254/80",
    "fd00:ec2::254/80",
    "64:ff9b::a9fe:a9fe/80",
];
/// The host's neighbours.
pub const LAN: [&str; 3] = ["192.168.77.1/80", "fd77::1/80", "lan.example/80"];

/// Which of these places answer the guest.
pub fn reached(host: &TestHost, sandbox: &str, places: &[&str]) -> Vec<String> {
    let script = "for place in \"$@\"; do \
                  (exec 3<>/dev/tcp/$place && read -t 10 -u 3 line && [ \"${line%% *}\" = HTTP/1.0 ]) 2>/dev/null \
                  && echo $place; done; true";
    let mut args = vec!["exec", sandbox, "--timeout", "100", "--", "bash", "-c", script, "bash"];
    args.extend(places);
    host.ok(&args).lines().map(str::to_owned).collect()
}
