//! `polyskill plugin test`: fixtures and conformance, in the real sandbox.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use polyskill_plugin::{Fault, Plugin, self_test};
use polyskill_sdk::ModuleInfo;
use polyskill_sdk::conformance::{self, Cast, Decided};

use polyskill_sources::cache::cache_directory;

use super::{SandboxArgs, Settings, prepare, say};

/// Loads a bundle as a server would, runs its fixtures, and then the conformance suite.
///
/// Each fixture is run whether or not those before it passed. The suite is not run where one
/// failed.
///
/// # Errors
/// If the bundle cannot be loaded, or with the names of what failed.
pub(super) fn run(bundle: &Path, args: &SandboxArgs, out: &mut dyn Write) -> Result<(), String> {
    let settings = Settings::new(args)?;
    // The server's own cache: what was compiled for a test is not compiled again to serve.
    let cache = Some(cache_directory().join("plugins"));
    let start = Instant::now();
    let prepared = prepare(bundle, &settings, cache, args.native)?;
    let plugin = prepared.loader.load(&prepared.path).map_err(|error| error.to_string())?;
    let manifest = plugin.manifest();
    say(
        out,
        format_args!(
            "{} {}, {}, {}",
            manifest.name,
            manifest.version,
            plugin.kind(),
            plugin.digest()
        ),
    )?;
    line(out, true, "load", start, &bundle.display().to_string())?;
    let mut failed = Vec::new();
    let mut fixtures = 0;
    for (name, bytes) in plugin.fixtures() {
        fixtures += 1;
        let start = Instant::now();
        match self_test::run(&plugin, name, bytes) {
            Ok(report) => line(out, true, name, start, &report.decided)?,
            Err(fault) => {
                line(out, false, name, start, "")?;
                explain(out, name, &fault)?;
                failed.push(name.to_owned());
            }
        }
    }
    if fixtures == 0 {
        say(out, "        fixtures: none, so nothing says what this router must decide")?;
    }
    if failed.is_empty() {
        if !conform(&plugin, &settings, out)? {
            failed.push("conformance".to_owned());
        }
    } else {
        say(
            out,
            "        conformance: not run, since no server starts a router whose fixtures fail",
        )?;
    }
    match failed.as_slice() {
        [] => say(out, "all passed"),
        failed => Err(format!("plugin `{}` FAILED: {}", manifest.name, failed.join(", "))),
    }
}

/// Runs the conformance suite with the settings' parameters; false where the router violates it.
fn conform(plugin: &Plugin, settings: &Settings, out: &mut dyn Write) -> Result<bool, String> {
    let start = Instant::now();
    let parameters = settings.parameters(plugin.name());
    let make = |library: &_, parameters| plugin.start(library, parameters);
    match conformance::run_with(&make, &parameters, &cast(plugin)) {
        Ok(transcript) => {
            let count = |wanted: fn(&Decided) -> bool| {
                transcript.0.iter().filter(|decided| wanted(decided)).count()
            };
            let plans = count(|decided| matches!(decided, Decided::Plan(Ok(_))));
            let refused = count(|decided| matches!(decided, Decided::Plan(Err(_))));
            let batches = count(|decided| matches!(decided, Decided::Rows(_)));
            let what =
                format!("{plans} plans, {refused} requests declined, {batches} batches of rows");
            line(out, true, "conformance", start, &what)?;
            Ok(true)
        }
        Err(violation) => {
            line(out, false, "conformance", start, &violation.case)?;
            say(out, format_args!("          {}", violation.message))?;
            Ok(false)
        }
    }
}

/// Modules and texts of the bundle's fixtures: what its author expects an answer to.
///
/// Fixtures that are no JSON are passed over: the run of the fixtures has told of them.
fn cast(plugin: &Plugin) -> Cast {
    let mut cast = Cast::default();
    for (_, bytes) in plugin.fixtures() {
        let Ok(fixture) = serde_json::from_slice::<serde_json::Value>(bytes) else { continue };
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let modules = fixture["modules"].as_array().into_iter().flatten();
        let known: Vec<ModuleInfo> = modules
            .map(|module| ModuleInfo {
                index: 0,
                name: text(&module["name"]),
                generation: String::new(),
                kind: String::new(),
                tags: module["tags"].as_array().into_iter().flatten().map(text).collect(),
                metadata: module["metadata"]
                    .as_object()
                    .into_iter()
                    .flatten()
                    .map(|(key, value)| (key.clone(), text(value)))
                    .collect(),
            })
            .collect();
        // Small libraries have room for one fixture's modules; the largest set says most.
        if known.len() > cast.modules.len() {
            cast.modules = known;
        }
        if let Some(said) = fixture["request"]["text"].as_str() {
            cast.texts.push(said.to_owned());
        }
    }
    cast
}

/// Prints the outcome of one step with its time since `start`.
fn line(
    out: &mut dyn Write,
    passed: bool,
    name: &str,
    start: Instant,
    what: &str,
) -> Result<(), String> {
    let word = if passed { "ok" } else { "FAILED" };
    let milliseconds = start.elapsed().as_secs_f64() * 1e3;
    let text = format!("{word:<6}  {name:<30} {milliseconds:>7.1} ms  {what}");
    say(out, text.trim_end())
}

/// Prints a fixture's failure, with what was decided above what was expected where it is of that
/// kind.
fn explain(out: &mut dyn Write, name: &str, fault: &Fault) -> Result<(), String> {
    let text = match fault {
        Fault::Failed(reason) => reason.clone(),
        other => other.to_string(),
    };
    let text = text.strip_prefix(&format!("self-test {name}: ")).unwrap_or(&text);
    match text.split_once(", expected ").filter(|_| text.starts_with("decided ")) {
        Some((decided, expected)) => {
            let decided = decided.trim_start_matches("decided ");
            say(out, format_args!("          decided  {decided}\n          expected {expected}"))
        }
        None => say(out, format_args!("          {text}")),
    }
}
