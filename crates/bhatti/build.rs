//! Builds the guest's agent, which this program carries in itself: a static binary with a profile of its own.
//!
//! The nested cargo has its own target directory inside the outer one, so the two never wait for each other's lock,
//! and it sees nothing of the outer call's settings: the agent's bytes depend on its source alone.

use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::{env, fs};

/// What the agent is made of.
const INPUTS: [&str; 5] = ["crates/agent", "crates/wire", "crates/sys", "Cargo.toml", "Cargo.lock"];
/// Settings of the user that the nested cargo keeps: where packages are, and how to reach them.
const KEPT: [&str; 5] = ["CARGO_HOME", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_"];

fn main() {
    let workspace = var("CARGO_MANIFEST_DIR").join("../..").canonicalize().unwrap_or_else(|error| {
        fail(&format!("the workspace's directory: {error}"));
    });
    for input in INPUTS {
        println!("cargo::rerun-if-changed={}", workspace.join(input).display());
    }
    let out = var("OUT_DIR");
    let agent = out.join("bhatti-agent");
    let built = build(&workspace, &target_dir(&out));
    // A copy, because another build of the same target directory may replace the original.
    if let Err(error) = fs::copy(&built, &agent) {
        fail(&format!("{}: {error}", built.display()));
    }
    println!("cargo::rustc-env=BHATTI_AGENT={}", agent.display());
}

fn build(workspace: &Path, target_dir: &Path) -> PathBuf {
    let triple = var("TARGET").display().to_string().replace("-musl", "-gnu");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let foreign = text.starts_with("CARGO") || text.starts_with("CLIPPY") || text.starts_with("RUSTC_W");
        let kept = KEPT.iter().any(|prefix| text.starts_with(prefix));
        if (foreign && !kept) || matches!(&*text, "RUSTFLAGS" | "RUSTDOCFLAGS" | "MAKEFLAGS") {
            cargo.env_remove(&name);
        }
    }
    let mut flags = vec![
        "-Ctarget-feature=+crt-static".to_owned(),
        "-Crelocation-model=static".to_owned(),
        format!("--remap-path-prefix={}=/bhatti", workspace.display()),
    ];
    if let Some(home) = cargo_home() {
        flags.push(format!("--remap-path-prefix={}=/cargo", home.display()));
    }
    cargo
        .current_dir(workspace)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .args(["build", "--locked", "--profile", "agent", "--package", "bhatti-agent", "--target", &triple])
        .arg("--target-dir")
        .arg(target_dir);
    match cargo.status() {
        Ok(status) if status.success() => target_dir.join(&triple).join("agent").join("bhatti-agent"),
        Ok(status) => fail(&format!("{cargo:?} ended with {status}")),
        Err(error) => fail(&format!("{cargo:?}: {error}")),
    }
}

/// `agent` in the outer target directory: the nearest one above that cargo has tagged as a cache.
fn target_dir(out: &Path) -> PathBuf {
    let tagged = out.ancestors().find(|dir| dir.join("CACHEDIR.TAG").exists());
    tagged.or_else(|| out.ancestors().nth(4)).unwrap_or(out).join("agent")
}

fn cargo_home() -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    home.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")))
}

fn var(name: &str) -> PathBuf {
    env::var_os(name).map_or_else(|| fail(&format!("{name} is not set")), PathBuf::from)
}

fn fail(why: &str) -> ! {
    eprintln!("the guest's agent could not be built: {why}");
    exit(1);
}
