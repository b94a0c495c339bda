//! How the library behaves as it grows and changes: time to first token, throughput, loads and evictions.
//!
//! `cargo bench --bench library -- scale` registers 10, 100 and 1,000 modules and asks a part of them, more than
//! fits into memory or less; with `mixed` their ranks differ. `cargo bench --bench library -- soak` streams while modules load, are replaced and
//! unload, compares the latency with the same load without swaps, and requires that nothing fails or mixes.
//! Both take `--seconds N`. The default base is used where it is in the cache, else a tiny one, which says
//! little about real load.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program for people")]

mod traffic;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use polyskill_adapters::library::Expected;
use polyskill_adapters::{Budget, Library, open_module};
use polyskill_engine::{Composer, Engine, EngineConfig, Selection};
use polyskill_model::{Compute, Decoder, load};
use polyskill_sources::base_models;
use traffic::{Choice, Load, Served, run};

/// Modules that are asked, at most.
const MAX_ACTIVE: usize = 64;
/// Clients that ask one request after the other.
const CLIENTS: usize = 16;
/// Streams beside which modules are swapped.
const STREAMS: usize = 8;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let seconds = arguments.windows(2).find(|pair| pair[0] == "--seconds");
    let seconds = seconds.map(|pair| pair[1].parse().expect("--seconds takes a number"));
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    let bench = Bench::new(if has("mixed") { &[2, 4, 8, 16] } else { &[4] });
    match (has("scale"), has("soak")) {
        (true, _) => scale(&bench, Duration::from_secs(seconds.unwrap_or(12))),
        (_, true) => soak(&bench, Duration::from_secs(seconds.unwrap_or(60))),
        _ => println!("say `scale` or `soak`"),
    }
}

/// A base with an engine.
struct Bench {
    model: Arc<Decoder>,
    engine: Engine,
    files: tempfile::TempDir,
    /// Ranks of the modules, in turn.
    ranks: &'static [usize],
}

impl Bench {
    fn new(ranks: &'static [usize]) -> Self {
        let cached = base_models::cached(&base_models::SMOLLM2).ok().flatten();
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/llama-tied");
        let path = cached.unwrap_or(tiny);
        println!("base: {}", path.file_name().unwrap_or_default().to_string_lossy());
        let compute = Arc::new(Compute::for_this_machine());
        let model = Arc::new(load::load(&path, compute, &mut |_, _| {}).unwrap());
        let engine = Engine::start(Arc::clone(&model), EngineConfig::default()).unwrap();
        Self { model, engine, files: tempfile::tempdir().unwrap(), ranks }
    }

    /// Writes a LoRA at all projections, in 16 bits; its rank and values come from its number.
    fn write(&self, number: usize) -> PathBuf {
        let directory = self.files.path().join(format!("m{number}"));
        if !directory.exists() {
            let rank = self.ranks[number % self.ranks.len()];
            traffic::write_module(&directory, self.model.config(), number as u64, rank);
        }
        directory
    }

    fn publish(&self, library: &Library, name: &str, number: usize) {
        let path = self.write(number);
        let module = open_module(name, &path, self.files.path(), &self.model, ()).unwrap();
        library.publish(name, module, Expected::Any).unwrap();
    }
}

fn scale(bench: &Bench, duration: Duration) {
    println!(
        "\n{CLIENTS} clients, prompts of 24 tokens, 12 tokens each, ranks {:?}, {duration:?} per line\n",
        bench.ranks
    );
    println!(
        "| registered | asked | memory holds | traffic | TTFT p50 ms | p99 ms | tok/s | loads/s | evictions/s |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let mut base = Vec::new();
    for registered in [0, 10, 100, 1_000] {
        let library = Arc::new(Library::default());
        let started = Instant::now();
        library.set_budget(Budget { max_bytes: Some(0), ..Budget::default() });
        (0..registered).for_each(|n| bench.publish(&library, &format!("m{n}"), n));
        let took = started.elapsed();
        let composer = Composer::new(&bench.model, Arc::clone(&library));
        let load = Load { clients: CLIENTS, duration, choice: Choice::Base };
        base.push((registered, took, run(&bench.engine, &composer, &load)));
        let active = registered.min(MAX_ACTIVE);
        let snapshot = library.snapshot();
        let bytes = |number| snapshot.get(&format!("m{number}")).map_or(0, |one| one.num_bytes());
        let asked: usize = (0..active).map(bytes).sum();
        if asked == 0 {
            continue;
        }
        for (share, held) in [("0.5", 2 * asked), ("1", asked), ("2", asked / 2)] {
            let max_bytes = Some(held);
            library.set_budget(Budget { max_bytes, ..Budget::default() });
            for (traffic, exponent) in [("Zipf 1", 1.0), ("uniform", 0.0)] {
                let choice = Choice::Modules { count: active, exponent };
                let before = library.pool_stats();
                let served =
                    run(&bench.engine, &composer, &Load { clients: CLIENTS, duration, choice });
                let after = library.pool_stats();
                let rate = |a: u64, b: u64| (b - a) as f64 / duration.as_secs_f64();
                println!(
                    "| {registered} | {active} | {:.0} MiB ({share}×) | {traffic} | {:.0} | {:.0} | {:.0} | {:.1} | {:.1} |",
                    held as f64 / f64::from(1 << 20),
                    served.first_token(0.5),
                    served.first_token(0.99),
                    served.tokens_per_second,
                    rate(before.loads, after.loads),
                    rate(before.evictions, after.evictions),
                );
                assert_eq!(served.failed, 0, "a request failed");
            }
        }
    }
    println!("\n| registered | registering took s | base alone, tok/s | TTFT p99 ms |");
    println!("|---|---|---|---|");
    for (registered, took, served) in base {
        let (rate, p99) = (served.tokens_per_second, served.first_token(0.99));
        println!("| {registered} | {:.1} | {rate:.0} | {p99:.0} |", took.as_secs_f64());
    }
}

/// Streams of three names whose modules are replaced, one after the other.
fn soak(bench: &Bench, duration: Duration) {
    let library = Arc::new(Library::default());
    let names = ["a", "b", "c"];
    for (number, name) in names.iter().enumerate() {
        bench.publish(&library, name, number);
    }
    let composer = Composer::new(&bench.model, Arc::clone(&library));
    let bytes = library.resident_bytes();
    let choice = || Choice::Named(names.map(str::to_owned).to_vec());
    let load = |duration| Load { clients: STREAMS, duration, choice: choice() };
    (0..12).for_each(|number| drop(bench.write(number)));
    let quiet = run(&bench.engine, &composer, &load(duration / 2));
    let (stop, swaps) = (AtomicBool::new(false), AtomicUsize::new(0));
    let swapped = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                let number = swaps.fetch_add(1, Relaxed);
                bench.publish(&library, names[number % 3], number % 12);
                bench.publish(&library, "passing", (number + 5) % 12);
                library.remove("passing", Expected::Any).unwrap();
            }
        });
        let served = run(&bench.engine, &composer, &load(duration));
        stop.store(true, Relaxed);
        served
    });
    for (number, name) in names.iter().enumerate() {
        bench.publish(&library, name, number);
    }
    report(&quiet, &swapped, swaps.into_inner());
    let generations: BTreeMap<usize, usize> = swapped.generations_per_request();
    assert_eq!(generations.keys().copied().collect::<Vec<_>>(), [1], "a request mixed generations");
    assert_eq!(swapped.failed, 0, "a request failed");
    assert_eq!(library.resident_bytes(), bytes, "bytes are left");
    assert!(composer.compose(&Selection::Base).is_ok());
    println!("bytes back to {bytes}, no request failed, none saw two generations of a module");
}

fn report(quiet: &Served, swapped: &Served, swaps: usize) {
    println!("\n| {STREAMS} streams | requests | tok/s | inter-token p50 ms | p99 ms |");
    println!("|---|---|---|---|---|");
    for (what, served) in [("without swaps", quiet), ("with swaps", swapped)] {
        println!(
            "| {what} | {} | {:.0} | {:.2} | {:.2} |",
            served.requests,
            served.tokens_per_second,
            served.gap(0.5),
            served.gap(0.99)
        );
    }
    println!(
        "\n{swaps} replacements, as many loads and unloads; p99 ratio {:.2}",
        swapped.gap(0.99) / quiet.gap(0.99)
    );
}
