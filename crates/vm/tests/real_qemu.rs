//! Machines under a real QEMU, with a real guest: the nextest profile `vm` runs these (`binary(real_qemu)`).

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

extern crate bhatti_vm as vm;

mod guest;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::time::{Duration, Instant};

use guest::{
    Home, MIDDLE, blocks_of, console_with, copy_out, count_above, put_to_sleep, qemu, wake, wake_from,
};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use types::{Bytes, RamOffset};
use vm::{End, ErrorKind, Machine, Status};

async fn counter_survives(cpus: u32, words: &[&str]) {
    let mut home = Home::new();
    home.cpus = cpus;
    home.words = words.iter().map(|word| (*word).to_owned()).collect();
    let qemu = qemu();
    let t0 = Instant::now();
    let machine = home.launch(&qemu, false).await.unwrap();
    eprintln!("launch: {:?}", t0.elapsed());
    let up = console_with(&machine, "guest-up").await;
    assert!(up.contains(&format!("cpus {cpus}")), "{up}");
    let (mut count, nonce, _) = count_above(&machine, 3).await;
    eprintln!("first count after {:?}", t0.elapsed());
    let mut machine = machine;
    for _ in 0..5 {
        let saved = put_to_sleep(machine).await;
        machine = wake(&home, &qemu, &saved).await;
        assert_eq!(machine.status().await.unwrap(), Status::Paused);
        let t0 = Instant::now();
        machine.resume().await.unwrap();
        let (next, same, _) = count_above(&machine, count).await;
        eprintln!("next count {next} {:?} after resume", t0.elapsed());
        assert_eq!(same, nonce, "the guest rebooted");
        assert!(next < count + 100, "{count} to {next}: lost its place");
        count = next;
    }
    machine.kill().await.unwrap();
    assert_eq!(blocks_of(&home.dir.join("../zero.ram")), 0, "the base was written to");
}

#[tokio::test]
async fn a_counter_goes_on_after_five_rounds_of_sleep() {
    counter_survives(1, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processors_under_load_go_on_after_five_rounds_of_sleep() {
    counter_survives(2, &["test.load"]).await;
}

#[tokio::test]
async fn a_dropped_machine_runs_on_and_is_adopted() {
    let home = Home::new();
    let machine = home.launch(&qemu(), false).await.unwrap();
    let (count, nonce, _) = count_above(&machine, 1).await;
    let (pid, ended) = (machine.pid(), machine.ended());
    drop(machine);
    assert!(home.lock().is_err(), "the VMM holds the lock");

    let machine = Machine::adopt(&home.dir).await.unwrap().expect("it runs");
    assert_eq!(machine.pid(), pid);
    assert_eq!(machine.status().await.unwrap(), Status::Running);
    let (_, same, _) = count_above(&machine, count).await;
    assert_eq!(same, nonce);
    machine.pause().await.unwrap();
    assert_eq!(machine.status().await.unwrap(), Status::Paused);
    assert!(copy_out(&machine.ram().unwrap()).pages.len() > 1 << 20);
    let ram = machine.ram().unwrap();
    machine.kill().await.unwrap();
    machine.kill().await.unwrap();
    machine.exited().await;
    assert_eq!(ended.await, End::Gone);
    assert_eq!(machine.ended().await, End::Gone);
    assert!(home.lock().is_ok());
    assert!(ram.private_runs().is_err());
    assert_eq!(machine.pause().await.unwrap_err().kind(), ErrorKind::Died);
    assert_eq!(machine.ram().unwrap_err().kind(), ErrorKind::Died);
    assert!(Machine::adopt(&home.dir).await.unwrap().is_none());
}

#[tokio::test]
async fn a_guest_that_ends_leaves_its_last_words() {
    for (word, end, said) in [
        ("test.end=poweroff", End::Shutdown, "guest-up"),
        ("test.end=reboot", End::Shutdown, "guest-up"),
        ("test.end=panic", End::Panicked, "Kernel panic - not syncing: sysrq triggered crash"),
    ] {
        let mut home = Home::new();
        home.words = vec![word.to_owned()];
        let machine = home.launch(&qemu(), false).await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(90), machine.ended()).await.unwrap();
        assert_eq!(ended, end, "{word}");
        let console = machine.console_tail().await.unwrap();
        assert!(console.contains(said), "{word}: {console}");
        assert_eq!(machine.status().await.unwrap(), Status::Shutdown);
        machine.kill().await.unwrap();
    }
}

#[tokio::test]
async fn the_channel_answers_before_and_after_sleep() {
    let home = Home::new();
    let qemu = qemu();
    let machine = home.launch(&qemu, false).await.unwrap();
    count_above(&machine, 1).await;
    let ask = async |machine: &Machine, word: &str| {
        let (read, mut write) = tokio::io::split(machine.open_channel().await.unwrap());
        write.write_all(format!("{word}\n").as_bytes()).await.unwrap();
        let mut lines = BufReader::new(read).lines();
        loop {
            let line = tokio::time::timeout(Duration::from_secs(30), lines.next_line())
                .await
                .unwrap()
                .unwrap()
                .unwrap();
            if line == format!("echo {word}") {
                return;
            }
        }
    };
    ask(&machine, "one").await;
    ask(&machine, "two").await;
    let saved = put_to_sleep(machine).await;
    let machine = wake(&home, &qemu, &saved).await;
    machine.resume().await.unwrap();
    ask(&machine, "three").await;
    machine.kill().await.unwrap();
}

#[tokio::test]
async fn a_root_disk_grows_under_the_guest() {
    let home = Home::new();
    let machine = home.launch(&qemu(), false).await.unwrap();
    let (count, _, sectors) = count_above(&machine, 1).await;
    assert_eq!(sectors, (64 << 20) / 512);
    machine.resize_root(Bytes(128 << 20)).await.unwrap();
    let mut seen = (count, String::new(), sectors);
    for _ in 0..100 {
        seen = count_above(&machine, seen.0).await;
        if seen.2 != sectors {
            break;
        }
    }
    assert_eq!(seen.2, (128 << 20) / 512);
    machine.kill().await.unwrap();
}

#[tokio::test]
async fn a_resume_after_a_save_goes_on_as_if_nothing_had_been() {
    let home = Home::new();
    let machine = home.launch(&qemu(), false).await.unwrap();
    let (count, nonce, _) = count_above(&machine, 1).await;
    machine.pause().await.unwrap();
    machine.save_devices("vm.snap").await.unwrap();
    machine.resume().await.unwrap();
    let (_, same, _) = count_above(&machine, count + 3).await;
    assert_eq!(same, nonce);
    machine.pause().await.unwrap();
    let refused = machine.save_devices("no/such/directory").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused, "{refused}");
    machine.resume().await.unwrap();
    machine.kill().await.unwrap();
}

#[tokio::test]
async fn a_damaged_device_state_is_refused_with_the_vmms_words() {
    let home = Home::new();
    let qemu = qemu();
    let machine = home.launch(&qemu, false).await.unwrap();
    count_above(&machine, 1).await;
    put_to_sleep(machine).await;
    let whole = fs::read(home.dir.join("vm.snap")).unwrap();
    eprintln!("vm.snap: {} bytes", whole.len());
    let mut header = whole.clone();
    header[0] ^= 0xff;
    let mut half = whole.clone();
    half.truncate(whole.len() / 2);
    let mut name = whole.clone();
    let at = whole.windows(9).position(|part| part == b"cpu_commo").unwrap();
    name[at] ^= 0x20;
    for (what, bytes) in [("header", header), ("half", half), ("name", name), ("empty", Vec::new())] {
        fs::write(home.dir.join("damaged"), bytes).unwrap();
        let machine = home.launch(&qemu, true).await.unwrap();
        let error = machine.load_devices(File::open(home.dir.join("damaged")).unwrap()).await.unwrap_err();
        eprintln!("{what}: {error}");
        assert_eq!(error.kind(), ErrorKind::SnapshotRefused, "{what}: {error}");
        machine.kill().await.unwrap();
        assert!(home.lock().is_ok());
    }
}

#[tokio::test]
async fn ram_is_written_privately_and_read_back() {
    let home = Home::new();
    let machine = home.launch(&qemu(), true).await.unwrap();
    assert_eq!(machine.status().await.unwrap(), Status::Incoming);
    let ram = machine.ram().unwrap();
    assert_eq!(ram.len(), guest::MEMORY.bytes());
    assert!(ram.private_runs().unwrap().is_empty(), "a machine that waits for a state has touched nothing");
    let data: Vec<u8> = (0..9000u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
    ram.write(MIDDLE, &data).unwrap();
    let mut back = vec![0; data.len()];
    ram.read(MIDDLE, &mut back).unwrap();
    assert_eq!(back, data);
    let runs = ram.private_runs().unwrap();
    assert_eq!(runs.len(), 1);
    assert_eq!((runs[0].start, runs[0].len), (MIDDLE, Bytes(3 * 4096)));
    assert!(ram.read(RamOffset(ram.len().0 - 1), &mut [0, 0]).is_err());
    machine.kill().await.unwrap();
    assert!(fs::read(home.dir.join("../zero.ram")).unwrap().iter().all(|byte| *byte == 0));
}

#[tokio::test]
async fn a_vmm_that_does_not_start_says_why_and_leaves_nothing() {
    let home = Home::new();
    let qemu = qemu();
    let mut spec = home.spec(&qemu, false);
    spec.cpu_model = "no-such-processor".to_owned();
    let error = Machine::launch(&qemu, &spec, &home.dir, home.lock().unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Died);
    assert!(error.to_string().contains("no-such-processor"), "{error}");
    assert!(home.lock().is_ok());

    // Fails after its sockets are there.
    let mut spec = home.spec(&qemu, false);
    spec.config = Some("no-such-config".into());
    let error = Machine::launch(&qemu, &spec, &home.dir, home.lock().unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Died);
    assert!(error.to_string().contains("no-such-config"), "{error}");
    assert!(home.lock().is_ok());
    assert!(Machine::adopt(&home.dir).await.unwrap().is_none());

    let missing = vm::Qemu { path: "/no/such/program".into(), ..qemu };
    let error = Machine::launch(&missing, &spec, &home.dir, home.lock().unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Spawn);
}

#[tokio::test]
async fn a_vmm_that_is_killed_from_outside_ends_every_wait() {
    let home = Home::new();
    let machine = home.launch(&qemu(), false).await.unwrap();
    let ended = machine.ended();
    let pid = i32::try_from(machine.pid()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert_eq!(tokio::time::timeout(Duration::from_secs(10), ended).await.unwrap(), End::Gone);
    assert_eq!(machine.status().await.unwrap_err().kind(), ErrorKind::Died);
}

#[tokio::test]
async fn clones_of_one_base_own_only_what_they_changed() {
    let first = Home::new();
    let qemu = qemu();
    let machine = first.launch(&qemu, false).await.unwrap();
    let (count, nonce, _) = count_above(&machine, 3).await;
    let saved = put_to_sleep(machine).await;
    // The base of all: what the first machine had in memory, at its place.
    let base = File::create(first.dir.join("../ram.base")).unwrap();
    base.set_len(guest::MEMORY.bytes().0).unwrap();
    let mut pages = saved.pages.as_slice();
    for run in &saved.runs {
        let (here, rest) = pages.split_at(usize::try_from(run.len.0).unwrap());
        base.write_all_at(here, run.start.0).unwrap();
        pages = rest;
    }
    let before = content_of(&first);
    let empty = guest::Saved { runs: Vec::new(), pages: Vec::new() };
    let mut clones = Vec::new();
    for _ in 0..2 {
        let home = Home::new();
        fs::copy(first.dir.join("vm.snap"), home.dir.join("vm.snap")).unwrap();
        let mut spec = home.spec(&qemu, true);
        spec.ram_base = first.dir.join("../ram.base");
        let machine = wake_from(&home, &qemu, &spec, &empty).await;
        assert!(machine.ram().unwrap().private_runs().unwrap().is_empty());
        machine.resume().await.unwrap();
        clones.push((home, spec, machine));
    }
    for (home, spec, machine) in clones {
        let (count, same, _) = count_above(&machine, count).await;
        assert_eq!(same, nonce);
        let delta = put_to_sleep(machine).await;
        assert!(delta.pages.len() < 16 << 20, "{} bytes", delta.pages.len());
        let machine = wake_from(&home, &qemu, &spec, &delta).await;
        machine.resume().await.unwrap();
        let (_, same, _) = count_above(&machine, count).await;
        assert_eq!(same, nonce);
        machine.kill().await.unwrap();
    }
    assert!(before == content_of(&first), "the base was written to");
}

fn content_of(home: &Home) -> Vec<u8> {
    fs::read(home.dir.join("../ram.base")).unwrap()
}

#[tokio::test]
async fn a_script_that_stays_is_as_good_as_the_program() {
    let home = Home::new();
    let real = qemu();
    let script = home.dir.join("../wrapper");
    fs::write(&script, format!("#!/bin/sh\n{} \"$@\"\nexit 0\n", which(&real.path).display())).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let qemu = vm::Qemu::discover(Some(&script), types::Arch::host()).unwrap();
    assert_eq!(qemu.version, real.version);
    let machine = home.launch(&qemu, true).await.unwrap();
    assert!(machine.ram().unwrap().private_runs().unwrap().is_empty());
    machine.kill().await.unwrap();
    assert!(home.lock().is_ok(), "the script is gone too");

    let spec = vm::MachineSpec { cpu_model: "no-such-processor".to_owned(), ..home.spec(&qemu, true) };
    let error = Machine::launch(&qemu, &spec, &home.dir, home.lock().unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Died, "{error}");
    assert!(home.lock().is_ok());
}

fn which(program: &std::path::Path) -> std::path::PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file()).unwrap()
}

#[tokio::test]
async fn the_vmm_is_fenced_in() {
    let home = Home::new();
    let leak = File::open("/etc/hostname").unwrap();
    let machine = home.launch(&qemu(), true).await.unwrap();
    let pid = machine.pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("Seccomp:\t2"), "{status}");
    let group =
        rustix::process::getpgid(rustix::process::Pid::from_raw(i32::try_from(pid).unwrap())).unwrap();
    assert_ne!(group, rustix::process::getpgid(None).unwrap());
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let target = fs::read_link(entry.unwrap().path()).unwrap();
        assert_ne!(target, std::path::Path::new("/etc/hostname"), "a descriptor of this process leaked");
    }
    drop(leak);
    machine.kill().await.unwrap();
}
