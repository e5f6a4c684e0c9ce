//! Doing something, again and again, and noting what was acknowledged.

use std::sync::{Condvar, Mutex};

use testkit::TestHost;

use super::facts::{Action, Content, Facts, Line, Sandbox};

/// Files that a write goes to in turn.
const FILES: u64 = 6;
/// Where a volume is.
const MOUNT: &str = "/data";

/// The paths that a write makes.
pub fn paths(line: &Line, number: u64) -> Vec<String> {
    let file = format!("f-{}", number % FILES);
    let volume = line.volume.as_ref().map(|_| format!("{MOUNT}/{file}"));
    std::iter::once(format!("/home/f/{file}")).chain(volume).collect()
}

/// Replaces files by known content, syncs them, and then notes the number on the disk and in memory.
fn script(line: &Line, number: u64) -> String {
    let mut script = "set -e; exec 9>>/dev/shm/lock; flock 9; mkdir -p /tmp/f; \
                      sudo mkdir -p /home/f; sudo chmod 777 /home/f; "
        .to_owned();
    if line.volume.is_some() {
        script += &format!("sudo chmod 777 {MOUNT}; ");
    }
    for path in paths(line, number) {
        script += &format!(
            "yes write-{number} | head -n 3000 > {path}.new; sync {path}.new; mv {path}.new {path}; sync; "
        );
    }
    script
        + &format!(
            "echo {number} > /home/f/number.new; sync /home/f/number.new; mv /home/f/number.new /home/f/number; sync; \
             echo {number} > /dev/shm/number"
        )
}

/// What to do next.
fn choose(line: &mut Line) -> Action {
    let names: Vec<String> = line.sandboxes.keys().cloned().collect();
    let snapshots: Vec<String> = line.snapshots.keys().cloned().collect();
    line.made += 1;
    let (number, made) = (line.made, format!("s{}-{}", line.number, line.made));
    let choices = &mut line.choices;
    let mut one = |of: &[String]| of[usize::try_from(choices.below(of.len() as u64)).expect("small")].clone();
    if names.is_empty() {
        return match snapshots.is_empty() || number % 2 == 0 {
            true => Action::Create { name: made },
            false => Action::Resume { snapshot: one(&snapshots), name: made },
        };
    }
    let name = one(&names);
    // A machine that was just made or booted has nothing in memory to lose.
    if line.sandboxes[&name].content.memory.is_none() && line.choices.below(100) < 70 {
        return Action::Write { name, number };
    }
    let copies = line.volume.is_none();
    match line.choices.below(100) {
        0..14 => Action::Stop { name },
        14..18 => Action::Start { name },
        18..28 if copies && snapshots.len() < 3 => {
            Action::Snapshot { name, snapshot: format!("p{}-{number}", line.number) }
        }
        28..38 if copies && names.len() < 2 => Action::Fork { name, copy: made },
        38..44 if copies && names.len() < 2 && !snapshots.is_empty() => {
            Action::Resume { snapshot: snapshots[0].clone(), name: made }
        }
        44..48 if snapshots.len() > 1 => Action::Forget { snapshot: snapshots[0].clone() },
        18..28
            if !copies
                && line.backups.len() < 4
                && line.volume.as_ref().is_some_and(|volume| !volume.is_empty()) =>
        {
            Action::Backup
        }
        48..54 => Action::Destroy { name },
        54..62 if names.len() > 1 => Action::Destroy { name },
        _ => Action::Write { name, number },
    }
}

fn arguments(line: &Line, action: &Action) -> Vec<String> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    match action {
        Action::Create { name } => {
            let mut args = words(&["create", "--name", name]);
            if line.volume.is_some() {
                args.extend(["--volume".to_owned(), format!("{}:{MOUNT}", line.volume_name())]);
            }
            args
        }
        Action::Write { name, number } => words(&["exec", name, "--", "sh", "-c", &script(line, *number)]),
        Action::Stop { name } => words(&["stop", name]),
        Action::Start { name } => words(&["start", name]),
        Action::Fork { name, copy } => words(&["fork", name, "--name", copy]),
        Action::Snapshot { name, snapshot } => words(&["snapshot", "create", name, "--name", snapshot]),
        Action::Resume { snapshot, name } => words(&["snapshot", "resume", snapshot, "--name", name]),
        Action::Forget { snapshot } => words(&["snapshot", "delete", snapshot, "-y"]),
        Action::Backup => words(&["--json", "volume", "backup", &line.volume_name()]),
        Action::Destroy { name } => words(&["destroy", name]),
    }
}

fn acknowledged(line: &mut Line, action: Action, said: &[u8]) {
    let content = |line: &Line, name: &str| line.sandboxes[name].content.clone();
    match action {
        Action::Create { name } => drop(line.sandboxes.insert(name, Sandbox::default())),
        Action::Write { name, number } => {
            for path in paths(line, number) {
                match &mut line.volume {
                    Some(volume) if path.starts_with(MOUNT) => volume.insert(path, number),
                    _ => line.sandboxes.get_mut(&name).expect("it").content.files.insert(path, number),
                };
            }
            let sandbox = line.sandboxes.get_mut(&name).expect("it");
            (sandbox.content.disk, sandbox.content.memory, sandbox.asleep) = (number, Some(number), false);
        }
        Action::Stop { name } => line.sandboxes.get_mut(&name).expect("it").asleep = true,
        Action::Start { name } => line.sandboxes.get_mut(&name).expect("it").asleep = false,
        Action::Fork { name, copy } => {
            let content: Content = content(line, &name);
            line.sandboxes.insert(copy, Sandbox { content, asleep: false });
        }
        Action::Snapshot { name, snapshot } => {
            let content = content(line, &name);
            line.snapshots.insert(snapshot, content);
        }
        Action::Resume { snapshot, name } => {
            let content = line.snapshots[&snapshot].clone();
            line.sandboxes.insert(name, Sandbox { content, asleep: false });
        }
        Action::Backup => {
            let backup: serde_json::Value = serde_json::from_slice(said).expect("JSON");
            let id = backup["id"].as_str().expect("an id").to_owned();
            line.backups.insert(id, line.volume.clone().expect("a volume"));
            // Who has the volume was woken for it.
            line.sandboxes.values_mut().for_each(|sandbox| sandbox.asleep = false);
        }
        Action::Forget { snapshot } => {
            line.snapshots.remove(&snapshot);
            line.gone.insert(snapshot);
        }
        Action::Destroy { name } => {
            line.sandboxes.remove(&name);
            line.gone.insert(name);
        }
    }
}

/// Works until the loss.
pub fn go_on(host: &TestHost, facts: &Mutex<Facts>, due: &Condvar, number: u64) {
    loop {
        let args = {
            let mut facts = facts.lock().expect("facts");
            if facts.halted() {
                return;
            }
            let line = facts.line(number);
            let action = choose(line);
            let args = arguments(line, &action);
            line.under_way = Some(action);
            args
        };
        let outcome = host.run(&args);
        let mut facts = facts.lock().expect("facts");
        if facts.halted() {
            return;
        }
        let action = facts.line(number).under_way.take().expect("what is under way");
        if outcome.code != 0 {
            facts.trouble(format!(
                "{action:?} was refused: {}{}",
                outcome.text().trim_end(),
                outcome.stderr.trim_end()
            ));
            due.notify_all();
            return;
        }
        let lasting = !matches!(action, Action::Write { .. } | Action::Start { .. });
        acknowledged(facts.line(number), action, &outcome.stdout);
        if facts.count(lasting) {
            due.notify_all();
            return;
        }
    }
}
