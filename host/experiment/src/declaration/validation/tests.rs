//! Declarations that are taken and refused.

use serde_json::{Value, json};

use super::super::{Declaration, Kind, Mode, Policy, Unit};
use super::validate_together;

fn plain() -> Value {
    json!({
        "name": "arrow-or-phatgoose",
        "control": "arrow",
        "arms": [
            {"name": "arrow", "weight": 1, "router": "arrow", "parameters": {"top_k": 2, "soft": true, "t": 0.5}},
            {"name": "phatgoose", "weight": 1, "router": "phatgoose", "modules": ["code/*"], "adapters": [{"name": "tone", "weight": 0.5}]},
        ],
        "metrics": [{"name": "correct", "kind": "ratio", "wanted": "increase"}],
    })
}

fn read(change: &[(&str, Value)]) -> Declaration {
    let mut value = plain();
    for (pointer, new) in change {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        match value.pointer_mut(parent).unwrap() {
            Value::Object(map) => drop(map.insert((*key).to_owned(), new.clone())),
            Value::Array(list) => list.push(new.clone()),
            _ => unreachable!("only objects and lists are changed"),
        }
    }
    serde_json::from_value(value).unwrap()
}

/// The change is refused with one problem, which holds the words.
fn check(change: &[(&str, Value)], words: &str) {
    let problems = read(change).validate().unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains(words) && problems[0].contains("; expected "), "{problems:?}");
}

#[test]
fn what_is_left_out_has_defaults() {
    let declaration = read(&[]);
    assert_eq!(declaration.validate(), Ok(()));
    assert_eq!((declaration.mode, declaration.unit), (Mode::Split, Unit::Conversation));
    assert_eq!((declaration.level, declaration.minimum_units), (0.05, 100));
    assert_eq!(declaration.seed(), "arrow-or-phatgoose");
    assert_eq!(declaration.metrics[0].kind, Kind::Ratio);
    let params = &declaration.arms[0].route.router.as_ref().unwrap().params;
    assert_eq!((params.integer("top_k", 1, 1), params.flag("soft", false)), (Ok(2), Ok(true)));
    let text = serde_json::to_string(&declaration).unwrap();
    assert_eq!(serde_json::from_str::<Declaration>(&text).unwrap(), declaration);
}

#[test]
fn unknown_keys_are_refused() {
    for (pointer, key) in [("", "colour"), ("/arms/0", "wieght"), ("/metrics/0", "gaurd")] {
        let mut value = plain();
        value.pointer_mut(pointer).unwrap()[key] = json!(1);
        let error = serde_json::from_value::<Declaration>(value).unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    }
}

#[test]
fn each_problem_names_its_field() {
    check(&[("/name", json!("two words")), ("/seed", json!("s"))], "`name` is \"two words\"");
    check(&[("/seed", json!("holdout"))], "`seed` is \"holdout\"");
    check(&[("/seed", json!("layer:x"))], "`seed`");
    check(&[("/seed", json!("a\0b"))], "`seed`");
    check(&[("/share", json!([0.0, 0.5]))], "`share`");
    check(&[("/layer", json!("l")), ("/share", json!([0.5, 0.5]))], "`share` is [0.5, 0.5]");
    check(&[("/holdout", json!(1.0))], "`holdout`");
    check(&[("/start", json!(5)), ("/stop", json!(5))], "`stop` is 5");
    check(&[("/sample", json!(0.5))], "`sample`");
    check(&[("/level", json!(0.0))], "`level`");
    check(&[("/minimum_units", json!(1))], "`minimum_units`");
    check(&[("/planned_units", json!(99))], "`planned_units` is 99");
    check(&[("/control", json!("nobody"))], "`control` is \"nobody\"");
    check(&[("/arms/0/weight", json!(0))], "`control`");
    check(&[("/arms/1/weight", json!(-0.5))], "`arms[1].weight` is -0.5");
    check(&[("/arms/1/adapters/0/name", json!(""))], "`arms[1].adapters`");
    check(&[("/arms/0/router", json!(""))], "`arms[0].router`");
    check(&[("/arms/1/name", json!("arrow"))], "`arms[1].name` is \"arrow\"");
    check(&[("/metrics/0/guard", json!({"harm": -1}))], "`metrics[0].guard.harm`");
    check(&[("/metrics/0/bounded", json!([1, 0]))], "`metrics[0].bounded`");
    check(&[("/mode", json!("bandit"))], "`bandit`");
}

#[test]
fn bandits_need_a_reward_and_a_floor() {
    let settings =
        |floor: f64, reward: &str| json!({"policy": "thompson", "floor": floor, "reward": reward});
    let mode = ("/mode", json!("bandit"));
    let with = |settings: Value| [mode.clone(), ("/bandit", settings)];
    assert_eq!(read(&with(settings(0.1, "correct"))).validate(), Ok(()));
    check(&with(settings(0.0, "correct")), "`bandit.floor`");
    check(&with(settings(0.6, "correct")), "`bandit.floor`");
    check(&with(settings(0.1, "nothing")), "`bandit.reward`");
    check(&[("/bandit", settings(0.1, "correct"))], "`bandit`");
    let greedy =
        json!({"policy": {"epsilon_greedy": {"epsilon": 2}}, "floor": 0.1, "reward": "correct"});
    let declaration = read(&with(greedy.clone()));
    assert_eq!(declaration.bandit.unwrap().policy, Policy::EpsilonGreedy { epsilon: 2.0 });
    check(&with(greedy), "epsilon_greedy.epsilon` is 2.0");
}

#[test]
fn all_problems_come_at_once() {
    let change = [("/holdout", json!(-1)), ("/level", json!(2)), ("/control", json!("x"))];
    assert_eq!(read(&change).validate().unwrap_err().len(), 3);
    let none = [("/arms/0/weight", json!(0)), ("/arms/1/weight", json!(0))];
    assert!(read(&none).validate().unwrap_err()[0].contains("sum above 0"));
}

#[test]
fn experiments_of_one_layer_do_not_overlap() {
    let named = |name: &str, layer: &str, share: [f64; 2]| {
        read(&[("/name", json!(name)), ("/layer", json!(layer)), ("/share", json!(share))])
    };
    let one = named("one", "routing", [0.0, 0.5]);
    let together = |other: Declaration| validate_together(&[one.clone(), other]);
    assert_eq!(together(named("two", "routing", [0.5, 1.0])), Ok(()));
    assert_eq!(together(named("two", "other", [0.0, 1.0])), Ok(()));
    let problems = together(named("two", "routing", [0.4, 1.0])).unwrap_err();
    assert!(problems[0].contains("`two.share` is [0.4, 1.0]"), "{problems:?}");
    assert_eq!(together(named("one", "routing", [0.5, 1.0])).unwrap_err().len(), 1);
    let mut same_seed = named("two", "routing", [0.5, 1.0]);
    same_seed.seed = Some("one".to_owned());
    assert!(together(same_seed).unwrap_err()[0].contains("`two.seed`"));
}
