//! Margin: one module where the best stands out, more where it does not.
//!
//! An example of a router that decides rows itself. The host scores rows as for Arrow (Ostapenko et al.,
//! 2024) and turns the scores into probabilities; `route` goes down the ranks until the step from one
//! module to the next is at least `margin`. That depends on two neighbours in an order, which no op of a
//! gate program can say. What is heavy stays with the host: a call here looks at each number once.
//!
//! | parameter | default | meaning |
//! |---|---|---|
//! | `margin` | 0.2 | a drop in probability that separates who is picked from who is not, from 0 on |
//! | `max_k` | 3 | modules per token and site, at most |

use polyskill_sdk::gate::{Combine, Op, Program, Share, SiteSelector};
use polyskill_sdk::{
    Batch, Decision, Descriptor, Host, ParameterError, Parameters, Plan, Request, RouteError,
    Router, SvdMethod, TopK,
};

/// The name of the prototypes.
const ROWS: &str = "svd";

/// The router, with scratch. An instance holds nothing of a plan, so that any other can decide the
/// rows of it.
#[derive(Debug, Default)]
pub struct Margin {
    /// The best probabilities of the row at hand.
    top: TopK,
    /// Column and probability of those that are picked, in ascending order. Emptied for each row;
    /// the memory is kept.
    picks: Vec<(u32, f32)>,
}

polyskill_sdk::export!(Margin);

impl Router for Margin {
    fn init(_: &mut dyn Host, parameters: &Parameters) -> Result<Self, String> {
        arguments(parameters).map_err(|error| error.to_string())?;
        Ok(Self::default())
    }

    fn descriptor(&self) -> Descriptor {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Descriptor { name: "margin".to_owned(), version, causal: true }
    }

    fn plan(&mut self, host: &mut dyn Host, request: &Request) -> Result<Plan, RouteError> {
        let arguments = arguments(&request.parameters)?;
        define(host, &request.candidates)?;
        Ok(Plan::Gated(vec![Program {
            sites: SiteSelector::All,
            share: Share::Site,
            ops: vec![
                Op::LoadInput,
                Op::Linear { name: ROWS.to_owned() },
                Op::Abs,
                Op::Softmax,
                Op::Route { hidden: false, arguments },
            ],
            combine: Combine::OutputSum,
        }]))
    }

    fn route(&mut self, batch: &Batch<'_>, decision: &mut Decision) -> Result<(), RouteError> {
        // Another instance than the one that planned: all it knows of the plan is in the arguments.
        let &[margin, max_k] = batch.arguments else {
            return Err(RouteError::Failed("expected two arguments".to_owned()));
        };
        for row in 0..batch.num_rows {
            self.decide(batch.scores_of(row), margin, max_k as usize, decision);
            decision.end_row();
        }
        Ok(())
    }
}

impl Margin {
    /// Decides one row. `probabilities` has one per candidate and sums to one. Of the `max_k` best,
    /// those down to the first step of at least `margin` are picked, with their probabilities over
    /// their sum. All of the `max_k` are picked where there is no such step. The row stays open:
    /// the caller ends it. A probability that is not a number ranks first and makes every weight
    /// one, which the host refuses.
    fn decide(
        &mut self,
        probabilities: &[f32],
        margin: f32,
        max_k: usize,
        decision: &mut Decision,
    ) {
        let best = self.top.of(probabilities, max_k);
        let stands_out = best.windows(2).position(|pair| pair[0].1 - pair[1].1 >= margin);
        let picked = &best[..stands_out.map_or(best.len(), |rank| rank + 1)];
        self.picks.clear();
        self.picks.extend_from_slice(picked);
        self.picks.sort_unstable_by_key(|(column, _)| *column);
        let sum: f32 = self.picks.iter().map(|(_, probability)| probability).sum();
        // Nothing to share out; only scores that are no probabilities add up to that.
        if sum <= 0.0 {
            return;
        }
        for &(column, probability) in &self.picks {
            decision.pick(column as usize, probability / sum);
        }
    }
}

/// The numbers that `route` gets with each batch: `[margin, max_k]`. Checks all parameters. `max_k`
/// is at most 2²⁴, up to which an f32 holds every whole number.
///
/// # Errors
/// An unknown parameter, a negative `margin`, or a `max_k` below 1.
fn arguments(parameters: &Parameters) -> Result<Vec<f32>, ParameterError> {
    parameters.only(&["margin", "max_k"])?;
    let margin = parameters.number("margin", 0.2)? as f32;
    if margin.is_sign_negative() || !margin.is_finite() {
        let message = format!("found {margin}, expected a number from 0 on");
        return Err(ParameterError { name: "margin".to_owned(), message });
    }
    // More candidates than that are never scored; as f32 it is exact.
    let max_k = parameters.integer("max_k", 3, 1)?.min(1 << 24);
    Ok(vec![margin, max_k as f32])
}

/// Defines the prototype of each candidate that has none yet, at every site of it: the top right
/// singular vector of B·A, as in Arrow. The host keeps the rows, so a module costs this once.
fn define(host: &mut dyn Host, candidates: &[u32]) -> Result<(), String> {
    for &module in candidates {
        if host.defined(ROWS, module) {
            continue;
        }
        for at in host.sites(module) {
            let row = host.singular_vector(module, at.site, SvdMethod::Exact)?;
            host.define(ROWS, module, at.site, row)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use polyskill_sdk::testing::StubHost;
    use polyskill_sdk::{Value, gate};

    fn decide(scores: &[f32], margin: f32, max_k: usize) -> Vec<(u32, f32)> {
        // What the host does before it asks.
        let mut probabilities: Vec<(u32, f32)> = (0..).zip(scores.iter().copied()).collect();
        if !probabilities.is_empty() {
            gate::apply_to_scores(&Op::Softmax, &mut probabilities);
        }
        let scores: Vec<f32> = probabilities.into_iter().map(|(_, score)| score).collect();
        let mut decision = Decision::default();
        let columns: Vec<u32> = (0..scores.len() as u32).collect();
        let arguments = [margin, max_k as f32];
        let batch = Batch {
            site: 0,
            num_rows: 1,
            candidates: &columns,
            scores: &scores,
            hidden: &[],
            arguments: &arguments,
        };
        Margin::default().route(&batch, &mut decision).unwrap();
        let mut picks = Vec::new();
        decision.check_rows(1).and_then(|()| decision.row(0, columns.len(), &mut picks)).unwrap();
        picks
    }

    fn columns(scores: &[f32], margin: f32, max_k: usize) -> Vec<u32> {
        decide(scores, margin, max_k).into_iter().map(|pick| pick.0).collect()
    }

    #[test]
    fn who_stands_out_is_picked_alone() {
        assert_eq!(decide(&[0.0, 5.0, 1.0], 0.2, 3), [(1, 1.0)]);
        assert_eq!(columns(&[4.0, 5.0, 4.9, 0.0], 0.2, 3), [1, 2]);
        assert_eq!(columns(&[1.0, 1.1, 1.2], 0.2, 2), [1, 2]);
        assert_eq!(columns(&[1.0, 1.0], 0.0, 2), [0], "no drop is smaller than none");
        assert_eq!(columns(&[], 0.2, 2), []);
        let picks = decide(&[f32::NEG_INFINITY, 2.0, 2.0], 0.2, 3);
        assert_eq!(picks, [(1, 0.5), (2, 0.5)]);
    }

    /// No drop reaches a margin above 1, so this is a softmax over the `max_k` best: a program can say that.
    #[test]
    fn with_a_large_margin_it_decides_as_a_program() {
        let ops = [Op::TopK { k: 2 }, Op::Softmax];
        for seed in 0..200_u32 {
            let score = |at: u32| (seed.wrapping_mul(7919).wrapping_add(at * 104_729) % 97) as f32;
            let scores: Vec<f32> = (0..5).map(|at| score(at) / 16.0).collect();
            let mut expected: Vec<(u32, f32)> = (0..).zip(scores.iter().copied()).collect();
            ops.iter().for_each(|op| gate::apply_to_scores(op, &mut expected));
            let decided = decide(&scores, 2.0, 2);
            let same =
                |((a, x), (b, y)): (&(u32, f32), &(u32, f32))| a == b && (x - y).abs() < 1e-6;
            assert!(decided.len() == 2 && decided.iter().zip(&expected).all(same), "{scores:?}");
        }
    }

    #[test]
    fn what_is_no_probability_gives_no_weight_that_is_not_a_number() {
        let mut decision = Decision::default();
        Margin::default().decide(&[0.5, -0.5], 2.0, 2, &mut decision);
        decision.end_row();
        assert_eq!(decision.offsets, [0, 0]);
    }

    #[test]
    fn a_score_that_is_not_a_number_spoils_its_row() {
        let mut decision = Decision::default();
        Margin::default().decide(&[1.0, f32::NAN], 0.2, 2, &mut decision);
        decision.end_row();
        assert!(decision.row(0, 2, &mut Vec::new()).is_err());
    }

    #[test]
    fn the_program_is_valid() {
        let mut host = StubHost::with_modules(3);
        let mut router = Margin::init(&mut host, &Parameters::default()).unwrap();
        let mut request = Request::for_candidates(&[0, 2]);
        let Ok(Plan::Gated(programs)) = router.plan(&mut host, &request) else { panic!() };
        let defined = |name: &str| host.defined(name, 0) && host.defined(name, 2);
        assert_eq!(gate::check(&programs[0], defined), Ok(()));
        assert!(!host.defined(ROWS, 1), "only candidates cost anything");
        for (name, value) in [("margin", -0.5), ("max_k", 0.0), ("k", 1.0)] {
            request.parameters = Parameters(vec![(name.to_owned(), Value::Number(value))]);
            let error = router.plan(&mut host, &request).unwrap_err();
            assert!(matches!(error, RouteError::InvalidParameter(e) if e.name == name));
        }
    }
}
