//! Expert programs: which experts of a sparse base each token gets, as data.
//!
//! Like a gate program, one is a pipeline of ops that [`check`] checks before it runs; it starts from the router
//! logits of the base's own layer instead of a hidden state, and what it emits takes the place of the base's own
//! choice. [`interpret`] is the specification and what the host runs: there are few experts, so it is cheap.

use crate::gate::ProgramError;

/// One op. Each transforms the scores of the op before it.
#[derive(Clone, Debug, PartialEq)]
pub enum ExpertOp {
    /// → scores: the logits of the base's own router, one per expert.
    LoadNativeLogits,
    /// Leaves only these experts: the others are −∞ in a softmax that follows.
    Mask {
        /// Experts that are kept, ascending.
        keep: Vec<u32>,
    },
    /// Softmax over the scores that are left.
    Softmax,
    /// Keeps the `k` largest scores, the lower index first on ties.
    TopK {
        /// The number of scores that are kept.
        k: u32,
    },
    /// Of the two experts that `top-k` 2 left, drops the smaller where it is under β times the larger (Lu et al.,
    /// "Not All Experts are Equal", 2024).
    SkipRatio {
        /// β.
        beta: f32,
    },
    /// Divides by the sum plus ε.
    Renormalise {
        /// Added to the sum.
        epsilon: f32,
    },
    /// Every expert stands for another: weights of experts that stand for the same one add up (Li et al., "Merge, Then
    /// Compress", 2024). Numbers from the layer's experts on are those that came with the policy.
    Alias {
        /// For each expert, the one that is run.
        targets: Vec<u32>,
    },
    /// The scores that are left become the row's experts and their weights.
    Emit,
}

impl ExpertOp {
    /// The op's name in messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::LoadNativeLogits => "load-native-logits",
            Self::Mask { .. } => "mask",
            Self::Softmax => "softmax",
            Self::TopK { .. } => "top-k",
            Self::SkipRatio { .. } => "skip-ratio",
            Self::Renormalise { .. } => "renormalise",
            Self::Alias { .. } => "alias",
            Self::Emit => "emit",
        }
    }
}

/// A program for some sparse layers.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertProgram {
    /// Layers that it decides.
    pub layers: Vec<u32>,
    /// The pipeline.
    pub ops: Vec<ExpertOp>,
    /// The policy whose own experts are meant by aliases from the layer's number of experts on.
    pub module: Option<u32>,
}

/// A sparse layer of the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertLayer {
    /// Layer number, from 0.
    pub layer: u32,
    /// Experts of the layer.
    pub num_experts: u32,
    /// Experts per token in the base's own choice.
    pub top_k: u32,
    /// True where the base makes the chosen experts' weights sum to one.
    pub renormalise: bool,
}

/// The program that chooses as the base does. Softmax over all experts, the `top_k` largest, and
/// their sum made one where the base does so.
pub fn native(layer: ExpertLayer) -> Vec<ExpertOp> {
    let mut ops =
        vec![ExpertOp::LoadNativeLogits, ExpertOp::Softmax, ExpertOp::TopK { k: layer.top_k }];
    if layer.renormalise {
        ops.push(ExpertOp::Renormalise { epsilon: 0.0 });
    }
    ops.push(ExpertOp::Emit);
    ops
}

/// The part of an expert policy that is about one layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerPolicy {
    /// Layer number, from 0.
    pub layer: u32,
    /// Experts that are kept, ascending; all without it.
    pub keep: Option<Vec<u32>>,
    /// β of [`ExpertOp::SkipRatio`].
    pub beta: Option<f32>,
    /// Targets of [`ExpertOp::Alias`].
    pub alias: Option<Vec<u32>>,
    /// Experts that came with the policy.
    pub num_extra: u32,
}

impl LayerPolicy {
    /// True where it leaves the layer as it is.
    pub fn is_empty(&self) -> bool {
        self.keep.is_none() && self.beta.is_none() && self.alias.is_none()
    }

    /// The base's own program with what the policy changes: the mask before the softmax, skipping after the choice,
    /// aliases at the end.
    pub fn ops(&self, layer: ExpertLayer) -> Vec<ExpertOp> {
        let mut ops = native(layer);
        let emit = ops.len() - 1;
        if let Some(targets) = &self.alias {
            ops.insert(emit, ExpertOp::Alias { targets: targets.clone() });
        }
        if let Some(beta) = self.beta {
            ops.insert(3, ExpertOp::SkipRatio { beta });
        }
        if let Some(keep) = &self.keep {
            ops.insert(1, ExpertOp::Mask { keep: keep.clone() });
        }
        ops
    }
}

/// Names under which a router finds a policy with [`crate::Host::artefact`], at the site of `gate_proj` of the layer.
pub mod artefact {
    /// The site under which a policy's numbers for a layer are found.
    pub fn site(layer: u32) -> u32 {
        // Seven projections per layer, of which the gate's is the fifth.
        7 * layer + 4
    }

    /// Experts that are kept, `[kept]`.
    pub const KEEP: &str = "keep";
    /// β, `[1]`.
    pub const BETA: &str = "beta";
    /// Alias targets, `[experts]`.
    pub const ALIAS: &str = "alias";
    /// Number of experts that came with the policy, `[1]`.
    pub const EXTRA: &str = "extra-experts";
    /// Of an expert: its row of a trained router, `[hidden_size]`, if it brings one.
    pub const ROUTER: &str = "router";
}

/// The kind of modules with feed-forwards of their own. Such a module acts at the site of `gate_proj` of its layers: what
/// is picked there is run beside the layer's own feed-forward, whose input that site reads.
pub const EXPERT_KIND: &str = "expert";

/// The kind of module that policies are.
pub const POLICY_KIND: &str = "expert-policy";

/// Most ops of a program. A program that uses every op once has eight.
pub const MAX_OPS: usize = 16;

/// Checks a program for a layer; `num_extra` experts beside the layer's own may be alias targets.
///
/// # Errors
/// The first mistake, with the op's index.
pub fn check(ops: &[ExpertOp], layer: ExpertLayer, num_extra: u32) -> Result<(), ProgramError> {
    let fail = |op: usize, message: String| Err(ProgramError { op, message });
    if ops.len() > MAX_OPS {
        return fail(MAX_OPS, format!("{} ops, at most {MAX_OPS} are allowed", ops.len()));
    }
    let mut left = 0;
    let mut aliased = false;
    for (index, op) in ops.iter().enumerate() {
        if (index == 0) != (*op == ExpertOp::LoadNativeLogits) {
            return fail(index, "`load-native-logits` comes first and only there".to_owned());
        }
        if aliased && *op != ExpertOp::Emit {
            return fail(index, "only `emit` follows `alias`".to_owned());
        }
        match op {
            ExpertOp::LoadNativeLogits => left = layer.num_experts,
            ExpertOp::Mask { keep } => {
                if keep.is_empty() || !keep.is_sorted_by(|a, b| a < b) {
                    return fail(index, "the kept experts must ascend, at least one".to_owned());
                }
                if let Some(last) = keep.last().filter(|last| **last >= layer.num_experts) {
                    return fail(index, format!("expert {last} of {}", layer.num_experts));
                }
                left = left.min(keep.len() as u32);
            }
            ExpertOp::TopK { k: 0 } => {
                return fail(index, "k is 0, expected at least 1".to_owned());
            }
            ExpertOp::TopK { k } => left = left.min(*k),
            ExpertOp::SkipRatio { beta } if !(beta.is_finite() && *beta >= 0.0) => {
                return fail(index, format!("β is {beta}, expected a finite number from 0 on"));
            }
            ExpertOp::SkipRatio { .. } if left > 2 => {
                return fail(
                    index,
                    format!("skipping is defined for two experts, {left} are left"),
                );
            }
            ExpertOp::Renormalise { epsilon } if !(epsilon.is_finite() && *epsilon >= 0.0) => {
                return fail(index, format!("ε is {epsilon}, expected a finite number from 0 on"));
            }
            ExpertOp::Alias { targets } => {
                let all = layer.num_experts.saturating_add(num_extra);
                if targets.len() != layer.num_experts as usize {
                    let found = targets.len();
                    return fail(
                        index,
                        format!("{found} aliases for {} experts", layer.num_experts),
                    );
                }
                if let Some(target) = targets.iter().find(|target| **target >= all) {
                    return fail(index, format!("alias of expert {target}, there are {all}"));
                }
                aliased = true;
            }
            _ => {}
        }
    }
    match ops.last() {
        Some(ExpertOp::Emit) => Ok(()),
        _ => fail(ops.len(), "the program does not end with `emit`".to_owned()),
    }
}

/// Runs a checked program on one row's logits: `(expert, weight)` by ascending expert. `false`
/// where a weight is not finite. `logits` has one per expert of the layer. `picks` is emptied
/// first; its memory is kept from row to row.
pub fn interpret(ops: &[ExpertOp], logits: &[f32], picks: &mut Vec<(u32, f32)>) -> bool {
    picks.clear();
    for op in ops {
        match op {
            ExpertOp::LoadNativeLogits => picks.extend((0..).zip(logits.iter().copied())),
            ExpertOp::Mask { keep } => {
                picks.retain(|(expert, _)| keep.binary_search(expert).is_ok());
            }
            ExpertOp::Softmax => crate::gate::softmax(picks),
            ExpertOp::TopK { k } => crate::gate::top_k(picks, *k as usize),
            ExpertOp::SkipRatio { beta } => skip(picks, *beta),
            ExpertOp::Renormalise { epsilon } => {
                let sum: f32 = picks.iter().map(|(_, weight)| weight).sum::<f32>() + epsilon;
                picks.iter_mut().for_each(|(_, weight)| *weight /= sum);
            }
            ExpertOp::Alias { targets } => alias(picks, targets),
            ExpertOp::Emit => {}
        }
    }
    picks.iter().all(|(_, weight)| weight.is_finite())
}

/// The second of two goes where it is under β times the first. Nothing happens unless two picks are
/// left.
fn skip(picks: &mut Vec<(u32, f32)>, beta: f32) {
    let [(_, first), (_, second)] = picks[..] else { return };
    if first >= second && second < beta * first {
        picks.truncate(1);
    } else if first < second && first < beta * second {
        picks.remove(0);
    }
}

/// Replaces experts by their targets and adds up the weights of equal ones.
fn alias(picks: &mut Vec<(u32, f32)>, targets: &[u32]) {
    picks.iter_mut().for_each(|(expert, _)| *expert = targets[*expert as usize]);
    picks.sort_by_key(|(expert, _)| *expert);
    picks.dedup_by(|later, earlier| {
        let same = later.0 == earlier.0;
        if same {
            earlier.1 += later.1;
        }
        same
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYER: ExpertLayer =
        ExpertLayer { layer: 0, num_experts: 4, top_k: 2, renormalise: true };

    fn run(ops: &[ExpertOp], logits: &[f32]) -> Vec<(u32, f32)> {
        check(ops, LAYER, 1).unwrap();
        let mut picks = Vec::new();
        assert!(interpret(ops, logits, &mut picks));
        picks
    }

    /// Weights 0.1, 0.2, 0.3 and 0.4.
    fn logits() -> [f32; 4] {
        [1.0_f32, 2.0, 3.0, 4.0].map(f32::ln)
    }

    fn with(op: ExpertOp, at: usize) -> Vec<ExpertOp> {
        let mut ops = native(LAYER);
        ops.insert(at, op);
        ops
    }

    fn near(found: &[(u32, f32)], expected: &[(u32, f32)]) {
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.0 == expected.0 && (found.1 - expected.1).abs() < 1e-6, "{found:?}");
        }
    }

    #[test]
    fn policies_of_the_papers() {
        near(&run(&native(LAYER), &logits()), &[(2, 3.0 / 7.0), (3, 4.0 / 7.0)]);
        let pruned = with(ExpertOp::Mask { keep: vec![0, 1, 3] }, 1);
        near(&run(&pruned, &logits()), &[(1, 2.0 / 6.0), (3, 4.0 / 6.0)]);
        near(&run(&with(ExpertOp::SkipRatio { beta: 0.8 }, 3), &logits()), &[(3, 1.0)]);
        let kept = with(ExpertOp::SkipRatio { beta: 0.7 }, 3);
        near(&run(&kept, &logits()), &[(2, 3.0 / 7.0), (3, 4.0 / 7.0)]);
        near(&run(&with(ExpertOp::Alias { targets: vec![0, 1, 1, 1] }, 4), &logits()), &[(1, 1.0)]);
        let extra = with(ExpertOp::Alias { targets: vec![0, 1, 4, 3] }, 4);
        near(&run(&extra, &logits()), &[(3, 4.0 / 7.0), (4, 3.0 / 7.0)]);
    }

    #[test]
    fn mistakes_are_found_before_running() {
        let top_3 = vec![
            ExpertOp::LoadNativeLogits,
            ExpertOp::TopK { k: 3 },
            ExpertOp::SkipRatio { beta: 0.5 },
            ExpertOp::Emit,
        ];
        for (ops, at, part) in [
            (vec![], 0, "does not end"),
            (vec![ExpertOp::Softmax], 0, "comes first"),
            (with(ExpertOp::LoadNativeLogits, 1), 1, "comes first"),
            (with(ExpertOp::Mask { keep: vec![] }, 1), 1, "at least one"),
            (with(ExpertOp::Mask { keep: vec![2, 1] }, 1), 1, "ascend"),
            (with(ExpertOp::Mask { keep: vec![1, 4] }, 1), 1, "expert 4 of 4"),
            (with(ExpertOp::SkipRatio { beta: f32::NAN }, 3), 3, "β is NaN"),
            (top_3, 2, "3 are left"),
            (with(ExpertOp::Alias { targets: vec![0] }, 4), 4, "1 aliases for 4"),
            (with(ExpertOp::Alias { targets: vec![0, 1, 2, 5] }, 4), 4, "expert 5, there are 5"),
            (with(ExpertOp::Alias { targets: vec![0, 1, 2, 3] }, 3), 4, "follows `alias`"),
            (vec![ExpertOp::Softmax; MAX_OPS + 1], MAX_OPS, "at most 16"),
        ] {
            let error = check(&ops, LAYER, 1).unwrap_err();
            assert_eq!(error.op, at, "{error}");
            assert!(error.message.contains(part), "{error}");
        }
    }

    #[test]
    fn a_row_that_is_not_finite_falls_back() {
        let mut picks = Vec::new();
        assert!(!interpret(&native(LAYER), &[f32::NAN, 0.0, 0.0, 0.0], &mut picks));
    }
}
