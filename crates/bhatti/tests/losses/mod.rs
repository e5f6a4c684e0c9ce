//! Random work on real guests, what was acknowledged of it, and whether that is there after everything died.
//!
//! Lines of work go on side by side, each with sandboxes of its own. A fact counts when the command line has said so; what
//! was under way at the instant of a loss may have happened or not, and nothing in between. `BHATTI_LOSS_SEED` replays the
//! choices of a run; what the instants hit is the machine's own affair.

#![allow(dead_code, reason = "each test binary uses a part")]

mod disks;
mod facts;
mod look;
mod work;

use std::fmt::Write as _;
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use testkit::{Choices, TestHost};

use self::facts::Facts;

/// What dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The daemon, by SIGKILL. Machines go on.
    Daemon,
    /// Every machine, by SIGKILL. The daemon goes on.
    Machines,
    /// First the daemon, then every machine.
    Both,
    /// The power: both, and what the filesystem had not sent to its disk.
    Power,
}

impl Loss {
    /// Whether machines outlive it.
    const fn spares_machines(self) -> bool {
        matches!(self, Self::Daemon)
    }
}

/// What a run did.
#[derive(Debug, Default)]
struct Tally {
    cuts: u32,
    kills: u32,
    resumed: usize,
    booted: usize,
    checked: usize,
    disks: usize,
}

/// How many lines of work go on side by side.
const LINES: u64 = 2;
/// Within this time of the work's beginning a loss happens, or right behind one of so many acknowledgements.
const WITHIN_MS: u64 = 6000;
const WITHIN_ACKNOWLEDGED: u64 = 4;

/// No operation takes so long.
const LONGEST: Duration = Duration::from_secs(120);

/// Works, loses and looks, once for each of `losses`. Panics when anything was lost, with all that was; prints one line.
pub fn suffer(host: &mut TestHost, losses: &[Loss], seed: u64) {
    let began = Instant::now();
    // The template is made before: creating is cloning it from then on.
    host.ok(&["create", "--name", "first"]);
    host.ok(&["destroy", "first"]);
    let (facts, due) = (Mutex::new(Facts::new(LINES, seed)), Condvar::new());
    let mut choices = Choices::new(seed, 0);
    let mut tally = Tally::default();
    let mut lost = Vec::new();
    for (round, &loss) in losses.iter().enumerate() {
        // At a random instant, or when somebody has just been told that something is so.
        let left = (choices.below(2) == 0).then(|| 1 + choices.below(WITHIN_ACKNOWLEDGED));
        let delay = if left.is_some() { LONGEST } else { Duration::from_millis(choices.below(WITHIN_MS)) };
        let told = look::told(host, 0);
        facts.lock().expect("facts").resume(left);
        let spared = thread::scope(|scope| {
            for line in 0..LINES {
                let (host, facts, due) = (&*host, &facts, &due);
                scope.spawn(move || work::go_on(host, facts, due, line));
            }
            // Nothing begins and nothing is acknowledged from here on; what is under way goes on under the copy.
            let facts = facts.lock().expect("facts");
            let (mut facts, _) =
                due.wait_timeout_while(facts, delay, |facts| !facts.halted()).expect("facts");
            match loss {
                Loss::Daemon => host.strike_daemon(),
                Loss::Machines => host.kill_vmms(),
                Loss::Both => {
                    host.strike_daemon();
                    host.kill_vmms();
                }
                Loss::Power => {
                    host.keep_disk();
                    host.strike_daemon();
                }
            }
            facts.halt();
            loss
        });
        match spared {
            Loss::Daemon => host.kill_daemon(),
            Loss::Machines => {}
            Loss::Both => {
                host.kill_daemon();
                host.kill_vmms();
            }
            Loss::Power => host.cut_power(),
        }
        if loss == Loss::Power {
            tally.cuts += 1;
        } else {
            tally.kills += 1;
        }
        if matches!(loss, Loss::Both | Loss::Power) {
            lost.extend(disks::look(host, &mut tally.disks));
        }
        if loss != Loss::Machines {
            host.start_daemon();
        }
        let mut facts = facts.lock().expect("facts");
        lost.extend(facts.take_troubles());
        if lost.is_empty() {
            lost.extend(look::around(host, &mut facts, loss, told, &mut tally));
        }
        if !lost.is_empty() {
            let mut told =
                format!("round {round}, {loss:?} after {left:?} acknowledgements or {delay:?}, seed {seed}:");
            lost.iter().for_each(|lost| write!(told, "\n  {lost}").expect("a string"));
            eprintln!("{told}");
            break;
        }
        if round % 10 == 9 {
            println!(
                "{} of {}, nothing lost, {:.0} s",
                round + 1,
                losses.len(),
                began.elapsed().as_secs_f64()
            );
        }
    }
    let operations = facts.lock().expect("facts").operations;
    if lost.is_empty() {
        lost.extend(look::for_leftovers(host, &facts.into_inner().expect("facts")));
    }
    println!(
        "{} power cuts, {} kills, {operations} operations, {} looks at a sandbox ({} resumed or went on, {} booted), \
         {} filesystems checked, {} losses, seed {seed}, {:.0} s",
        tally.cuts,
        tally.kills,
        tally.checked,
        tally.resumed,
        tally.booted,
        tally.disks,
        lost.len(),
        began.elapsed().as_secs_f64()
    );
    assert!(lost.is_empty(), "lost: {lost:#?}");
}
