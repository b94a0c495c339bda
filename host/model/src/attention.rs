//! Causal attention of flat rows over the paged cache.
//!
//! Rows of one sequence that stand together walk its blocks together, so that keys and values are
//! read once for several rows: long prompts are bound by that traffic. A row's sums run over
//! features and positions in one fixed order whatever rows it shares a pass with.

use crate::compute::SharedMut;
use crate::decoder::{Decoder, Step};
use crate::kernels::{add_weighted_values, block_scores, exp};
use crate::kv::{BLOCK_POSITIONS, KvCache};

/// Rows per task and query head. More rows share one walk over the blocks, fewer balance the
/// threads better.
const ROWS_PER_TASK: usize = 8;

/// Writes the heads' outputs, `[rows, num_heads · head_dim]`, for `queries` of the same shape.
///
/// Queries are rotated already, and the keys and values of all rows of the step are in the cache. A
/// row sees the positions up to its own, or as many of them as the layer's window holds; the
/// positions of other sequences are never read. The cost grows with rows times positions seen.
#[expect(unsafe_code, reason = "tasks write disjoint heads of disjoint rows")]
pub(crate) fn attend(
    decoder: &Decoder,
    layer: usize,
    step: &Step<'_>,
    kv: &KvCache,
    queries: &[f32],
    outputs: &mut [f32],
) {
    let (compute, config) = (&*decoder.compute, &decoder.config);
    let (num_heads, dim) = (config.num_heads, config.head_dim);
    let num_rows = step.tokens.len();
    let window = config.windows[layer];
    let outputs = SharedMut::new(outputs);
    compute.run(num_rows.div_ceil(ROWS_PER_TASK) * num_heads, &|task| {
        let (chunk, head) = (task / num_heads, task % num_heads);
        let last = ((chunk + 1) * ROWS_PER_TASK).min(num_rows);
        let mut row = chunk * ROWS_PER_TASK;
        let mut scores = Vec::new();
        while row < last {
            let sequence = step.sequences[row];
            let count = step.sequences[row..last].iter().take_while(|&&s| s == sequence).count();
            let past = Past {
                kv,
                table: step.block_tables[sequence as usize],
                layer,
                head: head / (num_heads / config.num_kv_heads),
                scale: config.attention_scale,
            };
            let views: Vec<View<'_>> = (row..row + count)
                .map(|row| {
                    let position = step.positions[row] as usize;
                    let at = row * num_heads * dim + head * dim;
                    View {
                        query: &queries[at..at + dim],
                        first: window.map_or(0, |w| (position + 1).saturating_sub(w)),
                        last: position,
                        // SAFETY: each (row, head) is written by one task.
                        output: unsafe { outputs.slice(at, dim) },
                    }
                })
                .collect();
            past.attend(views, &mut scores);
            row += count;
        }
    });
}

/// One head of one row: its query, the positions that it sees, and the place of its output.
struct View<'a> {
    /// The rotated query, `[head_dim]`.
    query: &'a [f32],
    /// The first position that the row sees.
    first: usize,
    /// The row's own position, the last one that it sees.
    last: usize,
    /// The head's output, `[head_dim]`.
    output: &'a mut [f32],
}

/// A sequence's cache as one key-value head of a layer sees it.
struct Past<'a> {
    /// The cache of the whole step.
    kv: &'a KvCache,
    /// The sequence's blocks, by position.
    table: &'a [u32],
    /// The layer whose keys and values are read.
    layer: usize,
    /// The key-value head, which several query heads share.
    head: usize,
    /// Factor of the scores before the softmax.
    scale: f32,
}

impl Past<'_> {
    /// Attention of ascending rows of the sequence.
    ///
    /// First the scores of all views, block by block with two rows per pass over the keys; then the
    /// softmax of each; then the weighted values, again block by block. `scores` is a buffer of
    /// `[views, positions of the blocks walked]`.
    fn attend(&self, mut views: Vec<View<'_>>, scores: &mut Vec<f32>) {
        let first_block = views.iter().map(|view| view.first).min().unwrap_or(0) / BLOCK_POSITIONS;
        let end_block = views.iter().map(|view| view.last).max().unwrap_or(0) / BLOCK_POSITIONS + 1;
        let stride = (end_block - first_block) * BLOCK_POSITIONS;
        let start = first_block * BLOCK_POSITIONS;
        scores.clear();
        scores.resize(views.len() * stride, 0.0);
        for (index, &block) in self.table[first_block..end_block].iter().enumerate() {
            let keys = self.kv.keys(block, self.layer, self.head);
            let at = index * BLOCK_POSITIONS;
            for (views, scores) in views.chunks(2).zip(scores.chunks_mut(2 * stride)) {
                let (first, second) = scores.split_at_mut(stride);
                let first = &mut first[at..at + BLOCK_POSITIONS];
                match views {
                    [a, b] => {
                        let second = &mut second[at..at + BLOCK_POSITIONS];
                        block_scores([a.query, b.query], keys, &mut [first, second]);
                    }
                    [a] => block_scores([a.query], keys, &mut [first]),
                    _ => {}
                }
            }
        }
        let scale = self.scale;
        let mut sums = Vec::with_capacity(views.len());
        for (view, scores) in views.iter_mut().zip(scores.chunks_exact_mut(stride)) {
            sums.push(weigh(scores, view.first - start..view.last + 1 - start, scale));
            view.output.fill(0.0);
        }
        for (index, &block) in self.table[first_block..end_block].iter().enumerate() {
            let values = self.kv.values(block, self.layer, self.head);
            let at = index * BLOCK_POSITIONS;
            for (view, scores) in views.iter_mut().zip(scores.chunks_exact(stride)) {
                // Slots behind the row's own position may hold anything, also what is not finite.
                let end = (view.last + 1 - start).min(at + BLOCK_POSITIONS);
                if at < end {
                    add_weighted_values(&scores[at..end], values, view.output);
                }
            }
        }
        for (view, sum) in views.iter_mut().zip(sums) {
            let scale = 1.0 / sum;
            view.output.iter_mut().for_each(|value| *value *= scale);
        }
    }
}

/// Turns the scores of the `seen` positions into weights that are not normalised yet, zero
/// elsewhere; returns their sum.
///
/// `exp((score − max) · scale)` is the softmax of the scaled scores for a positive scale. The
/// caller divides the output by the sum.
fn weigh(scores: &mut [f32], seen: std::ops::Range<usize>, scale: f32) -> f32 {
    scores[..seen.start].fill(0.0);
    scores[seen.end..].fill(0.0);
    let visible = &mut scores[seen];
    let mut lanes = [f32::NEG_INFINITY; BLOCK_POSITIONS];
    for chunk in visible.chunks(BLOCK_POSITIONS) {
        lanes.iter_mut().zip(chunk).for_each(|(lane, score)| *lane = lane.max(*score));
    }
    let max = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
    visible.iter_mut().for_each(|score| *score = exp((*score - max) * scale));
    // One sum per slot of a block: the order depends on positions alone, not on where the rows begin.
    let mut sums = [0.0_f32; BLOCK_POSITIONS];
    for chunk in scores.chunks_exact(BLOCK_POSITIONS) {
        sums.iter_mut().zip(chunk).for_each(|(sum, weight)| *sum += weight);
    }
    sums.iter().sum()
}
