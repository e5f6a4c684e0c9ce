//! Builds the kernel, an initramfs around a given agent, and the image `minimal` into a directory:
//! `cargo run --release -p bhatti-image --example build -- DIR [AGENT]`.

use std::path::PathBuf;
use std::time::Instant;

use bhatti_image::{Build, Cancel, Progress};
use types::Arch;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args_os().skip(1);
    let dir = PathBuf::from(args.next().ok_or("usage: build DIR [AGENT]")?);
    std::fs::create_dir_all(&dir)?;
    let started = Instant::now();
    let progress = |p: Progress| {
        println!("{:6.1} s  {}/{} {}", started.elapsed().as_secs_f32(), p.done, p.total, p.step)
    };
    let cancel = Cancel::new();
    let build = Build { work_dir: &dir.join("work"), progress: &progress, cancel: &cancel };
    let kernel = bhatti_image::fetch_kernel(&build, Arch::host())?;
    println!("{kernel:?}");
    if let Some(agent) = args.next() {
        let made = bhatti_image::build_initramfs(
            &std::fs::read(agent)?,
            &kernel.modules,
            &dir.join("initramfs.cpio"),
        )?;
        println!("{made:?}");
    }
    println!("{:?}", bhatti_image::build_minimal(&build, Arch::host(), &dir.join("minimal.ext4"))?);
    println!("{:6.1} s  done", started.elapsed().as_secs_f32());
    Ok(())
}
