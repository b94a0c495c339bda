//! LoRA, DoRA, and what PEFT's LoRA configuration can train beside them: biases, a head, tokens.

use std::collections::{BTreeMap, BTreeSet};

use polyskill_model::{Matrix, ModelConfig, Site};
use safetensors::tensor::{SafeTensors, TensorView};

use super::bundle::{floats, shaped};
use super::config::LoraSettings;
use super::experts::{self, ExpertPlace};
use super::targets::{Wrapper, beyond_text};
use super::{Base, Place, place_of, tokens};
use crate::files::Problems;
use crate::lora::{LoraSite, Magnitude};
use crate::weights::{EmbeddingLora, LinearPart, Part, Weights};

/// The tensors of one linear, by the constants below: the part of a name that follows the linear's
/// path, in one spelling.
pub(super) type Tensors<'a> = BTreeMap<&'static str, TensorView<'a>>;

/// A, `[rank, inputs]`.
pub(super) const A: &str = "lora_A.weight";
/// B, `[outputs, rank]`.
pub(super) const B: &str = "lora_B.weight";
/// A bias behind B, `[outputs]`, which `lora_bias` asks for.
const B_BIAS: &str = "lora_B.bias";
/// DoRA's m, `[outputs]`.
const MAGNITUDE: &str = "lora_magnitude_vector";
/// A trained bias of the base inside PEFT's wrapper, `[outputs]`.
const BIAS: &str = "bias";
/// A trained bias of a linear that PEFT does not wrap. No tensor has this name: it keeps the two
/// apart.
const OWN_BIAS: &str = "bias without `base_layer`";
/// The base's own matrix, which PEFT saves beside modules at the embedding table and the head.
const BASE: &str = "base_layer.weight";
/// Largest distance of the base's own matrix, as stored beside a module, from a quantised base that
/// serves, in parts of its size: such a base is not bit for bit what the module was trained on. A
/// base that is not quantised must have the very values.
const MAX_QUANTISED_DISTANCE: f64 = 0.05;
/// A head of the module's own, `[vocab_size, hidden_size]`.
const HEAD: &str = "weight";
/// A of the embedding table, `[rank, vocab_size]`.
const EMBEDDING_A: &str = "lora_embedding_A";
/// B of the embedding table, `[hidden_size, rank]`.
const EMBEDDING_B: &str = "lora_embedding_B";
/// Trained rows, `[tokens, hidden_size]`.
const TOKENS: &str = "token_adapter.trainable_tokens_delta";
/// Suffixes that may follow a linear's path, and the constant of each. PEFT has written some in two
/// ways. The first that fits counts, so `.weight` comes last.
const SUFFIXES: [(&str, &str); 18] = [
    (".lora_A.weight", A),
    (".lora_B.weight", B),
    (".lora_B.bias", B_BIAS),
    (".lora_magnitude_vector.weight", MAGNITUDE),
    (".lora_magnitude_vector", MAGNITUDE),
    (".base_layer.bias", BIAS),
    (".base_layer.weight", BASE),
    (".bias", OWN_BIAS),
    (".lora_embedding_A", EMBEDDING_A),
    (".lora_embedding_B", EMBEDDING_B),
    (".token_adapter.trainable_tokens_delta", TOKENS),
    // As in memory, where the module's name stands in the key.
    (".lora_A.default.weight", A),
    (".lora_B.default.weight", B),
    (".lora_B.default.bias", B_BIAS),
    (".lora_magnitude_vector.default.weight", MAGNITUDE),
    (".lora_embedding_A.default", EMBEDDING_A),
    (".lora_embedding_B.default", EMBEDDING_B),
    (".weight", HEAD),
];

/// Maps every tensor to a place in the base, and every targeted place to its tensors; what is left
/// over on either side is a problem. Experts are the exception: versions of PEFT differ in what
/// they match there, so nothing is missed.
pub(super) fn assemble(
    mut settings: LoraSettings,
    tensors: &SafeTensors<'_>,
    base: Base<'_>,
) -> Result<Weights, Vec<String>> {
    let mut problems = Problems::default();
    let paths = tensors.names().into_iter().filter_map(|name| parse_key(name));
    settings.wrapper = Wrapper::of(paths.map(|(path, _)| path));
    settings.follow_ties(
        base.config,
        tensors.names().iter().any(|name| name.contains("lm_head.token_adapter")),
    );
    let settings = &settings;
    let mut found: BTreeMap<Place, Tensors<'_>> = BTreeMap::new();
    let mut of_experts: BTreeMap<(ExpertPlace, String), Tensors<'_>> = BTreeMap::new();
    for (name, view) in tensors.iter() {
        let parsed = parse_key(name);
        let parsed = parsed.and_then(|(path, what)| Some((settings.wrapper.inner(path)?, what)));
        let place = parsed.as_ref().and_then(|(path, _)| place_of(path, base.config));
        let expert = parsed.as_ref().and_then(|(path, _)| experts::place_of(path, base.config));
        let (of_place, what) = match (parsed, place, expert) {
            (Some((_, what)), Some(place), _) => (found.entry(place).or_default(), what),
            (Some((path, what)), None, Some(expert)) => {
                (of_experts.entry((expert, path.into_owned())).or_default(), what)
            }
            _ => {
                let beyond = beyond_text(name);
                let problem =
                    format!("tensor `{name}` belongs to no linear of the base model{beyond}");
                problems.add(problem);
                continue;
            }
        };
        if of_place.insert(what, view).is_some() {
            problems.add(format!("tensor `{name}` is there under another name too"));
        }
    }
    let mut reader =
        Reader { settings, base, weights: Weights::new(base.config.num_sites()), problems };
    let tying = settings.tying_problem(base.config);
    tying.into_iter().for_each(|problem| reader.problems.add(problem));
    if settings.ties_ends(base.config) {
        let ends =
            [Place::Embedding, Place::Head].map(|end| found.remove(&end).unwrap_or_default());
        reader.tied_ends(ends);
    }
    let targets = reader.targets();
    for place in &targets {
        let tensors = found.remove(place).unwrap_or_default();
        reader.target(*place, tensors);
    }
    for (place, tensors) in found {
        reader.beside(place, tensors);
    }
    let mut loras = BTreeMap::new();
    for ((place, path), tensors) in of_experts {
        let read = experts::read(settings, place, &path, tensors, base.config, &mut loras);
        reader.keep(read);
    }
    if !loras.is_empty() {
        reader.weights.add(Part::ExpertLoras(loras));
    }
    reader.require_promised();
    settings.pattern_problems().into_iter().for_each(|problem| reader.problems.add(problem));
    let Reader { mut problems, weights, .. } = reader;
    if targets.is_empty() && !weights.has_expert_loras() && weights.embedding().is_none() {
        problems.add("no linear of the base model is a target module".to_owned());
    }
    problems.into_result(weights)
}

/// `base_model.model.<path><suffix>` → the path as PEFT saw it, and the tensor's constant.
fn parse_key(name: &str) -> Option<(&str, &'static str)> {
    let rest = name.strip_prefix("base_model.model.")?;
    let mut suffixes = SUFFIXES.iter();
    suffixes.find_map(|(suffix, what)| Some((rest.strip_suffix(suffix)?, *what)))
}

/// The weights as they come together, with the problems so far.
struct Reader<'a> {
    /// The configuration, with the wrapper of the file's paths.
    settings: &'a LoraSettings,
    /// The base that serves.
    base: Base<'a>,
    /// The parts that were read.
    weights: Weights,
    /// All problems, so that one refusal names them together.
    problems: Problems,
}

impl Reader<'_> {
    /// The places that must have a low-rank product. Ends that share one are left to
    /// [`Reader::tied_ends`].
    fn targets(&self) -> BTreeSet<Place> {
        let sites = self.settings.targets(self.base.config).into_iter().map(Place::Site);
        let rest = [Place::Head, Place::Embedding].into_iter();
        let ties = self.settings.ties_ends(self.base.config);
        let rest = rest.filter(|place| !ties && self.settings.is_target(&place.path()));
        sites.chain(rest).collect()
    }

    /// One LoRA at both ends of a tied base, as `ensure_weight_tying` asks for it: the head's
    /// matrices are the embedding table's, transposed and in turn. Where a file has both, PEFT
    /// takes the head's. Without either pair there is a problem; with DoRA or a bias of B there is
    /// one too.
    fn tied_ends(&mut self, [mut embedding, mut head]: [Tensors<'_>; 2]) {
        let ModelConfig { vocab_size, hidden_size, .. } = *self.base.config;
        if self.settings.use_dora || self.settings.lora_bias {
            self.problems
                .add(format!("{}: only plain LoRA is supported at embeddings", Place::Embedding));
        }
        if self.settings.is_excluded(&Place::Embedding.path()) {
            self.problems.add(
                "`exclude_modules` names embed_tokens, which `ensure_weight_tying` targets"
                    .to_owned(),
            );
        }
        let (rank, scale) = self.settings.rank_and_scale(&Place::Embedding.path());
        let (_, head_scale) = self.settings.rank_and_scale(&Place::Head.path());
        let [a, b] = [A, B].map(|what| head.remove(what));
        let [of_a, of_b] = [EMBEDDING_A, EMBEDDING_B].map(|what| embedding.remove(what));
        let [rank_hidden, rank_vocab] = match (a, b, of_a, of_b) {
            // Both are checked, though one is used.
            (Some(a), Some(b), of_a, of_b) => {
                let checks = [(of_a, [rank, vocab_size]), (of_b, [hidden_size, rank])];
                for (view, shape) in
                    checks.iter().filter_map(|(view, shape)| Some((view.as_ref()?, shape)))
                {
                    let checked = shaped("a tensor of embed_tokens", view, shape);
                    self.keep(checked);
                }
                let a = self.keep(shaped("`lora_A` of lm_head", &a, &[rank, hidden_size]));
                let b = self.keep(shaped("`lora_B` of lm_head", &b, &[vocab_size, rank]));
                [a, b.map(|b| b.transposed(vocab_size, rank))]
            }
            (None, None, Some(of_a), Some(of_b)) => {
                let of_a = self.keep(shaped("`lora_embedding_A`", &of_a, &[rank, vocab_size]));
                let of_b = self.keep(shaped("`lora_embedding_B`", &of_b, &[hidden_size, rank]));
                [of_b.map(|b| b.transposed(hidden_size, rank)), of_a]
            }
            _ => {
                let problem =
                    "embed_tokens and lm_head share a LoRA, but neither has both of its tensors";
                return self.problems.add(problem.to_owned());
            }
        };
        if let (Some(rank_hidden), Some(rank_vocab)) = (rank_hidden, rank_vocab) {
            let a_transposed = rank_vocab.clone().transposed(rank, vocab_size);
            let b_transposed = rank_hidden.clone();
            let lora = EmbeddingLora { rank, scale, a_transposed, b_transposed };
            self.weights.add(Part::Embedding(lora));
            let lora = LoraSite {
                rank,
                scale: head_scale,
                a: rank_hidden,
                b_transposed: rank_vocab,
                magnitude: None,
            };
            self.weights.add(Part::Head(LinearPart::lora(lora)));
        }
        self.beside(Place::Embedding, embedding);
        self.beside(Place::Head, head);
    }

    /// Reads a linear that the configuration targets: A, B, and the magnitude and the bias of B
    /// where it asks for them. A bias of B is behind the product, so it is kept times the scale.
    fn target(&mut self, place: Place, mut tensors: Tensors<'_>) {
        let Some((outputs, inputs)) = place.shape(self.base.config) else {
            return self.embedding(tensors);
        };
        let (a, b) = (tensors.remove(A), tensors.remove(B));
        let (a, b) = match (a, b) {
            (Some(a), Some(b)) => (a, b),
            (None, None) => {
                return self.problems.add(format!("{place} is a target module but has no tensors"));
            }
            (Some(_), None) => return self.problems.add(format!("{place} has no `lora_B`")),
            (None, Some(_)) => return self.problems.add(format!("{place} has no `lora_A`")),
        };
        let (rank, scale) = self.settings.rank_and_scale(&place.path());
        let a = self.keep(shaped(&format!("`lora_A` of {place}"), &a, &[rank, inputs]));
        let b = self.keep(shaped(&format!("`lora_B` of {place}"), &b, &[outputs, rank]));
        let vectors = [(MAGNITUDE, self.settings.use_dora), (B_BIAS, self.settings.lora_bias)];
        let [magnitude, bias] = vectors.map(|(what, expected)| {
            self.vector(place, what, tensors.remove(what), expected, outputs)
        });
        let (Some(a), Some(b)) = (a, b) else { return };
        let b_transposed = b.transposed(outputs, rank);
        let mut lora = LoraSite { rank, scale, a, b_transposed, magnitude: None };
        if let Some(magnitude) = magnitude {
            lora.magnitude = self.magnitude(place, &lora, magnitude);
        }
        let scaled = |bias: Vec<f32>| bias.into_iter().map(|value| value * scale).collect();
        let part = LinearPart { lora: Some(lora), bias: bias.map(scaled), ..LinearPart::default() };
        match place {
            Place::Site(site) => *self.weights.at_mut(site) = part,
            _ => self.weights.add(Part::Head(part)),
        }
        self.beside(place, tensors);
    }

    /// Reads tensors that are no low-rank product: biases, a head, tokens, and the base's own
    /// matrix. One that the configuration does not ask for is a problem.
    fn beside(&mut self, place: Place, tensors: Tensors<'_>) {
        for (what, view) in tensors {
            match (place, what) {
                // PEFT wraps the linears that it targets, and reads their biases inside alone.
                (Place::Site(site), BIAS | OWN_BIAS)
                    if self.settings.trains_biases
                        && self.settings.is_target(&place.path()) == (what == BIAS) =>
                {
                    self.base_bias(site, &view);
                }
                (Place::Head, HEAD) if self.settings.own_head => {
                    let shape = [self.base.config.vocab_size, self.base.config.hidden_size];
                    let head = self.keep(shaped("`lm_head.weight`", &view, &shape));
                    head.into_iter().for_each(|head| self.weights.add(Part::OwnHead(head)));
                }
                (Place::Head | Place::Embedding, TOKENS) => self.token_rows(place, &view),
                (Place::Head | Place::Embedding, BASE) => self.base_matrix(place, &view),
                _ => self.problems.add(format!(
                    "tensor `{what}` of {place}: the configuration does not ask for it"
                )),
            }
        }
    }

    /// Reports a head or rows of tokens that the configuration asks for and that were not read.
    fn require_promised(&mut self) {
        if self.settings.own_head && self.weights.own_head().is_none() {
            self.problems.add(
                "`modules_to_save` names lm_head, but there is no `lm_head.weight`".to_owned(),
            );
        }
        let Some(tokens) = &self.settings.tokens else { return };
        let embedding = !tokens.embedding.is_empty() && self.weights.tokens().is_none();
        let head = tokens.head.as_ref().is_some_and(|ids| !ids.is_empty());
        if embedding || head && self.weights.head_tokens().is_none() {
            let problem =
                "`trainable_token_indices` is set, but a tensor of rows is missing or wrong";
            self.problems.add(problem.to_owned());
        }
    }

    /// Reads trained rows at the embedding table or the head. At the head they must have ids of
    /// their own.
    fn token_rows(&mut self, place: Place, view: &TensorView<'_>) {
        let asked = match (&self.settings.tokens, place) {
            (Some(indices), Place::Head) => indices.head.is_some().then_some(indices),
            (indices, _) => indices.as_ref(),
        };
        let Some(indices) = asked else {
            let problem = format!(
                "{place} has `trainable_tokens_delta`, which the configuration does not ask for"
            );
            return self.problems.add(problem);
        };
        let set = tokens::set(&mut self.weights, indices, place, view, self.base);
        self.keep(set);
    }

    /// PEFT stores the base's own matrix beside a module at the embedding table or the head, and
    /// puts it in place; it must be what the base has.
    fn base_matrix(&mut self, place: Place, view: &TensorView<'_>) {
        let (rows, width) = (self.base.config.vocab_size, self.base.config.hidden_size);
        let name = format!("`base_layer.weight` of {place}");
        let Some(values) = self.keep(floats(&name, view, &[rows, width])) else { return };
        let Some(model) = self.base.model else {
            let problem = format!("{name} needs the base's to compare, which is not at hand");
            return self.problems.add(problem);
        };
        let matrix = if place == Place::Head { model.head() } else { model.embeddings() };
        let same = check_base_matrix(&values, matrix);
        self.keep(same.map_err(|problem| format!("{name} is not the base's: {problem}")));
    }

    /// A vector `[len]` that must be there exactly when the configuration says so; `what` is its
    /// tensor's constant.
    fn vector(
        &mut self,
        place: Place,
        what: &str,
        view: Option<TensorView<'_>>,
        expected: bool,
        len: usize,
    ) -> Option<Vec<f32>> {
        match (view, expected) {
            (None, false) => None,
            (Some(view), true) => self.keep(floats(&format!("`{what}` of {place}"), &view, &[len])),
            (Some(_), false) => {
                self.problems
                    .add(format!("{place} has a `{what}` that the configuration does not ask for"));
                None
            }
            (None, true) => {
                self.problems.add(format!("{place} has no `{what}`"));
                None
            }
        }
    }

    /// DoRA's factors m/‖W + s·B·A‖, row by row of W; `values` is m. The cost is outputs · inputs ·
    /// r, once per linear. A row of norm zero is a problem.
    fn magnitude(&mut self, place: Place, lora: &LoraSite, values: Vec<f32>) -> Option<Magnitude> {
        let Some(model) = self.base.model else {
            self.problems
                .add(format!("{place}: DoRA needs the base's weights, which are not at hand"));
            return None;
        };
        let linear = match place {
            Place::Site(site) => model.linear(site),
            _ => None,
        };
        let matrix = linear.map_or(model.head(), |linear| &linear.matrix);
        let bias = linear.and_then(|linear| linear.bias.clone());
        let (a, b) = (lora.a.as_slice().to_f32(), lora.b_transposed.as_slice());
        let mut row = vec![0.0; matrix.inner()];
        let factors = values.into_iter().enumerate().map(|(out, value)| {
            matrix.read_row(out, &mut row);
            for (rank, a) in a.chunks_exact(row.len()).enumerate() {
                let factor = lora.scale * b.get(rank * matrix.outs() + out);
                row.iter_mut().zip(a).for_each(|(w, a)| *w += factor * a);
            }
            let square: f64 = row.iter().map(|w| f64::from(*w) * f64::from(*w)).sum();
            value / square.sqrt() as f32
        });
        let factors: Vec<f32> = factors.collect();
        if !factors.iter().all(|factor| factor.is_finite()) {
            self.problems.add(format!(
                "{place}: a row of the changed weights is zero, so DoRA cannot scale it"
            ));
            return None;
        }
        Some(Magnitude { factors, base_bias: bias })
    }

    /// A trained bias is kept as its difference to the base's.
    fn base_bias(&mut self, site: Site, view: &TensorView<'_>) {
        let (outputs, _) = self.base.config.projection_shape(site.projection);
        let Some(model) = self.base.model else {
            return self
                .problems
                .add(format!("{site}: a bias needs the base's, which is not at hand"));
        };
        let Some(base) = model.linear(site).and_then(|linear| linear.bias.as_ref()) else {
            return self.problems.add(format!("{site} has a `bias`, but the base has none there"));
        };
        if let Some(mut bias) = self.keep(floats(&format!("`bias` of {site}"), view, &[outputs])) {
            bias.iter_mut().zip(base).for_each(|(bias, base)| *bias -= base);
            let part = self.weights.at_mut(site);
            match &mut part.bias {
                Some(sum) => sum.iter_mut().zip(bias).for_each(|(sum, bias)| *sum += bias),
                none => *none = Some(bias),
            }
        }
    }

    /// Reads a targeted embedding table: A `[rank, vocab_size]`, B `[hidden_size, rank]`.
    fn embedding(&mut self, mut tensors: Tensors<'_>) {
        let place = Place::Embedding;
        let ModelConfig { vocab_size, hidden_size, .. } = *self.base.config;
        let (Some(a), Some(b)) = (tensors.remove(EMBEDDING_A), tensors.remove(EMBEDDING_B)) else {
            let problem = format!(
                "{place} is a target module but has no `{EMBEDDING_A}` and `{EMBEDDING_B}`"
            );
            return self.problems.add(problem);
        };
        if self.settings.use_dora || self.settings.lora_bias {
            self.problems.add(format!("{place}: only plain LoRA is supported at embeddings"));
        }
        let (rank, scale) = self.settings.rank_and_scale(&place.path());
        let a = self.keep(shaped("`lora_embedding_A`", &a, &[rank, vocab_size]));
        let b = self.keep(shaped("`lora_embedding_B`", &b, &[hidden_size, rank]));
        if let (Some(a), Some(b)) = (a, b) {
            let (a_transposed, b_transposed) =
                (a.transposed(rank, vocab_size), b.transposed(hidden_size, rank));
            let lora = EmbeddingLora { rank, scale, a_transposed, b_transposed };
            self.weights.add(Part::Embedding(lora));
        }
        self.beside(place, tensors);
    }

    /// The value, or nothing, with its problem kept.
    fn keep<T>(&mut self, result: Result<T, String>) -> Option<T> {
        result.map_err(|problem| self.problems.add(problem)).ok()
    }
}

/// Compares a stored matrix with the base's, which must have the same values; one that is quantised
/// must be near them. The distance is the Frobenius norm of the difference over that of the base's,
/// in f64.
fn check_base_matrix(stored: &[f32], matrix: &Matrix) -> Result<(), String> {
    let mut row = vec![0.0; matrix.inner()];
    let (mut others, mut difference, mut size) = (0_usize, 0.0_f64, 0.0_f64);
    for (index, stored) in stored.chunks_exact(matrix.inner()).enumerate() {
        matrix.read_row(index, &mut row);
        for (stored, base) in stored.iter().zip(&row) {
            others += usize::from(stored != base);
            difference += f64::from(stored - base).powi(2);
            size += f64::from(*base).powi(2);
        }
    }
    let distance = (difference / size.max(f64::MIN_POSITIVE)).sqrt();
    match matrix {
        Matrix::Dense { .. } if others > 0 => Err(format!(
            "{others} of {} values differ, expected the same, since PEFT puts the stored ones in place; `save_embedding_layers=False` saves none",
            stored.len()
        )),
        Matrix::Packed(_) if distance > MAX_QUANTISED_DISTANCE => Err(format!(
            "they differ by {distance:.3} of its size, at most {MAX_QUANTISED_DISTANCE} is allowed for a quantised base"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use polyskill_model::config::{FeedForward, Mixture};
    use polyskill_model::kernels::PackedMatrix;
    use polyskill_model::linear::DenseWeights;

    use super::*;
    use crate::artefact::tests::config;
    use crate::tensor_file::{Tensor, weights_file};

    /// The problems of a file of zeros at layer 0 of a sparse base, under these names and shapes.
    fn problems(targets: &[&str], tensors: &[(&str, [usize; 2])]) -> Vec<String> {
        let feed_forward = FeedForward::Mixture(Mixture {
            num_experts: 2,
            top_k: 1,
            expert_size: 6,
            renormalise: false,
            shared_expert: None,
            sparse: vec![true, false],
        });
        let config = ModelConfig { feed_forward, ..config() };
        let tensors = tensors.iter().map(|(name, [rows, columns])| {
            let zeros = std::iter::repeat_n(0.0, rows * columns);
            let name = format!("base_model.model.model.layers.0.{name}.weight");
            (name, Tensor::f32(vec![*rows, *columns], zeros))
        });
        let bytes = weights_file(tensors).unwrap();
        let settings = serde_json::json!({
            "peft_type": "LORA", "r": 2, "target_modules": targets, "layers_to_transform": [0],
        });
        let settings = LoraSettings::parse(settings.to_string().as_bytes()).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assemble(settings, &tensors, (&config).into()).err().unwrap_or_default()
    }

    #[test]
    fn a_tensor_under_two_names_is_refused_everywhere() {
        let targets = ["q_proj", "gate_proj", "w1"];
        let whole = [
            ("self_attn.q_proj.lora_A", [2, 4]),
            ("self_attn.q_proj.lora_B", [4, 2]),
            ("mlp.experts.1.gate_proj.lora_A", [2, 4]),
            ("mlp.experts.1.gate_proj.lora_B", [6, 2]),
        ];
        assert_eq!(problems(&targets, &whole), Vec::<String>::new());
        for more in [
            &[("self_attn.q_proj.lora_A.default", [2, 4])][..],
            &[("mlp.experts.1.gate_proj.lora_A.default", [2, 4])],
            &[
                ("block_sparse_moe.experts.1.w1.lora_A", [2, 4]),
                ("block_sparse_moe.experts.1.w1.lora_B", [6, 2]),
            ],
        ] {
            let found = problems(&targets, &[&whole[..], more].concat());
            assert!(found.len() == 1 && found[0].contains("under another name too"), "{found:?}");
        }
    }

    #[test]
    fn a_stored_matrix_of_the_base_has_its_values() {
        let values = [1.0, 0.1, -0.3, 1e-3];
        let dense = Matrix::Dense { weights: DenseWeights::F32(values.to_vec()), inner: 2 };
        assert_eq!(check_base_matrix(&values, &dense), Ok(()));
        let rounded = values.map(|value| half::bf16::from_f32(value).to_f32());
        let refusal = check_base_matrix(&rounded, &dense).unwrap_err();
        assert!(refusal.contains("3 of 4 values differ"), "{refusal}");
        let bits = values.iter().map(|value| half::bf16::from_f32(*value).to_bits()).collect();
        let halves = Matrix::Dense { weights: DenseWeights::Bf16(bits), inner: 2 };
        assert_eq!(check_base_matrix(&rounded, &halves), Ok(()));
        let row: Vec<f32> = (0..32_u8).map(|at| f32::from(at) / 10.0).collect();
        let packed = Matrix::Packed(PackedMatrix::from_dense(&row, 32));
        assert_eq!(check_base_matrix(&row, &packed), Ok(()));
        assert!(check_base_matrix(&[1.0; 32], &packed).is_err());
    }

    #[test]
    fn keys_are_exact() {
        let path = "model.layers.1.self_attn.q_proj";
        let key = |suffix: &str| format!("base_model.model.{path}.{suffix}");
        assert_eq!(parse_key(&key("lora_A.weight")), Some((path, A)));
        assert_eq!(parse_key(&key("lora_B.weight")), Some((path, B)));
        assert_eq!(parse_key(&key("lora_B.bias")), Some((path, B_BIAS)));
        assert_eq!(parse_key(&key("base_layer.bias")), Some((path, BIAS)));
        assert_eq!(parse_key("base_model.model.lm_head.weight"), Some(("lm_head", HEAD)));
        assert_eq!(parse_key("model.lm_head.weight"), None);
        assert_eq!(parse_key(&key("lora_A.default.weight")), Some((path, A)));
        let strange = key("lora_A.another.weight");
        let (path, _) = parse_key(&strange).unwrap();
        assert!(path.ends_with("lora_A.another"), "no linear has this path");
    }
}
