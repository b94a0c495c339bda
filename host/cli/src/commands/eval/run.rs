//! Items through the engine, some at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use polyskill_adapters::Generation;
use polyskill_engine::{
    Composition, Event, Events, FinishReason, Request, SamplingParams, SitePicks, SubmitError,
    TraceLevel,
};
use polyskill_tokenizer::{Chat, Special};
use serde_json::json;

use super::EvalArgs;
use super::columns::Column;
use super::metric::{Metric, score};
use super::results::{Kept, Outcome, Routing};
use super::tasks::{Item, Task};
use polyskill_server::service::Service;

/// Part of every key; changes when an outcome means something else.
const VERSION: &[u8] = b"eval 1";
/// Sites of a layer, seven projections whether or not the layer has them; site numbers go up layer
/// by layer.
const SITES_PER_LAYER: usize = polyskill_model::Projection::ALL.len();
/// Pause before a full queue of the engine is asked again.
const RETRY: Duration = Duration::from_millis(20);

/// Runs what is not in the results yet. Outcomes come by column, task and item.
///
/// Everything is checked before the first question is asked. Each chunk of `args.parallel` items is
/// in the engine at once and is written when all of it has been answered.
pub(super) fn run(
    service: &Service,
    tasks: &[Task],
    columns: &[Column],
    args: &EvalArgs,
) -> Result<Vec<Outcome>, String> {
    check(service, tasks, columns)?;
    let mut kept = Kept::open(&args.out)?;
    let items: usize = tasks.iter().map(|task| task.items.len()).sum();
    let bar = progress(items * columns.len());
    let mut outcomes: Vec<Outcome> = Vec::new();
    for column in columns {
        for task in tasks {
            bar.set_message(format!("{}: {}", column.name, task.name));
            let numbered: Vec<(usize, &Item)> = task.items.iter().enumerate().collect();
            for chunk in numbered.chunks(args.parallel) {
                let asked = chunk.iter().map(|(index, item)| {
                    Asked::new(service, column, task, *index, item, &outcomes)
                });
                let asked = asked.collect::<Result<Vec<_>, _>>()?;
                let open: Vec<&Asked<'_>> =
                    asked.iter().filter(|one| kept.get(&one.key).is_none()).collect();
                for outcome in answer(service, &open)? {
                    kept.add(&outcome)?;
                }
                // The same item may stand in another line than when it was answered.
                let found = |one: &Asked<'_>| {
                    kept.get(&one.key).map(|kept| Outcome { index: one.index, ..kept.clone() })
                };
                outcomes.extend(asked.iter().filter_map(found));
                bar.inc(chunk.len() as u64);
            }
        }
    }
    bar.finish_and_clear();
    Ok(outcomes)
}

/// Composes and encodes everything, and finds what cannot be answered before anything is.
///
/// Columns that take another one's most picked module are left out, since that is not known yet.
///
/// # Errors
/// A composition that cannot be made, or an item that does not fit into the context with its answer
/// or its reference.
fn check(service: &Service, tasks: &[Task], columns: &[Column]) -> Result<(), String> {
    let most = service.engine.handle().max_tokens();
    for column in columns.iter().filter(|column| column.most_picked_of.is_none()) {
        for task in tasks {
            for (index, item) in task.items.iter().enumerate() {
                let asked = Asked::new(service, column, task, index, item, &[])?;
                let start = asked.composition.num_virtual_tokens() + asked.prompt.len();
                let needed = start + item.max_tokens.max(asked.reference.len());
                if needed > most {
                    return Err(
                        asked.problem(&format!("it needs {needed} tokens, at most {most} fit"))
                    );
                }
            }
        }
    }
    Ok(())
}

/// The bar over all items of all columns.
fn progress(len: usize) -> ProgressBar {
    let bar = ProgressBar::new(len as u64);
    let style = "{bar:30} {pos}/{len} {msg}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar
}

/// An item of a column, ready to be answered.
struct Asked<'a> {
    /// Digest of the item, the column and the composition.
    key: String,
    /// The column's name.
    column: &'a str,
    /// The task's name.
    task: &'a str,
    /// The item's number in its task.
    index: usize,
    /// The item.
    item: &'a Item,
    /// The modules and router that answer.
    composition: Arc<Composition>,
    /// The conversation as tokens, up to where the answer begins.
    prompt: Vec<u32>,
    /// The first reference as tokens, and the base's end token where it has one.
    reference: Vec<u32>,
}

impl<'a> Asked<'a> {
    /// Prepares an item; `before` are the outcomes so far, in which the most picked module of
    /// another column is looked up.
    ///
    /// # Errors
    /// A message that names column, task and item.
    fn new(
        service: &Service,
        column: &'a Column,
        task: &'a Task,
        index: usize,
        item: &'a Item,
        before: &[Outcome],
    ) -> Result<Self, String> {
        let fail = |error: &dyn std::fmt::Display| {
            format!("column `{}`, task `{}`, item {index}: {error}", column.name, task.name)
        };
        let source = column.most_picked_of.as_ref().and_then(|other| {
            before.iter().find(|outcome| {
                outcome.column == *other && outcome.task == task.name && outcome.index == index
            })
        });
        let most_picked = source.and_then(|outcome| outcome.routing.as_ref()?.most_picked());
        let messages: Vec<serde_json::Value> =
            item.conversation().iter().map(|message| json!(message)).collect();
        let prompt = service.tokenizer.encode_chat(&Chat::to_answer(&messages));
        let prompt = prompt.map_err(|error| fail(&error))?;
        let selection = column.selection(item, prompt.len(), most_picked);
        let composition = service.composer.compose(&selection).map_err(|error| fail(&error))?;
        let reference = item.references.first().map_or("", String::as_str);
        let ids = service.tokenizer.encode_more(reference).map_err(|error| fail(&error))?;
        let end = service.model.config().eos_tokens.first();
        let digest = composition.digest();
        let parts = [json!(item).to_string(), json!(column).to_string()];
        let key = Generation::of(&[VERSION, &digest.0, parts[0].as_bytes(), parts[1].as_bytes()]);
        Ok(Self {
            key: key.to_string(),
            column: &column.name,
            task: &task.name,
            index,
            item,
            composition,
            prompt,
            reference: ids.into_iter().chain(end.copied()).collect(),
        })
    }

    /// A message that names column, task and item.
    fn problem(&self, what: &dyn std::fmt::Display) -> String {
        let Self { column, task, index, .. } = self;
        format!("column `{column}`, task `{task}`, item {index}: {what}")
    }
}

/// Answers and scores items at once: first all answers are generated, then all references are
/// scored. The time of the latter is not counted.
fn answer(service: &Service, asked: &[&Asked<'_>]) -> Result<Vec<Outcome>, String> {
    let started = Instant::now();
    let answers = generate(service, asked)?;
    let seconds = started.elapsed().as_secs_f64() / asked.len().max(1) as f64;
    let logprobs = score_references(service, asked)?;
    let outcome = |((asked, answer), logprob): ((&&Asked<'_>, Answer), f64)| Outcome {
        key: asked.key.clone(),
        column: asked.column.to_owned(),
        task: asked.task.to_owned(),
        index: asked.index,
        score: score(asked.item, &answer.text),
        logprob,
        tokens: answer.tokens,
        seconds,
        fallback: asked.composition.fallback().map(str::to_owned),
        routing: routing(service, &asked.composition, &answer.picks),
        answer: answer.text,
    };
    Ok(asked.iter().zip(answers).zip(logprobs).map(outcome).collect())
}

/// An answer of the engine; empty where none was asked for.
#[derive(Default)]
struct Answer {
    /// The text, without special tokens.
    text: String,
    /// Generated tokens, an end token among them.
    tokens: usize,
    /// The router's picks at each site, for each token.
    picks: Vec<Vec<SitePicks>>,
}

/// Greedy answers to all items, which are in the engine together; picks are recorded where a router
/// answers.
///
/// Items of the metric `log-prob` get an empty answer and cost nothing.
fn generate(service: &Service, asked: &[&Asked<'_>]) -> Result<Vec<Answer>, String> {
    let stop_tokens = service.end_tokens();
    let pending = asked.iter().map(|asked| {
        if asked.item.metric == Metric::LogProb {
            return Ok(None);
        }
        let sampling = SamplingParams {
            max_tokens: asked.item.max_tokens,
            temperature: 0.0,
            stop_tokens: stop_tokens.clone(),
            ..SamplingParams::default()
        };
        // Picks of modules by weight are the weights.
        let trace = match asked.composition.router() {
            Some(_) => TraceLevel::Full,
            None => TraceLevel::None,
        };
        submit(service, asked, &asked.prompt, &sampling, trace).map(Some)
    });
    let pending = pending.collect::<Result<Vec<_>, String>>()?;
    let collect = |events: Option<Events>| {
        let Some(events) = events else { return Ok(Answer::default()) };
        let (mut ids, mut picks) = (Vec::new(), Vec::new());
        for event in events {
            match event {
                Event::Prompt(_) => {}
                Event::Token(token) => {
                    ids.push(token.token);
                    picks.push(token.routing);
                }
                Event::Finished(finished) => ended(finished.reason)?,
            }
        }
        Ok(Answer {
            tokens: ids.len(),
            text: service.tokenizer.decode(&ids, Special::Hidden),
            picks,
        })
    };
    pending.into_iter().map(collect).collect()
}

/// Mean log-probability of each first reference after its prompt, and of the end after it.
///
/// Prompt and reference are read as one prompt. Edits that begin at a prompt's last token begin
/// where the reference does, as they would if it were generated.
fn score_references(service: &Service, asked: &[&Asked<'_>]) -> Result<Vec<f64>, String> {
    let pending = asked.iter().map(|asked| {
        let whole: Vec<u32> = asked.prompt.iter().chain(&asked.reference).copied().collect();
        let sampling = SamplingParams {
            max_tokens: 0,
            prompt_logprobs: Some(0),
            answer_from: Some(asked.prompt.len()),
            ..SamplingParams::default()
        };
        submit(service, asked, &whole, &sampling, TraceLevel::None)
    });
    let pending = pending.collect::<Result<Vec<_>, String>>()?;
    let mean = |(events, asked): (Events, &&Asked<'_>)| {
        let mut values: Vec<f64> = Vec::new();
        for event in events {
            match event {
                Event::Prompt(tokens) => {
                    let rest = tokens.iter().skip(asked.prompt.len());
                    let value = |token: &polyskill_engine::PromptLogprob| {
                        token.logprob.as_ref().map(|logprob| f64::from(logprob.value))
                    };
                    values.extend(rest.filter_map(value));
                }
                Event::Token(_) => {}
                Event::Finished(finished) => ended(finished.reason)?,
            }
        }
        Ok(values.iter().sum::<f64>() / values.len().max(1) as f64)
    };
    pending.into_iter().zip(asked).map(mean).collect()
}

/// Passes on the failure of an engine. Answers that were cut off at their most tokens count as they
/// are.
fn ended(reason: FinishReason) -> Result<(), String> {
    match reason {
        FinishReason::Error(message) => Err(format!("the engine failed: {message}")),
        FinishReason::Stop | FinishReason::Length | FinishReason::Cancelled => Ok(()),
    }
}

/// Gives a request to the engine, and waits for as long as its queue is full.
fn submit(
    service: &Service,
    asked: &Asked<'_>,
    prompt: &[u32],
    sampling: &SamplingParams,
    trace: TraceLevel,
) -> Result<Events, String> {
    loop {
        let composition = Arc::clone(&asked.composition);
        let request =
            Request { trace, ..Request::new(prompt.to_vec(), sampling.clone(), composition) };
        match service.engine.handle().run(request) {
            Ok(events) => return Ok(events),
            Err(SubmitError::QueueFull { .. }) => std::thread::sleep(RETRY),
            Err(error) => return Err(asked.problem(&error)),
        }
    }
}

/// Sums up the picks of an answer's tokens; `None` without a router.
///
/// `tokens` has the picks of each site for each token. Changes are counted over all sites together,
/// each compared with the token before.
fn routing(
    service: &Service,
    composition: &Composition,
    tokens: &[Vec<SitePicks>],
) -> Option<Routing> {
    composition.router()?;
    let name = |module: u32| Some(composition.modules().get(module as usize)?.name.clone());
    let num_layers = service.model.config().num_sites() / SITES_PER_LAYER;
    let mut layers: Vec<(BTreeMap<String, f64>, usize)> = vec![Default::default(); num_layers];
    let (mut sites, mut picked, mut changed, mut compared) = (0_usize, 0_usize, 0_u64, 0_u64);
    let mut before: BTreeMap<u32, u32> = BTreeMap::new();
    for site in tokens.iter().flatten() {
        sites += 1;
        picked += site.picks.len();
        let Some((weights, decisions)) = layers.get_mut(site.site as usize / SITES_PER_LAYER)
        else {
            continue;
        };
        *decisions += 1;
        for &(module, weight) in &site.picks {
            *weights.entry(name(module)?).or_default() += f64::from(weight);
        }
        let strongest = site.picks.iter().max_by(|a, b| a.1.total_cmp(&b.1)).map(|pick| pick.0);
        let Some(strongest) = strongest else { continue };
        if let Some(last) = before.insert(site.site, strongest) {
            compared += 1;
            changed += u64::from(last != strongest);
        }
    }
    let mut share: BTreeMap<String, f64> = BTreeMap::new();
    for (module, weight) in layers.iter().flat_map(|(weights, _)| weights) {
        *share.entry(module.clone()).or_default() += weight / sites.max(1) as f64;
    }
    let mean = |(weights, decisions): (BTreeMap<String, f64>, usize)| {
        let mean = |(name, weight)| (name, rounded(weight / decisions.max(1) as f64));
        weights.into_iter().map(mean).collect()
    };
    Some(Routing {
        share: share.into_iter().map(|(name, share)| (name, rounded(share))).collect(),
        layers: layers.into_iter().map(mean).collect(),
        picks: rounded(picked as f64 / sites.max(1) as f64),
        changes: (compared > 0).then(|| rounded(changed as f64 / compared as f64)),
    })
}

/// Four digits after the point are enough for tables, and keep the files small.
fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}
