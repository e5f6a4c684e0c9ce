//! What is counted for whoever watches the host: changes of state with their phases, and how things stand.
//!
//! # Invariants
//! - Reading them wakes no guest, asks no VMM and reads no stored file: counters in memory, and the kernel's own in
//!   `/proc`.
//! - Counters begin at zero when the daemon starts.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use types::{Boot, Bytes, Mebibytes, Thermal};

use crate::error::Result;
use crate::host::Host;
use crate::services::blocking;
use crate::template::Found;
use crate::view::{SandboxView, Status, Timings};

/// Upper bounds of a histogram's buckets, in seconds: a phase of a fork at one end, a boot under emulation at the other.
const BOUNDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// How long things took.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    /// Upper bound of each bucket in seconds, and how many took that long or less.
    pub buckets: Vec<(f64, u64)>,
    /// All together, in seconds.
    pub sum: f64,
    /// How many.
    pub count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: BOUNDS.map(|bound| (bound, 0)).into(), sum: 0.0, count: 0 }
    }
}

impl Histogram {
    fn add(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        for (bound, count) in &mut self.buckets {
            *count += u64::from(seconds <= *bound);
        }
        self.sum += seconds;
        self.count += 1;
    }
}

/// One value of a family.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// What tells it from the others of its family.
    pub labels: Vec<(&'static str, String)>,
    /// The value.
    pub value: SampleValue,
}

/// A value by its kind.
#[derive(Debug, Clone, PartialEq)]
pub enum SampleValue {
    /// It only grows.
    Counter(f64),
    /// It goes up and down.
    Gauge(f64),
    /// Durations.
    Histogram(Histogram),
}

/// Values of one name, all of one kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Family {
    /// Name, with its unit.
    pub name: &'static str,
    /// What it is.
    pub help: &'static str,
    /// The values; a family without any is not told.
    pub samples: Vec<Sample>,
}

/// What is counted while the daemon runs.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Held for an addition or a copy only.
    counts: Mutex<Counts>,
}

#[derive(Debug, Clone, Default)]
struct Counts {
    changes: BTreeMap<&'static str, Histogram>,
    phases: BTreeMap<(&'static str, &'static str), Histogram>,
    queued: Histogram,
    waiting: u64,
    stopped: BTreeMap<&'static str, u64>,
    hits: u64,
    misses: u64,
}

/// Somebody who waits for a turn to wake; counted until it is dropped.
pub(crate) struct Queued<'a> {
    metrics: &'a Metrics,
    since: Instant,
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        let mut counts = self.metrics.counts();
        counts.waiting = counts.waiting.saturating_sub(1);
        counts.queued.add(self.since.elapsed());
    }
}

/// The name of a change of state: a verb, told apart by how the guest's run began.
pub(crate) fn change(verb: &'static str, boot: Boot) -> &'static str {
    match (verb, boot) {
        ("create", Boot::Template) => "create",
        ("create", Boot::Standby) => "create_standby",
        ("create", Boot::Fork) => "fork",
        ("create", Boot::Resume | Boot::ColdBoot) => "snapshot_resume",
        ("start", Boot::ColdBoot) => "cold_boot",
        ("start", _) => "wake",
        (other, _) => other,
    }
}

impl Metrics {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A change of state was made.
    pub(crate) fn changed(&self, change: &'static str, timings: &Timings) {
        let mut counts = self.counts();
        counts.changes.entry(change).or_default().add(timings.total);
        for (phase, took) in &timings.phases {
            counts.phases.entry((change, phase)).or_default().add(*took);
        }
    }

    /// A stop kept so many bytes of a kind.
    pub(crate) fn stopped(&self, kind: &'static str, amount: Bytes) {
        *self.counts().stopped.entry(kind).or_default() += amount.0;
    }

    /// A create looked for its template.
    pub(crate) fn template(&self, found: Found) {
        let mut counts = self.counts();
        match found {
            Found::There => counts.hits += 1,
            Found::Made => counts.misses += 1,
        }
    }

    /// Somebody begins to wait for a turn to wake.
    pub(crate) fn queued(&self) -> Queued<'_> {
        self.counts().waiting += 1;
        Queued { metrics: self, since: Instant::now() }
    }
}

impl Host {
    /// Everything that is counted, of all owners.
    ///
    /// # Errors
    /// A worker thread failed.
    pub async fn metrics(&self) -> Result<Vec<Family>> {
        let services = &self.inner.services;
        let views: Vec<_> = self.inner.registry.all().iter().map(|entry| entry.shared.view()).collect();
        let counts = services.metrics.counts().clone();
        let mut families = of_changes(counts);
        families.extend(of_sandboxes(&views));
        families.push(counters(
            "bhatti_events_total",
            "Events since the daemon started, by kind.",
            services.events.counts().into_iter().map(|(kind, count)| (vec![("kind", kind)], count)),
        ));
        families.push(gauge(
            "bhatti_standby_ready",
            "Machines that stand by for the next create.",
            approximate(u64::try_from(services.standbys.ready()).unwrap_or(u64::MAX)),
        ));
        families.push(gauge(
            "bhatti_spare_vmms",
            "VMMs that were started ahead and are nobody's yet.",
            approximate(u64::try_from(services.spares.ready()).unwrap_or(u64::MAX)),
        ));
        families.extend(of_promises(services.memory.promised(), services.memory.most()));
        let (proc, pids) =
            (services.config.proc.clone(), views.iter().filter_map(|view| view.vmm_pid).collect());
        families.extend(blocking(move || Ok(of_processes(&proc, pids))).await?);
        families.retain(|family| !family.samples.is_empty());
        Ok(families)
    }
}

fn of_changes(counts: Counts) -> Vec<Family> {
    let Counts { changes, phases, queued, waiting, stopped, hits, misses } = counts;
    let histogram = |labels, of| Sample { labels, value: SampleValue::Histogram(of) };
    vec![
        Family {
            name: "bhatti_change_seconds",
            help: "How long creates, wakes, stops and other changes of a sandbox's state took.",
            samples: (changes.into_iter())
                .map(|(change, of)| histogram(vec![("change", change.to_owned())], of))
                .collect(),
        },
        Family {
            name: "bhatti_phase_seconds",
            help: "How long each phase of such a change took; phases add up to the change.",
            samples: (phases.into_iter())
                .map(|((change, phase), of)| {
                    histogram(vec![("change", change.to_owned()), ("phase", phase.to_owned())], of)
                })
                .collect(),
        },
        Family {
            name: "bhatti_wake_queue_seconds",
            help: "How long wakes and boots waited for their turn.",
            samples: vec![histogram(Vec::new(), queued)],
        },
        gauge("bhatti_wakes_waiting", "Wakes and boots that wait for their turn.", approximate(waiting)),
        counters(
            "bhatti_stop_bytes_total",
            "Guest memory at stops: private is what guests had changed, stored what that took on disk.",
            stopped.into_iter().map(|(kind, bytes)| (vec![("kind", kind.to_owned())], bytes)),
        ),
        counters(
            "bhatti_template_lookups_total",
            "Creates that found their template, and those that had to boot one.",
            [("hit", hits), ("miss", misses)]
                .map(|(result, count)| (vec![("result", result.to_owned())], count)),
        ),
    ]
}

fn of_sandboxes(views: &[SandboxView]) -> Vec<Family> {
    let count = |is: &dyn Fn(&SandboxView) -> bool| {
        approximate(u64::try_from(views.iter().filter(|view| is(view)).count()).unwrap_or(u64::MAX))
    };
    let states = [Thermal::Hot, Thermal::Warm, Thermal::Cold].map(|thermal| Sample {
        labels: vec![("thermal", thermal.to_string())],
        value: SampleValue::Gauge(count(&|view| view.thermal == thermal)),
    });
    vec![
        Family { name: "bhatti_sandboxes", help: "Sandboxes by thermal state.", samples: states.into() },
        gauge(
            "bhatti_sandboxes_broken",
            "Sandboxes that cannot be used as they are; `bhatti list` says why.",
            count(&|view| matches!(view.status, Status::Error(_))),
        ),
    ]
}

fn of_promises(promised: Mebibytes, most: Option<Mebibytes>) -> Vec<Family> {
    let mut families = vec![gauge(
        "bhatti_memory_promised_bytes",
        "Memory that the machines of this host may use together.",
        approximate(promised.bytes().0),
    )];
    families.extend(most.map(|most| {
        let help = "The most that may be promised (`serve --max-memory`).";
        gauge("bhatti_memory_promised_limit_bytes", help, approximate(most.bytes().0))
    }));
    families
}

/// What the kernel counts of the VMMs and of the host.
fn of_processes(proc: &std::path::Path, vmms: Vec<u32>) -> Vec<Family> {
    let (mut private, mut shared) = (0u64, 0u64);
    for resident in vmms.into_iter().filter_map(|pid| vm::resident(proc, pid)) {
        private = private.saturating_add(resident.private.0);
        shared = shared.saturating_add(resident.shared.0);
    }
    let mut families = vec![
        gauge(
            "bhatti_vmm_private_bytes",
            "Memory of the VMMs' own: what guests changed, and the VMMs themselves.",
            approximate(private),
        ),
        gauge(
            "bhatti_vmm_page_cache_bytes",
            "Page cache that the VMMs have mapped, counted once for each that maps it.",
            approximate(shared),
        ),
    ];
    if let Ok(pressure) = vm::host_pressure(proc) {
        families.push(gauge(
            "bhatti_host_memory_available_bytes",
            "What the host could give without swapping (MemAvailable).",
            approximate(pressure.available.0),
        ));
        families.push(gauge(
            "bhatti_host_memory_stalled_ratio",
            "Share of the last ten seconds in which some process waited for memory.",
            pressure.stalled_percent / 100.0,
        ));
    }
    families
}

fn gauge(name: &'static str, help: &'static str, value: f64) -> Family {
    let sample = Sample { labels: Vec::new(), value: SampleValue::Gauge(value) };
    Family { name, help, samples: vec![sample] }
}

fn counters(
    name: &'static str,
    help: &'static str,
    values: impl IntoIterator<Item = (Vec<(&'static str, String)>, u64)>,
) -> Family {
    let sample = |(labels, count)| Sample { labels, value: SampleValue::Counter(approximate(count)) };
    Family { name, help, samples: values.into_iter().map(sample).collect() }
}

/// As metrics are told: exact up to 2^53.
fn approximate(count: u64) -> f64 {
    let (high, low) = (u32::try_from(count >> 32).unwrap_or(u32::MAX), u32::try_from(count & 0xffff_ffff));
    f64::from(high) * 4_294_967_296.0 + f64::from(low.unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_phase_is_counted_and_buckets_grow_to_the_count() {
        let metrics = Metrics::default();
        for millis in [1, 30, 90_000] {
            let took = Duration::from_millis(millis);
            metrics.changed("wake", &Timings { phases: vec![("spawn", took)], total: took });
        }
        let counts = metrics.counts().clone();
        for of in [&counts.changes["wake"], &counts.phases[&("wake", "spawn")]] {
            assert_eq!((of.count, of.buckets[0], of.buckets[13]), (3, (0.001, 1), (30.0, 2)), "{of:?}");
            assert!(of.buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1));
            assert!((of.sum - 90.031).abs() < 1e-9);
        }
    }

    #[test]
    fn who_waits_is_counted_until_its_turn() {
        let metrics = Metrics::default();
        let seen = || {
            let counts = metrics.counts();
            (counts.waiting, counts.queued.count)
        };
        let waits = metrics.queued();
        assert_eq!(seen(), (1, 0));
        drop(waits);
        assert_eq!(seen(), (0, 1));
    }

    #[test]
    fn counts_are_told_exactly_as_far_as_a_float_goes() {
        assert_eq!(approximate((1 << 53) - 1), 9_007_199_254_740_991.0);
        assert_eq!(approximate(0), 0.0);
    }
}
