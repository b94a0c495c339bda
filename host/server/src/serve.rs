//! The life of the HTTP server: listening, watching, and stopping without breaking an answer.

use std::sync::Arc;
use std::time::Duration;

use crate::api::engine_failure;
use crate::config::Config;
use crate::service::Service;
use crate::{api, modules, routers};

/// Serves until the process is told to stop, then finishes the running requests. `say` hears the
/// address that it serves on, and the reason for which it ends.
///
/// It blocks, and starts an async runtime of two threads for HTTP; the engine has a thread of its
/// own.
///
/// # Errors
/// If nothing can be watched, or the address cannot be listened on.
pub fn run(service: &Arc<Service>, config: &Config, say: fn(&str)) -> Result<(), String> {
    if config.watch_adapters {
        modules::watch(service, |service| &service.modules).map_err(|error| error.to_string())?;
    }
    if config.watch_plugins {
        routers::watch(service, |service| (&service.routers, &service.composer))
            .map_err(|error| error.to_string())?;
    }
    watch_engine(service)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(MAX_BLOCKING)
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let listen = config.listen();
    runtime.block_on(async {
        service.experiments.watch();
        let listener = tokio::net::TcpListener::bind(listen)
            .await
            .map_err(|error| format!("cannot listen on {listen}: {error}"))?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        let modules = service.composer.library().snapshot().len();
        let routers: Vec<String> =
            service.composer.routers().into_iter().map(|router| router.name).collect();
        let names: Vec<&str> = service.skill_sets.iter().map(|set| set.id.as_str()).collect();
        say(&format!(
            "serving {} with {modules} modules, routers [{}], skill sets [{}] on http://{address}",
            service.base_name,
            routers.join(", "),
            names.join(", "),
        ));
        let app = api::router(Arc::clone(service), config.max_body_bytes);
        let stopping = Arc::clone(service);
        tokio::spawn(async move {
            shutdown_signal().await;
            stopping.front.drain();
            shutdown_signal().await;
            tracing::warn!("stopped by a second signal");
            std::process::exit(1);
        });
        let stop = service.front.stop();
        let mut told = service.front.stop();
        tokio::spawn(async move {
            if told.wait_for(|stop| *stop).await.is_ok() {
                say("finishing running requests");
            }
        });
        polyskill_front::serve(listener, app, &config.connections, stop).await;
        Ok::<_, String>(())
    })?;
    // Planners and loads that block are left behind: the process ends with them.
    runtime.shutdown_timeout(LAST_WAIT);
    Ok(())
}

/// Threads for work that blocks: more than requests that may wait for weights and planners.
const MAX_BLOCKING: usize = 1_024;
/// Time for what still runs when all connections have ended.
const LAST_WAIT: Duration = Duration::from_secs(2);
/// The time between two looks at the engine.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Ends the process where the engine gives no answers any more, with the reason in the log: whoever
/// watches the process starts another. It is looked at from a thread of its own, since the others may
/// be stuck too.
fn watch_engine(service: &Arc<Service>) -> Result<(), String> {
    let watched = Arc::downgrade(service);
    let look = move || {
        while let Some(service) = watched.upgrade() {
            if let Some(reason) = engine_failure(&service)
                && !service.front.is_draining()
            {
                tracing::error!(reason, "the watchdog ends this process");
                std::process::exit(EXIT_STUCK);
            }
            drop(service);
            std::thread::sleep(WATCH_INTERVAL);
        }
    };
    let thread = std::thread::Builder::new().name("watchdog".to_owned()).spawn(look);
    thread.map(drop).map_err(|error| format!("cannot watch the engine: {error}"))
}

/// The exit code of a process that the watchdog ended: an internal software error, as in sysexits.
const EXIT_STUCK: i32 = 70;

/// Waits for an interrupt, or on Unix for SIGTERM. Where a signal cannot be listened to, it never
/// comes.
async fn shutdown_signal() {
    let interrupt = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    {
        let terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
        if let Ok(mut terminate) = terminate {
            tokio::select! {
                () = interrupt => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    interrupt.await;
}
