//! Conversations of task files, or of traces, through an experiment: assigned, answered, graded and
//! fed back as a server would.

use std::path::{Path, PathBuf};
use std::sync::Arc;
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
use crate::commands::lines::next_line;
use crate::commands::replay::{MAX_LINE, read_repeats};
use polyskill_server::experiments::{Assignment, Choice, Experiments, Measured, UnitIds, written};
use polyskill_server::service::Service;
use polyskill_server::traces::Repeat;

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
    assignment: Assignment,
    /// The arm that runs, which is the assignment's unless every arm does.
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
    if args.parallel == 0 || args.limit == Some(0) {
        return Err("--parallel and --limit are at least 1".to_owned());
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
            let Some(assignment) = enrolled else { continue };
            asked.extend(ask(service, conversation, assignment, every_arm));
        }
        for asked in &asked {
            let registered = experiments.served(&asked.id, &asked.assignment);
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
    let mut all = Vec::new();
    for path in &traces {
        let recorded = read_repeats(path, args.limit)?;
        all.extend(recorded.into_iter().map(|(unit, repeat)| {
            let Repeat { prompt, sampling, text, .. } = repeat;
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
        let line = next_line(&mut std::io::BufReader::new(file), MAX_LINE).ok()??;
        serde_json::from_slice::<Json>(&line).ok()
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
    mut assignment: Assignment,
    every_arm: bool,
) -> Vec<Asked<'a>> {
    let own = (assignment.arm.clone(), assignment.route.clone().unwrap_or_default());
    let shadows = std::mem::take(&mut assignment.shadows);
    let shadows = if every_arm { shadows } else { Vec::new() };
    let mut asked = Vec::new();
    for (arm, route) in std::iter::once(own).chain(shadows) {
        let Conversation { prompt, text, .. } = conversation;
        let selection = Selection::from(&route).told(prompt.len(), text.clone(), 0);
        let id = format!("{}/{arm}", conversation.unit);
        match service.composer.compose(&selection) {
            Ok(composition) => {
                let assignment = assignment.clone();
                asked.push(Asked { conversation, id, assignment, arm, composition });
            }
            Err(error) => service.experiments.failed(&assignment, &arm, &error.to_string()),
        }
    }
    asked
}

/// Answers, measures and grades; all of them are in the engine at once and are collected one after
/// the other.
fn answer(service: &Service, asked: &[Asked<'_>]) -> Result<(), String> {
    let pending: Vec<Pending> =
        asked.iter().map(|asked| submit(service, asked)).collect::<Result<_, _>>()?;
    for (asked, pending) in asked.iter().zip(pending) {
        let answer = pending.collect().ok_or_else(|| format!("{}: no answer", asked.id))?;
        let mut measured = Measured::of(&asked.composition, &answer.finished, answer.seconds);
        let text = || service.tokenizer.decode(&answer.tokens, Special::Hidden);
        let grade = asked.conversation.item.as_ref().map(|item| score(item, &text()));
        count(&service.experiments, asked, &mut measured, grade)?;
    }
    Ok(())
}

/// A request that the engine has taken.
struct Pending {
    /// The time at which it was given to the engine.
    started: Instant,
    /// Its events, with the times at which they came.
    events: Box<dyn Iterator<Item = (Instant, Event)>>,
}

/// An answer of the engine.
struct Answer {
    /// Generated tokens, an end token among them.
    tokens: Vec<u32>,
    /// Its end.
    finished: Finished,
    /// Seconds from the submission to the end, whenever that was collected.
    seconds: f64,
}

impl Pending {
    /// Waits for the end of the request; `None` where the engine went away before it.
    fn collect(self) -> Option<Answer> {
        let (mut tokens, mut end) = (Vec::new(), None);
        for (at, event) in self.events {
            match event {
                Event::Prompt(_) => {}
                Event::Token(token) => tokens.push(token.token),
                Event::Finished(finished) => end = Some((at, finished)),
            }
        }
        let (at, finished) = end?;
        let seconds = at.saturating_duration_since(self.started).as_secs_f64();
        Some(Answer { tokens, finished, seconds })
    }
}

/// Counts one answer. The arm that serves is graded by feedback, as a client would; others have no
/// reply that feedback could come for, so their grade is a measurement.
fn count(
    experiments: &Experiments,
    asked: &Asked<'_>,
    measured: &mut Measured,
    grade: Option<f64>,
) -> Result<(), String> {
    if asked.arm != asked.assignment.arm {
        if let Some(grade) = grade {
            measured.put(GRADE, grade);
        }
        experiments.ended_under(&asked.assignment, &asked.arm, measured);
        return Ok(());
    }
    experiments.ended(&asked.assignment, measured);
    let Some(grade) = grade else { return Ok(()) };
    match experiments.feedback(&asked.id, GRADE, grade) {
        // The experiment may measure other things alone.
        Ok(_) | Err(polyskill_server::experiments::ExperimentError::NoMetric { .. }) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// Gives a request to the engine, and waits for as long as its queue is full; the time begins with
/// the submission that is taken.
fn submit(service: &Service, asked: &Asked<'_>) -> Result<Pending, String> {
    loop {
        let Conversation { prompt, sampling, .. } = asked.conversation;
        let composition = Arc::clone(&asked.composition);
        let request = Request {
            trace: TraceLevel::Summary,
            ..Request::new(prompt.clone(), sampling.clone(), composition)
        };
        let started = Instant::now();
        match service.engine.handle().run(request) {
            Ok(events) => return Ok(Pending { started, events: Box::new(events.timed()) }),
            Err(SubmitError::QueueFull { .. }) => std::thread::sleep(RETRY),
            Err(error) => return Err(format!("{}: {error}", asked.id)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use polyskill_engine::FinishReason;

    use super::*;

    #[test]
    fn the_time_of_an_answer_ends_with_its_last_event() {
        let finished = Finished {
            reason: FinishReason::Stop,
            prompt_tokens: 3,
            cached_tokens: 0,
            completion_tokens: 0,
            module_share: Vec::new(),
            agreement: None,
            fallback_rows: 0,
            time_to_first_token: None,
            queue_time: Duration::ZERO,
        };
        let end = Instant::now();
        let pending = |events: Vec<(Instant, Event)>| {
            let started = end - Duration::from_millis(250);
            Pending { started, events: Box::new(events.into_iter()) }
        };
        let answer = pending(vec![(end, Event::Finished(finished))]).collect().unwrap();
        assert_eq!((answer.tokens, answer.seconds), (Vec::new(), 0.25));
        assert!(pending(Vec::new()).collect().is_none());
    }

    #[test]
    fn traces_are_told_by_their_first_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("traffic.jsonl");
        for (text, expected) in [
            (&b"{\"composition\": \"00\"}\n\xff"[..], true),
            (b"{\"prompt\": \"a\"}\n", false),
            (b"", false),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(is_traces(&path), expected, "{text:?}");
        }
        assert!(!is_traces(folder.path()));
    }
}
