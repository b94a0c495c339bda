//! Branch-train-mix: experts beside the base's own feed-forwards, mixed per token and layer.
//!
//! Sukhbaatar et al., "Branch-Train-MiX: Mixing Expert LLMs into a Mixture-of-Experts LLM" (2024): feed-forwards of models
//! that were trained apart become experts of one, and a linear router, g(x) = softmax(top-k(W·x)), mixes them. The base that
//! all of them grew from is one of the experts; its logit is 0 here, which costs nothing, since only differences of logits
//! count. Each expert brings its row of W, the artefact `router`.
//!
//! | parameter | default | meaning |
//! |---|---|---|
//! | `top_k` | 2 | experts per token and layer, the base's own included |
//! | `base` | true | whether the base's own feed-forward is one of them |
//! | `temperature` | 1 | what logits are divided by, over 0 |

use polyskill_sdk::experts::artefact::ROUTER;
use polyskill_sdk::gate::{Combine, Op, Program, Share, SiteSelector};
use polyskill_sdk::{
    Batch, Decision, Descriptor, Host, LibraryChange, ParameterError, Parameters, Plan, Request,
    RouteError, Router, TopK,
};

/// The name of the rows of W.
const ROWS: &str = "router";

/// The router, with scratch. All that `route` knows of a plan is `top_k`, which comes with each
/// batch.
#[derive(Debug, Default)]
pub struct BranchTrainMix {
    /// The best logits of the row at hand.
    top: TopK,
    /// Column and weight of the experts of the row, by ascending column.
    picks: Vec<(u32, f32)>,
}

polyskill_sdk::export!(BranchTrainMix);

impl Router for BranchTrainMix {
    fn init(_: &mut dyn Host, parameters: &Parameters) -> Result<Self, String> {
        Settings::read(parameters).map_err(|error| error.to_string())?;
        Ok(Self::default())
    }

    fn descriptor(&self) -> Descriptor {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Descriptor { name: "branch-train-mix".to_owned(), version, causal: true }
    }

    fn library_changed(
        &mut self,
        host: &mut dyn Host,
        change: &LibraryChange,
    ) -> Result<(), String> {
        for &module in &change.added {
            // An expert without a row matters only to a request that brings it along.
            let _ = define(host, module);
        }
        Ok(())
    }

    fn plan(&mut self, host: &mut dyn Host, request: &Request) -> Result<Plan, RouteError> {
        let settings = Settings::read(&request.parameters)?;
        for &module in &request.candidates {
            if !host.defined(ROWS, module) {
                define(host, module).map_err(RouteError::NotReady)?;
            }
        }
        let scale = 1.0 / settings.temperature;
        let mut ops = vec![
            Op::LoadInput,
            Op::Linear { name: ROWS.to_owned() },
            Op::Affine { scale, shift: 0.0 },
        ];
        match settings.base {
            // No op has a constant among its scores, so rows are decided here.
            true => {
                ops.push(Op::Route { hidden: false, arguments: vec![settings.top_k as f32] });
            }
            false => ops.extend([Op::TopK { k: settings.top_k }, Op::Softmax, Op::Emit]),
        }
        let (sites, share) = (SiteSelector::All, Share::Site);
        Ok(Plan::Gated(vec![Program { sites, share, ops, combine: Combine::OutputSum }]))
    }

    fn route(&mut self, batch: &Batch<'_>, decision: &mut Decision) -> Result<(), RouteError> {
        let &[top_k] = batch.arguments else {
            return Err(RouteError::Failed("expected one argument".to_owned()));
        };
        for row in 0..batch.num_rows {
            self.mix(batch.scores_of(row), top_k as usize);
            for &(column, weight) in &self.picks {
                decision.pick(column as usize, weight);
            }
            decision.end_row();
        }
        Ok(())
    }
}

impl BranchTrainMix {
    /// Softmax over the best of the logits and the base's 0; what the base gets is left out,
    /// because it is there anyway. With z the logits over the temperature and S the `top_k` best of
    /// them and the base's 0, the weight of an expert in S is e^z / Σ_S e^z. The largest logit is
    /// taken off before, so that nothing overflows. The result is in `picks`; the base's share
    /// makes it sum to less than one.
    fn mix(&mut self, logits: &[f32], top_k: usize) {
        let best = self.top.of(logits, top_k);
        // The base comes after all others, so that it loses ties.
        let above = best.iter().take_while(|(_, logit)| *logit >= 0.0).count();
        let with_base = above < top_k;
        let kept = if with_base { &best[..best.len().min(top_k - 1)] } else { best };
        let most = kept
            .iter()
            .fold(if with_base { 0.0 } else { f32::NEG_INFINITY }, |most, pick| pick.1.max(most));
        let base = if with_base { (-most).exp() } else { 0.0 };
        let sum = base + kept.iter().map(|(_, logit)| (logit - most).exp()).sum::<f32>();
        self.picks.clear();
        self.picks.extend(kept.iter().map(|(at, logit)| (*at, (logit - most).exp() / sum)));
        self.picks.sort_unstable_by_key(|(column, _)| *column);
    }
}

/// Defines a module's rows of W. One row of W per site, as long as the site's input is wide.
///
/// # Errors
/// If the expert lacks a row at one of its sites, or the host refuses one.
fn define(host: &mut dyn Host, module: u32) -> Result<(), String> {
    for at in host.sites(module) {
        let row = host.artefact(module, at.site, ROUTER).ok_or_else(|| {
            let name = host.module(module).unwrap_or_default().name;
            format!("module `{name}` has no row for the router at site {}", at.site)
        })?;
        host.define(ROWS, module, at.site, row.values)?;
    }
    Ok(())
}

/// Parameters of a request. A request's parameters go before the configured ones.
struct Settings {
    /// Experts per token and layer, from 1.
    top_k: u32,
    /// Counts the base's own feed-forward among the experts.
    base: bool,
    /// The divisor of the logits, above 0.
    temperature: f32,
}

impl Settings {
    /// Checks all parameters, unknown ones included.
    fn read(parameters: &Parameters) -> Result<Self, ParameterError> {
        parameters.only(&["top_k", "base", "temperature"])?;
        // More candidates than that are never scored; as f32 it is exact.
        let top_k = parameters.integer("top_k", 2, 1)?.min(1 << 24) as u32;
        let base = parameters.flag("base", true)?;
        let temperature = parameters.number("temperature", 1.0)? as f32;
        if !(temperature > 0.0 && temperature.is_finite()) {
            let message = format!("found {temperature}, expected a number over 0");
            return Err(ParameterError { name: "temperature".to_owned(), message });
        }
        Ok(Self { top_k, base, temperature })
    }
}

#[cfg(test)]
mod tests {
    use polyskill_sdk::testing::StubHost;
    use polyskill_sdk::{Tensor, Value, gate};

    use super::*;

    fn mixed(logits: &[f32], top_k: usize) -> Vec<(u32, f32)> {
        let mut router = BranchTrainMix::default();
        router.mix(logits, top_k);
        router.picks
    }

    /// exp(logit) over the sum of all that are kept, the base's exp(0) among them.
    #[test]
    fn the_base_takes_part_with_logit_zero() {
        let close = |found: &[(u32, f32)], expected: &[(u32, f32)]| {
            assert_eq!(found.len(), expected.len(), "{found:?}");
            for (found, expected) in found.iter().zip(expected) {
                assert!(found.0 == expected.0 && (found.1 - expected.1).abs() < 1e-6, "{found:?}");
            }
        };
        let e = f32::exp;
        close(&mixed(&[1.0, -1.0], 2), &[(0, e(1.0) / (e(1.0) + 1.0))]);
        close(
            &mixed(&[1.0, 2.0, 3.0], 2),
            &[(1, e(2.0) / (e(2.0) + e(3.0))), (2, e(3.0) / (e(2.0) + e(3.0)))],
        );
        let sum = e(1.0) + e(-1.0) + 1.0;
        close(&mixed(&[-1.0, 1.0], 3), &[(0, e(-1.0) / sum), (1, e(1.0) / sum)]);
        close(&mixed(&[-1.0], 1), &[]);
        close(&mixed(&[-200.0, 200.0], 2), &[(1, 1.0)]);
    }

    fn host() -> StubHost {
        let mut host = StubHost::with_modules(2);
        for (module, site) in [(0, 0), (1, 0)] {
            let values = (0..StubHost::WIDTH).map(|at| (at + module) as f32).collect();
            host.set_artefact(
                module,
                site,
                ROUTER,
                Tensor { shape: vec![StubHost::WIDTH], values },
            );
        }
        host
    }

    #[test]
    fn without_the_base_a_program_says_it_all() {
        let mut host = host();
        let sites = host.sites(0);
        for (module, at) in (0..2).flat_map(|module| sites.iter().map(move |at| (module, at))) {
            let values = vec![1.0; StubHost::WIDTH as usize];
            host.set_artefact(
                module,
                at.site,
                ROUTER,
                Tensor { shape: vec![StubHost::WIDTH], values },
            );
        }
        let mut request = Request::for_candidates(&[0, 1]);
        request.parameters = Parameters(vec![("base".to_owned(), Value::Flag(false))]);
        let mut router = BranchTrainMix::init(&mut host, &Parameters::default()).unwrap();
        let Ok(Plan::Gated(programs)) = router.plan(&mut host, &request) else {
            panic!("expected programs");
        };
        assert_eq!(gate::check(&programs[0], |name| name == ROWS), Ok(()));
        assert_eq!(programs[0].ops.last(), Some(&Op::Emit));
    }

    /// The flat ABI carries flags as numbers.
    #[test]
    fn the_base_is_left_out_by_a_flag_or_a_number() {
        let base = |value: Value| {
            let parameters = Parameters(vec![("base".to_owned(), value)]);
            Settings::read(&parameters).map(|settings| settings.base).map_err(|error| error.name)
        };
        assert_eq!(base(Value::Flag(false)), Ok(false));
        assert_eq!(base(Value::Number(0.0)), Ok(false));
        assert_eq!(base(Value::Number(1.0)), Ok(true));
        assert_eq!(base(Value::Number(2.0)), Err("base".to_owned()));
    }

    #[test]
    fn experts_without_a_row_and_wrong_parameters_are_named() {
        let mut bare = StubHost::with_modules(1);
        let mut router = BranchTrainMix::init(&mut bare, &Parameters::default()).unwrap();
        let error = router.plan(&mut bare, &Request::for_candidates(&[0])).unwrap_err();
        assert!(matches!(&error, RouteError::NotReady(reason) if reason.contains("no row")));
        let mut request = Request::for_candidates(&[0]);
        request.parameters = Parameters(vec![("temperature".to_owned(), Value::Number(0.0))]);
        let error = router.plan(&mut bare, &request).unwrap_err();
        assert!(matches!(error, RouteError::InvalidParameter(e) if e.name == "temperature"));
    }
}
