//! The best of a row of scores, in few steps per score.
//!
//! What a router does with scores costs most where it looks at each of them: in a sandbox, every turn of a
//! loop also counts fuel and looks at the clock. So rows are read in blocks of [`BLOCK`] scores. The first
//! pass keeps the largest of each block and has no branch inside a block, so that it becomes vector
//! instructions where the target has some (`polyskill plugin build` turns on `simd128`). The k-th largest
//! of these is a bound that no better score lies below, and the second pass reads only the blocks that
//! reach it: about k, whatever the number of modules.

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
    /// The largest score of each block.
    blocks: Vec<f32>,
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
        if blocks.len() <= k {
            self.offer(scores, 0, k);
            return &self.best;
        }
        self.blocks.clear();
        if !largest(blocks, &mut self.blocks) {
            self.offer(scores, 0, k);
            return &self.best;
        }
        // Blocks first, so that their bound is known; each holds a score that reaches its largest.
        let bound = self.bound(k);
        for (at, block) in blocks.iter().enumerate() {
            if self.blocks[at] >= bound {
                self.offer(block, at * BLOCK, k);
            }
        }
        self.offer(rest, blocks.len() * BLOCK, k);
        &self.best
    }

    fn sort(&mut self, scores: &[f32], k: usize) {
        self.best.extend((0..).zip(scores.iter().copied()));
        self.best.sort_unstable_by(|a, b| match (worse(a.1, b.1), worse(b.1, a.1)) {
            (true, _) => Ordering::Greater,
            (_, true) => Ordering::Less,
            _ => a.0.cmp(&b.0),
        });
        self.best.truncate(k);
    }

    /// The k-th largest of the blocks' largest scores: at least k scores reach it.
    fn bound(&mut self, k: usize) -> f32 {
        let blocks = std::mem::take(&mut self.blocks);
        self.offer(&blocks, 0, k);
        let bound = self.best.last().map_or(f32::NEG_INFINITY, |(_, score)| *score);
        self.best.clear();
        self.blocks = blocks;
        bound
    }

    /// Takes scores in that belong among the best; columns rise from call to call.
    fn offer(&mut self, scores: &[f32], first: usize, k: usize) {
        let best = &mut self.best;
        let mut least = match best.last() {
            Some((_, least)) if best.len() == k => *least,
            _ => f32::NEG_INFINITY,
        };
        for (column, &score) in (first as u32..).zip(scores) {
            if score <= least && best.len() >= k {
                continue;
            }
            // From the end: behind its equals, as of these the lower column is better.
            let mut at = best.len();
            while at > 0 && worse(best[at - 1].1, score) {
                at -= 1;
            }
            if at == k {
                continue;
            }
            if best.len() == k {
                best.pop();
            }
            best.insert(at, (column, score));
            least = best.last().map_or(f32::NEG_INFINITY, |(_, score)| *score);
        }
    }
}

/// Whether `known` is worse than `score`, where what is not a number is better than any number.
fn worse(known: f32, score: f32) -> bool {
    known < score || (score.is_nan() && !known.is_nan())
}

/// Appends the largest score of each block; whether all scores are numbers. What the largest is among others
/// does not matter.
#[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
fn largest(blocks: &[[f32; BLOCK]], largest: &mut Vec<f32>) -> bool {
    let of_two = |a: f32, b: f32| if a < b { b } else { a };
    let mut numbers = true;
    largest.extend(blocks.iter().map(|block| {
        // Four at a time, for registers of any width.
        let (vectors, _) = block.as_chunks::<4>();
        let mut lanes = vectors[0];
        for vector in &vectors[1..] {
            lanes.iter_mut().zip(vector).for_each(|(lane, &score)| *lane = of_two(*lane, score));
        }
        numbers &= !block.iter().fold(false, |found, score| found | score.is_nan());
        of_two(of_two(lanes[0], lanes[1]), of_two(lanes[2], lanes[3]))
    }));
    numbers
}

/// As above, said in vector instructions: the compiler finds none of them by itself.
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
fn largest(blocks: &[[f32; BLOCK]], largest: &mut Vec<f32>) -> bool {
    use std::arch::wasm32::{
        f32x4, f32x4_eq, f32x4_extract_lane, f32x4_pmax, i32x4_all_true, i32x4_shuffle,
        i32x4_splat, v128_and,
    };
    let mut numbers = i32x4_splat(-1);
    largest.extend(blocks.iter().map(|block| {
        let at = |at: usize| f32x4(block[at], block[at + 1], block[at + 2], block[at + 3]);
        let [a, b, c, d] = [at(0), at(4), at(8), at(12)];
        let (ab, cd) =
            (v128_and(f32x4_eq(a, a), f32x4_eq(b, b)), v128_and(f32x4_eq(c, c), f32x4_eq(d, d)));
        numbers = v128_and(numbers, v128_and(ab, cd));
        let four = f32x4_pmax(f32x4_pmax(a, b), f32x4_pmax(c, d));
        let two = f32x4_pmax(four, i32x4_shuffle::<2, 3, 0, 1>(four, four));
        f32x4_extract_lane::<0>(f32x4_pmax(two, i32x4_shuffle::<1, 0, 3, 2>(two, two)))
    }));
    i32x4_all_true(numbers)
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
        for at in [0, 5, 16, 70, 127] {
            let mut scores: Vec<f32> = (0..128).map(|at| at as f32).collect();
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
