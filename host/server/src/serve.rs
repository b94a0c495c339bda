//! The life of the HTTP server: listening, watching, and stopping without breaking an answer.

use std::sync::Arc;

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
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
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
        let (told, signalled) = tokio::sync::oneshot::channel();
        let until = async move {
            shutdown_signal().await;
            say("finishing running requests");
            let _ = told.send(());
        };
        let server = axum::serve(listener, app).with_graceful_shutdown(until);
        tokio::select! {
            served = async { server.await } => served.map_err(|error| error.to_string()),
            () = nothing_runs(signalled, service) => Ok(()),
        }
    })?;
    service.engine.drain();
    Ok(())
}

/// Waits, after the signal to stop, until no request has run for two seconds: a client that stalls
/// in the middle of a request must not keep the server. A second signal ends the process at once.
///
/// `signalled` is told of the first signal. Where it never comes, this waits for ever.
async fn nothing_runs(signalled: tokio::sync::oneshot::Receiver<()>, service: &Service) {
    /// The time between two looks at the engine.
    const LOOK: std::time::Duration = std::time::Duration::from_millis(100);
    /// Looks in a row that find nothing running or waiting.
    const IDLE_LOOKS: u32 = 20;
    if signalled.await.is_err() {
        std::future::pending::<()>().await;
    }
    tokio::spawn(async {
        shutdown_signal().await;
        tracing::warn!("stopped by a second signal");
        std::process::exit(1);
    });
    let mut idle_looks = 0;
    while idle_looks < IDLE_LOOKS {
        tokio::time::sleep(LOOK).await;
        let stats = service.engine.handle().stats().snapshot();
        idle_looks = if stats.running + stats.waiting == 0 { idle_looks + 1 } else { 0 };
    }
}

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
