//! Another top under a running guest, and layers folded: the nextest profile `vm` runs these (`binary(real_qemu_disk)`).
//! Each with the oldest supported QEMU and with a new one.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

extern crate bhatti_vm as vm;

mod guest;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Instant;

use guest::{Home, Shell, blocks_of, copy_out, count_above, older_qemu, qemu, wake};
use types::Bytes;
use vm::{DiskFile, DiskFormat, ErrorKind, Folded, Machine, Qemu, RootDisk};

const MIB: u64 = 1 << 20;

/// Where each test puts its bytes: blocks of 64 KiB of the root disk.
async fn fill(shell: &mut Shell, word: &str, at: u32, count: u32) -> String {
    shell
        .run(&format!(
            "yes {word} | dd of=/dev/vda bs=64k seek={at} count={count} iflag=fullblock conv=fsync 2>&1 && echo ok"
        ))
        .await;
    sum(shell, at, count).await
}

async fn sum(shell: &mut Shell, at: u32, count: u32) -> String {
    shell
        .run(&format!("dd if=/dev/vda bs=64k skip={at} count={count} iflag=direct 2>/dev/null | md5sum"))
        .await
}

/// Writes all over 16 MiB from block 512 on, for ever.
async fn begin_writing(shell: &mut Shell) {
    shell
        .run(
            "(i=0; while :; do i=$((i + 1)); yes $i | dd of=/dev/vda bs=64k seek=$((512 + i % 256)) count=1 \
             iflag=fullblock oflag=direct 2>/dev/null; echo $i >/progress; done) >/dev/null 2>&1 </dev/null &",
        )
        .await;
    writes_on(shell).await;
}

/// Waits for the writer's next blocks.
async fn writes_on(shell: &mut Shell) {
    shell
        .run("a=$(cat /progress || echo 0); until [ $(cat /progress || echo 0) -gt $((a + 5)) ]; do usleep 5000; done")
        .await;
}

/// Gives the top another name, as a layer, and its own name to `next`.
fn freeze(home: &Home, next: &str, layer: &str) {
    let top = home.dir.join(&home.root.top.path);
    fs::hard_link(&top, home.dir.join(layer)).unwrap();
    fs::set_permissions(&top, fs::Permissions::from_mode(0o444)).unwrap();
    fs::rename(home.dir.join(next), top).unwrap();
}

/// The disk as it is after [`freeze`].
fn frozen(home: &mut Home, layer: &str) {
    let format = home.root.top.format;
    home.root.below.insert(0, DiskFile { path: layer.into(), format });
    home.root.top.format = DiskFormat::Qcow2;
}

/// A new top while the guest runs.
async fn next_layer(home: &mut Home, machine: &Machine, layer: &str) {
    home.overlay("next", &DiskFile { path: layer.into(), format: home.root.top.format }, "64M");
    let top = machine.open_top("next").await.unwrap();
    machine.switch_top(top).await.unwrap();
    freeze(home, "next", layer);
    frozen(home, layer);
}

/// The names of files in the VMM's directory that it has open.
fn open_in(machine: &Machine, home: &Home) -> Vec<String> {
    let dir = home.dir.canonicalize().unwrap();
    let open = fs::read_dir(format!("/proc/{}/fd", machine.pid())).unwrap();
    let targets = open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    let mut names: Vec<_> = targets
        .filter_map(|target| Some(target.strip_prefix(&dir).ok()?.to_str()?.to_owned()))
        .filter(|name| !["qmp.sock", "agent.sock", "lock", "vmm.log", "config"].contains(&name.as_str()))
        .collect();
    names.sort();
    names
}

fn both() -> [Qemu; 2] {
    [older_qemu(), qemu()]
}

/// A home whose root disk is of the format; a raw one holds all by itself.
fn home_with(format: DiskFormat) -> Home {
    let mut home = Home::new();
    if format == DiskFormat::Raw {
        fs::File::create(home.dir.join("root")).unwrap().set_len(64 * MIB).unwrap();
        home.root = RootDisk { top: DiskFile::raw("root"), below: Vec::new() };
    }
    home
}

async fn a_switch(qemu: &Qemu, format: DiskFormat, paused: bool) {
    eprintln!("QEMU {}, {format:?}, paused {paused}", qemu.version);
    let mut home = home_with(format);
    let machine = home.launch(qemu, false).await.unwrap();
    let (count, nonce, _) = count_above(&machine, 1).await;
    let mut shell = Shell::of(&machine).await;
    let old = fill(&mut shell, "old", 0, 16).await;
    begin_writing(&mut shell).await;

    home.overlay("next", &DiskFile { path: "layer".into(), format }, "64M");
    let now = home.root.top.path.to_str().unwrap();
    assert_eq!(machine.top_file().await.unwrap(), now);
    let t0 = Instant::now();
    let top = machine.open_top("next").await.unwrap();
    let opened = t0.elapsed();
    if paused {
        machine.pause().await.unwrap();
    }
    // In whichever order the names change.
    if paused {
        freeze(&home, "next", "layer");
    }
    let t0 = Instant::now();
    machine.switch_top(top).await.unwrap();
    eprintln!("open_top {opened:?}, switch_top {:?}", t0.elapsed());
    assert_eq!(machine.top_file().await.unwrap(), "next", "the name that it was opened by");
    if !paused {
        freeze(&home, "next", "layer");
    }
    frozen(&mut home, "layer");
    let content = fs::read(home.dir.join("layer")).unwrap();
    let saved = if paused {
        machine.save_devices("vm.snap").await.unwrap();
        let saved = copy_out(&machine.ram().unwrap());
        machine.resume().await.unwrap();
        Some(saved)
    } else {
        None
    };
    writes_on(&mut shell).await;
    let new = fill(&mut shell, "new", 8, 16).await;
    let half = sum(&mut shell, 0, 8).await;
    writes_on(&mut shell).await;
    assert!(content == fs::read(home.dir.join("layer")).unwrap(), "the frozen disk was written to");
    machine.kill().await.unwrap();

    // It boots again, with what was written before and after.
    let machine = home.launch(qemu, false).await.unwrap();
    count_above(&machine, 1).await;
    let mut shell = Shell::of(&machine).await;
    assert_eq!(sum(&mut shell, 8, 16).await, new);
    assert_eq!(sum(&mut shell, 0, 8).await, half);
    machine.kill().await.unwrap();

    // What the guest was at the switch goes on over the frozen disk, with a top of its own.
    if let Some(saved) = saved {
        home.overlay("copy", &home.root.below[0], "64M");
        home.root.top = DiskFile::qcow2("copy");
        let machine = wake(&home, qemu, &saved).await;
        machine.resume().await.unwrap();
        let (_, same, _) = count_above(&machine, count).await;
        assert_eq!(same, nonce);
        let mut shell = Shell::of(&machine).await;
        assert_eq!(sum(&mut shell, 0, 16).await, old);
        writes_on(&mut shell).await;
        machine.kill().await.unwrap();
    }
    assert!(content == fs::read(home.dir.join("layer")).unwrap(), "the frozen disk was written to");
}

#[tokio::test]
async fn a_disk_frozen_under_a_paused_guest_stays_as_it_is() {
    for qemu in both() {
        a_switch(&qemu, DiskFormat::Qcow2, true).await;
        a_switch(&qemu, DiskFormat::Raw, true).await;
    }
}

#[tokio::test]
async fn a_disk_frozen_under_a_running_guest_stays_as_it_is() {
    for qemu in both() {
        a_switch(&qemu, DiskFormat::Qcow2, false).await;
        a_switch(&qemu, DiskFormat::Raw, false).await;
    }
}

#[tokio::test]
async fn after_a_switch_the_disk_grows_and_gives_back_what_is_discarded_also_for_the_next_daemon() {
    for qemu in both() {
        let mut home = Home::new();
        let machine = home.launch(&qemu, false).await.unwrap();
        let (count, _, sectors) = count_above(&machine, 1).await;
        assert_eq!(sectors, 64 * MIB / 512);
        next_layer(&mut home, &machine, "layer1").await;
        drop(machine);

        let machine = Machine::adopt(&home.dir).await.unwrap().unwrap();
        machine.resize_root(Bytes(128 * MIB)).await.unwrap();
        let mut seen = (count, String::new(), 0);
        while seen.2 != 128 * MIB / 512 {
            seen = count_above(&machine, seen.0).await;
        }
        let mut shell = Shell::of(&machine).await;
        let top = home.dir.join("root.qcow2");
        let before = blocks_of(&top);
        shell.run("dd if=/dev/urandom of=/dev/vda bs=1M seek=80 count=16 conv=fsync 2>&1").await;
        assert!(blocks_of(&top) >= before + 16 * MIB / 512);
        shell.run("blkdiscard -o $((80 << 20)) -l $((16 << 20)) /dev/vda && sync").await;
        assert!(blocks_of(&top) < before + MIB / 512, "{} then, {} now", before, blocks_of(&top));
        // What is written as zeroes takes no room either.
        shell.run("dd if=/dev/zero of=/dev/vda bs=1M seek=80 count=16 conv=fsync 2>&1").await;
        assert!(blocks_of(&top) < before + MIB / 512);

        // The next top's name is not one that the former daemon gave.
        home.overlay("next", &DiskFile::qcow2("layer2"), "128M");
        let next = machine.open_top("next").await.unwrap();
        machine.switch_top(next).await.unwrap();
        machine.resize_root(Bytes(160 * MIB)).await.unwrap();
        while seen.2 != 160 * MIB / 512 {
            seen = count_above(&machine, seen.0).await;
        }
        machine.kill().await.unwrap();
    }
}

#[tokio::test]
async fn a_top_that_is_not_switched_to_leaves_everything_as_it_was() {
    for qemu in both() {
        for format in [DiskFormat::Qcow2, DiskFormat::Raw] {
            let home = home_with(format);
            let machine = home.launch(&qemu, false).await.unwrap();
            let mut shell = Shell::of(&machine).await;
            let open = open_in(&machine, &home);
            for (name, size) in [("next", "64M"), ("other", "64M"), ("small", "32M"), ("large", "65M")] {
                home.overlay(name, &DiskFile { path: "layer".into(), format }, size);
            }
            let content = fs::read(home.dir.join("next")).unwrap();
            let time = fs::metadata(home.dir.join("next")).unwrap().mtime_nsec();
            let top = machine.open_top("next").await.unwrap();
            assert_ne!(machine.top_file().await.unwrap(), "next");
            assert_eq!(open_in(&machine, &home).len(), open.len() + 1);
            machine.close_top(top).await.unwrap();
            assert_eq!(open_in(&machine, &home), open);

            for wrong in ["small", "large", "absent", "lock"] {
                let error = machine.open_top(wrong).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
                assert_eq!(open_in(&machine, &home), open, "{wrong}");
            }
            // One that its owner lost is closed by the next one's opening, and cannot be switched to any more.
            let lost = machine.open_top("next").await.unwrap();
            let top = machine.open_top("other").await.unwrap();
            assert!(!open_in(&machine, &home).contains(&"next".to_owned()));
            assert_eq!(machine.switch_top(lost).await.unwrap_err().kind(), ErrorKind::Refused);
            machine.close_top(top).await.unwrap();

            let now = fill(&mut shell, "after", 0, 4).await;
            assert_eq!(open_in(&machine, &home), open);
            let next = home.dir.join("next");
            assert!(content == fs::read(&next).unwrap() && time == fs::metadata(&next).unwrap().mtime_nsec());
            machine.kill().await.unwrap();
            let machine = home.launch(&qemu, false).await.unwrap();
            assert_eq!(sum(&mut Shell::of(&machine).await, 0, 4).await, now);
            machine.kill().await.unwrap();
        }
    }
}

/// What a file's header says it lies on.
fn header_of(home: &Home, path: &Path) -> String {
    let text = home.qemu_img(&["info", "-U", path.to_str().unwrap()]);
    let line = text.lines().find_map(|line| line.strip_prefix("backing file: ")).unwrap_or_default();
    line.split(" (actual path").next().unwrap().to_owned()
}

async fn a_fold(qemu: &Qemu, format: DiskFormat, paused: bool) {
    let mut home = home_with(format);
    let machine = home.launch(qemu, false).await.unwrap();
    let mut shell = Shell::of(&machine).await;
    let mut sums = Vec::new();
    for (layer, word, at) in [("layer1", "a", 0), ("layer2", "b", 16), ("layer3", "c", 32)] {
        sums.push((at, fill(&mut shell, word, at, 16).await));
        next_layer(&mut home, &machine, layer).await;
    }
    sums.push((48, fill(&mut shell, "d", 48, 16).await));
    // A cold start in between: the layers come from the command line then, and the last top is a layer of this start.
    if !paused {
        machine.kill().await.unwrap();
        drop(shell);
        let machine = home.launch(qemu, false).await.unwrap();
        let shell = Shell::of(&machine).await;
        finish_fold(home, qemu, machine, shell, sums, paused).await;
    } else {
        finish_fold(home, qemu, machine, shell, sums, paused).await;
    }
}

async fn finish_fold(
    mut home: Home,
    qemu: &Qemu,
    machine: Machine,
    mut shell: Shell,
    sums: Vec<(u32, String)>,
    paused: bool,
) {
    if paused {
        machine.pause().await.unwrap();
    } else {
        begin_writing(&mut shell).await;
    }
    let t0 = Instant::now();
    assert_eq!(machine.fold_top().await.unwrap(), Folded::Whole);
    eprintln!(
        "QEMU {}, {:?}, paused {paused}: fold_top {:?}",
        qemu.version,
        home.root.below.last(),
        t0.elapsed()
    );
    assert_eq!(machine.fold_top().await.unwrap(), Folded::Whole, "nothing is left to fold");
    if paused {
        machine.resume().await.unwrap();
    } else {
        writes_on(&mut shell).await;
    }
    let last = home.root.below.pop().unwrap();
    for layer in std::mem::take(&mut home.root.below) {
        let name = layer.path.to_str().unwrap().to_owned();
        assert!(!open_in(&machine, &home).contains(&name), "{name} is open");
        fs::remove_file(home.dir.join(name)).unwrap();
    }
    home.root.below.push(last);
    assert_eq!(header_of(&home, &home.root.top.path), home.root.below[0].path.to_str().unwrap());
    for (at, sum_then) in &sums {
        assert_eq!(&sum(&mut shell, *at, 16).await, sum_then);
    }
    // The disk goes on as any other.
    machine.resize_root(Bytes(128 * MIB)).await.unwrap();
    machine.kill().await.unwrap();
    let machine = home.launch(qemu, false).await.unwrap();
    let mut shell = Shell::of(&machine).await;
    for (at, sum_then) in &sums {
        assert_eq!(&sum(&mut shell, *at, 16).await, sum_then);
    }
    machine.kill().await.unwrap();
}

#[tokio::test]
async fn a_folded_disk_needs_no_layers() {
    for qemu in both() {
        a_fold(&qemu, DiskFormat::Qcow2, true).await;
        a_fold(&qemu, DiskFormat::Qcow2, false).await;
    }
}

#[tokio::test]
async fn a_folded_disk_over_a_raw_layer_needs_that_one_alone() {
    for qemu in both() {
        a_fold(&qemu, DiskFormat::Raw, true).await;
        a_fold(&qemu, DiskFormat::Raw, false).await;
    }
}

/// A home with a chain whose middle is large enough that a fold takes a while.
fn home_with_much_to_fold() -> Home {
    let mut home = Home::new();
    for (name, below) in [("layer1", DiskFile::raw("../image")), ("layer2", DiskFile::qcow2("layer1"))] {
        home.overlay(name, &below, "4G");
        home.root.below.insert(0, DiskFile::qcow2(name));
    }
    let write: Vec<String> =
        (0..8u32).map(|part| format!("write -P {} {}M 64M", part + 1, 1024 + 64 * part)).collect();
    let mut command = std::process::Command::new("qemu-io");
    command.args(["-f", "qcow2", "layer2"]).current_dir(&home.dir);
    for part in &write {
        command.args(["-c", part]);
    }
    assert!(command.output().unwrap().status.success());
    fs::remove_file(home.dir.join("root.qcow2")).unwrap();
    home.overlay("root.qcow2", &DiskFile::qcow2("layer2"), "4G");
    home
}

#[tokio::test]
async fn a_fold_ends_when_nobody_waits_and_gives_way_to_every_other_verb() {
    for qemu in both() {
        let home = home_with_much_to_fold();
        let machine = home.launch(&qemu, false).await.unwrap();
        let mut shell = Shell::of(&machine).await;
        let far = sum(&mut shell, 16384, 16).await;
        let top = home.dir.join("root.qcow2");
        let copying = async || {
            let before = blocks_of(&top);
            while blocks_of(&top) < before + 8 * MIB / 512 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            folded = machine.fold_top() => panic!("{folded:?}: too little to fold"),
            () = copying() => {}
        }
        home.overlay("next", &DiskFile::qcow2("layer"), "4G");
        let next = machine.open_top("next").await.unwrap();
        machine.close_top(next).await.unwrap();

        let (folded, ()) = tokio::join!(machine.fold_top(), async {
            copying().await;
            let t0 = Instant::now();
            machine.pause().await.unwrap();
            eprintln!("QEMU {}: pause during a fold {:?}", qemu.version, t0.elapsed());
        });
        assert_eq!(folded.unwrap(), Folded::GaveWay);
        let (folded, resized) = tokio::join!(machine.fold_top(), async {
            copying().await;
            machine.resize_root(Bytes(5 << 30)).await
        });
        assert_eq!(folded.unwrap(), Folded::GaveWay);
        resized.unwrap();
        machine.resume().await.unwrap();

        // A daemon that ends in the middle: nobody tells the VMM, and the next one does.
        drop(shell);
        drop(machine);
        let dir = home.dir.clone();
        let before = blocks_of(&top);
        let daemon = tokio::task::spawn_blocking(move || {
            // Gone with everything that it did, at once.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let top = dir.join("root.qcow2");
                let machine = Machine::adopt(&dir).await.unwrap().unwrap();
                let fold = tokio::spawn(async move { machine.fold_top().await });
                while blocks_of(&top) < before + 8 * MIB / 512 {
                    assert!(!fold.is_finished(), "too little to fold");
                    tokio::task::yield_now().await;
                }
            });
        });
        daemon.await.unwrap();
        let machine = Machine::adopt(&home.dir).await.unwrap().unwrap();
        let mut shell = Shell::of(&machine).await;
        assert_eq!(sum(&mut shell, 16384, 16).await, far);
        // A VMM that ends in the middle: the disk is the same, read through the same layers.
        let (folded, ()) = tokio::join!(machine.fold_top(), async {
            copying().await;
            machine.kill().await.unwrap();
        });
        assert_eq!(folded.unwrap_err().kind(), ErrorKind::Died);
        let machine = home.launch(&qemu, false).await.unwrap();
        let mut shell = Shell::of(&machine).await;
        assert_eq!(sum(&mut shell, 16384, 16).await, far);

        let t0 = Instant::now();
        assert_eq!(machine.fold_top().await.unwrap(), Folded::Whole);
        eprintln!("QEMU {}: the rest of the fold {:?}", qemu.version, t0.elapsed());
        assert_eq!(sum(&mut shell, 16384, 16).await, far);
        machine.kill().await.unwrap();
    }
}

#[tokio::test]
async fn a_fold_that_fails_leaves_a_machine_that_works() {
    for qemu in both() {
        let mut home = Home::new();
        // A compressed cluster that does not unpack is an error of reading, far from what the guest reads.
        let plain = [b"bhatti".repeat(700_000), vec![0; 60 << 20]].concat();
        fs::write(home.dir.join("plain"), &plain[..64 << 20]).unwrap();
        home.qemu_img(&["convert", "-c", "-O", "qcow2", "plain", "layer1"]);
        let mut packed = fs::read(home.dir.join("layer1")).unwrap();
        // Its data begin behind header, tables and reference counts: whatever is not zero from there on is data.
        let data = 5 * 65536..packed.len();
        packed[data].iter_mut().for_each(|byte| *byte = !*byte);
        fs::write(home.dir.join("layer1"), packed).unwrap();
        home.overlay("root.qcow2", &DiskFile::qcow2("layer1"), "64M");
        home.root.below.insert(0, DiskFile::qcow2("layer1"));

        let machine = home.launch(&qemu, false).await.unwrap();
        let mut shell = Shell::of(&machine).await;
        let mine = fill(&mut shell, "mine", 512, 16).await;
        let open = open_in(&machine, &home);
        for _ in 0..2 {
            let error = machine.fold_top().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
            assert!(error.to_string().contains("Input/output error"), "{error}");
        }
        assert_eq!(open_in(&machine, &home), open);
        assert_eq!(sum(&mut shell, 512, 16).await, mine);
        next_layer(&mut home, &machine, "layer2").await;
        let more = fill(&mut shell, "more", 640, 16).await;
        machine.kill().await.unwrap();
        let machine = home.launch(&qemu, false).await.unwrap();
        let mut shell = Shell::of(&machine).await;
        assert_eq!(sum(&mut shell, 512, 16).await, mine);
        assert_eq!(sum(&mut shell, 640, 16).await, more);
        machine.kill().await.unwrap();
    }
}
