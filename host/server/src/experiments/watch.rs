//! Changes of experiments by themselves: they start, stop, and stop arms that do harm.

use std::sync::Arc;
use std::time::Duration;

use polyskill_experiment::guard_breaches;
use serde_json::json;

use super::live::Live;
use super::{ExperimentError, Experiments, lock};

impl Experiments {
    /// Looks once at all experiments: starts those that are due, stops those that are due or do
    /// harm, and notes intervals. It blocks, and reads all units of running experiments.
    pub fn look(&self) {
        for live in self.all() {
            let mut live = lock(&live);
            if self.look_at(&mut live) {
                // An error was logged by the store; the next look tries again.
                let _ = self.keep(&live);
            }
        }
    }

    /// Looks at one experiment; true where it is to be written. A running one always is, as its
    /// intervals are noted.
    fn look_at(&self, live: &mut Live) -> bool {
        let (now, name) = (self.clock.now(), live.declaration.name.clone());
        if live.course.stopped.is_some() {
            return false;
        }
        if live.course.started.is_none() {
            let due = live.declaration.start.is_some_and(|start| start <= now);
            live.course.started = due.then_some(now);
            return due;
        }
        let report = live.report(now);
        live.course.histories = report.histories();
        for breach in guard_breaches(&report) {
            if live.course.stopped_arms.contains_key(&breach.arm) {
                continue;
            }
            tracing::warn!(
                experiment = name,
                arm = breach.arm,
                reason = breach.reason,
                "a guard stops an arm"
            );
            let event = json!({"action": "stop experiment", "by": "guard", "experiment": name,
                               "arm": breach.arm, "reason": breach.reason});
            self.audit.record(event);
            // The arm is one of the report.
            let _ = stop(live, Some(&breach.arm), &breach.reason, now);
        }
        if live.declaration.stop.is_some_and(|stop| stop <= now) {
            let _ = stop(live, None, "its time was over", now);
        }
        true
    }

    /// Looks again and again in a task of its own, every `check_seconds`, until the server is gone.
    /// A look that takes longer delays the next.
    pub fn watch(self: &Arc<Self>) {
        let (this, pause) =
            (Arc::downgrade(self), Duration::from_secs(self.settings.check_seconds.max(1)));
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(pause);
            loop {
                ticks.tick().await;
                let Some(this) = this.upgrade() else { return };
                // Reports read all units.
                let _ = tokio::task::spawn_blocking(move || this.look()).await;
            }
        });
    }
}

/// Stops an experiment, or one arm of it, in memory at the time `now`. The reason of an earlier stop stays. Where the
/// control alone is left, the experiment stops too.
pub(super) fn stop(
    live: &mut Live,
    arm: Option<&str>,
    reason: &str,
    now: u64,
) -> Result<(), ExperimentError> {
    let declaration = &live.declaration;
    let Some(arm) = arm else {
        live.course.stopped.get_or_insert(now);
        live.course.stop_reason.get_or_insert_with(|| reason.to_owned());
        return Ok(());
    };
    if arm == declaration.control || !declaration.arms.iter().any(|known| known.name == arm) {
        let (experiment, arm) = (declaration.name.clone(), arm.to_owned());
        return Err(ExperimentError::NoArm { experiment, arm });
    }
    live.course.stopped_arms.entry(arm.to_owned()).or_insert_with(|| reason.to_owned());
    if live.course.stopped_arms.len() + 1 == live.declaration.arms.len() {
        let reason = format!("the control alone is left: {reason}");
        return stop(live, None, &reason, now);
    }
    // The shares change with it.
    let weights = live.weights();
    live.course.epochs.push(weights);
    Ok(())
}
