//! Device states between two versions of QEMU: the nextest profile `vm` runs these (`binary(real_qemu_versions)`).

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

extern crate bhatti_vm as vm;

mod guest;

use guest::{Home, count_above, older_qemu, put_to_sleep, qemu, wake};
use vm::ErrorKind;

#[tokio::test]
async fn a_guest_put_to_sleep_by_an_older_qemu_wakes_under_a_newer_one() {
    let (older, newer) = (older_qemu(), qemu());
    assert!(older.version < newer.version, "{} and {}", older.version, newer.version);
    for cpus in [1, 2] {
        let mut home = Home::new();
        home.cpus = cpus;
        let machine = home.launch(&older, false).await.unwrap();
        let (count, nonce, _) = count_above(&machine, 3).await;
        let saved = put_to_sleep(machine).await;
        newer.check_loads(older.version).unwrap();
        let machine = wake(&home, &newer, &saved).await;
        machine.resume().await.unwrap();
        let (count, same, _) = count_above(&machine, count).await;
        assert_eq!(same, nonce);
        // And once more, now under the newer one alone.
        let saved = put_to_sleep(machine).await;
        let machine = wake(&home, &newer, &saved).await;
        machine.resume().await.unwrap();
        let (_, same, _) = count_above(&machine, count).await;
        assert_eq!(same, nonce);
        machine.kill().await.unwrap();
    }
}

#[tokio::test]
async fn an_older_qemu_refuses_what_a_newer_one_saved() {
    let (older, newer) = (older_qemu(), qemu());
    let error = older.check_loads(newer.version).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SnapshotTooNew);
    assert!(error.to_string().contains(&newer.version.to_string()), "{error}");
}
