//! Routers that decide rows themselves, on scores that the host made or on hidden states.

use polyskill_engine::{RouterRequest, RouterSettings, Selection};
use polyskill_sdk::gate::{self, Combine, Op, Program, Share, SiteSelector};
use polyskill_sdk::runtime::Native;
use polyskill_sdk::{
    Batch, Decision, Descriptor, Host, Parameters, Pick, Plan, Request, RouteError, Router,
    SvdMethod, Value,
};

use crate::common::{Bench, Output, greedy, routed, submit};

const ROWS: &str = "svd";
const K: u32 = 2;

/// Arrow, with everything after the scores, or after the hidden state, in its own code.
struct ByHand {
    /// `[module][site]`, as the library was when this instance was made.
    prototypes: Vec<Vec<Vec<f32>>>,
}

impl ByHand {
    /// The ops that a program would have here.
    fn pick(scores: impl Iterator<Item = f32>, decision: &mut Decision) {
        let mut scores: Vec<(u32, f32)> = (0..).zip(scores).collect();
        for op in [Op::Abs, Op::TopK { k: K }, Op::Softmax] {
            gate::apply_to_scores(&op, &mut scores);
        }
        scores.iter().for_each(|&(column, weight)| decision.pick(column as usize, weight));
        decision.end_row();
    }
}

impl Router for ByHand {
    fn init(host: &mut dyn Host, _: &Parameters) -> Result<Self, String> {
        let num_sites = host.model().sites.len();
        let mut prototypes = Vec::new();
        for module in host.modules() {
            let mut by_site = vec![Vec::new(); num_sites];
            for at in host.sites(module.index) {
                by_site[at.site as usize] =
                    host.singular_vector(module.index, at.site, SvdMethod::Exact)?;
            }
            prototypes.push(by_site);
        }
        Ok(Self { prototypes })
    }

    fn descriptor(&self) -> Descriptor {
        Descriptor { name: "by-hand".into(), version: "1".into(), causal: true }
    }

    fn plan(&mut self, host: &mut dyn Host, request: &Request) -> Result<Plan, RouteError> {
        let hidden = request.parameters.flag("hidden", false)?;
        let share =
            [Share::Site, Share::Layer][request.parameters.choice("share", &["site", "layer"])?];
        let mut ops = vec![Op::LoadInput];
        if !hidden {
            for &module in &request.candidates {
                for at in host.sites(module) {
                    let row = host.singular_vector(module, at.site, SvdMethod::Exact)?;
                    host.define(ROWS, module, at.site, row)?;
                }
            }
            ops.push(Op::Linear { name: ROWS.to_owned() });
        }
        ops.push(Op::Route { hidden, arguments: vec![f32::from(u8::from(hidden))] });
        let (sites, combine) = (SiteSelector::All, Combine::OutputSum);
        Ok(Plan::Gated(vec![Program { sites, share, ops, combine }]))
    }

    fn route(&mut self, batch: &Batch<'_>, decision: &mut Decision) -> Result<(), RouteError> {
        for row in 0..batch.num_rows {
            if batch.arguments == [0.0] {
                assert!(batch.hidden.is_empty());
                Self::pick(batch.scores_of(row).iter().copied(), decision);
                continue;
            }
            assert!(batch.scores.is_empty());
            let dot = |module: &u32| -> f32 {
                let prototype = &self.prototypes[*module as usize][batch.site as usize];
                batch.hidden_of(row).iter().zip(prototype).map(|(x, p)| x * p).sum()
            };
            Self::pick(batch.candidates.iter().map(dot), decision);
        }
        Ok(())
    }
}

fn bench(hidden: bool) -> Bench {
    let bench = Bench::arrow();
    let router = Native::<ByHand>::new(&bench.composer.view(), &Parameters::default()).unwrap();
    let settings = RouterSettings { hidden, ..RouterSettings::default() };
    bench.composer.add_router("by-hand", "native".to_owned(), Box::new(router), settings).unwrap();
    bench
}

fn by_hand(hidden: bool, share: &str) -> Selection {
    routed(
        "by-hand",
        Parameters(vec![
            ("hidden".to_owned(), Value::Flag(hidden)),
            ("share".to_owned(), Value::Text(share.to_owned())),
        ]),
    )
}

fn arrow(share: &str) -> Selection {
    routed(
        "arrow",
        Parameters(vec![
            ("top_k".to_owned(), Value::Number(f64::from(K))),
            ("share".to_owned(), Value::Text(share.to_owned())),
        ]),
    )
}

fn picks(output: &Output) -> Vec<Vec<(u32, Vec<u32>)>> {
    let site = |site: &polyskill_engine::SitePicks| {
        (site.site, site.picks.iter().map(|(module, _)| *module).collect())
    };
    output.tokens.iter().map(|token| token.routing.iter().map(site).collect()).collect()
}

/// The same maths in the router's code and in a program: the same bits.
#[test]
fn scores_decided_by_the_router_are_those_of_a_program() {
    let (bench, prompt) = (bench(false), (10..60).collect::<Vec<u32>>());
    for share in ["site", "layer"] {
        let program = bench.run(&arrow(share), &prompt, greedy(8));
        let by_hand = bench.run(&by_hand(false, share), &prompt, greedy(8));
        assert_eq!(by_hand.bits(), program.bits(), "{share}");
        assert_eq!(picks(&by_hand), picks(&program), "{share}");
    }
    let info =
        bench.composer.routers().into_iter().find(|router| router.name == "by-hand").unwrap();
    assert!(info.route_calls > 0 && info.route_rows >= 50 * info.route_calls / 9, "{info:?}");
    assert_eq!((info.faults, info.invalid_rows), (0, 0));
}

/// Hidden states need a grant; with it, products in plain order decide as the host's kernels do.
#[test]
fn hidden_states_are_handed_over_where_that_is_granted() {
    let (granted, prompt) = (bench(true), (10..60).collect::<Vec<u32>>());
    let program = granted.run(&arrow("site"), &prompt, greedy(8));
    let by_hand_output = granted.run(&by_hand(true, "site"), &prompt, greedy(8));
    assert_eq!(picks(&by_hand_output), picks(&program));
    assert_eq!(by_hand_output.ids(), program.ids());

    let denied = bench(false);
    let composition = denied.compose(&by_hand(true, "site"));
    assert!(composition.fallback().is_some_and(|reason| reason.contains("capability `hidden`")));
}

/// Requests of one plan are decided in one call; none of them sees the others.
#[test]
fn a_row_is_decided_alike_alone_and_among_others() {
    let bench = bench(false);
    let prompts: Vec<Vec<u32>> = (0..4_u32).map(|at| (10 + at..40 + 7 * at).collect()).collect();
    let composition = bench.compose(&by_hand(false, "site"));
    let alone: Vec<Vec<u32>> = prompts
        .iter()
        .map(|prompt| submit(&bench.engine, &composition, prompt, greedy(8)).wait().bits())
        .collect();
    let pending: Vec<_> = prompts
        .iter()
        .map(|prompt| submit(&bench.engine, &composition, prompt, greedy(8)))
        .collect();
    let together: Vec<Vec<u32>> =
        pending.into_iter().map(|pending| pending.wait().bits()).collect();
    assert_eq!(together, alone);
}

/// Merges all modules with fixed weights: as a fixed plan, or with a program whose rows `route` decides.
struct Merge;

const WEIGHTS: [f32; 3] = [0.75, -0.5, 0.25];

impl Router for Merge {
    fn init(_: &mut dyn Host, _: &Parameters) -> Result<Self, String> {
        Ok(Self)
    }

    fn descriptor(&self) -> Descriptor {
        Descriptor { name: "merge".into(), version: "1".into(), causal: true }
    }

    fn plan(&mut self, host: &mut dyn Host, request: &Request) -> Result<Plan, RouteError> {
        let combine = Combine::AbMerge;
        if request.parameters.flag("fixed", false)? {
            // In another order than the modules': the first of these gives the scale.
            let pick = |(&module, weight)| Pick { module, weight };
            let picks = request.candidates.iter().zip(WEIGHTS).map(pick).rev().collect();
            return Ok(Plan::Fixed { picks, combine });
        }
        for &module in &request.candidates {
            for at in host.sites(module) {
                let row = host.singular_vector(module, at.site, SvdMethod::Exact)?;
                host.define(ROWS, module, at.site, row)?;
            }
        }
        let ops = vec![
            Op::LoadInput,
            Op::Linear { name: ROWS.to_owned() },
            Op::Route { hidden: false, arguments: WEIGHTS.to_vec() },
        ];
        let (sites, share) = (SiteSelector::All, Share::Site);
        Ok(Plan::Gated(vec![Program { sites, share, ops, combine }]))
    }

    fn route(&mut self, batch: &Batch<'_>, decision: &mut Decision) -> Result<(), RouteError> {
        for _ in 0..batch.num_rows {
            for (column, &candidate) in batch.candidates.iter().enumerate().rev() {
                decision.pick(column, batch.arguments[candidate as usize]);
            }
            decision.end_row();
        }
        Ok(())
    }
}

/// How modules combine is part of a fixed plan, as it is of a program.
#[test]
fn a_fixed_mixture_is_merged_as_a_program_merges() {
    let (bench, prompt) = (Bench::arrow(), (10..60).collect::<Vec<u32>>());
    let router = Native::<Merge>::new(&bench.composer.view(), &Parameters::default()).unwrap();
    let settings = RouterSettings::default();
    bench.composer.add_router("merge", "native".to_owned(), Box::new(router), settings).unwrap();
    let run = |fixed: bool| {
        let mut selection =
            routed("merge", Parameters(vec![("fixed".to_owned(), Value::Flag(fixed))]));
        let Selection::Routed(RouterRequest { modules, .. }) = &mut selection else {
            unreachable!()
        };
        *modules = ["task-a", "task-b", "task-c"].map(str::to_owned).to_vec();
        bench.run(&selection, &prompt, greedy(8)).bits()
    };
    let merged = run(true);
    assert_eq!(merged, run(false));
    let sum = [("task-a", WEIGHTS[0]), ("task-b", WEIGHTS[1]), ("task-c", WEIGHTS[2])];
    let sum = bench.run(&crate::common::weighted(&sum), &prompt, greedy(8));
    assert_ne!(merged, sum.bits(), "an output sum is something else");
}
