//! Backups of a volume that a guest is writing to.

use testkit::TestHost;

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");

#[test]
fn what_a_guest_wrote_is_in_the_backup_and_a_restore_waits_until_the_volume_is_free() {
    let host = TestHost::start(BHATTI);
    host.ok(&["volume", "create", "data", "--size", "64"]);
    host.ok(&["create", "--name", "one", "--volume", "data:/data"]);
    host.sh("one", "echo first | sudo tee /data/file > /dev/null; sync");
    let backup = host.json(&["volume", "backup", "data"]);
    let id = backup["id"].as_str().expect("an id");
    assert!(backup["stall_ms"].is_number(), "{backup}");
    host.sh("one", "echo second | sudo tee /data/file > /dev/null; sync");

    let restore = ["volume", "restore", "data", "--backup", id];
    host.refused(&restore, 1, &["in use by one", "volume detach data one"]);
    assert_eq!(host.sh("one", "cat /data/file"), "second");
    host.ok(&["volume", "detach", "data", "one"]);
    host.ok(&restore);
    host.ok(&["volume", "attach", "data", "one", "/back"]);
    assert_eq!(host.sh("one", "cat /back/file"), "first");
}
