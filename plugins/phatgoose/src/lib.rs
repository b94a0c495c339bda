//! PHATGOOSE: each module comes with a gate vector per site, trained after the module was.
//!
//! Muqeeth, Liu, Liu and Raffel, "Learning to Route Among Specialized Experts for Zero-Shot Generalization"
//! (2024). A token's score for a module is LN(x)·LN(g) / √d, with LN a layer norm without affine part; the
//! scores of all modules get a softmax, and the k best share the weight.
//!
//! | parameter | default | meaning |
//! |---|---|---|
//! | `top_k` | 2 | modules per token and site (all, where there are fewer) |
//! | `share` | `layer` | `site` (as in the paper), `group` or `layer`: where one decision is reused |

use polyskill_sdk::gate::{Combine, Op, Program, Share, SiteSelector, layer_norm};
use polyskill_sdk::{
    Descriptor, Host, LibraryChange, ParameterError, Parameters, Plan, Request, RouteError, Router,
};

/// The name of the artefact that each module brings: a gate vector g per site, of the site's input
/// size.
pub const ARTEFACT: &str = "phatgoose";
/// The name of LN(g) / √d.
const ROWS: &str = "gates";
/// ε of both layer norms. A gate after a short training is so small that another one changes its
/// direction. It is added to the variance.
const NORM_EPSILON: f32 = 1e-5;
/// Added to the sum of the k best. It keeps a sum of zero from dividing.
const SUM_EPSILON: f32 = 1e-6;
/// So many new modules get their rows at once, before a request asks. Rows of a larger library are
/// made for the candidates of a request alone.
const EAGER_MODULES: usize = 64;

/// The router. It keeps nothing: the rows are the host's.
#[derive(Debug)]
pub struct Phatgoose;

polyskill_sdk::export!(Phatgoose);

impl Router for Phatgoose {
    fn init(_: &mut dyn Host, parameters: &Parameters) -> Result<Self, String> {
        program(parameters).map_err(|error| error.to_string())?;
        Ok(Self)
    }

    fn descriptor(&self) -> Descriptor {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Descriptor { name: "phatgoose".to_owned(), version, causal: true }
    }

    fn library_changed(
        &mut self,
        host: &mut dyn Host,
        change: &LibraryChange,
    ) -> Result<(), String> {
        if change.added.len() > EAGER_MODULES {
            return Ok(());
        }
        for &module in &change.added {
            // A module without gates matters only to a request that brings it along.
            let _ = define(host, module);
        }
        Ok(())
    }

    fn plan(&mut self, host: &mut dyn Host, request: &Request) -> Result<Plan, RouteError> {
        let program = program(&request.parameters)?;
        for &module in &request.candidates {
            if !host.defined(ROWS, module) {
                define(host, module).map_err(RouteError::NotReady)?;
            }
        }
        Ok(Plan::Gated(vec![program]))
    }
}

/// Defines a module's rows, so that the score is one dot product with LN(x). The host computes
/// LN(x)·row, and row is LN(g) / √d, with d the site's input size.
///
/// # Errors
/// If the module lacks a gate at one of its sites, or the host refuses a row.
fn define(host: &mut dyn Host, module: u32) -> Result<(), String> {
    for at in host.sites(module) {
        let name = |host: &dyn Host| host.module(module).unwrap_or_default().name;
        let gate = host.artefact(module, at.site, ARTEFACT).ok_or_else(|| {
            let name = name(host);
            format!("module `{name}` has no artefact `{ARTEFACT}` at site {}", at.site)
        })?;
        let mut row = gate.values;
        layer_norm(&mut row, NORM_EPSILON);
        let scale = 1.0 / (row.len() as f32).sqrt();
        row.iter_mut().for_each(|value| *value *= scale);
        host.define(ROWS, module, at.site, row).map_err(|reason| {
            format!("artefact `{ARTEFACT}` of module `{}`: {reason}", name(host))
        })?;
    }
    Ok(())
}

/// The gate program of a request: softmax over LN(x)·LN(g) / √d of all candidates, of which the
/// `top_k` largest are kept and divided by their sum plus ε. Checks all parameters. `share` says
/// which sites reuse the decision of the first of them: those of a layer by default, where the
/// paper decides at each site.
fn program(parameters: &Parameters) -> Result<Program, ParameterError> {
    parameters.only(&["top_k", "share"])?;
    let k = u32::try_from(parameters.integer("top_k", 2, 1)?).unwrap_or(u32::MAX);
    let share = parameters.choice("share", &["layer", "site", "group"])?;
    Ok(Program {
        sites: SiteSelector::All,
        share: [Share::Layer, Share::Site, Share::Group][share],
        ops: vec![
            Op::LoadInput,
            Op::LayerNorm { epsilon: NORM_EPSILON },
            Op::Linear { name: ROWS.to_owned() },
            Op::Softmax,
            Op::TopK { k },
            Op::Renormalise { epsilon: SUM_EPSILON },
            Op::Emit,
        ],
        combine: Combine::OutputSum,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use polyskill_sdk::testing::StubHost;
    use polyskill_sdk::{Tensor, Value, gate};

    const SITES: u32 = 7;

    fn gate_of(module: u32) -> Vec<f32> {
        (0..StubHost::WIDTH).map(|at| ((module * 5 + at * 3) % 7) as f32 - 2.5).collect()
    }

    /// A host whose modules have gates at all sites.
    fn host(count: u32) -> StubHost {
        let mut host = StubHost::with_modules(count);
        for (module, site) in (0..count).flat_map(|m| (0..SITES).map(move |site| (m, site))) {
            let tensor = Tensor { shape: vec![StubHost::WIDTH], values: gate_of(module) };
            host.set_artefact(module, site, ARTEFACT, tensor);
        }
        host
    }

    fn plan(host: &mut StubHost, request: &Request) -> Result<Program, RouteError> {
        let mut router = Phatgoose::init(host, &Parameters::default()).unwrap();
        match router.plan(host, request)? {
            Plan::Gated(mut programs) => Ok(programs.remove(0)),
            other => panic!("{other:?}"),
        }
    }

    /// LN(x)·LN(g) / √d, softmax over all, the two best over their sum + 1e-6, written down in f64.
    fn reference(x: &[f32], gates: &[Vec<f32>]) -> Vec<(u32, f64)> {
        let norm = |values: &[f32]| {
            let values: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
            let len = values.len() as f64;
            let mean = values.iter().sum::<f64>() / len;
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / len;
            values.iter().map(|v| (v - mean) / (variance + 1e-5).sqrt()).collect::<Vec<_>>()
        };
        let x = norm(x);
        let score = |gate: &Vec<f32>| {
            let dot: f64 = norm(gate).iter().zip(&x).map(|(a, b)| a * b).sum();
            (dot / (x.len() as f64).sqrt()).exp()
        };
        let exponents: Vec<f64> = gates.iter().map(score).collect();
        let sum: f64 = exponents.iter().sum();
        let mut best: Vec<(u32, f64)> = (0..).zip(exponents.iter().map(|e| e / sum)).collect();
        best.sort_by(|a, b| b.1.total_cmp(&a.1));
        best.truncate(2);
        best.sort_by_key(|pick| pick.0);
        let kept: f64 = best.iter().map(|pick| pick.1).sum::<f64>() + 1e-6;
        best.into_iter().map(|(module, p)| (module, p / kept)).collect()
    }

    #[test]
    fn weights_follow_the_formula() {
        let mut host = host(4);
        let program = plan(&mut host, &Request::for_candidates(&[0, 1, 2, 3])).unwrap();
        assert_eq!(gate::check(&program, |name| name == ROWS), Ok(()));
        let gates: Vec<Vec<f32>> = (0..4).map(gate_of).collect();
        for seed in 0..20_i16 {
            let x: Vec<f32> = (0..8).map(|at| f32::from((seed * 7 + at * 5) % 11) - 4.0).collect();
            let rows = |name: &str| {
                (0..4).map(|m| host.definitions[&(name.to_owned(), m, 3)].as_slice()).collect()
            };
            let picks = gate::interpret(&program.ops, &x, rows).unwrap();
            let expected = reference(&x, &gates);
            assert_eq!(picks.len(), expected.len());
            for (found, expected) in picks.iter().zip(&expected) {
                assert_eq!(found.0, expected.0);
                assert!((f64::from(found.1) - expected.1).abs() < 1e-6, "{picks:?} {expected:?}");
            }
        }
    }

    #[test]
    fn a_module_without_gates_is_named() {
        let mut host = host(2);
        host.module_mut(1).unwrap().name = "dates".to_owned();
        let mut without = StubHost::with_modules(2);
        without.module_mut(1).unwrap().name = "dates".to_owned();
        assert!(plan(&mut host, &Request::for_candidates(&[1])).is_ok());
        let error = plan(&mut without, &Request::for_candidates(&[1])).unwrap_err();
        let RouteError::NotReady(reason) = error else { panic!("{error:?}") };
        assert!(reason.contains("`dates`") && reason.contains("`phatgoose`"), "{reason}");
        let tensor = Tensor { shape: vec![3], values: vec![1.0; 3] };
        host.set_artefact(0, 2, ARTEFACT, tensor);
        let error = plan(&mut host, &Request::for_candidates(&[0])).unwrap_err();
        assert!(matches!(error, RouteError::NotReady(_)), "{error:?}");
    }

    #[test]
    fn new_modules_get_their_rows_before_a_request() {
        let mut host = host(3);
        let mut router = Phatgoose::init(&mut host, &Parameters::default()).unwrap();
        let change = LibraryChange { added: vec![0, 2], removed: Vec::new() };
        router.library_changed(&mut host, &change).unwrap();
        assert!(host.defined(ROWS, 0) && !host.defined(ROWS, 1) && host.defined(ROWS, 2));
    }

    #[test]
    fn bad_parameters_are_the_callers_fault() {
        let mut request = Request::for_candidates(&[0]);
        request.parameters = Parameters(vec![("top_k".to_owned(), Value::Number(0.0))]);
        let error = plan(&mut host(1), &request).unwrap_err();
        assert!(matches!(error, RouteError::InvalidParameter(e) if e.name == "top_k"));
    }
}
