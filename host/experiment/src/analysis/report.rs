//! The report of an experiment: from totals to a value that is written as JSON and drawn by a page.
//!
//! Field names are part of the interface. Numbers that are unknown are `null`; a comparison is left out until both of its
//! arms have two units with the metric.
//!
//! In the shadow modes units are seen under several arms, so differences are those of pairs and shares of units say
//! nothing. In mode `bandit` the shares move with the rewards, so they are not checked either, and intervals are those of
//! [`Sequence::separate`]. The check of shares compares with the declared weights: whoever changes weights starts a new
//! experiment, or reads totals from the change on.

use serde::Serialize;

use super::history::{Histories, Point, extended};
use super::sequence::Sequence;
use super::verdict::{self, State, Verdict};
use super::{Difference, Estimate, cuped, fixed, mean, multiple, ratio, sample_ratio};
use crate::declaration::{Declaration, Kind, Metric, Mode, Unit, Wanted};
use crate::totals::{ArmTotals, Totals};

/// The experiment's course as the caller knows it; all times in unix seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Situation {
    /// When the report is made.
    pub now: u64,
    /// When the first unit could be assigned.
    pub started: Option<u64>,
    /// When the experiment stopped.
    pub stopped: Option<u64>,
    /// The reason for which it stopped.
    pub stop_reason: Option<String>,
}

/// Everything that is known of an experiment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The experiment's name.
    pub name: String,
    /// The stage of the experiment at the time of the report.
    pub state: Course,
    /// The way in which requests are given to arms.
    pub mode: Mode,
    /// The unit of assignment and of analysis.
    pub unit: Unit,
    /// The layer of experiments that exclude each other.
    pub layer: Option<String>,
    /// The share of units kept out of all experiments.
    pub holdout: f64,
    /// The arm that all others are compared with.
    pub control: String,
    /// When it started.
    pub started: Option<u64>,
    /// When it stopped.
    pub stopped: Option<u64>,
    /// The reason for which it stopped.
    pub stop_reason: Option<String>,
    /// The arms in the order of the declaration.
    pub arms: Vec<ArmReport>,
    /// The check of the declared shares against the units seen.
    pub sample_ratio: SampleRatio,
    /// The metrics in the order of the declaration.
    pub metrics: Vec<MetricReport>,
    /// The experiment's verdict.
    pub verdict: Verdict,
}

/// The stage of an experiment.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Course {
    /// Not started.
    Scheduled,
    /// Started and not stopped.
    Running,
    /// Stopped.
    Stopped,
}

/// The units and requests of one arm.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ArmReport {
    /// The arm's name.
    pub name: String,
    /// Its weight over the sum of weights.
    pub weight: f64,
    /// Units seen.
    pub units: u64,
    /// Requests served.
    pub requests: u64,
    /// Requests whose router gave up.
    pub fallbacks: u64,
    /// Requests that failed.
    pub faults: u64,
}

/// The check of the declared shares against the units seen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SampleRatio {
    /// The always-valid p-value; 1 in modes without fixed shares.
    pub p_value: f64,
    /// True where the p-value is below [`sample_ratio::LEVEL`]; all verdicts are blocked then.
    pub mismatch: bool,
    /// Declared shares, in the order of the arms.
    pub expected: Vec<f64>,
    /// Units seen.
    pub observed: Vec<u64>,
}

/// One metric under all arms.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MetricReport {
    /// The metric's name.
    pub name: String,
    /// The average over units.
    pub kind: Kind,
    /// The better direction.
    pub wanted: Wanted,
    /// True for a metric that only guards.
    pub guard: bool,
    /// The greatest harm that a guard accepts, in the metric's own units.
    #[serde(skip)]
    pub harm: Option<f64>,
    /// Values by arm, as measured, without adjustment.
    pub arms: Vec<ArmValue>,
    /// Every other arm with the control.
    pub comparisons: Vec<Comparison>,
    /// Earlier comparisons.
    pub history: Vec<Point>,
}

/// A metric under one arm.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ArmValue {
    /// The arm's name.
    pub arm: String,
    /// Units with observations of the metric.
    pub units: u64,
    /// The mean or ratio; `None` without units.
    pub value: Option<f64>,
}

/// An arm with the control.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The arm's name.
    pub arm: String,
    /// The arm's value minus the control's, adjusted where `cuped` says so.
    pub difference: f64,
    /// The difference over the control's size; `None` where that is zero.
    pub relative: Option<f64>,
    /// The interval that holds at every look once both arms have the minimum of units, at the declared level over the number
    /// of comparisons that carry the verdict. Guards have the declared level, each by itself.
    pub always_valid: [f64; 2],
    /// The interval for a single look at a planned end, at the declared level. No verdict reads it.
    pub fixed_horizon: [f64; 2],
    /// The always-valid p-value.
    pub p_value: f64,
    /// The same by Holm over all comparisons that carry the verdict; a guard's own p-value.
    pub adjusted_p_value: f64,
    /// True where values from before the experiment narrowed the intervals.
    pub cuped: bool,
    /// The verdict on this comparison.
    pub verdict: verdict::Comparative,
    /// True where both arms have the minimum of units; else no verdict reads the comparison.
    #[serde(skip)]
    pub is_ready: bool,
}

/// The report at a time, with the histories of the last one taken on.
pub fn report(
    declaration: &Declaration,
    totals: &Totals,
    situation: &Situation,
    histories: &Histories,
) -> Report {
    let arms = arms(declaration, totals);
    let sample_ratio = sample_ratio(declaration, &arms);
    let of = |metric: &Metric| metric_report(declaration, totals, metric);
    let mut metrics: Vec<MetricReport> = declaration.metrics.iter().map(of).collect();
    adjust(declaration, &mut metrics);
    for metric in &mut metrics {
        verdict::compare(metric, declaration.level, sample_ratio.mismatch);
        let old = histories.get(&metric.name).map_or(&[][..], Vec::as_slice);
        metric.history = extended(old, points(metric, situation.now));
    }
    let verdict = if declaration.mode == Mode::DecisionShadow {
        let reason = "a decision shadow says how alike arms decide, not which of them is better";
        let comparisons = metrics.iter_mut().flat_map(|metric| &mut metric.comparisons);
        comparisons.for_each(|comparison| comparison.verdict = verdict::Comparative::Undecided);
        Verdict { state: State::Undecided, arm: None, reason: reason.to_owned() }
    } else if sample_ratio.mismatch {
        let reason = verdict::mismatch(&sample_ratio);
        Verdict { state: State::Blocked, arm: None, reason }
    } else {
        verdict::overall(declaration, &metrics)
    };
    Report {
        name: declaration.name.clone(),
        state: course(situation),
        mode: declaration.mode,
        unit: declaration.unit,
        layer: declaration.layer.clone(),
        holdout: declaration.holdout,
        control: declaration.control.clone(),
        started: situation.started,
        stopped: situation.stopped,
        stop_reason: situation.stop_reason.clone(),
        arms,
        sample_ratio,
        metrics,
        verdict,
    }
}

impl Report {
    /// The histories that the next report takes on.
    pub fn histories(&self) -> Histories {
        let of = |metric: &MetricReport| (metric.name.clone(), metric.history.clone());
        self.metrics.iter().map(of).collect()
    }
}

/// The stage at `now`, by the times of start and stop.
fn course(situation: &Situation) -> Course {
    let is_past = |time: Option<u64>| time.is_some_and(|time| time <= situation.now);
    if is_past(situation.stopped) {
        Course::Stopped
    } else if is_past(situation.started) {
        Course::Running
    } else {
        Course::Scheduled
    }
}

/// The arms in the order of the declaration; an arm without requests has zeros.
fn arms(declaration: &Declaration, totals: &Totals) -> Vec<ArmReport> {
    let none = ArmTotals::default();
    let pairs = declaration.arms.iter().zip(declaration.shares());
    pairs
        .map(|(arm, weight)| {
            let totals = totals.arms.get(&arm.name).unwrap_or(&none);
            ArmReport {
                name: arm.name.clone(),
                weight,
                units: totals.units.len() as u64,
                requests: totals.requests,
                fallbacks: totals.fallbacks,
                faults: totals.faults,
            }
        })
        .collect()
}

/// The check of the shares, which is made in mode `split` alone.
fn sample_ratio(declaration: &Declaration, arms: &[ArmReport]) -> SampleRatio {
    let expected: Vec<f64> = arms.iter().map(|arm| arm.weight).collect();
    let observed: Vec<u64> = arms.iter().map(|arm| arm.units).collect();
    let is_checked = declaration.mode == Mode::Split;
    let p_value = if is_checked { sample_ratio::sequential(&observed, &expected) } else { 1.0 };
    SampleRatio { p_value, mismatch: p_value < sample_ratio::LEVEL, expected, observed }
}

/// A metric's values and comparisons. Its history and the verdicts are set later, when all metrics
/// are known.
fn metric_report(declaration: &Declaration, totals: &Totals, metric: &Metric) -> MetricReport {
    let estimate = |name: &str| estimate(metric, totals, name);
    let named: Vec<(&str, Option<Estimate<'_>>)> =
        declaration.arms.iter().map(|arm| (arm.name.as_str(), estimate(&arm.name))).collect();
    let value = |(name, estimate): &(&str, Option<Estimate<'_>>)| ArmValue {
        arm: (*name).to_owned(),
        units: estimate.as_ref().map_or(0, Estimate::units),
        value: estimate.as_ref().map(|estimate| estimate.value),
    };
    let arms = named.iter().map(value).collect();
    let is_control = |name: &str| name == declaration.control;
    let control = named.iter().find(|(name, _)| is_control(name)).and_then(|(_, e)| e.as_ref());
    let others = named.iter().filter(|(name, _)| !is_control(name));
    let comparisons = others
        .filter_map(|(name, estimate)| {
            comparison(declaration, metric, name, control?, estimate.as_ref()?)
        })
        .collect();
    MetricReport {
        name: metric.name.clone(),
        kind: metric.kind,
        wanted: metric.wanted,
        guard: metric.guard.is_some(),
        harm: metric.guard.map(|guard| guard.harm),
        arms,
        comparisons,
        history: Vec::new(),
    }
}

/// An arm's estimate of a metric; `None` while no unit has an observation.
fn estimate<'a>(metric: &'a Metric, totals: &'a Totals, arm: &str) -> Option<Estimate<'a>> {
    let units = totals.units(arm, &metric.name);
    match metric.kind {
        Kind::Mean => mean::estimate(units),
        Kind::Ratio => ratio::estimate(units),
    }
}

/// The comparison of an arm with the control; `None` until both have two units. The adjusted
/// p-value is the plain one here, and the verdict is undecided: both depend on the other
/// comparisons.
fn comparison(
    declaration: &Declaration,
    metric: &Metric,
    name: &str,
    control: &Estimate<'_>,
    arm: &Estimate<'_>,
) -> Option<Comparison> {
    let adjusted = if metric.covariate { cuped::adjust(control, arm) } else { None };
    let cuped = adjusted.is_some();
    let difference = match &adjusted {
        Some((control, arm)) => Difference::between(control, arm)?,
        None => Difference::between(control, arm)?,
    };
    let level = match metric.guard {
        Some(_) => declaration.level,
        None => declaration.level / carrying(declaration) as f64,
    };
    let (always_valid, p_value) = look(declaration, name, level, &difference);
    let size = control.value.abs();
    let least = difference.control.units.min(difference.arm.units);
    Some(Comparison {
        arm: name.to_owned(),
        difference: difference.difference,
        relative: (size > 0.0).then(|| difference.difference / size),
        always_valid,
        fixed_horizon: fixed::interval(&difference, declaration.level),
        p_value,
        adjusted_p_value: p_value,
        cuped,
        verdict: verdict::Comparative::Undecided,
        is_ready: least >= declaration.minimum_units,
    })
}

/// The interval and the p-value that hold at every look. In mode `bandit` by
/// [`Sequence::separate`], tuned to half of the planned units, as each arm's own units count there.
fn look(
    declaration: &Declaration,
    name: &str,
    level: f64,
    difference: &Difference,
) -> ([f64; 2], f64) {
    let planned = planned_units(declaration, name);
    if declaration.mode == Mode::Bandit {
        let sequence = Sequence::tuned(level, planned / 2.0);
        return (sequence.separate(difference), sequence.separate_p_value(difference));
    }
    let sequence = Sequence::tuned(level, planned);
    (sequence.interval(difference), sequence.p_value(difference))
}

/// The planned units under the control or the arm: all in the shadow modes, else by their shares.
fn planned_units(declaration: &Declaration, name: &str) -> f64 {
    let planned = declaration.planned_units as f64;
    if declaration.mode.is_shadow() {
        return planned;
    }
    let pairs = declaration.arms.iter().zip(declaration.shares());
    let is_one = |arm: &str| arm == name || arm == declaration.control;
    let shares = pairs.filter(|(arm, _)| is_one(&arm.name)).map(|(_, share)| share);
    planned * shares.sum::<f64>()
}

/// The number of comparisons that carry the verdict: every other arm in every metric that is no
/// guard. At least 1, so that a level can be divided by it.
fn carrying(declaration: &Declaration) -> usize {
    let metrics = declaration.metrics.iter().filter(|metric| metric.guard.is_none()).count();
    (metrics * (declaration.arms.len() - 1)).max(1)
}

/// Holm over all comparisons that carry the verdict; those that cannot be computed yet count with p = 1.
fn adjust(declaration: &Declaration, metrics: &mut [MetricReport]) {
    let carriers = metrics.iter_mut().filter(|metric| !metric.guard);
    let comparisons: Vec<&mut Comparison> =
        carriers.flat_map(|metric| &mut metric.comparisons).collect();
    let mut p_values: Vec<f64> = comparisons.iter().map(|comparison| comparison.p_value).collect();
    p_values.resize(carrying(declaration).max(p_values.len()), 1.0);
    for (comparison, adjusted) in comparisons.into_iter().zip(multiple::holm(&p_values)) {
        comparison.adjusted_p_value = adjusted;
    }
}

/// Intervals mean little before both arms have the minimum of units, and would make the later ones hard to see.
fn points(metric: &MetricReport, at: u64) -> Vec<Point> {
    let point = |comparison: &Comparison| Point {
        at,
        arm: comparison.arm.clone(),
        difference: comparison.difference,
        low: comparison.always_valid[0],
        high: comparison.always_valid[1],
    };
    metric.comparisons.iter().filter(|comparison| comparison.is_ready).map(point).collect()
}

#[cfg(test)]
mod tests;
