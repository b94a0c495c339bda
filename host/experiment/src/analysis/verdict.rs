//! Verdicts: on one comparison, on the experiment, and on an arm that does harm.
//!
//! A verdict may be acted on at the look that first gives it: the error rate covers all looks. Later looks read their own
//! intervals, so a caller who goes on may see a narrow verdict become undecided again.

use serde::Serialize;

use super::report::{Comparison, MetricReport, Report, SampleRatio};
use crate::declaration::Declaration;

/// The verdict on one comparison.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Comparative {
    /// The arm is better than the control.
    Better,
    /// The arm is worse than the control.
    Worse,
    /// Nothing yet.
    Undecided,
    /// Nothing, as units were not dealt as declared.
    Blocked,
}

/// The state of the experiment's answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Not yet, or the metrics contradict each other.
    Undecided,
    /// There is an arm to keep.
    Decided,
    /// Units were not dealt as declared, so nothing may be concluded.
    Blocked,
}

/// The experiment's answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// The state of the answer.
    pub state: State,
    /// The arm to keep.
    pub arm: Option<String>,
    /// The reason as a sentence for people.
    pub reason: String,
}

/// An arm that does more harm than its guard accepts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Breach {
    /// The arm to be stopped.
    pub arm: String,
    /// The guarding metric.
    pub metric: String,
    /// The reason as a sentence for people, with the interval.
    pub reason: String,
}

/// Arms that are to be stopped: their whole always-valid interval lies beyond the accepted harm. A mismatch of the
/// sample ratio does not silence a guard, as stopping is the safe side. Each guard errs at the declared level by itself.
pub fn guard_breaches(report: &Report) -> Vec<Breach> {
    breaches(&report.metrics)
}

/// One breach for each guarding metric and each arm beyond its accepted harm, in the metrics'
/// order. Arms below the minimum of units are passed over.
fn breaches(metrics: &[MetricReport]) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for metric in metrics {
        let Some(harm) = metric.harm else { continue };
        for comparison in metric.comparisons.iter().filter(|comparison| comparison.is_ready) {
            let [low, high] = comparison.always_valid;
            // The least harm that the interval holds.
            let least = if metric.wanted.sign() > 0.0 { -high } else { low };
            if least > harm {
                let moves = if comparison.difference < 0.0 { "lowers" } else { "raises" };
                let reason = format!(
                    "`{}` {moves} `{}` by {} (always-valid interval {} to {}), and a harm of at most {} is accepted",
                    comparison.arm,
                    metric.name,
                    short(comparison.difference.abs()),
                    short(low),
                    short(high),
                    short(harm)
                );
                let (arm, metric) = (comparison.arm.clone(), metric.name.clone());
                breaches.push(Breach { arm, metric, reason });
            }
        }
    }
    breaches
}

/// Sets the verdicts of a metric's comparisons: by the adjusted p-value, which is at most the level
/// wherever the interval does not hold zero. `level` is the declared one, as the p-values are
/// adjusted already.
pub(super) fn compare(metric: &mut MetricReport, level: f64, mismatch: bool) {
    let sign = metric.wanted.sign();
    for comparison in &mut metric.comparisons {
        let is_clear = comparison.is_ready && comparison.adjusted_p_value <= level;
        comparison.verdict = if mismatch {
            Comparative::Blocked
        } else if !is_clear {
            Comparative::Undecided
        } else if comparison.difference * sign > 0.0 {
            Comparative::Better
        } else {
            Comparative::Worse
        };
    }
}

/// One arm over the metrics that carry the verdict.
struct Standing<'a> {
    /// The arm's name.
    arm: &'a str,
    /// Metrics in which the arm is better than the control.
    better: Vec<&'a str>,
    /// Metrics in which it is worse.
    worse: Vec<&'a str>,
    /// Guards that it breaks.
    breached: Vec<&'a str>,
    /// The least adjusted p-value of its comparisons; 1 without any.
    least_p_value: f64,
}

impl Standing<'_> {
    /// Better in some metric, worse in none, and no guard broken.
    fn wins(&self) -> bool {
        !self.better.is_empty() && self.worse.is_empty() && self.breached.is_empty()
    }

    /// A broken guard, or worse in some metric and better in none.
    fn loses(&self) -> bool {
        !self.breached.is_empty() || self.better.is_empty() && !self.worse.is_empty()
    }

    /// Better in one metric and worse in another.
    fn contradicts(&self) -> bool {
        !self.better.is_empty() && !self.worse.is_empty()
    }
}

/// The arm to keep: one that is better in some metric, worse in none and breaks no guard; of
/// several the one that is better in most. The control, where every other arm is only worse or
/// breaks a guard. Ties between winners go to the one with the least p-value. Nothing is decided
/// while an arm is open, unless another wins.
pub(super) fn overall(declaration: &Declaration, metrics: &[MetricReport]) -> Verdict {
    let breaches = breaches(metrics);
    let others = declaration.arms.iter().filter(|arm| arm.name != declaration.control);
    let standings: Vec<Standing<'_>> =
        others.map(|arm| standing(&arm.name, metrics, &breaches)).collect();
    let rank = |a: &&Standing<'_>, b: &&Standing<'_>| {
        let more = a.better.len().cmp(&b.better.len());
        more.then(b.least_p_value.total_cmp(&a.least_p_value))
    };
    if let Some(best) = standings.iter().filter(|standing| standing.wins()).max_by(rank) {
        let reason =
            format!("`{}` is better in {} and worse in none", best.arm, list(&best.better));
        return Verdict { state: State::Decided, arm: Some(best.arm.to_owned()), reason };
    }
    if standings.iter().all(Standing::loses) {
        let reason = standings.iter().map(loss).collect::<Vec<_>>().join("; ");
        return Verdict { state: State::Decided, arm: Some(declaration.control.clone()), reason };
    }
    let reason = match standings.iter().find(|standing| standing.contradicts()) {
        Some(Standing { arm, better, worse, .. }) => {
            format!("`{arm}` is better in {} and worse in {}", list(better), list(worse))
        }
        None => open(&standings).unwrap_or_else(|| waiting(declaration, metrics)),
    };
    Verdict { state: State::Undecided, arm: None, reason }
}

/// Arms that are out already, and those that nothing is known of; nothing where no arm is out. The
/// reason of an experiment without an answer yet.
fn open(standings: &[Standing<'_>]) -> Option<String> {
    let (lost, left): (Vec<_>, Vec<_>) = standings.iter().partition(|standing| standing.loses());
    let reasons: Vec<String> = lost.into_iter().map(loss).collect();
    let left: Vec<&str> = left.iter().map(|standing| standing.arm).collect();
    let are = if left.len() == 1 { "is" } else { "are" };
    let reasons = (!reasons.is_empty()).then(|| reasons.join("; "))?;
    Some(format!("{reasons}; {} {are} undecided", list(&left)))
}

/// The standing of one arm, from the verdicts that [`compare`] has set before.
fn standing<'a>(arm: &'a str, metrics: &'a [MetricReport], breaches: &'a [Breach]) -> Standing<'a> {
    let of = |metric: &'a MetricReport| {
        let is_arm = |comparison: &&Comparison| comparison.arm == arm;
        metric.comparisons.iter().find(is_arm).map(|comparison| (metric.name.as_str(), comparison))
    };
    let carriers: Vec<_> = metrics.iter().filter(|metric| !metric.guard).filter_map(of).collect();
    let with = |verdict: Comparative| {
        carriers.iter().filter(|(_, c)| c.verdict == verdict).map(|(name, _)| *name).collect()
    };
    let p_values = carriers.iter().map(|(_, comparison)| comparison.adjusted_p_value);
    Standing {
        arm,
        better: with(Comparative::Better),
        worse: with(Comparative::Worse),
        breached: breaches.iter().filter(|b| b.arm == arm).map(|b| b.metric.as_str()).collect(),
        least_p_value: p_values.fold(1.0, f64::min),
    }
}

/// The clause that says in what an arm lost.
fn loss(standing: &Standing<'_>) -> String {
    let names: Vec<&str> = standing.worse.iter().chain(&standing.breached).copied().collect();
    format!("`{}` is worse in {}", standing.arm, list(&names))
}

/// The sentence that says why a mismatch blocks the experiment.
pub(super) fn mismatch(found: &SampleRatio) -> String {
    let pairs = found.observed.iter().zip(&found.expected);
    let parts: Vec<String> =
        pairs.map(|(units, share)| format!("{units} by a share of {}", short(*share))).collect();
    format!(
        "units were not dealt as declared: {} (always-valid p-value {:.0e})",
        parts.join(", "),
        found.p_value
    )
}

/// The sentence that says what an undecided experiment waits for: units, or intervals without zero.
fn waiting(declaration: &Declaration, metrics: &[MetricReport]) -> String {
    let carriers: Vec<&MetricReport> = metrics.iter().filter(|metric| !metric.guard).collect();
    if carriers.is_empty() {
        return "no metric carries a verdict".to_owned();
    }
    let ready = |metric: &&&MetricReport| metric.comparisons.iter().any(|c| c.is_ready);
    let names: Vec<&str> = carriers.iter().filter(ready).map(|m| m.name.as_str()).collect();
    if !names.is_empty() {
        return format!("the intervals of {} hold zero", list(&names));
    }
    let units = carriers.iter().flat_map(|metric| metric.arms.iter().map(|arm| arm.units));
    let (least, minimum) = (units.min().unwrap_or_default(), declaration.minimum_units);
    format!("an arm has {least} units of the {minimum} that a verdict needs")
}

/// Names in backticks, with commas between them.
fn list(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

/// Three significant digits, and all digits before the point.
fn short(value: f64) -> String {
    let magnitude = if value == 0.0 { 0.0 } else { value.abs().log10().floor() };
    format!("{value:.*}", (2.0 - magnitude).clamp(0.0, 12.0) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits() {
        let shown = [0.123_456, -0.000_123_4, 12_345.6, 0.0, 1.0].map(short);
        assert_eq!(shown, ["0.123", "-0.000123", "12346", "0.00", "1.00"]);
    }
}
