//! Arrow: training-free routing by the direction that a module amplifies most.
//!
//! Ostapenko et al., "Towards Modular LLMs by Building and Reusing a Library of LoRAs" (2024). A module's
//! prototype at a site is the top right singular vector of its delta B·A; a token's score is the absolute
//! dot product with the site's input; the k best modules get a softmax over their scores.
//!
//! | parameter | default | meaning |
//! |---|---|---|
//! | `top_k` | 3 | modules per token and site (all, where there are fewer) |
//! | `temperature` | 1 | divides the scores before the softmax; 0 or less: √(input features), as in mttl |
//! | `prototypes` | `svd` | `svd`: exact; `power15`: 15 power iterations from `seed`, PEFT's variant |
//! | `seed` | 42 | start of the power iteration |
//! | `share` | `site` | `site`, `group` or `layer`: where one decision is reused |
//! | `combine` | `output-sum` | `output-sum` (PEFT) or `ab-merge` (mttl) |

use polyskill_sdk::gate::{Combine, Op, Program, Share, SiteSelector};
use polyskill_sdk::{
    Descriptor, Host, LibraryChange, Parameters, Plan, Request, RouteError, Router, SvdMethod,
};

/// Names of all parameters.
const PARAMETERS: [&str; 6] = ["top_k", "temperature", "prototypes", "seed", "share", "combine"];
/// PEFT's number of power iterations. `power15` is called after it.
const ITERATIONS: u32 = 15;
/// So many new modules get their prototypes at once, before a request asks. More are made for the
/// candidates of a request alone.
const EAGER_MODULES: usize = 64;

/// The router. It keeps only its configuration: the prototypes are the host's.
#[derive(Debug)]
pub struct Arrow {
    /// The prototypes of the configured parameters, made when modules come. A request may ask for
    /// others.
    configured: Prototypes,
}

polyskill_sdk::export!(Arrow);

impl Router for Arrow {
    fn init(_: &mut dyn Host, parameters: &Parameters) -> Result<Self, String> {
        let settings = Settings::read(parameters).map_err(|error| error.to_string())?;
        Ok(Self { configured: settings.prototypes })
    }

    fn descriptor(&self) -> Descriptor {
        Descriptor { name: "arrow".into(), version: env!("CARGO_PKG_VERSION").into(), causal: true }
    }

    fn library_changed(
        &mut self,
        host: &mut dyn Host,
        change: &LibraryChange,
    ) -> Result<(), String> {
        // A large library is narrowed before it comes here; its prototypes are made when they are needed.
        if change.added.len() > EAGER_MODULES {
            return Ok(());
        }
        change.added.iter().try_for_each(|&module| self.configured.define(host, module))
    }

    fn plan(&mut self, host: &mut dyn Host, request: &Request) -> Result<Plan, RouteError> {
        let settings = Settings::read(&request.parameters)?;
        for &module in &request.candidates {
            if !host.defined(&settings.prototypes.name(), module) {
                settings.prototypes.define(host, module)?;
            }
        }
        Ok(Plan::Gated(vec![settings.program()]))
    }
}

/// The kind of vectors that stand for modules. Two requests with different parameters may use
/// different ones of a module at the same time.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Prototypes {
    /// The way to the top right singular vector of B·A.
    method: SvdMethod,
    /// Divided by √(input features), for mttl's temperature. The scores are then |v·x| / √d, with d
    /// the site's input size.
    normalised: bool,
}

impl Prototypes {
    /// The name under which the host keeps the rows: one for each kind, so that requests with
    /// different parameters do not mix them up.
    fn name(self) -> String {
        let method = match self.method {
            SvdMethod::Exact => "svd".to_owned(),
            SvdMethod::Power { seed, .. } => format!("power15/{seed}"),
        };
        if self.normalised { format!("{method}/sqrt-d") } else { method }
    }

    /// Defines the prototype of a module at each of its sites. Modules of other kinds than LoRA
    /// have none, and are passed over.
    ///
    /// # Errors
    /// If the host cannot compute a vector, or refuses a row.
    fn define(self, host: &mut dyn Host, module: u32) -> Result<(), String> {
        if host.module(module).is_none_or(|info| info.kind != "lora") {
            return Ok(());
        }
        for at in host.sites(module) {
            let mut row = host.singular_vector(module, at.site, self.method)?;
            if self.normalised {
                let scale = 1.0 / (row.len() as f32).sqrt();
                row.iter_mut().for_each(|value| *value *= scale);
            }
            host.define(&self.name(), module, at.site, row)?;
        }
        Ok(())
    }
}

/// Parameters of a request.
#[derive(Clone, Copy, Debug)]
struct Settings {
    /// Modules per token and site, from 1.
    top_k: u32,
    /// The divisor of the scores; 1 where the prototypes are divided by √d instead.
    temperature: f32,
    /// The vectors that stand for modules.
    prototypes: Prototypes,
    /// The sites that reuse one decision.
    share: Share,
    /// The way in which picks combine.
    combine: Combine,
}

impl Settings {
    /// Checks all parameters, unknown ones included.
    fn read(parameters: &Parameters) -> Result<Self, polyskill_sdk::ParameterError> {
        parameters.only(&PARAMETERS)?;
        let temperature = parameters.number("temperature", 1.0)? as f32;
        let seed = parameters.integer("seed", 42, 0)?;
        let method = match parameters.choice("prototypes", &["svd", "power15"])? {
            0 => SvdMethod::Exact,
            _ => SvdMethod::Power { iterations: ITERATIONS, seed },
        };
        Ok(Self {
            top_k: u32::try_from(parameters.integer("top_k", 3, 1)?).unwrap_or(u32::MAX),
            temperature: if temperature > 0.0 { temperature } else { 1.0 },
            prototypes: Prototypes { method, normalised: temperature <= 0.0 },
            share: [Share::Site, Share::Group, Share::Layer]
                [parameters.choice("share", &["site", "group", "layer"])?],
            combine: [Combine::OutputSum, Combine::AbMerge]
                [parameters.choice("combine", &["output-sum", "ab-merge"])?],
        })
    }

    /// The gate program: softmax over the `top_k` largest of |v·x| / T, as PEFT's and mttl's Arrow
    /// compute it. Softmax comes behind the choice, so that the weights sum to one.
    fn program(self) -> Program {
        let mut ops = vec![
            Op::LoadInput,
            Op::Linear { name: self.prototypes.name() },
            Op::Abs,
            Op::TopK { k: self.top_k },
        ];
        if self.temperature != 1.0 {
            ops.push(Op::Affine { scale: 1.0 / self.temperature, shift: 0.0 });
        }
        ops.extend([Op::Softmax, Op::Emit]);
        Program { sites: SiteSelector::All, share: self.share, ops, combine: self.combine }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polyskill_sdk::testing::StubHost;
    use polyskill_sdk::{Value, gate};

    fn plan(parameters: &[(&str, Value)]) -> Result<(Program, StubHost), RouteError> {
        let mut host = StubHost::with_modules(4);
        let mut arrow = Arrow::init(&mut host, &Parameters::default()).unwrap();
        let mut request = Request::for_candidates(&[0, 2, 3]);
        request.parameters = Parameters(
            parameters.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
        );
        match arrow.plan(&mut host, &request)? {
            Plan::Gated(mut programs) => Ok((programs.remove(0), host)),
            other => panic!("arrow returned {other:?}"),
        }
    }

    #[test]
    fn the_program_is_valid_and_its_prototypes_are_defined() {
        for parameters in [
            vec![],
            vec![("temperature", Value::Number(0.5)), ("share", Value::Text("layer".into()))],
            vec![("prototypes", Value::Text("power15".into())), ("seed", Value::Number(7.0))],
            vec![("temperature", Value::Number(0.0)), ("combine", Value::Text("ab-merge".into()))],
        ] {
            let (program, host) = plan(&parameters).unwrap();
            let defined = |name: &str| [0, 2, 3].iter().all(|&module| host.defined(name, module));
            assert_eq!(gate::check(&program, defined), Ok(()));
            assert!(!host.defined("svd", 1), "only candidates cost anything");
        }
    }

    #[test]
    fn bad_parameters_are_the_callers_fault() {
        for (name, value) in [
            ("top_k", Value::Number(0.0)),
            ("top_k", Value::Number(1.5)),
            ("temperature", Value::Text("hot".into())),
            ("prototypes", Value::Text("pca".into())),
            ("topk", Value::Number(2.0)),
        ] {
            let Err(RouteError::InvalidParameter(error)) = plan(&[(name, value)]) else {
                panic!("`{name}` was accepted");
            };
            assert_eq!(error.name, name);
        }
    }
}
