//! What is counted of real guests, and that counting wakes none.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use testkit::{Exposition, TestHost};

const BHATTI: &str = env!("CARGO_BIN_EXE_bhatti");
const MIB: f64 = 1_048_576.0;

/// The phases of a reply add up to its total within a hundredth.
fn adds_up(what: &str, reply: &Value) {
    let timings = reply["timings_ms"].as_object().unwrap();
    let total = timings["total"].as_f64().unwrap();
    // A fork's pause is when its source stood still, which is a part of the capture.
    let part = |phase: &str| phase == "total" || phase == "pause" && what == "fork";
    let phases = timings.iter().filter(|(phase, _)| !part(phase));
    let sum: f64 = phases.map(|(_, took)| took.as_f64().unwrap()).sum();
    assert!(total > 0.0 && (sum - total).abs() <= total / 100.0, "{what}: {sum} of {total}: {timings:?}");
}

fn scrape(host: &TestHost) -> Exposition {
    Exposition::parse(&host.ok(&["metrics"]))
}

fn count(of: &Exposition, change: &str) -> f64 {
    of.value(&format!("bhatti_change_seconds_count{{change=\"{change}\"}}"))
}

#[test]
fn counts_move_with_what_happens_phases_add_up_and_nobody_is_woken() {
    let host = TestHost::start_with(BHATTI, &["--standby", "1", "--max-memory", "8192"]);
    let before = scrape(&host);
    assert_eq!(before.beginning("bhatti_sandboxes{"), [0.0, 0.0, 0.0]);
    assert_eq!((count(&before, "create"), before.value("bhatti_memory_promised_bytes")), (0.0, 0.0));

    adds_up("create", &host.json(&["create", "--name", "one"]));
    host.follow_events().wait_for("standby.ready");
    let made = scrape(&host);
    assert_eq!(made.value("bhatti_sandboxes{thermal=\"hot\"}"), 1.0);
    assert_eq!(count(&made, "create"), 1.0);
    assert_eq!(made.beginning("bhatti_template_lookups_total").iter().sum::<f64>(), 1.0);
    assert_eq!(made.value("bhatti_standby_ready"), 1.0);
    assert_eq!(made.value("bhatti_memory_promised_bytes"), 1024.0 * MIB, "one runs and one stands by");
    assert_eq!(made.value("bhatti_memory_promised_limit_bytes"), 8192.0 * MIB);
    assert!(made.value("bhatti_vmm_private_bytes") > MIB && made.value("bhatti_vmm_page_cache_bytes") > MIB);
    assert!(made.value("bhatti_host_memory_available_bytes") > MIB);
    assert_eq!(made.value("bhatti_events_total{kind=\"sandbox.created\"}"), 1.0);

    host.sh("one", "head -c 3000000 /dev/urandom > /dev/shm/noise");
    adds_up("stop", &host.json(&["stop", "one"]));
    let generation = host.json(&["inspect", "one"])["generation"].clone();
    let asleep = scrape(&host);
    assert_eq!(asleep.beginning("bhatti_sandboxes{"), [1.0, 0.0, 0.0], "cold, hot, warm");
    assert_eq!(count(&asleep, "stop"), 1.0);
    for kind in ["private", "stored"] {
        let bytes = asleep.value(&format!("bhatti_stop_bytes_total{{kind=\"{kind}\"}}"));
        assert!(bytes > 3_000_000.0 && bytes < 512.0 * MIB, "{kind}: {bytes}");
    }
    assert_eq!(asleep.value("bhatti_memory_promised_bytes"), 512.0 * MIB);
    // Asked again and again, it sleeps on.
    let _more = (scrape(&host), host.json(&["metrics"]));
    assert_eq!(host.json(&["inspect", "one"])["thermal"], "cold");
    assert_eq!(host.json(&["inspect", "one"])["generation"], generation);
    assert_eq!(host.vmm_pids().len(), 1, "the one that stands by");

    adds_up("start", &host.json(&["start", "one"]));
    adds_up("create from standby", &host.json(&["create", "--name", "two"]));
    let forked = host.json(&["fork", "one", "--name", "three"]);
    adds_up("fork", &forked["sandboxes"][0]);
    adds_up("snapshot", &host.json(&["snapshot", "create", "one", "--name", "s"]));
    adds_up("resume", &host.json(&["snapshot", "resume", "s", "--name", "four"]));
    host.refused(&["inspect", "nosuch"], 1, &["nosuch"]);
    let after = scrape(&host);
    for change in ["create", "create_standby", "stop", "wake", "fork", "snapshot", "snapshot_resume"] {
        assert_eq!(count(&after, change), 1.0, "{change}");
        let sum = after.value(&format!("bhatti_change_seconds_sum{{change=\"{change}\"}}"));
        let phases = after.beginning(&format!("bhatti_phase_seconds_sum{{change=\"{change}\","));
        let phases: f64 = phases.iter().sum();
        assert!(sum > 0.0 && (phases - sum).abs() <= sum / 100.0, "{change}: {phases} of {sum}");
    }
    assert!(after.value("bhatti_wake_queue_seconds_count") >= 1.0);
    assert_eq!(after.value("bhatti_wakes_waiting"), 0.0);
    // The command line runs commands over a WebSocket.
    assert_eq!(after.value("bhatti_http_requests_total{class=\"exec\",status=\"101\"}"), 1.0);
    assert_eq!(after.value("bhatti_http_requests_total{class=\"read\",status=\"404\"}"), 1.0);

    // The same as one JSON document.
    let document = host.json(&["metrics"]);
    let named: Vec<_> =
        document["families"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert!(after.names().iter().all(|name| named.contains(&name.as_str())), "{named:?}");
}
