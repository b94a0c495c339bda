//! The checks of a declaration. All problems are reported at once, each with the field, what was
//! found and what is expected.

use std::collections::BTreeSet;
use std::fmt::{Debug, Display};

use super::{Arm, Bandit, Declaration, Metric, Mode, Policy};
use crate::assignment::{HOLDOUT_SEED, LAYER_PREFIX};

/// More arms than this make every comparison too weak to be worth its units, and a report too long to be read.
const MAX_ARMS: usize = 20;

/// Problems found so far.
#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    /// Notes a problem with `field` unless `holds`. The problem is one sentence: the field, what
    /// was found, and what is expected.
    fn expect(&mut self, holds: bool, field: impl Display, found: impl Debug, expected: &str) {
        if !holds {
            self.0.push(format!("`{field}` is {found:?}; expected {expected}"));
        }
    }

    /// Checks a name: 1 to 100 letters, digits, `-`, `_` or `.`, of which no `.` comes first.
    fn name(&mut self, field: impl Display, name: &str) {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let plain = (1..=100).contains(&name.len()) && name.chars().all(fits);
        let holds = plain && !name.starts_with('.');
        self.expect(
            holds,
            field,
            name,
            "1 to 100 letters, digits, `-`, `_` or `.`, not a `.` first",
        );
    }

    /// Notes each name that an earlier item of the list `field` has already.
    fn unique<'a>(&mut self, field: &str, names: impl Iterator<Item = &'a str>) {
        let mut seen = BTreeSet::new();
        for (at, name) in names.enumerate() {
            let is_new = seen.insert(name);
            self.expect(is_new, format_args!("{field}[{at}].name"), name, "a name used once");
        }
    }

    /// `Ok` without problems, else all of them in the order in which they were found.
    fn result(self) -> Result<(), Vec<String>> {
        if self.0.is_empty() { Ok(()) } else { Err(self.0) }
    }
}

/// Checks a declaration by itself. See [`Declaration::validate`].
pub(super) fn validate(declaration: &Declaration) -> Result<(), Vec<String>> {
    let mut problems = Problems::default();
    naming(&mut problems, declaration);
    shares_and_times(&mut problems, declaration);
    analysis(&mut problems, declaration);
    arms(&mut problems, declaration);
    problems.unique("metrics", declaration.metrics.iter().map(|metric| metric.name.as_str()));
    for (at, declared) in declaration.metrics.iter().enumerate() {
        metric(&mut problems, at, declared);
    }
    match &declaration.bandit {
        Some(settings) => bandit(&mut problems, declaration, settings),
        None => {
            let holds = declaration.mode != Mode::Bandit;
            problems.expect(
                holds,
                "bandit",
                format_args!("missing"),
                "settings where `mode` is `bandit`",
            );
        }
    }
    problems.result()
}

/// The experiment's name, its seed and its layer.
fn naming(problems: &mut Problems, declaration: &Declaration) {
    problems.name("name", &declaration.name);
    let seed = declaration.seed();
    // The seeds of holdout and layers are kept apart, else the arms would depend on them.
    let is_free = seed != HOLDOUT_SEED && !seed.starts_with(LAYER_PREFIX) && !seed.contains('\0');
    let expected = "a seed other than `holdout`, not beginning with `layer:`, without zero bytes";
    problems.expect(is_free && !seed.is_empty(), "seed", seed, expected);
    if let Some(layer) = &declaration.layer {
        problems.name("layer", layer);
    }
}

/// The share of the layer, the holdout, start and stop, and the sample of a full shadow.
fn shares_and_times(problems: &mut Problems, declaration: &Declaration) {
    let Declaration { mode, layer, share, holdout, start, stop, sample, .. } = declaration;
    if let Some(share @ [low, high]) = share {
        let holds = 0.0 <= *low && low < high && *high <= 1.0;
        problems.expect(holds, "share", share, "[start, end] with 0 <= start < end <= 1");
        problems.expect(layer.is_some(), "share", share, "no share where `layer` is not given");
    }
    problems.expect((0.0..1.0).contains(holdout), "holdout", holdout, "at least 0 and below 1");
    if let (Some(start), Some(stop)) = (start, stop) {
        problems.expect(start < stop, "stop", stop, "a time after `start`");
    }
    if let Some(sample) = sample {
        let holds = *sample > 0.0 && *sample <= 1.0;
        problems.expect(holds, "sample", sample, "above 0 and at most 1");
        let is_full = *mode == Mode::FullShadow;
        problems.expect(is_full, "sample", sample, "no sample unless `mode` is `full_shadow`");
    }
}

/// The error rate and the numbers of units that the intervals are tuned to.
fn analysis(problems: &mut Problems, declaration: &Declaration) {
    let Declaration { level, minimum_units, planned_units, .. } = declaration;
    problems.expect(*level > 0.0 && *level <= 0.5, "level", level, "above 0 and at most 0.5");
    problems.expect(*minimum_units >= 2, "minimum_units", minimum_units, "at least 2");
    let holds = planned_units >= minimum_units;
    problems.expect(holds, "planned_units", planned_units, "at least `minimum_units`");
}

/// The list of arms as a whole: their number, names, weights in sum, and the control. A control
/// without a weight is refused in mode `split` alone, where it would never be seen.
fn arms(problems: &mut Problems, declaration: &Declaration) {
    let Declaration { arms, control, mode, .. } = declaration;
    problems.expect((2..=MAX_ARMS).contains(&arms.len()), "arms", arms.len(), "2 to 20 arms");
    problems.unique("arms", arms.iter().map(|arm| arm.name.as_str()));
    for (at, declared) in arms.iter().enumerate() {
        arm(problems, at, declared);
    }
    let total: f64 = arms.iter().map(|arm| arm.weight).sum();
    problems.expect(total > 0.0 && total.is_finite(), "arms", total, "weights with a sum above 0");
    let found = arms.iter().find(|arm| arm.name == *control);
    problems.expect(found.is_some(), "control", control, "the name of an arm");
    let has_weight = found.is_none_or(|arm| arm.weight > 0.0);
    let holds = has_weight || *mode != Mode::Split;
    problems.expect(holds, "control", control, "an arm with a weight above 0");
}

/// One arm of the list, at index `at`.
fn arm(problems: &mut Problems, at: usize, arm: &Arm) {
    let field = |name: &str| format!("arms[{at}].{name}");
    problems.name(field("name"), &arm.name);
    let weight = arm.weight;
    let holds = weight.is_finite() && weight >= 0.0;
    problems.expect(holds, field("weight"), weight, "a finite number of at least 0");
    if let Some(router) = &arm.route.router {
        let name = &router.name;
        let wanted = "the name of a router, which `params` and `modules` are for";
        problems.expect(!name.is_empty(), field("router"), name, wanted);
        for pattern in &router.modules {
            problems.expect(!pattern.is_empty(), field("modules"), pattern, "patterns of names");
        }
    }
    for adapter in arm.route.adapters() {
        let holds = !adapter.name.is_empty() && adapter.weight.is_finite();
        let found = (&adapter.name, adapter.weight);
        problems.expect(holds, field("adapters"), found, "names with finite weights");
    }
}

/// One metric of the list, at index `at`.
fn metric(problems: &mut Problems, at: usize, metric: &Metric) {
    let field = |name: &str| format!("metrics[{at}].{name}");
    problems.name(field("name"), &metric.name);
    if let Some(guard) = metric.guard {
        let holds = guard.harm.is_finite() && guard.harm >= 0.0;
        problems.expect(holds, field("guard.harm"), guard.harm, "a finite number of at least 0");
    }
    if let Some([low, high]) = metric.bounded {
        let holds = low.is_finite() && high.is_finite() && low < high;
        problems.expect(holds, field("bounded"), [low, high], "[low, high] with low < high");
    }
}

/// The settings of a bandit. A floor above 1 / number of arms would leave less than nothing to the
/// policy.
fn bandit(problems: &mut Problems, declaration: &Declaration, bandit: &Bandit) {
    let is_bandit = declaration.mode == Mode::Bandit;
    problems.expect(is_bandit, "bandit", bandit, "no settings unless `mode` is `bandit`");
    let greatest = 1.0 / declaration.arms.len() as f64;
    let holds = bandit.floor > 0.0 && bandit.floor <= greatest;
    problems.expect(holds, "bandit.floor", bandit.floor, "above 0 and at most 1 / number of arms");
    if let Policy::EpsilonGreedy { epsilon } = bandit.policy {
        let holds = (0.0..=1.0).contains(&epsilon);
        problems.expect(holds, "bandit.policy.epsilon_greedy.epsilon", epsilon, "0 to 1");
    }
    let is_declared = declaration.metric(&bandit.reward).is_some();
    problems.expect(is_declared, "bandit.reward", &bandit.reward, "the name of a metric");
}

/// Checks what only shows among experiments that run at the same time: names and seeds are used once, and shares of a
/// layer do not overlap.
///
/// # Errors
/// Every problem as a sentence, with the two experiments.
pub fn validate_together(declarations: &[Declaration]) -> Result<(), Vec<String>> {
    let mut problems = Problems::default();
    for (at, second) in declarations.iter().enumerate() {
        for first in &declarations[..at] {
            pair(&mut problems, first, second);
        }
    }
    problems.result()
}

/// Two experiments that run at the same time: names, seeds, and shares of a common layer.
fn pair(problems: &mut Problems, first: &Declaration, second: &Declaration) {
    let (one, other) = (&first.name, &second.name);
    problems.expect(one != other, format_args!("{other}.name"), other, "a name used once");
    let expected =
        format!("another seed than that of `{one}`, else their arms depend on each other");
    let differ = one == other || first.seed() != second.seed();
    problems.expect(differ, format_args!("{other}.seed"), second.seed(), &expected);
    if let (Some((layer, share)), Some((with, taken))) = (second.layer_share(), first.layer_share())
        && layer == with
    {
        let expected = format!(
            "a share of layer `{}` apart from [{}, {}) of `{one}`",
            layer.name, taken.start, taken.end
        );
        let field = format_args!("{other}.share");
        problems.expect(!share.overlaps(taken), field, [share.start, share.end], &expected);
    }
}

#[cfg(test)]
mod tests;
