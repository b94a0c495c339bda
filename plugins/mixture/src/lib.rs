//! Mixture: the same weighted sum of modules for every token.
//!
//! Without weights, all candidates count alike: the baseline that a router should beat.
//!
//! | parameter | default | meaning |
//! |---|---|---|
//! | `weights` | empty | `name=0.5,other=0.5`; empty: the same weight for all candidates, in sum 1 |

use polyskill_sdk::{
    Descriptor, Host, LibraryChange, ParameterError, Parameters, Pick, Plan, Request, RouteError,
    Router, Value,
};

/// The one parameter.
const WEIGHTS: &str = "weights";

/// The router. The names are a cache. A request that gives no weights does not need them.
#[derive(Debug)]
pub struct Mixture {
    /// Names of the library's modules by index; `None` when they have to be asked for again.
    names: Option<Vec<String>>,
}

polyskill_sdk::export!(Mixture);

impl Router for Mixture {
    fn init(_: &mut dyn Host, parameters: &Parameters) -> Result<Self, String> {
        weights(parameters).map_err(|error| error.to_string())?;
        Ok(Self { names: None })
    }

    fn descriptor(&self) -> Descriptor {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Descriptor { name: "mixture".to_owned(), version, causal: true }
    }

    fn library_changed(&mut self, _: &mut dyn Host, _: &LibraryChange) -> Result<(), String> {
        self.names = None;
        Ok(())
    }

    fn plan(&mut self, host: &mut dyn Host, request: &Request) -> Result<Plan, RouteError> {
        let weights = weights(&request.parameters)?;
        let candidates = &request.candidates;
        if weights.is_empty() {
            // What acts as a whole does so beside the shares of the others.
            let acts_whole = |m: u32| host.module(m).is_some_and(|info| info.acts_whole());
            let shares = candidates.iter().filter(|&&m| !acts_whole(m)).count();
            let weight = |m: u32| if acts_whole(m) { 1.0 } else { 1.0 / shares as f32 };
            let pick = |&m: &u32| Pick { module: m, weight: weight(m) };
            return Ok(Plan::output_sum(candidates.iter().map(pick).collect::<Vec<_>>()));
        }
        let names = self
            .names
            .get_or_insert_with(|| host.modules().into_iter().map(|module| module.name).collect());
        let pick = |&(name, weight): &(&str, f32)| {
            let is_named = |&&m: &&u32| names.get(m as usize).is_some_and(|known| known == name);
            let module = candidates.iter().find(is_named);
            let message = || format!("`{name}` is not among the modules of this request");
            Ok(Pick { module: *module.ok_or_else(|| wrong(message()))?, weight })
        };
        let picks = weights.iter().map(pick).collect::<Result<Vec<_>, ParameterError>>()?;
        Ok(Plan::output_sum(picks))
    }
}

/// An error of the parameter. All errors of this router are about it.
fn wrong(message: String) -> ParameterError {
    ParameterError { name: WEIGHTS.to_owned(), message }
}

/// Names and weights, in the order given. Empty where the parameter is missing or empty. A name may
/// hold `=`, as the last one before the number counts.
///
/// # Errors
/// If an entry is no name with a finite number, or a name stands there twice.
fn weights(parameters: &Parameters) -> Result<Vec<(&str, f32)>, ParameterError> {
    parameters.only(&[WEIGHTS])?;
    let text = match parameters.get(WEIGHTS) {
        None => "",
        Some(Value::Text(text)) => text,
        Some(other) => return Err(wrong(format!("found {other:?}, expected a text"))),
    };
    let mut weights: Vec<(&str, f32)> = Vec::new();
    for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        let parsed = entry.rsplit_once('=').and_then(|(name, weight)| {
            let weight: f32 = weight.trim().parse().ok()?;
            weight.is_finite().then_some((name.trim(), weight))
        });
        let (name, weight) = parsed
            .ok_or_else(|| wrong(format!("found `{entry}`, expected a name, `=` and a number")))?;
        if weights.iter().any(|(known, _)| *known == name) {
            return Err(wrong(format!("`{name}` stands there twice")));
        }
        weights.push((name, weight));
    }
    Ok(weights)
}

#[cfg(test)]
mod tests {
    use super::*;
    use polyskill_sdk::testing::StubHost;

    fn plan(candidates: &[u32], weights: Option<&str>) -> Result<Plan, RouteError> {
        let mut host = StubHost::with_modules(4);
        let mut router = Mixture::init(&mut host, &Parameters::default()).unwrap();
        let mut request = Request::for_candidates(candidates);
        let parameter = |text: &str| (WEIGHTS.to_owned(), Value::Text(text.to_owned()));
        request.parameters = Parameters(weights.map(parameter).into_iter().collect());
        router.plan(&mut host, &request)
    }

    fn fixed(picks: &[(u32, f32)]) -> Result<Plan, RouteError> {
        let picks = picks.iter().map(|&(module, weight)| Pick { module, weight });
        Ok(Plan::output_sum(picks))
    }

    #[test]
    fn all_alike_or_as_told() {
        assert_eq!(plan(&[1, 3], None), fixed(&[(1, 0.5), (3, 0.5)]));
        assert_eq!(plan(&[1, 3], Some(" ")), fixed(&[(1, 0.5), (3, 0.5)]));
        let told = plan(&[0, 1, 3], Some("module-3 = 0.75, module-0=-0.5,"));
        assert_eq!(told, fixed(&[(3, 0.75), (0, -0.5)]));
    }

    #[test]
    fn what_is_not_there_is_the_callers_fault() {
        for (weights, part) in [
            ("module-1", "expected a name"),
            ("module-1=a", "expected a name"),
            ("module-1=inf", "expected a name"),
            ("module-1=1,module-1=2", "twice"),
            ("module-2=1", "`module-2` is not among"),
            ("nothing=1", "`nothing` is not among"),
        ] {
            let Err(RouteError::InvalidParameter(error)) = plan(&[0, 1], Some(weights)) else {
                panic!("`{weights}` was accepted");
            };
            assert!(error.name == WEIGHTS && error.message.contains(part), "{error}");
        }
    }
}
