//! A gate program against hand-written Rust of the same maths, and how both grow with modules.
//!
//! `cargo bench -p polyskill-engine --bench gate_program`

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use polyskill_engine::hooks::gates::{Gate, GateBuffers};
use polyskill_sdk::gate::Op;

const INPUTS: usize = 576;
const TOP_K: usize = 3;
const MODULES: [usize; 3] = [8, 64, 256];
const ROWS: [usize; 3] = [1, 8, 32];

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|at| ((at * 7919) % 1013) as f32 / 506.0 - 1.0).collect()
}

/// Arrow as one would write it for one machine: dot products in lanes, the best k, a softmax.
fn by_hand(input: &[f32], prototypes: &[f32], picks: &mut Vec<(u32, f32)>) {
    let mut best = [(0_u32, f32::NEG_INFINITY); TOP_K];
    for (module, prototype) in (0..).zip(prototypes.chunks_exact(input.len())) {
        let mut lanes = [0.0_f32; 16];
        for (x, p) in input.chunks_exact(16).zip(prototype.chunks_exact(16)) {
            for lane in 0..16 {
                lanes[lane] = x[lane].mul_add(p[lane], lanes[lane]);
            }
        }
        let score = lanes.iter().sum::<f32>().abs();
        if score > best[TOP_K - 1].1 {
            let at = best.iter().position(|(_, known)| score > *known).unwrap_or(TOP_K - 1);
            best[at..].rotate_right(1);
            best[at] = (module, score);
        }
    }
    let exp = best.map(|(_, score)| (score - best[0].1).exp());
    let sum: f32 = exp.iter().sum();
    picks.clear();
    picks.extend(best.iter().zip(exp).map(|((module, _), exp)| (*module, exp / sum)));
    picks.sort_unstable_by_key(|(module, _)| *module);
}

fn gate_program(criterion: &mut Criterion) {
    let linear = Op::Linear { name: "p".to_owned() };
    let top_k = Op::TopK { k: TOP_K as u32 };
    let ops = vec![Op::LoadInput, linear, Op::Abs, top_k, Op::Softmax, Op::Emit];
    for modules in MODULES {
        let prototypes = values(modules * INPUTS);
        let gate = Gate::over(ops.clone(), &prototypes, modules);
        for rows in ROWS {
            let inputs = values(rows * INPUTS);
            let mut group = criterion.benchmark_group(format!("arrow/{modules} modules"));
            group.throughput(Throughput::Elements(rows as u64));
            let (mut buffers, mut picks) = (GateBuffers::default(), Vec::new());
            group.bench_function(BenchmarkId::new("gate program", rows), |bencher| {
                bencher.iter(|| {
                    for input in inputs.chunks_exact(INPUTS) {
                        black_box(gate.run(black_box(input), &mut buffers, &mut picks));
                    }
                });
            });
            let by_program = picks.clone();
            group.bench_function(BenchmarkId::new("by hand", rows), |bencher| {
                bencher.iter(|| {
                    for input in inputs.chunks_exact(INPUTS) {
                        by_hand(black_box(input), &prototypes, &mut picks);
                        black_box(&picks);
                    }
                });
            });
            let near =
                |((a, x), (b, y)): (&(u32, f32), &(u32, f32))| a == b && (x - y).abs() < 1e-3;
            assert!(by_program.iter().zip(&picks).all(near), "{by_program:?} {picks:?}");
            group.finish();
        }
    }
}

criterion_group!(benches, gate_program);
criterion_main!(benches);
