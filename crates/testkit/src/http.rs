//! The daemon's API, as a program would use it, and its events.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout};

use serde_json::Value;

use crate::host::TestHost;

impl TestHost {
    /// The admin key.
    #[must_use]
    pub fn key(&self) -> String {
        let key = std::fs::read_to_string(self.data_dir().join("admin.key")).expect("the admin key");
        key.trim().to_owned()
    }

    /// `POST`s JSON over TCP; gives status and body.
    #[must_use]
    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let agent =
            ureq::Agent::new_with_config(ureq::Agent::config_builder().http_status_as_error(false).build());
        let url = format!("{}{path}", self.daemon().url);
        let reply =
            agent.post(&url).header("Authorization", format!("Bearer {}", self.key())).send_json(body);
        let mut reply = reply.expect("an answer");
        let status = reply.status().as_u16();
        (status, reply.body_mut().with_config().limit(64 << 20).read_json().expect("JSON"))
    }

    /// Follows the daemon's events from the first one on.
    #[must_use]
    pub fn follow_events(&self) -> Events {
        let mut child = self.command(&["events", "--since", "0", "--follow"]).spawn().expect("bhatti runs");
        let lines = BufReader::new(child.stdout.take().expect("its standard output"));
        Events { child, lines }
    }
}

/// A running `bhatti events --follow`.
#[derive(Debug)]
pub struct Events {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Events {
    /// Reads on until the next event of this kind; the test's own time limit is the only one.
    pub fn wait_for(&mut self, kind: &str) {
        let mut line = String::new();
        while self.lines.read_line(&mut line).expect("its output") > 0 {
            if line.contains(kind) {
                return;
            }
            line.clear();
        }
        panic!("the events ended without {kind}");
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _killed = self.child.kill();
        self.child.wait().expect("its end");
    }
}
