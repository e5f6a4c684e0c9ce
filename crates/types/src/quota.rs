//! What one user may have at once.

use serde::{Deserialize, Serialize};

/// Something that is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Counted {
    /// Sandboxes, whatever they do.
    Sandboxes,
    /// Memory of the machines that exist, in MiB: hot and warm ones.
    Memory,
    /// Processors of the machines that exist.
    Cpus,
    /// What lies on the disk and is nobody else's, in MiB.
    Disk,
    /// Volumes.
    Volumes,
    /// Named snapshots.
    Snapshots,
    /// Images of their own.
    Images,
}

impl Counted {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Sandboxes, Self::Memory, Self::Cpus, Self::Disk, Self::Volumes, Self::Snapshots, Self::Images];

    /// The field of a quota that limits it.
    #[must_use]
    pub const fn field(self) -> &'static str {
        match self {
            Self::Sandboxes => "max_sandboxes",
            Self::Memory => "max_memory_mb",
            Self::Cpus => "max_cpus",
            Self::Disk => "max_disk_mb",
            Self::Volumes => "max_volumes",
            Self::Snapshots => "max_snapshots",
            Self::Images => "max_images",
        }
    }
}

/// The limits of one user; what is missing is not limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quota {
    /// Of [`Counted::Sandboxes`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_sandboxes: Option<u64>,
    /// Of [`Counted::Memory`], in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_memory_mb: Option<u64>,
    /// Of [`Counted::Cpus`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_cpus: Option<u64>,
    /// Of [`Counted::Disk`], in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_disk_mb: Option<u64>,
    /// Of [`Counted::Volumes`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_volumes: Option<u64>,
    /// Of [`Counted::Snapshots`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_snapshots: Option<u64>,
    /// Of [`Counted::Images`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_images: Option<u64>,
}

impl Quota {
    /// The most that there may be of it.
    #[must_use]
    pub const fn most(&self, what: Counted) -> Option<u64> {
        match what {
            Counted::Sandboxes => self.max_sandboxes,
            Counted::Memory => self.max_memory_mb,
            Counted::Cpus => self.max_cpus,
            Counted::Disk => self.max_disk_mb,
            Counted::Volumes => self.max_volumes,
            Counted::Snapshots => self.max_snapshots,
            Counted::Images => self.max_images,
        }
    }

    /// Where the limit of something is kept.
    pub const fn most_mut(&mut self, what: Counted) -> &mut Option<u64> {
        match what {
            Counted::Sandboxes => &mut self.max_sandboxes,
            Counted::Memory => &mut self.max_memory_mb,
            Counted::Cpus => &mut self.max_cpus,
            Counted::Disk => &mut self.max_disk_mb,
            Counted::Volumes => &mut self.max_volumes,
            Counted::Snapshots => &mut self.max_snapshots,
            Counted::Images => &mut self.max_images,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_is_kept_under_its_field_and_no_other() {
        for what in Counted::ALL {
            let mut quota = Quota::default();
            assert_eq!(quota.most(what), None);
            *quota.most_mut(what) = Some(7);
            assert_eq!(quota.most(what), Some(7));
            let json = serde_json::to_value(quota).unwrap();
            assert_eq!(json, serde_json::json!({ what.field(): 7 }));
            assert_eq!(serde_json::from_value::<Quota>(json).unwrap(), quota);
        }
        assert!(serde_json::from_str::<Quota>(r#"{"max_toes":10}"#).is_err());
    }
}
