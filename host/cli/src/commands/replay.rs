//! `polyskill trace replay`: recorded requests once more; the same tokens and the same decisions
//! must come out.

use std::fs::File;
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use polyskill_engine::{Event, Request, TraceLevel};
use polyskill_server::service::Service;
use polyskill_server::traces::{Repeat, Trace, TracedToken};

use super::lines::next_line;

/// Longest line of a file of traces in bytes.
pub(crate) const MAX_LINE: u64 = 256 << 20;
/// Requests of a file that are in memory at once.
const MAX_REPEATS: usize = 1 << 20;

/// The file of traces that are run again.
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// A file of traces, one per line, as `[traces]` writes it or `GET /admin/traces` gives it.
    pub traces: PathBuf,
    /// Traces at most, the first ones.
    #[arg(long)]
    pub limit: Option<usize>,
}

/// The traces of a file, in its order; one at a time is in memory.
struct Traces<'a> {
    /// The file's path, for messages.
    path: &'a Path,
    /// The file, after the lines that were read.
    reader: BufReader<File>,
    /// Lines that were read.
    number: usize,
}

impl<'a> Traces<'a> {
    /// Opens a file of traces.
    fn open(path: &'a Path) -> Result<Self, String> {
        let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { path, reader: BufReader::new(file), number: 0 })
    }
}

impl Iterator for Traces<'_> {
    type Item = Result<Trace, String>;

    fn next(&mut self) -> Option<Self::Item> {
        self.number += 1;
        let line = next_line(&mut self.reader, MAX_LINE).transpose()?;
        let trace = line.and_then(|line| {
            serde_json::from_slice::<Trace>(&line).map_err(|error| error.to_string())
        });
        let (path, number) = (self.path.display(), self.number);
        Some(trace.map_err(|error| format!("{path}: line {number}: {error}")))
    }
}

/// The requests of a file of traces that can be run again, with the ids of their traces, in the
/// order of the file; with a limit, the first ones.
///
/// Traces that were written without their prompts are passed over. Nothing is read after the last
/// request that is taken.
///
/// # Errors
/// If the file cannot be read, or has none or too many.
pub(crate) fn read_repeats(
    path: &Path,
    limit: Option<usize>,
) -> Result<Vec<(String, Repeat)>, String> {
    let fail = |problem: &str| format!("{}: {problem}", path.display());
    let mut traces = Traces::open(path)?;
    let mut repeats = Vec::new();
    while limit.is_none_or(|limit| repeats.len() < limit) {
        let Some(trace) = traces.next() else { break };
        let trace = trace?;
        repeats.extend(trace.repeat.map(|repeat| (trace.id, repeat)));
        if repeats.len() > MAX_REPEATS {
            return Err(fail(&format!("more than {MAX_REPEATS} traces; --limit takes the first")));
        }
    }
    match repeats.is_empty() {
        true => Err(fail("no trace was written with its prompt (`prompts` in `[traces]`)")),
        false => Ok(repeats),
    }
}

/// The result of one trace that was run again.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// The same tokens, the same picks at every site, and the same experts.
    Same,
    /// The composition is another or cannot be made any more, so nothing was run; the reason.
    Changed(String),
    /// The composition is the same, and tokens or decisions differ; the first difference.
    Differs(String),
    /// The trace was written without its prompt and sampling parameters.
    NotRepeatable,
}

/// Runs traces again, one after the other, and says of each that differs in what.
///
/// A trace whose composition has another digest now is counted and is no failure: base, modules,
/// router or plan have changed since. Traces beyond `args.limit` are not run.
///
/// # Errors
/// If the file cannot be read, or where decisions differ under the same composition.
pub fn run(service: &Service, args: &ReplayArgs, out: &mut dyn Write) -> Result<(), String> {
    let (mut same, mut changed, mut differ, mut unable) = (0, 0, 0, 0);
    for trace in Traces::open(&args.traces)?.take(args.limit.unwrap_or(usize::MAX)) {
        let trace = trace?;
        let id = trace.id.clone();
        match again(service, trace)? {
            Outcome::Same => same += 1,
            Outcome::NotRepeatable => unable += 1,
            Outcome::Changed(what) => {
                changed += 1;
                say(out, &format!("{id}: {what}"))?;
            }
            Outcome::Differs(what) => {
                differ += 1;
                say(out, &format!("{id}: {what}"))?;
            }
        }
    }
    say(
        out,
        &format!(
            "{same} traces came out the same, {changed} meet another composition, {differ} differ, \
             {unable} were written without their prompts"
        ),
    )?;
    match differ {
        0 => Ok(()),
        _ => Err(format!("{differ} traces differ under the same composition")),
    }
}

/// Writes a line; fails where the terminal is gone.
fn say(out: &mut dyn Write, line: &str) -> Result<(), String> {
    writeln!(out, "{line}").map_err(|error| error.to_string())
}

/// Runs one trace and compares. It is alone in the engine's step, but a row's bits do not depend on
/// that.
fn again(service: &Service, trace: Trace) -> Result<Outcome, String> {
    let Some(repeat) = trace.repeat else { return Ok(Outcome::NotRepeatable) };
    let selection = repeat.selection();
    let composition = match service.composer.compose(&selection) {
        Ok(composition) => composition,
        Err(error) => return Ok(Outcome::Changed(error.to_string())),
    };
    if composition.digest().to_string() != trace.composition {
        let what = "base, modules, router or plan are not what they were".to_owned();
        return Ok(Outcome::Changed(what));
    }
    let request = Request {
        trace: TraceLevel::Full,
        ..Request::new(repeat.prompt, repeat.sampling, composition)
    };
    let events = service.engine.handle().run(request);
    let mut tokens = Vec::new();
    for event in events.map_err(|error| format!("{}: {error}", trace.id))? {
        if let Event::Token(token) = event {
            tokens.extend(TracedToken::of(token, &service.tokenizer));
        }
    }
    Ok(compared(&trace.tokens, &tokens))
}

/// The first difference in tokens, picks and experts, in this order at each token.
///
/// A client that went away may have cut the recorded answer short, so more tokens now are no
/// difference.
fn compared(before: &[TracedToken], now: &[TracedToken]) -> Outcome {
    if before.len() > now.len() {
        return Outcome::Differs(format!("{} tokens, {} before", now.len(), before.len()));
    }
    for (at, (before, now)) in before.iter().zip(now).enumerate() {
        if before.token != now.token {
            let what = format!("token {at} is {}, {} before", now.token, before.token);
            return Outcome::Differs(what);
        }
        if before.sites != now.sites {
            return Outcome::Differs(format!("other decisions at token {at}"));
        }
        if before.experts != now.experts {
            return Outcome::Differs(format!("other experts at token {at}"));
        }
    }
    Outcome::Same
}

#[cfg(test)]
mod tests {
    use polyskill_engine::SamplingParams;
    use polyskill_route::RouteSpec;
    use serde_json::json;

    use super::*;

    #[test]
    fn traces_are_read_one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("traces.jsonl");
        let repeat = Repeat {
            prompt: vec![1, 2],
            sampling: SamplingParams::default(),
            route: RouteSpec::default(),
            text: None,
            bucket: 0,
        };
        let line = |id: &str, repeat: Option<Repeat>| {
            let trace = Trace { id: id.to_owned(), repeat, ..Trace::default() };
            serde_json::to_string(&trace).unwrap() + "\n"
        };
        let mut text = (line("a", None) + &line("b", Some(repeat))).into_bytes();
        text.extend(b"\xff\n");
        std::fs::write(&path, text).unwrap();
        let traces: Vec<_> = Traces::open(&path).unwrap().take(2).collect();
        assert!(traces.iter().all(Result::is_ok), "{traces:?}");
        let [(id, first)] = read_repeats(&path, Some(1)).unwrap().try_into().unwrap();
        assert_eq!((id.as_str(), first.prompt), ("b", vec![1, 2]));
        let refused = read_repeats(&path, None).map(drop).unwrap_err();
        assert!(refused.contains("traces.jsonl: line 3: "), "{refused}");
        std::fs::write(&path, line("a", None)).unwrap();
        let refused = read_repeats(&path, None).map(drop).unwrap_err();
        assert!(refused.contains("no trace was written with its prompt"), "{refused}");
    }

    #[test]
    fn the_first_difference_is_named() {
        let token = |token: u32, weight: f64| {
            let sites = [json!({"layer": 0, "site": "q_proj", "picks": [[0, weight]]})];
            serde_json::from_value(json!({"token": token, "text": "a", "sites": sites})).unwrap()
        };
        let all: [TracedToken; 2] = [token(1, 0.5), token(2, 0.25)];
        assert_eq!(compared(&all, &all), Outcome::Same);
        assert_eq!(compared(&all[..1], &all), Outcome::Same);
        let differs = |now: &[TracedToken]| match compared(&all, now) {
            Outcome::Differs(what) => what,
            other => panic!("{other:?}"),
        };
        assert_eq!(differs(&all[..1]), "1 tokens, 2 before");
        assert_eq!(differs(&[token(1, 0.5), token(3, 0.25)]), "token 1 is 3, 2 before");
        assert_eq!(differs(&[token(1, 0.5), token(2, 0.5)]), "other decisions at token 1");
    }
}
