//! One decoder for every family, run over a step of flat rows.
//!
//! A row is one token of one sequence; only attention sees which rows belong together. Called by
//! the engine once per step; calls [`Hooks`] at the input groups of every layer.

use std::sync::Arc;

use crate::attention::attend;
use crate::compute::{Compute, SharedMut};
use crate::config::{Activation, ModelConfig};
use crate::hooks::{Hooks, SiteOutput};
use crate::kernels::{
    Product, QuantisedRows, gelu_tanh_mul, matmul_dense, matmul_packed, rms_norm,
    rms_norm_in_place, silu_mul,
};
use crate::kv::{KvCache, KvSlot};
use crate::linear::{Linear, Matrix, project};
use crate::moe::{self, Experts, SparseLayer};
use crate::rope::{RopeTable, rotate};
use crate::site::{GroupKind, InputGroup, Projection, Site};

/// The base model: weights are read-only after loading.
///
/// Shared by all sequences; the state of a step is in [`Scratch`] and [`KvCache`].
#[derive(Debug)]
pub struct Decoder {
    /// The model's shape.
    pub(crate) config: ModelConfig,
    /// `[vocab_size, hidden_size]`
    pub(crate) embeddings: Matrix,
    /// The layers, in order.
    pub(crate) layers: Vec<Layer>,
    /// Norm before the head, `[hidden_size]`.
    pub(crate) final_norm: Vec<f32>,
    /// `[vocab_size, hidden_size]`; `None` where the head reuses the embedding table.
    pub(crate) head: Option<Linear>,
    /// Rotary embedding of the layers, or of those without a window.
    pub(crate) rope: RopeTable,
    /// Rotary embedding of the layers with a window; `None` where all share one.
    pub(crate) local_rope: Option<RopeTable>,
    /// Threads that steps run on.
    pub(crate) compute: Arc<Compute>,
    /// Identity of the function that the model computes.
    pub(crate) digest: [u8; 32],
    /// Identity of the files.
    pub(crate) weights_digest: [u8; 32],
}

/// The weights of one decoder layer. All norms are RMS norms.
#[derive(Debug)]
pub(crate) struct Layer {
    /// Before the attention, `[hidden_size]`.
    pub(crate) attention_norm: Vec<f32>,
    /// Over the attention's output, before it is added to the residual stream; gemma 3 has it.
    pub(crate) attention_output_norm: Option<Vec<f32>>,
    /// Before the feed-forward, `[hidden_size]`.
    pub(crate) feed_forward_norm: Vec<f32>,
    /// Over the feed-forward's output, before it is added to the residual stream; gemma 3 has it.
    pub(crate) feed_forward_output_norm: Option<Vec<f32>>,
    /// Over each head of the queries, or over all heads at once; as long as the part that it norms.
    pub(crate) query_norm: Option<Vec<f32>>,
    /// The same of the keys.
    pub(crate) key_norm: Option<Vec<f32>>,
    /// q, k, v and o, in the order of [`Projection`].
    pub(crate) attention: [Linear; 4],
    /// Dense, or with experts.
    pub(crate) feed_forward: FeedForward,
}

/// The weights of a layer's feed-forward.
#[derive(Debug)]
pub(crate) enum FeedForward {
    /// Gate, up and down.
    Dense([Linear; 3]),
    /// A router and its experts.
    Sparse(Experts),
}

impl Layer {
    /// The weights of a projection; `None` for gate, up and down of a sparse layer.
    fn linear(&self, projection: Projection) -> Option<&Linear> {
        match (&self.feed_forward, moe::inside(projection)) {
            (_, None) => Some(&self.attention[projection as usize]),
            (FeedForward::Dense(linears), Some(inside)) => Some(&linears[inside]),
            (FeedForward::Sparse(_), Some(_)) => None,
        }
    }

    /// All matrices of the layer, experts included.
    fn linears(&self) -> Vec<&Linear> {
        let attention = self.attention.iter();
        match &self.feed_forward {
            FeedForward::Dense(linears) => attention.chain(linears).collect(),
            FeedForward::Sparse(experts) => attention.chain(experts.linears()).collect(),
        }
    }
}

/// One step: rows of any sequences, in ascending position within each sequence.
///
/// Prompts and generated tokens are not told apart: a prompt is a run of rows of one sequence,
/// which may go through several steps. All slices but the block tables and the logit rows have one
/// entry per row.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// Token of each row.
    pub tokens: &'a [u32],
    /// Position of each row in its sequence, from 0. Earlier positions must be in the cache or in
    /// this step.
    pub positions: &'a [u32],
    /// Index into `block_tables` of each row.
    pub sequences: &'a [u32],
    /// KV blocks of each sequence, by position, enough for its largest one.
    pub block_tables: &'a [&'a [u32]],
    /// Rows whose logits are wanted, ascending; the head is computed for no others.
    pub logit_rows: &'a [u32],
}

/// Buffers reused from step to step; they grow to the largest step and are not shared.
#[derive(Debug, Default)]
pub struct Scratch {
    /// The residual stream, `[rows, hidden_size]`.
    hidden: Vec<f32>,
    /// The normed residual stream, `[rows, hidden_size]`; at the end that of the logit rows alone.
    normed: Vec<f32>,
    /// `[rows, num_heads · head_dim]`
    queries: Vec<f32>,
    /// `[rows, num_kv_heads · head_dim]`
    keys: Vec<f32>,
    /// `[rows, num_kv_heads · head_dim]`
    values: Vec<f32>,
    /// The heads' outputs, `[rows, num_heads · head_dim]`.
    heads: Vec<f32>,
    /// `[rows, intermediate_size]`
    gate: Vec<f32>,
    /// `[rows, intermediate_size]`
    up: Vec<f32>,
    /// The output of the attention or of the feed-forward, `[rows, hidden_size]`, which the
    /// residual stream is about to get.
    branch: Vec<f32>,
    /// The input of packed projections in 8 bits.
    quantised: QuantisedRows,
    /// Buffers of sparse layers.
    experts: moe::Buffers,
    /// Rotary angles of the rows' positions.
    angles: Angles,
    /// The same for layers with a window, where they have another rotary embedding.
    local_angles: Angles,
    /// `[logit rows, vocab_size]`
    logits: Vec<f32>,
}

/// Cosines and sines of a rotary embedding, `[rows, head_dim / 2]`.
#[derive(Debug, Default)]
struct Angles {
    /// Cosines.
    cos: Vec<f32>,
    /// Sines.
    sin: Vec<f32>,
}

impl Angles {
    /// The angles of a step's positions, `half` of `head_dim` per row.
    fn fill(&mut self, table: &RopeTable, positions: &[u32], half: usize) {
        self.cos.resize(positions.len() * half, 0.0);
        self.sin.resize(positions.len() * half, 0.0);
        let rows = self.cos.chunks_exact_mut(half).zip(self.sin.chunks_exact_mut(half));
        for (&position, (cos, sin)) in positions.iter().zip(rows) {
            table.angles(position, cos, sin);
        }
    }
}

impl Scratch {
    /// Makes room for a step's rows. Old values stay where they are not overwritten.
    fn prepare(&mut self, config: &ModelConfig, num_rows: usize) {
        let queries = config.num_heads * config.head_dim;
        let keys = config.num_kv_heads * config.head_dim;
        for (buffer, width) in [
            (&mut self.hidden, config.hidden_size),
            (&mut self.normed, config.hidden_size),
            (&mut self.branch, config.hidden_size),
            (&mut self.queries, queries),
            (&mut self.heads, queries),
            (&mut self.keys, keys),
            (&mut self.values, keys),
            (&mut self.gate, config.intermediate_size),
            (&mut self.up, config.intermediate_size),
        ] {
            buffer.resize(num_rows * width, 0.0);
        }
    }
}

impl Decoder {
    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Identity of the function that the model computes: the files' digest, with the experts that
    /// were kept where some were dropped.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// SHA-256 over the files that the weights came from, and over `config.json` where there is
    /// one.
    pub fn weights_digest(&self) -> [u8; 32] {
        self.weights_digest
    }

    /// The compute threads that steps run on.
    pub fn compute(&self) -> &Arc<Compute> {
        &self.compute
    }

    /// The weights of a projection; they are read-only. `None` where the base has no such
    /// projection: beyond its layers, and for gate, up and down of a sparse layer.
    pub fn linear(&self, site: Site) -> Option<&Linear> {
        self.layers.get(site.layer)?.linear(site.projection)
    }

    /// The experts of a layer; `None` if it is dense or does not exist.
    pub fn experts(&self, layer: usize) -> Option<&Experts> {
        match &self.layers.get(layer)?.feed_forward {
            FeedForward::Dense(_) => None,
            FeedForward::Sparse(experts) => Some(experts),
        }
    }

    /// The embedding table, `[vocab_size, hidden_size]`, which is also the head of a model with
    /// tied embeddings.
    pub fn embeddings(&self) -> &Matrix {
        &self.embeddings
    }

    /// The head's weights, `[vocab_size, hidden_size]`.
    pub fn head(&self) -> &Matrix {
        self.head.as_ref().map_or(&self.embeddings, |head| &head.matrix)
    }

    /// Bytes of base weights: matrices alone, since norms and biases are small beside them.
    pub fn num_bytes(&self) -> usize {
        let layers = self.layers.iter().flat_map(Layer::linears);
        let head = self.head.iter();
        self.embeddings.num_bytes()
            + layers.chain(head).map(|linear| linear.matrix.num_bytes()).sum::<usize>()
    }

    /// Runs a step and returns the logits of `step.logit_rows`, `[logit rows, vocab_size]`.
    ///
    /// Keys and values of all rows are written to `kv`. The logits stay in `scratch` until the next
    /// step. A row's logits have the same bits whatever rows share the step.
    ///
    /// # Panics
    /// If a row names a sequence, position or token that the step, its blocks or the vocabulary do
    /// not have; the engine validates those on admission.
    pub fn forward<'s>(
        &self,
        step: &Step<'_>,
        kv: &mut KvCache,
        hooks: &mut dyn Hooks,
        scratch: &'s mut Scratch,
    ) -> &'s mut [f32] {
        let num_rows = step.tokens.len();
        let hidden_size = self.config.hidden_size;
        scratch.prepare(&self.config, num_rows);
        self.embed(step, scratch);
        hooks.embedded(&mut scratch.hidden, self.config.embedding_scale);
        for index in 0..self.layers.len() {
            self.attention_block(index, step, kv, hooks, scratch);
            self.feed_forward_block(index, hooks, scratch);
            hooks.residual(index, &mut scratch.hidden);
        }
        let wanted = step.logit_rows.len();
        for (slot, &row) in step.logit_rows.iter().enumerate() {
            let row = row as usize * hidden_size..(row as usize + 1) * hidden_size;
            let target = slot * hidden_size..(slot + 1) * hidden_size;
            let (hidden, normed) = (&scratch.hidden[row], &mut scratch.normed[target]);
            rms_norm(hidden, &self.final_norm, self.config.norm_epsilon, normed);
        }
        scratch.logits.resize(wanted * self.config.vocab_size, 0.0);
        if wanted > 0 {
            self.project_head(wanted, scratch);
            let normed = &scratch.normed[..wanted * hidden_size];
            hooks.scored(step.logit_rows, normed, &mut scratch.logits);
        }
        &mut scratch.logits
    }

    /// Token embeddings into the residual stream, and the rotary angles of the step's positions.
    fn embed(&self, step: &Step<'_>, scratch: &mut Scratch) {
        let half = self.config.head_dim / 2;
        let rows = scratch.hidden.chunks_exact_mut(self.config.hidden_size);
        for (&token, hidden) in step.tokens.iter().zip(rows) {
            self.embeddings.read_row(token as usize, hidden);
        }
        let scale = self.config.embedding_scale;
        if scale != 1.0 {
            scratch.hidden.iter_mut().for_each(|value| *value *= scale);
        }
        scratch.angles.fill(&self.rope, step.positions, half);
        if let Some(table) = &self.local_rope {
            scratch.local_angles.fill(table, step.positions, half);
        }
    }

    /// The first half of a layer: norm, q, k and v, rotary embedding, the cache, attention, o, and
    /// the residual.
    fn attention_block(
        &self,
        layer: usize,
        step: &Step<'_>,
        kv: &mut KvCache,
        hooks: &mut dyn Hooks,
        scratch: &mut Scratch,
    ) {
        let Scratch {
            hidden,
            normed,
            queries,
            keys,
            values,
            heads,
            branch,
            quantised,
            angles,
            local_angles,
            ..
        } = scratch;
        let is_local = self.local_rope.is_some() && self.config.windows[layer].is_some();
        let angles = if is_local { &*local_angles } else { &*angles };
        self.norm(hidden, &self.layers[layer].attention_norm, normed);
        let Layer { attention: [q, k, v, o], query_norm, key_norm, attention_output_norm, .. } =
            &self.layers[layer];
        let outputs =
            [(Projection::Q, q, queries), (Projection::K, k, keys), (Projection::V, v, values)];
        let group = InputGroup { layer, kind: GroupKind::AttentionInput };
        let [queries, keys, values] = self.project(group, normed, outputs, quantised, hooks);
        self.norm_in_place(queries, query_norm.as_deref());
        self.norm_in_place(keys, key_norm.as_deref());
        if let Some(limit) = self.config.clip_query_key_value {
            for values in [&mut *queries, &mut *keys, &mut *values] {
                values.iter_mut().for_each(|value| *value = value.clamp(-limit, limit));
            }
        }
        self.rotate_heads(queries, self.config.num_heads, angles);
        self.rotate_heads(keys, self.config.num_kv_heads, angles);
        let width = self.config.num_kv_heads * self.config.head_dim;
        for (row, (keys, values)) in
            keys.chunks_exact(width).zip(values.chunks_exact(width)).enumerate()
        {
            let position = step.positions[row] as usize;
            let table = step.block_tables[step.sequences[row] as usize];
            kv.store(KvSlot::of(table, position), layer, keys, values);
        }
        attend(self, layer, step, kv, queries, heads);
        hooks.attended(layer, heads);
        let outputs = [(Projection::O, o, &mut *branch)];
        let group = InputGroup { layer, kind: GroupKind::AttentionOutput };
        self.project(group, heads, outputs, quantised, hooks);
        self.norm_in_place(branch, attention_output_norm.as_deref());
        add(hidden, branch);
    }

    /// The second half of a layer: norm, feed-forward or experts, and the residual.
    fn feed_forward_block(&self, layer: usize, hooks: &mut dyn Hooks, scratch: &mut Scratch) {
        let Layer { feed_forward_norm, feed_forward, feed_forward_output_norm, .. } =
            &self.layers[layer];
        self.norm(&scratch.hidden, feed_forward_norm, &mut scratch.normed);
        match feed_forward {
            FeedForward::Dense(linears) => self.dense_feed_forward(layer, linears, hooks, scratch),
            FeedForward::Sparse(experts) => {
                let Some(mixture) = self.config.experts_at(layer) else { return };
                let (compute, config) = (&*self.compute, &self.config);
                let Scratch { normed, branch, quantised, experts: buffers, .. } = &mut *scratch;
                let layer = SparseLayer { compute, config, mixture, layer, experts };
                layer.run(normed, branch, quantised, hooks, buffers);
            }
        }
        let Scratch { hidden, normed, branch, .. } = scratch;
        hooks.fed_forward(layer, normed, branch);
        self.norm_in_place(branch, feed_forward_output_norm.as_deref());
        add(hidden, branch);
    }

    /// down(activation(gate(x)) · up(x)) of the normed rows in `scratch`, into its `branch`.
    fn dense_feed_forward(
        &self,
        layer: usize,
        linears: &[Linear; 3],
        hooks: &mut dyn Hooks,
        scratch: &mut Scratch,
    ) {
        let Scratch { normed, gate: gate_values, up: up_values, branch, quantised, .. } = scratch;
        let [gate, up, down] = linears;
        let outputs = [(Projection::Gate, gate, gate_values), (Projection::Up, up, up_values)];
        let group = InputGroup { layer, kind: GroupKind::FeedForwardInput };
        let [gate, up] = self.project(group, normed, outputs, quantised, hooks);
        for_row_chunks(&self.compute, gate, self.config.intermediate_size, |start, gate| {
            activate(self.config.activation, gate, &up[start..start + gate.len()]);
        });
        let group = InputGroup { layer, kind: GroupKind::FeedForwardInner };
        let outputs = [(Projection::Down, down, branch)];
        self.project(group, gate, outputs, quantised, hooks);
    }

    /// RMS norm of all rows, in parallel over rows.
    fn norm(&self, hidden: &[f32], weight: &[f32], normed: &mut [f32]) {
        let epsilon = self.config.norm_epsilon;
        for_row_chunks(&self.compute, normed, weight.len(), |start, normed| {
            rms_norm(&hidden[start..start + normed.len()], weight, epsilon, normed);
        });
    }

    /// RMS norm over each run as long as the weights, in place; nothing without weights.
    fn norm_in_place(&self, values: &mut [f32], weight: Option<&[f32]>) {
        let Some(weight) = weight else { return };
        let epsilon = self.config.norm_epsilon;
        for_row_chunks(&self.compute, values, weight.len(), |_, values| {
            rms_norm_in_place(values, weight, epsilon);
        });
    }

    /// The base projections of one input group, then the hooks on their outputs.
    ///
    /// All of the outputs are overwritten and handed back. Each must be `[rows, outs]` long
    /// already.
    fn project<'b, const N: usize>(
        &self,
        group: InputGroup,
        input: &[f32],
        mut outputs: [(Projection, &Linear, &'b mut Vec<f32>); N],
        quantised: &mut QuantisedRows,
        hooks: &mut dyn Hooks,
    ) -> [&'b mut Vec<f32>; N] {
        let inner = outputs[0].1.matrix.inner();
        let rows = 0..input.len() / inner;
        let mut products = outputs.each_mut().map(|(_, weights, y)| Product {
            weights: *weights,
            rows: rows.clone(),
            y: y.as_mut_slice(),
        });
        project(&self.compute, input, inner, quantised, &mut products);
        let mut sites = outputs.each_mut().map(|(projection, linear, values)| SiteOutput {
            projection: *projection,
            values: values.as_mut_slice(),
            width: linear.matrix.outs(),
            linear,
        });
        hooks.projected(group, input, &mut sites);
        outputs.map(|(_, _, values)| values)
    }

    /// Rotates all heads of all rows, `[rows, num_heads · head_dim]`, by the angles of the rows.
    fn rotate_heads(&self, heads: &mut [f32], num_heads: usize, angles: &Angles) {
        let dim = self.config.head_dim;
        let half = dim / 2;
        for_row_chunks(&self.compute, heads, num_heads * dim, |start, rows| {
            let first_row = start / (num_heads * dim);
            for (row, heads) in rows.chunks_exact_mut(num_heads * dim).enumerate() {
                let place = (first_row + row) * half..(first_row + row + 1) * half;
                let (cos, sin) = (&angles.cos[place.clone()], &angles.sin[place]);
                for head in heads.chunks_exact_mut(dim) {
                    rotate(head, cos, sin);
                }
            }
        });
    }

    /// Logits of the first `wanted` rows of `scratch.normed`.
    fn project_head(&self, wanted: usize, scratch: &mut Scratch) {
        let Scratch { normed, quantised, logits, .. } = scratch;
        let hidden_size = self.config.hidden_size;
        let normed = &normed[..wanted * hidden_size];
        match &self.head {
            Some(head) => {
                let head = Product { weights: head, rows: 0..wanted, y: logits };
                project(&self.compute, normed, hidden_size, quantised, &mut [head]);
            }
            None => project_tied(&self.compute, normed, &self.embeddings, quantised, logits),
        }
    }
}

/// The head of a model with tied embeddings: `logits = x · embeddingsᵀ`, without a bias.
fn project_tied(
    compute: &Compute,
    x: &[f32],
    embeddings: &Matrix,
    quantised: &mut QuantisedRows,
    logits: &mut [f32],
) {
    match embeddings {
        Matrix::Dense { weights, inner } => {
            matmul_dense(compute, x, weights.as_slice(), *inner, logits);
        }
        Matrix::Packed(matrix) => {
            quantised.quantise(compute, x, matrix.inner());
            let rows = 0..x.len() / matrix.inner();
            let product = Product { weights: matrix, rows, y: logits };
            matmul_packed(compute, quantised, &mut [product]);
        }
    }
}

/// `gate = activation(gate) · up`, elementwise.
pub fn activate(activation: Activation, gate: &mut [f32], up: &[f32]) {
    match activation {
        Activation::Silu => silu_mul(gate, up),
        Activation::GeluTanh => gelu_tanh_mul(gate, up),
    }
}

/// The residual: `hidden += branch`.
fn add(hidden: &mut [f32], branch: &[f32]) {
    hidden.iter_mut().zip(branch).for_each(|(hidden, branch)| *hidden += branch);
}

/// Runs `body(start, rows)` over chunks of whole rows of `width` values; small steps stay on the
/// calling thread.
///
/// `start` is the index of the chunk's first value. No chunk has more than eight rows.
#[expect(unsafe_code, reason = "tasks write disjoint rows")]
pub(crate) fn for_row_chunks(
    compute: &Compute,
    values: &mut [f32],
    width: usize,
    body: impl Fn(usize, &mut [f32]) + Sync,
) {
    const ROWS_PER_TASK: usize = 8;
    let len = values.len();
    let chunk = ROWS_PER_TASK * width;
    let shared = SharedMut::new(values);
    compute.run(len.div_ceil(chunk), &|task| {
        let start = task * chunk;
        // SAFETY: chunks are disjoint.
        body(start, unsafe { shared.slice(start, chunk.min(len - start)) });
    });
}
