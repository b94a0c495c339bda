//! Series of experiments in Prometheus' text.

use super::{Experiments, lock};

/// The counters of one arm at a scrape.
#[derive(Clone, Debug)]
struct ArmCounters {
    /// The experiment's name, a label.
    experiment: String,
    /// The arm's name, a label.
    arm: String,
    /// Units that were exposed: they had a request under this arm.
    units: u64,
    /// Requests that ended under this arm, those of shadows too.
    requests: u64,
    /// Of these, those in which the base answered for the router.
    fallbacks: u64,
    /// Of these, those that failed.
    faults: u64,
}

impl Experiments {
    /// Counters of every arm of the experiments that have not stopped.
    fn counters(&self) -> Vec<ArmCounters> {
        let mut counters = Vec::new();
        for live in self.all() {
            let live = lock(&live);
            // Those that have stopped may be any number.
            if live.course.stopped.is_some() {
                continue;
            }
            for arm in &live.declaration.arms {
                let totals = live.totals.arms.get(&arm.name);
                counters.push(ArmCounters {
                    experiment: live.declaration.name.clone(),
                    arm: arm.name.clone(),
                    units: totals.map_or(0, |totals| totals.units.len() as u64),
                    requests: totals.map_or(0, |totals| totals.requests),
                    fallbacks: totals.map_or(0, |totals| totals.fallbacks),
                    faults: totals.map_or(0, |totals| totals.faults),
                });
            }
        }
        counters
    }

    /// Appends series for each arm, in Prometheus' text: experiments and arms are bounded, and
    /// units are no labels.
    pub(crate) fn write_metrics(&self, text: &mut String) {
        use std::fmt::Write as _;
        let counters = self.counters();
        /// The counter of a family.
        type Of = fn(&ArmCounters) -> u64;
        let families: [(&str, &str, &str, Of); 4] = [
            ("units", "gauge", "Units of an arm.", |arm| arm.units),
            ("requests", "counter", "Requests that an arm has answered.", |arm| arm.requests),
            ("fallbacks", "counter", "Requests whose router gave up.", |arm| arm.fallbacks),
            ("faults", "counter", "Requests that failed under an arm.", |arm| arm.faults),
        ];
        for (name, kind, help, of) in families {
            let family = format!("polyskill:experiment_{name}");
            let suffix = if kind == "counter" { "_total" } else { "" };
            let _ = writeln!(text, "# HELP {family} {help}\n# TYPE {family} {kind}");
            for arm in &counters {
                // Names hold letters, digits, `-`, `_` and `.`.
                let labels = format!("experiment=\"{}\",arm=\"{}\"", arm.experiment, arm.arm);
                let _ = writeln!(text, "{family}{suffix}{{{labels}}} {}", of(arm));
            }
        }
        let dropped = "polyskill:experiment_shadows_dropped";
        let _ = writeln!(
            text,
            "# HELP {dropped} Requests that no shadow ran again for want of room.\n\
             # TYPE {dropped} counter\n{dropped}_total {}",
            self.shadows_dropped()
        );
    }
}
