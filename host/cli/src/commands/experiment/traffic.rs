//! Conversations of task files, or of traces, through an experiment: assigned, answered, graded and
//! fed back as a server would.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use polyskill_engine::{
    Composition, Event, Finished, Request, SamplingParams, Selection, SubmitError, TraceLevel,
};
use polyskill_experiment::Declaration;
use polyskill_experiment::declaration::Mode;
use polyskill_tokenizer::{Chat, Special};
use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value as Json, json};

use super::TrafficArgs;
use crate::commands::eval::{Item, Metric, read_tasks, score};
use polyskill_server::experiments::{Choice, Enrolment, Experiments, Measured, UnitIds, written};
use polyskill_server::service::Service;

/// Pause before a full queue is asked again.
const RETRY: std::time::Duration = std::time::Duration::from_millis(5);

/// The metric that grades answers, 0 to 1, as the declaration may name it.
pub(super) const GRADE: &str = "correct";

/// A request of the traffic: an item of a task file or a recorded trace.
struct Conversation {
    /// The unit that an arm is assigned to: `TASK/NUMBER`, or the id of the trace.
    unit: String,
    /// The prompt as tokens, template included.
    prompt: Vec<u32>,
    /// Sampling parameters: greedy for items, as recorded for traces.
    sampling: SamplingParams,
    /// The text that routers may read: the last message.
    text: Option<String>,
    /// The item that grades the answer; `None` for traces, whose answers are not graded.
    item: Option<Item>,
}

/// A conversation under one arm, on its way.
struct Asked<'a> {
    /// The request.
    conversation: &'a Conversation,
    /// The id under which feedback comes: the unit and the arm.
    id: String,
    /// The experiment's answer for the unit, without its shadows.
    enrolment: Enrolment,
    /// The arm that runs, which is the enrolment's unless every arm does.
    arm: String,
    /// The arm's modules and router.
    composition: Arc<Composition>,
}

/// Declares the experiment in the service and sends the traffic through it, in an order that the
/// seed gives; returns the report.
///
/// Chunks of `args.parallel` conversations are in the engine at once, times the number of arms
/// where every arm runs. Units that are held out or belong to another part of the layer are not
/// asked.
pub(super) fn run(
    service: &Service,
    mut declaration: Declaration,
    args: &TrafficArgs,
    every_arm: bool,
) -> Result<Json, String> {
    if args.parallel == 0 {
        return Err("--parallel is at least 1".to_owned());
    }
    if every_arm {
        // The same conversations under all arms: compared as pairs.
        declaration.mode = Mode::FullShadow;
        declaration.sample = None;
    }
    let name = declaration.name.clone();
    let experiments = &service.experiments;
    let declared = experiments.declare(declaration, &service.composer, "command");
    declared.map_err(|error| error.to_string())?;
    let mut items = conversations(service, args)?;
    items.shuffle(&mut ChaCha8Rng::seed_from_u64(args.seed));
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let bar = bar(items.len());
    for chunk in items.chunks(args.parallel) {
        let mut asked = Vec::new();
        for conversation in chunk {
            let names = UnitIds { unit: Some(conversation.unit.clone()), ..UnitIds::default() };
            let enrol = experiments.enrol(&Choice::Open, &service.base_name, &names);
            let enrolled = runtime.block_on(enrol).map_err(|error| error.to_string())?;
            // Some are held out, or in other parts of the layer.
            let Some(enrolment) = enrolled else { continue };
            asked.extend(ask(service, conversation, enrolment, every_arm));
        }
        for asked in &asked {
            let registered = experiments.served(&asked.id, &asked.enrolment);
            runtime.block_on(written(registered)).map_err(|error| error.to_string())?;
        }
        answer(service, &asked)?;
        bar.inc(chunk.len() as u64);
        experiments.look();
    }
    bar.finish_and_clear();
    experiments.report(&name).map_err(|error| error.to_string())
}

/// The bar over conversations.
fn bar(count: usize) -> ProgressBar {
    let bar = ProgressBar::new(count as u64);
    let template = "{elapsed} {wide_bar} {pos}/{len} conversations, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// All conversations: first those of traces, then those of task files.
///
/// Items that ask for a log-probability have no answer and are left out.
fn conversations(service: &Service, args: &TrafficArgs) -> Result<Vec<Conversation>, String> {
    let (traces, tasks): (Vec<PathBuf>, Vec<PathBuf>) =
        args.traffic.iter().cloned().partition(|path| is_traces(path));
    let most = args.limit.unwrap_or(usize::MAX);
    let mut all = Vec::new();
    for path in &traces {
        let recorded = super::super::replay::read_repeats(path)?;
        all.extend(recorded.into_iter().take(most).map(|(unit, repeat)| {
            let text = match Selection::from(repeat.selection) {
                Selection::Routed(asked) => asked.text,
                Selection::Base | Selection::Weighted(_) => None,
            };
            let (prompt, sampling) = (repeat.prompt, repeat.sampling);
            Conversation { unit, prompt, sampling, text, item: None }
        }));
    }
    let tasks = if tasks.is_empty() { Vec::new() } else { read_tasks(&tasks, args.limit)? };
    for task in tasks {
        for (at, item) in task.items.into_iter().enumerate() {
            if item.metric != Metric::LogProb {
                all.push(of_item(service, format!("{}/{at}", task.name), item)?);
            }
        }
    }
    Ok(all)
}

/// True for a file whose first line is a trace. Directories and files that cannot be read are none.
fn is_traces(path: &Path) -> bool {
    let first = std::fs::File::open(path).ok().and_then(|file| {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(file), &mut line).ok()?;
        serde_json::from_str::<Json>(&line).ok()
    });
    first.is_some_and(|line| line["composition"].is_string())
}

/// A greedy request for an item, as a client would send its conversation.
fn of_item(service: &Service, unit: String, item: Item) -> Result<Conversation, String> {
    let messages: Vec<Json> = item.conversation().iter().map(|message| json!(message)).collect();
    let prompt = service.tokenizer.encode_chat(&Chat::to_answer(&messages));
    let sampling = SamplingParams {
        max_tokens: item.max_tokens,
        temperature: 0.0,
        stop_tokens: service.end_tokens(),
        ..SamplingParams::default()
    };
    Ok(Conversation {
        prompt: prompt.map_err(|error| format!("{unit}: {error}"))?,
        text: Some(item.last_said()),
        unit,
        sampling,
        item: Some(item),
    })
}

/// A conversation under its arm, or under every arm, composed.
///
/// An arm that cannot be composed is counted as a failure of the experiment, and the others go on.
fn ask<'a>(
    service: &Service,
    conversation: &'a Conversation,
    mut enrolment: Enrolment,
    every_arm: bool,
) -> Vec<Asked<'a>> {
    let own = (enrolment.arm.clone(), enrolment.selection.clone().unwrap_or(Selection::Base));
    let shadows = std::mem::take(&mut enrolment.shadows);
    let shadows = if every_arm { shadows } else { Vec::new() };
    let mut asked = Vec::new();
    for (arm, mut selection) in std::iter::once(own).chain(shadows) {
        if let Selection::Routed(asked) = &mut selection {
            asked.prompt_tokens = conversation.prompt.len();
            asked.text.clone_from(&conversation.text);
        }
        let id = format!("{}/{arm}", conversation.unit);
        match service.composer.compose(&selection) {
            Ok(composition) => {
                let enrolment = enrolment.clone();
                asked.push(Asked { conversation, id, enrolment, arm, composition });
            }
            Err(error) => service.experiments.failed(&enrolment, &arm, &error.to_string()),
        }
    }
    asked
}

/// Answers, measures and grades; all of them are in the engine at once. They are collected one
/// after the other, and the seconds of each end when it is collected.
fn answer(service: &Service, asked: &[Asked<'_>]) -> Result<(), String> {
    let pending: Vec<(Instant, Receiver<Event>)> =
        asked.iter().map(|asked| submit(service, asked)).collect::<Result<_, _>>()?;
    for (asked, (started, events)) in asked.iter().zip(pending) {
        let (mut ids, mut end): (Vec<u32>, Option<Finished>) = (Vec::new(), None);
        for event in events {
            match event {
                Event::Prompt(_) => {}
                Event::Token(token) => ids.push(token.token),
                Event::Finished(finished) => end = Some(finished),
            }
        }
        let Some(finished) = end else { return Err(format!("{}: no answer", asked.id)) };
        let seconds = started.elapsed().as_secs_f64();
        let mut measured = Measured::of(&asked.composition, &finished, seconds);
        let item = asked.conversation.item.as_ref();
        let grade = item.map(|item| score(item, &service.tokenizer.decode(&ids, Special::Hidden)));
        count(&service.experiments, asked, &mut measured, grade)?;
    }
    Ok(())
}

/// Counts one answer. The arm that serves is graded by feedback, as a client would; others have no
/// reply that feedback could come for, so their grade is a measurement.
fn count(
    experiments: &Experiments,
    asked: &Asked<'_>,
    measured: &mut Measured,
    grade: Option<f64>,
) -> Result<(), String> {
    if asked.arm != asked.enrolment.arm {
        if let Some(grade) = grade {
            measured.put(GRADE, grade);
        }
        experiments.ended_under(&asked.enrolment, &asked.arm, measured);
        return Ok(());
    }
    experiments.ended(&asked.enrolment, measured);
    let Some(grade) = grade else { return Ok(()) };
    match experiments.feedback(&asked.id, GRADE, grade) {
        // The experiment may measure other things alone.
        Ok(_) | Err(polyskill_server::experiments::ExperimentError::NoMetric { .. }) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// Gives a request to the engine, and waits for as long as its queue is full; the time begins when
/// it is taken.
fn submit(service: &Service, asked: &Asked<'_>) -> Result<(Instant, Receiver<Event>), String> {
    loop {
        let (sender, events) = channel();
        let request = Request {
            prompt: asked.conversation.prompt.clone(),
            sampling: asked.conversation.sampling.clone(),
            composition: Arc::clone(&asked.composition),
            trace: TraceLevel::Summary,
            shadow: None,
            cache_salt: String::new(),
            sink: Box::new(move |event| sender.send(event).is_ok().into()),
        };
        match service.engine.handle().submit(request) {
            Ok(_) => return Ok((Instant::now(), events)),
            Err(SubmitError::QueueFull { .. }) => std::thread::sleep(RETRY),
            Err(error) => return Err(format!("{}: {error}", asked.id)),
        }
    }
}
