//! Builds images without a data directory:
//! `cargo run --release -p bhatti-image --example build -- DIR [TIER...]`; without a tier, all of them.

use std::path::PathBuf;
use std::time::Instant;

use bhatti_image::{Build, Cancel, Progress, tiers};
use types::Arch;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().ok_or("usage: build DIR [TIER...]")?);
    std::fs::create_dir_all(&dir)?;
    let mut names: Vec<String> = args.collect();
    if names.is_empty() {
        names = tiers().iter().map(|tier| tier.name.to_owned()).collect();
    }
    for name in names {
        let started = Instant::now();
        let progress = |p: Progress| {
            println!("{:6.1} s  {}/{} {}", started.elapsed().as_secs_f32(), p.done, p.total, p.step)
        };
        let cancel = Cancel::new();
        let build = Build { work_dir: &dir.join("work"), progress: &progress, cancel: &cancel };
        let out = dir.join(format!("{name}.ext4"));
        let made = bhatti_image::build_tier(&build, &name, Arch::host(), &out)?;
        println!("{:6.1} s  {made:?}", started.elapsed().as_secs_f32());
    }
    Ok(())
}
