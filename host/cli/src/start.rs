//! The start of a service, shown on the terminal.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use polyskill_server::config::Config;
use polyskill_server::service::Service;
use polyskill_server::startup::StartupEvent;

/// Least time between two lines about a long start where nobody sees a spinner.
const SAY_EVERY: Duration = Duration::from_secs(2);

/// Starts a service under a spinner that shows each stage; in a log, the stages as lines, at most
/// one in [`SAY_EVERY`].
///
/// Loading the base takes seconds to minutes, and the call blocks for so long. Modules and plugins
/// that could not be loaded are named on standard error and do not stop the start.
pub(crate) fn start_service(config: &Config) -> Result<Service, String> {
    let spinner = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(Duration::from_millis(100));
    let mut said = Instant::now();
    let service = Service::start(config, &mut |event| match event {
        StartupEvent::Stage(stage) => {
            if spinner.is_hidden() && said.elapsed() >= SAY_EVERY {
                eprintln!("polyskill: {stage}");
                said = Instant::now();
            }
            spinner.set_message(stage);
        }
        StartupEvent::LeftOut(_) => spinner.suspend(|| eprintln!("polyskill: {event}")),
    });
    spinner.finish_and_clear();
    service.map_err(|error| error.to_string())
}
