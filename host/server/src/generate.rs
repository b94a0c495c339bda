//! `polyskill generate`: one prompt on the terminal, each token in its module's colour.

#![expect(clippy::print_stdout, reason = "the terminal is this command's output")]

use std::io::Write as _;
use std::sync::Arc;

use polyskill_engine::{
    Composition, Event, FinishReason, Request, SamplingParams, Selection, TraceLevel,
};
use polyskill_tokenizer::{Chat, Special, Stops, TextStream};
use serde_json::json;

use crate::service::Service;

/// What to generate.
#[derive(Clone, Debug)]
pub struct Options {
    /// The user's message.
    pub prompt: String,
    /// What answers.
    pub selection: Selection,
    /// Whether modules are shown.
    pub trace: bool,
    /// Tokens at most.
    pub max_tokens: usize,
    /// 0 is greedy.
    pub temperature: f32,
    /// Start of the random stream.
    pub seed: u64,
}

/// Colours of the modules, in order of the composition.
const COLOURS: [u8; 6] = [36, 33, 35, 32, 34, 31];

/// Prints the answer as it comes.
///
/// # Errors
/// A message for the user.
pub fn run(service: &Service, options: &Options) -> Result<(), String> {
    let tokenizer = &service.tokenizer;
    let prompt = match tokenizer.has_template() {
        true => {
            let messages = [json!({"role": "user", "content": options.prompt})];
            tokenizer.encode_chat(&Chat::to_answer(&messages))
        }
        // A base that was never taught to chat goes on with the text.
        false => tokenizer.encode(&options.prompt),
    };
    let prompt = prompt.map_err(|error| error.to_string())?;
    let mut text = TextStream::after(tokenizer, &prompt, Special::Hidden, Stops::default());
    let ends = service.end_tokens();
    let composition =
        service.composer.compose(&options.selection).map_err(|error| error.to_string())?;
    let (sender, events) = std::sync::mpsc::channel();
    let sampling = SamplingParams {
        max_tokens: options.max_tokens,
        temperature: options.temperature,
        seed: options.seed,
        stop_tokens: ends.clone(),
        ..SamplingParams::default()
    };
    let request = Request {
        prompt,
        sampling,
        composition: Arc::clone(&composition),
        cache_salt: String::new(),
        trace: if options.trace { TraceLevel::Full } else { TraceLevel::None },
        shadow: None,
        sink: Box::new(move |event| sender.send(event).is_ok().into()),
    };
    service.engine.handle().submit(request).map_err(|error| error.to_string())?;
    for event in events {
        match event {
            Event::Prompt(_) => {}
            Event::Token(token) if ends.contains(&token.token) => {}
            Event::Token(token) => {
                let piece = text.push(tokenizer, token.token).text;
                print!("{}", paint(&piece, strongest(&token.routing)));
                let _ = std::io::stdout().flush();
            }
            Event::Finished(finished) => {
                println!("{}", text.finish());
                if options.trace {
                    legend(&composition, &finished.module_share);
                }
                if let FinishReason::Error(message) = finished.reason {
                    return Err(message);
                }
            }
        }
    }
    Ok(())
}

/// The module with the most weight over a token's sites.
fn strongest(routing: &[polyskill_engine::SitePicks]) -> Option<u32> {
    let mut weights = std::collections::BTreeMap::<u32, f32>::new();
    for &(module, weight) in routing.iter().flat_map(|site| &site.picks) {
        *weights.entry(module).or_default() += weight;
    }
    weights.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).map(|(module, _)| module)
}

fn paint(text: &str, module: Option<u32>) -> String {
    match module {
        Some(module)
            if !text.is_empty() && std::io::IsTerminal::is_terminal(&std::io::stdout()) =>
        {
            format!("\x1b[{}m{text}\x1b[0m", COLOURS[module as usize % COLOURS.len()])
        }
        _ => text.to_owned(),
    }
}

fn legend(composition: &Composition, share: &[(u32, f64)]) {
    if composition.modules().is_empty() {
        println!("\nno modules: the base answered");
        return;
    }
    let router = composition.router().map_or("fixed", |router| router.name.as_str());
    let mut share = share.to_vec();
    share.sort_by(|a, b| b.1.total_cmp(&a.1));
    let names = share.iter().filter_map(|&(module, share)| {
        let name = &composition.modules().get(module as usize)?.name;
        Some(format!("{} {:.0} %", paint(name, Some(module)), 100.0 * share))
    });
    println!("\n{router}: {}", names.collect::<Vec<_>>().join("  "));
    if let Some(reason) = composition.fallback() {
        println!("the base answered: {reason}");
    }
}
