//! The best of a row of scores, in few steps per score.
//!
//! The work of a router on scores costs most where it looks at each of them: in a sandbox, every turn of a
//! loop also counts fuel and looks at the clock. So rows are read in blocks of [`BLOCK`] scores, each
//! compared at once with the least of the best so far. Most blocks hold nothing better and end there; of a
//! random row of n scores, about k · (1 + ln(n / k)) are looked at one by one. On WebAssembly a comparison is
//! four vector instructions where the target has them (`polyskill plugin build` turns on `simd128`).

use std::cmp::Ordering;

/// Scores per block: four vectors of WebAssembly's `simd128`.
const BLOCK: usize = 16;
/// Up to so many are kept in order while scores are read; more are found by sorting.
const FEW: usize = 32;

/// Finds the best scores of one row after another; keeps its memory between them.
///
/// ```
/// use polyskill_sdk::TopK;
///
/// let mut top = TopK::default();
/// assert_eq!(top.of(&[0.1, 0.7, 0.2], 2), [(1, 0.7), (2, 0.2)]);
/// assert_eq!(top.of(&[0.5, 0.5], 1), [(0, 0.5)]);
/// ```
#[derive(Clone, Debug, Default)]
pub struct TopK {
    /// Columns and scores, the best first.
    best: Vec<(u32, f32)>,
}

impl TopK {
    /// The `k` largest scores as `(column, score)`, the largest first, and the lower column first among
    /// equals; all of them where there are no more than `k`.
    ///
    /// A score that is not a number counts as larger than all others: whoever weighs picks by their scores
    /// then gives a weight that is not a number, and the host refuses the row, as it should.
    pub fn of(&mut self, scores: &[f32], k: usize) -> &[(u32, f32)] {
        self.best.clear();
        if k == 0 {
            return &self.best;
        }
        if k > FEW {
            self.sort(scores, k);
            return &self.best;
        }
        let (blocks, rest) = scores.as_chunks::<BLOCK>();
        let mut first = 0;
        for block in blocks {
            let mut better = match self.best.last() {
                Some((_, least)) if self.best.len() == k => better(block, *least),
                _ => (1 << BLOCK) - 1,
            };
            while better != 0 {
                let lane = better.trailing_zeros();
                self.insert(first + lane, block[lane as usize % BLOCK], k);
                better &= better - 1;
            }
            first += BLOCK as u32;
        }
        for (column, &score) in (first..).zip(rest) {
            self.insert(column, score, k);
        }
        &self.best
    }

    /// The best by sorting all scores, for large k: the same result, in n log n.
    fn sort(&mut self, scores: &[f32], k: usize) {
        self.best.extend((0..).zip(scores.iter().copied()));
        self.best.sort_unstable_by(|a, b| match (worse(a.1, b.1), worse(b.1, a.1)) {
            (true, _) => Ordering::Greater,
            (_, true) => Ordering::Less,
            _ => a.0.cmp(&b.0),
        });
        self.best.truncate(k);
    }

    /// Puts a score behind its equals, as of these the lower column is better, and drops what is then beyond
    /// the k-th; columns rise from call to call. Scores are swapped one by one: there are few, and moving
    /// memory is a call in a sandbox.
    fn insert(&mut self, column: u32, score: f32, k: usize) {
        let best = &mut self.best;
        if best.len() < k {
            best.push((column, score));
        } else {
            match best.last_mut() {
                Some(last) if worse(last.1, score) => *last = (column, score),
                _ => return,
            }
        }
        let mut at = best.len() - 1;
        while at > 0 && worse(best[at - 1].1, score) {
            best.swap(at - 1, at);
            at -= 1;
        }
    }
}

/// True where `known` is worse than `score`; what is not a number is better than any number.
fn worse(known: f32, score: f32) -> bool {
    known < score || (score.is_nan() && !known.is_nan())
}

/// A bit for each score that is larger than `least` or not a number.
#[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
fn better(block: &[f32; BLOCK], least: f32) -> u32 {
    let bit = |(at, &score): (usize, &f32)| u32::from(score > least || score.is_nan()) << at;
    block.iter().enumerate().map(bit).fold(0, |bits, bit| bits | bit)
}

/// As above, said in vector instructions: the compiler finds none of them by itself.
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
fn better(block: &[f32; BLOCK], least: f32) -> u32 {
    use std::arch::wasm32::{
        f32x4, f32x4_le, f32x4_splat, i32x4_all_true, i32x4_bitmask, v128_and,
    };
    let least = f32x4_splat(least);
    let not_better =
        |at: usize| f32x4_le(f32x4(block[at], block[at + 1], block[at + 2], block[at + 3]), least);
    let [a, b, c, d] = [not_better(0), not_better(4), not_better(8), not_better(12)];
    if i32x4_all_true(v128_and(v128_and(a, b), v128_and(c, d))) {
        return 0;
    }
    let bits = |mask, at: u32| u32::from(i32x4_bitmask(mask)) << at;
    !(bits(a, 0) | bits(b, 4) | bits(c, 8) | bits(d, 12)) & ((1 << BLOCK) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The best of what is left, again and again.
    fn expected(scores: &[f32], k: usize) -> Vec<(u32, f32)> {
        let mut left: Vec<(u32, f32)> = (0..).zip(scores.iter().copied()).collect();
        let best = |left: &[(u32, f32)]| {
            let nan = left.iter().position(|(_, score)| score.is_nan());
            let largest = left.iter().map(|(_, score)| *score).fold(f32::NEG_INFINITY, f32::max);
            nan.or_else(|| left.iter().position(|(_, score)| *score == largest))
        };
        let take = |_| best(&left).map(|at| left.remove(at));
        (0..k).map_while(take).collect()
    }

    fn bits(best: &[(u32, f32)]) -> Vec<(u32, u32)> {
        best.iter().map(|(column, score)| (*column, score.to_bits())).collect()
    }

    #[test]
    fn rows_of_any_length_and_any_k() {
        let mut top = TopK::default();
        for len in [0, 1, 15, 16, 17, 31, 32, 47, 48, 64, 255, 256, 257, 1000] {
            let scores: Vec<f32> = (0..len).map(|at| ((at * 7919) % 101) as f32 / 7.0).collect();
            for k in [0, 1, 2, 3, 4, 16, 100, 2000] {
                assert_eq!(top.of(&scores, k), expected(&scores, k), "{k} of {len}");
            }
        }
    }

    #[test]
    fn the_lower_column_wins_among_equals_in_blocks_far_apart() {
        let mut scores = vec![0.0; 200];
        (scores[20], scores[90], scores[91], scores[199]) = (1.0, 1.0, 1.0, 1.0);
        let mut top = TopK::default();
        assert_eq!(top.of(&scores, 2), [(20, 1.0), (90, 1.0)]);
        assert_eq!(top.of(&[0.0; 200], 3), [(0, 0.0), (1, 0.0), (2, 0.0)]);
        let columns: Vec<u32> = top.of(&[f32::NEG_INFINITY; 64], 2).iter().map(|b| b.0).collect();
        assert_eq!(columns, [0, 1]);
    }

    #[test]
    fn what_is_not_a_number_is_among_the_best() {
        for at in [0, 5, 16, 70, 127, 130] {
            let mut scores: Vec<f32> = (0..131).map(|at| at as f32).collect();
            scores[at] = f32::NAN;
            let mut top = TopK::default();
            let best = top.of(&scores, 2);
            assert!(best[0].0 == at as u32 && best[0].1.is_nan(), "{at}: {best:?}");
        }
    }

    proptest! {
        #[test]
        fn it_is_what_sorting_gives(
            scores in proptest::collection::vec(-4..4_i8, 0..150),
            k in 0..50_usize,
            odd in proptest::option::of((0..150_usize, 0..4_usize)),
        ) {
            // Small numbers, so that there are many equals.
            let mut scores: Vec<f32> = scores.into_iter().map(f32::from).collect();
            if let Some((at, which)) = odd {
                let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0][which];
                scores.get_mut(at).into_iter().for_each(|score| *score = odd);
            }
            let mut top = TopK::default();
            prop_assert_eq!(bits(top.of(&scores, k)), bits(&expected(&scores, k)));
        }
    }
}
