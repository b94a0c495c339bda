//! The power of the planner's units against its effects, and the units that CUPED saves.

use polyskill_experiment::analysis::plan::{Design, Plan};
use polyskill_experiment::analysis::sequence::Sequence;
use polyskill_experiment::analysis::{Difference, cuped, fixed, mean};
use polyskill_experiment::totals::Total;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::common::{Average, names, normal, once};

const RUNS: u32 = 2_000;
const EFFECT: f64 = 0.25;
const PLAN: Plan =
    Plan { level: 0.05, power: 0.8, variance: 1.0, allocation: 1.0, correlation: 0.0 };

fn is_near(measured: f64, planned: f64) -> bool {
    (measured / planned - 1.0).abs() <= 0.1
}

fn sample(random: &mut ChaCha8Rng, arms: &mut [Vec<Total>; 2]) {
    let arm = usize::from(random.random_bool(0.5));
    arms[arm].push(once(normal(random) + EFFECT * arm as f64));
}

#[test]
fn a_single_look_has_the_planned_power() {
    let units = PLAN.needed_units(Design::Fixed, EFFECT) as usize;
    let names = names(2 * units);
    let mut random = ChaCha8Rng::seed_from_u64(11);
    let mut found = 0;
    for _ in 0..RUNS {
        let mut arms = [Vec::new(), Vec::new()];
        (0..units).for_each(|_| sample(&mut random, &mut arms));
        let difference = Average::Mean.difference(&names, &arms).unwrap();
        let p_value = fixed::p_value(&difference);
        found += u32::from(p_value <= PLAN.level && difference.difference > 0.0);
    }
    let power = f64::from(found) / f64::from(RUNS);
    eprintln!("power of a single look after {units} units: {power}");
    assert!(is_near(power, PLAN.power), "{power}");
}

#[test]
fn the_always_valid_design_has_the_planned_power() {
    let units = PLAN.needed_units(Design::AlwaysValid, EFFECT) as usize;
    let names = names(2 * units);
    let sequence = Sequence::tuned(PLAN.level, units as f64);
    let mut random = ChaCha8Rng::seed_from_u64(12);
    let (mut at_end, mut at_any_look, mut stops) = (0, 0, 0);
    for _ in 0..RUNS {
        let mut arms = [Vec::new(), Vec::new()];
        let mut stop = None;
        for unit in 1..=units {
            sample(&mut random, &mut arms);
            let is_look = unit % 10 == 0 && unit >= 200;
            if unit == units || (is_look && stop.is_none()) {
                let difference = Average::Mean.difference(&names, &arms).unwrap();
                let is_clear = sequence.interval(&difference)[0] > 0.0;
                at_end += u32::from(unit == units && is_clear);
                stop = stop.or(is_clear.then_some(unit));
            }
        }
        at_any_look += u32::from(stop.is_some());
        stops += stop.unwrap_or(units);
    }
    let share = |count: u32| f64::from(count) / f64::from(RUNS);
    let mean_stop = stops / RUNS as usize;
    eprintln!(
        "always valid after {units} units: {} at the end, {} at any look, stopping after {mean_stop} on average",
        share(at_end),
        share(at_any_look)
    );
    assert!(is_near(share(at_end), PLAN.power), "{}", share(at_end));
    assert!(is_near(share(at_any_look), PLAN.power), "{}", share(at_any_look));
    assert!(at_any_look >= at_end && mean_stop < units);
}

#[test]
fn the_past_shortens_intervals_by_what_it_explains() {
    let names = names(2_000);
    let mut random = ChaCha8Rng::seed_from_u64(13);
    for correlation in [0.3_f64, 0.6, 0.9] {
        let (mut plain, mut adjusted, mut held) = (0.0, 0.0, 0);
        for _ in 0..400 {
            let mut unit = |arm: f64| {
                let before = normal(&mut random);
                let rest = (1.0 - correlation * correlation).sqrt() * normal(&mut random);
                let sum = correlation * before + rest + 0.2 * arm;
                Total { count: 1, sum, before: Some(before) }
            };
            let totals: Vec<Total> = (0..2_000).map(|at| unit(f64::from(at % 2))).collect();
            let arm = |arm: usize| {
                let own = names.iter().map(String::as_str).zip(totals.iter().copied());
                mean::estimate(own.skip(arm).step_by(2)).unwrap()
            };
            let (control, treated) = (arm(0), arm(1));
            let width = |difference: &Difference| {
                let [low, high] = fixed::interval(difference, 0.05);
                (high - low, low <= 0.2 && 0.2 <= high)
            };
            plain += width(&Difference::between(&control, &treated).unwrap()).0;
            let (control, treated) = cuped::adjust(&control, &treated).unwrap();
            let (narrow, holds) = width(&Difference::between(&control, &treated).unwrap());
            adjusted += narrow;
            held += u32::from(holds);
        }
        let (ratio, expected) = (adjusted / plain, (1.0 - correlation * correlation).sqrt());
        eprintln!(
            "correlation {correlation}: widths by {ratio:.3}, theory {expected:.3}, {held} of 400 hold"
        );
        assert!((ratio / expected - 1.0).abs() < 0.02, "{ratio}, {expected}");
        assert!(held >= 368, "{held}");
    }
}
