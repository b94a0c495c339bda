//! Gate programs: routing as data.
//!
//! A program is a pipeline of straight-line ops with static shapes. [`check`] finds every mistake before a
//! program runs and knows its cost; [`interpret`] is the specification: plain scalar f32, one row at a
//! time. The host's fast path must agree with it.

use std::fmt;

/// One op. Each transforms the value of the op before it.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// → vector: the hidden state that the site reads.
    LoadInput,
    /// vector → vector: zero mean and unit variance over the features, no affine part.
    LayerNorm {
        /// Added to the variance.
        epsilon: f32,
    },
    /// vector → scores: dot products with the rows defined under a name, one per candidate.
    Linear {
        /// The name given to [`crate::Host::define`].
        name: String,
    },
    /// Absolute scores.
    Abs,
    /// `scale · s + shift`.
    Affine {
        /// Factor.
        scale: f32,
        /// Summand.
        shift: f32,
    },
    /// Logistic function of each score.
    Sigmoid,
    /// Negative scores become zero.
    Relu,
    /// Softmax over the scores that are left.
    Softmax,
    /// Keeps the `k` largest scores (all, where fewer are left); the lower index first on ties.
    TopK {
        /// The number of scores that are kept.
        k: u32,
    },
    /// Keeps scores of at least this value.
    Threshold {
        /// The least value.
        least: f32,
    },
    /// Divides by the sum plus ε.
    Renormalise {
        /// Added to the sum.
        epsilon: f32,
    },
    /// The scores that are left become the row's picks.
    Emit,
    /// The router's own [`crate::Router::route`] picks, from the scores so far or from the vector.
    Route {
        /// True where the batch carries the vector too; needs the capability `hidden`.
        hidden: bool,
        /// Handed back with every batch: what the plan decided, such as k.
        arguments: Vec<f32>,
    },
}

impl Op {
    /// The op's name in program files and messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::LoadInput => "load-input",
            Self::LayerNorm { .. } => "layer-norm",
            Self::Linear { .. } => "linear",
            Self::Abs => "abs",
            Self::Affine { .. } => "affine",
            Self::Sigmoid => "sigmoid",
            Self::Relu => "relu",
            Self::Softmax => "softmax",
            Self::TopK { .. } => "top-k",
            Self::Threshold { .. } => "threshold",
            Self::Renormalise { .. } => "renormalise",
            Self::Emit => "emit",
            Self::Route { .. } => "route",
        }
    }

    /// The op's arguments with their names in program files, for whoever writes a program down or
    /// hashes it.
    pub fn arguments(&self) -> Vec<(&'static str, Argument<'_>)> {
        match self {
            Self::LoadInput
            | Self::Abs
            | Self::Sigmoid
            | Self::Relu
            | Self::Softmax
            | Self::Emit => Vec::new(),
            Self::LayerNorm { epsilon } | Self::Renormalise { epsilon } => {
                vec![("epsilon", Argument::Number(*epsilon))]
            }
            Self::Linear { name } => vec![("name", Argument::Text(name))],
            Self::Affine { scale, shift } => {
                vec![("scale", Argument::Number(*scale)), ("shift", Argument::Number(*shift))]
            }
            Self::TopK { k } => vec![("k", Argument::Count(*k))],
            Self::Threshold { least } => vec![("least", Argument::Number(*least))],
            Self::Route { hidden, arguments } => vec![
                ("hidden", Argument::Flag(*hidden)),
                ("arguments", Argument::Numbers(arguments)),
            ],
        }
    }

    /// True for an op that chooses among the scores, compares them with one another or ends a
    /// program. Up to the first of these, each score is a module's own: every candidate has one,
    /// and no other candidate has a part in it.
    pub fn chooses(&self) -> bool {
        match self {
            Self::LoadInput
            | Self::LayerNorm { .. }
            | Self::Linear { .. }
            | Self::Abs
            | Self::Affine { .. }
            | Self::Sigmoid
            | Self::Relu => false,
            Self::Softmax
            | Self::TopK { .. }
            | Self::Threshold { .. }
            | Self::Renormalise { .. }
            | Self::Emit
            | Self::Route { .. } => true,
        }
    }
}

/// An argument of an op.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument<'a> {
    /// A switch.
    Flag(bool),
    /// A number of modules.
    Count(u32),
    /// A number.
    Number(f32),
    /// A name.
    Text(&'a str),
    /// Numbers in their order.
    Numbers(&'a [f32]),
}

/// The sites that a program decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SiteSelector {
    /// Every site.
    All,
    /// These site numbers.
    Listed(Vec<u32>),
}

/// The sites that reuse one decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Share {
    /// Every site decides for itself.
    Site,
    /// Sites that read one hidden state share the decision of the first of them.
    Group,
    /// All sites of a layer share the decision of the first.
    Layer,
}

/// The way in which the picks of a row combine. The host never renormalises weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Combine {
    /// Σ w·s·B·(A·x).
    OutputSum,
    /// (Σ w·B)·(Σ w·A)·x with the scale of the lowest-numbered pick, as in mttl's Arrow.
    AbMerge,
}

/// A gate program.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// The sites that it decides.
    pub sites: SiteSelector,
    /// The sites that reuse one decision.
    pub share: Share,
    /// The pipeline.
    pub ops: Vec<Op>,
    /// The way in which picks combine.
    pub combine: Combine,
}

/// Most ops that a program may have.
pub const MAX_OPS: usize = 64;
/// Most layer norms that a program may have: each is a pass over the features for every row and site.
pub const MAX_LAYER_NORMS: usize = 4;
/// Most numbers that [`Op::Route`] hands back.
pub const MAX_ARGUMENTS: usize = 64;

/// A mistake in a program, found before it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramError {
    /// Index of the offending op; the program's length if something is missing at the end.
    pub op: usize,
    /// The found and the expected value.
    pub message: String,
}

impl fmt::Display for ProgramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gate program, op {}: {}", self.op, self.message)
    }
}

impl std::error::Error for ProgramError {}

/// The value between two ops, by which [`check`] sees that they fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// No value: before the first op.
    Nothing,
    /// The features of the site's input.
    Vector,
    /// A score for each candidate that is left.
    Scores,
    /// Picks with weights: behind the last op.
    Picks,
}

/// Checks a program: op order, parameters, and that `is_defined(name)` holds for what it multiplies
/// with.
///
/// # Errors
/// The first mistake, with the op's index.
pub fn check(program: &Program, is_defined: impl Fn(&str) -> bool) -> Result<(), ProgramError> {
    let fail = |op: usize, message: String| Err(ProgramError { op, message });
    if program.ops.len() > MAX_OPS {
        return fail(MAX_OPS, format!("{} ops, at most {MAX_OPS} are allowed", program.ops.len()));
    }
    let mut norms =
        program.ops.iter().enumerate().filter(|(_, op)| matches!(op, Op::LayerNorm { .. }));
    if let Some((index, _)) = norms.nth(MAX_LAYER_NORMS) {
        return fail(
            index,
            format!("one layer norm more than the {MAX_LAYER_NORMS} that are allowed"),
        );
    }
    let mut shape = Shape::Nothing;
    for (index, op) in program.ops.iter().enumerate() {
        let (expected, result) = match op {
            Op::LoadInput => (Shape::Nothing, Shape::Vector),
            Op::LayerNorm { .. } => (Shape::Vector, Shape::Vector),
            Op::Linear { .. } => (Shape::Vector, Shape::Scores),
            Op::Emit => (Shape::Scores, Shape::Picks),
            Op::Route { hidden: true, .. } if shape == Shape::Vector => (shape, Shape::Picks),
            Op::Route { .. } => (Shape::Scores, Shape::Picks),
            _ => (Shape::Scores, Shape::Scores),
        };
        if shape != expected {
            return fail(index, format!("`{}` takes {expected:?}, found {shape:?}", op.name()));
        }
        match op {
            Op::Linear { name } if !is_defined(name) => {
                return fail(index, format!("`{name}` is not defined for every candidate"));
            }
            Op::LayerNorm { epsilon } | Op::Renormalise { epsilon }
                if !(epsilon.is_finite() && *epsilon >= 0.0) =>
            {
                return fail(index, format!("ε is {epsilon}, expected a finite number from 0 on"));
            }
            Op::Affine { scale, shift } if !(scale.is_finite() && shift.is_finite()) => {
                return fail(index, format!("affine map {scale}, {shift} is not finite"));
            }
            Op::Threshold { least } if least.is_nan() => {
                return fail(index, "threshold is not a number".to_owned());
            }
            Op::TopK { k: 0 } => return fail(index, "k is 0, expected at least 1".to_owned()),
            Op::Route { arguments, .. } if arguments.len() > MAX_ARGUMENTS => {
                let found = arguments.len();
                return fail(index, format!("{found} arguments, at most {MAX_ARGUMENTS}"));
            }
            Op::Route { arguments, .. } if !arguments.iter().all(|value| value.is_finite()) => {
                return fail(index, "an argument is not finite".to_owned());
            }
            _ => {}
        }
        shape = result;
    }
    match shape {
        Shape::Picks => Ok(()),
        _ => fail(program.ops.len(), "the program does not end with `emit` or `route`".to_owned()),
    }
}

/// Runs a checked program on one row. `rows(name)` gives the defined rows of the candidates, in order.
///
/// Returns `(candidate, weight)` in ascending order of candidates, or `None` where a weight is not finite:
/// such a row falls back. Of a program that ends with `route`, returns the scores that are handed over.
pub fn interpret<'a>(
    ops: &[Op],
    input: &[f32],
    rows: impl Fn(&str) -> Vec<&'a [f32]>,
) -> Option<Vec<(u32, f32)>> {
    let mut vector: Vec<f32> = Vec::new();
    let mut scores: Vec<(u32, f32)> = Vec::new();
    for op in ops {
        match op {
            Op::LoadInput => vector = input.to_vec(),
            Op::LayerNorm { epsilon } => layer_norm(&mut vector, *epsilon),
            Op::Linear { name } => {
                let dot = |row: &[f32]| row.iter().zip(&vector).map(|(a, b)| a * b).sum();
                let dots = rows(name).into_iter().map(dot);
                scores = (0..).zip(dots).collect();
            }
            op => apply_to_scores(op, &mut scores),
        }
    }
    scores.iter().all(|(_, weight)| weight.is_finite()).then_some(scores)
}

/// Applies an op on scores; host and interpreter share it, as it runs on a handful of numbers.
///
/// `scores` holds `(candidate, score)` in ascending order of candidates, before and after. A score that is
/// not a number poisons the row: `top-k` and `threshold` keep it.
pub fn apply_to_scores(op: &Op, scores: &mut Vec<(u32, f32)>) {
    match op {
        Op::Abs => scores.iter_mut().for_each(|(_, s)| *s = s.abs()),
        Op::Affine { scale, shift } => {
            scores.iter_mut().for_each(|(_, s)| *s = *s * scale + shift);
        }
        Op::Sigmoid => scores.iter_mut().for_each(|(_, s)| *s = 1.0 / (1.0 + (-*s).exp())),
        Op::Relu => {
            scores.iter_mut().for_each(|(_, s)| *s = if *s < 0.0 { 0.0 } else { *s });
        }
        Op::Softmax => softmax(scores),
        Op::TopK { k } => top_k(scores, *k as usize),
        Op::Threshold { least } => scores.retain(|(_, s)| s.is_nan() || s >= least),
        Op::Renormalise { epsilon } => {
            let sum: f32 = scores.iter().map(|(_, s)| s).sum::<f32>() + epsilon;
            scores.iter_mut().for_each(|(_, s)| *s /= sum);
        }
        Op::LoadInput | Op::LayerNorm { .. } | Op::Linear { .. } | Op::Emit | Op::Route { .. } => {}
    }
}

/// Zero mean and unit variance over the features (LN without affine part). (x − mean) / √(variance
/// + ε), the variance over n, in place.
pub fn layer_norm(vector: &mut [f32], epsilon: f32) {
    let len = vector.len() as f32;
    let mean = vector.iter().sum::<f32>() / len;
    let variance = vector.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / len;
    let scale = 1.0 / (variance + epsilon).sqrt();
    vector.iter_mut().for_each(|x| *x = (*x - mean) * scale);
}

/// eˢ⁻ᵐᵃˣ over its sum, in place. Where all scores are −∞, the weights are no numbers.
pub(crate) fn softmax(scores: &mut [(u32, f32)]) {
    let max = scores.iter().map(|(_, s)| *s).fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|(_, s)| *s = (*s - max).exp());
    let sum: f32 = scores.iter().map(|(_, s)| s).sum();
    scores.iter_mut().for_each(|(_, s)| *s /= sum);
}

/// Keeps the `k` largest, in ascending order of candidates. Everything stays where a score is no
/// number, so that the row is seen to be spoilt.
pub(crate) fn top_k(scores: &mut Vec<(u32, f32)>, k: usize) {
    if scores.len() <= k || scores.iter().any(|(_, s)| s.is_nan()) {
        return;
    }
    // Stable: equal scores keep ascending candidates.
    scores.sort_by(|a, b| b.1.total_cmp(&a.1));
    scores.truncate(k);
    scores.sort_by_key(|(candidate, _)| *candidate);
}

/// Writes programs as the text of gate files, which plugins of the flat ABI answer with. Numbers
/// come back exactly. The format is TOML, one `[[program]]` table for each.
pub fn to_text(programs: &[Program]) -> String {
    let mut text = String::new();
    for program in programs {
        text.push_str("[[program]]\n");
        if let SiteSelector::Listed(sites) = &program.sites {
            text.push_str(&format!("sites = {sites:?}\n"));
        }
        let share = match program.share {
            Share::Site => "site",
            Share::Group => "group",
            Share::Layer => "layer",
        };
        let combine = match program.combine {
            Combine::OutputSum => "output-sum",
            Combine::AbMerge => "ab-merge",
        };
        text.push_str(&format!("share = \"{share}\"\ncombine = \"{combine}\"\nops = ["));
        for op in &program.ops {
            text.push_str(&op_text(op));
            text.push_str(", ");
        }
        text.push_str("]\n");
    }
    text
}

/// An op in the text of a gate file: its name, a table of the name and its argument, or one of the name and
/// a table of its arguments.
fn op_text(op: &Op) -> String {
    // An f32 has a short form that reads back as another f32 when it went through f64: so write the f64.
    let number = |value: &f32| format!("{:?}", f64::from(*value)).to_ascii_lowercase();
    let text = |argument: &Argument<'_>| match argument {
        Argument::Flag(flag) => flag.to_string(),
        Argument::Count(count) => count.to_string(),
        Argument::Number(value) => number(value),
        Argument::Text(text) => quoted(text),
        Argument::Numbers(values) => {
            format!("[{}]", values.iter().map(number).collect::<Vec<_>>().join(", "))
        }
    };
    let name = op.name();
    match &op.arguments()[..] {
        [] => format!("\"{name}\""),
        [(_, only)] => format!("{{ {name} = {} }}", text(only)),
        several => {
            let fields: Vec<String> =
                several.iter().map(|(key, value)| format!("{key} = {}", text(value))).collect();
            format!("{{ {name} = {{ {} }} }}", fields.join(", "))
        }
    }
}

/// A text as a basic string of TOML.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(ops: Vec<Op>) -> Program {
        Program { sites: SiteSelector::All, share: Share::Site, ops, combine: Combine::OutputSum }
    }

    fn arrow(k: u32) -> Vec<Op> {
        let linear = Op::Linear { name: "p".to_owned() };
        vec![Op::LoadInput, linear, Op::Abs, Op::TopK { k }, Op::Softmax, Op::Emit]
    }

    #[test]
    fn mistakes_are_found_before_running() {
        let defined = |name: &str| name == "p";
        assert_eq!(check(&program(arrow(2)), defined), Ok(()));
        for (ops, at, part) in [
            (vec![], 0, "does not end with `emit`"),
            (vec![Op::Abs], 0, "`abs` takes Scores, found Nothing"),
            (vec![Op::LoadInput, Op::LoadInput], 1, "found Vector"),
            (vec![Op::LoadInput, Op::Linear { name: "q".into() }], 1, "`q` is not defined"),
            (arrow(0), 3, "k is 0"),
            (vec![Op::LoadInput, Op::LayerNorm { epsilon: f32::NAN }], 1, "ε is NaN"),
            (vec![Op::LoadInput; MAX_OPS + 1], MAX_OPS, "at most 64"),
        ] {
            let error = check(&program(ops), defined).unwrap_err();
            assert_eq!(error.op, at, "{error}");
            assert!(error.message.contains(part), "{error}");
        }
    }

    /// A score before the first op that chooses does not change with the other candidates.
    #[test]
    fn scores_are_the_modules_own_until_an_op_chooses() {
        let own = [Op::Abs, Op::Affine { scale: -2.0, shift: 0.5 }, Op::Sigmoid, Op::Relu];
        let among = [
            Op::Softmax,
            Op::TopK { k: 1 },
            Op::Threshold { least: 0.5 },
            Op::Renormalise { epsilon: 0.0 },
        ];
        for (op, chooses) in own.map(|op| (op, false)).into_iter().chain(among.map(|op| (op, true)))
        {
            let run = |values: &[f32]| {
                let mut scores: Vec<(u32, f32)> = (0..).zip(values.iter().copied()).collect();
                apply_to_scores(&op, &mut scores);
                scores
            };
            let (alone, beside) = (run(&[0.25]), run(&[0.25, 3.0]));
            let is_own = beside.first() == alone.first() && beside.len() == 2;
            assert_eq!(op.chooses(), chooses, "{op:?}");
            assert_eq!(op.chooses(), !is_own, "{op:?}: {alone:?} {beside:?}");
        }
        assert_eq!(arrow(2).iter().position(Op::chooses), Some(3));
        assert!(Op::Emit.chooses());
        assert!(Op::Route { hidden: false, arguments: Vec::new() }.chooses());
    }

    #[test]
    fn arrow_in_the_interpreter() {
        let rows: [&[f32]; 3] = [&[1.0, 0.0], &[0.0, -2.0], &[0.5, 0.5]];
        let picks = interpret(&arrow(2), &[3.0, 1.0], |_| rows.to_vec()).unwrap();
        // |scores| are 3, 2, 2: the tie goes to the lower candidate.
        let (a, b) = (3.0_f32.exp(), 2.0_f32.exp());
        assert_eq!(picks.iter().map(|pick| pick.0).collect::<Vec<_>>(), [0, 1]);
        assert!((picks[0].1 - a / (a + b)).abs() < 1e-6);
        assert_eq!(interpret(&arrow(2), &[f32::NAN, 1.0], |_| rows.to_vec()), None);
    }

    #[test]
    fn score_ops() {
        let run = |op: Op, values: &[f32]| {
            let mut scores: Vec<(u32, f32)> = (0..).zip(values.iter().copied()).collect();
            apply_to_scores(&op, &mut scores);
            scores
        };
        assert_eq!(run(Op::Threshold { least: 0.5 }, &[0.4, 0.5, 0.6]), [(1, 0.5), (2, 0.6)]);
        assert_eq!(run(Op::Relu, &[-1.0, 2.0]), [(0, 0.0), (1, 2.0)]);
        assert_eq!(run(Op::Affine { scale: 2.0, shift: 1.0 }, &[3.0]), [(0, 7.0)]);
        assert_eq!(run(Op::Renormalise { epsilon: 0.0 }, &[1.0, 3.0]), [(0, 0.25), (1, 0.75)]);
        assert_eq!(run(Op::TopK { k: 9 }, &[1.0]), [(0, 1.0)]);
        assert_eq!(run(Op::Sigmoid, &[0.0]), [(0, 0.5)]);
    }
}
