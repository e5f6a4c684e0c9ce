//! The larger image tiers, built and tried in real guests: `cargo nextest run --release --profile soak -p bhatti --test
//! soak_tiers`, with the variables that `cargo xtask test` sets. They need the network, some GiB, and under software
//! emulation most of an hour.

use testkit::TestHost;

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");

/// A host with the image of a tier, and the sandbox `one` made of it.
fn host_with(tier: &str, memory: &str) -> TestHost {
    let mut host = TestHost::prepared(BHATTI);
    let init = host.build_tier(tier).join(" ");
    host.start_daemon();
    let mut args = vec!["create", "--name", "one", "--image", tier, "--memory", memory];
    if !init.is_empty() {
        args.extend(["--init", &init]);
    }
    host.ok(&args);
    host
}

/// Waits in the guest, whose clock is the slow one.
fn wait_for(host: &TestHost, condition: &str) {
    host.sh(
        "one",
        &format!("for i in $(seq 600); do if {condition}; then exit 0; fi; sleep 1; done; exit 1"),
    );
}

#[test]
fn dev_compiles_runs_and_commits() {
    let host = host_with("dev", "1024");
    let script = r#"
        set -e; cd /tmp; printf '#include <stdio.h>\nint main(void){puts("gcc");}' > a.c
        gcc a.c -o a; ./a; python3 -c 'import ssl; print("python")'; node -e 'console.log("node")'
        git init -q r; cd r; git -c user.name=a -c user.email=a@b commit -q --allow-empty -m git; git log --format=%s"#;
    assert_eq!(host.sh("one", script), "gcc\npython\nnode\ngit");
}

#[test]
fn browser_runs_a_page() {
    let host = host_with("browser", "1536");
    let script = r#"
        cd /tmp; echo '<p id=x></p><script>document.getElementById("x").textContent="found "+6*7</script>' > p.html
        chromium --headless --no-sandbox --disable-gpu --dump-dom file:///tmp/p.html 2> /dev/null"#;
    let dom = host.sh("one", script);
    assert!(dom.contains("found 42"), "{dom}");
}

#[test]
fn docker_runs_a_container_of_an_imported_tar() {
    let host = host_with("docker", "1024");
    wait_for(&host, "docker info > /dev/null 2>&1");
    let script = r#"
        set -e; mkdir -p /tmp/r/bin /tmp/r/lib64 /tmp/r/lib/$(uname -m)-linux-gnu
        for f in /bin/sh /bin/echo $(ldd /bin/sh | grep -o '/[^ ]*'); do cp --parents -L $f /tmp/r; done
        tar -C /tmp/r -c . | docker import - tiny > /dev/null
        docker run --rm -p 8080:80 tiny /bin/sh -c 'echo from a container'"#;
    assert_eq!(host.sh("one", script), "from a container");
}

#[test]
fn computer_shows_its_desktop_on_a_port() {
    let host = host_with("computer", "2048");
    wait_for(&host, "curl -sf http://127.0.0.1:6080/vnc.html | grep -q noVNC");
    wait_for(&host, "DISPLAY=:1 xprop -root _NET_CLIENT_LIST | grep -q 0x");
}
