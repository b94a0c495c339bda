//! Rows that fall back one by one, quarantine and its end, the three policies, versions swapped under load.

use std::sync::Arc;
use std::time::Duration;

use polyskill_engine::{
    ComposeError, Composition, FaultPolicy, FinishReason, OnFault, RouterSettings, Selection,
    Standing,
};
use polyskill_plugin::Limits;
use polyskill_sdk::Parameters;

use super::{Member, PROMPT, compiled, info, loader, patient, publish, run};
use crate::common::{Bench, TASKS, greedy, routed, submit};

fn bench() -> Bench {
    Bench::new("models/llama-tied", &TASKS)
}

fn settings(on_fault: OnFault, max_faults: usize) -> RouterSettings {
    let faults = FaultPolicy { on_fault, max_faults, ..FaultPolicy::default() };
    RouterSettings { hidden: true, faults, ..RouterSettings::default() }
}

fn selected() -> Selection {
    routed("router", Parameters::default())
}

fn put(bench: &Bench, member: &str, settings: RouterSettings) -> String {
    let bytes = Member::read(member).bytes();
    publish(bench, &loader(Limits::default()), ("router", &bytes), settings).unwrap()
}

/// As members decide in the last layer, a row's picks reach no other row: the good rows must be those of
/// a router that behaves, the bad ones the base's.
#[test]
fn only_the_bad_rows_fall_back() {
    let bench = bench();
    let base = run(&bench, &Selection::Base);
    put(&bench, "well-behaved", patient());
    let good = run(&bench, &selected());
    put(&bench, "rows-every-second", patient());
    let mixed = run(&bench, &selected());
    for row in 0..PROMPT.len() {
        let bits = |row: Vec<f32>| row.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let (base, good, found) = (bits(base.row(row)), bits(good.row(row)), bits(mixed.row(row)));
        // The first row attends to itself alone, whatever its query is.
        assert!(row == 0 || base != good, "row {row} shows no difference");
        assert!(found == if row % 2 == 0 { good } else { base }, "row {row}");
    }
    assert_eq!(mixed.finished.fallback_rows, 15);
    assert_eq!(info(&bench, "router").invalid_rows, 15);
}

#[test]
fn faults_quarantine_until_a_person_acts() {
    let bench = bench();
    let good = put(&bench, "well-behaved", patient());
    let expected = run(&bench, &selected()).bits();
    let base = run(&bench, &Selection::Base).bits();
    let bad = put(&bench, "plan-unreachable", settings(OnFault::BaseOnly, 3));
    for round in 1..=3 {
        assert_eq!(info(&bench, "router").standing, Standing::Serving, "{round}");
        let composition = bench.compose(&selected());
        assert!(composition.fallback().is_some_and(|reason| reason.contains("unreachable")));
        assert_eq!(composition.router().unwrap().digest, bad);
    }
    let plans = info(&bench, "router").plans;
    for _ in 0..2 {
        let composition = bench.compose(&selected());
        let reason = composition.fallback().unwrap();
        assert!(
            reason.starts_with("it is quarantined for ") && reason.ends_with(" s more"),
            "{reason}"
        );
    }
    assert!(run(&bench, &selected()).bits() == base);
    let found = info(&bench, "router");
    assert!(
        matches!(found.standing, Standing::Quarantined(left) if left <= Duration::from_secs(10))
    );
    assert_eq!((found.plans, found.faults, found.quarantines), (plans, 3, 1));
    assert_eq!(found.previous, std::slice::from_ref(&good));

    // Release: it is asked again, and fails again.
    bench.composer.release_router("router").unwrap();
    assert_eq!(info(&bench, "router").standing, Standing::Serving);
    assert!(bench.compose(&selected()).fallback().unwrap().contains("unreachable"));
    assert_eq!(info(&bench, "router").plans, plans + 1);

    // Rollback by the first digits of a digest.
    let unknown = bench.composer.roll_back("router", "0000").unwrap_err().to_string();
    assert!(unknown.contains("no version 0000") && unknown.contains(&good), "{unknown}");
    assert!(bench.composer.roll_back("nobody", &good).is_err());
    bench.composer.roll_back("router", &good[..12]).unwrap();
    let found = info(&bench, "router");
    assert_eq!(
        (&found.digest, found.standing, found.previous),
        (&good, Standing::Serving, vec![bad])
    );
    let composition = bench.compose(&selected());
    assert_eq!((composition.fallback(), &composition.router().unwrap().digest), (None, &good));
    assert!(run(&bench, &selected()).bits() == expected);
}

/// Returns from quarantine are counted; in the end the router stays out.
#[test]
fn a_router_that_never_learns_stays_out() {
    let bench = bench();
    let faults = FaultPolicy { max_faults: 1, max_returns: 0, ..FaultPolicy::default() };
    put(&bench, "plan-unreachable", RouterSettings { faults, ..patient() });
    bench.compose(&selected());
    assert_eq!(info(&bench, "router").standing, Standing::Out);
    let composition = bench.compose(&selected());
    assert!(composition.fallback().unwrap().starts_with("it is out after too many faults"));
    bench.composer.release_router("router").unwrap();
    assert_eq!(info(&bench, "router").standing, Standing::Serving);
}

/// A quarantine that begins while rows are decided holds for them too.
#[test]
fn faults_in_rows_quarantine() {
    let bench = bench();
    let base = run(&bench, &Selection::Base).bits();
    put(&bench, "route-fails", settings(OnFault::BaseOnly, 2));
    let output = run(&bench, &selected());
    assert!(output.bits() == base);
    let found = info(&bench, "router");
    assert_eq!((found.faults, found.route_calls, found.abstentions), (2, 2, 0));
    assert!(matches!(found.standing, Standing::Quarantined(_)));
    assert!(bench.compose(&selected()).fallback().unwrap().contains("quarantined"));
}

/// Whatever goes wrong with the new version, the one before it answers, if that is the policy.
#[test]
fn the_previous_version_answers() {
    for member in ["plan-unreachable", "plan-spins", "fixed-is-nan", "programs-are-garbage"] {
        let bench = bench();
        let good = put(&bench, "well-behaved", patient());
        let expected = run(&bench, &selected()).bits();
        let limits = Limits { plan_fuel: 20_000_000, ..Limits::default() };
        let bytes = Member::read(member).bytes();
        let named = ("router", bytes.as_slice());
        publish(&bench, &loader(limits), named, settings(OnFault::Previous, 2)).unwrap();
        // Two by faults, one by quarantine.
        for round in 0..3 {
            let composition = bench.compose(&selected());
            assert_eq!(composition.fallback(), None, "{member}, {round}");
            assert_eq!(composition.router().unwrap().digest, good, "{member}, {round}");
        }
        assert!(run(&bench, &selected()).bits() == expected, "{member}");
        assert_eq!(info(&bench, "router").faults, 2, "{member}");
    }
}

#[test]
fn a_request_fails_where_that_is_the_policy() {
    let bench = bench();
    for member in ["plan-unreachable", "fixed-is-nan", "answers-nothing"] {
        put(&bench, member, settings(OnFault::FailRequest, 2));
        // Two by faults, one by quarantine.
        for part in ["", "", "quarantined"] {
            let error = bench.composer.compose(&selected()).unwrap_err();
            let ComposeError::RouterFailed { router, reason } = error else { panic!("{error}") };
            assert!(router == "router" && reason.contains(part), "{member}: {reason}");
        }
    }
    // Rows too, and before any of their tokens are given out: the last token's, and the prompt's.
    for member in ["route-fails", "rows-nan", "route-unreachable", "route-abstains"] {
        put(&bench, member, settings(OnFault::FailRequest, usize::MAX));
        for max_tokens in [0, 1, 4] {
            let prompt: Vec<u32> = PROMPT.collect();
            let output = bench.run(&selected(), &prompt, greedy(max_tokens));
            let FinishReason::Error(reason) = &output.finished.reason else {
                panic!("{member}, {max_tokens}: {:?}", output.finished);
            };
            assert!(reason.contains("left a row undecided"), "{member}: {reason}");
            assert_eq!(output.tokens.len(), 0, "{member}");
        }
    }
    assert_eq!(bench.engine.handle().stats().snapshot().kv_blocks_used, 0);
}

/// A hundred swaps between two versions that decide differently, while requests of either stream.
#[test]
fn swaps_mix_and_fail_no_request() {
    const SWAPS: usize = 100;
    let bench = bench();
    let other = Member::read("well-behaved").source.replace(
        "(call $good (local.get 1) (local.get 2))",
        "(local $at i32)
        (loop $l
            (call $row (local.get 2) (local.get $at) (i32.const 3) (f32.const 1.5))
            (local.set $at (i32.add (local.get $at) (i32.const 1)))
            (br_if $l (i32.lt_u (local.get $at) (call $num_rows (local.get 1)))))
        (i32.const 0)",
    );
    let loader = loader(Limits::default());
    let versions = [Member::read("well-behaved").bytes(), compiled(&other)];
    let undisturbed = versions.each_ref().map(|bytes| {
        let digest = publish(&bench, &loader, ("router", bytes), patient()).unwrap();
        (digest, run(&bench, &selected()).bits())
    });
    assert!(undisturbed[0] != undisturbed[1] && undisturbed[0].1 != undisturbed[1].1);
    let prompt: Vec<u32> = PROMPT.collect();
    let check = |(composition, output): (Arc<Composition>, crate::common::Output)| {
        let digest = &composition.router().unwrap().digest;
        let (_, expected) = undisturbed.iter().find(|(known, _)| known == digest).unwrap();
        assert_eq!(output.finished.fallback_rows, 0);
        assert_eq!(output.finished.reason, FinishReason::Length);
        assert!(output.bits() == *expected, "a request mixed versions");
        usize::from(*digest == undisturbed[1].0)
    };
    let mut answered = [0; 2];
    let mut running = std::collections::VecDeque::new();
    for swap in 0..SWAPS {
        for _ in 0..2 {
            let composition = bench.compose(&selected());
            assert_eq!(composition.fallback(), None, "{swap}");
            let pending = submit(&bench.engine, &composition, &prompt, greedy(super::ANSWER));
            running.push_back((composition, pending));
        }
        publish(&bench, &loader, ("router", &versions[swap % 2]), patient()).unwrap();
        while running.len() > 6 {
            let (composition, pending) = running.pop_front().unwrap();
            answered[check((composition, pending.wait()))] += 1;
        }
    }
    for (composition, pending) in running {
        answered[check((composition, pending.wait()))] += 1;
    }
    assert_eq!(answered, [SWAPS, SWAPS]);
}
