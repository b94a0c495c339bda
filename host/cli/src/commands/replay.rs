//! `polyskill trace replay`: recorded requests once more; the same tokens and the same decisions
//! must come out.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;

use clap::Args;
use polyskill_engine::{Event, Request, Selection, TraceLevel};
use polyskill_server::service::Service;
use polyskill_server::traces::{Repeat, Trace, TracedToken};

/// Longest line that is read. The file is in memory as a whole before this is checked.
const MAX_LINE: usize = 256 << 20;

/// The file of traces that are run again.
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// A file of traces, one per line, as `[traces]` writes it or `GET /admin/traces` gives it.
    pub traces: PathBuf,
    /// Traces at most, the first ones.
    #[arg(long)]
    pub limit: Option<usize>,
}

/// The requests of a file of traces that can be run again, with the ids of their traces, in the
/// order of the file.
///
/// Traces that were written without their prompts are passed over.
///
/// # Errors
/// If the file cannot be read, or has none.
pub(crate) fn read_repeats(path: &Path) -> Result<Vec<(String, Repeat)>, String> {
    let fail = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| fail(&error))?;
    let mut repeats = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let trace: Trace = serde_json::from_str(line)
            .map_err(|error| fail(&format!("line {}: {error}", number + 1)))?;
        repeats.extend(trace.repeat.map(|repeat| (trace.id, repeat)));
    }
    match repeats.is_empty() {
        true => Err(fail(&"no trace was written with its prompt (`prompts` in `[traces]`)")),
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
    let fail = |error: &dyn std::fmt::Display| format!("{}: {error}", args.traces.display());
    let text = std::fs::read_to_string(&args.traces).map_err(|error| fail(&error))?;
    let (mut same, mut changed, mut differ, mut unable) = (0, 0, 0, 0);
    for (number, line) in text.lines().enumerate().take(args.limit.unwrap_or(usize::MAX)) {
        if line.len() > MAX_LINE {
            return Err(fail(&format!("line {}: longer than {MAX_LINE} bytes", number + 1)));
        }
        let trace: Trace = serde_json::from_str(line)
            .map_err(|error| fail(&format!("line {}: {error}", number + 1)))?;
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
    let selection = Selection::from(repeat.selection);
    let composition = match service.composer.compose(&selection) {
        Ok(composition) => composition,
        Err(error) => return Ok(Outcome::Changed(error.to_string())),
    };
    if composition.digest().to_string() != trace.composition {
        let what = "base, modules, router or plan are not what they were".to_owned();
        return Ok(Outcome::Changed(what));
    }
    let (sender, events) = channel();
    let request = Request {
        prompt: repeat.prompt,
        sampling: repeat.sampling,
        composition,
        trace: TraceLevel::Full,
        shadow: None,
        cache_salt: String::new(),
        sink: Box::new(move |event| sender.send(event).is_ok().into()),
    };
    service.engine.handle().submit(request).map_err(|error| format!("{}: {error}", trace.id))?;
    let mut tokens = Vec::new();
    for event in events {
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
    use serde_json::json;

    use super::*;

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
