//! What holds for any mix of requests: the bits of a run alone, one end each, and nothing left behind.

use std::sync::mpsc::channel;
use std::sync::{Arc, OnceLock};

use polyskill_adapters::library::Expected;
use polyskill_adapters::{Kind, Module, Weights};
use polyskill_engine::{
    Engine, EngineConfig, Event, FinishReason, Request, SamplingParams, Selection, SubmitError,
    TraceLevel,
};
use polyskill_model::{Compute, KvCache, NoHooks, Scratch, Step, load};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use crate::common::{
    Bench, Pending, TASKS, VOCAB, beside, cases, fixtures, greedy, peft_arrow, submit, submit_as,
    submit_until, weighted,
};

const LLAMA: &str = "models/llama-tied";

fn long_prompt() -> Vec<u32> {
    cases("models").into_iter().find(|case| case.name == "llama-tied/long").unwrap().prompt
}

#[test]
fn no_modules_is_the_decoder_without_hooks() {
    let bench = Bench::new(LLAMA, &TASKS);
    let prompt = long_prompt();
    let positions: Vec<u32> = (0..prompt.len() as u32).collect();
    let mut kv = KvCache::new(bench.model.config(), KvCache::blocks_for(prompt.len()));
    // Blocks in another order than the engine hands them out.
    let table: Vec<u32> = (0..kv.num_blocks() as u32).rev().collect();
    let mut scratch = Scratch::default();
    let step = Step {
        tokens: &prompt,
        positions: &positions,
        sequences: &vec![0; prompt.len()],
        block_tables: &[&table],
        logit_rows: &positions,
    };
    let logits = bench.model.forward(&step, &mut kv, &mut NoHooks, &mut scratch).to_vec();
    for selection in [Selection::Base, weighted(&[])] {
        let output = bench.run(&selection, &prompt, greedy(1));
        for (position, logits) in logits.chunks_exact(VOCAB).enumerate() {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
            let normaliser = max + sum.ln() as f32;
            let expected: Vec<u32> =
                logits.iter().map(|logit| (logit - normaliser).to_bits()).collect();
            let found: Vec<u32> = output.row(position).iter().map(|x| x.to_bits()).collect();
            assert_eq!(found, expected, "{selection:?}, position {position}");
        }
    }
}

#[test]
fn the_size_of_chunks_changes_no_bit() {
    let selections = [
        Selection::Base,
        weighted(&[("task-a", 0.8), ("task-c", -0.3)]),
        peft_arrow(2.0, 1.0, 42.0),
    ];
    let mut expected: Option<Vec<Vec<u32>>> = None;
    for max_rows in [256, 16, 7, 1] {
        let config = EngineConfig {
            max_rows,
            max_prompt_rows_while_decoding: max_rows,
            ..EngineConfig::default()
        };
        let bench = Bench::with_config(LLAMA, &TASKS, config);
        bench.add_arrow();
        let run = |selection| bench.run(selection, &long_prompt(), greedy(8)).bits();
        let bits: Vec<Vec<u32>> = selections.iter().map(run).collect();
        assert!(*expected.get_or_insert(bits.clone()) == bits, "{max_rows} rows per step");
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let expected = Bench::new(LLAMA, &[]).run(&Selection::Base, &long_prompt(), greedy(8)).bits();
    for threads in [1, 3] {
        let compute = Arc::new(Compute::new(threads));
        let path = fixtures().join(LLAMA);
        let model = Arc::new(load::load(&path, compute, &mut |_, _| {}).unwrap());
        let bench = Bench::new(LLAMA, &[]);
        let engine = Engine::start(model, EngineConfig::default()).unwrap();
        let base = bench.compose(&Selection::Base);
        let output = submit(&engine, &base, &long_prompt(), greedy(8)).wait();
        assert!(output.bits() == expected, "{threads} threads");
    }
}

#[test]
fn a_composition_survives_the_removal_of_its_modules() {
    let bench = Bench::arrow();
    let (selection, prompt) = (peft_arrow(2.0, 1.0, 42.0), long_prompt());
    let composition = bench.compose(&selection);
    let before = submit(&bench.engine, &composition, &prompt, greedy(8)).wait();
    let bytes = bench.library.resident_bytes();
    assert!(bytes > 0);
    TASKS.iter().for_each(|name| drop(bench.library.remove(name, Expected::Any).unwrap()));
    assert_eq!(bench.library.resident_bytes(), bytes, "the composition leases its modules");
    let after = submit(&bench.engine, &composition, &prompt, greedy(8)).wait();
    assert!(before.bits() == after.bits());
    assert!(bench.composer.compose(&weighted(&[("task-a", 1.0)])).is_err());
    drop(composition);
    assert_eq!(bench.library.resident_bytes(), 0);
}

/// A router sees each change before the next request: the history of the library changes nothing.
#[test]
fn routers_follow_the_library() {
    let (selection, prompt) = (peft_arrow(2.0, 1.0, 42.0), long_prompt());
    let whole = Bench::arrow().run(&selection, &prompt, greedy(8)).bits();
    let bench = Bench::new(LLAMA, &TASKS[..4]);
    bench.add_arrow();
    let four = bench.run(&selection, &prompt, greedy(8)).bits();
    assert!(four != whole);
    let snapshot = Bench::new(LLAMA, &TASKS[4..]).library.snapshot();
    let last = snapshot.get("task-e").unwrap();
    let weights = Weights::clone(&bench.library.lease([last]).unwrap()[0]);
    let again = || Module::in_memory(last.generation(), Kind::Lora, weights.clone(), Vec::new());
    bench.library.publish("task-e", again(), Expected::Absent).unwrap();
    assert!(bench.run(&selection, &prompt, greedy(8)).bits() == whole);
    bench.library.remove("task-e", Expected::Generation(last.generation())).unwrap();
    assert!(bench.run(&selection, &prompt, greedy(8)).bits() == four);
    // Under another name, first in the order: the tie-breaking order changes, the generation does not.
    bench.library.publish("first", again(), Expected::Absent).unwrap();
    let composition = bench.compose(&selection);
    let names: Vec<&str> = composition.modules().iter().map(|lease| lease.name.as_str()).collect();
    assert_eq!(names, ["first", "task-a", "task-b", "task-c", "task-d"]);
}

/// Requests that grow beyond the cache together give way to each other, and come out as they do alone.
#[test]
fn preempted_requests_have_the_bits_of_a_run_alone() {
    let modules = [&TASKS[..], &["prefix-7", "prompt-5", "lora-all", "steering"]].concat();
    let few = EngineConfig { max_cached_tokens: 192, ..EngineConfig::default() };
    for prefix_cache in [true, false] {
        let bench = Bench::with_config(LLAMA, &modules, EngineConfig { prefix_cache, ..few });
        bench.add_arrow();
        let roomy = Bench::new(LLAMA, &modules);
        roomy.add_arrow();
        let prompt = long_prompt();
        let selections = [
            Selection::Base,
            weighted(&[("lora-all", 1.0)]),
            weighted(&[("prefix-7", 1.0)]),
            weighted(&[("prompt-5", 1.0), ("task-a", 0.5)]),
            weighted(&[("steering", 1.0)]),
            peft_arrow(2.0, 1.0, 3.0),
        ];
        let cases: Vec<(&Selection, Vec<u32>, SamplingParams)> = (0..18)
            .map(|at| {
                let length = 5 + 3 * (at % 7);
                let sampling = SamplingParams {
                    temperature: if at % 3 == 0 { 0.0 } else { 0.9 },
                    seed: at as u64,
                    prompt_logprobs: (at % 4 == 1).then_some(VOCAB),
                    repetition_penalty: 1.1,
                    ..greedy(60 + at)
                };
                (&selections[at % selections.len()], prompt[..length].to_vec(), sampling)
            })
            .collect();
        let pending: Vec<Pending> = cases
            .iter()
            .map(|(selection, prompt, sampling)| {
                submit(&bench.engine, &bench.compose(selection), prompt, sampling.clone())
            })
            .collect();
        for (at, ((selection, prompt, sampling), pending)) in cases.iter().zip(pending).enumerate()
        {
            let alone = roomy.run(selection, prompt, sampling.clone());
            assert!(pending.wait().bits() == alone.bits(), "request {at}");
        }
        let stats = bench.engine.handle().stats().snapshot();
        assert!(stats.preemptions > 10, "{stats:?}");
        assert_eq!((stats.running, stats.waiting, stats.kv_blocks_used), (0, 0, 0));
    }
}

/// A tenant that has all places filled with long answers does not keep another one waiting.
#[test]
fn a_tenant_makes_room_for_another() {
    let config = EngineConfig { max_running: 2, max_waiting: 8, ..EngineConfig::default() };
    let bench = Bench::with_config(LLAMA, &[], config);
    let base = bench.compose(&Selection::Base);
    let long = greedy(200);
    let submit = |sampling: SamplingParams, tenant: &str| {
        submit_as(&bench.engine, &base, &[5, 6, 7], sampling, usize::MAX, tenant)
    };
    let flood: Vec<Pending> = (0..8).map(|_| submit(long.clone(), "flood")).collect();
    while bench.engine.handle().stats().snapshot().running < 2 {
        std::thread::yield_now();
    }
    let light = submit(greedy(4), "light").wait();
    assert_eq!(light.ids().len(), 4);
    let stats = bench.engine.handle().stats().snapshot();
    assert!(stats.waiting > 0, "the flood waits still: {stats:?}");
    assert!(stats.preemptions > 0, "{stats:?}");
    let alone = bench.run(&Selection::Base, &[5, 6, 7], long).bits();
    for pending in flood {
        assert!(pending.wait().bits() == alone);
    }
}

#[test]
fn requests_that_cannot_be_served_are_refused() {
    let bench = Bench::new(LLAMA, &[]);
    let base = bench.compose(&Selection::Base);
    let refused = |prompt: Vec<u32>, max_tokens| {
        let request = Request {
            prompt,
            sampling: SamplingParams { max_tokens, ..SamplingParams::default() },
            composition: Arc::clone(&base),
            trace: TraceLevel::None,
            shadow: None,
            cache_salt: String::new(),
            tenant: "".into(),
            weight: 1.0,
        };
        let heard = |event| panic!("a refused request was heard of: {event:?}");
        bench.engine.handle().listen(request, heard).unwrap_err()
    };
    assert_eq!(refused(vec![], 1), SubmitError::EmptyPrompt);
    let unknown = SubmitError::BadToken { token: VOCAB as u32, vocab_size: VOCAB };
    assert_eq!(refused(vec![5, VOCAB as u32], 1), unknown);
    let too_long = SubmitError::TooLong { prompt: 250, max_tokens: 7, limit: 256 };
    assert_eq!(refused(vec![5; 250], 7), too_long);
    assert!(matches!(refused(vec![5], usize::MAX), SubmitError::TooLong { .. }));
}

#[test]
fn a_waiting_request_can_be_cancelled_and_a_full_queue_says_so() {
    let config = EngineConfig { max_running: 1, max_waiting: 1, ..EngineConfig::default() };
    let bench = Bench::with_config(LLAMA, &[], config);
    let base = bench.compose(&Selection::Base);
    let request = || Request {
        prompt: vec![5, 6, 7],
        sampling: greedy(2),
        composition: Arc::clone(&base),
        trace: TraceLevel::None,
        shadow: None,
        cache_salt: String::new(),
        tenant: "".into(),
        weight: 1.0,
    };
    // The first request holds the engine until the test has seen the queue.
    let (started, has_started) = channel();
    let (release, released) = channel::<()>();
    let hold = move |_: Event| {
        let heard = started.send(()).is_ok();
        let _ = released.recv();
        heard.into()
    };
    bench.engine.handle().listen(request(), hold).unwrap();
    has_started.recv().unwrap();
    let (sender, events) = channel();
    let tell = move |event| sender.send(event).is_ok().into();
    let id = bench.engine.handle().listen(request(), tell).unwrap();
    let full = bench.engine.handle().listen(request(), |_| true.into()).unwrap_err();
    assert_eq!(full, SubmitError::QueueFull { waiting: 1 });
    bench.engine.handle().cancel(id);
    drop(release);
    drop(has_started);
    let events: Vec<Event> = events.iter().collect();
    let [Event::Finished(finished)] = &events[..] else { panic!("{events:?}") };
    assert_eq!(finished.reason, FinishReason::Cancelled);
    assert_eq!(finished.completion_tokens, 0);
}

#[test]
fn draining_finishes_what_was_submitted() {
    let bench = Bench::new(LLAMA, &[]);
    let base = bench.compose(&Selection::Base);
    let pending: Vec<Pending> =
        (5..12).map(|token| submit(&bench.engine, &base, &[token], greedy(9))).collect();
    bench.engine.drain();
    for pending in pending {
        assert_eq!(pending.wait().tokens.len(), 9);
    }
}

/// A request of the random mixes.
#[derive(Clone, Debug)]
struct Wanted {
    selection: Selection,
    prompt: Vec<u32>,
    sampling: SamplingParams,
    /// Tokens after which nobody listens any more.
    listens: usize,
}

fn selection() -> impl Strategy<Value = Selection> {
    let mixture = prop::collection::btree_map(0..TASKS.len(), -1.0_f32..1.0, 1..4);
    prop_oneof![
        Just(Selection::Base),
        mixture.prop_map(|weights| {
            let weights: Vec<_> = weights.into_iter().map(|(at, w)| (TASKS[at], w)).collect();
            weighted(&weights)
        }),
        (1_u32..6, prop::bool::ANY, prop::bool::ANY).prop_map(|(top_k, warm, with_another)| {
            let arrow = peft_arrow(f64::from(top_k), if warm { 1.0 } else { 0.5 }, 42.0);
            let another = with_another.then(|| (TASKS[0].to_owned(), -0.5));
            beside(arrow, another.into_iter().collect())
        }),
    ]
}

fn wanted() -> impl Strategy<Value = Wanted> {
    let prompt = prop::collection::vec(3..VOCAB as u32, 1..60);
    let listens = prop_oneof![3 => Just(usize::MAX), 1 => 1_usize..5];
    (selection(), prompt, 1_usize..10, prop::bool::ANY, any::<u64>(), listens).prop_map(
        |(selection, prompt, max_tokens, is_greedy, seed, listens)| {
            let temperature = if is_greedy { 0.0 } else { 1.0 };
            let sampling = SamplingParams { temperature, seed, ..greedy(max_tokens) };
            Wanted { selection, prompt, sampling, listens }
        },
    )
}

fn engine_config() -> impl Strategy<Value = EngineConfig> {
    (1_usize..9, 1_usize..80, 1_usize..20).prop_map(|(max_running, max_rows, chunk)| EngineConfig {
        max_running,
        max_rows,
        max_prompt_rows_while_decoding: chunk,
        ..EngineConfig::default()
    })
}

/// Runs the requests together and compares each with its run alone.
fn check_mix(config: EngineConfig, mix: &[Wanted]) -> Result<(), TestCaseError> {
    static ALONE: OnceLock<Bench> = OnceLock::new();
    let alone = ALONE.get_or_init(Bench::arrow);
    let bench = Bench::with_config(LLAMA, &TASKS, config);
    bench.add_arrow();
    let pending: Vec<Pending> = mix
        .iter()
        .map(|wanted| {
            let composition = bench.compose(&wanted.selection);
            let Wanted { prompt, sampling, listens, .. } = wanted;
            submit_until(&bench.engine, &composition, prompt, sampling.clone(), *listens)
        })
        .collect();
    for (pending, wanted) in pending.into_iter().zip(mix) {
        let together = pending.wait();
        let cold = alone.run(&wanted.selection, &wanted.prompt, wanted.sampling.clone());
        if wanted.listens < wanted.sampling.max_tokens {
            prop_assert_eq!(&together.finished.reason, &FinishReason::Cancelled);
            prop_assert_eq!(together.ids(), &cold.ids()[..wanted.listens]);
        } else if wanted.listens > wanted.sampling.max_tokens {
            prop_assert_eq!(&together.finished.reason, &FinishReason::Length);
            prop_assert!(together.bits() == cold.bits(), "{:?}", wanted);
        }
    }
    let stats = bench.engine.handle().stats().snapshot();
    prop_assert_eq!((stats.running, stats.waiting, stats.kv_blocks_used), (0, 0, 0));
    TASKS.iter().for_each(|name| drop(bench.library.remove(name, Expected::Any).unwrap()));
    prop_assert_eq!(bench.library.resident_bytes(), 0);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_mix_gives_each_request_what_it_gets_alone(
        config in engine_config(),
        mix in prop::collection::vec(wanted(), 1..10),
    ) {
        check_mix(config, &mix)?;
    }
}
