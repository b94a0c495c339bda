//! `polyskill generate`: one prompt on the terminal, each token in its module's colour.

#![expect(clippy::print_stdout, reason = "the terminal is this command's output")]

use std::io::Write as _;
use std::sync::Arc;

use clap::Args;
use polyskill_engine::{
    Composition, Event, FinishReason, Request, SamplingParams, Selection, TraceLevel,
};
use polyskill_route::RouteSpec;
use polyskill_tokenizer::{Chat, Special, Stops, TextStream};
use serde_json::json;

use polyskill_server::service::Service;

use crate::arguments::{ServeArgs, router, weighted};
use crate::start::start_service;

/// The prompt, the modules or the router that answer it, and the sampling parameters.
#[derive(Args, Clone, Debug)]
pub struct GenerateArgs {
    /// The user's message.
    prompt: String,
    /// Route with this router over all modules.
    #[arg(long)]
    router: Option<String>,
    /// Router parameter, `name=value`; repeatable.
    #[arg(long = "param")]
    params: Vec<String>,
    /// Use this module; repeatable, `name` or `name=weight`.
    #[arg(long = "adapter")]
    adapter: Vec<String>,
    /// Show each token's modules in colour.
    #[arg(long)]
    trace: bool,
    /// Tokens at most.
    #[arg(long, default_value_t = 128)]
    max_tokens: usize,
    /// 0 is greedy.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Start of the random stream.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The service that answers.
    #[command(flatten)]
    serve: ServeArgs,
}

/// The arguments after their checks.
#[derive(Clone, Debug)]
struct Options {
    /// The user's message.
    prompt: String,
    /// The composition that answers.
    route: RouteSpec,
    /// Shows modules in colour, and their shares at the end.
    trace: bool,
    /// Tokens at most.
    max_tokens: usize,
    /// 0 is greedy.
    temperature: f32,
    /// Start of the random stream.
    seed: u64,
}

/// Colours of the modules as ANSI codes, in order of the composition; with more than six they come
/// again.
const COLOURS: [u8; 6] = [36, 33, 35, 32, 34, 31];

/// Answers one prompt on the terminal.
///
/// Everything that can be checked without a base is, since loading one takes its time.
///
/// # Errors
/// A message for the user.
pub fn run(args: GenerateArgs) -> Result<(), String> {
    let route = route(&args)?;
    let temperature = args.temperature;
    if !(0.0..=100.0).contains(&temperature) {
        return Err(format!("--temperature is {temperature}, expected 0 to 100"));
    }
    if args.max_tokens == 0 {
        return Err("--max-tokens is 0, expected at least 1".to_owned());
    }
    let service = start_service(&args.serve.config()?)?;
    let options = Options {
        prompt: args.prompt,
        route,
        trace: args.trace,
        max_tokens: args.max_tokens,
        temperature: args.temperature,
        seed: args.seed,
    };
    answer(&service, &options)
}

/// Prints the answer as it comes. End tokens are not shown.
fn answer(service: &Service, options: &Options) -> Result<(), String> {
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
    let said = Some(options.prompt.clone());
    let selection = Selection::from(&options.route).told(prompt.len(), said, 0);
    let composition = service.composer.compose(&selection).map_err(|error| error.to_string())?;
    let sampling = SamplingParams {
        max_tokens: options.max_tokens,
        temperature: options.temperature,
        seed: options.seed,
        stop_tokens: ends.clone(),
        ..SamplingParams::default()
    };
    let request = Request {
        trace: if options.trace { TraceLevel::Full } else { TraceLevel::None },
        ..Request::new(prompt, sampling, Arc::clone(&composition))
    };
    let events = service.engine.handle().run(request);
    for event in events.map_err(|error| error.to_string())? {
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

/// The route of the arguments.
fn route(args: &GenerateArgs) -> Result<RouteSpec, String> {
    let adapters = args.adapter.iter().map(|text| weighted(text));
    let route = RouteSpec {
        router: args.router.clone().map(|name| router(name, &args.params)).transpose()?,
        adapters: Some(adapters.collect::<Result<_, String>>()?),
    };
    route.check().map_err(|error| error.to_string().replace("`adapters`", "--adapter"))?;
    Ok(route)
}

/// The module with the most weight over a token's sites; `None` where none was picked.
fn strongest(routing: &[polyskill_engine::SitePicks]) -> Option<u32> {
    let mut weights = std::collections::BTreeMap::<u32, f32>::new();
    for &(module, weight) in routing.iter().flat_map(|site| &site.picks) {
        *weights.entry(module).or_default() += weight;
    }
    weights.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).map(|(module, _)| module)
}

/// A text in its module's colour, on a terminal; elsewhere the text as it is.
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

/// Prints the modules in their colours with their shares of the picks, the largest first, and why
/// the base answered, if it did.
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
