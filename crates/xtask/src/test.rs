//! All tests: the house rules, everything that needs no guest, then files and guests on each filesystem.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::check;
use crate::loops::{Kind, Mounted, sweep};
use crate::step::Steps;

/// What to run.
#[derive(clap::Args)]
pub struct Options {
    /// Without root there are no loop mounts: test on the filesystem of this checkout only.
    #[arg(long)]
    no_root: bool,
    /// Only on this filesystem (may be given more than once), and not the Debian package.
    #[arg(long, value_enum)]
    on: Vec<Kind>,
    /// Not the house rules.
    #[arg(long)]
    skip_check: bool,
    /// Not the tests that boot guests, and not the Debian package.
    #[arg(long)]
    skip_vm: bool,
    /// The tests that take minutes each, on real guests, and nothing else.
    #[arg(long, conflicts_with = "skip_vm")]
    long: bool,
    /// Only remove what an earlier run has left.
    #[arg(long)]
    sweep: bool,
    /// Passed to nextest: filters and options; and not the Debian package.
    #[arg(last = true)]
    nextest: Vec<String>,
}

/// Runs them; what fails is recorded, and later steps that do not need it run all the same.
pub fn run(steps: &Steps, options: &Options) {
    let target = steps.root().join("target");
    let below = target.join("fs");
    let root = rustix::process::geteuid().is_root();
    if root {
        steps.run("leftovers of earlier runs", || sweep(&below));
    }
    if options.sweep {
        return;
    }
    if !root && !options.no_root {
        let why = "root is needed to mount ext4, btrfs and xfs; run it as root, or with --no-root (make test \
                   NO_ROOT=1) to test on this checkout's filesystem only";
        steps.fail("the filesystem matrix", why);
    }
    if !options.skip_check && !options.long {
        check::run(steps);
    }
    // With all tests and not by itself: one package alone has fewer features in its dependencies, which would be built twice.
    let built = steps.run("build bhatti and the tests", || {
        steps.cargo(
            &["nextest", "run", "--no-run", "--locked", "--workspace", "--cargo-profile", "release"],
            &[],
        )
    });
    // Tests without guests.
    if !options.long {
        nextest(steps, options, "default", "here", &[], &[]);
    }

    // One kernel, initramfs and image for all tests with guests.
    let data = target.join("test-data");
    let vm = built
        && !options.skip_vm
        && steps.run("prepare kernel and image for the guests", || {
            let data = data.as_os_str();
            steps.program(
                "target/release/bhatti",
                &[OsStr::new("setup"), OsStr::new("--data-dir"), data],
                &[],
            )
        });
    let vm = vm
        && steps.run("prepare the guest of the VMM's own tests", || {
            steps.program(
                "scripts/test-guest.sh",
                &[data.as_os_str(), OsStr::new("target/test-tools/guest")],
                &[],
            )
        });
    if root && vm && !options.long && options.on.is_empty() && options.nextest.is_empty() {
        steps.run("the Debian package, made and installed on a clean Debian", || {
            steps.program("make", &["--no-print-directory", "deb", "BUILT=1"], &[])?;
            steps.program::<&str>("scripts/test-deb.sh", &[], &[])
        });
    }
    if root && !options.no_root {
        let kinds = match &options.on[..] {
            // How long a sandbox is idle depends on no filesystem.
            [] if options.long => &Kind::ALL[..1],
            [] => &Kind::ALL[..],
            on => on,
        };
        for (number, &kind) in kinds.iter().enumerate() {
            on_filesystem(steps, options, kind, &below, &data, vm, number == 0);
        }
    } else {
        let plain = below.join("plain");
        match std::fs::create_dir_all(&plain).with_context(|| format!("make {}", plain.display())) {
            Ok(()) => suites(steps, options, "this checkout's filesystem", &plain, &data, vm, true),
            Err(error) => steps.fail("tests on this checkout's filesystem", &format!("{error:#}")),
        }
        let _ = std::fs::remove_dir_all(&plain);
        steps.always("what was not tested", || {
            Ok("ext4, btrfs and xfs side by side, and as a user the Debian package: they need root"
                .to_owned())
        });
    }
}

fn on_filesystem(
    steps: &Steps,
    options: &Options,
    kind: Kind,
    below: &Path,
    data: &Path,
    vm: bool,
    first: bool,
) {
    let mut mounted = None;
    steps.run(&format!("make and mount {}", kind.name()), || {
        mounted = Some(Mounted::new(below, kind)?);
        Ok(String::new())
    });
    if let Some(mounted) = mounted {
        suites(steps, options, kind.name(), mounted.dir(), data, vm, first);
        steps.always(&format!("unmount {}", kind.name()), || mounted.remove());
    }
}

fn suites(steps: &Steps, options: &Options, place: &str, root: &Path, data: &Path, vm: bool, first: bool) {
    if !options.long {
        nextest(steps, options, "fs", place, &[("BHATTI_TEST_ROOT", root.as_os_str())], &[]);
    }
    if !vm {
        return;
    }
    // Tests take kernel, image and templates by hard links, so they must lie on the filesystem under test.
    let base = root.join("base");
    let copied = steps.run(&format!("copy kernel and image to {place}"), || {
        let args = ["-a", "--sparse=always", "--reflink=auto"].map(OsStr::new);
        steps.program("cp", &[args[0], args[1], args[2], data.as_os_str(), base.as_os_str()], &[])
    });
    if !copied {
        return;
    }
    let tools = steps.root().join("target/test-tools");
    let guest = |name: &str| tools.join("guest").join(name);
    let (kernel, initramfs) = (guest("vmlinuz"), guest("initramfs"));
    let (older, newer) = (tools.join("qemu-7.2"), tools.join("qemu-10.0"));
    let env = [
        ("BHATTI_TEST_ROOT", root.as_os_str()),
        ("BHATTI_TEST_DATA", base.as_os_str()),
        ("BHATTI_TEST_TOOLS", tools.as_os_str()),
        ("BHATTI_TEST_KERNEL", kernel.as_os_str()),
        ("BHATTI_TEST_INITRAMFS", initramfs.as_os_str()),
        ("BHATTI_TEST_QEMU_OLDER", older.as_os_str()),
        ("BHATTI_TEST_QEMU", newer.as_os_str()),
    ];
    if options.long {
        nextest(steps, options, "long", place, &env, &[]);
        return;
    }
    // What depends on no filesystem and takes minutes is run on the first one only.
    let filter: &[&str] = if first { &[] } else { &["-E", ONCE] };
    nextest(steps, options, "vm", place, &env, filter);
    if first {
        let mut env = env.to_vec();
        env.push(("BHATTI_TEST_LAYOUT", OsStr::new("reflink")));
        nextest(steps, options, "vm", &format!("{place}, layout reflink"), &env, &["-E", LAYOUT]);
    }
}

/// Everything but what is the same on every filesystem.
const ONCE: &str = "default() & not (test(ten_thousand) | test(a_gibibyte) | test(are_killed) | binary(/^real_|^vm_(confined|exec|flips|images|limits|net|quickstart|refusals|schema|shell|siblings|thermal|traffic)$/))";
/// What a layout of root disks can change.
const LAYOUT: &str = "default() & binary(/^vm_(lifecycle|files|snapshots|forks)$/) & not (test(ten_thousand) | test(a_gibibyte))";

fn nextest(
    steps: &Steps,
    options: &Options,
    profile: &str,
    place: &str,
    env: &[(&str, &OsStr)],
    filter: &[&str],
) -> bool {
    steps.run(&format!("{profile} tests, {place}"), || -> Result<String> {
        let mut args = vec!["nextest", "run", "--locked", "--workspace", "--cargo-profile", "release"];
        args.extend(["--profile", profile, "--status-level", "slow", "--no-input-handler"]);
        args.extend(filter);
        args.extend(options.nextest.iter().map(String::as_str));
        steps.cargo(&args, env)
    })
}
