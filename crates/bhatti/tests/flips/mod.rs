//! Damage at random places of every kind of file, and whether it is found before a guest runs on it.
//!
//! A place with something of each kind is made once and kept as it was. Each round damages one file, checks the store
//! (`fsck`, as before an upgrade or by a timer), starts the daemon, uses the file, and puts everything back. What came
//! of it is one of:
//!
//! | outcome | what happened |
//! |---|---|
//! | at use | the verb was refused in one line that names whose file it is and the way out, and no guest ran |
//! | by fsck | `fsck` names the file; the verb did not look at it |
//! | harmless | nothing reads these bytes, or what was made of them is the same: everything was there, unchanged |
//! | unpromised | what a guest or a user wrote, of which nobody keeps a checksum; see [`Kind::unpromised`] |
//! | a loss | anything else |

#![allow(dead_code, reason = "each test binary uses a part")]

mod damage;
mod kinds;
mod place;

use std::collections::BTreeMap;
use std::time::Instant;

use kinds::KINDS;
use place::Place;

/// What came of one piece of damage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    AtUse,
    ByFsck,
    Harmless,
    Unpromised,
    Loss(String),
}

/// Damages each kind in turn, `flips` times in all. Panics when anything was lost; prints what came of each kind.
pub fn suffer(program: &str, flips: usize) {
    let (seed, began) = (testkit::seed("BHATTI_FLIP_SEED"), Instant::now());
    let mut choices = testkit::Choices::new(seed, 0);
    let mut place = Place::new(program);
    let mut table: BTreeMap<&str, [usize; 4]> = BTreeMap::new();
    let mut losses = Vec::new();
    for number in 0..flips {
        let kind = &KINDS[number % KINDS.len()];
        let (what, outcome) = place.round(kind, &mut choices);
        let row = table.entry(kind.name).or_default();
        match outcome {
            Outcome::AtUse => row[0] += 1,
            Outcome::ByFsck => row[1] += 1,
            Outcome::Harmless => row[2] += 1,
            Outcome::Unpromised => row[3] += 1,
            Outcome::Loss(why) => {
                let loss = format!("flip {number}, {what}: {why}");
                eprintln!("{loss}");
                losses.push(loss);
            }
        }
    }
    println!("| file | at use | by fsck | harmless | unpromised |\n|---|---|---|---|---|");
    for (kind, [used, checked, harmless, unpromised]) in &table {
        println!("| {kind} | {used} | {checked} | {harmless} | {unpromised} |");
    }
    let sum = |at: usize| table.values().map(|row| row[at]).sum::<usize>();
    println!(
        "flips: {flips}, found: {} ({} at use, {} by fsck), harmless: {}, unpromised: {}, losses: {}, seed {seed}, {:.0} s",
        sum(0) + sum(1),
        sum(0),
        sum(1),
        sum(2),
        sum(3),
        losses.len(),
        began.elapsed().as_secs_f64()
    );
    assert!(losses.is_empty(), "lost: {losses:#?}");
}
