//! Running totals of an experiment's observations, for each arm, unit and metric.
//!
//! A request adds to its unit, and the analyses read units: requests of one unit resemble each other, so the unit is the
//! cluster. The theory of the always-valid intervals takes each unit for complete when it is first read. A unit whose totals
//! still grow is read as it stands, so what only shows late in a unit is seen late, and the promised error rate is then
//! approximate.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A value that no total can take.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("a value of `{metric}` is {value}; expected a finite number")]
pub struct NotFinite {
    /// The metric.
    pub metric: String,
    /// The refused value.
    pub value: f64,
}

/// One unit's observations of one metric.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Total {
    /// The number of observations, or the sum of a ratio's denominators.
    pub count: u64,
    /// The sum of the observations, or of a ratio's numerators.
    pub sum: f64,
    /// The unit's value of the metric before the experiment, where it is known: the covariate of CUPED. It must not
    /// depend on the arm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<f64>,
}

/// The totals of one arm.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ArmTotals {
    /// Requests that the arm served.
    pub requests: u64,
    /// Requests whose router gave up, so that another decision was taken.
    pub fallbacks: u64,
    /// Requests that failed.
    pub faults: u64,
    /// For each unit its totals by metric; units without any observation are counted too.
    pub units: BTreeMap<String, BTreeMap<String, Total>>,
}

/// The totals of an experiment, by arm.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Totals {
    /// Totals by the arm's name.
    pub arms: BTreeMap<String, ArmTotals>,
}

/// The outcome of a request for its router and as a whole.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Outcome {
    /// True where the router gave up.
    pub fallback: bool,
    /// True where the request failed.
    pub fault: bool,
}

impl Totals {
    /// Counts a request of a unit; in the shadow modes once for each arm that it was run under.
    pub fn request(&mut self, arm: &str, unit: &str, outcome: Outcome) {
        let totals = self.arm(arm);
        totals.requests += 1;
        totals.fallbacks += u64::from(outcome.fallback);
        totals.faults += u64::from(outcome.fault);
        if !totals.units.contains_key(unit) {
            totals.units.insert(unit.to_owned(), BTreeMap::new());
        }
    }

    /// Adds one observation. It is an `observe_ratio` with a denominator of 1.
    ///
    /// # Errors
    /// If the value is no finite number; the total stays as it was.
    pub fn observe(
        &mut self,
        arm: &str,
        unit: &str,
        metric: &str,
        value: f64,
    ) -> Result<(), NotFinite> {
        self.observe_ratio(arm, unit, metric, value, 1)
    }

    /// Adds a numerator and a denominator to a unit's total of a metric. Arm, unit and total are
    /// made where they are not known yet.
    ///
    /// # Errors
    /// If the numerator is no finite number; the total stays as it was.
    pub fn observe_ratio(
        &mut self,
        arm: &str,
        unit: &str,
        metric: &str,
        numerator: f64,
        denominator: u64,
    ) -> Result<(), NotFinite> {
        let numerator = finite(metric, numerator)?;
        let total = self.total(arm, unit, metric);
        total.sum += numerator;
        total.count += denominator;
        Ok(())
    }

    /// Notes the unit's value of the metric before the experiment, in place of an earlier one.
    ///
    /// # Errors
    /// If the value is no finite number; the total stays as it was.
    pub fn before(
        &mut self,
        arm: &str,
        unit: &str,
        metric: &str,
        value: f64,
    ) -> Result<(), NotFinite> {
        let value = finite(metric, value)?;
        self.total(arm, unit, metric).before = Some(value);
        Ok(())
    }

    /// The units of an arm that have observations of a metric, ordered by unit.
    pub fn units<'a>(
        &'a self,
        arm: &str,
        metric: &'a str,
    ) -> impl Iterator<Item = (&'a str, Total)> + use<'a> {
        let units = self.arms.get(arm).into_iter().flat_map(|totals| &totals.units);
        units.filter_map(move |(unit, metrics)| {
            let total = metrics.get(metric).filter(|total| total.count > 0)?;
            Some((unit.as_str(), *total))
        })
    }

    /// The totals of an arm, made where it is not known yet.
    fn arm(&mut self, arm: &str) -> &mut ArmTotals {
        self.arms.entry(arm.to_owned()).or_default()
    }

    /// The total of a unit's metric, made where it is not known yet.
    fn total(&mut self, arm: &str, unit: &str, metric: &str) -> &mut Total {
        let units = &mut self.arm(arm).units;
        units.entry(unit.to_owned()).or_default().entry(metric.to_owned()).or_default()
    }
}

/// The value, or the error that names the metric.
fn finite(metric: &str, value: f64) -> Result<f64, NotFinite> {
    if value.is_finite() { Ok(value) } else { Err(NotFinite { metric: metric.to_owned(), value }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn observations_add_up_by_unit() {
        let mut totals = Totals::default();
        totals.request("a", "u", Outcome { fallback: true, fault: false });
        totals.request("a", "silent", Outcome::default());
        totals.observe("a", "u", "correct", 1.0).unwrap();
        totals.observe_ratio("a", "u", "correct", 2.0, 3).unwrap();
        totals.before("a", "u", "correct", 0.25).unwrap();
        let found: Vec<(&str, Total)> = totals.units("a", "correct").collect();
        assert_eq!(found, [("u", Total { count: 4, sum: 3.0, before: Some(0.25) })]);
        let arm = &totals.arms["a"];
        assert_eq!((arm.requests, arm.fallbacks, arm.faults, arm.units.len()), (2, 1, 0, 2));
        let text = serde_json::to_string(&totals).unwrap();
        assert_eq!(serde_json::from_str::<Totals>(&text).unwrap(), totals);
    }

    #[test]
    fn what_is_not_finite_is_refused() {
        let mut totals = Totals::default();
        let error = totals.observe("a", "u", "correct", f64::NAN).unwrap_err();
        assert_eq!(error.to_string(), "a value of `correct` is NaN; expected a finite number");
        assert!(totals.before("a", "u", "correct", f64::INFINITY).is_err());
        assert_eq!(totals, Totals::default());
        assert_eq!(totals.units("a", "correct").count(), 0);
    }
}
