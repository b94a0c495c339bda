//! Gate programs: what the check accepts, the interpreter runs, with picks in order and finite.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use polyskill_sdk::gate::{Combine, Op, Program, Share, SiteSelector, check, interpret};

#[derive(Arbitrary, Debug)]
enum FuzzedOp {
    LoadInput,
    LayerNorm(f32),
    Linear(bool),
    Abs,
    Affine(f32, f32),
    Sigmoid,
    Relu,
    Softmax,
    TopK(u32),
    Threshold(f32),
    Renormalise(f32),
    Emit,
}

impl From<FuzzedOp> for Op {
    fn from(op: FuzzedOp) -> Self {
        match op {
            FuzzedOp::LoadInput => Self::LoadInput,
            FuzzedOp::LayerNorm(epsilon) => Self::LayerNorm { epsilon },
            FuzzedOp::Linear(known) => {
                Self::Linear { name: if known { "rows" } else { "nobody" }.to_owned() }
            }
            FuzzedOp::Abs => Self::Abs,
            FuzzedOp::Affine(scale, shift) => Self::Affine { scale, shift },
            FuzzedOp::Sigmoid => Self::Sigmoid,
            FuzzedOp::Relu => Self::Relu,
            FuzzedOp::Softmax => Self::Softmax,
            FuzzedOp::TopK(k) => Self::TopK { k },
            FuzzedOp::Threshold(least) => Self::Threshold { least },
            FuzzedOp::Renormalise(epsilon) => Self::Renormalise { epsilon },
            FuzzedOp::Emit => Self::Emit,
        }
    }
}

#[derive(Arbitrary, Debug)]
struct Input {
    ops: Vec<FuzzedOp>,
    /// Whether a well-formed beginning and end go around the ops, so that most programs are accepted.
    framed: bool,
    hidden: [f32; 4],
    rows: [[f32; 4]; 3],
}

fuzz_target!(|input: Input| {
    let mut ops: Vec<Op> = input.ops.into_iter().map(Op::from).collect();
    if input.framed {
        ops.splice(0..0, [Op::LoadInput, Op::Linear { name: "rows".to_owned() }]);
        ops.push(Op::Emit);
    }
    let program =
        Program { sites: SiteSelector::All, share: Share::Site, ops, combine: Combine::OutputSum };
    if check(&program, |name| name == "rows").is_err() {
        return;
    }
    let rows: Vec<&[f32]> = input.rows.iter().map(<[f32; 4]>::as_slice).collect();
    let Some(picks) = interpret(&program.ops, &input.hidden, |_| rows.clone()) else { return };
    assert!(picks.len() <= rows.len());
    assert!(picks.is_sorted_by(|a, b| a.0 < b.0), "{picks:?}");
    assert!(picks.iter().all(|(_, weight)| weight.is_finite()), "{picks:?}");
});
