//! Conversations of task files through an experiment: assigned, answered, graded and fed back as a server would.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use polyskill_engine::{
    Composition, Event, Finished, Request, SamplingParams, Selection, SubmitError, TraceLevel,
};
use polyskill_experiment::Declaration;
use polyskill_experiment::declaration::Mode;
use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value as Json, json};

use super::TrafficArgs;
use crate::eval::{Item, Metric, read_tasks, score};
use crate::experiments::{Choice, Enrolment, Experiments, Measured, Names, written};
use crate::service::Service;

/// Pause before a full queue is asked again.
const RETRY: std::time::Duration = std::time::Duration::from_millis(5);

/// The metric that grades answers.
pub(super) const GRADE: &str = "correct";

/// A conversation on its way.
struct Asked<'a> {
    item: &'a Item,
    /// The id under which feedback comes.
    id: String,
    enrolment: Enrolment,
    /// The arm that runs, which is the enrolment's unless every arm does.
    arm: String,
    composition: Arc<Composition>,
    prompt: Vec<u32>,
}

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
    let tasks = read_tasks(&args.traffic, args.limit)?;
    let mut items: Vec<(String, &Item)> = Vec::new();
    for task in &tasks {
        let numbered = task.items.iter().enumerate();
        items.extend(numbered.map(|(at, item)| (format!("{}/{at}", task.name), item)));
    }
    items.retain(|(_, item)| item.metric != Metric::LogProb);
    items.shuffle(&mut ChaCha8Rng::seed_from_u64(args.seed));
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let bar = bar(items.len());
    for chunk in items.chunks(args.parallel) {
        let mut asked = Vec::new();
        for (unit, item) in chunk {
            let names = Names { unit: Some(unit.clone()), ..Names::default() };
            let enrol = experiments.enrol(&Choice::Open, &service.base_name, &names);
            let enrolled = runtime.block_on(enrol).map_err(|error| error.to_string())?;
            // Some are held out, or in other parts of the layer.
            let Some(enrolment) = enrolled else { continue };
            asked.extend(ask(service, (unit, item), enrolment, every_arm)?);
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

fn bar(count: usize) -> ProgressBar {
    let bar = ProgressBar::new(count as u64);
    let template = "{elapsed} {wide_bar} {pos}/{len} conversations, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// A conversation under its arm, or under every arm.
fn ask<'a>(
    service: &Service,
    (unit, item): (&str, &'a Item),
    mut enrolment: Enrolment,
    every_arm: bool,
) -> Result<Vec<Asked<'a>>, String> {
    let fail = |error: &dyn std::fmt::Display| format!("{unit}: {error}");
    let messages = json!(item.conversation());
    let prompt = service.text.encode_chat(&messages, true).map_err(|error| fail(&error))?;
    let own = (enrolment.arm.clone(), enrolment.selection.clone().unwrap_or(Selection::Base));
    let shadows = std::mem::take(&mut enrolment.shadows);
    let shadows = if every_arm { shadows } else { Vec::new() };
    let mut asked = Vec::new();
    for (arm, mut selection) in std::iter::once(own).chain(shadows) {
        if let Selection::Routed(asked) = &mut selection {
            asked.prompt_tokens = prompt.len();
            asked.text = Some(item.last_said());
        }
        match service.composer.compose(&selection) {
            Ok(composition) => asked.push(Asked {
                item,
                id: format!("{unit}/{arm}"),
                enrolment: enrolment.clone(),
                arm,
                composition,
                prompt: prompt.clone(),
            }),
            Err(_) => service.experiments.ended_under(&enrolment, &arm, &Measured::fault()),
        }
    }
    Ok(asked)
}

/// Answers, measures and grades; all of them are in the engine at once.
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
        let grade = score(asked.item, &service.text.decode(&ids));
        grade_answer(&service.experiments, asked, &mut measured, grade)?;
    }
    Ok(())
}

/// The arm that serves is graded by feedback, as a client would; others have no reply that feedback could come for.
fn grade_answer(
    experiments: &Experiments,
    asked: &Asked<'_>,
    measured: &mut Measured,
    grade: f64,
) -> Result<(), String> {
    if asked.arm != asked.enrolment.arm {
        measured.put(GRADE, grade);
        experiments.ended_under(&asked.enrolment, &asked.arm, measured);
        return Ok(());
    }
    experiments.ended(&asked.enrolment, measured);
    match experiments.feedback(&asked.id, GRADE, grade) {
        // The experiment may measure other things alone.
        Ok(_) | Err(crate::experiments::ExperimentError::NoMetric { .. }) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

fn submit(service: &Service, asked: &Asked<'_>) -> Result<(Instant, Receiver<Event>), String> {
    loop {
        let (sender, events) = channel();
        let request = Request {
            prompt: asked.prompt.clone(),
            sampling: SamplingParams {
                max_tokens: asked.item.max_tokens,
                temperature: 0.0,
                stop_tokens: service.model.config().eos_tokens.clone(),
                ..SamplingParams::default()
            },
            composition: Arc::clone(&asked.composition),
            trace: TraceLevel::Summary,
            shadow: None,
            cache_salt: String::new(),
            sink: Box::new(move |event| sender.send(event).is_ok()),
        };
        match service.engine.handle().submit(request) {
            Ok(_) => return Ok((Instant::now(), events)),
            Err(SubmitError::QueueFull { .. }) => std::thread::sleep(RETRY),
            Err(error) => return Err(format!("{}: {error}", asked.id)),
        }
    }
}
