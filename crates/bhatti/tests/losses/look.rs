//! Whether everything that was acknowledged is there.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;

use serde_json::Value;
use testkit::TestHost;

use super::facts::{Action, Content, Facts, Line, Sandbox};
use super::{Loss, Tally, work};

/// Tells number in memory, number on the disk (not from the cache), files with what is in them, and what ext4 found.
/// It waits for a write that is still under way in the guest.
const LOOK: &str = "exec 9>>/dev/shm/lock; flock 9; sync; sudo sh -c 'echo 3 > /proc/sys/vm/drop_caches'; \
    echo memory $(cat /dev/shm/number 2>/dev/null); echo disk $(cat /home/f/number 2>/dev/null); \
    for f in /home/f/f-? /data/f-?; do test -e $f && echo file $f $(sort -u $f | head -n 2 | tr '\\n' ' ') $(wc -l < $f); done; \
    echo damage $(sudo dmesg | grep -c 'EXT4-fs error\\|EXT4-fs warning\\|I/O error')";

/// What a guest says of itself.
#[derive(Debug, Default)]
struct Seen {
    memory: Option<u64>,
    disk: u64,
    files: BTreeMap<String, Option<u64>>,
    damage: u64,
}

fn parse(text: &str) -> Seen {
    let mut seen = Seen::default();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse().ok());
        match words[..] {
            ["memory", ..] => seen.memory = number(1),
            ["disk", ..] => seen.disk = number(1).unwrap_or(0),
            ["damage", ..] => seen.damage = number(1).unwrap_or(u64::MAX),
            ["file", path, word, "3000"] => {
                let whole = word.strip_prefix("write-").and_then(|number| number.parse().ok());
                seen.files.insert(path.to_owned(), whole);
            }
            ["file", path, ..] => drop(seen.files.insert(path.to_owned(), None)),
            _ => {}
        }
    }
    seen
}

fn names(host: &TestHost, args: &[&str]) -> BTreeSet<String> {
    let list: Vec<Value> = serde_json::from_value(host.json(args)).expect("a list");
    list.iter().map(|one| one["name"].as_str().expect("a name").to_owned()).collect()
}

/// All of it; what was under way is taken as it turned out. Gives what was lost.
pub fn around(host: &TestHost, facts: &mut Facts, loss: Loss, told: u64, tally: &mut Tally) -> Vec<String> {
    let mut lost = Vec::new();
    let (sandboxes, snapshots) = (names(host, &["list"]), names(host, &["snapshot", "list"]));
    for line in &mut facts.lines {
        let under_way = line.under_way.take();
        settle(line, under_way.as_ref(), &sandboxes, &snapshots, &mut lost);
        lost.extend(backups(host, line));
        let guests: Vec<_> = thread::scope(|scope| {
            let looks: Vec<_> = line
                .sandboxes
                .iter()
                .map(|(name, sandbox)| {
                    let (line, under_way) = (&*line, under_way.as_ref());
                    scope.spawn(move || {
                        (name.clone(), guest(host, line, name, sandbox, under_way, loss, told))
                    })
                })
                .collect();
            looks.into_iter().map(|look| look.join().expect("a look")).collect()
        });
        for (name, (seen, mut found)) in guests {
            tally.checked += 1;
            match seen.memory {
                Some(_) => tally.resumed += 1,
                None => tally.booted += 1,
            }
            lost.append(&mut found);
            adopt(line, &name, seen);
        }
    }
    if loss == Loss::Power {
        lost.extend(store(host));
    }
    lost
}

/// The number of the last event after `since`.
pub fn told(host: &TestHost, since: u64) -> u64 {
    events(host, since).iter().filter_map(|event| event["seq"].as_u64()).max().unwrap_or(since)
}

fn events(host: &TestHost, since: u64) -> Vec<Value> {
    serde_json::from_value(host.json(&["events", "--since", &since.to_string()])).expect("a list")
}

/// Whether an event says of a boot why the memory is lost.
fn booted_since(host: &TestHost, since: u64, name: &str) -> bool {
    let said = |event: &Value| {
        event["kind"] == "sandbox.cold_boot" && event["name"] == name && event["detail"]["why"].is_string()
    };
    events(host, since).iter().any(said)
}

/// Backups that were acknowledged and are not there.
fn backups(host: &TestHost, line: &Line) -> Vec<String> {
    if line.backups.is_empty() {
        return Vec::new();
    }
    let list: Vec<Value> =
        serde_json::from_value(host.json(&["volume", "backups", &line.volume_name()])).expect("a list");
    let gone = |id: &&String| !list.iter().any(|backup| backup["id"] == **id);
    line.backups.keys().filter(gone).map(|id| format!("backup {id} is gone")).collect()
}

/// Which sandboxes and snapshots there are.
fn settle(
    line: &mut Line,
    under_way: Option<&Action>,
    sandboxes: &BTreeSet<String>,
    snapshots: &BTreeSet<String>,
    lost: &mut Vec<String>,
) {
    let ended = |name: &str| matches!(under_way, Some(Action::Destroy { name: ended }) if ended == name);
    let forgotten = |name: &str| matches!(under_way, Some(Action::Forget { snapshot }) if snapshot == name);
    for name in line.sandboxes.keys().filter(|name| !sandboxes.contains(*name) && !ended(name)) {
        lost.push(format!("sandbox {name} is gone"));
    }
    for name in line.snapshots.keys().filter(|name| !snapshots.contains(*name) && !forgotten(name)) {
        lost.push(format!("snapshot {name} is gone"));
    }
    for name in line.gone.iter().filter(|name| sandboxes.contains(*name) || snapshots.contains(*name)) {
        lost.push(format!("{name} was destroyed and is there"));
    }
    line.sandboxes.retain(|name, _| sandboxes.contains(name));
    line.snapshots.retain(|name, _| snapshots.contains(name));
    match under_way {
        Some(Action::Snapshot { name, snapshot }) if snapshots.contains(snapshot) => {
            let content = line.sandboxes[name].content.clone();
            line.snapshots.insert(snapshot.clone(), content);
        }
        Some(action) => {
            if let Some(made) = action.makes().filter(|made| sandboxes.contains(*made)) {
                let content = match action {
                    Action::Fork { name, .. } => line.sandboxes.get(name).map(|one| one.content.clone()),
                    Action::Resume { snapshot, .. } => line.snapshots.get(snapshot).cloned(),
                    _ => None,
                };
                let sandbox = Sandbox { content: content.unwrap_or_default(), asleep: false };
                line.sandboxes.insert(made.to_owned(), sandbox);
            }
        }
        None => {}
    }
    let mine =
        |name: &&String| ["s", "p"].iter().any(|kind| name.starts_with(&format!("{kind}{}-", line.number)));
    let known = |name: &&String| line.sandboxes.contains_key(*name) || line.snapshots.contains_key(*name);
    for name in sandboxes.iter().chain(snapshots).filter(mine).filter(|name| !known(name)) {
        if !line.gone.contains(name) {
            lost.push(format!("{name} is there and nobody made it"));
        }
    }
}

/// What a guest has, and what it should have and has not.
fn guest(
    host: &TestHost,
    line: &Line,
    name: &str,
    sandbox: &Sandbox,
    under_way: Option<&Action>,
    loss: Loss,
    told: u64,
) -> (Seen, Vec<String>) {
    let mut lost = Vec::new();
    let started = host.run(&["start", name]);
    let looked = host.run(&["exec", name, "--", "sh", "-c", LOOK]);
    if (started.code, looked.code) != (0, 0) {
        let said = format!("{}{}", started.stderr.trim_end(), looked.stderr.trim_end());
        return (Seen::default(), vec![format!("sandbox {name} does not run: {said}")]);
    }
    let seen = parse(&looked.text());
    let boot = host.json(&["inspect", name])["boot"].as_str().unwrap_or_default().to_owned();
    // A backup wakes who has the volume.
    let touches = |action: &&Action| {
        action.on() == Some(name) || action.makes() == Some(name) || matches!(action, Action::Backup)
    };
    let touched = under_way.filter(touches);
    let made = touched.is_some_and(|action| action.makes() == Some(name));
    let writing = match touched {
        Some(Action::Write { number, .. }) => Some(*number),
        _ => None,
    };
    let Content { disk, memory, files } = &sandbox.content;
    let mut lose = |what: String| {
        lost.push(format!("sandbox {name} ({boot}, under way: {touched:?}): {what}"));
    };

    if seen.disk != *disk && Some(seen.disk) != writing {
        lose(format!("write {disk} was the last one synced, {} is on the disk", seen.disk));
    }
    let volume = line.volume.iter().flatten();
    for (path, number) in files.iter().chain(volume) {
        let now = seen.files.get(path).copied().flatten();
        let replaced = writing.filter(|&writing| work::paths(line, writing).contains(path));
        if now != Some(*number) && (now.is_none() || now != replaced) {
            lose(format!("{path} is {:?} and not that of write {number}", seen.files.get(path)));
        }
    }
    if seen.damage > 0 {
        lose(format!("{} complaints of its kernel about its filesystems", seen.damage));
    }
    match (seen.memory, *memory) {
        // A write that was cut off with its daemon between the disk and the memory: the machine went on all the while.
        (Some(now), then)
            if loss.spares_machines()
                && writing == Some(seen.disk)
                && then.is_some_and(|then| then == now) => {}
        // Older memory over a newer disk.
        (Some(now), _) if now != seen.disk => lose(format!("memory of {now}, a disk of {}", seen.disk)),
        // A copy that nobody was told of yet boots when its daemon dies before it has its memory.
        (None, Some(_)) if made && boot == "cold_boot" => {}
        (None, Some(then)) if loss.spares_machines() || (sandbox.asleep && touched.is_none()) => {
            lose(format!("memory of {then} is lost"));
        }
        (None, Some(_)) if boot != "cold_boot" => {
            lose("no memory, and it does not say that it booted".to_owned())
        }
        (Some(now), Some(_)) if !loss.spares_machines() && !sandbox.asleep && touched.is_none() => {
            lose(format!("its machine died, and memory of {now} is there"));
        }
        _ => {}
    }
    if boot == "cold_boot" && memory.is_some() && !started.stderr.contains("booted from its disk") && !made {
        // Where the daemon lives on it may have said it to whoever asked first, and to all who read events.
        let noted = loss == Loss::Machines && booted_since(host, told, name);
        if seen.memory.is_none() && !noted {
            lose(format!("it was booted and nobody was told: {:?}", started.stderr));
        }
    }
    (seen, lost)
}

/// What was under way has settled: from now on it counts as it is.
fn adopt(line: &mut Line, name: &str, seen: Seen) {
    let files = seen.files.into_iter().filter_map(|(path, number)| Some((path, number?)));
    let (volume, files): (BTreeMap<_, _>, BTreeMap<_, _>) =
        files.partition(|(path, _)| !path.starts_with("/home"));
    if let Some(facts) = &mut line.volume {
        *facts = volume;
    }
    let content = Content { disk: seen.disk, memory: seen.memory, files };
    if let Some(sandbox) = line.sandboxes.get_mut(name) {
        *sandbox = Sandbox { content, asleep: false };
    }
}

/// What the store finds wrong with itself.
fn store(host: &TestHost) -> Vec<String> {
    let checked = host.run(&["--json", "fsck"]);
    let Ok(report) = serde_json::from_slice::<Value>(&checked.stdout) else {
        return vec![format!("fsck gave {}: {}", checked.code, checked.stderr)];
    };
    let findings = report["findings"].as_array().cloned().unwrap_or_default();
    let errors = findings.iter().filter(|finding| finding["severity"] == "error");
    errors.map(|finding| format!("fsck: {finding}")).collect()
}

/// Ends everything and tells what stays that nobody needs.
pub fn for_leftovers(host: &TestHost, facts: &Facts) -> Vec<String> {
    let mut lost = Vec::new();
    for line in &facts.lines {
        for snapshot in line.snapshots.keys() {
            // A snapshot holds what it was made of, whatever died since.
            let name = format!("last-{snapshot}");
            host.ok(&["snapshot", "resume", snapshot, "--name", &name]);
            let seen = parse(&host.sh(&name, LOOK));
            let then = &line.snapshots[snapshot];
            if (seen.disk, seen.memory) != (then.disk, then.memory) {
                lost.push(format!("snapshot {snapshot} is {seen:?} and not {then:?}"));
            }
            host.ok(&["destroy", &name]);
            host.ok(&["snapshot", "delete", snapshot, "-y"]);
        }
        for name in line.sandboxes.keys() {
            host.ok(&["destroy", name]);
        }
        for (number, (id, then)) in line.backups.iter().enumerate() {
            let (volume, name) = (line.volume_name(), format!("back-{number}"));
            host.ok(&["volume", "restore", &volume, "--backup", id, "-y"]);
            host.ok(&["create", "--name", &name, "--volume", &format!("{volume}:/data")]);
            let seen = parse(&host.sh(&name, LOOK));
            for (path, write) in then {
                let now = seen.files.get(path).copied().flatten();
                if now != Some(*write) {
                    lost.push(format!("backup {id} has {path} of {now:?} and not of write {write}"));
                }
            }
            host.ok(&["destroy", &name]);
        }
    }
    let left = std::fs::read_dir(host.data_dir().join("sandboxes")).expect("the sandboxes").count();
    if left > 0 {
        lost.push(format!("{left} directories of sandboxes are left"));
    }
    lost.extend(store(host));
    lost
}
