//! Hidden features of experts in one order, so that what is averaged belongs together (UNCURL,
//! Sarkar et al., 2024, after Ainsworth et al., "Git Re-Basin", 2023).
//!
//! A feature of a gated feed-forward is a row of its gate, one of its up and a column of its down
//! projection. In whatever order features stand, the feed-forward is the same function.
//!
//! Products of features take most of the time: a pair of experts with 1,024 features and a hidden
//! size of 2,048 takes 1.3 seconds of one core, of which the assignment takes 0.04, and one with
//! 4,096 features 23 seconds, of which it takes 1.4.

use polyskill_model::{Experts, Projection};

use super::Groups;
use super::assignment::assign;
use crate::transform::matrix::{Mat, dot};
use crate::transform::{Progress, in_parallel};

/// Most features of an expert: time grows with their third power, memory with their square.
const MAX_WIDTH: usize = 4096;
/// Rows that are multiplied with others while they lie in the cache: at a hidden size of 2,048, so
/// 6,144 numbers to a row, under a megabyte.
const CACHED_ROWS: usize = 16;

/// For each expert of a layer, the feature of its own that comes at each place, `[expert_size]`.
///
/// An order is empty where features stay as they are: at leaders, and at experts that were not
/// loaded.
pub type Orders = Vec<Vec<u32>>;

/// Refuses experts with more features than can be aligned in bearable time.
///
/// # Errors
/// If there are too many.
pub fn check_width(width: usize) -> Result<(), String> {
    match width <= MAX_WIDTH {
        true => Ok(()),
        false => Err(format!(
            "experts have {width} hidden features, at most {MAX_WIDTH} are aligned: the time grows with their third power"
        )),
    }
}

/// Orders in which the features of each expert are most like those of the expert that leads its
/// group: the sum of the products of their rows and columns is the largest.
///
/// Only the orders are made; the experts stay as they are. `progress` hears of each expert that is
/// aligned. The result does not depend on the number of threads, and each thread holds the features
/// of two experts at a time.
///
/// # Errors
/// If there are too many features, or weights that are not finite.
pub fn align(
    experts: &Experts,
    groups: &Groups,
    threads: usize,
    progress: Progress<'_>,
) -> Result<Orders, String> {
    let gates = (0..groups.len()).filter_map(|expert| experts.linear(expert, Projection::Gate));
    gates.map(|gate| gate.matrix.outs()).try_for_each(check_width)?;
    let led = (0..groups.len()).filter(|expert| groups[*expert] != *expert);
    let led: Vec<usize> = led.collect();
    let orders = in_parallel(led.len(), threads, progress, |at| {
        order(experts, led[at], groups[led[at]])
            .map_err(|problem| format!("expert {}: {problem}", led[at]))
    });
    let mut all = vec![Vec::new(); groups.len()];
    for (expert, order) in led.into_iter().zip(orders) {
        all[expert] = order?;
    }
    Ok(all)
}

/// The order of one expert's features that fits its leader best, `[expert_size]`; empty if either
/// was not loaded.
///
/// Place `i` of the order names the feature that comes to stand where the leader has its feature
/// `i`.
fn order(experts: &Experts, expert: usize, leader: usize) -> Result<Vec<u32>, String> {
    let (Some(own), Some(wanted)) = (features(experts, expert), features(experts, leader)) else {
        return Ok(Vec::new());
    };
    // [features of the leader, features of the expert]
    let scores = products(&wanted, &own);
    if !scores.values.iter().all(|score| score.is_finite()) {
        return Err(format!(
            "products of its weights with those of expert {leader} are not finite, expected numbers"
        ));
    }
    Ok(assign(&scores).into_iter().map(|feature| feature as u32).collect())
}

/// Products of all rows with all rows, `[a.rows, b.rows]`. Rows of `a` are taken in groups of
/// [`CACHED_ROWS`], so `b` passes through the cache once per group.
fn products(a: &Mat, b: &Mat) -> Mat {
    let mut products = Mat::zeros(a.rows, b.rows);
    let targets = products.values.chunks_mut(CACHED_ROWS * b.rows.max(1));
    for (rows, targets) in a.values.chunks(CACHED_ROWS * a.columns.max(1)).zip(targets) {
        for at in 0..b.rows {
            let sums = targets.chunks_exact_mut(b.rows);
            for (row, sums) in rows.chunks_exact(a.columns).zip(sums) {
                sums[at] = dot(row, b.row(at));
            }
        }
    }
    products
}

/// Features of one expert, `[expert_size, 3 × hidden_size]`: for each feature its row of gate, its
/// row of up and its column of down, side by side. `None` for an expert that was not loaded.
fn features(experts: &Experts, expert: usize) -> Option<Mat> {
    let linear = |projection| experts.linear(expert, projection).map(|linear| &linear.matrix);
    let parts = [linear(Projection::Gate)?, linear(Projection::Up)?];
    let down = linear(Projection::Down)?;
    let (width, hidden) = (parts[0].outs(), parts[0].inner());
    let mut features = Mat::zeros(width, 3 * hidden);
    let mut row = vec![0.0; hidden.max(width)];
    for feature in 0..width {
        for (part, target) in parts.iter().zip(features.row_mut(feature).chunks_exact_mut(hidden)) {
            part.read_row(feature, &mut row[..hidden]);
            target.iter_mut().zip(&row).for_each(|(target, value)| *target = f64::from(*value));
        }
    }
    for out in 0..hidden {
        down.read_row(out, &mut row[..width]);
        for (feature, value) in row[..width].iter().enumerate() {
            features.row_mut(feature)[2 * hidden + out] = f64::from(*value);
        }
    }
    Some(features)
}

#[cfg(test)]
mod tests {
    use polyskill_model::config::Activation;
    use polyskill_model::linear::DenseWeights;
    use polyskill_model::{Compute, Linear, Matrix};
    use polyskill_sdk::experts::{ExpertLayer, native};

    use super::super::{Usage, merged};
    use super::*;
    use crate::transform::matrix::tests::{noise, worst};
    use polyskill_adapters::weights::Expert;

    const HIDDEN: usize = 6;

    fn linear(weights: &Mat) -> Linear {
        let values = weights.values.iter().map(|value| *value as f32).collect();
        let weights_of = DenseWeights::F32(values);
        Linear { matrix: Matrix::Dense { weights: weights_of, inner: weights.columns }, bias: None }
    }

    /// Gate, up and the transposed down of an expert, `[width, HIDDEN]`, in numbers that bf16 has.
    fn expert(width: usize, seed: u64) -> [Mat; 3] {
        [0, 1, 2].map(|part| {
            let mut weights = noise(width, HIDDEN, 3 * seed + part + 1);
            weights.values.iter_mut().for_each(|v| *v = (*v * 128.0).round() / 128.0);
            weights
        })
    }

    /// The same expert, its features in another order.
    fn permuted(expert: &[Mat; 3], order: &[u32]) -> [Mat; 3] {
        expert.clone().map(|part| {
            let rows = order.iter().flat_map(|from| part.row(*from as usize).to_vec());
            Mat { values: rows.collect(), ..part }
        })
    }

    fn experts(all: &[[Mat; 3]]) -> Experts {
        let routed =
            |[gate, up, down]: &[Mat; 3]| [linear(gate), linear(up), linear(&down.transposed())];
        let router = linear(&noise(all.len(), HIDDEN, 99));
        Experts::new(router, all.iter().map(routed).collect())
    }

    /// What each expert makes of some rows, `[num_experts, rows × HIDDEN]`.
    fn outputs(experts: &Experts, num_experts: usize) -> Mat {
        let input: Vec<f32> = noise(5, HIDDEN, 42).values.iter().map(|v| *v as f32).collect();
        let mut outputs = Vec::new();
        experts.outputs(&Compute::new(1), Activation::Silu, &input, &mut outputs);
        Mat::from_f32(num_experts, 5 * HIDDEN, &outputs)
    }

    /// An order of `0..width` that leaves little where it was.
    fn shuffled(width: usize, factor: usize) -> Vec<u32> {
        (0..width).map(|at| ((at * factor + 3) % width) as u32).collect()
    }

    fn aligned(experts: &Experts, groups: &Groups) -> Result<Orders, String> {
        align(experts, groups, 2, &mut |_, _| {})
    }

    fn usage(logits: &[f32], num_experts: u32) -> Usage {
        let layer = ExpertLayer { layer: 0, num_experts, top_k: 1, renormalise: false };
        let mut usage = Usage::new(layer);
        usage.add(logits, &native(layer));
        usage
    }

    fn values(expert: &Expert) -> [Vec<f32>; 3] {
        [&expert.gate, &expert.up, &expert.down].map(|part| part.as_slice().to_f32())
    }

    #[test]
    fn an_order_of_features_is_found_again_and_changes_nothing() {
        for width in [1, 2, 16, 33] {
            let order = shuffled(width, 5);
            let first = expert(width, 1);
            let both = experts(&[first.clone(), permuted(&first, &order)]);
            let made = outputs(&both, 2);
            let difference = (0..made.columns).map(|at| made.row(0)[at] - made.row(1)[at]);
            // Sums in another order are rounded differently.
            assert!(difference.fold(0.0, |most: f64, d| most.max(d.abs())) < 1e-5);
            let found = aligned(&both, &vec![0, 0]).unwrap();
            assert!(found[0].is_empty());
            let inverse: Vec<u32> = found[1].iter().map(|at| order[*at as usize]).collect();
            assert_eq!(inverse, (0..width as u32).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_order_is_found_under_noise() {
        let width = 24;
        let order = shuffled(width, 7);
        let first = expert(width, 1);
        let mut other = permuted(&first, &order);
        for (part, seed) in other.iter_mut().zip(50..) {
            let more = noise(width, HIDDEN, seed).scaled(0.05);
            part.values.iter_mut().zip(&more.values).for_each(|(value, more)| *value += more);
        }
        let found = aligned(&experts(&[first, other]), &vec![0, 0]).unwrap();
        let inverse: Vec<u32> = found[1].iter().map(|at| order[*at as usize]).collect();
        assert_eq!(inverse, (0..width as u32).collect::<Vec<_>>());
    }

    #[test]
    fn copies_in_any_order_merge_to_the_expert_that_they_are_of() {
        let (width, second) = (12, expert(12, 2));
        let copies = [shuffled(width, 5), shuffled(width, 7)].map(|o| permuted(&second, &o));
        let [copy, other_copy] = copies;
        let all = experts(&[copy, expert(width, 1), second.clone(), other_copy]);
        // Expert 2 is used twice, 0 once.
        let logits = [[0.0, 0.0, 9.0, 0.0], [0.0, 0.0, 9.0, 0.0], [9.0, 0.0, 0.0, 0.0]].concat();
        let (usage, groups) = (usage(&logits, 4), vec![2, 1, 2, 2]);
        let orders = aligned(&all, &groups).unwrap();
        let (targets, found) = merged(&all, &usage, &groups, &orders);
        assert_eq!((&targets[..], found.len()), (&[4, 1, 4, 4][..], 1));
        let expected = [&second[0], &second[1], &second[2].transposed()]
            .map(|part| part.values.iter().map(|v| *v as f32).collect::<Vec<f32>>());
        assert_eq!(values(&found[0]), expected);
        // As they stand, what is averaged does not belong together.
        let (_, apart) = merged(&all, &usage, &groups, &vec![Vec::new(); 4]);
        assert_ne!(values(&apart[0]), expected);
    }

    #[test]
    fn alignment_does_not_depend_on_threads() {
        let all: Vec<[Mat; 3]> = (1..9).map(|seed| expert(20, seed)).collect();
        let (all, groups) = (experts(&all), vec![0, 0, 0, 3, 3, 3, 0, 3]);
        let one = align(&all, &groups, 1, &mut |_, _| {}).unwrap();
        assert_eq!(one, align(&all, &groups, 4, &mut |_, _| {}).unwrap());
        assert!(worst(&outputs(&all, 8), &outputs(&all, 8)) < 1e-12);
    }

    #[test]
    fn what_cannot_be_aligned_is_refused() {
        let wide = expert(4097, 1);
        let refused = aligned(&experts(&[wide.clone(), wide]), &vec![0, 0]).unwrap_err();
        assert!(refused.contains("4097 hidden features, at most 4096"), "{refused}");
        let mut broken = expert(4, 1);
        broken[1].values[3] = f64::NAN;
        let refused = aligned(&experts(&[expert(4, 2), broken]), &vec![0, 0]).unwrap_err();
        assert!(refused.contains("expert 1") && refused.contains("not finite"), "{refused}");
    }

    #[test]
    fn products_are_those_of_all_pairs() {
        for (rows, others) in [(1, 3), (16, 16), (37, 20)] {
            let (a, b) = (noise(rows, 9, 1), noise(others, 9, 2));
            assert_eq!(products(&a, &b), a.times_transposed(&b));
        }
    }
}
