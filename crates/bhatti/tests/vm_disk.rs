//! Root disks of real guests in both layouts: what is deleted goes back to the host, and a size that was asked for is
//! given or refused.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use testkit::TestHost;

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");
const LAYOUTS: [(&str, &str); 2] = [("overlay", "rootfs.qcow2"), ("reflink", "rootfs.ext4")];
const MIB: u64 = 1 << 20;

fn start(layout: &str) -> TestHost {
    TestHost::start_with(BHATTI, &["--storage-layout", layout])
}

/// What the file occupies below its end, its data being on the disk. A filesystem may have set room aside behind the
/// end of a file that grows, for as long as it is open (xfs does).
fn allocated(path: &PathBuf) -> u64 {
    let file = std::fs::File::open(path).unwrap();
    file.sync_all().unwrap();
    let (mut sum, mut at) = (0, 0);
    loop {
        let start = match seek(&file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return sum,
            Err(error) => panic!("{error}"),
        };
        at = seek(&file, SeekFrom::Hole(start)).unwrap();
        sum += at - start;
    }
}

/// Waits until the root disk occupies at most `most`: the guest's kernel discards after its journal's commit, so a sync
/// in the guest begins it and does not wait for it.
fn shrinks_to(host: &TestHost, sandbox: &str, disk: &PathBuf, most: u64) -> u64 {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let now = allocated(disk);
        if now <= most || Instant::now() > until {
            return now;
        }
        host.sh(sandbox, "sync");
    }
}

#[test]
fn what_a_guest_deletes_goes_back_to_the_host() {
    for (layout, file) in LAYOUTS {
        let host = start(layout);
        host.ok(&["create", "--name", "tidy"]);
        assert!(host.sh("tidy", "grep ' / ' /proc/mounts").contains("discard"));
        let disk = host.sandbox_dir("tidy").join(file);
        host.sh("tidy", "sync");
        for round in ["after its creation", "after a sleep"] {
            let before = allocated(&disk);
            host.sh("tidy", "head -c 67108864 /dev/urandom > ~/noise; sync");
            let full = allocated(&disk);
            // Some of it lies in clusters that the overlay had for what was there before.
            assert!(full >= before + 62 * MIB, "{layout} {round}: {before} grew to {full} only");
            host.sh("tidy", "rm ~/noise; sync");
            let after = shrinks_to(&host, "tidy", &disk, before + 8 * MIB);
            println!("{layout} {round}: {before} grew to {full} and shrank to {after}");
            assert!(after <= before + 8 * MIB, "{layout} {round}: {before} became {full}, then {after}");
            host.ok(&["stop", "tidy"]);
            let asleep = std::fs::metadata(&disk).unwrap().blocks() * 512;
            assert!(asleep <= before + 8 * MIB, "{layout} {round}: {before} became {after}, then {asleep}");
        }
    }
}

#[test]
fn a_trim_gives_back_what_was_deleted_without_discards() {
    for (layout, file) in LAYOUTS {
        let host = start(layout);
        host.ok(&["create", "--name", "trim"]);
        let disk = host.sandbox_dir("trim").join(file);
        host.sh("trim", "sudo mount -o remount,nodiscard /; sync");
        let before = allocated(&disk);
        host.sh("trim", "head -c 67108864 /dev/urandom > ~/noise; sync; rm ~/noise; sync");
        let full = allocated(&disk);
        assert!(full >= before + 62 * MIB, "{layout}: {before} grew to {full} only");
        host.sh("trim", "sudo fstrim /");
        let after = allocated(&disk);
        println!("{layout}: {before} grew to {full} and was trimmed to {after}");
        assert!(after <= before + 8 * MIB, "{layout}: {before} became {full}, then {after}");
    }
}

#[test]
fn a_disk_has_the_size_that_was_asked_for_or_is_refused() {
    for (layout, file) in LAYOUTS {
        let host = start(layout);
        host.ok(&["create", "--name", "wide", "--disk-size", "1536"]);
        assert_eq!(host.sh("wide", "cat /sys/block/vda/size"), (1536 * MIB / 512).to_string());
        let size = |host: &TestHost| {
            host.sh("wide", "df -BM --output=size / | tail -n 1 | tr -dc 0-9").parse::<u64>().unwrap()
        };
        assert!((1440..=1536).contains(&size(&host)), "{} MiB", size(&host));
        host.ok(&["stop", "wide"]);
        assert!((1440..=1536).contains(&size(&host)), "{} MiB after a sleep", size(&host));
        let disk = host.sandbox_dir("wide").join(file);
        assert!(allocated(&disk) < 256 * MIB, "room that nobody uses takes none");

        let refused = |size: &str, code: i32, parts: &[&str]| {
            host.refused(&["create", "--name", "no", &format!("--disk-size={size}")], code, parts);
        };
        refused("0", 2, &["0", "--disk-size"]);
        refused("-5", 2, &["-5", "--disk-size"]);
        refused("1023", 1, &["smaller than the image", "only grow"]);
        refused("16777217", 1, &["16777217 MiB is not possible"]);
        let space = rustix::fs::statvfs(host.data_dir()).unwrap();
        let total = space.f_blocks * space.f_frsize / MIB;
        refused(&(total + 1).to_string(), 1, &["larger than the filesystem"]);
        assert_eq!(host.json(&["list"]).as_array().unwrap().len(), 1);
    }
}

#[test]
fn disks_move_no_more_than_they_may_all_together_over_sleep_copies_and_edits() {
    let host = TestHost::start_with(BHATTI, &["--disk-rate", "512M"]);
    host.refused(&["create", "--name", "x", "--disk-rate", "0"], 2, &["65536"]);
    let made = host.json(&["create", "--name", "x", "--disk-rate", "2M:1000", "--volume", "data:/data"]);
    assert_eq!((&made["disk_rate"], &made["net_rate"]), (&"2M:1000".into(), &"unlimited".into()), "{made}");
    // Milliseconds; how fast the host is at most does not matter.
    let took = |name: &str, script: &str| -> u64 {
        let timed = format!(
            "s=$EPOCHREALTIME; {script}; e=$EPOCHREALTIME; echo $(( (${{e/./}} - ${{s/./}}) / 1000 ))"
        );
        host.ok(&["exec", name, "--user", "root", "--", "bash", "-ec", &timed]).trim().parse().unwrap()
    };
    let write = |path: &str, mib: u32| {
        format!("dd if=/dev/zero of={path} bs=64k count={} oflag=direct conv=notrunc status=none", mib * 16)
    };
    // The root disk and a volume share what there is.
    let both = format!("{} & {}; wait", write("/root/f", 4), write("/data/f", 4));
    let ms = took("x", &both);
    assert!(ms > 3000, "8 MiB at 2 MiB a second took {ms} ms");
    host.ok(&["stop", "x"]);
    let ms = took("x", &write("/root/f", 6));
    assert!(ms > 2200, "woken, 6 MiB at 2 MiB a second took {ms} ms");
    host.ok(&["fork", "x", "--name", "y"]);
    assert_eq!(host.json(&["inspect", "y"])["disk_rate"], "2M:1000");
    let ms = took("y", &write("/root/f", 6));
    assert!(ms > 2200, "in a copy, 6 MiB at 2 MiB a second took {ms} ms");
    // At once, while the guest runs; also for a volume that comes later.
    assert_eq!(host.json(&["edit", "x", "--disk-rate", "4M"])["disk_rate"], "4M");
    host.ok(&["volume", "create", "more", "--size", "64"]);
    host.ok(&["volume", "attach", "more", "x", "/more"]);
    let ms = took("x", &write("/more/f", 12));
    assert!(ms > 2200, "12 MiB at 4 MiB a second took {ms} ms");
    assert_eq!(host.json(&["edit", "x", "--disk-rate", "default"])["disk_rate"], "512M");
    assert_eq!(host.json(&["edit", "x", "--disk-rate", "unlimited"])["disk_rate"], "unlimited");
    took("x", &write("/root/f", 4));
}
