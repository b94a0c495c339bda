//! Retrieval: of a large library, the modules whose cards fit the request's text best.
//!
//! A module's name, tags and metadata are a document, the text is the query, and BM25 (Robertson and
//! Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009) scores them.
//!
//! | parameter | default | meaning |
//! |---|---|---|
//! | `k` | 16 | modules that are left, at most |
//! | `mode` | `narrow` | `narrow`: the next router of the chain chooses; `mixture`: a softmax over their scores |
//! | `temperature` | 1 | of the softmax, above 0 |
//!
//! A module that acts as a whole, such as a prefix, has no part of a mixture: it answers alone where it is the best, and
//! is left out where it is not.

mod bm25;

use bm25::Index;
use polyskill_sdk::{
    Descriptor, Host, LibraryChange, ModuleInfo, ParameterError, Parameters, Pick, Plan, Request,
    RouteError, Router,
};

/// The router. The index is a cache: an instance that has seen no library makes it when it plans.
/// Modules are narrowed or mixed by their cards alone; their weights are never read.
#[derive(Debug)]
pub struct Retrieval {
    /// The index over all modules of the library; a module's number is its document's.
    index: Option<Index>,
}

polyskill_sdk::export!(Retrieval);

impl Router for Retrieval {
    fn init(_: &mut dyn Host, parameters: &Parameters) -> Result<Self, String> {
        Settings::read(parameters).map_err(|error| error.to_string())?;
        Ok(Self { index: None })
    }

    fn descriptor(&self) -> Descriptor {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Descriptor { name: "retrieval".to_owned(), version, causal: true }
    }

    fn library_changed(&mut self, host: &mut dyn Host, _: &LibraryChange) -> Result<(), String> {
        self.index = Some(index(host));
        Ok(())
    }

    fn plan(&mut self, host: &mut dyn Host, request: &Request) -> Result<Plan, RouteError> {
        let settings = Settings::read(&request.parameters)?;
        let text = request.text.as_deref().ok_or(RouteError::Abstain)?;
        let index = self.index.get_or_insert_with(|| index(host));
        let scores = index.scores(text);
        let score = |&module: &u32| Some((module, *scores.get(module as usize)?));
        let mut best: Vec<(u32, f32)> =
            request.candidates.iter().filter_map(score).filter(|(_, score)| *score > 0.0).collect();
        if best.is_empty() {
            return Err(RouteError::Abstain);
        }
        // Stable: of equal scores, the lower index.
        best.sort_by(|a, b| b.1.total_cmp(&a.1));
        best.truncate(settings.k);
        if settings.mixture {
            let acts_whole =
                |module: u32| host.module(module).is_some_and(|info| info.acts_whole());
            match acts_whole(best[0].0) {
                true => best.truncate(1),
                false => best.retain(|(module, _)| !acts_whole(*module)),
            }
        }
        best.sort_by_key(|(module, _)| *module);
        Ok(match settings.mixture {
            false => Plan::Narrowed(best.into_iter().map(|(module, _)| module).collect()),
            true => Plan::output_sum(softmax(&best, settings.temperature)),
        })
    }
}

/// Indexes every module of the library: name, tags, and the values of its metadata. Its cost grows
/// with the words of all cards, so it is kept until the library changes.
fn index(host: &dyn Host) -> Index {
    let document = |module: ModuleInfo| {
        let metadata = module.metadata.into_iter().map(|(_, value)| value);
        std::iter::once(module.name).chain(module.tags).chain(metadata).collect::<Vec<_>>()
    };
    Index::new(host.modules().into_iter().map(document))
}

/// e^((s − max) / T) over the sum of these, for each module with its score s. `scores` is not
/// empty.
fn softmax(scores: &[(u32, f32)], temperature: f32) -> Vec<Pick> {
    let max = scores.iter().map(|(_, score)| *score).fold(f32::NEG_INFINITY, f32::max);
    let exponent = |score: f32| ((score - max) / temperature).exp();
    let sum: f32 = scores.iter().map(|(_, score)| exponent(*score)).sum();
    let pick = |&(module, score): &(u32, f32)| Pick { module, weight: exponent(score) / sum };
    scores.iter().map(pick).collect()
}

/// Parameters of a request. A request's parameters go before the configured ones.
#[derive(Clone, Copy, Debug)]
struct Settings {
    /// Modules that are left, at most; from 1.
    k: usize,
    /// Mixes the best modules instead of leaving the choice to the next router.
    mixture: bool,
    /// T of the softmax, above 0.
    temperature: f32,
}

impl Settings {
    /// Checks all parameters, unknown ones included.
    fn read(parameters: &Parameters) -> Result<Self, ParameterError> {
        parameters.only(&["k", "mode", "temperature"])?;
        let temperature = parameters.number("temperature", 1.0)? as f32;
        if temperature <= 0.0 {
            let message = format!("found {temperature}, expected a number above 0");
            return Err(ParameterError { name: "temperature".to_owned(), message });
        }
        Ok(Self {
            k: usize::try_from(parameters.integer("k", 16, 1)?).unwrap_or(usize::MAX),
            mixture: parameters.choice("mode", &["narrow", "mixture"])? == 1,
            temperature,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polyskill_sdk::Value;
    use polyskill_sdk::testing::StubHost;

    fn host() -> StubHost {
        let mut host = StubHost::with_modules(4);
        let cards = [
            ("german-numbers", vec!["language"], "Writes numbers as German words"),
            ("iso-date", vec!["format", "dates"], "Turns dates into ISO 8601"),
            ("past-tense", vec!["language"], "Puts sentences into the past tense"),
            ("person-json", vec!["format"], "Extracts persons as JSON"),
        ];
        for (index, (name, tags, description)) in (0..).zip(cards) {
            let module = host.module_mut(index).unwrap();
            module.name = name.to_owned();
            module.tags = tags.into_iter().map(str::to_owned).collect();
            module.metadata = vec![("description".to_owned(), description.to_owned())];
        }
        host
    }

    fn plan(text: Option<&str>, parameters: &[(&str, Value)]) -> Result<Plan, RouteError> {
        let mut host = host();
        let mut router = Retrieval::init(&mut host, &Parameters::default()).unwrap();
        let mut request = Request::for_candidates(&[0, 1, 2, 3]);
        request.text = text.map(str::to_owned);
        request.parameters = Parameters(
            parameters.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
        );
        router.plan(&mut host, &request)
    }

    #[test]
    fn what_acts_as_a_whole_is_no_part_of_a_mixture() {
        let mixture = [("mode".to_owned(), Value::Text("mixture".to_owned()))];
        let picks = |whole: u32, text: &str| {
            let mut host = host();
            host.module_mut(whole).unwrap().kind = "kv-prefix".to_owned();
            let mut router = Retrieval::init(&mut host, &Parameters::default()).unwrap();
            let mut request = Request::for_candidates(&[0, 1, 2, 3]);
            request.text = Some(text.to_owned());
            request.parameters = Parameters(mixture.to_vec());
            match router.plan(&mut host, &request).unwrap() {
                Plan::Fixed { picks, .. } => picks,
                other => panic!("{other:?}"),
            }
        };
        // The best alone, or nothing.
        assert_eq!(picks(1, "dates as ISO and JSON"), [Pick { module: 1, weight: 1.0 }]);
        let without = picks(3, "dates as ISO and JSON");
        assert!(without.iter().all(|pick| pick.module != 3) && !without.is_empty(), "{without:?}");
    }

    #[test]
    fn only_what_matches_is_left() {
        let narrowed = |text| plan(Some(text), &[]);
        assert_eq!(narrowed("Which date is this?"), Ok(Plan::Narrowed(vec![1])));
        assert_eq!(narrowed("Say it in GERMAN, in the past"), Ok(Plan::Narrowed(vec![0, 2])));
        assert_eq!(narrowed("xyzzy"), Err(RouteError::Abstain));
        assert_eq!(narrowed(""), Err(RouteError::Abstain));
        assert_eq!(plan(None, &[]), Err(RouteError::Abstain));
        let one = [("k", Value::Number(1.0))];
        assert_eq!(plan(Some("the past tense of German"), &one), Ok(Plan::Narrowed(vec![2])));
    }

    #[test]
    fn a_mixture_sums_to_one() {
        let parameters = [("mode", Value::Text("mixture".to_owned())), ("k", Value::Number(2.0))];
        let Ok(Plan::Fixed { picks, .. }) = plan(Some("dates, JSON"), &parameters) else {
            panic!()
        };
        assert_eq!(picks.iter().map(|pick| pick.module).collect::<Vec<_>>(), [1, 3]);
        assert!((picks.iter().map(|pick| pick.weight).sum::<f32>() - 1.0).abs() < 1e-6);
        assert!(picks[0].weight > picks[1].weight, "`date` is in the name, too");
    }

    #[test]
    fn the_index_follows_the_library() {
        let mut host = host();
        let mut router = Retrieval::init(&mut host, &Parameters::default()).unwrap();
        router.library_changed(&mut host, &LibraryChange::default()).unwrap();
        let mut request = Request::for_candidates(&[0, 1, 2, 3]);
        request.text = Some("poetry".to_owned());
        assert_eq!(router.plan(&mut host, &request), Err(RouteError::Abstain));
        host.module_mut(3).unwrap().tags.push("poetry".to_owned());
        router.library_changed(&mut host, &LibraryChange::default()).unwrap();
        assert_eq!(router.plan(&mut host, &request), Ok(Plan::Narrowed(vec![3])));
        request.candidates = vec![0, 1];
        assert_eq!(router.plan(&mut host, &request), Err(RouteError::Abstain));
    }

    #[test]
    fn bad_parameters_are_the_callers_fault() {
        for (name, value) in [
            ("k", Value::Number(0.0)),
            ("temperature", Value::Number(0.0)),
            ("mode", Value::Text("wide".to_owned())),
        ] {
            let error = plan(Some("dates"), &[(name, value)]).unwrap_err();
            assert!(matches!(error, RouteError::InvalidParameter(e) if e.name == name));
        }
    }
}
