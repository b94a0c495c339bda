//! Nothing leaks from request to request: whatever modules, mixtures, routers, salts, replacements, prefix reuse
//! and evictions came before or run beside it, a request gives the bits that it gives cold and alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use polyskill_adapters::library::Expected;
use polyskill_adapters::{Budget, open_module};
use polyskill_engine::{Composition, EngineConfig, Request, SamplingParams, Selection, TraceLevel};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use crate::common::{
    Bench, Output, Pending, VOCAB, beside, fixtures, list, peft_arrow, read_json, routed, text,
};

const LLAMA: &str = "models/llama-tied";
/// Names that modules are served under; what stands under them changes.
const NAMES: [&str; 6] = ["m0", "m1", "m2", "m3", "m4", "m5"];

/// The modules of the fixtures that were made for this base.
fn contents() -> Vec<String> {
    let mut names = BTreeSet::new();
    for file in ["kinds", "lora", "arrow"] {
        let golden = read_json(&fixtures().join(format!("goldens/{file}.json")));
        for case in list(&golden["cases"]) {
            let other = case.get("model").is_none_or(|model| model != "llama-tied");
            if !other {
                names.extend(list(&case["adapters"]).iter().map(|entry| match entry.as_str() {
                    Some(name) => name.to_owned(),
                    None => text(entry, "name").to_owned(),
                }));
            }
        }
    }
    names.into_iter().collect()
}

fn publish(bench: &Bench, name: &str, content: &str) {
    let root = fixtures().join("adapters");
    let module = open_module(content, &root.join(content), &root, &bench.model, ()).unwrap();
    bench.library.publish(name, module, Expected::Any).unwrap();
}

#[derive(Clone, Debug)]
enum Action {
    /// Puts a module under a name, in place of what stands there.
    Publish(usize, usize),
    Remove(usize),
    /// Sets the memory for weights, in shares of all modules' bytes.
    Budget(Option<u8>),
    Ask(Ask),
}

#[derive(Clone, Debug)]
struct Ask {
    /// Names and weights, beside the router if there is one.
    picks: Vec<(usize, f32)>,
    router: Option<u32>,
    /// Which of a few beginnings the prompt has, how much of it, and what follows.
    beginning: (usize, usize),
    tail: Vec<u32>,
    salt: usize,
    max_tokens: usize,
    temperature: f32,
    seed: u64,
}

fn action(num_contents: usize) -> impl Strategy<Value = Action> {
    prop_oneof![
        2 => (0..NAMES.len(), 0..num_contents).prop_map(|(name, at)| Action::Publish(name, at)),
        1 => (0..NAMES.len()).prop_map(Action::Remove),
        1 => prop::option::of(60_u8..100).prop_map(Action::Budget),
        6 => ask().prop_map(Action::Ask),
    ]
}

fn ask() -> impl Strategy<Value = Ask> {
    let weight = prop_oneof![2 => Just(1.0_f32), 1 => -1.5_f32..1.5];
    let some = prop::collection::btree_map(0..NAMES.len(), weight, 0..3);
    let one = (0..3_usize).prop_map(|name| BTreeMap::from([(name, 1.0)]));
    let picks = prop_oneof![2 => some, 1 => one, 1 => Just(BTreeMap::new())];
    let router = prop::option::weighted(0.25, 1_u32..4);
    let tail = prop::collection::vec(3..VOCAB as u32, 1..6);
    let prompt = ((0_usize..2, 20_usize..80), tail);
    let salt = prop_oneof![3 => Just(0_usize), 1 => 1_usize..3];
    let rest = (salt, 1_usize..8, prop::bool::ANY, 0_u64..3);
    (picks, router, prompt, rest).prop_map(
        |(picks, router, (beginning, tail), (salt, max_tokens, greedy, seed))| Ask {
            picks: picks.into_iter().collect(),
            router,
            beginning,
            tail,
            salt,
            max_tokens,
            temperature: if greedy { 0.0 } else { 1.0 },
            seed,
        },
    )
}

impl Ask {
    fn prompt(&self) -> Vec<u32> {
        let (which, len) = self.beginning;
        let token = |at: usize| 3 + ((at * 31 + which * 7) % (VOCAB - 3)) as u32;
        (0..len).map(token).chain(self.tail.iter().copied()).collect()
    }

    fn selection(&self) -> Selection {
        let picks = self.picks.iter().map(|(name, w)| (NAMES[*name].to_owned(), *w)).collect();
        match self.router {
            Some(top_k) => beside(peft_arrow(f64::from(top_k), 1.0, 42.0), picks),
            None => Selection::Weighted(picks),
        }
    }

    fn submit(&self, bench: &Bench, composition: &Arc<Composition>) -> Pending {
        let (sender, events) = std::sync::mpsc::channel();
        let request = Request {
            prompt: self.prompt(),
            sampling: SamplingParams {
                max_tokens: self.max_tokens,
                temperature: self.temperature,
                seed: self.seed,
                logprobs: Some(VOCAB),
                ..SamplingParams::default()
            },
            composition: Arc::clone(composition),
            trace: TraceLevel::None,
            shadow: None,
            cache_salt: ["", "a", "b"][self.salt].to_owned(),
            tenant: "".into(),
            weight: 1.0,
        };
        let tell = move |event| sender.send(event).is_ok().into();
        bench.engine.handle().listen(request, tell).unwrap();
        Pending::new(events)
    }

    /// The same request on a fresh engine without a prefix cache, with the modules that stood there.
    fn cold(&self, modules: &BTreeMap<&str, String>) -> Output {
        let config = EngineConfig { prefix_cache: false, ..EngineConfig::default() };
        let bench = Bench::with_config(LLAMA, &[], config);
        modules.iter().for_each(|(name, content)| publish(&bench, name, content));
        bench.add_arrow();
        let composition = bench.compose(&self.selection());
        self.submit(&bench, &composition).wait()
    }
}

fn check(actions: &[Action], contents: &[String]) -> Result<u64, TestCaseError> {
    let config = EngineConfig { max_running: 4, max_rows: 48, ..EngineConfig::default() };
    let bench = Bench::with_config(LLAMA, &[], config);
    bench.add_arrow();
    let mut standing: BTreeMap<&str, String> = BTreeMap::new();
    for (name, content) in NAMES.iter().zip(["task-a", "task-b", "task-c"]) {
        publish(&bench, name, content);
        standing.insert(name, content.to_owned());
    }
    let mut asked = Vec::new();
    for action in actions {
        match action {
            Action::Publish(name, content) => {
                publish(&bench, NAMES[*name], &contents[*content]);
                standing.insert(NAMES[*name], contents[*content].clone());
            }
            Action::Remove(name) => {
                let removed = bench.library.remove(NAMES[*name], Expected::Any);
                prop_assert_eq!(removed.is_ok(), standing.remove(NAMES[*name]).is_some());
            }
            Action::Budget(share) => {
                let bytes =
                    |(_, module): (&str, &Arc<polyskill_adapters::Module>)| module.num_bytes();
                let all: usize = bench.library.snapshot().iter().map(bytes).sum();
                let max_bytes = share.map(|share| all * usize::from(share) / 100);
                let patience = Duration::from_millis(1);
                bench.library.set_budget(Budget { max_bytes, patience, ..Budget::default() });
            }
            Action::Ask(ask) => match bench.composer.compose(&ask.selection()) {
                Ok(composition) if composition.fallback().is_none() => {
                    let pending = ask.submit(&bench, &composition);
                    asked.push((ask, standing.clone(), pending));
                }
                // Nothing stands there, or the modules together exceed the memory.
                _ => {}
            },
        }
    }
    for (ask, modules, pending) in asked {
        let (warm, cold) = (pending.wait(), ask.cold(&modules));
        prop_assert!(warm.bits() == cold.bits(), "{:?} with {:?}", ask, modules);
        prop_assert_eq!(warm.finished.reason, cold.finished.reason);
    }
    let stats = bench.engine.handle().stats().snapshot();
    prop_assert_eq!((stats.running, stats.waiting, stats.kv_blocks_used), (0, 0, 0));
    prop_assert_eq!(bench.library.pool_stats().leased_bytes, 0);
    for name in standing.keys() {
        bench.library.remove(name, Expected::Any).unwrap();
    }
    bench.composer.refresh_routers();
    prop_assert_eq!(bench.library.resident_bytes(), 0);
    Ok(stats.prefix_hits)
}

#[test]
fn nothing_leaks_from_request_to_request() {
    let contents = contents();
    assert!(contents.len() > 15, "{contents:?}");
    let config = ProptestConfig { cases: 16, failure_persistence: None, ..Default::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let hits = std::cell::Cell::new(0);
    let actions = prop::collection::vec(action(contents.len()), 4..28);
    let run = runner.run(&actions, |actions| {
        hits.set(hits.get() + check(&actions, &contents)?);
        Ok(())
    });
    run.unwrap_or_else(|failure| panic!("{failure}"));
    assert!(hits.get() > 100, "the prefix cache was hit for {} tokens only", hits.get());
}

/// The cases that went wrong in other servers, one by one.
#[test]
fn a_prefix_is_never_shared_across_what_differs() {
    let bench = Bench::with_config(LLAMA, &[], EngineConfig::default());
    publish(&bench, "m0", "task-a");
    publish(&bench, "m1", "task-b");
    let ask = |picks: Vec<(usize, f32)>, salt| Ask {
        picks,
        router: None,
        beginning: (0, 64),
        tail: vec![9],
        salt,
        max_tokens: 2,
        temperature: 0.0,
        seed: 0,
    };
    let cached = |ask: &Ask| {
        let composition = bench.compose(&ask.selection());
        ask.submit(&bench, &composition).wait().finished.cached_tokens
    };
    let one = ask(vec![(0, 1.0)], 0);
    assert_eq!((cached(&one), cached(&one)), (0, 64));
    assert_eq!(cached(&ask(vec![(0, 0.5)], 0)), 0, "another weight");
    assert_eq!(cached(&ask(vec![(0, 1.0), (1, 1.0)], 0)), 0, "one module more");
    assert_eq!(cached(&ask(vec![(1, 1.0)], 0)), 0, "another module");
    assert_eq!(cached(&ask(vec![(0, 1.0)], 1)), 0, "another salt");
    // The same name with other content, and then the first content again.
    publish(&bench, "m0", "task-c");
    assert_eq!(cached(&one), 0, "another generation");
    publish(&bench, "m0", "task-a");
    assert_eq!(cached(&one), 64);
    // The order matters, whoever put a module where it is.
    bench.add_mixture();
    let beside_m1 = |picked: &str| {
        let weights = polyskill_sdk::Value::Text(picked.to_owned());
        let mixture =
            routed("mixture", polyskill_sdk::Parameters(vec![("weights".to_owned(), weights)]));
        bench.compose(&beside(mixture, vec![("m1".to_owned(), 1.0)]))
    };
    let cached_of = |composition: &Arc<Composition>| {
        one.submit(&bench, composition).wait().finished.cached_tokens
    };
    assert_eq!(
        cached_of(&beside_m1("m0=1")),
        0,
        "the modules of another request, in another order"
    );
    assert_eq!(cached(&ask(vec![(1, 1.0), (0, 1.0)], 0)), 64, "the same modules in the same order");
    // Another name for the same content computes the same.
    publish(&bench, "m2", "task-a");
    assert_eq!(cached(&ask(vec![(2, 1.0)], 0)), 64);
}
