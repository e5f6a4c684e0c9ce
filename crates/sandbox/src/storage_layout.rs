//! Which layout new sandboxes' root disks get: the one that was asked for, else the one that measured better on this
//! filesystem. The answer is kept in the index until the data is on another filesystem.

use serde::{Deserialize, Serialize};
use storage::LayoutMeasurement;
use types::StorageLayout;

use crate::error::{Error, ErrorKind, Result};
use crate::services::{Services, blocking};

const SETTING: &str = "storage_layout";

/// A measurement, and where it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MeasuredLayout {
    measured: LayoutMeasurement,
    filesystem: u64,
}

impl MeasuredLayout {
    pub(crate) fn layout(&self) -> StorageLayout {
        self.measured.choose().layout
    }

    /// The layout, why it was chosen, and what was measured: a line for people.
    pub(crate) fn words(&self) -> String {
        let choice = self.measured.choose();
        format!("{}, {} ({})", choice.layout, choice.reason, self.measured)
    }
}

impl Services {
    /// How new sandboxes keep their root disks.
    pub(crate) async fn layout(&self) -> Result<StorageLayout> {
        if let Some(asked) = self.config.layout {
            return Ok(asked);
        }
        let found =
            self.layout.get_or_try_init(|| async { Ok::<_, Error>(measure(self, false).await?.layout()) });
        found.await.copied()
    }
}

/// The kept measurement if it was made on this filesystem, else a new one; always a new one when `again`.
pub(crate) async fn measure(services: &Services, again: bool) -> Result<MeasuredLayout> {
    let store = services.store.clone();
    let filesystem = blocking(move || Ok(store.filesystem_id()?)).await?;
    if !again
        && let Some(kept) = services.index().get_setting(SETTING)?
        && let Ok(kept) = serde_json::from_str::<MeasuredLayout>(&kept)
        && kept.filesystem == filesystem
    {
        return Ok(kept);
    }
    let store = services.store.clone();
    let measured = blocking(move || {
        // The smallest: what is found out does not depend on the size, how long that takes does.
        let Some(image) = store.images().list()?.into_iter().min_by_key(|image| image.allocated) else {
            return Err(
                Error::new(ErrorKind::NotReady, "there is no image here yet").hint("run `bhatti setup`")
            );
        };
        Ok(store.measure_layouts(&image)?)
    })
    .await?;
    let found = MeasuredLayout { measured, filesystem };
    tracing::info!(found = found.words(), "storage layouts measured");
    let text = serde_json::to_string(&found).map_err(|error| {
        Error::new(ErrorKind::Internal, "a measurement could not be written down").source(error)
    })?;
    services.index().set_setting(SETTING, &text)?;
    Ok(found)
}
