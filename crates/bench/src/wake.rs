//! Wakes of a 1,024 MiB sandbox to the end of its first command over HTTP: with hot and with cold page cache, under
//! traffic, and beside the least that a wake can be; then creates from machines that stand by, resumes of paused
//! machines, and what these keep of the host's memory.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use types::Mebibytes;

use crate::Options;
use crate::daemon::Daemon;
use crate::data;
use crate::error::{During as _, Error, Result};
use crate::phases::{self, Phases};
use crate::plot::Bar;
use crate::progress::Progress;
use crate::reference::Reference;
use crate::resident;
use crate::sample::{Sample, mib, ms};
use crate::table::{Row, Section, Target};

const MEMORY: Mebibytes = Mebibytes(1024);
/// Clients that ask for one command after the other, each in the same sandbox, which is kept hot.
const CLIENTS: usize = 2;
/// Sandboxes that are paused at the same time.
const WARM: usize = 20;
/// How long something may take that the daemon does by itself.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at it.
const LOOK: Duration = Duration::from_millis(100);

/// The rows, and where the time of the wakes went.
struct Found {
    rows: Vec<Row>,
    notes: Vec<String>,
    /// The same as a picture.
    bars: Vec<Bar>,
}

impl Found {
    /// Where the time of a verb went.
    fn explain(&mut self, what: &str, phases: &Phases) {
        self.notes.push(format!("{what}: {phases}"));
        self.bars.push(phases.bar(what));
    }
}

#[derive(Default)]
struct Wakes {
    hot: Sample,
    cold: Sample,
    traffic: Sample,
    kept: Sample,
    floor: Sample,
    unconfined: Sample,
    of_hot: Phases,
    of_cold: Phases,
    of_traffic: Phases,
}

pub(crate) fn measure(daemon: &Daemon, options: &Options, progress: Progress<'_>) -> Result<Section> {
    let may_drop = drop_page_cache();
    let mut found = wakes(daemon, options, progress, &may_drop)?;
    standby(daemon, options, progress, &mut found)?;
    found.rows.push(resumes(daemon, options, progress)?);
    match idle_memory(daemon, progress) {
        Err(error) if !error.is_interrupted() => {
            found.rows.push(Row::missing("memory of idle warm sandboxes", error));
        }
        idle => {
            let (row, note) = idle?;
            found.rows.push(row);
            found.notes.push(note);
        }
    }
    let Found { rows, notes, bars } = found;
    Ok(Section { rows, notes, figures: vec![phases::figure(bars)], ..Section::default() })
}

fn wakes(daemon: &Daemon, options: &Options, progress: Progress<'_>, may_drop: &Result<()>) -> Result<Found> {
    make(daemon)?;
    let reference = Reference::new(daemon.data_dir())?;
    let beside = data::linked_with(options, daemon.data_dir())?;
    let unconfined = Daemon::start_with(options, beside, &["--confine", "off"], progress)?;
    make(&unconfined)?;
    let mut seen = Wakes::default();
    for run in 1..=options.runs {
        progress.step(&format!("wakes: run {run} of {}", options.runs))?;
        seen.hot.push(wake(daemon, || Ok(()), &mut seen.of_hot)?);
        seen.floor.push(ms(reference.load_template(MEMORY)?));
        seen.unconfined.push(wake(&unconfined, || Ok(()), &mut Phases::default())?);
        if may_drop.is_ok() {
            seen.cold.push(wake(daemon, drop_page_cache, &mut seen.of_cold)?);
        }
        // No longer than it is needed: what a running machine maps is not dropped from the page cache.
        daemon.post("/sandboxes", &json!({ "name": "busy", "memory_mb": MEMORY.0, "keep_hot": true }))?;
        let phases = &mut seen.of_traffic;
        seen.traffic.push(under_traffic(daemon, || wake(daemon, || Ok(()), phases))?);
        seen.kept.push(ms(daemon.exec("busy", &["true"])?.0));
        daemon.delete("busy")?;
    }
    daemon.delete("wakes")?;
    drop(unconfined);
    let ahead = ahead(daemon, options, progress, may_drop)?;
    let read_ahead = read_ahead(daemon, options, progress, may_drop)?;
    let (cold, ahead_cold) = match may_drop {
        Ok(()) => (
            Row::new("wake, 1024 MiB, cold page cache", "ms", seen.cold.clone())
                .against("hot page cache", seen.hot.clone())
                .target(Target::AtMostTimes(1.6)),
            Row::new("the same, VMM started ahead", "ms", ahead.cold)
                .against("cold page cache, started by the wake", seen.cold),
        ),
        Err(error) => (
            Row::missing("wake, 1024 MiB, cold page cache", error),
            Row::missing("the same, VMM started ahead", error),
        ),
    };
    let mut found = Found {
        rows: vec![
            Row::new("wake, 1024 MiB, hot page cache", "ms", seen.hot.clone())
                .against("bare VMM, load, first exec", seen.floor)
                .target(Target::AtMostTimes(1.25)),
            Row::new("the same, its VMM confined as it comes", "ms", seen.hot.clone())
                .against("`serve --confine off`", seen.unconfined),
            Row::new("the same, VMM started ahead", "ms", ahead.hot)
                .against("hot page cache, started by the wake", seen.hot.clone()),
            cold,
            ahead_cold,
            Row::new(format!("wake, 1024 MiB, {CLIENTS} clients busy"), "ms", seen.traffic)
                .against("nobody else", seen.hot.clone())
                .target(Target::AtMostTimes(2.0)),
            Row::new("exec, 1024 MiB, kept hot", "ms", seen.kept).against("wake, hot page cache", seen.hot),
        ],
        notes: Vec::new(),
        bars: Vec::new(),
    };
    found.explain("wake with hot page cache", &seen.of_hot);
    found.explain("wake with cold page cache", &seen.of_cold);
    found.explain("wake with hot page cache, VMM started ahead", &ahead.of_hot);
    found.explain("wake with cold page cache, VMM started ahead", &ahead.of_cold);
    found.explain("wake under traffic", &seen.of_traffic);
    found.rows.extend(read_ahead.rows);
    found.bars.extend(read_ahead.bars);
    found.notes.extend(read_ahead.notes);
    Ok(found)
}

/// Wakes in a VMM that was started ahead. Not in turn with the others: a VMM that waits keeps in memory what another one
/// would have to read.
fn ahead(first: &Daemon, options: &Options, progress: Progress<'_>, may_drop: &Result<()>) -> Result<Wakes> {
    let dir = data::linked_with(options, first.data_dir())?;
    let daemon = Daemon::start_with(options, dir, &["--spare-vmms", "1"], progress)?;
    make(&daemon)?;
    let mut seen = Wakes::default();
    for run in 1..=options.runs {
        progress.step(&format!("wakes with a VMM started ahead: run {run} of {}", options.runs))?;
        seen.hot.push(wake(&daemon, || daemon.until_spare(), &mut seen.of_hot)?);
        if may_drop.is_ok() {
            let before = || daemon.until_spare().and_then(|()| drop_page_cache());
            seen.cold.push(wake(&daemon, before, &mut seen.of_cold)?);
        }
    }
    daemon.delete("wakes")?;
    Ok(seen)
}

/// Wakes with nothing read ahead, with what the wake before touched, and with every file of which it touched a page, in
/// turn: each by a daemon of its own, whose sandbox sleeps while others are looked at.
fn read_ahead(
    first: &Daemon,
    options: &Options,
    progress: Progress<'_>,
    may_drop: &Result<()>,
) -> Result<Found> {
    const WAYS: [(&str, &str); 3] = [
        ("off", "nothing read ahead"),
        ("auto", "what the wake before touched read ahead"),
        ("all", "every file that it touched read ahead, whole"),
    ];
    let mut series = Vec::new();
    for (way, _) in WAYS {
        let dir = data::linked_with(options, first.data_dir())?;
        let daemon = Daemon::start_with(options, dir, &["--prefetch", way], progress)?;
        make(&daemon)?;
        if way != "off" {
            until_noted(&daemon)?;
        }
        daemon.post("/sandboxes/wakes/stop", &json!({}))?;
        series.push((daemon, Wakes::default()));
    }
    for run in 1..=options.runs {
        progress.step(&format!("wakes with and without reading ahead: run {run} of {}", options.runs))?;
        for (daemon, seen) in &mut series {
            seen.hot.push(wake(daemon, || Ok(()), &mut seen.of_hot)?);
            if may_drop.is_ok() {
                seen.cold.push(wake(daemon, drop_page_cache, &mut seen.of_cold)?);
            }
            daemon.post("/sandboxes/wakes/stop", &json!({}))?;
        }
    }
    let mut found = Found { rows: Vec::new(), notes: Vec::new(), bars: Vec::new() };
    let (none_hot, none_cold) = (series[0].1.hot.clone(), series[0].1.cold.clone());
    for ((_, what), (_, seen)) in WAYS.iter().zip(&series) {
        found.explain(&format!("wake with cold page cache, {what}"), &seen.of_cold);
    }
    for ((_, what), (_, seen)) in WAYS.into_iter().zip(series).skip(1) {
        let row = |cache: &str, sample, none: &Sample| {
            Row::new(format!("wake, {cache} page cache, {what}"), "ms", sample)
                .against("nothing read ahead", none.clone())
        };
        found.rows.push(row("hot", seen.hot, &none_hot));
        if may_drop.is_ok() {
            found.rows.push(row("cold", seen.cold, &none_cold));
        }
    }
    Ok(found)
}

/// The sandbox `wakes`, which has run a command.
fn make(daemon: &Daemon) -> Result<()> {
    daemon.post("/sandboxes", &json!({ "name": "wakes", "memory_mb": MEMORY.0 }))?;
    daemon.exec("wakes", &["true"]).map(drop)
}

/// Wakes it, and waits until what that touched was written down, which the daemon does when nobody asks for it.
fn until_noted(daemon: &Daemon) -> Result<()> {
    daemon.post("/sandboxes/wakes/stop", &json!({}))?;
    daemon.exec("wakes", &["true"])?;
    let (set, began) = (daemon.sandbox_dir("wakes")?.join(storage::layout::WAKE_SET), Instant::now());
    while !set.exists() {
        wait_a_little(began, "what a wake touched to be written down")?;
    }
    Ok(())
}

/// Puts the sandbox `wakes` to sleep, does `before`, and asks for a command.
fn wake(daemon: &Daemon, before: impl FnOnce() -> Result<()>, phases: &mut Phases) -> Result<f64> {
    daemon.post("/sandboxes/wakes/stop", &json!({}))?;
    before()?;
    let took = ms(daemon.exec("wakes", &["true"])?.0);
    let view = daemon.get("/sandboxes/wakes")?;
    if view["last_transition"]["verb"] != "start" {
        return Err(Error::new("waking", view));
    }
    phases.add(&view["last_transition"]);
    Ok(took)
}

/// Does `work` while clients have commands run elsewhere; each of them has had one run before it begins.
fn under_traffic(daemon: &Daemon, work: impl FnOnce() -> Result<f64>) -> Result<f64> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (began, begun) = std::sync::mpsc::channel();
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let (began, over) = (began.clone(), &over);
                scope.spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        daemon.exec("busy", &["true"])?;
                        // Nobody counts any more once all have begun.
                        let _counted = began.send(());
                    }
                    Ok::<(), Error>(())
                })
            })
            .collect();
        drop(began);
        let all_begun = begun.iter().take(CLIENTS).count() == CLIENTS;
        let outcome = if all_begun { work() } else { Err(Error::new("traffic", "there was none")) };
        over.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().map_err(|_| Error::new("traffic", "a thread panicked"))??;
        }
        outcome
    })
}

/// Writes back what is dirty and forgets every clean page of the host.
fn drop_page_cache() -> Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").during("dropping the page cache")
}

/// Creates with a machine that stands by, in turn with creates from a template.
fn standby(daemon: &Daemon, options: &Options, progress: Progress<'_>, found: &mut Found) -> Result<()> {
    let standing = Daemon::start_with(options, data::linked(options)?, &["--standby", "1"], progress)?;
    let mut events = standing.follow_events()?;
    let (mut ours, mut theirs) = (Sample::default(), Sample::default());
    let (mut of_ours, mut of_theirs) = (Phases::default(), Phases::default());
    // Each create takes one, and the next one is made before anything else is timed.
    events.wait_for("standby.ready")?;
    for run in 1..=options.runs {
        progress.step(&format!("create from standby and from template: run {run} of {}", options.runs))?;
        ours.push(create(&standing, "standby", &mut of_ours)?);
        events.wait_for("standby.ready")?;
        theirs.push(create(daemon, "template", &mut of_theirs)?);
    }
    let row = Row::new("create from standby to first exec", "ms", ours)
        .against("from template", theirs)
        .target(Target::TimesBetter(3.0));
    found.rows.push(row);
    found.explain("create from standby", &of_ours);
    found.explain("create from template", &of_theirs);
    Ok(())
}

/// What a new sandbox that begins like that took to its first command; it is gone afterwards.
fn create(daemon: &Daemon, boot: &str, phases: &mut Phases) -> Result<f64> {
    let began = Instant::now();
    let reply = daemon.post("/sandboxes", &json!({ "name": "created" }))?;
    daemon.exec("created", &["true"])?;
    let took = ms(began.elapsed());
    daemon.delete("created")?;
    if reply["boot"] != boot {
        return Err(Error::new(format!("creating from {boot}"), &reply["boot"]));
    }
    phases.add(&reply);
    Ok(took)
}

/// Commands in a paused sandbox, in turn with commands in the same one when it runs.
fn resumes(daemon: &Daemon, options: &Options, progress: Progress<'_>) -> Result<Row> {
    let body = json!({ "name": "paused", "memory_mb": MEMORY.0, "warm_after_sec": 1 });
    daemon.post("/sandboxes", &body)?;
    let (mut ours, mut theirs) = (Sample::default(), Sample::default());
    for run in 1..=options.runs {
        progress.step(&format!("exec in a warm sandbox: run {run} of {}", options.runs))?;
        until_warm(daemon, "paused")?;
        ours.push(ms(daemon.exec("paused", &["true"])?.0));
        theirs.push(ms(daemon.exec("paused", &["true"])?.0));
    }
    daemon.delete("paused")?;
    Ok(Row::new("exec in a warm sandbox", "ms", ours)
        .against("in a hot one", theirs)
        .target(Target::AtMostTimes(1.3)))
}

fn until_warm(daemon: &Daemon, name: &str) -> Result<()> {
    let began = Instant::now();
    while daemon.get(&format!("/sandboxes/{name}"))?["thermal"] != "warm" {
        wait_a_little(began, "a sandbox to be paused")?;
    }
    Ok(())
}

fn wait_a_little(since: Instant, what: &str) -> Result<()> {
    if since.elapsed() > PATIENCE {
        return Err(Error::new(format!("waiting for {what}"), "it takes too long"));
    }
    std::thread::sleep(LOOK);
    Ok(())
}

/// What paused sandboxes keep of the host's memory, beside what their guests have written, and what they share.
fn idle_memory(daemon: &Daemon, progress: Progress<'_>) -> Result<(Row, String)> {
    progress.step(&format!("memory of {WARM} warm sandboxes"))?;
    let names: Vec<String> = (1..=WARM).map(|number| format!("warm-{number}")).collect();
    for name in &names {
        progress.go_on()?;
        daemon.post("/sandboxes", &json!({ "name": name, "warm_after_sec": 1 }))?;
        daemon.exec(name, &["true"])?;
    }
    let (mut ours, mut theirs) = (Sample::default(), Sample::default());
    let (mut shared, mut share) = (Sample::default(), Sample::default());
    for name in &names {
        until_warm(daemon, name)?;
    }
    for name in &names {
        let resident = resident::of(&daemon.sandbox_dir(name)?)?;
        ours.push(mib(resident.own));
        theirs.push(mib(resident.written));
        shared.push(mib(resident.shared));
        share.push(mib(resident.share));
    }
    for name in &names {
        daemon.delete(name)?;
    }
    let note = format!(
        "pages of the RAM base that each of the {WARM} maps and others, too: {:.1} MiB, there once for all; divided by \
         how many map them: {:.2} MiB each",
        shared.median(),
        share.median()
    );
    let row = Row::new(format!("host memory of each of {WARM} idle warm sandboxes"), "MiB", ours)
        .against("what the guest wrote", theirs)
        .target(Target::AtMostTimes(1.3));
    Ok((row, note))
}
