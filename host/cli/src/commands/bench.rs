//! `polyskill bench`: prefill and decode of base, one LoRA and a router, through the engine.

#![expect(clippy::print_stdout, reason = "the terminal is this command's output")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use polyskill_engine::{Composition, Event, Request, SamplingParams, Selection};

use polyskill_route::RouteSpec;
use polyskill_server::service::Service;

use crate::arguments::{ServeArgs, router};
use crate::start::start_service;

/// A composition that is measured, such as the base alone.
#[derive(Clone, Debug)]
struct Case {
    /// Its name in the table.
    name: String,
    /// The composition that answers, as a request would name it.
    selection: Selection,
}

/// Tokens of a prompt whose prefill is measured, where the base's context holds so many.
const PROMPT_TOKENS: u32 = 256;
/// Tokens that each request generates where decoding is measured.
const DECODE_TOKENS: usize = 64;
/// Rounds that are counted, after one that is not. Cases take turns in each, so that a drift of the
/// machine meets all of them.
const ROUNDS: usize = 7;

/// Measurements of one case, one value per round; the table shows their medians.
#[derive(Clone, Debug, Default)]
struct Figures {
    /// Tokens of the prompt per second.
    prefill: Vec<f64>,
    /// The median of seconds per step, at 1 and at 8 rows.
    steps: [Vec<f64>; 2],
    /// The 99th percentile of seconds per step, at 1 and at 8 rows.
    p99: [Vec<f64>; 2],
}

/// Measures the base, the first module of the library at weight 1, and Arrow over all modules with
/// its best three, where they are there.
///
/// # Errors
/// A message for the user.
pub fn run(args: &ServeArgs) -> Result<(), String> {
    let service = start_service(&args.config()?)?;
    let mut cases = vec![Case { name: "base".to_owned(), selection: Selection::Base }];
    let snapshot = service.composer.library().snapshot();
    if let Some((name, _)) = snapshot.iter().next() {
        let selection = Selection::Weighted(vec![(name.to_owned(), 1.0)]);
        cases.push(Case { name: "one LoRA".to_owned(), selection });
    }
    if service.composer.routers().iter().any(|router| router.name == "arrow")
        && !snapshot.is_empty()
    {
        let arrow = router("arrow".to_owned(), &["top_k=3".to_owned()])?;
        let selection = Selection::from(&RouteSpec { router: Some(arrow), adapters: None });
        cases.push(Case { name: "arrow top-3".to_owned(), selection });
    }
    measure(&service, &cases)
}

/// Runs all cases in turns and prints a table; the first case is the reference of the tax.
///
/// The whole takes one prefill, and decoding at 1 and at 8 rows, for each case in each round.
fn measure(service: &Service, cases: &[Case]) -> Result<(), String> {
    let compositions = cases
        .iter()
        .map(|case| service.composer.compose(&case.selection).map_err(|error| error.to_string()))
        .collect::<Result<Vec<_>, _>>()?;
    let mut figures = vec![Figures::default(); cases.len()];
    for round in 0..=ROUNDS {
        for (composition, figures) in compositions.iter().zip(&mut figures) {
            let prefill = measure_prefill(service, composition)?;
            let one = measure_decode(service, composition, 1)?;
            let eight = measure_decode(service, composition, 8)?;
            // The first round warms caches and clocks.
            if round > 0 {
                figures.prefill.push(f64::from(prompt_tokens(service)) / prefill);
                for (slot, steps) in [one, eight].into_iter().enumerate() {
                    figures.steps[slot].push(quantile(&steps, 0.5));
                    figures.p99[slot].push(quantile(&steps, 0.99));
                }
            }
        }
    }
    print_table(service, cases, &compositions, &figures);
    Ok(())
}

/// Prints the medians as a Markdown table. The tax is how much longer a step takes than that of the
/// first case, in percent.
fn print_table(
    service: &Service,
    cases: &[Case],
    compositions: &[Arc<Composition>],
    figures: &[Figures],
) {
    let (modules, prompt) = (service.composer.library().snapshot().len(), prompt_tokens(service));
    println!(
        "base {}, {modules} modules in the library, {} threads; medians of {ROUNDS} rounds in turns; every prompt is new, so that none comes out of the prefix cache",
        service.base_name,
        service.model.compute().num_threads()
    );
    println!(
        "| case | candidates | prefill {prompt} tok/s | decode 1 row tok/s | p99 ms | tax | decode 8 rows tok/s | p99 ms | tax |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let base: Vec<f64> = (0..2).map(|slot| quantile(&figures[0].steps[slot], 0.5)).collect();
    for ((case, composition), figures) in cases.iter().zip(compositions).zip(figures) {
        let median = |values: &[f64]| quantile(values, 0.5);
        let cell = |slot: usize, rows: f64| {
            let step = median(&figures.steps[slot]);
            let tax = 100.0 * (step / base[slot] - 1.0);
            format!("{:.1} | {:.2} | {tax:+.0} %", rows / step, 1e3 * median(&figures.p99[slot]))
        };
        let prefill = median(&figures.prefill);
        let candidates = composition.modules().len();
        println!(
            "| {} | {candidates} | {prefill:.0} | {} | {} |",
            case.name,
            cell(0, 1.0),
            cell(1, 8.0)
        );
    }
}

/// Tokens of a prompt: fewer where the base's context holds no more with what is generated.
fn prompt_tokens(service: &Service) -> u32 {
    let room = service.engine.handle().max_tokens().saturating_sub(DECODE_TOKENS).max(1);
    u32::try_from(room).map_or(PROMPT_TOKENS, |room| room.min(PROMPT_TOKENS))
}

/// The value at the nearest rank: 0 is the least, 1 the largest. NaN without values.
fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = ((sorted.len() as f64 - 1.0) * q).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// Asks for a greedy answer to a prompt of made-up tokens, and returns its events with the times at
/// which they came.
///
/// Prompts are arithmetic sequences of token ids, so their text means nothing. No end token is set:
/// the answer has `max_tokens` tokens.
fn submit(
    service: &Service,
    composition: &Arc<Composition>,
    prompt_tokens: u32,
    max_tokens: usize,
) -> Result<impl Iterator<Item = (Instant, Event)> + use<>, String> {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let vocab = service.model.config().vocab_size as u32;
    // No two requests have a beginning in common: a prompt that was read before is not read, but looked up.
    let asked = ASKED.fetch_add(1, Relaxed);
    let first = asked.wrapping_mul(7_919).wrapping_add(100) % vocab;
    let prompt = (0..prompt_tokens).map(|at| (first + at * 7) % vocab).collect();
    let sampling = SamplingParams { max_tokens, temperature: 0.0, ..SamplingParams::default() };
    let request = Request {
        cache_salt: format!("bench {asked}"),
        ..Request::new(prompt, sampling, Arc::clone(composition))
    };
    let events = service.engine.handle().run(request).map_err(|error| error.to_string())?;
    Ok(events.timed())
}

/// Seconds from the request to its first token, queueing included.
fn measure_prefill(service: &Service, composition: &Arc<Composition>) -> Result<f64, String> {
    let started = Instant::now();
    let mut events = submit(service, composition, prompt_tokens(service), 1)?;
    let first = events.find(|(_, event)| matches!(event, Event::Token(_)));
    let (at, _) = first.ok_or("the engine gave no token")?;
    let seconds = (at - started).as_secs_f64();
    events.for_each(drop);
    Ok(seconds)
}

/// Seconds between tokens of the first of `rows` requests that decode together.
///
/// The first four gaps are left out, since other requests' prompts are read in them.
fn measure_decode(
    service: &Service,
    composition: &Arc<Composition>,
    rows: usize,
) -> Result<Vec<f64>, String> {
    let receivers = (0..rows)
        .map(|_| submit(service, composition, 32, DECODE_TOKENS))
        .collect::<Result<Vec<_>, _>>()?;
    let mut steps = Vec::new();
    for (index, events) in receivers.into_iter().enumerate() {
        let times: Vec<Instant> = events
            .filter(|(_, event)| matches!(event, Event::Token(_)))
            .map(|(at, _)| at)
            .collect();
        // The first tokens fall into other requests' prefill; all requests see the same steps after it.
        if index == 0 {
            let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
            steps = gaps.skip(4).map(|gap: Duration| gap.as_secs_f64()).collect();
        }
    }
    Ok(steps)
}
