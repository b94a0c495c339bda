//! Uses the modules that the user's message names: `german-numbers` for "in German, please".

use polyskill_sdk::{Descriptor, Host, Parameters, Pick, Plan, Request, RouteError, Router};

struct ByName;

polyskill_sdk::export!(ByName);

impl Router for ByName {
    fn init(_: &mut dyn Host, parameters: &Parameters) -> Result<Self, String> {
        parameters.only(&["weight"]).map_err(|error| error.to_string())?;
        Ok(Self)
    }

    fn descriptor(&self) -> Descriptor {
        Descriptor { name: "@NAME@".into(), version: env!("CARGO_PKG_VERSION").into(), causal: false }
    }

    fn plan(&mut self, host: &mut dyn Host, request: &Request) -> Result<Plan, RouteError> {
        let weight = request.parameters.number("weight", 1.0)? as f32;
        let text = request.text.as_deref().unwrap_or_default().to_lowercase();
        let is_named = |module: &u32| {
            let name = host.module(*module).unwrap_or_default().name;
            name.split('-').any(|word| text.contains(word))
        };
        let named: Vec<u32> = request.candidates.iter().copied().filter(is_named).collect();
        if named.is_empty() {
            return Err(RouteError::Abstain);
        }
        let weight = weight / named.len() as f32;
        Ok(Plan::output_sum(named.into_iter().map(|module| Pick { module, weight })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polyskill_sdk::testing::StubHost;

    #[test]
    fn the_named_module_is_picked() {
        let mut host = StubHost::with_modules(2);
        host.module_mut(1).unwrap().name = "german-numbers".into();
        let mut router = ByName::init(&mut host, &Parameters::default()).unwrap();
        let mut request = Request::for_candidates(&[0, 1]);
        request.text = Some("Seventeen in German, please.".into());
        let plan = router.plan(&mut host, &request);
        assert_eq!(plan, Ok(Plan::output_sum([Pick { module: 1, weight: 1.0 }])));
        request.text = Some("Good morning!".into());
        assert_eq!(router.plan(&mut host, &request), Err(RouteError::Abstain));
    }
}
