//! Images of others: pulled from a real registry, imported from real archives, compared with a reference unpack, and
//! everything that is refused on the way.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod images;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use images::{Cut, Image, Layer, Registry, noise, oddities, rootfs, run};
use serde_json::{Value, json};
use tar::EntryType;
use testkit::TestHost;

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");

/// Every name with its type, mode, owners, size, time, links and content; run by the image's own busybox, in the guest and
/// in the reference. Left out is what a guest writes or mounts itself.
const LISTING: &str = r#"cd /; export PATH=/bin LC_ALL=C; find . -xdev \
  \( -path ./dev -o -path ./proc -o -path ./sys -o -path ./run -o -path ./tmp -o -path ./lost+found -o -path ./etc/hostname \
     -o -path ./etc/hosts -o -path ./etc/machine-id -o -path ./etc/resolv.conf \) -prune -o -print | sort | while read -r f; do
  case "$f" in
    .|./etc) stat -c '%n %f %u %g' "$f" ;;
    *) if test -d "$f" && ! test -L "$f"; then stat -c '%n %f %u %g %Y' "$f"; else stat -c '%N %f %u %g %Y %s %h %t:%T' "$f"; fi ;;
  esac
  if test -f "$f" && ! test -L "$f"; then md5sum "$f"; fi
done"#;

fn nothing_half_made(host: &TestHost) {
    for dir in ["images", "images/objects", "snapshots"] {
        let names = fs::read_dir(host.data_dir().join(dir)).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = names.filter(|name| name.to_string_lossy().starts_with(".new-")).collect();
        assert!(left.is_empty(), "{left:?} in {dir}");
    }
}

fn image_ids(host: &TestHost) -> Vec<(String, String)> {
    let images = host.json(&["image", "list"]);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    images.as_array().unwrap().iter().map(|image| (text(&image["name"]), text(&image["id"]))).collect()
}

fn get(host: &TestHost, path: &str) -> Value {
    let key = format!("Authorization: Bearer {}", host.key());
    let url = format!("{}{path}", host.daemon().url);
    serde_json::from_str(&run("curl", &["-s", "-H", &key, &url])).unwrap()
}

#[test]
fn the_tree_in_the_guest_is_that_of_a_reference_unpack() {
    let (host, registry) = (TestHost::start(BHATTI), Registry::start());
    let with_users = || {
        Layer::new()
            .dir("etc", 0o755)
            .file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\napp:x:100:101::/srv:/bin/sh\n")
            .file("etc/group", 0o644, b"root:x:0:\napp:x:101:app\n")
    };
    let cases = [
        ("plain", vec![rootfs()], &[][..]),
        ("alpine-like", vec![rootfs(), with_users()], &["--dest-compress-format", "zstd"][..]),
        ("odd", oddities(), &["--format", "oci"][..]),
    ];
    for (name, layers, how) in cases {
        let image = Image::new(layers, json!({"Cmd": ["/bin/sh"]}));
        let reference = registry.put(&image, &format!("{name}:1"), how);
        host.ok(&["image", "pull", &reference, "--name", name]);
        host.ok(&["create", "--name", name, "--image", name]);
        let dir = tempfile::tempdir().unwrap();
        let root = image.reference(dir.path());
        // A directory that every guest needs.
        fs::create_dir_all(root.join("etc")).unwrap();
        let expected = run("chroot", &[root.to_str().unwrap(), "/bin/busybox", "sh", "-c", LISTING]);
        let found = host.ok(&["exec", name, "--", "/bin/busybox", "sh", "-c", LISTING]);
        for (one, other) in expected.lines().zip(found.lines()) {
            assert_eq!(one, other, "in {name}: the reference and the guest");
        }
        assert_eq!(expected.lines().count(), found.lines().count(), "{name}: {expected}\n{found}");
        assert!(expected.lines().count() > 15);
        if name == "odd" {
            attributes_are_equal(&host, &root);
        }
        host.ok(&["destroy", "-y", name]);
    }
    nothing_half_made(&host);
}

/// Extended attributes, as the host's own tools read them out of the image's file and of the reference.
fn attributes_are_equal(host: &TestHost, root: &Path) {
    let object = host.data_dir().join("images/rootfs-odd-amd64.ext4");
    for (path, name) in
        [("odd/capable", "security.capability"), ("odd/capable", "user.note"), ("odd/attributes", "user.dir")]
    {
        let command = format!("ea_get -x /{path} {name}");
        let told = run("debugfs", &["-R", &command, object.to_str().unwrap()]);
        let hex: String = told.split_once("=").unwrap().1.split_whitespace().collect();
        let mut value = [0u8; 256];
        let length = rustix::fs::getxattr(root.join(path), name, &mut value).unwrap();
        let expected: String = value[..length].iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(hex.ends_with(&expected) && !expected.is_empty(), "{path} {name}: {told} is not {expected}");
    }
}

#[test]
fn what_an_image_wants_applies_and_what_was_asked_for_wins() {
    let host = TestHost::start(BHATTI);
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("app.tar");
    let passwd = b"root:x:0:0:root:/root:/bin/sh\napp:x:100:101::/srv:/bin/sh\n";
    let layers = || vec![rootfs().dir("etc", 0o755).file("etc/passwd", 0o644, passwd).dir("srv", 0o777)];
    let config = json!({
        "Env": ["PATH=/bin", "GREETING=from the image", "OTHER=1"], "WorkingDir": "/srv/app", "User": "app",
        "Entrypoint": ["/bin/sh", "-c"], "Cmd": ["echo \"$GREETING\" > /srv/started; exec sleep 1000"],
    });
    Image::new(layers(), config).docker_save(&archive);
    let tar = archive.to_str().unwrap();
    host.ok(&["image", "import", "--tar", tar, "--name", "app"]);
    assert_eq!(host.json(&["image", "inspect", "app"])["config"]["user"], "app");
    host.ok(&["create", "--name", "app", "--image", "app", "--env", "GREETING=from create"]);
    assert_eq!(
        host.sh("app", "pwd; id -u; id -g; echo $GREETING $OTHER"),
        "/srv/app\n100\n101\nfrom create 1"
    );
    let asked = [
        "exec",
        "app",
        "--user",
        "0",
        "--cwd",
        "/",
        "--env",
        "OTHER=2",
        "--",
        "sh",
        "-c",
        "pwd; id -u; echo $OTHER",
    ];
    assert_eq!(host.ok(&asked), "/\n0\n2\n");
    let sessions = host.json(&["ps", "app"]);
    assert_eq!(
        (&sessions[0]["kind"], &sessions[0]["command"][0]),
        (&json!("init"), &json!("/bin/sh")),
        "{sessions}"
    );
    // The session may still be on its way to its first line.
    host.sh("app", "until test -s /srv/started; do sleep 0.05; done");
    assert_eq!(host.sh("app", "cat /srv/started"), "from create");
    // It is on the config drive as well: a boot from the disk knows it.
    host.ok(&["stop", "app"]);
    host.ok(&["start", "app", "--discard-memory"]);
    assert_eq!(host.sh("app", "pwd; id -u; echo $GREETING"), "/srv/app\n100\nfrom create");
    host.ok(&["create", "--name", "other", "--image", "app", "--init", "sleep 7"]);
    assert_eq!(host.json(&["ps", "other"])[0]["command"][2], "sleep 7", "an init of one's own wins");

    // Without a shell, passwd or any directory but one.
    let bare = Image::new(vec![Layer::new().file("app/busybox", 0o755, &images::busybox())], json!({}));
    bare.docker_save(&archive);
    let told = host.run(&["image", "import", "--tar", tar, "--name", "bare"]);
    assert!(told.code == 0 && told.stderr.contains("no /bin/sh"), "{}", told.stderr);
    host.ok(&["create", "--name", "bare", "--image", "bare"]);
    assert_eq!(host.ok(&["exec", "bare", "--", "/app/busybox", "id", "-u"]), "0\n");
    host.refused(&["image", "delete", "-y", "app"], 1, &["sandbox app", "sandbox other", "in use"]);
    host.ok(&["destroy", "-y", "app", "other"]);
    host.ok(&["image", "delete", "-y", "app"]);
    host.refused(&["image", "inspect", "app"], 1, &["no image", "app"]);
    host.refused(&["create", "--name", "x", "--image", "app"], 1, &["no image"]);
    assert_eq!(host.json(&["image", "list"]).as_array().unwrap().len(), 2, "minimal and bare");
    assert_eq!(
        fs::read_dir(host.data_dir().join("images/objects")).unwrap().count(),
        2,
        "its content went, too"
    );
}

#[test]
fn a_pull_moves_only_what_is_not_here_and_goes_on_where_it_was_cut() {
    let (host, registry) = (TestHost::start(BHATTI), Registry::start());
    // What does not compress, so that there are bytes to be cut.
    let noise = noise(3 << 20);
    let shared = || Layer::new().file("shared", 0o644, &noise);
    let small = |text: &str| Layer::new().file("own", 0o644, text.as_bytes());
    let one = registry.put(&Image::new(vec![shared(), small("one")], json!({})), "app:1", &[]);
    let two = registry.put(&Image::new(vec![shared(), small("two")], json!({})), "app:2", &[]);
    let cut = Cut::off(&registry.address, 1 << 20);
    let through = one.replace(&registry.address, &cut.address);
    host.refused(&["image", "pull", &through, "--name", "app"], 1, &["broke off", "try again"]);
    assert_eq!(image_ids(&host).len(), 1, "only minimal");
    nothing_half_made(&host);
    let partial = fs::read_dir(host.data_dir().join("images/blobs")).unwrap().next().unwrap().unwrap();
    let kept = partial.metadata().unwrap().len();
    assert!(kept > 200 << 10, "{kept} bytes are kept");
    cut.mend();
    let first = host.json(&["image", "pull", &through, "--name", "app"]);
    let moved = |task: &Value| task["result"]["moved_bytes"].as_u64().unwrap();
    let all = first["result"]["layers"].as_u64().unwrap();
    assert_eq!((all, first["status"].as_str()), (2, Some("done")));
    let second = host.json(&["image", "pull", &two, "--name", "other"]);
    assert_eq!(second["result"]["reused_layers"], 1, "{second}");
    assert!(moved(&second) < 4 << 10, "{} bytes for a layer of a few", moved(&second));
    assert!(
        moved(&first) + kept > 1 << 20 && moved(&first) < moved(&first) + kept,
        "{} and {kept}",
        moved(&first)
    );
    // The cache is a cache.
    let gc = host.json(&["gc"]);
    assert!(gc["removed"].as_array().unwrap().iter().any(|item| item["kind"] == "blob"), "{gc}");
    assert_eq!(fs::read_dir(host.data_dir().join("images/blobs")).unwrap().count(), 0);
    let again = host.json(&["image", "pull", &two, "--name", "other"]);
    assert!(moved(&again) > moved(&second));
    assert_eq!(again["result"]["image"]["name"], "other");
}

#[test]
fn what_cannot_be_pulled_says_why_and_the_good_old_image_stays() {
    let (host, registry, locked) =
        (TestHost::start(BHATTI), Registry::start(), Registry::locked("me:secret"));
    let image = |text: &str| Image::new(vec![Layer::new().file("f", 0o644, text.as_bytes())], json!({}));
    let good = registry.put(&image("good"), "app:1", &[]);
    host.ok(&["image", "pull", &good, "--name", "app"]);
    let before = image_ids(&host);
    let refused = |reference: &str, more: &[&str], parts: &[&str]| {
        let mut args = vec!["image", "pull", reference, "--name", "app"];
        args.extend(more);
        host.refused(&args, 1, parts);
        assert_eq!(image_ids(&host), before, "{reference}");
        nothing_half_made(&host);
    };
    refused("127.0.0.1:1/app:1", &[], &["cannot be reached", "127.0.0.1:1"]);
    refused("registry.invalid/app:1", &[], &["cannot be reached", "registry.invalid"]);
    refused(&format!("{}/nosuch:1", registry.address), &[], &["no such image"]);
    refused(&format!("{}/app:nosuch", registry.address), &[], &["no such image"]);
    refused("Not A Name", &[], &["no name of an image"]);
    let private = locked.put(&image("private"), "app:1", &[]);
    refused(&private, &[], &["does not let us in", "--auth USER:TOKEN"]);
    refused(&private, &["--auth", "me:wrong"], &["does not let us in"]);
    refused(&private, &["--auth", "nonsense"], &["USER:TOKEN"]);
    host.ok(&["image", "pull", &private, "--name", "private", "--auth", "me:secret"]);
    host.ok(&["image", "delete", "-y", "private"]);
    let foreign = registry.put(&image("x").of_arch("s390x"), "foreign:1", &[]);
    refused(&foreign, &[], &["linux/s390x"]);
    // A blob that is not what its name says, as from a damaged disk.
    let bad = registry.put(&image("to be damaged"), "bad:1", &[]);
    let told = run("skopeo", &["inspect", "--tls-verify=false", &format!("docker://{bad}")]);
    let told: Value = serde_json::from_str(&told).unwrap();
    let digest = told["Layers"][0].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let blobs = registry.storage().join("storage/docker/registry/v2/blobs/sha256");
    let blob = blobs.join(&digest[..2]).join(digest).join("data");
    let mut bytes = fs::read(&blob).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&blob, bytes).unwrap();
    refused(&bad, &[], &["not what"]);

    // Archives.
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("a.tar");
    let import = |parts: &[&str]| {
        host.refused(&["image", "import", "--tar", archive.to_str().unwrap(), "--name", "app"], 1, parts);
        assert_eq!(image_ids(&host), before);
        nothing_half_made(&host);
    };
    fs::write(&archive, "this is no archive").unwrap();
    import(&["no tar archive"]);
    run("tar", &["-cf", archive.to_str().unwrap(), "-C", "/etc", "hostname"]);
    import(&["no image", "manifest.json"]);
    image("cut").docker_save(&archive);
    let whole = fs::read(&archive).unwrap();
    fs::write(&archive, &whole[..1000]).unwrap();
    import(&["cut short"]);
    Image::new(vec![Layer::new().link(EntryType::Link, "x", "../../../etc/passwd")], json!({}))
        .docker_save(&archive);
    import(&["'..'"]);
    host.refused(&["image", "import", "--tar", "/no/such/file", "--name", "app"], 1, &["/no/such/file"]);
    host.refused(&["image", "import", "--tar", "x", "--name", "Bad Name"], 2, &["Bad Name"]);
    host.refused(&["image", "build", "nosuch"], 1, &["no tier", "minimal"]);
    host.refused(&["image", "save", "nosuch", "--name", "x"], 1, &["nosuch"]);
    host.refused(&["image", "delete", "-y", "nosuch"], 1, &["no image", "nosuch"]);
    for (path, body) in [
        ("/images/pull", json!({"ref": "alpine", "name": "Bad Name"})),
        ("/images/pull", json!({"ref": "alpine"})),
        ("/images/save", json!({"sandbox": "x", "name": ".."})),
        ("/images/build", json!({"tier": "minimal", "name": "a/b"})),
    ] {
        assert_eq!(host.post(path, &body).0, 400, "{path} {body}");
    }
    // The failures are told by the tasks, too, and stay.
    let tasks = get(&host, "/tasks");
    let failed = tasks.as_array().unwrap().iter().filter(|task| task["status"] == "failed").count();
    assert!(failed > 8, "{tasks}");
    let codes: Vec<&str> =
        tasks.as_array().unwrap().iter().filter_map(|task| task["error"]["code"].as_str()).collect();
    assert!(codes.contains(&"registry_denied") && codes.contains(&"registry_failed"), "{codes:?}");
}

/// Follows a task until bytes have come.
fn until_bytes_came(host: &TestHost, id: &str) {
    let key = format!("Authorization: Bearer {}", host.key());
    let url = format!("{}/tasks/{id}", host.daemon().url);
    let mut curl = std::process::Command::new("curl")
        .args(["-sN", "-H", "Accept: application/x-ndjson", "-H", &key, &url])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(curl.stdout.take().unwrap()).lines();
    let came = lines.map_while(Result::ok).any(|line| {
        let task: Value = serde_json::from_str(&line).unwrap();
        task["progress"]["done_bytes"].as_u64().unwrap() > 10_000
    });
    curl.kill().unwrap();
    curl.wait().unwrap();
    assert!(came, "bytes came");
}

#[test]
fn a_task_that_is_called_off_or_outlived_by_its_daemon_leaves_nothing_half_made() {
    let mut host = TestHost::start(BHATTI);
    let registry = Registry::start();
    let noise = noise(2 << 20);
    let reference =
        registry.put(&Image::new(vec![Layer::new().file("noise", 0o644, &noise)], json!({})), "app:1", &[]);
    let slow = Cut::still(&registry.address, 600 << 10);
    let through = reference.replace(&registry.address, &slow.address);
    let post = |host: &TestHost, path: &str, body: Value| {
        let (status, task) = host.post(path, &body);
        assert_eq!(status, 202, "{task}");
        task["id"].as_str().unwrap().to_owned()
    };
    let called_off = |host: &TestHost, id: &str| {
        let key = format!("Authorization: Bearer {}", host.key());
        let url = format!("{}/tasks/{id}", host.daemon().url);
        let ended: Value =
            serde_json::from_str(&run("curl", &["-s", "-X", "DELETE", "-H", &key, &url])).unwrap();
        assert_eq!(ended["status"], "cancelled", "{ended}");
    };
    let unchanged = |host: &TestHost| {
        nothing_half_made(host);
        assert_eq!(image_ids(host).len(), 1);
    };
    let id = post(&host, "/images/pull", json!({"ref": through, "name": "app"}));
    until_bytes_came(&host, &id);
    called_off(&host, &id);
    unchanged(&host);
    let id = post(&host, "/images/build", json!({"tier": "minimal", "name": "app"}));
    called_off(&host, &id);
    unchanged(&host);

    // Ctrl-C of the command line.
    let slow = Cut::still(&registry.address, 900 << 10);
    let through = reference.replace(&registry.address, &slow.address);
    let program = host.command(&["image", "pull", &through, "--name", "app"]).spawn().unwrap();
    let running = loop {
        let tasks = get(&host, "/tasks");
        if let Some(task) = tasks.as_array().unwrap().iter().find(|task| task["status"] == "running") {
            break task["id"].as_str().unwrap().to_owned();
        }
    };
    until_bytes_came(&host, &running);
    let pid = rustix::process::Pid::from_child(&program);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let ended = program.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130), "{ended:?}");
    assert_eq!(get(&host, &format!("/tasks/{running}"))["status"], "cancelled");
    unchanged(&host);

    let slow_again = Cut::still(&registry.address, 1200 << 10);
    let through = reference.replace(&registry.address, &slow_again.address);
    let id = post(&host, "/images/pull", json!({"ref": through, "name": "app"}));
    host.kill_daemon();
    host.start_daemon();
    let task = get(&host, &format!("/tasks/{id}"));
    assert_eq!(
        (task["status"].as_str(), task["error"]["hint"].as_str()),
        (Some("failed"), Some("try again")),
        "{task}"
    );
    assert!(task["error"]["message"].as_str().unwrap().contains("restarted"));
    nothing_half_made(&host);
    host.ok(&["image", "pull", &reference, "--name", "app"]);
}

#[test]
fn a_saved_disk_is_an_image_of_its_own_without_the_sandboxes_secrets() {
    let host = TestHost::start(BHATTI);
    host.ok(&["create", "--name", "source", "--env", "TOKEN=hush-hush"]);
    host.sh("source", "echo kept > /home/user/kept");
    let saved = host.json(&["image", "save", "source", "--name", "saved"]);
    assert_eq!(saved["status"], "done");
    host.sh("source", "echo later > /home/user/kept");
    host.ok(&["create", "--name", "copy", "--image", "saved"]);
    assert_eq!(host.sh("copy", "cat /home/user/kept; hostname; echo \"[$TOKEN]\""), "kept\ncopy\n[]");
    let id = |name: &str| host.sh(name, "cat /etc/machine-id");
    assert_ne!(id("source"), id("copy"));
    assert_eq!(host.sh("source", "cat /home/user/kept; echo $TOKEN"), "later\nhush-hush");
    host.ok(&["snapshot", "create", "copy", "--name", "keep", "--disk-only"]);
    host.refused(&["image", "delete", "-y", "saved"], 1, &["sandbox copy", "snapshot keep"]);
    // A name that moves on does not hurt who started from what it meant.
    host.ok(&["stop", "source"]);
    host.ok(&["image", "save", "source", "--name", "saved"]);
    assert_eq!(host.sh("copy", "cat /home/user/kept"), "kept");
    host.ok(&["stop", "copy"]);
    host.ok(&["gc"]);
    assert_eq!(
        host.sh("copy", "cat /home/user/kept; ls /usr/bin | wc -l | grep -q ... && echo whole"),
        "kept\nwhole"
    );
    let object = host.data_dir().join("images/rootfs-saved-amd64.ext4");
    let found = std::process::Command::new("grep").args(["-c", "hush-hush"]).arg(&object).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout).trim(), "0", "no secret is in the image");
    nothing_half_made(&host);
}

#[test]
fn an_image_for_which_there_is_no_room_is_refused_and_leaves_the_room_that_there_was() {
    let host = TestHost::on_small_filesystem(BHATTI, 1100);
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("big.tar");
    let noise = noise(32 << 20);
    let layers = (0..3).map(|n| Layer::new().file(&format!("big-{n}"), 0o644, &noise)).collect();
    Image::new(layers, json!({})).docker_save(&archive);
    host.fill(450 << 20);
    let tar = archive.to_str().unwrap();
    // The archive fits; what is in it does not fit twice more.
    host.refused(
        &["image", "import", "--tar", tar, "--name", "big"],
        1,
        &["does not fit twice", "the disk is full"],
    );
    nothing_half_made(&host);
    host.unfill();
    host.fill(100 << 20);
    let key = format!("Authorization: Bearer {}", host.key());
    let url = format!("{}/images/import?name=big", host.daemon().url);
    let body = format!("@{tar}");
    let status = run(
        "curl",
        &[
            "-s",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "-H",
            &key,
            "-H",
            "Expect:",
            "--data-binary",
            &body,
            &url,
        ],
    );
    assert_eq!(status, "507");
    nothing_half_made(&host);
    assert_eq!(image_ids(&host).len(), 1);
}
