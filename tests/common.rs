//! What the integration tests share: fixtures, goldens, a workbench without a server, and runs on it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, OnceLock};

use polyskill_adapters::library::Expected;
use polyskill_adapters::{Library, load_module};
use polyskill_engine::{
    Composer, Composition, Engine, EngineConfig, Event, Finished, Logprob, Offered, PromptLogprob,
    Request, RouterRequest, RouterSettings, SamplingParams, Selection, TokenEvent, TraceLevel,
};
use polyskill_model::{Compute, Decoder, load};
use polyskill_router_arrow::Arrow;
use polyskill_router_mixture::Mixture;
use polyskill_sdk::runtime::Native;
use polyskill_sdk::{Parameters, Value};
use serde_json::Value as Json;

/// Size of the fixtures' vocabulary: as many alternatives are every log-probability.
pub(crate) const VOCAB: usize = 320;
/// The library of the Arrow goldens, in PEFT's order, which is the order of the names.
pub(crate) const TASKS: [&str; 5] = ["task-a", "task-b", "task-c", "task-d", "task-e"];

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn fixtures() -> PathBuf {
    root().join("tests/fixtures")
}

/// Where `cargo xtask plugins` puts the bundles.
pub(crate) fn plugins() -> PathBuf {
    let built = std::env::var_os("POLYSKILL_PLUGINS").map(PathBuf::from);
    let directory = built.unwrap_or_else(|| root().join("target/plugins"));
    assert!(
        directory.join("arrow/plugin.toml").is_file(),
        "{} holds no `arrow` plugin; run `cargo xtask plugins` first",
        directory.display()
    );
    directory
}

pub(crate) fn read_json(path: &Path) -> Json {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub(crate) fn golden(name: &str) -> Json {
    read_json(&fixtures().join("goldens").join(format!("{name}.json")))
}

pub(crate) fn list(value: &Json) -> &[Json] {
    value.as_array().map_or(&[], Vec::as_slice)
}

pub(crate) fn text<'a>(value: &'a Json, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("no text under `{key}`"))
}

/// Copies a folder with all that is in it.
pub(crate) fn copy_all(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_all(&path, &target);
        } else {
            std::fs::copy(&path, target).unwrap();
        }
    }
}

/// All numbers in a value, depth first.
pub(crate) fn floats(value: &Json) -> Vec<f32> {
    match value {
        Json::Array(items) => items.iter().flat_map(floats).collect(),
        other => vec![other.as_f64().unwrap_or_else(|| panic!("{other} is no number")) as f32],
    }
}

pub(crate) fn ids(value: &Json) -> Vec<u32> {
    list(value).iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The largest difference of two lists of the same length.
pub(crate) fn worst(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len(), "the lists differ in length");
    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    // `max` would drop a difference that is not a number.
    differences.fold(0.0, |worst, d| if d > worst || d.is_nan() { d } else { worst })
}

/// A model of the fixtures, loaded once. `path` is below `tests/fixtures`.
pub(crate) fn model(path: &str) -> Arc<Decoder> {
    static MODELS: OnceLock<Mutex<BTreeMap<String, Arc<Decoder>>>> = OnceLock::new();
    static COMPUTE: OnceLock<Arc<Compute>> = OnceLock::new();
    let mut models = MODELS.get_or_init(Mutex::default).lock().unwrap();
    let model = models.entry(path.to_owned()).or_insert_with(|| {
        let compute = Arc::clone(COMPUTE.get_or_init(|| Arc::new(Compute::new(2))));
        Arc::new(load::load(&fixtures().join(path), compute, &mut |_, _| {}).unwrap())
    });
    Arc::clone(model)
}

/// One prompt of a golden file with what the reference computes for it.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) prompt: Vec<u32>,
    pub(crate) next: Vec<f32>,
    pub(crate) rows: Vec<(usize, Vec<f32>)>,
    pub(crate) greedy_ids: Vec<u32>,
    pub(crate) greedy_logprobs: Vec<f32>,
    pub(crate) header: Json,
}

pub(crate) fn cases(file: &str) -> Vec<Case> {
    let golden = golden(file);
    let row = |row: &Json| {
        (usize::try_from(row["position"].as_u64().unwrap()).unwrap(), floats(&row["logprobs"]))
    };
    let case = |case: &Json| Case {
        name: text(case, "name").to_owned(),
        prompt: ids(&case["prompt_ids"]),
        next: floats(&case["next_logprobs"]),
        rows: list(&case["rows"]).iter().map(row).collect(),
        greedy_ids: ids(&case["greedy_ids"]),
        greedy_logprobs: floats(&case["greedy_logprobs"]),
        header: case.clone(),
    };
    let cases: Vec<Case> = list(&golden["cases"]).iter().map(case).collect();
    assert!(!cases.is_empty(), "{file}.json holds no cases");
    cases
}

/// Greedy, with every log-probability of prompt and continuation.
pub(crate) fn greedy(max_tokens: usize) -> SamplingParams {
    SamplingParams {
        max_tokens,
        temperature: 0.0,
        logprobs: Some(VOCAB),
        prompt_logprobs: Some(VOCAB),
        ..SamplingParams::default()
    }
}

/// What a request gave.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) prompt: Vec<PromptLogprob>,
    pub(crate) tokens: Vec<TokenEvent>,
    pub(crate) finished: Finished,
}

impl Output {
    pub(crate) fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|event| event.token).collect()
    }

    /// Everything that was reported, as bits: equal only if nothing differs.
    pub(crate) fn bits(&self) -> Vec<u32> {
        fn flatten(bits: &mut Vec<u32>, token: u32, logprob: Option<&Logprob>) {
            bits.push(token);
            let Some(logprob) = logprob else { return };
            bits.push(logprob.value.to_bits());
            bits.extend(logprob.top.iter().flat_map(|(token, value)| [*token, value.to_bits()]));
        }
        let mut bits = Vec::new();
        self.prompt.iter().for_each(|p| flatten(&mut bits, p.token, p.logprob.as_ref()));
        self.tokens.iter().for_each(|t| flatten(&mut bits, t.token, t.logprob.as_ref()));
        bits
    }

    /// The log-probabilities of all tokens after the token at a position of the prompt.
    pub(crate) fn row(&self, position: usize) -> Vec<f32> {
        let next = self.prompt.get(position + 1).map(|entry| &entry.logprob);
        let logprob = next.unwrap_or_else(|| &self.tokens[0].logprob).as_ref().unwrap();
        let mut row = vec![f32::NAN; VOCAB];
        logprob.top.iter().for_each(|&(token, value)| row[token as usize] = value);
        row
    }

    /// The worst absolute difference in nats from a golden case, over rows and the prompt's tokens.
    pub(crate) fn distance(&self, case: &Case) -> f32 {
        assert_eq!(self.prompt.len(), case.prompt.len(), "{}", case.name);
        assert!(!case.rows.is_empty() && case.next.len() + 1 == case.prompt.len(), "{}", case.name);
        let next: Vec<f32> =
            self.prompt[1..].iter().map(|entry| entry.logprob.as_ref().unwrap().value).collect();
        let rows = case.rows.iter().map(|(position, row)| worst(&self.row(*position), row));
        rows.fold(worst(&next, &case.next), |a, b| if b > a || b.is_nan() { b } else { a })
    }

    /// Requires log-probabilities within the tolerance and the same greedy tokens.
    pub(crate) fn require(&self, case: &Case, tolerance: f32) {
        let distance = self.distance(case);
        assert!(distance <= tolerance, "{}: off by {distance:e} nats", case.name);
        assert_eq!(self.ids(), case.greedy_ids, "{}: other greedy tokens", case.name);
        let values: Vec<f32> =
            self.tokens.iter().map(|event| event.logprob.as_ref().unwrap().value).collect();
        let distance = worst(&values, &case.greedy_logprobs);
        assert!(distance <= tolerance, "{}: greedy, off by {distance:e} nats", case.name);
    }
}

/// A submitted request.
#[derive(Debug)]
pub(crate) struct Pending(Receiver<Event>);

impl Pending {
    pub(crate) fn new(events: Receiver<Event>) -> Self {
        Self(events)
    }

    /// Waits for the end; requires exactly one `Finished`, as the last event.
    pub(crate) fn wait(self) -> Output {
        let (mut prompt, mut tokens, mut finished) = (Vec::new(), Vec::new(), None);
        for event in self.0 {
            assert!(finished.is_none(), "an event after the end: {event:?}");
            match event {
                Event::Prompt(scored) => prompt = scored,
                Event::Token(token) => tokens.push(token),
                Event::Finished(end) => finished = Some(end),
            }
        }
        Output { prompt, tokens, finished: finished.expect("the request never ended") }
    }
}

/// Submits a request whose listener goes away after `listens` tokens.
pub(crate) fn submit_until(
    engine: &Engine,
    composition: &Arc<Composition>,
    prompt: &[u32],
    sampling: SamplingParams,
    listens: usize,
) -> Pending {
    submit_as(engine, composition, prompt, sampling, listens, "")
}

/// The same for a tenant.
pub(crate) fn submit_as(
    engine: &Engine,
    composition: &Arc<Composition>,
    prompt: &[u32],
    sampling: SamplingParams,
    listens: usize,
    tenant: &str,
) -> Pending {
    let (sender, events) = channel();
    let mut left = listens;
    let sink = move |event: Event| {
        if matches!(event, Event::Token(_)) {
            left = left.saturating_sub(1);
        }
        (sender.send(event).is_ok() && left > 0).into()
    };
    let request = Request {
        prompt: prompt.to_vec(),
        sampling,
        composition: Arc::clone(composition),
        trace: TraceLevel::Full,
        shadow: None,
        cache_salt: String::new(),
        tenant: tenant.into(),
        weight: 1.0,
    };
    engine.handle().listen(request, sink).unwrap();
    Pending(events)
}

pub(crate) fn submit(
    engine: &Engine,
    composition: &Arc<Composition>,
    prompt: &[u32],
    sampling: SamplingParams,
) -> Pending {
    submit_until(engine, composition, prompt, sampling, usize::MAX)
}

/// A model with a library, a composer and an engine.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) model: Arc<Decoder>,
    pub(crate) library: Arc<Library>,
    pub(crate) composer: Composer,
    pub(crate) engine: Engine,
}

impl Bench {
    /// `path` is below `tests/fixtures`, `modules` below `tests/fixtures/adapters`.
    pub(crate) fn new(path: &str, modules: &[&str]) -> Self {
        Self::with_config(path, modules, EngineConfig::default())
    }

    pub(crate) fn with_config(path: &str, modules: &[&str], config: EngineConfig) -> Self {
        Self::over(model(path), modules, config)
    }

    pub(crate) fn over(model: Arc<Decoder>, modules: &[&str], config: EngineConfig) -> Self {
        let library = Arc::new(Library::default());
        let roots = fixtures().join("adapters");
        for name in modules {
            let roots =
                if name.ends_with(".gguf") { fixtures().join("gguf") } else { roots.clone() };
            let module = load_module(name, &roots.join(name), &roots, model.as_ref()).unwrap();
            library.publish(name, module, Expected::Absent).unwrap();
        }
        let composer = Composer::new(&model, Arc::clone(&library));
        let max_cached_tokens = config.max_cached_tokens.min(4_096);
        let config = EngineConfig { max_cached_tokens, ..config };
        let engine = Engine::start(Arc::clone(&model), config).unwrap();
        Self { model, library, composer, engine }
    }

    /// The Arrow library with the native Arrow.
    pub(crate) fn arrow() -> Self {
        let bench = Self::new("models/llama-tied", &TASKS);
        bench.add_arrow();
        bench
    }

    pub(crate) fn add_arrow(&self) {
        let none = Parameters::default();
        let router = Native::<Arrow>::new(&self.composer.view(), &none).unwrap();
        self.composer
            .add_router("arrow", "native".to_owned(), Box::new(router), RouterSettings::default())
            .unwrap();
    }

    pub(crate) fn add_mixture(&self) {
        let none = Parameters::default();
        let router = Native::<Mixture>::new(&self.composer.view(), &none).unwrap();
        let settings = RouterSettings { offered: Offered::Any, ..RouterSettings::default() };
        self.composer
            .add_router("mixture", "native mixture".to_owned(), Box::new(router), settings)
            .unwrap();
    }

    pub(crate) fn compose(&self, selection: &Selection) -> Arc<Composition> {
        self.composer.compose(selection).unwrap()
    }

    pub(crate) fn run(
        &self,
        selection: &Selection,
        prompt: &[u32],
        sampling: SamplingParams,
    ) -> Output {
        submit(&self.engine, &self.compose(selection), prompt, sampling).wait()
    }
}

pub(crate) fn weighted(weights: &[(&str, f32)]) -> Selection {
    Selection::Weighted(weights.iter().map(|(name, w)| ((*name).to_owned(), *w)).collect())
}

pub(crate) fn routed(router: &str, parameters: Parameters) -> Selection {
    let router = router.to_owned();
    Selection::Routed(RouterRequest { router, parameters, ..RouterRequest::default() })
}

/// A router's selection with modules that act on every row.
pub(crate) fn beside(selection: Selection, weights: Vec<(String, f32)>) -> Selection {
    match selection {
        Selection::Routed(asked) => {
            Selection::Routed(RouterRequest { always_on: weights, ..asked })
        }
        other => other,
    }
}

/// The parameters of PEFT's Arrow.
pub(crate) fn peft_arrow(top_k: f64, temperature: f64, seed: f64) -> Selection {
    let parameters = vec![
        ("prototypes".to_owned(), Value::Text("power15".to_owned())),
        ("top_k".to_owned(), Value::Number(top_k)),
        ("temperature".to_owned(), Value::Number(temperature)),
        ("seed".to_owned(), Value::Number(seed)),
    ];
    routed("arrow", Parameters(parameters))
}

/// What a case of `arrow.json` asks for.
pub(crate) fn arrow_selection(case: &Case) -> Selection {
    let number = |key: &str| case.header[key].as_f64().unwrap();
    peft_arrow(number("top_k"), number("temperature"), number("seed"))
}
