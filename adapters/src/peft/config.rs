//! `adapter_config.json`: which settings change arithmetic, and how. PEFT's rules for targets and
//! patterns are shared by its kinds; the settings of a LoRA are here, those of other kinds beside
//! their weights.

mod fields;
mod refusals;
mod token_indices;

use std::collections::BTreeSet;

use polyskill_model::{ModelConfig, Site};
use serde_json::{Map, Value as Json};

use super::pattern::Pattern;
use super::targets::{Layers, Matcher, Wrapper, layers, matcher, saved, target};

use fields::{is_truth, number, pattern_map, positive_rank};
pub(crate) use fields::{object, strings};
pub(super) use refusals::refused_settings;
use refusals::{check_kind, refused_lora_settings, unloadable};
pub(super) use token_indices::{TokenIndices, tokens};

/// Names of the embedding table and the head, by which PEFT sees that a module changes one of them.
pub(super) const ENDS: [&str; 2] = ["embed_tokens", "lm_head"];

/// The settings of a LoRA's configuration that are about arithmetic.
#[derive(Debug)]
pub(super) struct LoraSettings {
    /// r, where no pattern says otherwise.
    rank: usize,
    /// α, where no pattern says otherwise.
    alpha: f64,
    /// Scales by α/√r (rank-stabilised LoRA, Kalajdzievski, 2023) rather than α/r.
    use_rslora: bool,
    /// Ranks of single modules, in file order; the first that matches counts.
    rank_pattern: Vec<(Pattern, usize)>,
    /// α of single modules, likewise.
    alpha_pattern: Vec<(Pattern, f64)>,
    /// `target_modules`, or PEFT's default.
    target: Matcher,
    /// Fused parameters, as PEFT's `target_parameters` names them.
    parameters: Vec<String>,
    /// `exclude_modules`, which goes before `target`.
    exclude: Option<Matcher>,
    /// `layers_to_transform`; `None` for all layers.
    layers: Option<Layers>,
    /// Modules that are saved whole, which PEFT does not target too.
    saved: Vec<Pattern>,
    /// `ensure_weight_tying`: both ends of a tied base share one LoRA.
    ensure_weight_tying: bool,
    /// The model around the text's part, in whose paths the file and its settings are written.
    pub(super) wrapper: Wrapper,
    /// True where sites have magnitudes.
    pub(super) use_dora: bool,
    /// True where B has a bias.
    pub(super) lora_bias: bool,
    /// True where biases of the base were trained too.
    pub(super) trains_biases: bool,
    /// True where the module has a head of its own.
    pub(super) own_head: bool,
    /// Tokens with rows of their own.
    pub(super) tokens: Option<TokenIndices>,
}

impl LoraSettings {
    /// Parses a configuration, with all problems at once. It is not known yet for which base it is.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Vec<String>> {
        let object = object(bytes)?;
        let mut problems = Vec::new();
        problems.extend(check_kind(&object).err());
        problems.extend(unloadable(&object));
        problems.extend(refused_lora_settings(&object));
        let rank = kept(&mut problems, positive_rank(object.get("r"), "r"));
        let alpha = kept(&mut problems, number(object.get("lora_alpha"), "lora_alpha"));
        let rank_pattern = pattern_map(&object, "rank_pattern", |value, name| {
            positive_rank(Some(value), name).map(|rank| rank as usize)
        });
        let alpha_pattern =
            pattern_map(&object, "alpha_pattern", |value, name| number(Some(value), name));
        let rank_pattern = kept(&mut problems, rank_pattern);
        let alpha_pattern = kept(&mut problems, alpha_pattern);
        let target = kept(&mut problems, target(&object));
        let exclude = object.get("exclude_modules").filter(|value| !value.is_null());
        let exclude = exclude.map(|value| matcher(Some(value), "exclude_modules")).transpose();
        let exclude = kept(&mut problems, exclude);
        let layers = kept(&mut problems, layers(&object, target.as_ref()));
        let saved = kept(&mut problems, saved(&object));
        const TOKENS: &str = "trainable_token_indices";
        let tokens = kept(&mut problems, tokens(object.get(TOKENS), TOKENS));
        let flag = |name: &str| object.get(name).and_then(Json::as_bool).unwrap_or(false);
        if !problems.is_empty() {
            return Err(problems);
        }
        let parts = || {
            Some(Self {
                rank: rank? as usize,
                alpha: alpha?,
                use_rslora: flag("use_rslora"),
                rank_pattern: rank_pattern?,
                alpha_pattern: alpha_pattern?,
                target: target?,
                parameters: strings(object.get("target_parameters")),
                exclude: exclude?,
                layers: layers?,
                saved: saved?,
                ensure_weight_tying: is_truth(object.get("ensure_weight_tying")),
                wrapper: Wrapper::default(),
                use_dora: flag("use_dora"),
                lora_bias: flag("lora_bias"),
                trains_biases: trains_biases(&object),
                own_head: !strings(object.get("modules_to_save")).is_empty(),
                tokens: tokens?,
            })
        };
        parts().ok_or(problems)
    }

    /// The sites of the base that the configuration targets; the head and the embedding table are
    /// not among them.
    pub(super) fn targets(&self, base: &ModelConfig) -> BTreeSet<Site> {
        base.sites().filter(|site| self.is_target(&format!("model.{site}"))).collect()
    }

    /// Names of the settings by which the module does more than a plain low-rank product.
    pub(super) fn beyond_low_rank(&self) -> Vec<&'static str> {
        let settings = [
            ("use_dora", self.use_dora),
            ("lora_bias", self.lora_bias),
            ("bias", self.trains_biases),
            ("modules_to_save", self.own_head),
            ("trainable_token_indices", self.tokens.is_some()),
        ];
        settings.into_iter().filter(|(_, is_set)| *is_set).map(|(name, _)| name).collect()
    }

    /// True for a path, as in a model for text, that PEFT would wrap: targeted, neither excluded
    /// nor saved whole, and in the layers unless it is named whole.
    pub(super) fn is_target(&self, path: &str) -> bool {
        let path = &*self.wrapper.outer(path);
        let excluded = self.excludes(path) || self.saved.iter().any(|saved| saved.is_match(path));
        // A path that is named whole is meant, whatever its layer.
        let is_exact = self.target.names().iter().any(|name| name == path);
        !excluded && (is_exact || self.target.matches(path) && self.is_in_layers(path))
    }

    /// True for a path that `exclude_modules` names.
    pub(super) fn is_excluded(&self, path: &str) -> bool {
        self.excludes(&self.wrapper.outer(path))
    }

    /// The same for a path as PEFT saw it.
    fn excludes(&self, path: &str) -> bool {
        self.exclude.as_ref().is_some_and(|exclude| exclude.matches(path))
    }

    /// True where the embedding table and the head of a tied base share one LoRA.
    /// `ensure_weight_tying` asks for it, and a target must name one of the two.
    pub(super) fn ties_ends(&self, base: &ModelConfig) -> bool {
        let names_an_end = match &self.target {
            Matcher::Pattern(pattern) => ENDS.iter().any(|end| pattern.is_match(end)),
            names => names
                .names()
                .iter()
                .any(|name| ENDS.contains(&name.rsplit('.').next().unwrap_or_default())),
        };
        self.ensure_weight_tying && base.tied_embeddings && names_an_end
    }

    /// On a tied base, rows of the same tokens at both ends are one tensor, at the embedding table,
    /// as PEFT saves them. Without it the head's rows would be missed, since the file has none.
    pub(super) fn follow_ties(&mut self, base: &ModelConfig, head_has_rows: bool) {
        if let Some(tokens) =
            self.tokens.as_mut().filter(|_| base.tied_embeddings && !head_has_rows)
            && tokens.head.as_ref() == Some(&tokens.embedding)
        {
            tokens.head = None;
        }
    }

    /// A refusal of combinations of `ensure_weight_tying` that PEFT serves and this reader does
    /// not.
    pub(super) fn tying_problem(&self, base: &ModelConfig) -> Option<String> {
        if !self.ensure_weight_tying || !base.tied_embeddings {
            return None;
        }
        let of = |what: &str| {
            Some(format!("setting `ensure_weight_tying` with {what} is not supported"))
        };
        if self.own_head {
            return of("`modules_to_save`");
        }
        if self.ties_ends(base) && self.tokens.is_some() {
            return of("`trainable_token_indices` at a tied end");
        }
        match &self.tokens {
            Some(tokens) if tokens.head.as_ref().is_some_and(|head| *head != tokens.embedding) => {
                of("`trainable_token_indices` that differ between both ends")
            }
            _ => None,
        }
    }

    /// Reasons not to use matches of its expressions. They come up in matching, so this is asked
    /// last.
    pub(super) fn pattern_problems(&self) -> Vec<String> {
        let matchers = [Some(&self.target), self.exclude.as_ref()].into_iter().flatten();
        let containers = self.layers.iter().flat_map(|layers| &layers.containers);
        let ranks = self.rank_pattern.iter().map(|(pattern, _)| pattern);
        let alphas = self.alpha_pattern.iter().map(|(pattern, _)| pattern);
        let patterns = ranks.chain(alphas).chain(containers).chain(&self.saved);
        matchers.filter_map(Matcher::problem).chain(patterns.filter_map(Pattern::problem)).collect()
    }

    /// True for a fused parameter that `target_parameters` names, whole or by the end of its path.
    pub(super) fn is_target_parameter(&self, path: &str) -> bool {
        let path = &*self.wrapper.outer(path);
        let names = |name: &String| {
            path == name || path.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'))
        };
        self.parameters.iter().any(names)
    }

    /// True where `layers_to_transform` has the path's layer, or is not set.
    fn is_in_layers(&self, path: &str) -> bool {
        self.layers.as_ref().is_none_or(|layers| layers.holds(path))
    }

    /// α, which patterns override per module. The path is one as in a model for text.
    pub(super) fn alpha(&self, path: &str) -> f64 {
        first_match(&self.alpha_pattern, &self.wrapper.outer(path)).unwrap_or(self.alpha)
    }

    /// r, and the factor on B·A: α/r, or α/√r with rsLoRA; patterns override per module. The
    /// division is done in f64 and rounded once.
    pub(super) fn rank_and_scale(&self, path: &str) -> (usize, f32) {
        let rank = first_match(&self.rank_pattern, &self.wrapper.outer(path)).unwrap_or(self.rank);
        let alpha = self.alpha(path);
        let divisor = if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        (rank, (alpha / divisor) as f32)
    }
}

/// PEFT's `get_pattern_key`: the first key, in file order, that matches a suffix at a dot. Longer
/// keys have no precedence.
fn first_match<T: Copy>(patterns: &[(Pattern, T)], path: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(path)).map(|(_, value)| *value)
}

/// A value, or its problem among the others.
fn kept<T>(problems: &mut Vec<String>, result: Result<T, String>) -> Option<T> {
    result.map_err(|problem| problems.push(problem)).ok()
}

/// True where `bias` is a text other than `none`.
fn trains_biases(object: &Map<String, Json>) -> bool {
    object.get("bias").and_then(Json::as_str).is_some_and(|which| which != "none")
}

#[cfg(test)]
mod tests {
    use super::refusals::READ;
    use super::*;

    fn settings(extra: &str) -> Result<LoraSettings, Vec<String>> {
        let text = format!(r#"{{"peft_type": "LORA", "r": 4, "lora_alpha": 8, {extra}}}"#);
        LoraSettings::parse(text.as_bytes())
    }

    #[test]
    fn the_first_matching_pattern_wins() {
        let parsed = settings(
            r#""target_modules": ["q_proj"], "rank_pattern": {"self_attn.k_proj": 5, "k_proj": 3,
               "^model.layers.2.self_attn.v_proj": 1}, "alpha_pattern": {"proj": 100}"#,
        )
        .unwrap();
        assert_eq!(parsed.rank_and_scale("model.layers.0.self_attn.k_proj"), (5, 8.0 / 5.0));
        assert_eq!(parsed.rank_and_scale("model.layers.2.self_attn.v_proj"), (1, 8.0));
        assert_eq!(parsed.rank_and_scale("model.layers.12.self_attn.v_proj"), (4, 2.0));
    }

    #[test]
    fn names_match_whole_components_only() {
        let parsed = settings(r#""target_modules": ["proj", "self_attn.q_proj"]"#).unwrap();
        assert!(parsed.is_target("model.layers.0.self_attn.q_proj"));
        assert!(!parsed.is_target("model.layers.0.self_attn.k_proj"));
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let problems = settings(
            r#""target_modules": 3, "use_qalora": true, "bias": "some", "lora_alpha": "x""#,
        )
        .unwrap_err();
        for part in ["target_modules", "use_qalora", "bias", "lora_alpha"] {
            assert!(problems.iter().any(|problem| problem.contains(part)), "{part}: {problems:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_configurations_never_panic(
            key in proptest::sample::select(READ.to_vec()),
            value in r#"[\[\]{}":,a-z0-9().*+?\\^$|-]{0,60}"#,
        ) {
            let text = format!(r#"{{"peft_type": "LORA", "target_modules": ["q_proj"], "{key}": {value}}}"#);
            let _ = LoraSettings::parse(text.as_bytes());
            let quoted = serde_json::to_string(&value).unwrap();
            let text = format!(r#"{{"peft_type": "LORA", "target_modules": {quoted}, "rank_pattern": {{{quoted}: 3}}}}"#);
            if let Ok(settings) = LoraSettings::parse(text.as_bytes()) {
                let _ = settings.is_target("model.layers.1.self_attn.q_proj");
                let _ = settings.rank_and_scale("model.layers.1.self_attn.q_proj");
            }
        }
    }
}
