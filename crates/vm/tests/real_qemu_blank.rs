//! Machines that were started before it was known whose they would be, on real VMMs of two versions.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

extern crate bhatti_vm as vm;

mod guest;

use std::fs::File;

use guest::{Home, Shell, console_with, older_qemu, put_to_sleep, qemu};
use vm::{DiskFile, ErrorKind, Machine, Status};

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_wakes_in_a_machine_that_was_blank_and_keeps_its_disks() {
    for qemu in [older_qemu(), qemu()] {
        let home = Home::new();
        let machine = home.launch(&qemu, false).await.unwrap();
        console_with(&machine, "guest-up").await;
        let mut shell = Shell::of(&machine).await;
        let disks = "cat /sys/block/vd?/size /sys/block/vd?/ro /sys/block/vd?/serial";
        let before = shell.run(disks).await;
        shell.run("echo kept | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null").await;
        drop(shell);
        let saved = put_to_sleep(machine).await;

        let spec = home.spec(&qemu, true);
        let blank = spec.blank().unwrap();
        let machine =
            Machine::launch_blank(&qemu, &blank, &home.dir, home.lock().unwrap(), None).await.unwrap();
        assert_eq!(machine.status().await.unwrap(), Status::Incoming);
        // It holds the lock that it was given, and nobody's disk.
        assert!(home.lock().is_err());
        let open: Vec<_> = std::fs::read_dir(format!("/proc/{}/fd", machine.pid()))
            .unwrap()
            .filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok())
            .collect();
        assert!(
            !open.iter().any(|file| file.ends_with("root.qcow2") || file.ends_with("config")),
            "{open:?}"
        );

        machine.insert_disks(&spec).await.unwrap();
        machine.ram().unwrap().write_runs(&saved.runs, &saved.pages).unwrap();
        machine.load_devices(File::open(home.dir.join("vm.snap")).unwrap()).await.unwrap();
        machine.resume().await.unwrap();
        let mut shell = Shell::of(&machine).await;
        assert_eq!(shell.run(disks).await, before);
        shell.run("echo 3 > /proc/sys/vm/drop_caches").await;
        assert_eq!(shell.run("head -c 4 /dev/vda").await, "kept");
        shell.run("echo more | dd of=/dev/vda bs=512 seek=1 conv=sync,fsync 2>/dev/null").await;
        machine.resize_root(types::Bytes(128 << 20)).await.unwrap();
        shell.run("i=0; while [ $(cat /sys/block/vda/size) != 262144 ] && [ $i -lt 500 ]; do i=$((i + 1)); usleep 20000; done; [ $i -lt 500 ]").await;
        drop(shell);

        // What it saves loads in a machine that had its disks from the start.
        let saved = put_to_sleep(machine).await;
        let machine = guest::wake(&home, &qemu, &saved).await;
        machine.resume().await.unwrap();
        let mut shell = Shell::of(&machine).await;
        assert_eq!(shell.run("dd if=/dev/vda bs=512 skip=1 count=1 2>/dev/null | head -c 4").await, "more");
        machine.kill().await.unwrap();
    }
}

#[tokio::test]
async fn a_disk_that_is_not_there_is_refused_by_name() {
    let (home, qemu) = (Home::new(), qemu());
    let mut spec = home.spec(&qemu, true);
    let blank = spec.blank().unwrap();
    let machine = Machine::launch_blank(&qemu, &blank, &home.dir, home.lock().unwrap(), None).await.unwrap();
    spec.root.as_mut().unwrap().top = DiskFile::qcow2("missing.qcow2");
    let error = machine.insert_disks(&spec).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("missing.qcow2"), "{error}");
    spec.incoming = false;
    assert_eq!(machine.insert_disks(&spec).await.unwrap_err().kind(), ErrorKind::Refused);
    machine.kill().await.unwrap();
}
