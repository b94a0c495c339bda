//! Expert pruning: fewer experts of a sparse base, request by request, as an expert policy says.
//!
//! Pruning and skipping as in NAEE (Lu et al., "Not All Experts are Equal", 2024): dropped experts are −∞ before the
//! softmax, and the second of two experts is skipped where its weight is under β times the first's. Aliases as in
//! MC-SMoE (Li et al., "Merge, Then Compress", 2024): experts that were merged keep their columns of the base's router,
//! and their weights add up. Policies are modules; `polyskill calibrate` makes them.
//!
//! | parameter | default | meaning |
//! |---|---|---|
//! | `policy` | none | the policy's name; without it, the one whose tag the text names, or the only one there is |
//! | `prune` | true | whether experts that the policy does not keep are dropped |
//! | `skip` | true | whether the second expert is skipped under the policy's β |
//! | `merge` | true | whether experts stand for others as the policy says |
//! | `beta` | none | β of all layers, in the place of the policy's; needs no policy |

use polyskill_sdk::experts::{
    ExpertLayer, ExpertOp, ExpertProgram, LayerPolicy, POLICY_KIND, artefact,
};
use polyskill_sdk::{
    Descriptor, Host, ModuleInfo, ParameterError, Parameters, Plan, Request, RouteError, Router,
    Value,
};

/// The router. It keeps nothing: policies are read off the modules for each request.
#[derive(Debug)]
pub struct ExpertPruning;

polyskill_sdk::export!(ExpertPruning);

impl Router for ExpertPruning {
    fn init(_: &mut dyn Host, parameters: &Parameters) -> Result<Self, String> {
        Settings::read(parameters).map_err(|error| error.to_string())?;
        Ok(Self)
    }

    fn descriptor(&self) -> Descriptor {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Descriptor { name: "expert-pruning".to_owned(), version, causal: true }
    }

    /// Modules are for the next router of the chain to pick.
    fn plan(&mut self, _: &mut dyn Host, request: &Request) -> Result<Plan, RouteError> {
        Settings::read(&request.parameters)?;
        Err(RouteError::Abstain)
    }

    fn plan_experts(
        &mut self,
        host: &mut dyn Host,
        request: &Request,
        layers: &[ExpertLayer],
    ) -> Result<Vec<ExpertProgram>, RouteError> {
        let settings = Settings::read(&request.parameters)?;
        let policy = settings.find(host, request)?;
        if policy.is_none() && settings.beta.is_none() {
            return Err(RouteError::Abstain);
        }
        let mut programs = Vec::new();
        for &layer in layers {
            let said = policy.map_or_else(Default::default, |policy| read(host, policy, layer));
            let said = settings.applied(said);
            if said.beta.is_some() && layer.top_k != 2 {
                return Err(ParameterError {
                    name: "skip".to_owned(),
                    message: format!(
                        "skipping is defined for two experts per token, layer {} has {}",
                        layer.layer, layer.top_k
                    ),
                }
                .into());
            }
            if said.is_empty() {
                continue;
            }
            let ops: Vec<ExpertOp> = said.ops(layer);
            programs.push(ExpertProgram { layers: vec![layer.layer], ops, module: policy });
        }
        Ok(programs)
    }
}

/// The part of a policy that is about a layer; an empty one where it has none. Artefacts are lists
/// of f32, exact for numbers of experts below 2²⁴.
fn read(host: &dyn Host, policy: u32, layer: ExpertLayer) -> LayerPolicy {
    let site = artefact::site(layer.layer);
    let values = |name: &str| host.artefact(policy, site, name).map(|tensor| tensor.values);
    let numbers = |name: &str| {
        let values = values(name)?;
        Some(values.into_iter().map(|value| value as u32).collect::<Vec<u32>>())
    };
    LayerPolicy {
        layer: layer.layer,
        keep: numbers(artefact::KEEP),
        beta: values(artefact::BETA).and_then(|beta| beta.first().copied()),
        alias: numbers(artefact::ALIAS),
        num_extra: numbers(artefact::EXTRA).and_then(|n| n.first().copied()).unwrap_or(0),
    }
}

/// Parameters of a request. The switches are on by default, and each does nothing where the policy
/// says nothing.
#[derive(Debug)]
struct Settings {
    /// The name of the policy, where the request names one.
    policy: Option<String>,
    /// Drops experts that the policy does not keep.
    prune: bool,
    /// Skips the second expert under β.
    skip: bool,
    /// Lets experts stand for others.
    merge: bool,
    /// β in the place of the policy's.
    beta: Option<f32>,
}

impl Settings {
    /// Checks all parameters, unknown ones included.
    fn read(parameters: &Parameters) -> Result<Self, ParameterError> {
        parameters.only(&["policy", "prune", "skip", "merge", "beta"])?;
        let policy = match parameters.get("policy") {
            None => None,
            Some(Value::Text(name)) => Some(name.clone()),
            Some(other) => return Err(wrong("policy", other, "the name of a policy")),
        };
        let flag = |name: &str| parameters.flag(name, true);
        let beta = match parameters.get("beta") {
            None => None,
            Some(Value::Number(beta)) if beta.is_finite() && *beta >= 0.0 => Some(*beta as f32),
            Some(other) => return Err(wrong("beta", other, "a number from 0 on")),
        };
        Ok(Self { policy, prune: flag("prune")?, skip: flag("skip")?, merge: flag("merge")?, beta })
    }

    /// The policy of a request. By name, which must be that of a candidate; else the first one with
    /// a tag in the request's text as whole words; else the only one. `None` where there are
    /// several or none.
    fn find(&self, host: &dyn Host, request: &Request) -> Result<Option<u32>, RouteError> {
        let policies: Vec<ModuleInfo> = request
            .candidates
            .iter()
            .filter_map(|&candidate| host.module(candidate))
            .filter(|module| module.kind == POLICY_KIND)
            .collect();
        if let Some(name) = &self.policy {
            let found = policies.iter().find(|policy| policy.name == *name);
            let known: Vec<&str> = policies.iter().map(|policy| policy.name.as_str()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return found.map(|policy| Some(policy.index)).ok_or_else(|| {
                let message = format!("found `{name}`, policies of this request are: {known}");
                ParameterError { name: "policy".to_owned(), message }.into()
            });
        }
        let text = words(request.text.as_deref().unwrap_or_default());
        // A tag without a word is in no text.
        let is_said = |tag: &String| words(tag).len() > 1 && text.contains(&words(tag));
        let names = |policy: &&ModuleInfo| policy.tags.iter().any(is_said);
        let named = policies.iter().find(names);
        let only = (policies.len() == 1).then(|| &policies[0]);
        Ok(named.or(only).map(|policy| policy.index))
    }

    /// A layer's policy with the switches of the request. A β of the request goes before the
    /// policy's, and `skip` turns off either. Experts that came with the policy stay known, as
    /// aliases alone point at them.
    fn applied(&self, said: LayerPolicy) -> LayerPolicy {
        LayerPolicy {
            keep: said.keep.filter(|_| self.prune),
            beta: self.beta.or(said.beta).filter(|_| self.skip),
            alias: said.alias.filter(|_| self.merge),
            ..said
        }
    }
}

/// Lower-case words with a space around each, so that whole words are found in one another.
fn words(text: &str) -> String {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.fold(" ".to_owned(), |all, word| all + &word.to_lowercase() + " ")
}

/// The error of a parameter that is not of the expected kind.
fn wrong(name: &str, found: &Value, expected: &str) -> ParameterError {
    let found = match found {
        Value::Flag(value) => value.to_string(),
        Value::Number(value) => value.to_string(),
        Value::Text(value) => format!("`{value}`"),
    };
    ParameterError { name: name.to_owned(), message: format!("found {found}, expected {expected}") }
}

#[cfg(test)]
mod tests {
    use polyskill_sdk::Tensor;
    use polyskill_sdk::testing::StubHost;

    use super::*;

    const LAYER: ExpertLayer =
        ExpertLayer { layer: 0, num_experts: 4, top_k: 2, renormalise: true };

    /// Two policies: `module-0` keeps experts 1 and 3 and is for sums, `module-1` has β.
    fn host() -> StubHost {
        let mut host = StubHost::with_modules(2);
        for index in 0..2 {
            host.module_mut(index).unwrap().kind = POLICY_KIND.to_owned();
        }
        host.module_mut(0).unwrap().tags = vec!["Sum".to_owned()];
        let tensor =
            |values: &[f32]| Tensor { shape: vec![values.len() as u32], values: values.to_vec() };
        host.set_artefact(0, artefact::site(0), artefact::KEEP, tensor(&[1.0, 3.0]));
        host.set_artefact(1, artefact::site(0), artefact::BETA, tensor(&[0.5]));
        host
    }

    fn ask(parameters: &[(&str, Value)], text: &str) -> Result<Vec<ExpertProgram>, RouteError> {
        let mut request = Request::for_candidates(&[0, 1]);
        request.text = Some(text.to_owned());
        let own = |(name, value): &(&str, Value)| ((*name).to_owned(), value.clone());
        request.parameters = Parameters(parameters.iter().map(own).collect());
        ExpertPruning.plan_experts(&mut host(), &request, &[LAYER])
    }

    fn text(value: &str) -> Value {
        Value::Text(value.to_owned())
    }

    #[test]
    fn a_policy_is_found_by_name_or_by_what_the_text_says() {
        let keep = ExpertOp::Mask { keep: vec![1, 3] };
        let named = ask(&[("policy", text("module-0"))], "").unwrap();
        assert_eq!((named[0].module, &named[0].ops[1]), (Some(0), &keep));
        assert_eq!(ask(&[], "What is the sum of 3 and 4?").unwrap(), named);
        assert_eq!(ask(&[], "Summary, please."), Err(RouteError::Abstain));
        let mut symbols = host();
        symbols.module_mut(0).unwrap().tags = vec!["+".to_owned(), String::new()];
        let mut request = Request::for_candidates(&[0, 1]);
        request.text = Some("1 + 1".to_owned());
        let abstains = ExpertPruning.plan_experts(&mut symbols, &request, &[LAYER]);
        assert_eq!(abstains, Err(RouteError::Abstain));
        let Err(RouteError::InvalidParameter(error)) = ask(&[("policy", text("x"))], "") else {
            panic!("an unknown policy is refused");
        };
        assert!(error.message.contains("module-0, module-1"), "{}", error.message);
    }

    #[test]
    fn parts_can_be_left_out_and_beta_replaced() {
        let kept_all = ask(&[("policy", text("module-0")), ("prune", Value::Flag(false))], "");
        assert_eq!(kept_all, Ok(Vec::new()));
        // The flat ABI carries flags as numbers.
        for name in ["prune", "skip", "merge"] {
            let set = |value: Value| ask(&[("policy", text("module-1")), (name, value)], "");
            for (number, flag) in [(0.0, false), (1.0, true)] {
                assert_eq!(set(Value::Number(number)), set(Value::Flag(flag)), "{name}");
            }
            for value in [Value::Number(0.5), text("true")] {
                let refused = set(value).unwrap_err();
                assert!(matches!(refused, RouteError::InvalidParameter(e) if e.name == name));
            }
        }
        let beta = |parameters: &[(&str, Value)]| ask(parameters, "").unwrap()[0].ops[3].clone();
        assert_eq!(beta(&[("policy", text("module-1"))]), ExpertOp::SkipRatio { beta: 0.5 });
        assert_eq!(beta(&[("beta", Value::Number(0.25))]), ExpertOp::SkipRatio { beta: 0.25 });
    }

    #[test]
    fn a_policy_with_empty_artefacts_says_nothing_of_them() {
        let mut host = host();
        for name in [artefact::BETA, artefact::EXTRA] {
            let tensor = Tensor { shape: vec![0], values: Vec::new() };
            host.set_artefact(1, artefact::site(0), name, tensor);
        }
        let said = read(&host, 1, LAYER);
        assert!(said.is_empty() && said.num_extra == 0, "{said:?}");
    }

    #[test]
    fn skipping_needs_two_experts_per_token() {
        let request = Request {
            parameters: Parameters(vec![("beta".to_owned(), Value::Number(0.5))]),
            ..Request::for_candidates(&[])
        };
        let layer = ExpertLayer { top_k: 4, num_experts: 8, ..LAYER };
        let refused = ExpertPruning.plan_experts(&mut host(), &request, &[layer]);
        assert!(
            matches!(refused, Err(RouteError::InvalidParameter(error)) if error.name == "skip")
        );
    }
}
