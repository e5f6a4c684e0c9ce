//! The image of a tier, in a test's own data directory.

use image::{Build, Cancel};
use storage::Store;
use types::Arch;

use crate::TestHost;

impl TestHost {
    /// Builds a tier's image and gives it the tier's name; returns what its guests are to run at first. No daemon may be
    /// running.
    pub fn build_tier(&self, tier: &str) -> Vec<String> {
        let store = Store::open(self.data_dir()).expect("the data directory");
        let staged = store.images().stage().expect("a staged image");
        let scratch = store.scratch().expect("a scratch directory");
        let cancel = Cancel::new();
        let build = Build { work_dir: scratch.path(), progress: &|_| {}, cancel: &cancel };
        let built = image::build_tier(&build, tier, Arch::host(), staged.path()).expect("the tier's image");
        staged
            .commit(&tier.parse().expect("a name"), Arch::host(), &built.source)
            .expect("the image's record");
        built.init
    }
}
