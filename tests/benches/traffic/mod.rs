//! Traffic for benchmarks of the library: clients in a closed loop, and modules to ask.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use half::bf16;
use polyskill_engine::{
    Composer, Engine, Event, FinishReason, Request, SamplingParams, Selection, TraceLevel,
};
use polyskill_model::{ModelConfig, Site};
use safetensors::tensor::{Dtype, TensorView, serialize};

const PROMPT_TOKENS: u64 = 24;
const MAX_TOKENS: usize = 12;

/// Which module a request asks for.
pub(crate) enum Choice {
    /// None.
    Base,
    /// `m0 .. m(count - 1)`, the i-th with weight 1/(i + 1)^exponent.
    Modules { count: usize, exponent: f64 },
    /// One of these in turn.
    Named(Vec<String>),
}

/// Clients that ask one request after the other.
pub(crate) struct Load {
    pub(crate) clients: usize,
    pub(crate) duration: Duration,
    pub(crate) choice: Choice,
}

/// What was served.
#[derive(Default)]
pub(crate) struct Served {
    pub(crate) requests: usize,
    pub(crate) failed: usize,
    pub(crate) tokens_per_second: f64,
    /// Seconds from the request to its first token.
    first_tokens: Vec<f64>,
    /// Seconds between tokens.
    gaps: Vec<f64>,
    /// Generations that requests saw of one name: how many requests saw how many.
    generations: BTreeMap<usize, usize>,
    tokens: usize,
}

impl Served {
    /// A quantile in milliseconds.
    pub(crate) fn first_token(&self, q: f64) -> f64 {
        1e3 * quantile(&self.first_tokens, q)
    }

    pub(crate) fn gap(&self, q: f64) -> f64 {
        1e3 * quantile(&self.gaps, q)
    }

    pub(crate) fn generations_per_request(&self) -> BTreeMap<usize, usize> {
        self.generations.clone()
    }
}

fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = ((sorted.len().max(1) - 1) as f64 * q).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// A small generator: the same traffic in every run.
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

impl Choice {
    fn selection(&self, numbers: &mut Numbers) -> Selection {
        let name = match self {
            Self::Base => return Selection::Base,
            Self::Named(names) => names[numbers.next() as usize % names.len()].clone(),
            Self::Modules { count, exponent } => {
                let weight = |at: usize| 1.0 / ((at + 1) as f64).powf(*exponent);
                let mut left = numbers.unit() * (0..*count).map(weight).sum::<f64>();
                let at = (0..*count).find(|at| {
                    left -= weight(*at);
                    left <= 0.0
                });
                format!("m{}", at.unwrap_or(count - 1))
            }
        };
        Selection::Weighted(vec![(name, 1.0)])
    }
}

/// Runs the clients for the load's time, and lets what runs then finish.
pub(crate) fn run(engine: &Engine, composer: &Composer, load: &Load) -> Served {
    let (started, served) = (Instant::now(), Mutex::new(Served::default()));
    std::thread::scope(|scope| {
        for client in 0..load.clients {
            let served = &served;
            scope.spawn(move || {
                let mut numbers = Numbers(client as u64);
                while started.elapsed() < load.duration {
                    let selection = load.choice.selection(&mut numbers);
                    ask(engine, composer, &selection, &mut numbers, served);
                }
            });
        }
    });
    let mut served = served.into_inner().unwrap();
    served.tokens_per_second = served.tokens as f64 / started.elapsed().as_secs_f64();
    served
}

fn ask(
    engine: &Engine,
    composer: &Composer,
    selection: &Selection,
    numbers: &mut Numbers,
    served: &Mutex<Served>,
) {
    let asked = Instant::now();
    let Ok(composition) = composer.compose(selection) else {
        served.lock().unwrap().failed += 1;
        return;
    };
    let mut names = HashMap::new();
    for lease in composition.modules() {
        names.entry(lease.name.clone()).or_insert_with(Vec::new).push(lease.module.generation());
    }
    let (sender, events) = std::sync::mpsc::channel();
    let request = Request {
        prompt: (0..PROMPT_TOKENS).map(|_| 3 + (numbers.next() % 256) as u32).collect(),
        sampling: SamplingParams { max_tokens: MAX_TOKENS, ..SamplingParams::default() },
        composition,
        trace: TraceLevel::None,
        shadow: None,
        cache_salt: String::new(),
        tenant: "".into(),
        weight: 1.0,
    };
    let tell = move |event| sender.send((Instant::now(), event)).is_ok().into();
    let submitted = engine.handle().listen(request, tell);
    let mut times = Vec::new();
    let mut ended = submitted.is_err().then_some(FinishReason::Cancelled);
    for (at, event) in events {
        match event {
            Event::Token(_) => times.push(at),
            Event::Finished(finished) => ended = Some(finished.reason),
            Event::Prompt(_) => {}
        }
    }
    let mut served = served.lock().unwrap();
    served.requests += 1;
    served.failed += usize::from(ended != Some(FinishReason::Length));
    served.tokens += times.len();
    served.first_tokens.extend(times.first().map(|at| (*at - asked).as_secs_f64()));
    served.gaps.extend(times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()));
    for generations in names.values() {
        *served.generations.entry(generations.len()).or_default() += 1;
    }
}

/// Writes a LoRA of a rank at all projections as PEFT does.
pub(crate) fn write_module(directory: &Path, config: &ModelConfig, seed: u64, rank: usize) {
    std::fs::create_dir_all(directory).unwrap();
    let settings = serde_json::json!({"peft_type": "LORA", "r": rank, "lora_alpha": rank,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]});
    std::fs::write(directory.join("adapter_config.json"), settings.to_string()).unwrap();
    let mut numbers = Numbers(seed.wrapping_mul(0x1234_5678_9abc_def1));
    let mut tensors: Vec<(String, [usize; 2], Vec<u8>)> = Vec::new();
    for site in (0..config.num_sites()).map(Site::from_index) {
        let (outputs, inputs) = config.projection_shape(site.projection);
        for (part, shape) in [("lora_A", [rank, inputs]), ("lora_B", [outputs, rank])] {
            let value = |_| {
                let unit = (numbers.next() >> 40) as f32 / (1_u64 << 24) as f32;
                bf16::from_f32((unit - 0.5) * 0.02).to_bits().to_le_bytes()
            };
            let bytes = (0..shape[0] * shape[1]).flat_map(value).collect();
            tensors.push((format!("base_model.model.model.{site}.{part}.weight"), shape, bytes));
        }
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(Dtype::BF16, shape.to_vec(), bytes).unwrap())
    });
    std::fs::write(directory.join("adapter_model.safetensors"), serialize(views, None).unwrap())
        .unwrap();
}
