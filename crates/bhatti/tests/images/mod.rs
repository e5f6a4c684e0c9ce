//! Images made for tests, a registry to put them into, and a way to it that can be cut.

mod cut;
mod make;
mod registry;

pub use cut::Cut;
pub use make::{Image, Layer, busybox, noise, oddities, rootfs, run};
pub use registry::Registry;
