//! Volumes on a real VMM: plugged in and out, over a sleep, locked against others, and copied while they are written.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails says where")]

extern crate bhatti_vm as vm;

mod guest;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use guest::{Home, Shell, console_with, put_to_sleep, qemu, wake};
use sys::host_image_lock::{is_used, take_alone, take_shared};
use types::Bytes;
use vm::{ErrorKind, VolumeDisk, volume_serial};

const MIB: u64 = 1 << 20;

fn volume(home: &Home, port: u8, read_only: bool) -> VolumeDisk {
    let path = format!("../volume{port}");
    let file = home.dir.join(&path);
    if !file.exists() {
        File::create(file).unwrap().set_len(64 * MIB).unwrap();
    }
    VolumeDisk { port, path: path.into(), read_only }
}

/// Waits until the guest has a disk of that serial number, and gives its name.
async fn disk(shell: &mut Shell, port: u8) -> String {
    let serial = volume_serial(port);
    let look = format!(
        "i=0; while ! grep -lx {serial} /sys/block/*/serial && [ $i -lt 500 ]; do i=$((i + 1)); usleep 20000; done"
    );
    let said = shell.run(&look).await;
    said.split('/').nth(3).unwrap_or_else(|| panic!("no disk {serial}: {said:?}")).to_owned()
}

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_was_plugged_in_sleeps_and_wakes_with_its_guest_and_goes_out_again() {
    let (mut home, qemu) = (Home::new(), qemu());
    let machine = home.launch(&qemu, false).await.unwrap();
    console_with(&machine, "guest-up").await;
    let mut shell = Shell::of(&machine).await;
    let (one, other) = (volume(&home, 2, false), volume(&home, 0, true));
    File::create(home.dir.join("../volume0")).unwrap().write_all_at(&[b'r'; 512], 0).unwrap();
    open(&home.dir.join("../volume0")).set_len(64 * MIB).unwrap();
    machine.plug_volume(&one).await.unwrap();
    machine.plug_volume(&other).await.unwrap();
    // The port, and the file of a volume that is written, are taken.
    assert_eq!(machine.plug_volume(&one).await.unwrap_err().kind(), ErrorKind::Refused);
    let twice = VolumeDisk { port: 1, ..one.clone() };
    assert_eq!(machine.plug_volume(&twice).await.unwrap_err().kind(), ErrorKind::Refused);
    let (file, read) = (home.dir.join("../volume2"), home.dir.join("../volume0"));
    assert!(!take_shared(&open(&file)).unwrap() && is_used(&open(&file)).unwrap());
    assert!(take_shared(&open(&read)).unwrap() && !take_alone(&open(&read)).unwrap());

    let name = disk(&mut shell, 2).await;
    shell.run(&format!("echo plugged | dd of=/dev/{name} bs=512 conv=sync,fsync 2>/dev/null")).await;
    let read_only = disk(&mut shell, 0).await;
    assert_eq!(
        shell.run(&format!("cat /sys/block/{read_only}/ro; head -c 3 /dev/{read_only}")).await,
        "1 rrr"
    );

    drop(shell);
    let saved = put_to_sleep(machine).await;
    assert!(take_alone(&open(&file)).unwrap(), "the lock ends with the VMM");

    // At the next wake they are on the command line, on the same ports.
    home.volumes = vec![other, one];
    let machine = wake(&home, &qemu, &saved).await;
    machine.resume().await.unwrap();
    assert!(!take_shared(&open(&file)).unwrap(), "the woken VMM has it");
    let mut shell = Shell::of(&machine).await;
    assert_eq!(shell.run(&format!("head -c 7 /dev/{name}")).await, "plugged");
    machine.resize_volume(2, Bytes(96 * MIB)).await.unwrap();
    let sectors = format!(
        "i=0; while [ $(cat /sys/block/{name}/size) != 196608 ] && [ $i -lt 500 ]; do i=$((i + 1)); usleep 20000; done; \
         cat /sys/block/{name}/size"
    );
    assert_eq!(shell.run(&sectors).await, "196608");
    machine.unplug_volume(2).await.unwrap();
    machine.unplug_volume(2).await.unwrap();
    assert_eq!(shell.run(&format!("ls /sys/block | grep -c -x {name} || true")).await, "0");
    assert!(take_alone(&open(&file)).unwrap(), "the lock ends with the plug");
    machine.plug_volume(&twice).await.unwrap();
    disk(&mut shell, 1).await;
    machine.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_of_one_moment_while_the_guest_writes_and_holes_stay_holes() {
    let (mut home, qemu) = (Home::new(), qemu());
    home.volumes = vec![volume(&home, 1, false)];
    let file = home.dir.join("../volume1");
    let machine = home.launch(&qemu, false).await.unwrap();
    console_with(&machine, "guest-up").await;
    let mut shell = Shell::of(&machine).await;
    let name = disk(&mut shell, 1).await;
    let write = |letter: char, at: u64| {
        format!(
            "yes {letter} | tr -d '\\n' | head -c 1048576 | dd of=/dev/{name} bs=1M seek={at} conv=fsync,notrunc 2>/dev/null"
        )
    };
    for at in [0, 20, 40] {
        shell.run(&write('a', at)).await;
    }
    let copy = file.with_file_name("copy");
    machine.watch_volume(1).await.unwrap();
    // The caller's copy is made in two halves, between which the guest writes; what is under way before may be torn.
    let target = File::create(&copy).unwrap();
    target.set_len(64 * MIB).unwrap();
    let source = File::open(&file).unwrap();
    let take = |at: u64| {
        let mut bytes = vec![0; 1 << 20];
        source.read_exact_at(&mut bytes, at * MIB).unwrap();
        target.write_all_at(&bytes, at * MIB).unwrap();
    };
    take(0);
    shell.run(&write('b', 0)).await;
    take(20);
    take(40);
    machine.aim_copy(1, &copy).await.unwrap();
    machine.start_copy(1).await.unwrap();
    for at in [0, 20, 60] {
        shell.run(&write('c', at)).await;
    }
    machine.finish_copy(1).await.unwrap();
    let byte = |path: &Path, at: u64| {
        let mut byte = [0];
        File::open(path).unwrap().read_exact_at(&mut byte, at * MIB + MIB - 1).unwrap();
        byte[0]
    };
    assert_eq!([0, 20, 40, 60].map(|at| byte(&copy, at)), [b'b', b'a', b'a', 0]);
    assert_eq!([0, 20, 40, 60].map(|at| byte(&file, at)), [b'c', b'c', b'a', b'c']);
    assert!(fs::metadata(&copy).unwrap().blocks() * 512 < 8 * MIB, "holes stay holes");
    assert!(take_alone(&open(&copy)).unwrap(), "the VMM has closed it");
    // Again, and called off.
    machine.watch_volume(1).await.unwrap();
    machine.aim_copy(1, &copy).await.unwrap();
    machine.start_copy(1).await.unwrap();
    machine.abandon_copy(1).await.unwrap();
    machine.watch_volume(1).await.unwrap();
    machine.kill().await.unwrap();
}
