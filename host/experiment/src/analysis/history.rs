//! The course of a metric's intervals over time, in few enough points to be drawn.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Most points that a metric keeps.
pub const MAX_POINTS: usize = 200;

/// One comparison at one time.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// When, in unix seconds.
    pub at: u64,
    /// The arm that is compared with the control.
    pub arm: String,
    /// The arm's value minus the control's.
    pub difference: f64,
    /// The lower end of the always-valid interval.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

/// Points by the metric's name, ascending in time: kept by the caller from one report to the next.
pub type Histories = BTreeMap<String, Vec<Point>>;

/// The old points and the new ones. Every second time is dropped, the last one kept, until at most
/// [`MAX_POINTS`] are left; whole times are dropped so that no arm loses more points than another.
/// New points at the time of the last old ones take their place. `new` has points of one time. A
/// metric with more than [`MAX_POINTS`] arms keeps its last time whole.
pub fn extended(old: &[Point], new: Vec<Point>) -> Vec<Point> {
    let now = new.iter().map(|point| point.at).min().unwrap_or(u64::MAX);
    let is_earlier = |point: &&Point| point.at < now;
    let mut points: Vec<Point> = old.iter().filter(is_earlier).cloned().chain(new).collect();
    while points.len() > MAX_POINTS {
        let times: BTreeSet<u64> = points.iter().map(|point| point.at).collect();
        if times.len() < 2 {
            break;
        }
        let kept: BTreeSet<u64> = times.into_iter().rev().step_by(2).collect();
        points.retain(|point| kept.contains(&point.at));
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(at: u64, arm: &str) -> Point {
        Point { at, arm: arm.to_owned(), difference: 0.0, low: -1.0, high: 1.0 }
    }

    #[test]
    fn histories_stay_bounded_and_keep_all_arms_and_the_last_time() {
        let mut points = Vec::new();
        for at in 0..1_000 {
            points = extended(&points, vec![point(at, "a"), point(at, "b")]);
            assert!(points.len() <= MAX_POINTS && points.last().unwrap().at == at);
            assert!(points.is_sorted_by_key(|point| point.at));
        }
        let of = |arm: &str| points.iter().filter(|point| point.arm == arm).count();
        assert!(of("a") == of("b") && of("a") >= MAX_POINTS / 4, "{}", of("a"));
        assert!(points[0].at < 32, "{}", points[0].at);
    }

    #[test]
    fn a_second_report_at_one_time_replaces_the_first() {
        let points = extended(&[point(1, "a"), point(2, "a")], vec![point(2, "a")]);
        assert_eq!(points.len(), 2);
        assert_eq!(extended(&points, Vec::new()), points);
    }
}
