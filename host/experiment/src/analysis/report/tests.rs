//! Reports of small experiments, and the JSON that pages read.

use serde_json::{Value, json};

use super::super::history::Histories;
use super::super::verdict::{Comparative, State, guard_breaches};
use super::*;
use crate::totals::Outcome;

fn declaration(change: impl FnOnce(&mut Value)) -> Declaration {
    let mut value = json!({
        "name": "test", "control": "old", "planned_units": 400,
        "arms": [{"name": "old", "weight": 1}, {"name": "new", "weight": 1}],
        "metrics": [{"name": "correct", "kind": "ratio", "wanted": "increase"}],
    });
    change(&mut value);
    let declaration: Declaration = serde_json::from_value(value).unwrap();
    assert_eq!(declaration.validate(), Ok(()));
    declaration
}

/// Units of an arm, of which a share is 1 and the rest 0.
fn fill(totals: &mut Totals, arm: &str, metric: &str, units: u32, share: f64) {
    for unit in 0..units {
        let name = format!("{arm}-{unit}");
        let value = f64::from(u8::from(f64::from(unit) < f64::from(units) * share));
        totals.request(arm, &name, Outcome::default());
        totals.observe(arm, &name, metric, value).unwrap();
    }
}

fn filled(arms: &[(&str, u32, f64)]) -> Totals {
    let mut totals = Totals::default();
    for (arm, units, share) in arms {
        fill(&mut totals, arm, "correct", *units, *share);
    }
    totals
}

fn at(declaration: &Declaration, totals: &Totals) -> Report {
    let situation =
        Situation { now: 1_790_000_100, started: Some(1_790_000_000), ..Default::default() };
    report(declaration, totals, &situation, &Histories::new())
}

#[test]
fn the_json_has_the_fields_that_pages_read() {
    let found = at(&declaration(|_| ()), &filled(&[("old", 145, 0.7), ("new", 147, 0.75)]));
    let found = serde_json::to_value(&found).unwrap();
    let keys =
        |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    let sorted = |words: &str| words.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let check = |pointer: &str, words: &str| {
        let (mut found, mut expected) = (keys(found.pointer(pointer).unwrap()), sorted(words));
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "{pointer}");
    };
    check(
        "",
        "name state mode unit layer holdout control started stopped stop_reason arms sample_ratio metrics verdict",
    );
    check("/arms/0", "name weight units requests fallbacks faults");
    check("/sample_ratio", "p_value mismatch expected observed");
    check("/metrics/0", "name kind wanted guard arms comparisons history");
    check("/metrics/0/arms/0", "arm units value");
    let comparison =
        "arm difference relative always_valid fixed_horizon p_value adjusted_p_value cuped verdict";
    check("/metrics/0/comparisons/0", comparison);
    check("/metrics/0/history/0", "at arm difference low high");
    check("/verdict", "state arm reason");
    assert_eq!(found["state"], "running");
    assert_eq!((&found["mode"], &found["unit"]), (&json!("split"), &json!("conversation")));
    assert_eq!((&found["layer"], &found["stopped"]), (&Value::Null, &Value::Null));
    assert_eq!(found["sample_ratio"]["observed"], json!([145, 147]));
    assert_eq!(found["metrics"][0]["comparisons"][0]["verdict"], "undecided");
    assert_eq!(found["verdict"]["reason"], "the intervals of `correct` hold zero");
}

#[test]
fn a_clear_difference_is_decided_either_way() {
    let declaration = declaration(|_| ());
    let better = at(&declaration, &filled(&[("old", 300, 0.5), ("new", 300, 0.8)]));
    assert_eq!(better.metrics[0].comparisons[0].verdict, Comparative::Better);
    assert_eq!(
        (better.verdict.state, better.verdict.arm.as_deref()),
        (State::Decided, Some("new"))
    );
    let worse = at(&declaration, &filled(&[("old", 300, 0.8), ("new", 300, 0.5)]));
    assert_eq!(worse.verdict.arm.as_deref(), Some("old"));
    assert_eq!(worse.verdict.reason, "`new` is worse in `correct`");
    let alike = at(&declaration, &filled(&[("old", 300, 0.5), ("new", 300, 0.52)]));
    assert_eq!(alike.verdict.reason, "the intervals of `correct` hold zero");
    let comparison = &alike.metrics[0].comparisons[0];
    assert!(comparison.always_valid[0] < comparison.fixed_horizon[0]);
    assert!((comparison.relative.unwrap() - 0.04).abs() < 1e-12);
}

#[test]
fn nothing_is_decided_below_the_minimum_or_by_unequal_dealing() {
    let declaration = declaration(|_| ());
    let few = at(&declaration, &filled(&[("old", 99, 0.0), ("new", 120, 1.0)]));
    assert_eq!(few.verdict.state, State::Undecided);
    let skewed = at(&declaration, &filled(&[("old", 300, 0.0), ("new", 500, 1.0)]));
    assert!(skewed.sample_ratio.mismatch);
    assert_eq!(skewed.verdict.state, State::Blocked);
    let reason = &skewed.verdict.reason;
    assert!(reason.contains("300 by a share of 0.500, 500 by a share of 0.500"), "{reason}");
    assert_eq!(skewed.metrics[0].comparisons[0].verdict, Comparative::Blocked);
}

#[test]
fn nothing_seen_is_a_report_too() {
    let empty =
        report(&declaration(|_| ()), &Totals::default(), &Situation::default(), &Histories::new());
    assert_eq!((empty.state, empty.verdict.state), (Course::Scheduled, State::Undecided));
    assert_eq!((empty.sample_ratio.p_value, empty.metrics[0].comparisons.len()), (1.0, 0));
    let stopped = Situation {
        now: 9,
        started: Some(1),
        stopped: Some(5),
        stop_reason: Some("by hand".to_owned()),
    };
    let stopped = report(&declaration(|_| ()), &Totals::default(), &stopped, &Histories::new());
    assert_eq!(stopped.state, Course::Stopped);
}

#[test]
fn a_guard_stops_harm_and_has_no_say_otherwise() {
    let guarded = declaration(|value| {
        let guard =
            json!({"name": "safe", "kind": "mean", "wanted": "increase", "guard": {"harm": 0.05}});
        value["metrics"].as_array_mut().unwrap().push(guard);
    });
    let mut totals = filled(&[("old", 300, 0.5), ("new", 300, 0.8)]);
    fill(&mut totals, "old", "safe", 300, 0.9);
    fill(&mut totals, "new", "safe", 300, 0.5);
    let found = at(&guarded, &totals);
    let breaches = guard_breaches(&found);
    assert_eq!((breaches.len(), breaches[0].arm.as_str()), (1, "new"));
    assert!(
        breaches[0].reason.starts_with("`new` lowers `safe` by 0.400 (always-valid interval -0.5")
    );
    assert_eq!(found.verdict.arm.as_deref(), Some("old"));
    let mut totals = filled(&[("old", 300, 0.5), ("new", 300, 0.8)]);
    fill(&mut totals, "old", "safe", 300, 0.9);
    fill(&mut totals, "new", "safe", 300, 0.88);
    let found = at(&guarded, &totals);
    assert!(guard_breaches(&found).is_empty());
    assert_eq!(found.verdict.arm.as_deref(), Some("new"));
}

#[test]
fn several_comparisons_share_the_level() {
    let many = declaration(|value| {
        value["arms"].as_array_mut().unwrap().push(json!({"name": "third", "weight": 1}));
        let cost = json!({"name": "cost", "kind": "mean", "wanted": "decrease"});
        value["metrics"].as_array_mut().unwrap().push(cost);
    });
    let mut totals = filled(&[("old", 300, 0.5), ("new", 300, 0.8), ("third", 300, 0.55)]);
    for (arm, share) in [("old", 0.5), ("new", 0.9), ("third", 0.2)] {
        fill(&mut totals, arm, "cost", 300, share);
    }
    let found = at(&many, &totals);
    let verdicts: Vec<_> =
        found.metrics.iter().flat_map(|m| m.comparisons.iter().map(|c| c.verdict)).collect();
    use Comparative::{Better, Undecided, Worse};
    assert_eq!(verdicts, [Better, Undecided, Worse, Better]);
    assert_eq!(
        (found.verdict.arm.as_deref(), found.verdict.state),
        (Some("third"), State::Decided)
    );
    for comparison in found.metrics.iter().flat_map(|metric| &metric.comparisons) {
        assert!(comparison.adjusted_p_value >= comparison.p_value);
        let [low, high] = comparison.always_valid;
        let excludes = low > 0.0 || high < 0.0;
        assert!(!excludes || comparison.adjusted_p_value <= many.level);
    }
}

#[test]
fn metrics_that_disagree_leave_the_choice_to_people() {
    let two = declaration(|value| {
        let cost = json!({"name": "cost", "kind": "mean", "wanted": "decrease"});
        value["metrics"].as_array_mut().unwrap().push(cost);
    });
    let mut totals = filled(&[("old", 300, 0.5), ("new", 300, 0.8)]);
    fill(&mut totals, "old", "cost", 300, 0.5);
    fill(&mut totals, "new", "cost", 300, 0.9);
    let found = at(&two, &totals);
    assert_eq!(found.verdict.state, State::Undecided);
    assert_eq!(found.verdict.reason, "`new` is better in `correct` and worse in `cost`");
}

#[test]
fn shadows_are_pairs_and_bandits_have_separate_sequences() {
    let mut totals = Totals::default();
    for unit in 0..400 {
        let name = unit.to_string();
        for (arm, gain) in [("old", 0.0), ("new", 0.2)] {
            // Units differ far more than arms do.
            let value = f64::from(unit % 100) + gain * f64::from(unit % 3);
            totals.request(arm, &name, Outcome::default());
            totals.observe(arm, &name, "correct", value).unwrap();
        }
    }
    let split = declaration(|_| ());
    let shadow = declaration(|value| value["mode"] = json!("full_shadow"));
    let (shadowed, at_split) = (at(&shadow, &totals), at(&split, &totals));
    assert_eq!(shadowed.verdict.arm.as_deref(), Some("new"));
    assert_eq!(shadowed.sample_ratio.p_value, 1.0);
    // The same units are pairs in any mode.
    assert_eq!(at_split.verdict.arm.as_deref(), Some("new"));
    let bandit = declaration(|value| {
        value["mode"] = json!("bandit");
        value["bandit"] = json!({"policy": "thompson", "floor": 0.1, "reward": "correct"});
    });
    let totals = filled(&[("old", 150, 0.5), ("new", 900, 0.9)]);
    let found = at(&bandit, &totals);
    assert!(!found.sample_ratio.mismatch);
    assert_eq!(found.verdict.arm.as_deref(), Some("new"));
}

#[test]
fn histories_are_taken_on() {
    let declaration = declaration(|_| ());
    let totals = filled(&[("old", 145, 0.7), ("new", 147, 0.75)]);
    let mut histories = Histories::new();
    for now in 1..=300 {
        let situation = Situation { now, started: Some(1), ..Default::default() };
        histories = report(&declaration, &totals, &situation, &histories).histories();
    }
    let points = &histories["correct"];
    assert!(points.len() <= 200 && points.len() > 100 && points.last().unwrap().at == 300);
}

#[test]
fn there_is_no_history_before_there_are_enough_units() {
    let found = at(&declaration(|_| ()), &filled(&[("old", 45, 0.7), ("new", 47, 0.75)]));
    assert!(found.metrics[0].history.is_empty() && found.metrics[0].comparisons.len() == 1);
    assert_eq!(found.verdict.reason, "an arm has 45 units of the 100 that a verdict needs");
}

#[test]
fn an_open_verdict_names_who_is_out() {
    let three = declaration(|value| {
        value["arms"] = json!([
            {"name": "old", "weight": 1}, {"name": "new", "weight": 1}, {"name": "bad", "weight": 1},
        ]);
    });
    let found = at(&three, &filled(&[("old", 300, 0.7), ("new", 300, 0.72), ("bad", 300, 0.1)]));
    assert_eq!(found.verdict.reason, "`bad` is worse in `correct`; `new` is undecided");
}
