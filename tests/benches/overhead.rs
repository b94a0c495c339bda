//! What experiments, traces and shadows cost: throughput of chat over HTTP with each of them on, in turns with a server that
//! has none of them. Every request is a new unit, so each waits for the disk.
//!
//! `cargo xtask plugins && cargo bench --bench overhead`

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program for people")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use polyskill_server::api;
use polyskill_server::config::Config;
use polyskill_server::service::Service;
use polyskill_sources::base_models;
use serde_json::{Value as Json, json};

const CLIENTS: usize = 8;
const REQUESTS: usize = 32;
const TOKENS: usize = 24;
const ROUNDS: usize = 25;

struct Server {
    name: &'static str,
    address: SocketAddr,
    trace: &'static str,
    _service: Arc<Service>,
    _runtime: tokio::runtime::Runtime,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn plugins() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let given = std::env::var_os("POLYSKILL_PLUGINS").map(PathBuf::from);
    given.unwrap_or_else(|| target.unwrap_or_else(|| root().join("target")).join("plugins"))
}

impl Server {
    fn start(
        name: &'static str,
        trace: &'static str,
        experiment: Option<Json>,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let model = base_models::cached(&base_models::SMOLLM2)
            .unwrap()
            .expect("`polyskill pull smollm2-135m-instruct` first");
        let mut config = Config {
            model: Some(model.display().to_string()),
            adapters: vec![root().join("adapters/library")],
            plugins: vec![plugins()],
            trust: polyskill_plugin::Trust::unsigned(),
            ..Config::default()
        };
        let experiment = experiment.map(|declared| serde_json::from_value(declared).unwrap());
        config.experiment.extend(experiment);
        change(&mut config);
        let service = Arc::new(Service::start(&config, &mut |_| {}).unwrap());
        let app = api::router(Arc::clone(&service), None);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move { axum::serve(listener, app).await });
        Self { name, address, trace, _service: service, _runtime: runtime }
    }

    /// Seconds for all requests.
    fn round(&self, number: &AtomicUsize) -> f64 {
        let started = Instant::now();
        let left = AtomicUsize::new(REQUESTS);
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    while left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok() {
                        self.ask(number.fetch_add(1, Relaxed));
                    }
                });
            }
        });
        started.elapsed().as_secs_f64()
    }

    fn ask(&self, number: usize) {
        let body = json!({
            "model": "skills", "temperature": 0, "max_tokens": TOKENS, "ignore_eos": true, "trace": self.trace,
            "unit": format!("unit-{number}"),
            "messages": [{"role": "user", "content": format!("Write the date {} March 2021 as ISO.", number % 28 + 1)}],
        });
        let body = body.to_string();
        let mut stream = TcpStream::connect(self.address).unwrap();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        assert!(
            reply.starts_with("HTTP/1.1 200") && reply.contains("\"served\":\"assigned\""),
            "{reply}"
        );
    }
}

fn experiment(mode: &str, arms: [&str; 2]) -> Json {
    let arm = |(name, router): (&str, &str)| json!({"name": name, "weight": 1.0, "router": router});
    json!({
        "name": "bench", "mode": mode, "models": ["skills"], "control": "one",
        "arms": [arm(("one", arms[0])), arm(("two", arms[1]))],
        "metrics": [
            {"name": "inter_token_ms", "kind": "mean", "wanted": "decrease"},
            {"name": "routing_entropy", "kind": "mean", "wanted": "decrease"},
            {"name": "agreement", "kind": "mean", "wanted": "increase"},
        ],
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let store = |name: &str| Some(folder.path().join(format!("{name}.sqlite")));
    let split = || Some(experiment("split", ["arrow", "arrow"]));
    let shadow = |arms| Some(experiment("decision_shadow", arms));
    let servers = [
        Server::start("nothing", "none", None, |_| {}),
        Server::start("experiment and summary trace", "summary", split(), |config| {
            config.experiments.store = store("split");
        }),
        Server::start("every request traced in full, to a file", "none", None, |config| {
            config.traces.sample = 1.0;
            config.traces.file = Some(folder.path().join("traces.jsonl"));
        }),
        Server::start(
            "decision shadow of phatgoose",
            "none",
            shadow(["arrow", "phatgoose"]),
            |config| {
                config.experiments.store = store("phatgoose");
            },
        ),
        Server::start("decision shadow of arrow", "none", shadow(["arrow", "arrow"]), |config| {
            config.experiments.store = store("arrow");
        }),
    ];
    let number = AtomicUsize::new(0);
    for server in &servers {
        server.round(&number);
    }
    let mut seconds: Vec<Vec<f64>> = vec![Vec::new(); servers.len()];
    for round in 0..ROUNDS {
        // Each begins a round as often as another.
        for at in 0..servers.len() {
            let at = (at + round) % servers.len();
            seconds[at].push(servers[at].round(&number));
        }
    }
    let tokens = (REQUESTS * TOKENS) as f64;
    println!("{CLIENTS} clients, {TOKENS} tokens each, medians of {ROUNDS} rounds in turns\n");
    println!("| | tokens/s | cost, % of throughput (quartiles) |");
    println!("|---|---|---|");
    for (server, own) in servers.iter().zip(&seconds) {
        let mut costs: Vec<f64> =
            own.iter().zip(&seconds[0]).map(|(own, base)| 100.0 * (1.0 - base / own)).collect();
        costs.sort_by(f64::total_cmp);
        let rate = tokens / median(own.clone());
        let quartile = |part: usize| costs[costs.len() * part / 4];
        let cost =
            format!("{:.1} ({:.1} to {:.1})", median(costs.clone()), quartile(1), quartile(3));
        println!("| {} | {rate:.0} | {cost} |", server.name);
    }
}
