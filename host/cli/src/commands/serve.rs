//! `polyskill serve`.

use std::sync::Arc;

use polyskill_server::serve;

use crate::arguments::ServeArgs;
use crate::start::start_service;

/// Serves until a signal, or until standard input ends where `until_input_ends` says so.
///
/// The latter is for programs that start a server and hold the other end of its standard input.
pub(crate) fn run(args: &ServeArgs, until_input_ends: bool) -> Result<(), String> {
    if until_input_ends {
        end_with_input()?;
    }
    let config = args.config()?;
    let service = Arc::new(start_service(&config)?);
    serve::run(&service, &config, |line| eprintln!("polyskill: {line}"))
}

/// Ends this process as soon as standard input ends, by a thread that reads and drops it.
///
/// `plugin dev` holds the other end, and the system closes it however that process ends. The
/// process exits with code 0 and without a clean stop, so requests in progress are lost.
fn end_with_input() -> Result<(), String> {
    let watch = || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        std::process::exit(0);
    };
    let thread = std::thread::Builder::new().name("parent-watch".to_owned()).spawn(watch);
    thread.map(drop).map_err(|error| format!("cannot watch standard input: {error}"))
}
