//! Bodies of requests: no JSON makes the reader panic, and what was read is the same when it is written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;

macro_rules! read {
    ($bytes:expr, $($kind:ty),* $(,)?) => {$(
        if let Ok(asked) = serde_json::from_slice::<$kind>($bytes) {
            let text = serde_json::to_vec(&asked).expect("what was read can be written");
            let again: $kind = serde_json::from_slice(&text).expect("what was written can be read");
            assert_eq!(format!("{again:?}"), format!("{asked:?}"));
        }
    )*};
}

fuzz_target!(|bytes: &[u8]| {
    read!(
        bytes,
        api::CreateRequest,
        api::EditRequest,
        api::StartRequest,
        api::StopRequest,
        api::ExecRequest,
        api::SnapshotRequest,
        api::ResumeRequest,
        api::ForkRequest,
        api::BackupRequest,
        api::RestoreRequest,
        api::BackupPruneRequest,
        api::ScheduleRequest,
        api::PullRequest,
        api::SaveRequest,
        api::BuildRequest,
        api::SecretRequest,
        api::PublishRequest,
        api::FsckRequest,
        api::GcRequest,
    );
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _sandbox = text.parse::<types::SandboxName>();
    let _volume = text.parse::<types::VolumeName>();
    let _image = text.parse::<types::ImageName>();
    let _owner = text.parse::<types::Owner>();
    let _secret = text.parse::<types::SecretName>();
});
