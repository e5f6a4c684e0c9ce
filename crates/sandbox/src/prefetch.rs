//! Reading ahead: what the wake before touched is read in order while this one starts its VMM.

use std::time::Duration;

use storage::SandboxDir;
use tokio::task::JoinHandle;
use vm::{Extent, Machine, Touched};

use crate::error::Result;
use crate::services::{Services, blocking};

/// What is read ahead of a wake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Prefetch {
    /// Nothing.
    #[default]
    Off,
    /// What the wake before touched.
    Auto,
    /// Every file of which it touched a page, whole.
    All,
}

/// How long after a wake it is looked at what that has touched: the first requests are done by then.
const LOOK_AFTER: Duration = Duration::from_secs(2);

/// Reading that is under way; its outcome is whether a new record is wanted.
pub(crate) struct Ahead(Option<JoinHandle<bool>>);

/// Begins to read what the last wake of this sandbox touched.
pub(crate) fn begin(how: Prefetch, dir: &SandboxDir) -> Ahead {
    let extent = match how {
        Prefetch::Off => return Ahead(None),
        Prefetch::Auto => Extent::Touched,
        Prefetch::All => Extent::Everything,
    };
    let dir = dir.clone();
    Ahead(Some(tokio::task::spawn_blocking(move || {
        let Some(touched) = dir.working_set().and_then(|bytes| Touched::decode(&bytes)) else { return true };
        let done = touched.read_ahead(extent);
        tracing::debug!(id = %dir.id(), asked = %done.asked, stale = done.stale, "read ahead");
        done.stale > 0
    })))
}

impl Ahead {
    /// Notes, later and behind everybody's back, what this wake has touched, if that is not known yet.
    pub(crate) fn note_later(self, services: &Services, machine: &Machine, dir: &SandboxDir) {
        let Self(Some(reading)) = self else { return };
        let (looker, dir, ending) = (machine.looker(), dir.clone(), services.ending.clone());
        services.background.spawn(async move {
            if !matches!(reading.await, Ok(true)) {
                return;
            }
            if ending.run_until_cancelled(tokio::time::sleep(LOOK_AFTER)).await.is_none() {
                return;
            }
            let noted: Result<()> = async {
                let looker = looker?;
                blocking(move || Ok(dir.put_working_set(&looker.look()?.encode()?)?)).await
            }
            .await;
            // It may sleep again by now, or be gone.
            if let Err(error) = noted {
                tracing::debug!(error = %error.with_causes(), "what a wake touched was not noted");
            }
        });
    }
}
